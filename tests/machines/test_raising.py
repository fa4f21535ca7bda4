"""An agreed payout at a higher fee rate: one word of a user, one answer of the peer's node, and nothing else moves."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.errors import IllegalTransition
from protocol.messages import Agreed, FeeProposal
from protocol.outcome import Agreement, ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.trade_raising import MAX_RAISES, MIN_RAISE
from protocol.types import Branch, Side
from tests.machines.duel import Duel, Seat, tagged, txid_of

BASE = tagged("payout")
SIDES = list(Side)
RATE = 2_000
"""What the contract's payout pays; its band ends at 50,000."""


def released(side: Side = Side.SELL) -> Duel:
    """A payout in both mempools, in no block."""
    duel = Duel(side)
    duel.agree()
    duel.bury()
    duel.pay()
    duel.release()
    duel.chain(ev.EscrowSpent(BASE, 0))
    return duel


def settled() -> tuple[Duel, SettlementOutcome]:
    duel = Duel(Side.SELL)
    duel.agree()
    duel.bury()
    outcome = SettlementOutcome(200_000, RATE)
    for seat, event in (
        (duel.seller, dv.ProposeSettlement(200_000, RATE)),
        (duel.buyer, dv.AcceptSettlement(txid_of(outcome))),
    ):
        seat.feed(event)
        duel.settle()
    duel.chain(ev.EscrowSpent(txid_of(outcome), 0))
    return duel, outcome


def proposal(outcome: Agreement, of: bytes = BASE) -> dv.FeeProposalReceived:
    assert outcome.rate is not None
    return dv.FeeProposalReceived(FeeProposal(of, outcome.rate, b"p" * 70), outcome, txid_of(outcome))


def do(duel: Duel, seat: Seat, event: ev.TradeEvent) -> None:
    seat.feed(event)
    duel.settle()


def alone(seat: Seat, event: ev.TradeEvent) -> list[object]:
    """Sign what is to be signed; what is sent is returned, not delivered."""
    seat.feed(event)
    sent: list[object] = []
    while seat.effects:
        effect = seat.effects.popleft()
        if isinstance(effect, dv.SignOutcome):
            seat.feed(dv.OutcomeSigned(effect.outcome, txid_of(effect.outcome), b"own" * 24))
        elif isinstance(effect, ev.SendMessage):
            sent.append(effect.payload)
    return sent


def notices(seat: Seat, event: ev.TradeEvent) -> list[str]:
    seat.feed(event)
    found = [e.topic for e in seat.effects if isinstance(e, ev.NotifyUser)]
    seat.effects.clear()
    return found


