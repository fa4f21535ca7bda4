"""The records of reputation and their rules, as every node of the DHT applies them (SPEC section 14).

All signatures are checked here, by whoever stores a record; the chain is asked only by those who read it. A rating
holds the signature of the persona that it is about, so nobody can be flooded with ratings by strangers; what a persona
does to its own topic is bounded by quotas and proof of work.
"""

from __future__ import annotations

from typing import Final

from dht.records import RecordKind, RecordMeta, Validate
from dht.topics import anchor_topic, equivocations_topic, reputation_topic
from escrow.bond import check_bond
from escrow.receipt import check_keys, check_ruling_key
from protocol.bond import BOND_WORK_BITS, MAX_BOND_RECORD_LIFETIME, read_bond_record
from protocol.equivocation import EQUIVOCATION_WORK_BITS, MAX_EQUIVOCATION_LIFETIME, read_equivocation_record
from protocol.rating import rating_slot, read_rating
from protocol.receipt import MAX_RECEIPT_LIFETIME, RECEIPT_WORK_BITS, read_ruling_receipt
from protocol.types import Network
from protocol.wire import Envelope, Kind
from protocol.work import work_bits

MAX_RATINGS: Final = 256
"""Records of one persona under one topic: so many trades of a persona can be seen by others."""
MAX_RECORDS: Final = 1_000
"""Records of reputation under one topic."""


def outpoint_of(txid: bytes, vout: int) -> bytes:
    """The 36 bytes of an output."""
    return txid + vout.to_bytes(4, "little")


def reputation_kinds(network: Network) -> tuple[RecordKind, ...]:
    """Bonds, ratings, ruling receipts and equivocations, for one network."""

    def bond(envelope: Envelope, now: int) -> RecordMeta:
        value = read_bond_record(envelope, network, now)
        check_bond(value.bond, network, value.persona)
        outpoint = outpoint_of(value.bond.txid, value.bond.vout)
        return RecordMeta(
            publisher=value.persona,
            sub_key=b"bond",
            sequence=value.sequence,
            expires=value.expires,
            topics=(reputation_topic(network, value.persona), anchor_topic(network, outpoint)),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def rating(envelope: Envelope, now: int) -> RecordMeta:
        value = read_rating(envelope, network, now)
        check_keys(value.signed, network)
        receipt = value.signed.receipt
        return RecordMeta(
            publisher=value.rater,
            sub_key=rating_slot(value, network),
            sequence=value.sequence,
            expires=value.expires,
            topics=(
                reputation_topic(network, receipt.buyer),
                reputation_topic(network, receipt.seller),
                anchor_topic(network, receipt.outpoint),
            ),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def ruled(envelope: Envelope, now: int) -> RecordMeta:
        value = read_ruling_receipt(envelope, network, now)
        check_ruling_key(value, network)
        return RecordMeta(
            publisher=value.arbiter,
            sub_key=value.contract_id,
            sequence=value.sequence,
            expires=value.expires,
            topics=(reputation_topic(network, value.arbiter), anchor_topic(network, value.outpoint)),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def equivocation(envelope: Envelope, now: int) -> RecordMeta:
        # Whoever signed it: the record is the arbiter's, and one for each contract is enough. Anybody may replace it,
        # the arbiter too: so the longest-lived stands, or a newer one that ends at once would take the proof away.
        found = read_equivocation_record(envelope, network, now)
        return RecordMeta(
            publisher=found.arbiter,
            sub_key=found.contract_id,
            sequence=found.record.expires,
            expires=found.record.expires,
            topics=(reputation_topic(network, found.arbiter), equivocations_topic(network)),
            issued=found.record.created,
            pow_bits=work_bits(envelope.id),
        )

    def kind(number: Kind, validate: Validate, lifetime: int, bits: int, mine: int) -> RecordKind:
        return RecordKind(
            number,
            validate,
            max_bytes=number.limit,
            max_lifetime_s=lifetime,
            min_pow_bits=bits,
            max_per_publisher=mine,
            max_per_topic=MAX_RECORDS,
        )

    return (
        kind(Kind.BOND, bond, MAX_BOND_RECORD_LIFETIME, BOND_WORK_BITS, MAX_RATINGS),
        kind(Kind.RATING, rating, MAX_RECEIPT_LIFETIME, RECEIPT_WORK_BITS, MAX_RATINGS),
        kind(Kind.RULING_RECEIPT, ruled, MAX_RECEIPT_LIFETIME, RECEIPT_WORK_BITS, MAX_RATINGS),
        kind(Kind.EQUIVOCATION, equivocation, MAX_EQUIVOCATION_LIFETIME, EQUIVOCATION_WORK_BITS, 4),
    )
