"""What may be stored: signed envelopes, judged by the rules of their kind (SPEC, DHT records).

The DHT knows no kind. Whoever owns one registers a `RecordKind`: a pure function that reads the body and says whose
record it is, which one of theirs, which version, how long it lives and under which topics it may be found; plus limits.
Everything else is the same for all kinds and lives here: size, signature, times, proof of work, topics.

A record replaces another when publisher and sub-key are equal and its rank is higher: (sequence, tombstone, name).
The rank is a total order (the last part is a hash of the record), so all nodes that saw the same records keep the
same one, whatever the order they came in. A tombstone is a record like any other (a revocation): it outranks what it
revokes and stays until it expires, so that a late copy of the revoked record can't come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from dht.contact import ID_BYTES
from dht.errors import InvalidRecord
from protocol.errors import P2PError
from protocol.types import Network
from protocol.wire import Envelope, open_envelope, parse_envelope

CLOCK_SKEW_S: Final = 600
"""How far in the future a record's time of issue may lie."""
MAX_SUB_KEY: Final = 32
# Hashes that are begun once and copied: thousands of records are named in a row.
_TAG: Final = blake2b(digest_size=8, person=b"p2pnode/dht-tag")
_NAME: Final = blake2b(digest_size=16, person=b"p2pnode/dht-rec")


class RecordMeta(Struct, frozen=True, gc=False):
    """What a validator reads out of a record's body."""

    publisher: bytes
    """The 32-byte key it belongs to; must be the envelope's signer unless the kind says otherwise in its validator."""
    sub_key: bytes
    """Which of the publisher's records it is (an offer id); at most 32 bytes; empty when there is only one."""
    sequence: int
    expires: int
    """Unix seconds."""
    topics: tuple[bytes, ...]
    """The 20-byte topics it may be stored under."""
    tombstone: bool = False
    issued: int = 0
    """Unix seconds; 0 when the body does not say."""
    pow_bits: int = 0
    value: object = None
    """What the validator made of the body, for whoever takes the record further."""


Validate = Callable[[Envelope, int], RecordMeta]
"""(envelope with a verified signature, unix now) -> meta. Raises a P2PError when the body is not valid."""


@dataclass(frozen=True, slots=True)
class RecordKind:
    """One kind of record and its limits."""

    kind: int
    validate: Validate
    max_bytes: int = 1_024
    max_lifetime_s: int = 30 * 86_400
    min_pow_bits: int = 0
    max_per_publisher: int = 64
    """Values that one publisher may have under one topic."""
    max_per_topic: int = 4_000


class Record(Struct, frozen=True, gc=False):
    """A record that passed every check."""

    raw: bytes
    envelope: Envelope
    meta: RecordMeta
    tag: bytes
    rank: tuple[int, bool, bytes]


def tag_of(meta: RecordMeta) -> bytes:
    """Eight bytes that name (publisher, sub-key) within a topic: the order of paging and the key of its slot."""
    hashed = _TAG.copy()
    hashed.update(meta.publisher + meta.sub_key)
    return hashed.digest()


class Registry:
    """The kinds that this node stores."""

    def __init__(self, network: Network, kinds: tuple[RecordKind, ...] = ()) -> None:
        self.network = network
        self._kinds: dict[int, RecordKind] = {}
        self.max_bytes = 0
        for kind in kinds:
            self.add(kind)

    def add(self, kind: RecordKind) -> None:
        """Register a kind; a number can be taken once."""
        if kind.kind in self._kinds:
            raise ValueError(f"record kind {kind.kind} is registered already")
        self._kinds[kind.kind] = kind
        self.max_bytes = max(self.max_bytes, kind.max_bytes)

    def rules(self, kind: int) -> RecordKind:
        """The rules of a kind. Raises InvalidRecord when it is not stored here."""
        rules = self._kinds.get(kind)
        if rules is None:
            raise InvalidRecord(f"records of kind {kind} are not stored here")
        return rules

    def check(self, raw: bytes, topic: bytes, now: int) -> Record:
        """Judge `raw` as a record under `topic` at unix time `now`. Raises InvalidRecord, whatever the bytes are."""
        if len(raw) > self.max_bytes:
            raise InvalidRecord(f"a record of {len(raw)} bytes")
        try:
            envelope = open_envelope(raw, self.network, limit=self.max_bytes)
            return self._judge(envelope, topic, now)
        except InvalidRecord:
            raise
        except P2PError as e:
            raise InvalidRecord(e.detail) from e

    def trust(self, raw: bytes, topic: bytes, now: int) -> Record:
        """`check` without the signature, for records that this node verified before it wrote them to its own disk."""
        try:
            return self._judge(parse_envelope(raw, self.network, limit=self.max_bytes), topic, now)
        except InvalidRecord:
            raise
        except P2PError as e:
            raise InvalidRecord(e.detail) from e

    def _judge(self, envelope: Envelope, topic: bytes, now: int) -> Record:
        rules = self.rules(envelope.kind)
        if len(envelope.raw) > rules.max_bytes:
            raise InvalidRecord(f"a record of kind {envelope.kind} with {len(envelope.raw)} bytes")
        meta = rules.validate(envelope, now)
        if len(meta.publisher) != 32 or len(meta.sub_key) > MAX_SUB_KEY:
            raise InvalidRecord("a record without a proper owner")
        if meta.expires <= now:
            raise InvalidRecord("the record has expired")
        if meta.expires > now + rules.max_lifetime_s + CLOCK_SKEW_S:
            raise InvalidRecord("the record would live too long")
        if meta.issued > now + CLOCK_SKEW_S:
            raise InvalidRecord("the record comes from the future")
        if meta.pow_bits < rules.min_pow_bits:
            raise InvalidRecord(f"proof of work of {meta.pow_bits} bits where {rules.min_pow_bits} are needed")
        if len(topic) != ID_BYTES or topic not in meta.topics:
            raise InvalidRecord("the record does not belong under this topic")
        # Not the envelope's id: that is the same for two signers of one body.
        name = _NAME.copy()
        name.update(envelope.raw)
        rank = (meta.sequence, meta.tombstone, name.digest())
        return Record(envelope.raw, envelope, meta, tag_of(meta), rank)