class TestRelease:
    @pytest.mark.parametrize("who", SIDES)
    @pytest.mark.parametrize("maker", SIDES)
    def test_either_proposes_and_the_other_answers_by_itself(self, maker: Side, who: Side) -> None:
        duel = released(maker)
        duel.broadcast.clear()
        raised = ReleaseOutcome(9_000)
        do(duel, duel.seat(who), dv.RaiseFee(9_000))
        assert next(m for m in duel.seat(who).sent if isinstance(m, FeeProposal)).payout_txid == BASE
        assert [type(m) for m in duel.seat(who.other).sent[-1:]] == [Agreed]
        assert duel.broadcast == [txid_of(raised)] * 2, "two see to it better than one"
        duel.chain(ev.EscrowSpent(txid_of(raised), 0), ev.EscrowSpent(txid_of(raised), 2))
        assert {s.phase for s in duel.both} == {"Completed"}
        assert all(s.state is not None and s.state.payout.outcome == raised for s in duel.both)

    @pytest.mark.parametrize("who", SIDES)
    def test_the_first_payout_may_still_be_the_one_that_is_mined(self, who: Side) -> None:
        duel = released()
        do(duel, duel.seat(who), dv.RaiseFee(9_000))
        duel.chain(ev.EscrowSpent(BASE, 2))
        assert {s.phase for s in duel.both} == {"Completed"}

    @pytest.mark.parametrize("rate", [0, RATE, RATE + MIN_RAISE - 1, 50_001, 10**9])
    def test_a_rate_outside_the_band_or_too_near_is_not_even_proposed(self, rate: int) -> None:
        duel = released()
        with pytest.raises(IllegalTransition):
            duel.seller.feed(dv.RaiseFee(rate))

    @pytest.mark.parametrize("rate", [RATE + MIN_RAISE - 1, 50_001])
    def test_such_a_rate_is_not_answered_either(self, rate: int) -> None:
        """What the peer's node would never send: ours signs nothing and tells its user."""
        duel = released()
        assert notices(duel.buyer, proposal(ReleaseOutcome(rate))) == ["payout-fee-declined"]
        assert duel.buyer.state is not None
        assert duel.buyer.state.payout.raising is None

    def test_every_step_must_be_high_enough_to_replace_the_last(self) -> None:
        duel = released()
        do(duel, duel.seller, dv.RaiseFee(9_000))
        with pytest.raises(IllegalTransition):
            duel.buyer.feed(dv.RaiseFee(9_500))
        do(duel, duel.buyer, dv.RaiseFee(10_000))
        assert duel.broadcast[-1] == txid_of(ReleaseOutcome(10_000))

    def test_both_at_once_come_to_the_higher_rate(self) -> None:
        duel = released()
        duel.seller.feed(dv.RaiseFee(9_000))
        duel.buyer.feed(dv.RaiseFee(20_000))
        duel.settle()
        high = txid_of(ReleaseOutcome(20_000))
        assert duel.broadcast[-1] == high
        for seat in duel.both:
            assert seat.state is not None
            variant = seat.state.payout.variant(high)
            assert variant is not None
            assert variant.own_signature is not None
            assert variant.peer_signature is not None

    def test_a_seller_that_has_not_released_is_not_made_to(self) -> None:
        """The buyer's node says that the payout is stuck, and there is none."""
        duel = Duel(Side.SELL)
        duel.agree()
        duel.bury()
        duel.pay()
        assert notices(duel.seller, proposal(ReleaseOutcome(9_000))) == ["payout-fee-declined"]
        assert duel.seller.phase == "Paid"
        with pytest.raises(IllegalTransition):
            duel.seller.feed(dv.RaiseFee(9_000))

    def test_a_payout_that_no_node_takes_is_signed_again_before_it_is_out(self) -> None:
        """The mempool's floor rose over the contract's rate: the buyer may know nothing of the release yet."""
        duel = Duel(Side.SELL)
        duel.agree()
        duel.bury()
        duel.pay()
        duel.seller.feed(ev.Release())
        duel.seller.effects.clear()
        duel.seller.feed(ev.PayoutSigned(b"seller"))
        duel.seller.effects.clear()
        assert duel.seller.phase == "Releasing"
        duel.seller.feed(ev.PayoutDelayed("mempool min fee not met"))
        assert [e for e in duel.seller.effects if isinstance(e, ev.NotifyUser)]
        duel.seller.effects.clear()
        do(duel, duel.seller, dv.RaiseFee(9_000))
        assert (duel.buyer.phase, duel.seller.phase) == ("Settling", "Settling")
        duel.chain(ev.EscrowSpent(txid_of(ReleaseOutcome(9_000)), 2))
        assert {s.phase for s in duel.both} == {"Completed"}

    def test_what_is_in_a_block_is_not_raised(self) -> None:
        duel = released()
        duel.chain(ev.EscrowSpent(BASE, 1))
        with pytest.raises(IllegalTransition, match="block already"):
            duel.seller.feed(dv.RaiseFee(9_000))
        assert notices(duel.buyer, proposal(ReleaseOutcome(9_000))) == ["payout-fee-declined"]

    def test_a_flood_of_proposals_ends(self) -> None:
        duel = released()
        for n in range(MAX_RAISES):
            alone(duel.buyer, proposal(ReleaseOutcome(3_000 + n * MIN_RAISE)))
        with pytest.raises(IllegalTransition):
            duel.buyer.feed(proposal(ReleaseOutcome(40_000)))

    def test_one_that_was_answered_is_refused_the_second_time(self) -> None:
        duel = released()
        assert [type(m) for m in alone(duel.buyer, proposal(ReleaseOutcome(9_000)))] == [Agreed]
        with pytest.raises(IllegalTransition, match="already"):
            duel.buyer.feed(proposal(ReleaseOutcome(9_000)))

    def test_an_answer_to_what_nobody_asked_is_refused(self) -> None:
        duel = released()
        with pytest.raises(IllegalTransition):
            duel.buyer.feed(dv.AgreedReceived(Agreed(txid_of(ReleaseOutcome(9_000)), b"p" * 70)))


class TestSettlement:
    @pytest.mark.parametrize("who", SIDES)
    def test_a_settlement_is_raised_like_a_release(self, who: Side) -> None:
        duel, outcome = settled()
        do(duel, duel.seat(who), dv.RaiseFee(9_000))
        raised = replace(outcome, rate=9_000)
        assert duel.broadcast[-1] == txid_of(raised)
        duel.chain(ev.EscrowSpent(txid_of(raised), 0), ev.EscrowSpent(txid_of(raised), 2))
        assert {s.phase for s in duel.both} == {"Completed"}

    def test_another_division_at_a_higher_rate_is_not_answered(self) -> None:
        duel, _ = settled()
        other = SettlementOutcome(1, 9_000)
        assert notices(duel.buyer, proposal(other)) == ["payout-fee-declined"]

    def test_one_that_only_we_have_signed_is_not_raised_by_the_peer(self) -> None:
        """It accepts first, at the rate that was proposed: half of a higher fee would be ours."""
        duel = Duel(Side.SELL)
        duel.agree()
        duel.bury()
        duel.seller.feed(dv.ProposeSettlement(200_000, RATE))
        duel.settle()
        assert notices(duel.seller, proposal(SettlementOutcome(200_000, 9_000))) == ["payout-fee-declined"]


def test_a_ruling_is_raised_by_a_child_only() -> None:
    duel = released()
    ruling = RulingOutcome(Branch.MAIN, 1_000_000, 0, b"\x00\x14" + bytes(20), RATE)
    assert duel.seller.state is not None
    payout = replace(duel.seller.state.payout, txid=txid_of(ruling), outcome=ruling)
    duel.patch(duel.seller, payout=payout)
    with pytest.raises(IllegalTransition, match="child"):
        duel.seller.feed(dv.RaiseFee(9_000))
