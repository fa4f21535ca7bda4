"""The trade machine: one pure, role-blind function (DESIGN section 3, SPEC section 8).

`step(state, event)` returns the next state and the effects it asks for. It reads no clock, draws no randomness and
touches no key; whoever calls it commits state, event and effects in one transaction before any effect is carried out.
The transitions are the table `TRANSITIONS`: a handler for each (phase, event) pair that is legal, with the phases it
may lead to. Every other pair raises IllegalTransition and changes nothing.

Three rules carry the money. The seller signs and broadcasts the funding last. Whoever's funding signature is out
watches the chain from that commit on, and leaves only by spending its own inputs. Only our own chain backend moves a
trade into or out of Funded and into Completed; what a peer says of the chain is never more than a hint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, cast, get_args

from msgspec.structs import replace

from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import Accept, Decline, Funding, Paid, PaymentDetails, Released, Seal, WitnessStack
from protocol.trade_events import Effect, TradeEvent
from protocol.trade_state import AnyPhase, TradeState
from protocol.types import Seat, Side

ANSWER_SECONDS: Final = 900
"""How long a taker waits for the maker, and a selling maker for the seal. Nothing of theirs is locked meanwhile."""
FUNDING_DEADLINE_BLOCKS: Final = 12
"""Blocks after which a buyer, whose funding signatures are out, takes its coins back if nothing was broadcast."""
WITHDRAWN: Final = 1100
"""The reason code of a decline by choice or by time."""

Step = tuple[TradeState, tuple[Effect, ...]]
Handler = Callable[[TradeState, TradeEvent], Step]
E = TypeVar("E", bound=TradeEvent)

TRANSITIONS: Final[dict[tuple[type[AnyPhase], type[TradeEvent]], tuple[Handler, frozenset[type[AnyPhase]]]]] = {}
"""(phase, event) -> (handler, phases it may lead to). Filled by `_on` below; complete once this module is loaded."""


def step(state: TradeState | None, event: TradeEvent) -> Step:
    """Decide. `state` is None only before `TakeOffer` or `TakeReceived`. Raises IllegalTransition."""
    if state is None:
        return _begin(event)
    entry = TRANSITIONS.get((type(state.phase), type(event)))
    if entry is None:
        raise IllegalTransition(_refusal(state, event))
    handler, targets = entry
    new, effects = handler(state, event)
    if type(new.phase) not in targets:
        raise AssertionError(f"{type(state.phase).__name__} may not lead to {type(new.phase).__name__}")
    return new, effects


def _refusal(state: TradeState, event: TradeEvent) -> str:
    phase = type(state.phase).__name__
    return f"{type(event).__name__} is not possible while the trade is {phase}"


def _on(
    phases: tuple[type[AnyPhase], ...], event: type[E], *, to: tuple[type[AnyPhase], ...]
) -> Callable[[Callable[[TradeState, E], Step]], Callable[[TradeState, E], Step]]:
    """Enter a handler in the table. `to` lists the phases it may lead to; the present one counts as included."""

    def enter(handler: Callable[[TradeState, E], Step]) -> Callable[[TradeState, E], Step]:
        for phase in phases:
            key = (phase, cast("type[TradeEvent]", event))
            if key in TRANSITIONS:
                raise AssertionError(f"two handlers for {key}")
            # Sound: `step` looks a handler up by the very type of the event that it is given.
            TRANSITIONS[key] = (cast("Handler", handler), frozenset((*to, phase)))
        return handler

    return enter


def _only(side: Side, state: TradeState, what: str) -> None:
    if state.side is not side:
        who = "buyer" if side is Side.BUY else "seller"
        raise IllegalTransition(f"only the {who} can {what}")


def _only_seat(seat: Seat, state: TradeState, what: str) -> None:
    if state.seat is not seat:
        raise IllegalTransition(f"only the {seat.name.lower()} can {what}")


# --- the beginning -----------------------------------------------------------------------------------------------


def _begin(event: TradeEvent) -> Step:
    match event:
        case ev.TakeOffer():
            state = TradeState(
                trade_id=event.trade_id,
                network=event.network,
                seat=Seat.TAKER,
                side=event.offer.side.other,
                peer=event.offer.maker,
                offer=event.offer,
                take=event.take,
                phase=st.Taking(),
                own_details=event.own_details,
            )
            return state, (ev.SendMessage(event.take), ev.SetTimer("answer", seconds=ANSWER_SECONDS))
        case ev.TakeReceived():
            state = TradeState(
                trade_id=event.trade_id,
                network=event.network,
                seat=Seat.MAKER,
                side=event.offer.side,
                peer=event.take.party.persona,
                offer=event.offer,
                take=event.take,
                phase=st.Accepting(),
            )
            return state, (ev.PrepareContribution(), ev.NotifyUser("offer-taken"))
        case _:
            raise IllegalTransition(f"{type(event).__name__} belongs to a trade that this node does not know")


# --- agreeing ----------------------------------------------------------------------------------------------------


@_on((st.Accepting,), ev.ContributionReady, to=(st.Accepted, st.SigningFunding))
def _contribution_ready(state: TradeState, event: ev.ContributionReady) -> Step:
    """The maker's side stands. A selling maker signs nothing on chain yet: the buyer signs first."""
    agreed = replace(
        state,
        contract=event.contract,
        facts=event.facts,
        maker_signature=event.contract_signature,
        own_details=event.own_details,
    )
    accept = Accept(event.contract.maker, Funding(event.previous), event.contract_signature, None)
    if state.buys:
        return replace(agreed, phase=st.SigningFunding()), (ev.SignFunding(accept),)
    return replace(agreed, phase=st.Accepted()), (
        ev.SendMessage(accept),
        ev.SetTimer("seal", seconds=ANSWER_SECONDS),
    )


