"""The DHT over channels: nodes that no datagram reaches ask, publish and watch; and the rules still hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial

import pytest

from dht import carriers, messages, packet
from dht.contact import ByChannel, Contact, Via
from dht.engine import EngineConfig
from dht.node import Carry, DhtConfig, DhtNode, Seed, mine_node_key
from dht.records import Record
from dht.rpc import Limits as AskLimits
from p2pnode.channels import AnyService, Channels, Limits, Pipe, PipeBroken, PipeService, dial_tcp
from p2pnode.clock import SystemClock
from p2pnode.reach import packets as packets_module
from p2pnode.reach.errors import DirectOnly, TooManyStreamsOpen
from p2pnode.reach.packets import PACKET_SERVICE, Packets
from p2pnode.reach.probe import Helper
from protocol.contact import Address
from protocol.identity import SigningKey
from protocol.types import Network
from tests.network.channel_support import PipeLink, eventually
from tests.network.dht_net import NOTES, WallClock, note

ALICE = SigningKey(b"a" * 32)
TOPIC = b"t" * 20


class Node:
    """A DHT node and its channels, as the daemon puts them together."""

    def __init__(self, seed: int, carry: Carry = Carry.BOTH, **engine: object) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.host = f"127.8.{seed}.1"
        _, self.key = mine_node_key(lambda _: self.rng.randbytes(32), 4)
        self.carry = carry
        config = EngineConfig(local_addresses=True, **engine)  # type: ignore[arg-type]
        self.dht = DhtNode(
            DhtConfig(self.host, 0, carry, engine=config),
            self.key,
            Network.REGTEST,
            (NOTES,),
            clock=WallClock(),
            rng=self.rng,
        )
        self.listens = 0

    async def start(self, entry: Node | None = None, *, listen: bool = True) -> Node:
        await self.dht.start()
        services: dict[int, AnyService] = {}
        if self.carry is not Carry.UDP:
            services[PACKET_SERVICE] = PipeService(self._serve)
        self.channels = Channels(
            self.key,
            Network.REGTEST,
            services,
            limits=Limits(max_inbound_per_origin=100),
            clock=SystemClock(),
            dial=partial(dial_tcp, source=self.host),
        )
        port = 0 if self.carry is Carry.CHANNEL else self.dht.local[1]
        self.port = port
        if listen:
            self.port = (await self.channels.listen(self.host, port))[1]
        if self.carry is not Carry.UDP:
            check = Helper(Network.REGTEST, SystemClock(), dial_tcp).answers
            self.packets = Packets(
                self.channels,
                self.dht.receive,
                self.dht.unreachable,
                self.dht.verified,
                listening=lambda: self.listens,
                check=check,
            )
            self.dht.attach(self.packets)
        if entry is not None:
            assert await self.enter(entry)
        return self

    async def enter(self, entry: Node) -> int:
        return await self.dht.bootstrap([Seed(entry.host, entry.port, entry.key.public)])

    async def _serve(self, pipe: Pipe) -> None:
        await self.packets.serve(pipe)

    async def close(self) -> None:
        await self.dht.close()
        await self.channels.close()


@pytest.fixture
async def net() -> AsyncIterator[list[Node]]:
    """Twelve servers."""
    nodes = [await Node(1).start()]
    nodes += [await Node(number).start(nodes[0]) for number in range(2, 13)]
    made = list(nodes)
    yield nodes
    for node in {*made, *nodes}:
        await node.close()


async def without_udp(net: list[Node], seed: int = 40, **engine: object) -> Node:
    """A node that has channels only and can't be dialled."""
    node = Node(seed, Carry.CHANNEL, client=True, **engine)
    net.append(node)
    await node.start(net[0], listen=False)
    return node


async def test_node_without_udp_enters_publishes_and_reads(net: list[Node]) -> None:
    node = await without_udp(net)
    record = note(ALICE, TOPIC, b"x" * 700)
    result = await node.dht.put(TOPIC, record)
    assert result.acks >= 5
    assert [e.raw for e in await net[5].dht.get(TOPIC)] == [record.raw]
    large = note(ALICE, b"l" * 20, bytes(range(256)) * 25)
    assert (await net[3].dht.put(b"l" * 20, large, quorum=8)).acks >= 5
    assert [e.raw for e in await node.dht.get(b"l" * 20)] == [large.raw]


