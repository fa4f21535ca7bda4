"""Who pays when the store is full: every quota bites, and nobody can steer the choice to somebody else."""

from __future__ import annotations

import random
from pathlib import Path

from msgspec.structs import replace

from dht.disk import MAX_WAITING, SqliteDisk, open_storage
from dht.records import Record, RecordKind
from dht.storage import STALE_EXPIRIES, Outcome, Storage, StorageLimits
from protocol.types import Network
from protocol.wire import Envelope
from tests.unit.test_dht_storage import RULES, TOPIC, make, record

SIZE = len(record().raw)
WIDE = RecordKind(2, RULES.validate, max_per_publisher=100, max_per_topic=100)


def topic(number: int) -> bytes:
    return bytes([number]) * 20


def full_topic(secret: bytes = b"s" * 16, *, first: int = 20) -> Storage:
    """A topic with ten records of ten personas from ten address groups, of the same work; `first`: that of one."""
    storage = Storage(StorageLimits(), secret=secret)
    for who in range(1, 11):
        storage.put(TOPIC, record(who, work=first if who == 1 else 20), RULES, bytes([who]), 0)
    return storage


def signed_by(signer: bytes, of: Record) -> Record:
    envelope = Envelope(kind=2, network=Network.REGTEST, signer=signer, body=b"", signature=b"", raw=of.raw)
    return replace(of, envelope=envelope)


class TestQuotas:
    """What one publisher, one address group or everybody together may keep here."""

    def test_one_publisher_can_not_fill_the_store_over_many_topics(self) -> None:
        storage = make(max_per_publisher=4)
        outcomes = [storage.put(topic(n), record(1), RULES, bytes([n]), 0).outcome for n in range(6)]
        assert outcomes == [Outcome.STORED] * 4 + [Outcome.FULL] * 2
        assert storage.put(topic(9), record(2), RULES, b"g", 0).outcome is Outcome.STORED

    def test_invented_topics_end_at_the_limit_and_known_ones_go_on(self) -> None:
        storage = make(max_topics=3)
        for n in range(3):
            assert storage.put(topic(n), record(n, expires=50 + n), RULES, b"g", 0).outcome is Outcome.STORED
        assert storage.put(topic(3), record(3), RULES, b"g", 0).outcome is Outcome.FULL
        assert storage.put(topic(1), record(3), RULES, b"g", 0).outcome is Outcome.STORED
        assert storage.put(topic(3), record(4), RULES, b"g", 50).outcome is Outcome.STORED, "the first has expired"

    def test_small_records_end_at_the_limit_of_their_number(self) -> None:
        storage = make(max_records=5)
        outcomes = [storage.put(topic(n), record(n), RULES, bytes([n]), 0).outcome for n in range(7)]
        assert outcomes == [Outcome.STORED] * 5 + [Outcome.FULL] * 2
        assert storage.records == 5

    def test_the_share_of_a_group_is_free_again_when_its_records_are_gone(self) -> None:
        storage = make(max_bytes=10 * SIZE, group_share=0.2)
        for start, now in ((0, 0), (10, 50)):
            storage.expire(now)
            outcomes = [
                storage.put(topic(start + n), record(n, expires=now + 50), RULES, b"g", now).outcome for n in range(3)
            ]
            assert outcomes == [Outcome.STORED, Outcome.STORED, Outcome.FULL]

    def test_a_publishers_quota_is_free_again_when_its_records_are_gone(self) -> None:
        storage = make(max_per_publisher=2)
        for now in (0, 50):
            storage.expire(now)
            outcomes = [storage.put(topic(n), record(1, expires=now + 50), RULES, b"g", now).outcome for n in range(3)]
            assert outcomes == [Outcome.STORED, Outcome.STORED, Outcome.FULL]

    def test_who_passes_an_update_on_does_not_pay_for_it(self) -> None:
        """Else anybody's quota could be used up by having him store others' records again."""
        storage = make(max_bytes=10 * SIZE, group_share=0.2)
        storage.put(topic(1), record(1), RULES, b"a", 0)
        storage.put(topic(1), record(1, seq=2), RULES, b"b", 0)
        outcomes = [storage.put(topic(n), record(n), RULES, b"b", 0).outcome for n in (2, 3, 4)]
        assert outcomes == [Outcome.STORED, Outcome.STORED, Outcome.FULL]


