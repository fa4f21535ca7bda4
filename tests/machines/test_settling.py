"""Settlements, extensions and chat between the two machines."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.attachment import Attachment
from protocol.case_messages import MAX_TRANSCRIPT
from protocol.errors import IllegalTransition
from protocol.messages import Agreed, AttachmentOffer, ChatLine, Proposal
from protocol.outcome import SettlementOutcome, cancelled_due
from protocol.trade_settling import MAX_OPTIONS, MAX_TALK
from protocol.trade_state import TalkFacts
from protocol.types import Side
from tests.machines.duel import Duel, Seat, tagged, txid_of

RATE = 2_000
MAKERS = list(Side)
FILE = Attachment(tagged("content"), 10, "image/png", "proof.png")


def funded(side: Side = Side.SELL) -> Duel:
    duel = Duel(side)
    duel.agree()
    duel.bury()
    return duel


def do(duel: Duel, seat: Seat, event: ev.TradeEvent) -> None:
    seat.feed(event)
    duel.settle()


def outcome(due: int) -> SettlementOutcome:
    return SettlementOutcome(due, RATE)


class TestSettlement:
    @pytest.mark.parametrize("side", MAKERS)
    def test_mutual_cancel_takes_two_messages_and_completes_for_both(self, side: Side) -> None:
        duel = funded(side)
        due = cancelled_due(duel.contract)
        do(duel, duel.seller, dv.ProposeSettlement(due, RATE))
        do(duel, duel.buyer, dv.AcceptSettlement(txid_of(outcome(due))))
        assert duel.broadcast == [txid_of(outcome(due))] * 2, "two see to it better than one"
        duel.chain(ev.EscrowSpent(txid_of(outcome(due)), 0), ev.EscrowSpent(txid_of(outcome(due)), 2))
        assert (duel.buyer.phase, duel.seller.phase) == ("Completed", "Completed")
        assert [type(m) for m in duel.seller.sent if isinstance(m, Proposal)] == [Proposal]
        assert [type(m) for m in duel.buyer.sent if isinstance(m, Agreed)] == [Agreed]

    @pytest.mark.parametrize("side", MAKERS)
    def test_buyer_that_signed_a_settlement_never_pays(self, side: Side) -> None:
        """The seller could take the payment and the settlement both."""
        duel = funded(side)
        do(duel, duel.buyer, dv.ProposeSettlement(100_000, RATE))
        with pytest.raises(IllegalTransition, match="do not pay"):
            duel.buyer.feed(ev.DeclarePaid())

    def test_buyer_cannot_pay_while_its_settlement_is_being_signed(self) -> None:
        duel = funded()
        duel.buyer.feed(dv.ProposeSettlement(100_000, RATE))
        with pytest.raises(IllegalTransition, match="do not pay"):
            duel.buyer.feed(ev.DeclarePaid())

    def test_one_settlement_is_signed_at_a_time(self) -> None:
        """Two signatures in the making could both leave, the worse one last."""
        duel = funded()
        duel.seller.feed(dv.ProposeSettlement(200_000, RATE))
        with pytest.raises(IllegalTransition, match="being signed"):
            duel.seller.feed(dv.ProposeSettlement(300_000, RATE))

    def test_new_proposal_must_be_better_for_the_peer(self) -> None:
        """The peer would use the older one; a user that believes otherwise is misled."""
        duel = funded()
        do(duel, duel.seller, dv.ProposeSettlement(200_000, RATE))
        with pytest.raises(IllegalTransition, match="better for it"):
            duel.seller.feed(dv.ProposeSettlement(150_000, RATE))
        do(duel, duel.seller, dv.ProposeSettlement(250_000, RATE))
        with pytest.raises(IllegalTransition, match="accept that"):
            duel.buyer.feed(dv.ProposeSettlement(250_000, RATE))

    def test_older_proposal_that_the_peer_completes_is_no_anomaly(self) -> None:
        duel = funded()
        do(duel, duel.seller, dv.ProposeSettlement(200_000, RATE))
        do(duel, duel.seller, dv.ProposeSettlement(250_000, RATE))
        old = txid_of(outcome(200_000))
        duel.chain(ev.EscrowSpent(old, 0), ev.EscrowSpent(old, 2))
        assert duel.seller.phase == "Completed"
        assert duel.seller.state is not None
        assert duel.seller.state.payout.outcome == outcome(200_000)

    def test_same_proposal_from_both_is_an_agreement(self) -> None:
        duel = funded()
        duel.seller.feed(dv.ProposeSettlement(200_000, RATE))
        duel.buyer.feed(dv.ProposeSettlement(200_000, RATE))
        duel.settle()
        assert txid_of(outcome(200_000)) in duel.broadcast

    def test_settlement_that_is_signed_too_late_never_leaves(self) -> None:
        duel = funded()
        duel.pay()
        duel.seller.feed(dv.ProposeSettlement(200_000, RATE))
        effects = list(duel.seller.effects)
        duel.seller.effects.clear()
        duel.release()
        duel.seller.effects.extend(effects)
        duel.settle()
        assert not any(isinstance(m, Proposal) for m in duel.seller.sent)

    @pytest.mark.parametrize("due", [-1, 700_001])
    def test_settlement_never_gives_more_than_there_is(self, due: int) -> None:
        with pytest.raises(IllegalTransition, match="holds"):
            funded().seller.feed(dv.ProposeSettlement(due, RATE))

    @pytest.mark.parametrize("rate", [1_999, 50_001])
    def test_settlement_keeps_the_contracts_fee_band(self, rate: int) -> None:
        with pytest.raises(IllegalTransition, match="band"):
            funded().seller.feed(dv.ProposeSettlement(1, rate))

    def test_flood_of_proposals_is_bounded(self) -> None:
        duel = funded()
        for due in range(16):
            do(duel, duel.seller, dv.ProposeSettlement(due, RATE))
        with pytest.raises(IllegalTransition, match="as many"):
            duel.seller.feed(dv.ProposeSettlement(16, RATE))
        with pytest.raises(IllegalTransition, match="as many"):
            duel.buyer.feed(dv.ProposalReceived(Proposal(99, RATE, b"x" * 70), tagged("more")))

    def test_settlement_whose_payout_vanishes_is_broadcast_again(self) -> None:
        duel = funded()
        do(duel, duel.seller, dv.ProposeSettlement(200_000, RATE))
        txid = txid_of(outcome(200_000))
        do(duel, duel.buyer, dv.AcceptSettlement(txid))
        duel.chain(ev.EscrowSpent(txid, 0))
        duel.broadcast.clear()
        duel.chain(ev.SpendReorged())
        assert duel.broadcast == [txid, txid], "by both"

    @pytest.mark.parametrize("event", [dv.AcceptSettlement(tagged("no")), dv.AgreedReceived(Agreed(tagged("no"), b""))])
    def test_nobody_agrees_to_what_was_not_proposed(self, event: ev.TradeEvent) -> None:
        with pytest.raises(IllegalTransition):
            funded().buyer.feed(event)


class TestTime:
    @pytest.mark.parametrize("side", MAKERS)
    def test_deadline_counts_from_the_block_that_buries_the_escrow(self, side: Side) -> None:
        """Both nodes must name one block, whenever each of them woke up."""
        duel = funded(side)
        for seat in duel.both:
            assert seat.state is not None
            assert seat.state.window_ends == 100 + 2 - 1 + 144

    def test_extension_reopens_a_window_that_has_passed(self) -> None:
        duel = funded()
        for seat in duel.both:
            seat.feed(ev.TimerFired("payment"))
        do(duel, duel.buyer, dv.RequestExtension(10, "bank is slow"))
        do(duel, duel.seller, dv.GrantExtension(12))
        for seat in duel.both:
            assert seat.state is not None
            assert not seat.state.window_passed
            assert seat.state.window_ends == 100 + 2 - 1 + 144 + 12

    def test_only_the_seller_gives_time_and_only_the_buyer_asks(self) -> None:
        duel = funded()
        with pytest.raises(IllegalTransition):
            duel.buyer.feed(dv.GrantExtension(5))
        with pytest.raises(IllegalTransition):
            duel.seller.feed(dv.RequestExtension(5))
        with pytest.raises(IllegalTransition):
            duel.seller.feed(dv.GrantExtension(65_535))

    def test_buyer_is_reminded_before_its_time_is_over(self) -> None:
        duel = funded()
        duel.buyer.feed(ev.TimerFired("payment-reminder"))
        assert ev.NotifyUser("payment-reminder") in duel.buyer.effects
        duel.seller.feed(ev.TimerFired("payment-reminder"))
        assert not duel.seller.effects


class TestChat:
    def test_chat_and_files_pass_at_any_time_and_change_nothing(self) -> None:
        duel = funded()
        before = duel.buyer.state
        do(duel, duel.seller, dv.SendChat("hello"))
        do(duel, duel.seller, dv.SendAttachment(FILE))
        assert before is not None
        assert duel.buyer.state == replace(before, talk=TalkFacts(peer=2))
        assert ChatLine("hello") in duel.seller.sent

    def test_talk_has_an_end_on_both_sides_at_once(self) -> None:
        """A peer could fill our disk, and make a record too long to be shown to an arbiter."""
        duel = funded()
        for _ in range(MAX_TALK):
            do(duel, duel.seller, dv.SendChat("x"))
        for more in (dv.SendChat("x"), dv.SendAttachment(FILE), dv.GrantExtension(1)):
            with pytest.raises(IllegalTransition, match="as much as"):
                duel.seller.feed(more)
        with pytest.raises(IllegalTransition, match="as much as"):
            duel.buyer.feed(dv.ChatReceived(ChatLine("from a modified node")))
        # The machine's other messages have limits of their own: together they fit into one case file.
        assert 2 * (MAX_TALK + MAX_OPTIONS + 16) < MAX_TRANSCRIPT
        duel.pay()
        assert duel.seller.phase == "Paid", "the trade itself goes on"

    @pytest.mark.parametrize("event", [dv.SendChat("hi"), dv.SendAttachment(FILE)])
    def test_chat_waits_for_a_contract(self, event: ev.TradeEvent) -> None:
        duel = Duel(Side.SELL)
        duel.taker.feed(duel.take)
        with pytest.raises(IllegalTransition):
            duel.taker.feed(event)


def test_message_that_comes_too_late_does_not_break_the_chain() -> None:
    """A refused message would leave a gap, and everything its sender says afterwards would be refused for it."""
    duel = funded()
    duel.pay()
    duel.release()
    txid = duel.facts.payout_txid
    duel.chain(ev.EscrowSpent(txid, 0), ev.EscrowSpent(txid, 2))
    for event in (
        dv.ChatReceived(ChatLine("thanks")),
        dv.AttachmentReceived(AttachmentOffer(FILE, "")),
        dv.ProposalReceived(Proposal(1, RATE, b"x" * 70), tagged("late")),
    ):
        duel.buyer.feed(event)
        assert duel.buyer.phase == "Completed"
