"""What the network is told of our records, over three real DHT nodes: at once, and again after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dht.node import DhtNode, Seed
from dht.records import Record
from dht.topics import arbiters_topic, contact_topic, offers_topic
from dht.writing import PutResult
from p2pnode.contacts import read_contact
from p2pnode.ownoffers import OfferState, OwnOffer
from p2pnode.publisher import CONTACT_SECONDS, Publisher
from protocol.contact import Address
from protocol.types import Side
from protocol.wire import Envelope
from tests.twins import TwinChain
from tests.unit.services_support import DETAILS, NETWORK, T0, Party, TestClock, offer_id_of, offer_of, parties

MARKET = offers_topic(NETWORK, "EUR", Side.SELL)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Party]]:
    async with parties(tmp_path, "maker", "other", "third") as made:
        yield made


async def records(node: DhtNode, topic: bytes = MARKET) -> list[Record]:
    """What another node finds."""
    return (await node.find_records(topic, quorum=3)).records


async def until(done: Callable[[], bool], what: str) -> None:
    """Let everything run until `done`."""
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110  (what is waited for lies in the database)
            await asyncio.sleep(0.005)
    assert done(), what


def listen(party: Party, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """(record, nodes that took it) of every put that ends from now on. Only listens: the real put does the work."""
    results: list[tuple[bytes, int]] = []
    put = party.dht.put

    async def heard(topic: bytes, record: Envelope, *, keep: bool) -> PutResult:
        result = await put(topic, record, keep=keep)
        results.append((record.raw, result.acks))
        return result

    monkeypatch.setattr(party.dht, "put", heard)
    return results


def published(party: Party, own: OwnOffer) -> bool:
    found = party.own.get(own.offer_id)
    return found is not None and found.published == found.sequence


async def test_an_offer_is_found_by_others_and_gone_for_them_once_it_is_taken(nodes: list[Party]) -> None:
    maker, other, _ = nodes
    own = await maker.own.create(offer_of(maker.persona), DETAILS)
    await until(lambda: published(maker, own), "published")
    assert [r.raw for r in await records(other.dht)] == [own.envelope.raw]
    assert (found := maker.own.get(own.offer_id)) is not None
    assert found.stored_on == 3
    maker.own.mark_taken(own.offer_id, b"t" * 32, T0)
    await until(lambda: published(maker, own), "tombstone published")
    (record,) = await records(other.dht)
    assert record.meta.tombstone
    assert await other.dht.get(MARKET) == []


async def test_a_reopened_offer_is_signed_anew_and_published_by_itself(nodes: list[Party]) -> None:
    maker, other, _ = nodes
    own = await maker.own.create(offer_of(maker.persona), DETAILS)
    maker.own.mark_taken(own.offer_id, b"t" * 32, T0)
    maker.own.reopen(own.offer_id, T0)
    await until(lambda: published(maker, own), "reopened and published")
    (envelope,) = await other.dht.get(MARKET)
    assert (found := maker.own.get(own.offer_id)) is not None
    assert (found.envelope.raw, found.sequence, found.state) == (envelope.raw, 2, OfferState.OPEN)


async def test_what_a_crash_left_unpublished_goes_out_at_the_next_start(tmp_path: Path) -> None:
    clock, chain = TestClock(), TwinChain()
    early = Party("maker", tmp_path, clock, chain)
    kept = await early.own.create(offer_of(early.persona), DETAILS)
    gone = await early.own.create(offer_of(early.persona, offer_id=offer_id_of(early.persona, b"2")), DETAILS)
    early.own.mark_taken(gone.offer_id, b"t" * 32, T0)
    freed = await early.own.create(offer_of(early.persona, offer_id=offer_id_of(early.persona, b"3")), DETAILS)
    early.own.mark_taken(freed.offer_id, b"u" * 32, T0)
    early.own.reopen(freed.offer_id, T0)
    early.database.close()  # without a word to anybody
    async with parties(tmp_path, "other", "third") as (other, third):
        maker = Party("maker", tmp_path, clock, chain)
        await maker.start(other, third)
        try:
            await until(lambda: all(published(maker, o) for o in (kept, gone, freed)), "all published")
            found = {r.meta.sub_key: (r.meta.sequence, r.meta.tombstone) for r in await records(third.dht)}
            assert found == {kept.offer_id: (0, False), gone.offer_id: (1, True), freed.offer_id: (2, False)}
        finally:
            await maker.close()


async def test_a_node_that_knows_nobody_waits_and_publishes_when_it_is_told(tmp_path: Path) -> None:
    clock, chain = TestClock(), TwinChain()
    maker = Party("maker", tmp_path, clock, chain)
    await maker.dht.start()
    maker.publisher.start()
    own = await maker.own.create(offer_of(maker.persona), DETAILS)
    await maker.publisher.placed(own.envelope, 5)  # nobody to place it with: returns at once
    assert not published(maker, own)
    async with parties(tmp_path, "other", "third") as (other, _):
        try:
            await maker.dht.bootstrap([Seed(*other.dht.local)])
            maker.publisher.kick()
            await until(lambda: published(maker, own), "published")
            assert [e.raw for e in await other.dht.get(MARKET)] == [own.envelope.raw]
        finally:
            await maker.close()


async def test_our_own_store_alone_is_no_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only known peer is dead: a put then ends with nobody but ourselves holding the record."""
    clock, chain = TestClock(), TwinChain()
    maker, dead = (Party(name, tmp_path, clock, chain) for name in ("maker", "dead"))
    await dead.dht.start()
    await maker.dht.start()
    await maker.dht.bootstrap([Seed(*dead.dht.local)])
    assert len(maker.dht.peers()) == 1
    await dead.dht.close()
    results = listen(maker, monkeypatch)
    own = await maker.own.create(offer_of(maker.persona), DETAILS)
    maker.publisher.start()
    try:
        await until(lambda: own.envelope.raw in [raw for raw, _ in results], "the put has ended")
        await asyncio.sleep(0)
        assert {acks for _, acks in results} == {1}
        assert not published(maker, own)
    finally:
        await maker.close()
        dead.database.close()


