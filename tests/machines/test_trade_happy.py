"""The happy path of all four casts, with exactly six messages."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace

from protocol import trade_events as ev
from protocol.errors import IllegalTransition
from protocol.trade import TRANSITIONS, step
from protocol.trade_state import AnyPhase, dump_state, load_state
from protocol.types import Side
from tests.machines.duel import Duel, Seat, tagged

CASTS = [(side, deposit) for side in Side for deposit in (0, 100_000)]


@pytest.mark.parametrize(("side", "deposit"), CASTS)
def test_six_messages_complete_a_trade(side: Side, deposit: int) -> None:
    duel = Duel(side, buyer_deposit=deposit)
    duel.agree()
    duel.bury()
    assert (duel.buyer.phase, duel.seller.phase) == ("Funded", "Funded")
    duel.pay()
    assert (duel.buyer.phase, duel.seller.phase) == ("Paid", "Paid")
    duel.release()
    duel.chain(ev.EscrowSpent(duel.facts.payout_txid, 0), ev.EscrowSpent(duel.facts.payout_txid, 2))
    assert (duel.buyer.phase, duel.seller.phase) == ("Completed", "Completed")
    names = [type(m).__name__ for seat in duel.both for m in seat.sent]
    assert sorted(names) == ["Accept", "Paid", "PaymentDetails", "Released", "Seal", "Take"]


@pytest.mark.parametrize(("side", "deposit"), CASTS)
def test_seller_signs_last_and_alone_broadcasts(side: Side, deposit: int) -> None:
    """A seller that signed first would leave the buyer to choose when its coins are locked."""
    duel = Duel(side, buyer_deposit=deposit)
    order: list[str] = []
    perform = duel.perform

    def record(seat: Seat, other: Seat, effect: ev.Effect) -> None:
        order.append(f"{'buyer' if seat is duel.buyer else 'seller'} {type(effect).__name__}")
        perform(seat, other, effect)

    duel.perform = record  # type: ignore[method-assign]
    duel.agree()
    assert order.index("buyer SignFunding") < order.index("seller SignFunding")
    assert "seller BroadcastFunding" in order
    assert "buyer BroadcastFunding" not in order
    assert order.index("seller WatchEscrow") < order.index("seller BroadcastFunding")


@pytest.mark.parametrize("side", list(Side))
def test_snapshot_holds_every_phase(side: Side) -> None:
    duel = Duel(side)
    steps = (duel.agree, duel.bury, duel.pay, duel.release)
    for go in steps:
        go()
        for seat in duel.both:
            assert seat.state is not None
            assert load_state(dump_state(seat.state)) == seat.state


@pytest.mark.parametrize("side", list(Side))
def test_peer_claims_never_complete_a_trade(side: Side) -> None:
    duel = Duel(side)
    duel.agree()
    duel.bury()
    duel.pay()
    duel.release()
    assert duel.buyer.phase == "Paid", "a release message alone must not complete the buyer's trade"
    duel.buyer.feed(ev.EscrowSpent(duel.facts.payout_txid, 1))
    assert duel.buyer.phase == "Settling"


@pytest.mark.parametrize("side", list(Side))
def test_foreign_spend_of_the_escrow_is_never_a_completion(side: Side) -> None:
    duel = Duel(side)
    duel.agree()
    duel.bury()
    duel.chain(ev.EscrowSpent(tagged("thief"), 1))
    assert duel.buyer.phase == "Funded"
    duel.chain(ev.EscrowSpent(tagged("thief"), 6))
    assert (duel.buyer.phase, duel.seller.phase) == ("Anomalous", "Anomalous")


def test_buyer_cannot_pay_into_a_shallow_escrow() -> None:
    duel = Duel(Side.SELL)
    duel.agree()
    duel.chain(ev.FundingSeen(), ev.FundingConfirmed(1, 100))
    with pytest.raises(IllegalTransition):
        duel.buyer.feed(ev.DeclarePaid())
    duel.chain(ev.FundingConfirmed(2, 100))
    duel.chain(ev.FundingReorged())
    with pytest.raises(IllegalTransition, match="not buried"):
        duel.buyer.feed(ev.DeclarePaid())


def test_reorg_after_payment_holds_the_release_and_rebroadcasts() -> None:
    duel = Duel(Side.SELL)
    duel.agree()
    duel.bury()
    duel.pay()
    duel.seller.feed(ev.FundingReorged())
    assert ev.BroadcastFunding() in duel.seller.effects
    with pytest.raises(IllegalTransition, match="not buried"):
        duel.seller.feed(ev.Release())
    duel.settle()
    duel.chain(ev.FundingConfirmed(2, 101))
    duel.release()
    assert duel.seller.phase == "Settling"


def test_buyer_that_signed_leaves_only_by_spending_its_own_inputs() -> None:
    duel = Duel(Side.SELL)
    perform = duel.perform

    def seller_withholds(seat: Seat, other: Seat, effect: ev.Effect) -> None:
        if seat is duel.seller and isinstance(effect, ev.SignFunding | ev.BroadcastFunding):
            return
        perform(seat, other, effect)

    duel.perform = seller_withholds  # type: ignore[method-assign]
    duel.agree()
    assert duel.buyer.phase == "Funding"
    duel.buyer.feed(ev.TimerFired("funding"))
    assert duel.buyer.phase == "Reclaiming"
    assert ev.ReclaimCoins() in duel.buyer.effects
    assert ev.ReleaseCoins() not in duel.buyer.effects, "coins stay reserved until the double-spend is buried"
    duel.buyer.feed(ev.FundingConflicted(tagged("reclaim"), 1))
    assert duel.buyer.phase == "Reclaiming"
    duel.buyer.feed(ev.FundingConflicted(tagged("reclaim"), 2))
    assert duel.buyer.phase == "Cancelled"


def test_reclaim_that_loses_the_race_goes_on_with_the_trade() -> None:
    duel = Duel(Side.SELL)
    duel.agree()
    duel.buyer.feed(ev.TimerFired("funding"))
    assert duel.buyer.phase == "Reclaiming"
    duel.buyer.feed(ev.FundingConfirmed(2, 100))
    assert duel.buyer.phase == "Funded"


def test_selling_taker_seals_once_whichever_event_tells_first() -> None:
    """A crash between broadcast and its result lets the chain speak first; the seal must precede the details."""
    duel = Duel(Side.BUY)
    perform = duel.perform

    def crash(seat: Seat, other: Seat, effect: ev.Effect) -> None:
        if not isinstance(effect, ev.BroadcastFunding):
            perform(seat, other, effect)

    duel.perform = crash  # type: ignore[method-assign]
    duel.agree()
    duel.bury()
    duel.seller.feed(ev.FundingBroadcast())
    duel.settle()
    assert [type(m).__name__ for m in duel.seller.sent] == ["Take", "Seal", "PaymentDetails"]


def test_every_pair_outside_the_table_is_refused_and_changes_nothing() -> None:

    duel = Duel(Side.SELL)
    duel.agree()
    duel.bury()
    state = duel.buyer.state
    assert state is not None
    events: list[ev.TradeEvent] = [
        ev.FundingSeen(),
        ev.Release(),
        ev.Cancel(),
        ev.CoinsReclaimed(b""),
        duel.take,
        ev.DeclarePaid(),
    ]

    for phase in get_args(AnyPhase):
        here = replace(state, phase=phase())
        for event in events:
            if (phase, type(event)) not in TRANSITIONS:
                with pytest.raises(IllegalTransition):
                    step(here, event)
