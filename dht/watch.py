"""Watching topics: holders push what changes, watchers renew and compare (SPEC, DHT messages). No I/O, no clock.

A watcher asks two of a topic's holders to send it every new record of the topic for a while. It renews twice as often
as needed; the answer carries the holder's digest, so that a lost push is noticed at the next renewal, and the
datagrams keep a NAT's mapping open. At each renewal one of the two gives way to another holder, so that two that keep
still, by design or because others are closer by now, are not listened to for long. A holder bounds its watchers by
topic, by address group and in all, and drops one that does not acknowledge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from dht import messages
from dht.contact import Address, Contact, Scope, contact_at, group_of, host_in, scope_of
from dht.errors import InvalidRecord
from dht.limits import Buckets
from dht.messages import Op, Reply, Request, Status
from dht.records import Record
from dht.rpc import Call, Peer
from dht.search import INLINE_STORE

if TYPE_CHECKING:
    from dht.engine import Engine

TTL_S: Final = 60.0
RENEW_S: Final = 25.0
FIND_S: Final = 600.0
"""How often the holders are searched again, in case that others are the closest by now."""
HOLDERS: Final = 2
MAX_WATCHERS: Final = 4_096
MAX_PER_TOPIC: Final = 256
MAX_PER_GROUP: Final = 512
PUSHES_PER_SECOND: Final = 4.0
PUSHES_BURST: Final = 256.0
"""Records from one address group that are pushed: each becomes as many datagrams as there are watchers. Of further ones
watchers learn when they renew."""


class Watchers:
    """The holder's side: who wants to hear of what."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_topic: dict[bytes, dict[bytes, tuple[Contact, float]]] = {}
        self._groups: dict[bytes, int] = {}
        self._pushes: Buckets[bytes] = Buckets(PUSHES_PER_SECOND, PUSHES_BURST)
        self.count = 0

    def serve(self, topic: bytes, peer: Peer, address: Address, now: float) -> bytes:
        """Status ‖ digest (8) ‖ total u16 of an answer to watch, to an address that has proved itself."""
        storage = self._engine.storage
        state = storage.digest(topic) + min(storage.total(topic), 65_535).to_bytes(2, "big")
        watchers = self._by_topic.setdefault(topic, {})
        known = watchers.get(peer.contact.key)
        if known is None:
            self._drop_stale(topic, watchers, now)
            group = group_of(address[0])
            local = self._engine.exempt(peer.contact)
            crowded = self._groups.get(group, 0) >= MAX_PER_GROUP and not local
            if len(watchers) >= MAX_PER_TOPIC:
                self._make_room(topic, watchers, group)
            if self.count >= MAX_WATCHERS or len(watchers) >= MAX_PER_TOPIC or crowded:
                if not watchers:
                    self._by_topic.pop(topic, None)
                return bytes((Status.BUSY,)) + state
            self._by_topic[topic] = watchers
            self._groups[group] = self._groups.get(group, 0) + 1
            self.count += 1
        elif known[0].group != group_of(address[0]):
            self._leave(known[0])
            self._groups[group_of(address[0])] = self._groups.get(group_of(address[0]), 0) + 1
        contact = contact_at(peer.contact.key, address)
        watchers[contact.key] = (contact, now + TTL_S)
        return b"\0" + state

    def _make_room(self, topic: bytes, watchers: dict[bytes, tuple[Contact, float]], newcomer: bytes) -> None:
        """Where a topic has no place left, the address group that has most gives one to a group that has fewer."""
        held = Counter(contact.group for contact, _ in watchers.values())
        heaviest, most = held.most_common(1)[0]
        if held[newcomer] + 1 < most:
            self.drop(topic, next(key for key, (contact, _) in watchers.items() if contact.group == heaviest))

    def _drop_stale(self, topic: bytes, watchers: dict[bytes, tuple[Contact, float]], now: float) -> None:
        for key in [k for k, (_, until) in watchers.items() if until < now]:
            self.drop(topic, key)

    def drop(self, topic: bytes, key: bytes) -> None:
        """Forget a watcher."""
        watchers = self._by_topic.get(topic)
        gone = watchers.pop(key, None) if watchers else None
        if gone is not None:
            self.count -= 1
            self._leave(gone[0])
        if watchers is not None and not watchers:
            del self._by_topic[topic]

    def _leave(self, contact: Contact) -> None:
        left = self._groups.get(contact.group, 0) - 1
        if left > 0:
            self._groups[contact.group] = left
        else:
            self._groups.pop(contact.group, None)

    def changed(self, topic: bytes, record: Record, group: bytes, now: float) -> None:
        """A record that came from this address group was stored here: tell those who watch."""
        watchers = self._by_topic.get(topic)
        if not watchers or len(record.raw) > INLINE_STORE or self._too_many(group, now):
            return
        self._drop_stale(topic, watchers, now)
        body = messages.store_body(topic, 0, record.raw)
        for contact, _ in list(watchers.values()):
            self._engine.ask(contact, Op.NOTIFY, body, _Push(self, topic), now)

    def _too_many(self, group: bytes, now: float) -> bool:
        """Whether a group makes us push too much; our own records and, in test networks, local ones do not count."""
        if not group or (scope_of(host_in(group)) is not Scope.GLOBAL and not self._engine.config.count_local):
            return False
        return not self._pushes.allow(group, 1.0, now)

    def expire(self, now: float) -> None:
        """Forget those that did not renew."""
        for topic in list(self._by_topic):
            self._drop_stale(topic, self._by_topic[topic], now)


