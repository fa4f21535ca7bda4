"""A machine is lost in the middle of a trade; on a new one the mnemonic and the backup file complete it.

In process for every commit of the happy path and so for every state: the node dies, its folder is gone, and what runs
on is made of the backup file alone. Once with real processes, through the command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from escrow.seed import mnemonic_from_entropy
from p2pnode import backup, keystore
from p2pnode.datadir import DataDir
from p2pnode.demo.cast import Cast
from p2pnode.keystore import Keys
from protocol import trade_events as ev
from protocol.trade_state import TradeState
from protocol.types import Network, Side
from tests.crash.test_crash_everywhere import MOST_COMMITS, check, run
from tests.crash.test_kill9 import cast as cast  # noqa: PLC0414 - a fixture
from tests.crash.test_kill9 import publish, push, the_trade
from tests.world import NOW, PATIENCE, Killed, TwinNode, World

ROOT = Path(__file__).resolve().parents[2]


def keys_of(node: TwinNode) -> Keys:
    """What the mnemonic of a twin gives on the new machine."""
    return Keys(Network.REGTEST, mnemonic_from_entropy(sha256(node.name.encode()).digest()))


class LostMachines:
    """Whenever `node` has died, it comes back on a new machine, from the backup of its last commit."""

    def __init__(self, node: TwinNode) -> None:
        self.node = node
        self.phases: list[str] = []
        self._buried = node.buried
        node.buried = self.buried  # type: ignore[method-assign]

    async def buried(self) -> None:
        node = self.node
        self.phases.append(node.phase)
        await self._buried()
        old = DataDir(node.folder / f"{node.name}-machine{len(self.phases)}")
        old.create()
        (node.folder / f"{node.name}.db").rename(old.database)
        data = backup.make(old, keys_of(node), NOW)
        new = node.folder / str(len(self.phases))
        new.mkdir(mode=0o700)
        files = backup.open_backup(data, keys_of(node)).files
        (new / f"{node.name}.db").write_bytes(files[backup.DATABASE])
        node.folder = new


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("victim", ["maker", "taker"])
async def test_restored_on_a_new_machine_in_any_state_the_trade_completes(
    tmp_path: Path, side: Side, victim: str
) -> None:
    seen: set[str] = set()
    for number in range(1, MOST_COMMITS):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, side)
        for trader in world.both:
            trader.reconciles = True
        node: TwinNode = getattr(world, victim)
        await node.up()
        node.database.dies_at = node.database.commits + number + (1 if victim == "maker" else 0)
        lost = LostMachines(node)
        await run(world)
        check(world, late=True)
        # `run` ends both nodes in order: the last burial is not a loss.
        if len(lost.phases) < 2:
            break
        seen.add(lost.phases[0])
    assert len(seen) >= 6, f"the machine was lost in too few states: {seen}"


OLDER_THAN = ("Funding", "Funded", "Paying", "Paid", "Releasing", "Settling")
"""States with money in the escrow: a backup of these may be one step older than the node was."""


async def drive(world: World) -> None:
    """Both users do what is theirs to do, again if their node has forgotten it; miners mine."""
    await world.begin()
    with suppress(Killed):
        await world.take()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    try:
        while not (world.phases("Completed") and world.quiet()):
            assert loop.time() < deadline, f"stuck: maker {world.maker.phase}, taker {world.taker.phase}"
            await asyncio.sleep(0.005)
            for node in world.both:
                if not node.alive:
                    await node.buried()
                    await node.up()
                    node.reconciler.start()
            if world.chain.mempool:
                world.chain.mine(2)
            buyer, seller = world.buyer, world.seller
            with suppress(Killed):
                if buyer.trade is not None and buyer.phase == "Funded" and buyer.trade.peer_details is not None:
                    buyer.engine.apply(buyer.trade.trade_id, ev.DeclarePaid("ref"))
                elif seller.trade is not None and seller.phase == "Paid":
                    seller.engine.apply(seller.trade.trade_id, ev.Release())
    finally:
        await world.end()


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("victim", ["maker", "taker"])
async def test_backup_that_is_one_step_old_completes_a_funded_trade(tmp_path: Path, side: Side, victim: str) -> None:
    """What happened since then comes back from the peer and from the chain."""
    seen: set[str] = set()
    for number in range(1, MOST_COMMITS):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, side)
        node: TwinNode = getattr(world, victim)
        await node.up()
        file = folder / f"{node.name}.db"
        node.database.dies_at = node.database.commits + number + (1 if victim == "maker" else 0)
        copies: list[tuple[str, bytes]] = []

        def copy(state: TradeState, copies: list[tuple[str, bytes]] = copies, file: Path = file) -> None:
            copies.append((type(state.phase).__name__, backup.snapshot(file)))

        node.engine.subscribe(copy)
        lost: list[str] = []
        bury = node.buried

        async def buried(
            node: TwinNode = node,
            bury: Callable[[], Awaitable[None]] = bury,
            lost: list[str] = lost,
            copies: list[tuple[str, bytes]] = copies,
            folder: Path = folder,
        ) -> None:
            lost.append(node.phase)
            await bury()
            if len(lost) == 1 and len(copies) > 1 and copies[-2][0] in OLDER_THAN:
                (folder / "new").mkdir()
                (folder / "new" / f"{node.name}.db").write_bytes(copies[-2][1])
                node.folder = folder / "new"
                seen.add(copies[-2][0])

        node.buried = buried  # type: ignore[method-assign]
        await drive(world)
        if len(lost) < 2:
            break
    assert {"Funding", "Funded", "Paid"} & seen, f"no older state was restored: {seen}"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.regtest
@pytest.mark.timeout(120)
async def test_real_seller_lost_before_the_release_goes_on_from_its_backup_file(cast: Cast, tmp_path: Path) -> None:
    """Through the command line: `backup` beside the running node, `restore` into another folder."""
    seller = cast.seller
    offer = await publish(cast)
    trade = await until_paid(cast, offer)
    file, words, new = tmp_path / "seller.backup", tmp_path / "words", another(seller.data.path)
    command("backup", str(file), "--datadir", str(seller.data.path))
    words.write_text(keystore.unlock(seller.data.keystore, "", Network.REGTEST).mnemonic)
    before = (await seller.api.balance()).escrow_own_sats
    assert before > 0
    await lose(cast, file, words, new)
    assert (await seller.api.balance()).escrow_own_sats == before
    await finish(cast, offer)
    assert (await seller.api.trade(trade)).phase == "completed"
    assert (await seller.api.balance()).escrow_sats == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.regtest
@pytest.mark.timeout(120)
async def test_real_seller_whose_backup_is_older_than_the_take_gets_its_trade_back(cast: Cast, tmp_path: Path) -> None:
    """The buyer's node returns it; the seller's then has only to release, as before the loss."""
    seller = cast.seller
    offer = await publish(cast)
    file, words, new = tmp_path / "seller.backup", tmp_path / "words", another(seller.data.path)
    command("backup", str(file), "--datadir", str(seller.data.path))
    words.write_text(keystore.unlock(seller.data.keystore, "", Network.REGTEST).mnemonic)
    trade = await until_paid(cast, offer)
    before = (await seller.api.balance()).escrow_own_sats
    await lose(cast, file, words, new)
    await finish(cast, offer)
    assert before > 0
    assert (await seller.api.trade(trade)).phase == "completed"
    assert (await seller.api.balance()).escrow_sats == 0
    assert (new / "contracts" / f"{trade}.json").exists(), "the contract file came back, too"


def another(old: Path) -> Path:
    """A folder that outlives the test, as the nodes do."""
    return old.with_name(f"{old.name}-again")


async def lose(cast: Cast, file: Path, words: Path, new: Path) -> None:
    """The seller's machine is gone; on a new one there are its words and a backup file."""
    seller = cast.seller
    seller.kill()
    await seller.hang_up()
    shutil.rmtree(seller.data.path)
    made = json.loads(
        command(
            "restore", str(file), "--words", str(words), "--datadir", str(new), "--no-passphrase", "--json",
            "--set", "keystore.cost=interactive",
        )
    )  # fmt: skip
    assert made["persona"] == seller.persona
    seller.data = DataDir(new)
    await cast._start(seller, tuple(daemon.seed for daemon in cast.seeds))


async def finish(cast: Cast, offer: str) -> None:
    """Both users go on, until their nodes show the end."""
    seller = cast.seller
    deadline = time.monotonic() + 60
    phases = ("", "")
    while phases != ("completed", "completed"):
        assert time.monotonic() < deadline, phases
        await push(cast, offer, await the_trade(seller, offer), await the_trade(cast.buyer, offer))
        await asyncio.sleep(0.05)
        views = [await the_trade(daemon, offer) for daemon in cast.traders]
        phases = tuple(view.phase if view else "" for view in views)  # type: ignore[assignment]


async def until_paid(cast: Cast, offer: str) -> str:
    """Push the trade on until the seller has only to release; its id."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        seller, buyer = [await the_trade(daemon, offer) for daemon in cast.traders]
        if seller is not None and seller.phase == "paid":
            return seller.id
        await push(cast, offer, None, buyer)
        await asyncio.sleep(0.05)


def command(*words: str) -> str:
    """Run `p2pnode` and return what it prints."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
