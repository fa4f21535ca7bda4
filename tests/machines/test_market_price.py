"""Offers at market price between two whole nodes: whose price counts, and how far the two may differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.policy import PriceRefused
from protocol.offer import MarketPrice, volume
from protocol.types import Side
from tests.world import World


@pytest.mark.parametrize("side", list(Side))
async def test_the_takers_price_is_the_contracts_when_the_makers_feeds_agree(tmp_path: Path, side: Side) -> None:
    world = World(tmp_path, side)
    world.price = MarketPrice(20_000, "default", None)
    try:
        await world.begin()
        world.maker.intake._prices = lambda currency, _: {"EUR": 6_520_000}.get(currency)
        await world.take(price=6_630_000)
        await world.until(lambda: world.maker.trade is not None and world.phases("Funding"), "funding")
        for node in world.both:
            assert node.trade is not None
            assert node.trade.contract is not None
            assert node.trade.contract.price == 6_630_000
            assert node.trade.contract.volume == volume(1_000_000, 6_630_000)
    finally:
        await world.end()


async def test_a_take_far_off_the_makers_market_price_is_refused_and_its_offer_stays_open(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL)
    world.price = MarketPrice(0, "default", None)
    try:
        await world.begin()
        world.maker.intake._prices = lambda *_: 7_000_000
        await world.take(price=6_500_000)
        await world.until(lambda: world.taker.phase == "Declined", "refused")
        assert world.taker.trade is not None
        assert PriceRefused.code in [e.code for e in world.post.refused]
        assert world.maker.trade is None
        assert world.maker.own.count_open() == 1
    finally:
        await world.end()
