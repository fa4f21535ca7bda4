"""What a node does unasked: keeps its table alive and its share of the records where they belong. No I/O, no clock.

Everything is spread by chance and bounded per second, so that nothing here can become a storm:

* One probe per half minute keeps the table alive, however large the network is: the node heard longest ago, or one
  that was only named, is asked for the nodes at a place that we know little of. So dead nodes are found and new ones
  learnt by the same question, and no search is ever made for the table's sake but the one for our own id on joining.
* The publisher puts its records again before others forget them.
* The holders of a topic compare digests: once per period one of them asks the others (two datagrams each when nothing
  differs); those asked know from it that the topic was checked and put off their own turn.
* When a node enters or leaves the neighbourhood of a topic, its turn comes soon instead of in an hour.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from dht.contact import Contact
from dht.handover import Handover
from dht.probe import probe
from dht.records import Record
from dht.writing import PutResult

if TYPE_CHECKING:
    from dht.engine import Engine

SOON_S: Final = 60.0
"""Within about this time of a neighbour's coming or going its topics are checked: wide enough that a tenth of the
network may come at once."""
TOPICS_PER_TURN: Final = 1_000
"""Topics checked per second at most: one, and one more for each so many that are held."""
PUTS_PER_STEP: Final = 4
SCAN_LIMIT: Final = 4_096


class Upkeep:
    """The chores of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.published: dict[tuple[bytes, bytes], Record] = {}
        """Our own records, by (topic, tag): put again until they expire."""
        self._holders: dict[tuple[bytes, bytes], tuple[Contact, ...]] = {}
        """Who was closest when they were last put: most still are, so that no search begins from afar each time."""
        self._puts: list[tuple[float, bytes, bytes]] = []
        self._turns: list[tuple[float, bytes]] = []
        self._due: dict[bytes, float] = {}
        self._next_probe = 0.0

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
        most = 1 + len(self._due) // TOPICS_PER_TURN
        while self._turns and self._turns[0][0] <= now and turns < most:
            due, topic = heapq.heappop(self._turns)
            if self._due.get(topic) != due:
                continue  # put off since
            turns += 1
            self._take_turn(topic, now)
        if engine.config.client or not len(engine.table):
            return
        if now >= self._next_probe:
            self._next_probe = now + self._spread(engine.config.probe_s)
            probe(engine, now)

    @property
    def due(self) -> float:
        """When `step` has something to do next, as far as is known now."""
        soonest = self._next_probe
        if self._puts:
            soonest = min(soonest, self._puts[0][0])
        if self._turns:
            soonest = min(soonest, self._turns[0][0])
        return soonest

    def _put_again(self, key: tuple[bytes, bytes], now: float) -> None:
        record = self.published.get(key)
        if record is None or record.meta.expires <= self.engine.unix(now):
            self.published.pop(key, None)
            self._holders.pop(key, None)
            return
        heapq.heappush(self._puts, (now + self._spread(self.engine.config.republish_s), *key))

        def done(result: PutResult) -> None:
            # Somebody else (another of our devices) published a newer one: it is the one to care for.
            if result.newer is not None:
                self.published.pop(key, None)
            self._holders[key] = result.closest

        self.engine.put(key[0], record, done, now, seeds=self._holders.get(key, ()))

    def _take_turn(self, topic: bytes, now: float) -> None:
        if not self.engine.storage.total(topic):
            del self._due[topic]
            return
        self._schedule(topic, now + self._spread(self.engine.config.republish_s))
        if self.engine.responsible(topic):
            self.engine.start(Handover(self.engine, topic, self.engine.lookup(topic)), now)
