"""What hostile nodes and publishers say to a node's face: old versions, two versions, wrong answers, slow ones, floods.

Against the engine in virtual time where time matters, over sockets where it does not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest

from dht import messages, packet, sync
from dht.contact import Contact, Via, node_id, puzzle_zero_bits
from dht.desk import MAX_UPLOADS
from dht.errors import BadPacket, InvalidRecord
from dht.lookup import MAX_CANDIDATES, Lookup
from dht.market import MAX_PULLED, Market
from dht.messages import Op, Status
from dht.node import DhtNode
from dht.records import CLOCK_SKEW_S, Record, RecordKind, RecordMeta, Registry
from dht.rpc import MAX_STRANGERS
from dht.sim.attack import Behaviour, turn
from dht.sim.lab import RULES as SIM_RULES
from dht.sim.lab import Lab
from dht.sim.world import World, build
from dht.stream import TcpFrames
from dht.sync import FRAME, LAST, RECORDS, TELL
from dht.topics import MAX_SHARD_BITS, contact_topic
from p2pnode.records import record_kinds
from protocol.contact import CONTACT_WORK_BITS, Address, ContactRecord, NodeContact
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.malice.test_dht_attacks import Ear, contact_of, nothing_raised, store
from tests.network.dht_net import NOTE, NOTES, Net, note, read_note
from tests.network.test_dht_market import KEY, MarketNet, bid

NETWORK = Network.REGTEST
ALICE, MALLORY = SigningKey(b"a" * 32), SigningKey(b"m" * 32)
TOPIC = b"t" * 20


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    built = Net(20_261_121)
    await built.grow(14, count_local=True)
    yield built
    await built.close()


__all__ = ["nothing_raised"]  # a fixture for every test here, too


def world(nodes: int = 40) -> World:
    print("seed 5")
    made = World(5)
    made.registry.add(SIM_RULES)
    build(made, nodes)
    return made


def holders(nodes: list[DhtNode], topic: bytes) -> list[DhtNode]:
    target = int.from_bytes(topic, "big")
    return sorted(nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)[:8]


class TestRecords:
    async def test_a_forged_tombstone_deletes_nothing(self, net: Net) -> None:
        record = note(ALICE, TOPIC, b"mine", sub_key=b"offer")
        await net.nodes[1].put(TOPIC, record, quorum=8)
        await net.nodes[2].put(TOPIC, note(MALLORY, TOPIC, sub_key=b"offer", sequence=2**62, gone=True), quorum=8)
        body = note(ALICE, TOPIC, sub_key=b"offer", sequence=9, gone=True)
        forged = Envelope(body.kind, body.network, ALICE.public, body.body, bytes(64), body.raw[:-64] + bytes(64))
        assert await store(net.nodes[2], net.nodes[3], TOPIC, forged.raw) == Status.INVALID
        found = await net.nodes[5].get(TOPIC, quorum=6)
        assert [e.raw for e in found if e.signer == ALICE.public] == [record.raw]

    async def test_holders_that_withhold_a_tombstone_do_not_bring_the_record_back(self, net: Net) -> None:
        await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, b"for sale"), quorum=8)
        for liar in holders(net.nodes, TOPIC)[:2]:
            turn_stale(liar)
        await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, sequence=2, gone=True), quorum=6)
        readers = [n for n in net.nodes if n not in holders(net.nodes, TOPIC)]
        for reader in readers:
            assert await reader.get(TOPIC, paths=3) == []

    @pytest.mark.parametrize("sequence", [2**63 - 1, 2**63, 2**64 - 1])
    async def test_the_largest_sequence_is_a_number_like_others(self, net: Net, sequence: int) -> None:
        last = note(ALICE, TOPIC, b"for ever", sequence=sequence)
        await net.nodes[1].put(TOPIC, last, quorum=8)
        assert (await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, sequence=sequence - 1))).acks == 0
        assert [e.raw for e in await net.nodes[4].get(TOPIC)] == [last.raw]
        # Only its owner can harm himself by it, and even he can still take it back.
        assert (await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, sequence=sequence, gone=True), quorum=8)).acks
        assert await net.nodes[4].get(TOPIC, paths=3) == []

    def test_a_tombstone_outranks_what_it_revokes_whatever_their_hashes_are(self) -> None:
        registry = Registry(NETWORK, (NOTES,))
        now = int(time.time())
        gone = registry.check(note(ALICE, TOPIC, gone=True).raw, TOPIC, now)
        texts = [registry.check(note(ALICE, TOPIC, bytes([i])).raw, TOPIC, now) for i in range(16)]
        assert all(gone.rank > other.rank for other in texts)

    async def test_a_negative_sequence_replaces_nothing(self, net: Net) -> None:
        first = note(ALICE, TOPIC, b"first", sequence=0)
        await net.nodes[1].put(TOPIC, first, quorum=8)
        await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, b"less", sequence=-(2**63)))
        assert [e.raw for e in await net.nodes[4].get(TOPIC)] == [first.raw]

    def test_holders_of_two_versions_with_one_sequence_all_come_to_hold_the_same(self) -> None:
        lab = Lab(5, 40)
        lab.world.rng.seed(5)
        one, other = lab.record(TOPIC, 7), lab.record(TOPIC, 7)
        assert one.rank != other.rank
        world = lab.world
        target = int.from_bytes(TOPIC, "big")
        near = sorted(world.nodes, key=lambda n: n.contact.long_id ^ target)[:8]
        for i, node in enumerate(near):
            node.engine.keep(TOPIC, (one, other)[i % 2], b"", world.now)
        world.run(world.now + 5_000)
        higher = max(one, other, key=lambda r: r.rank)
        assert {raw for n in near for raw in n.engine.storage.all(TOPIC, 0)} == {higher.raw}

    def test_a_record_from_the_future_is_refused_whatever_it_says_of_its_end(self) -> None:
        def dated(envelope: Envelope, now: int) -> RecordMeta:
            meta = read_note(envelope, now)
            return RecordMeta(meta.publisher, b"", 1, now + 60, (TOPIC,), issued=meta.sequence)

        registry = Registry(NETWORK, (RecordKind(NOTE, dated, max_bytes=8_192),))
        now = int(time.time())
        registry.check(note(ALICE, TOPIC, sequence=now + CLOCK_SKEW_S).raw, TOPIC, now)
        with pytest.raises(InvalidRecord, match="future"):
            registry.check(note(ALICE, TOPIC, sequence=now + CLOCK_SKEW_S + 1).raw, TOPIC, now)

    def test_a_contact_record_for_somebody_else_is_kept_by_nobody(self) -> None:
        registry = Registry(NETWORK, record_kinds(NETWORK))
        now = int(time.time())
        topic = contact_topic(NETWORK, ALICE.public)

        def contact(key: SigningKey, sequence: int, life: int = 600) -> bytes:
            there = NodeContact(key.public, (Address("203.0.113.1", 4_000),))
            record = ContactRecord(ALICE.public, sequence, there, (), now, now + life)
            return key.seal(
                Kind.CONTACT, NETWORK, find_work(Kind.CONTACT, NETWORK, pack(record), CONTACT_WORK_BITS)
            ).raw

        good = registry.check(contact(ALICE, 1), topic, now)
        assert good.meta.publisher == ALICE.public
        for raw in (contact(MALLORY, 2), contact(ALICE, 2, life=90 * 86_400), contact(ALICE, 2, life=-1)):
            with pytest.raises(InvalidRecord):
                registry.check(raw, topic, now)
        with pytest.raises(InvalidRecord):
            registry.check(good.raw, contact_topic(NETWORK, MALLORY.public), now)


def turn_stale(node: DhtNode) -> None:
    """Keeps the first version that it got, and says that it keeps the others."""
    storage, desk = node.storage, node.engine.desk
    honest = desk._keep

    def lie(topic: bytes, raw: bytes, *rest: object) -> bytes:
        return b"\0\0" if storage.total(topic) else honest(topic, raw, *rest)  # type: ignore[arg-type]

    desk._keep = lie  # type: ignore[assignment,method-assign]


class TestPackets:
    async def test_the_answer_to_one_question_is_none_to_another(self, net: Net) -> None:
        asker, asked = net.nodes[0], net.nodes[1]
        sent: list[bytes] = []
        asker.engine.rpc._send = lambda d, _: sent.append(d)
        first, second = Ear(), Ear()
        now = time.monotonic()
        asker.engine.rpc.call(contact_of(asked), Op.FIND_NODE, messages.find_node_body(TOPIC, 8), first, now)
        asker.engine.rpc.call(contact_of(asked), Op.PING, b"", second, now)
        out: list[bytes] = []
        asked.engine.rpc._send = lambda d, _: out.append(d)
        for datagram in sent:
            asked.engine.receive(datagram, asker.local, now)
        swapped = out[0][:1] + out[1][1:13] + out[0][13:]
        asker.engine.receive(swapped, asked.local, now)
        assert not first.future.done()
        assert not second.future.done(), "an answer under the id of another question"
        to, _ = packet.direction_keys(
            asked.key.x25519_secret, asked.key.public, asker.key.public, asker.key.x25519_public, NETWORK
        )
        wrong = packet.seal_reply(to, sent[1][33:45], bytes(8), messages.reply(Op.FIND_NODE, 0, bytes(8), b"\0"))
        asker.engine.receive(wrong, asked.local, now)
        assert not second.future.done(), "the right node, the right id, another operation"
        asker.engine.receive(out[1], asked.local, now)
        assert second.future.done()

    async def test_the_same_answer_twice_counts_once(self, net: Net) -> None:
        asker, asked = net.nodes[0], net.nodes[1]
        sent: list[bytes] = []
        asker.engine.rpc._send = lambda d, _: sent.append(d)
        ear = Ear()
        asker.engine.rpc.call(contact_of(asked), Op.PING, b"", ear, time.monotonic())
        out: list[bytes] = []
        asked.engine.rpc._send = lambda d, _: out.append(d)
        asked.engine.receive(sent[0], asker.local, time.monotonic())
        for _ in range(3):
            asker.engine.receive(out[0], asked.local, time.monotonic())  # a second result would raise
        assert ear.future.done()

    def test_a_write_token_ends_with_its_second_period_and_holds_nowhere_else(self) -> None:
        tokens = packet.Tokens(b"s" * 32)
        here, there = b"\4\x7f\0\0\1\0\1", b"\4\x7f\0\0\2\0\1"
        token = tokens.issue(ALICE.public, here, 10.0)
        assert tokens.valid(token, ALICE.public, here, 10.0 + packet.Tokens.PERIOD_S)
        assert not tokens.valid(token, ALICE.public, there, 10.0)
        assert not tokens.valid(token, MALLORY.public, here, 10.0)
        assert not tokens.valid(token, ALICE.public, here, 10.0 + 2 * packet.Tokens.PERIOD_S)

    def test_a_store_with_a_token_of_the_last_hour_is_refused_and_repeated_with_a_fresh_one(self) -> None:
        lab = Lab(5, 40)
        world = lab.world
        record = lab.record(TOPIC)
        lab.records[TOPIC] = record
        writer = world.nodes[0]
        lab.publish(1, [b"u" * 20])
        world.run(world.now + 3_600)
        for peer in writer.engine.rpc.peers.values():
            peer.token_at = world.now  # believes that its old tokens are fresh
        acks: list[int] = []
        world.do(writer, writer.engine.put, TOPIC, record, lambda r: acks.append(r.acks), world.now)
        world.run(world.now + 10)
        assert acks[0] >= 5

    async def test_ids_that_do_not_solve_the_puzzle_are_not_even_asked(self, net: Net) -> None:
        weak = next(k for k in (SigningKey(bytes([i]) * 32) for i in range(99)) if puzzle_zero_bits(k.public) == 0)
        node = net.nodes[0]
        assert node.engine.ask(Contact(weak.public, "127.9.9.1", 4_000), Op.PING, b"", Ear(), time.monotonic()) is None

    async def test_uploads_that_are_never_finished_take_a_bounded_place(self, net: Net) -> None:
        victim = net.nodes[0]
        raw = note(ALICE, TOPIC, b"x" * 7_000).raw
        part = messages.store_part_body(TOPIC, raw, 0)
        for i in range(3 * MAX_UPLOADS):
            peer = victim.engine.rpc.peer(Contact(i.to_bytes(32, "big"), "127.9.9.1", 1 + i))
            parsed = messages.parse_request(messages.request(Op.STORE_PART, 0, bytes(8), part))
            answer = victim.engine.desk.serve(parsed, peer, ("127.9.9.1", 1 + i), proved=True, room=1_000, now=1.0)
            assert answer is not None
        assert len(victim.engine.desk._uploads) == MAX_UPLOADS

    async def test_strangers_take_a_bounded_place(self, net: Net) -> None:
        victim = net.make(count_local=True)
        await victim.start()
        rng = random.Random(9)
        victim.engine.rpc.puzzle_bits = 0
        for i in range(MAX_STRANGERS + 80):
            key = SigningKey(rng.randbytes(32))
            to, _ = packet.direction_keys(
                key.x25519_secret, key.public, victim.key.public, victim.key.x25519_public, NETWORK
            )
            plain = messages.request(Op.PING, messages.CLIENT, messages.NO_TOKEN, b"")
            datagram = packet.seal_request(to, key.public, rng.randbytes(12), plain)
            victim.engine.receive(datagram, (f"127.{30 + i // 200}.{i % 200}.1", 4_000), time.monotonic())
        assert len(victim.engine.rpc._strangers) == MAX_STRANGERS
        assert victim.peers() == []


def crafted(hosts: list[bytes], rng: random.Random) -> bytes:
    """A list of contacts in packed form, whatever their addresses are."""
    packed = [host[:1] + rng.randbytes(32) + host[1:] for host in hosts]
    return bytes([len(packed)]) + b"".join(packed)


BAD_ADDRESSES = {
    "loopback": b"\4\x7f\0\0\1\x23\x28",
    "loopback-6": b"\6" + bytes(15) + b"\1\x23\x28",
    "mapped-loopback": b"\6" + bytes(10) + b"\xff\xff\x7f\0\0\1\x23\x28",
    "mapped-private": b"\6" + bytes(10) + b"\xff\xff\x0a\0\0\1\x23\x28",
    "private-10": b"\4\x0a\0\0\1\x23\x28",
    "private-192": b"\4\xc0\xa8\1\1\x23\x28",
    "private-172": b"\4\xac\x10\0\1\x23\x28",
    "carrier": b"\4\x64\x40\0\1\x23\x28",
    "link-local": b"\4\xa9\xfe\xa9\xfe\0\x50",
    "link-local-6": b"\6\xfe\x80" + bytes(13) + b"\1\x23\x28",
    "unique-local": b"\6\xfd\0" + bytes(13) + b"\1\x23\x28",
    "site-local": b"\6\xfe\xc0" + bytes(13) + b"\1\x23\x28",
    "6to4-private": b"\6\x20\2\xc0\xa8\1\1" + bytes(9) + b"\1\x23\x28",
    "nat64-loopback": b"\6\0\x64\xff\x9b" + bytes(8) + b"\x7f\0\0\1\x23\x28",
    "local-nat64": b"\6\0\x64\xff\x9b\0\1" + bytes(6) + b"\x0a\0\0\1\x23\x28",
    "compatible-loopback": b"\6" + bytes(12) + b"\x7f\0\0\1\x23\x28",
    "translated-loopback": b"\6" + bytes(8) + b"\xff\xff\0\0\x7f\0\0\1\x23\x28",
    "unassigned-6": b"\6\x5f\0" + bytes(13) + b"\1\x23\x28",
    "documentation-6": b"\6\x3f\xff" + bytes(13) + b"\1\x23\x28",
    "multicast": b"\4\xe0\0\0\1\x23\x28",
    "multicast-6": b"\6\xff\2" + bytes(13) + b"\1\x23\x28",
    "broadcast": b"\4\xff\xff\xff\xff\x23\x28",
    "nowhere": b"\4\0\0\0\0\x23\x28",
    "documentation": b"\4\xcb\0\x71\1\x23\x28",
    "port-0": b"\4\x08\x08\x08\x08\0\0",
}


class TestNames:
    @pytest.mark.parametrize("name", BAD_ADDRESSES)
    def test_addresses_that_no_public_node_has_are_never_written_to_nor_passed_on(self, name: str) -> None:
        made = world(20)
        rng = random.Random(1)
        reader, liars = made.nodes[0], made.nodes[1:]
        named = crafted([BAD_ADDRESSES[name]] * 8, rng)
        known = {n.contact.address for n in made.nodes}
        for liar in liars:
            liar.engine.desk.contacts = lambda *_: named  # type: ignore[method-assign]
        told: list[object] = []
        sent: list[object] = []
        send = made._send
        made._send = lambda sender, datagram, address: (sent.append(address), send(sender, datagram, address))[1]  # type: ignore[method-assign,func-returns-value]
        for i in range(5):
            made.do(reader, reader.engine.find, bytes([i]) * 20, told.append, made.now)
            made.run(made.now + 12)
        assert len(told) == 5
        assert set(sent) <= known
        everyone = [c for n in (reader, *liars) for b in n.engine.table.buckets for c in b.nodes.values()]
        assert {c.address for c in everyone} <= known

    def test_ten_thousand_names_fill_a_bounded_list_and_the_search_ends(self) -> None:
        rng = random.Random(3)
        seeds = [Contact(rng.randbytes(32), f"20.{i}.0.1", 4_000) for i in range(8)]
        lookup = Lookup(1, seeds, own_id=node_id(ALICE.public), k=8, alpha=3)
        asked = 0
        flood = [Contact(rng.randbytes(32), f"{30 + i % 60}.{i // 60 % 256}.{i % 7}.1", 4_000) for i in range(10_000)]
        while (contact := lookup.next()) is not None:
            lookup.answered(contact, flood)
            asked += 1
        assert len(lookup.known()) <= MAX_CANDIDATES
        assert asked <= MAX_CANDIDATES

    @pytest.mark.parametrize("count", [17, 200, 255])
    def test_an_answer_that_claims_more_contacts_than_were_asked_for_is_none(self, count: int) -> None:
        body = crafted([b"\4\x08\x08\x08\x08\x23\x28"] * 20, random.Random(1))
        with pytest.raises(BadPacket):
            messages.contacts_of(bytes(messages.HEAD) + bytes([count]) + body[1:])

    def test_no_name_leads_to_a_stream_that_only_its_owner_opened(self) -> None:
        named = crafted([bytes([4 | Via.BACK]) + b"\x08\x08\x08\x08\x23\x28"], random.Random(1))
        with pytest.raises(BadPacket):
            messages.contacts_of(bytes(messages.HEAD) + named)

    async def test_free_ids_around_a_key_hide_nothing_on_real_sockets(self) -> None:
        net = Net(20_261_122)
        await net.grow(80, count_local=True)
        target = int.from_bytes(TOPIC, "big")
        nearest = min(int.from_bytes(n.node_id, "big") ^ target for n in net.nodes)
        seeds = (net.rng.randbytes(32) for _ in range(10**6))
        keys = (
            k for k in map(SigningKey, seeds)
            if puzzle_zero_bits(k.public) >= 4 and int.from_bytes(node_id(k.public), "big") ^ target < nearest
        )  # fmt: skip
        evil = [net.make(count_local=True) for _ in range(20)]
        for node, key in zip(evil, keys, strict=False):
            node.key = node.engine.rpc.key = key
            node.engine.own_id = node_id(key.public)
        honest = net.nodes[:80]
        gang = []
        for node in evil:
            await node.start()
            gang.append(Contact(node.key.public, *node.local))
        names = messages.contacts_body(gang[:8])
        nothing = b"\0" + messages.value_body(0, bytes(8), more=False, records=[], large=[]) + names
        for node in evil:
            await node.bootstrap([net.seed_of(0)])
            node.engine.desk._value = lambda *_: nothing  # type: ignore[method-assign]
            node.engine.desk.contacts = lambda *_: names  # type: ignore[method-assign]
            node.engine.desk._keep = lambda *_: b"\0\0"  # type: ignore[method-assign]
        record = note(ALICE, TOPIC)
        await honest[1].put(TOPIC, record, quorum=8)
        for reader in honest:
            assert [e.raw for e in await reader.get(TOPIC)] == [record.raw]
        await net.close()


class TestTime:
    def test_nodes_that_answer_as_late_as_they_may_do_not_hold_a_reader_up(self) -> None:
        lab = Lab(5, 150)
        world = lab.world
        for node in world.rng.sample(world.nodes, 30):
            node.delay = 1.5
            node.honest = False
        lab.publish(10)
        lab.read_all(120, 60.0)
        print(lab.reads.success, lab.reads.quantile(0.5), lab.reads.quantile(0.95))
        assert lab.reads.success == 1
        assert lab.reads.quantile(0.5) < 0.3
        assert lab.reads.quantile(0.95) < 0.6

    @pytest.mark.parametrize("skew", [-7_200.0, 7_200.0, 400 * 86_400.0])
    def test_a_wrong_clock_of_our_own_harms_nobody_else(self, skew: float) -> None:
        lab = Lab(5, 60)
        world = lab.world
        for node in world.nodes:
            node.engine.offset = 10_000.0
        lab.publish(6)
        wrong = world.rng.sample(world.nodes, 5)
        for node in wrong:
            node.engine.offset += skew
            node.honest = False
        world.run(world.now + 4_000)
        lab.read_all(60, 30.0)
        assert lab.reads.success == 1
        # It is not told nonsense either: it judges by its own clock and finds what that leaves, without an error.
        ended: list[object] = []
        for node in wrong:
            world.do(node, node.engine.get, next(iter(lab.records)), ended.append, world.now)
        world.run(world.now + 15)
        assert len(ended) == 5

    def test_a_fifth_that_withholds_new_versions_loses_against_careful_reads(self) -> None:
        lab = Lab(5, 200)
        topics = [lab.world.rng.randbytes(20) for _ in range(20)]
        lab.publish(20, topics, sequence=1)
        for node in lab.world.rng.sample(lab.world.nodes, 40):
            turn(lab.world, node, Behaviour.STALE, [])
        lab.publish(20, topics, sequence=2)
        lab.read_all(200, 60.0, paths=3)
        assert lab.reads.success >= 0.99


class Liar:
    """A stream whose other end says what it likes."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._said = b""
        self.frames = 0

    async def send(self, frame: bytes) -> None:
        """Hear."""
        self._said = frame

    async def receive(self) -> bytes:
        """Lie."""
        self.frames += 1
        answer = self._answer(self._said)
        if answer is None:
            raise EOFError
        await asyncio.sleep(0)
        return answer

    async def close(self) -> None:
        """Done."""