class _Push:
    """Notes whether a watcher still listens."""

    def __init__(self, watchers: Watchers, topic: bytes) -> None:
        self._watchers = watchers
        self._topic = topic

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """It heard; a refusal means that it does not watch any more."""
        del now
        if reply.status != Status.OK:
            self._watchers.drop(self._topic, call.peer.contact.key)

    def late(self, call: Call, now: float) -> None:
        """It was sent again."""

    def failed(self, call: Call, now: float) -> None:
        """It is gone."""
        del now
        self._watchers.drop(self._topic, call.peer.contact.key)


class Watch:
    """The watcher's side of one topic."""

    def __init__(
        self,
        engine: Engine,
        topic: bytes,
        on_record: Callable[[Record], None],
        on_digest: Callable[[Contact, bytes, int], None],
        known: Iterable[Contact] = (),
    ) -> None:
        """`on_record`: a verified record was pushed. `on_digest`: a holder told its digest and total.

        `known`: holders that were found a moment ago; the first search is left out when there are enough of them.
        """
        self.engine = engine
        self.topic = topic
        self.on_record = on_record
        self.on_digest = on_digest
        self.holders: list[Contact] = []
        self.closed = False
        self._near = list(known)
        """Nodes that hold the topic, as far as the last search knew."""
        self._finding = False
        self._find_at = 0.0
        self._renew_at = 0.0

    def step(self, now: float) -> None:
        """Renew when due; find holders when there are too few, or when others may be the closest by now."""
        if now < self._renew_at or self.closed:
            return
        rng = self.engine.rng
        self._renew_at = now + RENEW_S * (0.8 + 0.4 * rng.random())
        if len(self.holders) == HOLDERS and len(self._near) > HOLDERS:
            # One that tells nothing of what it stores is not kept for long.
            self.holders.pop(int(rng.random() * HOLDERS))
        for holder in tuple(self.holders):
            self._ask(holder, now)
        if self._near and not self._find_at:
            self._find_at = self._renew_at + FIND_S
        self._choose(now)
        if not self._finding and (len(self.holders) < HOLDERS or now >= self._find_at):
            self._finding = True
            self.engine.find(self.topic, lambda found: self._found(found, now), now)

    def _found(self, found: list[Contact], now: float) -> None:
        self._finding = False
        self._find_at = now + FIND_S * (0.8 + 0.4 * self.engine.rng.random())
        self._near = found[: self.engine.config.k]
        self._choose(now)

    def _choose(self, now: float) -> None:
        # By chance, so that pushes are spread over all holders. One of the two is among the closest, where every put
        # goes; the other may be any, so that a crowd around the topic does not have both for long.
        rng = self.engine.rng
        while len(self.holders) < HOLDERS:
            closest = self._near[: self.engine.config.k]
            pool = self._near if any(holder in closest for holder in self.holders) else closest
            left = [near for near in pool if near not in self.holders]
            if not left:
                return
            holder = left[int(rng.random() * len(left))]
            self.holders.append(holder)
            self._ask(holder, now)

    def _ask(self, holder: Contact, now: float) -> None:
        if self.engine.ask(holder, Op.WATCH, self.topic + b"\0", self, now) is None:
            self._lose(holder)

    def _lose(self, holder: Contact) -> None:
        self._near = [near for near in self._near if near is not holder]
        if holder in self.holders:
            self.holders.remove(holder)
            self._renew_at = 0.0

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """A holder answered to watch."""
        if self.closed:
            return
        holder = call.peer.contact
        self.engine.heard(holder, now)
        if reply.status == Status.BAD_TOKEN:
            self._ask(holder, now)
        elif reply.status in (Status.OK, Status.BUSY) and len(reply.data) >= messages.HEAD + 10:
            if reply.status == Status.BUSY:
                self._lose(holder)
            at = messages.HEAD
            self.on_digest(holder, reply.data[at : at + 8], int.from_bytes(reply.data[at + 8 : at + 10], "big"))
        else:
            self._lose(holder)

    def late(self, call: Call, now: float) -> None:
        """Wait."""

    def failed(self, call: Call, now: float) -> None:
        """The holder is gone."""
        self.engine.lost(call.peer.contact, now)
        self._lose(call.peer.contact)


class Watching:
    """The watches of a node, and the pushes that come for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_topic: dict[bytes, list[Watch]] = {}

    def add(self, watch: Watch, now: float) -> None:
        """Begin."""
        self._by_topic.setdefault(watch.topic, []).append(watch)
        watch.step(now)

    def remove(self, watch: Watch) -> None:
        """End; the holders find out when their pushes are refused or the time is over."""
        watch.closed = True
        left = [w for w in self._by_topic.get(watch.topic, ()) if w is not watch]
        if left:
            self._by_topic[watch.topic] = left
        else:
            self._by_topic.pop(watch.topic, None)

    def step(self, now: float) -> None:
        """Renew what is due."""
        for watches in list(self._by_topic.values()):
            for watch in watches:
                watch.step(now)

    def stored(self, topic: bytes, record: Record) -> None:
        """This node is itself a holder and keeps a new record: nobody else may push it here."""
        for watch in tuple(self._by_topic.get(topic, ())):
            watch.on_record(record)

    def pushed(self, request: Request, now: float) -> bytes:
        """Status of the answer to notify."""
        topic, _ = messages.target_of(request.data)
        watches = self._by_topic.get(topic)
        if not watches:
            return bytes((Status.UNSUPPORTED,))
        try:
            record = self._engine.check(messages.record_of(request.data), topic, now)
        except InvalidRecord:
            return bytes((Status.INVALID,))
        for watch in watches:
            watch.on_record(record)
        return b"\0"