class TestUpdates:
    """A newer version in the place of an older one."""

    def test_an_update_can_not_grow_past_the_limit_and_the_old_version_stays(self) -> None:
        storage = make(max_bytes=2 * SIZE + 50, group_share=1.0)
        storage.put(topic(1), record(1), RULES, b"a", 0)
        storage.put(topic(2), record(2), RULES, b"b", 0)
        assert storage.put(topic(1), record(1, seq=2, size=200), RULES, b"a", 0).outcome is Outcome.FULL
        assert storage.all(topic(1), 0) == [record(1).raw]
        assert storage.put(topic(1), record(1, seq=2), RULES, b"a", 0).outcome is Outcome.STORED

    def test_a_revocation_is_heard_however_full_the_store_is(self) -> None:
        storage = make(max_bytes=2 * SIZE, group_share=1.0)
        storage.put(topic(1), record(1), RULES, b"a", 0)
        storage.put(topic(2), record(2), RULES, b"b", 0)
        gone = record(1, seq=2, gone=True, size=150)
        assert storage.put(topic(1), gone, RULES, b"a", 0).outcome is Outcome.STORED
        assert storage.all(topic(1), 0) == [gone.raw]

    def test_what_has_expired_stands_in_nobodys_way(self) -> None:
        storage = make()
        storage.put(TOPIC, record(1, seq=9, expires=50), RULES, b"g", 0)
        assert storage.put(TOPIC, record(1, seq=1), RULES, b"g", 60).outcome is Outcome.STORED
        assert storage.all(TOPIC, 60) == [record(1, seq=1).raw]

    def test_a_quota_can_not_be_spent_by_records_that_others_sign_in_ones_name(self) -> None:
        """Answers to mail and proofs of equivocation belong to a key that did not sign them."""
        storage = make(max_per_publisher=4)
        for n in range(10):
            storage.put(topic(n), signed_by(b"evil" * 8, record(1)), RULES, b"evil", 0)
        assert storage.records == 4, "the signer's own quota"
        assert storage.put(topic(20), record(1), RULES, b"good", 0).outcome is Outcome.STORED
        assert storage.put(topic(21), record(2), RULES, b"good", 0).outcome is Outcome.STORED

    def test_one_group_can_not_take_all_places_with_small_records(self) -> None:
        storage = make(max_bytes=100_000, max_records=100, group_share=0.25)
        outcomes = [storage.put(topic(n), record(n), RULES, b"evil", 0).outcome for n in range(30)]
        assert outcomes == [Outcome.STORED] * 25 + [Outcome.FULL] * 5

    def test_versions_without_end_leave_nothing_behind(self) -> None:
        """Each version's end stood in a queue until it came: a month, whatever had taken its place."""
        storage = make()
        for seq in range(3 * STALE_EXPIRIES):
            storage.put(TOPIC, record(1, seq=seq + 1), RULES, b"g", 0)
        assert len(storage._expiry) <= STALE_EXPIRIES + 2
        assert storage.expire(1_000) == 1, "the one that stands is still known to end"
        assert storage.records == 0


class TestAFullTopic:
    """Somebody goes: of the heaviest group, the heaviest publisher's, the one with the least work, by lot."""

    def test_of_equal_groups_the_publisher_with_the_most_records_pays(self) -> None:
        storage = make()
        for n in range(3):
            storage.put(TOPIC, record(1, bytes([n]), work=99), RULES, bytes([n]), 0)
        others = [record(who) for who in range(2, 9)]
        for other in others:
            storage.put(TOPIC, other, RULES, other.raw[:1] * 2, 0)
        assert storage.put(TOPIC, record(50), RULES, b"new", 0).outcome is Outcome.STORED
        assert {r.raw for r in others} <= set(storage.all(TOPIC, 0)), "work does not buy places"

    def test_of_equals_the_one_with_the_least_work_goes(self) -> None:
        storage = full_topic(first=3)
        assert storage.put(TOPIC, record(50, work=20), RULES, b"new", 0).outcome is Outcome.STORED
        assert record(1).raw not in storage.all(TOPIC, 0)

    def test_a_newcomer_that_would_go_first_pushes_nobody_out(self) -> None:
        storage = full_topic()
        before = storage.all(TOPIC, 0)
        assert storage.put(TOPIC, record(50, work=19), RULES, b"new", 0).outcome is Outcome.FULL
        assert storage.all(TOPIC, 0) == before

    def test_nobody_can_tell_who_goes_among_equals(self) -> None:
        """An attacker that could would grind keys until it is the record that he wants away."""
        gone = set()
        for n in range(32):
            storage = full_topic(bytes([n]) * 16)
            before = set(storage.all(TOPIC, 0))
            storage.put(TOPIC, record(50, work=20), RULES, b"new", 0)
            gone |= before - set(storage.all(TOPIC, 0))
        assert len(gone) >= 5


