"""Trades where the usual way is not there: IPv6 alone, one version each, no UDP, a new address."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from p2pnode.api.schema import ReachView
from p2pnode.demo import play as play_module
from p2pnode.demo.cast import Daemon
from protocol.contact import ContactRecord
from protocol.identity import parse_persona
from protocol.types import Network
from protocol.wire import Kind, open_envelope, unpack
from tests.netns.lab import Lab
from tests.netns.players import PlayWith
from tests.netns.stage import Stage, clean_lab, completed, skip_where_impossible

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    skip_where_impossible()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with clean_lab() as made:
        yield made


def public_places(lab: Lab) -> dict[str, tuple[str, str]]:
    """A bootstrap node and the arbiters on public IPv4 addresses."""
    boot, arbiters = lab.host("boot-1", "198.51.100"), lab.host("arbiters", "192.0.2")
    places = {"bootstrap-1": (boot, "198.51.100.2"), "bootstrap-2": (boot, "198.51.100.2")}
    return places | dict.fromkeys(("arbiter", "backup-arbiter"), (arbiters, "192.0.2.2"))


async def reach_of(daemon: Daemon) -> ReachView:
    """How others reach a node, by its own word."""
    reach = (await daemon.api.info()).reach
    assert reach is not None
    return reach


async def until(daemon: Daemon, state: str) -> ReachView:
    """The same, once a node has found out that it is in this state."""
    async with asyncio.timeout(60):
        while (reach := await reach_of(daemon)).state != state:  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.2)
    return reach


async def test_trade_over_ipv6_alone(lab: Lab, short_path: Path, bitcoind_binary: Path) -> None:
    hosts = {name: lab.host6(name, f"2001:db8:{i}:") for i, name in enumerate(("boot", "arb", "seller", "buyer"), 1)}
    places = {
        "bootstrap-1": (hosts["boot"], "2001:db8:1::2"),
        "bootstrap-2": (hosts["boot"], "2001:db8:1::2"),
        "arbiter": (hosts["arb"], "2001:db8:2::2"),
        "backup-arbiter": (hosts["arb"], "2001:db8:2::2"),
        "seller": (hosts["seller"], "*"),
        "buyer": (hosts["buyer"], "*"),
    }
    stage = Stage(lab, short_path, bitcoind_binary, places)
    try:
        completed(await stage.perform())
        reach = await until(stage.cast.seller, "reachable")
        assert [way.host for way in reach.addresses] == ["2001:db8:3::2"]
        assert all(":" in p.address for p in (await stage.cast.buyer.api.peers()).peers)
    finally:
        await stage.cast.close()


async def test_trader_with_ipv4_and_trader_with_ipv6_meet_at_a_relay_that_has_both(
    lab: Lab, short_path: Path, bitcoind_binary: Path
) -> None:
    places = public_places(lab)
    lab.also_ipv6(places["bootstrap-1"][0], "2001:db8:1:")
    lab.also_ipv6(places["arbiter"][0], "2001:db8:2:")
    places |= dict.fromkeys(("bootstrap-1", "bootstrap-2"), (places["bootstrap-1"][0], "198.51.100.2,2001:db8:1::2"))
    places |= dict.fromkeys(("arbiter", "backup-arbiter"), (places["arbiter"][0], "192.0.2.2,2001:db8:2::2"))
    _, home = lab.home("seller", "100.64.1")
    places |= {"seller": (home, "*"), "buyer": (lab.host6("buyer", "2001:db8:3:"), "*")}
    stage = Stage(lab, short_path, bitcoind_binary, places)
    try:
        completed(await stage.perform())
        await stage.relay_between()
        await until(stage.cast.buyer, "reachable")
        seller = await until(stage.cast.seller, "behind NAT")
        assert any(len(relay.addresses) == 2 for relay in seller.relays)
    finally:
        await stage.cast.close()


@pytest.mark.parametrize("transport", ["both", "channel"])
async def test_trader_whose_firewall_drops_udp_finds_offers_and_trades(
    lab: Lab, short_path: Path, bitcoind_binary: Path, transport: str
) -> None:
    places = public_places(lab)
    homes = {name: lab.home(name, f"100.64.{number}") for number, name in enumerate(("seller", "buyer"), 1)}
    places |= {name: (home, "*") for name, (_, home) in homes.items()}
    lab.without_udp(homes["buyer"][1])
    stage = Stage(lab, short_path, bitcoind_binary, places)
    stage.cast.settings["buyer"] = [f'dht_transport = "{transport}"']
    try:
        completed(await stage.perform())
        seller, buyer = [await reach_of(trader) for trader in stage.cast.traders]
        assert (seller.carried_by, buyer.carried_by) == ("udp", "channel")
        assert buyer.dht == "client"
    finally:
        await stage.cast.close()


class MoveThePublicSeller(PlayWith):
    """The seller, whom others dial, gets another address in the middle of the trade."""

    async def meanwhile(self) -> None:
        stage: Stage = self.stage  # type: ignore[attr-defined]
        seller = stage.cast.seller
        stage.before = published(stage.cast.seeds[0], seller.persona)  # type: ignore[attr-defined]
        with stage.steps.step("the seller gets another public address"):
            where = seller.prefix[-1]
            stage.lab.ip(where, "address", "del", "203.0.113.2/24", "dev", "wan")
            stage.lab.ip(where, "address", "add", "203.0.113.77/24", "dev", "wan")
            stage.lab.ip(where, "route", "replace", "default", "via", "203.0.113.1")


def published(holder: Daemon, persona: str) -> ContactRecord:
    """The contact record of a persona that a node holds."""
    found: list[ContactRecord] = []
    with closing(sqlite3.connect(holder.data.path / "dht.db")) as database:
        for (raw,) in database.execute("SELECT raw FROM record"):
            envelope = open_envelope(raw, Network.REGTEST, limit=65_536)
            if envelope.kind == Kind.CONTACT and envelope.signer == parse_persona(persona):
                found.append(unpack(envelope.body, ContactRecord, limit=Kind.CONTACT.limit))
    return max(found, key=lambda record: record.sequence)


async def test_reachable_node_that_changes_its_address_in_a_trade_says_where_it_is_now(
    lab: Lab, short_path: Path, bitcoind_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play_module, "WAIT_SECONDS", 60.0)
    places = public_places(lab)
    _, home = lab.home("buyer", "100.64.2")
    places |= {"seller": (lab.host("seller", "203.0.113"), "0.0.0.0"), "buyer": (home, "*")}
    stage = Stage(lab, short_path, bitcoind_binary, places)
    try:
        completed(await stage.perform(MoveThePublicSeller))
        seller, holder = stage.cast.seller, stage.cast.seeds[0]
        before = stage.before  # type: ignore[attr-defined]
        assert [a.host for a in before.contact.addresses] == ["203.0.113.2"]
        async with asyncio.timeout(60):
            while [a.host for a in published(holder, seller.persona).contact.addresses] != ["203.0.113.77"]:  # noqa: ASYNC110
                await asyncio.sleep(0.5)  # another process makes it so
        now = published(holder, seller.persona)
        assert now.sequence > before.sequence
        assert (now.persona, now.contact.node) == (before.persona, before.contact.node)
        assert (await seller.api.info()).node == seller.info.node
    finally:
        await stage.cast.close()
