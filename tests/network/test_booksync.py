"""The book as the daemon keeps it: real nodes, real channels; markets read whole, followed, and split."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from dht import sync
from dht.contact import Contact
from dht.market import SPLIT_AT
from dht.topics import shard_of
from p2pnode.booksync import BOOK_SERVICE, BookLimits, PipeFrames
from p2pnode.channels import Channels, PipeBroken
from p2pnode.channels.links import dial_tcp
from p2pnode.clock import SystemClock
from p2pnode.offerbook import BookFilter
from protocol.contact import Address
from protocol.identity import SigningKey
from protocol.wire import Kind, pack
from tests.network.book_net import KEY, NETWORK, BookNet, fresh_offer, offers, tombstone

ROOT = (0, 0)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[BookNet]:
    built = BookNet(20_261_121, tmp_path)
    await built.grow(12)
    yield built
    await built.close()


async def until(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition that events bring about."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110  (what is waited for happens in other nodes)
            await asyncio.sleep(0.01)


async def test_an_offer_appears_in_every_followers_book_and_is_gone_once_it_is_taken(net: BookNet) -> None:
    maker, *others = net.books
    for other in others:
        await other.look()
    await until(lambda: sum(n.engine.watchers.count for n in net.nodes) >= 2 * len(others))
    own = await maker.own.create(fresh_offer(maker.maker.public, 1), {})
    await until(lambda: all(other.shown() == {own.offer_id} for other in others), 5)
    began = time.monotonic()
    maker.own.mark_taken(own.offer_id, b"t" * 32, int(time.time()))
    await until(lambda: not any(other.shown() for other in others), 5)
    print(f"gone from {len(others)} books after {1_000 * (time.monotonic() - began):.0f} ms")


async def test_who_does_not_follow_sees_it_gone_at_the_next_look(net: BookNet) -> None:
    maker, other = net.books[0], net.books[5]
    own = await maker.own.create(fresh_offer(maker.maker.public, 1), {})
    await until(lambda: maker.own.get(own.offer_id).published == 0)  # type: ignore[union-attr]
    await other.look()
    assert other.shown() == {own.offer_id}
    (key,) = other.markets.following()
    other.markets._let_go(other.markets._supplies[key])
    assert other.markets.following() == []
    assert other.dht.engine.watching._by_topic == {}
    maker.own.revoke(own.offer_id, int(time.time()))
    await until(lambda: maker.own.get(own.offer_id).published == 1)  # type: ignore[union-attr]
    assert other.shown() == {own.offer_id}
    await other.look()
    assert other.shown() == set()


async def test_a_market_of_several_shards_is_read_from_cold_through_channels(net: BookNet) -> None:
    made = offers(SPLIT_AT + 500)
    counts = net.load(made)
    assert {bits for bits, _ in counts} == {0, 1}
    reader = net.outsider()
    began = time.monotonic()
    await reader.look()
    print(f"{len(made):,} offers after {1_000 * (time.monotonic() - began):.0f} ms")
    assert reader.shown() == {offer_id for offer_id, _ in made}
    served = sum(book.served for book in net.books)
    assert served > 0, "not over streams"
    await reader.look()
    assert sum(book.served for book in net.books) == served, "nothing has changed, so nothing is fetched"


async def test_a_full_shard_sends_new_offers_to_its_half_and_tombstones_are_found_there(net: BookNet) -> None:
    net.load(offers(SPLIT_AT))
    maker, reader = net.books[0], net.outsider()
    await reader.look()
    assert len(reader.shown()) == SPLIT_AT
    own = await maker.own.create(fresh_offer(maker.maker.public, 7), {})
    await until(lambda: maker.own.get(own.offer_id).published == 0)  # type: ignore[union-attr]
    assert maker.dht.engine.upkeep.published == {}, "the DHT would go on putting it where it was"
    half = KEY.topic(shard_of(own.offer_id, 1))
    assert await maker.markets.topic_for("EUR", KEY.side, own.offer_id) == half
    assert sum(node.storage.total(half) for node in net.nodes) >= 5
    await until(lambda: own.offer_id in reader.shown(), 5)
    maker.own.mark_taken(own.offer_id, b"t" * 32, int(time.time()))
    await until(lambda: own.offer_id not in reader.shown(), 5)


async def test_a_tombstone_in_another_shard_than_its_offer_hides_it(net: BookNet) -> None:
    """The shard may fill up, or fold back, between the two."""
    net.load(offers(SPLIT_AT))
    reader = net.outsider()
    offer_id, gone = tombstone(3)
    await net.nodes[4].put(KEY.topic(shard_of(offer_id, 1)), gone, keep=False)
    await reader.look()
    assert len(reader.shown()) == SPLIT_AT - 1


@pytest.mark.parametrize("swapped", [False, True])
async def test_a_maker_who_signs_two_versions_of_one_sequence_has_one_in_everybodys_book(
    net: BookNet, swapped: bool
) -> None:
    key = SigningKey(b"k" * 32)
    offer = fresh_offer(key.public, 5)
    versions = [key.seal(Kind.OFFER, NETWORK, pack(replace(offer, terms=terms))) for terms in ("one", "other")]
    if swapped:
        versions.reverse()
    early, late = net.books[0], net.books[1]
    for n, version in enumerate(versions):
        await net.nodes[3 + n].put(KEY.topic(ROOT), version, keep=False)
        await early.look()
        assert early.shown() == {offer.offer_id}
    await late.look()
    await early.look()
    shown = [
        [e.envelope.raw for e in book.book.search(BookFilter(), int(time.time())).entries] for book in (early, late)
    ]
    stored = net.nearest(KEY.topic(ROOT))[0].storage.all(KEY.topic(ROOT), int(time.time()))
    assert shown == [stored, stored]


async def test_a_reader_that_asks_without_end_is_cut_off(tmp_path: Path) -> None:
    net = BookNet(7, tmp_path)
    await net.grow(2, limits=BookLimits(messages=3, streams=1))
    holder, reader = net.books
    where = Contact(holder.dht.key.public, *holder.dht.local)
    topic = KEY.topic(ROOT)
    try:
        stream = await reader.sync.open(where)
        for _ in range(3):
            await stream.send(sync.want(topic, ()))
            assert sync.read_records(await stream.receive()) == ([], False)
        await stream.send(sync.want(topic, ()))
        with pytest.raises((EOFError, OSError)):
            await stream.receive()
        await stream.close()
        await until(lambda: not holder.sync._streams)
        first = await reader.sync.open(where)
        await first.send(sync.want(topic, ()))
        await first.receive()
        second = await reader.sync.open(where)
        await second.send(sync.want(topic, ()))
        with pytest.raises((EOFError, OSError)):
            await second.receive()
        await first.close()
        await second.close()
    finally:
        await net.close()


async def test_streams_that_one_network_holds_open_do_not_keep_other_readers_out(tmp_path: Path) -> None:
    net = BookNet(7, tmp_path)
    await net.grow(1, limits=BookLimits(streams=3))
    (holder,) = net.books
    made: list[Channels] = []

    async def stream(host: str) -> PipeFrames:
        key = SigningKey(bytes([len(made) + 1]) * 32)
        made.append(Channels(key, NETWORK, {}, clock=SystemClock(), dial=partial(dial_tcp, source=host)))
        where = (Address(*holder.dht.local),)
        return PipeFrames(await made[-1].pipe(holder.dht.key.public, where, BOOK_SERVICE, b""))

    try:
        held = [await stream(f"127.0.7.{n}") for n in (1, 2, 3)]
        await until(lambda: len(holder.sync._streams) == 3)
        reader = await stream("127.0.8.1")
        await reader.send(sync.want(KEY.topic(ROOT), ()))
        assert sync.read_records(await reader.receive()) == ([], False)
        with pytest.raises(PipeBroken):
            await held[-1].receive()
        assert len(holder.sync._streams) == 3
    finally:
        for channels in made:
            await channels.close()
        await net.close()


async def test_nonsense_over_a_stream_ends_only_the_stream(net: BookNet) -> None:
    holder, reader = net.books[:2]
    where = Contact(holder.dht.key.public, *holder.dht.local)
    for nonsense in (b"", b"\x09" + bytes(20), b"\x03" + bytes(27), b"\x01" + bytes(19), bytes(60_000)):
        stream = await reader.sync.open(where)
        await stream.send(nonsense)
        with pytest.raises((EOFError, OSError)):
            await stream.receive()
        await stream.close()
    stream = await reader.sync.open(where)
    await stream.send(sync.want(KEY.topic(ROOT), ()))
    assert sync.read_records(await stream.receive()) == ([], False)
    await stream.close()
