"""Trades whose coins are on a device: real nodes that only watch, a second wallet that signs, and a person's commands.

The device is a wallet of Bitcoin Core's own that holds the private descriptors; the nodes know the public ones. All
that passes between the two is a PSBT in a file.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon, together
from tests.reorg.split_cast import patiently, until

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

CLI = Path(__file__).parents[2] / "cli.py"
AMOUNT = 200_000
COIN = 5_000_000


class WatchedCast(Cast):
    """As `Cast`; the traders' coins are in wallets of bitcoind that have the names of the traders."""

    def __init__(self, folder: Path, binary: Path) -> None:
        super().__init__(folder, binary, keep=False)
        self.watched: dict[str, str] = {}

    async def make_devices(self) -> None:
        for trader in self.traders:
            await self.bitcoind.rpc("createwallet", trader.name)
            await self.bitcoind.rpc("keypoolrefill", 100, wallet=trader.name)
            known = (await self.bitcoind.rpc("listdescriptors", wallet=trader.name))["descriptors"]
            (external,) = (d["desc"] for d in known if d["desc"].startswith("wpkh(") and not d["internal"])
            self.watched[trader.name] = external

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        text = super()._config(daemon, seeds)
        watched = self.watched.get(daemon.name)
        return text if watched is None else f"{text}[wallet]\nwatch = {json.dumps(watched)}\n"

    async def sign(self, trader: Daemon, exported: Path) -> Path:
        """On the device, as Sparrow or Core would."""
        psbt = exported.read_text().strip()
        done = await self.bitcoind.rpc("walletprocesspsbt", psbt, True, "ALL", True, False, wallet=trader.name)
        signed = exported.with_suffix(".signed")
        signed.write_text(done["psbt"])
        return signed

    async def holds(self, trader: Daemon) -> int:
        """The satoshis on the device, confirmed or not."""
        balance = (await self.bitcoind.rpc("getbalances", wallet=trader.name))["mine"]
        return int((balance["trusted"] + balance["untrusted_pending"]) * 100_000_000)


async def typed(trader: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLI), *words, "--datadir", str(trader.data.path)]
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


async def does(trader: Daemon, *words: str) -> str:
    done = await typed(trader, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def asked(trader: Daemon, *words: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(await does(trader, *words, "--json"))


async def events(trader: Daemon, trade: str) -> list[str]:
    page = await trader.api.events(0)
    return [e.topic for e in page.events if e.trade == trade]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[WatchedCast]:
    cast = WatchedCast(tmp_path_factory.mktemp("watched"), bitcoind_binary)
    try:
        await cast.start_chain_and_seeds()
        await cast.bitcoind.ensure_coins(2)
        await cast.make_devices()
        await together(cast.start_others())
        for trader in cast.traders:
            for _ in range(4):
                made = await asked(trader, "wallet", "address")
                await cast.bitcoind.fund(made["address"], COIN, confirmations=0)
        await cast.bitcoind.mine()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))

        async def funded() -> bool:
            return all([(await t.api.balance()).spendable_sats == 4 * COIN for t in cast.traders])

        await until(funded, "the coins")
        yield cast
    finally:
        await cast.close()


async def begin(cast: WatchedCast, maker: Daemon, taker: Daemon) -> str:
    """An offer is made and taken at the command line; the trade's id."""
    side: Literal["buy", "sell"] = "sell" if maker is cast.seller else "buy"
    detail = ("--method", "sepa", "--detail", "iban=DE00")

    async def publish() -> str:
        made = await maker.api.offer_create(
            s.OfferDraft(
                side=side,
                amount_min_sats=AMOUNT,
                amount_max_sats=AMOUNT,
                currency="EUR",
                methods=(s.MethodDetails(method="sepa", details={"iban": "DE00"}),),
                price="85000",
                arbiters=tuple(a.persona for a in cast.arbiters),
                escrow_types=(2,),
            )
        )
        return made.id

    offer = await patiently(publish, "the offer")

    async def found() -> bool:
        return any(o.id == offer for o in (await taker.api.offers(s.OfferFilter(side=side, currency="EUR"))).offers)

    await until(found, "the offer to be found")
    taken = await asked(taker, "offer", "take", offer, f"{AMOUNT}sat", *detail, "--yes")
    trade: str = taken["id"]
    return trade


async def hand_in(cast: WatchedCast, trader: Daemon, trade: str, folder: Path, phase: str = "signing-funding") -> None:
    """What a person does when its node says that it waits for a signature."""

    async def waits() -> bool:
        shown = await trader.api.trade(trade)
        return shown.phase == phase and "p2pnode trade psbt" in shown.hint

    await until(waits, f"the {trader.name} to be asked for a signature")
    assert "trade psbt" in " ".join((await does(trader, "trade", "show", trade)).split())
    file = folder / f"{trader.name}-{phase}.psbt"
    told = await does(trader, "trade", "psbt", trade, "--out", str(file))
    assert "--import" in told
    signed = await cast.sign(trader, file)
    said = await does(trader, "trade", "psbt", trade, "--import", str(signed))
    assert "were taken over" in said


