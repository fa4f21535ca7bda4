"""A market over real sockets: found whole, refreshed cheaply, told of changes at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from dht.contact import Contact
from dht.market import DESCEND_AT, SPLIT_AT, Market, MarketKey
from dht.node import DhtNode
from dht.records import Record, RecordKind, RecordMeta, Registry
from dht.storage import Outcome, Put
from dht.stream import TcpFrames
from dht.topics import offer_topics, offers_topic, shard_of
from protocol.identity import SigningKey
from protocol.types import Network, Side
from protocol.wire import Envelope, pack, unpack
from tests.network.dht_net import Net

BID = 60_010
KEY = MarketKey(Network.REGTEST, "EUR", Side.SELL)
MAKER = SigningKey(b"m" * 32)


class Bid(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An offer as the DHT sees it."""

    offer_id: bytes
    sequence: int
    expires: int
    gone: bool
    text: bytes


def read_bid(envelope: Envelope, now: int) -> RecordMeta:
    """The validator of bids."""
    del now
    bid = unpack(envelope.body, Bid, limit=1_024)
    topics = offer_topics(Network.REGTEST, "EUR", Side.SELL, bid.offer_id)
    return RecordMeta(envelope.signer, bid.offer_id, bid.sequence, bid.expires, topics, tombstone=bid.gone)


BIDS = RecordKind(BID, read_bid, max_per_publisher=10**6, max_per_topic=10**6)


