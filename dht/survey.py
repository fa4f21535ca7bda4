"""Ask the holders of a topic what state they are in, on the way to them: one search instead of a search and a round.

Each node on the way is asked for the topic's records behind the last possible tag: it tells how many it has, their
digest, and the contacts that it knows closer, which is all that a search needs. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket
from dht.lookup import Lookup
from dht.messages import Op, Reply, Status
from dht.rpc import Call
from dht.search import WANT, Context, Search

BEHIND_ALL: Final = b"\xff" * 8
"""A cursor that no record follows."""


class Holder(NamedTuple):
    """What one of the nodes closest to a topic says that it holds."""

    contact: Contact
    digest: bytes
    """As `Storage.digest`; zeros for none."""
    total: int


class Surveyed(NamedTuple):
    """What a survey found."""

    holders: list[Holder]
    """The closest nodes that answered, closest first: k of them, all of the region where it is crowded."""
    crowded: bool
    """Somebody may have packed nodes around the topic, and they may be most of `holders` (dht.lookup)."""


class Survey(Search):
    """Find the nodes closest to a topic and what each holds of it."""

    op = Op.FIND_VALUE

    def __init__(self, ctx: Context, topic: bytes, lookup: Lookup, done: Callable[[Surveyed], None]) -> None:
        super().__init__(ctx, topic, lookup)
        self._done = done
        self._told: dict[bytes, Holder] = {}

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        del contact
        return Op.FIND_VALUE, messages.find_value_body(self.target, WANT, BEHIND_ALL, messages.FIRST, beside=WANT)

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        del now
        if reply.status not in (Status.OK, Status.UNCHANGED):
            raise BadPacket("refused")
        value = messages.value_of(reply.data)
        contact = call.peer.contact
        self._told[contact.id] = Holder(contact, value.digest, value.total)
        return value.contacts

    def _ended(self, now: float) -> None:
        del now
        lookup = self.lookup
        # Where nodes are too thin, farther ones were asked as well: nobody stores there.
        closest = lookup.closest() if lookup.crowded else lookup.closest()[: lookup.k]
        self._done(Surveyed([self._told[c.id] for c in closest if c.id in self._told], lookup.crowded))
