"""Agreeing on a contract and funding it; leaving while nothing is locked (SPEC section 7.2, messages 1 to 3)."""

from __future__ import annotations

from typing import Final, get_args

from msgspec.structs import replace

from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.messages import Accept, Decline, Funding, Seal, WitnessStack
from protocol.trade_events import Effect
from protocol.trade_state import AnyPhase, TradeState
from protocol.trade_table import Step, close, on, only, only_seat, refusal
from protocol.types import Seat, Side

ANSWER_SECONDS: Final = 900
"""How long a taker waits for the maker, and a selling maker for the seal. Nothing of theirs is locked meanwhile."""
FUNDING_DEADLINE_BLOCKS: Final = 12
"""Blocks after which a buyer, whose funding signatures are out, takes its coins back if nothing was broadcast."""
SIGNING_SECONDS: Final = 840
"""How long a person may take to sign while the peer waits `ANSWER_SECONDS` for what follows; a little less."""
SIGNING_BLOCKS: Final = 10
"""The same for a seller that signs last: the buyer waits `FUNDING_DEADLINE_BLOCKS` for the funding."""
WITHDRAWN: Final = 1100
"""The reason code of a decline by choice or by time."""


@on((st.Accepting,), ev.ContributionReady, to=(st.Accepted, st.SigningFunding))
def _contribution_ready(state: TradeState, event: ev.ContributionReady) -> Step:
    """The maker's side stands. A selling maker signs nothing on chain yet: the buyer signs first."""
    agreed = replace(
        state,
        contract=event.contract,
        facts=event.facts,
        maker_signature=event.contract_signature,
        own_details=event.own_details,
    )
    accept = Accept(event.contract.maker, Funding(event.previous), event.contract_signature, None, event.keepsake)
    if state.buys:
        return replace(agreed, phase=st.SigningFunding()), (ev.SignFunding(accept),)
    return replace(agreed, phase=st.Accepted()), (
        ev.SendMessage(accept),
        ev.SetTimer("seal", seconds=ANSWER_SECONDS),
    )


@on((st.Accepting,), ev.ContributionFailed, to=(st.Declined,))
def _contribution_failed(state: TradeState, event: ev.ContributionFailed) -> Step:
    return close(state, st.Declined(), event.text, ev.SendMessage(Decline(event.reason, event.text)))


@on((st.Taking,), ev.AcceptReceived, to=(st.SigningFunding,))
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


@on((st.SigningFunding,), ev.FundingSigned, to=(st.Accepted, st.Funding))
def _funding_signed(state: TradeState, event: ev.FundingSigned) -> Step:
    """Our inputs are signed: the seller completes and broadcasts, the buyer hands its witnesses over."""
    asked = (ev.StopTimer("signing"),) if state.funding.awaited else ()
    new, effects = _signed(replace(state, funding=replace(state.funding, awaited=False)), event)
    return new, (*asked, *effects)


def _signed(state: TradeState, event: ev.FundingSigned) -> Step:
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


@on((st.SigningFunding,), ev.SignatureAwaited, to=())
def _signature_awaited(state: TradeState, event: ev.SignatureAwaited) -> Step:
    """The person is told once, and has until just before the peer gives up."""
    del event
    if state.funding.awaited:
        return state, ()
    asked = replace(state, funding=replace(state.funding, awaited=True))
    buyers, sellers = ev.SetTimer("signing", seconds=SIGNING_SECONDS), ev.SetTimer("signing", blocks=SIGNING_BLOCKS)
    return asked, (buyers if state.buys else sellers, ev.NotifyUser("funding-signature-wanted"))


@on((st.Reclaiming,), ev.SignatureAwaited, to=())
def _reclaim_awaited(state: TradeState, event: ev.SignatureAwaited) -> Step:
    del event
    if state.funding.awaited:
        return state, ()
    asked = replace(state, funding=replace(state.funding, awaited=True))
    return asked, (ev.NotifyUser("reclaim-signature-wanted"),)


def _accept_with(event: ev.FundingSigned) -> Effect:
    if event.accept is None:
        raise IllegalTransition("a buying maker's signatures belong to its accept")
    return ev.SendMessage(replace(event.accept, witnesses=event.witnesses))


@on((st.Accepted,), ev.SealReceived, to=(st.SigningFunding, st.Funding))
@on((st.Funding, st.Funded, st.Reclaiming), ev.SealReceived, to=())
def _seal_received(state: TradeState, event: ev.SealReceived) -> Step:
    """The taker's signature. A buying maker may have seen the funding on its chain before."""
    only_seat(Seat.MAKER, state, "be sent a seal")
    if state.taker_signature is not None:
        raise IllegalTransition("the contract is sealed already")
    sealed = replace(state, taker_signature=event.seal.contract_signature)
    if state.buys:
        phase = st.Funding() if isinstance(state.phase, st.Accepted) else state.phase
        return replace(sealed, phase=phase), ()
    if not isinstance(state.phase, st.Accepted):
        raise refusal(state, event)
    signing = replace(
        sealed,
        phase=st.SigningFunding(),
        funding=replace(state.funding, peer_witnesses=event.seal.witnesses),
    )
    return signing, (ev.StopTimer("seal"), ev.SignFunding(None))


@on((st.Funding, st.Funded, st.Paid, st.Releasing, st.Settling, st.Completed), ev.FundingBroadcast, to=())
def _funding_broadcast(state: TradeState, event: ev.FundingBroadcast) -> Step:
    """The seller's backend has it, perhaps again after a reorganisation."""
    del event
    only(Side.SELL, state, "broadcast the funding")
    return announce_funding(state)


