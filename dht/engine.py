"""A whole node without I/O: answers requests, runs operations, keeps its table and its share of the records.

The driver (`dht.node` over UDP, `dht.sim` in virtual time) hands in datagrams and the time, and calls `tick` when
`deadline` has come. `now` is monotonic seconds; `offset` is what must be added to it for unix time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from statistics import median_low
from typing import Final

from kademlia.node import Node

from dht import beside, messages
from dht.contact import ID_BITS, Address, Contact, Scope, Via, contact_at, node_id
from dht.desk import Desk
from dht.errors import BadContact, BadPacket
from dht.lookup import ANCHORS, Lookup
from dht.messages import Op, Reply
from dht.reading import Found, GetValue
from dht.records import Record, Registry
from dht.rpc import PING_COST, Asker, Call, Limits, Peer, Rng, Rpc
from dht.search import FindNodes, Search
from dht.storage import Outcome, Put, Storage
from dht.survey import Survey, Surveyed
from dht.tables import Tables
from dht.upkeep import Upkeep
from dht.watch import Watchers, Watching
from dht.writing import PutResult, PutValue

OPERATION_LIMIT_S: Final = 10.0
"""An operation ends at the latest after this time, with what it has."""
TABLE_S: Final = 5.0
"""A node that is heard moves up in its bucket at most this often."""
SAMPLES: Final = 16
SAMPLE_LIFE_S: Final = 3_600.0
"""What a search told of the network's density counts for so long: networks grow."""
LOOKS: Final = 3
"""Places that a node looks at on joining, besides its own: three samples of how dense the network is."""
MAX_PINGS: Final = 32
"""Pings that strangers can make us have out at once."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The numbers of a node."""

    k: int = 8
    """Nodes that hold a record, and width of a search."""
    alpha: int = 3
    """Questions in flight in a search."""
    bucket_size: int = 16
    digit_bits: int = 3
    put_quorum: int = 5
    """Acknowledgements after which a put returns."""
    get_quorum: int = 2
    """Nodes that must give records before a get on one path returns early."""
    client: bool = False
    """Not reachable unasked: never enters other nodes' tables, stores nothing."""
    local_addresses: bool = False
    """Loopback and private addresses are fit for contacts."""
    count_local: bool = False
    """Address limits apply to them too. Off, because all nodes of a test network share one address."""
    limits: Limits = field(default_factory=Limits)
    probe_s: float = 30.0
    """How often one node is asked for the table's sake."""
    republish_s: float = 3_600.0
    """How often the holders of a topic make sure that the others hold it too."""


