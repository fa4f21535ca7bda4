"""What is measured in virtual time: churn, scale, hostile nodes, an eclipse.

Each experiment takes a `Lab`, a network that has come to rest, and uses it up. Large ones are built once and forked.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Final

from dht.engine import EngineConfig
from dht.records import Record, RecordKind, RecordMeta
from dht.search import Found
from dht.sim.attack import Behaviour, grind_keys, turn
from dht.sim.world import NetModel, SimNode, World, build
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope

KIND: Final = 60_002
LIFETIME_S: Final = 86_400


def _validate(envelope: Envelope, now: int) -> RecordMeta:
    del now
    return RecordMeta(envelope.signer, b"", 1, LIFETIME_S, (envelope.body[:20],))


RULES: Final = RecordKind(KIND, _validate)


@dataclass(slots=True)
class Reads:
    """What became of the reads of one experiment."""

    nodes: int = 0
    done: int = 0
    found: int = 0
    latencies_s: list[float] = field(default_factory=list)
    asked: int = 0

    @property
    def success(self) -> float:
        """Share of the reads that gave the honest record."""
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

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Lab:
    """A world with records in it."""

    def __init__(self, seed: int, nodes: int, *, loss: float = 0.0, nat_share: float = 0.0) -> None:
        self.began = time.process_time()
        self.seed = seed
        self.world = World(seed, model=NetModel(loss=loss), config=EngineConfig())
        self.world.registry.add(RULES)
        build(self.world, nodes, nat_share=nat_share)
        self.size = nodes
        self.records: dict[bytes, Record] = {}
        self.reads = Reads(nodes)
        self._publisher = SigningKey(self.world.rng.randbytes(32))

    def honest(self) -> list[SimNode]:
        """The nodes that keep the rules."""
        return [n for n in self.world.nodes if n.honest]

    def publish(self, count: int, topics: list[bytes] | None = None) -> None:
        """Put records from random honest nodes. Their publishers do not care for them afterwards."""
        world = self.world
        for i in range(count):
            topic = topics[i] if topics else world.rng.randbytes(20)
            raw = self._publisher.seal(KIND, Network.REGTEST, topic + world.rng.randbytes(300)).raw
            record = world.registry.check(raw, topic, 0)
            self.records[topic] = record
            node = world.rng.choice(self.honest())
            world.do(node, node.engine.put, topic, record, lambda _: None, world.now)
            world.run(world.now + 0.05)
        world.run(world.now + 15)

    def read(self, topic: bytes, *, quorum: int = 2, paths: int = 1) -> None:
        """Start a read by a random honest node that does not hold the record."""
        world = self.world
        record, began = self.records[topic], world.now
        node = world.nodes[0]
        for _ in range(20):
            node = world.rng.choice(world.nodes)
            if node.honest and not node.engine.storage.total(topic):
                break

        def done(found: Found) -> None:
            self.reads.done += 1
            self.reads.asked += found.asked
            self.reads.latencies_s.append(world.now - began)
            self.reads.found += any(r.raw == record.raw for r in found.records)

        world.do(node, node.engine.get, topic, done, world.now, quorum=quorum, paths=paths)

    def read_all(self, count: int, over_s: float, *, quorum: int = 2, paths: int = 1) -> None:
        """Spread reads of random records over a time."""
        topics = list(self.records)
        start = self.world.now
        for i in range(count):
            when = start + over_s * i / count
            self.world.at(when, lambda: self.read(self.world.rng.choice(topics), quorum=quorum, paths=paths))
        self.world.run(start + over_s + 12)

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
            node = world.add()
            seeds = [
                n.contact for n in (world.rng.choice(world.nodes) for _ in range(5)) if n is not node and not n.nat
            ]
            world.join(node, seeds[:3])
            world.at(world.now + world.rng.expovariate(rate), replace)

        world.at(world.now + world.rng.expovariate(rate), replace)

    def row(self, name: str, began_datagrams: int, seconds: float) -> Row:
        """The line of this experiment."""
        rtt = self.world.model.median_rtt_s
        return Row(
            experiment=name,
            nodes=self.size,
            reads=self.reads.done,
            success=round(self.reads.success, 5),
            rtts_p50=round(self.reads.quantile(0.5) / rtt, 2),
            rtts_p95=round(self.reads.quantile(0.95) / rtt, 2),
            messages_per_node_hour=round((self.world.datagrams - began_datagrams) / self.size * 3_600 / seconds, 1),
            cpu_s=round(time.process_time() - self.began, 1),
            rtts=tuple(round(s / rtt, 2) for s in sorted(self.reads.latencies_s)),
        )


def churn(lab: Lab, *, seconds: float = 3_600, reads: int = 1_000, records: int = 200) -> Row:
    """Half of the nodes replaced per hour, 1% loss; the publishers of the records are not among those who care."""
    lab.world.model = NetModel(loss=0.01)
    lab.publish(records)
    began = lab.world.datagrams
    lab.churn(0.5, lab.world.now + seconds)
    lab.read_all(reads, seconds)
    return lab.row("50%/h replaced, 1% loss", began, seconds)


def idle(lab: Lab, *, seconds: float = 1_800) -> Row:
    """What the network costs a node that does nothing, under the same churn, no reads, one record per 20 nodes."""
    lab.publish(lab.size // 20)
    began = lab.world.datagrams
    lab.churn(0.5, lab.world.now + seconds)
    lab.world.run(lab.world.now + seconds)
    return lab.row("no reads, 50%/h replaced", began, seconds)


def cold(lab: Lab, *, reads: int = 300) -> Row:
    """Reads by nodes that have just joined and have asked nothing yet."""
    lab.publish(100)
    began = lab.world.datagrams
    start = lab.world.now
    topics = list(lab.records)
    for _ in range(reads):
        node = lab.world.add()
        others = [n.contact for n in lab.world.rng.sample(lab.world.nodes, 6) if n is not node and not n.nat]
        record = lab.world.rng.choice(topics)

        def look(node: SimNode = node, topic: bytes = record) -> None:
            began_at = lab.world.now

            def done(found: Found) -> None:
                lab.reads.done += 1
                lab.reads.latencies_s.append(lab.world.now - began_at)
                lab.reads.found += any(r.raw == lab.records[topic].raw for r in found.records)

            lab.world.do(node, node.engine.get, topic, done, lab.world.now)

        lab.world.join(node, others[:3], lambda look=look: lab.world.at(lab.world.now + 3.0, look))  # type: ignore[misc]
        lab.world.run(lab.world.now + 0.2)
    lab.world.run(lab.world.now + 20)
    return lab.row("first read after joining", began, lab.world.now - start)


def hostile(lab: Lab, *, behaviour: Behaviour, share: float = 0.2, reads: int = 500) -> Row:
    """A fifth of the nodes is hostile from before the records are put."""
    world = lab.world
    bad = world.rng.sample(world.nodes, int(share * lab.size))
    gang = [n.contact for n in bad]
    for node in bad:
        turn(world, node, behaviour, gang)
    lab.publish(100)
    began = world.datagrams
    lab.read_all(reads, 60.0, paths=3)
    return lab.row(f"{share:.0%} hostile: {behaviour.value}", began, 60.0)


def eclipse(lab: Lab, *, ids: int = 20, reads: int = 200, keys: int = 5) -> Row:
    """`ids` identities closer to a key than any honest node, each in its own address group, that hide its record."""
    world = lab.world
    topics = [world.rng.randbytes(20) for _ in range(keys)]
    bad: list[SimNode] = []
    for topic in topics:
        number = int.from_bytes(topic, "big")
        nearest = min(n.contact.long_id ^ number for n in lab.honest())
        for key in grind_keys(world, topic, ids, nearest):
            node = world.add(key=key)
            bad.append(node)
            world.join(node, [n.contact for n in world.rng.sample(lab.honest(), 3)])
            world.run(world.now + 0.5)
    gang = [n.contact for n in bad]
    for node in bad:
        turn(world, node, Behaviour.LIE, gang)
    world.run(world.now + 120)
    lab.publish(keys, topics)
    began = world.datagrams
    lab.read_all(reads, 60.0)
    return lab.row(f"{ids} free ids around each of {keys} keys", began, 60.0)
