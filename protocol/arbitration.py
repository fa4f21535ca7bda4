"""The arbiter's machine: `step_case(state, event)`, as pure as the traders' (DESIGN section 11, SPEC section 8.4).

A case begins when a party opens it: one copy of the file is enough. The arbiter accepts or declines, hears both, and
decides once. `CASE_TRANSITIONS` holds every legal (phase, event) pair.

That it decides once is in the table's shape: `Decide` is legal in Queued and Hearing only, it leads to Deciding, and no
path leads back. The decision is part of the state before anything is signed, and what is signed is that decision.

Nobody is judged unheard: a decision needs the claims of both parties, or that the time for evidence has passed. And
nothing is decided about an escrow that our own chain does not show, buried and unspent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, cast, get_args

from msgspec.structs import replace

from protocol import case_events as ce
from protocol import trade_events as ev
from protocol.case_events import AnyCasePhase, CaseEffect, CaseEvent, CaseState, PartyFacts
from protocol.case_messages import (
    MAX_EVIDENCE,
    MAX_LINES,
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseRuling,
)
from protocol.errors import IllegalTransition
from protocol.messages import ChatLine
from protocol.outcome import RulingOutcome
from protocol.ruling import arbiter_of
from protocol.types import PPM, Side

CaseStep = tuple[CaseState, tuple[CaseEffect, ...]]
CaseHandler = Callable[[CaseState, CaseEvent], CaseStep]
E = TypeVar("E", bound=CaseEvent)

CASE_TRANSITIONS: Final[
    dict[tuple[type[AnyCasePhase], type[CaseEvent]], tuple[CaseHandler, frozenset[type[AnyCasePhase]]]]
] = {}
"""(phase, event) -> (handler, phases it may lead to)."""

_OPEN: Final = (ce.Queued, ce.Hearing)
_ALL: Final[tuple[type[AnyCasePhase], ...]] = get_args(AnyCasePhase)


def step_case(state: CaseState | None, event: CaseEvent) -> CaseStep:
    """Decide. `state` is None only before the first `CaseOpened`. Raises IllegalTransition."""
    if state is None:
        return _begin(event)
    entry = CASE_TRANSITIONS.get((type(state.phase), type(event)))
    if entry is None:
        raise IllegalTransition(f"{type(event).__name__} is not possible while the case is {_name(state.phase)}")
    handler, targets = entry
    new, effects = handler(state, event)
    if type(new.phase) not in targets:
        raise AssertionError(f"{_name(state.phase)} may not lead to {_name(new.phase)}")
    return new, effects


def _name(phase: AnyCasePhase) -> str:
    return type(phase).__name__


def _on(
    phases: tuple[type[AnyCasePhase], ...], event: type[E], *, to: tuple[type[AnyCasePhase], ...]
) -> Callable[[Callable[[CaseState, E], CaseStep]], Callable[[CaseState, E], CaseStep]]:
    """Enter a handler in the table. `to` lists the phases it may lead to; the present one counts as included."""

    def enter(handler: Callable[[CaseState, E], CaseStep]) -> Callable[[CaseState, E], CaseStep]:
        for phase in phases:
            key = (phase, cast("type[CaseEvent]", event))
            if key in CASE_TRANSITIONS:
                raise AssertionError(f"two handlers for {key}")
            # Sound: `step_case` looks a handler up by the very type of the event that it is given.
            CASE_TRANSITIONS[key] = (cast("CaseHandler", handler), frozenset((*to, phase)))
        return handler

    return enter


def promised(state: CaseState) -> int:
    """Blocks within which we said that we answer, and again that we rule."""
    terms = arbiter_of(state.contract, state.branch)
    return terms.response_blocks if terms is not None else 1


# --- opening, answering, evidence --------------------------------------------------------------------------------


def _begin(event: CaseEvent) -> CaseStep:
    if not isinstance(event, ce.CaseOpened):
        raise IllegalTransition(f"{type(event).__name__} belongs to a case that this node does not know")
    state = CaseState(
        trade_id=event.contract.trade_id,
        contract_id=event.contract_id,
        network=event.network,
        contract=event.contract,
        branch=event.branch,
        opened_by=event.side,
        phase=ce.Queued(),
    ).with_party(event.side, PartyFacts(claim=event.claim, head=event.message_id))
    # Half of the time that we promised, so that a busy arbiter is reminded before it is passed over.
    remind = ce.SetCaseTimer("answer", max(1, promised(state) // 2))
    return state, (ce.WatchCase(), remind, ev.NotifyUser("case-opened"))


@_on(_ALL, ce.CaseOpened, to=())
def _answered(state: CaseState, event: ce.CaseOpened) -> CaseStep:
    """The other party's side."""
    facts = state.party(event.side)
    if facts.claim is not None:
        raise IllegalTransition("this party has told its side already")
    if event.contract_id != state.contract_id:
        raise IllegalTransition("the case is about another contract")
    told = state.with_party(event.side, replace(facts, claim=event.claim, head=event.message_id))
    if isinstance(state.phase, ce.Dismissed):
        return told, (ce.SendToParty(event.side, CaseDeclined(state.ending)),)
    return told, (ev.NotifyUser("case-answered"),) if isinstance(state.phase, _OPEN) else ()


