"""The node's SQLite database: opened durable, migrated in order, used from the event loop's thread only.

WAL with `synchronous=FULL`: a commit that returned has reached the disk, which is what lets effects follow it. Every
commit is short (one trade's rows), so it is made on the event loop's own thread; that thread is then the only writer
and no row can change between a decision and its record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from protocol.errors import Action, DataCorrupt, LocalError


class DatabaseTooNew(LocalError):
    """The data directory was written by a newer version of p2pnode: use that version."""

    code = 1304
    action = Action.STOP


class Database:
    """One connection, with explicit transactions that may be nested."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the database at `path` and bring it to this version.

        Raises DataCorrupt, DatabaseTooNew.
        """
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.execute("PRAGMA foreign_keys = ON")
            _migrate(self.connection)
        except sqlite3.DatabaseError as e:
            self.connection.close()
            raise DataCorrupt(f"the database {path} can't be read ({e}): restore it from a backup") from e
        except BaseException:
            self.connection.close()
            raise
        if path != ":memory:":
            Path(path).chmod(0o600)

    def close(self) -> None:
        """Close the connection. Everything committed is on disk."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Inside another transaction it joins that one."""
        if self.connection.in_transaction:
            yield self.connection
            return
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")


def _scripts() -> list[tuple[int, str]]:
    folder = resources.files("p2pnode") / "migrations"
    found = [(int(f.name.split("_")[0]), f.read_text("utf-8")) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    scripts = _scripts()
    if version > scripts[-1][0]:
        raise DatabaseTooNew
    for number, script in scripts:
        if number > version:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
