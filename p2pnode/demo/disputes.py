"""`p2pnode demo --dispute`: trades that go wrong, between the same real nodes, each to its end on the chain.

One trade after the other, each with fresh offer, escrow and keys: a silent seller, a buyer that lied, a split, a
settlement in the middle of a dispute, a trade that both cancel, a case that the arbiter declines, an arbiter that
vanishes. After each, wallets and chain must agree to the satoshi, and the arbiter must have exactly the fee that the
contract fixes. What is said is counted from the parties' own records.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from msgspec import Struct

from escrow.coins import txid_text
from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.api import schema as s
from p2pnode.demo.acts import Acts, Curtain
from p2pnode.demo.cast import Cast, Daemon, DemoFailed
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.onchain import NotAsAgreed, read_escrow, read_transaction
from p2pnode.demo.play import AMOUNT, DEPOSIT
from p2pnode.demo.steps import Steps, StepTime
from protocol.bundle import verify_bundle

FEE_PPM: Final = 10_000
RESPONSE_BLOCKS: Final = 6
BACKUP_RESPONSE_BLOCKS: Final = 20
"""Short, because each block has to be mined; a real arbiter promises 144."""
MOST_MESSAGES: Final = 6
_WHOLE: Final = 1_000_000
_OPENER: Final = frozenset({"disputed", "claim", "proposal", "agreed", "accepted", "declined", "extended", "ruling"})
_OTHER: Final = frozenset({"accepted", "declined", "extended", "ruling"})
"""What counts as a message of the dispute, in the record of its opener and of the other; the rest is evidence."""


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


class DisputePlay(Acts):
    """All scenes on one stage."""

    def __init__(self, cast: Cast, steps: Steps) -> None:
        super().__init__(cast, steps)
        self._scenes: list[Scene] = []
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
            scenes: tuple[tuple[str, Callable[[str], Awaitable[Curtain]]], ...] = (
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

    async def _silent_seller(self, trade: str) -> Curtain:
        """Nobody answers the arbiter, so it waits until the time for evidence is over."""
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid on Monday, the receipt is here", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        await self._show_receipt(trade)
        await self._mine(RESPONSE_BLOCKS // 2)
        await self._case(self._cast.arbiter, trade, lambda c: c.heard)
        await self._rule(self._cast.arbiter, trade, _WHOLE, "payment-proved")
        return opened

    async def _seller_right(self, trade: str) -> Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.seller, trade, "no money has come", 0)
        await self._answer(self._cast.buyer, trade, "it must be on its way", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        await self._rule(self._cast.arbiter, trade, 0, "payment-not-proved", forfeit=500_000)
        return opened

    async def _split(self, trade: str) -> Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "he says that something is missing", _WHOLE)
        await self._answer(self._cast.seller, trade, "30% is missing", 700_000)
        await self._accept(self._cast.arbiter, trade)
        await self._rule(self._cast.arbiter, trade, 700_000, "wrong-amount")
        return opened

    async def _settled_in_dispute(self, trade: str) -> Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        await self._accept(self._cast.arbiter, trade)
        deposit = AMOUNT * DEPOSIT // _WHOLE
        await self._agree(self._cast.seller, trade, d.SettleRequest(buyer_due_sats=AMOUNT * 4 // 5 + deposit))
        return opened

    async def _cancelled(self, trade: str) -> Curtain:
        opened = Curtain(self._cast.seller, time.perf_counter(), await self._height())
        await self._agree(self._cast.seller, trade, d.SettleRequest())
        return opened

    async def _declined(self, trade: str) -> Curtain:
        await self._pay(trade)
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        arbiter = self._cast.arbiter
        await self._case(arbiter, trade, lambda c: c.phase == "queued")
        await arbiter.ask(arbiter.api.case_decline(trade, "I know the buyer"), "could not decline")
        return await self._by_backup(trade, opened)

    async def _vanished(self, trade: str) -> Curtain:
        """Last of all: the arbiter's process is ended and does not come back."""
        await self._pay(trade)
        arbiter = self._cast.arbiter
        self._left[arbiter.name] = _sats(await arbiter.ask(arbiter.api.balance(), "does not tell its balance"))
        arbiter.terminate()
        await arbiter.ended_well()
        opened = await self._open(self._cast.buyer, trade, "I paid", _WHOLE)
        return await self._by_backup(trade, opened)

    async def _by_backup(self, trade: str, opened: Curtain) -> Curtain:
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

    async def _perform_scene(self, name: str, scene: Callable[[str], Awaitable[Curtain]]) -> Scene:
        before = await self._worth()
        trade = await self._begin()
        opened = await scene(trade)
        return await self._judge(name, trade, opened, before)

    # --- judging --------------------------------------------------------------------------------------------------

    async def _judge(self, name: str, trade: str, opened: Curtain, before: int) -> Scene:
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


def _sats(view: s.BalanceView) -> int:
    return view.confirmed_sats + view.pending_sats


def _ruled(arbiter: d.ArbiterStatusView | None) -> bool:
    return arbiter is not None and arbiter.ruling is not None


def _ruling(view: d.DisputeView) -> d.RulingView | None:
    found = [a.ruling for a in (view.arbiter, view.backup) if a is not None and a.ruling is not None]
    return found[0] if found else None
