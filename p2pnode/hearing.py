"""What arbiters say, and what peers propose, checked: the events of settlements and disputes (SPEC sections 7.4, 7.5).

Every payout is derived here from the signed contract; a signature that is not on exactly that transaction is refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

from msgspec.structs import replace

from escrow.errors import BadPayout
from escrow.payout import PayoutPlan, check_payout_signature, derive_payout
from escrow.script import Role
from p2pnode.conversations import Conversation
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.case_messages import (
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseMessage,
    CaseOpening,
    CaseRuling,
    Evidence,
)
from protocol.contract import Contract
from protocol.errors import Malformed
from protocol.messages import Agreed, ChatLine, FeeProposal, Proposal, RulingShown
from protocol.outcome import Outcome, RulingOutcome, SettlementOutcome
from protocol.ruling import BadRuling, Ruling, check_ruling, read_ruling, text_hash
from protocol.trade_state import TradeState
from protocol.types import Network
from protocol.wire import Kind, open_envelope


@lru_cache(maxsize=256)
def plan_of(contract: Contract, network: Network, outcome: Outcome) -> PayoutPlan:
    """The payout of an outcome that somebody else named. Raises Malformed for one that the contract forbids."""
    try:
        return derive_payout(contract, network, outcome)
    except BadPayout as e:
        raise Malformed(f"the contract does not allow that payout: {e.detail}") from e


def proposal_event(proposal: Proposal, state: TradeState, contract: Contract) -> ev.TradeEvent:
    """A settlement that the peer has signed. Raises Malformed, BadPayoutSignature."""
    outcome = SettlementOutcome(proposal.buyer_due, proposal.rate)
    plan = plan_of(contract, state.network, outcome)
    check_payout_signature(plan, Role.of(state.side.other), proposal.payout_signature)
    return dv.ProposalReceived(proposal, plan.txid)


def fee_event(proposal: FeeProposal, state: TradeState, contract: Contract) -> ev.TradeEvent:
    """The agreed payout at a higher rate, signed by the peer. Raises Malformed, BadPayoutSignature."""
    outcome = state.outcome_of(proposal.payout_txid)
    if outcome is None or isinstance(outcome, RulingOutcome):
        raise Malformed("the peer would raise the fee of a payout that both have not agreed on")
    raised = replace(outcome, rate=proposal.rate)
    plan = plan_of(contract, state.network, raised)
    check_payout_signature(plan, Role.of(state.side.other), proposal.payout_signature)
    return dv.FeeProposalReceived(proposal, raised, plan.txid)


def agreed_event(agreed: Agreed, state: TradeState, contract: Contract) -> ev.TradeEvent:
    """The peer's signature on a settlement or a higher fee rate of ours. Raises Malformed, BadPayoutSignature."""
    option = state.settlement.find(agreed.payout_txid) or state.payout.variant(agreed.payout_txid)
    if option is None:
        raise Malformed("the peer agrees to a payout that was never proposed")
    plan = plan_of(contract, state.network, option.outcome)
    check_payout_signature(plan, Role.of(state.side.other), agreed.payout_signature)
    return dv.AgreedReceived(agreed)


def arbiter_event(
    message: CaseMessage, conversation: Conversation, state: TradeState, contract: Contract
) -> ev.TradeEvent:
    """The event of an arbiter's message. Raises Malformed, BadRuling, BadSignature, BadPayoutSignature."""
    payload, branch = message.payload, conversation.branch
    match payload:
        case CaseAccepted():
            return dv.CaseAcceptedReceived(branch, payload)
        case CaseDeclined():
            return dv.CaseDeclinedReceived(branch, payload)
        case CaseExtended():
            return dv.CaseExtendedReceived(branch, payload)
        case ChatLine():
            return dv.ArbiterChatReceived(branch, payload)
        case CaseRuling():
            return ruling_event(payload, conversation, state, contract)
        case CaseOpening() | Evidence():
            raise Malformed("an arbiter sends neither claims nor evidence")
        case _:
            assert_never(payload)


def ruling_event(
    message: CaseRuling, conversation: Conversation, state: TradeState, contract: Contract
) -> dv.RulingReceived:
    """A ruling on our trade: by this arbiter, for this contract, with this fee, and its signature on our derivation."""
    event, ruling = _ruling(message.ruling, message.text, state, contract)
    if ruling.branch is not conversation.branch or ruling.arbiter != conversation.arbiter:
        raise BadRuling("the ruling is not by the arbiter that sends it")
    return event


def shown_event(message: RulingShown, state: TradeState, contract: Contract) -> dv.RulingReceived:
    """A ruling that the peer shows us: as good as from the arbiter itself. Raises what `arbiter_event` raises."""
    return _ruling(message.ruling, message.text, state, contract)[0]


def _ruling(raw: bytes, text: str, state: TradeState, contract: Contract) -> tuple[dv.RulingReceived, Ruling]:
    envelope = open_envelope(raw, state.network, limit=Kind.RULING.limit)
    ruling = read_ruling(envelope)
    if state.facts is None:
        raise BadRuling("there is no contract to rule on")
    check_ruling(ruling, contract, state.facts.contract_id)
    if ruling.text_hash != text_hash(text):
        raise BadRuling("the ruling's text is not the one that was signed")
    plan = plan_of(contract, state.network, ruling.outcome)
    check_payout_signature(plan, Role.ARBITER, ruling.payout_signature)
    event = dv.RulingReceived(
        ruling_id=envelope.id,
        raw=envelope.raw,
        text=text,
        outcome=ruling.outcome,
        txid=plan.txid,
        signature=ruling.payout_signature,
    )
    return event, ruling
