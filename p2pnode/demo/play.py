"""The trade, from an empty chain to a confirmed payout. Everything is asked for through the nodes' own APIs.

Waits follow the event feed: look, wait for the node's next event, look again. What has no event (nodes getting to know
each other, records spreading) is looked at again after a short pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Literal, TypeVar

from msgspec import Struct

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon, together
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.steps import Steps

AMOUNT: Final = 1_000_000
"""Satoshis traded."""
PURSE: Final = 5_000_000
"""Satoshis that each trader starts with, in one coin."""
CURRENCY: Final = "EUR"
PRICE: Final = "85000"
METHOD: Final = "sepa-instant"
DEPOSIT: Final = 150_000
"""Each deposit, in ppm of the amount."""
WAIT_SECONDS: Final = 20.0
_PAUSE: Final = 0.02
_LOST: Final = "does not show the trade"

T = TypeVar("T")


class Script(Struct, frozen=True):
    """Which trade to play."""

    escrow_type: Literal[1, 2] = 2
    single: bool = False
    """Zero deposits: the seller funds alone."""
    purse: int = PURSE
    """Satoshis that each trader starts with."""

    @property
    def deposit_ppm(self) -> int:
        """The deposit of each party."""
        return 0 if self.single else DEPOSIT


class Bystander(Struct, frozen=True):
    """What an arbiter's node knows of trades: trade messages that it got or sent, trades, channels to other nodes."""

    messages: int
    trades: int
    sessions: int


class Played(Struct, frozen=True):
    """How it came out: both traders' views of the trade, and their coins before and after."""

    offer: s.OfferView
    seller: s.TradeView
    buyer: s.TradeView
    before: dict[str, s.BalanceView]
    after: dict[str, s.BalanceView]
    arbiters: dict[str, Bystander]
    take_to_mempool_ms: float


