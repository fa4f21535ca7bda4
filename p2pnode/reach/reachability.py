"""Whether others can reach this node, and what follows: the DHT's mode, the relays, and what the contact record says.

Theory of operation. A node that nobody can dial must not be in routing tables, and needs relays; one that others dial
serves the DHT, relays for others, and says where it is. Nobody can know this of himself, so peers are asked to dial
back (`probe`), several of different address groups, and the majority decides: a single liar moves nothing where there
are others to ask. Until then, and whenever nobody can tell, the node takes itself for unreachable, which works
everywhere and harms nobody.

It asks again when its own addresses change, when the router gives it a port, when it finds its first peers, and every
now and then. What the user configured is never overruled: `yes`, `no`, and the external addresses.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from dht.contact import Contact, Scope
from dht.node import DhtNode
from p2pnode.channels import Channels
from p2pnode.channels.links import ip_version, is_public, plain_host
from p2pnode.reach import probe
from p2pnode.reach.registrar import Candidate, Registrar
from p2pnode.reach.relay import Relay
from protocol.contact import Address, NodeContact
from protocol.relay import Probed, Reached

HELPERS: Final = 3
"""Peers that are asked to dial back; a third only where the first two disagree."""
MAJORITY: Final = 2
WHOLE: Final = Reached.TCP | Reached.UDP
"""Reached in every way that there is: a DHT node that only answers on TCP, or a trader on UDP, is of no use."""
AGAIN_REACHABLE: Final = 1_800.0
AGAIN_UNREACHABLE: Final = 600.0
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


class Reachability:
    """Decides, and tells the parts that depend on it."""

    def __init__(
        self,
        dht: DhtNode,
        channels: Channels,
        relay: Relay,
        listening: Address,
        told: Told,
        mapped: Callable[[], Address | None] = lambda: None,
    ) -> None:
        """`listening`: where DHT and channels listen. `mapped`: what the router gave us."""
        self._dht = dht
        self._channels = channels
        self._relay = relay
        self._listen = listening
        self._told = told
        self._mapped = mapped
        self._verdict = Verdict.REACHABLE if told.setting == "yes" else Verdict.UNKNOWN
        self._seen: tuple[Address, ...] = ()
        self._hosts = own_hosts()
        self._listeners: list[Callable[[], None]] = []
        self._on_move: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.registrar = Registrar(channels, self._candidates, self._changed)
        self._apply()

    @property
    def verdict(self) -> Verdict:
        """What is known now."""
        return self._verdict

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
        return self._seen or self._listening()

    def relays(self) -> tuple[NodeContact, ...]:
        """The relays that bring others to us, for the contact record."""
        return tuple(NodeContact(c.node, c.addresses[:1]) for c in self.registrar.relays())

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

    async def _ask_again(self) -> None:
        unanswered = AGAIN_UNKNOWN
        while True:
            self._wake.clear()
            answers = await self._ask_around()
            await self._judge(answers)
            if answers:
                unanswered = AGAIN_UNKNOWN
                pause = AGAIN_REACHABLE if self._verdict is Verdict.REACHABLE else AGAIN_UNREACHABLE
            else:
                pause, unanswered = unanswered, min(2 * unanswered, AGAIN_UNREACHABLE)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue
            unanswered = AGAIN_UNKNOWN

    async def _ask_around(self) -> list[Probed]:
        """The answers of peers in different address groups; as many as it takes for a majority."""
        port = self._port()
        helpers = _spread(self._contacts())
        answers: list[Probed] = []
        while helpers and not _decided(answers):
            batch, helpers = helpers[: HELPERS - 1], helpers[HELPERS - 1 :]
            asked = await asyncio.gather(*(probe.ask(self._channels, _node_contact(helper), port) for helper in batch))
            answers += [answer for answer in asked if answer is not None]
        return answers

    async def _judge(self, answers: Sequence[Probed]) -> None:
        """Take the majority's word. One answer counts only where there is nobody else to ask."""
        if not answers:
            return
        forced = self._told.setting == "yes"
        yes = [a for a in answers if forced or a.reached == WHOLE]
        verdict = Verdict.UNREACHABLE
        seen: tuple[Address, ...] = ()
        if 2 * len(yes) > len(answers):
            verdict, seen = Verdict.REACHABLE, self._most_seen(yes)
        if (verdict, seen) != (self._verdict, self._seen):
            log.info("by the word of %d peers, this node is %s", len(answers), verdict.value)
            self._verdict, self._seen = verdict, seen
            self._apply()
            self._changed()
            if verdict is Verdict.REACHABLE:
                # Those near us in the DHT should know us before somebody looks for what we hold.
                await self._dht.find_nodes(self._dht.node_id)

    def _most_seen(self, answers: Sequence[Probed]) -> tuple[Address, ...]:
        """The address that most peers saw us at, of each version of IP."""
        votes = Counter(a.seen.host for a in answers if self._told.local or is_public(a.seen.host))
        best: dict[int, str] = {}
        for host, _ in votes.most_common():
            best.setdefault(ip_version(host), host)
        return tuple(Address(host, self._port()) for host in best.values())

    def _port(self) -> int:
        mapped = self._mapped()
        return self._listen.port if mapped is None else mapped.port

    async def _look_at_addresses(self) -> None:
        """Notice that the machine has moved: old sessions lead nowhere, relays must be found again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            hosts = own_hosts()
            if hosts == self._hosts:
                continue
            gone = self._hosts - hosts
            self._hosts = hosts
            log.info("this node's address has changed")
            self._channels.leave(lambda host, gone=gone: host in gone)  # type: ignore[misc]  # bound now
            for listener in self._on_move:
                listener()
            self.kick()

    # What follows.

    def _apply(self) -> None:
        reachable = self._verdict is Verdict.REACHABLE
        serves = reachable and not self._told.client
        if serves != self._dht.serves:
            self._dht.serve(serves)
        self._relay.enabled = reachable and self._told.relaying
        self.registrar.want(not reachable)

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

        found = sorted(self._contacts(), key=distance)
        return [Candidate(_node_contact(c), c.group) for c in found[:CANDIDATES]]

    def _contacts(self) -> list[Contact]:
        """All that are fit to be asked, in no order."""
        contacts = [c for c in self._dht.peers() if self._told.local or c.scope is Scope.GLOBAL]
        rng = self._dht.engine.rng
        return sorted(contacts, key=lambda _: rng.random())

    def _listening(self) -> tuple[Address, ...]:
        """The addresses that we listen on, as far as they are fit to be told."""
        hosts: Iterable[str] = (self._listen.host,) if self._listen.host not in ("0.0.0.0", "::") else self._hosts  # noqa: S104  (recognised, not bound)
        return tuple(Address(host, self._listen.port) for host in hosts if self._told.local or is_public(host))


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


def _decided(answers: Sequence[Probed]) -> bool:
    yes = sum(a.reached == WHOLE for a in answers)
    return max(yes, len(answers) - yes) >= MAJORITY


def _spread(contacts: Sequence[Contact]) -> list[Contact]:
    """One of each address group first, then the others."""
    firsts: dict[bytes, Contact] = {}
    others = [c for c in contacts if firsts.setdefault(c.group, c) is not c]
    return [*firsts.values(), *others][: 2 * HELPERS]


def _node_contact(contact: Contact) -> NodeContact:
    return NodeContact(contact.key, (Address(contact.ip, contact.port),))
