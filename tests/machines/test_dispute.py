"""Disputes between all four machines: every way one can go, and every key-holder that may be missing."""

from __future__ import annotations

import pytest

from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.arbitration import CASE_TRANSITIONS
from protocol.errors import IllegalTransition
from protocol.messages import Claim
from protocol.outcome import ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.ruling import Reason
from protocol.trade_state import Answer, dump_state, load_state
from protocol.types import Branch, Side
from tests.machines.duel import txid_of
from tests.machines.trial import FEE_SCRIPT, HEIGHT, Trial

MAKERS = list(Side)
MOST_MESSAGES = 6


def paid(side: Side) -> Trial:
    """A trade in which the buyer has declared its payment."""
    trial = Trial(side)
    trial.fund()
    trial.pay()
    return trial


def facts(trial: Trial, seat_side: Side) -> object:
    state = trial.seat(seat_side).state
    assert state is not None
    return state.payout.outcome


def heard(trial: Trial, side: Side = Side.BUY) -> Trial:
    """The arbiter hears the case that `side` opened, and has the answer of the other."""
    trial.open(trial.seat(side), 1_000_000 if side is Side.BUY else 0)
    trial.do(trial.main, ce.AcceptCase(HEIGHT))
    return trial


class TestRuling:
    @pytest.mark.parametrize("side", MAKERS)
    @pytest.mark.parametrize(("share", "winner"), [(1_000_000, Side.BUY), (0, Side.SELL), (700_000, Side.BUY)])
    def test_winner_completes_with_one_signature(self, side: Side, share: int, winner: Side) -> None:
        trial = heard(paid(side))
        trial.open(trial.seller, 0, "nothing came")
        txid = trial.decide(trial.main, share)
        assert trial.broadcast == [txid], "exactly one node broadcasts, the winner's"
        assert trial.seat(winner).phase == "Settling"
        trial.spend(txid)
        assert (trial.buyer.phase, trial.seller.phase, trial.main.phase) == ("Completed", "Completed", "Closed")
        assert facts(trial, Side.BUY) == RulingOutcome(Branch.MAIN, share, 0, FEE_SCRIPT, 2_000)
        assert facts(trial, Side.SELL) == facts(trial, Side.BUY)
        assert trial.messages <= MOST_MESSAGES

    @pytest.mark.parametrize("side", MAKERS)
    def test_silent_seller_cannot_stop_it(self, side: Side) -> None:
        """The loser never says a word; the buyer is paid all the same."""
        trial = heard(paid(side))
        with pytest.raises(IllegalTransition, match="has not told its side"):
            trial.decide(trial.main, 1_000_000)
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        txid = trial.decide(trial.main, 1_000_000)
        trial.spend(txid)
        assert trial.buyer.phase == "Completed"
        assert trial.messages <= MOST_MESSAGES

    def test_even_split_is_completed_by_either(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        txid = trial.decide(trial.main, 500_000)
        assert trial.broadcast == [txid, txid], "one transaction, whoever is first"

    def test_loser_may_complete_when_the_winner_is_gone(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        perform = trial.perform

        def buyer_is_gone(seat: object, other: object, effect: ev.Effect) -> None:
            if seat is not trial.buyer:
                perform(seat, other, effect)  # type: ignore[arg-type]

        trial.perform = buyer_is_gone  # type: ignore[method-assign]
        txid = trial.decide(trial.main, 1_000_000)
        assert trial.broadcast == []
        trial.do(trial.seller, dv.CompleteRuling())
        assert trial.broadcast == [txid]

    def test_ruling_that_arrives_after_its_payout_explains_it(self) -> None:
        """The loser was offline: it sees a spend that it does not know, and learns of the ruling later."""
        trial = heard(paid(Side.SELL))
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        missed: list[ev.TradeEvent] = []
        says = trial.arbiter_says

        trial.main.feed(ce.Decide(1_000_000, 0, Reason.OTHER, "because", FEE_SCRIPT, 2_000))
        trial.rule(trial.main, trial.main.effects.popleft())  # timers
        trial.rule(trial.main, trial.main.effects.popleft())  # the signature
        while trial.main.effects:
            effect = trial.main.effects.popleft()
            if isinstance(effect, ce.SendToParty) and effect.side is Side.SELL:
                missed.append(says(Branch.MAIN, effect.payload))
            else:
                trial.rule(trial.main, effect)
        trial.settle()
        txid = txid_of(trial.decision(Branch.MAIN).outcome)
        trial.spend(txid)
        assert (trial.buyer.phase, trial.seller.phase) == ("Completed", "Anomalous")
        trial.do(trial.seller, missed[0])
        assert trial.seller.phase == "Completed"
        assert facts(trial, Side.SELL) == facts(trial, Side.BUY)

    def test_nothing_is_completed_over_a_release_on_its_way(self) -> None:
        """Our payout would replace our own release in the mempool."""
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        trial.release()
        trial.decide(trial.main, 0)
        assert trial.broadcast == []
        with pytest.raises(IllegalTransition, match="no ruling"):
            trial.seller.feed(dv.CompleteRuling())
        trial.spend(trial.facts.payout_txid)
        assert facts(trial, Side.SELL) == ReleaseOutcome()

    def test_ruling_whose_payout_vanishes_is_broadcast_again(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        txid = trial.decide(trial.main, 1_000_000)
        trial.chain(ev.EscrowSpent(txid, 0))
        trial.broadcast.clear()
        trial.chain(ev.SpendReorged())
        assert trial.broadcast == [txid]

    def test_buyer_cannot_declare_a_payment_after_the_ruling(self) -> None:
        trial = Trial(Side.SELL)
        trial.fund()
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.main, ce.AcceptCase(HEIGHT))
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        perform, trial.perform = trial.perform, lambda *_: None  # type: ignore[method-assign]
        trial.decide(trial.main, 0)
        trial.perform = perform  # type: ignore[method-assign]
        with pytest.raises(IllegalTransition, match="ruled"):
            trial.buyer.feed(ev.DeclarePaid())


class TestEndedOtherwise:
    @pytest.mark.parametrize("side", MAKERS)
    def test_release_ends_the_dispute(self, side: Side) -> None:
        trial = heard(paid(side))
        trial.release()
        trial.spend(trial.facts.payout_txid)
        assert (trial.buyer.phase, trial.main.phase) == ("Completed", "Closed")
        with pytest.raises(IllegalTransition):
            trial.decide(trial.main, 0)

    @pytest.mark.parametrize("side", MAKERS)
    def test_settlement_ends_the_dispute(self, side: Side) -> None:
        trial = heard(paid(side))
        trial.do(trial.seller, dv.ProposeSettlement(400_000, 2_000))
        txid = txid_of(SettlementOutcome(400_000, 2_000))
        trial.do(trial.buyer, dv.AcceptSettlement(txid))
        trial.spend(txid)
        assert (trial.buyer.phase, trial.seller.phase, trial.main.phase) == ("Completed", "Completed", "Closed")
        assert facts(trial, Side.SELL) == SettlementOutcome(400_000, 2_000)
        assert trial.messages <= MOST_MESSAGES


class TestBackup:
    @pytest.mark.parametrize("side", MAKERS)
    def test_vanished_arbiter_leads_to_the_backup(self, side: Side) -> None:
        trial = paid(side)
        trial.main.silent = True
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.buyer, ev.TimerFired("arbiter"))
        trial.do(trial.seller, ev.TimerFired("arbiter"))
        for seat in trial.both:
            assert seat.state is not None
            assert seat.state.bench is Branch.BACKUP
            assert seat.state.backup_from == 100 + 1008, "shown to both sides"
            assert ev.NotifyUser("backup-arbiter") not in seat.effects
        trial.open(trial.seller, 0)
        txid = trial.decide(trial.backup, 1_000_000)
        assert trial.broadcast == [], "not before the escrow is old enough"
        trial.do(trial.buyer, ev.TimerFired("backup"))
        assert trial.broadcast == [txid]
        trial.spend(txid)
        assert (trial.buyer.phase, trial.backup.phase) == ("Completed", "Closed")
        assert trial.messages <= MOST_MESSAGES

    def test_declined_case_leads_to_the_backup(self) -> None:
        trial = paid(Side.SELL)
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.main, ce.DeclineCase("no time"))
        assert trial.backup.phase == "Queued", "the claim went on to the backup by itself"
        trial.open(trial.seller, 0)
        state = trial.seller.state
        assert state is not None
        assert state.dispute is not None
        assert state.dispute.main.answer is Answer.DECLINED, "who answers an arbiter that declined is told so"
        txid = trial.decide(trial.backup, 1_000_000)
        trial.do(trial.buyer, ev.TimerFired("backup"))
        assert trial.broadcast == [txid]

    def test_late_ruling_is_known_but_not_completed(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        for seat in trial.both:
            trial.do(seat, ev.TimerFired("arbiter"))
        late = trial.decide(trial.main, 1_000_000)
        assert trial.broadcast == []
        with pytest.raises(IllegalTransition, match="no ruling"):
            trial.do(trial.buyer, dv.CompleteRuling())
        # The counterparty's node may think otherwise: then the chain decides, and everybody knows what it sees.
        trial.spend(late)
        assert (trial.buyer.phase, trial.seller.phase) == ("Completed", "Completed")

    def test_late_ruling_counts_when_nobody_else_is_left(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        for _ in range(2):
            for seat in trial.both:
                trial.do(seat, ev.TimerFired("arbiter"))
        late = trial.decide(trial.main, 1_000_000)
        assert trial.broadcast == [late]

    def test_backup_cannot_rule_while_the_case_is_the_main_arbiters(self) -> None:
        """A backup arbiter in league with one party could decide behind the back of the first."""
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        trial.backup.feed(trial.opening(Side.SELL, Claim("mine", 0), Branch.BACKUP))
        trial.backup.feed(trial.opening(Side.BUY, Claim("forged", 0), Branch.BACKUP))
        trial.settle()
        trial.decide(trial.backup, 0)
        assert trial.broadcast == []
        txid = trial.decide(trial.main, 1_000_000)
        assert trial.broadcast == [txid]

    def test_ruling_of_the_backup_waits_for_the_main_arbiters_time_to_pass(self) -> None:
        trial = paid(Side.SELL)
        trial.main.silent = True
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.buyer, ev.TimerFired("arbiter"))
        trial.do(trial.backup, ce.AcceptCase(HEIGHT))
        trial.do(trial.backup, ce.CaseTimerFired("hearing"))
        trial.decide(trial.backup, 0)
        assert trial.broadcast == []
        trial.do(trial.seller, ev.TimerFired("arbiter"))
        trial.do(trial.seller, ev.TimerFired("backup"))
        assert len(trial.broadcast) == 1, "the seller's own clock says so now"

    def test_arbiter_takes_more_time_once_and_not_for_ever(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.do(trial.main, ce.ExtendCase(HEIGHT, 100, "holiday"))
        state = trial.buyer.state
        assert state is not None
        assert state.dispute is not None
        assert state.dispute.main.extended
        with pytest.raises(IllegalTransition, match="already"):
            trial.do(trial.main, ce.ExtendCase(HEIGHT, 100, "again"))
        with pytest.raises(IllegalTransition, match="at most"):
            heard(paid(Side.SELL)).main.feed(ce.ExtendCase(HEIGHT, 145, "long"))

    def test_everybody_is_reminded_before_its_time_is_over(self) -> None:
        """The arbiter of its answer and of its ruling, the party that is asked of its side."""
        trial = paid(Side.SELL)
        asked: list[object] = []
        rule, perform = trial.rule, trial.perform

        def watch_rule(desk: object, effect: object) -> None:
            asked.append(effect)
            rule(desk, effect)  # type: ignore[arg-type]

        def watch(seat: object, other: object, effect: object) -> None:
            asked.append(effect)
            perform(seat, other, effect)  # type: ignore[arg-type]

        trial.rule, trial.perform = watch_rule, watch  # type: ignore[method-assign]
        trial.open(trial.buyer, 1_000_000)
        assert ce.SetCaseTimer("answer", 72) in asked, "half of the time that it promised"
        assert ev.SetTimer("hearing-reminder", blocks=72) in asked
        trial.do(trial.main, ce.CaseTimerFired("answer"))
        assert ev.NotifyUser("case-unanswered") in asked
        trial.do(trial.seller, ev.TimerFired("hearing-reminder"))
        assert ev.NotifyUser("answer-dispute") in asked
        trial.do(trial.main, ce.AcceptCase(HEIGHT))
        assert ce.SetCaseTimer("reminder", 108) in asked
        trial.do(trial.main, ce.CaseTimerFired("reminder"))
        assert ev.NotifyUser("ruling-due") in asked

    def test_reorganised_funding_moves_the_backups_block(self) -> None:
        trial = paid(Side.SELL)
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.buyer, ev.TimerFired("backup"))
        trial.buyer.feed(ev.FundingReorged())
        trial.buyer.feed(ev.FundingConfirmed(2, 105))
        assert ev.SetTimer("backup", height=105 + 1008 - 1) in trial.buyer.effects
        assert trial.buyer.state is not None
        assert trial.buyer.state.dispute is not None
        assert not trial.buyer.state.dispute.backup_open


class TestTwoFacedArbiter:
    """It tells each party that it has won; neither node has more than one ruling."""

    def told(self, trial: Trial, side: Side, share: int) -> str:
        outcome = RulingOutcome(Branch.MAIN, share, 0, FEE_SCRIPT, 2_000)
        raw = txid_of(outcome)
        trial.given[raw] = outcome
        trial.do(trial.seat(side), dv.RulingReceived(raw, raw, "", outcome, raw, b"arbiter"))
        return raw  # type: ignore[return-value]

    @pytest.mark.parametrize("faster", list(Side))
    def test_both_hold_the_proof_once_one_payout_is_seen(self, faster: Side) -> None:
        trial = heard(paid(Side.SELL))
        shares = {Side.BUY: 1_000_000, Side.SELL: 0}
        for side in (faster, faster.other):
            self.told(trial, side, shares[side])
        txid = txid_of(RulingOutcome(Branch.MAIN, shares[faster], 0, FEE_SCRIPT, 2_000))
        before = [len(seat.sent) for seat in trial.both]
        exposed: list[ev.Effect] = []
        perform = trial.perform

        def watch(seat: object, other: object, effect: ev.Effect) -> None:
            exposed.extend([effect] if isinstance(effect, dv.ExposeArbiter) else [])
            perform(seat, other, effect)  # type: ignore[arg-type]

        trial.perform = watch  # type: ignore[method-assign]
        trial.spend(txid)
        trial.settle()
        assert (trial.buyer.phase, trial.seller.phase) == ("Completed", "Completed"), "both know what they see"
        assert len(exposed) == 2, "each side publishes the proof"
        for seat in trial.both:
            assert seat.state is not None
            assert seat.state.equivocation(Branch.MAIN) is not None
        assert [len(seat.sent) - n for seat, n in zip(trial.both, before, strict=True)] == [1, 1]

    def test_honest_arbiter_makes_nobody_show_anything(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        trial.spend(trial.decide(trial.main, 700_000))
        assert not [m for seat in trial.both for m in seat.sent if type(m).__name__ == "RulingShown"]


class TestOpening:
    def test_seller_waits_until_the_buyers_time_is_over(self) -> None:
        trial = Trial(Side.SELL)
        trial.fund()
        with pytest.raises(IllegalTransition, match="time to pay"):
            trial.open(trial.seller, 0)
        trial.do(trial.seller, ev.TimerFired("payment"))
        trial.open(trial.seller, 0)
        assert trial.main.phase == "Queued"

    def test_two_disputes_at_once_are_one(self) -> None:
        trial = paid(Side.SELL)
        trial.buyer.feed(dv.OpenDispute(Claim("I paid", 1_000_000)))
        trial.seller.feed(dv.OpenDispute(Claim("nothing came", 0)))
        trial.settle()
        for seat in trial.both:
            assert seat.state is not None
            assert seat.state.dispute is not None
            assert seat.state.dispute.own_claim is not None
            assert seat.state.dispute.peer_claim is not None
        assert trial.main.state is not None
        assert trial.main.state.both_told
        txid = trial.decide(trial.main, 0)
        trial.spend(txid)
        assert trial.seller.phase == "Completed"

    def test_dispute_after_completion_is_refused(self) -> None:
        trial = paid(Side.SELL)
        trial.release()
        trial.chain(ev.EscrowSpent(trial.facts.payout_txid, 0))
        with pytest.raises(IllegalTransition, match="on its way"):
            trial.open(trial.buyer, 1_000_000)
        trial.spend(trial.facts.payout_txid)
        with pytest.raises(IllegalTransition):
            trial.open(trial.buyer, 1_000_000)
        assert trial.main.state is None, "the arbiter of an undisputed trade hears nothing"

    def test_peer_that_hides_its_dispute_is_told_on_by_the_arbiter(self) -> None:
        trial = paid(Side.SELL)
        perform = trial.perform

        def hide(seat: object, other: object, effect: ev.Effect) -> None:
            if not (isinstance(effect, ev.SendMessage) and type(effect.payload).__name__ == "Disputed"):
                perform(seat, other, effect)  # type: ignore[arg-type]

        trial.perform = hide  # type: ignore[method-assign]
        trial.open(trial.buyer, 1_000_000, "I paid")
        before = trial.seller.state
        assert before is not None
        assert before.dispute is None
        trial.do(trial.main, ce.AcceptCase(HEIGHT))
        told = trial.seller.state
        assert told is not None
        assert told.dispute is not None
        assert told.dispute.peer_claim == Claim("I paid", 1_000_000)

    def test_evidence_needs_a_claim_and_ends_with_the_ruling(self) -> None:
        trial = heard(paid(Side.SELL))
        with pytest.raises(IllegalTransition, match="answer"):
            trial.do(trial.seller, dv.SendEvidence("look"))
        trial.do(trial.buyer, dv.SendEvidence("receipt"))
        trial.do(trial.buyer, dv.WriteArbiter("hello"))
        trial.do(trial.main, ce.WriteParty(Side.BUY, "thanks"))
        assert trial.main.state is not None
        assert trial.main.state.buyer.evidence == 1
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        trial.do(trial.buyer, dv.SendEvidence("late"))
        assert trial.main.state.buyer.late == 1
        trial.decide(trial.main, 1_000_000)
        assert trial.main.state.decision is not None
        assert trial.main.state.decision.buyer_head == trial.main.state.buyer.head
        with pytest.raises(IllegalTransition):
            trial.do(trial.buyer, dv.SendEvidence("too late"))

    def test_payout_that_vanished_can_be_disputed(self) -> None:
        """Only the seller holds both signatures of a release; without it the buyer would be stuck."""
        trial = paid(Side.SELL)
        trial.release()
        trial.chain(ev.EscrowSpent(trial.facts.payout_txid, 0))
        perform, trial.perform = trial.perform, lambda *_: None  # type: ignore[method-assign]
        trial.chain(ev.SpendReorged())
        trial.perform = perform  # type: ignore[method-assign]
        trial.open(trial.buyer, 1_000_000)
        trial.do(trial.main, ce.AcceptCase(HEIGHT))
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        txid = trial.decide(trial.main, 1_000_000)
        trial.do(trial.buyer, dv.CompleteRuling())
        assert txid in trial.broadcast
        trial.spend(txid)
        assert trial.buyer.phase == "Completed"


class TestArbiter:
    def test_decides_once_by_the_shape_of_its_table(self) -> None:
        """From Deciding on no path leads to a phase in which Decide is legal."""
        legal = {phase for phase, event in CASE_TRANSITIONS if event is ce.Decide}
        reached, waiting = set[type](), list[type]([ce.Deciding])
        while waiting:
            phase: type = waiting.pop()
            reached.add(phase)
            waiting += [
                target
                for (source, _), (_, targets) in CASE_TRANSITIONS.items()
                if source is phase
                for target in targets
                if target not in reached
            ]
        assert legal
        assert not legal & reached

    def test_nothing_is_decided_about_an_escrow_that_is_not_there(self) -> None:
        trial = paid(Side.SELL)
        trial.main.feed(trial.opening(Side.BUY, Claim("x", 0), Branch.MAIN))
        trial.main.effects.clear()
        with pytest.raises(IllegalTransition, match="buried"):
            trial.main.feed(ce.AcceptCase(HEIGHT))
        trial.main.feed(ev.FundingConfirmed(1, 100))
        with pytest.raises(IllegalTransition, match="buried"):
            trial.main.feed(ce.AcceptCase(HEIGHT))
        trial.main.feed(ev.FundingConfirmed(2, 100))
        trial.main.feed(ce.AcceptCase(HEIGHT))
        trial.main.feed(ev.EscrowSpent(b"x" * 32, 0))
        with pytest.raises(IllegalTransition, match="paid out"):
            trial.main.feed(ce.Decide(0, 0, Reason.OTHER, "", FEE_SCRIPT, 2_000))

    def test_signature_of_a_case_that_closed_meanwhile_never_leaves(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.do(trial.main, ce.CaseTimerFired("hearing"))
        trial.main.feed(ce.Decide(0, 0, Reason.OTHER, "", FEE_SCRIPT, 2_000))
        trial.main.feed(ev.EscrowSpent(trial.facts.payout_txid, 2))
        with pytest.raises(IllegalTransition):
            trial.main.feed(ce.RulingSigned(b"r", b"t"))
        assert not any(type(payload).__name__ == "CaseRuling" for _, payload in trial.main.sent)

    def test_snapshots_hold_every_phase(self) -> None:
        trial = heard(paid(Side.SELL))
        trial.open(trial.seller, 0)
        trial.decide(trial.main, 700_000)
        for seat in trial.both:
            assert seat.state is not None
            assert load_state(dump_state(seat.state)) == seat.state
        assert trial.main.state is not None
        assert ce.load_case(ce.dump_case(trial.main.state)) == trial.main.state
