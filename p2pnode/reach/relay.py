"""The relay: brings together nodes that can't reach each other, and sees nothing of what they say (SPEC section 7).

Theory of operation. A client that nobody can reach keeps a session to us and a REGISTER stream open on it. Its node key
is the one that the session proved, so that nobody can register for another. Who wants to reach it opens a CONNECT
stream; we open an INCOMING stream to the client and copy bytes both ways, where the two run a handshake and a session
of their own. What we alter, they notice; what we read is ciphertext.

Everything is counted by who caused it: places by node key and by address, bytes by the address that opened the circuit.
When all places are taken, the network (IPv4 /24, IPv6 /48) that holds most of them gives one to a newcomer of another:
so whoever has many addresses side by side can't drain us.
The rate is shared evenly between those that want it (`pacing`). A copy holds no more than a stream's
window and `PIPE_HIGH_WATER`, so all circuits together at most 50 MB, if every end of them is hostile.

Sessions that are relayed themselves get no relaying: no chains, so no loops.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dht.limits import Buckets
from p2pnode.channels import Channels, Pipe, PipeBroken, Unreachable
from p2pnode.channels.links import origin_of
from p2pnode.channels.shares import network_of, youngest_of
from p2pnode.reach.errors import (
    BadRelayRequest,
    CircuitSpent,
    NoRelay,
    NotRegistered,
    RelayedAlready,
    RelayFull,
)
from p2pnode.reach.pacing import MAX_TICKET, Pacer
from protocol.contact import Address
from protocol.relay import KEY_BYTES, RELAY_SERVICE, Op, registered
from protocol.streams import ResetCode, TooManyStreams
from protocol.types import NodeKey

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_SECONDS: Final = 10.0
"""From the opening of a stream to the end of its head."""
ATTEMPTS_PER_SECOND: Final = 2.0
ATTEMPTS_BURST: Final = 60.0
"""Registrations and circuits that one address may ask for, refused ones included."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What strangers may use of this node by having it relay. Bytes count once, both ways together."""

    registrations: int = 256
    """Clients."""
    registrations_per_origin: int = 8
    """Of these, from one IPv4 address or IPv6 /64 network."""
    circuits: int = 64
    """Circuits at a time."""
    circuits_per_origin: int = 16
    """Of these, opened from one address."""
    circuits_per_node: int = 8
    """Of these, opened by one node key."""
    circuits_per_client: int = 24
    """Of these, to one client."""
    bytes_per_second: int = 1_000_000
    """Of all circuits together."""
    bytes_per_second_per_origin: int = 500_000
    """Of the circuits opened from one address."""
    bytes_per_circuit: int = 67_108_864
    """Of one circuit in all its life."""
    idle_seconds: float = 120.0
    """How long a circuit may rest."""


class _Registration:
    """A client that is registered."""

    __slots__ = ("circuits", "network", "origin", "pipe")

    def __init__(self, pipe: Pipe, endpoint: Address) -> None:
        self.pipe = pipe
        self.origin = origin_of(endpoint.host)
        self.network = network_of(endpoint, self.origin)
        self.circuits: dict[Pipe, _Circuit] = {}
        """By the client's ends."""


