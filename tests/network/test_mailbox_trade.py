"""A trade whose parties never meet after the Seal completes through their mailboxes (DESIGN section 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol import trade_events as ev
from protocol.types import Side
from tests.network.mail_net import MailNet, MailNode, MailWorld, until


@pytest.fixture
async def net() -> AsyncIterator[MailNet]:
    net = MailNet(seed=11)
    await net.grow(8)
    yield net
    await net.close()


async def sealed(world: MailWorld) -> None:
    """Up to the funding in the mempool, then both are gone."""
    await world.begin()
    await world.take()
    await until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")
    await until(world.quiet, "the Seal is acknowledged")
    for node in world.both:
        await node.down()


@pytest.mark.parametrize("maker_side", list(Side))
async def test_a_trade_completes_though_the_parties_never_meet_after_the_seal(
    tmp_path: Path, net: MailNet, maker_side: Side
) -> None:
    world = MailWorld(tmp_path, maker_side, net)
    buyer, seller = world.buyer, world.seller
    assert isinstance(buyer, MailNode)
    assert isinstance(seller, MailNode)
    await sealed(world)
    world.post.carried.clear()

    await seller.up()
    world.chain.mine(2)
    await until(lambda: seller.phase == "Funded" and seller.posted, "payment details in the buyer's mailbox")
    await seller.down()

    await buyer.up()
    await until(lambda: buyer.trade is not None and buyer.trade.peer_details is not None, "the buyer reads them")
    assert buyer.phase == "Funded"
    assert buyer.trade is not None
    buyer.engine.apply(buyer.trade.trade_id, ev.DeclarePaid("ref"))
    await until(lambda: buyer.posted, "the payment's notice in the seller's mailbox")
    await buyer.down()

    await seller.up()
    await until(lambda: seller.phase == "Paid", "the seller reads it")
    await until(lambda: not seller.waiting, "the seller learns that the buyer has the details")
    assert seller.trade is not None
    seller.engine.apply(seller.trade.trade_id, ev.Release())
    await until(lambda: len(world.chain.mempool) == 1, "payout")
    world.chain.mine(2)
    await until(lambda: seller.phase == "Completed" and seller.posted, "the seller's part is done")
    await seller.down()

    await buyer.up()
    await until(lambda: buyer.phase == "Completed" and not buyer.waiting, "the buyer's part is done")
    await until(lambda: buyer.read == 1, "the release is read")
    await buyer.down()

    await seller.up()
    await until(lambda: not seller.waiting, "the seller learns that the buyer has the release")
    await seller.down()
    assert world.post.carried == []
