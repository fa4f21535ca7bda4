"""The kinds of record that nodes keep for each other in the DHT, and the rules of each (SPEC section 6).

Every DHT node runs these checks on everything that it is asked to store or shown, so a record that breaks them is
found nowhere.
"""

from __future__ import annotations

from typing import Final

from dht.records import RecordKind, RecordMeta
from dht.topics import arbiters_topic, contact_topic, mailbox_topic, offer_topics, parcel_topic, receipt_topic
from escrow.bond import check_bond
from p2pnode.contacts import read_contact
from p2pnode.reputation.kinds import reputation_kinds
from protocol.announcement import ARBITER_WORK_BITS, MAX_ANNOUNCEMENT_LIFETIME, read_announcement
from protocol.contact import CONTACT_WORK_BITS, MAX_CONTACT_LIFETIME
from protocol.mailbox import (
    ANSWER_WORK_BITS,
    BUCKETS,
    CHUNK_WORK_BITS,
    CHUNKS_PER_TOPIC,
    MAX_MAIL_LIFETIME,
    SLIP_WORK_BITS,
    read_answer,
    read_chunk,
    read_slip,
)
from protocol.offer import MAX_OFFER_LIFETIME, OFFER_WORK_BITS, read_offer, read_revocation
from protocol.types import Network
from protocol.wire import Envelope, Kind
from protocol.work import work_bits

MAILBOX_SLOTS: Final = 192
"""Slips and answers in one mailbox. About three fit a datagram, and a reader asks each holder for 64 of them."""


def record_kinds(network: Network, *, offer_work: int = OFFER_WORK_BITS) -> tuple[RecordKind, ...]:
    """All kinds, for one network. `offer_work`: bits of proof of work that an offer needs."""

    def offer(envelope: Envelope, now: int) -> RecordMeta:
        # The work is hashed once: the registry holds it against the kind's least.
        value = read_offer(envelope, network, now, work=0)
        return RecordMeta(
            publisher=value.maker,
            sub_key=value.offer_id,
            sequence=value.sequence,
            expires=value.expires,
            topics=offer_topics(network, value.currency, value.side, value.offer_id),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
            value=value,
        )

    def revocation(envelope: Envelope, _now: int) -> RecordMeta:
        value = read_revocation(envelope, network)
        return RecordMeta(
            publisher=value.maker,
            sub_key=value.offer_id,
            sequence=value.sequence,
            expires=value.expires,
            topics=offer_topics(network, value.currency, value.side, value.offer_id),
            tombstone=True,
            value=value,
        )

    def contact(envelope: Envelope, now: int) -> RecordMeta:
        value = read_contact(envelope, network, now)
        return RecordMeta(
            publisher=value.persona,
            sub_key=b"",
            sequence=value.sequence,
            expires=value.expires,
            topics=(contact_topic(network, value.persona),),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def arbiter(envelope: Envelope, now: int) -> RecordMeta:
        value = read_announcement(envelope, network, now)
        if value.bond is not None:
            check_bond(value.bond, network, value.persona)
        return RecordMeta(
            publisher=value.persona,
            sub_key=b"",
            sequence=value.sequence,
            expires=value.expires,
            topics=(arbiters_topic(network),),
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def slip(envelope: Envelope, _now: int) -> RecordMeta:
        value = read_slip(envelope, network)
        return RecordMeta(
            publisher=value.author,
            sub_key=b"",
            sequence=value.created,
            expires=value.expires,
            topics=(mailbox_topic(network, value.recipient),),
            tombstone=not value.sealed,
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def chunk(envelope: Envelope, _now: int) -> RecordMeta:
        value = read_chunk(envelope, network)
        return RecordMeta(
            publisher=value.author,
            sub_key=bytes([value.index]),
            sequence=value.created,
            expires=value.expires,
            topics=(parcel_topic(network, value.author, value.index // CHUNKS_PER_TOPIC),),
            tombstone=not value.data,
            issued=value.created,
            pow_bits=work_bits(envelope.id),
        )

    def answer(envelope: Envelope, _now: int) -> RecordMeta:
        # It takes the place of a slip that another key signed; so it counts under topics of its signer only.
        value = read_answer(envelope, network)
        return RecordMeta(
            publisher=value.slip,
            sub_key=b"",
            sequence=value.sequence,
            expires=value.expires,
            topics=(mailbox_topic(network, value.recipient), receipt_topic(network, value.recipient, value.slip)),
            tombstone=True,
            pow_bits=work_bits(envelope.id),
        )

    return (
        RecordKind(Kind.OFFER, offer, max_lifetime_s=MAX_OFFER_LIFETIME, min_pow_bits=offer_work),
        RecordKind(Kind.OFFER_REVOCATION, revocation, max_bytes=512, max_lifetime_s=MAX_OFFER_LIFETIME),
        RecordKind(
            Kind.CONTACT,
            contact,
            max_lifetime_s=MAX_CONTACT_LIFETIME,
            min_pow_bits=CONTACT_WORK_BITS,
            max_per_publisher=1,
        ),
        RecordKind(
            Kind.ARBITER,
            arbiter,
            max_lifetime_s=MAX_ANNOUNCEMENT_LIFETIME,
            min_pow_bits=ARBITER_WORK_BITS,
            max_per_publisher=1,
        ),
        RecordKind(
            Kind.MAIL_SLIP,
            slip,
            max_bytes=Kind.MAIL_SLIP.limit,
            max_lifetime_s=MAX_MAIL_LIFETIME,
            min_pow_bits=SLIP_WORK_BITS,
            max_per_publisher=1,
            max_per_topic=MAILBOX_SLOTS,
        ),
        RecordKind(
            Kind.MAIL_CHUNK,
            chunk,
            max_bytes=Kind.MAIL_CHUNK.limit,
            max_lifetime_s=MAX_MAIL_LIFETIME,
            min_pow_bits=CHUNK_WORK_BITS,
            max_per_publisher=BUCKETS[-1],
            max_per_topic=CHUNKS_PER_TOPIC,
        ),
        RecordKind(
            Kind.MAIL_ANSWER,
            answer,
            max_bytes=Kind.MAIL_ANSWER.limit,
            max_lifetime_s=MAX_MAIL_LIFETIME,
            min_pow_bits=ANSWER_WORK_BITS,
            max_per_publisher=1,
            max_per_topic=MAILBOX_SLOTS,
        ),
        *reputation_kinds(network),
    )
