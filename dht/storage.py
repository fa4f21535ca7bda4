"""Where records are kept: one value per (publisher, sub-key) under a topic, bounded on every side.

All of the index and the hot records are in memory; a `Disk` (SQLite, `dht.disk`) can stand behind it and then the
memory cap holds for the raw bytes: cold ones are dropped and read back when asked for.

Limits, each refused with a reason: values per publisher under a topic, values per signer over all topics (a few kinds
let anybody sign what belongs to somebody else, and nobody's quota may be spent by others), values per topic, bytes
delivered from one address group, bytes in all. When a limit shared by strangers is hit (topic, bytes in all) somebody's
record must go. Who goes is decided by shares, so an attacker can't push others out: the heaviest address group pays, in
it the heaviest publisher (over all topics: signer), of his records the one with the least work, and ties fall by a hash
under a secret of this node that nobody else can predict. A newcomer from the heaviest group is itself the one to go.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from dht.contact import Contact
from dht.records import Record, RecordKind

STALE_EXPIRIES: Final = 1_024
"""Entries of records that were replaced meanwhile, over the number of records: more are thrown out of the queue."""
WALK_SHARE: Final = 256
"""One part in so many of all records goes at a time when the store is full: finding them is a walk over everything."""


class Disk(Protocol):
    """What a durable store behind the memory does. Writes may be batched; reads see every write."""

    def put(self, topic: bytes, tag: bytes, record: Record, group: bytes, stored_at: int) -> None:
        """Insert or replace one slot."""

    def get(self, topic: bytes, tag: bytes) -> bytes | None:
        """The raw record of a slot."""

    def delete(self, topic: bytes, tag: bytes) -> None:
        """Remove one slot."""

    def load(self, now: int) -> Iterator[tuple[bytes, bytes, bytes, int]]:
        """(topic, raw, group, stored_at) of every record that has not expired."""

    def save_peers(self, contacts: Iterable[Contact]) -> None:
        """Keep these nodes for the next start."""

    def load_peers(self) -> list[Contact]:
        """The nodes kept last time."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def close(self) -> None:
        """Flush and let go of the file."""


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """How much a node keeps for others."""

    max_bytes: int = 256 * 2**20
    """Bytes of all records, on disk or in memory."""
    memory_bytes: int = 32 * 2**20
    """Raw bytes kept in memory when there is a disk behind."""
    max_records: int = 400_000
    group_share: float = 0.25
    """Share of `max_bytes` that one address group (IPv4 /24, IPv6 /48) may fill."""
    max_per_publisher: int = 1_000
    """Records signed by one key over all topics and kinds."""
    max_topics: int = 100_000


class Outcome(Enum):
    """What became of an offered record."""

    STORED = "stored"
    SAME = "same"
    """This very record is here already."""
    OLDER = "older"
    """A higher rank is here."""
    FULL = "full"
    """A quota refuses it."""


class Put(NamedTuple):
    """The result of offering a record: what happened, and the raw record that stands in its place when OLDER."""

    outcome: Outcome
    standing: bytes | None = None


class Slot:
    """One value: what the index must know of a record."""

    __slots__ = (
        "expires",
        "group",
        "kind",
        "lot",
        "pow_bits",
        "publisher",
        "rank",
        "raw",
        "signer",
        "size",
        "stored_at",
        "tag",
        "tombstone",
    )

    def __init__(self, record: Record, group: bytes, stored_at: int) -> None:
        meta = record.meta
        self.raw: bytes | None = record.raw
        self.size = len(record.raw)
        self.kind = record.envelope.kind
        self.publisher = meta.publisher
        # Mostly the same, and then the same object: it is kept for every record.
        self.signer = meta.publisher if record.envelope.signer == meta.publisher else record.envelope.signer
        self.rank = record.rank
        self.expires = meta.expires
        self.tombstone = meta.tombstone
        self.pow_bits = meta.pow_bits
        self.tag = record.tag
        self.group = group
        self.stored_at = stored_at
        self.lot = b""
        """What decides between equals, once it was asked for."""