async def test_nobody_drives_a_node_from_udp_by_asking_and_not_answering() -> None:
    """A network's first nodes know few others: who is one of them, and silent, would be all that they hear."""
    ways = carriers.Carriers(Carry.BOTH)
    ways.listen("127.0.0.1", 0, lambda *_: None)
    ways.streams = ways.udp
    found = []
    for second in range(70):
        # From the sixtieth second on nothing comes at all.
        ways.watch(10, min(second, 60), float(second))
        found.append(ways.by_channel)
    assert found.index(True) in range(61, 69)
    ways.close()


@pytest.mark.parametrize("seeds", [[], [Seed("127.8.99.1", 4_000, ALICE.public)]], ids=["no seed", "a dead one"])
async def test_node_that_finds_nobody_does_not_write_to_its_log_that_it_changed_its_ways(
    net: list[Node], caplog: pytest.LogCaptureFixture, seeds: list[Seed]
) -> None:
    """It tries every quarter of a minute: the first node of a network would fill its log."""
    alone = await Node(70).start()
    net.append(alone)
    with caplog.at_level("INFO", "dht.carriers"):
        assert await alone.dht.bootstrap(seeds) == 0
    assert caplog.records == []
    assert not alone.dht.by_channel


async def test_node_without_udp_is_in_nobodys_table(net: list[Node]) -> None:
    node = await without_udp(net)
    await node.dht.put(TOPIC, note(ALICE, TOPIC))
    assert all(node.dht.node_id not in {c.id for c in n.dht.peers()} for n in net)


async def test_what_is_watched_is_pushed_over_the_watchers_own_stream(net: list[Node]) -> None:
    node = await without_udp(net)
    seen: list[Record] = []
    end = node.dht.watch(TOPIC, seen.append)
    await eventually(lambda: sum(n.dht.engine.watchers.count for n in net[:12]) >= 2)
    record = note(ALICE, TOPIC, b"news")
    await net[7].dht.put(TOPIC, record, quorum=8)
    await eventually(lambda: any(r.raw == record.raw for r in seen))
    # That a holder speaks by our stream says nothing new of where it is: it answers datagrams, of others.
    assert all(contact.via is Via.UDP for contact in node.dht.peers())
    end()


