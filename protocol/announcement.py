"""An arbiter's announcement: standing consent to serve any trade within its limits (DESIGN section 11)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.bond import Bond
from protocol.errors import Malformed, PeerViolation
from protocol.types import (
    Blocks,
    CurrencyCode,
    Hash32,
    MethodCode,
    Network,
    PersonaId,
    PositiveSats,
    Ppm,
    PubKey33,
    Sats,
    Sequence,
    ShortTerms,
    UnixTime,
)
from protocol.wire import Envelope, Kind, unpack
from protocol.work import NO_WORK, WorkNonce, work_bits

ARBITER_WORK_BITS: Final = 12
MAX_ANNOUNCEMENT_LIFETIME: Final = 400 * 86_400
"""Seconds an announcement may live. It outlives every trade that it may be called to."""

LanguageCode = Annotated[str, Meta(pattern=r"\A[a-z]{2,3}\Z")]


class AnnouncementExpired(PeerViolation):
    """The arbiter's announcement has expired."""

    code = 2110


class FeeTerms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a ruling costs: a share of the amount, within a floor and a cap."""

    share: Ppm
    floor: Sats
    cap: Sats

    def fee(self, amount: int) -> int:
        """The fee in satoshis for a trade of `amount` satoshis; the share is rounded up."""
        return max(self.floor, min(self.cap, -(-amount * self.share // 1_000_000)))


class Announcement(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an arbiter offers to serve. Signed by its persona; the envelope's id is what contracts commit to."""

    persona: PersonaId
    sequence: Sequence
    base_point: PubKey33
    fee: FeeTerms
    currencies: Annotated[tuple[CurrencyCode, ...], Meta(max_length=64)]
    methods: Annotated[tuple[MethodCode, ...], Meta(max_length=64)]
    languages: Annotated[tuple[LanguageCode, ...], Meta(min_length=1, max_length=16)]
    max_amount: PositiveSats
    response_blocks: Blocks
    policy_hash: Hash32
    policy: ShortTerms
    bond: Bond | None
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK

    def serves(self, currency: str, method: str, amount: int) -> bool:
        """Whether a trade of these terms is within the announced limits; an empty list means any."""
        return (
            amount <= self.max_amount
            and (not self.currencies or currency in self.currencies)
            and (not self.methods or method in self.methods)
        )


def read_announcement(envelope: Envelope, network: Network, now: int) -> Announcement:
    """The announcement in a verified envelope, valid at `now` (Unix seconds).

    Raises Malformed, AnnouncementExpired.
    """
    if envelope.kind != Kind.ARBITER or envelope.network != network:
        raise Malformed("not an arbiter announcement of this network")
    value = unpack(envelope.body, Announcement, limit=Kind.ARBITER.limit)
    if value.persona != envelope.signer:
        raise Malformed("an announcement must be signed by the arbiter that it names")
    if (
        value.fee.floor > value.fee.cap
        or not value.created < value.expires <= value.created + MAX_ANNOUNCEMENT_LIFETIME
    ):
        raise Malformed("an announcement's fee limits or lifetime do not make sense")
    if now >= value.expires:
        raise AnnouncementExpired
    if work_bits(envelope.id) < ARBITER_WORK_BITS:
        raise Malformed("an announcement needs more proof of work")
    return value