@_on((st.Accepting,), ev.ContributionFailed, to=(st.Declined,))
def _contribution_failed(state: TradeState, event: ev.ContributionFailed) -> Step:
    return _close(state, st.Declined(), event.text, ev.SendMessage(Decline(event.reason, event.text)))


@_on((st.Taking,), ev.AcceptReceived, to=(st.SigningFunding,))
def _accept_received(state: TradeState, event: ev.AcceptReceived) -> Step:
    agreed = replace(
        state,
        phase=st.SigningFunding(),
        contract=event.contract,
        facts=event.facts,
        maker_signature=event.accept.contract_signature,
        funding=replace(state.funding, peer_witnesses=event.accept.witnesses),
    )
    return agreed, (ev.StopTimer("answer"), ev.SignFunding(None))


@_on((st.SigningFunding,), ev.FundingSigned, to=(st.Accepted, st.Funding))
def _funding_signed(state: TradeState, event: ev.FundingSigned) -> Step:
    """Our inputs are signed: the seller completes and broadcasts, the buyer hands its witnesses over."""
    signed = replace(state, funding=replace(state.funding, own_witnesses=event.witnesses))
    if not state.made:
        signed = replace(signed, taker_signature=event.contract_signature)
    if not state.buys:
        # Watch before broadcast: the backend must not confirm what we do not look for.
        return replace(signed, phase=st.Funding()), (ev.WatchEscrow(), ev.BroadcastFunding())
    watch = (ev.WatchEscrow(), ev.SetTimer("funding", blocks=FUNDING_DEADLINE_BLOCKS))
    if state.made:
        return replace(signed, phase=st.Accepted()), (*watch, _accept_with(event))
    seal = Seal(event.contract_signature, event.witnesses, None)
    return replace(signed, phase=st.Funding()), (*watch, ev.SendMessage(seal))


def _accept_with(event: ev.FundingSigned) -> Effect:
    if event.accept is None:
        raise IllegalTransition("a buying maker's signatures belong to its accept")
    return ev.SendMessage(replace(event.accept, witnesses=event.witnesses))


