"""The local order book: every offer that the network showed us, indexed for the questions people ask.

Only verified envelopes come in. A row that is not `live` is a tombstone: it keeps a revoked or taken version from
coming back until the offer would have expired. Amounts are satoshis, prices minor units per bitcoin.

A market is a currency and the maker's side. Within one, offers come best first for whoever takes them: fixed prices
(cheapest of sellers, dearest of buyers), then margins on a market price; equals in the order that they came in. `rank`
is that order as one number, and the index `book_order` holds all that a filter looks at, so that a question that fits
nothing in a book of 100,000 offers is answered from the index alone. Method names are compared last, of those offers
whose `method_bits` say that they may have the method.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import Enum
from functools import lru_cache
from typing import Annotated, Final
from zlib import crc32

import msgspec
from msgspec import Meta, Struct

from p2pnode.database import Database
from p2pnode.idprefix import id_range
from protocol.errors import Malformed, TooLarge, UserError
from protocol.offer import FixedPrice, Offer, Revocation
from protocol.types import CurrencyCode, Network, Side
from protocol.wire import Envelope, Kind, open_envelope, pack, parse_envelope, unpack

MAX_LISTED: Final = 500
CAPACITY: Final = 200_000
TRIM_TO: Final = 0.95
"""A book over its capacity is cut to this share of it, because each cut looks at everything."""
_CURSOR_LIMIT: Final = 200
_KEY_ID: Final = 16
_KEY_MAKER: Final = 8


class BadCursor(UserError):
    """That cursor does not belong to this question: take `next` of the page before, with the same filter."""

    code = 3041


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
    limit: int = 100


class BookPage(Struct, frozen=True):
    """Offers in order, and the cursor of the next page (None: this was the last)."""

    entries: tuple[BookEntry, ...]
    next: str | None


class Standing(Enum):
    """What became of an offer that the book knows."""

    LIVE = "live"
    GONE = "gone"
    """Revoked or taken."""
    EXPIRED = "expired"


class BookPlace(Struct, frozen=True):
    """One offer that fits an id; `entry` is there only while it is live."""

    maker: bytes
    offer_id: bytes
    standing: Standing
    entry: BookEntry | None


class _Cursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The place of a page's last offer in the order; the fields are the columns of that order."""

    side: Side
    currency: CurrencyCode
    floating: bool
    rank: Annotated[int, Meta(ge=-(10**18), le=10**18)]
    id: Annotated[int, Meta(ge=0, le=2**62)]


_Row = tuple[object, ...]
"""What `_ADD` binds."""
_ORDER: Final = _Cursor.__struct_fields__[1:]
"""The columns of the order within a side."""


class Batch:
    """Checked records on their way into the book, each as its row: lighter than what it was read from."""

    def __init__(self, now: int) -> None:
        """`now`: when they were seen."""
        self.rows: list[_Row] = []
        self.revocations: list[Revocation] = []
        self._now = now

    def add(self, envelope: Envelope, value: Offer | Revocation) -> None:
        """One more, with what its body says."""
        if isinstance(value, Offer):
            self.rows.append(_row(envelope, value, self._now))
        else:
            self.revocations.append(value)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows) + len(self.revocations)


