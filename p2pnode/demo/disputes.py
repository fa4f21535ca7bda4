"""`p2pnode demo --dispute`: trades that go wrong, between the same real nodes, each to its end on the chain.

One trade after the other, each with fresh offer, escrow and keys: a silent seller, a buyer that lied, a split, a
settlement in the middle of a dispute, a trade that both cancel, a case that the arbiter declines, an arbiter that
vanishes. After each, wallets and chain must agree to the satoshi, and the arbiter must have exactly the fee that the
contract fixes. What is said is counted from the parties' own records.
"""

from __future__ import annotations

import time
import zlib
from base64 import b64decode
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from msgspec import Struct

from escrow.coins import txid_text
from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon, DemoFailed
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.onchain import NotAsAgreed, read_escrow, read_transaction
from p2pnode.demo.play import AMOUNT, CURRENCY, DEPOSIT, METHOD, PRICE, Play, Script
from p2pnode.demo.steps import Steps, StepTime
from protocol.bundle import verify_bundle

PURSE: Final = 20_000_000
FEE_PPM: Final = 10_000
RESPONSE_BLOCKS: Final = 6
BACKUP_RESPONSE_BLOCKS: Final = 20
DELAY_BLOCKS: Final = 24
"""Short, because each block has to be mined; a real offer has 144 and 1008."""
MOST_MESSAGES: Final = 6
_WHOLE: Final = 1_000_000
_OPENER: Final = frozenset({"disputed", "claim", "proposal", "agreed", "accepted", "declined", "extended", "ruling"})
_OTHER: Final = frozenset({"accepted", "declined", "extended", "ruling"})
"""What counts as a message of the dispute, in the record of its opener and of the other; the rest is evidence."""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _picture() -> bytes:
    """A receipt of 200 KB: a grey PNG, not compressed, so that it travels in parts."""
    rows = b"".join(b"\0" + bytes((x * y) % 251 for x in range(400)) for y in range(500))
    header = (400).to_bytes(4, "big") + (500).to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    parts = (b"IHDR", header), (b"tEXt", b"Software\0a scanner"), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


_PICTURE: Final = _picture()


class Scene(Struct, frozen=True):
    """How one trade ended. Satoshis are what the payout gives.

    `messages` are those beyond evidence, `blocks` those mined between opening and payout, `ms` the time between them
    without mining.
    """

    name: str
    outcome: str
    buyer_sats: int
    seller_sats: int
    arbiter_sats: int
    fee_agreed_sats: int
    miners_sats: int
    branch: str
    signed_by: tuple[str, ...]
    messages: int
    blocks: int
    ms: float
    payout_txid: str


class DisputeReport(Struct, frozen=True):
    """All scenes; `value_conserved`: wallets and chain agreed to the satoshi after each."""

    network: str
    amount_sats: int
    deposit_sats: int
    scenes: tuple[Scene, ...]
    value_conserved: bool
    most_messages: int
    steps: tuple[StepTime, ...]
    folder: str


