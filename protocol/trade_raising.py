"""An agreed payout that waits too long is signed again by both, at a higher fee rate (SPEC section 7.4).

Whoever finds that the payout is stuck proposes a rate and gives its signature; the other's node answers by itself, as
long as the rate is in the band that both have signed with the contract. Everything else is denied: a rate outside of
the band, a step too small to replace what waits, a division that was not agreed on, a payout that is in a block. The
new payout pays the same dues; what it costs more is split as the contract splits every fee, so nobody is asked to agree
to anything new. A ruling is not raised like this, because its arbiter would have to sign again: a child pays for it.

Both transactions stay valid until one is mined, and either is an end that both have signed.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import Agreed, FeeProposal
from protocol.outcome import Agreement, ReleaseOutcome, RulingOutcome, same_dues
from protocol.trade_state import TradeState, Variant
from protocol.trade_table import Step, agreed, on

MIN_RAISE: Final = 1_000
"""Satoshis per 1,000 vB by which a rate must rise at least: what nodes ask of a replacement (BIP125, rule 4)."""
MAX_RAISES: Final = 16
"""Times that one side may propose a rate in one trade."""
_AGREED: Final = (st.Funded, st.Paying, st.Paid, st.Releasing, st.Settling)
"""Phases in which both may have signed a payout: the peer may know of it first."""


@on(_AGREED, dv.RaiseFee, to=())
def _raise(state: TradeState, event: dv.RaiseFee) -> Step:
    standing = _standing(state)
    if standing is None:
        why = "only buyer and seller sign again: a child pays for a ruling's payout"
        raise IllegalTransition(why if state.payout.txid else "no payout is on its way that both have agreed on")
    _, outcome = standing
    if state.payout.depth:
        raise IllegalTransition("the payout is in a block already")
    if state.payout.raising is not None:
        raise IllegalTransition("another fee rate is being signed")
    if sum(v.own_signature is not None for v in state.payout.variants) >= MAX_RAISES:
        raise IllegalTransition("you have proposed as many fee rates as one trade allows")
    fees = agreed(state).fees
    least = _highest(state, outcome) + MIN_RAISE
    if not least <= event.rate <= fees.payout_max:
        if least > fees.payout_max:
            raise IllegalTransition("the payout pays as much as the contract allows already: a child may pay for it")
        band = f"between {least / 1000:g} and {fees.payout_max / 1000:g} sat/vB"
        raise IllegalTransition(f"name a fee rate {band}: over what is signed already, and within the contract's band")
    return _sign(state, replace(outcome, rate=event.rate))


@on(_AGREED, dv.FeeProposalReceived, to=())
@on((st.Completed, st.Anomalous), dv.FeeProposalReceived, to=())
def _fee_proposed(state: TradeState, event: dv.FeeProposalReceived) -> Step:
    """The signature on it is valid. Whether ours follows is decided here, not by the user."""
    if isinstance(state.phase, st.Completed | st.Anomalous):
        return state, ()
    known = state.payout.variant(event.txid)
    if known is not None and known.peer_signature is not None:
        raise IllegalTransition("the counterparty has proposed that fee rate already")
    if sum(v.peer_signature is not None for v in state.payout.variants) >= MAX_RAISES:
        raise IllegalTransition("the counterparty has proposed as many fee rates as one trade allows")
    variant = replace(known or Variant(event.outcome, event.txid), peer_signature=event.message.payout_signature)
    new = replace(state, payout=state.payout.put(variant))
    if variant.own_signature is not None:
        return new, (dv.BroadcastOutcome(event.txid), ev.NotifyUser("payout-fee-raised"))
    if new.payout.raising is not None:
        # What is being signed comes first; `raise_signed` looks at this again.
        return new, ()
    if not _agreeable(new, event.outcome):
        return new, (ev.NotifyUser("payout-fee-declined"),)
    return _sign(new, event.outcome)


def is_raise(state: TradeState, outcome: object) -> bool:
    """Whether a signature on `outcome` is one that this file asked for."""
    return state.payout.raising is not None and outcome == state.payout.raising


def raise_signed(state: TradeState, event: dv.OutcomeSigned) -> Step:
    """Our signature at a higher rate: it answers the peer's, or is a proposal itself."""
    outcome = state.payout.raising
    state = replace(state, payout=replace(state.payout, raising=None))
    if outcome is None or state.payout.depth:
        # It was mined meanwhile: this signature never leaves.
        return state, ()
    standing = _standing(state)
    variant = state.payout.variant(event.txid) or Variant(outcome, event.txid)
    variant = replace(variant, own_signature=event.signature)
    new = replace(state, payout=state.payout.put(variant))
    if variant.peer_signature is not None:
        answer = (ev.SendMessage(Agreed(event.txid, event.signature)), dv.BroadcastOutcome(event.txid))
        return new, (*answer, ev.NotifyUser("payout-fee-raised"))
    if standing is None or outcome.rate is None:
        raise IllegalTransition("there is no agreed payout any more whose fee could be raised")
    sent, effects = new, (ev.SendMessage(FeeProposal(standing[0], outcome.rate, event.signature)),)
    waiting = [v for v in new.payout.variants if v.peer_signature is not None and v.own_signature is None]
    best = max(waiting, key=lambda v: v.outcome.rate or 0, default=None)
    if best is not None and _agreeable(new, best.outcome):
        sent, more = _sign(new, best.outcome)
        return sent, (*effects, *more)
    return sent, effects


