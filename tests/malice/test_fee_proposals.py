"""Whole nodes over an agreed payout that waits: an honest proposal is answered, anything else moves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from escrow.payout import derive_payout, sign_payout
from p2pnode import backup
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.errors import IllegalTransition
from protocol.messages import FeeProposal, decode
from protocol.outcome import ReleaseOutcome
from protocol.types import Side
from protocol.wire import Envelope, Kind, open_envelope
from tests.malice.test_hostile_peer import resign
from tests.world import NETWORK, NOW, TwinNode, World

Edit = Callable[[World, FeeProposal], FeeProposal]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, Side.SELL)
    try:
        yield world
    finally:
        await world.end()


async def released(world: World) -> None:
    """A payout in the mempool."""
    await world.begin()
    await world.take()
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")
    world.chain.mine(2)
    buyer = world.buyer
    await world.until(
        lambda: world.phases("Funded") and buyer.trade is not None and buyer.trade.peer_details is not None, "funded"
    )
    buyer.engine.apply(trade_of(world), ev.DeclarePaid())
    await world.until(lambda: world.phases("Paid"), "paid")
    world.seller.engine.apply(trade_of(world), ev.Release())
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Settling") and world.quiet(), "payout")


def trade_of(world: World) -> bytes:
    assert world.buyer.trade is not None
    return world.buyer.trade.trade_id


def rates(world: World) -> tuple[int, int]:
    """The contract's band."""
    assert world.buyer.trade is not None
    assert world.buyer.trade.contract is not None
    fees = world.buyer.trade.contract.fees
    return fees.payout, fees.payout_max


@pytest.mark.parametrize("who", ["buyer", "seller"])
async def test_honest_proposal_replaces_the_payout_and_completes(world: World, who: str) -> None:
    await released(world)
    (first,) = world.chain.mempool
    proposer: TwinNode = getattr(world, who)
    low, high = rates(world)
    proposer.engine.apply(trade_of(world), dv.RaiseFee(min(5 * low, high)))
    await world.until(lambda: set(world.chain.mempool) != {first} and world.quiet(), "the replacement")
    (second,) = world.chain.mempool
    world.chain.mine(2)
    await world.until(lambda: world.phases("Completed"), "the end")
    for node in world.both:
        assert node.trade is not None
        assert node.trade.payout.txid == second
        assert node.trade.payout.outcome == ReleaseOutcome(min(5 * low, high))
    assert world.post.refused == []


@pytest.mark.parametrize("who", ["buyer", "seller"])
@pytest.mark.parametrize("loses_it", [False, True])
@pytest.mark.parametrize("after", range(1, 5))
async def test_node_that_dies_meanwhile_finishes_it(world: World, who: str, after: int, *, loses_it: bool) -> None:
    """At each commit of the one that answers."""
    await released(world)
    (first,) = world.chain.mempool
    victim: TwinNode = getattr(world, who)
    await victim.down()
    await victim.up(dies_at=after, loses_it=loses_it)
    proposer = world.seller if victim is world.buyer else world.buyer
    proposer.engine.apply(trade_of(world), dv.RaiseFee(rates(world)[1]))
    await world.until(lambda: set(world.chain.mempool) != {first}, "the replacement")
    world.chain.mine(2)
    await world.until(lambda: world.phases("Completed") and world.quiet(), "the end")


def out_of_band(world: World, proposal: FeeProposal) -> FeeProposal:
    return signed(world, proposal, rates(world)[1] + 1)


def foreign_payout(world: World, proposal: FeeProposal) -> FeeProposal:
    del world
    return replace(proposal, payout_txid=bytes(32))


def other_signature(world: World, proposal: FeeProposal) -> FeeProposal:
    del world
    der = proposal.payout_signature
    return replace(proposal, payout_signature=der[:20] + bytes([der[20] ^ 1]) + der[21:])


def signature_of_another_rate(world: World, proposal: FeeProposal) -> FeeProposal:
    del world
    return replace(proposal, rate=proposal.rate - 1_000)


