"""The user's event feed: numbered notices that outlive a restart, so that a client can go on from where it was."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec import Struct

from p2pnode.database import Database


class Notice(Struct, frozen=True):
    """Something the user may want to know. `number` only grows; `at` is in Unix seconds."""

    number: int
    at: int
    topic: str
    trade_id: bytes | None = None
    offer_id: bytes | None = None
    phase: str | None = None


class Notices:
    """Notices in SQLite, and a way to wait for the next."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._arrived = asyncio.Event()

    def add(
        self,
        topic: str,
        now: int,
        *,
        trade_id: bytes | None = None,
        offer_id: bytes | None = None,
        phase: str | None = None,
    ) -> None:
        """Add one; inside a transaction it becomes visible with it. Call `wake` after the commit."""
        self._database.connection.execute(
            "INSERT INTO notices (at, topic, trade_id, offer_id, phase) VALUES (?, ?, ?, ?, ?)",
            (now, topic, trade_id, offer_id, phase),
        )

    def wake(self) -> None:
        """Let those who wait look again."""
        self._arrived.set()
        self._arrived = asyncio.Event()

    def after(self, number: int, limit: int = 100) -> list[Notice]:
        """Notices numbered above `number`, oldest first."""
        rows = self._database.connection.execute(
            "SELECT n, at, topic, trade_id, offer_id, phase FROM notices WHERE n > ? ORDER BY n LIMIT ?",
            (number, limit),
        )
        return [Notice(*row) for row in rows]

    @property
    def newest(self) -> int:
        """The number of the newest notice; 0 before the first."""
        row = self._database.connection.execute("SELECT max(n) FROM notices").fetchone()
        return int(row[0] or 0)

    async def wait_after(self, number: int, seconds: float) -> list[Notice]:
        """Like `after`, but wait up to `seconds` for the first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            arrived = self._arrived
            found = self.after(number)
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await arrived.wait()
