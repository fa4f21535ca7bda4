"""Into the network and back: by seeds, by the nodes known last time, and by the local network's announcements."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dht.disk import open_storage
from dht.node import DhtConfig, DhtNode, Seed
from dht.storage import Storage
from p2pnode.discovery import Discovery
from p2pnode.entry import MOST_WAITING, Entry
from protocol.identity import SigningKey
from protocol.types import Network
from tests.network.dht_net import NOTES, Net, WallClock, note
from tests.network.mail_net import until

TOPIC = b"t" * 20


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    net = Net(seed=5)
    yield net
    await net.close()


def revived(node: DhtNode, storage: Storage | None = None, port: int = 0) -> DhtNode:
    """The same node in a new process."""
    config = DhtConfig(host=node.config.host, port=port, engine=node.config.engine)
    return DhtNode(
        config, node.key, node.network, (NOTES,), storage, clock=WallClock(), rng=random.Random(node.key.public)
    )


async def stopped(net: Net, node: DhtNode) -> None:
    await node.close()
    net.nodes.remove(node)


async def with_disk(net: Net, path: Path, like: DhtNode | None = None) -> DhtNode:
    """A node that keeps what it knows in a file, started."""
    node = revived(like or net.make(), open_storage(path, net.rng))
    if like is None:
        net.nodes.pop()
    net.nodes.append(node)
    await node.start()
    return node


async def test_a_node_comes_back_though_all_seeds_are_down(net: Net, tmp_path: Path) -> None:
    await net.grow(5)
    seed, *others = net.nodes
    node = await with_disk(net, tmp_path / "dht.db")
    where = net.seed_of(0)
    assert await node.bootstrap([where])
    await stopped(net, node)
    await stopped(net, seed)

    # Those that never left go on without it.
    await others[0].put(TOPIC, note(SigningKey(b"w" * 32), TOPIC))
    assert await others[1].get(TOPIC)

    back = await with_disk(net, tmp_path / "dht.db", node)
    entered: list[int] = []
    entry = Entry(back, [where], [lambda: entered.append(1)])
    entry.start()
    await until(lambda: bool(entered), "entered by the nodes of the last time")
    assert len(back.peers()) >= 3
    assert [e.signer for e in await back.get(TOPIC)] == [SigningKey(b"w" * 32).public]
    await entry.close()


async def test_a_crash_does_not_lose_the_nodes_that_were_known(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await net.grow(3)
    node = await with_disk(net, tmp_path / "dht.db")
    monkeypatch.setattr("p2pnode.entry.FIRST_SAVE_SECONDS", 0.0)
    entry = Entry(node, [net.seed_of(0)])
    entry.start()
    disk = node.storage.disk
    assert disk is not None
    await until(lambda: len(disk.load_peers()) == 3, "the known nodes are on disk while the node runs")
    await entry.close()


async def test_entering_goes_on_until_somebody_answers(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    node = net.make()
    await node.start()
    late = net.make()
    await late.start()
    where = Seed(*late.local)
    await stopped(net, late)
    caplog.set_level("WARNING", "p2pnode.entry")
    entry = Entry(node, [where], pause=0.05)
    entry.start()
    await until(lambda: "no seed answers" in caplog.text, "tried in vain")
    back = revived(late, port=where.port)
    net.nodes.append(back)
    await back.start()
    await until(lambda: bool(node.peers()), "the seed came up later")
    await entry.close()


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Every name stands for these addresses."""

    async def getaddrinfo(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, port)) for host in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("keyed", [False, True], ids=["without key", "with key"])
