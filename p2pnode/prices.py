"""The market price of a currency as this node sees it: the median of its owner's feeds, or a price set by hand.

Theory of operation. A feed is a web address that answers in JSON, and the path in that JSON at which the price of one
bitcoin stands. No feed is built in: whoever wants one names it. A task asks all feeds every minute or so, with jitter,
for the currencies that somebody needs: those of own offers at market price, and those that were asked about lately. An
answer counts until it is too old; the price is the median of those that count, and there is none when none does. A
price set by hand, in the configuration or in a file, stands for all feeds of its currency.

Numbers are read as text and counted in minor units; none of them is ever a float.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct

from p2pnode.clock import Clock
from p2pnode.money import MAX_MINOR, BadPrice, exponent, parse_minor
from p2pnode.settings import BadConfig

Prices = Callable[[str, str], int | None]
"""The median price of a currency in a set of feeds, in minor units per bitcoin; None when there is none."""

FEED_SET: Final = "default"
"""The one set of feeds that this version knows: those that the node's owner chose."""
MAX_ANSWER: Final = 262_144
"""Bytes of a feed's answer."""
ANSWER_SECONDS: Final = 10.0
REMEMBER_SECONDS: Final = 3_600.0
"""How long a currency that somebody asked about is kept up to date."""
MAX_CURRENCIES: Final = 32
MAX_FILE: Final = 10_000

_CURRENCY: Final = re.compile(r"[A-Z]{3,5}")
_NUMBER: Final = re.compile(r"[0-9.eE+-]{1,40}")
_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")

log = logging.getLogger(__name__)


class Feed(Struct, frozen=True):
    """Where a price is found. In `url` and `path`, `{currency}` is the code, `{lower}` the same in small letters."""

    name: str
    url: str
    path: str
    """Keys and list positions, separated by points."""

    @classmethod
    def parse(cls, text: str) -> Feed:
        """`name url path`. Raises BadConfig."""
        parts = text.split()
        if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
            raise BadConfig(f"prices.feeds: expected a name, an address and a path, got {text[:80]!r}")
        feed = cls(*parts)
        try:
            url = urlsplit(feed.filled(feed.url, "EUR"))
            host = url.hostname or ""
        except ValueError:
            url, host = urlsplit(""), ""
        local = host in ("127.0.0.1", "::1", "localhost")
        if not host or not (url.scheme == "https" or (url.scheme == "http" and local)):
            # Whoever could alter an answer on its way would set the price.
            raise BadConfig(f"prices.feeds: {feed.name}: expected an https address, or http on this machine")
        return feed

    @staticmethod
    def filled(template: str, currency: str) -> str:
        """The template for one currency."""
        return template.replace("{currency}", currency).replace("{lower}", currency.lower())


def parse_manual(entries: Iterable[str]) -> dict[str, int]:
    """Prices by hand, each like `EUR 85000.00`, by currency. Raises BadConfig."""
    prices: dict[str, int] = {}
    for entry in entries:
        parts = entry.split()
        if len(parts) != 2 or not _CURRENCY.fullmatch(parts[0]):
            raise BadConfig(f"a price by hand is written like EUR 85000.00, not {entry[:40]!r}")
        try:
            prices[parts[0]] = parse_minor(parts[1], parts[0])
        except BadPrice as e:
            raise BadConfig(e.detail) from e
    return prices


def read_price(body: bytes, path: str, currency: str) -> int:
    """The price in minor units at `path` of a JSON document. Raises ValueError when there is none."""
    value: Any = json.loads(body, parse_float=str, parse_int=str, parse_constant=_no_number)
    for step in path.split("."):
        if isinstance(value, list) and step.isascii() and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            raise ValueError(f"there is no {step!r}")
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise ValueError("what stands there is no number")
    try:
        minor = Decimal(value).scaleb(exponent(currency))
        exact = int(minor.to_integral_value(ROUND_HALF_EVEN)) if 1 <= minor <= MAX_MINOR else 0
    except ArithmeticError as e:
        raise ValueError("what stands there is no number") from e
    if exact < 1:
        raise ValueError("that is no price")
    return exact


def _no_number(text: str) -> str:
    raise ValueError(f"{text} is no number")


def median(prices: Sequence[int]) -> int | None:
    """The middle price; of an even number the mean of the two in the middle, rounded down."""
    if not prices:
        return None
    ordered = sorted(prices)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2


