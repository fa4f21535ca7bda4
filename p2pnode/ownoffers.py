"""The maker's own offers: signed, edited, taken, withdrawn, and what of them the DHT still has to be told.

Theory of operation. A row's `sequence` grows with every change of what others may see: an edit, the tombstone of a
taken or revoked offer, a reopening. What stands for that sequence is the offer's envelope while the row is open, else a
tombstone, which is signed whenever it is needed (Ed25519 is deterministic). `published` is the newest sequence that the
DHT has taken, so `published < sequence` is all that `publisher` has to look for, after a crash too.

Changes of state are synchronous and join the transaction that is open, so a take and its offer's withdrawal are one
commit. Signing a new version needs proof of work and is not: `reopen` only raises the sequence, and `renew` makes the
envelope of that sequence afterwards, as often as needed. Until then nobody can take the offer.

Each change is a notice with topic `offer`, whose phase is the new state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from p2pnode.clock import Clock
from p2pnode.database import Database
from p2pnode.idprefix import id_range
from p2pnode.notices import Notices
from p2pnode.offerbook import OfferBook
from p2pnode.tradestore import TradeStore
from protocol import trade_state as st
from protocol.errors import NotFound, UserError
from protocol.identity import SigningKey
from protocol.messages import Details
from protocol.offer import OFFER_WORK_BITS, MarketPrice, Offer, OfferRef, Revocation, check_offer, reference
from protocol.trade_state import TERMINAL, TradeState
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack, parse_envelope, unpack
from protocol.work import NO_WORK, find_work

DetailsByMethod = Mapping[str, Details]

_ENCODER: Final = msgspec.msgpack.Encoder()
_DETAILS: Final = msgspec.msgpack.Decoder(dict[str, Details])


class OfferNotOpen(UserError):
    """The offer is no longer open."""

    code = 3042


class OfferTooLarge(UserError):
    """The offer does not fit one datagram: shorten its terms, or name fewer arbiters or payment methods."""

    code = 3043


class ShorterLife(UserError):
    """An edit can't make an offer end sooner: revoke it when its time has come."""

    code = 3044


class Keys(Protocol):
    """What signing needs of the unlocked keystore."""

    def persona_key(self, persona: bytes) -> SigningKey:
        """The signing key of one of our personas. Raises NotFound."""
        ...


class OfferState(Enum):
    """What has become of an own offer."""

    OPEN = "open"
    TAKEN = "taken"
    REVOKED = "revoked"
    EXPIRED = "expired"


class OwnOffer(Struct, frozen=True):
    """An own offer. `envelope` and `offer` are its newest signed version; times are Unix seconds.

    `published` is the newest sequence that the DHT has taken (-1: none), `stored_on` how many nodes then held it.
    """

    sequence: int
    envelope: Envelope
    offer: Offer
    details: dict[str, Details]
    state: OfferState
    created: int
    updated: int
    published: int
    stored_on: int | None

    @property
    def offer_id(self) -> bytes:
        """The id that all versions share."""
        return self.offer.offer_id

    @property
    def unsigned(self) -> bool:
        """Whether it was reopened and the envelope of its new sequence is still to be made."""
        return self.state is OfferState.OPEN and self.offer.sequence < self.sequence


