"""Questions to the network that nobody waits for longer than they are worth.

One question per key runs at a time, and everybody who asks meanwhile waits for that one. Who has waited long enough
goes on with what is known locally; the answer, when it comes after all, is still put to use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable

from protocol.errors import P2PError

log = logging.getLogger(__name__)

Ask = Callable[[], Coroutine[None, None, bool]]
"""Asks, and puts the answer where it belongs. False: that was no answer worth keeping to. May raise P2PError."""


class Lookups:
    """The questions that are out."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._answered: dict[Hashable, float] = {}

    async def ask(self, key: Hashable, ask: Ask, *, fresh_seconds: float, wait_seconds: float) -> None:
        """Ask unless the last answer is younger than `fresh_seconds`; wait for it up to `wait_seconds`."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._answered.get(key, -fresh_seconds) < fresh_seconds:
            return
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = loop.create_task(self._run(key, ask), name="lookup")
        await asyncio.wait({task}, timeout=wait_seconds)

    async def _run(self, key: Hashable, ask: Ask) -> None:
        try:
            if await ask():
                self._answered[key] = asyncio.get_running_loop().time()
        except P2PError as e:
            log.info("a look-up in the DHT failed: %s", e.detail)
        except Exception:
            log.exception("a look-up in the DHT failed")
        finally:
            self._running.pop(key, None)

    async def close(self) -> None:
        """Give up what is out."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
