"""Finding out whether others can dial us, and what follows, with a real DHT and real channels on loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from dht.contact import Contact
from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed, mine_node_key
from dht.udp import UdpTransport
from p2pnode.api.schema import ReachView
from p2pnode.channels import AnyService, Channels, Limits, Pipe, PipeService, dial_tcp
from p2pnode.clock import SystemClock
from p2pnode.console import tables
from p2pnode.reach import probe, reachability
from p2pnode.reach.evidence import Udp
from p2pnode.reach.probe import Helper
from p2pnode.reach.reachability import Reachability, Told, Verdict
from p2pnode.reach.relay import Relay
from p2pnode.reach.service import RelayDoor
from p2pnode.services.reach import reach_of
from protocol.contact import Address, NodeContact
from protocol.errors import P2PError
from protocol.identity import node_text
from protocol.relay import RELAY_SERVICE, Probed, Reached, probed
from protocol.types import Network
from tests.network.channel_support import eventually
from tests.network.dht_net import NOTES, WallClock


class Peer:
    """A node with a DHT, channels and an opinion of its reachability. With `hidden` its TCP port answers nobody."""

    def __init__(self, seed: int) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.host = f"127.7.{seed}.1"
        _, self.key = mine_node_key(lambda _: self.rng.randbytes(32), 4)

    async def start(self, entry: Peer | None, *, hidden: bool = False, told: Told | None = None) -> Peer:
        self.dht = DhtNode(
            DhtConfig(self.host, 0, engine=EngineConfig(local_addresses=True)),
            self.key,
            Network.REGTEST,
            (NOTES,),
            clock=WallClock(),
            rng=self.rng,
        )
        await self.dht.start()
        services: dict[int, AnyService] = {RELAY_SERVICE: PipeService(self._relayed)}
        limits = Limits(max_inbound_per_origin=100)
        dial = partial(dial_tcp, source=self.host)
        self.channels = Channels(self.key, Network.REGTEST, services, limits=limits, clock=SystemClock(), dial=dial)
        port = self.dht.local[1]
        if not hidden:
            await self.channels.listen(self.host, port)
        self.relay = Relay(self.channels)
        self.helper = Helper(Network.REGTEST, SystemClock(), dial, sources={4: self.host})
        told = told or Told(local=True)
        self.reach = Reachability(self.dht, self.channels, self.relay, (Address(self.host, port),), told)
        self.door = RelayDoor(self.relay, self.helper, self.reach.registrar)
        self.changes = 0
        self.reach.subscribe(self._changed)
        if entry is not None:
            await self.dht.bootstrap([Seed(*entry.dht.local)])
        self.reach.start()
        return self

    def _changed(self) -> None:
        self.changes += 1

    async def _relayed(self, pipe: Pipe) -> None:
        await self.door.serve(pipe)

    async def close(self) -> None:
        await self.reach.close()
        await self.channels.close()
        self.relay.close()
        await self.dht.close()


PUBLIC = Told(setting="yes", external=(Address("127.0.0.1", 1),), local=True)
Make = Callable[[int], Peer]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(probe, "DIAL_SECONDS", 0.5)
    monkeypatch.setattr(reachability, "AGAIN_UNKNOWN", 0.05)
    monkeypatch.setattr(reachability, "KNOCK_SECONDS", 0.5)
    peers: list[Peer] = []

    def _make(seed: int) -> Peer:
        peers.append(Peer(seed))
        return peers[-1]

    yield _make
    for peer in peers:
        await peer.reach.close()
    for peer in peers:
        await peer.close()


def lying(reached: Reached) -> Callable[[Pipe], object]:
    """A helper's answer, whatever is the case."""

    async def answer(pipe: Pipe) -> None:
        await pipe.read_exactly(2)
        assert pipe.carrier_endpoint is not None
        pipe.write(probed(reached, pipe.carrier_endpoint))
        await pipe.close()

    return answer


