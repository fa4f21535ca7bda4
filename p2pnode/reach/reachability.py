"""Whether others can reach this node, and what follows: the DHT's mode, the relays, and what the contact record says.

Theory of operation. A node that nobody can dial must not be in routing tables, and needs relays; one that others dial
relays for others and says where it is. Nobody can know this of himself, so peers are asked to dial back (`probe`), of
different address groups and different parts of the id space, never the same twice in a row. But their word is not
believed: what counts is that somebody came in (`evidence`), whoever it was. So no number of liars makes a node believe
that it is reached; to keep it from knowing that it is, they have to be the majority of those asked and nobody else may
come by himself, and then it only uses relays that it would not need.

TCP and UDP are judged apart, and so are IPv4 and IPv6. Who is reached by TCP needs no relay. Only who is reached by UDP
too, by strangers as far as that can be told, serves the DHT; a router that lets in those we wrote to lets nobody else
in, so helpers that we have not written to are asked first.

It asks again when its own addresses change, when the router gives it a port, when it finds its first peers, sooner when
answers contradict each other, and every now and then. What the user configured is never overruled: `yes`, `no`, and
the external addresses.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple

from dht.contact import Contact, Scope
from dht.node import DhtNode
from dht.udp import EVERYWHERE
from p2pnode.channels import Channels
from p2pnode.channels.links import ip_version, is_public, plain_host
from p2pnode.reach import probe
from p2pnode.reach.evidence import Evidence, Udp
from p2pnode.reach.registrar import Candidate, Registrar
from p2pnode.reach.relay import Relay
from protocol.contact import Address, NodeContact
from protocol.relay import Reached

HELPERS: Final = 6
"""Peers that are asked to dial back at most, two at a time, until it is clear."""
AT_ONCE: Final = 2
DENIALS: Final = 2
"""Peers that did not get through after which it counts as settled that none does."""
KNOCK_SECONDS: Final = 3.0
"""How long we listen for what a peer says that it did."""
FRESH_SECONDS: Final = 120.0
"""Who came in by himself so lately outweighs those who say that they can't."""
AGAIN_REACHABLE: Final = 1_800.0
AGAIN_UNREACHABLE: Final = 600.0
AGAIN_UNCLEAR: Final = 60.0
"""Where answers contradict each other, or nobody could tell whether strangers get in."""
AGAIN_UNKNOWN: Final = 5.0
"""Seconds until the question is put again."""
LOOK_SECONDS: Final = 2.0
"""How often our own addresses are looked at."""
CANDIDATES: Final = 64
PROBE_TARGETS: Final = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation: no packet is sent, the kernel only says from which of ours it would be."""

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What is known of our reachability."""

    UNKNOWN = "unknown"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


Setting = Literal["auto", "yes", "no"]


@dataclass(frozen=True, slots=True)
class Way:
    """What is known of one version of IP."""

    host: str
    """The address that peers see us at."""
    tcp: bool
    """Others can dial us."""
    udp: Udp
    """Whose datagrams arrive."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the user says of this node."""

    setting: Setting = "auto"
    """`yes` and `no` overrule what peers find."""
    external: tuple[Address, ...] = ()
    """Where others can dial us, for sure."""
    relaying: bool = True
    """Relay for others while reachable."""
    client: bool = False
    """Never serve the DHT."""
    local: bool = False
    """Private and loopback addresses are worth publishing, and dialling."""


class _Answer(NamedTuple):
    """What one peer said."""

    reached: Reached
    seen: str
    """The address that it sees us at."""
    stranger: bool
    """We had not written to it by UDP."""


@dataclass(frozen=True, slots=True)
class _Round:
    """What asking around by one version of IP came to."""

    way: Way | None
    """None: nobody could tell."""
    unclear: bool
    """Worth asking again soon."""


