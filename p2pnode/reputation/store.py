"""Records about personas in SQLite, and what our own chain said of each.

A record is kept once its signatures hold; it counts once its claim is proved. Two proved claims on one output of the
chain are a fraud of whoever holds its keys: neither counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from p2pnode.database import Database
from p2pnode.reputation.kinds import outpoint_of, reputation_kinds
from protocol.bond import BondRecord
from protocol.errors import PeerViolation
from protocol.rating import Rating, rating_slot
from protocol.receipt import RulingReceipt
from protocol.score import Proved
from protocol.types import Network
from protocol.wire import Envelope, Kind, digest, parse_envelope, unpack

CAPACITY: Final = 20_000
"""Records kept, at most; those that expire first go first."""
PROVED: Final = "proved"

Body = Rating | RulingReceipt | BondRecord
_BODIES: Final[dict[int, type[Body]]] = {
    Kind.RATING: Rating,
    Kind.RULING_RECEIPT: RulingReceipt,
    Kind.BOND: BondRecord,
}


class Testimony(Struct, frozen=True):
    """A record, and what it claims of which output."""

    envelope: Envelope
    body: Body
    outpoint: bytes
    claim: bytes


class Anchor(Struct, frozen=True):
    """What our chain says of a claim."""

    state: str
    value: int
    fee: int
    funded: int
    paid: int
    checked: int

    def proved(self, counterparty: bytes) -> Proved:
        """As a receipt."""
        return Proved(counterparty, self.value, self.fee, self.funded, self.paid)


class TestimonyStore:
    """The tables `testimony` and `anchors`."""

    __test__ = False

    def __init__(self, database: Database, network: Network) -> None:
        self._database = database
        self._db = database.connection
        self._network = network
        self._validators = {rules.kind: rules.validate for rules in reputation_kinds(network)}

    def remember(self, envelope: Envelope, now: int) -> Testimony | None:
        """Keep a record whose envelope was verified; None for a kind that does not belong here.

        An older version of what is here is left out. Raises PeerViolation for one that breaks a rule.
        """
        if envelope.kind not in _BODIES:
            return None
        meta = self._validators[envelope.kind](envelope, now)
        made = self._testimony(envelope)
        first, second = _about(made.body)
        self._db.execute(
            """INSERT INTO testimony (kind, author, slot, sequence, first, second, outpoint, claim, raw, expires)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (kind, author, slot) DO UPDATE SET sequence = excluded.sequence, raw = excluded.raw,
                   outpoint = excluded.outpoint, claim = excluded.claim, expires = excluded.expires
               WHERE excluded.sequence > sequence""",
            (
                envelope.kind,
                meta.publisher,
                meta.sub_key,
                meta.sequence,
                first,
                second,
                made.outpoint,
                made.claim,
                envelope.raw,
                meta.expires,
            ),
        )
        return made

    def about(self, persona: bytes, now: int) -> list[Testimony]:
        """All records that a persona is named in, the newest kind of each; expired ones are left out."""
        rows = self._db.execute(
            "SELECT raw FROM testimony WHERE (first = ? OR second = ?) AND expires > ? ORDER BY kind, slot, author",
            (persona, persona, now),
        )
        return [self._testimony(parse_envelope(raw, self._network)) for (raw,) in rows]

    def bonds(self, now: int) -> list[Testimony]:
        """All records of bonds."""
        rows = self._db.execute("SELECT raw FROM testimony WHERE kind = ? AND expires > ?", (int(Kind.BOND), now))
        return [self._testimony(parse_envelope(raw, self._network)) for (raw,) in rows]

    def forget_expired(self, now: int) -> None:
        """Drop what has expired, and what is too much."""
        self._db.execute("DELETE FROM testimony WHERE expires <= ?", (now,))
        self._db.execute(
            """DELETE FROM testimony WHERE (kind, author, slot) IN
                   (SELECT kind, author, slot FROM testimony ORDER BY expires DESC LIMIT -1 OFFSET ?)""",
            (CAPACITY,),
        )
        # Bonds stand in announcements as well, which are not kept here; of those there are few.
        self._db.execute(
            """DELETE FROM anchors WHERE substr(claim, 1, 1) != x'42' AND NOT EXISTS
                   (SELECT 1 FROM testimony t WHERE t.outpoint = anchors.outpoint AND t.claim = anchors.claim)"""
        )

    # --- what the chain says ------------------------------------------------------------------------------------

    def anchor(self, outpoint: bytes, claim: bytes) -> Anchor | None:
        """What is known of a claim; None: it was never checked, or could not be."""
        row = self._db.execute(
            "SELECT state, value, fee, funded, paid, checked FROM anchors WHERE outpoint = ? AND claim = ?",
            (outpoint, claim),
        ).fetchone()
        return None if row is None else Anchor(*row)

    def set_anchor(self, outpoint: bytes, claim: bytes, anchor: Anchor) -> None:
        """Keep what the chain says now."""
        self._db.execute(
            "INSERT OR REPLACE INTO anchors (outpoint, claim, state, value, fee, funded, paid, checked) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (outpoint, claim, anchor.state, anchor.value, anchor.fee, anchor.funded, anchor.paid, anchor.checked),
        )

    def contested(self, outpoint: bytes, claim: bytes) -> bool:
        """Whether another claim of the same family on this output is proved as well."""
        rows = self._db.execute(
            "SELECT claim FROM anchors WHERE outpoint = ? AND state = ? AND claim != ?", (outpoint, PROVED, claim)
        )
        # The first byte is the family: a receipt and a ruling receipt may stand on one escrow.
        return any(other[:1] == claim[:1] for (other,) in rows)

    def _testimony(self, envelope: Envelope) -> Testimony:
        body = unpack(envelope.body, _BODIES[envelope.kind], limit=Kind(envelope.kind).limit)
        return Testimony(envelope, body, *claim_of(body, self._network))


def claim_of(body: Body, network: Network) -> tuple[bytes, bytes]:
    """The output that a record stands on, and what it claims of it: the same for two records that agree."""
    if isinstance(body, Rating):
        return body.signed.receipt.outpoint, b"R" + rating_slot(body, network)
    if isinstance(body, RulingReceipt):
        return body.outpoint, b"A" + digest(b"p2pnode/claim", body.arbiter, body.contract_id)
    return outpoint_of(body.bond.txid, body.bond.vout), bond_claim(body.persona)


def bond_claim(persona: bytes) -> bytes:
    """What a bond says of its output: whose it is."""
    return b"B" + persona


def read_all(store: TestimonyStore, envelopes: Sequence[Envelope], now: int) -> list[Testimony]:
    """`remember` for what a look-up brought; what breaks a rule is left out."""
    found = []
    for envelope in envelopes:
        try:
            made = store.remember(envelope, now)
        except PeerViolation:
            continue
        if made is not None:
            found.append(made)
    return found


def _about(body: Body) -> tuple[bytes, bytes | None]:
    if isinstance(body, Rating):
        return body.signed.receipt.buyer, body.signed.receipt.seller
    if isinstance(body, RulingReceipt):
        return body.arbiter, None
    return body.persona, None
