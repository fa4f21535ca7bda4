"""Whom a node lets take its offers, and whose it takes itself: lists, limits, and what an offer asks of its taker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2pnode.reputation.acquaintances import Acquaintances
from p2pnode.reputation.gate import (
    Gate,
    NotWelcome,
    OverStrangersLimit,
    PersonaBlocked,
    StrangerLimits,
    StrangersLimit,
    TooFewTrades,
)
from protocol.offer import Requirements
from protocol.receipt import Ending
from protocol.types import Side
from tests.unit.reputation_support import Ledger, Observer, key_of, rating, trade
from tests.unit.services_support import T0, offer_of
from tests.world import World

ANN, BOB, EVE = key_of("ann"), key_of("bob"), key_of("eve")
ARBITERS = (key_of("arbiter").public, key_of("backup").public)


class Sealed(Observer):
    """A node that looks nothing up: it knows what it was told."""

    def gate(self, limits: StrangerLimits | None = None) -> Gate:
        return Gate(
            self.acquaintances,
            self.histories,
            self.trades,
            limits or StrangerLimits(),
            refuses_arbiter=lambda persona: "it gave two rulings in one contract" if persona in self.exposed else None,
        )

    exposed: frozenset[bytes] = frozenset()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def node(tmp_path: Path, ledger: Ledger) -> Iterator[Sealed]:
    made = Sealed(tmp_path, ledger)
    yield made
    made.close()


OFFER = offer_of(BOB.public)


async def test_a_blocked_persona_takes_nothing_and_is_not_told_why(node: Sealed) -> None:
    node.acquaintances.set(EVE.public, T0, standing="blocked")
    with pytest.raises(NotWelcome) as raised:
        await node.gate().admit(EVE.public, OFFER, 1_000, ARBITERS)
    assert "block" not in raised.value.detail
    await node.gate().admit(ANN.public, OFFER, 1_000, ARBITERS)
    node.acquaintances.set(EVE.public, T0, standing="")
    await node.gate().admit(EVE.public, OFFER, 1_000, ARBITERS)


async def test_a_block_outlives_a_restart(node: Sealed, tmp_path: Path, ledger: Ledger) -> None:
    node.acquaintances.set(EVE.public, T0, standing="blocked", note="never paid")
    again = Sealed(tmp_path, ledger)
    assert again.gate().hides(EVE.public)
    assert again.acquaintances.get(EVE.public).note == "never paid"
    again.close()


async def test_the_user_takes_nothing_from_whom_it_blocks(node: Sealed) -> None:
    node.acquaintances.set(EVE.public, T0, standing="blocked")
    assert node.gate().hides(EVE.public)
    assert not node.gate().hides(BOB.public)
    with pytest.raises(PersonaBlocked):
        await node.gate().consent(EVE.public, 1_000)


async def test_an_exposed_arbiter_is_in_no_trade_of_ours(node: Sealed) -> None:
    node.exposed = frozenset(ARBITERS[:1])
    with pytest.raises(NotWelcome, match="two rulings"):
        await node.gate().admit(ANN.public, OFFER, 1_000, ARBITERS)


async def test_new_counterparties_have_limits_and_known_or_trusted_ones_have_not(node: Sealed, ledger: Ledger) -> None:
    limits = StrangerLimits(max_amount=100_000)
    gate = node.gate(limits)
    with pytest.raises(StrangersLimit, match="100,000 sat"):
        await gate.admit(ANN.public, OFFER, 100_001, ARBITERS)
    with pytest.raises(OverStrangersLimit):
        await gate.consent(ANN.public, 100_001)
    await gate.admit(ANN.public, OFFER, 100_000, ARBITERS)
    node.acquaintances.set(BOB.public, T0, standing="trusted")
    await gate.admit(BOB.public, OFFER, 10**7, ARBITERS)
    await gate.consent(BOB.public, 10**7)
    await node.hear(rating(trade(ledger, ANN, EVE, "known").signed(), EVE))
    await gate.admit(ANN.public, OFFER, 10**7, ARBITERS)
    await gate.consent(ANN.public, 10**7)


async def test_no_trade_with_new_ones_where_none_may_be_open(node: Sealed) -> None:
    with pytest.raises(StrangersLimit, match="open already"):
        await node.gate(StrangerLimits(max_open=0)).admit(ANN.public, OFFER, 1_000, ARBITERS)
    with pytest.raises(OverStrangersLimit):
        await node.gate(StrangerLimits(max_open=0)).consent(ANN.public, 1_000)


async def test_completed_trades_are_counted_by_receipts_that_our_chain_proves(node: Sealed, ledger: Ledger) -> None:
    asked = offer_of(BOB.public, requirements=Requirements(2))
    gate = node.gate()
    with pytest.raises(TooFewTrades, match=r"asks for 2 .* prove 0"):
        await gate.admit(ANN.public, asked, 1_000, ARBITERS)
    await node.hear(rating(trade(ledger, ANN, EVE, "one").signed(), EVE))
    invented = trade(Ledger(), ANN, EVE, "invented", blocks=50)
    await node.hear(rating(invented.signed(), EVE))
    with pytest.raises(TooFewTrades, match="prove 1"):
        await gate.admit(ANN.public, asked, 1_000, ARBITERS)
    settled = trade(ledger, ANN, EVE, "settled")
    await node.hear(rating(settled.signed(replace(settled.receipt, ending=Ending.SETTLED)), EVE))
    with pytest.raises(TooFewTrades, match="prove 1"):
        await gate.admit(ANN.public, asked, 1_000, ARBITERS)
    await node.hear(rating(trade(ledger, ANN, EVE, "two").signed(), EVE))
    await gate.admit(ANN.public, asked, 1_000, ARBITERS)
    with pytest.raises(TooFewTrades):
        await gate.admit(BOB.public, asked, 1_000, ARBITERS)
    node.acquaintances.set(BOB.public, T0, standing="trusted")
    await gate.admit(BOB.public, asked, 1_000, ARBITERS)


async def test_a_take_by_a_blocked_persona_withdraws_no_offer_and_locks_no_coin(tmp_path: Path) -> None:
    """Through the maker's real intake: the offer stays open for others, and the taker's coins are free again."""
    world = World(tmp_path, Side.SELL)
    await world.begin()
    node = world.maker
    taker = world.taker.keyring.persona.public
    acquaintances = Acquaintances(node.database)
    acquaintances.set(taker, T0, standing="blocked")
    observer = Sealed(tmp_path, Ledger())
    node.intake.gate = Gate(acquaintances, observer.histories, node.engine.trades, StrangerLimits())
    await world.take()
    await world.until(lambda: world.taker.phase == "Declined", "the refusal")
    assert world.maker.trade is None
    assert world.maker.own.count_open() == 1
    assert world.chain.broadcasts == []
    acquaintances.set(taker, T0, standing="")
    observer.close()
    await world.end()
