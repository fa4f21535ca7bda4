"""Own offers: what may be taken, what the network is told, and that nothing of it is lost between two commits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from dht.records import Registry
from dht.topics import offers_topic
from p2pnode.database import Database
from p2pnode.engine import Engine
from p2pnode.notices import Notices
from p2pnode.offerbook import BookFilter, OfferBook
from p2pnode.ownoffers import OfferNotOpen, OfferState, OfferTooLarge, OwnOffer, OwnOffers, ShorterLife
from p2pnode.records import record_kinds
from p2pnode.tradestore import TradeStore
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import Malformed, NotFound
from protocol.messages import Take
from protocol.offer import Offer, reference
from protocol.types import Side
from protocol.wire import Kind
from tests.machines import duel
from tests.unit.services_support import DETAILS, NETWORK, T0, TestClock, keyring_of, offer_id_of, offer_of

KEYS = keyring_of("maker")
CONTACT = KEYS.persona.seal(Kind.CONTACT, NETWORK, b"no dispute needs it here")


class Shop:
    """The parts around OwnOffers, made again from the same file by `again`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = TestClock()
        self.told = 0
        self.open()

    def open(self) -> None:
        self.database = Database(self.path)
        self.book = OfferBook(self.database, NETWORK)
        self.notices = Notices(self.database)
        self.trades = TradeStore(self.database)
        self.own = OwnOffers(self.database, self.book, self.notices, KEYS, NETWORK, self.clock)
        self.engine = Engine(
            self.trades, self.notices, KEYS, self.clock, lambda: 100, network=NETWORK, contact=lambda: CONTACT
        )
        self.own.subscribe(self._tell)

    def _tell(self) -> None:
        self.told += 1

    def again(self) -> None:
        self.database.close()
        self.open()

    async def create(self, **changes: object) -> OwnOffer:
        return await self.own.create(offer_of(KEYS.persona.public, **changes), DETAILS)

    def states(self) -> list[str | None]:
        return [n.phase for n in self.notices.after(0) if n.topic == "offer"]

    def listed(self) -> list[int]:
        return [e.offer.sequence for e in self.book.search(BookFilter(), self.clock.now()).entries]

    def take(self, own: OwnOffer, tag: bytes = b"t") -> bytes:
        """What intake does with a valid take."""
        trade_id = tag * 32
        take = take_of(own.offer, tag)
        with self.database.transaction():
            self.own.mark_taken(own.offer_id, trade_id, self.clock.now())
            self.engine.apply(trade_id, ev.TakeReceived(NETWORK, trade_id, own.offer, take))
        return trade_id


def take_of(offer: Offer, tag: bytes) -> Take:
    """A take whose cryptography nobody looks at here."""
    play = duel.Duel(Side.SELL)
    take = play.take.take
    return replace(
        take, bargain=replace(take.bargain, amount=offer.amount_min), party=replace(take.party, persona=tag * 32)
    )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "node.db")
    yield made
    made.database.close()


def is_valid_record(shop: Shop, own: OwnOffer) -> bool:
    """Whether any node of the DHT would store what stands for the offer now; True for a tombstone."""
    topic = offers_topic(NETWORK, own.offer.currency, own.offer.side)
    record = Registry(NETWORK, record_kinds(NETWORK)).check(shop.own.record(own).raw, topic, shop.clock.now())
    assert record.meta.sequence == own.sequence
    return record.meta.tombstone


async def test_a_new_offer_is_a_record_that_the_network_takes(shop: Shop) -> None:
    own = await shop.create()
    assert (own.state, own.sequence, own.published, own.stored_on) == (OfferState.OPEN, 0, -1, None)
    assert not is_valid_record(shop, own)
    assert shop.listed() == [0]
    assert shop.states() == ["open"]
    assert shop.told == 1
    assert shop.own.details_of(own.offer_id, "sepa") == DETAILS["sepa"]
    with pytest.raises(NotFound):
        shop.own.details_of(own.offer_id, "cash")