@_on(_ALL, ce.EvidenceReceived, to=())
def _evidence(state: CaseState, event: ce.EvidenceReceived) -> CaseStep:
    """What comes after the hearing is kept and marked; what comes after the decision plays no part in it."""
    facts = state.party(event.side)
    if facts.evidence + facts.late >= MAX_EVIDENCE:
        raise IllegalTransition("this party has shown as much as one case allows")
    late = state.heard or not isinstance(state.phase, _OPEN)
    counted = replace(facts, late=facts.late + 1) if late else replace(facts, evidence=facts.evidence + 1)
    topics = (ev.NotifyUser("evidence-late" if late else "evidence"),) if isinstance(state.phase, _OPEN) else ()
    return state.with_party(event.side, replace(counted, head=event.message_id)), topics


@_on(_ALL, ce.PartyChatReceived, to=())
def _party_wrote(state: CaseState, event: ce.PartyChatReceived) -> CaseStep:
    facts = state.party(event.side)
    if facts.written >= MAX_LINES:
        raise IllegalTransition("this party has written as much as one case allows")
    read = replace(facts, written=facts.written + 1, head=event.message_id)
    return state.with_party(event.side, read), (ev.NotifyUser("case-chat"),)


@_on((*_OPEN, ce.Deciding, ce.Ruled), ce.WriteParty, to=())
def _write_party(state: CaseState, event: ce.WriteParty) -> CaseStep:
    facts = state.party(event.side)
    if facts.heard >= MAX_LINES:
        raise IllegalTransition("you have written to this party as much as one case allows")
    told = state.with_party(event.side, replace(facts, heard=facts.heard + 1))
    return told, (ce.SendToParty(event.side, ChatLine(event.text)),)


# --- accepting, declining, extending -----------------------------------------------------------------------------


