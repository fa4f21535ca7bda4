"""From what a user asks for to an offer's body, and to the next version of one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from p2pnode.api.schema import BadOffer, DetailMap, MethodDetails, OfferDraft, OfferEdit
from p2pnode.services.views import SIDES
from protocol.contact import NodeContact
from protocol.messages import Details
from protocol.offer import ArbiterRef, Offer, Requirements, make_offer_id, volume
from protocol.types import EscrowType

MAX_TERMS: Final = 400
"""Characters of an offer's terms (`protocol.types.ShortTerms`)."""


class Surroundings(Struct, frozen=True):
    """What the node adds to a draft."""

    arbiters: tuple[ArbiterRef, ...]
    escrow_types: tuple[EscrowType, ...]
    contacts: tuple[NodeContact, ...]
    now: int


def method_names(methods: Sequence[MethodDetails]) -> tuple[str, ...]:
    """The methods of an offer. Raises BadOffer for one that is there twice."""
    names = tuple(entry.method for entry in methods)
    for name in names:
        if names.count(name) > 1:
            raise BadOffer(f"the payment method {name} is there twice")
    return names


def details_of(values: DetailMap, method: str) -> Details:
    """Payment details as messages carry them. Raises BadOffer when there are none."""
    if not values:
        raise BadOffer(f"your payment details for {method} are missing: they tell the counterparty where to pay")
    return tuple(values.items())


def all_details(methods: Sequence[MethodDetails]) -> dict[str, Details]:
    """Our payment details by method. Raises BadOffer."""
    return {entry.method: details_of(entry.details, entry.method) for entry in methods}


def new_offer(draft: OfferDraft, maker: bytes, salt: bytes, around: Surroundings) -> Offer:
    """The first version of an offer, without its work; `salt` is random (SALT_BYTES). Raises BadOffer, BadPrice."""
    return Offer(
        maker=maker,
        offer_id=make_offer_id(maker, salt),
        sequence=0,
        side=SIDES[draft.side],
        amount_min=draft.amount_min_sats,
        amount_max=draft.amount_max_sats,
        currency=draft.currency,
        price=draft.protocol_price(),
        methods=method_names(draft.methods),
        payment_window=draft.payment_window_blocks,
        buyer_deposit=draft.buyer_deposit_ppm,
        seller_deposit=draft.seller_deposit_ppm,
        arbiters=around.arbiters,
        escrow_types=around.escrow_types,
        backup_delay=draft.backup_delay_blocks,
        confirmations=draft.confirmations,
        terms=draft.terms,
        requirements=Requirements(draft.min_completed_trades),
        contacts=around.contacts,
        created=around.now,
        expires=around.now + draft.lifetime_seconds,
    )


def edited_offer(present: Offer, changes: OfferEdit, around: Surroundings) -> Offer:
    """The next version. Raises BadOffer, BadPrice."""
    renewed = changes.lifetime_seconds is not None
    requirements = changes.min_completed_trades
    return replace(
        present,
        amount_min=_or(changes.amount_min_sats, present.amount_min),
        amount_max=_or(changes.amount_max_sats, present.amount_max),
        price=changes.protocol_price(present.currency, present.price),
        methods=present.methods if changes.methods is None else method_names(changes.methods),
        payment_window=_or(changes.payment_window_blocks, present.payment_window),
        buyer_deposit=_or(changes.buyer_deposit_ppm, present.buyer_deposit),
        seller_deposit=_or(changes.seller_deposit_ppm, present.seller_deposit),
        arbiters=around.arbiters,
        escrow_types=around.escrow_types,
        confirmations=_or(changes.confirmations, present.confirmations),
        terms=present.terms if changes.terms is None else changes.terms,
        requirements=present.requirements if requirements is None else Requirements(requirements),
        contacts=around.contacts,
        created=around.now if renewed else present.created,
        expires=around.now + (changes.lifetime_seconds or 0) if renewed else present.expires,
    )


def check(offer: Offer, price: int | None) -> None:
    """What the user is told before an offer is signed; `price` is its exact price now. Raises BadOffer."""
    if price is None:
        raise BadOffer(f"this node has no market price of {offer.currency} to add a margin to: give a fixed price")
    if offer.amount_min > offer.amount_max:
        raise BadOffer("the least amount is over the greatest")
    if volume(offer.amount_min, price) < 1:
        raise BadOffer(f"{offer.amount_min:,} sat is worth less than the smallest unit of {offer.currency}")
    if len(offer.terms) > MAX_TERMS:
        raise BadOffer(f"an offer's terms have at most {MAX_TERMS} characters, these have {len(offer.terms)}")


def _or(value: int | None, present: int) -> int:
    return present if value is None else value
