"""Operations that walk the network: what they have in common, and finding nodes. No I/O, no clock.

Each drives one `Lookup` with calls of an `Rpc` and ends by calling `done` exactly once; what is still out then goes on
behind (a put's last stores, a get's repairs) and is nobody's wait. Reading a topic is `dht.reading`, putting a record
`dht.writing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket, InvalidRecord
from dht.lookup import Lookup
from dht.messages import Op, Reply
from dht.records import Record
from dht.rpc import Asker, Call, Peer

WANT: Final = 8
"""Contacts asked for in an answer: as many as hold a record."""
INLINE_STORE: Final = 1_080
"""Bytes of the largest record that a store request or a value reply carries whole; larger ones travel in parts."""


class Context(Protocol):
    """What an operation needs of the node it runs on."""

    own_id: bytes

    def ask(self, contact: Contact, op: int, body: bytes, asker: Asker, now: float, tag: int = 0) -> Call | None:
        """Put a question; None when the contact is not usable."""

    def peer_of(self, contact: Contact) -> Peer | None:
        """What is known of a node."""

    def heard(self, contact: Contact, now: float) -> None:
        """A node answered us at its address."""

    def lost(self, contact: Contact, now: float) -> None:
        """A node did not answer, several times."""

    def check(self, raw: bytes, topic: bytes, now: float) -> Record:
        """Judge a record. Raises InvalidRecord."""

    def named(self, contacts: list[Contact]) -> None:
        """A node that answered named these."""

    def late(self, contact: Contact) -> None:
        """A node is overdue."""

    def reach(self) -> int:
        """The XOR distance within which the closest k nodes to a point are expected."""

    def region(self) -> int:
        """`reach`, or 0 while it is not known."""

    def search_beside(self, search: Search, now: float, *, again: bool) -> None:
        """Look for nodes around the target of a search whose place is crowded; `found_beside` gets them.

        `again`: the first time was not enough.
        """

    def learned(self, lookup: Lookup, now: float) -> None:
        """A search came to its end: what it found tells how dense the network is."""


class Search(ABC):
    """What the three have in common: ask as the lookup says, report what became of it."""

    op: int = Op.FIND_NODE

    def __init__(self, ctx: Context, target: bytes, lookup: Lookup) -> None:
        self.ctx = ctx
        self.target = target
        self.lookup = lookup
        self.closed = False
        self._beside = 0
        """How often was searched beside the target."""
        self.over = False
        """The lookup has come to its end (which may be long after `done`)."""

    def start(self, now: float) -> None:
        """Ask the first nodes."""
        self._pump(now)

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        del contact
        return Op.FIND_NODE, messages.find_node_body(self.target, WANT)

    def _pump(self, now: float) -> None:
        if self.over:
            return
        self._ask_next(now)
        if self.lookup.waiting or not self.lookup.finished:
            return
        if not self.lookup.reach and not self.lookup.plain and (region := self.ctx.region()):
            # We knew too few nodes to tell when the search began.
            self.lookup.reach = region
            self._pump(now)
            return
        if self.lookup.crowded and (not self._beside or (self._beside == 1 and self.lookup.thin)):
            self._beside += 1
            self.ctx.search_beside(self, now, again=self._beside > 1)
        if not self._ended_meanwhile() and self.lookup.finished:
            if self.lookup.late_ones and not self.lookup.closest():
                return
            self.over = True
            self.ctx.learned(self.lookup, now)
            self._ended(now)

    def _ask_next(self, now: float) -> None:
        while (contact := self.lookup.next()) is not None:
            op, body = self._body(contact)
            if self.ctx.ask(contact, op, body, self, now) is None:
                self._unusable(contact)

    def _unusable(self, contact: Contact) -> None:
        self.lookup.failed(contact)

    def _ended_meanwhile(self) -> bool:
        """Whether a search beside, which knew nobody to ask, came back at once and was the last thing to wait for."""
        return self.over

    def found_beside(self, contacts: list[Contact], now: float) -> None:
        """A search beside the target ended."""
        self.lookup.beside -= 1
        self.lookup.add(contacts)
        self._pump(now)

    def expire(self, now: float) -> None:
        """Time is up: end with what there is."""
        if not self.over:
            self.over = True
            self._ended(now)

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """An answer came."""
        contact = call.peer.contact
        self.ctx.heard(contact, now)
        if self.closed and self.over:
            return
        try:
            contacts = self._read(call, reply, now)
        except (BadPacket, InvalidRecord):
            self.lookup.failed(contact)
        else:
            if contacts:
                self.ctx.named(contacts)
            self.lookup.answered(contact, contacts)
        self._pump(now)

    def late(self, call: Call, now: float) -> None:
        """An answer is overdue."""
        self.ctx.late(call.peer.contact)
        self.lookup.late(call.peer.contact)
        self._pump(now)

    def failed(self, call: Call, now: float) -> None:
        """No answer will come."""
        self.ctx.lost(call.peer.contact, now)
        self.lookup.failed(call.peer.contact)
        self._pump(now)

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        del call, now
        return messages.contacts_of(reply.data)

    @abstractmethod
    def _ended(self, now: float) -> None:
        """The search came to its end."""


class FindNodes(Search):
    """Find the live nodes closest to an id."""

    def __init__(self, ctx: Context, target: bytes, lookup: Lookup, done: Callable[[list[Contact]], None]) -> None:
        super().__init__(ctx, target, lookup)
        self._done = done

    def _ended(self, now: float) -> None:
        del now
        self._done(self.lookup.closest())