class OfferBook:
    """Offers in SQLite."""

    def __init__(self, database: Database, network: Network, *, capacity: int = CAPACITY) -> None:
        """`capacity`: how many offers and tombstones it keeps, at most."""
        self._database = database
        self._db = database.connection
        self._network = network
        self._capacity = capacity
        self._most: int = self._db.execute("SELECT count(*) FROM book").fetchone()[0]
        """Rows that there may be at most: counting them costs as much as writing hundreds."""

    # --- coming in ----------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many offers it holds."""
        return int(self._db.execute("SELECT count(*) FROM book").fetchone()[0])

    def add(self, envelope: Envelope, offer: Offer, now: int) -> bool:
        """Keep a verified offer unless this or a newer version, or its tombstone, is known. True when it is new.

        Of two with one sequence the later to come stays: whoever reads the DHT is told the lower rank first, or alone.
        """
        added = self._db.execute(_ADD, _row(envelope, offer, now)).rowcount
        self._most += added
        return added > 0

    def revoke(self, revocation: Revocation) -> bool:
        """Put a tombstone over every version up to its sequence. True when it hides something or is new."""
        cursor = self._db.execute(
            """INSERT INTO book (key, sequence, raw, live, side, currency, floating, rank, amount_min, amount_max,
                                 methods, expires, seen)
               VALUES (?, ?, ?, 0, ?, ?, 0, 0, 0, 0, '', ?, 0)
               ON CONFLICT (key) DO UPDATE SET raw = excluded.raw, live = 0, sequence = excluded.sequence,
                   expires = max(excluded.expires, book.expires)
               WHERE excluded.sequence > book.sequence OR (excluded.sequence = book.sequence AND book.live = 1)""",
            (
                key_of(revocation.maker, revocation.offer_id),
                revocation.sequence,
                revocation.maker + revocation.offer_id,
                int(revocation.side),
                revocation.currency,
                revocation.expires,
            ),
        )
        self._most += cursor.rowcount
        return cursor.rowcount > 0

    def take_in(self, batch: Batch) -> int:
        """Write a batch, in one commit; how many of it were news. Then the book is cut to its capacity."""
        with self._database.transaction():
            # In whichever order: the sequences decide.
            changed = self._db.executemany(_ADD, batch.rows).rowcount if batch.rows else 0
            self._most += changed
            changed += sum(self.revoke(revocation) for revocation in batch.revocations)
            if self._most > self._capacity:
                self._trim()
        return changed

    def expire(self, now: int) -> int:
        """Forget offers and tombstones whose time is over; how many."""
        return self._db.execute("DELETE FROM book WHERE expires <= ?", (now,)).rowcount

    def _trim(self) -> None:
        """Over capacity, those who hold the most rows lose some: flooding pushes out the flood, not the others."""
        (self._most,) = self._db.execute("SELECT count(*) FROM book").fetchone()
        if self._most <= self._capacity:
            return
        excess = self._most - int(self._capacity * TRIM_TO)
        self._most -= self._db.execute(
            """DELETE FROM book WHERE id IN (
                   SELECT id FROM book
                   ORDER BY row_number() OVER (PARTITION BY substr(key, 17) ORDER BY seen) DESC, seen DESC LIMIT ?)""",
            (excess,),
        ).rowcount

    # --- answering ----------------------------------------------------------------------------------------------

    def locate(self, prefix: str, now: int) -> list[BookPlace]:
        """Every known offer whose id begins with these hex digits: one, unless two makers chose one id."""
        lowest, highest = id_range(prefix)
        rows = self._db.execute(
            "SELECT raw, live, seen, expires FROM book WHERE key BETWEEN ? AND ? LIMIT ?",
            (lowest[:_KEY_ID], highest[:_KEY_ID] + b"\xff" * _KEY_MAKER, MAX_LISTED),
        )
        places = []
        for raw, live, seen, expires in rows:
            if live:
                entry = self._entry(raw, seen)
                offer = entry.offer
                expired = expires <= now
                standing = Standing.EXPIRED if expired else Standing.LIVE
                place = BookPlace(offer.maker, offer.offer_id, standing, None if expired else entry)
            else:
                place = BookPlace(raw[:32], raw[32:], Standing.GONE, None)
            if lowest <= place.offer_id <= highest:
                places.append(place)
        return places

    def search(self, wanted: BookFilter, now: int, *, after: str | None = None) -> BookPage:
        """Live offers that fit: buyers before sellers, by currency, best first in each market.

        `after` is the `next` of the page before, under the same filter. Raises BadCursor.
        """
        start = None if after is None else _decode(after)
        sides = tuple(Side) if wanted.side is None else (wanted.side,)
        if start is not None:
            if start.side not in sides or wanted.currency not in (None, start.currency):
                raise BadCursor
            sides = sides[sides.index(start.side) :]
        limit = min(wanted.limit, MAX_LISTED)
        rows: list[tuple[int, bytes, int]] = []
        for side in sides:
            if len(rows) <= limit:
                begin = start if start is not None and start.side is side else None
                rows += self._one_side(side, wanted, now, begin, limit + 1 - len(rows))
        entries = tuple(self._entry(raw, seen) for _, raw, seen in rows[:limit])
        more = len(rows) > limit
        return BookPage(entries, _encode(_place(entries[-1].offer, rows[limit - 1][0])) if more else None)

    def _one_side(
        self, side: Side, wanted: BookFilter, now: int, begin: _Cursor | None, limit: int
    ) -> list[tuple[int, bytes, int]]:
        """(id, raw, seen) of up to `limit` offers behind `begin`. One side at a time: so the index is entered by it."""
        clauses = ["live = 1", "side = ?"]
        bound: list[object] = [int(side)]
        bits = None if wanted.method is None else _methods((wanted.method,))[1]
        # In the order of what they cost to check, and of how much they leave out.
        conditions: list[tuple[str, object | None]] = [
            ("currency = ?", wanted.currency),
            ("amount_min <= ?", wanted.amount),
            ("amount_max >= ?", wanted.amount),
            ("method_bits & ?", bits),
            ("instr(methods, ?)", None if wanted.method is None else f",{wanted.method},"),
            ("expires > ?", now),
        ]
        for clause, value in conditions:
            if value is not None:
                clauses.append(clause)
                bound.append(value)
        # A column that the filter fixes is left out of the order, so that the index is entered right at the cursor.
        order = _ORDER if wanted.currency is None else _ORDER[1:]
        if begin is not None:
            clauses.append(f"({', '.join(order)}) > ({', '.join('?' * len(order))})")
            bound += [getattr(begin, column) for column in order]
        # The inner query reads nothing but the index; rows are fetched only for what is shown.
        return self._db.execute(
            f"""SELECT b.id, b.raw, b.seen FROM
                    (SELECT id FROM book WHERE {" AND ".join(clauses)} ORDER BY {", ".join(order)} LIMIT ?) AS i
                CROSS JOIN book AS b USING (id) ORDER BY {", ".join(f"b.{c}" for c in order)}""",  # noqa: S608  (clauses and columns are ours)
            (*bound, limit),
        ).fetchall()

    def currencies(self, limit: int = 16) -> list[str]:
        """Currencies that somebody offers, in alphabetical order; the first `limit` of each side."""
        found: set[str] = set()
        for side in Side:
            rows = self._db.execute(
                """WITH RECURSIVE known (currency) AS (
                       SELECT min(currency) FROM book WHERE live = 1 AND side = :side
                       UNION ALL
                       SELECT (SELECT min(b.currency) FROM book AS b
                               WHERE b.live = 1 AND b.side = :side AND b.currency > known.currency)
                       FROM known WHERE known.currency IS NOT NULL)
                   SELECT currency FROM known WHERE currency IS NOT NULL LIMIT :limit""",
                {"side": int(side), "limit": limit},
            )
            found.update(row[0] for row in rows)
        return sorted(found)

    def markets(self) -> list[tuple[str, Side, int]]:
        """(currency, maker's side, offers) of every market that we hold."""
        rows = self._db.execute(
            "SELECT currency, side, count(*) FROM book WHERE live = 1 GROUP BY currency, side ORDER BY 1, 2"
        )
        return [(currency, Side(side), count) for currency, side, count in rows]

    def verify(self, entry: BookEntry) -> None:
        """Check the stored envelope's signature again, before money follows from it. Raises BadSignature."""
        open_envelope(entry.envelope.raw, self._network, limit=Kind.OFFER.limit)

    def _entry(self, raw: bytes, seen: int) -> BookEntry:
        # Verified before it was stored; the disk is ours.
        envelope = parse_envelope(raw, self._network, limit=Kind.OFFER.limit)
        return BookEntry(envelope, _OFFER.decode(envelope.body), seen)


