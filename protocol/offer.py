"""Offers: what a persona is willing to trade, signed, sequenced, and priced for flooding (DESIGN section 7)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.contact import NodeContact
from protocol.errors import Malformed, PeerRefusal, UserError
from protocol.types import (
    PPM,
    SATS_PER_BTC,
    Blocks,
    CurrencyCode,
    EscrowType,
    Hash32,
    MethodCode,
    Network,
    PersonaId,
    PositiveSats,
    Ppm,
    PricePerBtc,
    Sequence,
    ShortTerms,
    Side,
    SignedPpm,
    UnixTime,
)
from protocol.wire import Envelope, Kind, unpack
from protocol.work import NO_WORK, WorkNonce, work_bits

OFFER_WORK_BITS: Final = 14
"""Work that an offer in the public book must carry: some 30 ms of one core."""
MAX_OFFER_LIFETIME: Final = 30 * 86_400
"""Seconds between an offer's creation and its expiry, at most."""
MAX_CLOCK_SKEW: Final = 3_600
"""Seconds by which a record's creation may lie in the future."""
SALT_BYTES: Final = 24
"""Of an offer id: what the maker chooses. The 8 bytes before them bind the id to the maker."""
_TAG_BYTES: Final = 8
_ID_HASH: Final = blake2b(b"\0\0\0\x10p2pnode/offer-id\0\0\0\x20", digest_size=32)
_SALT_HEAD: Final = b"\0\0\0\x18"
"""What `wire.digest` hashes before a maker and before a salt: made once, for thousands of offers in a row."""
_LIMIT: Final = Kind.OFFER.limit


class OfferExpired(PeerRefusal):
    """The offer has expired."""

    code = 2120


class OutOfRange(UserError):
    """That amount is outside the offer's range."""

    code = 3020


class FixedPrice(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1, gc=False):
    """A price that stands until the offer is edited."""

    price: PricePerBtc


class MarketPrice(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2, gc=False):
    """A margin on the median of a named set of feeds, with an optional limit the price never passes.

    `margin` is added (negative: subtracted) in ppm. `limit` is the worst price for the maker: a ceiling when it
    buys, a floor when it sells.
    """

    margin: SignedPpm
    feeds: MethodCode
    limit: PricePerBtc | None


Price = FixedPrice | MarketPrice