def raise_agreed(state: TradeState, message: Agreed) -> Step | None:
    """The peer's answer to a proposal of ours; None when it is about something else."""
    variant = state.payout.variant(message.payout_txid)
    if variant is None:
        return None
    if variant.own_signature is None:
        raise IllegalTransition("we have proposed no such fee rate")
    if variant.peer_signature is not None:
        raise IllegalTransition("that fee rate is agreed on already")
    new = replace(state, payout=state.payout.put(replace(variant, peer_signature=message.payout_signature)))
    if isinstance(state.phase, st.Completed | st.Anomalous):
        return new, ()
    return new, (dv.BroadcastOutcome(variant.txid), ev.NotifyUser("payout-fee-raised"))


def _sign(state: TradeState, outcome: Agreement) -> Step:
    return replace(state, payout=replace(state.payout, raising=outcome)), (dv.SignOutcome(outcome),)


def _standing(state: TradeState) -> tuple[bytes, Agreement] | None:
    """The agreed payout that is on its way; None for a ruling's, for one that we do not know, and where there is none.

    It may have been refused everywhere, because it pays less than the mempool's floor: then no chain shows it.
    """
    txid = state.payout.txid
    if txid is not None:
        outcome = state.outcome_of(txid)
        return None if outcome is None or isinstance(outcome, RulingOutcome) else (txid, outcome)
    settled = next((o for o in state.settlement.options if o.complete), None)
    if settled is not None:
        return settled.txid, settled.outcome
    if isinstance(state.phase, st.Releasing) and state.payout.own_signature is not None and state.facts is not None:
        return state.facts.payout_txid, ReleaseOutcome()
    return None


def _agreeable(state: TradeState, outcome: Agreement) -> bool:
    """Whether our node signs at the rate that the peer proposes."""
    fees = agreed(state).fees
    rate = fees.payout if outcome.rate is None else outcome.rate
    return (
        not state.payout.depth
        and _both_want(state, outcome)
        and _highest_own(state, outcome) + MIN_RAISE <= rate <= fees.payout_max
    )


def _both_want(state: TradeState, outcome: Agreement) -> bool:
    """A release that we have signed, or a settlement that both have."""
    if isinstance(outcome, ReleaseOutcome):
        return state.payout.own_signature is not None
    return any(o.complete and same_dues(o.outcome, outcome) for o in state.settlement.options)


def _highest(state: TradeState, outcome: Agreement) -> int:
    """The highest rate at which anybody has signed these dues."""
    rates = [v.outcome.rate or 0 for v in state.payout.variants if same_dues(v.outcome, outcome)]
    return max([_base_rate(state, outcome), *rates])


def _highest_own(state: TradeState, outcome: Agreement) -> int:
    """The highest rate at which we have signed these dues."""
    mine = (v for v in state.payout.variants if v.own_signature is not None and same_dues(v.outcome, outcome))
    return max([_base_rate(state, outcome), *(v.outcome.rate or 0 for v in mine)])


def _base_rate(state: TradeState, outcome: Agreement) -> int:
    """The rate at which these dues were signed first."""
    settled = (o.outcome.rate for o in state.settlement.options if same_dues(o.outcome, outcome))
    return min(settled, default=agreed(state).fees.payout)