def junk_records(_: bytes) -> bytes:
    return bytes((RECORDS, 1)) + (10).to_bytes(2, "big") + b"0123456789"


REPEATED = bid(99)[1].raw
LIES: dict[str, Callable[[bytes], bytes | None]] = {
    "nothing-and-more-of-it": lambda _: bytes((RECORDS, 1)),
    "junk-for-ever": junk_records,
    "one-record-for-ever": lambda _: bytes((RECORDS, 1)) + (len(REPEATED).to_bytes(2, "big") + REPEATED) * 90,
    "ranges-that-never-agree": lambda _: bytes([TELL]) + b"\0" + sync.pack_sum((sync.FIRST, LAST, 7, 9)),
    "a-frame-too-large": lambda _: bytes((RECORDS, 1)) + bytes(FRAME),
    "hangs-up": lambda _: None,
    "empty": lambda _: b"",
}


class TestReconciliation:
    @pytest.mark.parametrize("lie", LIES)
    async def test_holders_that_lie_over_streams_are_left_and_the_honest_one_is_read(self, lie: str) -> None:
        net = MarketNet(20_261_121)
        await net.grow(16)
        try:
            bids = [bid(i) for i in range(40)]
            net.load(bids)
            streams: list[Liar] = []

            async def open_stream(contact: Contact) -> Liar | TcpFrames:
                if len(streams) < 2:
                    streams.append(Liar(LIES[lie]))
                    return streams[-1]
                return await TcpFrames.open(contact)

            reader = net.outsider(KEY.topic((0, 0)))
            seen: list[Record] = []
            market = Market(reader, KEY, seen.append, open_stream=open_stream)
            async with asyncio.timeout(20):
                await market.refresh()
            assert {b.raw for _, b in bids} <= {r.raw for r in seen}
            assert len(streams) == 2
            assert all(s.frames <= MAX_PULLED for s in streams)
            await market.close()
        finally:
            await net.close()

    async def test_a_market_that_claims_to_be_split_for_ever_ends_at_its_last_bit(self) -> None:
        """Though every single holder claims it: the tree has so many leaves and no more."""
        net = MarketNet(20_261_121)
        await net.grow(9)
        try:
            for node in net.nodes[1:]:
                node.storage.total = lambda topic: 60_000  # type: ignore[method-assign]
            visited: list[object] = []
            market = Market(net.nodes[0], KEY, visited.append, open_stream=_refuse)
            async with asyncio.timeout(60):
                done = await market.refresh()
            assert done.shards <= 2 ** (MAX_SHARD_BITS + 1) - 1
            assert visited == []
            await market.close()
        finally:
            await net.close()


async def _refuse(contact: Contact) -> TcpFrames:
    raise ConnectionRefusedError(str(contact))