class Relay:
    """The relay of one node."""

    def __init__(self, channels: Channels, limits: RelayLimits | None = None, *, enabled: bool = True) -> None:
        """`enabled` may change: a node that nobody can reach relays for nobody."""
        self._channels = channels
        self._limits = limits or RelayLimits()
        self.enabled = enabled
        self.own: Callable[[], Sequence[Address]] = tuple
        """Where others reach this node: clients pass it on to those who look for them."""
        self._registered: dict[NodeKey, _Registration] = {}
        self._registered_from: Counter[str] = Counter()
        self._open: dict[_Circuit, None] = {}
        self._circuits_from: Counter[str] = Counter()
        self._circuits_by: Counter[NodeKey] = Counter()
        self._attempts: Buckets[str] = Buckets(ATTEMPTS_PER_SECOND, ATTEMPTS_BURST)
        self._pacer: Pacer[asyncio.Future[None]] = Pacer(
            rate=self._limits.bytes_per_second, client_rate=self._limits.bytes_per_second_per_origin
        )
        self._timer: asyncio.TimerHandle | None = None
        self.carried = 0
        """Bytes since the start."""
        self.refused = 0
        """Registrations and circuits since the start."""

    @property
    def registrations(self) -> int:
        """Clients that are registered."""
        return len(self._registered)

    @property
    def circuits(self) -> int:
        """Circuits that are open."""
        return len(self._open)

    async def register(self, pipe: Pipe) -> None:
        """Serve a REGISTER stream until it ends. Raises RelayFull, RelayedAlready, NoRelay, BadRelayRequest."""
        endpoint, origin = self._admit(pipe)
        limits, key = self._limits, pipe.peer
        mine = _Registration(pipe, endpoint)
        replaced = self._registered.get(key)
        # What it had before, and may not know to be dead, does not stand in its own way.
        others = self._registered_from[origin] - (replaced is not None and replaced.origin == origin)
        if others >= limits.registrations_per_origin:
            self._refuse("too many clients of one address")
        if replaced is None and len(self._registered) >= limits.registrations and not self._dismiss_for(mine.network):
            self._refuse("no place for another client")
        self._registered[key] = mine
        if replaced is not None:
            # The client has moved. What it had over its old session is dead, and the others should know now.
            for circuit in list(replaced.circuits):
                circuit.reset(ResetCode.CANCELLED)
            replaced.pipe.reset(ResetCode.CANCELLED)
        with _counted(self._registered_from, origin):
            try:
                pipe.write(registered(endpoint, self.own()))
                if await pipe.read():
                    raise BadRelayRequest("a registered client has nothing to say")
                pipe.end()
            finally:
                if self._registered.get(key) is mine:
                    del self._registered[key]

    async def connect(self, pipe: Pipe) -> None:
        """Serve a CONNECT stream. Raises RelayFull, NotRegistered, CircuitSpent, RelayedAlready, NoRelay."""
        endpoint, origin = self._admit(pipe)
        async with asyncio.timeout(HEAD_SECONDS):
            target = await pipe.read_exactly(KEY_BYTES)
        if target == pipe.peer:
            raise BadRelayRequest("a node asked for a circuit to itself")
        client = self._registered.get(target)
        if client is None:
            self.refused += 1
            raise NotRegistered
        limits = self._limits
        circuit = _Circuit(pipe, network_of(endpoint, origin), limits.bytes_per_circuit)
        if (
            self._circuits_from[origin] >= limits.circuits_per_origin
            or self._circuits_by[pipe.peer] >= limits.circuits_per_node
            or not _room_for(circuit, list(client.circuits.values()), limits.circuits_per_client)
            or not _room_for(circuit, list(self._open), limits.circuits)
        ):
            self._refuse("no place for another circuit")
        with _counted(self._circuits_from, origin), _counted(self._circuits_by, pipe.peer):
            self._open[circuit] = None
            try:
                await self._carry(circuit, client, origin)
            finally:
                del self._open[circuit]

    # Inside.

    def _admit(self, pipe: Pipe) -> tuple[Address, str]:
        """Where the peer is, and what it counts under, if it may ask at all."""
        endpoint = pipe.carrier_endpoint
        if endpoint is None:
            self.refused += 1
            raise RelayedAlready
        if not self.enabled:
            raise NoRelay
        origin = origin_of(endpoint.host)
        if not self._attempts.allow(origin, 1.0, _now()):
            self._refuse("one address asks too often")
        return endpoint, origin

    def _dismiss_for(self, network: str) -> bool:
        """End the youngest registration of the network that has most; False when that is not unfair to `network`."""
        key = youngest_of(((key, r.network) for key, r in self._registered.items()), network)
        if key is None:
            return False
        self._registered.pop(key).pipe.reset(RelayFull.code)
        return True

    def _refuse(self, why: str) -> None:
        self.refused += 1
        raise RelayFull(f"refused to relay: {why}")

    async def _carry(self, circuit: _Circuit, client: _Registration, origin: str) -> None:
        """Copy both ways until both have ended, one breaks, or the circuit is spent."""
        dialler = circuit.dialler
        try:
            incoming = client.pipe.sibling(RELAY_SERVICE, bytes((Op.INCOMING,)))
        except Unreachable as e:
            raise NotRegistered from e
        except TooManyStreams as e:
            raise RelayFull from e
        client.circuits[incoming] = circuit
        code: int = CircuitSpent.code
        copies: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._limits.idle_seconds) as rest:
                copies = [
                    asyncio.create_task(self._copy(dialler, incoming, origin, circuit, rest)),
                    asyncio.create_task(self._copy(incoming, dialler, origin, circuit, rest)),
                ]
                await asyncio.gather(*copies)
        except PipeBroken as broken:
            # Whoever refused says why; the other side is told the same.
            code = broken.code or NotRegistered.code
        except (CircuitSpent, TimeoutError):
            log.debug("a circuit is spent")
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            del client.circuits[incoming]
            dialler.reset(code)
            incoming.reset(code)

    async def _copy(self, source: Pipe, sink: Pipe, origin: str, circuit: _Circuit, rest: asyncio.Timeout) -> None:
        while data := await source.read():
            circuit.spend(len(data))
            await self._turn(origin, len(data))
            await sink.drain()
            sink.write(data)
            self.carried += len(data)
            rest.reschedule(_now() + self._limits.idle_seconds)
        sink.end()

    async def _turn(self, origin: str, size: int) -> None:
        """Return when it is this client's turn to send so much."""
        loop = asyncio.get_running_loop()
        ticket: asyncio.Future[None] = loop.create_future()
        self._pacer.ask(origin, min(size, MAX_TICKET), ticket, loop.time())
        self._grant()
        await ticket

    def _grant(self) -> None:
        loop = asyncio.get_running_loop()
        for ticket in self._pacer.granted(loop.time()):
            if not ticket.done():
                ticket.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait = self._pacer.wait(loop.time())
        if wait is not None:
            self._timer = loop.call_later(wait, self._grant)

    def close(self) -> None:
        """Grant nothing more; the circuits end with their sessions."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Circuit:
    """Who opened a circuit, and what it may still carry."""

    __slots__ = ("dialler", "dismissed", "left", "network")

    def __init__(self, dialler: Pipe, network: str, size: int) -> None:
        self.dialler = dialler
        self.network = network
        self.left = size
        self.dismissed = False

    def spend(self, size: int) -> None:
        """Take so many bytes. Raises CircuitSpent."""
        self.left -= size
        if self.left < 0:
            raise CircuitSpent


def _room_for(newcomer: _Circuit, among: Sequence[_Circuit], places: int) -> bool:
    """Whether there is a place, if need be that of the youngest circuit of the network that has most of them."""
    held = [circuit for circuit in among if not circuit.dismissed]
    if len(held) < places:
        return True
    youngest = youngest_of(((circuit, circuit.network) for circuit in held), newcomer.network)
    if youngest is None:
        return False
    youngest.dismissed = True
    youngest.dialler.reset(RelayFull.code)
    return True


@contextmanager
def _counted(counter: Counter[str] | Counter[NodeKey], key: str | NodeKey) -> Iterator[None]:
    """One more of `key` while the block runs; keys that count nothing are not kept."""
    counts: Counter[str | NodeKey] = counter  # type: ignore[assignment]  # the keys of each are of one kind
    counts[key] += 1
    try:
        yield
    finally:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]


def _now() -> float:
    return asyncio.get_running_loop().time()
