"""Ratings: what one party of a trade says of the other, with the receipt that proves the trade (SPEC section 14.3).

The record holds the whole receipt, so a rating without one can't be written down, and every node of the DHT refuses
what the four signatures do not hold. There is one slot for each rater and trade; a later sequence replaces an earlier
mark. Without a mark the record only shows the receipt.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.errors import Malformed
from protocol.receipt import BadReceipt, SignedReceipt, check_consents, check_lifetime, check_work, receipt_id
from protocol.types import Network, PersonaId, Sequence, UnixTime
from protocol.wire import Envelope, Kind, unpack
from protocol.work import NO_WORK, WorkNonce


class Mark(IntEnum):
    """What a rater thinks of its counterparty."""

    NONE = 0
    BAD = 1
    NEUTRAL = 2
    GOOD = 3


class Rating(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One party's record of one trade."""

    rater: PersonaId
    sequence: Sequence
    signed: SignedReceipt
    mark: Mark
    text: Annotated[str, Meta(max_length=120)]
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK

    @property
    def subject(self) -> bytes:
        """The persona that is rated."""
        return self.signed.receipt.other(self.rater)


def read_rating(envelope: Envelope, network: Network, now: int) -> Rating:
    """The rating in a verified envelope. Escrow keys and the chain are not looked at here.

    Raises Malformed, BadReceipt, BadSignature.
    """
    if envelope.kind != Kind.RATING or envelope.network != network:
        raise Malformed("not a rating of this network")
    value = unpack(envelope.body, Rating, limit=Kind.RATING.limit)
    if value.rater != envelope.signer:
        raise Malformed("a rating must be signed by the persona that it names")
    if value.signed.receipt.side_of(value.rater) is None:
        raise BadReceipt("only the two parties of a trade may rate each other")
    if value.mark is Mark.NONE and value.text:
        raise Malformed("a text needs a mark")
    check_lifetime(value.created, value.expires, now)
    check_work(envelope)
    check_consents(value.signed, network)
    return value


def rating_slot(value: Rating, network: Network) -> bytes:
    """Which of a rater's records this is: one for each trade."""
    return receipt_id(value.signed.receipt, network)