async def test_tombstones_go_out_before_new_offers(nodes: list[Party], monkeypatch: pytest.MonkeyPatch) -> None:
    maker, _, _ = nodes
    own = await maker.own.create(offer_of(maker.persona, offer_id=offer_id_of(maker.persona, b"\x80")), DETAILS)
    news = [
        await maker.own.create(offer_of(maker.persona, offer_id=offer_id_of(maker.persona, bytes([n]))), DETAILS)
        for n in (1, 2, 254, 255)
    ]
    await until(lambda: all(published(maker, o) for o in (own, *news)), "published")
    results = listen(maker, monkeypatch)
    with maker.database.transaction() as connection:
        connection.execute("UPDATE own_offers SET published = -1")
        maker.own.mark_taken(own.offer_id, b"t" * 32, T0)
    await until(lambda: all(published(maker, o) for o in (*news, own)), "published")
    tombstone = maker.own.record(maker.own.find(own.offer_id.hex())[0])
    assert results[0][0] == tombstone.raw
    assert len(results) == 5


async def test_a_contact_record_is_there_and_follows_the_address(nodes: list[Party]) -> None:
    maker, other, _ = nodes
    topic = contact_topic(NETWORK, maker.persona)
    await maker.publisher.placed(maker.contact.envelope(), 5)
    (envelope,) = await other.dht.get(topic)
    record = read_contact(envelope, NETWORK, T0)
    assert (record.contact.node, record.contact.addresses) == (maker.keyring.node.public, tuple(maker.address))
    maker.address[:] = [Address("127.0.0.1", 10_000), Address("127.0.0.2", 10_000)]
    await maker.publisher.placed(maker.contact.envelope(), 5)
    (envelope,) = await other.dht.get(topic)
    newer = read_contact(envelope, NETWORK, T0)
    assert newer.contact.addresses == tuple(maker.address)
    assert newer.sequence > record.sequence


async def test_a_contact_is_renewed_at_half_of_its_life_and_not_before(nodes: list[Party]) -> None:
    maker, _, _ = nodes
    first = maker.contact.envelope()
    maker.clock.time += CONTACT_SECONDS // 2 - 1
    assert maker.contact.envelope() is first
    maker.clock.time += 1
    second = maker.contact.envelope()
    assert read_contact(second, NETWORK, maker.clock.now()).expires == maker.clock.now() + CONTACT_SECONDS


