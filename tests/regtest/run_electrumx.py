"""Runs ElectrumX with Python's own SQLite instead of LevelDB, which has no wheel for every Python."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from electrumx.cli.electrumx_server import main
from electrumx.lib import coins
from electrumx.server import storage, transport

_CHUNK = 1_000


class SQLite(storage.Storage):  # type: ignore[misc]  # it comes without types
    """One table of keys and values."""

    @classmethod
    def import_module(cls) -> None:
        """It is there."""

    def open(self, name: str, create: bool) -> None:
        self.lock = threading.Lock()
        self.db = sqlite3.connect(name, check_same_thread=False, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=MEMORY")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def close(self) -> None:
        self.db.close()

    def get(self, key: bytes) -> bytes | None:
        with self.lock:
            row = self.db.execute("SELECT v FROM kv WHERE k=?", (key,)).fetchone()
        return bytes(row[0]) if row else None

    def put(self, key: bytes, value: bytes) -> None:
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO kv VALUES (?,?)", (key, value))

    def write_batch(self) -> Batch:
        return Batch(self)

    def iterator(self, prefix: bytes = b"", reverse: bool = False) -> Pairs:
        return Pairs(self, prefix, reverse=reverse)


class Batch:
    """All or nothing."""

    def __init__(self, store: SQLite) -> None:
        self.store = store
        self.work: list[tuple[str, tuple[bytes, ...]]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.work.append(("INSERT OR REPLACE INTO kv VALUES (?,?)", (key, value)))

    def delete(self, key: bytes) -> None:
        self.work.append(("DELETE FROM kv WHERE k=?", (key,)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            with self.store.lock:
                self.store.db.execute("BEGIN")
                for sql, values in self.work:
                    self.store.db.execute(sql, values)
                self.store.db.execute("COMMIT")


class Pairs:
    """Keys with a prefix in order; `seek` moves to the next key that is not before another."""

    def __init__(self, store: SQLite, prefix: bytes, *, reverse: bool) -> None:
        self.store, self.prefix, self.reverse = store, prefix, reverse
        self.bound: bytes | None = None
        self.rows: Iterator[tuple[bytes, bytes]] | None = None

    def __iter__(self) -> Pairs:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        if self.rows is None:
            self.rows = self._read()
        key, value = next(self.rows)
        if not key.startswith(self.prefix):
            raise StopIteration
        return key, value

    def seek(self, key: bytes) -> None:
        self.bound, self.rows = key, None

    def _read(self) -> Iterator[tuple[bytes, bytes]]:
        compare, order = ("<", "DESC") if self.reverse else (">=", "ASC")
        bound = self.prefix + b"\xff" * 80 if self.reverse else self.prefix
        bound = self.bound if self.bound is not None else bound
        while True:
            with self.store.lock:
                sql = f"SELECT k, v FROM kv WHERE k {compare} ? ORDER BY k {order} LIMIT {_CHUNK}"
                rows = self.store.db.execute(sql, (bound,)).fetchall()
            yield from rows
            if len(rows) < _CHUNK:
                return
            bound, compare = rows[-1][0], "<" if self.reverse else ">"


if __name__ == "__main__":
    storage.SQLite = SQLite  # engines are looked for in that module
    # Small answers wait a second for others, so that an eavesdropper learns less from their sizes.
    transport.PaddedRSTransport.WAIT_FOR_BUFFER_GROWTH_SECONDS = 0.0
    # It asks for Bitcoin Core 31 because of questions in version 1.7 of the protocol, which we do not ask.
    coins.BitcoinRegtest.MIN_REQUIRED_DAEMON_VERSION = None
    coins.BitcoinRegtest.REQUIRED_DAEMON_INDEXES = ("txindex",)
    main()
