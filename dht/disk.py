"""SQLite behind the storage and the routing table: what survives a restart.

Losing the last second of it costs nothing (others hold the same records), so writes are batched and `synchronous` is
NORMAL. What is read back was verified before it was written; it is parsed and judged again by its kind's rules, since
those may have changed, but its signature is not checked twice.
"""

from __future__ import annotations

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
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record (
    topic BLOB NOT NULL, tag BLOB NOT NULL, raw BLOB NOT NULL, source BLOB NOT NULL,
    stored_at INTEGER NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY (topic, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS peer (packed BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
"""


class SqliteDisk:
    """One database file."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. Raises LocalError when the file can't be opened, DataCorrupt when it is no such database."""
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
            raise DataCorrupt(f"{path} is not a DHT database or is damaged: {e}; it may be deleted") from e
        self._writes: dict[tuple[bytes, bytes], tuple[bytes, bytes, int, int] | None] = {}

    def secret(self, fresh: bytes) -> bytes:
        """The secret kept with this file; `fresh` becomes it the first time."""
        self._db.execute("INSERT OR IGNORE INTO secret (id, value) VALUES (1, ?)", (fresh,))
        return bytes(self._db.execute("SELECT value FROM secret").fetchone()[0])

    def put(self, topic: bytes, tag: bytes, record: Record, group: bytes, stored_at: int) -> None:
        """Insert or replace one slot."""
        self._write(topic, tag, (record.raw, group, stored_at, record.meta.expires))

    def delete(self, topic: bytes, tag: bytes) -> None:
        """Remove one slot."""
        self._write(topic, tag, None)

    def _write(self, topic: bytes, tag: bytes, row: tuple[bytes, bytes, int, int] | None) -> None:
        self._writes[topic, tag] = row
        if len(self._writes) >= BATCH:
            self.flush()

    def get(self, topic: bytes, tag: bytes) -> bytes | None:
        """The raw record of a slot."""
        if (topic, tag) in self._writes:
            row = self._writes[topic, tag]
            return row[0] if row else None
        found = self._db.execute("SELECT raw FROM record WHERE topic = ? AND tag = ?", (topic, tag)).fetchone()
        return found[0] if found else None

    def load(self, now: int) -> Iterator[tuple[bytes, bytes, bytes, int]]:
        """(topic, raw, group, stored_at) of every record that has not expired; the expired ones are deleted."""
        self.flush()
        self._db.execute("DELETE FROM record WHERE expires <= ?", (now,))
        yield from self._db.execute("SELECT topic, raw, source, stored_at FROM record")

    def flush(self) -> None:
        """Make everything written so far durable, in one transaction."""
        if not self._writes:
            return
        writes, self._writes = self._writes, {}
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
        """Keep these nodes for the next start, instead of those of before."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM peer")
            self._db.executemany(
                "INSERT OR REPLACE INTO peer (packed, position) VALUES (?, ?)",
                [(c.packed, i) for i, c in enumerate(contacts)],
            )

    def load_peers(self) -> list[Contact]:
        """The nodes kept last time."""
        out: list[Contact] = []
        for (packed,) in self._db.execute("SELECT packed FROM peer ORDER BY position"):
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