class TestAFullStore:
    """The heaviest address group makes room, whatever its records are."""

    def test_the_heaviest_group_pays_even_if_it_has_the_most_work(self) -> None:
        storage = make(max_bytes=4 * SIZE, group_share=1.0)
        storage.put(topic(1), record(1), RULES, b"good", 0)
        for who in (2, 3, 4):
            storage.put(topic(who), record(who, work=99), RULES, b"evil", 0)
        assert storage.put(topic(5), record(5), RULES, b"new", 0).outcome is Outcome.STORED
        assert storage.all(topic(1), 0) == [record(1).raw]

    def test_in_it_the_publisher_with_the_most_records_pays(self) -> None:
        storage = make(max_bytes=3 * SIZE, group_share=1.0)
        storage.put(topic(1), record(1), RULES, b"evil", 0)
        for n in (2, 3):
            storage.put(topic(n), record(2, work=99), RULES, b"evil", 0)
        assert storage.put(topic(5), record(5), RULES, b"new", 0).outcome is Outcome.STORED
        assert storage.all(topic(1), 0) == [record(1).raw]

    def test_of_equals_in_it_the_one_with_the_least_work_goes(self) -> None:
        for n in range(8):
            storage = Storage(StorageLimits(max_bytes=2 * SIZE, group_share=1.0), secret=bytes([n]) * 16)
            storage.put(topic(1), record(1, work=9), RULES, b"evil", 0)
            storage.put(topic(2), record(2, work=8), RULES, b"evil", 0)
            assert storage.put(topic(5), record(5), RULES, b"new", 0).outcome is Outcome.STORED
            assert storage.all(topic(1), 0) == [record(1).raw]

    def test_a_newcomer_whose_group_would_be_the_heaviest_pushes_nobody_out(self) -> None:
        storage = make(max_bytes=2 * SIZE, group_share=1.0)
        storage.put(topic(1), record(1), RULES, b"a", 0)
        storage.put(topic(2), record(2), RULES, b"b", 0)
        assert storage.put(topic(3), record(3), RULES, b"a", 0).outcome is Outcome.FULL
        assert (storage.total(topic(1)), storage.total(topic(2))) == (1, 1)


def test_who_was_pushed_out_does_not_come_back_with_a_restart(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1))
    for who in range(1, 31):
        storage.put(TOPIC, record(who, work=who), RULES, bytes([who]), 0)
    kept = set(storage.all(TOPIC, 0))
    assert len(kept) == 10
    assert storage.evicted > 0
    storage.close()
    disk = SqliteDisk(tmp_path / "dht.sqlite")
    assert {raw for _, raw, _, _ in disk.load(0)} == kept
    disk.close()


def test_the_memory_cap_holds_for_what_is_read_as_for_what_is_written(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1), StorageLimits(memory_bytes=5 * SIZE))
    for who in range(1, 61):
        storage.put(TOPIC, record(who), WIDE, bytes([who]), 0)
        assert storage.memory <= 5 * SIZE
    storage.flush()
    assert len(storage.all(TOPIC, 0)) == 60
    in_memory = sum(len(slot.raw) for slot in storage.slots(TOPIC) if slot.raw is not None)
    assert in_memory == storage.memory <= 5 * SIZE
    storage.close()


def test_room_is_made_for_more_than_one_when_it_costs_a_walk_over_everything() -> None:
    """A full store in which each newcomer costs a walk of its own is one that a few newcomers per second keep busy."""
    storage = make(max_records=2_560, group_share=1.0)
    for n in range(2_560):
        storage.put(n.to_bytes(20, "big"), record(n % 200), WIDE, b"evil", 0)
    assert storage.put(b"new" + bytes(17), record(250), WIDE, b"good", 0).outcome is Outcome.STORED
    assert 2_540 <= storage.records <= 2_555
    assert storage.evicted == 2_561 - storage.records


def test_a_record_that_a_failing_disk_lost_is_stored_again_when_it_comes_again(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1), StorageLimits(memory_bytes=20_000))
    disk = storage.disk
    assert isinstance(disk, SqliteDisk)
    pages = disk._db.execute("PRAGMA page_count").fetchone()[0]
    disk._db.execute(f"PRAGMA max_page_count = {pages}")
    storage.put(TOPIC, record(1), RULES, b"g", 0)
    for n in range(MAX_WAITING + 10):
        storage.put(n.to_bytes(20, "big"), record(2 + n % 250), WIDE, b"g", 0)
    assert storage.all(TOPIC, 0) == [], "what waited longest was given up"
    disk._db.execute(f"PRAGMA max_page_count = {2**30}")
    storage.flush()
    assert storage.put(TOPIC, record(1), RULES, b"h", 0).outcome is Outcome.STORED
    storage.flush()
    assert storage.all(TOPIC, 0) == [record(1).raw]
    assert storage.put(TOPIC, record(1), RULES, b"h", 0).outcome is Outcome.SAME
    storage.close()
