"""Collecting the records of a topic from the nodes closest to it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket
from dht.lookup import Lookup
from dht.messages import FIRST, Op, Reply, Status
from dht.records import Record
from dht.rpc import TOKEN_LIFE_S, Call
from dht.search import INLINE_STORE, WANT, Context, Search

MAX_PAGES: Final = 64
LAST: Final = b"\xff" * 8
REPAIR_RECORDS: Final = 4
BESIDE_RECORDS: Final = 3
MORE: Final = 1
"""The mark of a question that continues an answer."""


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
                        _Deaf(self.ctx),
                        now,
                    )


class _Deaf:
    """An asker that is done with the matter: only whether the node lives still counts."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """Note that the node lives."""
        del reply
        self._ctx.heard(call.peer.contact, now)

    def late(self, call: Call, now: float) -> None:
        """Nobody waits."""

    def failed(self, call: Call, now: float) -> None:
        """Note that the node does not answer."""
        self._ctx.lost(call.peer.contact, now)