class OwnOffers:
    """Own offers in SQLite."""

    def __init__(
        self,
        database: Database,
        book: OfferBook,
        notices: Notices,
        keys: Keys,
        network: Network,
        clock: Clock,
        *,
        work_bits: int = OFFER_WORK_BITS,
    ) -> None:
        self._database = database
        self._db = database.connection
        self._book = book
        self._trades = TradeStore(database)
        self._notices = notices
        self._keys = keys
        self._network = network
        self._clock = clock
        self._work_bits = work_bits
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change; perhaps before the commit of the transaction that it is part of."""
        self._listeners.append(listener)

    # --- reading ------------------------------------------------------------------------------------------------

    def get(self, offer_id: bytes) -> OwnOffer | None:
        """One own offer, whatever its state."""
        row = self._db.execute(f"{_SELECT} WHERE offer_id = ?", (offer_id,)).fetchone()
        return None if row is None else self._read(row)

    def find(self, prefix: str) -> list[OwnOffer]:
        """Those whose id begins with these hex digits. Raises BadIdPrefix."""
        return [self._read(r) for r in self._db.execute(f"{_SELECT} WHERE offer_id BETWEEN ? AND ?", id_range(prefix))]

    def all(self) -> list[OwnOffer]:
        """All of them, newest first."""
        return [self._read(r) for r in self._db.execute(f"{_SELECT} ORDER BY created DESC, offer_id")]

    def living(self, now: int) -> list[OwnOffer]:
        """Those that the DHT must know of: open ones, and ended ones whose tombstone must outlive them."""
        rows = self._db.execute(f"{_SELECT} WHERE state != 'expired' AND expires > ? ORDER BY created", (now,))
        return [self._read(r) for r in rows]

    def count_open(self) -> int:
        """How many can be taken."""
        return int(self._db.execute("SELECT count(*) FROM own_offers WHERE state = 'open'").fetchone()[0])

    def next_expiry(self) -> int | None:
        """When the next open offer expires, in Unix seconds."""
        row = self._db.execute("SELECT min(expires) FROM own_offers WHERE state = 'open'").fetchone()
        return None if row[0] is None else int(row[0])

    def announcement_ids(self) -> set[bytes]:
        """The arbiters' announcements that open and taken offers refer to."""
        rows = self._db.execute(f"{_SELECT} WHERE state IN ('open', 'taken')")
        return {arbiter.announcement for row in rows for arbiter in self._read(row).offer.arbiters}

    def floating(self) -> set[str]:
        """The currencies of open offers at market price."""
        rows = self._db.execute(f"{_SELECT} WHERE state = 'open'")
        offers = (self._read(row).offer for row in rows)
        return {offer.currency for offer in offers if isinstance(offer.price, MarketPrice)}

    def lookup(self, wanted: OfferRef) -> OwnOffer | None:
        """The offer, if exactly this version of it is open. Whether it has expired by now is the caller's to see."""
        own = self.get(wanted.offer_id)
        if own is None or own.state is not OfferState.OPEN or own.unsigned:
            return None
        return own if reference(own.envelope, own.offer) == wanted else None

    def open_offer(self, wanted: OfferRef, now: int) -> Offer | None:
        """The offer, if exactly this version can be taken at `now`."""
        own = self.lookup(wanted)
        return own.offer if own is not None and own.offer.expires > now else None

    def details_of(self, offer_id: bytes, method: str) -> Details:
        """Our payment details for a method of one of our offers. Raises NotFound."""
        own = self.get(offer_id)
        if own is None or method not in own.details:
            raise NotFound(f"there are no payment details for {method} in that offer")
        return own.details[method]

    def payout_of(self, offer_id: bytes) -> bytes | None:
        """The outside script that the coins of trades on this offer go to; None: the wallet."""
        row = self._db.execute("SELECT script FROM offer_payouts WHERE offer_id = ?", (offer_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_payout(self, offer_id: bytes, script: bytes | None) -> None:
        """From the next take on, pay there; None: to the wallet. May be set before the offer is made."""
        with self._database.transaction():
            self._db.execute("DELETE FROM offer_payouts WHERE offer_id = ?", (offer_id,))
            if script is not None:
                self._db.execute("INSERT INTO offer_payouts VALUES (?, ?)", (offer_id, script))

    # --- making -------------------------------------------------------------------------------------------------

    async def create(self, offer: Offer, details: DetailsByMethod) -> OwnOffer:
        """Sign `offer` (its work is found here) and keep it, open.

        Raises OfferTooLarge, Malformed (the offer breaks a rule), NotFound (its maker is not one of our personas).
        """
        signed, envelope = await self._sign(offer)
        now = self._clock.now()
        with self._database.transaction():
            self._db.execute(
                """INSERT INTO own_offers (offer_id, sequence, raw, details, state, expires, created, updated)
                   VALUES (?, ?, ?, ?, 'open', ?, ?, ?)""",
                (offer.offer_id, offer.sequence, envelope.raw, _ENCODER.encode(details), offer.expires, now, now),
            )
            self._book.add(envelope, signed, now)
            self._note(offer.offer_id, OfferState.OPEN, now)
        self._tell()
        return self._must(offer.offer_id)

    async def edit(
        self, offer_id: bytes, change: Callable[[Offer], Offer], details: DetailsByMethod | None = None
    ) -> OwnOffer:
        """Make the next version of an open offer; `details` replace the present ones.

        Raises NotFound, ShorterLife, OfferNotOpen (also when it was taken while the work was found), and what `create`
        raises.
        """
        before = self._must_be_open(offer_id)
        changed = replace(change(before.offer), sequence=before.sequence + 1)
        if changed.expires < before.offer.expires:
            # A version that dies first would let copies of the one before it come back.
            raise ShorterLife
        signed, envelope = await self._sign(changed)
        now = self._clock.now()
        with self._database.transaction():
            if self._must_be_open(offer_id).sequence != before.sequence:
                raise OfferNotOpen("the offer was changed meanwhile: look at it again")
            kept = before.details if details is None else details
            self._db.execute(
                "UPDATE own_offers SET sequence = ?, raw = ?, details = ?, expires = ?, updated = ? WHERE offer_id = ?",
                (signed.sequence, envelope.raw, _ENCODER.encode(kept), signed.expires, now, offer_id),
            )
            self._book.add(envelope, signed, now)
            self._note(offer_id, OfferState.OPEN, now)
        self._tell()
        return self._must(offer_id)

    async def renew(self, offer_id: bytes) -> OwnOffer | None:
        """Make the envelope of a reopened offer. None when there is nothing to make (any more)."""
        before = self.get(offer_id)
        now = self._clock.now()
        if before is None or not before.unsigned or before.offer.expires <= now:
            return None
        signed, envelope = await self._sign(replace(before.offer, sequence=before.sequence))
        with self._database.transaction():
            changed = self._db.execute(
                "UPDATE own_offers SET raw = ? WHERE offer_id = ? AND sequence = ? AND state = 'open'",
                (envelope.raw, offer_id, signed.sequence),
            ).rowcount
            if changed:
                self._book.add(envelope, signed, self._clock.now())
        return self._must(offer_id) if changed else None

    # --- ending and reopening (in whatever transaction is open) -------------------------------------------------

    def mark_taken(self, offer_id: bytes, trade_id: bytes, now: int) -> None:
        """Withdraw an open offer because `trade_id` was made of it. Raises NotFound, OfferNotOpen."""
        own = self._must_be_open(offer_id)
        self._withdraw(own, OfferState.TAKEN, now, trade_id)

    def revoke(self, offer_id: bytes, now: int) -> OwnOffer:
        """Withdraw an offer for good; one that has ended stays as it is, a taken one will not reopen.

        Raises NotFound.
        """
        own = self._must(offer_id)
        match own.state:
            case OfferState.OPEN:
                self._withdraw(own, OfferState.REVOKED, now)
            case OfferState.TAKEN:
                with self._database.transaction():
                    self._set_state(own, OfferState.REVOKED, own.sequence, now)
                self._tell()
            case OfferState.REVOKED | OfferState.EXPIRED:
                pass
        return self._must(offer_id)

    def reopen(self, offer_id: bytes, now: int) -> bool:
        """Free a taken offer whose trade ended before it was funded. False when it is not taken (any more).

        Its envelope follows with `renew`. An offer whose time is over becomes expired instead.
        """
        own = self.get(offer_id)
        if own is None or own.state is not OfferState.TAKEN:
            return False
        expired = own.offer.expires <= now
        with self._database.transaction():
            state = OfferState.EXPIRED if expired else OfferState.OPEN
            self._set_state(own, state, own.sequence + (not expired), now)
        self._tell()
        return not expired

    def expire(self, now: int) -> int:
        """End the open offers whose time is over; how many."""
        rows = self._db.execute(f"{_SELECT} WHERE state = 'open' AND expires <= ?", (now,)).fetchall()
        if not rows:
            return 0
        with self._database.transaction():
            for row in rows:
                own = self._read(row)
                self._set_state(own, OfferState.EXPIRED, own.sequence, now)
        self._tell()
        return len(rows)

    def follow(self, state: TradeState) -> None:
        """Keep the offer and the trades made of it together: the engine's listener, called after each of its steps."""
        if state.made:
            self._settle(state.offer.offer_id)

    def reconcile(self) -> None:
        """What `follow` would have done for the commits whose listener a crash cut off. For the start."""
        rows = self._db.execute("SELECT offer_id FROM own_offers WHERE state IN ('open', 'taken')").fetchall()
        for (offer_id,) in rows:
            self._settle(offer_id)

    def _settle(self, offer_id: bytes) -> None:
        own = self.get(offer_id)
        if own is None or own.state not in (OfferState.OPEN, OfferState.TAKEN):
            return
        made = [stored.state for stored in self._trades.of_offer(offer_id) if stored.state.made]
        alive = next((s for s in made if not isinstance(s.phase, TERMINAL)), None)
        if own.state is OfferState.OPEN:
            if alive is not None:
                # A trade that had ended came back to life: its funding was broadcast after all.
                self.mark_taken(offer_id, alive.trade_id, self._clock.now())
        elif alive is None and all(isinstance(s.phase, st.Declined | st.Cancelled) for s in made):
            self.reopen(offer_id, self._clock.now())

    # --- what the DHT is told -----------------------------------------------------------------------------------

    def record(self, own: OwnOffer) -> Envelope:
        """What stands in the DHT for this offer's sequence: its envelope while it is open, else a tombstone."""
        if own.state is OfferState.OPEN:
            return own.envelope
        return self._keys.persona_key(own.offer.maker).seal(
            Kind.OFFER_REVOCATION, self._network, pack(_tombstone(own.offer, own.sequence))
        )

    def mark_published(self, offer_id: bytes, sequence: int, stored_on: int) -> None:
        """The DHT has taken the record of this sequence, on so many nodes."""
        self._db.execute(
            """UPDATE own_offers SET published = max(published, ?), stored_on = ?
               WHERE offer_id = ? AND sequence = ?""",
            (sequence, stored_on, offer_id, sequence),
        )

    # --- inside -------------------------------------------------------------------------------------------------

    async def _sign(self, offer: Offer) -> tuple[Offer, Envelope]:
        body = pack(replace(offer, work=NO_WORK))
        key = self._keys.persona_key(offer.maker)
        if len(key.seal(Kind.OFFER, self._network, body).raw) > Kind.OFFER.limit:
            raise OfferTooLarge
        # Round trip: constructors do not validate, and a record that others refuse must not be kept.
        check_offer(unpack(body, Offer, limit=Kind.OFFER.limit), self._clock.now())
        worked = await asyncio.to_thread(find_work, Kind.OFFER, self._network, body, self._work_bits)
        return unpack(worked, Offer, limit=Kind.OFFER.limit), key.seal(Kind.OFFER, self._network, worked)

    def _withdraw(self, own: OwnOffer, state: OfferState, now: int, trade_id: bytes | None = None) -> None:
        with self._database.transaction():
            self._set_state(own, state, own.sequence + 1, now, trade_id)
            self._book.revoke(_tombstone(own.offer, own.sequence + 1))
        self._tell()

    def _set_state(
        self, own: OwnOffer, state: OfferState, sequence: int, now: int, trade_id: bytes | None = None
    ) -> None:
        self._db.execute(
            "UPDATE own_offers SET state = ?, sequence = ?, updated = ? WHERE offer_id = ?",
            (state.value, sequence, now, own.offer_id),
        )
        self._note(own.offer_id, state, now, trade_id)

    def _note(self, offer_id: bytes, state: OfferState, now: int, trade_id: bytes | None = None) -> None:
        self._notices.add("offer", now, trade_id=trade_id, offer_id=offer_id, phase=state.value)

    def _tell(self) -> None:
        self._notices.wake()
        for listener in self._listeners:
            listener()

    def _must(self, offer_id: bytes) -> OwnOffer:
        own = self.get(offer_id)
        if own is None:
            raise NotFound("there is no such offer of this node's")
        return own

    def _must_be_open(self, offer_id: bytes) -> OwnOffer:
        own = self._must(offer_id)
        if own.state is not OfferState.OPEN:
            raise OfferNotOpen(f"the offer is {own.state.value}: make a new one")
        return own

    def _read(self, row: tuple[int, bytes, bytes, str, int, int, int, int | None]) -> OwnOffer:
        sequence, raw, details, state, created, updated, published, stored_on = row
        # Signed by ourselves; the disk is ours.
        envelope = parse_envelope(raw, self._network, limit=Kind.OFFER.limit)
        return OwnOffer(
            sequence=sequence,
            envelope=envelope,
            offer=unpack(envelope.body, Offer, limit=Kind.OFFER.limit),
            details=_DETAILS.decode(details),
            state=OfferState(state),
            created=created,
            updated=updated,
            published=published,
            stored_on=stored_on,
        )


_SELECT: Final = "SELECT sequence, raw, details, state, created, updated, published, stored_on FROM own_offers"


def _tombstone(offer: Offer, sequence: int) -> Revocation:
    return Revocation(offer.maker, offer.offer_id, sequence, offer.side, offer.currency, offer.expires)
