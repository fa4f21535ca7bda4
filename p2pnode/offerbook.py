"""The local order book: every offer that the network showed us, indexed for the questions people ask.

Only verified envelopes come in. A row without `raw` is a tombstone: it keeps a revoked or taken version from coming
back until the offer would have expired. Amounts are satoshis, prices minor units per bitcoin.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from p2pnode.database import Database
from protocol.offer import FixedPrice, Offer, Revocation
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, open_envelope, parse_envelope, unpack

MAX_LISTED: Final = 1_000


class BookEntry(Struct, frozen=True):
    """An offer of the book, with the envelope that proves it."""

    envelope: Envelope
    offer: Offer
    seen: int


class BookFilter(Struct, frozen=True):
    """What to list; None means any. `side` is the maker's; `amount` must be within the offer's range."""

    currency: str | None = None
    side: Side | None = None
    method: str | None = None
    amount: int | None = None
    maker: bytes | None = None
    limit: int = 100


class OfferBook:
    """Offers in SQLite."""

    def __init__(self, database: Database, network: Network) -> None:
        self._db = database.connection
        self._network = network

    def add(self, envelope: Envelope, offer: Offer, now: int) -> bool:
        """Keep a verified offer unless this or a newer version, or its tombstone, is known. True when it is new."""
        fixed = isinstance(offer.price, FixedPrice)
        cursor = self._db.execute(
            f"""INSERT INTO book (maker, offer_id, sequence, envelope, raw, side, currency, amount_min, amount_max,
                                  price, margin, methods, expires, seen)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (maker, offer_id) DO UPDATE SET {_REPLACED} WHERE excluded.sequence > book.sequence""",  # noqa: S608
            (
                offer.maker,
                offer.offer_id,
                offer.sequence,
                envelope.id,
                envelope.raw,
                int(offer.side),
                offer.currency,
                offer.amount_min,
                offer.amount_max,
                offer.price.price if isinstance(offer.price, FixedPrice) else None,
                None if fixed else offer.price.margin,  # type: ignore[union-attr]  # mypy can't follow `fixed`
                f",{','.join(offer.methods)},",
                offer.expires,
                now,
            ),
        )
        return cursor.rowcount > 0

    def revoke(self, revocation: Revocation) -> bool:
        """Put a tombstone over every version up to its sequence. True when it hides something or is new."""
        cursor = self._db.execute(
            """INSERT INTO book (maker, offer_id, sequence, envelope, raw, side, currency, amount_min, amount_max,
                                 price, margin, methods, expires, seen)
               VALUES (?, ?, ?, x'', NULL, ?, ?, 0, 0, NULL, NULL, '', ?, 0)
               ON CONFLICT (maker, offer_id) DO UPDATE SET raw = NULL, sequence = excluded.sequence,
                   expires = max(excluded.expires, book.expires) WHERE excluded.sequence >= book.sequence""",
            (
                revocation.maker,
                revocation.offer_id,
                revocation.sequence,
                int(revocation.side),
                revocation.currency,
                revocation.expires,
            ),
        )
        return cursor.rowcount > 0

    def read(self, envelope: Envelope, now: int) -> bool:
        """Take in a checked record of the offers' topics, an offer or a revocation. True when it changed the book."""
        if envelope.kind == Kind.OFFER_REVOCATION:
            return self.revoke(unpack(envelope.body, Revocation, limit=Kind.OFFER_REVOCATION.limit))
        return self.add(envelope, unpack(envelope.body, Offer, limit=Kind.OFFER.limit), now)

    def find(self, offer_id: bytes, now: int) -> list[BookEntry]:
        """The live offers whose id begins with `offer_id`: one, unless two makers chose one id."""
        upper = offer_id + b"\xff" * (33 - len(offer_id))
        rows = self._db.execute(
            "SELECT raw, seen FROM book WHERE offer_id >= ? AND offer_id < ? AND raw IS NOT NULL AND expires > ?",
            (offer_id, upper, now),
        )
        return [self._entry(raw, seen) for raw, seen in rows]

    def search(self, wanted: BookFilter, now: int) -> list[BookEntry]:
        """Live offers that fit, best price first for whoever takes them (cheapest of sellers, dearest of buyers)."""
        clauses, values = ["raw IS NOT NULL", "expires > ?"], [now]
        conditions: list[tuple[str, object | None]] = [
            ("currency = ?", wanted.currency),
            ("side = ?", None if wanted.side is None else int(wanted.side)),
            ("maker = ?", wanted.maker),
            ("methods LIKE '%,' || ? || ',%'", wanted.method),
            ("amount_min <= ?", wanted.amount),
            ("amount_max >= ?", wanted.amount),
        ]
        bound: list[object] = list(values)
        for clause, value in conditions:
            if value is not None:
                clauses.append(clause)
                bound.append(value)
        order = "price DESC, margin DESC" if wanted.side is Side.BUY else "price, margin"
        query = f"SELECT raw, seen FROM book WHERE {' AND '.join(clauses)} ORDER BY {order} LIMIT ?"  # noqa: S608
        bound.append(min(wanted.limit, MAX_LISTED))
        return [self._entry(raw, seen) for raw, seen in self._db.execute(query, bound)]

    def markets(self) -> list[tuple[str, Side, int]]:
        """(currency, maker's side, live offers) of every market that we hold."""
        rows = self._db.execute(
            "SELECT currency, side, count(*) FROM book WHERE raw IS NOT NULL GROUP BY currency, side ORDER BY 1, 2"
        )
        return [(currency, Side(side), count) for currency, side, count in rows]

    def expire(self, now: int) -> int:
        """Forget offers and tombstones whose time is over; how many."""
        return self._db.execute("DELETE FROM book WHERE expires <= ?", (now,)).rowcount

    def _entry(self, raw: bytes, seen: int) -> BookEntry:
        # Verified before it was stored; the disk is ours.
        envelope = parse_envelope(raw, self._network, limit=Kind.OFFER.limit)
        return BookEntry(envelope, unpack(envelope.body, Offer, limit=Kind.OFFER.limit), seen)

    def verify(self, entry: BookEntry) -> None:
        """Check the stored envelope's signature again, before money follows from it. Raises BadSignature."""
        open_envelope(entry.envelope.raw, self._network, limit=Kind.OFFER.limit)


_REPLACED: Final = ", ".join(
    f"{c} = excluded.{c}"
    for c in (
        "sequence",
        "envelope",
        "raw",
        "side",
        "currency",
        "amount_min",
        "amount_max",
        "price",
        "margin",
        "methods",
        "expires",
        "seen",
    )
)