async def test_a_node_that_lost_its_counters_still_replaces_its_old_contact(tmp_path: Path) -> None:
    clock, chain = TestClock(), TwinChain()
    async with parties(tmp_path, "other", "third") as (other, third):
        old = Party("maker", tmp_path, clock, chain)
        await old.start(other, third)
        await old.publisher.placed(old.contact.envelope(), 5)
        await old.close()
        (tmp_path / "maker.db").unlink()  # only the mnemonic is left
        clock.time += 10
        other.clock.time += 10
        new = Party("maker", tmp_path, clock, chain)
        new.address[:] = [Address("127.0.0.1", 4_242)]
        await new.start(other, third)
        try:
            await new.publisher.placed(new.contact.envelope(), 5)
            (envelope,) = await third.dht.get(contact_topic(NETWORK, new.persona), quorum=3)
            assert read_contact(envelope, NETWORK, clock.now()).contact.addresses == tuple(new.address)
        finally:
            await new.close()


async def test_a_node_without_an_address_publishes_no_contact(tmp_path: Path) -> None:
    async with parties(tmp_path, "other", "third") as (other, third):
        silent = Party("maker", tmp_path, TestClock(), TwinChain())
        silent.address.clear()
        await silent.start(other, third)
        try:
            own = await silent.own.create(offer_of(silent.persona), DETAILS)
            await until(lambda: published(silent, own), "published")
            assert await other.dht.get(contact_topic(NETWORK, silent.persona)) == []
            assert silent.contact.hint() == ()
        finally:
            await silent.close()


async def test_an_announcement_reaches_the_others(nodes: list[Party]) -> None:
    arbiter, other, _ = nodes
    listed = await arbiter.announce()
    assert [e.raw for e in await other.dht.get(arbiters_topic(NETWORK))] == [listed.envelope.raw]


async def test_records_are_put_again_before_their_holders_could_have_lost_them(tmp_path: Path) -> None:
    """The interval is short here; a holder that lost everything has the record again without being asked."""
    async with parties(tmp_path, "maker", "other", "third") as (maker, other, _):
        await maker.publisher.close()
        again = Publisher(maker.dht, maker.clock, maker.publisher._rng, own=maker.own, interval=0.2)
        again.start()
        try:
            own = await maker.own.create(offer_of(maker.persona), DETAILS)
            await until(lambda: published(maker, own), "published")
            await until(lambda: other.dht.storage.total(MARKET) == 1, "stored")
            for slot in other.dht.storage.slots(MARKET):
                other.dht.storage._remove(MARKET, slot)
            await until(lambda: other.dht.storage.total(MARKET) == 1, "stored again")
        finally:
            await again.close()


async def test_an_expired_offer_is_noticed_and_not_put_again(nodes: list[Party]) -> None:
    maker, _, _ = nodes
    own = await maker.own.create(offer_of(maker.persona, expires=T0 + 60), DETAILS)
    await until(lambda: published(maker, own), "published")
    maker.clock.time += 60
    maker.publisher.kick()
    await until(lambda: (o := maker.own.get(own.offer_id)) is not None and o.state is OfferState.EXPIRED, "expired")
    assert [n.phase for n in maker.notices.after(0) if n.topic == "offer"] == ["open", "expired"]


async def test_a_wake_up_does_not_hide_the_cancellation_that_comes_with_it(nodes: list[Party]) -> None:
    maker, _, _ = nodes
    await maker.publisher.placed(maker.contact.envelope(), 5)
    for _ in range(3):
        await asyncio.sleep(0)  # it sleeps now
    maker.publisher.kick()
    async with asyncio.timeout(2):
        await maker.publisher.close()


async def test_closing_in_the_middle_of_a_put_ends_at_once_and_leaves_the_rest_to_do(nodes: list[Party]) -> None:
    maker, _, _ = nodes
    own = await maker.own.create(offer_of(maker.persona), DETAILS)
    await asyncio.sleep(0)  # the publisher has been woken, and is on its way
    async with asyncio.timeout(1):
        await maker.publisher.close()
    found = maker.own.get(own.offer_id)
    assert found is not None
    assert found.published in (-1, 0)
