"""Sequence numbers of the records that we sign, which must only grow."""

from __future__ import annotations

from p2pnode.database import Database


def next_number(database: Database, name: str, now: int) -> int:
    """The next number of a counter, on disk before it is returned.

    It is at least `now` (Unix seconds), so that a node restored from its mnemonic alone, which has lost its counters,
    goes on above what it published before.
    """
    # All rows are fetched: only a statement that has run to its end is committed.
    rows = database.connection.execute(
        """INSERT INTO counters (name, value) VALUES (?, ?)
           ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value) RETURNING value""",
        (name, now),
    ).fetchall()
    return int(rows[0][0])