async def test_node_that_peers_can_dial_serves_relays_and_says_where_it_is(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    node = await make(2).start(entry)
    await eventually(lambda: node.reach.verdict is Verdict.REACHABLE)
    assert node.dht.serves
    assert node.relay.enabled
    assert node.reach.addresses() == (Address(*node.dht.local),)
    # It may have looked for one before it knew.
    await eventually(lambda: node.reach.relays() == ())
    await eventually(lambda: node.key.public in {c.key for c in entry.dht.peers()})


async def test_node_that_nobody_can_dial_is_a_client_with_relays(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    node = await make(2).start(entry, hidden=True)
    await eventually(lambda: node.reach.verdict is Verdict.UNREACHABLE)
    await eventually(lambda: len(node.reach.relays()) == 1)
    assert node.reach.addresses() == ()
    assert not node.dht.serves
    assert not node.relay.enabled
    assert node.changes >= 1
    assert node.key.public not in {c.key for c in entry.dht.peers()}
    assert node.reach.relays()[0].addresses == (Address(*entry.dht.local),)


@pytest.mark.parametrize(
    ("lie", "hidden", "truth"),
    [
        (Reached.TCP | Reached.UDP, True, Verdict.UNREACHABLE),
        (Reached.NOT, False, Verdict.REACHABLE),
    ],
)
async def test_one_liar_among_helpers_decides_nothing(make: Make, lie: Reached, hidden: bool, truth: Verdict) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    others = [await make(seed).start(entry, told=PUBLIC) for seed in (2, 3)]
    others[0].helper.answer = lying(lie)  # type: ignore[assignment, method-assign]
    for other in others:
        await other.dht.find_nodes(other.dht.node_id)
    node = make(5)
    await node.start(entry, hidden=hidden)
    await eventually(lambda: len(node.dht.peers()) == 3)
    node.reach.kick()
    await eventually(lambda: node.reach.verdict is truth)
    await node.reach._judge({4: await node.reach._ask_around(4)})
    assert node.reach.verdict is truth


@pytest.mark.parametrize("helpers", [1, 3])
async def test_no_number_of_liars_makes_a_node_believe_that_it_is_reached(
    make: Make, monkeypatch: pytest.MonkeyPatch, helpers: int
) -> None:
    monkeypatch.setattr(reachability, "KNOCK_SECONDS", 0.05)
    entry = await make(1).start(None, told=PUBLIC)
    others = [entry, *[await make(seed).start(entry, told=PUBLIC) for seed in range(2, helpers + 1)]]
    for other in others:
        other.helper.answer = lying(Reached.TCP | Reached.UDP)  # type: ignore[assignment, method-assign]
        await other.dht.find_nodes(other.dht.node_id)
    node = await make(8).start(entry, hidden=True)
    node.reach.kick()
    await eventually(lambda: node.reach.verdict is Verdict.UNREACHABLE)
    await eventually(lambda: len(node.reach.relays()) > 0)
    assert not node.dht.serves


async def test_whoever_comes_by_himself_outweighs_all_who_say_that_they_can_not(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "AGAIN_UNCLEAR", 0.05)
    entry = await make(1).start(None, told=PUBLIC)
    other = await make(2).start(entry, told=PUBLIC)
    for liar in (entry, other):
        liar.helper.answer = lying(Reached.NOT)  # type: ignore[assignment, method-assign]
    node = await make(5).start(entry)
    await eventually(lambda: node.reach.verdict is Verdict.UNREACHABLE)
    visitor = make(6)
    await visitor.start(None, told=PUBLIC)
    with suppress(P2PError):  # it offers no such service, but the session stands
        where = (Address(node.host, node.dht.local[1]),)
        await visitor.channels.request(node.key.public, where, 99, b"", timeout=5)
    await eventually(lambda: node.reach.verdict is Verdict.REACHABLE)


async def test_contradiction_is_looked_into_before_long_and_with_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "AGAIN_UNCLEAR", 0.05)
    monkeypatch.setattr(reachability, "KNOCK_SECONDS", 0.05)
    entry = await make(1).start(None, told=PUBLIC)
    entry.helper.answer = lying(Reached.TCP | Reached.UDP)  # type: ignore[assignment, method-assign]
    node = await make(5).start(entry, hidden=True)
    asked: list[bytes] = []
    ask = probe.ask

    async def counted(channels: Channels, helper: NodeContact, port: int) -> Probed | None:
        asked.append(helper.node)
        return await ask(channels, helper, port)

    monkeypatch.setattr(probe, "ask", counted)
    node.reach.kick()
    await eventually(lambda: len(asked) >= 3)


async def test_router_that_lets_in_only_whom_we_wrote_to_is_told_from_one_that_lets_in_anybody(make: Make) -> None:
    """The DHT must not name a node whose datagrams from strangers are dropped, though those it knows reach it."""
    entry = await make(1).start(None, told=PUBLIC)
    stranger = await make(2).start(None, told=PUBLIC)
    node = make(5)
    await node.start(None)
    udp = node.dht.carriers.udp
    assert isinstance(udp, UdpTransport)
    inner = udp._receive

    def restricted(datagram: bytes, address: Any) -> None:  # noqa: ANN401
        if udp.wrote_to(address[0]):
            inner(datagram, address)

    udp._receive = restricted
    assert await node.dht.bootstrap([Seed(*entry.dht.local)])
    # Heard of, never written to: only it can tell.
    node.dht.engine.table.name([Contact(stranger.key.public, *stranger.dht.local)])
    node.reach.kick()
    await eventually(lambda: node.reach.verdict is Verdict.REACHABLE)
    await eventually(lambda: node.reach.ways[4].udp is Udp.KNOWN)
    assert node.reach.addresses()
    assert not node.dht.serves
    assert node.key.public not in {c.key for c in entry.dht.peers()}


async def test_stranger_that_gets_through_by_udp_settles_it(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    stranger = await make(2).start(None, told=PUBLIC)
    node = await make(5).start(entry)
    node.dht.engine.table.name([Contact(stranger.key.public, *stranger.dht.local)])
    node.reach.kick()
    await eventually(lambda: 4 in node.reach.ways and node.reach.ways[4].udp is Udp.STRANGERS)
    assert node.dht.serves


def test_helpers_are_of_many_owners_and_of_many_parts_of_the_network() -> None:
    rng = random.Random(7)
    crowd = [Contact(rng.randbytes(32), "127.50.1.9", 1_000 + i) for i in range(40)]
    others = [Contact(rng.randbytes(32), f"127.60.{i}.9", 9) for i in range(20)]
    chosen = reachability._spread([*crowd, *others])
    assert len(chosen) == reachability.HELPERS
    assert len({c.group for c in chosen}) == len(chosen)
    assert len({c.id[0] >> 5 for c in chosen}) == len(chosen)
    assert len(reachability._spread(crowd)) == reachability.HELPERS


async def test_node_that_loses_its_way_in_becomes_a_client_and_comes_back(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    node = await make(2).start(entry)
    await eventually(lambda: node.reach.verdict is Verdict.REACHABLE)
    (server,) = node.channels._servers
    server.close()
    node.reach.kick()
    await eventually(lambda: node.reach.verdict is Verdict.UNREACHABLE)
    await eventually(lambda: len(node.reach.relays()) == 1)
    assert not node.dht.serves
    await node.channels.listen(node.host, node.dht.local[1])
    node.reach.kick()
    await eventually(lambda: node.reach.verdict is Verdict.REACHABLE)
    await eventually(lambda: entry.relay.registrations == 0)
    assert node.reach.relays() == ()


async def test_users_word_is_not_overruled(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    never = await make(2).start(entry, told=Told(setting="no", local=True))
    client = await make(3).start(entry, told=Told(client=True, local=True))
    await eventually(lambda: client.reach.verdict is Verdict.REACHABLE)
    assert not client.dht.serves
    assert client.reach.addresses()
    await eventually(lambda: len(never.reach.relays()) == 1)
    assert never.reach.verdict is Verdict.UNKNOWN
    assert entry.reach.addresses() == PUBLIC.external


async def test_private_addresses_are_not_published_on_the_public_network(make: Make) -> None:
    node = await make(1).start(None, told=Told(setting="yes"))
    assert node.reach.addresses() == ()


async def test_nobody_to_ask_leaves_the_question_open(make: Make) -> None:
    node = await make(1).start(None)
    await asyncio.sleep(0)
    assert node.reach.verdict is Verdict.UNKNOWN
    assert not node.dht.serves


def shown(node: Peer) -> ReachView:
    """What `p2pnode info` gets."""
    return reach_of(node.reach, node.dht, None, node.dht.local[1], SystemClock())()


async def test_owner_sees_whether_others_reach_the_node_and_what_to_do(make: Make) -> None:
    alone = await make(3).start(None)
    view = shown(alone)
    assert (view.state, view.dht, view.published) == ("unknown", "client", ())
    assert "check the seeds" in view.advice
    entry = await make(1).start(None, told=PUBLIC)
    assert (shown(entry).state, shown(entry).told, shown(entry).advice) == ("reachable", True, "")
    open_one, hidden = await make(2).start(entry), await make(4).start(entry, hidden=True)
    await eventually(lambda: shown(open_one).state == "reachable")
    view = shown(open_one)
    assert view.published == (f"{open_one.host}:{open_one.dht.local[1]}",)
    assert [(way.host, way.tcp) for way in view.addresses] == [(open_one.host, True)]
    assert (view.dht, view.carried_by, view.relays, view.told) == ("server", "udp", (), False)
    await eventually(lambda: shown(hidden).state == "behind NAT" and len(shown(hidden).relays) == 1)
    view = shown(hidden)
    assert (view.state, view.dht) == ("behind NAT", "client")
    assert view.relays[0].node == node_text(entry.key.public)
    assert abs(view.relays[0].since - SystemClock().now()) < 60
    assert f"port {hidden.dht.local[1]}" in view.advice
    assert not any(way.tcp for way in view.addresses)


async def test_table_for_the_owner_names_state_addresses_relays_and_advice(make: Make) -> None:
    entry = await make(1).start(None, told=PUBLIC)
    hidden = await make(4).start(entry, hidden=True)
    await eventually(lambda: shown(hidden).state == "behind NAT" and len(shown(hidden).relays) == 1)
    rows = tables.reach_rows(shown(hidden))
    text = "\n".join(f"{name} {value}" for name, value in rows)
    for part in ("behind NAT", f"{hidden.host}: no TCP", "relay node1", "what to do", "client, by datagrams"):
        assert part in text
