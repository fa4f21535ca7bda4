"""Reservations in SQLite: the node's own database, or any connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from escrow.coins import OutPoint
from escrow.wallet.base import AlreadyReserved, Reservation

SCHEMA = """
CREATE TABLE IF NOT EXISTS wallet_reservations (
    outpoint BLOB PRIMARY KEY,
    holder   BLOB NOT NULL,
    value    INTEGER NOT NULL,
    since    INTEGER NOT NULL
) WITHOUT ROWID
"""


class SqliteReservations:
    """A `ReservationStore`. The primary key makes it impossible that two trades hold one coin."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `connection` (on its own thread), making the table if needed.

        Inside an open transaction nothing is committed; outside one, each call is a transaction of its own.
        """
        self._connection = connection
        with self._transaction():
            connection.execute(SCHEMA)

    def all(self) -> tuple[Reservation, ...]:
        """Every reservation, oldest first."""
        rows = self._connection.execute(
            "SELECT outpoint, holder, value, since FROM wallet_reservations ORDER BY since, outpoint"
        )
        return tuple(Reservation(OutPoint.from_wire(o), holder, value, since) for o, holder, value, since in rows)

    def add(self, reservations: Sequence[Reservation]) -> None:
        """Keep all or none. Raises AlreadyReserved."""
        with self._transaction():
            for r in reservations:
                row = self._connection.execute(
                    "SELECT holder FROM wallet_reservations WHERE outpoint = ?", (r.outpoint.wire,)
                ).fetchone()
                if row is not None and row[0] != r.holder:
                    raise AlreadyReserved(f"the coin {r.outpoint} is held by trade {row[0].hex()[:16]} already")
                self._connection.execute(
                    "INSERT INTO wallet_reservations VALUES (?, ?, ?, ?) ON CONFLICT (outpoint) DO NOTHING",
                    (r.outpoint.wire, r.holder, r.value, r.since),
                )

    def remove(self, holder: bytes) -> None:
        """Forget what `holder` holds."""
        with self._transaction():
            self._connection.execute("DELETE FROM wallet_reservations WHERE holder = ?", (holder,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A savepoint: undone alone when it fails, committed with the transaction that it is in, or by itself."""
        outermost = not self._connection.in_transaction
        self._connection.execute("SAVEPOINT reservations")
        try:
            yield
            self._connection.execute("RELEASE reservations")
        except BaseException:
            # SQLite may have undone all of it itself; left open, it would swallow what comes next.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK" if outermost else "ROLLBACK TO reservations")
            if not outermost and self._connection.in_transaction:
                self._connection.execute("RELEASE reservations")
            raise
