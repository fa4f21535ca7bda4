"""One's own offers and the book: made, found, shown, edited, withdrawn, taken."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from escrow.address import address_of, script_of
from escrow.errors import UnsupportedScript
from escrow.sizes import check_payee
from p2pnode.api.schema import (
    BadOffer,
    OfferDraft,
    OfferEdit,
    OfferFilter,
    OfferPage,
    OfferView,
    TakeRequest,
    TradeView,
)
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.clock import Clock
from p2pnode.money import parse_minor
from p2pnode.offerbook import BadCursor, BookEntry, BookFilter, OfferBook, Standing
from p2pnode.ownoffers import OfferState, OfferTooLarge, OwnOffer, OwnOffers
from p2pnode.prices import Prices
from p2pnode.publisher import OwnContact, Publisher
from p2pnode.services import drafts
from p2pnode.services.choosing import (
    Chosen,
    Need,
    TakeWishes,
    choose_for_take,
    escrow_types,
    kept_arbiters,
    known_arbiters,
    named_arbiters,
)
from p2pnode.services.market import Markets
from p2pnode.services.views import SIDES, OfferViews, TradeViews, only
from p2pnode.taking import ArbiterChoice
from p2pnode.tradestore import TradeStore
from protocol import trade_state as st
from protocol.errors import Malformed, NotFound, UserError
from protocol.identity import SigningKey, parse_persona
from protocol.messages import Details
from protocol.offer import SALT_BYTES, ArbiterRef, MarketPrice, Offer, OutOfRange, volume
from protocol.types import EscrowType, Network, Side
from protocol.wire import Envelope

CURRENCIES: Final = ("EUR", "USD", "GBP", "CHF", "JPY", "CAD", "AUD", "BRL")
"""Markets that are looked up when somebody asks for all: the DHT can't list which there are."""
MAX_MARKETS: Final = 16
MAX_PER_MARKET: Final = 64
"""Offers and tombstones of one maker that the DHT keeps in one market (`dht.records.RecordKind`)."""
PLACING_SECONDS: Final = 5.0
"""How long an answer waits for the DHT to take a record; the publisher goes on after it."""
TAKE_REFRESH_SECONDS: Final = 1.0
"""How long a take waits to hear whether the offer has changed."""
FRESH_ARBITERS_SECONDS: Final = 1.0
"""Age at which the directory is looked up again before an offer or a take binds itself to arbiters."""

WALLET: Final = "wallet"
"""What stands for the node's own wallet in the place of a payout address."""

_OWN_CURSOR: Final = re.compile(r"([0-9]{1,13})\.([0-9a-f]{64})")


class OfferClosed(NotFound):
    """The offer is no longer open: it was taken, withdrawn, or its time is over. Look for another."""

    code = 3045


class OfferChanged(UserError):
    """The offer has changed since you looked at it: look again."""

    code = 3046


class BadTake(UserError):
    """The offer can't be taken like this."""

    code = 3047


class BadPayee(UserError):
    """Escrows pay to native segwit addresses (bc1q..., bc1p...) only: give one of those, or leave it to the wallet."""

    code = 3049


class Taker(Protocol):
    """What begins a trade (`p2pnode.taking`)."""

    async def take(  # noqa: PLR0913  (a take has these parts)
        self,
        envelope: Envelope,
        offer: Offer,
        *,
        amount: int,
        price: int,
        method: str,
        details: Details,
        arbiter: ArbiterChoice,
        backup: ArbiterChoice | None,
        escrow_type: EscrowType,
        fee_rate: int | None = None,
        payout: bytes | None = None,
    ) -> bytes:
        """Record the take of a verified offer and begin; returns the trade's id."""
        ...


class Gate(Protocol):
    """Whom the user trades with (`p2pnode.reputation.gate`)."""

    def hides(self, persona: bytes) -> bool:
        """Whether offers of this persona are not to be shown."""
        ...

    async def consent(self, maker: bytes, amount: int) -> None:
        """Whether the user's own rules allow a take. Raises a UserError."""
        ...


class _Open:
    """Without lists and limits everybody is welcome."""

    def hides(self, persona: bytes) -> bool:  # noqa: ARG002  (nobody is hidden)
        return False

    async def consent(self, maker: bytes, amount: int) -> None:  # noqa: ARG002  (nobody is refused)
        return


