"""The holders of a topic give each other what they lack (SPEC, DHT upkeep). No I/O, no clock.

One of them asks the others for their digest: two datagrams each when nothing differs. Where it differs, records that
fit a datagram are compared by name and pushed or kept; larger ones are told by tag and size and travel in parts, one
after the other, a few per node and turn. Who is newer is decided by rank where the record arrives, never by who tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dht import messages
from dht.errors import BadPacket, InvalidRecord
from dht.messages import FIRST, Op, Reply, Status
from dht.records import Record
from dht.rpc import TOKEN_LIFE_S, Call, Peer
from dht.search import INLINE_STORE, WANT, Search
from dht.storage import Outcome

if TYPE_CHECKING:
    from dht.contact import Contact
    from dht.engine import Engine
    from dht.lookup import Lookup

PUSH_LIMIT: Final = 64
"""Records handed to one node in one turn; the rest goes by `sync` or in the next."""
LARGE_LIMIT: Final = 8
"""Records of more than one datagram exchanged with one node in one turn."""


class Handover(Search):
    """Ask the other holders of a topic for their digest; give them what they lack and take what we lack."""

    op = Op.FIND_VALUE

    def __init__(self, engine: Engine, topic: bytes, lookup: Lookup) -> None:
        super().__init__(engine, topic, lookup)
        self._engine = engine
        self.given = 0

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        del contact
        digest = self._engine.storage.digest(self.target)
        return Op.FIND_VALUE, messages.find_value_body(self.target, WANT, FIRST, digest)

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        if call.op != Op.FIND_VALUE:
            return []
        value = messages.value_of(reply.data)
        if reply.status == Status.UNCHANGED:
            return value.contacts
        if reply.status != Status.OK:
            raise BadPacket("refused")
        theirs: set[bytes] = set()
        kept = 0
        for raw in value.records:
            record = self._engine.check(raw, self.target, now)
            theirs.add(record.rank[2])
            put = self._engine.keep(self.target, record, call.peer.contact.group, now)
            kept += put.outcome is Outcome.STORED
        if not value.more and self.lookup.within(call.peer.contact):
            self._give(call.peer, theirs, dict(value.large), kept, now)
        return value.contacts

    def _give(self, peer: Peer, theirs: set[bytes], large: dict[bytes, int], kept: int, now: float) -> None:
        storage, unix = self._engine.storage, self._engine.unix(now)
        proved = now - peer.token_at <= TOKEN_LIFE_S
        exchange = _Exchange(self._engine, self.target, peer.contact)
        count = 0
        alike: list[tuple[bytes, int]] = []
        for raw in storage.all(self.target, unix):
            try:
                record = self._engine.registry.trust(raw, self.target, unix)
            except InvalidRecord:
                continue
            if len(raw) > INLINE_STORE:
                if record.tag not in large:
                    exchange.give(record)
                elif large[record.tag] == len(raw):
                    # The same, or another version of the same size: looked into when nothing else differs.
                    alike.append((record.tag, large.pop(record.tag)))
            elif proved and record.rank[2] not in theirs and count < PUSH_LIMIT:
                count += 1
                self.given += 1
                self._engine.ask(peer.contact, Op.STORE, messages.store_body(self.target, 0, raw), self, now)
        for tag, size in large.items() if large or exchange.busy or count or kept else alike:
            exchange.take(tag, size)
        exchange.start(now)

    def _ended(self, now: float) -> None:
        """Nobody waits for it."""


class _Exchange:
    """Large records between us and one node, one datagram at a time."""

    def __init__(self, engine: Engine, topic: bytes, contact: Contact) -> None:
        self._engine = engine
        self._topic = topic
        self._contact = contact
        self._giving: list[Record] = []
        self._taking: list[tuple[bytes, int]] = []
        self._buffer = bytearray()
        self._retried = False

    @property
    def busy(self) -> bool:
        """Whether there is anything to exchange."""
        return bool(self._giving or self._taking)

    def give(self, record: Record) -> None:
        """A record that the node does not have, or has in an older version."""
        if len(self._giving) < LARGE_LIMIT:
            self._giving.append(record)

    def take(self, tag: bytes, size: int) -> None:
        """A record that we do not have, or not in this version."""
        if len(self._taking) < LARGE_LIMIT and 0 < size <= self._engine.registry.max_bytes:
            self._taking.append((tag, size))

    def start(self, now: float) -> None:
        """Take, then give."""
        self._retried = False
        if self._taking:
            self._buffer = bytearray()
            self._fetch(now)
        elif self._giving:
            self._push(0, now)

    def _fetch(self, now: float) -> None:
        body = messages.fetch_body(self._topic, self._taking[0][0], len(self._buffer))
        self._engine.ask(self._contact, Op.FETCH_PART, body, self, now)

    def _push(self, offset: int, now: float) -> None:
        body = messages.store_part_body(self._topic, self._giving[0].raw, offset)
        self._engine.ask(self._contact, Op.STORE_PART, body, self, now)

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """The next part, or the next record."""
        self._engine.heard(self._contact, now)
        if call.op == Op.FETCH_PART:
            self._fetched(reply, now)
        else:
            self._pushed(call, reply, now)

    def _fetched(self, reply: Reply, now: float) -> None:
        size = self._taking[0][1]
        try:
            part = messages.part_of(reply.data) if reply.status == Status.OK else b""
            if not part or len(self._buffer) + len(part) > size:
                raise BadPacket("a part that does not fit")
            self._buffer += part
            if len(self._buffer) < size:
                self._fetch(now)
                return
            record = self._engine.check(bytes(self._buffer), self._topic, now)
        except (BadPacket, InvalidRecord):
            # Whoever tells of records and does not have them is not worth another question.
            return
        put = self._engine.keep(self._topic, record, self._contact.group, now)
        if put.outcome is Outcome.OLDER and put.standing is not None:
            self.give(self._engine.registry.trust(put.standing, self._topic, self._engine.unix(now)))
        del self._taking[0]
        self.start(now)

    def _pushed(self, call: Call, reply: Reply, now: float) -> None:
        raw = self._giving[0].raw
        sent = messages.part_end(call.body)
        if reply.status in (Status.BAD_TOKEN, Status.BUSY) and not self._retried:
            # It did not know our address, or lost the beginning: once more from there.
            self._retried = True
            self._push(0, now)
        elif reply.status == Status.OK and sent < len(raw):
            self._push(sent, now)
        elif reply.status in (Status.OK, Status.OLDER):
            del self._giving[0]
            self.start(now)

    def late(self, call: Call, now: float) -> None:
        """Wait."""

    def failed(self, call: Call, now: float) -> None:
        """The node is gone; the next turn sees to the rest."""
        self._engine.lost(call.peer.contact, now)