@_on((st.Accepted, st.Funding, st.Funded, st.Reclaiming), ev.SealReceived, to=(st.SigningFunding, st.Funding))
def _seal_received(state: TradeState, event: ev.SealReceived) -> Step:
    """The taker's signature. A buying maker may have seen the funding on its chain before."""
    _only_seat(Seat.MAKER, state, "be sent a seal")
    if state.taker_signature is not None:
        raise IllegalTransition("the contract is sealed already")
    sealed = replace(state, taker_signature=event.seal.contract_signature)
    if state.buys:
        phase = st.Funding() if isinstance(state.phase, st.Accepted) else state.phase
        return replace(sealed, phase=phase), ()
    if not isinstance(state.phase, st.Accepted):
        raise IllegalTransition(_refusal(state, event))
    signing = replace(
        sealed,
        phase=st.SigningFunding(),
        funding=replace(state.funding, peer_witnesses=event.seal.witnesses),
    )
    return signing, (ev.StopTimer("seal"), ev.SignFunding(None))


@_on((st.Funding, st.Funded, st.Paid, st.Releasing, st.Settling, st.Completed), ev.FundingBroadcast, to=())
def _funding_broadcast(state: TradeState, event: ev.FundingBroadcast) -> Step:
    """The seller's backend has it, perhaps again after a reorganisation."""
    del event
    _only(Side.SELL, state, "broadcast the funding")
    return _announce_funding(state)


def _announce_funding(state: TradeState) -> Step:
    """A selling taker sends its seal, once, when its backend has the funding, by whichever event tells so first."""
    if state.made or state.buys or state.funding.announced or state.facts is None or state.taker_signature is None:
        return state, ()
    announced = replace(state, funding=replace(state.funding, announced=True))
    return announced, (ev.SendMessage(Seal(state.taker_signature, None, state.facts.funding_txid)),)


@_on((st.Funding,), ev.FundingRefused, to=(st.Cancelled,))
def _funding_refused(state: TradeState, event: ev.FundingRefused) -> Step:
    """Our own witnesses went nowhere but to our own backend, which refused them: nothing is locked."""
    _only(Side.SELL, state, "broadcast the funding")
    if state.funding.depth is not None:
        return state, ()
    text = f"the funding transaction was refused: {event.text}"[:500]
    return _close(state, st.Cancelled(), text, ev.SendMessage(Decline(WITHDRAWN, text)))


# --- leaving before anything is locked ---------------------------------------------------------------------------


def _close(state: TradeState, phase: AnyPhase, ending: str, *effects: Effect) -> Step:
    """End a trade whose coins are free again."""
    tidy = (ev.ReleaseCoins(), ev.StopTimer("answer"), ev.StopTimer("seal"), ev.NotifyUser("trade-ended"))
    return replace(state, phase=phase, ending=ending), (*effects, *tidy)


def _withdraw(state: TradeState, reason: str, *, tell_peer: bool) -> Step:
    """Leave; with our funding signatures out, only by spending our own inputs."""
    farewell = (ev.SendMessage(Decline(WITHDRAWN, reason)),) if tell_peer else ()
    exposed = state.funding.own_witnesses
    if not exposed:
        # A buyer without inputs loses nothing by leaving, but goes on watching: see `_revived`.
        return _close(state, st.Cancelled(), reason, *farewell)
    reclaiming = replace(state, phase=st.Reclaiming(), ending=reason)
    return reclaiming, (*farewell, ev.ReclaimCoins(), ev.NotifyUser("reclaiming"))


_LEAVABLE: Final = (st.Taking, st.Accepting, st.Accepted, st.SigningFunding, st.Funding)


@_on(_LEAVABLE, ev.Cancel, to=(st.Cancelled, st.Reclaiming))
def _cancel(state: TradeState, event: ev.Cancel) -> Step:
    _check_leavable(state)
    return _withdraw(state, event.reason or "cancelled by the user", tell_peer=True)


@_on(_LEAVABLE, ev.DeclineReceived, to=(st.Cancelled, st.Declined, st.Reclaiming))
def _decline_received(state: TradeState, event: ev.DeclineReceived) -> Step:
    """The peer is out. That it says so proves nothing about what it may still broadcast."""
    _check_leavable(state)
    reason = f"the counterparty withdrew: {event.message.text}"
    if isinstance(state.phase, st.Taking):
        return _close(state, st.Declined(), reason)
    return _withdraw(state, reason, tell_peer=False)


@_on((st.Taking,), ev.DeliveryRefused, to=(st.Declined,))
def _take_refused(state: TradeState, event: ev.DeliveryRefused) -> Step:
    return _close(state, st.Declined(), f"the maker's node refused the take: {event.text}")


