"""The feed of events, and the memory of writes by their idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pnode.api.schema import EventView
from p2pnode.api.services import Recorded
from p2pnode.clock import Clock
from p2pnode.database import Database
from p2pnode.notices import Notice, Notices
from p2pnode.services.views import kebab

REMEMBERED: Final = 86_400
"""Seconds for which a write is remembered by its key."""
A_LONG_TIME: Final = 3_600.0


class EventService:
    """`api.services.Events` over the notices."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices

    async def since(self, after: int, limit: int) -> Sequence[EventView]:
        """Up to `limit` events with a number over `after`, in order; at once."""
        return [_view(notice) for notice in self._notices.after(after, limit)]

    async def last(self) -> int:
        """The number of the newest event, 0 when there is none."""
        return self._notices.newest

    async def wait(self, after: int) -> None:
        """Return as soon as there is an event with a number over `after`. May be cancelled."""
        while not await self._notices.wait_after(after, A_LONG_TIME):
            pass


class IdempotencyService:
    """`api.services.Idempotency` in SQLite."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database.connection
        self._clock = clock

    async def claim(self, key: str, request: bytes) -> Recorded | None:
        """Record that the write `request` begins, unless `key` is known: then return its record."""
        now = self._clock.now()
        self._db.execute("DELETE FROM idempotency WHERE at < ?", (now - REMEMBERED,))
        row = self._db.execute("SELECT request, status, body FROM idempotency WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return Recorded(*row)
        self._db.execute(
            "INSERT INTO idempotency (key, request, status, body, at) VALUES (?, ?, 0, x'', ?)", (key, request, now)
        )
        return None

    async def finish(self, key: str, status: int, body: bytes) -> None:
        """Keep the answer."""
        self._db.execute("UPDATE idempotency SET status = ?, body = ? WHERE key = ?", (status, body, key))

    async def forget(self, key: str) -> None:
        """The write changed nothing: the key is free again."""
        self._db.execute("DELETE FROM idempotency WHERE key = ?", (key,))


def _view(notice: Notice) -> EventView:
    return EventView(
        number=notice.number,
        at=notice.at,
        topic=notice.topic,
        trade=None if notice.trade_id is None else notice.trade_id.hex(),
        offer=None if notice.offer_id is None else notice.offer_id.hex(),
        phase=None if notice.phase is None else kebab(notice.phase),
    )
