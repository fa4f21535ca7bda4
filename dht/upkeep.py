"""What a node does unasked: keeps its table alive and its share of the records where they belong. No I/O, no clock.

Everything is spread by chance and bounded per second, so that nothing here can become a storm:

* A bucket that nothing was heard from for long is refreshed by a search in it; the node heard longest ago is pinged.
* The publisher puts its records again before others forget them.
* The holders of a topic compare digests: once per period one of them asks the others (two datagrams each when nothing
  differs); those asked know from it that the topic was checked and put off their own turn.
* When a node enters or leaves the neighbourhood of a topic, its turn comes soon instead of in an hour.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket, InvalidRecord
from dht.messages import FIRST, Op, Reply, Status
from dht.records import Record
from dht.rpc import TOKEN_LIFE_S, Call
from dht.search import INLINE_STORE, WANT, PutResult, Search

if TYPE_CHECKING:
    from dht.engine import Engine
    from dht.lookup import Lookup

STEP_S: Final = 1.0
PING_EVERY_S: Final = 20.0
SOON_S: Final = 30.0
TURNS_PER_STEP: Final = 4
"""Topics checked per second at most."""
PUTS_PER_STEP: Final = 4
PUSH_LIMIT: Final = 64
"""Records handed to one node in one turn; the rest goes by `sync` or in the next."""
SCAN_LIMIT: Final = 4_096


class Upkeep:
    """The chores of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.published: dict[tuple[bytes, bytes], Record] = {}
        """Our own records, by (topic, tag): put again until they expire."""
        self._puts: list[tuple[float, bytes, bytes]] = []
        self._turns: list[tuple[float, bytes]] = []
        self._due: dict[bytes, float] = {}
        self._next_ping = 0.0
        self._refreshing = False

    def _spread(self, period: float) -> float:
        """A time around `period`, from 3/4 to 5/4 of it."""
        return period * (0.75 + 0.5 * self.engine.rng.random())

    # -- what the engine reports -------------------------------------------------------------------------------

    def publish(self, topic: bytes, record: Record, now: float) -> None:
        """Take over the care for one of our own records; a newer one of the same tag replaces it."""
        key = (topic, record.tag)
        known = self.published.get(key)
        if known is not None and known.rank >= record.rank:
            return
        self.published[key] = record
        if known is None:
            heapq.heappush(self._puts, (now + self._spread(self.engine.config.republish_s), *key))

    def stored(self, topic: bytes, now: float) -> None:
        """A record was stored here."""
        if topic not in self._due:
            self._schedule(topic, now + self._spread(self.engine.config.republish_s))

    def checked(self, topic: bytes, now: float) -> None:
        """Another holder compared digests with us and they were equal: our turn can wait."""
        self._schedule(topic, now + self._spread(self.engine.config.republish_s))

    def neighbour(self, contact: Contact, now: float) -> None:
        """A node entered or left our neighbourhood: what it is closer to than we are may need a holder."""
        own = int.from_bytes(self.engine.own_id, "big")
        for topic in self.engine.storage.topics()[:SCAN_LIMIT]:
            number = int.from_bytes(topic, "big")
            if number ^ contact.long_id < number ^ own:
                due = now + SOON_S * (0.1 + self.engine.rng.random())
                if self._due.get(topic, due + 1) > due:
                    self._schedule(topic, due)

    def _schedule(self, topic: bytes, due: float) -> None:
        self._due[topic] = due
        heapq.heappush(self._turns, (due, topic))

    # -- time --------------------------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Do what is due; call about once per second."""
        engine = self.engine
        for _ in range(PUTS_PER_STEP):
            if not self._puts or self._puts[0][0] > now:
                break
            _, topic, tag = heapq.heappop(self._puts)
            self._put_again((topic, tag), now)
        turns = 0
        while self._turns and self._turns[0][0] <= now and turns < TURNS_PER_STEP:
            due, topic = heapq.heappop(self._turns)
            if self._due.get(topic) != due:
                continue  # put off since
            turns += 1
            self._take_turn(topic, now)
        if engine.config.client or not len(engine.table):
            return
        if not self._refreshing:
            lonely = engine.table.lonely(now, engine.config.refresh_s)
            if lonely:
                self._refresh(lonely[0].low, lonely[0].bits, now)
                lonely[0].last_updated = now
        if now >= self._next_ping:
            self._next_ping = now + self._spread(PING_EVERY_S)
            engine.ping_quietest(now)

    def _put_again(self, key: tuple[bytes, bytes], now: float) -> None:
        record = self.published.get(key)
        if record is None or record.meta.expires <= self.engine.unix(now):
            self.published.pop(key, None)
            return
        heapq.heappush(self._puts, (now + self._spread(self.engine.config.republish_s), *key))

        def done(result: PutResult) -> None:
            # Somebody else (another of our devices) published a newer one: it is the one to care for.
            if result.newer is not None:
                self.published.pop(key, None)

        self.engine.put(key[0], record, done, now)

    def _refresh(self, low: int, bits: int, now: float) -> None:
        self._refreshing = True
        target = low + int(self.engine.rng.random() * (1 << bits))

        def done(_: list[Contact]) -> None:
            self._refreshing = False

        self.engine.find(target.to_bytes(20, "big"), done, now)

    def _take_turn(self, topic: bytes, now: float) -> None:
        if not self.engine.storage.total(topic):
            del self._due[topic]
            return
        self._schedule(topic, now + self._spread(self.engine.config.republish_s))
        if self.engine.responsible(topic):
            self.engine.start(Handover(self.engine, topic, self.engine.lookup(topic)), now)


class Handover(Search):
    """Ask the other holders of a topic for their digest; give them what they lack and take what we lack."""

    op = Op.FIND_VALUE

    def __init__(self, engine: Engine, topic: bytes, lookup: Lookup) -> None:
        super().__init__(engine, topic, lookup)
        self._engine = engine
        self.given = 0

    def _body(self, contact: Contact) -> tuple[int, bytes]:
        del contact
        digest = self._engine.storage.digest(self.target)
        return Op.FIND_VALUE, messages.find_value_body(self.target, WANT, FIRST, digest)

    def _read(self, call: Call, reply: Reply, now: float) -> list[Contact]:
        if call.op != Op.FIND_VALUE:
            return []
        value = messages.value_of(reply.data)
        if reply.status == Status.UNCHANGED:
            return value.contacts
        if reply.status != Status.OK:
            raise BadPacket("refused")
        theirs: set[bytes] = set()
        for raw in value.records:
            record = self._engine.check(raw, self.target, now)
            theirs.add(record.rank[2])
            self._engine.keep(self.target, record, call.peer.contact.group, now)
        if not value.more and self.lookup.within(call.peer.contact):
            self._give(call, theirs, {tag for tag, _ in value.large}, now)
        return value.contacts

    def _give(self, call: Call, theirs: set[bytes], large: set[bytes], now: float) -> None:
        peer = call.peer
        if now - peer.token_at > TOKEN_LIFE_S:
            return
        storage, unix = self._engine.storage, self._engine.unix(now)
        count = 0
        for raw in storage.all(self.target, unix):
            try:
                record = self._engine.registry.trust(raw, self.target, unix)
            except InvalidRecord:
                continue
            if record.rank[2] in theirs or record.tag in large or count >= PUSH_LIMIT:
                continue
            if len(raw) <= INLINE_STORE:
                count += 1
                self.given += 1
                self._engine.ask(peer.contact, Op.STORE, messages.store_body(self.target, 0, raw), self, now)

    def _ended(self, now: float) -> None:
        """Nobody waits for it."""
