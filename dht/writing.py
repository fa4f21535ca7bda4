"""Storing a record on the nodes closest to its topic. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dht import messages
from dht.contact import Contact
from dht.lookup import Lookup
from dht.messages import Op, Reply, Status
from dht.records import Record
from dht.rpc import TOKEN_LIFE_S, Call
from dht.search import INLINE_STORE, WANT, Context, Search


@dataclass(frozen=True, slots=True)
class PutResult:
    """What became of a put."""

    acks: int
    """Nodes that hold the record now, when the put returned; more may follow."""
    refused: int
    asked: int
    newer: Record | None = None
    """A record of higher rank that stands in its place somewhere."""
    closest: tuple[Contact, ...] = ()
    """The nodes closest to the topic, as far as they had answered: where to begin when it is put again."""

    @property
    def stored(self) -> bool:
        """Whether at least one node holds it."""
        return self.acks > 0


class PutValue(Search):
    """Store a record on the nodes closest to its topic.

    A node whose token we hold is sent the record at once instead of a find_node when it lies within the reach of the k
    closest: its answer names closer nodes just the same, so that the common put takes one round trip.
    """

    op = Op.STORE

    def __init__(
        self,
        ctx: Context,
        topic: bytes,
        record: Record,
        lookup: Lookup,
        done: Callable[[PutResult], None],
        *,
        quorum: int,
        kept: bool,
    ) -> None:
        super().__init__(ctx, topic, lookup)
        self._record = record
        self._done = done
        self._quorum = quorum
        self._reach = ctx.reach()
        self._kept = int(kept)
        """1 when this node holds the record too."""
        self._sent: dict[bytes, int] = {}
        """Store questions per node id: a second one only after a token was refused."""
        self._acks: set[bytes] = set()
        self._refused = 0
        self._newer: Record | None = None
        self._out = 0
        self._now = 0.0

    def _near(self, contact: Contact, eighths: int) -> bool:
        """Whether a node lies within so many eighths of the reach of the k closest."""
        return (contact.long_id ^ self.lookup.target) * 8 <= self._reach * eighths

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        peer = self.ctx.peer_of(contact)
        if (
            peer is not None
            and len(self._record.raw) <= INLINE_STORE
            and self._now - peer.token_at < TOKEN_LIFE_S
            and not peer.late
            and self._near(contact, 10)
        ):
            self._sent[contact.id] = 1
            self._out += 1
            return Op.STORE, messages.store_body(self.target, WANT, self._record.raw)
        return super()._body(contact)

    def _pump(self, now: float) -> None:
        self._now = now
        super()._pump(now)

    def _unusable(self, contact: Contact) -> None:
        if contact.id in self._sent:
            self._out -= 1
        super()._unusable(contact)

    def expire(self, now: float) -> None:
        """Time is up: report the stores that were acknowledged."""
        super().expire(now)
        if not self.closed:
            self.closed = True
            self._tell()

    def _store(self, contact: Contact, now: float) -> None:
        self._sent[contact.id] = self._sent.get(contact.id, 0) + 1
        raw = self._record.raw
        if len(raw) <= INLINE_STORE:
            op, body = int(Op.STORE), messages.store_body(self.target, 0, raw)
        else:
            op, body = int(Op.STORE_PART), messages.store_part_body(self.target, raw, 0)
        if self.ctx.ask(contact, op, body, self, now) is not None:
            self._out += 1

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        contact = call.peer.contact
        if call.op == Op.FIND_NODE:
            contacts = messages.contacts_of(reply.data)
            if self._near(contact, 16) and self.lookup.within(contact):
                self._store(contact, now)
            return contacts
        if (
            call.op == Op.STORE_PART
            and reply.status == Status.OK
            and (sent := messages.part_end(call.body)) < len(self._record.raw)
        ):
            if (
                self.ctx.ask(
                    contact, Op.STORE_PART, messages.store_part_body(self.target, self._record.raw, sent), self, now
                )
                is None
            ):
                self._out -= 1
            return []
        self._out -= 1
        match reply.status:
            case Status.OK:
                self._acks.add(contact.id)
            case Status.BAD_TOKEN | Status.BUSY:
                if self._sent[contact.id] < 3:
                    self._store(contact, now)
                return []
            case Status.OLDER:
                self._refused += 1
                contacts, standing = messages.older_of(reply.data)
                if standing:
                    newer = self.ctx.check(standing, self.target, now)
                    if newer.tag == self._record.tag and newer.rank > self._record.rank:
                        self._newer = newer
                return contacts
            case _:
                self._refused += 1
        return messages.contacts_of(reply.data)

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """An answer came; a quorum of stores among the closest is enough."""
        super().answered(call, reply, now)
        self._settle()

    def failed(self, call: Call, now: float) -> None:
        """No answer will come."""
        if call.op != Op.FIND_NODE:
            self._out -= 1
        super().failed(call, now)
        self._settle()

    def _ended(self, now: float) -> None:
        for contact in self.lookup.closest():
            if contact.id not in self._sent:
                self._store(contact, now)
        self._settle()

    def _settle(self) -> None:
        if self.closed:
            return
        # What farther nodes keep, that were sent it on the way, does not count: readers do not come by there.
        short = len(self._acks) < self._quorum or self.lookup.count_within(self._acks) < self._quorum
        if short and not (self.over and self._out <= 0):
            return
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        closest = self.lookup.closest()
        if not self.lookup.crowded:
            # Where it is crowded the first k are the crowd.
            del closest[self.lookup.k :]
        self._done(
            PutResult(len(self._acks) + self._kept, self._refused, self.lookup.asked, self._newer, tuple(closest))
        )