@_on((ce.Queued,), ce.AcceptCase, to=(ce.Hearing,))
def _accept(state: CaseState, event: ce.AcceptCase) -> CaseStep:
    """Both are told, and each what the other says."""
    _check_escrow(state)
    hearing, ruling = max(1, promised(state) // 2), promised(state)
    until = event.height + hearing
    effects = (
        ce.SendToParty(Side.BUY, CaseAccepted(until, state.seller.claim)),
        ce.SendToParty(Side.SELL, CaseAccepted(until, state.buyer.claim)),
        *_timers(hearing, ruling),
    )
    return replace(state, phase=ce.Hearing()), (ce.StopCaseTimers(), *effects)


def _timers(hearing: int, ruling: int) -> tuple[CaseEffect, ...]:
    return (
        ce.SetCaseTimer("hearing", hearing),
        ce.SetCaseTimer("reminder", max(1, ruling * 3 // 4)),
        ce.SetCaseTimer("ruling", ruling),
    )


@_on(_OPEN, ce.DeclineCase, to=(ce.Dismissed,))
def _decline(state: CaseState, event: ce.DeclineCase) -> CaseStep:
    """Tell whoever knows of us: both once the case was accepted, else whoever has written."""
    accepted = isinstance(state.phase, ce.Hearing)
    told = [side for side in Side if accepted or state.party(side).claim is not None]
    effects = tuple(ce.SendToParty(side, CaseDeclined(event.text)) for side in told)
    dismissed = replace(state, phase=ce.Dismissed(), ending=event.text)
    return dismissed, (*effects, ce.StopCaseTimers(), ce.StopWatchingCase())


@_on((ce.Hearing,), ce.ExtendCase, to=())
def _extend(state: CaseState, event: ce.ExtendCase) -> CaseStep:
    """Once, and at most by what we promised: the parties' nodes would not wait longer."""
    if state.extended:
        raise IllegalTransition("you have taken more time already")
    if not 1 <= event.blocks <= promised(state):
        raise IllegalTransition(f"you can take at most {promised(state)} blocks more")
    hearing = max(1, event.blocks // 2)
    message = CaseExtended(event.blocks, event.height + hearing, event.text)
    told = tuple(ce.SendToParty(side, message) for side in Side)
    return replace(state, extended=True, heard=False), (*told, ce.StopCaseTimers(), *_timers(hearing, event.blocks))


@_on(_OPEN, ce.CaseTimerFired, to=())
def _deadline(state: CaseState, event: ce.CaseTimerFired) -> CaseStep:
    match event.name:
        case "answer" if isinstance(state.phase, ce.Queued):
            return state, (ev.NotifyUser("case-unanswered"),)
        case "hearing" if isinstance(state.phase, ce.Hearing):
            return replace(state, heard=True), (ev.NotifyUser("hearing-ended"),)
        case "reminder" if isinstance(state.phase, ce.Hearing):
            return state, (ev.NotifyUser("ruling-due"),)
        case "ruling" if isinstance(state.phase, ce.Hearing):
            return replace(state, overdue=True), (ev.NotifyUser("ruling-overdue"),)
        case _:
            return state, ()


# --- deciding ----------------------------------------------------------------------------------------------------


@_on(_OPEN, ce.Decide, to=(ce.Deciding,))
def _decide(state: CaseState, event: ce.Decide) -> CaseStep:
    fees = state.contract.fees
    _check_escrow(state)
    if not state.both_told and not state.heard:
        raise IllegalTransition("one party has not told its side: wait for it, or until the time for evidence is over")
    if not (0 <= event.buyer_share <= PPM and 0 <= event.forfeit <= PPM):
        raise IllegalTransition("a share is at most one whole")
    if event.buyer_share * 2 == PPM and event.forfeit:
        raise IllegalTransition("an even split has no loser whose deposit could be forfeited")
    if not fees.payout <= event.rate <= fees.payout_max:
        raise IllegalTransition("the fee rate is outside the band that the contract allows")
    decision = ce.Decision(
        outcome=RulingOutcome(state.branch, event.buyer_share, event.forfeit, event.fee_script, event.rate),
        reason=event.reason,
        text=event.text,
        buyer_head=state.buyer.head,
        seller_head=state.seller.head,
    )
    return replace(state, phase=ce.Deciding(), decision=decision), (ce.StopCaseTimers(), ce.SignRuling(decision))


def _check_escrow(state: CaseState) -> None:
    if state.spent_by is not None:
        raise IllegalTransition("the escrow is being paid out already: there is nothing to decide")
    if not state.buried:
        raise IllegalTransition(
            "our chain does not show the escrow of this contract, buried: there is nothing to decide"
        )


@_on((ce.Deciding,), ce.RulingSigned, to=(ce.Ruled,))
def _ruling_signed(state: CaseState, event: ce.RulingSigned) -> CaseStep:
    """The same bytes to both."""
    if state.decision is None:
        raise IllegalTransition("nothing was decided")
    message = CaseRuling(event.raw, state.decision.text)
    ruled = replace(state, phase=ce.Ruled(), ruling=event.raw, payout_txid=event.txid)
    return ruled, (*(ce.SendToParty(side, message) for side in Side), ev.NotifyUser("case-ruled"))


# --- the escrow on our own chain ---------------------------------------------------------------------------------

_WATCHING: Final = (*_OPEN, ce.Deciding, ce.Ruled)


@_on(_WATCHING, ev.FundingSeen, to=())
def _funding_seen(state: CaseState, event: ev.FundingSeen) -> CaseStep:
    del event
    return replace(state, depth=0, height=None), ()


@_on(_WATCHING, ev.FundingConfirmed, to=())
def _funding_confirmed(state: CaseState, event: ev.FundingConfirmed) -> CaseStep:
    return replace(state, depth=event.depth, height=event.height), ()


@_on(_WATCHING, ev.FundingReorged, to=())
def _funding_reorged(state: CaseState, event: ev.FundingReorged) -> CaseStep:
    del event
    return replace(state, depth=None, height=None), ()


@_on(_WATCHING, ev.EscrowSpent, to=(ce.Closed,))
def _escrow_spent(state: CaseState, event: ev.EscrowSpent) -> CaseStep:
    """A release, a settlement or a ruling: whatever it is, once it is buried there is nothing left to decide."""
    spent = replace(state, spent_by=event.txid, spent_depth=event.depth)
    if event.depth < state.contract.confirmations:
        return spent, ()
    by_us = event.txid == state.payout_txid
    ending = "paid out by the ruling" if by_us else "paid out otherwise: released, or settled by the parties"
    closed = replace(spent, phase=ce.Closed(), ending=ending)
    return closed, (ce.StopCaseTimers(), ce.StopWatchingCase(), ev.NotifyUser("case-closed"))


@_on(_WATCHING, ev.SpendReorged, to=())
def _spend_reorged(state: CaseState, event: ev.SpendReorged) -> CaseStep:
    del event
    return replace(state, spent_by=None, spent_depth=None), ()
