"""How a node gets into the network, and back into it.

Four sources, none of them trusted: the seeds of the configuration, the nodes that were known last time (the DHT's disk
keeps them; written now and then, so that a crash does not lose them), the nodes of the local network (`discovery`), and
whoever the user names by hand (`services.peers`). While nobody is known they are asked again and again. Once somebody
is, seeds are needed no more: they may all be gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dht.node import DhtNode, Seed

if TYPE_CHECKING:
    from p2pnode.discovery import Discovery

PAUSE_SECONDS: Final = 15.0
"""Between attempts while nobody is known."""
FIRST_SAVE_SECONDS: Final = 60.0
"""Not at once: after a minute more nodes are known than those of the last time that would be written over."""
MOST_WAITING: Final = 64
"""Announcements of the local network that wait to be looked into."""
SAVE_SECONDS: Final = 600.0
"""Between writes of the known nodes."""

log = logging.getLogger(__name__)


class Entry:
    """The background task."""

    def __init__(
        self,
        dht: DhtNode,
        seeds: Sequence[Seed],
        on_entry: Sequence[Callable[[], None]] = (),
        *,
        local: Discovery | None = None,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        """`on_entry` are called whenever the network was entered, `local` is started and closed here."""
        self._dht = dht
        self._seeds = tuple(seeds)
        self._on_entry = tuple(on_entry)
        self._local = local
        self._pause = pause
        self._found: asyncio.Queue[Seed] = asyncio.Queue(MOST_WAITING)
        self._tasks: list[asyncio.Task[None]] = []
        if local is not None:
            local.subscribe(self._heard)

    def start(self) -> None:
        """Begin; the DHT node must be running."""
        self._tasks.append(asyncio.create_task(self._run(), name="entry"))
        if self._local is not None:
            self._tasks.append(asyncio.create_task(self._local.start(), name="discovery"))

    async def close(self) -> None:
        """Stop trying, and tell the local network goodbye."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._local is not None:
            await self._local.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        save_at = loop.time() + FIRST_SAVE_SECONDS
        while True:
            if not self._dht.peers():
                await self._enter()
            if loop.time() >= save_at:
                self._dht.save_peers()
                save_at = loop.time() + SAVE_SECONDS
            found = await self._next_found()
            # Who knows nobody yet enters by what was found, with the rest of the seeds.
            if found is not None and self._dht.peers() and await self._dht.meet(found) is None:
                log.info("what was announced on the local network does not answer as the node that it names")

    def _heard(self, seed: Seed) -> None:
        """Somebody is announced. Whoever announces without end is not listened to any faster than we can look."""
        with suppress(asyncio.QueueFull):
            self._found.put_nowait(seed)

    async def _next_found(self) -> Seed | None:
        """What the local network announces next; None when the time for another look has come before that."""
        try:
            async with asyncio.timeout(self._pause):
                return await self._found.get()
        except TimeoutError:
            return None

    async def _enter(self) -> None:
        nearby = () if self._local is None else self._local.seeds
        known = await self._dht.bootstrap([*self._seeds, *nearby])
        if known:
            log.info("entered the network: %d nodes known", known)
            for listener in self._on_entry:
                listener()
        elif self._seeds:
            log.warning("no seed answers; trying again in %d s", self._pause)
