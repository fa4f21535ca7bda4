"""What lies in escrows, as the balance tells it: money that is counted twice, or not at all, frightens people."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from p2pnode.services.wallet import Locked, TradeEscrows
from protocol import trade_events as ev
from protocol.types import Side
from tests.world import TwinNode, World


def escrows(node: TwinNode) -> TradeEscrows:
    return TradeEscrows(node.engine.trades)


def is_locked(node: TwinNode) -> bool:
    return escrows(node).locked().value > 0


@pytest.mark.parametrize("side", list(Side))
async def test_an_escrow_counts_from_the_mempool_until_it_is_spent(tmp_path: Path, side: Side) -> None:
    world = World(tmp_path, side)
    try:
        await world.begin()
        await world.take(1_000_000)
        assert [escrows(n).locked() for n in world.both] == [Locked()] * 2
        await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")
        for node, own in ((world.buyer, 100_000), (world.seller, 1_100_000)):
            trade = node.trade
            assert trade is not None
            assert trade.facts is not None
            await world.until(partial(is_locked, node), "seen")
            assert escrows(node).locked() == Locked(trade.facts.escrow_value, own)
            assert trade.facts.escrow_value >= 1_200_000
            assert escrows(node).fee_of(trade.facts.funding_txid) == trade.facts.funding_fee
            assert escrows(node).fee_of(trade.facts.payout_txid) == trade.facts.payout_fee
            assert escrows(node).fee_of(b"\x07" * 32) is None
        world.chain.mine(2)
        await world.until(
            lambda: (
                world.phases("Funded") and world.buyer.trade is not None and world.buyer.trade.peer_details is not None
            ),
            "funded",
        )
        await world.command(world.buyer, ev.DeclarePaid("ref"), lambda: world.buyer.phase != "Funded")
        await world.until(lambda: world.phases("Paid"), "paid")
        assert all(escrows(n).locked().value for n in world.both)
        await world.command(world.seller, ev.Release(), lambda: world.seller.phase != "Paid")
        await world.until(lambda: world.phases("Settling"), "payout")
        await world.until(lambda: all(escrows(n).locked() == Locked() for n in world.both), "the payout is seen")
        world.chain.mine(2)
        await world.until(lambda: world.phases("Completed"), "completion")
        assert [escrows(n).locked() for n in world.both] == [Locked()] * 2
    finally:
        await world.end()
