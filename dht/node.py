"""The DHT node of a daemon: the engine over UDP and over streams of channels, with an asyncio face.

node = DhtNode(config, node_key, Network.REGTEST, (RecordKind(...),), clock=clock, rng=SystemRandom())
await node.start()
await node.bootstrap([Seed.parse("127.0.0.1:9735")])
result = await node.put(topic, envelope)
records = await node.get(topic)
await node.close()

Where no datagrams pass, packets go by streams of encrypted channels (`attach`). With `Carry.BOTH` the node finds out by
itself: UDP is tried first whenever it enters the network, and again now and then while it does without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from dht import messages, packet
from dht.carriers import Carriers, Carry
from dht.contact import (
    PUZZLE_BITS,
    Address,
    ByChannel,
    Contact,
    Scope,
    Via,
    contact_at,
    node_id,
    puzzle_zero_bits,
    scope_of,
)
from dht.engine import Engine, EngineConfig
from dht.errors import BadNodeKey, InvalidRecord, NoPeers, RecordRejected
from dht.probe import Meeting
from dht.reading import Found
from dht.records import Record, RecordKind, Registry
from dht.rpc import Asker, Call, Rng, Rpc
from dht.seeds import Seed, contacts_of
from dht.stats import Stats, stats_of
from dht.storage import Storage
from dht.stream import Stream, serve_stream
from dht.survey import Surveyed
from dht.udp import Transport
from dht.watch import Watch
from dht.writing import PutResult
from protocol.errors import P2PError
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope

HOUSEKEEPING_S: Final = 1.0
KEPT_PEERS: Final = 200
"""Nodes kept on disk for the next start."""

UDP_ASKED: Final = 3

HELLO: Final = bytes((packet.HELLO,))

T = TypeVar("T")

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def unix(self) -> float:
        """Seconds since 1970-01-01 UTC."""


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """How a node takes part."""

    host: str = "0.0.0.0"  # noqa: S104  (a node of a public network)
    """As `udp.listening_hosts` reads it."""
    port: int = 0
    carry: Carry = Carry.BOTH
    puzzle_bits: int | None = None
    """None: what the network asks for."""
    engine: EngineConfig = field(default_factory=EngineConfig)


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
        self.carriers = Carriers(config.carry)
        self._on_hello: Callable[[str, bool], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._housekeeper: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        rpc = Rpc(
            node_key,
            network,
            send=self.carriers.send,
            rng=rng,
            limits=config.engine.limits,
            puzzle_bits=bits,
            client=config.engine.client,
            exempt=self._exempt,
            route=self.carriers.route,
        )
        self.storage = storage or Storage(secret=rng.randbytes(16))
        self.engine = Engine(config.engine, rpc, Registry(network, tuple(kinds)), self.storage, rng)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises PortInUse. A node without UDP opens no socket: it is heard once `attach` was called."""
        self._loop = asyncio.get_running_loop()
        self.carriers.listen(self.config.host, self.config.port, self._received)
        if self.carriers.udp is not None:
            self.speak(self.carriers.udp.versions)
        self.engine.offset = self._clock.unix() - self.now()
        self._load()
        self._housekeep()

    def attach(self, streams: Transport, versions: Iterable[int] = (4,)) -> None:
        """Use streams of channels too: `streams` is sent packets for `ByChannel` addresses. Not with `Carry.UDP`.

        `versions`: the versions of IP that it dials; they count where there is no UDP.
        """
        self.carriers.streams = streams
        if self.carriers.udp is None:
            self.speak(frozenset(versions))
        self.engine.rpc.flags |= messages.SPEAKS_CHANNEL

    def receive(self, packet: bytes, address: ByChannel) -> None:
        """Take a packet that came on a stream of the channel with `address.key`."""
        self._received(packet, address)

    def verified(self, address: ByChannel) -> None:
        """A node that speaks by channels only does listen there: get to know it, if there is room."""
        contact = contact_at(address.key, address)
        if self.engine.table.wants(contact):
            self.engine.ping(contact, self.now())
            self._arm()

    def unreachable(self, key: bytes) -> None:
        """No channel can be made to this node."""
        self.engine.rpc.unreachable(key, self.now())
        self._arm()

    def speak(self, versions: frozenset[int]) -> None:
        """Use these versions of IP: what this machine has a way for; those that it has no socket for are left out."""
        versions = self.carriers.usable(versions)
        if not versions:
            return
        self.engine.versions = versions
        rpc = self.engine.rpc
        rpc.flags &= ~(messages.SPEAKS_V4 | messages.SPEAKS_V6)
        if versions != frozenset((4,)):
            speaks = {4: messages.SPEAKS_V4, 6: messages.SPEAKS_V6}
            rpc.flags |= sum(speaks[version] for version in versions)

    def moved(self) -> None:
        """This machine is in another network now: what did not pass before may pass here."""
        self.carriers.moved()

    @property
    def by_channel(self) -> bool:
        """Whether questions go by channels now, because no datagrams pass."""
        return self.carriers.by_channel

    def _load(self) -> None:
        """Bring back what the disk holds."""
        if self.storage.disk is None:
            return
        now = self.engine.unix(self.now())
        for topic, raw, group, stored_at in self.storage.disk.load(now):
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
        self.carriers.close()
        self.save_peers()
        self.storage.close()

    def save_peers(self) -> None:
        """Keep the nodes that are known now for the next start; where none are, those kept before stay."""
        if self.storage.disk is not None and len(self.engine.table):
            table = self.engine.table
            kept = table.v4.closest(0, KEPT_PEERS), table.v6.closest(0, KEPT_PEERS)
            self.storage.disk.save_peers([*kept[0], *kept[1]])

    @property
    def local(self) -> tuple[str, int]:
        """Where the node listens by UDP. Raises NoPeers."""
        return self.carriers.local

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
        seeds = list(seeds)
        known = await self._enter(seeds)
        before = self.carriers.by_channel
        if not known and seeds and self.carriers.switch(self.now(), by_channel=not before, trial=True):
            known = await self._enter(seeds)
            if known:
                self.carriers.tell(by_channel=not before)
            else:
                # Nothing leads anywhere: then nothing is decided.
                self.carriers.switch(self.now(), by_channel=before, trial=True)
        return known

    async def _enter(self, seeds: Iterable[Seed | Contact]) -> int:
        versions, who_is = self.engine.versions, None if self.by_channel else self._who_is
        found = await asyncio.gather(*(contacts_of(seed, versions, who_is) for seed in seeds))
        contacts = [c for several in found for c in several if c.key != self.key.public]
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
        # Whoever answers there by UDP says who it is; a channel is made to a key that is known before.
        if self.by_channel:
            found = await contacts_of(seed, self.engine.versions, None)
        else:
            found = await contacts_of(Seed(seed.host, seed.port), self.engine.versions, self._who_is)
        met = found[0] if found else None
        if met is None or (seed.key is not None and met.key != seed.key):
            return None
        answered: asyncio.Future[bool] = self._running().create_future()
        # Only an authenticated answer counts.
        if self.ask(met, messages.Op.PING, b"", Meeting(self.engine, _resolver(answered))) is None:
            return None
        return met if await answered else None

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
        holders: Iterable[Contact] = (),
    ) -> Callable[[], None]:
        """Have holders push what changes under a topic; returns the function that ends it.

        `on_record` gets each pushed record, verified, possibly twice. `on_digest` gets what a holder says of the whole
        topic about every 25 seconds: (holder, digest, records), zeros for none. `holders`: those known already, who
        then need not be searched.
        """
        watch = Watch(self.engine, topic, on_record, on_digest, holders)
        self.engine.watching.add(watch, self.now())
        self._arm()

        def end() -> None:
            self.engine.watching.remove(watch)

        return end

    @property
    def serves(self) -> bool:
        """Whether this node answers others and may be in their tables."""
        return not self.engine.config.client

    def listen_for_hellos(self, listener: Callable[[str, bool], None]) -> None:
        """Tell `listener` of each hello by UDP: from which address, and whether we had written there lately."""
        self._on_hello = listener

    def wrote_to(self, host: str) -> bool:
        """Whether a datagram of ours went to this address lately."""
        return self.carriers.wrote_to(host)

    def heard_of(self) -> list[Contact]:
        """Nodes that others named and that nothing was sent to yet, as far as they are remembered."""
        return [contact for bucket in self.engine.table.buckets for contact in bucket.named.values()]

    def serve(self, serves: bool, hidden: frozenset[int] = frozenset()) -> None:  # noqa: FBT001  (a switch)
        """Answer others from now on, or be a client: no node that can't be reached belongs into a routing table.

        `hidden`: versions of IP by which we are not reached, and so a client all the same. A new client is forgotten by
        the others once it stays silent; a new server becomes known by what it asks.
        """
        self.engine.rpc.hidden = hidden
        self.engine.config = replace(self.engine.config, client=not serves)
        rpc = self.engine.rpc
        rpc.flags = rpc.flags & ~messages.CLIENT if serves else rpc.flags | messages.CLIENT

    async def find_nodes(self, target: bytes) -> list[Contact]:
        """The live nodes closest to a 20-byte id, closest first."""
        return await self._find(target)

    async def survey(self, topic: bytes) -> Surveyed:
        """The live nodes closest to a topic, and how much of it each says that it holds."""
        future: asyncio.Future[Surveyed] = self._running().create_future()
        self.engine.survey(topic, _resolver(future), self.now())
        self._arm()
        return await future

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
        return stats_of(self.engine)

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
        if self._loop is None or self._housekeeper is None:
            raise NoPeers("the DHT node is not running")
        return self._loop

    def _exempt(self, address: Address) -> bool:
        return not self.config.engine.count_local and scope_of(address[0]) is not Scope.GLOBAL

    def _received(self, datagram: bytes, address: Address) -> None:
        if datagram[:1] == HELLO and self._on_hello is not None:
            self._on_hello(address[0], self.carriers.wrote_to(address[0]))
        self.engine.receive(datagram, address, self._clock.monotonic())
        self._arm()

    def _arm(self) -> None:
        """One timer for all: set again only when something is due earlier than it stands."""
        deadline = self.engine.deadline
        if deadline is None or self._loop is None or self._housekeeper is None:
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
        if self._loop is not None:
            self._housekeeper = self._loop.call_later(HOUSEKEEPING_S, self._housekeep)
        self._arm()
        self.carriers.watch(self.engine.rpc.totals.unanswered, self.engine.rpc.totals.by_datagram, now)
        if self.carriers.udp_is_due(now):
            self._ask_by_udp(now)

    def _ask_by_udp(self, now: float) -> None:
        """See whether datagrams pass by now: any answer says so."""

        def heard(key: bytes | None) -> None:
            if key is not None:
                self.carriers.switch(self.now(), by_channel=False)

        for contact in self.engine.table.closest(int.from_bytes(self.node_id, "big"), UDP_ASKED):
            if contact.via is Via.UDP:
                self.engine.rpc.hello(contact.address, heard, now)

    async def _who_is(self, address: Address) -> bytes | None:
        """The node key at an address, by its own word; None when nobody answers."""
        future: asyncio.Future[bytes | None] = self._running().create_future()
        self.engine.rpc.hello(address, _resolver(future), self.now())
        self._arm()
        return await future


def _resolver(future: asyncio.Future[T]) -> Callable[[T], None]:
    def resolve(result: T) -> None:
        if not future.done():
            future.set_result(result)

    return resolve


__all__ = ["Carry", "Clock", "DhtConfig", "DhtNode", "Seed", "Stats", "mine_node_key", "node_id"]
