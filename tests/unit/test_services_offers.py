"""Offers as the API gives them: a maker, a taker and arbiters on real DHT nodes; each refusal is one clear line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from escrow.wallet.base import InsufficientFunds
from p2pnode.api.schema import BadOffer, MethodDetails, OfferDraft, OfferEdit, OfferFilter, OfferView, TakeRequest
from p2pnode.api.services import AmbiguousId
from p2pnode.money import BadPrice
from p2pnode.offerbook import BadCursor
from p2pnode.ownoffers import OfferNotOpen, OfferTooLarge, ShorterLife
from p2pnode.services.choosing import NoArbiter
from p2pnode.services.offers import MAX_PER_MARKET, BadTake, OfferChanged, OfferClosed
from protocol import trade_events as ev
from protocol.contact import NodeContact
from protocol.errors import NotFound, P2PError
from protocol.identity import BadId, persona_text
from protocol.offer import ArbiterRef, OutOfRange
from protocol.trade_state import Completed
from protocol.types import EscrowType, Side
from protocol.wire import Kind
from tests.twins import TwinChain
from tests.unit.services_support import DETAILS, T0, Party, TestClock, advance, offer_ids, offer_of, parties, signed

DRAFT = OfferDraft(
    side="sell",
    amount_min_sats=100_000,
    amount_max_sats=1_000_000,
    currency="EUR",
    methods=(MethodDetails(method="sepa", details={"iban": "DE02120300000000202051", "holder": "M. Aker"}),),
    price="65000.00",
)
TAKE = TakeRequest(amount_sats=500_000, method="sepa", details={"iban": "FR7630006000011234567890189"})


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Party]]:
    """maker, taker, two arbiters that have announced themselves."""
    async with parties(tmp_path, "maker", "taker", "arbiter", "second") as made:
        await made[2].announce()
        await made[3].announce()
        made[0].fund(5_000_000)
        made[1].fund(5_000_000)
        yield made


def refused(error: BaseException) -> str:
    """The one line of an error."""
    assert isinstance(error, P2PError)
    assert "\n" not in error.detail
    assert 20 < len(error.detail) < 300
    return error.detail


# --- making ------------------------------------------------------------------------------------------------------


async def test_an_offer_is_made_published_and_found_by_another(nodes: list[Party]) -> None:
    maker, taker, arbiter, second = nodes
    made = await maker.offers.create(DRAFT)
    assert (made.state, made.mine, made.sequence, made.price, made.side) == ("open", True, 0, "65000.00", "sell")
    assert made.stored_on is not None
    assert made.stored_on >= 3
    assert set(made.arbiters) == {persona_text(arbiter.persona), persona_text(second.persona)}
    assert made.escrow_types == (2, 1)
    page = await taker.offers.find(OfferFilter(currency="EUR", side="sell"))
    (seen,) = page.offers
    assert (seen.id, seen.mine, seen.maker, page.next) == (made.id, False, persona_text(maker.persona), None)
    assert seen == replace(made, mine=False, stored_on=None)
    assert await taker.offers.show(made.id[:8]) == seen
    assert (await taker.offers.find(OfferFilter(currency="EUR", side="buy"))).offers == ()
    # The maker's own details are nowhere in what it published.
    entry = taker.book.locate(made.id, T0)[0].entry
    assert entry is not None
    assert b"DE02" not in entry.envelope.raw
    assert entry.offer.contacts == (NodeContact(maker.keyring.node.public, tuple(maker.address)),)


async def test_with_one_arbiter_there_is_no_backup_and_with_none_no_offer(tmp_path: Path) -> None:
    async with parties(tmp_path, "maker", "arbiter") as (maker, arbiter):
        with pytest.raises(NoArbiter) as raised:
            await maker.offers.create(DRAFT)
        assert "arbiter list" in refused(raised.value)
        await arbiter.announce()
        await asyncio.sleep(0)
        made = await maker.offers.create(DRAFT)
        assert (made.arbiters, made.escrow_types) == ((persona_text(arbiter.persona),), (1,))
        with pytest.raises(NoArbiter, match="needs two arbiters"):
            await maker.offers.create(replace(DRAFT, escrow_types=(2,)))


async def test_only_arbiters_that_serve_the_whole_offer_are_chosen(nodes: list[Party]) -> None:
    maker, _, arbiter, second = nodes
    await arbiter.announce(max_amount=999_999)
    maker.directory._lookups._answered.clear()
    made = await maker.offers.create(DRAFT)
    assert made.arbiters == (persona_text(second.persona),)
    await second.announce(methods=("zelle",))
    maker.directory._lookups._answered.clear()
    with pytest.raises(NoArbiter, match="1,000,000 sat in EUR by sepa"):
        await maker.offers.create(DRAFT)
    with pytest.raises(NoArbiter, match="does not serve"):
        await maker.offers.create(replace(DRAFT, arbiters=(persona_text(second.persona),)))


async def test_named_arbiters_are_taken_in_the_users_order(nodes: list[Party]) -> None:
    maker, taker, arbiter, second = nodes
    names = (persona_text(second.persona), persona_text(arbiter.persona))
    made = await maker.offers.create(replace(DRAFT, arbiters=names, escrow_types=(1, 2)))
    assert (made.arbiters, made.escrow_types) == (names, (1, 2))
    with pytest.raises(NoArbiter, match="not known as an arbiter"):
        await maker.offers.create(replace(DRAFT, arbiters=(persona_text(taker.persona),)))
    with pytest.raises(BadId):
        await maker.offers.create(replace(DRAFT, arbiters=("persona1" + "q" * 60,)))


async def test_an_arbiter_is_not_its_own_offers(nodes: list[Party]) -> None:
    _, _, arbiter, second = nodes
    made = await arbiter.offers.create(DRAFT)
    assert made.arbiters == (persona_text(second.persona),)
    with pytest.raises(NoArbiter):
        await arbiter.offers.create(replace(DRAFT, arbiters=(persona_text(arbiter.persona),)))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"price": None, "margin_ppm": 5_000}, BadOffer, "fixed price"),
        ({"margin_ppm": 5_000}, BadOffer, "exactly one"),
        ({"price": "65000.001"}, BadPrice, "2 decimals"),
        ({"price": "0"}, BadPrice, "out of range"),
        ({"amount_min_sats": 2_000_000}, BadOffer, "least amount"),
        ({"amount_min_sats": 1, "price": "1.00"}, BadOffer, "smallest unit"),
        ({"terms": "x" * 401}, BadOffer, "400 characters"),
        ({"methods": DRAFT.methods * 2}, BadOffer, "twice"),
        ({"methods": (MethodDetails(method="sepa", details={}),)}, BadOffer, "details for sepa"),
    ],
)
async def test_an_offer_that_can_not_be_made_says_why(
    nodes: list[Party], changes: dict[str, object], error: type[P2PError], says: str
) -> None:
    maker = nodes[0]
    with pytest.raises(error) as raised:
        await maker.offers.create(replace(DRAFT, **changes))
    assert says in refused(raised.value)
    assert maker.own.all() == []


async def test_an_offer_gives_up_its_contact_hint_before_it_is_too_large(nodes: list[Party]) -> None:
    maker = nodes[0]
    methods = tuple(MethodDetails(method=f"method-number-{n:02}", details={"a": "b"}) for n in range(16))
    draft = replace(DRAFT, methods=methods)
    made = await maker.offers.create(draft)
    own = maker.own.find(made.id)[0]
    assert own.offer.contacts
    room = Kind.OFFER.limit - len(own.envelope.raw) - 10
    full = await maker.offers.create(replace(draft, terms="x" * (room + 40)))
    assert maker.own.find(full.id)[0].offer.contacts == ()
    with pytest.raises(OfferTooLarge):
        await maker.offers.create(replace(draft, terms="x" * 400))
    edited = await maker.offers.edit(made.id, OfferEdit(terms="x" * (room + 40)))
    assert maker.own.find(edited.id)[0].offer.contacts == ()


async def test_a_margin_follows_the_market_where_there_is_one(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def prices(currency: str, feeds: str) -> int | None:
        asked.append((currency, feeds))
        return 6_000_000 if currency == "EUR" else None

    async with parties(tmp_path, "arbiter", "other") as (arbiter, _):
        await arbiter.announce()
        maker = Party("maker", tmp_path, TestClock(), TwinChain(), prices=prices)
        await maker.start(arbiter)
        try:
            draft = replace(DRAFT, price=None, margin_ppm=10_000, price_limit="60700.00")
            made = await maker.offers.create(draft)
            assert (made.price, made.margin_ppm, made.price_limit_minor_per_btc) == ("60700.00", 10_000, 6_070_000)
            edited = await maker.offers.edit(made.id, OfferEdit(margin_ppm=20_000))
            assert edited.price == "61200.00"
            assert asked[0] == ("EUR", "default")
            with pytest.raises(BadOffer, match="market price of USD"):
                await maker.offers.create(replace(draft, currency="USD"))
        finally:
            await maker.close()


async def test_one_maker_can_not_fill_a_market_beyond_what_the_network_keeps(nodes: list[Party]) -> None:
    maker = nodes[0]
    base = await maker.own.create(offer_of(maker.persona), DETAILS)
    row = "SELECT ?, sequence, raw, details, state, expires, created, updated FROM own_offers WHERE offer_id = ?"
    with maker.database.transaction() as db:
        for n in range(MAX_PER_MARKET - 1):
            # Copies: what counts is how many there are.
            db.execute(
                "INSERT INTO own_offers (offer_id, sequence, raw, details, state, expires, created, updated) " + row,
                (bytes([n]) * 32, base.offer_id),
            )
    with pytest.raises(BadOffer, match="64 offers"):
        await maker.offers.create(DRAFT)


# --- one's own ---------------------------------------------------------------------------------------------------


async def test_an_edit_is_seen_by_others_and_leaves_the_rest_as_it_was(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    edited = await maker.offers.edit(made.id[:10], OfferEdit(price="64000.00", terms="weekdays"))
    assert edited == replace(
        made, sequence=1, price="64000.00", price_minor_per_btc=6_400_000, terms="weekdays", stored_on=edited.stored_on
    )
    (seen,) = (await taker.offers.find(OfferFilter(currency="EUR"))).offers
    assert (seen.price, seen.sequence, seen.terms) == ("64000.00", 1, "weekdays")
    whole = OfferEdit(
        amount_min_sats=1_000,
        amount_max_sats=2_000_000,
        methods=(MethodDetails(method="pix", details={"key": "k"}),),
        payment_window_blocks=10,
        buyer_deposit_ppm=0,
        seller_deposit_ppm=1,
        arbiters=(persona_text(nodes[2].persona),),
        confirmations=3,
        min_completed_trades=4,
        lifetime_seconds=20 * 86_400,
    )
    changed = await maker.offers.edit(made.id, whole)
    assert (changed.amount_min_sats, changed.amount_max_sats, changed.methods) == (1_000, 2_000_000, ("pix",))
    assert (changed.payment_window_blocks, changed.buyer_deposit_ppm, changed.seller_deposit_ppm) == (10, 0, 1)
    assert (changed.arbiters, changed.escrow_types) == ((persona_text(nodes[2].persona),), (1,))
    assert (changed.confirmations, changed.min_completed_trades) == (3, 4)
    assert (changed.created, changed.expires) == (T0, T0 + 20 * 86_400)
    assert maker.own.details_of(bytes.fromhex(made.id), "pix") == (("key", "k"),)


async def test_an_edit_that_can_not_be_made_changes_nothing(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    for changes, error in (
        (OfferEdit(amount_max_sats=50_000), BadOffer),
        (OfferEdit(margin_ppm=1), BadOffer),
        (OfferEdit(lifetime_seconds=60), ShorterLife),
        (OfferEdit(amount_max_sats=200_000_000), NoArbiter),
    ):
        with pytest.raises(error) as raised:
            await maker.offers.edit(made.id, changes)
        refused(raised.value)
    with pytest.raises(NotFound):
        await taker.offers.edit(made.id, OfferEdit(terms="mine now"))
    assert await maker.offers.show(made.id) == made


async def test_an_edit_takes_the_newest_terms_of_arbiters_whose_old_ones_ended(nodes: list[Party]) -> None:
    maker, _, arbiter, second = nodes
    await arbiter.announce(lifetime=3_600)
    maker.directory._lookups._answered.clear()
    made = await maker.offers.create(DRAFT)
    old = {a.persona: a.announcement for a in maker.own.find(made.id)[0].offer.arbiters}
    advance(nodes, 3_500)
    newer = await arbiter.announce()
    maker.directory._lookups._answered.clear()
    await maker.offers.edit(made.id, OfferEdit(terms="a"))
    assert {a.persona: a.announcement for a in maker.own.find(made.id)[0].offer.arbiters} == old
    advance(nodes, 100)
    await maker.offers.edit(made.id, OfferEdit(terms="b"))
    assert {a.persona: a.announcement for a in maker.own.find(made.id)[0].offer.arbiters} == {
        arbiter.persona: newer.envelope.id,
        second.persona: old[second.persona],
    }


async def test_a_revoked_offer_is_gone_for_everybody(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    gone = await maker.offers.revoke(made.id)
    assert gone.state == "revoked"
    assert (await maker.offers.revoke(made.id)).state == "revoked"
    assert (await taker.offers.find(OfferFilter(currency="EUR"))).offers == ()
    assert (await maker.offers.find(OfferFilter(currency="EUR"))).offers == ()
    for ask in (taker.offers.show(made.id), taker.offers.take(made.id, TAKE)):
        with pytest.raises(OfferClosed, match="taken or withdrawn"):
            await ask
    with pytest.raises(OfferNotOpen):
        await maker.offers.edit(made.id, OfferEdit(terms="again"))
    assert (await maker.offers.show(made.id)).state == "revoked"


async def test_own_offers_are_listed_newest_first_page_by_page(nodes: list[Party]) -> None:
    maker = nodes[0]
    made = []
    for n in range(5):
        advance(nodes, n % 2)
        made.append(await maker.offers.create(replace(DRAFT, side="buy" if n == 3 else "sell")))
    await maker.offers.revoke(made[0].id)
    seen: list[OfferView] = []
    cursor = None
    while True:
        page = await maker.offers.find(OfferFilter(mine=True, limit=2, cursor=cursor))
        assert len(page.offers) <= 2
        seen += page.offers
        cursor = page.next
        if cursor is None:
            break
    assert sorted(o.id for o in seen) == sorted(o.id for o in made)
    assert [o.created for o in seen] == sorted((o.created for o in seen), reverse=True)
    assert {o.id: o.state for o in seen}[made[0].id] == "revoked"
    assert [o.id for o in (await maker.offers.find(OfferFilter(mine=True, side="buy"))).offers] == [made[3].id]
    assert (await maker.offers.find(OfferFilter(mine=True, amount_sats=1))).offers == ()
    with pytest.raises(BadCursor):
        await maker.offers.find(OfferFilter(mine=True, cursor="nonsense"))


# --- finding -----------------------------------------------------------------------------------------------------


async def test_all_markets_are_looked_up_when_none_is_named(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    assert [o.id for o in (await taker.offers.find(OfferFilter())).offers] == [made.id]
    assert [o.mine for o in (await maker.offers.find(OfferFilter())).offers] == [True]


async def test_a_dht_that_does_not_answer_is_not_waited_for(nodes: list[Party]) -> None:
    maker, taker, *others = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    for party in (maker, *others):
        await party.dht.close()
    taker.market._wait = 0.05
    loop = asyncio.get_running_loop()
    began = loop.time()
    page = await taker.offers.find(OfferFilter(currency="EUR"))
    assert loop.time() - began < 0.5
    assert [o.id for o in page.offers] == [made.id]


async def test_an_id_that_fits_two_offers_is_refused(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    by_start = {i[:4]: i for i in offer_ids(maker.persona, 100_000)}
    twins = next((by_start[i[:4]], i) for i in offer_ids(taker.persona, 2_000_000) if i[:4] in by_start)
    for who, offer_id in zip((maker, taker), twins, strict=True):
        await who.own.create(offer_of(who.persona, offer_id=offer_id), DETAILS)
    await taker.market.refresh(("EUR",), (Side.SELL,))
    with pytest.raises(AmbiguousId, match="2 offers"):
        await taker.offers.show(twins[0].hex()[:8])
    assert (await taker.offers.show(twins[0].hex())).id == twins[0].hex()
    with pytest.raises(NotFound):
        await taker.offers.show("00000000")


async def test_an_expired_offer_says_so(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(replace(DRAFT, lifetime_seconds=60))
    await taker.offers.find(OfferFilter(currency="EUR"))
    advance(nodes, 60)
    with pytest.raises(OfferClosed, match="expired"):
        await taker.offers.take(made.id, TAKE)


# --- taking ------------------------------------------------------------------------------------------------------


async def test_a_take_is_recorded_with_the_makers_first_choices(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    view = await taker.offers.take(
        made.id[:8], replace(TAKE, sequence=0, price="65000.00", fee_rate_sats_per_kvb=3_000)
    )
    assert (view.phase, view.open, view.side, view.seat, view.peer) == ("taking", True, "buy", "taker", made.maker)
    assert (view.amount_sats, view.price, view.volume, view.method) == (500_000, "65000.00", "325.00", "sepa")
    assert (view.arbiter, view.backup, view.escrow.type) == (*made.arbiters, 2)
    assert (view.buyer_deposit_sats, view.seller_deposit_sats) == (75_000, 75_000)
    assert (view.own_details, view.peer_details) == (TAKE.details, {})
    assert (view.messages_sent, view.unacknowledged, view.actions) == (1, 1, ("cancel",))
    (stored,) = taker.trades.all()
    assert stored.state.take.bargain.fees.funding == 3_000
    assert stored.state.offer.offer_id.hex() == made.id


async def test_an_offer_that_we_are_taking_or_trade_on_is_neither_listed_nor_taken_twice(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    other = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))

    async def listed() -> set[str]:
        return {o.id for o in (await taker.offers.find(OfferFilter(currency="EUR"))).offers}

    first = asyncio.create_task(taker.offers.take(made.id, TAKE))
    await asyncio.sleep(0)
    with pytest.raises(BadTake, match="already"):
        await taker.offers.take(made.id, TAKE)
    assert await listed() == {other.id}
    trade = await first
    assert await listed() == {other.id}
    page = await taker.offers.find(OfferFilter(currency="EUR", limit=1))
    assert [o.id for o in page.offers] == [other.id]
    with pytest.raises(BadTake, match="already"):
        await taker.offers.take(made.id, TAKE)
    taker.engine.apply(bytes.fromhex(trade.id), ev.Cancel("no"))
    assert await listed() == {made.id, other.id}


async def test_the_takers_wishes_are_followed_or_refused(nodes: list[Party]) -> None:
    maker, taker, arbiter, second = nodes
    a, b = persona_text(arbiter.persona), persona_text(second.persona)
    made = await maker.offers.create(replace(DRAFT, arbiters=(a, b)))
    await taker.offers.find(OfferFilter(currency="EUR"))
    for wish, got in (
        ({"arbiter": b}, (b, a, 2)),
        ({"backup": a}, (b, a, 2)),
        ({"arbiter": b, "backup": a}, (b, a, 2)),
        ({"escrow_type": 1}, (a, None, 1)),
        ({"escrow_type": 1, "arbiter": b}, (b, None, 1)),
        ({}, (a, b, 2)),
    ):
        taker.fund(1_000_000)
        view = await taker.offers.take(made.id, replace(TAKE, **wish))
        assert (view.arbiter, view.backup, view.escrow.type) == got
        taker.engine.apply(bytes.fromhex(view.id), ev.Cancel("another wish"))
    before = len(taker.trades.all())
    for wish, error, says in (
        ({"arbiter": persona_text(maker.persona)}, NoArbiter, "does not accept it"),
        ({"arbiter": a, "backup": a}, BadTake, "two"),
        ({"escrow_type": 1, "backup": b}, NoArbiter, "no backup"),
    ):
        with pytest.raises(error) as raised:
            await taker.offers.take(made.id, replace(TAKE, **wish))
        assert says in refused(raised.value)
    assert len(taker.trades.all()) == before


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"amount_sats": None}, BadTake, "100,000 to 1,000,000 sat"),
        ({"amount_sats": 99_999}, OutOfRange, "100,000 to 1,000,000 sat"),
        ({"amount_sats": 1_000_001}, OutOfRange, "range"),
        ({"method": "zelle"}, BadTake, "takes sepa"),
        ({"details": {}}, BadTake, "details for sepa"),
        ({"sequence": 1}, OfferChanged, "look again"),
        ({"price": "64999.99"}, OfferChanged, "64999.99"),
        ({"price": "65000.001"}, BadPrice, "decimals"),
        ({"arbiter": "persona1qqq"}, BadId, "id"),
    ],
)
async def test_a_take_that_does_not_fit_the_offer_is_refused_and_reserves_nothing(
    nodes: list[Party], changes: dict[str, object], error: type[P2PError], says: str
) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    with pytest.raises(error) as raised:
        await taker.offers.take(made.id, replace(TAKE, **changes))
    assert says in raised.value.detail
    assert taker.trades.all() == []
    assert taker.held == {}


async def test_the_amount_may_be_left_out_when_there_is_only_one(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(replace(DRAFT, amount_max_sats=100_000))
    await taker.offers.find(OfferFilter(currency="EUR"))
    assert (await taker.offers.take(made.id, replace(TAKE, amount_sats=None))).amount_sats == 100_000


async def test_an_edit_that_the_taker_has_not_seen_is_caught_by_its_guard(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    await maker.offers.edit(made.id, OfferEdit(price="99000.00"))
    for guard in ({"sequence": made.sequence}, {"price": made.price}):
        with pytest.raises(OfferChanged):
            await taker.offers.take(made.id, replace(TAKE, **guard))
    assert taker.trades.all() == []


async def test_nobody_takes_an_own_offer(nodes: list[Party]) -> None:
    maker = nodes[0]
    made = await maker.offers.create(DRAFT)
    with pytest.raises(BadTake, match="your own"):
        await maker.offers.take(made.id, TAKE)
    # Restored from the mnemonic alone: the offer is in the book, and nothing is known of it here.
    maker.database.connection.execute("DELETE FROM own_offers")
    with pytest.raises(BadTake, match="your own"):
        await maker.offers.take(made.id, TAKE)
    assert (await maker.offers.show(made.id)).mine


async def test_an_arbiter_of_the_offer_who_takes_it_does_not_judge_itself(nodes: list[Party]) -> None:
    maker, _, arbiter, second = nodes
    made = await maker.offers.create(DRAFT)
    await arbiter.offers.find(OfferFilter(currency="EUR"))
    arbiter.fund(5_000_000)
    view = await arbiter.offers.take(made.id, TAKE)
    assert (view.arbiter, view.backup, view.escrow.type) == (persona_text(second.persona), None, 1)
    arbiter.engine.apply(bytes.fromhex(view.id), ev.Cancel("no"))
    with pytest.raises(NoArbiter, match="party of the trade"):
        await arbiter.offers.take(made.id, replace(TAKE, arbiter=persona_text(arbiter.persona)))


async def test_an_offer_whose_arbiters_are_gone_is_not_taken(nodes: list[Party]) -> None:
    maker, taker, arbiter, second = nodes
    refs = tuple(ArbiterRef(p.persona, b"?" * 32) for p in (arbiter, second))
    envelope, offer = signed(offer_of(maker.persona, arbiters=refs), maker.keyring)
    taker.book.add(envelope, offer, T0)
    with pytest.raises(NoArbiter, match="announcement has expired, was replaced, or is not known here"):
        await taker.offers.take(offer.offer_id.hex(), TAKE)


async def test_an_escrow_that_needs_a_backup_is_not_begun_with_one_arbiter(nodes: list[Party]) -> None:
    maker, taker, arbiter, second = nodes
    made = await maker.offers.create(replace(DRAFT, escrow_types=(2,)))
    await taker.offers.find(OfferFilter(currency="EUR"))
    (ref,) = (r for r in maker.own.find(made.id)[0].offer.arbiters if r.persona == second.persona)
    await taker.directory.refresh()
    taker.database.connection.execute("UPDATE announcements SET expires = ? WHERE id = ?", (T0, ref.announcement))
    with pytest.raises(NoArbiter, match="another as its backup"):
        await taker.offers.take(made.id, TAKE)
    assert arbiter.persona != second.persona


async def test_an_announcement_damaged_on_the_disk_is_noticed(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    await taker.directory.refresh()
    for row_id, raw in taker.database.connection.execute("SELECT id, raw FROM announcements").fetchall():
        forged = raw[:-1] + bytes([raw[-1] ^ 1])
        taker.database.connection.execute("UPDATE announcements SET raw = ? WHERE id = ?", (forged, row_id))
    with pytest.raises(P2PError, match="not signed"):
        await taker.offers.take(made.id, TAKE)
    assert taker.trades.all() == []


async def test_an_offer_damaged_on_the_disk_is_noticed(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    await maker.dht.close()
    ((raw,),) = taker.database.connection.execute("SELECT raw FROM book").fetchall()
    taker.database.connection.execute("UPDATE book SET raw = ?", (raw[:-1] + bytes([raw[-1] ^ 1]),))
    with pytest.raises(P2PError, match="not signed"):
        await taker.offers.take(made.id, TAKE)
    assert taker.trades.all() == []


async def test_a_maker_who_asks_for_experience_gets_it(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(replace(DRAFT, min_completed_trades=1))
    await taker.offers.find(OfferFilter(currency="EUR"))
    with pytest.raises(BadTake, match="1 completed trades that its node can prove, and you can show 0"):
        await taker.offers.take(made.id, TAKE)
    other = await maker.offers.create(DRAFT)
    await taker.offers.find(OfferFilter(currency="EUR"))
    await taker.offers.take(other.id, TAKE)
    (stored,) = taker.trades.all()
    taker.trades.save(replace(stored.state, phase=Completed()), stored.heads, T0)
    taker.fund(5_000_000)
    assert (await taker.offers.take(made.id, TAKE)).phase == "taking"


async def test_a_take_without_coins_leaves_no_trade(nodes: list[Party]) -> None:
    maker, _, arbiter, _ = nodes
    made = await maker.offers.create(DRAFT)
    await arbiter.offers.find(OfferFilter(currency="EUR"))
    with pytest.raises(InsufficientFunds):
        await arbiter.offers.take(made.id, TAKE)
    assert arbiter.trades.all() == []


async def test_every_answer_fits_its_schema(nodes: list[Party]) -> None:
    maker, taker, *_ = nodes
    made = await maker.offers.create(DRAFT)
    page = await taker.offers.find(OfferFilter(currency="EUR"))
    view = await taker.offers.take(made.id, TAKE)
    for answer in (made, page, view):
        assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(answer)), type(answer), strict=True) == answer
    assert EscrowType(view.escrow.type) in EscrowType