async def test_offers_outlive_a_restart(shop: Shop) -> None:
    own = await shop.create()
    shop.own.mark_published(own.offer_id, 0, 5)
    shop.again()
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert (found.envelope.raw, found.details, found.published, found.stored_on) == (own.envelope.raw, DETAILS, 0, 5)


async def test_only_the_very_version_that_is_open_can_be_taken(shop: Shop) -> None:
    own = await shop.create()
    right = reference(own.envelope, own.offer)
    assert shop.own.lookup(right) == own
    for field, value in (("envelope", b"x" * 32), ("sequence", 1), ("maker", b"x" * 32), ("offer_id", b"x" * 32)):
        assert shop.own.lookup(replace(right, **{field: value})) is None
    edited = await shop.own.edit(own.offer_id, lambda offer: replace(offer, amount_min=200_000))
    assert shop.own.lookup(right) is None
    assert shop.own.open_offer(reference(edited.envelope, edited.offer), T0) == edited.offer
    assert shop.own.open_offer(reference(edited.envelope, edited.offer), edited.offer.expires) is None


async def test_an_edit_replaces_the_record_and_keeps_details_that_it_does_not_give(shop: Shop) -> None:
    own = await shop.create()
    edited = await shop.own.edit(own.offer_id, lambda offer: replace(offer, terms="quick"))
    assert (edited.sequence, edited.offer.terms, edited.details) == (1, "quick", DETAILS)
    assert not is_valid_record(shop, edited)
    assert shop.listed() == [1]
    details = {"sepa": (("iban", "other"),)}
    assert (await shop.own.edit(own.offer_id, lambda offer: offer, details)).details == details
    assert shop.states() == ["open", "open", "open"]


async def test_an_edit_never_ends_an_offer_sooner(shop: Shop) -> None:
    own = await shop.create()
    with pytest.raises(ShorterLife):
        await shop.own.edit(own.offer_id, lambda offer: replace(offer, expires=offer.expires - 1))


async def test_an_offer_taken_while_its_edit_is_signed_stays_taken(shop: Shop) -> None:
    own = await shop.create()
    edit = asyncio.create_task(shop.own.edit(own.offer_id, lambda offer: replace(offer, terms="late")))
    await asyncio.sleep(0)  # the edit has begun and finds its work in a thread
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    with pytest.raises(OfferNotOpen):
        await edit
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert (found.state, found.sequence, found.offer.terms) == (OfferState.TAKEN, 1, "")
    assert is_valid_record(shop, found)


async def test_of_two_edits_at_once_one_is_told(shop: Shop) -> None:
    own = await shop.create()
    results = await asyncio.gather(
        shop.own.edit(own.offer_id, lambda offer: replace(offer, terms="a")),
        shop.own.edit(own.offer_id, lambda offer: replace(offer, terms="b")),
        return_exceptions=True,
    )
    assert sorted(type(r).__name__ for r in results) == ["OfferNotOpen", "OwnOffer"]
    assert shop.listed() == [1]


async def test_offers_that_break_a_rule_are_not_kept(shop: Shop) -> None:
    arbiters = offer_of(KEYS.persona.public).arbiters
    for changes in (
        {"amount_min": 2_000_000},
        {"arbiters": arbiters[:1]},
        {"methods": ("sepa", "sepa")},
        {"expires": T0 + 31 * 86_400},
        {"confirmations": 0},
        {"offer_id": offer_id_of(b"another maker".ljust(32))},
    ):
        with pytest.raises(Malformed):
            await shop.create(**changes)
    with pytest.raises(OfferTooLarge):
        await shop.create(terms="x" * 400, methods=tuple(f"method-number-{n}" for n in range(16)))
    with pytest.raises(NotFound):
        await shop.own.create(offer_of(b"x" * 32), DETAILS)
    assert shop.own.all() == []
    assert shop.states() == []


