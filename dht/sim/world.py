"""Virtual time and a network with latency, loss and NAT."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Final

from dht.contact import Address, Contact, intern_contact
from dht.engine import Engine, EngineConfig
from dht.messages import Op
from dht.records import Registry
from dht.rpc import Asker, Call, Peer, Rpc
from dht.storage import Storage, StorageLimits
from protocol.identity import SigningKey
from protocol.types import Network

STEP_S: Final = 20.0
"""Chores in the simulation run when something is due, or after this time: a daemon looks every second."""
MAPPING_S: Final = 60.0
"""How long a NAT lets in what comes from an address that a node behind it has sent to."""
MAPPINGS: Final = 256
"""Mappings kept before those that have ended are forgotten."""
CARE: Final = frozenset((Op.FIND_VALUE, Op.STORE, Op.STORE_PART, Op.FETCH_PART))
"""What holders and publishers ask for their records' sake, where nobody reads."""


class SimKey(SigningKey):
    """A node key that never signs: random bytes cost less than a point."""

    def __init__(self, public: bytes) -> None:
        self.public = public


class SimRpc(Rpc):
    """The real one, except that a pair's keys come from a hash, and that the world hears what is asked."""

    count: Callable[[int], None]

    def call(self, contact: Contact, op: int, body: bytes, asker: Asker, now: float, tag: int = 0) -> Call:
        """Put a question to a node."""
        self.count(op)
        return super().call(contact, op, body, asker, now, tag)

    def _agree(self, peer: Peer) -> None:
        mine, theirs = self.key.public, peer.contact.key
        peer.send_key = blake2b(mine + theirs, digest_size=32).digest()
        peer.receive_key = blake2b(theirs + mine, digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class NetModel:
    """How datagrams travel."""

    median_rtt_s: float = 0.080
    spread: float = 0.45
    """Standard deviation of the logarithm of a node's own share of the latency."""
    loss: float = 0.0


class SimNode:
    """One node of the world."""

    __slots__ = (
        "alive",
        "armed_at",
        "busiest",
        "contact",
        "delay",
        "engine",
        "honest",
        "joined_at",
        "mappings",
        "nat",
        "second",
        "spent",
    )

    def __init__(self, engine: Engine, contact: Contact, delay: float, *, nat: bool) -> None:
        self.engine = engine
        self.contact = contact
        self.delay = delay
        """Seconds between this node and the middle of the network, one way."""
        self.alive = True
        self.nat = nat
        self.honest = True
        self.armed_at = math.inf
        self.joined_at = 0.0
        self.mappings: dict[Address, float] = {}
        """Behind a NAT: whose datagrams it lets in, and until when."""
        self.second = -1
        self.spent = 0
        """Questions for the records' sake in this second of virtual time."""
        self.busiest = 0
        """The most of them in any second."""


class World:
    """All nodes, and what is going to happen."""

    def __init__(self, seed: int, *, model: NetModel | None = None, config: EngineConfig | None = None) -> None:
        self.rng = Random(seed)
        self.model = model or NetModel()
        self.config = config or EngineConfig()
        self.registry = Registry(Network.REGTEST)
        self.now = 0.0
        self.nodes: list[SimNode] = []
        self.datagrams = 0
        self.bytes = 0
        self.care: dict[int, int] = {}
        """Questions for the records' sake per ten seconds of virtual time."""
        self._trace = blake2b(digest_size=16)
        self._by_address: dict[Address, SimNode] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0

    # -- time --------------------------------------------------------------------------------------------------

    def at(self, when: float, do: Callable[..., None], *args: object) -> None:
        """Call `do(*args)` at virtual time `when`."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, do, args))

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, do, args = heapq.heappop(events)
            do(*args)
        self.now = until

    # -- nodes -------------------------------------------------------------------------------------------------

    def add(self, *, key: bytes | None = None, host: str | None = None, nat: bool = False) -> SimNode:
        """A new node that knows nobody."""
        rng = self.rng
        key = key or rng.randbytes(32)
        host = host or f"{rng.randrange(11, 100)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
        contact = intern_contact(Contact(key, host, rng.randrange(1_024, 65_536)))
        config = self.config
        if nat:
            config = EngineConfig(k=config.k, alpha=config.alpha, client=True)
        node_rng = Random(rng.getrandbits(64))
        sender: list[SimNode] = []
        rpc = SimRpc(
            SimKey(key),
            Network.REGTEST,
            send=lambda datagram, address: self._send(sender[0], datagram, address),
            rng=node_rng,
            client=nat,
        )
        rpc.count = lambda op: self._counted(sender[0], op)
        storage = Storage(StorageLimits(), secret=node_rng.randbytes(16))
        engine = Engine(config, rpc, self.registry, storage, node_rng)
        delay = self.model.median_rtt_s / 4 * math.exp(rng.gauss(0.0, self.model.spread))
        node = SimNode(engine, contact, delay, nat=nat)
        sender.append(node)
        node.joined_at = self.now
        self.nodes.append(node)
        self._by_address[contact.address] = node
        self.at(self.now + STEP_S * rng.random(), self._step, node)
        return node

    def join(self, node: SimNode, seeds: list[Contact], done: Callable[[], None] = lambda: None) -> None:
        """Enter the network."""
        node.engine.join(seeds, done, self.now)
        self._arm(node)

    def kill(self, node: SimNode) -> None:
        """Vanish without a word."""
        node.alive = False
        self.nodes.remove(node)
        self._by_address.pop(node.contact.address, None)

    def do(self, node: SimNode, operation: Callable[..., None], *args: object, **kwargs: object) -> None:
        """Call an operation of a node's engine and see to its timers."""
        operation(*args, **kwargs)
        self._arm(node)

    def _step(self, node: SimNode) -> None:
        if node.alive:
            node.engine.step(self.now)
            self._arm(node)
            self.at(max(self.now + 1.0, min(self.now + STEP_S, node.engine.upkeep.due)), self._step, node)

    def _arm(self, node: SimNode) -> None:
        deadline = node.engine.deadline
        if deadline is not None and deadline < node.armed_at:
            node.armed_at = deadline
            self.at(max(deadline, self.now), self._tick, node, deadline)

    def _tick(self, node: SimNode, deadline: float) -> None:
        if node.alive and node.armed_at == deadline:
            node.armed_at = math.inf
            node.engine.tick(self.now)
            self._arm(node)

    # -- datagrams ---------------------------------------------------------------------------------------------

    @property
    def trace(self) -> str:
        """A digest of every datagram sent so far, with its time: equal for equal runs."""
        return self._trace.hexdigest()

    def _counted(self, node: SimNode, op: int) -> None:
        if op not in CARE:
            return
        tens = int(self.now / 10)
        self.care[tens] = self.care.get(tens, 0) + 1
        if node.second != int(self.now):
            node.second, node.spent = int(self.now), 0
        node.spent += 1
        node.busiest = max(node.busiest, node.spent)

    def _send(self, sender: SimNode, datagram: bytes, address: Address) -> None:
        self.datagrams += 1
        self.bytes += len(datagram)
        self._trace.update(b"%.9f" % self.now + datagram)
        if sender.nat:
            if len(sender.mappings) >= MAPPINGS:
                sender.mappings = {a: until for a, until in sender.mappings.items() if until > self.now}
            sender.mappings[address] = self.now + MAPPING_S
        if not sender.alive or (self.model.loss and self.rng.random() < self.model.loss):
            return
        receiver = self._by_address.get(address)
        if receiver is not None:
            delay = (sender.delay + receiver.delay) * (0.95 + 0.1 * self.rng.random())
            self.at(self.now + delay, self._deliver, receiver, datagram, sender.contact.address)

    def _deliver(self, receiver: SimNode, datagram: bytes, address: Address) -> None:
        # A NAT lets in what comes from where the node has sent to, be it an answer or not; nothing else.
        if receiver.alive and not (receiver.nat and receiver.mappings.get(address, 0.0) < self.now):
            receiver.engine.receive(datagram, address, self.now)
            self._arm(receiver)


def build(world: World, count: int, *, nat_share: float = 0.0) -> None:
    """A network of `count` nodes that joined in quick succession, each by a few random others, and came to rest."""
    for i in range(count):
        node = world.add(nat=bool(nat_share) and i > 3 and world.rng.random() < nat_share)
        others = [n for n in world.rng.sample(world.nodes, min(len(world.nodes), 8)) if n is not node and not n.nat]
        when = world.now + i * min(0.05, 120.0 / count)
        world.at(when, world.join, node, [n.contact for n in others[:3]] or [world.nodes[0].contact])
    world.run(world.now + count * min(0.05, 120.0 / count) + 30.0)
    # Those that came while it was small look around again, as anybody does who has been there for a while.
    for node in world.nodes[: count // 2]:
        world.at(world.now + 30.0 * world.rng.random(), world.join, node, [])
    world.run(world.now + 40.0)
