"""The arbiter's desk: the queue, a case with all that was said, the exact outcome of a decision, and the decision."""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from escrow.funding import derive_funding
from escrow.payout import PayoutPlan
from escrow.script import Role
from escrow.wallet.base import Wallet
from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.attachments import AttachmentStore
from p2pnode.blocktime import BlockTimes
from p2pnode.cases.desk import CaseDesk
from p2pnode.cases.store import StoredCase
from p2pnode.conversations import Conversations
from p2pnode.divergence import Divergences
from p2pnode.idprefix import id_range
from p2pnode.services.case_views import NO_SCRIPT, CaseViews
from p2pnode.services.dispute_views import REASONS, payout_of
from p2pnode.services.exhibits import exhibit, exhibits
from p2pnode.services.views import SIDES, only
from protocol import case_events as ce
from protocol.bundle import build_bundle
from protocol.errors import NotFound, UserError
from protocol.outcome import RulingOutcome

_REASON_OF: Final = {name: reason for reason, name in REASONS.items()}


class SecondLook(UserError):
    """What the decision pays is not what was looked at: ask for a new quote, and look again."""

    code = 3081


class CaseService:
    """`api.services.Cases` over the desk."""

    def __init__(
        self,
        desk: CaseDesk,
        conversations: Conversations,
        divergences: Divergences,
        wallet: Wallet,
        blocks: BlockTimes,
        files: AttachmentStore | None = None,
    ) -> None:
        """`wallet` gives the script that fees go to, `files` has the contents of attachments."""
        self._desk = desk
        self._cases = desk.cases
        self._db = desk.cases.database.connection
        self._wallet = wallet
        self._files = files
        self._views = CaseViews(desk, conversations, divergences, blocks, files)

    # --- looking --------------------------------------------------------------------------------------------------

    async def list(self, *, open_only: bool) -> d.CaseList:
        """The queue, those first that wait longest; without timelines and findings."""
        found = self._cases.all(open_only=open_only)
        return d.CaseList(cases=tuple(self._views.view(stored, whole=False) for stored in found))

    async def show(self, case: str) -> d.CaseView:
        """One case with all that was said."""
        return self._views.view(self._find(case), whole=True)

    async def quote(self, case: str, request: d.QuoteRequest) -> d.QuoteView:
        """What a decision would pay to whom. Raises BadPayout for one that the contract forbids."""
        state = self._find(case).state
        rate = request.fee_rate_sats_per_kvb or state.contract.fees.payout
        plan = _plan(state, request, NO_SCRIPT, rate)
        value = derive_funding(state.contract, state.network).escrow_value
        return _quote(request, plan, rate, value)

    async def exhibits(self, case: str) -> e.EvidenceList:
        """The files that were shown to us, and those that the parties have shown each other."""
        return exhibits(self._views.talk(self._find(case).state), self._files)

    async def exhibit(self, case: str, number: int) -> e.EvidenceFile:
        """One of them with its bytes. Raises NotFound."""
        return exhibit(self._views.talk(self._find(case).state), number, self._files)

    async def bundle(self, case: str) -> d.BundleView:
        """All that was said and signed, for anybody to verify."""
        state = self._find(case).state
        data = build_bundle(self._views.bundle(state))
        return d.BundleView(trade=state.trade_id.hex(), size_bytes=len(data), bundle=b64encode(data).decode())

    # --- deciding -------------------------------------------------------------------------------------------------

    async def accept(self, case: str) -> d.CaseView:
        """Hear the case. Raises IllegalTransition."""
        return self._do(case, ce.AcceptCase(self._desk.work.height))

    async def decline(self, case: str, request: d.CaseText) -> d.CaseView:
        """Do not decide it. Raises IllegalTransition."""
        return self._do(case, ce.DeclineCase(request.text))

    async def extend(self, case: str, request: d.CaseExtension) -> d.CaseView:
        """Take more time, once. Raises IllegalTransition."""
        return self._do(case, ce.ExtendCase(self._desk.work.height, request.blocks, request.text))

    async def write(self, case: str, request: d.CaseLine) -> d.CaseView:
        """Write to one party. Raises IllegalTransition."""
        return self._do(case, ce.WriteParty(SIDES[request.side], request.text))

    async def rule(self, case: str, request: d.RuleRequest) -> d.CaseView:
        """Decide, once and for all. Raises SecondLook, IllegalTransition, BadPayout."""
        state = self._find(case).state
        rate = request.fee_rate_sats_per_kvb or state.contract.fees.payout
        script = await self._wallet.change_script()
        plan = _plan(state, request, script, rate)
        if (request.buyer_sats, request.seller_sats) != (plan.value(Role.BUYER), plan.value(Role.SELLER)):
            raise SecondLook
        reason = _REASON_OF[request.reason]
        return self._do(
            case, ce.Decide(request.buyer_share_ppm, request.forfeit_ppm, reason, request.text, script, rate)
        )

    def _do(self, case: str, command: ce.CaseCommand) -> d.CaseView:
        trade_id = self._find(case).state.trade_id
        self._desk.engine.apply(trade_id, command)
        return self._views.view(self._must(trade_id), whole=True)

    def _find(self, prefix: str) -> StoredCase:
        rows = self._db.execute("SELECT trade_id FROM cases WHERE trade_id BETWEEN ? AND ?", id_range(prefix))
        return self._must(only([bytes(row[0]) for row in rows], "case", prefix))

    def _must(self, trade_id: bytes) -> StoredCase:
        stored = self._cases.get(trade_id)
        if stored is None:
            raise NotFound("there is no such case on this node")
        return stored


def _plan(state: ce.CaseState, request: d.QuoteRequest, script: bytes, rate: int) -> PayoutPlan:
    outcome = RulingOutcome(state.branch, request.buyer_share_ppm, request.forfeit_ppm, script, rate)
    return payout_of(state.contract, state.network, outcome)


def _quote(request: d.QuoteRequest, plan: PayoutPlan, rate: int, value: int) -> d.QuoteView:
    return d.QuoteView(
        buyer_share_ppm=request.buyer_share_ppm,
        forfeit_ppm=request.forfeit_ppm,
        buyer_sats=plan.value(Role.BUYER),
        seller_sats=plan.value(Role.SELLER),
        arbiter_sats=plan.value(Role.ARBITER),
        mining_fee_sats=plan.fee,
        fee_rate_sats_per_kvb=rate,
        escrow_value_sats=value,
    )
