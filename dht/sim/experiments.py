"""What is measured in virtual time: churn, scale, storms, NAT, hostile nodes, an eclipse.

Each experiment takes a `Lab`, a network that has come to rest, and uses it up. Large ones are built once and forked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from dht.sim.attack import Behaviour, grind_around, turn
from dht.sim.lab import Lab, Reads, Row
from dht.sim.world import NetModel, SimNode

LOAD: Final = "upkeep and republishing"
COLD: Final = "first read after joining"
CHURN: Final = "50%/h replaced, 1% loss"
NAT: Final = "clients behind NAT"
JOINS: Final = "a tenth joins in 10 s"
LEAVES: Final = "a tenth vanishes at once"
HOSTILE: Final = "hostile"
FREE_IDS: Final = "free ids"
PLAIN: Final = "plain"
PATHS: Final = 3
"""Disjoint paths of a read that matters (contact records, arbiters)."""


class Gang(Enum):
    """What the hostile fifth of a network does."""

    DROP = "drop"
    LIE = "lie"
    SILENT = "silent"
    STALE = "stale"
    ECLIPSE = "eclipse"
    """All of them nearer to the keys that are read than any honest node, naming each other only."""
    MIXED = "mixed"
    """A fifth of them each."""


def churn(lab: Lab, *, seconds: float = 3_600, reads: int = 1_000, records: int = 200) -> Row:
    """Half of the nodes replaced per hour, 1% loss; the publishers of the records are not among those who care."""
    lab.world.model = NetModel(loss=0.01)
    lab.publish(records)
    began = lab.world.datagrams
    lab.churn(0.5, lab.world.now + seconds)
    lab.read_all(reads, seconds)
    return lab.row(CHURN, began, seconds)


def peaks(care: dict[int, int], start: float, end: float) -> tuple[float, float]:
    """(highest, mean) questions for the records' sake per ten seconds between two times."""
    tens = [care.get(t, 0) for t in range(int(start / 10) + 1, int(end / 10))]
    return (max(tens), sum(tens) / len(tens)) if tens else (0.0, 0.0)


def load(lab: Lab, *, seconds: float = 1_800) -> Row:
    """What the network costs a node: churn of 50% per hour, a record of each node and an offer of every fourth."""
    world = lab.world
    lab.load()
    start, began = world.now, world.datagrams
    lab.churn(0.5, start + seconds)
    world.run(start + seconds)
    highest, mean = peaks(world.care, start, world.now)
    notes = {
        "care_per_node_hour": round(mean * 360 / lab.size, 1),
        "care_peak_over_mean": round(highest / max(1e-9, mean), 2),
        "busiest_node_per_s": max(n.busiest for n in world.nodes),
        "records_per_node": round(sum(n.engine.storage.records for n in world.nodes) / len(world.nodes), 1),
    }
    return lab.row(LOAD, began, seconds, notes=notes)


def load_often(seeds: Iterable[int], nodes: int, *, seconds: float = 1_800) -> Row:
    """`load` of several small networks, and the mean of them: in one, a few comings and goings more would show."""
    rows = [load(Lab(seed, nodes), seconds=seconds) for seed in seeds]
    count = len(rows)
    return replace(
        rows[0],
        messages_per_node_hour=round(sum(r.messages_per_node_hour for r in rows) / count, 1),
        cpu_s=round(sum(r.cpu_s for r in rows), 1),
        notes={name: round(sum(r.notes[name] for r in rows) / count, 2) for name in rows[0].notes},
        trace="".join(r.trace for r in rows),
    )


def _arrive(lab: Lab) -> None:
    lab.arrive()


def storm(lab: Lab, *, leave: bool, quiet_s: float = 200, seconds: float = 600) -> Row:
    """A tenth of the nodes joins within ten seconds, or vanishes: what holders and publishers do about it."""
    world = lab.world
    lab.load()
    lab.busy = False  # what newcomers publish is not counted against the others
    start = world.now
    world.run(start + quiet_s)
    _, mean = peaks(world.care, start, world.now)
    for node in world.nodes:
        node.busiest = 0
    event, began = world.now, world.datagrams
    count = lab.size // 10
    if leave:
        for node in world.rng.sample(world.nodes, count):
            world.kill(node)
    else:
        for i in range(count):
            world.at(event + 10.0 * i / count, _arrive, lab)
    world.run(event + seconds)
    highest, after = peaks(world.care, event, world.now)
    notes = {
        "care_quiet_per_node_hour": round(mean * 360 / lab.size, 1),
        "care_peak_per_node_second": round(highest / 10 / lab.size, 3),
        "care_peak_over_mean": round(highest / max(1e-9, after), 2),
        "busiest_node_per_s": max(n.busiest for n in world.nodes),
    }
    return lab.row(LEAVES if leave else JOINS, began, seconds, notes=notes)


