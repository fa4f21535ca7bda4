"""The escrow on our own chain: the funding as it appears, deepens or goes, and what spends the escrow.

Facts come in any order and more than once; a handler states what is so, and asks only for what follows from the change.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import PaymentDetails, RulingShown
from protocol.trade_agreeing import announce_funding
from protocol.trade_events import Effect
from protocol.trade_state import TradeState
from protocol.trade_table import Step, agreed, on, stop_timers

ALIVE: Final = (st.Funded, st.Paying, st.Paid, st.Releasing, st.Settling)
"""Phases of a trade whose escrow was buried and whose end is not."""
_REVIVABLE: Final = (st.Accepted, st.Funding, st.Reclaiming, st.Cancelled)
REMINDER_PART: Final = 4
"""The buyer is reminded when this part (a quarter) of the payment window is left."""


@on(_REVIVABLE, ev.FundingSeen, to=(st.Funding,))
def _funding_seen(state: TradeState, event: ev.FundingSeen) -> Step:
    """In the mempool: the funding exists, whatever we had decided meanwhile (a reclaim that lost the race)."""
    del event
    seen = replace(state, phase=st.Funding(), funding=replace(state.funding, depth=0, height=None), ending="")
    announced, seal = announce_funding(seen)
    return announced, (ev.StopTimer("funding"), ev.StopTimer("seal"), *seal)


@on(_REVIVABLE, ev.FundingConfirmed, to=(st.Funding, st.Funded))
def _funding_confirmed(state: TradeState, event: ev.FundingConfirmed) -> Step:
    """Deep enough, the buyer may pay; the seller opens its payment details."""
    facts = replace(state.funding, depth=event.depth, height=event.height)
    known, seal = announce_funding(replace(state, phase=st.Funding(), funding=facts, ending=""))
    stop = (ev.StopTimer("funding"), ev.StopTimer("seal"), *seal)
    if not known.buried:
        return known, stop
    funded = replace(known, phase=st.Funded())
    if state.buys:
        return funded, (*stop, *deadlines(funded), ev.NotifyUser("escrow-funded"))
    if state.own_details is None:
        raise IllegalTransition("the seller's payment details are missing")
    details = ev.SendMessage(PaymentDetails(state.own_details))
    return funded, (*stop, *deadlines(funded), details, ev.NotifyUser("escrow-funded"))


def deadlines(state: TradeState) -> tuple[Effect, ...]:
    """The deadlines that count from the escrow's block, set anew."""
    effects: list[Effect] = []
    ends = state.window_ends
    if ends is not None and isinstance(state.phase, st.Funded) and not state.window_passed:
        window = agreed(state).payment_window + state.extension
        reminder = ends - max(1, window // REMINDER_PART)
        effects += [ev.SetTimer("payment", height=ends), ev.SetTimer("payment-reminder", height=reminder)]
    if state.dispute is not None and state.backup_from is not None:
        # A transaction is relayed once the next block may hold it.
        effects.append(ev.SetTimer("backup", height=state.backup_from - 1))
    return tuple(effects)


@on(ALIVE, ev.FundingSeen, to=())
def _funding_seen_again(state: TradeState, event: ev.FundingSeen) -> Step:
    del event
    return replace(state, funding=replace(state.funding, depth=0, height=None)), ()


@on(ALIVE, ev.FundingConfirmed, to=())
def _funding_deepens(state: TradeState, event: ev.FundingConfirmed) -> Step:
    new = replace(state, funding=replace(state.funding, depth=event.depth, height=event.height))
    if event.height == state.funding.height:
        return new, ()
    if new.dispute is not None:
        new = replace(new, dispute=replace(new.dispute, backup_open=False))
    return new, deadlines(new)


@on((*_REVIVABLE, *ALIVE), ev.FundingReorged, to=())
def _funding_reorged(state: TradeState, event: ev.FundingReorged) -> Step:
    """The phase stays; payment and release wait until it is buried again. The seller broadcasts again."""
    del event
    gone = replace(state, funding=replace(state.funding, depth=None, height=None))
    stands = isinstance(state.phase, (st.Funding, *ALIVE))
    again = (ev.BroadcastFunding(),) if stands and not state.buys else ()
    return gone, (*again, ev.NotifyUser("funding-reorged"))


@on(ALIVE, ev.FundingRefused, to=())
def _funding_refused_again(state: TradeState, event: ev.FundingRefused) -> Step:
    """A funding that was buried and reorganised out can't be rebroadcast: only the user can judge that."""
    del event
    return state, (ev.NotifyUser("funding-lost"),)


@on(ALIVE, ev.FundingConflicted, to=())
def _funding_conflicted_late(state: TradeState, event: ev.FundingConflicted) -> Step:
    del event
    return state, (ev.NotifyUser("funding-conflicted"),)


# --- what spends it ----------------------------------------------------------------------------------------------


@on((*_REVIVABLE, *ALIVE, st.Anomalous), ev.EscrowSpent, to=(st.Settling, st.Completed, st.Anomalous))
def _escrow_spent(state: TradeState, event: ev.EscrowSpent) -> Step:
    agreed(state)
    return judge_spend(replace(state, payout=replace(state.payout, depth=event.depth, txid=event.txid, lost=False)))


def judge_spend(state: TradeState) -> Step:
    """What follows from the transaction that spends the escrow, by all that is known of it now.

    Called again when a ruling arrives: its payout may be on chain before it.
    """
    txid, depth = state.payout.txid, state.payout.depth
    if txid is None or depth is None:
        return state, ()
    outcome = state.outcome_of(txid)
    state = replace(state, payout=replace(state.payout, outcome=outcome))
    buried = depth >= agreed(state).confirmations
    if outcome is None:
        if isinstance(state.phase, st.Anomalous):
            return state, ()
        state, shown = show_rulings(state)
        if not buried:
            return state, (*shown, ev.NotifyUser("unknown-spend"))
        ended = replace(state, phase=st.Anomalous(), ending="the escrow was spent by an unknown transaction")
        return ended, (*shown, ev.NotifyUser("unknown-spend"), ev.ReleaseCoins(), *stop_timers())
    if not buried:
        return replace(state, phase=st.Settling(), ending=""), (
            ev.StopTimer("payment"),
            ev.StopTimer("payment-reminder"),
            ev.StopTimer("hearing-reminder"),
        )
    done = replace(state, phase=st.Completed(), ending="")
    return done, (ev.ReleaseCoins(), *stop_timers(), ev.StopWatching(), ev.NotifyUser("trade-completed"))


def show_rulings(state: TradeState) -> Step:
    """What we were told does not fit what we see: perhaps the arbiter told the peer something else. Once."""
    dispute = state.dispute
    given = [r for r in (dispute.main.ruling, dispute.backup.ruling) if r is not None] if dispute is not None else []
    if dispute is None or dispute.showed or not given:
        return state, ()
    shown = replace(state, dispute=replace(dispute, showed=True))
    return shown, tuple(ev.SendMessage(RulingShown(ruling.raw, ruling.text)) for ruling in given)


@on((st.Settling,), ev.SpendReorged, to=())
def _spend_reorged(state: TradeState, event: ev.SpendReorged) -> Step:
    """The payout left the chain: whoever holds both signatures broadcasts it again."""
    del event
    gone = replace(state, payout=replace(state.payout, depth=None, lost=True))
    return gone, (*_rebroadcast(state), ev.NotifyUser("payout-reorged"))


def _rebroadcast(state: TradeState) -> tuple[Effect, ...]:
    """The payout that left the chain or, where we can't make that one, any other that we can."""
    payout, ours = state.payout, list[tuple[bytes, Effect]]()
    if state.facts is not None and payout.own_signature is not None and payout.peer_signature is not None:
        ours.append((state.facts.payout_txid, ev.BroadcastPayout()))
    rulings = state.dispute.rulings if state.dispute is not None else ()
    signed_again = sorted(payout.variants, key=lambda v: v.outcome.rate or 0, reverse=True)
    settled = [v.txid for v in signed_again if v.complete]
    settled += [o.txid for o in state.settlement.options if o.complete]
    ruled = [r.txid for r in rulings if r.own_signature is not None]
    ours += [(txid, dv.BroadcastOutcome(txid)) for txid in (*settled, *ruled)]
    ours.sort(key=lambda candidate: candidate[0] != payout.txid)
    return tuple(effect for _, effect in ours[:1])


@on((st.Releasing, st.Paid, st.Funded, st.Paying), ev.SpendReorged, to=())
def _foreign_spend_reorged(state: TradeState, event: ev.SpendReorged) -> Step:
    del event
    return replace(state, payout=replace(state.payout, depth=None, txid=None, outcome=None)), ()