class PriceFeeds:
    """The prices that this node goes by; calling it is `Prices`."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        clock: Clock,
        rng: random.Random,
        *,
        interval: float = 60.0,
        max_age: float = 300.0,
        manual: Mapping[str, int] | None = None,
        file: Path | None = None,
        file_max_age: float = 86_400.0,
        wanted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Times in seconds. `wanted` gives the currencies that must always be fresh; `rng` makes jitter.

        `file` has prices by hand, one like `EUR 85000.00` per line; it is read when it has changed, and counts until it
        is `file_max_age` old. `clock` tells that age.
        """
        self._feeds = tuple(feeds)
        self._clock = clock
        self._rng = rng
        self._interval = interval
        self._max_age = max_age
        self._manual = dict(manual or {})
        self._file = file
        self._file_max_age = file_max_age
        self._from_file: tuple[int, dict[str, int]] = (0, {})
        self._wanted = wanted
        self._asked: dict[str, float] = {}
        self._heard: dict[tuple[str, str], tuple[int, float]] = {}
        """(feed, currency) to the price and when it was told, in the event loop's time."""
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to ask."""
        if self._feeds:
            self._task = asyncio.create_task(self._run(), name="prices")

    async def close(self) -> None:
        """Stop asking."""
        tasks = [*self._fetching.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _run(self) -> None:
        while True:
            now = self._time()
            self._asked = {c: at for c, at in self._asked.items() if at > now - REMEMBER_SECONDS}
            try:
                needed = {*self._wanted(), *self._asked}
                await asyncio.gather(*(self._fetch(currency) for currency in sorted(needed)))
            except Exception:
                # The next round may do better, and until then old answers grow old by themselves.
                log.exception("asking for prices failed")
            await asyncio.sleep(self._interval * self._rng.uniform(0.75, 1.25))

    # --- what the price is ----------------------------------------------------------------------------------------

    def __call__(self, currency: str, feed_set: str) -> int | None:
        """The price of one bitcoin in minor units, if this node has a fresh one."""
        if feed_set != FEED_SET:
            return None
        by_hand = self._by_hand(currency)
        if by_hand is not None:
            return by_hand
        self._remember(currency)
        return median(self._fresh(currency))

    async def ready(self, currencies: Iterable[str], seconds: float = 3.0) -> None:
        """Return when these currencies have prices, or after so many seconds."""
        missing = {c for c in currencies if _CURRENCY.fullmatch(c) and self._by_hand(c) is None and not self._fresh(c)}
        if self._feeds and missing:
            for currency in missing:
                self._remember(currency)
            await asyncio.wait([self._fetch(currency) for currency in missing], timeout=seconds)

    def _fresh(self, currency: str) -> list[int]:
        since = self._time() - self._max_age
        heard = (self._heard.get((feed.name, currency)) for feed in self._feeds)
        return [price for price, at in filter(None, heard) if at >= since]

    def _remember(self, currency: str) -> None:
        if not _CURRENCY.fullmatch(currency):
            return
        self._asked.pop(currency, None)
        if len(self._asked) >= MAX_CURRENCIES:
            del self._asked[next(iter(self._asked))]
        self._asked[currency] = self._time()

    def _by_hand(self, currency: str) -> int | None:
        if self._file is not None:
            try:
                stat = self._file.stat()
            except OSError:
                return self._manual.get(currency)
            if stat.st_mtime_ns != self._from_file[0]:
                self._from_file = stat.st_mtime_ns, self._read_file(self._file)
            if stat.st_mtime > self._clock.now() - self._file_max_age and currency in self._from_file[1]:
                return self._from_file[1][currency]
        return self._manual.get(currency)

    @staticmethod
    def _read_file(file: Path) -> dict[str, int]:
        try:
            with file.open("rb") as lines:
                text = lines.read(MAX_FILE).decode()
            entries = (line.partition("#")[0].strip() for line in text.splitlines())
            return parse_manual(filter(None, entries))
        except (OSError, UnicodeDecodeError, BadConfig) as e:
            # No price is better than one that was not meant.
            log.warning("the prices in %s can't be read: %s", file, e)
            return {}

    # --- asking -------------------------------------------------------------------------------------------------

    def _fetch(self, currency: str) -> asyncio.Task[None]:
        """Ask all feeds for one currency; who comes while that runs shares it."""
        task = self._fetching.get(currency)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask_all(currency), name=f"price of {currency}")
            self._fetching[currency] = task
            task.add_done_callback(lambda _: self._fetching.pop(currency, None))
        return task

    async def _ask_all(self, currency: str) -> None:
        await asyncio.gather(*(self._ask(feed, currency) for feed in self._feeds))

    async def _ask(self, feed: Feed, currency: str) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS))
        try:
            url = feed.filled(feed.url, currency)
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                body = b""
                while (part := await answer.content.read(MAX_ANSWER + 1 - len(body))) and len(body) <= MAX_ANSWER:
                    body += part
            if len(body) > MAX_ANSWER:
                raise ValueError(f"more than {MAX_ANSWER:,} bytes")
            price = read_price(body, feed.filled(feed.path, currency), currency)
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as e:
            log.info("the price feed %s gives no price of %s: %s", feed.name, currency, str(e) or type(e).__name__)
            return
        self._heard[feed.name, currency] = price, self._time()

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()


__all__ = ["FEED_SET", "Feed", "PriceFeeds", "Prices", "median", "parse_manual", "read_price"]