def cold(lab: Lab, *, reads: int = 300) -> Row:
    """Reads by nodes that have just joined and have asked nothing yet."""
    lab.publish(100)
    world = lab.world
    began, start = world.datagrams, world.now
    topics = list(lab.records)
    for _ in range(reads):
        node = world.add()
        others = [n.contact for n in world.rng.sample(world.nodes, 6) if n is not node and not n.nat]
        topic = world.rng.choice(topics)

        def look(node: SimNode = node, topic: bytes = topic) -> None:
            lab.look(node, topic)

        world.join(node, others[:3], lambda look=look: world.at(world.now + 3.0, look))  # type: ignore[misc]
        world.run(world.now + 0.2)
    world.run(world.now + 20)
    return lab.row(COLD, began, world.now - start)


def nat(lab: Lab, *, share: float = 0.5, reads: int = 400) -> Row:
    """Clients behind NATs join, publish and read; none may ever be in a table, or even be named by anybody."""
    world = lab.world
    clients = [lab.arrive(nat=True) for _ in range(int(lab.size * share))]
    behind = {n.contact.key for n in clients}
    began, start = world.datagrams, world.now
    world.run(world.now + 30)
    for _ in range(100):
        topic = world.rng.randbytes(20)
        record = lab.records[topic] = lab.record(topic)
        client = world.rng.choice(clients)
        world.do(client, client.engine.put, topic, record, lambda _: None, world.now)
    world.run(world.now + 15)
    found = 0
    for _ in range(3):
        lab.read_all(reads // 3, 60.0, nat=True)
        for node in world.nodes:
            for bucket in node.engine.table.buckets:
                listed = (*bucket.nodes.values(), *bucket.replacement_nodes.values(), *bucket.named.values())
                found += sum(1 for c in listed if c.key in behind)
    notes: dict[str, float] = {"clients": len(clients), "clients_in_tables": found}
    return lab.row(NAT, began, world.now - start, notes=notes)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Identities around keys, and those keys."""

    nodes: list[SimNode]
    topics: list[bytes]


def _crowd(lab: Lab, ids: int, topics: list[bytes], over_s: float) -> _Crowd:
    """`ids` identities nearer to the topics than any honest node, each in its own address group."""
    world = lab.world
    honest = lab.honest()
    within = {
        t: min(n.contact.long_id ^ number for n in honest) for t in topics for number in (int.from_bytes(t, "big"),)
    }
    keys = grind_around(world, within, ids)
    world.rng.shuffle(keys)
    nodes: list[SimNode] = []
    for i, key in enumerate(keys):
        world.at(world.now + over_s * i / len(keys), lambda key=key: nodes.append(lab.arrive(key=key)))
    world.run(world.now + over_s)
    gang = [n.contact for n in nodes]
    for node in nodes:
        turn(world, node, Behaviour.LIE, gang)
    world.run(world.now + 120)
    return _Crowd(nodes, topics)


def hostile(lab: Lab, *, gang: Gang, share: float = 0.2, reads: int = 500, keys: int = 100) -> list[Row]:
    """A fifth of the nodes is hostile from before the newest version of the records is put. Plain and careful reads."""
    world = lab.world
    topics = [world.rng.randbytes(20) for _ in range(keys)]
    if gang in (Gang.STALE, Gang.MIXED):
        lab.publish(keys, topics, sequence=1)
    total = int(lab.size * share)
    behaviours = {
        Gang.DROP: [Behaviour.DROP],
        Gang.LIE: [Behaviour.LIE],
        Gang.SILENT: [Behaviour.SILENT],
        Gang.STALE: [Behaviour.STALE],
        Gang.ECLIPSE: [],
        Gang.MIXED: list(Behaviour),
    }[gang]
    inside = total if gang is not Gang.MIXED else total * 4 // 5
    if behaviours:
        bad = world.rng.sample(world.nodes, inside)
        contacts = [n.contact for n in bad]
        for i, node in enumerate(bad):
            turn(world, node, behaviours[i % len(behaviours)], contacts)
    if gang in (Gang.ECLIPSE, Gang.MIXED):
        # They come on top: their number is chosen so that the whole has the share asked for.
        more = int(lab.size * share / (1 - share)) if gang is Gang.ECLIPSE else total - inside
        _crowd(lab, more, topics, 60.0)
    lab.publish(keys, topics, sequence=2)
    rows = []
    for paths in (1, PATHS):
        began, mine = world.datagrams, Reads()
        lab.read_all(reads, 60.0, paths=paths, reads=mine)
        name = f"{share:.0%} {HOSTILE}, {gang.value}: {PLAIN if paths == 1 else f'{paths} paths'}"
        rows.append(lab.row(name, began, 60.0, reads=mine))
    return rows


def eclipse(lab: Lab, *, ids: int = 20, reads: int = 200, keys: int = 5) -> Row:
    """`ids` identities closer to a key than any honest node, each in its own address group, that hide its record."""
    world = lab.world
    topics = [world.rng.randbytes(20) for _ in range(keys)]
    _crowd(lab, ids * keys, topics, 0.5 * ids * keys)
    lab.publish(keys, topics)
    began = world.datagrams
    lab.read_all(reads, 60.0)
    return lab.row(f"{ids} {FREE_IDS} around each of {keys} keys", began, 60.0)
