"""What waits is sent again: at once where our own backend lost it, at a decent pace where only others may have."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from escrow.transactions import txid_of
from p2pnode.rebroadcast import PACE, Rebroadcaster
from protocol import dispute_events as dv
from protocol.trade_state import TradeState
from protocol.types import Side
from tests.malice.test_fee_proposals import rates, released, trade_of
from tests.twins import TwinBackend
from tests.world import World


class Listening(TwinBackend):
    """Keeps what it is given."""

    def __init__(self, backend: TwinBackend) -> None:
        super().__init__(backend.chain)
        self.given: list[bytes] = []

    async def broadcast(self, tx: bytes) -> bytes:
        self.given.append(txid_of(tx))
        return await super().broadcast(tx)


def state_of(world: World) -> TradeState:
    assert world.seller.trade is not None
    return world.seller.trade


async def test_what_waits_is_sent_again_every_few_blocks_and_at_every_block_once_it_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL)
    try:
        await released(world)
        (payout,) = world.chain.mempool
        heard = Listening(world.seller.backend)
        sender = Rebroadcaster(world.seller.engine, world.seller.wallet, heard)  # type: ignore[arg-type]
        state = state_of(world)
        assert state.payout.depth == 0
        counts = []
        for height in range(2 * PACE + 1):
            sender.new_tip(height)
            await sender.look(state)
            counts.append(len(heard.given))
        # The escrow's funding is buried: only the payout is sent, at the second and third of three looks so far apart.
        assert set(heard.given) == {payout}
        assert counts == [0] * PACE + [1] * PACE + [2]
        lost = replace(state, payout=replace(state.payout, depth=None))
        for height in range(100, 103):
            sender.new_tip(height)
            await sender.look(lost)
        assert len(heard.given) == 5
        buried = replace(state, payout=replace(state.payout, depth=1))
        sender.new_tip(200)
        await sender.look(buried)
        assert len(heard.given) == 5
    finally:
        await world.end()


async def test_dearest_payout_that_both_signed_is_the_one_that_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL)
    try:
        await released(world)
        (first,) = world.chain.mempool
        world.buyer.engine.apply(trade_of(world), dv.RaiseFee(rates(world)[1]))
        await world.until(lambda: set(world.chain.mempool) != {first} and world.quiet(), "the replacement")
        heard = Listening(world.seller.backend)
        sender = Rebroadcaster(world.seller.engine, world.seller.wallet, heard)  # type: ignore[arg-type]
        state = state_of(world)
        await sender.look(replace(state, payout=replace(state.payout, depth=None)))
        assert heard.given == list(world.chain.mempool)
        assert heard.given != [first]
    finally:
        await world.end()
