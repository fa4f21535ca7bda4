"""How to reach a persona: the newest contact record that we were shown, else the DHT's.

A record says where to try, never who answers: whatever comes from there is believed only under the persona's own
signature (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pnode.database import Database
from protocol.contact import CONTACT_WORK_BITS, MAX_CONTACT_LIFETIME, ContactRecord
from protocol.errors import Malformed
from protocol.offer import MAX_CLOCK_SKEW
from protocol.types import Network
from protocol.wire import Envelope, Kind, open_envelope, unpack
from protocol.work import work_bits

Lookup = Callable[[bytes], Awaitable[list[Envelope]]]
"""Finds the verified contact envelopes of a persona in the DHT."""


def read_contact(envelope: Envelope, network: Network, now: int) -> ContactRecord:
    """The contact record in a verified envelope, valid at `now`. Raises Malformed."""
    if envelope.kind != Kind.CONTACT or envelope.network != network:
        raise Malformed("not a contact record of this network")
    record = unpack(envelope.body, ContactRecord, limit=Kind.CONTACT.limit)
    if record.persona != envelope.signer:
        raise Malformed("a contact record must be signed by the persona that it names")
    if not record.created < record.expires <= record.created + MAX_CONTACT_LIFETIME:
        raise Malformed("a contact record's lifetime does not make sense")
    if record.created > now + MAX_CLOCK_SKEW or now >= record.expires:
        raise Malformed("a contact record is expired, or was made in the future")
    if work_bits(envelope.id) < CONTACT_WORK_BITS:
        raise Malformed("a contact record needs more proof of work")
    return record


class Contacts:
    """Contact records in SQLite, refreshed from the DHT when they do not lead to the peer."""

    def __init__(self, database: Database, network: Network, lookup: Lookup) -> None:
        self._db = database.connection
        self._network = network
        self._lookup = lookup

    def remember(self, envelope: Envelope, now: int) -> ContactRecord:
        """Keep a verified contact envelope unless a newer one is known. Raises Malformed."""
        record = read_contact(envelope, self._network, now)
        self._db.execute(
            """INSERT INTO contacts (persona, sequence, raw, expires) VALUES (?, ?, ?, ?)
               ON CONFLICT (persona) DO UPDATE SET sequence = excluded.sequence, raw = excluded.raw,
                   expires = excluded.expires WHERE excluded.sequence > contacts.sequence""",
            (record.persona, record.sequence, envelope.raw, record.expires),
        )
        return record

    def known(self, persona: bytes) -> ContactRecord | None:
        """The newest record that we hold; it may have expired, and is still worth a try."""
        row = self._db.execute("SELECT raw FROM contacts WHERE persona = ?", (persona,)).fetchone()
        if row is None:
            return None
        envelope = open_envelope(row[0], self._network, limit=Kind.CONTACT.limit)
        return unpack(envelope.body, ContactRecord, limit=Kind.CONTACT.limit)

    async def refresh(self, persona: bytes, now: int) -> ContactRecord | None:
        """Ask the DHT, keep what is newer, and return the newest known."""
        for envelope in await self._lookup(persona):
            if envelope.signer == persona:
                try:
                    self.remember(envelope, now)
                except Malformed:
                    continue
        return self.known(persona)

    def forget_expired(self, now: int, keep: int = MAX_CONTACT_LIFETIME) -> None:
        """Drop records that expired more than `keep` seconds ago."""
        self._db.execute("DELETE FROM contacts WHERE expires < ?", (now - keep,))