def signed(world: World, proposal: FeeProposal, rate: int) -> FeeProposal:
    """What a peer with its escrow key can sign, whatever the contract says."""
    state = world.seller.trade
    assert state is not None
    assert state.contract is not None
    wide = replace(state.contract, fees=replace(state.contract.fees, payout_max=rate))
    plan = derive_payout(wide, NETWORK, ReleaseOutcome(rate))
    main, _ = world.seller.keyring.escrow_secrets(state.trade_id, state.side)
    return replace(proposal, rate=rate, payout_signature=sign_payout(plan, main))


@pytest.mark.parametrize("edit", [out_of_band, foreign_payout, other_signature, signature_of_another_rate])
async def test_bad_proposal_is_refused_and_nothing_is_signed(world: World, edit: Edit) -> None:
    await released(world)
    before = dict(world.chain.mempool)

    def tamper(raw: bytes) -> bytes:
        envelope = open_envelope(raw, NETWORK)
        if envelope.kind != Kind.FEE_PROPOSAL:
            return raw
        message = decode(envelope)
        assert isinstance(message.payload, FeeProposal)
        return resign(world, message, message.header, edit(world, message.payload))

    world.post.tamper = tamper
    world.seller.engine.apply(trade_of(world), dv.RaiseFee(rates(world)[1]))
    await world.until(lambda: bool(world.post.refused), "the refusal")
    buyer = world.buyer.trade
    assert buyer is not None
    assert (buyer.payout.variants, buyer.payout.raising) == ((), None)
    assert world.chain.mempool == before
    # The trade ends as it would have.
    world.chain.mine(2)
    await world.until(lambda: world.phases("Completed"), "the end")


async def test_commands_outside_of_the_band_never_leave_the_node(world: World) -> None:
    await released(world)
    low, high = rates(world)
    sent = len(world.post.carried)
    for rate in (0, low, low + 999, high + 1, 10**8):
        with pytest.raises(IllegalTransition):
            world.buyer.engine.apply(trade_of(world), dv.RaiseFee(rate))
    assert len(world.post.carried) == sent


@pytest.mark.parametrize("proposer", ["buyer", "seller"])
@pytest.mark.parametrize("victim", ["buyer", "seller"])
async def test_disk_lost_after_a_fee_was_raised_comes_back_from_the_counterparty(
    world: World, tmp_path: Path, victim: str, proposer: str
) -> None:
    """The backup is older than the proposal: what was signed since is never signed in another way."""
    await released(world)
    directory = {node.keyring.persona.public: node.contact() for node in world.both}

    async def lookup(persona: bytes) -> list[Envelope]:
        return [directory[persona]]

    for one in world.both:
        one.reconciles = True
        one._no_lookup = lookup  # type: ignore[method-assign]
    node: TwinNode = getattr(world, victim)
    copy = backup.snapshot_database(node.folder / f"{node.name}.db", NOW)
    (first,) = world.chain.mempool
    getattr(world, proposer).engine.apply(trade_of(world), dv.RaiseFee(rates(world)[1]))
    await world.until(lambda: set(world.chain.mempool) != {first} and world.quiet(), "the replacement")
    await node.down()
    node.folder = tmp_path / "new machine"
    node.folder.mkdir()
    (node.folder / f"{node.name}.db").write_bytes(copy)
    await node.up()
    txid = next(iter(world.chain.mempool))

    def knows_again() -> bool:
        variant = None if node.trade is None else node.trade.payout.variant(txid)
        return variant is not None and variant.complete

    await world.until(knows_again, "what was signed to be known again")
    world.chain.mine(2)
    await world.until(lambda: world.phases("Completed") and world.quiet(), "the end")
    said: dict[tuple[bytes, int], bytes] = {}
    for raw in world.post.carried:
        envelope = open_envelope(raw, NETWORK)
        if envelope.kind not in (Kind.SYNC, Kind.SYNCED, Kind.RETURNED):
            key = (envelope.signer, decode(envelope).header.number)
            assert said.setdefault(key, raw) == raw
