"""What disputes are made of, as a demo's users do it through the API of their nodes: trade, pay, open, answer, rule."""

from __future__ import annotations

import time
import zlib
from base64 import b64decode
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from p2pnode.api import dispute_schema as d
from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.play import AMOUNT, CURRENCY, METHOD, PRICE, Play, Script
from p2pnode.demo.steps import Steps

PURSE: Final = 20_000_000
DELAY_BLOCKS: Final = 24
"""Short, because each block has to be mined; a real offer has 1008."""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _picture() -> bytes:
    """A receipt of 200 KB: a grey PNG, not compressed, so that it travels in parts."""
    rows = b"".join(b"\0" + bytes((x * y) % 251 for x in range(400)) for y in range(500))
    header = (400).to_bytes(4, "big") + (500).to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    parts = (b"IHDR", header), (b"tEXt", b"Software\0a scanner"), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


_PICTURE: Final = _picture()


class Curtain(Struct, frozen=True):
    """Who opened, when, and at which block."""

    opener: Daemon
    at: float
    height: int


class Acts(Play):
    """Scenes are put together from these."""

    def __init__(self, cast: Cast, steps: Steps) -> None:
        super().__init__(cast, Script(purse=PURSE), steps)
        self._mining: list[tuple[float, float]] = []
        self._mempool: Mempool
        """Set once there is one to watch."""

    async def _begin(self) -> str:
        """A funded trade."""
        seller, buyer = self._cast.traders
        draft = s.OfferDraft(
            side="sell",
            amount_min_sats=AMOUNT,
            amount_max_sats=AMOUNT,
            currency=CURRENCY,
            methods=(s.MethodDetails(method=METHOD, details={"holder": "Sally", "iban": "DE02120300000000202051"}),),
            price=PRICE,
            arbiters=tuple(a.persona for a in self._cast.arbiters),
            escrow_types=(2,),
            backup_delay_blocks=DELAY_BLOCKS,
        )
        offer = await seller.ask(seller.api.offer_create(draft), "could not publish its offer")

        async def look() -> s.OfferView | None:
            wanted = s.OfferFilter(side="sell", currency=CURRENCY, method=METHOD, amount_sats=AMOUNT)
            return next((o for o in (await buyer.api.offers(wanted)).offers if o.id == offer.id), None)

        found = await self._poll(buyer, look, "did not find the offer")
        details = {"holder": "Bob", "iban": "FR7630006000011234567890189"}
        take = s.TakeRequest(method=METHOD, details=details, sequence=found.sequence)
        taken = await buyer.ask(buyer.api.offer_take(offer.id, take), "could not take the offer")
        signed = await self._until(buyer, taken.id, lambda t: t.escrow.funding_txid is not None, "has no contract")
        await self._in_mempool(seller, self._mempool, signed.escrow.funding_txid, "funding")
        await self._mine(signed.confirmations_required)
        await self._until(seller, taken.id, lambda t: t.phase == "funded", "does not see the escrow")
        await self._until(buyer, taken.id, lambda t: t.phase == "funded" and bool(t.peer_details), "has no details")
        return taken.id

    async def _pay(self, trade: str) -> None:
        seller, buyer = self._cast.traders
        await buyer.ask(buyer.api.trade_pay(trade), "could not declare the payment")
        await self._until(seller, trade, lambda t: t.phase == "paid", "did not hear of the payment")
        await self._until(buyer, trade, lambda t: t.phase == "paid", "did not sign the payout")

    async def _open(self, who: Daemon, trade: str, text: str, share: int) -> Curtain:
        opened = Curtain(who, time.perf_counter(), await self._height())
        await who.ask(who.api.dispute_open(trade, text, share), "could not open a dispute")
        other = self._other(who)
        await self._dispute(other, trade, lambda v: v.peer_claim is not None)
        return opened

    async def _answer(self, who: Daemon, trade: str, text: str, share: int) -> None:
        await who.ask(who.api.dispute_open(trade, text, share), "could not answer")

    async def _accept(self, arbiter: Daemon, trade: str) -> None:
        await self._case(arbiter, trade, lambda c: "accept" in c.actions)
        await arbiter.ask(arbiter.api.case_accept(trade), "could not accept the case")
        for trader in self._cast.traders:
            await self._dispute(trader, trade, lambda v: v.arbiter is not None and v.arbiter.answer == "accepted")

    async def _rule(self, arbiter: Daemon, trade: str, share: int, reason: d.ReasonName, *, forfeit: int = 0) -> None:
        await self._case(arbiter, trade, lambda c: "rule" in c.actions)
        quote = await arbiter.ask(
            arbiter.api.case_quote(trade, d.QuoteRequest(buyer_share_ppm=share, forfeit_ppm=forfeit)), "gives no quote"
        )
        request = d.RuleRequest(
            buyer_share_ppm=share,
            forfeit_ppm=forfeit,
            reason=reason,
            text="as the record shows",
            buyer_sats=quote.buyer_sats,
            seller_sats=quote.seller_sats,
        )
        await arbiter.ask(arbiter.api.case_rule(trade, request), "could not rule")

    async def _show_receipt(self, trade: str) -> None:
        """A file as evidence; the arbiter's node fetches it in parts."""
        buyer, arbiter = self._cast.buyer, self._cast.arbiter
        kept = await buyer.ask(buyer.api.file_upload("receipt.png", _PICTURE), "keeps no file")
        shown = (d.FileRef(content=kept.content, name=kept.name),)
        await buyer.ask(buyer.api.dispute_evidence(trade, "the receipt", shown), "shows no evidence")

        async def look() -> bool | None:
            case = await arbiter.api.case(trade)
            return True if any(a.here for line in case.timeline for a in line.attachments) else None

        await self._poll(arbiter, look, "does not get the file")
        data = await arbiter.ask(arbiter.api.file(kept.content), "has no file")
        if b64decode(data.data) != _PICTURE:
            raise arbiter.failure("has another file than was shown")

    async def _agree(self, proposer: Daemon, trade: str, request: d.SettleRequest) -> None:
        other = self._other(proposer)
        await proposer.ask(proposer.api.trade_settle(trade, request), "could not propose")
        view = await self._dispute(other, trade, lambda v: any(p.by == "peer" for p in v.proposals))
        (proposal,) = (p for p in view.proposals if p.by == "peer")
        await other.ask(other.api.trade_accept(trade, proposal.txid), "could not accept the proposal")

    # --- looking --------------------------------------------------------------------------------------------------

    def _other(self, trader: Daemon) -> Daemon:
        seller, buyer = self._cast.traders
        return seller if trader is buyer else buyer

    async def _dispute(self, daemon: Daemon, trade: str, holds: Callable[[d.DisputeView], bool]) -> d.DisputeView:
        async def look() -> d.DisputeView | None:
            view = await daemon.api.dispute(trade)
            return view if holds(view) else None

        return await self._poll(daemon, look, "does not come on with the dispute")

    async def _case(self, daemon: Daemon, trade: str, holds: Callable[[d.CaseView], bool]) -> d.CaseView:
        async def look() -> d.CaseView | None:
            found = [c for c in (await daemon.api.cases()).cases if c.id == trade]
            return found[0] if found and holds(found[0]) else None

        return await self._poll(daemon, look, "does not come on with the case")

    async def _mine(self, blocks: int) -> None:
        if blocks <= 0:
            return
        began = time.perf_counter()
        with self._steps.mining():
            await self._cast.bitcoind.mine(blocks)
        self._mining.append((began, time.perf_counter()))

    def _mined(self, opened: Curtain) -> float:
        """Milliseconds of mining since then."""
        return sum((end - max(began, opened.at)) * 1000 for began, end in self._mining if end > opened.at)

    async def _height(self) -> int:
        return int(await self._cast.bitcoind.rpc("getblockcount"))
