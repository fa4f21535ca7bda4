"""What the two parties can agree on besides the release: another division of the escrow, more time, and a word.

A proposal carries a signature, so that the other side needs no second message to end the trade. A signature can't be
taken back: the peer may use any that we ever gave, whatever was said since. Hence three rules. A new proposal must be
better for the peer than each one before it, or it would change nothing. Whoever could have as much by accepting what
the peer has signed must do that instead. And a buyer that has signed a settlement can't declare a payment any more: the
seller could take both.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import Agreed, AttachmentOffer, ChatLine, Extension, ExtensionRequest, Proposal
from protocol.outcome import SettlementOutcome, pot
from protocol.trade_escrow import ALIVE, deadlines
from protocol.trade_raising import raise_agreed
from protocol.trade_state import Option, TradeState
from protocol.trade_table import Step, agreed, on, only
from protocol.types import Side

MAX_OPTIONS: Final = 16
"""Settlements that one side may have signed in one trade."""
MAX_TALK: Final = 500
"""Times that one side may speak in one trade. So the whole record of a trade always fits into a case file."""
MAX_WINDOW: Final = 65_535
"""Blocks of a payment window with all its extensions."""
_OVER: Final = (st.Completed, st.Anomalous)
"""Phases in which nothing that is agreed on changes anything."""

# --- another division of the escrow ------------------------------------------------------------------------------


@on((st.Funded, st.Paid), dv.ProposeSettlement, to=())
def _propose(state: TradeState, event: dv.ProposeSettlement) -> Step:
    contract = agreed(state)
    if not 0 <= event.buyer_due <= pot(contract):
        raise IllegalTransition(f"the escrow holds {pot(contract):,} sat to divide")
    if not contract.fees.payout <= event.rate <= contract.fees.payout_max:
        raise IllegalTransition("the fee rate is outside the band that the contract allows")
    mine = _share(state, event.buyer_due)
    signed = [o for o in state.settlement.options if o.own_signature is not None]
    if len(signed) >= MAX_OPTIONS:
        raise IllegalTransition("you have made as many proposals as one trade allows")
    if any(_share(state, o.outcome.buyer_due) >= mine for o in state.settlement.options if o.peer_signature):
        raise IllegalTransition("the counterparty's own proposal gives you at least as much: accept that")
    if any(_share(state, o.outcome.buyer_due) <= mine for o in signed):
        raise IllegalTransition("the counterparty holds your signature on a proposal that is better for it")
    return _sign(state, SettlementOutcome(event.buyer_due, event.rate))


@on((st.Funded, st.Paid), dv.AcceptSettlement, to=())
def _accept(state: TradeState, event: dv.AcceptSettlement) -> Step:
    option = state.settlement.find(event.txid)
    if option is None or option.peer_signature is None:
        raise IllegalTransition("the counterparty has not proposed that")
    if option.own_signature is not None:
        raise IllegalTransition("you have accepted that already")
    return _sign(state, option.outcome)


def _share(state: TradeState, buyer_due: int) -> int:
    """Our own part of a division, in satoshis."""
    return buyer_due if state.buys else pot(agreed(state)) - buyer_due


def _sign(state: TradeState, outcome: SettlementOutcome) -> Step:
    if state.settlement.signing is not None:
        raise IllegalTransition("another settlement is being signed")
    return replace(state, settlement=replace(state.settlement, signing=outcome)), (dv.SignOutcome(outcome),)


def settlement_signed(state: TradeState, outcome: SettlementOutcome, txid: bytes, signature: bytes) -> Step:
    """Our signature is made: it answers the peer's proposal, or is one itself."""
    settlement = replace(state.settlement, signing=None)
    if not isinstance(state.phase, st.Funded | st.Paid):
        # The trade ended otherwise meanwhile: then this signature never leaves.
        return replace(state, settlement=settlement), ()
    option = settlement.find(txid) or Option(outcome, txid)
    option = replace(option, own_signature=signature)
    new = replace(state, settlement=settlement.put(option))
    if option.peer_signature is not None:
        return new, (ev.SendMessage(Agreed(txid, signature)), dv.BroadcastOutcome(txid))
    return new, (ev.SendMessage(Proposal(outcome.buyer_due, outcome.rate, signature)),)


@on((st.Funding, *ALIVE, *_OVER), dv.ProposalReceived, to=())
def _proposal_received(state: TradeState, event: dv.ProposalReceived) -> Step:
    if isinstance(state.phase, _OVER):
        return state, ()
    message = event.message
    option = state.settlement.find(event.txid) or Option(SettlementOutcome(message.buyer_due, message.rate), event.txid)
    if option.peer_signature is not None:
        raise IllegalTransition("the counterparty has proposed that already")
    if sum(o.peer_signature is not None for o in state.settlement.options) >= MAX_OPTIONS:
        raise IllegalTransition("the counterparty has made as many proposals as one trade allows")
    option = replace(option, peer_signature=message.payout_signature)
    new = replace(state, settlement=state.settlement.put(option))
    if option.own_signature is not None:
        # Both proposed the same: that is an agreement.
        return new, (dv.BroadcastOutcome(event.txid), ev.NotifyUser("settlement-agreed"))
    return new, (ev.NotifyUser("settlement-proposed"),)


