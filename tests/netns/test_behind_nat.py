"""Two traders behind two NATs trade through public nodes: real processes in network namespaces, a real bitcoind.

The first scenario is part of `make test`; the others run with `make netns` (marked `netns`). Needs root on Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.demo import play as play_module
from p2pnode.demo.cast import Daemon
from tests.netns.lab import HOME, Lab
from tests.netns.players import PlayWith
from tests.netns.stage import Stage, clean_lab, completed, skip_where_impossible

ANYWHERE = "0.0.0.0"


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    skip_where_impossible()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with clean_lab() as made:
        yield made


class Homes(Stage):
    """Both traders at home, each behind a router of its own."""

    def __init__(
        self, lab: Lab, folder: Path, binary: Path, *, seeds: int = 1, delay_ms: float = 0, loss: float = 0
    ) -> None:
        self.nats: dict[str, str] = {}
        homes = {}
        for number, trader in enumerate(("seller", "buyer"), 1):
            self.nats[trader], homes[trader] = lab.home(trader, f"100.64.{number}", delay_ms=delay_ms, loss=loss)
        places = {
            "bootstrap-1": (lab.host("boot-1", "198.51.100"), "198.51.100.2"),
            "bootstrap-2": (lab.host("boot-2", "203.0.113"), "203.0.113.2"),
            "seller": (homes["seller"], ANYWHERE),
            "buyer": (homes["buyer"], ANYWHERE),
        }
        arbiters = lab.host("arbiters", "192.0.2")
        places |= dict.fromkeys(("arbiter", "backup-arbiter"), (arbiters, "192.0.2.2"))
        self.homes = homes
        super().__init__(lab, folder, binary, places, seeds=seeds)


async def test_two_traders_behind_nats_trade_through_one_public_node(
    lab: Lab, short_path: Path, bitcoind_binary: Path
) -> None:
    stage = Homes(lab, short_path, bitcoind_binary)
    try:
        completed(await stage.perform())
        await stage.relay_between()
        # Nobody can dial a trader, so nobody may be sent to one.
        traders = {trader.info.node for trader in stage.cast.traders}
        assert not await stage.seeds_tables() & traders
        assert {a.info.node for a in stage.cast.arbiters} <= await stage.seeds_tables()
        await stage.cast.stop()
    finally:
        await stage.cast.close()


@pytest.mark.netns
async def test_trade_completes_with_loss_and_a_long_way(
    lab: Lab, short_path: Path, bitcoind_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10% of packets lost in each direction, and 200 ms of round trip, on the line of each home."""
    monkeypatch.setattr(play_module, "WAIT_SECONDS", 120.0)
    stage = Homes(lab, short_path, bitcoind_binary, delay_ms=100, loss=10)
    try:
        completed(await stage.perform())
        await stage.relay_between()
    finally:
        await stage.cast.close()


class KillTheRelay(PlayWith):
    """The public node that carries the trade dies."""

    async def meanwhile(self) -> None:
        stage: Homes = self.stage  # type: ignore[attr-defined]
        self.used = await stage.relay_between()
        (dead,) = [seed for seed in stage.cast.seeds if seed.info.node.startswith(self.used)]
        stage.killed = dead  # type: ignore[attr-defined]
        with stage.steps.step(f"{dead.name} is killed, which carried the traders' session"):
            dead.kill()


@pytest.mark.netns
async def test_another_relay_takes_over_when_the_one_in_use_dies(
    lab: Lab, short_path: Path, bitcoind_binary: Path
) -> None:
    stage = Homes(lab, short_path, bitcoind_binary, seeds=2)
    for arbiter in stage.cast.arbiters:
        stage.cast.settings[arbiter.name] = ["relay = false"]
    try:
        completed(await stage.perform(KillTheRelay))
        killed: Daemon = stage.killed  # type: ignore[attr-defined]
        survivor = next(seed for seed in stage.cast.seeds if seed is not killed)
        assert survivor.info.node.startswith(await stage.relay_between())
    finally:
        await stage.cast.close()


class CutTheRelay(KillTheRelay):
    """The public node that carries the trade falls off the network: no packet tells anybody."""

    async def meanwhile(self) -> None:
        stage: Homes = self.stage  # type: ignore[attr-defined]
        used = await stage.relay_between()
        (cut,) = [seed for seed in stage.cast.seeds if seed.info.node.startswith(used)]
        stage.killed = cut  # type: ignore[attr-defined]
        with stage.steps.step(f"{cut.name} falls off the network, which carried the traders' session"):
            stage.lab.ip(cut.prefix[-1], "link", "set", "wan", "down")


@pytest.mark.netns
async def test_another_relay_takes_over_when_the_one_in_use_falls_silent(
    lab: Lab, short_path: Path, bitcoind_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play_module, "WAIT_SECONDS", 120.0)
    stage = Homes(lab, short_path, bitcoind_binary, seeds=2)
    for arbiter in stage.cast.arbiters:
        stage.cast.settings[arbiter.name] = ["relay = false"]
    try:
        completed(await stage.perform(CutTheRelay))
    finally:
        await stage.cast.close()


class MoveTheSeller(PlayWith):
    """The seller's machine gets another address."""

    async def meanwhile(self) -> None:
        stage: Homes = self.stage  # type: ignore[attr-defined]
        home = stage.homes["seller"]
        with stage.steps.step("the seller's machine changes its address"):
            stage.lab.ip(home, "address", "del", f"{HOME}/24", "dev", "eth0")
            stage.lab.ip(home, "address", "add", "192.168.1.77/24", "dev", "eth0")
            stage.lab.ip(home, "route", "replace", "default", "via", "192.168.1.1")


@pytest.mark.netns
async def test_node_that_changes_its_address_stays_who_it_is_and_goes_on(
    lab: Lab, short_path: Path, bitcoind_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play_module, "WAIT_SECONDS", 60.0)
    stage = Homes(lab, short_path, bitcoind_binary)
    try:
        completed(await stage.perform(MoveTheSeller))
        info = await stage.cast.seller.api.info()
        before = stage.cast.seller.info
        assert (info.node, info.persona) == (before.node, before.persona)
    finally:
        await stage.cast.close()
