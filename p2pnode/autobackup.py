"""Backups that make themselves: after each step of a trade, an encrypted copy into a folder of the user's choice.

The folder is meant to be elsewhere: another disk, a mount, one that a cloud keeps. The file is the same as `p2pnode
backup` makes; it opens with the mnemonic alone, so who keeps the folder learns its size and when it changes. Steps
that follow each other closely share one copy, and a copy that could not be written is tried again. It is therefore a
little behind at times: what it lacks, the counterparties give back (`p2pnode.recall`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pnode import backup
from p2pnode.clock import Clock
from p2pnode.datadir import DataDir, DiskError, write_private
from p2pnode.keystore import Keys
from protocol.errors import P2PError

GATHER_SECONDS: Final = 1.0
"""Steps within this time share a copy."""
RETRY_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class AutoBackup:
    """Keeps one backup file up to date."""

    def __init__(
        self, data: DataDir, keys: Keys, folder: Path, clock: Clock, *, gather: float = GATHER_SECONDS
    ) -> None:
        self.file = folder / f"p2pnode-{keys.network.name.lower()}-{keys.seed.master.fingerprint.hex()}.backup"
        self._data = data
        self._keys = keys
        self._clock = clock
        self._gather = gather
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def changed(self) -> None:
        """There is something new to keep."""
        self._changed.set()

    def start(self) -> None:
        """Begin with a copy of what there is."""
        self.changed()
        self._task = asyncio.create_task(self._run(), name="backups")

    async def close(self) -> None:
        """Stop, with a last copy if one is due."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            if self._changed.is_set():
                with suppress(P2PError):
                    await asyncio.to_thread(self.make)

    def make(self) -> None:
        """Write the copy now. Raises DataCorrupt, DiskError."""
        data = backup.make(self._data, self._keys, self._clock.now())
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise DiskError(f"the folder for backups {self.file.parent} can't be made: {e.strerror or e}") from e
        write_private(self.file, data)

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._gather)
            self._changed.clear()
            try:
                await asyncio.to_thread(self.make)
            except P2PError as e:
                log.warning("no backup was made: %s", e.detail)
                self._changed.set()
                await asyncio.sleep(RETRY_SECONDS)
