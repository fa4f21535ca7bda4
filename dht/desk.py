"""What a node answers to requests: Kademlia's four, parts of large records, watching. No I/O, no clock.

An answer never exceeds the room it is given: three times the request for an address that has not proved itself, one
datagram for one that has. Only a proved address may make this node keep anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, assert_never

from dht import messages
from dht.contact import Address, Contact, Via, group_of
from dht.errors import InvalidRecord
from dht.limits import Buckets
from dht.messages import Op, Request, Status
from dht.records import Record
from dht.rpc import PING_COST, Peer
from dht.search import INLINE_STORE
from dht.storage import Outcome

if TYPE_CHECKING:
    from dht.engine import Engine

MAX_UPLOADS: Final = 64
"""Records of more than one datagram that are being received at once: half a megabyte at most."""

ORPHANS_PER_SECOND: Final = 0.01
ORPHANS_BURST: Final = 64.0
"""Tombstones without work that one address group may leave of what was never here: honest ones are rare, and a market
full of them would have to be read by everybody."""
MOST_OF_GROUP: Final = 400
"""Records of a topic that one address group may put there: fewer than make readers look into the halves of a shard
(`market.DESCEND_AT`), so that splitting a market up takes addresses of several networks."""

_WRITES: Final = frozenset((Op.STORE, Op.STORE_PART, Op.WATCH))


class Desk:
    """Answers for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._orphans: Buckets[bytes] = Buckets(ORPHANS_PER_SECOND, ORPHANS_BURST)
        self._uploads: dict[bytes, tuple[bytes, bytearray]] = {}

    def serve(
        self, request: Request, peer: Peer, address: Address, *, proved: bool, room: int, now: float
    ) -> bytes | None:
        """Status ‖ body of the answer to a request that authenticated."""
        engine = self._engine
        if not request.flags & messages.CLIENT and engine.welcome(peer, address, proved=proved, room=room, now=now):
            room -= PING_COST
        if request.op == Op.NOTIFY:
            return engine.watching.pushed(request, now)
        if engine.config.client:
            return None
        if request.op in _WRITES:
            if not proved:
                return bytes((Status.BAD_TOKEN, 0))
            return self._write(request, peer, address, room, now)
        return self._read(request, peer, address, room, now)

    def _read(self, request: Request, peer: Peer, address: Address, room: int, now: float) -> bytes:
        match request.op:
            case Op.PING:
                other = self._engine.elsewhere.get(6 if peer.contact.version == 4 else 4)
                return b"\0" + messages.ping_body((address[0], address[1]), other)
            case Op.FIND_NODE:
                target, want = messages.target_of(request.data)
                return b"\0" + self.contacts(target, want, peer, room - 1, request.flags)
            case Op.FIND_VALUE:
                return self._value(request, peer, room, now)
            case Op.FETCH_PART:
                topic, tag, offset = messages.fetch_of(request.data)
                raw = self._engine.storage.get(topic, tag) or b""
                part = raw[offset : offset + min(messages.PART_BYTES, room - 3)]
                return b"\0" + len(part).to_bytes(2, "big") + part
            case _:
                return bytes((Status.UNSUPPORTED,))

    def _write(self, request: Request, peer: Peer, address: Address, room: int, now: float) -> bytes:
        topic, _ = messages.target_of(request.data)
        match request.op:
            case Op.STORE:
                return self._keep(request, topic, messages.record_of(request.data), peer, address, room, now)
            case Op.WATCH:
                return self._engine.watchers.serve(topic, peer, address, now)
            case _:
                return self._part(topic, request, peer, address, room, now)

    def contacts(self, target: bytes, want: int, peer: Peer, room: int, flags: int = 0) -> bytes:
        """Count u8 ‖ packed contacts: those closest to a target that the asker can use, as many as fit the room."""
        want = max(0, min(want, (room - 1) // 39))
        if not want:
            return b"\0"
        engine = self._engine
        skip: Callable[[Contact], bool] | None = engine.is_late if engine.rpc.late else None
        if not engine.table.uniform or peer.contact.version != 4:
            skip = self._useless(peer.contact, flags)
        found = engine.table.closest(int.from_bytes(target, "big"), want + 1, skip)
        asker = peer.contact.id
        found = [c for c in found if c.id != asker][:want]
        while found and sum(len(c.packed) for c in found) > room - 1:
            found.pop()
        return messages.contacts_body(found)

    def _useless(self, asker: Contact, flags: int) -> Callable[[Contact], bool]:
        """Says of a contact whether it is of no use to an asker, or not to be handed out."""
        v4, v6 = flags & messages.SPEAKS_V4, flags & messages.SPEAKS_V6
        versions = {4 if v4 else 0, 6 if v6 else 0} if v4 or v6 else {asker.version}
        channels, is_late = flags & messages.SPEAKS_CHANNEL, self._engine.is_late

        def useless(contact: Contact) -> bool:
            return contact.version not in versions or (contact.via is Via.CHANNEL and not channels) or is_late(contact)

        return useless

    def _value(self, request: Request, peer: Peer, room: int, now: float) -> bytes:
        topic, want = messages.target_of(request.data)
        after, known = messages.cursor_of(request.data)
        total = self._engine.storage.total(topic)
        if not total:
            return (
                b"\0"
                + messages.value_body(0, bytes(8), more=False, records=[], large=[])
                + self.contacts(topic, want, peer, room - 14, request.flags)
            )
        digest = self._engine.storage.digest(topic)
        if known == digest and known != messages.FIRST:
            self._engine.upkeep.checked(topic, now)
            head = messages.value_body(total, digest, more=False, records=[], large=[])
            return bytes((Status.UNCHANGED,)) + head + self.contacts(topic, want, peer, room - 14, request.flags)
        records, large, more = self._engine.storage.page(topic, after, room - 15, self._engine.unix(now), INLINE_STORE)
        head = messages.value_body(total, digest, more=more, records=records, large=large)
        beside = messages.want_beside_records(request.data)
        return b"\0" + head + self.contacts(topic, beside, peer, room - 1 - len(head), request.flags)

    def _part(self, topic: bytes, request: Request, peer: Peer, address: Address, room: int, now: float) -> bytes:
        """Collect a record that is larger than a datagram. Parts come in order; one upload per peer."""
        name, size, offset, part = messages.store_part_of(request.data)
        if size > self._engine.registry.max_bytes:
            return bytes((Status.INVALID,)) + b"\0"
        key = peer.contact.key
        if offset == 0:
            if key not in self._uploads and len(self._uploads) >= MAX_UPLOADS:
                del self._uploads[next(iter(self._uploads))]
            self._uploads[key] = (name, bytearray())
        expected, buffer = self._uploads.get(key, (b"", bytearray()))
        if expected != name or offset > len(buffer):
            return bytes((Status.BUSY,)) + b"\0"
        if offset == len(buffer):
            buffer += part
        if len(buffer) < size:
            return b"\0\0"
        del self._uploads[key]
        return self._keep(request, topic, bytes(buffer), peer, address, room, now)

    def _too_many(self, topic: bytes, record: Record, sender: Contact, now: float) -> bool:
        """Whether a new record is one too many from an address group that does not itself hold the topic."""
        engine = self._engine
        storage = engine.storage
        orphan = record.meta.tombstone and not engine.registry.rules(record.envelope.kind).min_pow_bits
        if not orphan and storage.total(topic) < MOST_OF_GROUP:
            return False
        if engine.exempt(sender) or storage.has(topic, record.tag):
            return False
        holders = engine.table.closest(int.from_bytes(topic, "big"), engine.config.k)
        if any(holder.id == sender.id for holder in holders):
            # It hands on what others gave it.
            return False
        if sum(slot.group == sender.group for slot in storage.slots(topic)) >= MOST_OF_GROUP:
            return True
        return orphan and not self._orphans.allow(sender.group, 1.0, now)

    def _keep(
        self, request: Request, topic: bytes, raw: bytes, peer: Peer, address: Address, room: int, now: float
    ) -> bytes:
        want = messages.target_of(request.data)[1]
        try:
            record = self._engine.registry.check(raw, topic, self._engine.unix(now))
        except InvalidRecord:
            return bytes((Status.INVALID,)) + self.contacts(topic, want, peer, room - 1, request.flags)
        if self._too_many(topic, record, peer.contact, now):
            return bytes((Status.FULL,)) + self.contacts(topic, want, peer, room - 1, request.flags)
        put = self._engine.keep(topic, record, group_of(address[0]), now)
        contacts = self.contacts(topic, want, peer, room - 1, request.flags)
        match put.outcome:
            case Outcome.STORED | Outcome.SAME:
                return b"\0" + contacts
            case Outcome.FULL:
                return bytes((Status.FULL,)) + contacts
            case Outcome.OLDER:
                standing = put.standing or b""
                if len(standing) > room - 3 - len(contacts):
                    standing = b""
                return bytes((Status.OLDER,)) + contacts + len(standing).to_bytes(2, "big") + standing
            case _:
                assert_never(put.outcome)
