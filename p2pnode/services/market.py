"""The book's supply: the offers of a market are looked up in the DHT when what we hold of it has grown old."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from dht.node import DhtNode
from dht.records import Record
from dht.topics import offers_topic
from p2pnode.clock import Clock
from p2pnode.lookups import Lookups
from p2pnode.offerbook import OfferBook
from protocol.types import Network, Side

FRESH_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 3.0
AT_A_TIME: Final = 200
"""Records that are taken in without a pause: some 10 ms of the event loop."""


class Market:
    """Keeps the book of the markets that somebody looks at."""

    def __init__(
        self,
        book: OfferBook,
        dht: DhtNode,
        network: Network,
        clock: Clock,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """`fresh_seconds`: how long an answer holds; `wait_seconds`: how long somebody waits for one, at most."""
        self._book = book
        self._dht = dht
        self._network = network
        self._clock = clock
        self._fresh = fresh_seconds
        self._wait = wait_seconds
        self._lookups = Lookups()

    async def refresh(
        self, currencies: Iterable[str], sides: Sequence[Side], *, wait_seconds: float | None = None
    ) -> None:
        """Bring these markets up to date, or go on with what there is after a while."""
        wait = self._wait if wait_seconds is None else wait_seconds
        await asyncio.gather(
            *(
                self._lookups.ask(
                    (currency, side), partial(self._ask, currency, side), fresh_seconds=self._fresh, wait_seconds=wait
                )
                for currency in currencies
                for side in sides
            )
        )

    async def close(self) -> None:
        """Give up what is being looked up."""
        await self._lookups.close()

    async def _ask(self, currency: str, side: Side) -> bool:
        found = await self._dht.find_records(offers_topic(self._network, currency, side))
        await self._take_in(found.records)
        return found.asked > 0

    async def _take_in(self, records: Sequence[Record]) -> None:
        for start in range(0, len(records), AT_A_TIME):
            batch = records[start : start + AT_A_TIME]
            self._book.read_many((record.envelope for record in batch), self._clock.now())
            await asyncio.sleep(0)