async def test_both_finds_out_that_no_datagram_passes_and_that_they_do_again(
    net: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(41, Carry.BOTH, client=True)
    net.append(node)
    await node.start(listen=False)
    udp = node.dht.carriers.udp
    assert udp is not None
    monkeypatch.setattr(udp, "send", lambda *_: None)
    assert await node.enter(net[0]) >= 3
    assert node.dht.by_channel
    assert (await node.dht.put(TOPIC, note(ALICE, TOPIC))).acks >= 5
    monkeypatch.undo()
    node.dht._ask_by_udp(node.dht.now())
    await eventually(lambda: not node.dht.by_channel)
    assert (await node.dht.put(TOPIC, note(ALICE, TOPIC, sequence=2))).acks >= 5


async def test_udp_that_dies_later_is_noticed_by_the_silence(net: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a laptop is carried into a network whose firewall drops datagrams."""
    monkeypatch.setattr(carriers, "SILENT_S", 0.2)
    node = Node(48, Carry.BOTH, client=True)
    net.append(node)
    await node.start(net[0], listen=False)
    assert not node.dht.by_channel
    udp = node.dht.carriers.udp
    assert udp is not None
    monkeypatch.setattr(udp, "send", lambda *_: None)
    await node.dht.find_nodes(TOPIC)
    await eventually(lambda: node.dht.by_channel)
    assert await node.enter(net[0]) >= 3
    assert (await node.dht.put(TOPIC, note(ALICE, TOPIC))).acks >= 5


async def test_where_nobody_answers_in_any_way_nothing_is_decided(net: list[Node]) -> None:
    node = Node(42)
    net.append(node)
    await node.start()
    assert await node.dht.bootstrap([Seed("127.9.9.9", 9, net[0].key.public)]) == 0
    assert not node.dht.by_channel


async def test_node_that_speaks_udp_only_is_asked_by_udp_and_refuses_streams(net: list[Node]) -> None:
    old = Node(43, Carry.UDP)
    net.append(old)
    await old.start(net[0])
    node = await without_udp(net)
    old_contact = Contact(old.key.public, *old.dht.local)
    assert await node.dht.meet(Seed(old.host, old.port, old.key.public)) is None
    assert node.dht.engine.table.get(old_contact) is None
    assert (await old.dht.put(TOPIC, note(ALICE, TOPIC))).acks >= 5


async def test_question_in_anothers_name_is_not_answered(net: list[Node]) -> None:
    """A channel proves a key: what comes by it in another's name is worth nothing, however well it is sealed."""
    thief, victim = await without_udp(net), SigningKey(b"v" * 32)
    server = net[0]
    keys = packet.direction_keys(
        victim.x25519_secret,
        victim.public,
        server.key.public,
        Contact(server.key.public, *server.dht.local).curve,
        Network.REGTEST,
    )
    question = packet.seal_request(keys[0], victim.public, bytes(12), messages.request(1, 1, bytes(8), b""))
    served, bad = server.dht.stats().served, server.dht.stats().bad
    thief.packets.send(question, ByChannel(server.host, server.port, server.key.public))
    await eventually(lambda: server.dht.stats().bad > bad)
    assert server.dht.stats().served == served


async def test_who_speaks_over_a_channel_has_proved_where_it_receives(net: list[Node]) -> None:
    """No round trip for a token first, as a datagram's sender needs, whose address may not be its own."""
    node = await without_udp(net)
    stranger = await Node(49).start()
    net.append(stranger)
    where = Contact(stranger.key.public, stranger.host, stranger.port)
    answers: list[int] = []

    class Listener(_Deaf):
        def answered(self, _call: object, reply: messages.Reply, _now: float) -> None:  # type: ignore[override]
            answers.append(reply.status)

    record = note(ALICE, TOPIC)
    body = messages.store_body(TOPIC, 0, record.raw)
    node.dht.ask(where, messages.Op.STORE, body, Listener())
    await eventually(lambda: bool(answers))
    by_udp = net[1]
    by_udp.dht.ask(where, messages.Op.STORE, messages.store_body(TOPIC, 0, record.raw), Listener())
    await eventually(lambda: len(answers) == 2)
    assert answers == [messages.Status.OK, messages.Status.BAD_TOKEN]


async def test_packets_are_not_taken_through_a_relay(net: list[Node]) -> None:
    """Whoever is behind one asks by a session of his own, or one relay's address would stand for many askers."""
    near, far = PipeLink.pair()
    assert net[1].channels.accept(far)

    async def through(_address: Address) -> PipeLink:
        return near

    asker = Channels(SigningKey(b"q" * 32), Network.REGTEST, {}, clock=SystemClock(), dial=through)
    pipe = await asker.pipe(net[1].key.public, (Address("127.0.0.1", 9),), PACKET_SERVICE, b"\0\0")
    with pytest.raises(PipeBroken) as broken:
        await pipe.read()
    assert broken.value.code == DirectOnly.code
    await asker.close()


async def test_streams_beyond_the_limit_are_refused_politely(net: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets_module, "MOST_STREAMS", 1)
    where = (Address(net[1].host, net[1].port),)
    askers = [await Node(seed, Carry.CHANNEL).start(listen=False) for seed in (51, 52)]
    net += askers
    first, second = [await asker.channels.pipe(net[1].key.public, where, PACKET_SERVICE, b"\0\0") for asker in askers]
    with pytest.raises(PipeBroken) as broken:
        await second.read()
    assert broken.value.code == TooManyStreamsOpen.code
    assert first.broken is None


async def test_streams_of_one_network_give_way_to_another(net: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets_module, "MOST_STREAMS", 3)
    where = (Address(net[1].host, net[1].port),)
    key = net[1].key.public
    askers = [Node(seed, Carry.CHANNEL) for seed in (61, 62, 63, 64)]
    for n, asker in enumerate(askers[:3]):
        asker.host = f"127.8.61.{n + 1}"
    net += [await asker.start(listen=False) for asker in askers]
    held = [await asker.channels.pipe(key, where, PACKET_SERVICE, b"\0\0") for asker in askers[:3]]
    await eventually(lambda: len(net[1].packets._served) == 3)
    honest = await askers[3].channels.pipe(key, where, PACKET_SERVICE, b"\0\0")
    with pytest.raises(PipeBroken) as broken:
        await held[-1].read()
    assert broken.value.code == TooManyStreamsOpen.code
    await eventually(lambda: len(net[1].packets._served) == 3)
    assert honest.broken is None
    assert held[0].broken is None


async def test_answer_by_the_channel_of_another_node_does_not_count(net: list[Node]) -> None:
    node = await without_udp(net)
    before = node.dht.stats().received
    call = node.dht.engine.rpc.call(Contact(net[1].key.public, net[1].host, net[1].port), 1, b"", _Deaf(), 0.0)
    reply = packet.seal_reply(call.peer.receive_key, call.rid, bytes(8), messages.reply(1, 0, bytes(8)))
    node.dht.receive(reply, ByChannel(net[2].host, net[2].port, net[2].key.public))
    assert node.dht.stats().received == before
    node.dht.receive(reply, ByChannel(net[1].host, 1, net[1].key.public, back=True))
    assert node.dht.stats().received == before + 1


class _Deaf:
    def answered(self, *_: object) -> None:
        """Nothing."""

    def late(self, *_: object) -> None:
        """Nothing."""

    def failed(self, *_: object) -> None:
        """Nothing."""


async def test_rate_of_questions_by_streams_is_bounded_as_by_udp(net: list[Node]) -> None:
    server = Node(44, count_local=True, limits=AskLimits(rate=1.0, burst=40.0))
    net.append(server)
    await server.start()
    node = Node(45, Carry.CHANNEL, client=True)
    net.append(node)
    await node.start(server, listen=False)
    for _ in range(60):
        node.dht.engine.ping(Contact(server.key.public, server.host, server.port), node.dht.now())
        node.dht.engine._pinging.clear()
    await eventually(lambda: server.dht.stats().refused > 0)
    assert server.dht.stats().served < 45


async def test_garbage_on_a_stream_ends_it(net: list[Node]) -> None:
    node = await without_udp(net)
    for rubbish in (b"\0\0\0\0", b"\0\0\xff\xff" + bytes(2_000)):
        pipe = await node.channels.pipe(
            net[1].key.public, (Address(net[1].host, net[1].port),), PACKET_SERVICE, rubbish
        )
        with pytest.raises(PipeBroken):
            async with asyncio.timeout(5):
                await pipe.read()


async def test_stream_that_rests_is_let_go_and_made_again_when_needed(
    net: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets_module, "IDLE_SECONDS", 0.05)
    node = await without_udp(net)
    await eventually(lambda: node.packets.streams == 0)
    assert (await node.dht.put(TOPIC, note(ALICE, TOPIC))).acks >= 5


async def test_another_stream_takes_the_place_of_the_first(net: list[Node]) -> None:
    node = await without_udp(net)
    where = (Address(net[1].host, net[1].port),)
    before = net[1].packets.streams
    pipes = [await node.channels.pipe(net[1].key.public, where, PACKET_SERVICE, b"\0\0") for _ in range(5)]
    await eventually(lambda: sum(pipe.broken is None for pipe in pipes) <= 1)
    assert net[1].packets.streams <= before + 1


async def test_server_without_udp_is_told_of_only_after_it_was_dialled(net: list[Node]) -> None:
    server = Node(46, Carry.CHANNEL)
    net.append(server)
    await server.start()
    server.listens = server.port
    assert await server.enter(net[0])
    await eventually(lambda: any(c.id == server.dht.node_id for n in net[:12] for c in n.dht.peers()))
    contact = next(c for n in net[:12] for c in n.dht.peers() if c.id == server.dht.node_id)
    assert (contact.via, contact.ip, contact.port) == (Via.CHANNEL, server.host, server.port)
    # Who can't use such contacts is not told of them.
    old = await Node(50, Carry.UDP).start(net[0])
    net.append(old)
    await old.dht.find_nodes(server.dht.node_id)
    assert all(c.via is Via.UDP for c in (*old.dht.peers(), *old.dht.heard_of()))
    # It holds records like any other, and is asked for them over channels.
    assert (await net[4].dht.put(server.dht.node_id, note(ALICE, server.dht.node_id), quorum=8)).acks >= 5
    await eventually(lambda: server.dht.storage.total(server.dht.node_id) == 1)


async def test_server_that_lies_about_where_it_listens_stays_a_client(net: list[Node]) -> None:
    liar = Node(47, Carry.CHANNEL)
    net.append(liar)
    await liar.start(listen=False)
    liar.listens = net[3].port
    assert await liar.enter(net[0])
    await liar.dht.put(TOPIC, note(ALICE, TOPIC))
    assert all(liar.dht.node_id not in {c.id for c in n.dht.peers()} for n in net)


async def test_network_without_any_udp_works() -> None:
    nodes: list[Node] = []
    try:
        for number in range(60, 72):
            node = Node(number, Carry.CHANNEL)
            nodes.append(node)
            await node.start()
            node.listens = node.port
            if len(nodes) > 1:
                assert await node.enter(nodes[0])
        await eventually(lambda: all(len(node.dht.peers()) >= 4 for node in nodes[1:]))
        record = note(ALICE, TOPIC, b"no datagram")
        assert (await nodes[3].dht.put(TOPIC, record)).acks >= 5
        assert [e.raw for e in await nodes[9].dht.get(TOPIC)] == [record.raw]
    finally:
        for node in nodes:
            await node.close()
