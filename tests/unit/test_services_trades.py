"""Trades as the API shows them, at every step of a whole trade between two nodes, and the user's commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from escrow.script import escrow_script
from p2pnode.api.schema import ActionName, CancelRequest, PayRequest, TradeView
from p2pnode.api.services import AmbiguousId
from p2pnode.blocktime import BlockTimes
from p2pnode.idprefix import BadIdPrefix
from p2pnode.services.hints import hint
from p2pnode.services.trades import TradeService
from p2pnode.services.views import TradeViews, possible
from protocol import trade_state as st
from protocol.errors import IllegalTransition, NotFound
from protocol.identity import persona_text
from protocol.offer import volume
from protocol.trade_state import AnyPhase, TradeState
from protocol.types import EscrowType, Side
from tests.machines.duel import Duel
from tests.twins import TwinBackend
from tests.unit.services_support import NETWORK, describe_escrow
from tests.world import NOW, TwinNode, World


def blocks(node: TwinNode) -> BlockTimes:
    return BlockTimes(lambda: node.chain.height, node.clock)


def service(node: TwinNode) -> TradeService:
    views = TradeViews(node.engine.trades, NETWORK, describe_escrow, blocks(node))
    return TradeService(node.engine, views, partial(TwinBackend(node.chain).fee_rate, 6))


async def view(node: TwinNode) -> TradeView:
    (listed,) = (await service(node).list(open_only=False)).trades
    shown = await service(node).show(listed.id[:12])
    assert replace(shown, steps=()) == listed
    return shown


@pytest.fixture(params=[Side.BUY, Side.SELL], ids=["maker-buys", "maker-sells"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, request.param)
    await made.begin()
    yield made
    await made.end()


async def test_a_whole_trade_is_told_as_it_goes(world: World) -> None:
    buyer, seller = world.buyer, world.seller
    await world.take()
    first = await view(world.taker)
    assert (first.phase, first.seat, first.actions) == ("taking", "taker", ("cancel",))
    assert first.escrow.contract_id is None
    assert (first.arbiter, first.backup) == tuple(persona_text(a.announcement.persona) for a in world.arbiters)

    await world.until(lambda: all(n.trade is not None and n.trade.funding.depth == 0 for n in world.both), "funding")
    for node in world.both:
        seen = await view(node)
        assert seen.side == ("buy" if node is buyer else "sell")
        assert seen.seat == ("maker" if node is world.maker else "taker")
        assert seen.peer == persona_text((world.taker if node is world.maker else world.maker).keyring.persona.public)
        assert (seen.open, seen.actions) == (True, ())
        assert (seen.amount_sats, seen.volume, seen.volume_minor) == (1_000_000, "650.00", volume(1_000_000, 6_500_000))
        assert (seen.buyer_deposit_sats, seen.seller_deposit_sats) == (100_000, 100_000)
        escrow = seen.escrow
        state = node.trade
        assert state is not None
        assert state.contract is not None
        assert escrow.script == escrow_script(state.contract, NETWORK).witness_script.hex()
        assert escrow.address is not None
        assert escrow.address.startswith("bcrt1q")
        (raw,) = world.chain.mempool
        assert escrow.funding_txid == raw[::-1].hex()
        assert (escrow.type, escrow.payout_txid, escrow.payout_fee_sats) == (2, None, None)
        assert escrow.value_sats is not None
        assert escrow.value_sats >= 1_200_000
    await world.until(lambda: all(n.trade is not None and n.trade.funding.depth == 0 for n in world.both), "seen")
    assert [(await view(n)).escrow.funding_depth for n in world.both] == [0, 0]
    assert "waits in the mempool" in (await view(buyer)).hint

    world.chain.mine(1)
    await world.until(lambda: all(n.trade is not None and n.trade.funding.depth == 1 for n in world.both), "one block")
    assert "1 of 2 confirmations" in (await view(seller)).hint
    with pytest.raises(IllegalTransition):
        await service(buyer).pay(first.id, PayRequest())
    world.chain.mine(1)
    await world.until(lambda: world.phases("Funded") and bool(buyer.trade and buyer.trade.peer_details), "funded")
    await world.until(world.quiet, "acknowledged")

    seen = await view(buyer)
    assert (seen.phase, seen.actions) == ("funded", ("pay",))
    assert seen.peer_details == dict(seller.trade.own_details.details)  # type: ignore[union-attr]
    assert seen.own_details == dict(buyer.trade.own_details.details)  # type: ignore[union-attr]
    assert "650.00 EUR by sepa" in seen.hint
    assert (await view(seller)).actions == ()
    assert (await view(seller)).peer_details == {}
    with pytest.raises(IllegalTransition):
        await service(seller).release(first.id)
    with pytest.raises(IllegalTransition):
        await service(buyer).cancel(first.id, CancelRequest())

    paying = await service(buyer).pay(first.id, PayRequest(note="RF18"))
    assert (paying.phase, paying.payment_note) == ("paying", "RF18")
    await world.until(lambda: world.phases("Paid"), "paid")
    seen = await view(seller)
    assert (seen.actions, seen.payment_note) == (("release",), "RF18")
    assert seen.peer_details == dict(buyer.trade.own_details.details)  # type: ignore[union-attr]
    assert "your account" in seen.hint
    assert (await view(buyer)).actions == ()

    releasing = await service(seller).release(first.id[:8])
    assert releasing.phase == "releasing"
    assert [s.event for s in releasing.steps][-1] == "release"
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Settling"), "payout")
    (payout,) = world.chain.mempool
    world.chain.mine(2)
    await world.until(lambda: world.phases("Completed"), "completion")
    await world.until(world.quiet, "acknowledged")
    for node in world.both:
        seen = await view(node)
        assert (seen.phase, seen.open, seen.actions, seen.ending) == ("completed", False, (), "")
        assert (seen.escrow.payout_txid, seen.escrow.payout_depth) == (payout[::-1].hex(), 2)
        assert seen.escrow.payout_fee_sats is not None
        assert seen.messages_sent + seen.messages_received == 6
        assert seen.unacknowledged == 0
        assert (seen.created, seen.updated) == (NOW, NOW)
        assert [s.phase for s in seen.steps][-1] == "completed"
        assert msgspec.json.decode(msgspec.json.encode(seen), type=TradeView) == seen
        assert (await service(node).list(open_only=True)).trades == ()


async def test_a_message_that_waits_is_counted_until_it_is_acknowledged(world: World) -> None:
    await world.maker.down()
    await world.take()
    assert ((await view(world.taker)).messages_sent, (await view(world.taker)).unacknowledged) == (1, 1)
    await world.maker.up()
    world.taker.delivery.kick(world.maker.keyring.persona.public)
    await world.until(world.quiet, "delivered")
    assert (await view(world.taker)).unacknowledged == 0


async def test_a_cancelled_trade_says_why_and_frees_the_offer(world: World) -> None:
    await world.maker.down()
    await world.take()
    (trade,) = (await service(world.taker).list(open_only=True)).trades
    ended = await service(world.taker).cancel(trade.id, CancelRequest(reason="a better one came"))
    assert (ended.phase, ended.open, ended.ending, ended.actions) == ("cancelled", False, "a better one came", ())
    assert "a better one came" in ended.hint
    with pytest.raises(IllegalTransition):
        await service(world.taker).cancel(trade.id, CancelRequest())
    await world.maker.up()


async def test_trades_are_named_by_the_beginning_of_their_id(world: World) -> None:
    await world.take()
    shown = await view(world.taker)
    trades = service(world.taker)
    for wrong, error in (("0" * 8, NotFound), ("xyz", BadIdPrefix), (shown.id[:7], BadIdPrefix)):
        with pytest.raises(error):
            await trades.show(wrong)
    state = world.taker.trade
    assert state is not None
    twin = bytes.fromhex(shown.id[:16]) + bytes(24)
    stored = world.taker.engine.trades.get(state.trade_id)
    assert stored is not None
    world.taker.engine.trades.save(replace(state, trade_id=twin), stored.heads, NOW + 1)
    with pytest.raises(AmbiguousId, match="2 trades"):
        await trades.show(shown.id[:16])
    assert (await trades.show(shown.id)).id == shown.id
    assert [t.id for t in (await trades.list(open_only=True)).trades] == [twin.hex(), shown.id]
    world.taker.database.connection.execute("DELETE FROM trades WHERE trade_id = ?", (twin,))


async def test_a_trade_without_a_backup_shows_none(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL, escrow=EscrowType.WSH_2OF3)
    await world.begin()
    await world.take()
    assert ((await view(world.taker)).backup, (await view(world.taker)).escrow.type) == (None, 1)
    await world.until(lambda: world.phases("Funding"), "funding")
    assert (await view(world.taker)).backup is None
    await world.end()


# --- every state, by the machine itself --------------------------------------------------------------------------


def states() -> list[TradeState]:
    """One state per phase and side, from a real run, with the phase put in by hand."""
    duel = Duel(Side.SELL)
    duel.agree()
    duel.bury()
    found = []
    for seat in duel.both:
        assert seat.state is not None
        found += [replace(seat.state, phase=phase()) for phase in get_args(AnyPhase)]
    return found


@pytest.mark.parametrize("state", states(), ids=lambda s: f"{type(s.phase).__name__}-{s.side.name.lower()}")
def test_every_phase_has_a_hint_of_one_line(state: TradeState) -> None:
    for variant in (
        state,
        replace(state, funding=st.FundingFacts(), peer_details=None, window_passed=True),
        replace(state, payout=replace(state.payout, depth=1, txid=b"p" * 32)),
    ):
        line = hint(variant)
        assert 10 < len(line) < 200
        assert "\n" not in line
        assert line[0].islower()


@pytest.mark.parametrize("state", states(), ids=lambda s: f"{type(s.phase).__name__}-{s.side.name.lower()}")
def test_actions_are_what_the_machine_would_do(state: TradeState) -> None:
    allowed: dict[tuple[str, bool], tuple[ActionName, ...]] = {
        ("Funded", True): ("pay",),
        ("Paid", False): ("release",),
    }
    assert possible(state) == allowed.get((type(state.phase).__name__, state.buys), ())
    unseen = replace(state, funding=st.FundingFacts())
    leavable = {"Taking", "Accepting", "Accepted", "SigningFunding"} | ({"Funding"} if state.buys else set())
    assert possible(unseen) == (("cancel",) if type(state.phase).__name__ in leavable else ())


def test_a_reorganised_escrow_says_wait() -> None:
    for state in states():
        gone = replace(state, funding=st.FundingFacts())
        if isinstance(state.phase, st.Funded) or (isinstance(state.phase, st.Paid) and not state.buys):
            assert hint(gone).startswith("wait, do not ")