def bid(number: int, *, sequence: int = 1, gone: bool = False, size: int = 330) -> tuple[bytes, Envelope]:
    """(offer id, signed bid) of about 520 bytes."""
    offer_id = (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + bytes(24)
    body = Bid(offer_id, sequence, int(time.time()) + 3_600, gone, bytes(size))
    return offer_id, MAKER.seal(BID, Network.REGTEST, pack(body))


class MarketNet(Net):
    """Nodes that also serve streams on the TCP port of the same number."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.servers: list[asyncio.Server] = []

    async def grow(self, count: int, **engine: Any) -> None:  # noqa: ANN401
        """Add nodes with the kind of bids and a stream server."""
        first = len(self.nodes)
        await super().grow(count, **engine)
        for node in self.nodes[first:]:
            node.engine.registry = Registry(Network.REGTEST, (BIDS,))
            limits = node.storage.limits
            object.__setattr__(limits, "max_per_publisher", 10**6)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node=node) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
                await node.serve_stream(TcpFrames(reader, writer))

            self.servers.append(await asyncio.start_server(serve, *node.local))

    def load(self, bids: list[tuple[bytes, Envelope]]) -> dict[tuple[int, int], int]:
        """Put bids where publishers that came one after the other would have put them, on the closest eight nodes."""
        counts: dict[tuple[int, int], int] = {}
        now = int(time.time())
        for offer_id, record in bids:
            bits = 0
            while counts.get(shard_of(offer_id, bits), 0) >= SPLIT_AT:
                bits += 1
            shard = shard_of(offer_id, bits)
            counts[shard] = counts.get(shard, 0) + 1
            topic = KEY.topic(shard)
            target = int.from_bytes(topic, "big")
            near = sorted(self.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)[:8]
            checked = near[0].engine.registry.trust(record.raw, topic, now)
            for node in near:
                node.storage.put(topic, checked, BIDS, b"", now)
        return counts

    def replace(self, bids: list[tuple[bytes, Envelope]], counts: dict[tuple[int, int], int]) -> None:
        """Give newer versions of bids to whoever holds the old ones."""
        now = int(time.time())
        for offer_id, record in bids:
            for topic in (KEY.topic(shard_of(offer_id, bits)) for bits in range(1 + max(b for b, _ in counts))):
                checked = self.nodes[0].engine.registry.trust(record.raw, topic, now)
                for node in self.nodes:
                    if node.storage.get(topic, checked.tag) is not None:
                        node.storage.put(topic, checked, BIDS, b"", now)

    def outsider(self, topic: bytes) -> DhtNode:
        """The node farthest from a topic: it holds nothing of it."""
        target = int.from_bytes(topic, "big")
        return max(self.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)

    async def close(self) -> None:
        """Stop servers and nodes."""
        for server in self.servers:
            server.close()
        await super().close()


@pytest.fixture
async def net() -> AsyncIterator[MarketNet]:
    built = MarketNet(20_261_121)
    await built.grow(20)
    yield built
    await built.close()


async def until(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition that events bring about."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110  (what is waited for happens in other nodes)
            await asyncio.sleep(0.02)


async def test_a_market_of_many_shards_is_read_whole_and_refreshed_cheaply(net: MarketNet) -> None:
    bids = [bid(i) for i in range(6_600)]
    counts = net.load(bids)
    assert max(bits for bits, _ in counts) >= 2
    seen: list[Record] = []
    market = Market(net.nodes[3], KEY, seen.append, open_stream=TcpFrames.open)
    payload = sum(len(b.raw) for _, b in bids)
    first = await market.refresh()
    assert {r.raw for r in seen} == {b.raw for _, b in bids}
    assert first.received <= 1.05 * payload
    again = await market.refresh()
    assert (again.records, again.received) == (0, 0), "nothing changed, so nothing is sent over streams"
    changed = [bid(i, sequence=2) for i in range(66)]
    net.replace(changed, counts)
    third = await market.refresh()
    assert third.records == 66
    assert third.received + third.sent <= 0.05 * payload
    await market.close()


async def test_a_revoked_offer_is_gone_from_followers_at_once(net: MarketNet) -> None:
    publisher = Market(net.nodes[1], KEY, lambda _: None, open_stream=TcpFrames.open)
    offer_id, record = bid(7)
    assert (await publisher.publish(offer_id, record)).acks >= 5
    books: list[dict[bytes, Record]] = []
    followers = []
    for node in net.nodes[5:17]:
        book: dict[bytes, Record] = {}
        books.append(book)
        follower = Market(node, KEY, lambda r, book=book: book.update({r.tag: r}), open_stream=TcpFrames.open)  # type: ignore[misc]
        followers.append(follower)
        await follower.follow()
    await until(lambda: all(len(b) == 1 for b in books))
    await until(lambda: sum(n.engine.watchers.count for n in net.nodes) >= 20)
    started = time.monotonic()
    await publisher.publish(offer_id, bid(7, sequence=2, gone=True)[1])
    await until(lambda: all(r.meta.tombstone for b in books for r in b.values()), 5.0)
    print(f"gone from {len(books)} followers after {1e3 * (time.monotonic() - started):.0f} ms")
    for market in (publisher, *followers):
        await market.close()


async def test_a_holder_that_breaks_off_does_not_stop_the_reader(net: MarketNet) -> None:
    bids = [bid(i) for i in range(40)]
    net.load(bids)
    broken: list[Contact] = []

    async def open_stream(contact: Contact) -> TcpFrames:
        if len(broken) < 3:
            broken.append(contact)
            raise ConnectionRefusedError
        return await TcpFrames.open(contact)

    seen: list[Record] = []
    market = Market(net.outsider(KEY.topic((0, 0))), KEY, seen.append, open_stream=open_stream)
    done = await market.refresh()
    assert len(seen) == 40
    assert done.failures == 3


async def test_a_lying_minority_does_not_send_publishers_astray(net: MarketNet) -> None:
    topic = offers_topic(Network.REGTEST, "EUR", Side.SELL)
    target = int.from_bytes(topic, "big")
    for node in sorted(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)[:3]:
        node.storage.total = lambda topic: 60_000  # type: ignore[method-assign]
    market = Market(net.nodes[9], KEY, lambda _: None, open_stream=TcpFrames.open)
    assert await market.shard_for(bid(1)[0]) == (0, 0)


async def test_a_market_whose_holders_serve_no_streams_is_read_by_datagrams(net: MarketNet) -> None:
    bids = [bid(i) for i in range(30)]
    net.load(bids)

    async def refused(contact: Contact) -> TcpFrames:
        raise ConnectionRefusedError(str(contact))

    seen: list[Record] = []
    market = Market(net.outsider(KEY.topic((0, 0))), KEY, seen.append, open_stream=refused)
    await market.refresh()
    assert {r.raw for r in seen} == {b.raw for _, b in bids}


async def test_two_holders_that_boast_hide_nothing(net: MarketNet) -> None:
    """Whoever claims the most must not be the only one that is read."""
    net.load([bid(i) for i in range(40)])
    topic = KEY.topic((0, 0))
    target = int.from_bytes(topic, "big")
    for n, node in enumerate(sorted(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)[:2]):
        for slot in node.storage.slots(topic):
            node.storage._remove(topic, slot)
        node.storage.total = lambda topic: 60_000  # type: ignore[method-assign]
        node.storage.digest = lambda topic, n=n: bytes([n]) * 8  # type: ignore[method-assign,misc]
    seen: list[Record] = []
    market = Market(net.outsider(topic), KEY, seen.append, open_stream=TcpFrames.open)
    await market.refresh()
    assert len(seen) == 40


async def test_a_holders_own_records_and_changes_need_no_other_node(net: MarketNet) -> None:
    (lone,) = [net.make("127.77.1.1")]
    await lone.start()
    lone.engine.registry = Registry(Network.REGTEST, (BIDS,))
    topic = KEY.topic((0, 0))

    def keep(record: Envelope) -> None:
        lone.engine.keep(topic, lone.engine.registry.check(record.raw, topic, int(time.time())), b"", lone.now())

    keep(bid(1)[1])
    seen: list[Record] = []
    market = Market(lone, KEY, seen.append, open_stream=TcpFrames.open)
    await market.follow()
    assert [r.raw for r in seen] == [bid(1)[1].raw]
    gone = bid(1, sequence=2, gone=True)[1]
    keep(gone)
    assert seen[-1].raw == gone.raw
    await market.close()


async def test_followers_go_into_the_halves_of_a_shard_that_fills_up_by_pushes(net: MarketNet) -> None:
    """Publishers turn to the halves once a shard is full; who only watches the whole would not hear of them."""
    count = DESCEND_AT - 5
    net.load([bid(i) for i in range(count)])
    seen: list[Record] = []
    reader = Market(net.outsider(KEY.topic((0, 0))), KEY, seen.append, open_stream=TcpFrames.open)
    await reader.follow()
    assert set(reader.depths()) == {(0, 0)}
    node = net.nodes[2]
    await until(lambda: sum(n.engine.watchers.count for n in net.nodes) >= 2)
    for i in range(count, DESCEND_AT + 5):
        await node.put(KEY.topic((0, 0)), bid(i)[1], keep=False)
    await until(lambda: len(seen) == DESCEND_AT + 5)
    await until(lambda: set(reader.depths()) == {(0, 0), (1, 0), (1, 1)})
    await until(lambda: sum(n.engine.watchers.count for n in net.nodes) >= 6)
    offer_id, late = bid(100_000)
    await node.put(KEY.topic(shard_of(offer_id, 1)), late, keep=False)
    await until(lambda: seen[-1].raw == late.raw)
    await reader.close()


async def test_an_expired_record_among_others_spoils_nothing(net: MarketNet) -> None:
    """The holder's clock may be a little behind the reader's."""
    bids = [bid(i) for i in range(30)]
    net.load(bids)
    seen: list[Record] = []
    reader = net.outsider(KEY.topic((0, 0)))
    judged = Registry(Network.REGTEST, (BIDS,))
    stale = bids[3][1].raw

    def check(raw: bytes, topic: bytes, now: int) -> Record:
        return judged.check(raw, topic, now + 4_000 if raw == stale else now)

    reader.engine.registry.check = check  # type: ignore[method-assign]
    market = Market(reader, KEY, seen.append, open_stream=TcpFrames.open)
    done = await market.refresh()
    assert (len(seen), done.failures) == (29, 0)


def near(net: MarketNet, topic: bytes) -> list[DhtNode]:
    """The eight nodes closest to a topic: its holders."""
    target = int.from_bytes(topic, "big")
    return sorted(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ target)[:8]


async def test_holders_that_keep_still_are_not_listened_to_for_long(net: MarketNet) -> None:
    """They acknowledge, push nothing, and tell at each renewal that nothing has changed."""
    topic = KEY.topic((0, 0))
    offer_id, record = bid(7)
    publisher = Market(net.nodes[1], KEY, lambda _: None, open_stream=TcpFrames.open)
    await publisher.publish(offer_id, record)
    book: dict[bytes, Record] = {}
    reader = net.outsider(topic)
    market = Market(reader, KEY, lambda r: book.update({r.tag: r}), open_stream=TcpFrames.open)
    await market.follow()
    await until(lambda: sum(n.engine.watchers.count for n in net.nodes) >= 2)
    (watch,) = reader.engine.watching._by_topic[topic]
    mute = [n for n in net.nodes if n.key.public in {holder.key for holder in watch.holders}]
    assert len(mute) == 2
    for node in mute:
        state = node.storage.digest(topic) + node.storage.total(topic).to_bytes(2, "big")
        node.engine.watchers.changed = lambda *_: None  # type: ignore[method-assign]
        node.engine.watchers.serve = lambda *_, state=state: b"\0" + state  # type: ignore[method-assign]
    await publisher.publish(offer_id, bid(7, sequence=2, gone=True)[1])
    for renewal in range(1, 12):
        watch.step(reader.now() + 31 * renewal)
        await asyncio.sleep(0.05)
        if any(r.meta.tombstone for r in book.values()):
            break
    assert renewal <= 10, "some five minutes"
    for one in (publisher, market):
        await one.close()


async def test_a_crowd_around_a_shard_that_holds_back_hides_nothing(net: MarketNet) -> None:
    """Twenty nodes packed around it say, all alike, that there is next to nothing: the honest are asked as well."""
    topic = KEY.topic((0, 0))
    bids = [bid(i) for i in range(60)]
    net.load(bids)
    honest = near(net, topic)
    target = int.from_bytes(topic, "big")
    edge = int.from_bytes(honest[0].node_id, "big") ^ target
    first = len(net.nodes)
    while len(net.nodes) < first + 20:
        node = net.make()
        if int.from_bytes(node.node_id, "big") ^ target >= edge:
            net.nodes.remove(node)
            continue
        await node.start()
        node.engine.registry = Registry(Network.REGTEST, (BIDS,))
        await node.bootstrap([net.seed_of(0)])
        now = int(time.time())
        held = node.engine.registry.trust(bid(1)[1].raw, topic, now)
        node.storage.put(
            topic, node.engine.registry.trust(held.raw, topic, int(time.time())), BIDS, b"", int(time.time())
        )
        node.engine.keep = lambda *_: Put(Outcome.STORED)  # type: ignore[method-assign]
    seen: list[Record] = []
    market = Market(net.outsider(topic), KEY, seen.append, open_stream=TcpFrames.open)
    await market.refresh()
    assert {r.raw for r in seen} == {b.raw for _, b in bids}
    await market.close()
