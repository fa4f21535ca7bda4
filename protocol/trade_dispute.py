"""A dispute as a trader sees it (DESIGN section 11, SPEC section 8.3).

Whoever opens tells the arbiter and the counterparty; the other's claim is its answer. The arbiter accepts or declines,
hears both, and rules once. It has as many blocks for each of these two steps as the contract says that it promised, and
may take as many again, once. An arbiter that declines or misses its time is passed over: the case goes to the backup
arbiter, whose signature can be used from `TradeState.backup_from` on. It may be asked, and may rule, before that block.

A ruling is a signature on a payout that we derive ourselves. The winner's node completes it at once; the loser may,
and need not be there. We act only on the ruling of the arbiter whose case it is. One that comes after its arbiter was
passed over is kept, so that we know its payout when we see it, but nothing is done with it; so is a second ruling that
contradicts an arbiter's first, as the proof that it does.

A release or a settlement ends a dispute like any other trade. No message says so; the arbiter sees it on chain.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.case_messages import MAX_EVIDENCE, MAX_LINES, Evidence
from protocol.errors import IllegalTransition
from protocol.messages import ChatLine, Claim, Disputed
from protocol.outcome import ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.ruling import arbiter_of
from protocol.trade_escrow import ALIVE, deadlines, judge_spend, show_rulings
from protocol.trade_events import Effect
from protocol.trade_raising import is_raise, raise_signed
from protocol.trade_settling import settlement_signed
from protocol.trade_state import Answer, ArbiterFacts, DisputeFacts, RulingFacts, TradeState
from protocol.trade_table import Step, agreed, on
from protocol.types import Branch

_HEARING: Final = (st.Funding, *ALIVE)
"""Phases in which a dispute means something; our chain may be a block behind the peer's."""
_OVER: Final = (st.Completed, st.Anomalous)
"""Phases in which what others say of it is only recorded."""

# --- opening and answering ---------------------------------------------------------------------------------------


@on((st.Funded, st.Paid, st.Settling), dv.OpenDispute, to=())
def _open_dispute(state: TradeState, event: dv.OpenDispute) -> Step:
    """Ask the arbiter, or answer. The peer is told either way, so that both see both claims."""
    known = state.dispute
    if known is not None and known.own_claim is not None:
        raise IllegalTransition("you have told the arbiter your side already: send evidence")
    if isinstance(state.phase, st.Settling) and not state.payout.lost:
        raise IllegalTransition("a payout is on its way: there is nothing left to decide")
    if known is None and isinstance(state.phase, st.Funded) and not state.buys and not state.window_passed:
        raise IllegalTransition("the buyer still has time to pay")
    if known is not None and known.arbiter(state.bench).answer.passed_over:
        raise IllegalTransition("no arbiter is left to decide: settle with the counterparty")
    disputed = replace(state, dispute=replace(known or DisputeFacts(), own_claim=event.claim))
    began = (ev.StopTimer("hearing-reminder"),) if known is not None else _begin(disputed)
    tell = ev.SendMessage(Disputed(event.claim))
    return disputed, (tell, dv.OpenCase(disputed.bench, event.claim), *began)


@on((*_HEARING, *_OVER), dv.DisputedReceived, to=())
def _disputed_received(state: TradeState, event: dv.DisputedReceived) -> Step:
    """The peer asked the arbiter. Both may have done so at once: that is one dispute with two claims."""
    if isinstance(state.phase, _OVER):
        return state, ()
    if state.dispute is not None and state.dispute.peer_told:
        raise IllegalTransition("the counterparty has opened this dispute already")
    claimed, effects = _peer_claims(state, event.message.claim)
    return replace(claimed, dispute=replace(_disputed(claimed), peer_told=True)), effects


