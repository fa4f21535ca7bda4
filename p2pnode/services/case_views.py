"""How a case looks to its arbiter: claims side by side, deadlines, all that was said, what the record itself shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from escrow.coins import txid_text
from escrow.funding import derive_funding
from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.api.schema.base import DeadlineView
from p2pnode.attachments import AttachmentStore
from p2pnode.blocktime import BlockTimes
from p2pnode.cases.desk import CaseDesk
from p2pnode.cases.store import StoredCase
from p2pnode.conversations import Conversation, Conversations
from p2pnode.divergence import Divergences, pairs
from p2pnode.money import format_minor
from p2pnode.services.dispute_views import (
    ARBITERS,
    BRANCHES,
    PARTIES,
    IsHere,
    Said,
    claim_view,
    ruling_view,
    shown_in,
    talker,
    timeline,
)
from p2pnode.services.views import kebab
from protocol import bundle as bundles
from protocol import case_events as ce
from protocol.arbitration import step_case
from protocol.bundle import Bundle, Verdict, build_bundle, verify_bundle
from protocol.case_messages import CaseFile, CaseOpening, decode_case
from protocol.errors import IllegalTransition, P2PError
from protocol.identity import persona_text
from protocol.messages import Paid, PaymentDetails, decode
from protocol.ruling import Reason, arbiter_of
from protocol.types import Branch, Side
from protocol.wire import parse_envelope

NO_SCRIPT: Final = b"\x00\x14" + bytes(20)
"""Stands for the arbiter's own script in a quote; it has the size of what our wallet gives."""

_QUESTIONS: Final[tuple[tuple[str, ce.CaseCommand], ...]] = (
    ("accept", ce.AcceptCase(0)),
    ("decline", ce.DeclineCase("")),
    ("extend", ce.ExtendCase(0, 1, "")),
    ("rule", ce.Decide(1_000_000, 0, Reason.OTHER, "", NO_SCRIPT, 0)),
    ("write", ce.WriteParty(Side.BUY, "")),
)


