"""A network that has come to rest, with records in it, and what is noted of an experiment on it."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Final

from dht.engine import EngineConfig
from dht.reading import Found
from dht.records import Record, RecordKind, RecordMeta
from dht.sim.world import NetModel, SimNode, World, build
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope

KIND: Final = 60_002
LIFETIME_S: Final = 86_400
BODY: Final = 420
"""Bytes of a record's body: an offer has about 400."""
OFFER_SHARE: Final = 0.25
"""One node in four has an offer out, besides the contact record that each has."""
WINDOW: Final = 64


def _validate(envelope: Envelope, now: int) -> RecordMeta:
    del now
    sequence = int.from_bytes(envelope.body[20:24], "big")
    return RecordMeta(envelope.signer, b"", sequence, LIFETIME_S, (envelope.body[:20],))


RULES: Final = RecordKind(KIND, _validate)


@dataclass(slots=True)
class Reads:
    """What became of the reads of one experiment."""

    done: int = 0
    found: int = 0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def success(self) -> float:
        """Share of the reads that gave the honest record, of the newest version."""
        return self.found / max(1, self.done)

    def quantile(self, q: float) -> float:
        """A quantile of the latency, seconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    experiment: str
    nodes: int
    reads: int
    success: float
    rtts_p50: float
    """Median latency of a read in round trips of the network's median."""
    rtts_p95: float
    messages_per_node_hour: float
    cpu_s: float
    rtts: tuple[float, ...] = ()
    """The latency of each read in round trips, ascending."""
    notes: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name."""
    trace: str = ""
    """A digest of every datagram of the experiment."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Lab:
    """A world with records in it. An experiment uses it up."""

    def __init__(self, seed: int, nodes: int, *, loss: float = 0.0, nat_share: float = 0.0) -> None:
        self.began = time.process_time()
        self.seed = seed
        self.world = World(seed, model=NetModel(loss=loss), config=EngineConfig())
        self.world.registry.add(RULES)
        build(self.world, nodes, nat_share=nat_share)
        self.size = nodes
        self.records: dict[bytes, Record] = {}
        """The newest version of each record, by topic."""
        self.reads = Reads()
        self.busy = False
        """Whether nodes that join have records of their own out, as those of `load` do."""
        self._publisher = SigningKey(self.world.rng.randbytes(32))

    def honest(self) -> list[SimNode]:
        """The nodes that keep the rules."""
        return [n for n in self.world.nodes if n.honest]

    # -- records -----------------------------------------------------------------------------------------------

    def record(self, topic: bytes, sequence: int = 1) -> Record:
        """A signed and checked record."""
        body = topic + sequence.to_bytes(4, "big") + self.world.rng.randbytes(BODY - 24)
        raw = self._publisher.seal(KIND, Network.REGTEST, body).raw
        return self.world.registry.check(raw, topic, 0)

    def publish(self, count: int, topics: list[bytes] | None = None, sequence: int = 1) -> None:
        """Put records from random honest nodes. Their publishers do not care for them afterwards."""
        world = self.world
        for i in range(count):
            topic = topics[i] if topics else world.rng.randbytes(20)
            record = self.records[topic] = self.record(topic, sequence)
            node = world.rng.choice(self.honest())
            world.do(node, node.engine.put, topic, record, lambda _: None, world.now)
            world.run(world.now + 0.05)
        world.run(world.now + 15)

    def load(self) -> None:
        """The state of a network that has run for long: a contact record of each node, and offers of some.

        They are where they belong, and when holders compare and publishers put them again is spread over the hour.
        """
        world = self.world
        self.busy = True
        servers = sorted((n for n in world.nodes if not n.nat), key=lambda n: n.contact.long_id)
        ids = [n.contact.long_id for n in servers]
        for node in world.nodes:
            for _ in range(1 + (world.rng.random() < OFFER_SHARE)):
                topic = world.rng.randbytes(20)
                number = int.from_bytes(topic, "big")
                record = self.record(topic)
                at = bisect_left(ids, number)
                near = servers[max(0, at - WINDOW) : at + WINDOW]
                near.sort(key=lambda n: n.contact.long_id ^ number)
                period = world.config.republish_s
                for holder in near[: world.config.k]:
                    holder.engine.keep(topic, record, b"", world.now)
                    holder.engine.upkeep._schedule(topic, world.now + period * (0.25 + world.rng.random()))  # noqa: SLF001
                upkeep = node.engine.upkeep
                upkeep.published[topic, record.tag] = record
                upkeep._holders[topic, record.tag] = tuple(n.contact for n in near[: world.config.k])  # noqa: SLF001
                heapq.heappush(upkeep._puts, (world.now + period * world.rng.random(), topic, record.tag))  # noqa: SLF001

    def _bring_records(self, node: SimNode) -> None:
        """What a node that has joined publishes, when the network is loaded."""
        world = self.world
        if not node.alive:
            return
        for _ in range(1 + (world.rng.random() < OFFER_SHARE)):
            topic = world.rng.randbytes(20)
            record = self.record(topic)
            node.engine.upkeep.publish(topic, record, world.now)
            world.do(node, node.engine.put, topic, record, lambda _: None, world.now)

    # -- reads -------------------------------------------------------------------------------------------------

    def look(self, node: SimNode, topic: bytes, *, paths: int = 1, reads: Reads | None = None) -> None:
        """Start a read by this node."""
        world, began = self.world, self.world.now
        record = self.records[topic]
        into = reads or self.reads

        def done(found: Found) -> None:
            into.done += 1
            into.latencies_s.append(world.now - began)
            into.found += any(r.raw == record.raw for r in found.records)

        world.do(node, node.engine.get, topic, done, world.now, paths=paths)

    def reader(self, topic: bytes, *, nat: bool | None = None) -> SimNode:
        """A random honest node that does not hold the topic."""
        world = self.world
        node = world.nodes[0]
        for _ in range(200):
            node = world.rng.choice(world.nodes)
            if node.honest and nat in (None, node.nat) and not node.engine.storage.total(topic):
                break
        return node

    def read_all(
        self, count: int, over_s: float, *, paths: int = 1, nat: bool | None = None, reads: Reads | None = None
    ) -> None:
        """Spread reads of random records over a time."""
        world, topics, start = self.world, list(self.records), self.world.now

        def read() -> None:
            topic = world.rng.choice(topics)
            self.look(self.reader(topic, nat=nat), topic, paths=paths, reads=reads)

        for i in range(count):
            world.at(start + over_s * i / count, read)
        world.run(start + over_s + 12)

    # -- comings and goings ------------------------------------------------------------------------------------

    def arrive(self, *, key: bytes | None = None, nat: bool = False) -> SimNode:
        """A new node joins by three random ones."""
        world = self.world
        node = world.add(key=key, nat=nat)
        seeds = [n.contact for n in (world.rng.choice(world.nodes) for _ in range(6)) if n is not node and not n.nat]
        world.join(node, seeds[:3])
        if self.busy:
            world.at(world.now + 5.0, self._bring_records, node)
        return node

    def churn(self, share_per_hour: float, until: float) -> None:
        """Replace nodes at random from now until then."""
        world = self.world
        rate = self.size * share_per_hour / 3_600

        def replace() -> None:
            if world.now >= until:
                return
            victims = [n for n in (world.rng.choice(world.nodes) for _ in range(4)) if n.honest]
            if victims:
                world.kill(victims[0])
            self.arrive()
            world.at(world.now + world.rng.expovariate(rate), replace)

        world.at(world.now + world.rng.expovariate(rate), replace)

    # -- the report --------------------------------------------------------------------------------------------

    def row(
        self,
        name: str,
        began_datagrams: int,
        seconds: float,
        *,
        reads: Reads | None = None,
        notes: dict[str, float] | None = None,
    ) -> Row:
        """The line of this experiment."""
        reads = reads or self.reads
        rtt = self.world.model.median_rtt_s
        return Row(
            experiment=name,
            nodes=self.size,
            reads=reads.done,
            success=round(reads.success, 5),
            rtts_p50=round(reads.quantile(0.5) / rtt, 2),
            rtts_p95=round(reads.quantile(0.95) / rtt, 2),
            messages_per_node_hour=round((self.world.datagrams - began_datagrams) / self.size * 3_600 / seconds, 1),
            cpu_s=round(time.process_time() - self.began, 1),
            rtts=tuple(round(s / rtt, 2) for s in sorted(reads.latencies_s)),
            notes=notes or {},
            trace=self.world.trace,
        )
