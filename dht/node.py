"""The DHT node of a daemon: the engine over UDP, with an asyncio face.

node = DhtNode(config, node_key, Network.REGTEST, (RecordKind(...),), clock=clock, rng=SystemRandom())
await node.start()
await node.bootstrap([Seed.parse("127.0.0.1:9735")])
result = await node.put(topic, envelope)
records = await node.get(topic)
await node.close()
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from dht import messages
from dht.contact import (
    PUZZLE_BITS,
    Address,
    Contact,
    Scope,
    intern_contact,
    node_id,
    parse_seed,
    puzzle_zero_bits,
    scope_of,
)
from dht.engine import Engine, EngineConfig
from dht.errors import BadContact, BadNodeKey, InvalidRecord, NoPeers, RecordRejected
from dht.records import Record, RecordKind, Registry
from dht.rpc import Asker, Call, Rng, Rpc
from dht.search import Found, PutResult
from dht.storage import Storage
from dht.stream import Stream, serve_stream
from dht.udp import Transport, UdpTransport
from dht.watch import Watch
from protocol.errors import P2PError
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope

HOUSEKEEPING_S: Final = 1.0
KEPT_PEERS: Final = 200
"""Nodes kept on disk for the next start."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def unix(self) -> float:
        """Seconds since 1970-01-01 UTC."""