class DisputePlay(Play):
    """All scenes on one stage."""

    def __init__(self, cast: Cast, steps: Steps) -> None:
        super().__init__(cast, Script(purse=PURSE), steps)
        self._scenes: list[Scene] = []
        self._mining: list[tuple[float, float]] = []
        self._left: dict[str, int] = {}
        """By name: the satoshis of a node that can't be asked any more; it gets nothing after that."""

    async def disputes(self) -> DisputeReport:
        """Everything. Raises DemoFailed, NotAsAgreed."""
        await self._set_up()
        with self._steps.step("arbiters announce themselves"):
            for arbiter, blocks in zip(self._cast.arbiters, (RESPONSE_BLOCKS, BACKUP_RESPONSE_BLOCKS), strict=True):
                terms = s.AnnounceRequest(fee_ppm=FEE_PPM, response_blocks=blocks, policy="Proof decides.")
                await arbiter.ask(arbiter.api.announce(terms), "could not announce itself")
            chosen = tuple(a.persona for a in self._cast.arbiters)
            for trader in self._cast.traders:
                await self._poll(trader, partial(self._knows, trader, chosen), "did not find the arbiters")
        async with Mempool(self._cast.bitcoind) as mempool:
            self._mempool = mempool
            scenes: tuple[tuple[str, Callable[[str], Awaitable[_Curtain]]], ...] = (
                ("buyer paid, seller silent", self._silent_seller),
                ("seller right, buyer's deposit forfeited", self._seller_right),
                ("split 70/30", self._split),
                ("settlement during the dispute", self._settled_in_dispute),
                ("mutual cancel", self._cancelled),
                ("case declined, backup rules", self._declined),
                ("arbiter vanished, backup rules", self._vanished),
            )
            for name, scene in scenes:
                with self._steps.step(name) as step:
                    done = await self._perform_scene(name, scene)
                    step.note = f"{done.outcome}; {done.messages} messages"
                    self._scenes.append(done)
        return DisputeReport(
            network="regtest",
            amount_sats=AMOUNT,
            deposit_sats=AMOUNT * DEPOSIT // _WHOLE,
            scenes=tuple(self._scenes),
            value_conserved=True,
            most_messages=max(scene.messages for scene in self._scenes),
            steps=tuple(self._steps.done),
            folder=str(self._cast.folder),
        )

    # --- scenes ---------------------------------------------------------------------------------------------------

    async def _silent_seller(self, trade: str) -> _Curtain:
        """Nobody answers the arbiter, so it waits until the time for evidence is over."""
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid on Monday, the receipt is here", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        await self._show_receipt(trade)
        await self._mine(RESPONSE_BLOCKS // 2)
        await self._case(self._cast.arbiter, trade, lambda c: c.heard)
        await self._rule(self._cast.arbiter, trade, _WHOLE, "payment-proved")
        return opened

    async def _seller_right(self, trade: str) -> _Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.seller, trade, "no money has come", 0)
        await self._answer(self._cast.buyer, trade, "it must be on its way", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        await self._rule(self._cast.arbiter, trade, 0, "payment-not-proved", forfeit=500_000)
        return opened

    async def _split(self, trade: str) -> _Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "he says that something is missing", _WHOLE)
        await self._answer(self._cast.seller, trade, "30% is missing", 700_000)
        await self._accept(self._cast.arbiter, trade)
        await self._rule(self._cast.arbiter, trade, 700_000, "wrong-amount")
        return opened

    async def _settled_in_dispute(self, trade: str) -> _Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        deposit = AMOUNT * DEPOSIT // _WHOLE
        await self._agree(self._cast.seller, trade, d.SettleRequest(buyer_due_sats=AMOUNT * 4 // 5 + deposit))
        return opened

    async def _cancelled(self, trade: str) -> _Curtain:
        opened = _Curtain(self._cast.seller, time.perf_counter(), await self._height())
        await self._agree(self._cast.seller, trade, d.SettleRequest())
        return opened

    async def _declined(self, trade: str) -> _Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        arbiter = self._cast.arbiter
        await self._case(arbiter, trade, lambda c: c.phase == "queued")
        await arbiter.ask(arbiter.api.case_decline(trade, "I know the buyer"), "could not decline")
        return await self._by_backup(trade, opened)

    async def _vanished(self, trade: str) -> _Curtain:
        """Last of all: the arbiter's process is ended and does not come back."""
        await self._pay(trade)
        arbiter = self._cast.arbiter
        self._left[arbiter.name] = _sats(await arbiter.ask(arbiter.api.balance(), "does not tell its balance"))
        arbiter.terminate()
        await arbiter.ended_well()
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        return await self._by_backup(trade, opened)

    async def _by_backup(self, trade: str, opened: _Curtain) -> _Curtain:
        """Both nodes pass the arbiter over by themselves; the backup rules; the escrow grows old enough."""
        await self._mine(RESPONSE_BLOCKS + 1)
        for trader in self._cast.traders:
            await self._dispute(trader, trade, lambda v: v.bench == "backup")
        await self._answer(self._cast.seller, trade, "nothing came", 0)
        await self._case(self._cast.backup, trade, lambda c: "rule" in c.actions)
        await self._rule(self._cast.backup, trade, _WHOLE, "payment-proved")
        view = await self._dispute(self._cast.buyer, trade, lambda v: _ruled(v.backup))
        opens = next(x for x in view.deadlines if x.name == "backup")
        await self._mine((opens.height or 0) - 1 - await self._height())
        return opened

    # --- what scenes are made of ----------------------------------------------------------------------------------

    async def _perform_scene(self, name: str, scene: Callable[[str], Awaitable[_Curtain]]) -> Scene:
        before = await self._worth()
        trade = await self._begin()
        opened = await scene(trade)
        return await self._judge(name, trade, opened, before)

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

    async def _open(self, who: Daemon, trade: str, text: str, share: int) -> _Curtain:
        opened = _Curtain(who, time.perf_counter(), await self._height())
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

    # --- judging --------------------------------------------------------------------------------------------------

    async def _judge(self, name: str, trade: str, opened: _Curtain, before: int) -> Scene:
        """Wait for the payout, bury it, and compare what everybody has with what the chain says."""
        seller, buyer = self._cast.traders
        view = await self._until(buyer, trade, lambda t: t.escrow.payout_txid is not None, "has no payout")
        arrived = await self._in_mempool(buyer, self._mempool, view.escrow.payout_txid, "payout")
        height = await self._height()
        await self._mine(view.confirmations_required)
        for trader in (seller, buyer):
            await self._until(trader, trade, lambda t: t.phase == "completed", "is not done")
        dispute = await buyer.ask(buyer.api.dispute(trade), "does not show the dispute")
        funding = await read_transaction(self._cast.bitcoind, view.escrow.funding_txid or "")
        payout = await read_transaction(self._cast.bitcoind, view.escrow.payout_txid or "")
        escrow = read_escrow(funding, view.escrow.vout or 0, payout)
        lost = funding.fee_sats + payout.fee_sats
        after = await self._settles(before - lost)
        if after != before - lost:
            raise NotAsAgreed(f"{name}: {before - after:,} sat are gone, and the miners got {lost:,}")
        ruling = _ruling(dispute)
        fee = AMOUNT * FEE_PPM // _WHOLE if ruling is not None else 0
        if ruling is not None and (ruling.payout_txid != payout.txid or ruling.arbiter_sats != fee):
            raise NotAsAgreed(f"{name}: the payout is not what was ruled, or its fee is not the contract's")
        proposal = next((p for p in dispute.proposals if p.txid == payout.txid), None)
        gets = ruling or proposal
        if gets is None:
            raise NotAsAgreed(f"{name}: the payout is neither ruled nor agreed on")
        await self._verify(trade, opened.opener, ruling)
        return Scene(
            name=name,
            outcome=dispute.outcome,
            buyer_sats=gets.buyer_sats,
            seller_sats=gets.seller_sats,
            arbiter_sats=ruling.arbiter_sats if ruling is not None else 0,
            fee_agreed_sats=fee,
            miners_sats=lost,
            branch=escrow.branch,
            signed_by=escrow.signed_by,
            messages=await self._messages(trade, opened.opener),
            blocks=height - opened.height,
            ms=round((arrived - opened.at) * 1000 - self._mined(opened), 1),
            payout_txid=payout.txid,
        )

    async def _verify(self, trade: str, opener: Daemon, ruling: d.RulingView | None) -> None:
        """What the opener exports must verify without any node, and show nobody in the wrong."""
        exported = await opener.ask(opener.api.dispute_bundle(trade), "exports no bundle")
        verdict = verify_bundle(b64decode(exported.bundle), EscrowChecks())
        if verdict.findings:
            raise DemoFailed(f"the bundle says that somebody {verdict.findings[0].what}")
        if [txid_text(seen.payout_txid) for seen in verdict.rulings] != ([ruling.payout_txid] if ruling else []):
            raise DemoFailed("the bundle does not hold the ruling that was paid out")

    async def _messages(self, trade: str, opener: Daemon) -> int:
        """Messages beyond evidence, from the records of both. Raises DemoFailed when there are too many."""
        own = await opener.ask(opener.api.dispute(trade), "does not show the dispute")
        other = await self._other(opener).ask(self._other(opener).api.dispute(trade), "does not show the dispute")
        answers = ("disputed", "claim")
        mine = [x for x in own.timeline if x.kind in _OPENER and not (x.by == "peer" and x.kind in answers)]
        theirs = [x for x in other.timeline if x.kind in _OTHER]
        count = len(mine) + len(theirs)
        if count > MOST_MESSAGES:
            raise DemoFailed(f"the dispute took {count} messages; the limit is {MOST_MESSAGES}")
        return count

    async def _worth(self) -> int:
        """Satoshis of everybody together."""
        nodes = [n for n in (*self._cast.traders, *self._cast.arbiters) if n.name not in self._left]
        views = [await n.ask(n.api.balance(), "does not tell its balance") for n in nodes]
        return sum(map(_sats, views)) + sum(self._left.values())

    async def _settles(self, expected: int) -> int:
        """What everybody has once the wallets have seen the last block; coins come without an event."""

        async def look() -> int | None:
            return found if (found := await self._worth()) == expected else None

        try:
            return await self._poll(self._cast.buyer, look, "has not settled")
        except DemoFailed:
            return await self._worth()

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

    def _mined(self, opened: _Curtain) -> float:
        """Milliseconds of mining since then."""
        return sum((end - max(began, opened.at)) * 1000 for began, end in self._mining if end > opened.at)

    async def _height(self) -> int:
        return int(await self._cast.bitcoind.rpc("getblockcount"))


class _Curtain(Struct, frozen=True):
    """Who opened, when, and at which block."""

    opener: Daemon
    at: float
    height: int


def _sats(view: s.BalanceView) -> int:
    return view.confirmed_sats + view.pending_sats


def _ruled(arbiter: d.ArbiterStatusView | None) -> bool:
    return arbiter is not None and arbiter.ruling is not None


def _ruling(view: d.DisputeView) -> d.RulingView | None:
    found = [a.ruling for a in (view.arbiter, view.backup) if a is not None and a.ruling is not None]
    return found[0] if found else None
