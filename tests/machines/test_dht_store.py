"""A DHT node as a state machine: whatever is stored, asked, lost and restarted, it holds what a dictionary would.

Requests come in as sealed datagrams of other nodes; the records lie in SQLite with little memory in front, so that most
come back from the disk. The model is one dictionary from (topic, publisher, sub-key) to the record of the highest rank.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dht import messages, packet
from dht.disk import SqliteDisk, open_storage
from dht.engine import Engine, EngineConfig
from dht.errors import InvalidRecord
from dht.messages import Op, Status
from dht.records import Record, RecordKind, Registry
from dht.rpc import Rpc
from dht.storage import StorageLimits
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import pack
from tests.network.dht_net import NOTE, Note, read_note

NODE = SigningKey(b"e" * 32)
PUBLISHERS = [SigningKey(bytes([n]) * 32) for n in (1, 2, 3)]
CALLERS = [SigningKey(bytes([n]) * 32) for n in (11, 12)]
TOPICS = [bytes([n]) * 20 for n in (1, 2)]
MOST = 3
RULES = RecordKind(NOTE, read_note, max_bytes=2_000, max_lifetime_s=1_000, max_per_publisher=MOST)
LIMITS = StorageLimits(memory_bytes=3_000)
Key = tuple[bytes, bytes, bytes]


class DhtNodeMachine(RuleBasedStateMachine):
    """One node, two callers, three publishers."""

    @initialize()
    def start(self) -> None:
        """A node with an empty disk."""
        self.folder = tempfile.TemporaryDirectory(prefix="p2p-")
        self.path = Path(self.folder.name) / "dht.sqlite"
        self.now = 10_000.0
        self.model: dict[Key, Record] = {}
        self.sent: list[bytes] = []
        self.count = 0
        self._open()

    def _open(self) -> None:
        self.rng = random.Random(5)
        rpc = Rpc(NODE, Network.REGTEST, send=lambda d, _: self.sent.append(d), rng=self.rng, exempt=lambda _: True)
        self.registry = Registry(Network.REGTEST, (RULES,))
        self.storage = open_storage(self.path, self.rng, LIMITS)
        self.engine = Engine(EngineConfig(local_addresses=True), rpc, self.registry, self.storage, self.rng)
        assert isinstance(self.storage.disk, SqliteDisk)
        for topic, raw, group, stored_at in list(self.storage.disk.load(int(self.now))):
            self.storage.load(topic, self.registry.trust(raw, topic, int(self.now)), group, stored_at)

    def teardown(self) -> None:
        """Close what is open."""
        if hasattr(self, "storage"):
            self.storage.close()
            self.folder.cleanup()

    # -- talking ---------------------------------------------------------------------------------------------------

    def _ask(self, caller: int, op: int, body: bytes, token: bytes = messages.NO_TOKEN) -> messages.Reply:
        key = CALLERS[caller]
        to, back = packet.direction_keys(
            key.x25519_secret, key.public, NODE.public, NODE.x25519_public, Network.REGTEST
        )
        self.count += 1
        rid = self.count.to_bytes(12, "big")
        plain = messages.request(op, messages.CLIENT, token, body)
        self.sent.clear()
        self.engine.receive(
            packet.seal_request(to, key.public, rid, plain.ljust(339, b"\0")), self._at(caller), self.now
        )
        (answer,) = self.sent
        return messages.parse_reply(packet.open_reply(back, answer), op)

    def _at(self, caller: int) -> tuple[str, int]:
        return f"127.0.{caller}.1", 4_000

    def _alive(self) -> dict[Key, Record]:
        return {key: record for key, record in self.model.items() if record.meta.expires > self.now}

    # -- rules -----------------------------------------------------------------------------------------------------

    @rule(
        caller=st.integers(0, 1),
        who=st.integers(0, 2),
        topic=st.sampled_from(TOPICS),
        sub=st.integers(0, 4),
        sequence=st.integers(0, 4),
        gone=st.booleans(),
        life=st.integers(-5, 500) | st.integers(900, 1_700),
        size=st.integers(0, 800),
        large=st.booleans(),
    )
    def store(
        self,
        caller: int,
        who: int,
        topic: bytes,
        sub: int,
        sequence: int,
        gone: bool,
        life: int,
        size: int,
        large: bool,
    ) -> None:
        """A record arrives, whole or in parts; the node says what a dictionary with a limit would say."""
        text = bytes(self.rng.randrange(256) for _ in range(1_000 if large else size))
        body = pack(Note(topic, bytes([sub]), sequence, int(self.now) + life, gone, text))
        raw = PUBLISHERS[who].seal(NOTE, Network.REGTEST, body).raw
        token, status = self._ask(caller, Op.PING, b"").token, -1
        if len(raw) <= 1_000:
            status = self._ask(caller, Op.STORE, messages.store_body(topic, 0, raw), token).status
        else:
            for offset in range(0, len(raw), messages.PART_BYTES):
                reply = self._ask(caller, Op.STORE_PART, messages.store_part_body(topic, raw, offset), token)
                status = reply.status
        try:
            record = self.registry.check(raw, topic, int(self.now))
        except InvalidRecord:
            assert status == Status.INVALID
            return
        key = (topic, record.meta.publisher, record.meta.sub_key)
        alive = self._alive()
        old = alive.get(key)
        # What has expired takes a place until the chores come by.
        mine = sum(1 for t, p, s in self.model if (t, p) == (topic, record.meta.publisher) and (t, p, s) != key)
        if old is None and mine >= MOST:
            assert status == Status.FULL
        elif old is not None and old.rank > record.rank:
            assert status == Status.OLDER
        else:
            assert status == Status.OK
            self.model[key] = record
        if status == Status.FULL:
            self.model.pop(key, None)

    @rule(caller=st.integers(0, 1), topic=st.sampled_from(TOPICS))
    def forget_token(self, caller: int, topic: bytes) -> None:
        """Nobody writes without having shown that he receives at his address."""
        raw = PUBLISHERS[0].seal(NOTE, Network.REGTEST, pack(Note(topic, b"z", 9, int(self.now) + 9, False, b""))).raw
        assert self._ask(caller, Op.STORE, messages.store_body(topic, 0, raw)).status == Status.BAD_TOKEN

    @rule(caller=st.integers(0, 1), topic=st.sampled_from(TOPICS))
    def read(self, caller: int, topic: bytes) -> None:
        """All pages, and the large ones by parts, are what is alive; each once."""
        token = self._ask(caller, Op.PING, b"").token
        found: list[bytes] = []
        after, more = messages.FIRST, True
        while more:
            reply = self._ask(caller, Op.FIND_VALUE, messages.find_value_body(topic, 0, after, messages.FIRST), token)
            value = messages.value_of(reply.data)
            tags = [self.registry.trust(raw, topic, int(self.now)).tag for raw in value.records]
            found += value.records
            for tag, size in value.large:
                raw = b""
                while len(raw) < size:
                    part = self._ask(caller, Op.FETCH_PART, messages.fetch_body(topic, tag, len(raw)), token)
                    raw += messages.part_of(part.data)
                found.append(raw)
            after, more = max([after, *tags, *(tag for tag, _ in value.large)]), value.more
        assert sorted(found) == sorted(r.raw for (t, _, _), r in self._alive().items() if t == topic)

    @rule(data=st.binary(max_size=900), op=st.integers(0, 12), caller=st.integers(0, 1))
    def junk(self, data: bytes, op: int, caller: int) -> None:
        """Whatever an authenticated node sends changes nothing unless it is a record."""
        key = CALLERS[caller]
        to, _ = packet.direction_keys(key.x25519_secret, key.public, NODE.public, NODE.x25519_public, Network.REGTEST)
        self.count += 1
        plain = (bytes([op]) + data)[: packet.REQUEST_ROOM]
        datagram = packet.seal_request(to, key.public, self.count.to_bytes(12, "big"), plain)
        self.engine.receive(datagram, self._at(caller), self.now)
        self.engine.receive(data, self._at(caller), self.now)

    @rule(seconds=st.integers(1, 600), chores=st.booleans())
    def wait(self, seconds: int, chores: bool) -> None:
        """Time passes; the chores are done, or not yet."""
        self.now += seconds
        if chores:
            self.engine.step(self.now)
            self.engine.tick(self.now)
            self.model = self._alive()

    @rule()
    def restart(self) -> None:
        """What was stored comes back from the disk; what has expired does not."""
        self.storage.close()
        self._open()
        self.model = self._alive()

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def counters_agree(self) -> None:
        """Quotas are judged by these: if they drift, a node fills up or refuses everybody."""
        if not hasattr(self, "storage"):
            return
        storage: Any = self.storage
        slots = [slot for topic in storage.topics() for slot in storage.slots(topic)]
        assert storage.records == len(slots) == len(self.model)
        assert storage.bytes == sum(slot.size for slot in slots) == sum(len(r.raw) for r in self.model.values())
        assert storage.memory == sum(slot.size for slot in slots if slot.raw is not None) <= LIMITS.memory_bytes
        assert sum(storage._by_signer.values()) == len(slots)
        assert sum(storage._by_group.values()) == sum(max(slot.size, storage._least) for slot in slots)
        for topic in TOPICS:
            digest = 0
            for (t, _, _), record in self.model.items():
                digest ^= int.from_bytes(record.rank[2][:8], "big") if t == topic else 0
            assert storage.digest(topic) == digest.to_bytes(8, "big")


TestDhtNodeMachine = DhtNodeMachine.TestCase
TestDhtNodeMachine.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
