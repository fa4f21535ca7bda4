"""When a block will come: an estimate in local time for people. Only heights decide anything.

The pace is that of the recent blocks, by the median times that BIP113 takes of eleven headers, so that no single lying
timestamp shifts it; ten minutes a block until enough of them were seen, and on chains where they come at will.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from escrow.chain.base import BlockRef
from p2pnode.api.schema.base import DeadlineView
from p2pnode.clock import Clock

BLOCK_SECONDS: Final = 600
"""What the difficulty aims at."""
FEWEST: Final = 12
"""Blocks between the oldest and the newest that were seen, before their pace counts."""
MOST: Final = 288
"""Blocks that are remembered."""
PLAUSIBLE: Final = (300, 1_200)
"""Seconds a block; a pace beyond is that of a test network, or of broken clocks."""


class BlockTimes:
    """Remembers the recent blocks that the backend followed."""

    def __init__(self, height: Callable[[], int], clock: Clock) -> None:
        """`height` gives our best block."""
        self._height = height
        self._clock = clock
        self._seen: OrderedDict[int, int] = OrderedDict()
        """Median time by height."""

    def observe(self, tip: BlockRef | None) -> None:
        """A new best block; None changes nothing. A reorganisation simply overwrites."""
        if tip is None or not tip.median_time:
            return
        for height in [h for h in self._seen if h >= tip.height]:
            del self._seen[height]
        self._seen[tip.height] = tip.median_time
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    @property
    def seconds(self) -> int:
        """Seconds from block to block."""
        if not self._seen:
            return BLOCK_SECONDS
        (first, began), (last, ended) = next(iter(self._seen.items())), next(reversed(self._seen.items()))
        if last - first < FEWEST:
            return BLOCK_SECONDS
        pace = (ended - began) // (last - first)
        return pace if PLAUSIBLE[0] <= pace <= PLAUSIBLE[1] else BLOCK_SECONDS

    def at(self, name: str, height: int) -> DeadlineView:
        """A deadline at a height, seen from our best block and now."""
        blocks = height - self._height()
        estimate = max(0, self._clock.now() + blocks * self.seconds)
        return DeadlineView(name=name, height=height, blocks=blocks, estimated_at=estimate)

    def by_clock(self, name: str, time: int) -> DeadlineView:
        """A deadline by the clock: before anything is locked, no block counts."""
        return DeadlineView(name=name, height=None, blocks=None, estimated_at=time)
