"""The storage keeps the newest, within its limits, whoever pushes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.disk import SqliteDisk, open_storage
from dht.records import Record, RecordKind, RecordMeta, tag_of
from dht.storage import Outcome, Storage, StorageLimits
from protocol.errors import DataCorrupt
from protocol.types import Network
from protocol.wire import Envelope

TOPIC = b"t" * 20
RULES = RecordKind(2, lambda e, n: None, max_per_publisher=3, max_per_topic=10)  # type: ignore[arg-type,return-value]


def record(
    who: int = 1,
    sub: bytes = b"",
    seq: int = 1,
    *,
    gone: bool = False,
    size: int = 100,
    work: int = 0,
    expires: int = 1_000,
) -> Record:
    raw = bytes([who]) + sub + seq.to_bytes(4, "big") + bytes([gone]) + b"x" * size
    meta = RecordMeta(bytes([who]) * 32, sub, seq, expires, (TOPIC,), tombstone=gone, pow_bits=work)
    envelope = Envelope(kind=2, network=Network.REGTEST, signer=meta.publisher, body=b"", signature=b"", raw=raw)
    return Record(raw, envelope, meta, tag_of(meta), (seq, gone, raw[:16]))


def make(**limits: object) -> Storage:
    return Storage(StorageLimits(**limits), secret=b"s" * 16)  # type: ignore[arg-type]


@given(st.permutations([(1, False), (2, False), (2, True), (3, False), (4, True)]))
def test_all_orders_of_arrival_end_with_the_same_record(order: list[tuple[int, bool]]) -> None:
    storage = make()
    for seq, gone in order:
        storage.put(TOPIC, record(seq=seq, gone=gone), RULES, b"g", 0)
    assert storage.all(TOPIC, 0) == [record(seq=4, gone=True).raw]
    assert storage.records == 1


def test_a_replay_of_an_old_sequence_does_not_replace_the_newer() -> None:
    storage = make()
    storage.put(TOPIC, record(seq=5), RULES, b"g", 0)
    old = storage.put(TOPIC, record(seq=4), RULES, b"g", 0)
    assert old.outcome is Outcome.OLDER
    assert old.standing == record(seq=5).raw


def test_a_tombstone_wins_over_the_same_sequence() -> None:
    storage = make()
    storage.put(TOPIC, record(seq=5), RULES, b"g", 0)
    assert storage.put(TOPIC, record(seq=5, gone=True), RULES, b"g", 0).outcome is Outcome.STORED
    assert storage.put(TOPIC, record(seq=5), RULES, b"g", 0).outcome is Outcome.OLDER


def test_one_publisher_can_not_fill_a_topic() -> None:
    storage = make()
    outcomes = [storage.put(TOPIC, record(sub=bytes([i])), RULES, b"g", 0).outcome for i in range(5)]
    assert outcomes == [Outcome.STORED] * 3 + [Outcome.FULL] * 2


def test_one_address_group_can_not_fill_the_store() -> None:
    storage = make(max_bytes=10_000, group_share=0.25)
    stored = 0
    for who in range(100):
        topic = bytes([who]) * 20
        stored += storage.put(topic, record(who), RULES, b"one", 0).outcome is Outcome.STORED
    assert storage.bytes <= 2_500
    assert storage.put(b"z" * 20, record(200), RULES, b"other", 0).outcome is Outcome.STORED


def test_a_flood_of_free_personas_from_one_group_evicts_no_one_elses_record() -> None:
    storage = make()
    honest = [record(who) for who in range(1, 6)]
    for i, good in enumerate(honest):
        storage.put(TOPIC, good, RULES, bytes([i]), 0)
    for who in range(50, 200):
        storage.put(TOPIC, record(who, work=99), RULES, b"evil", 0)
    assert storage.total(TOPIC) == 10
    assert {r.raw for r in honest} <= set(storage.all(TOPIC, 0))


def test_a_newcomer_gets_room_from_the_heaviest_group() -> None:
    storage = make()
    for who in range(50, 60):
        storage.put(TOPIC, record(who), RULES, b"evil", 0)
    good = record(1)
    assert storage.put(TOPIC, good, RULES, b"good", 0).outcome is Outcome.STORED
    assert good.raw in storage.all(TOPIC, 0)


def test_a_full_store_makes_room_from_the_heaviest_group_only() -> None:
    storage = make(max_bytes=3_000, group_share=1.0)
    honest = [(bytes([i]) * 20, record(i)) for i in range(1, 6)]
    for topic, good in honest:
        storage.put(topic, good, RULES, topic[:1], 0)
    for who in range(50, 250):
        storage.put(bytes([who]) * 20, record(who), RULES, b"evil", 0)
    assert storage.bytes <= 3_000
    assert all(storage.all(topic, 0) == [good.raw] for topic, good in honest)
    assert storage.put(b"n" * 20, record(7), RULES, b"new", 0).outcome is Outcome.STORED


def test_what_expired_is_gone_and_frees_its_quota() -> None:
    storage = make()
    for i in range(3):
        storage.put(TOPIC, record(sub=bytes([i]), expires=50), RULES, b"g", 0)
    assert storage.all(TOPIC, 50) == []
    assert storage.expire(50) == 3
    assert storage.records == storage.bytes == 0
    assert storage.put(TOPIC, record(sub=b"n"), RULES, b"g", 50).outcome is Outcome.STORED


def test_equal_sets_have_equal_digests_whatever_the_history() -> None:
    one, two = make(), make()
    one.put(TOPIC, record(1), RULES, b"g", 0)
    one.put(TOPIC, record(2, seq=1), RULES, b"g", 0)
    one.put(TOPIC, record(2, seq=2), RULES, b"g", 0)
    two.put(TOPIC, record(2, seq=2), RULES, b"h", 0)
    assert one.digest(TOPIC) != two.digest(TOPIC)
    two.put(TOPIC, record(1), RULES, b"h", 0)
    assert one.digest(TOPIC) == two.digest(TOPIC)


@given(st.integers(30, 400), st.integers(1, 9))
def test_pages_give_every_record_once(room: int, count: int) -> None:
    storage = make()
    for who in range(count):
        storage.put(TOPIC, record(who, size=10), RULES, b"g", 0)
    got: list[bytes] = []
    after = bytes(8)
    more = True
    while more:
        page, large, more = storage.page(TOPIC, after, room, 0, 1_000)
        assert page
        assert not large
        got += page
        after = max(s.tag for s in storage.slots(TOPIC) if storage.get(TOPIC, s.tag) in page)
    assert sorted(got) == sorted(storage.all(TOPIC, 0))
    assert len(got) == count


def test_cold_records_come_back_from_disk(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1), StorageLimits(memory_bytes=250))
    wanted = {}
    for who in range(1, 9):
        topic = bytes([who]) * 20
        wanted[topic] = record(who).raw
        storage.put(topic, record(who), RULES, b"g", 0)
    assert storage.memory <= 250
    assert {t: storage.all(t, 0)[0] for t in wanted} == wanted
    storage.flush()
    assert {t: storage.all(t, 0)[0] for t in wanted} == wanted
    storage.close()
    disk = SqliteDisk(tmp_path / "dht.sqlite")
    assert {t: raw for t, raw, _, _ in disk.load(0)} == wanted
    assert list(disk.load(2_000)) == []
    disk.close()


def test_the_secret_of_eviction_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "dht.sqlite"
    first = SqliteDisk(path)
    secret = first.secret(b"1" * 16)
    first.close()
    again = SqliteDisk(path)
    assert again.secret(b"2" * 16) == secret
    again.close()


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "dht.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DataCorrupt, match="may be deleted"):
        SqliteDisk(path)
