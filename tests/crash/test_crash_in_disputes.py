"""A node that dies at any commit of a dispute comes back and finishes it: nobody rules twice, nothing is lost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol.errors import IllegalTransition
from protocol.messages import Claim
from protocol.outcome import RulingOutcome
from protocol.types import Side
from protocol.wire import Kind, open_envelope
from tests.court import Court, CourtNode
from tests.world import NETWORK, Killed

CERTAIN_DEATHS = 4
"""So many commits each of them makes in a dispute at least."""
VICTIMS = ("buyer", "seller", "arbiter")


def victim_of(court: Court, name: str) -> CourtNode:
    node = {"buyer": court.buyer, "seller": court.seller, "arbiter": court.main}[name]
    assert isinstance(node, CourtNode)
    return node


async def revived(court: Court, node: CourtNode) -> None:
    if not node.alive:
        await node.buried()
        await node.up()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("loses_it", [False, True], ids=["after the commit", "before it"])
async def test_dispute_survives_a_death_at_any_commit(tmp_path: Path, victim: str, nth: int, *, loses_it: bool) -> None:
    court = Court(tmp_path, Side.SELL)
    await court.pay()
    node = victim_of(court, victim)
    node.database.dies_at = node.database.commits + nth
    node.database.loses_it = loses_it
    before = node.database

    async def insist(who: CourtNode, act: object, done: object) -> None:
        """As a user does: again, until it is done."""
        while not done():  # type: ignore[operator]
            await revived(court, court.main)
            for trader in court.both:
                assert isinstance(trader, CourtNode)
                await revived(court, trader)
            with suppress(Killed, IllegalTransition, AssertionError):
                await act()  # type: ignore[operator]
            await court.pause()

    buyer, seller, main = (victim_of(court, name) for name in VICTIMS)

    async def open_case() -> None:
        court.give(buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))

    async def answer() -> None:
        court.give(seller, dv.OpenDispute(Claim("nothing came", 0)))

    async def accept() -> None:
        main.act(ce.AcceptCase(court.chain.height))

    async def rule() -> None:
        await main.decide(700_000)

    await insist(buyer, open_case, lambda: main.alive and main.case is not None and main.case.buried)
    await insist(seller, answer, lambda: main.alive and main.case is not None and main.case.both_told)
    await insist(main, accept, lambda: main.alive and main.case_phase != "Queued")
    await insist(main, rule, lambda: main.alive and main.case_phase in ("Ruled", "Closed"))
    await insist(main, court.pause, lambda: len(court.chain.mempool) == 1)
    court.chain.mine(2)
    await insist(main, court.pause, lambda: court.phases("Completed") and main.alive and main.case_phase == "Closed")
    for trader in court.both:
        assert trader.trade is not None
        assert isinstance(trader.trade.payout.outcome, RulingOutcome)
    rulings = {open_envelope(raw, NETWORK).body for raw in court.post.carried if _is_ruling(raw)}
    texts = {trader.trade.dispute.rulings[0].ruling_id for trader in court.both}  # type: ignore[union-attr]
    assert len(texts) == 1, "both have one and the same ruling"
    if nth <= CERTAIN_DEATHS:
        assert node.database is not before, "the node was never killed: the test tests nothing"
    assert len(rulings) == 2, "each was told once, however often it was sent"
    await court.end()


def _is_ruling(raw: bytes) -> bool:
    return open_envelope(raw, NETWORK).kind == Kind.CASE_RULING
