"""All sessions of this node: one per peer, dialled on demand, reused, closed when idle. Requests by node key.

Two sessions with one peer can arise when both dial at once, or when one side lost the old one without the other
noticing. Then requests go to the one that `_prefer` names, on both sides the same, and the other is closed as soon as
nothing runs on it; a request that crosses its closing is known not to have been seen, and made again on the first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final, NamedTuple

from dht.limits import Buckets
from p2pnode.channels.connection import AnyService, Connection
from p2pnode.channels.errors import CannotListen, NotTaken, TimedOut, Unreachable
from p2pnode.channels.guard import DialGuard
from p2pnode.channels.links import READ_BYTES, Dialer, Link, TcpLink, dial_tcp, is_public
from p2pnode.channels.paths import Path, interleaved
from p2pnode.channels.pipes import Pipe
from p2pnode.channels.shares import gives_way, network_of
from p2pnode.clock import Clock
from protocol.contact import Address, NodeContact
from protocol.errors import P2PError
from protocol.identity import BadId, SigningKey, node_text, x25519_of
from protocol.relay import RELAY_SERVICE, connect
from protocol.session import CloseCode, Role, Session, Settings
from protocol.types import Network, NodeKey

HEAD_START: Final = 0.25
"""Seconds by which one address is ahead of the next (RFC 8305)."""
RACE_SECONDS: Final = 10.0
"""Two sessions made within this time of each other come from dialling at once; later ones replace earlier ones."""
MAX_RELAYS: Final = 4
"""Relays of one peer that are tried."""
MAX_MISTRUSTED: Final = 1_024
MAX_ATTEMPTS: Final = 3
"""Sessions that one request may find closing before it gives up."""
KEY_BYTES: Final = 32
IDLE_ENOUGH: Final = 10.0
"""Seconds of silence after which a session without a stream gives up its place to a newcomer."""
HANDSHAKE_ENOUGH: Final = 3.0
"""Seconds after which one that has not come to be does so."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What this node lets its peers use. Times are in seconds."""

    max_inbound: int = 256
    """Sessions that others may have opened to this node."""
    max_inbound_per_origin: int = 16
    """The same from one IPv4 address or one IPv6 /64 network."""
    inbound_per_second: float = 10.0
    inbound_burst: float = 100.0
    """How often others may begin a session from one such origin: each handshake costs a millisecond or two. Loopback
    and private addresses, which the nodes of a test network share, are not counted."""
    max_inbound_per_relay: int = 32
    """The same through one relay."""
    dial_seconds: float = 15.0
    """How long the addresses of a peer are tried."""
    session: Settings = field(default_factory=lambda: Settings(idle_after=300.0))
    """Of each session."""


class SessionView(NamedTuple):
    """An open session, for the node's owner to see."""

    peer: NodeKey
    remote: str
    outgoing: bool
    age_seconds: float
    relayed: bool = False
    """Whether it runs through a relay."""


class _Dial:
    """The attempt to reach a peer, which all who want it share."""

    __slots__ = ("arrival", "paths", "task")

    def __init__(self, paths: frozenset[Path], arrival: asyncio.Future[Connection]) -> None:
        self.paths = paths
        self.arrival = arrival
        self.task: asyncio.Task[None] | None = None


