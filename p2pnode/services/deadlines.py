"""Block heights as people read them: with the blocks that are left and an estimate of the time."""

from __future__ import annotations

from typing import Final

from p2pnode.api.dispute_schema import DeadlineView

BLOCK_SECONDS: Final = 600


def deadline(name: str, height: int, *, tip: int, now: int) -> DeadlineView:
    """A deadline at a height, seen from the block `tip` at `now`."""
    blocks = height - tip
    return DeadlineView(name=name, height=height, blocks=blocks, time=max(0, now + blocks * BLOCK_SECONDS))