async def test_taking_withdraws_the_offer_in_the_same_commit(shop: Shop) -> None:
    own = await shop.create()
    with pytest.raises(OfferNotOpen), shop.database.transaction():  # noqa: PT012  (the commit is what is tested)
        shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
        shop.own.mark_taken(own.offer_id, b"t" * 32, T0)  # what fails in a commit undoes all of it
    assert shop.own.lookup(reference(own.envelope, own.offer)) is not None
    assert shop.listed() == [0]
    shop.take(own)
    taken = shop.own.get(own.offer_id)
    assert taken is not None
    assert taken.state is OfferState.TAKEN
    assert is_valid_record(shop, taken)
    assert shop.listed() == []
    assert shop.own.lookup(reference(own.envelope, own.offer)) is None
    with pytest.raises(OfferNotOpen):
        shop.own.mark_taken(own.offer_id, b"u" * 32, T0)
    (notice,) = [n for n in shop.notices.after(0) if n.phase == "taken"]
    assert (notice.offer_id, notice.trade_id) == (own.offer_id, b"t" * 32)


async def test_what_is_published_is_behind_after_every_change(shop: Shop) -> None:
    own = await shop.create()
    for change in (
        lambda: shop.own.mark_taken(own.offer_id, b"t" * 32, T0),
        lambda: shop.own.reopen(own.offer_id, T0),
        lambda: shop.own.revoke(own.offer_id, T0),
    ):
        before = shop.own.get(own.offer_id)
        assert before is not None
        shop.own.mark_published(own.offer_id, before.sequence, 3)
        change()
        after = shop.own.get(own.offer_id)
        assert after is not None
        assert after.published < after.sequence


async def test_a_late_acknowledgement_of_an_old_version_does_not_count(shop: Shop) -> None:
    own = await shop.create()
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    shop.own.mark_published(own.offer_id, 0, 7)
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert (found.published, found.sequence) == (-1, 1)


async def test_a_reopened_offer_is_takeable_only_under_its_new_signature(shop: Shop) -> None:
    own = await shop.create()
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    assert shop.own.reopen(own.offer_id, T0)
    assert not shop.own.reopen(own.offer_id, T0)
    waiting = shop.own.get(own.offer_id)
    assert waiting is not None
    assert waiting.unsigned
    assert (waiting.sequence, waiting.offer.sequence) == (2, 0)
    assert shop.own.lookup(reference(own.envelope, own.offer)) is None
    assert shop.listed() == []
    shop.again()  # a crash before the follow-up
    renewed = await shop.own.renew(own.offer_id)
    assert renewed is not None
    assert (renewed.sequence, renewed.offer.sequence, renewed.unsigned) == (2, 2, False)
    assert not is_valid_record(shop, renewed)
    assert shop.own.lookup(reference(renewed.envelope, renewed.offer)) is not None
    assert shop.listed() == [2]
    assert await shop.own.renew(own.offer_id) is None
    assert shop.states() == ["open", "taken", "open"]


async def test_renewing_gives_way_to_what_happened_meanwhile(shop: Shop) -> None:
    own = await shop.create()
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    shop.own.reopen(own.offer_id, T0)
    renewal = asyncio.create_task(shop.own.renew(own.offer_id))
    await asyncio.sleep(0)
    shop.own.revoke(own.offer_id, T0)
    assert await renewal is None
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.REVOKED
    assert shop.listed() == []


async def test_an_offer_whose_time_is_over_does_not_reopen(shop: Shop) -> None:
    own = await shop.create()
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    assert not shop.own.reopen(own.offer_id, own.offer.expires)
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.EXPIRED


async def test_a_revoked_offer_is_gone_for_good(shop: Shop) -> None:
    own = await shop.create()
    revoked = shop.own.revoke(own.offer_id, T0)
    assert revoked.state is OfferState.REVOKED
    assert is_valid_record(shop, revoked)
    assert shop.own.revoke(own.offer_id, T0) == revoked
    with pytest.raises(OfferNotOpen):
        await shop.own.edit(own.offer_id, lambda offer: offer)
    with pytest.raises(NotFound):
        shop.own.revoke(b"x" * 32, T0)
    assert shop.states() == ["open", "revoked"]


