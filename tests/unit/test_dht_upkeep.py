"""What nodes do unasked, in virtual time: it costs the same in any network, and no record is left behind."""

from __future__ import annotations

import pytest

from dht.handover import Handover
from dht.records import Record, RecordKind, RecordMeta
from dht.sim.experiments import load
from dht.sim.lab import Lab
from dht.sim.world import SimNode, World, build
from dht.watch import Watch
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope

ALICE = SigningKey(b"a" * 32)
TOPIC = b"t" * 20
LARGE = 60_002
SIZE = 5_000


def read_large(envelope: Envelope, now: int) -> RecordMeta:
    """A body that begins with its sub-key (1) and sequence (1)."""
    return RecordMeta(envelope.signer, envelope.body[:1], envelope.body[1], 86_400, (TOPIC,))


def record(world: World, sub_key: int, sequence: int = 1, size: int = SIZE) -> Record:
    raw = ALICE.seal(LARGE, Network.REGTEST, bytes([sub_key, sequence]).ljust(size, b"x")).raw
    return world.registry.check(raw, TOPIC, 0)


@pytest.fixture
def world() -> World:
    made = World(20_261_121)
    made.registry.add(RecordKind(LARGE, read_large, max_bytes=8_192))
    build(made, 40)
    return made


def holders(world: World) -> list[SimNode]:
    """The eight nodes closest to the topic."""
    target = int.from_bytes(TOPIC, "big")
    return sorted(world.nodes, key=lambda n: n.contact.long_id ^ target)[:8]


def keep(world: World, node: SimNode, *records: Record) -> None:
    for one in records:
        node.engine.keep(TOPIC, one, b"", world.now)


def hand_over(world: World, node: SimNode) -> None:
    engine = node.engine
    world.do(node, engine.start, Handover(engine, TOPIC, engine.lookup(TOPIC)), world.now)
    world.run(world.now + 10)


def held(node: SimNode) -> set[bytes]:
    return set(node.engine.storage.all(TOPIC, 0))


def test_records_of_many_datagrams_reach_holders_that_lack_them(world: World) -> None:
    everything = [record(world, i) for i in range(3)]
    first, *others = holders(world)
    keep(world, first, *everything)
    hand_over(world, first)
    for node in others:
        assert held(node) == {r.raw for r in everything}


def test_a_holder_takes_large_records_that_only_others_have(world: World) -> None:
    first, second, *_ = holders(world)
    keep(world, first, record(world, 1))
    keep(world, second, record(world, 2))
    hand_over(world, first)
    both = {record(world, 1).raw, record(world, 2).raw}
    assert held(first) == both
    assert held(second) == both


@pytest.mark.parametrize("size", [SIZE, SIZE + 600], ids=["same-size", "larger"])
@pytest.mark.parametrize("newer_asks", [True, False])
def test_of_two_versions_of_a_large_record_the_newer_stays(world: World, size: int, newer_asks: bool) -> None:
    first, second, *_ = holders(world)
    old, new = record(world, 1), record(world, 1, sequence=2, size=size)
    keep(world, first, new if newer_asks else old)
    keep(world, second, old if newer_asks else new)
    hand_over(world, first)
    assert held(first) == {new.raw}
    assert held(second) == {new.raw}


def test_upkeep_costs_the_same_in_a_small_and_in_a_large_network() -> None:
    small, large = (load(Lab(1, nodes), seconds=600).messages_per_node_hour for nodes in (100, 400))
    print(f"seed 1: {small} and {large} datagrams per node and hour")
    assert 0.75 * small < large < 1.2 * small


def test_followers_that_find_no_place_do_not_search_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a market with more followers than places would be searched by all the others without a pause."""
    monkeypatch.setattr("dht.watch.MAX_WATCHERS", 0)
    world = World(20_261_121)
    build(world, 40)
    follower = world.nodes[-1]
    told: list[int] = []
    watch = Watch(follower.engine, TOPIC, lambda _: None, lambda _h, _d, total: told.append(total))
    world.do(follower, follower.engine.watching.add, watch, world.now)
    world.run(world.now + 300)
    sent, heard = follower.engine.rpc.totals.sent, len(told)
    world.run(world.now + 600)
    # Two holders every 25 seconds would be 48, beside a search now and then and the node's own probes.
    assert follower.engine.rpc.totals.sent - sent < 300
    assert len(told) - heard > 40, "their digests still tell, every quarter of a minute, that something has changed"
