"""The node's SQLite database: opened durable, migrated in order, used from the event loop's thread only.

WAL with `synchronous=FULL`: a commit that returned has reached the disk, which is what lets effects follow it. Every
commit is short (one trade's rows), so it is made on the event loop's own thread; that thread is then the only writer
and no row can change between a decision and its record.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from protocol.errors import Action, DataCorrupt, LocalError

log = logging.getLogger(__name__)


class DatabaseTooNew(LocalError):
    """The data directory was written by a newer version of p2pnode: use that version."""

    code = 1304
    action = Action.STOP


class DiskFull(LocalError):
    """The disk is full, or does not take what is written: make room. Nothing is lost; the node tries on by itself."""

    code = 1312
    action = Action.RETRY


class _Connection(sqlite3.Connection):
    """Says in our words what only the disk can refuse."""

    def execute(self, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401  (as sqlite3 has it)
        try:
            return super().execute(*args)
        except sqlite3.DatabaseError as e:
            raise _translated(e) from e

    def executemany(self, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        try:
            return super().executemany(*args)
        except sqlite3.DatabaseError as e:
            raise _translated(e) from e


ROOM_SECONDS = 2.0
"""Between two looks whether a full disk has room again."""


async def until_there_is_room(write: Callable[[], None]) -> None:
    """Call `write`; while the disk is full, again: for what happens once and has nobody else to say it again."""
    while True:
        try:
            write()
        except DiskFull as e:
            log.error("%s", e.detail)  # noqa: TRY400  (a full disk needs no traceback)
            await asyncio.sleep(ROOM_SECONDS)
        else:
            return


def _translated(error: sqlite3.DatabaseError) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return DiskFull(f"the disk does not take what is written ({error}): make room; nothing is lost")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataCorrupt(f"the database is damaged ({error}): restore it from a backup")
    return error


class Database:
    """One connection, with explicit transactions that may be nested."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the database at `path` and bring it to this version.

        Raises DataCorrupt, DatabaseTooNew.
        """
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=True, factory=_Connection)
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
            self.connection.execute("COMMIT")
        except BaseException:
            _roll_back(self.connection)
            raise


def _roll_back(connection: sqlite3.Connection) -> None:
    """Undo what SQLite has not undone itself when the disk was full; left open, it would swallow what comes next."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


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
