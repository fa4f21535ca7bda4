"""A write is done once, however often its request arrives.

The key and a hash of the request are recorded before the write begins, its answer after. Asked again: the recorded
answer. Asked again while it runs: wait for it. Asked again after a crash in the middle: nobody knows, and the answer
says so, since doing it twice could pay twice. A write that failed with a P2PError changed nothing (the promise of
`services`), so its key is free again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import blake2b

from msgspec import Struct

from p2pnode.api.errors import KeyReused, OutcomeUnknown
from p2pnode.api.services import Idempotency
from protocol.errors import P2PError


class Answer(Struct, frozen=True):
    """A status and a body; `replayed` when it was recorded before."""

    status: int
    body: bytes
    replayed: bool = False


class Once:
    """Runs writes under their keys."""

    def __init__(self, store: Idempotency) -> None:
        self._store = store
        self._running: dict[str, asyncio.Task[Answer]] = {}

    async def run(self, key: str, request: bytes, act: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of `act`, or the one recorded under `key` for the same `request` (any bytes that identify it).

        Once begun, the write goes on although its asker is cancelled. Raises KeyReused, OutcomeUnknown and what `act`
        raises.
        """
        digest = blake2b(request, digest_size=32).digest()
        known = await self._store.claim(key, digest)
        if known is None:
            task = asyncio.ensure_future(self._act(key, act))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
            return await asyncio.shield(task)
        if known.request != digest:
            raise KeyReused
        if known.status:
            return Answer(known.status, known.body, replayed=True)
        if (running := self._running.get(key)) is not None:
            return await asyncio.shield(running)
        raise OutcomeUnknown

    async def settle(self, seconds: float) -> None:
        """Give writes that run `seconds` to end; those that do not are cancelled, and their outcome stays unknown."""
        tasks = list(self._running.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _act(self, key: str, act: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await act()
        except P2PError:
            await self._store.forget(key)
            raise
        await self._store.finish(key, answer.status, answer.body)
        return answer
