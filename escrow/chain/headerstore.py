"""The header chain of a light client, on disk and as `Follow` asks for it.

The file holds the headers above the anchor, 80 bytes each. It is written after the fact: a crash costs a second
download of what was new, and what is read back is checked like a stranger's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from escrow.chain.base import BlockRef, BlockUnknown
from escrow.chain.follow import HeaderInfo
from escrow.chain.headers import HEADER_BYTES, BadHeader, HeaderChain, anchor_for
from protocol.types import Hash32, Height, Network, UnixTime

_log = logging.getLogger(__name__)

_STALE: Final = 24 * 3_600
"""Age of the tip from which on more blocks must exist: money does not move on it. Not on regtest."""


class HeaderStore:
    """A `HeaderChain` that survives a restart."""

    def __init__(
        self, network: Network, folder: Path | None, from_height: Height | None, clock: Callable[[], UnixTime]
    ) -> None:
        """Choose the anchor for `from_height`; nothing is read yet."""
        anchor = anchor_for(network, from_height)
        self.chain = HeaderChain(network, anchor)
        self._folder = folder
        self._clock = clock
        self._base = anchor.height + 1
        self._file = None if folder is None else folder / f"headers-{network.name.lower()}-{anchor.height}.dat"
        self._dirty: Height | None = None

    async def reaching(self, height: Height) -> HeaderStore:
        """Another store of the same chain that begins below `height`, with what an earlier run left of it."""
        lower = HeaderStore(self.chain.network, self._folder, height, self._clock)
        await lower.open()
        _log.info("block %d is asked for: headers are fetched from block %d on", height, lower.chain.first)
        return lower

    async def open(self) -> None:
        """Read what an earlier run left."""
        if self._file is None or self.chain.height > self._base:
            return
        with suppress(FileNotFoundError):
            raw = await asyncio.to_thread(self._file.read_bytes)
            try:
                await asyncio.to_thread(self.chain.load, raw, self._clock())
            except BadHeader as e:
                _log.warning("stored block headers are damaged and fetched anew: %s", e.detail)
                self._dirty = self.chain.height + 1

    def add(self, headers: Sequence[bytes]) -> Height | None:
        """Take headers; see `HeaderChain.add`."""
        changed = self.chain.add(headers, self._clock())
        if changed is not None:
            self._dirty = changed if self._dirty is None else min(self._dirty, changed)
        return changed

    def take_over(self, above: HeaderChain) -> None:
        """Take the headers of a chain that begins where this one ends. Raises BadHeader."""
        before = self.chain.height
        self.chain.load(above.export(above.first), self._clock())
        if self.chain.height > before:
            self._dirty = before + 1 if self._dirty is None else min(self._dirty, before + 1)

    async def save(self) -> None:
        """Write what changed. A full disk is told and costs a second download."""
        if self._file is None or self._dirty is None:
            return
        at, self._dirty = max(self._dirty, self._base), None
        raw, file = self.chain.export(at), self._file
        try:
            await asyncio.to_thread(_write, file, (at - self._base) * HEADER_BYTES, raw)
        except OSError as e:
            _log.error("block headers can't be written to %s: %s", file, e.strerror)

    def must_have(self, block: BlockRef, name: str) -> None:
        """Raise BlockUnknown if the block is not in the best chain that `name` has shown."""
        if self.chain.height_of(block.hash) is None:
            raise BlockUnknown(f"{name} does not have block {block.height:,} in its chain")

    def info(self, block: Hash32) -> HeaderInfo | None:
        """A block of the best chain, else None."""
        height = self.chain.height_of(block)
        if height is None or height < self.chain.first:
            return None
        following = self.chain.hash_at(height + 1) if height < self.chain.height else None
        return HeaderInfo(self.chain.at(height), active=True, next=following)

    def refs(self, heights: Sequence[int]) -> list[BlockRef]:
        """Those of `heights` that are known."""
        return [self.chain.at(h) for h in heights if self.chain.first <= h <= self.chain.height]

    def stale(self) -> str:
        """A line if the tip is so old that blocks must be missing."""
        if self.chain.network is Network.REGTEST:
            return ""
        age = self._clock() - self.chain.at(self.chain.height).time
        return "" if age < _STALE else f"the newest block that is known is {age // 3_600} hours old: peers hide some"


def _write(file: Path, at: int, raw: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    with file.open("r+b") as out:
        out.seek(at)
        out.write(raw)
        out.truncate()
