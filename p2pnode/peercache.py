"""Nodes of the DHT that were known last time: a way back into the network when every seed is down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dht.contact import Contact
from dht.node import Seed
from p2pnode.database import Database

KEPT: Final = 200


class PeerCache:
    """The newest contacts in SQLite."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, limit: int = 32) -> list[Seed]:
        """The nodes seen last, newest first."""
        rows = self._database.connection.execute(
            "SELECT node, host, port FROM peers ORDER BY seen DESC LIMIT ?", (limit,)
        )
        return [Seed(host, port, bytes(node)) for node, host, port in rows]

    def save(self, contacts: Sequence[Contact], now: int) -> None:
        """Remember these as seen at `now`; only the newest are kept."""
        if not contacts:
            return
        with self._database.transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO peers (node, host, port, seen) VALUES (?, ?, ?, ?)",
                [(c.key, c.host, c.port, now) for c in contacts],
            )
            db.execute(
                "DELETE FROM peers WHERE node NOT IN (SELECT node FROM peers ORDER BY seen DESC LIMIT ?)", (KEPT,)
            )