async def test_a_name_of_which_some_addresses_are_dead_still_leads_in(
    net: Net, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    await net.grow(2)
    node, (host, port) = net.make(), net.nodes[0].local
    await node.start()
    resolving(monkeypatch, "127.250.1.1", "127.250.2.1", host)
    key = net.nodes[0].key.public if keyed else None
    assert await node.bootstrap([Seed("seed.example.org", port, key)]) == 2


async def test_of_a_names_addresses_none_that_is_another_node_is_taken_for_the_seed(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    await net.grow(1)
    node, (host, port) = net.make(), net.nodes[0].local
    await node.start()
    resolving(monkeypatch, "127.250.1.1", host)
    assert await node.bootstrap([Seed("seed.example.org", port, node.key.public[::-1])]) == 0


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".", "xn--" + "a" * 80, "no.such.host.invalid"])
async def test_what_can_be_no_name_is_a_seed_that_does_not_answer(
    net: Net, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = net.make()
    await node.start()
    assert await node.bootstrap([Seed(name, 4_000)]) == 0
    assert await node.meet(Seed(name, 4_000)) is None
    assert "does not resolve" in caplog.text


def announced(node: DhtNode, group: str, network: Network = Network.REGTEST) -> Discovery:
    return Discovery(node.key.public, network, group, "127.0.0.1", node.local[1])


async def test_nodes_of_one_group_find_each_other_without_any_seed(net: Net) -> None:
    nodes = [net.make("127.0.0.1") for _ in range(3)]
    groups = ["entry-one", "entry-one", "entry-two"]
    entries = []
    for node, group in zip(nodes, groups, strict=True):
        await node.start()
        entries.append(Entry(node, [], local=announced(node, group), pause=0.5))
    for entry in entries:
        entry.start()
    first, second, stranger = nodes
    await until(lambda: bool(first.peers() and second.peers()), "the two know each other")
    assert [c.key for c in first.peers()] == [second.key.public]
    assert [c.key for c in second.peers()] == [first.key.public]
    assert not stranger.peers()
    for entry in entries:
        await entry.close()


async def test_one_who_announces_another_nodes_key_is_not_met(net: Net) -> None:
    """Else whoever is on the local network could stand in for any node."""
    victim, liar, honest = (net.make("127.0.0.1") for _ in range(3))
    for node in (victim, liar, honest):
        await node.start()
    lie = Discovery(SigningKey(b"x" * 32).public, Network.REGTEST, "entry-lie", "127.0.0.1", liar.local[1])
    local = announced(victim, "entry-lie")
    entry = Entry(victim, [], local=local, pause=0.2)
    entry.start()
    await lie.start()
    await until(lambda: bool(local.seeds), "the lie was heard")
    truth = announced(honest, "entry-lie")
    await truth.start()
    await until(lambda: bool(victim.peers()), "the honest node is met")
    assert [c.key for c in victim.peers()] == [honest.key.public]
    for part in (entry, lie, truth):
        await part.close()


async def test_announcements_without_end_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.discovery.MOST_KNOWN", 2)
    listening = Discovery(bytes(32), Network.REGTEST, "entry-many", "127.0.0.1", 1000)
    await listening.start()
    crowd = [
        Discovery(SigningKey(bytes([n]) * 32).public, Network.REGTEST, "entry-many", "127.0.0.1", 2000 + n)
        for n in range(1, 5)
    ]
    await asyncio.gather(*(one.start() for one in crowd))
    await until(lambda: len(listening.seeds) >= 2 and not listening._resolving, "all were heard")
    assert len(listening.seeds) == 2
    last = Discovery(SigningKey(b"z" * 32).public, Network.REGTEST, "entry-many", "127.0.0.1", 3000)
    await last.start()
    await until(lambda: 3000 in {seed.port for seed in listening.seeds}, "a crowd hides nobody that comes after it")
    assert len(listening.seeds) == 2
    await asyncio.gather(*(one.close() for one in (*crowd, last, listening)))


async def test_announcements_that_come_faster_than_they_are_looked_into_do_not_pile_up(net: Net) -> None:
    node = net.make("127.0.0.1")
    await node.start()
    local = announced(node, "entry-flood")
    entry = Entry(node, [], local=local)
    for n in range(10_000):
        for listener in local._listeners:
            listener(Seed("127.0.0.1", 1 + n, SigningKey(b"x" * 32).public))
    assert entry._found.qsize() <= MOST_WAITING
