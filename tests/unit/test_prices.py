"""Market prices: what feeds tell, what counts of it, and for how long. The feeds are real servers on loopback."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from p2pnode.policy import PriceRefused, TradePolicy
from p2pnode.prices import FEED_SET, MAX_ANSWER, Feed, PriceFeeds, median, parse_manual, read_price
from p2pnode.settings import BadConfig
from protocol.errors import P2PError
from protocol.offer import FixedPrice, MarketPrice
from protocol.types import PPM, Side
from tests.unit.services_support import TestClock, offer_of


class FeedServer:
    """Answers `/<feed>/<currency>` with what `answers` says; counts who asks."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[str] = []
        self.port = 0
        self.hold: asyncio.Event | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{feed}/{currency}", self._answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]

    def feed(self, name: str, path: str = "price") -> Feed:
        return Feed.parse(f"{name} http://127.0.0.1:{self.port}/{name}/{{currency}} {path}")

    async def _answer(self, request: web.Request) -> web.Response:
        key = f"{request.match_info['feed']}/{request.match_info['currency']}"
        self.asked.append(key)
        if self.hold is not None:
            await self.hold.wait()
        if key not in self.answers:
            return web.Response(status=503)
        if self.answers[key].startswith("http"):
            return web.Response(status=302, headers={"Location": self.answers[key]})
        return web.Response(text=self.answers[key])


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    made = FeedServer()
    await made.start()
    yield made
    if made.hold is not None:
        made.hold.set()
    await made.runner.cleanup()


async def until(done: Callable[[], bool]) -> None:
    """Let the feeds be asked until `done`."""
    async with asyncio.timeout(5):
        while not done():  # noqa: ASYNC110  (what is waited for happens in the task that asks)
            await asyncio.sleep(0.005)


def prices_of(feeds: list[Feed], **options: object) -> PriceFeeds:
    return PriceFeeds(feeds, TestClock(), random.Random(1), **options)  # type: ignore[arg-type]


async def test_the_price_is_the_median_of_the_feeds_that_answer(server: FeedServer) -> None:
    names = ["a", "b", "c", "dead", "liar", "html", "endless", "elsewhere"]
    server.answers = {
        "a/EUR": '{"price": 85000.004999999999999999}',
        "b/EUR": '{"price": "85020.00"}',
        "c/EUR": '{"price": 8.501e4}',
        "liar/EUR": '{"price": -5}',
        "html/EUR": "<html>",
        "endless/EUR": '{"price": 1' + "0" * MAX_ANSWER + "}",
        "elsewhere/EUR": f"http://127.0.0.1:{server.port}/a/EUR",
    }
    prices = prices_of([server.feed(name) for name in names])
    try:
        assert prices("EUR", FEED_SET) is None
        await prices.ready(["EUR"])
        assert prices("EUR", FEED_SET) == 8_501_000
        assert prices("EUR", "another-set") is None
        assert prices("USD", FEED_SET) is None
        assert sorted(server.asked) == sorted(f"{name}/EUR" for name in names)
    finally:
        await prices.close()


async def test_an_old_answer_does_not_count(server: FeedServer) -> None:
    server.answers = {"a/EUR": '{"price": 85000}'}
    prices = prices_of([server.feed("a")], max_age=100.0)
    try:
        await prices.ready(["EUR"])
        assert prices("EUR", FEED_SET) == 8_500_000
        price, at = prices._heard["a", "EUR"]
        prices._heard["a", "EUR"] = price, at - 101
        assert prices("EUR", FEED_SET) is None
    finally:
        await prices.close()


async def test_what_is_wanted_is_asked_for_again_and_again_without_anybody_waiting(server: FeedServer) -> None:
    server.answers = {"a/EUR": '{"price": 1}', "a/JPY": '{"price": 15000000}'}
    prices = prices_of([server.feed("a")], interval=0.01, wanted=lambda: ["JPY"])
    prices.start()
    try:
        await until(lambda: prices("JPY", FEED_SET) == 15_000_000)
        assert prices("EUR", FEED_SET) is None, "nobody had asked for it"
        await until(lambda: prices("EUR", FEED_SET) == 100)
        server.answers["a/EUR"] = '{"price": 2}'
        await until(lambda: prices("EUR", FEED_SET) == 200)
    finally:
        await prices.close()


async def test_a_feed_that_hangs_holds_nobody_up_and_is_asked_once(server: FeedServer) -> None:
    server.hold = asyncio.Event()
    server.answers = {"a/EUR": '{"price": 3}'}
    prices = prices_of([server.feed("a")])
    try:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(prices.ready(["EUR"], seconds=0.05) for _ in range(5)))
        assert loop.time() - began < 2
        assert server.asked == ["a/EUR"]
        server.hold.set()
        await prices.ready(["EUR"])
        assert prices("EUR", FEED_SET) == 300
    finally:
        await prices.close()