class Reachability:
    """Decides, and tells the parts that depend on it."""

    def __init__(
        self,
        dht: DhtNode,
        channels: Channels,
        relay: Relay,
        listening: Sequence[Address],
        told: Told,
        mapped: Callable[[], Address | None] = lambda: None,
    ) -> None:
        """`listening`: where DHT and channels listen, all on one port. `mapped`: what the router gave us."""
        self._dht = dht
        self._channels = channels
        self._relay = relay
        self._listen = tuple(listening)
        self._asking = False
        self._by_channel = dht.by_channel
        self._told = told
        self._mapped = mapped
        self._ways: dict[int, Way] = {}
        self._since = time.time()
        self._asked: set[bytes] = set()
        """Address groups of those who were asked last."""
        self._evidence = Evidence()
        self._noticed_at = -AGAIN_UNCLEAR
        self._hosts = own_hosts()
        self._listeners: list[Callable[[], None]] = []
        self._on_move: list[Callable[[], None]] = []
        self._knock = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.registrar = Registrar(channels, self._candidates, self._changed)
        self._verdict = Verdict.UNKNOWN
        relay.own = self.addresses
        channels.subscribe_inbound(self._came_in)
        dht.listen_for_hellos(self._heard)
        self._apply()

    @property
    def verdict(self) -> Verdict:
        """What is known now."""
        return self._verdict

    @property
    def ways(self) -> Mapping[int, Way]:
        """The same by version of IP (4, 6)."""
        return self._ways

    @property
    def since(self) -> int:
        """Since when it is so, in Unix seconds."""
        return int(self._since)

    @property
    def mapped(self) -> Address | None:
        """The port that the router gave us."""
        return self._mapped()

    @property
    def told(self) -> Told:
        """What the user said."""
        return self._told

    def listening_port(self) -> int:
        """The TCP port under which others dial us; 0 while they can't, or shall not for the DHT's sake."""
        return self._port() if self._verdict is Verdict.REACHABLE and not self._told.client else 0

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` when `addresses` or `relays` may have changed."""
        self._listeners.append(listener)

    def subscribe_moves(self, listener: Callable[[], None]) -> None:
        """Call `listener` when this machine's own address has changed."""
        self._on_move.append(listener)

    def addresses(self) -> tuple[Address, ...]:
        """Where others may try to dial us: as configured, else where they reached us."""
        if self._told.external:
            return self._told.external
        if self._verdict is not Verdict.REACHABLE:
            return ()
        return tuple(Address(w.host, self._port()) for w in self._ways.values() if w.tcp) or self._listening()

    def relays(self) -> tuple[NodeContact, ...]:
        """The relays that bring others to us, for the contact record."""
        return self.registrar.relays()

    def start(self) -> None:
        """Begin to find out."""
        self.registrar.start()
        if self._told.setting == "auto" or (self._told.setting == "yes" and not self.addresses()):
            self._tasks.append(asyncio.create_task(self._ask_again(), name="reachability"))
        self._tasks.append(asyncio.create_task(self._look_at_addresses(), name="own addresses"))

    def kick(self) -> None:
        """Something changed that may change the answer: ask again now."""
        self.registrar.kick()
        self._wake.set()

    async def close(self) -> None:
        """Stop; the relays are let go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.registrar.close()

    # Finding out.

    def _came_in(self, endpoint: Address) -> None:
        """A session was opened to us."""
        if self._counts(endpoint.host):
            self._evidence.connected(endpoint.host, self._now(), asked=self._asking)
            self._knock.set()
            self._noticed()

    def _heard(self, host: str, written: bool) -> None:  # noqa: FBT001  (a fact)
        """A hello came by UDP."""
        if self._counts(host):
            self._evidence.heard(host, self._now(), written=written)

    def _counts(self, host: str) -> bool:
        """Whether an address is as far away as those are who shall reach us."""
        return self._told.local or is_public(host)

    def _noticed(self) -> None:
        """Somebody came in though we think that nobody can: look into it, but not at every knock."""
        now = self._now()
        if self._verdict is Verdict.UNREACHABLE and not self._asking and now - self._noticed_at >= AGAIN_UNCLEAR:
            self._noticed_at = now
            self._wake.set()

    async def _ask_again(self) -> None:
        unanswered = AGAIN_UNKNOWN
        unclear = AGAIN_UNCLEAR
        while True:
            self._wake.clear()
            self._asking = True
            rounds = {version: await self._ask_around(version) for version in sorted(self._dht.engine.versions)}
            self._asking = False
            answered = await self._judge(rounds)
            if not answered:
                pause, unanswered = unanswered, min(2 * unanswered, AGAIN_UNREACHABLE)
            elif any(found.unclear for found in rounds.values()):
                pause, unclear = unclear, min(2 * unclear, AGAIN_REACHABLE)
            else:
                unclear = AGAIN_UNCLEAR
                pause = AGAIN_REACHABLE if self._verdict is Verdict.REACHABLE else AGAIN_UNREACHABLE
            if answered:
                unanswered = AGAIN_UNKNOWN
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue
            unanswered, unclear = AGAIN_UNKNOWN, AGAIN_UNCLEAR

    async def _ask_around(self, version: int) -> _Round:
        """Have peers knock by one version of IP until one is heard or enough did not get through."""
        began, port = self._now(), self._port()
        helpers = self._helpers(version)
        asked: set[bytes] = set()
        answers: list[_Answer] = []
        while helpers and not self._settled(version, began, answers):
            batch, helpers = helpers[:AT_ONCE], helpers[AT_ONCE:]
            asked |= {helper.group for helper in batch}
            strangers = [not self._dht.wrote_to(helper.ip) for helper in batch]
            told = await asyncio.gather(*(probe.ask(self._channels, _node_contact(helper), port) for helper in batch))
            answers += [
                _Answer(a.reached, a.seen.host, stranger)
                for a, stranger in zip(told, strangers, strict=True)
                if a is not None and ip_version(a.seen.host) == version
            ]
            await self._listen_for(version, began, answers)
        self._asked |= asked
        return self._weigh(version, began, answers)

    def _settled(self, version: int, began: float, answers: Sequence[_Answer]) -> bool:
        tcp, udp = self._evidence.tcp(version, began), self._evidence.udp(version, began)
        if tcp and udp is Udp.STRANGERS:
            return True
        # Whoever wants to hide from us that we are reached has to be more than one.
        return sum(not (a.reached & Reached.TCP) for a in answers) >= DENIALS or (
            tcp and sum(not (a.reached & Reached.UDP) for a in answers) >= DENIALS
        )

    async def _listen_for(self, version: int, began: float, answers: Sequence[_Answer]) -> None:
        """Wait until what peers say that they did has arrived, or ought to have."""
        if not any(a.reached & Reached.TCP for a in answers):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(KNOCK_SECONDS):
                while not self._evidence.tcp(version, began):
                    self._knock.clear()
                    await self._knock.wait()

    def _weigh(self, version: int, began: float, answers: Sequence[_Answer]) -> _Round:
        """What answers and our own eyes say together."""
        if not answers:
            return _Round(None, unclear=False)
        forced = self._told.setting == "yes"
        tcp, udp = self._evidence.tcp(version, began), self._evidence.udp(version, began)
        if udp is Udp.UNTRIED and any(a.stranger and not a.reached & Reached.UDP for a in answers):
            udp = Udp.KNOWN
        doubtful = tcp and not forced and any(not a.reached & Reached.TCP for a in answers)
        lies = not tcp and any(a.reached & Reached.TCP for a in answers)
        if lies:
            log.warning("a peer says that it dialled us, and nobody came")
        if not tcp and self._evidence.unasked(version, began - FRESH_SECONDS) and not forced:
            # Somebody came in lately. Either that has ended just now, or those we asked do not want us to know.
            tcp, doubtful = True, True
            udp = max(udp, self._evidence.udp(version, began - FRESH_SECONDS))
        host = self._most_seen(answers)
        way = Way(host, tcp or forced, Udp.STRANGERS if forced else udp) if host else None
        return _Round(way, unclear=not forced and (doubtful or lies or (tcp and udp is Udp.UNTRIED)))

    async def _judge(self, rounds: Mapping[int, _Round]) -> bool:
        """Put the rounds together; whether anybody answered."""
        told = {version: found.way for version, found in rounds.items() if found.way is not None}
        if not told:
            return False
        ways = {version: told.get(version) or self._ways.get(version) for version in rounds}
        known = {version: way for version, way in ways.items() if way is not None}
        verdict = Verdict.REACHABLE if any(way.tcp for way in known.values()) else Verdict.UNREACHABLE
        if (verdict, known) != (self._verdict, self._ways):
            if verdict is not self._verdict:
                log.info("this node is %s", verdict.value)
                self._since = time.time()
            served = self._dht.serves
            self._verdict, self._ways = verdict, known
            self._apply()
            self._changed()
            if self._dht.serves and not served:
                # Those near us in the DHT should know us before somebody looks for what we hold.
                await self._dht.find_nodes(self._dht.node_id)
        return True

    def _most_seen(self, answers: Sequence[_Answer]) -> str:
        """The address that most peers saw us at; empty when it is none that others can use."""
        votes = Counter(a.seen for a in answers if self._told.local or is_public(a.seen))
        return votes.most_common(1)[0][0] if votes else ""

    def _port(self) -> int:
        mapped = self._mapped()
        return self._listen[0].port if mapped is None else mapped.port

    async def _look_at_addresses(self) -> None:
        """Notice that the machine has moved: old sessions lead nowhere, relays must be found again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            hosts = own_hosts()
            if self._by_channel != self._dht.by_channel:
                self._apply()
            if hosts == self._hosts:
                continue
            gone = self._hosts - hosts
            self._hosts = hosts
            self._evidence.forget()
            self._dht.moved()
            log.info("this node's address has changed")
            self._channels.leave(lambda host, gone=gone: host in gone)  # type: ignore[misc]  # bound now
            for listener in self._on_move:
                listener()
            self.kick()

    # What follows.

    def _apply(self) -> None:
        if self._told.setting == "yes":
            self._verdict = Verdict.REACHABLE
        reachable = self._verdict is Verdict.REACHABLE
        self._by_channel = self._dht.by_channel
        if not self._by_channel or not self._hosts:
            self._dht.speak(self._versions())
        versions = self._dht.engine.versions
        whole = frozenset(
            v for v, way in self._ways.items() if way.tcp and (way.udp >= Udp.UNTRIED or self._by_channel)
        )
        if self._told.setting == "yes":
            whole = versions
        self._dht.serve(bool(whole) and not self._told.client, frozenset(versions - whole))
        self._dht.engine.elsewhere = {
            version: (address.host, address.port)
            for address in reversed(self.addresses())
            if (version := ip_version(address.host)) in whole
        }
        self._relay.enabled = reachable and self._told.relaying
        self.registrar.want(not reachable)

    def _versions(self) -> frozenset[int]:
        """The versions of IP that we have a way for."""
        hosts = [a.host for a in self._listen if a.host not in EVERYWHERE]
        return frozenset(ip_version(host) for host in hosts or self._hosts)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    # Whom to ask.

    def _candidates(self) -> list[Candidate]:
        """Nodes that may relay, nearest first."""
        engine = self._dht.engine

        def distance(contact: Contact) -> float:
            peer = engine.peer_of(contact)
            return peer.rtt if peer is not None and peer.rtt else 10.0

        found = sorted(self._contacts(self._dht.peers()), key=distance)
        return [Candidate(_node_contact(c), c.group) for c in found[:CANDIDATES]]

    def _contacts(self, contacts: Iterable[Contact]) -> list[Contact]:
        """All that are fit to be asked, in no order."""
        usable = [c for c in contacts if self._told.local or c.scope is Scope.GLOBAL]
        rng = self._dht.engine.rng
        return sorted(usable, key=lambda _: rng.random())

    def _helpers(self, version: int) -> list[Contact]:
        """Whom to ask to knock by one version of IP, best first.

        Those that we have not written to by UDP go first, since only they can tell whether strangers get in; those
        asked last time go last. No two of one address group, nor of one part of the id space, while there are others:
        what one party owns, or what one search found, is not all that is asked.
        """
        known, named = self._contacts(self._dht.peers()), self._contacts(self._dht.heard_of())
        candidates = [c for c in (*named[:HELPERS], *known) if c.version == version and c.key != self._dht.key.public]
        candidates.sort(key=lambda c: (c.group in self._asked, self._dht.wrote_to(c.ip)))
        if candidates and all(c.group in self._asked for c in candidates[:HELPERS]):
            self._asked.clear()
        return _spread(candidates)

    def _listening(self) -> tuple[Address, ...]:
        """The addresses that we listen on, as far as they are fit to be told."""
        found: dict[Address, None] = {}
        for listen in self._listen:
            every = listen.host in EVERYWHERE
            hosts = [h for h in self._hosts if ip_version(h) == ip_version(listen.host)] if every else [listen.host]
            found |= {Address(h, listen.port): None for h in hosts if self._told.local or is_public(h)}
        return tuple(found)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def own_hosts() -> frozenset[str]:
    """The addresses from which this machine would speak to the world, by IPv4 and IPv6. Nothing is sent."""
    found = set()
    for family, target in zip((socket.AF_INET, socket.AF_INET6), PROBE_TARGETS, strict=True):
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
                sock.connect((target, 9))
                found.add(plain_host(sock.getsockname()[0]))
        except OSError:
            continue
    return frozenset(found)


def own_ipv4() -> str | None:
    """The IPv4 address of this machine in its network, if it has one."""
    return next((host for host in own_hosts() if ip_version(host) == 4), None)


def _spread(contacts: Sequence[Contact]) -> list[Contact]:
    """At most HELPERS, each of another address group and another eighth of the id space as long as there are such."""
    chosen: list[Contact] = []
    for strict in (2, 1, 0):
        for contact in contacts:
            if len(chosen) >= HELPERS or any(contact.id == c.id for c in chosen):
                continue
            near = any(contact.id[0] >> 5 == c.id[0] >> 5 for c in chosen)
            alike = any(contact.group == c.group for c in chosen)
            if not (strict and alike) and not (strict == 2 and near):
                chosen.append(contact)
    return chosen


def _node_contact(contact: Contact) -> NodeContact:
    return NodeContact(contact.key, (Address(contact.ip, contact.port),))