@dataclass(frozen=True, slots=True)
class Seed:
    """Where to try to enter the network; the node key may be unknown."""

    host: str
    port: int
    key: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Seed:
        """A seed from `host:port` or `node1...@host:port`. Raises BadContact or BadId."""
        key, host, port = parse_seed(text)
        return cls(host, port, key)


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """How a node takes part."""

    host: str = "0.0.0.0"  # noqa: S104  (a node of a public network)
    port: int = 0
    puzzle_bits: int | None = None
    """None: what the network asks for."""
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters for people and metrics."""

    peers: int
    records: int
    topics: int
    record_bytes: int
    evicted: int
    sent: int
    received: int
    served: int
    retries: int
    failures: int
    refused: int
    bad: int
    rtt: float
    """Smoothed round trip, seconds."""
    network_size: int
    """Nodes, estimated from how dense ids are."""


def mine_node_key(seed_of: Callable[[int], bytes], bits: int) -> tuple[int, SigningKey]:
    """The first index whose seed makes a node key that solves the puzzle of `bits` zero bits, and that key.

    `seed_of(i)` derives the i-th 32-byte seed; about 2^bits are tried at 20 µs each.
    """
    index = 0
    while True:
        key = SigningKey(seed_of(index))
        if puzzle_zero_bits(key.public) >= bits:
            return index, key
        index += 1


class DhtNode:
    """One node of the DHT."""

    def __init__(
        self,
        config: DhtConfig,
        node_key: SigningKey,
        network: Network,
        kinds: Iterable[RecordKind],
        storage: Storage | None = None,
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        """Raises BadNodeKey when `node_key` does not solve the network's puzzle. Without `storage`: in memory."""
        bits = PUZZLE_BITS[network] if config.puzzle_bits is None else config.puzzle_bits
        if puzzle_zero_bits(node_key.public) < bits:
            raise BadNodeKey
        self.config = config
        self.key = node_key
        self.network = network
        self._clock = clock
        self._transport: Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._housekeeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        rpc = Rpc(
            node_key,
            network,
            send=self._send,
            rng=rng,
            limits=config.engine.limits,
            puzzle_bits=bits,
            client=config.engine.client,
            exempt=self._exempt,
        )
        self.storage = storage or Storage(secret=rng.randbytes(16))
        self.engine = Engine(config.engine, rpc, Registry(network, tuple(kinds)), self.storage, rng)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self, transport: Callable[[Callable[[bytes, Address], None]], Transport] | None = None) -> None:
        """Listen. Raises PortInUse. `transport`: makes another one than UDP from a receiver of datagrams."""
        self._loop = asyncio.get_running_loop()
        self._transport = (
            transport(self._received) if transport else UdpTransport(self.config.host, self.config.port, self._received)
        )
        self.engine.offset = self._clock.unix() - self.now()
        self._load()
        self._housekeep()

    def _load(self) -> None:
        """Bring back what the disk holds."""
        if self.storage.disk is None:
            return
        now = self.engine.unix(self.now())
        for topic, raw, group, stored_at in list(self.storage.disk.load(now)):
            try:
                record = self.engine.registry.trust(raw, topic, now)
            except InvalidRecord:
                continue  # the rules of its kind have changed
            self.storage.load(topic, record, group, stored_at)
            self.engine.upkeep.stored(topic, self.now())

    async def close(self) -> None:
        """Stop listening; what is out is abandoned. What is stored is flushed."""
        for timer in (self._timer, self._housekeeper):
            if timer is not None:
                timer.cancel()
        self._timer = self._housekeeper = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self.save_peers()
        self.storage.close()

    def save_peers(self) -> None:
        """Keep the nodes that are known now for the next start; where none are, those kept before stay."""
        if self.storage.disk is not None and len(self.engine.table):
            self.storage.disk.save_peers(self.engine.table.closest(0, KEPT_PEERS))

    @property
    def local(self) -> tuple[str, int]:
        """Where the node listens."""
        if self._transport is None:
            raise NoPeers("the DHT node is not running")
        return self._transport.local

    @property
    def node_id(self) -> bytes:
        """The 20-byte id of this node."""
        return self.engine.own_id

    async def bootstrap(self, seeds: Iterable[Seed | Contact]) -> int:
        """Enter the network by any of `seeds` and of the nodes known last time.

        Returns how many nodes are known after it; 0: nobody answered.
        """
        if self.storage.disk is not None:
            seeds = [*seeds, *self.storage.disk.load_peers()]
        found = await asyncio.gather(*(self._contact_of(seed) for seed in seeds))
        contacts = [c for c in found if c is not None and c.key != self.key.public]
        if not contacts and not len(self.engine.table):
            return 0
        joined: asyncio.Future[None] = self._running().create_future()
        resolve = _resolver(joined)
        self.engine.join(contacts, lambda: resolve(None), self.now())
        self._arm()
        await joined
        return len(self.engine.table)

    async def meet(self, seed: Seed) -> Contact | None:
        """Get to know one node; None when nobody answers there, or another than `seed` names.

        It enters the routing table if there is room for it.
        """
        met = await self._contact_of(Seed(seed.host, seed.port))
        if met is None or (seed.key is not None and met.key != seed.key):
            return None
        began = self._clock.monotonic()
        # A search for a node's own id asks that node first; only an authenticated answer counts as heard.
        await self._find(met.id, [met])
        peer = self.engine.peer_of(met)
        return met if peer is not None and peer.heard_at >= began else None

    # -- records -----------------------------------------------------------------------------------------------

    async def put(self, topic: bytes, record: Envelope, *, quorum: int | None = None, keep: bool = True) -> PutResult:
        """Store a signed record under one of its topics. With `keep` it is put again before others forget it.

        Returns at a quorum of acknowledgements. Raises RecordRejected when the record would not be accepted anywhere.
        A deletion is the put of a tombstone (a revocation).
        """
        now = self.now()
        try:
            checked = self.engine.check(record.raw, topic, now)
        except P2PError as e:
            raise RecordRejected(e.detail) from e
        future: asyncio.Future[PutResult] = self._running().create_future()
        if keep:
            self.engine.upkeep.publish(topic, checked, now)
        self.engine.put(topic, checked, _resolver(future), now, quorum=quorum)
        self._arm()
        return await future

    async def get(self, topic: bytes, *, quorum: int | None = None, paths: int = 1) -> list[Envelope]:
        """The live records of a topic: the newest of each publisher and sub-key, verified; no revoked ones."""
        found = await self.find_records(topic, quorum=quorum, paths=paths)
        return [r.envelope for r in found.records if not r.meta.tombstone]

    async def find_records(self, topic: bytes, *, quorum: int | None = None, paths: int = 1) -> Found:
        """`get` with everything: tombstones, metadata, and how many nodes the answer rests on.

        `quorum`: nodes that must have answered with records before the rest is not waited for. `paths` > 1 searches
        on disjoint paths, each with its own share of the known nodes.
        """
        future: asyncio.Future[Found] = self._running().create_future()
        self.engine.get(topic, _resolver(future), self.now(), quorum=quorum, paths=paths)
        self._arm()
        return await future

    def watch(
        self,
        topic: bytes,
        on_record: Callable[[Record], None],
        on_digest: Callable[[Contact, bytes, int], None] = lambda *_: None,
    ) -> Callable[[], None]:
        """Have holders push what changes under a topic; returns the function that ends it.

        `on_record` gets each pushed record, verified, possibly twice. `on_digest` gets what a holder says of the whole
        topic about every 25 seconds: (holder, digest, records), zeros for none.
        """
        watch = Watch(self.engine, topic, on_record, on_digest)
        self.engine.watching.add(watch, self.now())
        self._arm()

        def end() -> None:
            self.engine.watching.remove(watch)

        return end

    @property
    def serves(self) -> bool:
        """Whether this node answers others and may be in their tables."""
        return not self.engine.config.client

    def serve(self, serves: bool) -> None:  # noqa: FBT001  (a switch)
        """Answer others from now on, or be a client: no node that can't be reached belongs into a routing table.

        A new client is forgotten by the others once it stays silent; a new server becomes known by what it asks.
        """
        self.engine.config = replace(self.engine.config, client=not serves)
        self.engine.rpc.flags = 0 if serves else messages.CLIENT

    async def find_nodes(self, target: bytes) -> list[Contact]:
        """The live nodes closest to a 20-byte id, closest first."""
        return await self._find(target)

    async def _find(self, target: bytes, seeds: Iterable[Contact] = ()) -> list[Contact]:
        future: asyncio.Future[list[Contact]] = self._running().create_future()
        self.engine.find(target, _resolver(future), self.now(), seeds)
        self._arm()
        return await future

    # -- looking in --------------------------------------------------------------------------------------------

    def peers(self) -> list[Contact]:
        """The nodes in the routing table: what to keep for the next start."""
        return list(self.engine.table)

    def stats(self) -> Stats:
        """Counters since the start."""
        engine, totals = self.engine, self.engine.rpc.totals
        reach = engine.reach()
        return Stats(
            peers=len(engine.table),
            records=engine.storage.records,
            topics=len(engine.storage.topics()),
            record_bytes=engine.storage.bytes,
            evicted=engine.storage.evicted,
            sent=totals.sent,
            received=totals.received,
            served=totals.served,
            retries=totals.retries,
            failures=totals.failures,
            refused=totals.refused,
            bad=totals.bad,
            rtt=engine.rpc.rtt,
            network_size=max(len(engine.table) + 1, engine.config.k * 2**160 // max(1, reach)),
        )

    # -- driving the engine ------------------------------------------------------------------------------------

    def now(self) -> float:
        """Monotonic seconds, as the engine counts them."""
        return self._clock.monotonic()

    def unix(self) -> int:
        """Unix seconds."""
        return self.engine.unix(self.now())

    def ask(self, contact: Contact, op: int, body: bytes, asker: Asker) -> Call | None:
        """Put one question to one node; None when the contact is not usable."""
        call = self.engine.ask(contact, op, body, asker, self.now())
        self._arm()
        return call

    async def serve_stream(self, stream: Stream) -> None:
        """Answer another node that synchronises over a stream (a channel that it opened)."""
        await serve_stream(stream, self.storage, self.unix)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._transport is None:
            raise NoPeers("the DHT node is not running")
        return self._loop

    def _exempt(self, address: Address) -> bool:
        return not self.config.engine.count_local and scope_of(address[0]) is not Scope.GLOBAL

    def _send(self, datagram: bytes, address: Address) -> None:
        if self._transport is not None:
            self._transport.send(datagram, address)

    def _received(self, datagram: bytes, address: Address) -> None:
        self.engine.receive(datagram, address, self._clock.monotonic())
        self._arm()

    def _arm(self) -> None:
        """One timer for all: set again only when something is due earlier than it stands."""
        deadline = self.engine.deadline
        if deadline is None or self._loop is None or self._transport is None:
            return
        if self._timer is not None and self._timer_at <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - self.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.engine.tick(self.now())
        self._arm()

    def _housekeep(self) -> None:
        now = self.now()
        self.engine.offset = self._clock.unix() - now
        self.engine.step(now)
        self.storage.flush()
        self._arm()
        self._housekeeper = self._running().call_later(HOUSEKEEPING_S, self._housekeep)

    async def _contact_of(self, seed: Seed | Contact) -> Contact | None:
        if isinstance(seed, Contact):
            return seed
        loop = self._running()
        host = seed.host
        try:
            if scope_of(host) is Scope.UNUSABLE:
                found = await loop.getaddrinfo(host, seed.port, type=socket.SOCK_DGRAM)
                host = str(found[0][4][0])
        except (OSError, IndexError):
            log.warning("the seed %s does not resolve", seed.host)
            return None
        key = seed.key
        if key is None:
            future: asyncio.Future[bytes | None] = loop.create_future()
            self.engine.rpc.hello((host, seed.port), _resolver(future), self.now())
            self._arm()
            key = await future
        if key is None:
            return None
        try:
            return intern_contact(Contact(key, host, seed.port))
        except BadContact:
            return None


def _resolver(future: asyncio.Future[T]) -> Callable[[T], None]:
    def resolve(result: T) -> None:
        if not future.done():
            future.set_result(result)

    return resolve


__all__ = ["Clock", "DhtConfig", "DhtNode", "Seed", "Stats", "mine_node_key", "node_id"]