def _peer_claims(state: TradeState, claim: Claim | None) -> Step:
    known = state.dispute
    disputed = replace(state, dispute=replace(known or DisputeFacts(), peer_claim=claim))
    if known is not None:
        return disputed, (ev.NotifyUser("dispute-answered"),)
    reminder = ev.SetTimer("hearing-reminder", blocks=max(1, _promised(disputed, Branch.MAIN) // 2))
    return disputed, (*_begin(disputed), reminder, ev.NotifyUser("dispute-opened"))


def _begin(state: TradeState) -> tuple[Effect, ...]:
    """The deadlines of a new dispute."""
    return (ev.SetTimer("arbiter", blocks=_promised(state, Branch.MAIN)), *deadlines(state))


def _promised(state: TradeState, branch: Branch) -> int:
    """Blocks within which the arbiter said that it answers, and again that it rules."""
    terms = arbiter_of(agreed(state), branch)
    return terms.response_blocks if terms is not None else 1


def _disputed(state: TradeState) -> DisputeFacts:
    if state.dispute is None:
        raise IllegalTransition("there is no dispute in this trade")
    return state.dispute


@on(ALIVE, dv.SendEvidence, to=())
def _send_evidence(state: TradeState, event: dv.SendEvidence) -> Step:
    """Our own node keeps to the limits, for the arbiter's would refuse all that comes after."""
    branch = _heard_by(state)
    facts = _disputed(state).arbiter(branch)
    if facts.shown >= MAX_EVIDENCE:
        raise IllegalTransition("you have shown as much as one case allows")
    shown = _with_arbiter(state, branch, replace(facts, shown=facts.shown + 1))
    return shown, (dv.SendToArbiter(branch, Evidence(event.text, event.attachments)),)


@on(ALIVE, dv.WriteArbiter, to=())
def _write_arbiter(state: TradeState, event: dv.WriteArbiter) -> Step:
    branch = _heard_by(state)
    facts = _disputed(state).arbiter(branch)
    if facts.written >= MAX_LINES:
        raise IllegalTransition("you have written to the arbiter as much as one case allows")
    written = _with_arbiter(state, branch, replace(facts, written=facts.written + 1))
    return written, (dv.SendToArbiter(branch, ChatLine(event.text)),)


def _with_arbiter(state: TradeState, branch: Branch, facts: ArbiterFacts) -> TradeState:
    return replace(state, dispute=_disputed(state).with_arbiter(branch, facts))


def _heard_by(state: TradeState) -> Branch:
    """The arbiter that hears us now. Raises IllegalTransition."""
    dispute, branch = _disputed(state), state.bench
    facts = dispute.arbiter(branch)
    if dispute.own_claim is None:
        raise IllegalTransition("answer the dispute first")
    if facts.answer.passed_over:
        raise IllegalTransition("no arbiter is left to decide: settle with the counterparty")
    if facts.ruling is not None:
        raise IllegalTransition("the arbiter has ruled already")
    return branch


# --- what the arbiter says ---------------------------------------------------------------------------------------


@on((*_HEARING, *_OVER), dv.CaseAcceptedReceived, to=())
def _case_accepted(state: TradeState, event: dv.CaseAcceptedReceived) -> Step:
    """May be the first that we hear of the dispute, when the peer did not say so."""
    if isinstance(state.phase, _OVER):
        return state, ()
    claim, told = event.message.claim, tuple[Effect, ...]()
    if state.dispute is None or (claim is not None and state.dispute.peer_claim is None):
        state, told = _peer_claims(state, claim)
    dispute, branch = _disputed(state), event.branch
    facts = dispute.arbiter(branch)
    if facts.answer is not Answer.WAITING or facts.ruling is not None:
        return state, told
    accepted = dispute.with_arbiter(branch, replace(facts, answer=Answer.ACCEPTED))
    # An arbiter that is not in charge sets no deadline of ours.
    timer = (ev.SetTimer("arbiter", blocks=_promised(state, branch)),) if branch is state.bench else ()
    return replace(state, dispute=accepted), (*told, *timer, ev.NotifyUser("case-accepted"))


@on((*_HEARING, *_OVER), dv.CaseExtendedReceived, to=())
def _case_extended(state: TradeState, event: dv.CaseExtendedReceived) -> Step:
    """Once, and by no more than the arbiter had promised: or it could hold the case for ever."""
    branch, dispute = event.branch, state.dispute
    facts = dispute.arbiter(branch) if dispute is not None else ArbiterFacts()
    hears = facts.answer is Answer.ACCEPTED and not facts.extended and facts.ruling is None
    if isinstance(state.phase, _OVER) or dispute is None or not hears:
        return state, ()
    extended = dispute.with_arbiter(branch, replace(facts, extended=True))
    more = min(event.message.blocks, _promised(state, branch))
    timer = (ev.SetTimer("arbiter", blocks=more),) if branch is state.bench else ()
    return replace(state, dispute=extended), (*timer, ev.NotifyUser("case-extended"))


@on((*_HEARING, *_OVER), dv.ArbiterChatReceived, to=())
def _arbiter_chat(state: TradeState, event: dv.ArbiterChatReceived) -> Step:
    del event
    if state.talk.arbiters >= 2 * MAX_LINES:
        raise IllegalTransition("the arbiters have written as much as one case allows")
    heard = replace(state, talk=replace(state.talk, arbiters=state.talk.arbiters + 1))
    return heard, (ev.NotifyUser("arbiter-chat"),)


@on((*_HEARING, *_OVER), dv.CaseDeclinedReceived, to=())
def _case_declined(state: TradeState, event: dv.CaseDeclinedReceived) -> Step:
    dispute = state.dispute
    facts = dispute.arbiter(event.branch) if dispute is not None else ArbiterFacts()
    if isinstance(state.phase, _OVER) or dispute is None or facts.answer.passed_over or facts.ruling is not None:
        return state, ()
    return _pass_over(state, event.branch, Answer.DECLINED, event.message.text)


def _pass_over(state: TradeState, branch: Branch, answer: Answer, text: str) -> Step:
    """The case is no longer this arbiter's. After the main one it goes to the backup, with our claim if we made one."""
    dispute, before = _disputed(state), state.bench
    facts = replace(dispute.arbiter(branch), answer=answer, text=text)
    passed = replace(state, dispute=dispute.with_arbiter(branch, facts))
    effects: list[Effect] = [ev.NotifyUser("arbiter-declined" if answer is Answer.DECLINED else "arbiter-missed")]
    if passed.bench is not before:
        effects.append(ev.NotifyUser("backup-arbiter"))
        if dispute.backup.ruling is None:
            effects.append(ev.SetTimer("arbiter", blocks=_promised(passed, Branch.BACKUP)))
            effects += [dv.OpenCase(Branch.BACKUP, dispute.own_claim)] if dispute.own_claim is not None else []
    elif branch is before:
        # Nobody is left in line: whoever rules, rules. Both may still settle.
        effects += [ev.StopTimer("arbiter"), ev.NotifyUser("no-arbiter-left")]
    acting, more = _act(passed)
    return acting, (*effects, *more)


# --- rulings -----------------------------------------------------------------------------------------------------


@on(ALIVE, dv.RulingReceived, to=(st.Settling, st.Completed))
@on((st.Funding, st.Completed), dv.RulingReceived, to=())
@on((st.Anomalous,), dv.RulingReceived, to=(st.Completed,))
def _ruling_received(state: TradeState, event: dv.RulingReceived) -> Step:
    """The first that we hear of the dispute, perhaps; and its payout may be on our chain before it."""
    over = isinstance(state.phase, st.Completed)
    if over and state.dispute is None:
        return state, ()
    ruling = RulingFacts(event.ruling_id, event.raw, event.text, event.outcome, event.txid, event.signature)
    branch, dispute = event.outcome.branch, state.dispute or DisputeFacts()
    facts = dispute.arbiter(branch)
    if facts.ruling is None:
        known, topic = replace(facts, ruling=ruling), "ruling"
    elif facts.ruling.ruling_id == ruling.ruling_id or facts.contradiction is not None:
        return state, ()
    else:
        known, topic = replace(facts, contradiction=ruling), "arbiter-contradicts-itself"
    told = replace(state, dispute=dispute.with_arbiter(branch, known))
    proof = told.equivocation(branch)
    exposed: tuple[Effect, ...] = (dv.ExposeArbiter(proof),) if proof is not None else ()
    if proof is not None:
        # The peer may have been given only one of the two, and is owed the proof as well.
        told, shown = show_rulings(told)
        exposed += shown
    if over:
        # Nothing is to be done any more; but an arbiter that rules twice is exposed whenever that comes out.
        return told, (*exposed, ev.NotifyUser(topic))
    began = _begin(told) if state.dispute is None and not isinstance(state.phase, st.Anomalous) else ()
    judged, seen = judge_spend(told)
    acting, more = _act(judged) if facts.ruling is None else (judged, ())
    return acting, (*began, *seen, *exposed, ev.NotifyUser(topic), *more)


def _in_force(state: TradeState) -> RulingFacts | None:
    """The ruling that we act on: that of the arbiter in charge; when all were passed over, the first there is."""
    dispute = state.dispute
    if dispute is None:
        return None
    facts = dispute.arbiter(state.bench)
    if facts.ruling is not None or not facts.answer.passed_over:
        return facts.ruling
    return dispute.main.ruling if dispute.main.answer is Answer.MISSED else None


def _act(state: TradeState) -> Step:
    """Complete the ruling in force if we won by it. Not once a payout is on its way: ours would replace it."""
    ruling = _in_force(state)
    if ruling is None:
        return state, ()
    stop = (ev.StopTimer("arbiter"), ev.StopTimer("hearing-reminder"))
    if state.side not in ruling.outcome.winners or not isinstance(state.phase, st.Funded | st.Paying | st.Paid):
        return state, stop
    return state, (*stop, *_complete(state, ruling))


def _completable(state: TradeState) -> bool:
    lost = isinstance(state.phase, st.Settling) and state.payout.lost
    return lost or isinstance(state.phase, st.Funded | st.Paying | st.Paid)


def _complete(state: TradeState, ruling: RulingFacts) -> tuple[Effect, ...]:
    if ruling.own_signature is None:
        return (dv.SignOutcome(ruling.outcome),)
    return (dv.BroadcastOutcome(ruling.txid),) if _spendable(state, ruling.outcome) else ()


def _spendable(state: TradeState, outcome: RulingOutcome) -> bool:
    return outcome.branch is Branch.MAIN or (state.dispute is not None and state.dispute.backup_open)


@on((st.Funded, st.Paid, st.Settling), dv.CompleteRuling, to=())
def _complete_ruling(state: TradeState, event: dv.CompleteRuling) -> Step:
    del event
    ruling = _in_force(state)
    if ruling is None or not _completable(state):
        raise IllegalTransition("there is no ruling to complete")
    if ruling.own_signature is not None and not _spendable(state, ruling.outcome):
        raise IllegalTransition(f"the backup arbiter's ruling can be used from block {state.backup_from} on")
    return state, _complete(state, ruling)


@on(ALIVE, dv.OutcomeSigned, to=())
def _outcome_signed(state: TradeState, event: dv.OutcomeSigned) -> Step:
    if is_raise(state, event.outcome):
        return raise_signed(state, event)
    match event.outcome:
        case SettlementOutcome():
            return settlement_signed(state, event.outcome, event.txid, event.signature)
        case RulingOutcome():
            return _ruling_signed(state, event.outcome, event)
        case ReleaseOutcome():
            raise IllegalTransition("a release is signed as a payout")


def _ruling_signed(state: TradeState, outcome: RulingOutcome, event: dv.OutcomeSigned) -> Step:
    ruling = _in_force(state)
    if ruling is None or ruling.txid != event.txid or state.dispute is None:
        raise IllegalTransition("that ruling is not in force any more")
    signed = replace(ruling, own_signature=event.signature)
    facts = replace(state.dispute.arbiter(outcome.branch), ruling=signed)
    new = replace(state, dispute=state.dispute.with_arbiter(outcome.branch, facts))
    return new, _complete(new, signed) if _completable(new) else ()


# --- deadlines ---------------------------------------------------------------------------------------------------


@on(ALIVE, ev.TimerFired, to=())
def _deadline(state: TradeState, event: ev.TimerFired) -> Step:
    """Every deadline of a funded trade."""
    match event.name:
        case "payment" if isinstance(state.phase, st.Funded):
            return replace(state, window_passed=True), (ev.NotifyUser("payment-window-ended"),)
        case "payment-reminder" if isinstance(state.phase, st.Funded) and state.buys:
            return state, (ev.NotifyUser("payment-reminder"),)
        case "hearing-reminder" if state.dispute is not None and state.dispute.own_claim is None:
            return state, (ev.NotifyUser("answer-dispute"),)
        case "arbiter" if state.dispute is not None:
            return _arbiter_missed(state, state.dispute)
        case "backup" if state.dispute is not None:
            return _backup_opens(state, state.dispute)
        case _:
            return state, ()


def _arbiter_missed(state: TradeState, dispute: DisputeFacts) -> Step:
    facts = dispute.arbiter(state.bench)
    if facts.ruling is not None or facts.answer.passed_over:
        return state, ()
    return _pass_over(state, state.bench, Answer.MISSED, "")


def _backup_opens(state: TradeState, dispute: DisputeFacts) -> Step:
    opened = replace(state, dispute=replace(dispute, backup_open=True))
    ruling = _in_force(opened)
    if ruling is None or ruling.own_signature is None or not _completable(opened):
        return opened, ()
    return opened, _complete(opened, ruling)