async def test_a_price_by_hand_stands_for_all_feeds(server: FeedServer, tmp_path: Path) -> None:
    server.answers = {"a/EUR": '{"price": 85000}', "a/USD": '{"price": 90000}'}
    file = tmp_path / "prices"
    prices = prices_of([server.feed("a")], manual={"EUR": 8_000_000}, file=file)
    clock = prices._clock
    assert isinstance(clock, TestClock)
    try:
        await prices.ready(["EUR", "USD"])
        assert server.asked == ["a/USD"]
        assert (prices("EUR", FEED_SET), prices("USD", FEED_SET)) == (8_000_000, 9_000_000)
        file.write_text("# mine\nUSD 91000.50\n\nEUR 80001  # today\n")
        os.utime(file, (clock.time, clock.time))
        assert (prices("EUR", FEED_SET), prices("USD", FEED_SET)) == (8_000_100, 9_100_050)
        file.write_text("USD 1.234\n")
        os.utime(file, (clock.time + 1, clock.time + 1))
        assert (prices("EUR", FEED_SET), prices("USD", FEED_SET)) == (8_000_000, 9_000_000), "it has an error"
        file.write_text("USD 1.23\n")
        os.utime(file, (clock.time + 2, clock.time + 2))
        assert prices("USD", FEED_SET) == 123
        clock.time += 86_402
        assert prices("USD", FEED_SET) == 9_000_000, "forgotten by its owner"
    finally:
        await prices.close()


@pytest.mark.parametrize(
    ("body", "path", "price"),
    [
        ('{"a": {"b": [0, {"c": "1.005"}]}}', "a.b.1.c", 100),
        ('{"last": 85000}', "last", 8_500_000),
        ('[["x", 2.5e-1]]', "0.1", 25),
        ('{"1": {"p": "0.01"}}', "1.p", 1),
    ],
)
def test_numbers_are_read_exactly(body: str, path: str, price: int) -> None:
    assert read_price(body.encode(), path, "EUR") == price


@pytest.mark.parametrize(
    "body",
    ["", "{", "null", '{"p": null}', '{"p": true}', '{"p": {}}', '{"p": 0}', '{"p": -1}', '{"p": "NaN"}',
     '{"p": NaN}', '{"p": Infinity}', '{"p": "1e999999999"}', '{"p": 1e999999999}', '{"p": 0.001}', '{"p": "1_0"}',
     '{"p": "' + "9" * 41 + '"}', '{"q": 1}', "[1]", "\xff", "[" * 100_000],
)  # fmt: skip
def test_what_is_no_price_is_refused(body: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_price(body.encode("latin-1"), "p", "EUR")


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert [median(p) for p in ([], [5], [9, 1], [1, 100, 3], [4, 1, 2, 1_000])] == [None, 5, 5, 3, 3]


@pytest.mark.parametrize(
    "text", ["", "a", "a https://x", "a http://prices.example/ p", "a ftp://x p", "A! https://x p", "a https:// p"]
)
def test_a_feed_that_anyone_on_the_way_could_alter_or_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="feeds"):
        Feed.parse(text)


@pytest.mark.parametrize("text", ["", "EUR", "EUR 0", "EUR 1.234", "eur 1", "EUR 1 2", "EUR -1"])
def test_a_price_by_hand_with_an_error_is_refused(text: str) -> None:
    with pytest.raises(P2PError):
        parse_manual([text])


# --- what a maker accepts --------------------------------------------------------------------------------------------

MARKET = 8_500_000


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize(
    ("price", "fine"),
    [(8_585_000, True), (8_670_850, True), (8_670_851, False), (8_499_150, True), (8_499_149, False)],
)
def test_a_takers_price_lies_within_the_tolerance_of_our_own(side: Side, price: int, fine: bool) -> None:
    offer = offer_of(b"m" * 32, side=side, price=MarketPrice(10_000, FEED_SET, None))
    policy = TradePolicy(price_tolerance=10_000)
    if fine:
        policy.check_price(offer, price, MARKET)
    else:
        with pytest.raises(PriceRefused, match="10000 ppm off"):
            policy.check_price(offer, price, MARKET)


def test_a_takers_price_is_never_past_the_makers_limit() -> None:
    policy = TradePolicy(price_tolerance=PPM)
    sale = offer_of(b"m" * 32, side=Side.SELL, price=MarketPrice(0, FEED_SET, MARKET))
    policy.check_price(sale, MARKET, MARKET - 1)
    with pytest.raises(PriceRefused, match="limit"):
        policy.check_price(sale, MARKET - 1, MARKET - 1)
    buy = offer_of(b"m" * 32, side=Side.BUY, price=MarketPrice(0, FEED_SET, MARKET))
    policy.check_price(buy, MARKET, MARKET + 1)
    with pytest.raises(PriceRefused, match="limit"):
        policy.check_price(buy, MARKET + 1, MARKET + 1)


def test_without_a_market_price_of_our_own_no_market_offer_is_taken() -> None:
    with pytest.raises(PriceRefused, match="no market price of EUR"):
        TradePolicy().check_price(offer_of(b"m" * 32, price=MarketPrice(0, FEED_SET, None)), MARKET, None)


def test_a_fixed_price_has_no_tolerance() -> None:
    offer = offer_of(b"m" * 32, price=FixedPrice(MARKET))
    TradePolicy().check_price(offer, MARKET, None)
    with pytest.raises(PriceRefused):
        TradePolicy().check_price(offer, MARKET + 1, MARKET + 1)
