"""The operations that walk the network: find nodes, get a topic's records, put a record. No I/O, no clock.

Each drives one `Lookup` with calls of an `Rpc` and ends by calling `done` exactly once; what is still out then goes on
behind (a put's last stores, a get's repairs) and is nobody's wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket, InvalidRecord
from dht.lookup import Lookup
from dht.messages import FIRST, Op, Reply, Status
from dht.records import Record
from dht.rpc import TOKEN_LIFE_S, Call, Peer

WANT: Final = 8
"""Contacts asked for in an answer: as many as hold a record."""
MAX_PAGES: Final = 64
LAST: Final = b"\xff" * 8
INLINE_STORE: Final = 1_080
"""Bytes of the largest record that a store request or a value reply carries whole; larger ones travel in parts."""
REPAIR_RECORDS: Final = 4
BESIDE_RECORDS: Final = 3
MORE: Final = 1
"""The mark of a question that continues an answer."""


class Context(Protocol):
    """What an operation needs of the node it runs on."""

    own_id: bytes

    def ask(self, contact: Contact, op: int, body: bytes, asker: Search, now: float, tag: int = 0) -> Call | None:
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


class Search:
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

    def _ended(self, now: float) -> None:
        raise NotImplementedError


class FindNodes(Search):
    """Find the live nodes closest to an id."""

    def __init__(self, ctx: Context, target: bytes, lookup: Lookup, done: Callable[[list[Contact]], None]) -> None:
        super().__init__(ctx, target, lookup)
        self._done = done

    def _ended(self, now: float) -> None:
        del now
        self._done(self.lookup.closest())


@dataclass(frozen=True, slots=True)
class Found:
    """What a get found."""

    records: list[Record]
    """The highest-ranked record of each publisher and sub-key; tombstones too."""
    sources: int
    """How many nodes answered with at least one valid record."""
    asked: int


class GetValue(Search):
    """Collect the records of a topic from the nodes closest to it.

    Ends when `quorum` nodes gave all they have, or when the closest nodes have all answered. An answer with a record
    that does not verify counts as no answer.
    """

    op = Op.FIND_VALUE

    def __init__(
        self,
        ctx: Context,
        topic: bytes,
        lookup: Lookup,
        done: Callable[[Found], None],
        *,
        quorum: int,
        local: list[Record],
    ) -> None:
        super().__init__(ctx, topic, lookup)
        self._done = done
        self._quorum = quorum
        self._best: dict[bytes, Record] = {r.tag: r for r in local}
        self._checked: dict[bytes, Record] = {r.raw: r for r in local}
        self._sources: set[bytes] = set()
        self._pages: dict[bytes, int] = {}
        self._spans: dict[bytes, tuple[bytes, bytes]] = {}
        """By node, where reading began in the midst of a topic: the tag to resume behind, and where it began."""
        self._until: dict[bytes, bytes] = {}
        """By node, the tag at which all was read."""
        self._held: dict[bytes, set[bytes]] = {}
        self._parts: dict[tuple[bytes, bytes], bytearray] = {}
        self._open: dict[bytes, int] = {}

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        del contact
        # Holders know each other, so the first found leads to the rest, unless we know enough nodes there already.
        beside = 0 if self.lookup.rich else BESIDE_RECORDS
        return Op.FIND_VALUE, messages.find_value_body(self.target, WANT, FIRST, FIRST, beside=beside)

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        if call.tag == MORE:
            self._open[call.peer.contact.key] -= 1
        if call.op == Op.FETCH_PART:
            self._read_part(call, reply, now)
            return []
        if reply.status not in (Status.OK, Status.UNCHANGED):
            raise BadPacket("refused")
        value = messages.value_of(reply.data)
        who = call.peer.contact.key
        last = FIRST
        held = self._held.setdefault(who, set())
        for raw in value.records:
            record = self._take(raw, now)
            last = max(last, record.tag)
            held.add(record.rank[2])
        for tag, size in value.large:
            last = max(last, tag)
            if 0 < size <= 65_535 and not any(r.tag == tag and len(r.raw) == size for r in self._best.values()):
                self._fetch(call.peer.contact, tag, size, now)
        after = self._onward(who, call.rid, value, last)
        if after is not None:
            self._pages[who] = self._pages.get(who, 0) + 1
            self._more(call.peer.contact, Op.FIND_VALUE, messages.find_value_body(self.target, 0, after, FIRST), now)
        elif held or value.large:
            self._sources.add(who)
        return value.contacts

    def _onward(self, who: bytes, rid: bytes, value: messages.ValueReply, last: bytes) -> bytes | None:
        """Behind which tag to read on at a node; None when it gave all, or enough.

        A topic with more records than are read of it is read from another place at each node, which nobody can foresee
        (a request's id is random). Else whoever floods it with the lowest tags hides all others.
        """
        pages = self._pages.get(who, 0)
        if pages >= MAX_PAGES:
            return None
        if not value.more or not (value.records or value.large):
            resume, start = self._spans.pop(who, (None, FIRST))
            self._until[who] = start
            return resume
        if last >= self._until.get(who, LAST):
            return None
        if not pages and value.total > 2 * MAX_PAGES:
            start = max(last, rid[:8])
            self._spans[who] = last, start
            return start
        return last

    def _take(self, raw: bytes, now: float) -> Record:
        record = self._checked.get(raw)
        if record is None:
            record = self._checked[raw] = self.ctx.check(raw, self.target, now)
        best = self._best.get(record.tag)
        if best is None or best.rank < record.rank:
            self._best[record.tag] = record
        return record

    def _more(self, contact: Contact, op: int, body: bytes, now: float) -> None:
        """Ask the same node for the rest; it counts as a source when all of it came."""
        if self.ctx.ask(contact, op, body, self, now, MORE) is not None:
            self._open[contact.key] = self._open.get(contact.key, 0) + 1

    def _fetch(self, contact: Contact, tag: bytes, size: int, now: float) -> None:
        self._parts[contact.key, tag] = bytearray(size)
        self._more(contact, Op.FETCH_PART, messages.fetch_body(self.target, tag, 0), now)

    def _read_part(self, call: Call, reply: Reply, now: float) -> None:
        contact = call.peer.contact
        tag, offset = call.body[20:28], int.from_bytes(call.body[28:30], "big")
        buffer = self._parts.get((contact.key, tag))
        if buffer is None or reply.status != Status.OK:
            return
        chunk = messages.part_of(reply.data)
        end = offset + len(chunk)
        if not chunk or end > len(buffer):
            raise BadPacket("a part that does not fit")
        buffer[offset:end] = chunk
        if end < len(buffer):
            self._more(contact, Op.FETCH_PART, messages.fetch_body(self.target, tag, end), now)
            return
        del self._parts[contact.key, tag]
        self._held.setdefault(contact.key, set()).add(self._take(bytes(buffer), now).rank[2])

    def _pump(self, now: float) -> None:
        # Once the records begin to come, ask no more nodes than the quorum lacks: late ones free their slot for others.
        if self._sources:
            self.lookup.alpha = max(1, self._quorum - len(self._sources))
        super()._pump(now)

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """An answer came; a quorum of them is enough."""
        super().answered(call, reply, now)
        if not self.closed and sum(1 for who in self._sources if not self._open.get(who)) >= self._quorum:
            self.over = True
            self._finish(now)

    def expire(self, now: float) -> None:
        """Time is up: give what was found."""
        self.over = True
        self._finish(now)

    def failed(self, call: Call, now: float) -> None:
        """No answer will come."""
        if call.tag == MORE:
            self._open[call.peer.contact.key] -= 1
        super().failed(call, now)

    def _ended(self, now: float) -> None:
        if any(self._open.values()):
            # Pages or parts are still on their way; the last of them ends it.
            self.over = False
            return
        self._finish(now)

    def _finish(self, now: float) -> None:
        if self.closed:
            return
        self.closed = True
        self._repair(now)
        records = sorted(self._best.values(), key=lambda r: r.tag)
        self._done(Found(records, len(self._sources), self.lookup.asked))

    def _repair(self, now: float) -> None:
        """Give the newest records to the nodes that answered with none or older ones, when that is little to give."""
        if len(self._best) > REPAIR_RECORDS:
            return
        for contact in self.lookup.closest()[: self.lookup.k]:
            peer = self.ctx.peer_of(contact)
            held = self._held.get(contact.key)
            if peer is None or held is None or now - peer.token_at > TOKEN_LIFE_S:
                continue
            for record in self._best.values():
                if record.rank[2] not in held and len(record.raw) <= INLINE_STORE:
                    self.ctx.ask(
                        contact,
                        Op.STORE,
                        messages.store_body(self.target, 0, record.raw),
                        _Deaf(self.ctx, self.target, self.lookup),
                        now,
                    )


class _Deaf(Search):
    """An asker that is done with the matter: only whether the node lives still counts."""

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """Note that the node lives."""
        del reply
        self.ctx.heard(call.peer.contact, now)

    def late(self, call: Call, now: float) -> None:
        """Nobody waits."""

    def failed(self, call: Call, now: float) -> None:
        """Note that the node does not answer."""
        self.ctx.lost(call.peer.contact, now)


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
