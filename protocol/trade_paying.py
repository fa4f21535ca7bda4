"""Paying and releasing (SPEC section 7.2, messages 4 to 6)."""

from __future__ import annotations

from msgspec.structs import replace

from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import Paid, Released
from protocol.trade_state import TradeState
from protocol.trade_table import Step, on, only
from protocol.types import Side


@on((st.Funding, st.Funded, st.Reclaiming), ev.DetailsReceived, to=())
def _details_received(state: TradeState, event: ev.DetailsReceived) -> Step:
    """May come before our own chain shows the escrow buried; paying waits for both."""
    only(Side.BUY, state, "be sent payment details")
    if state.peer_details is not None:
        raise IllegalTransition("the seller has opened its payment details already")
    return replace(state, peer_details=event.message.opened), (ev.NotifyUser("payment-details"),)


@on((st.Funded,), ev.DeclarePaid, to=(st.Paying,))
def _declare_paid(state: TradeState, event: ev.DeclarePaid) -> Step:
    only(Side.BUY, state, "declare the payment")
    if not state.buried:
        raise IllegalTransition("the escrow is not buried deep enough: do not pay yet")
    if state.peer_details is None:
        raise IllegalTransition("the seller has not opened its payment details yet")
    if state.settlement.binding:
        raise IllegalTransition("you have signed a settlement, which the seller may still complete: do not pay")
    if state.dispute is not None and state.dispute.rulings:
        raise IllegalTransition("the arbiter has ruled: do not pay any more")
    return replace(state, phase=st.Paying(), payment_note=event.note), (ev.SignPayout(),)


@on((st.Paying,), ev.PayoutSigned, to=(st.Paid,))
def _buyer_signed(state: TradeState, event: ev.PayoutSigned) -> Step:
    if state.own_details is None:
        raise IllegalTransition("our own payment details are missing")
    paid = Paid(state.own_details, event.signature, state.payment_note)
    new = replace(state, phase=st.Paid(), payout=replace(state.payout, own_signature=event.signature))
    return new, (ev.SendMessage(paid), ev.StopTimer("payment"), ev.StopTimer("payment-reminder"))


@on((st.Funded,), ev.PaidReceived, to=(st.Paid,))
def _paid_received(state: TradeState, event: ev.PaidReceived) -> Step:
    only(Side.SELL, state, "be paid")
    new = replace(
        state,
        phase=st.Paid(),
        peer_details=event.message.opened,
        payment_note=event.message.note,
        payout=replace(state.payout, peer_signature=event.message.payout_signature),
    )
    stop = (ev.StopTimer("payment"), ev.StopTimer("payment-reminder"))
    return new, (*stop, ev.NotifyUser("payment-declared"))


@on((st.Settling, st.Completed, st.Anomalous), ev.PaidReceived, to=())
def _paid_too_late(state: TradeState, event: ev.PaidReceived) -> Step:
    """The escrow went another way before the buyer knew of it."""
    only(Side.SELL, state, "be paid")
    if state.payout.peer_signature is not None:
        raise IllegalTransition("the payment was declared already")
    return replace(state, peer_details=event.message.opened, payment_note=event.message.note), (
        ev.NotifyUser("payment-declared-late"),
    )


@on((st.Paid,), ev.Release, to=(st.Releasing,))
def _release(state: TradeState, event: ev.Release) -> Step:
    """Only with the escrow buried: releasing an escrow that a reorganisation may undo could pay twice."""
    del event
    only(Side.SELL, state, "release the escrow")
    if not state.buried:
        raise IllegalTransition("the escrow is not buried deep enough: wait before releasing")
    if any(o.own_signature is not None and o.peer_signature is not None for o in state.settlement.options):
        raise IllegalTransition("both have signed a settlement, which is being paid out")
    return replace(state, phase=st.Releasing()), (ev.SignPayout(),)


@on((st.Releasing,), ev.PayoutSigned, to=())
def _seller_signed(state: TradeState, event: ev.PayoutSigned) -> Step:
    new = replace(state, payout=replace(state.payout, own_signature=event.signature))
    return new, (ev.BroadcastPayout(),)


@on((st.Releasing,), ev.PayoutBroadcast, to=(st.Settling,))
@on((st.Settling, st.Completed), ev.PayoutBroadcast, to=())
def _payout_broadcast(state: TradeState, event: ev.PayoutBroadcast) -> Step:
    """Say so once. The chain may have shown it first."""
    settled = isinstance(state.phase, st.Completed)
    new = state if settled else replace(state, phase=st.Settling())
    if state.payout.announced:
        return replace(new, payout=replace(new.payout, lost=False)), ()
    new = replace(new, payout=replace(new.payout, announced=True, txid=event.txid))
    return new, (ev.SendMessage(Released(event.txid)),)


@on((st.Funded, st.Paying, st.Paid, st.Releasing, st.Settling), ev.PayoutDelayed, to=())
def _payout_refused(state: TradeState, event: ev.PayoutDelayed) -> Step:
    """It stays signed: every block it is tried again, and the user may raise its fee."""
    del event
    return state, (ev.NotifyUser("payout-fee-too-low"),)


@on((st.Paid, st.Settling, st.Completed), ev.ReleasedReceived, to=())
def _released_received(state: TradeState, event: ev.ReleasedReceived) -> Step:
    """A courtesy: the trade completes when our own chain shows the payout, not before."""
    del event
    only(Side.BUY, state, "be sent a release")
    if state.payout.announced:
        raise IllegalTransition("the release was announced already")
    return replace(state, payout=replace(state.payout, announced=True)), (ev.NotifyUser("payout-announced"),)