class Topic:
    """The slots of one topic, and what is asked of them as a whole."""

    __slots__ = ("digest", "order", "slots")

    def __init__(self) -> None:
        self.slots: dict[bytes, Slot] = {}
        self.digest = 0
        """XOR of 8 bytes per record: equal sets have equal digests."""
        self.order: list[bytes] | None = None
        """Sorted tags; None when they must be sorted again."""


class Storage:
    """Records in memory, with a disk behind it if one is given."""

    def __init__(self, limits: StorageLimits | None = None, disk: Disk | None = None, *, secret: bytes) -> None:
        """`secret`: 16 or more random bytes, kept for as long as the disk is; decides ties of eviction."""
        self.limits = limits or StorageLimits()
        self.disk = disk
        self._secret = secret
        self._topics: dict[bytes, Topic] = {}
        self._expiry: list[tuple[int, bytes, bytes]] = []
        self._by_signer: dict[bytes, int] = {}
        self._by_group: dict[bytes, int] = {}
        self._least = self.limits.max_bytes // self.limits.max_records
        """Bytes that a record counts as at least: who sends many small ones takes their share of the number as well."""
        self._hot: dict[tuple[bytes, bytes], None] = {}
        self.bytes = 0
        self.memory = 0
        self.records = 0
        self.evicted = 0

    # -- reading -----------------------------------------------------------------------------------------------

    def topics(self) -> list[bytes]:
        """Every topic with at least one record."""
        return list(self._topics)

    def total(self, topic: bytes) -> int:
        """How many records (tombstones too) a topic holds."""
        found = self._topics.get(topic)
        return len(found.slots) if found else 0

    def digest(self, topic: bytes) -> bytes:
        """Eight bytes that are equal on two nodes when they hold the same records; zeros for none."""
        found = self._topics.get(topic)
        return (found.digest if found else 0).to_bytes(8, "big")

    def page(
        self, topic: bytes, after: bytes, room: int, now: int, max_record: int
    ) -> tuple[list[bytes], list[tuple[bytes, int]], bool]:
        """Records of a topic in tag order behind `after`, as many as fit `room` bytes at 2 bytes of overhead each.

        Returns (raw records, (tag, size) of those over `max_record`, whether more follow).
        """
        found = self._topics.get(topic)
        if found is None:
            return [], [], False
        if found.order is None:
            found.order = sorted(found.slots)
        out: list[bytes] = []
        large: list[tuple[bytes, int]] = []
        for tag in found.order:
            if tag <= after:
                continue
            slot = found.slots[tag]
            if slot.expires <= now:
                continue
            need = 10 if slot.size > max_record else slot.size + 2
            if need > room or len(out) + len(large) >= 255:
                return out, large, True
            if slot.size > max_record:
                large.append((tag, slot.size))
            elif (raw := self._raw(topic, slot)) is not None:
                out.append(raw)
            room -= need
        return out, large, False

    def all(self, topic: bytes, now: int) -> list[bytes]:
        """Every live record of a topic, tombstones too, in tag order."""
        found = self._topics.get(topic)
        if found is None:
            return []
        slots = (found.slots[tag] for tag in sorted(found.slots))
        return [raw for s in slots if s.expires > now and (raw := self._raw(topic, s)) is not None]

    def slots(self, topic: bytes) -> list[Slot]:
        """The slots of a topic, unsorted."""
        found = self._topics.get(topic)
        return list(found.slots.values()) if found else []

    def has(self, topic: bytes, tag: bytes) -> bool:
        """Whether a slot is taken, in whatever version."""
        found = self._topics.get(topic)
        return found is not None and tag in found.slots

    def get(self, topic: bytes, tag: bytes) -> bytes | None:
        """The raw record of one slot."""
        found = self._topics.get(topic)
        slot = found.slots.get(tag) if found else None
        return self._raw(topic, slot) if slot else None

    def _raw(self, topic: bytes, slot: Slot) -> bytes | None:
        if slot.raw is None and self.disk is not None:
            slot.raw = self.disk.get(topic, slot.tag)
            if slot.raw is not None:
                self._warm(topic, slot)
        return slot.raw

    def flush(self) -> None:
        """Make what was stored durable."""
        if self.disk is not None:
            self.disk.flush()

    def close(self) -> None:
        """Flush and let go of the disk."""
        if self.disk is not None:
            self.disk.close()

    # -- writing -----------------------------------------------------------------------------------------------

    def put(self, topic: bytes, record: Record, rules: RecordKind, group: bytes, now: int) -> Put:
        """Offer a checked record that came from the address group `group` (empty for our own)."""
        found = self._topics.get(topic)
        old = found.slots.get(record.tag) if found else None
        fresh = Slot(record, group, now)
        if old is not None and old.expires <= now:
            self._remove(topic, old)
            old = None
        if old is None:
            if not self._admit(topic, fresh, rules, now):
                return Put(Outcome.FULL)
        elif old.rank == fresh.rank:
            if self._raw(topic, old) is not None:
                return Put(Outcome.SAME)
            # Lost with a disk that failed: then it is as welcome as the first time.
            self._remove(topic, old)
        elif old.rank > fresh.rank:
            return Put(Outcome.OLDER, self._raw(topic, old))
        elif (
            not fresh.tombstone and fresh.size > old.size and self.bytes + fresh.size - old.size > self.limits.max_bytes
        ):
            # An update moves no quota but the bytes; a revocation is always heard.
            return Put(Outcome.FULL)
        else:
            fresh.group = old.group
            self._remove(topic, old)
        self._insert(topic, fresh)
        if self.disk is not None:
            self.disk.put(topic, record.tag, record, fresh.group, now)
        return Put(Outcome.STORED)

    def load(self, topic: bytes, record: Record, group: bytes, stored_at: int) -> None:
        """Put back a record that came from the disk, without judging quotas or writing it again."""
        self._insert(topic, Slot(record, group, stored_at))

    def expire(self, now: int) -> int:
        """Remove what has expired; returns how many."""
        gone = 0
        while self._expiry and self._expiry[0][0] <= now:
            _, topic, tag = heapq.heappop(self._expiry)
            found = self._topics.get(topic)
            slot = found.slots.get(tag) if found else None
            if slot is not None and slot.expires <= now:
                self._remove(topic, slot)
                gone += 1
        return gone

    def _admit(self, topic: bytes, fresh: Slot, rules: RecordKind, now: int) -> bool:
        limits = self.limits
        if self._by_signer.get(fresh.signer, 0) >= limits.max_per_publisher:
            return False
        # Our own records (no group) are bounded by what we publish.
        load = self._by_group.get(fresh.group, 0) + self._weight(fresh)
        if fresh.group and load > limits.group_share * limits.max_bytes:
            return False
        found = self._topics.get(topic)
        if found is None:
            if len(self._topics) >= limits.max_topics and not self.expire(now):
                return False
        else:
            mine = (
                sum(1 for s in found.slots.values() if s.publisher == fresh.publisher)
                if len(found.slots) >= rules.max_per_publisher
                else 0
            )
            if mine >= rules.max_per_publisher:
                return False
            if len(found.slots) >= rules.max_per_topic and not self._make_room_in(topic, found, fresh):
                return False
        while self.bytes + fresh.size > limits.max_bytes or self.records >= limits.max_records:
            if not self.expire(now) and not self._make_room(fresh):
                return False
        return True

    def _make_room_in(self, topic: bytes, found: Topic, fresh: Slot) -> bool:
        """Evict one slot of a full topic, or refuse `fresh` when it is the one that should go."""
        # Each step looks only at those that the step before left: a flood of a full topic must cost little.
        slots = [fresh, *found.slots.values()]
        groups = Counter([slot.group for slot in slots])
        most = max(groups.values())
        left = [slot for slot in slots if groups[slot.group] == most]
        owners = Counter([slot.publisher for slot in slots])
        most = max([owners[slot.publisher] for slot in left])
        left = [slot for slot in left if owners[slot.publisher] == most]
        least = min([slot.pow_bits for slot in left])
        left = [slot for slot in left if slot.pow_bits == least]
        heaviest = max(left, key=self._lot)
        if heaviest is fresh:
            return False
        self._remove(topic, heaviest)
        self.evicted += 1
        return True

    def _make_room(self, fresh: Slot) -> bool:
        """Evict one slot of the heaviest group; False when that is the group `fresh` comes from."""
        if not self._by_group:
            return False
        heaviest = max(self._by_group, key=lambda g: (self._by_group[g], g))
        if self._by_group[heaviest] <= self._by_group.get(fresh.group, 0) + self._weight(fresh):
            # The newcomer's own group is the heaviest, or would be.
            return False
        victims = ((t, s) for t, found in self._topics.items() for s in found.slots.values() if s.group == heaviest)
        count = 1 + self.records // WALK_SHARE
        chosen = heapq.nlargest(
            count, victims, key=lambda v: (self._by_signer.get(v[1].signer, 0), -v[1].pow_bits, self._lot(v[1]))
        )
        for topic, slot in chosen:
            self._remove(topic, slot)
            self.evicted += 1
        return bool(chosen)

    def _weight(self, slot: Slot) -> int:
        return max(slot.size, self._least)

    def _lot(self, slot: Slot) -> bytes:
        if not slot.lot:
            slot.lot = blake2b(slot.publisher + slot.tag, key=self._secret, digest_size=8).digest()
        return slot.lot

    def _insert(self, topic: bytes, slot: Slot) -> None:
        found = self._topics.get(topic)
        if found is None:
            found = self._topics[topic] = Topic()
        found.slots[slot.tag] = slot
        found.digest ^= int.from_bytes(slot.rank[2][:8], "big")
        found.order = None
        self._by_signer[slot.signer] = self._by_signer.get(slot.signer, 0) + 1
        self._by_group[slot.group] = self._by_group.get(slot.group, 0) + self._weight(slot)
        heapq.heappush(self._expiry, (slot.expires, topic, slot.tag))
        self.bytes += slot.size
        self.records += 1
        if len(self._expiry) > 2 * self.records + STALE_EXPIRIES:
            # Each new version of a record leaves an entry behind that would stay for as long as the old one lives.
            self._expiry = [(s.expires, t, tag) for t, of in self._topics.items() for tag, s in of.slots.items()]
            heapq.heapify(self._expiry)
        self._warm(topic, slot)

    def _remove(self, topic: bytes, slot: Slot) -> None:
        found = self._topics[topic]
        del found.slots[slot.tag]
        found.digest ^= int.from_bytes(slot.rank[2][:8], "big")
        found.order = None
        if not found.slots:
            del self._topics[topic]
        _less(self._by_signer, slot.signer, 1)
        _less(self._by_group, slot.group, self._weight(slot))
        self.bytes -= slot.size
        self.records -= 1
        if self._hot.pop((topic, slot.tag), 0) is None:
            self.memory -= slot.size
        if self.disk is not None:
            self.disk.delete(topic, slot.tag)

    def _warm(self, topic: bytes, slot: Slot) -> None:
        """Count raw bytes in memory; with a disk behind, drop those that were warmed longest ago when over the cap."""
        if self.disk is None or slot.raw is None:
            return
        self._hot[topic, slot.tag] = None
        self.memory += slot.size
        while self.memory > self.limits.memory_bytes and len(self._hot) > 1:
            place = next(iter(self._hot))
            del self._hot[place]
            cold = self._topics[place[0]].slots[place[1]]
            cold.raw = None
            self.memory -= cold.size


def _less(counts: dict[bytes, int], key: bytes, by: int) -> None:
    left = counts[key] - by
    if left > 0:
        counts[key] = left
    else:
        del counts[key]