async def test_a_taken_offer_that_is_revoked_does_not_reopen(shop: Shop) -> None:
    own = await shop.create()
    trade_id = shop.take(own)
    shop.engine.subscribe(shop.own.follow)
    shop.own.revoke(own.offer_id, T0)
    shop.engine.apply(trade_id, ev.Cancel("no"))
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.REVOKED


async def test_offers_expire_once_each(shop: Shop) -> None:
    first = await shop.create()
    second = await shop.create(offer_id=offer_id_of(KEYS.persona.public, b"2"), expires=T0 + 8 * 86_400)
    assert shop.own.next_expiry() == first.offer.expires
    assert shop.own.expire(first.offer.expires - 1) == 0
    assert shop.own.expire(first.offer.expires) == 1
    assert shop.own.expire(first.offer.expires) == 0
    assert [o.state for o in shop.own.all() if o.offer_id == first.offer_id] == [OfferState.EXPIRED]
    assert shop.states() == ["open", "open", "expired"]
    assert shop.own.count_open() == 1
    assert [o.offer_id for o in shop.own.living(first.offer.expires)] == [second.offer_id]


async def test_a_trade_that_ends_unfunded_frees_the_offer_at_once(shop: Shop) -> None:
    own = await shop.create()
    shop.engine.subscribe(shop.own.follow)
    trade_id = shop.take(own)
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.TAKEN
    shop.engine.apply(trade_id, ev.Cancel("changed my mind"))
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert (found.state, found.unsigned) == (OfferState.OPEN, True)


async def test_a_crash_before_the_listener_ran_still_frees_the_offer(shop: Shop) -> None:
    own = await shop.create()
    trade_id = shop.take(own)
    shop.engine.apply(trade_id, ev.Cancel("changed my mind"))  # nobody listens: the process died right after
    shop.again()
    shop.own.reconcile()
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.OPEN
    shop.own.reconcile()
    assert shop.states() == ["open", "taken", "open"]


@pytest.mark.parametrize("phase", [st.Accepted(), st.Funded(), st.Completed(), st.Anomalous(), st.Reclaiming()])
async def test_a_trade_that_lives_or_was_paid_out_keeps_its_offer(shop: Shop, phase: st.AnyPhase) -> None:
    own = await shop.create()
    trade_id = shop.take(own)
    stored = shop.trades.get(trade_id)
    assert stored is not None
    shop.trades.save(replace(stored.state, phase=phase), stored.heads, T0)
    shop.own.reconcile()
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.TAKEN


async def test_a_trade_that_comes_back_to_life_takes_its_offer_again(shop: Shop) -> None:
    own = await shop.create()
    shop.engine.subscribe(shop.own.follow)
    trade_id = shop.take(own)
    shop.engine.apply(trade_id, ev.Cancel("no answer"))
    shop.engine.apply(trade_id, ev.FundingSeen())  # the seller had broadcast it after all
    found = shop.own.get(own.offer_id)
    assert found is not None
    assert found.state is OfferState.TAKEN
    assert await shop.own.renew(own.offer_id) is None


async def test_a_tombstone_is_the_same_bytes_each_time(shop: Shop) -> None:
    own = await shop.create()
    revoked = shop.own.revoke(own.offer_id, T0)
    assert shop.own.record(revoked).raw == shop.own.record(revoked).raw
    assert shop.own.record(revoked).kind == Kind.OFFER_REVOCATION


async def test_announcements_are_referenced_while_their_offer_may_trade(shop: Shop) -> None:
    own = await shop.create()
    assert shop.own.announcement_ids() == {b"A" * 32, b"B" * 32}
    shop.own.mark_taken(own.offer_id, b"t" * 32, T0)
    assert shop.own.announcement_ids() == {b"A" * 32, b"B" * 32}
    shop.own.revoke(own.offer_id, T0)
    assert shop.own.announcement_ids() == set()
