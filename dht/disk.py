"""SQLite behind the storage and the routing table: what survives a restart.

Losing the last second of it costs nothing (others hold the same records), so writes are batched and `synchronous` is
NORMAL. For the same reason a disk that is full or breaks stops nobody: what can't be written waits in memory, as much
as fits there, and what can't be read is not there. The log says so once, and once more when it works again. Only a
file that can't be read at the start is an error. What is read back was verified before it was written; it is parsed
and judged again by its kind's rules, since those may have changed, but its signature is not checked twice.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from dht.contact import Contact, unpack_contact
from dht.errors import BadContact, BadPacket
from dht.records import Record
from dht.rpc import Rng
from dht.storage import Storage, StorageLimits
from protocol.errors import DataCorrupt, LocalError

VERSION: Final = 1
BATCH: Final = 512
MAX_WAITING: Final = 16 * BATCH
"""Writes that are kept while the disk takes none; the oldest are given up first."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record (
    topic BLOB NOT NULL, tag BLOB NOT NULL, raw BLOB NOT NULL, source BLOB NOT NULL,
    stored_at INTEGER NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY (topic, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS peer (packed BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
"""


log = logging.getLogger(__name__)


class SqliteDisk:
    """One database file."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. Raises LocalError when the file can't be used, DataCorrupt when it is no such database."""
        self._path = path
        self._failing = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.OperationalError as e:
            raise LocalError(f"can't open the DHT database {path}: {e}") from e
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, VERSION):
                raise LocalError(f"the DHT database {path} was written by a newer version")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as e:
            self._db.close()
            raise self._damaged(e) from e
        self._writes: dict[tuple[bytes, bytes], tuple[bytes, bytes, int, int] | None] = {}

    def secret(self, fresh: bytes) -> bytes:
        """The secret kept with this file; `fresh` becomes it the first time."""
        try:
            self._db.execute("INSERT OR IGNORE INTO secret (id, value) VALUES (1, ?)", (fresh,))
            return bytes(self._db.execute("SELECT value FROM secret").fetchone()[0])
        except sqlite3.OperationalError as e:
            raise LocalError(f"can't write the DHT database {self._path}: {e}") from e
        except sqlite3.DatabaseError as e:
            raise self._damaged(e) from e

    def _damaged(self, error: sqlite3.Error) -> DataCorrupt:
        return DataCorrupt(f"{self._path} is not a DHT database or is damaged: {error}; it may be deleted")

    def _failed(self, error: sqlite3.Error) -> None:
        if not self._failing:
            log.warning("the DHT database %s can't be used (%s): the node goes on in memory", self._path, error)
        self._failing = True

    def put(self, topic: bytes, tag: bytes, record: Record, group: bytes, stored_at: int) -> None:
        """Insert or replace one slot."""
        self._write(topic, tag, (record.raw, group, stored_at, record.meta.expires))

    def delete(self, topic: bytes, tag: bytes) -> None:
        """Remove one slot."""
        self._write(topic, tag, None)

    def _write(self, topic: bytes, tag: bytes, row: tuple[bytes, bytes, int, int] | None) -> None:
        self._writes[topic, tag] = row
        if len(self._writes) >= BATCH and not self._failing:
            self.flush()
        elif len(self._writes) > MAX_WAITING:
            del self._writes[next(iter(self._writes))]

    def get(self, topic: bytes, tag: bytes) -> bytes | None:
        """The raw record of a slot."""
        if (topic, tag) in self._writes:
            row = self._writes[topic, tag]
            return row[0] if row else None
        try:
            found = self._db.execute("SELECT raw FROM record WHERE topic = ? AND tag = ?", (topic, tag)).fetchone()
        except sqlite3.Error as e:
            self._failed(e)
            return None
        return found[0] if found else None

    def load(self, now: int) -> Iterator[tuple[bytes, bytes, bytes, int]]:
        """(topic, raw, group, stored_at) of every record that has not expired; the expired ones are deleted.

        Raises DataCorrupt when the file is damaged.
        """
        self.flush()
        try:
            try:
                self._db.execute("DELETE FROM record WHERE expires <= ?", (now,))
            except sqlite3.OperationalError as e:
                self._failed(e)
            rows = self._db.execute("SELECT topic, raw, source, stored_at FROM record WHERE expires > ?", (now,))
            yield from rows
        except sqlite3.DatabaseError as e:
            raise self._damaged(e) from e

    def flush(self) -> None:
        """Make everything written so far durable, in one transaction; what the disk does not take is kept and waits."""
        if not self._writes:
            return
        writes, self._writes = self._writes, {}
        try:
            self._write_all(writes)
        except sqlite3.Error as e:
            self._failed(e)
            self._writes = writes
            return
        if self._failing:
            log.info("the DHT database %s works again", self._path)
        self._failing = False

    def _write_all(self, writes: dict[tuple[bytes, bytes], tuple[bytes, bytes, int, int] | None]) -> None:
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "DELETE FROM record WHERE topic = ? AND tag = ?", [k for k, row in writes.items() if row is None]
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO record (topic, tag, raw, source, stored_at, expires) VALUES (?, ?, ?, ?, ?, ?)",
                [(*k, *row) for k, row in writes.items() if row is not None],
            )

    def save_peers(self, contacts: Iterable[Contact]) -> None:
        """Keep these nodes for the next start, instead of those of before; where the disk takes none, those stay."""
        try:
            with self._db:
                self._db.execute("BEGIN")
                self._db.execute("DELETE FROM peer")
                self._db.executemany(
                    "INSERT OR REPLACE INTO peer (packed, position) VALUES (?, ?)",
                    [(c.packed, i) for i, c in enumerate(contacts)],
                )
        except sqlite3.Error as e:
            self._failed(e)

    def load_peers(self) -> list[Contact]:
        """The nodes kept last time."""
        out: list[Contact] = []
        try:
            rows = self._db.execute("SELECT packed FROM peer ORDER BY position").fetchall()
        except sqlite3.Error as e:
            self._failed(e)
            return out
        for (packed,) in rows:
            try:
                out.append(unpack_contact(packed))
            except (BadContact, BadPacket):
                continue
        return out

    def close(self) -> None:
        """Flush and let go of the file."""
        self.flush()
        self._db.close()


def open_storage(path: Path | str, rng: Rng, limits: StorageLimits | None = None) -> Storage:
    """A storage with this database file behind it. Raises LocalError or DataCorrupt."""
    disk = SqliteDisk(path)
    return Storage(limits, disk, secret=disk.secret(rng.randbytes(16)))