@_on(
    tuple(phase for phase in get_args(AnyPhase) if phase is not st.Taking),
    ev.DeliveryRefused,
    to=(),
)
def _message_refused(state: TradeState, event: ev.DeliveryRefused) -> Step:
    """Nobody signed that refusal, so nothing follows from it but that the user should look."""
    del event
    return state, (ev.NotifyUser("message-refused"),)


def _check_leavable(state: TradeState) -> None:
    if state.funding.depth is not None:
        raise IllegalTransition("the escrow is funded already: release, settle or dispute it")
    if isinstance(state.phase, st.Funding) and not state.buys:
        raise IllegalTransition("the funding transaction is being broadcast already")


@_on((st.Taking, st.Accepted, st.Accepting, st.Funding), ev.TimerFired, to=(st.Cancelled, st.Reclaiming))
def _timer_before_funding(state: TradeState, event: ev.TimerFired) -> Step:
    waited_for = {st.Taking: "answer", st.Accepted: "seal"}.get(type(state.phase))
    if event.name == "funding" and state.buys and state.funding.depth is None:
        return _withdraw(state, "the counterparty did not fund the escrow in time", tell_peer=True)
    if event.name == waited_for and not state.funding.own_witnesses:
        return _withdraw(state, "the counterparty did not answer in time", tell_peer=True)
    return state, ()


@_on((st.Reclaiming,), ev.CoinsReclaimed, to=())
def _coins_reclaimed(state: TradeState, event: ev.CoinsReclaimed) -> Step:
    del event  # the chain will tell which transaction won
    return state, ()


@_on(
    (st.Accepted, st.SigningFunding, st.Funding, st.Reclaiming, st.Cancelled),
    ev.FundingConflicted,
    to=(st.Cancelled,),
)
def _funding_conflicted(state: TradeState, event: ev.FundingConflicted) -> Step:
    """An input is spent elsewhere: buried as deep as the escrow would have to be, the trade is over."""
    if state.contract is None or isinstance(state.phase, st.Cancelled):
        return state, ()
    if event.depth < state.contract.confirmations:
        return state, ()
    ending = state.ending or "an input of the funding was spent elsewhere"
    closed, effects = _close(replace(state, funding=st.FundingFacts()), st.Cancelled(), ending)
    return closed, (*effects, ev.StopTimer("funding"), ev.StopWatching())


# --- the escrow on our own chain ---------------------------------------------------------------------------------

_ALIVE: Final = (st.Funded, st.Paying, st.Paid, st.Releasing, st.Settling)
_REVIVABLE: Final = (st.Accepted, st.Funding, st.Reclaiming, st.Cancelled)


@_on(_REVIVABLE, ev.FundingSeen, to=(st.Funding,))
def _funding_seen(state: TradeState, event: ev.FundingSeen) -> Step:
    """In the mempool: the funding exists, whatever we had decided meanwhile (a reclaim that lost the race)."""
    del event
    seen = replace(state, phase=st.Funding(), funding=replace(state.funding, depth=0, height=None), ending="")
    announced, seal = _announce_funding(seen)
    return announced, (ev.StopTimer("funding"), ev.StopTimer("seal"), *seal)


@_on(_REVIVABLE, ev.FundingConfirmed, to=(st.Funding, st.Funded))
def _funding_confirmed(state: TradeState, event: ev.FundingConfirmed) -> Step:
    """Deep enough, the buyer may pay; the seller opens its payment details."""
    facts = replace(state.funding, depth=event.depth, height=event.height)
    known, seal = _announce_funding(replace(state, phase=st.Funding(), funding=facts, ending=""))
    stop = (ev.StopTimer("funding"), ev.StopTimer("seal"), *seal)
    if not known.buried or state.contract is None:
        return known, stop
    window = ev.SetTimer("payment", blocks=state.contract.payment_window)
    funded = replace(known, phase=st.Funded())
    if state.buys:
        return funded, (*stop, window, ev.NotifyUser("escrow-funded"))
    if state.own_details is None:
        raise IllegalTransition("the seller's payment details are missing")
    details = ev.SendMessage(PaymentDetails(state.own_details))
    return funded, (*stop, window, details, ev.NotifyUser("escrow-funded"))


