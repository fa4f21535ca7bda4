"""What one mailbox and one parcel may take of a node (SPEC sections 10.4 and 12), by the rules that nodes run with."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest
from msgspec.structs import replace

from dht.records import Record, RecordMeta, Registry, tag_of
from dht.storage import Outcome, Storage
from p2pnode.records import record_kinds
from protocol.types import Network
from protocol.wire import Kind, assemble

NETWORK = Network.REGTEST
NOW, LATER = 1_000_000, 1_100_000
TOPIC = b"t" * 20
REGISTRY = Registry(NETWORK, record_kinds(NETWORK))


def record(kind: Kind, publisher: bytes, sub_key: bytes, size: int) -> Record:
    """A record as it comes out of its checks, which are other tests' business."""
    raw = blake2b(publisher + sub_key).digest().ljust(size, b"x")
    meta = RecordMeta(publisher, sub_key, 1, LATER, (TOPIC,), issued=NOW)
    envelope = replace(assemble(kind, NETWORK, publisher, b"", bytes(64)), raw=raw)
    return Record(raw, envelope, meta, tag_of(meta), (1, False, raw[:16]))


def offered(kind: Kind, count: int, *, publishers: int) -> list[Outcome]:
    """What becomes of so many records of a kind under one topic, each from an address of its own."""
    rng = random.Random(4)
    storage = Storage(secret=b"s" * 16)
    keys = [rng.randbytes(32) for _ in range(publishers)]
    found = []
    for i in range(count):
        made = record(kind, keys[i % publishers], b"" if publishers == count else bytes([i]), 300)
        found.append(storage.put(TOPIC, made, REGISTRY.rules(kind), rng.randbytes(3), NOW).outcome)
        assert storage.total(TOPIC) <= {Kind.MAIL_SLIP: 192, Kind.MAIL_ANSWER: 192, Kind.MAIL_CHUNK: 8}[kind]
    return found


@pytest.mark.parametrize(("kind", "slots"), [(Kind.MAIL_SLIP, 192), (Kind.MAIL_ANSWER, 192), (Kind.MAIL_CHUNK, 8)])
def test_topic_of_mail_has_so_many_slots_and_no_more(kind: Kind, slots: int) -> None:
    found = offered(kind, slots + 20, publishers=slots + 20)
    assert found[:slots] == [Outcome.STORED] * slots


@pytest.mark.parametrize("kind", [Kind.MAIL_SLIP, Kind.MAIL_ANSWER])
def test_one_key_has_one_slip_in_a_mailbox(kind: Kind) -> None:
    found = offered(kind, 10, publishers=1)
    assert found == [Outcome.STORED] + [Outcome.FULL] * 9