class CaseViews:
    """Makes views of cases. Reads the store, changes nothing."""

    def __init__(
        self,
        desk: CaseDesk,
        conversations: Conversations,
        divergences: Divergences,
        blocks: BlockTimes,
        files: AttachmentStore | None,
    ) -> None:
        """`files` has the contents of attachments."""
        self._cases = desk.cases
        self._conversations = conversations
        self._divergences = divergences
        self._blocks = blocks
        self._files = files
        self._here: IsHere = files.has if files is not None else lambda _content: False

    def view(self, stored: StoredCase, *, whole: bool) -> d.CaseView:
        """A case; `whole` with timeline and findings, which a list does without."""
        state = stored.state
        contract = state.contract
        terms = arbiter_of(contract, state.branch)
        funding = derive_funding(contract, state.network)
        text = "" if state.decision is None else state.decision.text
        return d.CaseView(
            id=state.trade_id.hex(),
            contract_id=state.contract_id.hex(),
            phase=kebab(type(state.phase).__name__),
            open=not isinstance(state.phase, ce.CASE_TERMINAL),
            role=BRANCHES[state.branch],
            opened_by=PARTIES[state.opened_by],
            amount_sats=contract.amount,
            currency=contract.currency,
            volume=format_minor(contract.volume, contract.currency),
            price=format_minor(contract.price, contract.currency),
            method=contract.method,
            buyer_deposit_sats=contract.buyer_deposit,
            seller_deposit_sats=contract.seller_deposit,
            fee_sats=0 if terms is None else terms.fee,
            escrow_value_sats=funding.escrow_value,
            funding_txid=txid_text(funding.txid),
            escrow_depth=state.depth,
            spent_by=None if state.spent_by is None else txid_text(state.spent_by),
            spent_depth=state.spent_depth,
            buyer=self._party(state, Side.BUY),
            seller=self._party(state, Side.SELL),
            heard=state.heard,
            extended=state.extended,
            overdue=state.overdue,
            deadlines=self._deadlines(state),
            ruling=None if state.ruling is None else ruling_view(state.ruling, text, contract, state.network),
            findings=self._findings(state) if whole else (),
            actions=_possible(state),
            ending=state.ending,
            created=stored.created,
            updated=stored.updated,
            timeline=timeline(self.talk(state), self._here) if whole else (),
        )

    def _party(self, state: ce.CaseState, side: Side) -> d.PartyView:
        facts = state.party(side)
        return d.PartyView(
            persona=persona_text(state.contract.party(side).persona),
            claim=claim_view(facts.claim),
            evidence=facts.evidence,
            late=facts.late,
            details=self._details(state, side),
        )

    def _details(self, state: ce.CaseState, side: Side) -> dict[str, str]:
        """A party's payment details, once it has opened them to the other."""
        persona = state.contract.party(side).persona
        for raw in self._messages(state):
            envelope = parse_envelope(raw, state.network)
            payload = decode(envelope).payload
            if envelope.signer == persona and isinstance(payload, Paid | PaymentDetails):
                return dict(payload.opened.details)
        return {}

    def _messages(self, state: ce.CaseState) -> tuple[bytes, ...]:
        """The trade's messages as the party told that opened the case."""
        files = self._case_files(state)
        return files[0].messages if files else ()

    def _case_files(self, state: ce.CaseState) -> Sequence[CaseFile]:
        """The case files, that of the opener first."""
        found = [(side, self._opening(c)) for side, c in self._talks(state)]
        files = [(side is not state.opened_by, opening.file) for side, opening in found if opening is not None]
        return [file for _, file in sorted(files, key=lambda pair: pair[0])]

    def _talks(self, state: ce.CaseState) -> Sequence[tuple[Side, Conversation]]:
        found = self._conversations.of_trade(state.trade_id, arbitrates=True)
        return [(c.side, c) for c in found if c.branch is state.branch]

    def _opening(self, conversation: Conversation) -> CaseOpening | None:
        said = (m.payload for _, m, _ in self._conversations.messages(conversation))
        return next((p for p in said if isinstance(p, CaseOpening)), None)

    def bundle(self, state: ce.CaseState) -> Bundle:
        """All that was said and signed. Raises IllegalTransition before anybody has told its side."""
        files = self._case_files(state)
        if not files:
            raise IllegalTransition("nobody has told its side of this case yet")
        talks = tuple(
            bundles.Conversation(c.party, c.arbiter, self._conversations.raws(c))
            for _, c in self._talks(state)
            if c.heads.sent or c.heads.received
        )
        other = files[1].messages if len(files) > 1 else ()
        forks = pairs(self._divergences.of_trade(state.trade_id))
        return Bundle(state.network, files[0], other, talks, self._contents(files[0], talks, state), forks)

    def _contents(
        self, file: CaseFile, talks: Sequence[bundles.Conversation], state: ce.CaseState
    ) -> tuple[bytes, ...]:
        """The files that were shown and are here."""
        if self._files is None:
            return ()
        payloads: list[object] = [decode(parse_envelope(raw, state.network)).payload for raw in file.messages]
        payloads += [decode_case(parse_envelope(raw, state.network)).payload for t in talks for raw in t.messages]
        contents = sorted({a.content for payload in payloads for a in shown_in(payload)})
        return tuple(self._files.content(content) for content in contents if self._files.has(content))

    def _findings(self, state: ce.CaseState) -> tuple[d.FindingView, ...]:
        """What the record itself shows, before anybody judges."""
        try:
            verdict = verify_bundle(build_bundle(self.bundle(state)), EscrowChecks())
        except P2PError as error:
            return (d.FindingView(who="", what=f"the record can't be replayed: {error.detail}"),)
        return finding_views(verdict)

    def _deadlines(self, state: ce.CaseState) -> tuple[DeadlineView, ...]:
        return tuple(self._blocks.at(name, height) for _, name, height in self._cases.timers(state.trade_id))

    def talk(self, state: ce.CaseState) -> Sequence[Said]:
        """What the parties said to each other, then what they and we said. Only the latter has times of ours."""
        talk = []
        for raw in self._messages(state):
            envelope = parse_envelope(raw, state.network)
            side = Side.BUY if envelope.signer == state.contract.buyer.persona else Side.SELL
            message = decode(envelope)
            talk.append(Said(0, PARTIES[side], PARTIES[side.other], message.payload, message.header.height))
        for _, conversation in self._talks(state):
            for out, said, at in self._conversations.messages(conversation):
                talk.append(Said(at, *talker(conversation, out=out), said.payload, said.header.height))
        return talk


def finding_views(verdict: Verdict) -> tuple[d.FindingView, ...]:
    """Who broke what, by role."""
    contract = verdict.case.contract
    names = {contract.buyer.persona: "buyer", contract.seller.persona: "seller"}
    for branch in Branch:
        terms = arbiter_of(contract, branch)
        if terms is not None:
            names[terms.persona] = ARBITERS[branch]
    return tuple(d.FindingView(who=names.get(f.persona, ""), what=f.what) for f in verdict.findings)


def _possible(state: ce.CaseState) -> tuple[str, ...]:
    """What the arbiter may do now: the machine itself is asked, it changes nothing."""
    found = []
    for name, command in _QUESTIONS:
        asked = ce.Decide(1_000_000, 0, Reason.OTHER, "", NO_SCRIPT, state.contract.fees.payout)
        try:
            step_case(state, asked if name == "rule" else command)
        except IllegalTransition:
            continue
        found.append(name)
    return tuple(found)