@_on(_ALIVE, ev.FundingSeen, to=())
def _funding_seen_again(state: TradeState, event: ev.FundingSeen) -> Step:
    del event
    return replace(state, funding=replace(state.funding, depth=0, height=None)), ()


@_on(_ALIVE, ev.FundingConfirmed, to=())
def _funding_deepens(state: TradeState, event: ev.FundingConfirmed) -> Step:
    return replace(state, funding=replace(state.funding, depth=event.depth, height=event.height)), ()


@_on((*_REVIVABLE, *_ALIVE), ev.FundingReorged, to=())
def _funding_reorged(state: TradeState, event: ev.FundingReorged) -> Step:
    """The phase stays; payment and release wait until it is buried again. The seller broadcasts again."""
    del event
    gone = replace(state, funding=replace(state.funding, depth=None, height=None))
    stands = isinstance(state.phase, (st.Funding, *_ALIVE))
    again = (ev.BroadcastFunding(),) if stands and not state.buys else ()
    return gone, (*again, ev.NotifyUser("funding-reorged"))


@_on(_ALIVE, ev.FundingRefused, to=())
def _funding_refused_again(state: TradeState, event: ev.FundingRefused) -> Step:
    """A funding that was buried and reorganised out can't be rebroadcast: only the user can judge that."""
    del event
    return state, (ev.NotifyUser("funding-lost"),)


@_on(_ALIVE, ev.FundingConflicted, to=())
def _funding_conflicted_late(state: TradeState, event: ev.FundingConflicted) -> Step:
    del event
    return state, (ev.NotifyUser("funding-conflicted"),)


# --- paying and releasing ----------------------------------------------------------------------------------------


@_on((st.Funding, st.Funded, st.Reclaiming), ev.DetailsReceived, to=())
def _details_received(state: TradeState, event: ev.DetailsReceived) -> Step:
    """May come before our own chain shows the escrow buried; paying waits for both."""
    _only(Side.BUY, state, "be sent payment details")
    if state.peer_details is not None:
        raise IllegalTransition("the seller has opened its payment details already")
    return replace(state, peer_details=event.message.opened), (ev.NotifyUser("payment-details"),)


@_on((st.Funded,), ev.DeclarePaid, to=(st.Paying,))
def _declare_paid(state: TradeState, event: ev.DeclarePaid) -> Step:
    _only(Side.BUY, state, "declare the payment")
    if not state.buried:
        raise IllegalTransition("the escrow is not buried deep enough: do not pay yet")
    if state.peer_details is None:
        raise IllegalTransition("the seller has not opened its payment details yet")
    return replace(state, phase=st.Paying(), payment_note=event.note), (ev.SignPayout(),)


@_on((st.Paying,), ev.PayoutSigned, to=(st.Paid,))
def _buyer_signed(state: TradeState, event: ev.PayoutSigned) -> Step:
    if state.own_details is None:
        raise IllegalTransition("our own payment details are missing")
    paid = Paid(state.own_details, event.signature, state.payment_note)
    new = replace(state, phase=st.Paid(), payout=replace(state.payout, own_signature=event.signature))
    return new, (ev.SendMessage(paid), ev.StopTimer("payment"))


@_on((st.Funded,), ev.PaidReceived, to=(st.Paid,))
def _paid_received(state: TradeState, event: ev.PaidReceived) -> Step:
    _only(Side.SELL, state, "be paid")
    new = replace(
        state,
        phase=st.Paid(),
        peer_details=event.message.opened,
        payment_note=event.message.note,
        payout=replace(state.payout, peer_signature=event.message.payout_signature),
    )
    return new, (ev.StopTimer("payment"), ev.NotifyUser("payment-declared"))


@_on((st.Funded,), ev.TimerFired, to=())
def _payment_window_ended(state: TradeState, event: ev.TimerFired) -> Step:
    if event.name != "payment":
        return state, ()
    return replace(state, window_passed=True), (ev.NotifyUser("payment-window-ended"),)


