"""Reconciliation: every difference is found, at a cost that grows with the difference."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dht import sync
from dht.errors import BadPacket
from dht.records import RecordKind
from dht.storage import Storage, StorageLimits
from tests.unit.test_dht_storage import TOPIC, record

WIDE = RecordKind(2, lambda e, n: None, max_per_publisher=10**6, max_per_topic=10**6)  # type: ignore[arg-type,return-value]


def storage_of(subs: dict[int, int]) -> Storage:
    storage = Storage(StorageLimits(max_per_publisher=10**6), secret=b"s" * 16)
    for sub, seq in subs.items():
        storage.put(TOPIC, _named(sub, seq), WIDE, b"", 0)
    return storage


def _named(sub: int, seq: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    made = record(1, sub.to_bytes(4, "big"), seq)
    name = random.Random(sub * 1_000 + seq).randbytes(16)
    return replace(made, rank=(seq, False, name))


def pull(mine: Storage, theirs: Storage) -> tuple[sync.Puller, int, int]:
    puller = sync.Puller(TOPIC, sync.index_of(mine, TOPIC, 0))
    message: bytes | None = puller.start()
    sent = rounds = 0
    while message is not None:
        replies = list(sync.answer(message, theirs, 0))
        rounds += 1
        sent += len(message) + sum(map(len, replies))
        message = puller.heard(replies[0]) if replies[0][0] == sync.TELL else None
    return puller, sent, rounds


SETS = st.dictionaries(st.integers(0, 400), st.integers(1, 3), max_size=200)


@given(SETS, SETS)
@settings(max_examples=80, deadline=None)
def test_all_differences_are_found_and_nothing_else(mine: dict[int, int], theirs: dict[int, int]) -> None:
    if not mine:
        return
    puller, _, _ = pull(storage_of(mine), storage_of(theirs))
    tag = {sub: _named(sub, 1).tag for sub in {*mine, *theirs}}
    assert sorted(puller.missing) == sorted(tag[s] for s, seq in theirs.items() if mine.get(s) != seq)
    assert sorted(puller.surplus) == sorted(tag[s] for s in mine if s not in theirs)


def test_one_percent_of_ten_thousand_costs_under_two_percent_of_the_payload() -> None:
    theirs = dict.fromkeys(range(10_000), 1)
    mine = dict(theirs)
    for sub in random.Random(1).sample(range(10_000), 100):
        theirs[sub] = 2
    puller, sent, rounds = pull(storage_of(mine), storage_of(theirs))
    print(f"{sent} bytes, {rounds} rounds")
    assert len(puller.missing) == 100
    assert sent < 0.02 * 10_000 * 520
    assert rounds <= 5


def test_equal_sets_cost_one_round_of_a_few_bytes() -> None:
    same = storage_of(dict.fromkeys(range(500), 1))
    puller, sent, rounds = pull(same, same)
    assert puller.missing == puller.surplus == []
    assert rounds == 1
    assert sent < 80


def test_an_empty_side_gets_everything_in_one_request() -> None:
    theirs = storage_of(dict.fromkeys(range(2_000), 1))
    first = sync.Puller(TOPIC, sync.Index()).start()
    raws: list[bytes] = []
    more = True
    for frame in sync.answer(first, theirs, 0):
        assert len(frame) <= sync.FRAME
        part, more = sync.read_records(frame)
        raws += part
    assert not more
    assert sorted(raws) == sorted(theirs.all(TOPIC, 0))


@given(
    st.binary(max_size=400) | st.builds(lambda h, b: bytes([h]) + TOPIC + b, st.integers(0, 5), st.binary(max_size=300))
)
def test_no_message_raises_anything_but_bad_packet(message: bytes) -> None:
    storage = storage_of({1: 1, 2: 1})
    for reader in (
        lambda: list(sync.answer(message, storage, 0)),
        lambda: sync.read_records(message),
        lambda: sync.Puller(TOPIC, sync.index_of(storage, TOPIC, 0)).heard(message),
    ):
        try:
            reader()
        except BadPacket:
            continue


def test_a_holder_that_never_agrees_does_not_keep_us_for_ever() -> None:
    puller = sync.Puller(TOPIC, sync.Index([(b"a" * 8, b"b" * 8)]))
    lie = bytes([sync.TELL]) + b"\0" + sync.pack_sum((sync.FIRST, sync.LAST, 7, 9))
    for _ in range(sync.MAX_ROUNDS):
        assert puller.heard(lie) is not None
    with pytest.raises(BadPacket):
        puller.heard(lie)


class TestOverlap:
    """A frame may name two thousand ranges: if each may be everything, one frame keeps a node busy for seconds."""

    def test_a_holder_looks_at_each_record_once_for_a_message(self) -> None:
        storage = storage_of(dict.fromkeys(range(50), 1))
        whole = sync.index_of(storage, TOPIC, 0).sum(sync.FIRST, sync.LAST)
        assert list(sync.answer(sync.ask(TOPIC, [whole]), storage, 0)) == [bytes([sync.TELL])]
        with pytest.raises(BadPacket, match="overlap"):
            list(sync.answer(sync.ask(TOPIC, [whole, whole]), storage, 0))

    @pytest.mark.parametrize("kind", [0, 1], ids=["sums", "lists"])
    def test_a_reader_does_so_for_an_answer(self, kind: int) -> None:
        puller = sync.Puller(TOPIC, sync.index_of(storage_of(dict.fromkeys(range(50), 1)), TOPIC, 0))
        puller.start()
        whole = (sync.FIRST, sync.LAST, 1, 1)
        part = bytes([kind]) + (sync.pack_sum(whole) if kind == 0 else sync.FIRST + sync.LAST + bytes(2))
        with pytest.raises(BadPacket, match="overlap"):
            puller.heard(bytes([sync.TELL]) + part + part)
