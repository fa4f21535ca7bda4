"""The node, its peers, its events and its memory of writes, as the API gives them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from dht.node import DhtConfig, DhtNode, Seed
from p2pnode.api.schema import EventView, PeerAdd
from p2pnode.api.services import Recorded
from p2pnode.channels import SessionView
from p2pnode.database import Database
from p2pnode.notices import Notices
from p2pnode.records import record_kinds
from p2pnode.services.events import REMEMBERED, EventService, IdempotencyService
from p2pnode.services.node import NodeFacts, NodeService
from p2pnode.services.peers import BadPeerAddress, NoAnswer, PeerService
from protocol.errors import P2PError
from protocol.identity import BadId, node_text, persona_text
from protocol.types import Network
from tests.unit.services_support import DETAILS, NETWORK, T0, Party, TestClock, dht_node, keyring_of, offer_of, parties

# --- the node ----------------------------------------------------------------------------------------------------


def facts_of(party: Party, folder: Path) -> NodeFacts:
    return NodeFacts(
        network=NETWORK,
        node=party.keyring.node.public,
        persona=party.persona,
        roles=("trader", "arbiter"),
        listen=("127.0.0.1:9999",),
        data_dir=folder,
        started=T0 - 90,
    )


async def test_info_tells_what_is_so_without_asking_the_network(tmp_path: Path) -> None:
    stops: list[int] = []
    async with parties(tmp_path, "maker", "other", "third") as (maker, *_):
        service = NodeService(
            facts_of(maker, tmp_path),
            maker.dht,
            maker.clock,
            lambda: stops.append(1),
            chain=maker.backend,
            sessions=lambda: maker.sessions,
            trades=maker.trades,
            own=maker.own,
        )
        maker.sessions = (SessionView(b"n" * 32, "127.0.0.1:5", True, 3.0),)
        await maker.own.create(offer_of(maker.persona), DETAILS)
        view = await service.info()
        assert (view.node, view.persona) == (node_text(maker.keyring.node.public), persona_text(maker.persona))
        assert (view.network, view.roles, view.listen) == ("regtest", ("trader", "arbiter"), ("127.0.0.1:9999",))
        assert (view.version, view.pid, view.uptime_seconds) == (version("p2pnode"), os.getpid(), 90)
        assert (view.data_dir, view.sessions) == (str(tmp_path), 1)
        assert (view.open_offers, view.open_trades, view.dht.peers) == (1, 0, 2)
        assert view.chain is not None
        assert (view.chain.backend, view.chain.health, view.chain.height) == ("twin", "ready", 0)
        await service.stop()
        assert stops == [1]
        maker.sessions = ()


async def test_a_bootstrap_node_has_neither_chain_nor_trades(tmp_path: Path) -> None:
    async with parties(tmp_path, "bootstrap") as (node,):
        bare = NodeFacts(
            network=Network.SIGNET, node=b"n" * 32, persona=None, roles=("bootstrap",), listen=(),
            data_dir=tmp_path, started=T0 + 5,
        )  # fmt: skip
        view = await NodeService(bare, node.dht, node.clock, lambda: None).info()
        assert (view.network, view.persona, view.chain, view.open_trades, view.open_offers) == (
            "signet",
            None,
            None,
            0,
            0,
        )
        assert view.uptime_seconds == 0  # the clock was set back


# --- peers -------------------------------------------------------------------------------------------------------


async def test_a_node_is_met_by_address_and_by_key(tmp_path: Path) -> None:
    async with parties(tmp_path, "one") as (one,):
        other = dht_node(keyring_of("other"), one.clock, 3)
        await other.start()
        host, port = other.local
        service = PeerService(one.dht, lambda: one.sessions, one.clock)
        assert (await service.list()).peers == ()
        view = await service.add(PeerAdd(address=f"{host}:{port}"))
        assert (view.node, view.address, view.via) == (node_text(other.key.public), f"{host}:{port}", "dht")
        assert view.rtt_ms is not None
        assert view.last_seen is not None
        assert abs(view.last_seen - T0) <= 2
        named = await service.add(PeerAdd(address=f"{node_text(other.key.public)}@{host}:{port}"))
        assert named.node == view.node
        one.sessions = (SessionView(other.key.public, "127.0.0.1:1234", False, 3.0),)
        first, second = (await service.list()).peers
        assert (first.via, first.outgoing, first.address) == ("channel", False, "127.0.0.1:1234")
        assert (second.via, second.outgoing, second.node) == ("dht", None, view.node)
        assert [c.key for c in one.dht.peers()] == [other.key.public]
        await other.close()


async def test_a_node_that_is_not_who_it_should_be_is_not_met(tmp_path: Path) -> None:
    async with parties(tmp_path, "one") as (one,):
        other = dht_node(keyring_of("other"), one.clock, 3)
        await other.start()
        host, port = other.local
        service = PeerService(one.dht, tuple, one.clock)
        with pytest.raises(NoAnswer, match="that node does not answer"):
            await service.add(PeerAdd(address=f"{node_text(keyring_of('third').node.public)}@{host}:{port}"))
        with pytest.raises(NoAnswer, match=r"^nobody answers at \[::1\]:9$"):
            await service.add(PeerAdd(address="[::1]:9"))
        assert one.dht.peers() == []
        await other.close()


async def test_a_node_of_another_network_is_not_met(tmp_path: Path) -> None:
    async with parties(tmp_path, "one") as (one,):
        foreign = DhtNode(
            DhtConfig("127.0.0.1", 0, puzzle_bits=1), keyring_of("other").node, Network.SIGNET,
            record_kinds(Network.SIGNET), clock=one.clock, rng=one.publisher._rng,
        )  # fmt: skip
        await foreign.start()
        with pytest.raises(NoAnswer):
            await PeerService(one.dht, tuple, one.clock).add(PeerAdd(address="{}:{}".format(*foreign.local)))
        await foreign.close()


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("nonsense", BadPeerAddress),
        ("127.0.0.1:0", BadPeerAddress),
        ("127.0.0.1:99999", BadPeerAddress),
        ("node1qqq@127.0.0.1:80", BadId),
        ("127.0.0.1:1", NoAnswer),
    ],
)
async def test_an_address_where_nobody_can_be_is_refused_in_one_line(
    tmp_path: Path, address: str, error: type[P2PError]
) -> None:
    async with parties(tmp_path, "one") as (one,):
        with pytest.raises(error) as raised:
            await PeerService(one.dht, tuple, one.clock).add(PeerAdd(address=address))
        assert "\n" not in raised.value.detail


async def test_the_contacts_of_a_larger_network_are_listed(tmp_path: Path) -> None:
    async with parties(tmp_path, "one", "two", "three") as (one, two, three):
        await one.dht.bootstrap([Seed(*three.dht.local)])
        peers = (await PeerService(one.dht, tuple, one.clock).list()).peers
        assert {p.node for p in peers} == {node_text(p.keyring.node.public) for p in (two, three)}


# --- events ------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "node.db")
    yield made
    made.close()


async def test_events_are_read_on_from_a_cursor_after_a_restart_too(tmp_path: Path) -> None:
    database = Database(tmp_path / "node.db")
    notices = Notices(database)
    service = EventService(notices)
    assert (await service.last(), list(await service.since(0, 10))) == (0, [])
    notices.add("phase", 5, trade_id=b"t" * 32, phase="SigningFunding")
    notices.add("offer", 6, offer_id=b"o" * 32, phase="taken")
    notices.add("payout-announced", 7)
    assert list(await service.since(0, 2)) == [
        EventView(number=1, at=5, topic="phase", trade="74" * 32, phase="signing-funding"),
        EventView(number=2, at=6, topic="offer", offer="6f" * 32, phase="taken"),
    ]
    database.close()
    database = Database(tmp_path / "node.db")
    service = EventService(Notices(database))
    assert [e.number for e in await service.since(1, 10)] == [2, 3]
    assert await service.last() == 3
    assert list(await service.since(3, 10)) == []
    database.close()


async def test_who_waits_is_woken_by_the_next_event_and_by_none_before(database: Database) -> None:
    notices = Notices(database)
    service = EventService(notices)
    notices.add("a", 1)
    await service.wait(0)
    waiting = asyncio.create_task(service.wait(1))
    await asyncio.sleep(0)
    notices.wake()
    await asyncio.sleep(0)
    assert not waiting.done()
    notices.add("b", 2)
    notices.wake()
    await asyncio.wait_for(waiting, 5)


async def test_a_waiter_may_be_cancelled(database: Database) -> None:
    waiting = asyncio.create_task(EventService(Notices(database)).wait(0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- writes by their keys ----------------------------------------------------------------------------------------


async def test_a_write_is_claimed_once_and_its_answer_kept_over_a_restart(tmp_path: Path) -> None:
    clock = TestClock()
    database = Database(tmp_path / "node.db")
    memory = IdempotencyService(database, clock)
    assert await memory.claim("k1", b"r" * 32) is None
    assert await memory.claim("k1", b"x" * 32) == Recorded(b"r" * 32, 0, b"")
    await memory.finish("k1", 201, b"{}")
    assert await memory.claim("k2", b"r" * 32) is None
    database.close()
    database = Database(tmp_path / "node.db")
    memory = IdempotencyService(database, clock)
    assert await memory.claim("k1", b"r" * 32) == Recorded(b"r" * 32, 201, b"{}")
    assert await memory.claim("k2", b"r" * 32) == Recorded(b"r" * 32, 0, b"")
    await memory.forget("k2")
    assert await memory.claim("k2", b"r" * 32) is None
    database.close()


async def test_writes_are_remembered_for_a_day(database: Database) -> None:
    clock = TestClock()
    memory = IdempotencyService(database, clock)
    await memory.claim("done", b"r" * 32)
    await memory.finish("done", 200, b"")
    await memory.claim("begun", b"r" * 32)
    clock.time += REMEMBERED
    assert await memory.claim("done", b"r" * 32) is not None
    assert await memory.claim("begun", b"r" * 32) is not None
    clock.time += 1
    assert await memory.claim("begun", b"r" * 32) is None
    assert await memory.claim("done", b"r" * 32) is None
