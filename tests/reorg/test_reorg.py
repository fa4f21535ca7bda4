"""Reorganisations and double spends of real trades on two real bitcoinds: each has its end, and no coin is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from p2pnode.client import ApiError
from tests.reorg.split_cast import SplitCast, rival

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[SplitCast]:
    cast = SplitCast(tmp_path_factory.mktemp("reorg"), bitcoind_binary)
    try:
        await cast.begin()
        yield cast
    finally:
        await cast.close()


async def funded(cast: SplitCast) -> str:
    """A trade whose escrow is buried on both sides."""
    _, trade = await cast.trade()
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "funded", "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    return trade


async def settle(cast: SplitCast, trade: str) -> None:
    """The rest of the happy path."""
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling", "the payout in both mempools")
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "completed", "the end")


async def test_funding_that_is_reorganised_out_confirms_in_another_block_and_the_trade_goes_on(cast: SplitCast) -> None:
    trade = await funded(cast)
    await cast.bitcoind.reorganise(2)
    await cast.both(trade, lambda t: (t.escrow.funding_depth or 0) == 0, "the loss of the confirmations")
    with pytest.raises(ApiError, match="buried"):
        await cast.buyer.api.trade_pay(trade)
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: (t.escrow.funding_depth or 0) >= 2, "the funding in its new block")
    await settle(cast, trade)


async def test_release_waits_while_the_escrow_is_not_buried(cast: SplitCast) -> None:
    """A seller that released into a branch that loses could pay the buyer for nothing."""
    trade = await funded(cast)
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.bitcoind.reorganise(2)
    await cast.one(cast.seller, trade, lambda t: (t.escrow.funding_depth or 0) == 0, "the reorganisation")
    with pytest.raises(ApiError, match="buried"):
        await cast.seller.api.trade_release(trade)
    await cast.bitcoind.mine(2)
    await cast.one(cast.seller, trade, lambda t: (t.escrow.funding_depth or 0) >= 2, "the new block")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling", "the payout")
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "completed", "the end")


async def test_payout_that_is_reorganised_out_is_broadcast_again(cast: SplitCast) -> None:
    trade = await funded(cast)
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling", "the payout")
    await cast.bitcoind.mine(1)
    await cast.both(trade, lambda t: t.escrow.payout_depth == 1, "a confirmed payout")
    await cast.bitcoind.reorganise(1)
    await cast.both(trade, lambda t: t.phase == "settling" and not t.escrow.payout_depth, "the payout's loss")
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "completed", "the end")


async def test_buyer_on_a_branch_without_the_funding_is_not_made_to_pay(cast: SplitCast) -> None:
    """Each believes its own chain only: the seller's details do not make the buyer's escrow buried."""
    _, trade = await cast.trade()
    await cast.split()
    await cast.bitcoind.mine(2)
    await cast.one(cast.seller, trade, lambda t: t.phase == "funded", "the seller's funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    assert (await cast.buyer.api.trade(trade)).phase == "funding"
    with pytest.raises(ApiError):
        await cast.buyer.api.trade_pay(trade)
    await cast.rejoin()
    await cast.one(cast.buyer, trade, lambda t: t.phase == "funded", "the buyer's funded escrow")
    await settle(cast, trade)


async def test_funding_that_the_buyer_double_spends_in_a_longer_branch_cancels_on_both_sides(cast: SplitCast) -> None:
    """Before anything was paid: the seller gets its coins back, and the trade is over for both."""
    before = (await cast.seller.api.balance()).confirmed_sats
    _, trade = await cast.trade()
    txid = (await cast.seller.api.trade(trade)).escrow.funding_txid
    assert txid is not None
    theft = await rival(cast.bitcoind, cast.buyer, txid, 50_000)
    await cast.split()
    await cast.bitcoind.mine(1)
    await cast.one(cast.seller, trade, lambda t: t.escrow.funding_depth == 1, "the seller's first confirmation")
    await cast.other.rpc("sendrawtransaction", theft)
    await cast.other.mine(3)
    await cast.one(cast.buyer, trade, lambda t: t.phase == "cancelled", "the end on the buyer's branch")
    await cast.rejoin()
    await cast.one(cast.seller, trade, lambda t: t.phase == "cancelled", "the end on the seller's side")
    await cast.freed(cast.seller)
    assert (await cast.seller.api.balance()).confirmed_sats == before


async def test_funding_replaced_in_the_mempool_cancels_when_the_rival_is_buried(cast: SplitCast) -> None:
    _, trade = await cast.trade()
    txid = (await cast.seller.api.trade(trade)).escrow.funding_txid
    assert txid is not None
    theft = await rival(cast.bitcoind, cast.buyer, txid, 100_000)
    await cast.bitcoind.rpc("sendrawtransaction", theft)
    await cast.one(cast.seller, trade, lambda t: t.escrow.funding_depth is None, "the funding to be gone")
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "cancelled", "the end")
    await cast.freed(cast.seller)