@on((*ALIVE, *_OVER), dv.AgreedReceived, to=())
def _agreed_received(state: TradeState, event: dv.AgreedReceived) -> Step:
    """The peer broadcasts; so do we, because two see to it better than one."""
    raised = raise_agreed(state, event.message)
    if raised is not None:
        return raised
    option = state.settlement.find(event.message.payout_txid)
    if option is None or option.own_signature is None:
        raise IllegalTransition("we have signed no such settlement")
    if option.peer_signature is not None:
        raise IllegalTransition("that settlement is complete already")
    option = replace(option, peer_signature=event.message.payout_signature)
    new = replace(state, settlement=state.settlement.put(option))
    if isinstance(state.phase, _OVER):
        return new, ()
    return new, (dv.BroadcastOutcome(option.txid), ev.NotifyUser("settlement-agreed"))


@on((st.Funded, st.Paying, st.Paid, st.Releasing), dv.OutcomeBroadcast, to=(st.Settling,))
@on((st.Settling, *_OVER), dv.OutcomeBroadcast, to=())
def _outcome_broadcast(state: TradeState, event: dv.OutcomeBroadcast) -> Step:
    """Our backend has it; another payout may still be faster, which the chain will tell."""
    if isinstance(state.phase, st.Settling) and not state.payout.depth:
        # One at a higher fee rate replaces what waited.
        outcome = state.outcome_of(event.txid)
        return replace(state, payout=replace(state.payout, lost=False, txid=event.txid, outcome=outcome)), ()
    if isinstance(state.phase, st.Settling | st.Completed | st.Anomalous):
        return replace(state, payout=replace(state.payout, lost=False)), ()
    payout = replace(state.payout, txid=event.txid, outcome=state.outcome_of(event.txid))
    return replace(state, phase=st.Settling(), payout=payout), ()


# --- more time to pay --------------------------------------------------------------------------------------------


@on((st.Funded,), dv.RequestExtension, to=())
def _request_extension(state: TradeState, event: dv.RequestExtension) -> Step:
    only(Side.BUY, state, "ask for more time to pay")
    _check_extension(state, event.blocks)
    return _spoke(state), (ev.SendMessage(ExtensionRequest(event.blocks, event.reason)),)


@on((st.Funded,), dv.GrantExtension, to=())
def _grant_extension(state: TradeState, event: dv.GrantExtension) -> Step:
    """The window protects the seller; so it alone can lengthen it, and needs no consent for that."""
    only(Side.SELL, state, "give more time to pay")
    _check_extension(state, event.blocks)
    extended, effects = _extend(_spoke(state), event.blocks)
    return extended, (*effects, ev.SendMessage(Extension(event.blocks)))


@on((st.Funding, *ALIVE, *_OVER), dv.ExtensionRequested, to=())
def _extension_requested(state: TradeState, event: dv.ExtensionRequested) -> Step:
    del event
    only(Side.SELL, state, "be asked for more time to pay")
    return _listened(state), (ev.NotifyUser("extension-requested"),) if isinstance(state.phase, st.Funded) else ()


@on((st.Funding, *ALIVE, *_OVER), dv.ExtensionReceived, to=())
def _extension_received(state: TradeState, event: dv.ExtensionReceived) -> Step:
    only(Side.BUY, state, "be given more time to pay")
    heard = _listened(state)
    if not isinstance(state.phase, st.Funding | st.Funded):
        return heard, ()
    _check_extension(state, event.message.blocks)
    extended, effects = _extend(heard, event.message.blocks)
    return extended, (*effects, ev.NotifyUser("extension-granted"))


def _check_extension(state: TradeState, blocks: int) -> None:
    if not 1 <= blocks <= MAX_WINDOW - agreed(state).payment_window - state.extension:
        raise IllegalTransition("the payment window can't be that long")


def _extend(state: TradeState, blocks: int) -> Step:
    extended = replace(state, extension=state.extension + blocks, window_passed=False)
    return extended, deadlines(extended)


# --- chat --------------------------------------------------------------------------------------------------------

_TALKING: Final = (st.Funding, *ALIVE, st.Reclaiming, st.Completed, st.Anomalous)
_LISTENING: Final = (*_TALKING, st.Accepting, st.Accepted, st.SigningFunding, st.Cancelled, st.Declined)


@on(_TALKING, dv.SendChat, to=())
def _send_chat(state: TradeState, event: dv.SendChat) -> Step:
    return _spoke(state), (ev.SendMessage(ChatLine(event.text)),)


@on(_TALKING, dv.SendAttachment, to=())
def _send_attachment(state: TradeState, event: dv.SendAttachment) -> Step:
    return _spoke(state), (ev.SendMessage(AttachmentOffer(event.attachment, event.note)),)


@on(_LISTENING, dv.ChatReceived, to=())
def _chat_received(state: TradeState, event: dv.ChatReceived) -> Step:
    """Also where we would not write: the peer's chain may be a block ahead of ours."""
    del event
    return _listened(state), (ev.NotifyUser("chat"),)


@on(_LISTENING, dv.AttachmentReceived, to=())
def _attachment_received(state: TradeState, event: dv.AttachmentReceived) -> Step:
    del event
    return _listened(state), (ev.NotifyUser("attachment"),)


def _spoke(state: TradeState) -> TradeState:
    """We say something. Our own node keeps to the limit, for the peer's would refuse all that comes after it."""
    if state.talk.own >= MAX_TALK:
        raise IllegalTransition("you have said as much as one trade allows")
    return replace(state, talk=replace(state.talk, own=state.talk.own + 1))


def _listened(state: TradeState) -> TradeState:
    """The peer says something. Raises IllegalTransition for more than any honest node would send."""
    if state.talk.peer >= MAX_TALK:
        raise IllegalTransition("the counterparty has said as much as one trade allows")
    return replace(state, talk=replace(state.talk, peer=state.talk.peer + 1))
