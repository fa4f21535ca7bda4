"""A disk is lost in the middle of a dispute, a party's or the arbiter's: what it had said comes back, once.

The node is restored from a copy of each of its earlier steps; the dispute goes on to the payout by the ruling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from escrow.coins import OutPoint
from p2pnode import backup
from p2pnode.cases.engine import HeldCase
from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol.errors import IllegalTransition
from protocol.messages import Claim
from protocol.outcome import RulingOutcome
from protocol.transcript import header_of
from protocol.types import Side
from protocol.wire import Kind, open_envelope
from tests.court import Court, CourtNode
from tests.world import NETWORK, NOW, PATIENCE

VICTIMS = ("buyer", "seller", "arbiter")
MOMENTS = ("paid", "opened", "answered", "accepted", "ruled")


class Story:
    """A dispute, moment by moment; a copy of the victim is made at one, and its disk is lost at another."""

    def __init__(self, court: Court, victim: CourtNode, copied: str, lost: str) -> None:
        self.court = court
        self.victim = victim
        self.copied = copied
        self.lost = lost
        self._copy = b""
        self._held: dict[OutPoint, bytes] = {}

    async def moment(self, name: str) -> None:
        node = self.victim
        if name == self.copied:
            self._copy = backup.snapshot_database(node.folder / f"{node.name}.db", NOW)
            self._held = dict(node.held)
        if name == self.lost:
            node.die()
            await node.buried()
            folder = node.folder / "new machine"
            folder.mkdir()
            (folder / f"{node.name}.db").write_bytes(self._copy)
            node.folder = folder
            node.held.clear()
            node.held.update(self._held)
            await node.up()
            if name == "ruled" and node.case is not None:
                # An arbiter that has forgotten its ruling would make another one, if its node let it.
                with pytest.raises(HeldCase):
                    await node.decide(100_000)

    async def insist(self, act: Callable[[], Awaitable[None]], done: Callable[[], bool], what: str) -> None:
        """As a user does: again, until it is done."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while not done():
            main, buyer, seller = self.court.main, self.court.buyer, self.court.seller
            story = f"{what}: {main.case_phase}, {buyer.phase}, {seller.phase}, held {self.victim.engine.trades.held()}"
            assert loop.time() < deadline, story
            with suppress(IllegalTransition, AssertionError):
                await act()
            await asyncio.sleep(0.005)


def check_said_once(court: Court) -> None:
    said: dict[tuple[bytes, bytes, int], bytes] = {}
    for raw in court.post.carried:
        envelope = open_envelope(raw, NETWORK)
        if envelope.kind in (Kind.SYNC, Kind.SYNCED, Kind.RETURNED):
            continue
        header = header_of(envelope)
        key = (envelope.signer, header.trade_id, header.number)
        assert said.setdefault(key, raw) == raw, f"two different messages {key[2]}: {Kind(envelope.kind).name}"


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize(("copied", "lost"), [(a, b) for i, a in enumerate(MOMENTS) for b in MOMENTS[i:]], ids=str)
async def test_dispute_goes_on_after_the_loss_of_a_disk(tmp_path: Path, victim: str, copied: str, lost: str) -> None:
    court = Court(tmp_path, Side.SELL)
    for node in (*court.both, *court.judges):
        node.reconciles = True
    await court.pay()
    buyer, seller, main = court.buyer, court.seller, court.main
    assert isinstance(buyer, CourtNode)
    assert isinstance(seller, CourtNode)
    story = Story(court, {"buyer": buyer, "seller": seller, "arbiter": main}[victim], copied, lost)

    def told(node: CourtNode) -> bool:
        dispute = node.trade.dispute if node.alive and node.trade is not None else None
        return dispute is not None and dispute.own_claim is not None

    async def opens() -> None:
        if not told(buyer):
            court.give(buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))

    async def answers() -> None:
        if not told(seller):
            court.give(seller, dv.OpenDispute(Claim("nothing came", 0)))

    async def accepts() -> None:
        main.act(ce.AcceptCase(court.chain.height))

    async def rules() -> None:
        await main.decide(700_000)

    try:
        await story.moment("paid")
        await story.insist(opens, lambda: main.case is not None and main.case.buried and told(buyer), "opened")
        await story.moment("opened")
        await story.insist(answers, lambda: main.case is not None and main.case.both_told and told(seller), "answered")
        await story.moment("answered")
        await story.insist(accepts, lambda: main.case_phase not in ("None", "Queued"), "accepted")
        await story.moment("accepted")
        await story.insist(rules, lambda: main.case_phase in ("Ruled", "Closed"), "ruled")
        await story.moment("ruled")
        await story.insist(court.pause, lambda: len(court.chain.mempool) == 1, "payout")
        court.chain.mine(2)
        await story.insist(
            court.pause, lambda: court.phases("Completed") and main.case_phase in ("Closed", "None"), "end"
        )
        for trader in court.both:
            assert trader.trade is not None
            assert isinstance(trader.trade.payout.outcome, RulingOutcome)
            assert trader.trade.payout.outcome.buyer_share == 700_000, "it has ruled twice"
        check_said_once(court)
    finally:
        await court.end()
