"""How long it takes to load the snapshots of 1,000 trades, as a node does when it starts and a page that lists them.

A real trade (`tests/world.py`) is played to the state that knows most, and put into a database on disk under 1,000 ids.
Measured is `TradeStore.all` on a freshly opened database: reading, decoding, checking. Target: under one second.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from p2pnode.database import Database
from p2pnode.tradestore import Heads, TradeStore
from protocol.trade_state import TradeState
from protocol.types import Side
from tests.bench.report import Report
from tests.world import World

TRADES: Final = 1_000
LIMIT_SECONDS: Final = 1.0


async def _played(folder: Path) -> TradeState:
    world = World(folder, Side.SELL)
    try:
        await world.happy()
        state = world.seller.trade
    finally:
        await world.end()
    if state is None:
        raise AssertionError("the trade that was played is gone")
    return state


def main() -> None:
    """Measure and judge."""
    report = Report("snapshots")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = asyncio.run(_played(folder))
        file = folder / "snapshots.db"
        database = Database(file)
        store = TradeStore(database)
        with database.transaction():
            for n in range(TRADES):
                store.save(replace(state, trade_id=n.to_bytes(32, "big")), Heads(3, b"h" * 32, 3, b"h" * 32), n)
        database.close()
        began = time.perf_counter()
        database = Database(file)
        loaded = TradeStore(database).all()
        seconds = time.perf_counter() - began
        database.close()
        if len(loaded) != TRADES:
            raise AssertionError(f"{len(loaded)} snapshots were loaded")
        size = file.stat().st_size
    print(f"{TRADES:,} snapshots ({size / 1e6:.1f} MB on disk) loaded in {seconds * 1000:.0f} ms")
    report.at_most("seconds to load 1,000 snapshots", seconds, LIMIT_SECONDS)
    report.write()


if __name__ == "__main__":
    main()
