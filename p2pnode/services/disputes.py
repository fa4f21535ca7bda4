"""Settlements, disputes, extensions and chat of the user's own trades."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

from escrow.coins import txid_bytes, txid_text
from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.attachments import AttachmentStore
from p2pnode.divergence import pairs
from p2pnode.engine import Engine, case_file
from p2pnode.services.dispute_views import (
    BRANCHES,
    IsHere,
    Said,
    attachment_view,
    claim_view,
    outcome_text,
    proposal_values,
    ruling_view,
    shown_in,
    talker,
    timeline,
)
from p2pnode.services.exhibits import exhibit, exhibits
from p2pnode.services.views import SIDE_NAMES, TradeViews, kebab
from protocol import dispute_events as dv
from protocol.attachment import Attachment, describe, media_of
from protocol.bundle import Bundle, Conversation, build_bundle
from protocol.case_messages import decode_case
from protocol.contract import Contract
from protocol.errors import IllegalTransition, NotFound, UserError
from protocol.identity import persona_text
from protocol.messages import Claim, decode
from protocol.outcome import cancelled_due
from protocol.ruling import arbiter_of
from protocol.trade import step
from protocol.trade_events import Command
from protocol.trade_state import Option, TradeState
from protocol.types import Branch, Side
from protocol.wire import parse_envelope

_QUESTIONS: Final[tuple[tuple[str, Command], ...]] = (
    ("open", dv.OpenDispute(Claim("", 0))),
    ("evidence", dv.SendEvidence("")),
    ("complete-ruling", dv.CompleteRuling()),
    ("chat", dv.SendChat("")),
    ("ask-time", dv.RequestExtension(1)),
    ("give-time", dv.GrantExtension(1)),
)
"""What may be possible, and the command that asks the machine; it changes nothing."""


class BadUpload(UserError):
    """A file's bytes have to be in base64."""

    code = 3082