class Play:
    """One performance."""

    def __init__(self, cast: Cast, script: Script, steps: Steps) -> None:
        self._cast = cast
        self._script = script
        self._steps = steps

    async def perform(self) -> Played:
        """All of it. Raises DemoFailed."""
        cast = self._cast
        await self._set_up()
        async with Mempool(cast.bitcoind) as mempool:
            before = await self._balances()
            offer = await self._publish()
            found = await self._discover(offer)
            trade, latency = await self._take(found, mempool)
            await self._confirm_escrow(trade)
            await self._pay_and_release(trade, mempool)
            seller, buyer = await self._settle(trade)
            after = await self._balances()
        return Played(
            offer=found,
            seller=seller,
            buyer=buyer,
            before=before,
            after=after,
            arbiters={a.name: await self._seen_by(a) for a in cast.arbiters},
            take_to_mempool_ms=latency,
        )

    # --- acts -----------------------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        cast, steps = self._cast, self._steps
        with steps.step("start bitcoind and two bootstrap nodes"):
            await cast.start_chain_and_seeds()
        with steps.step("start two arbiters, a seller and a buyer; mine the first coins"):
            await together(cast.start_others(), cast.bitcoind.ensure_coins(len(cast.traders)))
        with steps.step("enter the network through the bootstrap nodes") as step:
            await together(*(self._entered(daemon) for daemon in cast.daemons))
            step.note = f"{len(cast.daemons)} nodes"
        with steps.step("fund the wallets") as step:
            for trader in cast.traders:
                address = (await trader.ask(trader.api.address("demo"), "gives no address")).address
                await cast.bitcoind.fund(address, self._script.purse, confirmations=0)
            with steps.mining():
                await cast.bitcoind.mine()
            await together(*(self._funded(trader) for trader in cast.traders))
            step.note = f"{self._script.purse:,} sat each"

    async def _publish(self) -> s.OfferView:
        cast, script = self._cast, self._script
        with self._steps.step("arbiters announce themselves"):
            terms = s.AnnounceRequest(fee_ppm=10_000, fee_floor_sats=1_000, policy="Proof of payment decides.")
            await together(*(a.ask(a.api.announce(terms), "could not announce itself") for a in cast.arbiters))
        chosen = tuple(arbiter.persona for arbiter in cast.arbiters)[: script.escrow_type]
        with self._steps.step("seller finds the arbiters through the DHT"):
            await self._poll(cast.seller, lambda: self._knows(cast.seller, chosen), "did not find the arbiters")
        with self._steps.step("seller publishes a sell offer") as step:
            draft = s.OfferDraft(
                side="sell",
                amount_min_sats=AMOUNT,
                amount_max_sats=AMOUNT,
                currency=CURRENCY,
                methods=(_details("Sally Seller", "DE02120300000000202051"),),
                price=PRICE,
                buyer_deposit_ppm=script.deposit_ppm,
                seller_deposit_ppm=script.deposit_ppm,
                arbiters=chosen,
                escrow_types=(script.escrow_type,),
            )
            offer = await cast.seller.ask(cast.seller.api.offer_create(draft), "could not publish its offer")
            step.note = f"stored on {offer.stored_on} nodes"
        return offer

    async def _discover(self, offer: s.OfferView) -> s.OfferView:
        buyer = self._cast.buyer
        wanted = s.OfferFilter(side="sell", currency=CURRENCY, method=METHOD, amount_sats=AMOUNT)

        async def look() -> s.OfferView | None:
            return next((o for o in (await buyer.api.offers(wanted)).offers if o.id == offer.id), None)

        with self._steps.step("buyer finds the offer through the DHT") as step:
            found = await self._poll(buyer, look, "did not find the offer")
            step.note = f"{found.side} {found.amount_max_sats:,} sat at {found.price} {found.currency}"
        return found

    async def _take(self, offer: s.OfferView, mempool: Mempool) -> tuple[str, float]:
        buyer = self._cast.buyer
        with self._steps.step("buyer takes it; both sign; the escrow is funded") as step:
            began = time.perf_counter()
            details = _details("Bob Buyer", "FR7630006000011234567890189").details
            take = s.TakeRequest(method=METHOD, details=details, sequence=offer.sequence)
            taken = await buyer.ask(buyer.api.offer_take(offer.id, take), "could not take the offer")
            signed = await self._until(buyer, taken.id, lambda t: t.escrow.funding_txid is not None, "has no contract")
            arrived = await self._in_mempool(self._cast.seller, mempool, signed.escrow.funding_txid, "funding")
            latency = (arrived - began) * 1000
            step.note = f"in the mempool after {latency:,.0f} ms"
        return taken.id, latency

    async def _confirm_escrow(self, trade: str) -> None:
        seller, buyer = self._cast.traders
        with self._steps.step("the escrow is confirmed; the seller's payment details are opened") as step:
            required = (await buyer.ask(buyer.api.trade(trade), _LOST)).confirmations_required
            with self._steps.mining():
                await self._cast.bitcoind.mine(required)
            await self._until(seller, trade, lambda t: t.phase == "funded", "does not see the escrow")
            view = await self._until(
                buyer, trade, lambda t: t.phase == "funded" and bool(t.peer_details), "has no payment details"
            )
            step.note = f"{view.peer_details.get('iban', '')}, {view.volume} {view.currency}"

    async def _pay_and_release(self, trade: str, mempool: Mempool) -> None:
        seller, buyer = self._cast.traders
        with self._steps.step("buyer declares the payment"):
            await buyer.ask(buyer.api.trade_pay(trade, "paid by instant transfer"), "could not declare the payment")
            await self._until(seller, trade, lambda t: t.phase == "paid", "did not hear of the payment")
        with self._steps.step("seller releases; the payout is broadcast"):
            await seller.ask(seller.api.trade_release(trade), "could not release")
            view = await self._until(seller, trade, lambda t: t.escrow.payout_txid is not None, "has no payout")
            await self._in_mempool(seller, mempool, view.escrow.payout_txid, "payout")

    async def _settle(self, trade: str) -> tuple[s.TradeView, s.TradeView]:
        seller, buyer = self._cast.traders
        with self._steps.step("the payout is confirmed; both trades are completed"):
            required = (await buyer.ask(buyer.api.trade(trade), _LOST)).confirmations_required
            with self._steps.mining():
                await self._cast.bitcoind.mine(required)
            for trader in (seller, buyer):
                await self._until(trader, trade, lambda v: v.phase == "completed", "is not done")
            # Acks and coins come without an event.
            ends = [await self._poll(t, partial(_settled, t, trade), "has not settled") for t in (seller, buyer)]
        return ends[0], ends[1]

    # --- looking and waiting --------------------------------------------------------------------------------------

    async def _entered(self, daemon: Daemon) -> None:
        others = len(self._cast.seeds) - (daemon in self._cast.seeds)

        async def look() -> bool | None:
            view = (await daemon.api.info()).dht
            return True if view.peers >= others else None

        await self._poll(daemon, look, "does not reach the bootstrap nodes")

    async def _funded(self, trader: Daemon) -> None:
        async def look() -> bool | None:
            return True if (await trader.api.balance()).spendable_sats >= self._script.purse else None

        await self._poll(trader, look, "does not see its coins")

    async def _knows(self, daemon: Daemon, arbiters: tuple[str, ...]) -> bool | None:
        known = {a.persona for a in (await daemon.api.arbiters(CURRENCY, METHOD)).arbiters}
        return True if known.issuperset(arbiters) else None

    async def _seen_by(self, arbiter: Daemon) -> Bystander:
        trades = (await arbiter.ask(arbiter.api.trades(), "does not list its trades")).trades
        info = await arbiter.ask(arbiter.api.info(), "does not answer")
        return Bystander(sum(t.messages_received + t.messages_sent for t in trades), len(trades), info.sessions)

    async def _balances(self) -> dict[str, s.BalanceView]:
        return {t.name: await t.ask(t.api.balance(), "does not tell its balance") for t in self._cast.traders}

    async def _until(
        self, daemon: Daemon, trade: str, holds: Callable[[s.TradeView], bool], otherwise: str
    ) -> s.TradeView:
        """The trade as soon as `holds` is true of it, looked at after each event of the node."""

        async def look() -> s.TradeView | None:
            view = await daemon.api.trade(trade)
            if holds(view):
                return view
            if not view.open:
                raise daemon.failure(f"ended the trade as {view.phase} ({view.ending or view.hint})")
            return None

        cursor = (await daemon.ask(daemon.api.events(), otherwise)).next
        deadline = time.monotonic() + WAIT_SECONDS
        while (view := await daemon.ask(look(), otherwise)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise daemon.failure(f"{otherwise} within {WAIT_SECONDS:.0f} s")
            page = await daemon.ask(daemon.api.events(cursor, wait=1), otherwise)
            cursor = page.next
        return view

    async def _poll(self, daemon: Daemon, look: Callable[[], Awaitable[T | None]], otherwise: str) -> T:
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := await daemon.ask(look(), otherwise)) is None:
            if time.monotonic() > deadline:
                raise daemon.failure(f"{otherwise} within {WAIT_SECONDS:.0f} s")
            await asyncio.sleep(_PAUSE)
        return found

    async def _in_mempool(self, daemon: Daemon, mempool: Mempool, txid: str | None, what: str) -> float:
        if txid is None:
            raise daemon.failure(f"names no {what} transaction")
        try:
            return await mempool.wait(txid, WAIT_SECONDS)
        except TimeoutError:
            raise daemon.failure(f"did not broadcast the {what} within {WAIT_SECONDS:.0f} s") from None


def _details(holder: str, iban: str) -> s.MethodDetails:
    return s.MethodDetails(method=METHOD, details={"holder": holder, "iban": iban})


async def _settled(trader: Daemon, trade: str) -> s.TradeView | None:
    """The trade, once its messages are acknowledged and its coins are in the wallet."""
    view, balance = await asyncio.gather(trader.api.trade(trade), trader.api.balance())
    under_way = view.unacknowledged or balance.pending_sats or balance.reserved_sats
    return None if under_way else view