async def _at_once(_: Iterable[str]) -> None:
    """Whatever prices there are, are there."""


class OfferService:
    """`api.services.Offers`."""

    def __init__(  # noqa: PLR0913, PLR0917  (offers touch most of a node)
        self,
        own: OwnOffers,
        book: OfferBook,
        market: Markets,
        directory: ArbiterDirectory,
        publisher: Publisher,
        taker: Taker,
        trade_views: TradeViews,
        trades: TradeStore,
        contact: OwnContact,
        persona: SigningKey,
        network: Network,
        clock: Clock,
        *,
        prices: Prices | None = None,
        prices_ready: Callable[[Iterable[str]], Awaitable[None]] = _at_once,
        currencies: Sequence[str] = CURRENCIES,
        gate: Gate | None = None,
        shown_trades: Callable[[], int] | None = None,
    ) -> None:
        """`prices` gives market prices, once `prices_ready` has returned.

        `currencies` are looked up when somebody asks for all markets. `shown_trades` counts the completed trades of
        ours that a maker's node can prove; None: all that we know of.
        """
        self._gate = gate or _Open()
        self._shown_trades = shown_trades
        self._own = own
        self._book = book
        self._market = market
        self._directory = directory
        self._publisher = publisher
        self._taker = taker
        self._trade_views = trade_views
        self._trades = trades
        self._contact = contact
        self._persona = persona.public
        self._network = network
        self._clock = clock
        self._currencies = tuple(currencies)
        self._views = OfferViews(prices, self._payout_address)
        self._prices_ready = prices_ready
        self._taking: set[bytes] = set()
        """Offers whose take is being prepared."""

    # --- one's own ----------------------------------------------------------------------------------------------

    async def create(self, draft: OfferDraft) -> OfferView:
        """Sign and publish; returns once the record is in the store and was handed to the DHT.

        Raises BadOffer, BadPrice, BadId, NoArbiter, OfferTooLarge.
        """
        methods = drafts.method_names(draft.methods)
        details = drafts.all_details(draft.methods)
        payout = self._payee(draft.payout_address)
        side = SIDES[draft.side]
        self._check_room(draft.currency, side)
        need = Need(draft.currency, methods, draft.amount_max_sats, self._persona)
        arbiters = await self._arbiters([parse_persona(text) for text in draft.arbiters], need)
        around = drafts.Surroundings(
            arbiters, escrow_types(draft.escrow_types, len(arbiters)), self._contact.hint(), self._clock.now()
        )
        offer = drafts.new_offer(draft, self._persona, self._clock.random(SALT_BYTES), around)
        await self._priced([offer])
        drafts.check(offer, self._views.price(offer))
        # Before the offer can be taken.
        self._own.set_payout(offer.offer_id, payout)
        try:
            own = await self._create(offer, details)
        except Malformed as e:
            raise BadOffer(e.detail) from e
        return await self._placed(own)

    async def edit(self, offer: str, changes: OfferEdit) -> OfferView:
        """Publish the next version of an own offer.

        Raises NotFound, OfferNotOpen, ShorterLife, and what `create` raises.
        """
        own = self._own_offer(offer)
        present = own.offer
        payout = self._payee(changes.payout_address)
        methods = present.methods if changes.methods is None else drafts.method_names(changes.methods)
        details = None if changes.methods is None else drafts.all_details(changes.methods)
        amount = changes.amount_max_sats or present.amount_max
        need = Need(present.currency, methods, amount, self._persona)
        if changes.arbiters is None:
            await self._directory.refresh(fresh_seconds=FRESH_ARBITERS_SECONDS)
            arbiters = kept_arbiters(self._directory, present.arbiters, need)
        else:
            arbiters = await self._arbiters([parse_persona(text) for text in changes.arbiters], need)
        fitting = [k for k in present.escrow_types if k is not EscrowType.WSH_2OF3_BACKUP or len(arbiters) >= 2]
        around = drafts.Surroundings(
            arbiters, escrow_types(fitting, len(arbiters)), self._contact.hint(), self._clock.now()
        )

        await self._prices_ready((present.currency,))

        def change(offer: Offer, *, hints: bool = True) -> Offer:
            edited = drafts.edited_offer(offer, changes, around)
            drafts.check(edited, self._views.price(edited))
            return edited if hints else replace(edited, contacts=())

        try:
            try:
                own = await self._own.edit(own.offer_id, change, details)
            except OfferTooLarge:
                own = await self._own.edit(own.offer_id, lambda offer: change(offer, hints=False), details)
        except Malformed as e:
            raise BadOffer(e.detail) from e
        if changes.payout_address is not None:
            self._own.set_payout(own.offer_id, payout)
        return await self._placed(own)

    async def revoke(self, offer: str) -> OfferView:
        """Withdraw an own offer; again is fine. Raises NotFound."""
        own = self._own.revoke(self._own_offer(offer).offer_id, self._clock.now())
        if own.state is OfferState.EXPIRED:
            return self._views.own(own)
        return await self._placed(own)

    # --- finding ------------------------------------------------------------------------------------------------

    async def find(self, wanted: OfferFilter) -> OfferPage:
        """The book (of the market asked for, looked up in the DHT when it is stale), or one's own offers."""
        if wanted.mine:
            return self._find_own(wanted)
        sides = tuple(Side) if wanted.side is None else (SIDES[wanted.side],)
        await self._market.refresh(self._markets(wanted.currency), sides)
        question = BookFilter(
            currency=wanted.currency,
            side=None if wanted.side is None else SIDES[wanted.side],
            method=wanted.method,
            amount=wanted.amount_sats,
            limit=wanted.limit,
        )
        shown: list[BookEntry] = []
        after = wanted.cursor
        while True:
            page = self._book.search(question, self._clock.now(), after=after)
            shown += [
                entry
                for entry in page.entries
                if not self._ours_already(entry.offer) and not self._gate.hides(entry.offer.maker)
            ]
            after = page.next
            if after is None or shown:
                # A page may be shorter than asked for, but not empty while more follow.
                await self._priced([entry.offer for entry in shown])
                return OfferPage(offers=tuple(self._listed(entry) for entry in shown), next=after)

    async def show(self, offer: str) -> OfferView:
        """One offer, own or of the book. Raises NotFound, OfferClosed, AmbiguousId."""
        found = self._locate(offer)
        await self._priced([found.offer])
        return self._views.own(found) if isinstance(found, OwnOffer) else self._listed(found)

    # --- taking -------------------------------------------------------------------------------------------------

    async def take(self, offer: str, request: TakeRequest) -> TradeView:
        """Begin a trade; returns once the take is recorded, before the maker answers.

        Raises NotFound, OfferClosed, AmbiguousId, OfferChanged, BadTake, OutOfRange, NoArbiter, and what the taker
        raises (InsufficientFunds and others).
        """
        found = self._to_take(offer)
        if self._ours_already(found.offer):
            raise BadTake("you have taken that offer already: see `p2pnode trade list`")
        self._taking.add(found.offer.offer_id)
        try:
            return await self._take(offer, request)
        finally:
            self._taking.discard(found.offer.offer_id)

    def _ours_already(self, offer: Offer) -> bool:
        """Whether we are taking this offer or have a trade of it that did not end at once: it is not to be taken."""
        return offer.offer_id in self._taking or any(
            not stored.state.made and not isinstance(stored.state.phase, st.Declined | st.Cancelled)
            for stored in self._trades.of_offer(offer.offer_id)
        )

    async def _take(self, offer: str, request: TakeRequest) -> TradeView:
        found = self._to_take(offer)
        await self._market.refresh((found.offer.currency,), (found.offer.side,), wait_seconds=TAKE_REFRESH_SECONDS)
        found = self._to_take(offer)
        self._book.verify(found)
        terms = found.offer
        await self._priced([terms])
        price = self._check_guards(terms, request)
        amount = self._amount(terms, price, request)
        if request.method not in terms.methods:
            raise BadTake(f"the offer takes {' and '.join(terms.methods)}, not {request.method}")
        details = self._details(request)
        self._check_requirements(terms)
        payout = self._payee(request.payout_address)
        await self._gate.consent(terms.maker, amount)
        chosen = await self._choose(terms, amount, request)
        trade_id = await self._taker.take(
            found.envelope,
            terms,
            amount=amount,
            price=price,
            method=request.method,
            details=details,
            arbiter=chosen.arbiter,
            backup=chosen.backup,
            escrow_type=chosen.escrow_type,
            fee_rate=request.fee_rate_sats_per_kvb,
            payout=payout,
        )
        return self._trade_views.show(trade_id)

    def _to_take(self, offer: str) -> BookEntry:
        found = self._locate(offer)
        if isinstance(found, OwnOffer) or found.offer.maker == self._persona:
            raise BadTake("that is your own offer: you can't take it, but edit or revoke it")
        return found

    def _check_guards(self, offer: Offer, request: TakeRequest) -> int:
        """The offer's exact price, if it is still what the user saw. Raises OfferChanged, BadTake, BadPrice."""
        if request.sequence is not None and request.sequence != offer.sequence:
            raise OfferChanged(
                f"the offer was edited since you looked (version {offer.sequence}, not {request.sequence}): look again"
            )
        price = self._views.price(offer)
        if price is None:
            raise BadTake(f"the offer's price follows the market, and this node has no price of {offer.currency}")
        if request.price is not None and parse_minor(request.price, offer.currency) != price:
            raise OfferChanged(f"the offer's price is not {request.price} {offer.currency} (any more): look again")
        return price

    def _amount(self, offer: Offer, price: int, request: TakeRequest) -> int:
        spread = f"{offer.amount_min:,} to {offer.amount_max:,} sat"
        if request.amount_sats is None and offer.amount_min != offer.amount_max:
            raise BadTake(f"say how much: the offer is for {spread}")
        amount = offer.amount_min if request.amount_sats is None else request.amount_sats
        if not offer.amount_min <= amount <= offer.amount_max:
            raise OutOfRange(f"{amount:,} sat is outside the offer's range of {spread}")
        if volume(amount, price) < 1:
            raise BadTake(f"{amount:,} sat is worth less than the smallest unit of {offer.currency}")
        return amount

    def _details(self, request: TakeRequest) -> Details:
        try:
            return drafts.details_of(request.details, request.method)
        except BadOffer as e:
            raise BadTake(e.detail) from e

    def _check_requirements(self, offer: Offer) -> None:
        asked = offer.requirements.completed_trades
        if not asked:
            return
        with_maker = sum(
            stored.state.peer == offer.maker and isinstance(stored.state.phase, st.Completed)
            for stored in self._trades.all()
        )
        shown = 0 if self._shown_trades is None else self._shown_trades()
        if max(with_maker, shown) < asked:
            raise BadTake(
                f"the maker asks for {asked} completed trades that its node can prove, and you can show {shown}: "
                "see `p2pnode trade receipt --publish`"
            )

    async def _choose(self, offer: Offer, amount: int, request: TakeRequest) -> Chosen:
        wishes = TakeWishes(
            arbiter=None if request.arbiter is None else parse_persona(request.arbiter),
            backup=None if request.backup is None else parse_persona(request.backup),
            escrow_type=None if request.escrow_type is None else EscrowType(request.escrow_type),
        )
        if wishes.arbiter is not None and wishes.arbiter == wishes.backup:
            raise BadTake("the arbiter and its backup must be two")
        if any(self._directory.get(ref.announcement) is None for ref in offer.arbiters):
            await self._directory.refresh(fresh_seconds=FRESH_ARBITERS_SECONDS)
        return choose_for_take(self._directory, offer, request.method, amount, self._persona, wishes)

    # --- inside -------------------------------------------------------------------------------------------------

    async def _priced(self, offers: Iterable[Offer]) -> None:
        """Wait for the market prices that these offers need, if any."""
        floating = {offer.currency for offer in offers if isinstance(offer.price, MarketPrice)}
        if floating:
            await self._prices_ready(floating)

    async def _arbiters(self, personas: Sequence[bytes], need: Need) -> tuple[ArbiterRef, ...]:
        """Those that the user names, or the best known. Raises NoArbiter."""
        # An offer stands for days: one that was announced a moment ago may make it an escrow with a backup.
        await self._directory.refresh(fresh_seconds=FRESH_ARBITERS_SECONDS)
        if personas:
            return named_arbiters(self._directory, personas, need)
        await self._directory.rank()
        return known_arbiters(self._directory, need)

    def _payout_address(self, offer_id: bytes) -> str | None:
        script = self._own.payout_of(offer_id)
        return None if script is None else address_of(script, self._network)

    def _payee(self, address: str | None) -> bytes | None:
        """The script of a payout address; None for none and for “wallet”. Raises BadAddress, BadPayee."""
        if address is None or address.strip().lower() == WALLET:
            return None
        script = script_of(address, self._network)
        try:
            check_payee(script)
        except UnsupportedScript as e:
            raise BadPayee from e
        return script

    async def _create(self, offer: Offer, details: dict[str, Details]) -> OwnOffer:
        """With a hint where we are if it fits the datagram; the contact record in the DHT says it too."""
        try:
            return await self._own.create(offer, details)
        except OfferTooLarge:
            return await self._own.create(replace(offer, contacts=()), details)

    async def _placed(self, own: OwnOffer) -> OfferView:
        await self._publisher.placed(self._own.record(own), PLACING_SECONDS)
        return self._views.own(self._own.get(own.offer_id) or own)

    def _check_room(self, currency: str, side: Side) -> None:
        living = self._own.living(self._clock.now())
        held = sum(own.offer.currency == currency and own.offer.side is side for own in living)
        if held >= MAX_PER_MARKET:
            raise BadOffer(
                f"the network keeps {MAX_PER_MARKET} offers of one maker in a market, ended ones too until they would "
                "have expired: wait, or edit one that you have"
            )

    def _own_offer(self, prefix: str) -> OwnOffer:
        return only(self._own.find(prefix), "own offer", prefix)

    def _locate(self, prefix: str) -> OwnOffer | BookEntry:
        """The one offer, own or another's, that an id means. Raises NotFound, OfferClosed, AmbiguousId."""
        own = self._own.find(prefix)
        known = {o.offer_id for o in own}
        places = [
            place
            for place in self._book.locate(prefix, self._clock.now())
            if not (place.maker == self._persona and place.offer_id in known)
        ]
        live = [place.entry for place in places if place.entry is not None]
        if not own and not live and places:
            gone = any(place.standing is Standing.GONE for place in places)
            raise OfferClosed(
                "that offer was taken or withdrawn: look for another" if gone else "that offer has expired"
            )
        candidates: list[OwnOffer | BookEntry] = [*own, *live]
        return only(candidates, "offer", prefix)

    def _markets(self, currency: str | None) -> Sequence[str]:
        if currency is not None:
            return (currency,)
        return list(dict.fromkeys((*self._currencies, *self._book.currencies())))[:MAX_MARKETS]

    def _listed(self, entry: BookEntry) -> OfferView:
        mine = entry.offer.maker == self._persona
        own = self._own.get(entry.offer.offer_id) if mine else None
        return self._views.listed(entry, mine=mine) if own is None else self._views.own(own)

    def _find_own(self, wanted: OfferFilter) -> OfferPage:
        """One's own, newest first. Few enough to be read whole."""
        after = None if wanted.cursor is None else _read_cursor(wanted.cursor)
        found = [own for own in self._own.all() if _fits(own.offer, wanted)]
        if after is not None:
            found = [own for own in found if (-own.created, own.offer_id) > after]
        page = found[: wanted.limit]
        more = len(found) > len(page)
        return OfferPage(
            offers=tuple(self._views.own(own) for own in page),
            next=f"{page[-1].created}.{page[-1].offer_id.hex()}" if more else None,
        )


def _fits(offer: Offer, wanted: OfferFilter) -> bool:
    return (
        (wanted.side is None or offer.side is SIDES[wanted.side])
        and (wanted.currency is None or offer.currency == wanted.currency)
        and (wanted.method is None or wanted.method in offer.methods)
        and (wanted.amount_sats is None or offer.amount_min <= wanted.amount_sats <= offer.amount_max)
    )


def _read_cursor(text: str) -> tuple[int, bytes]:
    match = _OWN_CURSOR.fullmatch(text)
    if match is None:
        raise BadCursor
    return -int(match.group(1)), bytes.fromhex(match.group(2))
