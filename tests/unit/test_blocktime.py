"""Estimates of when a block comes: the pace of recent blocks where it can be believed, else ten minutes."""

from __future__ import annotations

from escrow.chain.base import BlockRef
from p2pnode.blocktime import BLOCK_SECONDS, FEWEST, MOST, BlockTimes
from tests.world import NOW, FixedClock


def times(height: int = 1_000) -> BlockTimes:
    return BlockTimes(lambda: height, FixedClock("blocks"))


def block(height: int, median_time: int) -> BlockRef:
    return BlockRef(height, height.to_bytes(32, "big"), median_time, median_time)


def test_ten_minutes_until_enough_blocks_were_seen() -> None:
    found = times()
    for n in range(FEWEST):
        found.observe(block(n, NOW + n * 500))
    assert found.seconds == BLOCK_SECONDS
    found.observe(block(FEWEST, NOW + FEWEST * 500))
    assert found.seconds == 500


def test_pace_that_no_real_chain_has_is_not_believed() -> None:
    """A test network, or a backend that lies about time."""
    for pace in (0, 1, 5_000, -300):
        found = times()
        for n in range(20):
            found.observe(block(n, NOW + n * pace))
        assert found.seconds == BLOCK_SECONDS


def test_reorganised_blocks_are_forgotten_and_old_ones_dropped() -> None:
    found = times()
    for n in range(1, MOST + 50):
        found.observe(block(n, NOW + n * 600))
    found.observe(block(MOST + 30, NOW + (MOST + 30) * 600))
    assert found.seconds == 600
    assert max(found._seen) == MOST + 30
    assert len(found._seen) <= MOST
    found.observe(None)


def test_deadline_says_height_blocks_and_estimate() -> None:
    view = times(1_000).at("payment", 1_010)
    assert (view.height, view.blocks, view.estimated_at) == (1_010, 10, NOW + 10 * 600)
    assert times(1_020).at("payment", 1_010).blocks == -10
    assert times(10**6).at("payment", 1).estimated_at >= 0
