"""Nodes that hold, serve, follow and publish markets as the daemon does: DHT, channels, book synchronisation, book."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from dht.errors import InvalidRecord
from dht.market import SPLIT_AT, MarketKey
from dht.node import DhtNode
from dht.records import Registry
from dht.topics import shard_of
from p2pnode.booksync import BOOK_SERVICE, BookLimits, BookSync
from p2pnode.channels import Channels, Limits, Pipe, PipeService
from p2pnode.clock import SystemClock
from p2pnode.database import Database
from p2pnode.notices import Notices
from p2pnode.offerbook import BookFilter, OfferBook
from p2pnode.ownoffers import OwnOffers
from p2pnode.publisher import Publisher
from p2pnode.records import record_kinds
from p2pnode.services.market import Markets
from protocol.identity import SigningKey
from protocol.offer import SALT_BYTES, Offer, Revocation, make_offer_id
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, pack
from tests.network.dht_net import Net
from tests.unit.services_support import offer_of

NETWORK = Network.REGTEST
KEY = MarketKey(NETWORK, "EUR", Side.SELL)
KINDS = record_kinds(NETWORK, offer_work=0)
"""Offers without work: thousands are made here."""
PER_MAKER = 50
"""The network keeps 64 of one maker in a market."""


class OneKey:
    """A maker's keyring."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def persona_key(self, persona: bytes) -> SigningKey:
        """As `Keyring.persona_key`."""
        assert persona == self.key.public
        return self.key


class BookNode:
    """What of a daemon the book needs."""

    def __init__(self, dht: DhtNode, folder: Path, name: str, limits: BookLimits | None = None) -> None:
        self.dht = dht
        dht.engine.registry = Registry(NETWORK, KINDS)
        services = {BOOK_SERVICE: PipeService(self._serve)}
        many = Limits(max_inbound=1_000, max_inbound_per_origin=1_000)
        self.channels = Channels(dht.key, NETWORK, services, limits=many, clock=SystemClock())
        self.sync = BookSync(self.channels, dht.storage, dht.unix, limits)
        self.database = Database(folder / f"{name}.db")
        self.book = OfferBook(self.database, NETWORK)
        self.served = 0
        self.markets = Markets(self.book, dht, NETWORK, SystemClock(), self.sync.open, fresh_seconds=0.0)
        self.maker = SigningKey(dht.key.public)
        self.own = OwnOffers(
            self.database, self.book, Notices(self.database), OneKey(self.maker), NETWORK, SystemClock(), work_bits=0
        )
        self.publisher = Publisher(dht, SystemClock(), random.Random(1), own=self.own, place=self.markets.topic_for)

    async def start(self) -> None:
        """Listen where the DHT does; publish."""
        await self.channels.listen(*self.dht.local)
        self.publisher.start()

    async def close(self) -> None:
        """Stop in order; the DHT is the net's."""
        await self.publisher.close()
        await self.markets.close()
        await self.channels.close()
        self.database.close()

    async def look(self, seconds: float = 30.0) -> None:
        """Bring the market up to date and follow it."""
        await self.markets.refresh((KEY.currency,), (KEY.side,), wait_seconds=seconds)

    def shown(self) -> set[bytes]:
        """Ids of the offers that the book shows."""
        found: set[bytes] = set()
        page = self.book.search(BookFilter(currency="EUR", limit=200), int(time.time()))
        while True:
            found |= {entry.offer.offer_id for entry in page.entries}
            if page.next is None:
                return found
            page = self.book.search(BookFilter(currency="EUR", limit=200), int(time.time()), after=page.next)

    async def _serve(self, pipe: Pipe) -> None:
        self.served += 1
        await self.sync.serve(pipe)


class BookNet(Net):
    """A network of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed)
        self.folder = folder
        self.books: list[BookNode] = []

    async def grow(self, count: int, *, limits: BookLimits | None = None, **engine: object) -> None:
        """Add nodes that serve."""
        first = len(self.nodes)
        await super().grow(count, **engine)
        for n, dht in enumerate(self.nodes[first:], first):
            self.books.append(BookNode(dht, self.folder, f"node{n}", limits))
            await self.books[-1].start()

    def nearest(self, topic: bytes) -> list[DhtNode]:
        """Nodes by their distance from a topic."""
        target = int.from_bytes(topic, "big")
        return sorted(self.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)

    def outsider(self) -> BookNode:
        """A node that holds nothing of the undivided market."""
        far = self.nearest(KEY.topic((0, 0)))[-1]
        return next(book for book in self.books if book.dht is far)

    def load(self, offers: Iterable[tuple[bytes, Envelope]]) -> dict[tuple[int, int], int]:
        """Give offers to those who would hold them had they been published one after the other."""
        counts: dict[tuple[int, int], int] = {}
        now = int(time.time())
        for offer_id, record in offers:
            bits = 0
            while counts.get(shard_of(offer_id, bits), 0) >= SPLIT_AT:
                bits += 1
            shard = shard_of(offer_id, bits)
            counts[shard] = counts.get(shard, 0) + 1
            topic = KEY.topic(shard)
            checked = self.nodes[0].engine.registry.trust(record.raw, topic, now)
            for node in self.nearest(topic)[:8]:
                node.storage.put(topic, checked, KINDS[0], b"", now)
        return counts

    def replace(self, record: Envelope) -> None:
        """Give a newer version of an offer to those who hold the old one."""
        now = int(time.time())
        for node in self.nodes:
            for topic in node.storage.topics():
                with suppress(InvalidRecord):
                    checked = node.engine.registry.trust(record.raw, topic, now)
                    if node.storage.get(topic, checked.tag) is not None:
                        node.storage.put(topic, checked, KINDS[0], b"", now)

    async def close(self) -> None:
        """Stop all."""
        for book in self.books:
            await book.close()
        await super().close()


def fresh_offer(maker: bytes, number: int) -> Offer:
    """An offer of now; ids are spread evenly."""
    now = int(time.time())
    salt = number.to_bytes(SALT_BYTES, "big")
    return offer_of(maker, offer_id=make_offer_id(maker, salt), created=now - 60, expires=now + 86_400)


def offers(count: int) -> list[tuple[bytes, Envelope]]:
    """(id, signed offer) of many makers."""
    made = []
    for number in range(count):
        key = SigningKey((number // PER_MAKER).to_bytes(32, "big"))
        offer = fresh_offer(key.public, number)
        made.append((offer.offer_id, key.seal(Kind.OFFER, NETWORK, pack(offer))))
    return made


def edited(number: int, sequence: int = 1) -> tuple[bytes, Envelope]:
    """A later version of offer `number`."""
    key = SigningKey((number // PER_MAKER).to_bytes(32, "big"))
    offer = replace(fresh_offer(key.public, number), sequence=sequence)
    return offer.offer_id, key.seal(Kind.OFFER, NETWORK, pack(offer))


def tombstone(number: int) -> tuple[bytes, Envelope]:
    """The revocation of offer `number`."""
    key = SigningKey((number // PER_MAKER).to_bytes(32, "big"))
    offer = fresh_offer(key.public, number)
    body = pack(Revocation(offer.maker, offer.offer_id, 1, offer.side, offer.currency, offer.expires))
    return offer.offer_id, key.seal(Kind.OFFER_REVOCATION, NETWORK, body)