@pytest.mark.parametrize("maker", ["seller", "buyer"])
async def test_both_fund_from_devices_and_the_trade_completes(cast: WatchedCast, tmp_path: Path, maker: str) -> None:
    first: Daemon = getattr(cast, maker)
    taker = cast.buyer if first is cast.seller else cast.seller
    before = await cast.holds(cast.buyer), await cast.holds(cast.seller)
    trade = await begin(cast, first, taker)
    # The buyer signs first, whoever made the offer: the seller is the last to sign and the one that broadcasts.
    await hand_in(cast, cast.buyer, trade, tmp_path)
    assert await cast.bitcoind.rpc("getrawmempool") == []
    await hand_in(cast, cast.seller, trade, tmp_path)

    async def both(phase: str) -> bool:
        return all([(await t.api.trade(trade)).phase == phase for t in cast.traders])

    async def in_mempool() -> bool:
        return all([(await t.api.trade(trade)).escrow.funding_depth == 0 for t in cast.traders])

    await until(in_mempool, "the funding")
    for trader in cast.traders:
        assert "funding-signature-wanted" in await events(trader, trade)
    await cast.bitcoind.mine(2)
    await until(lambda: both("funded"), "the escrow")

    async def may_pay() -> bool:
        return bool((await cast.buyer.api.trade(trade)).peer_details)

    await until(may_pay, "the seller's details")
    await does(cast.buyer, "trade", "pay", trade)

    async def paid() -> bool:
        return (await cast.seller.api.trade(trade)).phase == "paid"

    await until(paid, "the payment to be declared")
    # The escrow's keys are the node's: nobody is asked to sign the payout.
    await does(cast.seller, "trade", "release", trade, "--yes")
    await until(lambda: both("settling"), "the payout")
    await cast.bitcoind.mine(2)
    await until(lambda: both("completed"), "the end")
    gained = await cast.holds(cast.buyer) - before[0]
    lost = before[1] - await cast.holds(cast.seller)
    assert AMOUNT - 5_000 < gained <= AMOUNT
    assert AMOUNT <= lost < AMOUNT + 5_000


async def test_a_buyer_takes_its_coins_back_from_the_device_when_the_seller_withholds(
    cast: WatchedCast, tmp_path: Path
) -> None:
    before = await cast.holds(cast.buyer)
    trade = await begin(cast, cast.seller, cast.buyer)
    await hand_in(cast, cast.buyer, trade, tmp_path)

    async def signed() -> bool:
        return (await cast.buyer.api.trade(trade)).phase == "funding"

    await until(signed, "the buyer's signatures to be out")
    # The seller's device stays in its drawer. Twelve blocks later the buyer's node asks for the way back.
    await cast.bitcoind.mine(12)
    await hand_in(cast, cast.buyer, trade, tmp_path, "reclaiming")
    assert "reclaim-signature-wanted" in await events(cast.buyer, trade)

    async def sent() -> bool:
        return len(await cast.bitcoind.rpc("getrawmempool")) == 1

    await until(sent, "the reclaim in the mempool")
    await cast.bitcoind.mine(2)

    async def ended() -> bool:
        return all([(await t.api.trade(trade)).phase == "cancelled" for t in cast.traders])

    await until(ended, "the end of the trade")
    assert before - 3_000 < await cast.holds(cast.buyer) < before
    for trader in cast.traders:
        assert (await trader.api.balance()).reserved_sats == 0


async def test_what_is_no_answer_is_refused_in_one_line_and_the_right_one_still_counts(
    cast: WatchedCast, tmp_path: Path
) -> None:
    trade = await begin(cast, cast.seller, cast.buyer)

    async def waits() -> bool:
        return "p2pnode trade psbt" in (await cast.buyer.api.trade(trade)).hint

    await until(waits, "being asked")
    file = tmp_path / "funding.psbt"
    await does(cast.buyer, "trade", "psbt", trade, "--out", str(file))
    foreign = tmp_path / "foreign.psbt"
    address = await cast.bitcoind.rpc("getnewaddress", wallet="buyer")
    made = await cast.bitcoind.rpc("walletcreatefundedpsbt", [], [{address: "0.001"}], wallet="buyer")
    foreign.write_text(made["psbt"])
    garbage = tmp_path / "garbage.psbt"
    garbage.write_text("not a psbt")
    for wrong, says in (
        (file, "holds no signature for the coin"),
        (foreign, "Stale PSBT"),
        (garbage, "not a PSBT"),
        (tmp_path / "nowhere.psbt", "can't be read"),
    ):
        done = await typed(cast.buyer, "trade", "psbt", trade, "--import", str(wrong))
        assert done.returncode != 0
        (line,) = done.stderr.splitlines()
        assert says in line, line
    signed = await cast.sign(cast.buyer, file)
    await does(cast.buyer, "trade", "psbt", trade, "--import", str(signed))

    async def goes_on() -> bool:
        return (await cast.buyer.api.trade(trade)).phase == "funding"

    await until(goes_on, "the trade to go on")
    await does(cast.buyer, "trade", "cancel", trade)
