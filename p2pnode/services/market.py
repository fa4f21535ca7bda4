"""The book's supply: markets are followed while somebody looks at them, and every change of theirs reaches the book.

A first look reads the whole market from its holders (`dht.market`), and from then on they push what changes: an offer
that is taken is gone from here within a moment. Further looks make sure that nothing was missed. A market that nobody
has looked at for a while is let go; the next look fetches only what has changed meanwhile.

Records come one by one, and go into the book in batches, one commit each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from dht.market import Market, MarketKey
from dht.node import DhtNode
from dht.records import Record
from dht.stream import OpenStream
from p2pnode.clock import Clock
from p2pnode.lookups import Lookups
from p2pnode.offerbook import Batch, OfferBook
from protocol.offer import Offer, Revocation
from protocol.types import Network, Side

FRESH_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 3.0
FOLLOW_SECONDS: Final = 900.0
GATHER_SECONDS: Final = 0.25
"""How long a record waits for others to share its commit."""
AT_A_TIME: Final = 1_000
"""Records that are taken in without a pause: some 10 ms of the event loop."""


class _Supply:
    """One market, and until when it is followed."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.let_go: asyncio.TimerHandle | None = None


class Markets:
    """Keeps the book of the markets that somebody looks at, and knows where offers are put."""

    def __init__(
        self,
        book: OfferBook,
        dht: DhtNode,
        network: Network,
        clock: Clock,
        open_stream: OpenStream,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        follow_seconds: float = FOLLOW_SECONDS,
    ) -> None:
        """`fresh_seconds`: how long an answer holds; `wait_seconds`: how long somebody waits for one, at most.

        `follow_seconds`: how long a market is followed after the last look at it.
        """
        self._book = book
        self._dht = dht
        self._network = network
        self._clock = clock
        self._open_stream = open_stream
        self._fresh = fresh_seconds
        self._wait = wait_seconds
        self._follow = follow_seconds
        self._lookups = Lookups()
        self._supplies: dict[MarketKey, _Supply] = {}
        self._waiting: Batch | None = None
        self._gathering: asyncio.Handle | None = None

    async def refresh(
        self, currencies: Iterable[str], sides: Sequence[Side], *, wait_seconds: float | None = None
    ) -> None:
        """Bring these markets up to date, or go on with what there is after a while; follow them from now on."""
        wait = self._wait if wait_seconds is None else wait_seconds
        keys = [MarketKey(self._network, currency, side) for currency in currencies for side in sides]
        await asyncio.gather(
            *(
                self._lookups.ask(key, partial(self._ask, key), fresh_seconds=self._fresh, wait_seconds=wait)
                for key in keys
            )
        )
        for key in keys:
            self._looked_at(key)

    async def topic_for(self, currency: str, side: Side, offer_id: bytes) -> bytes:
        """Where an offer, or its tombstone, is to be put now: the topic of a shard that is not full."""
        market = self._supply(MarketKey(self._network, currency, side)).market
        return market.key.topic(await market.shard_for(offer_id))

    def following(self) -> list[MarketKey]:
        """The markets whose holders push their changes here."""
        return [key for key, supply in self._supplies.items() if supply.let_go is not None]

    async def close(self) -> None:
        """Give up what is being looked up, and follow nothing any more."""
        await self._lookups.close()
        for supply in self._supplies.values():
            if supply.let_go is not None:
                supply.let_go.cancel()
        await asyncio.gather(*(supply.market.close() for supply in self._supplies.values()))
        if self._gathering is not None:
            self._gathering.cancel()

    def _supply(self, key: MarketKey) -> _Supply:
        supply = self._supplies.get(key)
        if supply is None:
            supply = _Supply(Market(self._dht, key, self._heard, open_stream=self._open_stream))
            self._supplies[key] = supply
        return supply

    async def _ask(self, key: MarketKey) -> bool:
        self._looked_at(key)
        done = await self._supply(key).market.follow()
        self._take_in()
        return done.answers > 0

    def _looked_at(self, key: MarketKey) -> None:
        supply = self._supply(key)
        if supply.let_go is not None:
            supply.let_go.cancel()
        supply.let_go = asyncio.get_running_loop().call_later(self._follow, self._let_go, supply)

    def _let_go(self, supply: _Supply) -> None:
        supply.let_go = None
        supply.market.unfollow()

    def _heard(self, record: Record) -> None:
        """Called in the midst of the DHT's work, so the database is left for the loop's next turn."""
        value = record.meta.value
        if not isinstance(value, (Offer, Revocation)):
            return
        if self._waiting is None:
            self._waiting = Batch(self._clock.now())
            self._gathering = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._take_in)
        self._waiting.add(record.envelope, value)
        if self._gathering is not None and len(self._waiting) == AT_A_TIME:
            self._gathering.cancel()
            self._gathering = asyncio.get_running_loop().call_soon(self._take_in)

    def _take_in(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        batch, self._waiting = self._waiting, None
        if batch is not None:
            self._book.take_in(batch)
