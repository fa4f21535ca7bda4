"""The public proof that an arbiter gave two rulings in one contract (SPEC section 14.5).

It proves itself, so it matters not who publishes it; the signer is whoever paid for its work. Every node that has seen
one names that arbiter in no offer, takes no offer by it and accepts no take with it, for good.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from protocol.errors import Malformed
from protocol.ruling import Equivocation, read_equivocation
from protocol.types import Network, UnixTime
from protocol.wire import Envelope, Kind, unpack
from protocol.work import NO_WORK, WorkNonce, work_bits

EQUIVOCATION_WORK_BITS: Final = 14
MAX_EQUIVOCATION_LIFETIME: Final = 400 * 86_400


class EquivocationRecord(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A proof, and how long it is kept without being put again."""

    proof: Equivocation
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK


class Exposed(Struct, frozen=True):
    """What a record proves."""

    arbiter: bytes
    contract_id: bytes
    record: EquivocationRecord


def read_equivocation_record(envelope: Envelope, network: Network, now: int) -> Exposed:
    """The proof in a verified envelope, both rulings verified. Raises Malformed, NoEquivocation, BadSignature."""
    if envelope.kind != Kind.EQUIVOCATION or envelope.network != network:
        raise Malformed("not an equivocation of this network")
    record = unpack(envelope.body, EquivocationRecord, limit=Kind.EQUIVOCATION.limit)
    if not record.created < record.expires <= record.created + MAX_EQUIVOCATION_LIFETIME or now >= record.expires:
        raise Malformed("an equivocation's record must live for at most 400 days, and not be over")
    if work_bits(envelope.id) < EQUIVOCATION_WORK_BITS:
        raise Malformed("an equivocation's record needs more proof of work")
    return Exposed(record.proof.arbiter, read_equivocation(record.proof, network), record)