class DisputeService:
    """`api.services.Disputes` over the engine."""

    def __init__(
        self,
        engine: Engine,
        views: TradeViews,
        files: AttachmentStore | None = None,
    ) -> None:
        """`files` has the contents of attachments."""
        self._engine = engine
        self._trades = engine.trades
        self._views = views
        self._files = files
        self._here: IsHere = files.has if files is not None else lambda _content: False

    async def show(self, trade: str) -> d.DisputeView:
        """How a trade's settlements and dispute stand."""
        return self._view(self._views.find(trade).state)

    async def open(self, trade: str, request: d.DisputeRequest) -> d.DisputeView:
        """Open a dispute, or answer the counterparty's. Raises IllegalTransition."""
        return self._do(trade, dv.OpenDispute(Claim(request.text, request.buyer_share_ppm)))

    async def evidence(self, trade: str, request: d.EvidenceRequest) -> d.DisputeView:
        """Show something to the arbiter. Raises IllegalTransition."""
        return self._do(trade, dv.SendEvidence(request.text, self._shown(request.attachments)))

    async def chat(self, trade: str, request: d.ChatRequest) -> d.DisputeView:
        """Write to the counterparty, or to the arbiter. Raises IllegalTransition."""
        shown = self._shown(request.attachments)
        if request.arbiter:
            return self._do(trade, dv.SendEvidence(request.text, shown) if shown else dv.WriteArbiter(request.text))
        for attachment in shown:
            self._do(trade, dv.SendAttachment(attachment))
        return self._do(trade, dv.SendChat(request.text))

    async def upload(self, request: d.FileUpload) -> d.AttachmentView:
        """Keep a file, to be shown. Raises NotAttachable, BadUpload."""
        if self._files is None:
            raise NotFound("this node keeps no files")
        try:
            data = b64decode(request.data, validate=True)
        except ValueError as error:
            raise BadUpload from error
        return attachment_view(self._files.add(data, request.name), self._here)

    async def file(self, content: str) -> d.FileData:
        """A file that is here. Raises NotFound."""
        if self._files is None:
            raise NotFound("this node keeps no files")
        data = self._files.content(bytes.fromhex(content))
        media = media_of(data) or ""
        return d.FileData(content=content, size_bytes=len(data), media=media, data=b64encode(data).decode())

    async def exhibits(self, trade: str) -> e.EvidenceList:
        """The files that were shown in a trade."""
        return exhibits(self._talk(self._views.find(trade).state), self._files)

    async def exhibit(self, trade: str, number: int) -> e.EvidenceFile:
        """One of them with its bytes. Raises NotFound."""
        return exhibit(self._talk(self._views.find(trade).state), number, self._files)

    def _shown(self, wanted: Sequence[d.FileRef]) -> tuple[Attachment, ...]:
        """Descriptions of uploaded files. Raises NotFound, NotAttachable."""
        if not wanted:
            return ()
        if self._files is None:
            raise NotFound("this node keeps no files")
        return tuple(describe(self._files.content(bytes.fromhex(ref.content)), ref.name) for ref in wanted)

    async def settle(self, trade: str, request: d.SettleRequest) -> d.DisputeView:
        """Propose a settlement, or to cancel. Raises IllegalTransition."""
        contract = _contract(self._views.find(trade).state)
        due = cancelled_due(contract) if request.buyer_due_sats is None else request.buyer_due_sats
        return self._do(trade, dv.ProposeSettlement(due, request.fee_rate_sats_per_kvb or contract.fees.payout))

    async def accept(self, trade: str, request: d.AcceptRequest) -> d.DisputeView:
        """Accept a settlement that the counterparty proposed. Raises IllegalTransition."""
        return self._do(trade, dv.AcceptSettlement(txid_bytes(request.txid)))

    async def extend(self, trade: str, request: d.ExtendRequest) -> d.DisputeView:
        """Buyer: ask for more time to pay; seller: give it. Raises IllegalTransition."""
        state = self._views.find(trade).state
        asks = dv.RequestExtension(request.blocks, request.reason)
        return self._do(trade, asks if state.buys else dv.GrantExtension(request.blocks))

    async def complete(self, trade: str) -> d.DisputeView:
        """Sign and broadcast what the arbiter ruled. Raises IllegalTransition."""
        return self._do(trade, dv.CompleteRuling())

    async def bundle(self, trade: str) -> d.BundleView:
        """All that was said and signed, for anybody to verify. Raises IllegalTransition before there is a contract."""
        state = self._views.find(trade).state
        conversations = tuple(
            Conversation(c.party, c.arbiter, self._engine.conversations.raws(c))
            for c in self._engine.conversations.of_trade(state.trade_id, arbitrates=False)
            if c.heads.sent or c.heads.received
        )
        contents = tuple(self._contents(conversations, state))
        forks = pairs(self._engine.divergences.of_trade(state.trade_id))
        data = build_bundle(Bundle(state.network, case_file(state, self._trades), (), conversations, contents, forks))
        return d.BundleView(trade=state.trade_id.hex(), size_bytes=len(data), bundle=b64encode(data).decode())

    def _contents(self, conversations: Sequence[Conversation], state: TradeState) -> list[bytes]:
        """The files that were shown and are here."""
        if self._files is None:
            return []
        payloads = [_payload(raw, state) for _, raw, _ in self._trades.transcript(state.trade_id)]
        payloads += [
            decode_case(parse_envelope(raw, state.network)).payload for c in conversations for raw in c.messages
        ]
        contents = {a.content for payload in payloads for a in shown_in(payload)}
        return [self._files.content(content) for content in sorted(contents) if self._files.has(content)]

    def _do(self, trade: str, command: Command) -> d.DisputeView:
        trade_id = self._views.find(trade).state.trade_id
        return self._view(self._engine.apply(trade_id, command))

    # --- views ----------------------------------------------------------------------------------------------------

    def _view(self, state: TradeState) -> d.DisputeView:
        dispute = state.dispute
        return d.DisputeView(
            trade=state.trade_id.hex(),
            phase=kebab(type(state.phase).__name__),
            side=SIDE_NAMES[state.side],
            disputed=dispute is not None,
            own_claim=claim_view(None if dispute is None else dispute.own_claim),
            peer_claim=claim_view(None if dispute is None else dispute.peer_claim),
            bench=BRANCHES[state.bench],
            arbiter=self._arbiter(state, Branch.MAIN),
            backup=self._arbiter(state, Branch.BACKUP),
            deadlines=self._views.deadlines(state),
            proposals=tuple(self._proposal(state, option) for option in state.settlement.options),
            outcome=outcome_text(state.payout.outcome, state.contract),
            actions=_possible(state),
            timeline=timeline(self._talk(state), self._here),
        )

    def _arbiter(self, state: TradeState, branch: Branch) -> d.ArbiterStatusView | None:
        terms = None if state.contract is None else arbiter_of(state.contract, branch)
        if terms is None or state.contract is None:
            return None
        facts = None if state.dispute is None else state.dispute.arbiter(branch)
        ruling = None if facts is None else facts.ruling
        shown = None if ruling is None else ruling_view(ruling.raw, ruling.text, state.contract, state.network)
        return d.ArbiterStatusView(
            persona=persona_text(terms.persona),
            answer="" if facts is None else facts.answer.name.lower(),
            text="" if facts is None else facts.text,
            promised_blocks=terms.response_blocks,
            extended=facts is not None and facts.extended,
            ruling=shown,
            contradicted=facts is not None and facts.contradiction is not None,
        )

    def _proposal(self, state: TradeState, option: Option) -> d.ProposalView:
        contract = _contract(state)
        buyer, seller = proposal_values(contract, state.network, option.outcome)
        signers = [name for name, der in (("you", option.own_signature), ("peer", option.peer_signature)) if der]
        return d.ProposalView(
            txid=txid_text(option.txid),
            by="both" if len(signers) == 2 else signers[0],
            cancels=option.outcome.buyer_due == cancelled_due(contract),
            buyer_sats=buyer,
            seller_sats=seller,
        )

    def _talk(self, state: TradeState) -> list[Said]:
        """All that was said in a trade, to its counterparty and to arbiters."""
        talk = []
        for out, raw, at in self._trades.transcript(state.trade_id):
            message = decode(parse_envelope(raw, state.network))
            by, to = ("you", "peer") if out else ("peer", "you")
            talk.append(Said(at, by, to, message.payload, message.header.height))
        for conversation in self._engine.conversations.of_trade(state.trade_id, arbitrates=False):
            for out, said, at in self._engine.conversations.messages(conversation):
                talk.append(Said(at, *talker(conversation, out=out), said.payload, said.header.height))
        return talk


def _payload(raw: bytes, state: TradeState) -> object:
    return decode(parse_envelope(raw, state.network)).payload


def _contract(state: TradeState) -> Contract:
    if state.contract is None:
        raise IllegalTransition("the trade has no contract yet")
    return state.contract


def _possible(state: TradeState) -> tuple[str, ...]:
    """What the user may do now: the machine itself is asked, it changes nothing."""
    questions = list(_QUESTIONS)
    if state.contract is not None:
        questions.append(("settle", dv.ProposeSettlement(_best_guess(state), state.contract.fees.payout)))
    questions += [("accept", dv.AcceptSettlement(option.txid)) for option in state.settlement.options]
    found: dict[str, None] = {}
    for name, command in questions:
        try:
            step(state, command)
        except IllegalTransition:
            continue
        found[name] = None
    return tuple(found)


def _best_guess(state: TradeState) -> int:
    """A settlement that gives the peer all: if not even that can be proposed, nothing can."""
    contract = _contract(state)
    pot = contract.amount + contract.buyer_deposit + contract.seller_deposit
    return 0 if state.side is Side.BUY else pot
