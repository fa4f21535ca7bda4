"""Which messages of the outbox have a copy in their recipient's mailbox."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from p2pnode.database import Database
from protocol.mailbox import BUCKETS, Parcel
from protocol.types import Network
from protocol.wire import Kind, pack, parse_envelope, unpack

_LIMIT: Final = Kind.MAIL_SLIP.limit + BUCKETS[-1] * (Kind.MAIL_CHUNK.limit + 3) + 16


class Posted(Struct, frozen=True):
    """The copy of one message. Times are Unix seconds; `secret` made its keys."""

    message: bytes
    recipient: bytes
    secret: bytes
    parcel: Parcel
    created: int
    expires: int


class MailStore:
    """Copies in SQLite."""

    def __init__(self, database: Database, network: Network) -> None:
        self._db = database.connection
        self._network = network

    def add(self, posted: Posted) -> None:
        """Keep a copy, instead of an older one of the same message."""
        raws = (posted.parcel.slip.raw, *(chunk.raw for chunk in posted.parcel.chunks))
        self._db.execute(
            """INSERT OR REPLACE INTO mail (message, recipient, secret, records, created, expires)
               VALUES (?, ?, ?, ?, ?, ?)""",
            (posted.message, posted.recipient, posted.secret, pack(raws), posted.created, posted.expires),
        )

    def all(self) -> list[Posted]:
        """Every copy, oldest first."""
        rows = self._db.execute(
            "SELECT message, recipient, secret, records, created, expires FROM mail ORDER BY created, message"
        )
        return [self._posted(*row) for row in rows]

    def has(self, message: bytes) -> bool:
        """Whether this message has a copy."""
        return self._db.execute("SELECT 1 FROM mail WHERE message = ?", (message,)).fetchone() is not None

    def remove(self, message: bytes) -> None:
        """Forget a copy, and the secret of its keys."""
        self._db.execute("DELETE FROM mail WHERE message = ?", (message,))

    def _posted(
        self, message: bytes, recipient: bytes, secret: bytes, records: bytes, created: int, expires: int
    ) -> Posted:
        raws = unpack(records, tuple[bytes, ...], limit=_LIMIT)
        slip, *chunks = (parse_envelope(raw, self._network) for raw in raws)
        return Posted(message, recipient, secret, Parcel(slip, tuple(chunks)), created, expires)