def announce_funding(state: TradeState) -> Step:
    """A selling taker sends its seal, once, when its backend has the funding, by whichever event tells so first."""
    if state.made or state.buys or state.funding.announced or state.facts is None or state.taker_signature is None:
        return state, ()
    announced = replace(state, funding=replace(state.funding, announced=True))
    return announced, (ev.SendMessage(Seal(state.taker_signature, None, state.facts.funding_txid)),)


@on((st.Funding,), ev.FundingRefused, to=(st.Cancelled,))
def _funding_refused(state: TradeState, event: ev.FundingRefused) -> Step:
    """Our own witnesses went nowhere but to our own backend, which refused them: nothing is locked."""
    only(Side.SELL, state, "broadcast the funding")
    if state.funding.depth is not None:
        return state, ()
    text = f"the funding transaction was refused: {event.text}"[:500]
    return close(state, st.Cancelled(), text, ev.SendMessage(Decline(WITHDRAWN, text)))


@on((st.Funding, st.Funded, st.Paid, st.Releasing, st.Settling), ev.FundingDelayed, to=())
def _funding_delayed(state: TradeState, event: ev.FundingDelayed) -> Step:
    """It can be mined all the same, and is tried again at every block; a child of it may pay for both."""
    del event
    only(Side.SELL, state, "broadcast the funding")
    return state, (ev.NotifyUser("funding-fee-too-low"),) if state.funding.depth is None else ()


# --- leaving before anything is locked ---------------------------------------------------------------------------


def _withdraw(state: TradeState, reason: str, *, tell_peer: bool) -> Step:
    """Leave; with our funding signatures out, only by spending our own inputs."""
    farewell = (ev.SendMessage(Decline(WITHDRAWN, reason)),) if tell_peer else ()
    exposed = state.funding.own_witnesses
    if not exposed:
        # A buyer without inputs loses nothing by leaving, but goes on watching: see `_revived`.
        return close(state, st.Cancelled(), reason, *farewell)
    reclaiming = replace(state, phase=st.Reclaiming(), ending=reason, funding=replace(state.funding, awaited=False))
    return reclaiming, (*farewell, ev.ReclaimCoins(), ev.NotifyUser("reclaiming"))


_UNSIGNED: Final = (st.Accepting, st.SigningFunding)
_EXPOSED: Final = (st.Accepted, st.Funding)
"""Phases in which a buyer's funding signatures may be out."""


@on((st.Taking, *_UNSIGNED), ev.Cancel, to=(st.Cancelled,))
@on(_EXPOSED, ev.Cancel, to=(st.Cancelled, st.Reclaiming))
def _cancel(state: TradeState, event: ev.Cancel) -> Step:
    _check_leavable(state)
    return _withdraw(state, event.reason or "cancelled by the user", tell_peer=True)


@on((st.Taking,), ev.DeclineReceived, to=(st.Declined,))
@on(_UNSIGNED, ev.DeclineReceived, to=(st.Cancelled,))
@on(_EXPOSED, ev.DeclineReceived, to=(st.Cancelled, st.Reclaiming))
def _decline_received(state: TradeState, event: ev.DeclineReceived) -> Step:
    """The peer is out. That it says so proves nothing about what it may still broadcast."""
    _check_leavable(state)
    reason = f"the counterparty withdrew: {event.message.text}"
    if isinstance(state.phase, st.Taking):
        return close(state, st.Declined(), reason)
    return _withdraw(state, reason, tell_peer=False)


@on((st.Taking,), ev.DeliveryRefused, to=(st.Declined,))
def _take_refused(state: TradeState, event: ev.DeliveryRefused) -> Step:
    return close(state, st.Declined(), f"the maker's node refused the take: {event.text}")


@on(
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


@on((st.Taking,), ev.TimerFired, to=(st.Cancelled,))
@on((st.Accepting,), ev.TimerFired, to=())
@on((st.SigningFunding,), ev.TimerFired, to=(st.Cancelled,))
@on(_EXPOSED, ev.TimerFired, to=(st.Cancelled, st.Reclaiming))
def _timer_before_funding(state: TradeState, event: ev.TimerFired) -> Step:
    waited_for = {st.Taking: "answer", st.Accepted: "seal"}.get(type(state.phase))
    if event.name == "funding" and state.buys and state.funding.depth is None:
        return _withdraw(state, "the counterparty did not fund the escrow in time", tell_peer=True)
    if event.name == waited_for and not state.funding.own_witnesses:
        return _withdraw(state, "the counterparty did not answer in time", tell_peer=True)
    if event.name == "signing" and isinstance(state.phase, st.SigningFunding):
        return _withdraw(state, "the funding was not signed in time", tell_peer=True)
    return state, ()


@on((st.Reclaiming,), ev.CoinsReclaimed, to=())
def _coins_reclaimed(state: TradeState, event: ev.CoinsReclaimed) -> Step:
    del event  # the chain will tell which transaction won
    return replace(state, funding=replace(state.funding, awaited=False)), ()


@on(
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
    gone = replace(state, funding=replace(state.funding, depth=None, height=None))
    closed, effects = close(gone, st.Cancelled(), ending)
    return closed, (*effects, ev.StopTimer("funding"), ev.StopWatching())


def witnesses_of(state: TradeState, side: Side) -> tuple[WitnessStack, ...]:
    """The funding witnesses of the party on `side` (empty: it brings no inputs)."""
    mine = state.side is side
    found = state.funding.own_witnesses if mine else state.funding.peer_witnesses
    return found or ()
