"""A disk that is full, breaks, or was written to by somebody else: one clear error or none, never a crash."""

from __future__ import annotations

import logging
import random
import sqlite3
from pathlib import Path

import pytest

from dht.contact import Contact
from dht.disk import BATCH, MAX_WAITING, SqliteDisk, open_storage
from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, mine_node_key
from dht.storage import Outcome, Storage, StorageLimits
from protocol.errors import DataCorrupt, LocalError
from protocol.identity import SigningKey
from protocol.types import Network
from tests.network.dht_net import NOTES, WallClock, note
from tests.unit.test_dht_storage import RULES, TOPIC, record

ALICE = SigningKey(b"a" * 32)


def fill_up(storage: Storage) -> None:
    """No page more than the file has now: SQLite answers as it does on a full disk."""
    assert isinstance(storage.disk, SqliteDisk)
    storage.flush()
    db = storage.disk._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


def put_many(storage: Storage, count: int, first: int = 0) -> dict[bytes, bytes]:
    out: dict[bytes, bytes] = {}
    for i in range(first, first + count):
        topic = i.to_bytes(20, "big")
        one = record(1 + i % 200, i.to_bytes(4, "big"), size=900)
        assert storage.put(topic, one, RULES, bytes([i % 256]), 0).outcome is Outcome.STORED
        out[topic] = one.raw
    return out


def test_a_full_disk_stops_nobody_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dht.disk")
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1))
    kept = put_many(storage, 20)
    fill_up(storage)
    more = put_many(storage, 2 * BATCH, first=100)
    for _ in range(3):
        storage.flush()
    assert all(storage.all(topic, 0) == [raw] for topic, raw in (kept | more).items())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert isinstance(storage.disk, SqliteDisk)
    storage.disk.save_peers([Contact(ALICE.public, "127.0.0.1", 4_000)] * 3)
    # Somebody made room: nothing that waited was lost.
    storage.disk._db.execute("PRAGMA max_page_count = 100000")
    storage.flush()
    assert caplog.records[-1].levelname == "INFO"
    storage.close()
    again = SqliteDisk(tmp_path / "dht.sqlite")
    assert {topic: raw for topic, raw, _, _ in again.load(0)} == kept | more
    again.close()


def test_what_waits_for_a_full_disk_is_bounded(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1), StorageLimits(memory_bytes=100_000))
    fill_up(storage)
    put_many(storage, MAX_WAITING + 500)
    assert isinstance(storage.disk, SqliteDisk)
    assert len(storage.disk._writes) <= MAX_WAITING
    assert storage.memory <= 100_000
    # What was given up is not there, and says so in the way of everything that is not there.
    assert storage.all((0).to_bytes(20, "big"), 0) == []
    assert storage.page((0).to_bytes(20, "big"), bytes(8), 1_000, 0, 1_000) == ([], [], False)
    storage.close()


def node_with(storage: Storage) -> DhtNode:
    return DhtNode(
        DhtConfig(host="127.0.0.1", engine=EngineConfig(local_addresses=True)),
        mine_node_key(lambda i: i.to_bytes(32, "big"), 4)[1],
        Network.REGTEST,
        (NOTES,),
        storage,
        clock=WallClock(),
        rng=random.Random(1),
    )


def damage(path: Path) -> None:
    """Overwrite everything but the first page, as a dying disk does."""
    raw = bytearray(path.read_bytes())
    raw[4_096:] = random.Random(7).randbytes(len(raw) - 4_096)
    path.write_bytes(raw)


async def test_a_damaged_file_is_one_clear_error_when_the_node_starts(tmp_path: Path) -> None:
    path = tmp_path / "dht.sqlite"
    storage = open_storage(path, random.Random(1))
    put_many(storage, 200)
    storage.close()
    damage(path)

    async def start() -> None:
        node = node_with(open_storage(path, random.Random(1)))
        try:
            await node.start()
        finally:
            await node.close()

    with pytest.raises(DataCorrupt, match="may be deleted"):
        await start()


def test_a_file_that_breaks_while_the_node_runs_costs_what_was_in_it_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "dht.sqlite"
    storage = open_storage(path, random.Random(1), StorageLimits(memory_bytes=5_000))
    kept = put_many(storage, 200)
    storage.flush()
    assert isinstance(storage.disk, SqliteDisk)
    storage.disk._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    storage.disk._db.execute("PRAGMA cache_size = 0")
    damage(path)
    found = [storage.all(topic, 0) for topic in kept]
    assert all(got in ([], [raw]) for got, raw in zip(found, kept.values(), strict=True))
    late = put_many(storage, 3, first=5_000)
    storage.flush()
    assert all(storage.all(topic, 0) == [raw] for topic, raw in late.items())
    assert storage.disk.load_peers() == []
    storage.close()


def test_a_place_that_can_not_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="can't open"):
        open_storage(tmp_path / "missing" / "dht.sqlite", random.Random(1))
    full = tmp_path / "full.sqlite"
    db = sqlite3.connect(full)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LocalError, match="newer version"):
        open_storage(full, random.Random(1))


async def test_a_node_with_a_full_disk_goes_on_with_its_chores(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "dht.sqlite", random.Random(1))
    fill_up(storage)
    node = node_with(storage)
    await node.start()
    one = note(ALICE, TOPIC, b"x" * 900)
    await node.put(TOPIC, one)
    node._housekeep()
    assert node._housekeeper is not None
    assert [e.raw for e in await node.get(TOPIC)] == [one.raw]
    await node.close()
