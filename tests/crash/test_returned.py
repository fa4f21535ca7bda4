"""What a counterparty returns after a loss is believed for what it proves, and for nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from p2pnode.intake import UnknownTrade
from p2pnode.keepsake import open_keepsake, seal_keepsake
from protocol.errors import BadSignature, Malformed, P2PError
from protocol.identity import SigningKey
from protocol.messages import NONE_YET, OpenedDetails, Returned, Sync
from protocol.offer import Offer
from protocol.types import Side
from protocol.wire import Kind, open_envelope, pack
from tests.world import NETWORK, TwinNode, World, details_of


class Lost:
    """A trade up to the buried escrow, and one side that has its mnemonic and nothing else."""

    def __init__(self, world: World, node: TwinNode, other: TwinNode, offer: Offer, raws: tuple[bytes, ...]) -> None:
        self.world = world
        self.node = node
        self.other = other
        self.offer = offer
        self.raws = raws
        self.trade = world.taker.trade.trade_id if world.taker.trade else b""

    def give(self, raws: tuple[bytes, ...], *, offer: Offer | None = None, by: SigningKey | None = None) -> None:
        """Return these messages."""
        key = by or self.other.keyring.persona
        body = Returned(self.trade, offer or self.offer, raws)
        self.node.recall.returned(key.seal(Kind.RETURNED, NETWORK, pack(body)), body)

    def nothing_is_known(self) -> None:
        trades = self.node.engine.trades
        assert not trades.all()
        assert not trades.transcript(self.trade)
        assert not trades.held()


@pytest_asyncio.fixture(params=["maker", "taker"])
async def lost(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lost]:
    world = World(tmp_path, Side.SELL)
    await world.begin()
    await world.take()
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")
    world.chain.mine(2)
    await world.until(lambda: world.phases("Funded") and world.quiet(), "funded")
    node, other = world.both if request.param == "maker" else tuple(reversed(world.both))
    trade = other.trade
    assert trade is not None
    raws = [raw for _, raw, _ in other.engine.trades.transcript(trade.trade_id)]
    found = Lost(world, node, other, trade.offer, ())
    [batch] = other.reconciler._batches(  # in the order in which it was said
        other.reconciler._link(trade.trade_id),  # type: ignore[arg-type]
        _nothing(trade.trade_id),
    )
    found.raws = batch.messages
    assert sorted(found.raws) == sorted(raws)
    await node.down()
    node.folder = tmp_path / "new"
    node.folder.mkdir()
    node.held.clear()
    await node.up()
    yield found
    await world.end()


def _nothing(chain: bytes) -> Sync:
    return Sync(chain, 0, NONE_YET, 0, NONE_YET)


async def test_record_brings_the_trade_back_with_what_only_we_knew(lost: Lost) -> None:
    before = lost.other.trade
    lost.give(lost.raws)
    state = lost.node.trade
    assert state is not None
    assert before is not None
    assert state.contract == before.contract
    assert state.facts == before.facts
    assert state.own_details is not None
    assert state.own_details.details == details_of(lost.node.name), "the keepsake did not come back"
    assert lost.node.engine.trades.is_held(lost.trade), "nothing may be signed before the other says that this is all"
    assert state.funding.depth is None, "only our own chain says that the escrow is buried"
    lost.give(lost.raws)  # again is fine
    assert lost.node.trade == state


async def test_stranger_returns_nothing(lost: Lost) -> None:
    with pytest.raises((BadSignature, UnknownTrade)):
        lost.give(lost.raws, by=SigningKey(b"s" * 32))
    lost.nothing_is_known()


async def test_another_offer_is_not_the_one_that_was_taken(lost: Lost) -> None:
    with pytest.raises(Malformed, match="offer"):
        lost.give(lost.raws, offer=replace(lost.offer, payment_window=1))
    lost.nothing_is_known()


async def test_what_the_counterparty_alone_has_said_makes_no_trade(lost: Lost) -> None:
    """Else anybody could make a restored node carry out trades that it never had."""
    theirs = tuple(raw for raw in lost.raws if open_envelope(raw, NETWORK).signer == lost.other.keyring.persona.public)
    with pytest.raises(P2PError):
        lost.give(theirs)
    lost.nothing_is_known()


async def test_changed_message_of_ours_is_not_ours(lost: Lost) -> None:
    ours = lost.node.keyring.persona.public
    at = next(n for n, raw in enumerate(lost.raws) if open_envelope(raw, NETWORK).signer == ours)
    bent = bytearray(lost.raws[at])
    bent[-80] ^= 1
    with pytest.raises(P2PError):
        lost.give((*lost.raws[:at], bytes(bent), *lost.raws[at + 1 :]))
    lost.nothing_is_known()


async def test_gap_in_our_chain_is_not_filled(lost: Lost) -> None:
    """A counterparty that leaves out what we said could hide a signature of ours."""
    with pytest.raises(P2PError):
        lost.give(lost.raws[1:])
    lost.nothing_is_known()


def test_keepsake_opens_for_its_key_alone() -> None:
    opened = OpenedDetails(b"s" * 32, details_of("us"))
    sealed = seal_keepsake(b"k" * 32, opened)
    assert open_keepsake(b"k" * 32, sealed) == opened
    assert open_keepsake(b"l" * 32, sealed) is None
    for at in (0, 30, len(sealed) - 1):
        bent = bytearray(sealed)
        bent[at] ^= 1
        assert open_keepsake(b"k" * 32, bytes(bent)) is None
    assert open_keepsake(b"k" * 32, b"") is None
    assert len(sealed) == len(seal_keepsake(b"k" * 32, OpenedDetails(b"s" * 32, details_of("somebody else")))), "length"
    assert seal_keepsake(b"k" * 32, OpenedDetails(b"s" * 32, (("a", "x" * 500),) * 40)) == b"", (
        "too large for a message"
    )