class Engine:
    """The protocol of one node."""

    def __init__(self, config: EngineConfig, rpc: Rpc, registry: Registry, storage: Storage, rng: Rng) -> None:
        self.config = config
        self.rpc = rpc
        self.registry = registry
        self.storage = storage
        self.rng = rng
        self.offset = 0.0
        self.own_id = node_id(rpc.key.public)
        self.table = Tables(
            Node(self.own_id), bucket_size=config.bucket_size, digit_bits=config.digit_bits, exempt=self.exempt
        )
        self.observed: deque[tuple[str, int]] = deque(maxlen=8)
        """Addresses that other nodes say we have."""
        self.elsewhere: dict[int, tuple[str, int]] = {}
        """Our own address by each version of IP (4, 6), as far as we know it: told to those who see us at the other."""
        self.versions: frozenset[int] = frozenset((4,))
        """The versions of IP that we can send to."""
        self._searches: dict[Search, float] = {}
        self._pinging: set[bytes] = set()
        self._reaches: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._reach: int | None = None
        self._edge: int | None = None
        self.upkeep = Upkeep(self)
        self.watchers = Watchers(self)
        self.watching = Watching(self)
        self.desk = Desk(self)
        rpc.server = self.desk

    # -- what the driver calls ---------------------------------------------------------------------------------

    def receive(self, datagram: bytes, address: Address, now: float) -> None:
        """Take one datagram."""
        self.rpc.receive(datagram, address, now)

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called next; None when nothing is waiting."""
        soonest = self.rpc.deadline
        if self._searches:
            first = next(iter(self._searches.values()))
            soonest = first if soonest is None else min(soonest, first)
        return soonest

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.rpc.tick(now)
        for search, until in list(self._searches.items()):
            if search.over:
                del self._searches[search]
            elif until <= now:
                del self._searches[search]
                search.expire(now)

    def step(self, now: float) -> None:
        """Chores; call about once per second."""
        self.storage.expire(self.unix(now))
        self.upkeep.step(now)
        self.watching.step(now)
        self.watchers.expire(now)

    def unix(self, now: float) -> int:
        """Unix seconds at monotonic `now`."""
        return int(now + self.offset)

    # -- operations --------------------------------------------------------------------------------------------

    def find(
        self, target: bytes, done: Callable[[list[Contact]], None], now: float, seeds: Iterable[Contact] = ()
    ) -> None:
        """Find the nodes closest to an id."""
        self.start(FindNodes(self, target, self._lookup(target, self.config.alpha, seeds), done), now)

    def survey(self, topic: bytes, done: Callable[[Surveyed], None], now: float) -> None:
        """Find the holders of a topic and what state each is in."""
        self.start(Survey(self, topic, self._lookup(topic, self.config.alpha), done), now)

    def join(self, seeds: Iterable[Contact], done: Callable[[], None], now: float) -> None:
        """Enter the network: find our own place, then have a look at the rest."""
        self._reaches.clear()
        self._reach = None
        self.start(_Join(self, self.own_id, self.plain(self.own_id, seeds), done), now)

    def get(
        self, topic: bytes, done: Callable[[Found], None], now: float, *, quorum: int | None = None, paths: int = 1
    ) -> None:
        """Collect the records of a topic.

        `paths`: disjoint search paths, for reads that matter. Those also wait for all of the closest that live,
        unless `quorum` says otherwise: who is hostile may give old versions, and several of them agree by chance.
        """
        quorum = quorum or (self.config.get_quorum if paths == 1 else self.config.k)
        unix = self.unix(now)
        local = [self.registry.trust(raw, topic, unix) for raw in self.storage.all(topic, unix)]
        places = self.config.k - self.responsible(topic)
        lookup = self._lookup(topic, self.config.alpha if paths == 1 else 2, paths=paths, places=places)
        if paths == 1:
            lookup.prefer(self.familiar)
        self.start(GetValue(self, topic, lookup, done, quorum=quorum, local=local), now)

    def put(
        self,
        topic: bytes,
        record: Record,
        done: Callable[[PutResult], None],
        now: float,
        *,
        quorum: int | None = None,
        seeds: Iterable[Contact] = (),
    ) -> None:
        """Store a checked record under a topic. `seeds`: nodes that were close to it when it was last put."""
        quorum = quorum or self.config.put_quorum
        mine = self.responsible(topic)
        kept = mine and self.keep(topic, record, b"", now).outcome in (Outcome.STORED, Outcome.SAME)
        lookup = self._lookup(topic, self.config.k - mine, seeds, places=self.config.k - mine)
        self.start(PutValue(self, topic, record, lookup, done, quorum=quorum - kept, kept=kept), now)

    def responsible(self, topic: bytes) -> bool:
        """Whether this node is among the k closest to a point, as far as it knows."""
        if self.config.client:
            return False
        target = int.from_bytes(topic, "big")
        near = self.table.closest(target, self.config.k)
        return len(near) < self.config.k or int.from_bytes(self.own_id, "big") ^ target < near[-1].long_id ^ target

    def _lookup(
        self,
        target: bytes,
        alpha: int,
        seeds: Iterable[Contact] = (),
        paths: int = 1,
        places: int = 0,
        *,
        plain: bool = False,
    ) -> Lookup:
        number = int.from_bytes(target, "big")
        count = max(2 * self.config.k, paths * self.config.k)
        skip = self.is_late if self.rpc.late else None
        known = self.table.closest(number, count, skip, named=True)
        wanted = max(ANCHORS * paths, alpha)
        anchors = list(islice((c for c in known if self.table.holds(c)), wanted))
        if len(anchors) < wanted:
            anchors = self.table.closest(number, wanted, skip)
        return Lookup(
            number,
            [*known, *seeds],
            own_id=self.own_id,
            k=places or self.config.k,
            alpha=alpha,
            paths=paths,
            anchors=anchors,
            reach=self.region(),
            exempt=self.exempt,
            plain=plain,
        )

    def plain(self, target: bytes, seeds: Iterable[Contact] = ()) -> Lookup:
        """A search for the table's sake."""
        return self._lookup(target, self.config.alpha, seeds, plain=True)

    def lookup(self, target: bytes) -> Lookup:
        """A search for the holders of a topic that this node holds too."""
        return self._lookup(target, self.config.alpha, places=self.config.k - 1)

    def start(self, search: Search, now: float) -> None:
        """Run an operation to its end."""
        self._searches[search] = now + OPERATION_LIMIT_S
        search.start(now)
        if search.over:
            self._searches.pop(search, None)

    # -- what operations need (search.Context) -----------------------------------------------------------------

    def ask(self, contact: Contact, op: int, body: bytes, asker: Asker, now: float, tag: int = 0) -> Call | None:
        """Put a question; None when the contact is not usable."""
        if contact.scope is not Scope.GLOBAL and contact.via is not Via.BACK and not self.config.local_addresses:
            return None
        try:
            return self.rpc.call(contact, op, body, asker, now, tag)
        except (BadContact, BadPacket):
            return None

    def peer_of(self, contact: Contact) -> Peer | None:
        """What is known of a node."""
        return self.rpc.peers.get(contact.path)

    def check(self, raw: bytes, topic: bytes, now: float) -> Record:
        """Judge a record. Raises InvalidRecord."""
        return self.registry.check(raw, topic, self.unix(now))

    def heard(self, contact: Contact, now: float) -> None:
        """A node answered us at its address: it belongs in the table."""
        peer = self.rpc.peers.get(contact.path)
        if peer is not None:
            if now - peer.tabled_at < TABLE_S and peer.contact is contact:
                return
            peer.tabled_at = now
        before = self.table.size
        self.table.add_contact(contact, now)
        if self.table.size != before:
            self._reach = self._edge = None
            if self.neighbour(contact):
                self.upkeep.neighbour(contact, now)
            if len(self.versions) > 1:
                # It may be had by the other version of IP too; its answer says where.
                self.ping(contact, now)

    def lost(self, contact: Contact, now: float) -> None:
        """A node did not answer three times."""
        if self.table.get(contact) is not None and self.neighbour(contact):
            self.upkeep.neighbour(contact, now)
        self.table.remove_contact(contact)
        if (peer := self.rpc.peers.get(contact.path)) is not None:
            peer.tabled_at = -1e9
        self._reach = self._edge = None

    def named(self, contacts: list[Contact]) -> None:
        """A node that answered named these."""
        self.table.name(contacts)

    def late(self, contact: Contact) -> None:
        """A node is overdue."""
        self.table.forget_named(contact)

    def reach(self) -> int:
        """The XOR distance within which the k nodes closest to a point are expected.

        The median over our own neighbourhood and those that recent searches saw: to shrink it, an attacker has to be
        dense nearly everywhere. Of two in the middle the lower, because while a network grows what was seen is too far.
        """
        if self._reach is None:
            here, k = int.from_bytes(self.own_id, "big"), self.config.k
            near = self.table.closest(here, 2 * k)
            if len(near) < 2 * k:
                self._reach = 2**ID_BITS
            else:
                # Further out our table has gaps: farther nodes would make the network look emptier than it is.
                own = [(near[i - 1].long_id ^ here) * k // i for i in (k, 2 * k)]
                self._reach = median_low([*own, *(distance for _, distance in self._reaches)])
        return self._reach

    def region(self) -> int:
        """The reach, or 0 while too few nodes are known to tell."""
        return self.reach() if len(self.table) >= 2 * self.config.k else 0

    def search_beside(self, search: Search, now: float, *, again: bool) -> None:
        """Find those whom a crowd around the target of a search hides."""
        beside.look(self, search, now, again=again)

    def learned(self, lookup: Lookup, now: float) -> None:
        """A search came to its end: its k closest tell how dense the network is there, unless somebody packed them."""
        closest = lookup.closest()
        if len(closest) >= lookup.k and not lookup.crowded:
            while self._reaches and self._reaches[0][0] < now - SAMPLE_LIFE_S:
                self._reaches.popleft()
            self._reaches.append((now, closest[lookup.k - 1].long_id ^ lookup.target))
            self._reach = None

    def is_late(self, contact: Contact) -> bool:
        """Whether a node owes an answer."""
        return contact.path in self.rpc.late

    def familiar(self, contact: Contact) -> bool:
        """Whether a node has answered us before and owes no answer: asking it again costs no new secret (80 µs)."""
        peer = self.rpc.peers.get(contact.path)
        return peer is not None and peer.rtt > 0.0 and not peer.late

    def exempt(self, contact: Contact) -> bool:
        """Whether address limits do not apply to a contact."""
        return contact.scope is not Scope.GLOBAL and not self.config.count_local

    # -- what answering needs (desk.Desk) ------------------------------------------------------------------------

    def welcome(self, peer: Peer, address: Address, *, proved: bool, room: int, now: float) -> bool:
        """A node asked us something. It enters the table once it has proved to receive at its address.

        `room`: bytes of an answer. Returns whether a ping was sent to an address that has not proved itself: its bytes
        count as part of the answer.
        """
        contact = peer.contact
        if contact.via is Via.BACK:
            return False
        if contact.address != address:
            contact = contact_at(contact.key, address)
        if proved:
            known = self.table.get(contact)
            if known is not contact:
                if contact.path in self.rpc.peers:
                    # It moved, and proved it.
                    self.rpc.peers[contact.path].contact = contact
                self.heard(contact, now)
        elif (
            room >= 2 * PING_COST
            and len(self._pinging) < MAX_PINGS
            and contact.path not in self._pinging
            and self.neighbour(contact)
            and self.table.wants(contact)
        ):
            # Others prove themselves with their next request; a neighbour must be known at once, or records miss it.
            self.ping(contact, now)
            return True
        return False

    def neighbour(self, contact: Contact) -> bool:
        """Whether the node is among the k closest to us, as far as we know."""
        if self._edge is None:
            own = int.from_bytes(self.own_id, "big")
            near = self.table.closest(own, self.config.k)
            self._edge = near[-1].long_id ^ own if len(near) == self.config.k else 2**ID_BITS
        return contact.long_id ^ int.from_bytes(self.own_id, "big") <= self._edge

    def ping(self, contact: Contact, now: float) -> None:
        """Ask a node whether it is there, unless it is being asked already."""
        if contact.path not in self._pinging:
            self._pinging.add(contact.path)
            if self.ask(contact, Op.PING, b"", _Ping(self), now) is None:
                self._pinging.discard(contact.path)

    def pinged(self, contact: Contact, address: tuple[str, int] | None, now: float) -> None:
        """A ping ended; `address` is where that node sees us, None when it did not answer."""
        self._pinging.discard(contact.path)
        if address is not None:
            self.observed.append(address)
            self.heard(contact, now)
        else:
            self.lost(contact, now)

    def also_at(self, contact: Contact, address: tuple[str, int], now: float) -> None:
        """A node says that it has another address: it counts once it has answered from there."""
        try:
            other = contact_at(contact.key, address)
        except BadContact:
            return
        if other.version != contact.version and other.version in self.versions and self.table.wants(other):
            self.ping(other, now)

    def keep(self, topic: bytes, record: Record, group: bytes, now: float) -> Put:
        """Keep a checked record here."""
        put = self.storage.put(topic, record, self.registry.rules(record.envelope.kind), group, self.unix(now))
        if put.outcome is Outcome.STORED:
            self.upkeep.stored(topic, now)
            self.watchers.changed(topic, record, group, now)
            self.watching.stored(topic, record)
        return put


class _Join(Search):
    """A search for our own id, then for places in the other half of the network, in the other half of ours, ..."""

    def __init__(self, engine: Engine, own_id: bytes, lookup: Lookup, done: Callable[[], None]) -> None:
        super().__init__(engine, own_id, lookup)
        self._engine = engine
        self._done = done
        self._left = 0

    def _ended(self, now: float) -> None:
        engine, own = self._engine, int.from_bytes(self.target, "big")
        self._left = LOOKS
        for bit in range(ID_BITS - 1, ID_BITS - 1 - LOOKS, -1):
            low = int(engine.rng.random() * (1 << bit))
            target = ((own >> bit ^ 1) << bit | low).to_bytes(20, "big")
            lookup = engine.plain(target)
            engine.start(FindNodes(engine, target, lookup, self._one), now)

    def _one(self, _: list[Contact]) -> None:
        self._left -= 1
        if not self._left:
            self._done()


class _Ping:
    """Asks whether a node is where it says, and where it sees us."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """It is."""
        address: tuple[str, int] | None = None
        other: tuple[str, int] | None = None
        try:
            address = messages.observed_of(reply.data)
            other = messages.elsewhere_of(reply.data)
        except BadPacket:
            pass  # what could be read counts
        self._engine.pinged(call.peer.contact, address, now)
        if other is not None:
            self._engine.also_at(call.peer.contact, other, now)

    def late(self, call: Call, now: float) -> None:
        """Wait."""

    def failed(self, call: Call, now: float) -> None:
        """It is not."""
        self._engine.pinged(call.peer.contact, None, now)