class ArbiterRef(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An arbiter that the maker accepts, on exactly the terms of one announcement."""

    persona: PersonaId
    announcement: Hash32


class Requirements(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What the maker asks of a taker."""

    completed_trades: Annotated[int, Meta(ge=0, le=10_000)] = 0


class Offer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An offer's body. `offer_id` is `make_offer_id`'s and stays over edits; `sequence` grows with each."""

    maker: PersonaId
    offer_id: Hash32
    sequence: Sequence
    side: Side
    amount_min: PositiveSats
    amount_max: PositiveSats
    currency: CurrencyCode
    price: Price
    methods: Annotated[tuple[MethodCode, ...], Meta(min_length=1, max_length=16)]
    payment_window: Blocks
    buyer_deposit: Ppm
    seller_deposit: Ppm
    arbiters: Annotated[tuple[ArbiterRef, ...], Meta(min_length=1, max_length=8)]
    escrow_types: Annotated[tuple[EscrowType, ...], Meta(min_length=1, max_length=4)]
    backup_delay: Blocks
    confirmations: Annotated[int, Meta(ge=1, le=100)]
    terms: ShortTerms
    requirements: Requirements
    contacts: Annotated[tuple[NodeContact, ...], Meta(max_length=2)]
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK


class OfferRef(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Exactly one version of one offer."""

    maker: PersonaId
    offer_id: Hash32
    sequence: Sequence
    envelope: Hash32


class Revocation(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tombstone: no version of the offer up to `sequence` may be shown or taken. Kept until `expires`.

    `side`, `currency` and `expires` are the offer's, so that it is found where the offer was and outlives it.
    """

    maker: PersonaId
    offer_id: Hash32
    sequence: Sequence
    side: Side
    currency: CurrencyCode
    expires: UnixTime


def make_offer_id(maker: PersonaId, salt: bytes) -> Hash32:
    """The id of a maker's offer: nobody else can give an offer this id, or guess it (SPEC 4.1).

    Raises ValueError unless `salt` has SALT_BYTES.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"an offer's salt has {SALT_BYTES} bytes")
    hashed = _ID_HASH.copy()
    hashed.update(maker + _SALT_HEAD + salt)
    return hashed.digest()[:_TAG_BYTES] + salt


def _check_offer_id(maker: PersonaId, offer_id: Hash32) -> None:
    if offer_id != make_offer_id(maker, offer_id[_TAG_BYTES:]):
        raise Malformed("an offer's id must be one of its maker's")


def read_revocation(envelope: Envelope, network: Network) -> Revocation:
    """The tombstone in a verified envelope. Raises Malformed."""
    if envelope.kind != Kind.OFFER_REVOCATION or envelope.network != network:
        raise Malformed("not an offer's revocation on this network")
    revocation = unpack(envelope.body, Revocation, limit=Kind.OFFER_REVOCATION.limit)
    if revocation.maker != envelope.signer:
        raise Malformed("a revocation must be signed by the maker that it names")
    _check_offer_id(revocation.maker, revocation.offer_id)
    return revocation


def read_offer(envelope: Envelope, network: Network, now: int, *, work: int = OFFER_WORK_BITS) -> Offer:
    """The offer in a verified envelope, checked against the rules of SPEC section 4 and valid at `now`.

    `work` is the proof of work asked for, in bits. Raises Malformed (a broken offer), OfferExpired.
    """
    if envelope.kind != Kind.OFFER or envelope.network != network:
        raise Malformed("not an offer of this network")
    offer = unpack(envelope.body, Offer, limit=_LIMIT)
    check_offer(offer, now)
    if offer.maker != envelope.signer:
        raise Malformed("an offer must be signed by the maker that it names")
    if work and work_bits(envelope.id) < work:
        raise Malformed(f"an offer needs {work} bits of proof of work")
    return offer


def check_offer(offer: Offer, now: int) -> None:
    """The rules that one field alone can't hold. Raises Malformed, OfferExpired."""
    _check_offer_id(offer.maker, offer.offer_id)
    if offer.amount_min > offer.amount_max:
        raise Malformed("an offer's least amount is over its greatest")
    if not offer.created < offer.expires <= offer.created + MAX_OFFER_LIFETIME:
        raise Malformed("an offer must expire after its creation and within 30 days")
    if offer.created > now + MAX_CLOCK_SKEW:
        raise Malformed("the offer was created in the future: check the clocks")
    methods, escrow_types = offer.methods, offer.escrow_types
    if len(methods) > 1 and len(set(methods)) != len(methods):
        raise Malformed("an offer names a method twice")
    if len(escrow_types) > 1 and len(set(escrow_types)) != len(escrow_types):
        raise Malformed("an offer names an escrow type twice")
    personas = {ref.persona for ref in offer.arbiters}
    if len(personas) != len(offer.arbiters) or offer.maker in personas:
        raise Malformed("an offer's arbiters must differ from each other and from the maker")
    if len(personas) < 2 and EscrowType.WSH_2OF3_BACKUP in escrow_types:
        raise Malformed("an escrow with a backup arbiter needs two accepted arbiters")
    if now >= offer.expires:
        raise OfferExpired


def reference(envelope: Envelope, offer: Offer) -> OfferRef:
    """The reference that a take and a contract carry."""
    return OfferRef(offer.maker, offer.offer_id, offer.sequence, envelope.id)


def volume(amount: int, price: int) -> int:
    """Minor units to pay for `amount` satoshis at `price` minor units per bitcoin, rounded half up (SPEC 4.3)."""
    return (amount * price + SATS_PER_BTC // 2) // SATS_PER_BTC


def deposit(amount: int, share: int) -> int:
    """A deposit of `share` ppm of `amount` satoshis, rounded up."""
    return -(-amount * share // PPM)


def price_at(price: Price, side: Side, reference_price: int | None) -> int | None:
    """The exact price of an offer, given the median of its feeds; None where it needs one and has none.

    A margin is rounded towards the reference's floor. The limit protects the maker, whose `side` is given.
    """
    if isinstance(price, FixedPrice):
        return price.price
    if reference_price is None:
        return None
    exact = max(1, reference_price * (PPM + price.margin) // PPM)
    if price.limit is not None:
        exact = min(exact, price.limit) if side is Side.BUY else max(exact, price.limit)
    return exact