@_on((st.Paid,), ev.Release, to=(st.Releasing,))
def _release(state: TradeState, event: ev.Release) -> Step:
    """Only with the escrow buried: releasing an escrow that a reorganisation may undo could pay twice."""
    del event
    _only(Side.SELL, state, "release the escrow")
    if not state.buried:
        raise IllegalTransition("the escrow is not buried deep enough: wait before releasing")
    return replace(state, phase=st.Releasing()), (ev.SignPayout(),)


@_on((st.Releasing,), ev.PayoutSigned, to=())
def _seller_signed(state: TradeState, event: ev.PayoutSigned) -> Step:
    new = replace(state, payout=replace(state.payout, own_signature=event.signature))
    return new, (ev.BroadcastPayout(),)


@_on((st.Releasing, st.Settling, st.Completed), ev.PayoutBroadcast, to=(st.Settling,))
def _payout_broadcast(state: TradeState, event: ev.PayoutBroadcast) -> Step:
    """Say so once. The chain may have shown it first."""
    settled = isinstance(state.phase, st.Completed)
    new = state if settled else replace(state, phase=st.Settling())
    if state.payout.announced:
        return new, ()
    new = replace(new, payout=replace(new.payout, announced=True, txid=event.txid))
    return new, (ev.SendMessage(Released(event.txid)),)


@_on((st.Paid, st.Settling, st.Completed), ev.ReleasedReceived, to=())
def _released_received(state: TradeState, event: ev.ReleasedReceived) -> Step:
    """A courtesy: the trade completes when our own chain shows the payout, not before."""
    del event
    _only(Side.BUY, state, "be sent a release")
    if state.payout.announced:
        raise IllegalTransition("the release was announced already")
    return replace(state, payout=replace(state.payout, announced=True)), (ev.NotifyUser("payout-announced"),)


@_on((*_REVIVABLE, *_ALIVE), ev.EscrowSpent, to=(st.Settling, st.Completed, st.Anomalous))
def _escrow_spent(state: TradeState, event: ev.EscrowSpent) -> Step:
    if state.contract is None or state.facts is None:
        raise IllegalTransition("an escrow without a contract can't be spent")
    if event.txid != state.facts.payout_txid:
        spent = replace(state, payout=replace(state.payout, depth=event.depth, txid=event.txid))
        if event.depth < state.contract.confirmations:
            return spent, (ev.NotifyUser("unknown-spend"),)
        ended = replace(spent, phase=st.Anomalous(), ending="the escrow was spent by an unknown transaction")
        return ended, (ev.NotifyUser("unknown-spend"), ev.ReleaseCoins(), ev.StopTimer("payment"))
    paid_out = replace(state.payout, depth=event.depth, txid=event.txid)
    if event.depth < state.contract.confirmations:
        return replace(state, phase=st.Settling(), payout=paid_out), (ev.StopTimer("payment"),)
    done = replace(state, phase=st.Completed(), payout=paid_out)
    return done, (ev.ReleaseCoins(), ev.StopTimer("payment"), ev.StopWatching(), ev.NotifyUser("trade-completed"))


@_on((st.Settling,), ev.SpendReorged, to=())
def _spend_reorged(state: TradeState, event: ev.SpendReorged) -> Step:
    """The payout left the chain: whoever holds both signatures broadcasts it again."""
    del event
    back = replace(state, payout=replace(state.payout, depth=None))
    holds_both = state.payout.own_signature is not None and state.payout.peer_signature is not None
    again = (ev.BroadcastPayout(),) if holds_both else ()
    return back, (*again, ev.NotifyUser("payout-reorged"))


@_on((st.Releasing, st.Paid, st.Funded, st.Paying), ev.SpendReorged, to=())
def _foreign_spend_reorged(state: TradeState, event: ev.SpendReorged) -> Step:
    del event
    return replace(state, payout=replace(state.payout, depth=None, txid=None)), ()


def witnesses_of(state: TradeState, side: Side) -> tuple[WitnessStack, ...]:
    """The funding witnesses of the party on `side` (empty: it brings no inputs)."""
    mine = state.side is side
    found = state.funding.own_witnesses if mine else state.funding.peer_witnesses
    return found or ()
