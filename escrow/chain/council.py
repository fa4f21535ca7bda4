"""Several views of the chain as one: what they do not agree on is not so.

Theory of operation. A question goes to all members that are well, and an answer counts when the quorum gives it. By
default that is all of them, and never fewer than two. A quorum that is configured is how many must answer and agree:
what is dead is done without as long as so many are left. It is never less than a majority of those that answer, so
even with a quorum of one two that contradict each other stop everything. So the tip that is followed is the highest
block that the quorum has in its best chain, and a transaction is in a block when the quorum finds it there. Where
there is no such answer, nothing is told: neither that a payment is confirmed nor that it no longer is. The user is
told who says what (`note`, or BackendsDisagree as the health's detail), and the question is asked again until they
agree: what differs because one was a moment slower passes unnoticed.

A member that does not answer, or still syncs, leaves the vote until it does again; if fewer than the quorum are left,
nothing moves. What can't be voted on: transactions that wait, since a light client sees few of them (one member that
shows it is enough: nothing moves on depth 0), and fee rates (the first member that has one, in the order of the
configuration). Transactions are sent through all members; that one takes it is enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from escrow.chain.base import (
    BackendAuthFailed,
    BackendsDisagree,
    BackendTooOld,
    BackendUnreachable,
    BlockRef,
    BlockUnknown,
    ChainTx,
    FeeUnknown,
    NotRelayed,
    Rejected,
    WrongNetwork,
)
from escrow.chain.blocks import ParsedTx, touching
from escrow.chain.follow import HeaderInfo
from escrow.chain.view import ChainView, Hint
from escrow.coins import OutPoint, txid_text
from protocol.errors import ChainError
from protocol.types import FeeRate, Hash32, Height, Network, Sats, Txid

_log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY: Final = 5.0
"""Seconds between attempts to win a member back."""
_DEEPEST: Final = 2_016
"""Blocks below their tips in which members must have one in common."""
_STEP: Final = 36
_FEW: Final = 50


class _Member:
    """A view and how it does."""

    def __init__(self, view: ChainView) -> None:
        self.view = view
        self.open = False
        self.trouble = "it was not asked yet"
        self.retry_at = 0.0
        self.tip: BlockRef | None = None

    @property
    def ready(self) -> bool:
        """Whether it has a vote."""
        return not self.trouble


class CouncilView:
    """A `ChainView` over at least two others."""

    def __init__(self, views: Sequence[ChainView], quorum: int = 0) -> None:
        """Name the members, the most trusted first; `quorum` 0 means all that answer, and two at least.

        A smaller one is raised to a majority of those that answer.
        """
        if len(views) < 2 or not 0 <= quorum <= len(views):
            raise ValueError("a council has two members or more, and a quorum that they can reach")
        self._members = [_Member(view) for view in views]
        self._quorum = quorum
        self._hint: Callable[[Hint], None] = lambda _hint: None
        self._late: set[asyncio.Task[None]] = set()
        self._note = ""
        # The highest block that was agreed on, until it is agreed that it is not in the chain.
        self._agreed_tip: BlockRef | None = None
        # Whether some have a tip of their own; what waited then is kept in mind, for it may be in their blocks.
        self._parted = False
        self._shown: dict[Txid, ParsedTx] = {}

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The members'."""
        return "+".join(m.view.name for m in self._members)

    @property
    def network(self) -> Network:
        """The one that all must be on."""
        return self._members[0].view.network

    @property
    def prompt(self) -> bool:
        """Whether all members with a vote tell of blocks."""
        return all(m.view.prompt for m in self._members if m.ready)

    @property
    def judges(self) -> bool:
        """Whether any does."""
        return any(m.view.judges for m in self._members if m.ready)

    @property
    def note(self) -> str:
        """Who has no vote at present and why; where they part."""
        absent = [f"{m.view.name} is left out: {m.trouble}" for m in self._members if not m.ready]
        notes = [m.view.note for m in self._members if m.ready and m.view.note]
        return "; ".join([*absent, *([self._note] if self._note else []), *notes])

    @property
    def disagreement(self) -> bool:
        """Whether members with a vote have tips of their own."""
        return bool(self._note)

    async def open(self, hint: Callable[[Hint], None]) -> None:
        """Open all members; what fails is tried again later."""
        self._hint = hint

    async def close(self) -> None:
        """Close all members."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        await asyncio.gather(*(m.view.close() for m in self._members))
        for member in self._members:
            member.open, member.trouble = False, "it is closed"

    async def check(self) -> str:
        """Win members back; return why too few have a vote if one only syncs, else raise BackendUnreachable."""
        await self._win_back(at_once=True)
        ready = self._ready()
        if len(ready) >= self._needed(ready):
            return ""
        for member in self._members:
            if member.trouble.startswith("it is not in sync"):
                return f"{member.view.name}: {member.trouble}"
        raise self._too_few()

    async def refresh(self) -> None:
        """Let all learn of new blocks."""
        await self._win_back(at_once=False)
        await self._of_all(lambda view: view.refresh())

    # -- the chain --------------------------------------------------------------------------------------------

    async def best(self) -> Hash32:
        """The highest block that the quorum has, or had. Raises BackendsDisagree if there is none."""
        members = await self._tips()
        agreed = await self._highest(members, self._needed(members))
        before = self._agreed_tip
        if before is not None and before.height > agreed.height:
            # One that fell back does not take away what was agreed; nor is that told as gone before all say so.
            info = await self.header(before.hash)
            if info is not None and info.active:
                agreed = before
        self._agreed_tip = agreed
        self._note_parting(members, agreed)
        return agreed.hash

    async def _highest(self, members: Sequence[_Member], need: int) -> BlockRef:
        tips = {m.tip.hash: m.tip for m in members if m.tip is not None}
        for tip in sorted(tips.values(), key=lambda t: -t.height):
            if len(await self._having(tip.hash, members)) >= need:
                return tip
        return await self._fork(members, need)

    async def header(self, block: Hash32) -> HeaderInfo | None:
        """A block as the quorum has it. Raises BackendsDisagree."""
        members = await self._tips()
        need = self._needed(members)
        infos = await self._of_all(lambda view: view.header(block))
        known = [info for info in infos.values() if info is not None]
        if not known:
            return None
        ref = known[0].block
        having = [m for m, info in infos.items() if info is not None and info.active]
        others = [m for m in infos if m not in having]
        behind = [m for m in others if m.tip is not None and m.tip.height < ref.height]
        # A light client does not know blocks before its first one, and says nothing of them.
        against = [m for m in others if m not in behind and await self._knows(m, ref.height)]
        if len(having) >= need:
            following = Counter(info.next for m in having if (info := infos[m]) is not None and info.next is not None)
            best, votes = following.most_common(1)[0] if following else (None, 0)
            return HeaderInfo(ref, active=True, next=best if votes >= need else None)
        if len(against) >= need:
            return HeaderInfo(ref, active=False, next=None)
        if having and not against:
            # Some can't say: what was told stands, nothing new is told.
            return HeaderInfo(ref, active=True, next=None)
        raise self._disagree(
            f"about block {ref.height:,}: it is in the chain of {_names(having) or 'none'}"
            f" and not in that of {_names(against)}"
        )

    async def headers_at(self, heights: Sequence[int]) -> list[BlockRef]:
        """Blocks that the quorum has."""
        answers = await self._of_all(lambda view: view.headers_at(heights))
        return self._agreed({m: (tuple(b.hash for b in a), a) for m, a in answers.items()}, "about their chains")

    async def matching(
        self, block: BlockRef, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
    ) -> list[ParsedTx]:
        """What the quorum finds in a block. Raises BackendsDisagree when one hides, or invents, a transaction."""
        answers = await self._of_all(lambda view: view.matching(block, scripts, outpoints))
        found = {m: touching(txs, scripts, outpoints) for m, txs in answers.items()}
        votes = {m: (tuple(tx.txid for tx in txs), txs) for m, txs in found.items()}
        told = "; ".join(f"{m.view.name} finds {_shown(txs)}" for m, txs in found.items())
        return self._agreed(votes, f"about block {block.height:,}: {told}")

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Blocks that any finds relevant: whether they are, `matching` tells."""
        answers = await self._of_all(lambda view: view.relevant(scripts, low, high))
        blocks = {(b.height, b.hash): b for refs in answers.values() for b in refs}
        if len({height for height, _ in blocks}) != len(blocks):
            raise self._disagree("about their chains")
        return [blocks[key] for key in sorted(blocks)]

    # -- what waits -------------------------------------------------------------------------------------------

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:
        """What any shows."""
        await self.best()
        answers = await self._of_all(lambda view: view.mempool(scripts, txids))
        listed = dict.fromkeys(t for a in answers.values() for t in a)
        wanted = [t for t in txids if t in listed and t not in self._shown]
        for at in range(0, len(wanted), _FEW):
            await self.waiting(wanted[at : at + _FEW])
        if self._parted:
            return list(listed | dict.fromkeys(t for t in txids if t in self._shown))
        self._shown = {t: tx for t, tx in self._shown.items() if t in listed and t in txids}
        return list(listed)

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """What any shows; while some have blocks of their own, also what waited before."""
        if not txids:
            return []
        answers = list((await self._of_all(lambda view: view.waiting(txids))).values())
        kept = self._shown if self._parted else {}
        found = [next((a[i] for a in answers if a[i] is not None), kept.get(t)) for i, t in enumerate(txids)]
        if len(txids) <= _FEW:  # more are asked for only when whole mempools are read, and most are strangers'
            self._shown |= {tx.txid: tx for tx in found if tx is not None}
        return found

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:
        """What any shows."""
        answers = await self._of_all(lambda view: view.spenders(outpoints, scripts))
        return list(dict.fromkeys(t for listed in answers.values() for t in listed))

    # -- questions --------------------------------------------------------------------------------------------

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """Of the first that has one. Raises FeeUnknown."""
        for member in self._ready():
            with suppress(FeeUnknown):
                try:
                    return await member.view.fee_rate(target_blocks)
                except BackendUnreachable as e:
                    self._lost(member, e)
        raise FeeUnknown

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """Of the first that can tell; a lie makes a child pay too little or too much, within the ceiling of rates."""
        answers = await self._of_all(lambda view: view.mempool_fee(txid))
        return next((fee for fee in answers.values() if fee is not None), None)

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """Refused only by all who can judge: one that lies must not stop a payment."""
        judges = [m for m in self._ready() if m.view.judges] or self._ready()
        if not judges:
            raise self._too_few()
        refusals: list[Rejected] = []

        async def ask(member: _Member) -> bool:
            try:
                await member.view.test_accept(txs)
            except Rejected as e:
                refusals.append(e)
                return False
            except ChainError as e:
                self._lost(member, e)
                return False
            return True

        accepted = await asyncio.gather(*(ask(m) for m in judges))
        if any(accepted):
            return
        raise refusals[0] if refusals else self._too_few()

    async def send(self, txs: Sequence[bytes]) -> None:
        """Through all; back when one has taken it. Raises Rejected when all refuse, else NotRelayed."""
        members = self._ready()
        if not members:
            raise self._too_few()
        errors: list[ChainError] = []
        taken = asyncio.Event()

        async def hand(member: _Member) -> None:
            try:
                await member.view.send(txs)
            except ChainError as e:
                errors.append(e)
                if len(errors) == len(members):
                    taken.set()
            else:
                taken.set()

        for member in members:
            # What is slower than the first goes on: the more nodes have it the better.
            task = asyncio.create_task(hand(member), name=f"send by {member.view.name}")
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        await taken.wait()
        if len(errors) == len(members):
            raise errors[0] if all(isinstance(e, Rejected) for e in errors) else NotRelayed()

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """What the quorum finds in a block; else what any shows, as if it waited."""
        members = self._ready()
        need = self._needed(members)
        answers = await self._of_all(lambda view: view.transaction(txid, block_hash))
        found = [tx for tx in answers.values() if tx is not None]
        blocks = Counter(tx.block_hash for tx in found if tx.block_hash is not None)
        if blocks:
            block, votes = blocks.most_common(1)[0]
            # Without an index most can't find it: whose word is asked for then is the one that is trusted most.
            if votes >= need or votes == len(found):
                return min((tx for tx in found if tx.block_hash == block), key=lambda tx: tx.depth)
        return ChainTx(found[0].raw, None, None, 0) if found else None

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """No if any says no."""
        answers = set((await self._of_all(lambda view: view.unspent(outpoint))).values())
        return False if False in answers else True if True in answers else None

    # -- voting -----------------------------------------------------------------------------------------------

    def _ready(self) -> list[_Member]:
        return [m for m in self._members if m.ready]

    def _needed(self, ready: Sequence[_Member]) -> int:
        return max(self._quorum, len(ready) // 2 + 1) if self._quorum else max(2, len(ready))

    def _agreed(self, votes: Mapping[_Member, tuple[Hashable, T]], dispute: str) -> T:
        """The answer that the quorum gives. Raises BackendsDisagree."""
        counts = Counter(key for key, _ in votes.values())
        key, count = counts.most_common(1)[0]
        if count < self._needed(list(votes)):
            raise self._disagree(dispute)
        return next(answer for k, answer in votes.values() if k == key)

    async def _of_all(self, ask: Callable[[ChainView], Awaitable[T]]) -> dict[_Member, T]:
        """The answers of all with a vote; who fails loses it, who does not know a block abstains.

        Raises BackendUnreachable when too few are left.
        """
        members = self._ready()

        async def one(member: _Member) -> tuple[_Member, T] | None:
            try:
                return member, await ask(member.view)
            except BlockUnknown:
                return None  # it is behind, and abstains
            except ChainError as e:
                self._lost(member, e)
                return None

        answers = dict(pair for pair in await asyncio.gather(*(one(m) for m in members)) if pair is not None)
        if len(answers) < self._needed(list(answers)):
            raise self._too_few()
        return answers

    async def _tips(self) -> list[_Member]:
        """Learn the tip of each."""

        async def tip(view: ChainView) -> BlockRef | None:
            info = await view.header(await view.best())
            return None if info is None else info.block

        tips = await self._of_all(tip)
        for member, found in tips.items():
            member.tip = found
        return list(tips)

    async def _having(self, block: Hash32, members: Sequence[_Member]) -> list[_Member]:
        infos = await self._of_all(lambda view: view.header(block))
        return [m for m in members if (info := infos.get(m)) is not None and info.active]

    async def _knows(self, member: _Member, height: Height) -> bool:
        try:
            return bool(await member.view.headers_at([height]))
        except ChainError as e:
            self._lost(member, e)
            return False

    async def _fork(self, members: Sequence[_Member], need: int) -> BlockRef:
        """The highest block that the quorum has where no tip is one. Raises BackendsDisagree."""
        heights = sorted((m.tip.height for m in members if m.tip is not None), reverse=True)
        high: Height = heights[need - 1] if len(heights) >= need else 0
        lowest = max(0, high - _DEEPEST)
        while high >= lowest:
            low = max(lowest, high - _STEP + 1)
            chains = await self._of_all(partial(_headers_at, heights=range(low, high + 1)))
            for height in range(high, low - 1, -1):
                there = [b for refs in chains.values() for b in refs if b.height == height]
                counts = Counter(b.hash for b in there)
                agreed = next((b for b in there if counts[b.hash] >= need), None)
                if agreed is not None:
                    return agreed
            high = low - 1
        raise self._disagree("about the whole chain")

    # -- members ----------------------------------------------------------------------------------------------

    async def _win_back(self, *, at_once: bool) -> None:
        now = asyncio.get_running_loop().time()
        away = [m for m in self._members if not m.ready and (at_once or m.retry_at <= now)]
        await asyncio.gather(*(self._try(m, now) for m in away))

    async def _try(self, member: _Member, now: float) -> None:
        member.retry_at = now + _RETRY
        try:
            if not member.open:
                await member.view.open(self._hint)
                member.open = True
            reason = await member.view.check()
            trouble = f"it is not in sync: {reason}" if reason else ""
        except (WrongNetwork, BackendTooOld, BackendAuthFailed):
            # A mistake in the configuration: say it at once instead of going on without.
            raise
        except ChainError as e:
            trouble = e.detail
        if trouble != member.trouble:
            _log.info("%s: %s", member.view.name, trouble or "it has a vote")
        member.trouble = trouble

    def _lost(self, member: _Member, error: ChainError) -> None:
        if not member.trouble:
            _log.warning("%s has no vote for now: %s", member.view.name, error.detail)
        member.trouble = error.detail
        member.retry_at = asyncio.get_running_loop().time()

    def _too_few(self) -> BackendUnreachable:
        ready = len(self._ready())
        need = self._quorum or 2
        who = "; ".join(f"{m.view.name}: {m.trouble}" for m in self._members if m.trouble)
        return BackendUnreachable(f"{ready} of {len(self._members)} chain backends answer, {need} are needed ({who})")

    def _disagree(self, what: str) -> BackendsDisagree:
        error = BackendsDisagree(f"the chain backends disagree {what}: nothing moves until they agree")
        _log.warning("%s", error.detail)
        return error

    def _note_parting(self, members: Sequence[_Member], agreed: BlockRef) -> None:
        """Keep in mind who has a tip of its own."""
        others = [m for m in members if m.tip is not None and m.tip.hash != agreed.hash]
        self._parted = bool(others)
        own = ", ".join(f"{m.view.name} is at block {m.tip.height:,}" for m in others if m.tip is not None)
        self._note = f"the backends agree up to block {agreed.height:,}; {own}" if own else ""


async def _headers_at(view: ChainView, heights: Sequence[int]) -> list[BlockRef]:
    return await view.headers_at(heights)


def _names(members: Sequence[_Member]) -> str:
    return " and ".join(m.view.name for m in members)


def _shown(txs: Sequence[ParsedTx]) -> str:
    return ", ".join(txid_text(tx.txid)[:16] for tx in txs[:3]) + (", ..." if len(txs) > 3 else "") or "nothing"
