"""A release that pays to an address outside of the wallet: named at the command line, fixed by the contract, paid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from escrow.address import address_of
from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, together
from protocol.types import Network
from tests.regtest.test_wallet_watched import asked, does, typed
from tests.reorg.split_cast import until

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

AMOUNT = 200_000
DETAIL = ("--method", "sepa", "--detail", "iban=DE00")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[Cast]:
    cast = Cast(tmp_path_factory.mktemp("outside"), bitcoind_binary, keep=False)
    try:
        await cast.start_chain_and_seeds()
        await together(cast.start_others(), cast.bitcoind.ensure_coins(2))
        for trader in cast.traders:
            await cast.bitcoind.fund((await trader.api.address("t")).address, 5_000_000, confirmations=0)
        await cast.bitcoind.mine()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))
        yield cast
    finally:
        await cast.close()


async def test_both_sides_are_paid_where_they_said_and_their_wallets_get_nothing(cast: Cast) -> None:
    places = [await cast.bitcoind.new_address() for _ in range(3)]
    main = address_of(b"\x00\x14" + bytes(20), Network.MAINNET)
    legacy = await cast.bitcoind.rpc("getnewaddress", "", "legacy", wallet="miner")
    create = ("offer", "create", "sell", f"{AMOUNT}sat", "--price", "85000.00 EUR", *DETAIL)

    async def known() -> bool:
        return len((await cast.seller.api.arbiters()).arbiters) == 2

    await until(known, "the arbiters")
    for wrong, says in ((main, "is for mainnet"), (legacy, "native segwit"), (places[0][:-1] + "q", "checksum")):
        done = await typed(cast.seller, *create, "--payout-address", wrong)
        assert done.returncode != 0
        (line,) = done.stderr.splitlines()
        assert says in line, line
    offer = (await asked(cast.seller, *create, "--payout-address", places[0]))["id"]
    # Before the contract fixes it, it can be changed.
    await does(cast.seller, "offer", "edit", offer, "--payout-address", "wallet")
    assert (await cast.seller.api.offer(offer)).payout_address is None
    await does(cast.seller, "offer", "edit", offer, "--payout-address", places[1])
    assert places[1] in await does(cast.seller, "offer", "show", offer)
    newest = (await cast.seller.api.offer(offer)).sequence

    async def found() -> bool:
        page = await cast.buyer.api.offers(s.OfferFilter(side="sell", currency="EUR"))
        return any(o.id == offer and o.sequence == newest for o in page.offers)

    await until(found, "the offer")
    assert (await cast.buyer.api.offer(offer)).payout_address is None, "nobody else is told"
    take = ("offer", "take", offer, f"{AMOUNT}sat", *DETAIL, "--yes")
    done = await typed(cast.buyer, *take, "--payout-address", main)
    assert done.returncode != 0
    assert "is for mainnet" in done.stderr
    assert (await cast.buyer.api.balance()).reserved_sats == 0
    trade = (await asked(cast.buyer, *take, "--payout-address", places[2]))["id"]

    async def both(phase: str) -> bool:
        return all([(await t.api.trade(trade)).phase == phase for t in cast.traders])

    async def in_mempool() -> bool:
        return all([(await t.api.trade(trade)).escrow.funding_depth == 0 for t in cast.traders])

    await until(in_mempool, "the funding")
    await cast.bitcoind.mine(2)
    await until(lambda: both("funded"), "the escrow")
    for trader, place in ((cast.seller, places[1]), (cast.buyer, places[2])):
        view = await trader.api.trade(trade)
        assert (view.payout_address, view.payout_outside) == (place, True)
        assert "outside of the wallet" in " ".join((await does(trader, "trade", "show", trade)).split())

    async def may_pay() -> bool:
        return bool((await cast.buyer.api.trade(trade)).peer_details)

    await until(may_pay, "the seller's details")
    before = [(await t.api.balance()).confirmed_sats for t in cast.traders]
    await does(cast.buyer, "trade", "pay", trade)

    async def paid() -> bool:
        return (await cast.seller.api.trade(trade)).phase == "paid"

    await until(paid, "the payment to be declared")
    await does(cast.seller, "trade", "release", trade, "--yes")
    await until(lambda: both("settling"), "the payout")
    await cast.bitcoind.mine(2)
    await until(lambda: both("completed"), "the end")
    got = [await cast.bitcoind.rpc("getreceivedbyaddress", place, 1, wallet="miner") for place in places]
    deposit = Decimal(AMOUNT * 15 // 100) / 100_000_000
    assert got == [0, deposit, Decimal(AMOUNT) / 100_000_000 + deposit]
    assert [(await t.api.balance()).confirmed_sats for t in cast.traders] == before
    listed = (await asked(cast.buyer, "wallet", "history"))["entries"]
    assert f"funding of trade {trade[:16]}" in [entry["label"] for entry in listed]
