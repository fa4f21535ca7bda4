"""Offers, and taking them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pnode.api.schema.base import AddressText, DecimalText, DetailMap, PersonaText, Request, Response, SideName
from p2pnode.money import format_minor, parse_minor
from protocol.errors import UserError
from protocol.offer import MAX_OFFER_LIFETIME, FixedPrice, MarketPrice, Price
from protocol.types import (
    Blocks,
    CurrencyCode,
    FeeRate,
    MethodCode,
    PositiveSats,
    Ppm,
    Sats,
    SignedPpm,
    Terms,
    UnixTime,
)


class BadOffer(UserError):
    """The offer can't be made like this."""

    code = 3040


class MethodDetails(Request, frozen=True, kw_only=True):
    """A payment method and one's own details for it. They stay on this node until the escrow is funded."""

    method: MethodCode
    details: DetailMap


class OfferDraft(Request, frozen=True, kw_only=True):
    """An offer to publish. Exactly one of `price` and `margin_ppm` is given.

    `price` is in whole units of `currency` per bitcoin. Empty `arbiters`: the node chooses among those it knows that
    serve the offer; empty `escrow_types`: what those arbiters allow, a backup arbiter preferred.
    """

    side: SideName
    amount_min_sats: PositiveSats
    amount_max_sats: PositiveSats
    currency: CurrencyCode
    methods: Annotated[tuple[MethodDetails, ...], Meta(min_length=1, max_length=16)]
    price: DecimalText | None = None
    margin_ppm: SignedPpm | None = None
    price_limit: DecimalText | None = None
    feeds: MethodCode = "default"
    payment_window_blocks: Blocks = 144
    buyer_deposit_ppm: Ppm = 150_000
    seller_deposit_ppm: Ppm = 150_000
    arbiters: Annotated[tuple[PersonaText, ...], Meta(max_length=8)] = ()
    escrow_types: Annotated[tuple[Literal[1, 2], ...], Meta(max_length=4)] = ()
    backup_delay_blocks: Blocks = 1008
    confirmations: Annotated[int, Meta(ge=1, le=100)] = 1
    terms: Terms = ""
    min_completed_trades: Annotated[int, Meta(ge=0, le=10_000)] = 0
    lifetime_seconds: Annotated[int, Meta(ge=60, le=MAX_OFFER_LIFETIME)] = 7 * 86_400
    payout_address: AddressText | None = None
    """Where a release pays our coins to; None: the wallet. Settlements and rulings always pay to the wallet."""

    def protocol_price(self) -> Price:
        """The price as offers carry it. Raises BadOffer, BadPrice."""
        return _price(self.currency, self.price, self.margin_ppm, self.price_limit, self.feeds)


class OfferEdit(Request, frozen=True, kw_only=True):
    """What to change of an offer; None leaves a field as it is. Side and currency can't change.

    A `price` replaces a margin and the other way round; `price_limit` belongs to a margin.
    """

    amount_min_sats: PositiveSats | None = None
    amount_max_sats: PositiveSats | None = None
    methods: Annotated[tuple[MethodDetails, ...], Meta(min_length=1, max_length=16)] | None = None
    price: DecimalText | None = None
    margin_ppm: SignedPpm | None = None
    price_limit: DecimalText | None = None
    payment_window_blocks: Blocks | None = None
    buyer_deposit_ppm: Ppm | None = None
    seller_deposit_ppm: Ppm | None = None
    arbiters: Annotated[tuple[PersonaText, ...], Meta(min_length=1, max_length=8)] | None = None
    confirmations: Annotated[int, Meta(ge=1, le=100)] | None = None
    terms: Terms | None = None
    min_completed_trades: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    lifetime_seconds: Annotated[int, Meta(ge=60, le=MAX_OFFER_LIFETIME)] | None = None
    payout_address: AddressText | None = None
    """Where releases of trades from now on pay our coins to; “wallet”: to the wallet again."""

    def protocol_price(self, currency: str, present: Price) -> Price:
        """The price after the edit, given the offer's currency and present price. Raises BadOffer, BadPrice."""
        if self.price is None and self.margin_ppm is None and self.price_limit is None:
            return present
        if self.price is not None or not isinstance(present, MarketPrice):
            return _price(currency, self.price, self.margin_ppm, self.price_limit, "default")
        margin = present.margin if self.margin_ppm is None else self.margin_ppm
        limit = present.limit if self.price_limit is None else parse_minor(self.price_limit, currency)
        return MarketPrice(margin, present.feeds, limit)


class OfferFilter(Request, frozen=True, kw_only=True):
    """Which offers to list, best price first. `mine` lists one's own, newest first, the ended ones too.

    `side` is the maker's side. `amount_sats` keeps offers whose range holds it. `cursor` is the `next` of the page
    before.
    """

    mine: bool = False
    side: SideName | None = None
    currency: CurrencyCode | None = None
    method: MethodCode | None = None
    amount_sats: PositiveSats | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class OfferView(Response, frozen=True, kw_only=True):
    """An offer. `state` is open, taken, revoked or expired. `price` is None where a margin has no feed to go by."""

    id: str
    sequence: int
    maker: str
    mine: bool
    state: str
    side: SideName
    amount_min_sats: Sats
    amount_max_sats: Sats
    currency: str
    price: str | None
    price_minor_per_btc: int | None
    margin_ppm: int | None
    price_limit_minor_per_btc: int | None
    methods: tuple[str, ...]
    payment_window_blocks: int
    buyer_deposit_ppm: int
    seller_deposit_ppm: int
    arbiters: tuple[str, ...]
    escrow_types: tuple[int, ...]
    backup_delay_blocks: int
    confirmations: int
    terms: str
    min_completed_trades: int
    created: UnixTime
    expires: UnixTime
    stored_on: int | None = None
    """Nodes of the DHT that took the record when it was last published, where this node published it."""
    payout_address: str | None = None
    """Of an own offer: where releases pay our coins to, if not to the wallet. Nobody else is told."""


class OfferPage(Response, frozen=True, kw_only=True):
    """Offers, and the cursor of the next page (None: this was the last)."""

    offers: tuple[OfferView, ...]
    next: str | None = None


class TakeRequest(Request, frozen=True, kw_only=True):
    """A take. `amount_sats` may be None when the offer has one amount only.

    `sequence` or `price` guard against an edit since the offer was looked at: the take is refused when they differ.
    None for an arbiter or the escrow type: the maker's first choice.
    """

    amount_sats: PositiveSats | None = None
    method: MethodCode
    details: DetailMap
    sequence: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    price: DecimalText | None = None
    arbiter: PersonaText | None = None
    backup: PersonaText | None = None
    escrow_type: Literal[1, 2] | None = None
    fee_rate_sats_per_kvb: FeeRate | None = None
    payout_address: AddressText | None = None
    """Where a release pays our coins to; None: the wallet. Settlements and rulings always pay to the wallet."""


def price_text(price_minor_per_btc: int | None, currency: str) -> str | None:
    """A price as views show it; None stays None."""
    return None if price_minor_per_btc is None else format_minor(price_minor_per_btc, currency)


def _price(currency: str, price: str | None, margin: int | None, limit: str | None, feeds: str) -> Price:
    if (price is None) == (margin is None):
        raise BadOffer("give a price or a margin on the market price: exactly one of the two")
    if price is not None:
        if limit is not None:
            raise BadOffer("a price limit belongs to a margin; a fixed price has none")
        return FixedPrice(parse_minor(price, currency))
    return MarketPrice(margin or 0, feeds, None if limit is None else parse_minor(limit, currency))