class Channels:
    """This node's encrypted channels."""

    def __init__(
        self,
        node_key: SigningKey,
        network: Network,
        services: Mapping[int, AnyService],
        *,
        limits: Limits | None = None,
        clock: Clock,
        dial: Dialer = dial_tcp,
    ) -> None:
        """Nothing happens before `listen` or `request`. `clock` is asked for randomness; time is the event loop's.

        `dial` is how addresses are reached: through a proxy, say. Raises ValueError for services that exceed `limits`.
        """
        self._key = node_key
        self._network = network
        self._services = services
        self._limits = limits or Limits()
        self._body_limits = {number: service.limits for number, service in services.items()}
        self._clock = clock
        self._dialer = dial
        self._guard = DialGuard()
        self._mistrusted: dict[tuple[NodeKey, NodeKey], float] = {}
        """(peer, relay) to when a session through that relay left a request without an answer."""
        self._servers: list[asyncio.Server] = []
        self._runs: dict[Connection, asyncio.Task[None]] = {}
        self._by_peer: dict[NodeKey, Connection] = {}
        self._dials: dict[NodeKey, _Dial] = {}
        self._origins: Counter[str] = Counter()
        self._inbound = 0
        self._begun: Buckets[str] = Buckets(self._limits.inbound_per_second, self._limits.inbound_burst)
        self._listeners: list[Callable[[NodeKey], None]] = []
        self._on_inbound: list[Callable[[Address], None]] = []
        self._closing = False

    async def unlisten(self) -> None:
        """Accept no more sessions; those that are stay."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept sessions over TCP; port 0 picks a free one. Returns the address in use. Raises CannotListen."""
        try:
            server = await asyncio.start_server(self._on_tcp, host, port, limit=READ_BYTES)
            if not server.sockets:
                # asyncio passes over a version of IP that the machine does not have.
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        except OSError as e:
            raise CannotListen(f"can't listen on {host} port {port}: {e.strerror or e}") from e
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        return bound[0], bound[1]

    def subscribe(self, listener: Callable[[NodeKey], None]) -> None:
        """Call `listener` with the peer's node key whenever a peer makes a session with us."""
        self._listeners.append(listener)

    def subscribe_inbound(self, listener: Callable[[Address], None]) -> None:
        """Call `listener` with where a session came from that somebody opened to us straight, not through a relay."""
        self._on_inbound.append(listener)

    def sessions(self) -> tuple[SessionView, ...]:
        """The sessions in use, oldest first."""
        now = asyncio.get_running_loop().time()
        return tuple(
            SessionView(c.peer, c.remote, c.outgoing, now - c.established_at, c.endpoint is None)
            for c in self._runs
            if c.is_usable
        )

    async def request(
        self,
        peer: NodeKey,
        addresses: Sequence[Address],
        service: int,
        payload: bytes,
        *,
        timeout: float,
        reply_limit: int = 65_536,
        relays: Sequence[NodeContact] = (),
    ) -> bytes:
        """Ask a peer's service; its reply, of at most `reply_limit` bytes. An open session is used, else one dialled.

        Paths are tried side by side: `addresses` first, then through each of `relays` that the peer keeps a session to.

        Raises Unreachable, TimedOut after `timeout` seconds, PeerRefused, PeerUnable, TooManyStreams, and TooLarge for
        a reply over the limit.
        """
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        began = loop.time()
        try:
            async with asyncio.timeout(timeout):
                for _ in range(MAX_ATTEMPTS):
                    connection = None
                    paths: list[Path] = [*addresses, *self._best_first(peer, relays)]
                    connection = await self._connection(peer, paths)
                    began = loop.time()
                    try:
                        return await connection.request(service, payload, reply_limit)
                    except NotTaken:
                        continue
        except TimeoutError as e:
            if connection is not None and connection.heard_at < began:
                self._distrust(connection)
            raise TimedOut from e
        raise Unreachable("the peer closed every session before it took the request")

    async def pipe(self, peer: NodeKey, addresses: Sequence[Address], service: int, head: bytes) -> Pipe:
        """A pipe to a peer's service, whose first bytes are `head`. Raises Unreachable, TooManyStreams."""
        for _ in range(MAX_ATTEMPTS):
            connection = await self._connection(peer, addresses)
            try:
                return connection.open_pipe(service, head)
            except NotTaken:
                continue
        raise Unreachable("the peer closed every session before it took the request")

    def leave(self, gone: Callable[[str], bool]) -> None:
        """Close the sessions whose own end has an address that is `gone`: this node has moved."""
        for connection in list(self._runs):
            host = connection.local_host
            if host is not None and gone(host):
                connection.close(CloseCode.REPLACED)

    async def close(self) -> None:
        """Close every session and listener, and wait until all is cleaned up. Requests fail with Unreachable."""
        self._closing = True
        for server in self._servers:
            server.close()
        dials = [dial.task for dial in self._dials.values() if dial.task is not None]
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        for connection in list(self._runs):
            connection.close(CloseCode.SHUTDOWN)
        await asyncio.gather(*self._runs.values(), return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def accept(self, link: Link) -> bool:
        """Be the responder on a link that a peer opened; False, and the link is left alone, when there are too many."""
        limits = self._limits
        per_origin = limits.max_inbound_per_relay if link.endpoint is None else limits.max_inbound_per_origin
        if (
            self._closing
            or self._origins[link.origin] >= per_origin
            or self._too_often(link)
            or (self._inbound >= limits.max_inbound and not self._make_room(link))
        ):
            log.debug("refused a connection from %s: too many", link.remote)
            return False
        self._inbound += 1
        self._origins[link.origin] += 1
        self._start(link, None)
        return True

    # What connections tell (Owner).

    def connected(self, connection: Connection) -> None:
        """Take a new session into use, or the old one further, if there is one with the same peer."""
        peer = connection.peer
        old = self._by_peer.get(peer)
        if old is None or not old.is_usable:
            self._by_peer[peer] = connection
        elif self._prefer(old, connection) is connection:
            self._by_peer[peer] = connection
            old.retire()
        else:
            connection.retire()
        dial = self._dials.get(peer)
        if dial is not None and not dial.arrival.done():
            dial.arrival.set_result(self._by_peer[peer])
        if not connection.outgoing:
            if connection.endpoint is not None:
                for inbound in self._on_inbound:
                    inbound(connection.endpoint)
            for listener in self._listeners:
                listener(peer)

    def disconnected(self, connection: Connection) -> None:
        """Stop using a session."""
        if connection.disappointed and connection.relay is not None:
            self._mistrust(connection.peer, connection.relay)
        if self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]

    # Inside.

    def _prefer(self, old: Connection, new: Connection) -> Connection:
        """Which of two sessions with a peer both sides keep.

        If they crossed, the one that the node with the lower key dialled; else the newer, because the peer would not
        have made it had it not lost the older.
        """
        if old.outgoing == new.outgoing or new.established_at - old.established_at > RACE_SECONDS:
            return new
        return old if old.outgoing == (self._key.public < old.peer) else new

    def _too_often(self, link: Link) -> bool:
        """Whether sessions begin too often where the link comes from; what a relay brings, the relay has counted."""
        if link.endpoint is None or not is_public(link.endpoint.host):
            return False
        return not self._begun.allow(link.origin, 1.0, asyncio.get_running_loop().time())

    def _make_room(self, newcomer: Link) -> bool:
        """Close an inbound session, of the network that has most; False when nobody has to give way to `newcomer`.

        One that is idle, or whose handshake hangs, goes before those in use: for what is in use costs a network that
        holds many places a stream on each, and else nobody would ever get in.
        """
        now = asyncio.get_running_loop().time()
        inbound = [c for c in self._runs if not c.outgoing and not c.is_over]
        held = Counter(_network_of(c) for c in inbound)
        spare = [
            (-held[_network_of(c)], since, c)
            for c in inbound
            if (since := c.idle_since if c.is_usable else c.began_at) is not None
            and since < now - (IDLE_ENOUGH if c.is_usable else HANDSHAKE_ENOUGH)
        ]
        if not spare:
            heaviest = gives_way(held, _network_of(newcomer))
            # The youngest: whoever came before the crowd is more likely to be honest.
            spare = [(0, -c.began_at, c) for c in inbound if _network_of(c) == heaviest]
        if not spare:
            return False
        min(spare, key=lambda item: item[:2])[2].close(CloseCode.IDLE)
        return True

    def _distrust(self, connection: Connection) -> None:
        """Use another session from now on: this one's peer has fallen silent."""
        connection.disappointed = True
        self.disconnected(connection)
        connection.retire()

    def _mistrust(self, peer: NodeKey, relay: NodeKey) -> None:
        """Try that relay last: it may let handshakes pass and nothing else."""
        if len(self._mistrusted) >= MAX_MISTRUSTED:
            del self._mistrusted[next(iter(self._mistrusted))]
        self._mistrusted.pop((peer, relay), None)
        self._mistrusted[peer, relay] = asyncio.get_running_loop().time()

    def _best_first(self, peer: NodeKey, relays: Sequence[NodeContact]) -> list[NodeContact]:
        """The relays of a peer, those that failed it last, and of these the latest last."""
        return sorted(relays[:MAX_RELAYS], key=lambda relay: self._mistrusted.get((peer, relay.node), -inf))

    async def _connection(self, peer: NodeKey, paths: Sequence[Path]) -> Connection:
        """A usable session with the peer. Raises Unreachable."""
        while True:
            if self._closing:
                raise Unreachable("this node is shutting down")
            connection = self._by_peer.get(peer)
            if connection is not None and connection.is_usable:
                return connection
            dial = self._dials.get(peer) or self._dial(peer, paths)
            try:
                return await asyncio.shield(dial.arrival)
            except Unreachable:
                # Another request's dial may have known fewer paths than this one.
                if frozenset(paths) <= dial.paths:
                    raise

    def _dial(self, peer: NodeKey, paths: Sequence[Path]) -> _Dial:
        """Begin to dial a peer. Raises Unreachable when that is hopeless."""
        if peer == self._key.public:
            raise Unreachable("that is this node itself")
        if not paths:
            raise Unreachable(f"no address of {node_text(peer)} is known")
        try:
            x25519_of(peer)
        except BadId as e:
            raise Unreachable(f"{node_text(peer)} is not a usable node key") from e
        loop = asyncio.get_running_loop()
        dial = _Dial(frozenset(paths), loop.create_future())
        self._dials[peer] = dial
        dial.task = loop.create_task(self._reach(peer, paths))
        # A callback, because a task that is cancelled before it began runs none of its own code.
        dial.task.add_done_callback(lambda task: self._on_dialled(peer, dial, task))
        return dial

    async def _reach(self, peer: NodeKey, paths: Sequence[Path]) -> None:
        """Make a session with the peer; `connected` hears of it. Raises Unreachable."""
        seconds = self._limits.dial_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._race(peer, interleaved(paths))
        except TimeoutError as e:
            raise Unreachable(f"{node_text(peer)} can't be reached within {seconds:g} seconds") from e

    def _on_dialled(self, peer: NodeKey, dial: _Dial, task: asyncio.Task[None]) -> None:
        """Tell those who wait, if no session came of it."""
        del self._dials[peer]
        error = Unreachable("this node is shutting down") if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, P2PError):
            log.error("dialling failed", exc_info=error)
            error = Unreachable()
        if not dial.arrival.done():
            dial.arrival.set_exception(error or Unreachable())
            dial.arrival.exception()  # its waiters may have given up

    async def _race(self, peer: NodeKey, paths: list[Path]) -> None:
        """Try paths side by side, each a little after the one before, until one leads to the peer.

        TCP alone proves nothing, so an attempt includes the handshake. Raises Unreachable with every reason.
        """
        running: set[asyncio.Task[None]] = set()
        reasons = []
        try:
            while paths or running:
                if paths:
                    running.add(asyncio.create_task(self._attempt(peer, paths.pop(0))))
                done, running = await asyncio.wait(
                    running, timeout=HEAD_START if paths else None, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in done:
                    try:
                        return attempt.result()
                    except (OSError, P2PError) as e:
                        reasons.append(str(e))
            raise Unreachable(f"{node_text(peer)} can't be reached: {'; '.join(reasons)}")
        finally:
            for attempt in running:
                attempt.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _attempt(self, peer: NodeKey, path: Path) -> None:
        if isinstance(path, Address):
            await self._attempt_direct(peer, path)
        else:
            await self._attempt_relayed(peer, path)

    async def _attempt_direct(self, peer: NodeKey, address: Address) -> None:
        self._guard.begin(address, asyncio.get_running_loop().time())
        await self._handshake(await self._dialer(address), peer)
        self._guard.succeeded(address)

    async def _attempt_relayed(self, peer: NodeKey, relay: NodeContact) -> None:
        if relay.node in (peer, self._key.public):
            raise Unreachable("a node is no relay to itself")
        circuit = await self.pipe(relay.node, relay.addresses, RELAY_SERVICE, connect(peer))
        try:
            await self._handshake(circuit, peer)
        except P2PError as e:
            code = None if circuit.broken is None else circuit.broken.code
            why = e.detail if code is None else f"the relay refused with code {code}"
            raise Unreachable(f"not through {circuit.remote}: {why}") from e

    async def _handshake(self, link: Link, peer: NodeKey) -> None:
        connection = self._start(link, peer)
        try:
            await asyncio.shield(connection.established)
        except asyncio.CancelledError:
            connection.close()
            raise

    def _start(self, link: Link, peer: NodeKey | None) -> Connection:
        """Give a link a session and a life: as the initiator if `peer` is given, else as the responder."""
        loop = asyncio.get_running_loop()
        session = Session(
            Role.RESPONDER if peer is None else Role.INITIATOR,
            self._key,
            peer,
            partial(self._clock.random, KEY_BYTES),
            self._network,
            loop.time(),
            services=self._body_limits,
            settings=self._limits.session,
        )
        connection = Connection(session, link, self._services, self)
        self._runs[connection] = loop.create_task(self._run(connection))
        return connection

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            del self._runs[connection]
            if not connection.outgoing:
                self._inbound -= 1
                self._origins[connection.origin] -= 1
                if not self._origins[connection.origin]:
                    del self._origins[connection.origin]

    def _on_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.accept(TcpLink(reader, writer)):
            writer.transport.abort()


def _network_of(end: Link | Connection) -> str:
    return network_of(end.endpoint, end.origin)