def key_of(maker: bytes, offer_id: bytes) -> bytes:
    """What a row is found by: as much of an offer's id and of its maker's key as nobody can meet twice.

    The id's first 8 bytes bind it to its maker (SPEC 4.1), so that whoever wants another's key has 2^64 ids to try for
    each of 2^64 keys of his own.
    """
    return offer_id[:_KEY_ID] + maker[:_KEY_MAKER]


def _row(envelope: Envelope, offer: Offer, now: int) -> _Row:
    """What `_ADD` binds; in the types that sqlite3 takes without asking its adapters, which cost as much as a row."""
    methods, bits = _methods(offer.methods)
    floating, rank = _rank(offer)
    return (
        bytearray(key_of(offer.maker, offer.offer_id)),
        offer.sequence,
        bytearray(envelope.raw),
        int(offer.side),
        offer.currency,
        floating,
        rank,
        offer.amount_min,
        offer.amount_max,
        methods,
        bits,
        offer.expires,
        now,
    )


@lru_cache(maxsize=1_024)
def _methods(methods: tuple[str, ...]) -> tuple[str, int]:
    """The methods as one text, and a number with a bit for each: few share one, so most others are told by it."""
    bits = 0
    for method in methods:
        bits |= 1 << crc32(method.encode()) % 62
    return f",{','.join(methods)},", bits


def _rank(offer: Offer) -> tuple[int, int]:
    """Whether the price follows the market, and its rank. The taker of a buyer's offer wants the dearest first."""
    price = offer.price
    floating, number = (0, price.price) if isinstance(price, FixedPrice) else (1, price.margin)
    return floating, number if offer.side is Side.SELL else -number


def _place(offer: Offer, row: int) -> _Cursor:
    """Where an offer stands in the order."""
    floating, rank = _rank(offer)
    return _Cursor(side=offer.side, currency=offer.currency, floating=bool(floating), rank=rank, id=row)


def _encode(place: _Cursor) -> str:
    return urlsafe_b64encode(pack(place)).decode()


def _decode(text: str) -> _Cursor:
    try:
        return unpack(urlsafe_b64decode(text.encode()), _Cursor, limit=_CURSOR_LIMIT)
    except (binascii.Error, UnicodeEncodeError, Malformed, TooLarge) as e:
        raise BadCursor from e


_REPLACED: Final = ", ".join(
    f"{column} = excluded.{column}"
    for column in (
        "sequence",
        "raw",
        "live",
        "side",
        "currency",
        "floating",
        "rank",
        "amount_min",
        "amount_max",
        "methods",
        "method_bits",
        "expires",
        "seen",
    )
)
_ADD: Final = f"""INSERT INTO book (key, sequence, raw, live, side, currency, floating, rank, amount_min, amount_max,
                                    methods, method_bits, expires, seen)
                  VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                  ON CONFLICT (key) DO UPDATE SET {_REPLACED} WHERE excluded.sequence > book.sequence
                      OR (excluded.sequence = book.sequence AND book.live = 1 AND excluded.raw <> book.raw)"""  # noqa: S608  (columns are ours)
# For bodies that passed `protocol.offer`'s checks before: it decodes without the way back that proves the encoding.
_OFFER: Final = msgspec.msgpack.Decoder(Offer)
