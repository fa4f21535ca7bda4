"""A disk that is full, a database that is damaged or of a newer version: one clear line, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from p2pnode import database, delivery, executor
from p2pnode.database import Database, DatabaseTooNew, DiskFull
from p2pnode.tradestore import TradeStore
from protocol import trade_events as ev
from protocol.errors import DataCorrupt
from protocol.types import Side
from tests.crash.test_crash_everywhere import check
from tests.world import PATIENCE, MortalDatabase, World

NO_MORE = 1
"""SQLite raises this to the pages that there are: then nothing grows any more."""
PLENTY = 2**30


class Quota:
    """The disk of one node has no room from its n-th commit on, until it is given some."""

    def __init__(self, base: MortalDatabase, number: int) -> None:
        self.base = base
        self.left = number
        self.refused = 0
        self._transaction = base.transaction
        base.transaction = self.transaction  # type: ignore[method-assign]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self.base.connection
        if not connection.in_transaction:
            self.left -= 1
            if self.left == 0:
                connection.execute("PRAGMA journal_size_limit = 0")
                connection.execute(f"PRAGMA max_page_count = {NO_MORE}")
        try:
            with self._transaction() as inner:
                if self.left <= 0:
                    # As large as the largest message: no page has room for it.
                    connection.execute("INSERT INTO notices (at, topic) VALUES (0, zeroblob(100000))")
                yield inner
        except DiskFull:
            self.refused += 1
            raise

    def make_room(self) -> None:
        self.left = PLENTY
        self.base.connection.execute(f"PRAGMA max_page_count = {PLENTY}")


@pytest.mark.parametrize("victim", ["maker", "taker"])
@pytest.mark.parametrize("number", range(1, 14))
async def test_full_disk_stops_nothing_for_good(
    tmp_path: Path, victim: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (delivery, executor):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.005)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(database, "ROOM_SECONDS", 0.02)
    world = World(tmp_path, Side.SELL)
    try:
        await world.begin()
        node = getattr(world, victim)
        quota = Quota(node.database, number)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE

        async def insist(act: object, done: object, what: str) -> None:
            """A user sees one line, makes room, and says it again."""
            while not done():  # type: ignore[operator]
                assert loop.time() < deadline, f"{what}: {world.maker.phase}, {world.taker.phase}, {quota.refused}"
                with suppress(DiskFull):
                    await act()  # type: ignore[operator]
                if quota.refused >= 3:
                    quota.make_room()
                await asyncio.sleep(0.005)

        async def nothing() -> None:
            return

        def give(who: object, event: ev.TradeEvent, phase: str) -> object:
            async def act() -> None:
                if who.phase == phase:  # type: ignore[attr-defined]
                    who.engine.apply(who.trade.trade_id, event)  # type: ignore[attr-defined]

            return act

        async def take() -> None:
            if world.taker.trade is None:
                await world.take()

        buyer, seller, chain = world.buyer, world.seller, world.chain
        await insist(take, lambda: len(chain.mempool) == 1 and world.phases("Funding"), "funding")
        chain.mine(2)
        ready = lambda: world.phases("Funded") and buyer.trade.peer_details is not None  # type: ignore[union-attr]  # noqa: E731
        await insist(nothing, ready, "funded")
        await insist(give(buyer, ev.DeclarePaid("ref"), "Funded"), lambda: world.phases("Paid"), "paid")
        await insist(give(seller, ev.Release(), "Paid"), lambda: len(chain.mempool) == 1, "payout")
        await insist(nothing, lambda: world.phases("Settling"), "settling")
        chain.mine(2)
        await insist(nothing, lambda: world.phases("Completed") and world.quiet(), "the end")
        check(world)
        assert quota.refused, "the disk was never full: the test tests nothing"
    finally:
        await world.end()
    complaints = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not any(r.exc_info for r in complaints), "a traceback, where one line says it"


def test_commit_that_the_disk_refuses_leaves_nothing_open(tmp_path: Path) -> None:
    """Left open, it would swallow all that comes after it."""
    base = Database(tmp_path / "p2pnode.db")
    base.connection.execute(f"PRAGMA max_page_count = {NO_MORE}")
    with pytest.raises(DiskFull, match="make room"), base.transaction() as connection:
        connection.execute("INSERT INTO notices (at, topic) VALUES (0, zeroblob(1000000))")
    assert not base.connection.in_transaction
    base.connection.execute(f"PRAGMA max_page_count = {PLENTY}")
    with base.transaction() as connection:
        connection.execute("INSERT INTO notices (at, topic) VALUES (1, 'later')")
    base.close()
    again = Database(tmp_path / "p2pnode.db")
    assert [tuple(row) for row in again.connection.execute("SELECT at, topic FROM notices")] == [(1, "later")]
    again.close()


def test_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "p2pnode.db"
    Database(file).close()
    raw = sqlite3.connect(file)
    raw.execute("PRAGMA user_version = 9999")
    raw.close()
    before = file.read_bytes()
    with pytest.raises(DatabaseTooNew, match="newer version"):
        Database(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("at", [0, 40, 4_096])
def test_damaged_database_is_one_line(tmp_path: Path, at: int) -> None:
    file = tmp_path / "p2pnode.db"
    base = Database(file)
    base.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.close()
    content = bytearray(file.read_bytes())
    content[at:] = b"\xff" * (len(content) - at)
    file.write_bytes(bytes(content))
    with pytest.raises(DataCorrupt, match="restore it from a backup"):
        TradeStore(Database(file)).all()
