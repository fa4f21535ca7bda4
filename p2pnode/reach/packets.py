"""Channel service 2: the DHT's packets over streams, for nodes that no datagram reaches (SPEC section 10.7).

Theory of operation. A stream begins with the TCP port on which its opener listens (0: none), 2 bytes; then both sides
send packets as `length u16 ‖ packet`, the very bytes that would travel by UDP. So all of the DHT's own checks hold here
too, and the channel adds one: a question counts only in the name of the node that the channel has proved.

There is one stream with a node; who needs it opens it, both use it, and it rests for a minute and a half before it is
let go. As with UDP nothing here promises delivery: what does not fit into a window, or finds no channel, is dropped,
and `dht.rpc` asks again. A question that is repeated while its stream lives is not sent twice.

Where the opener listens is its own word. It is dialled there once, under a key made for that, before anybody is told of
it; until then, and with port 0, it is a client, reached only by its own stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dht.contact import ByChannel
from dht.limits import Buckets
from dht.packet import MTU, RID_BYTES
from p2pnode.channels import Channels, Pipe, PipeBroken
from p2pnode.channels.links import plain_host
from p2pnode.channels.shares import network_of, youngest_of
from p2pnode.reach.errors import BadPacketStream, DirectOnly, TooManyStreamsOpen
from protocol.contact import Address
from protocol.errors import P2PError
from protocol.streams import ResetCode
from protocol.types import NodeKey

PACKET_SERVICE: Final = 2
IDLE_SECONDS: Final = 90.0
"""A watch is renewed every 30 seconds at most: a stream that is of use does not rest so long."""
HEAD_SECONDS: Final = 10.0
MOST_STREAMS: Final = 128
"""That others have opened here, at a time; shared fairly by networks when all are taken."""
MOST_WAITING: Final = 32
"""Packets that wait for a channel to be made."""
REMEMBERED: Final = 64
"""Questions per stream that are not sent twice."""
REQUEST: Final = 0xD1
CHECKS_PER_SECOND: Final = 0.05
CHECKS_BURST: Final = 4.0
"""Dials per address to see whether its word is true."""

Receive = Callable[[bytes, ByChannel], None]
Check = Callable[[NodeKey, Address], Awaitable[bool]]
"""Whether the node with this key answers at an address."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where the node at the other end of a stream is."""

    host: str
    port: int
    back: bool


class _Link:
    """One stream."""

    __slots__ = ("asked", "pipe", "used_at", "where")

    def __init__(self, pipe: Pipe, where: _Where, now: float) -> None:
        self.pipe = pipe
        self.where = where
        self.used_at = now
        self.asked: deque[bytes] = deque(maxlen=REMEMBERED)
        """Ids of the questions that went this way."""


class Packets:
    """`dht.udp.Transport` over channels, and the service that answers."""

    def __init__(
        self,
        channels: Channels,
        receive: Receive,
        unreachable: Callable[[NodeKey], None],
        verified: Callable[[ByChannel], None],
        *,
        listening: Callable[[], int] = lambda: 0,
        check: Check | None = None,
    ) -> None:
        """`receive` gets each packet and where it came from.

        `unreachable` is told of nodes that can't be dialled, `verified` of those that were dialled back with success.
        `listening`: the TCP port under which others reach this node now, 0 while they don't. `check` dials others.
        """
        self._channels = channels
        self._receive = receive
        self._unreachable = unreachable
        self._verified = verified
        self._listening = listening
        self._check = check
        self._links: dict[NodeKey, list[_Link]] = {}
        self._waiting: dict[NodeKey, list[bytes]] = {}
        self._served: dict[Pipe, str] = {}
        """Streams that others opened, oldest first, each with its network."""
        self._checks: Buckets[str] = Buckets(CHECKS_PER_SECOND, CHECKS_BURST)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def streams(self) -> int:
        """Streams in use."""
        return sum(len(links) for links in self._links.values())

    @property
    def local(self) -> tuple[str, int]:
        """Nowhere: channels do the listening."""
        return "", 0

    def send(self, packet: bytes, address: ByChannel) -> None:
        """Send or drop (`Transport.send`)."""
        links = self._links.get(address.key)
        if links:
            self._write(links[0], packet)
        elif not address.back and not self._closed:
            waiting = self._waiting.get(address.key)
            if waiting is None:
                self._waiting[address.key] = [packet]
                self._spawn(self._open(address))
            elif len(waiting) < MOST_WAITING and packet not in waiting:
                waiting.append(packet)

    def close(self) -> None:
        """Let go of every stream (`Transport.close`)."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    async def serve(self, pipe: Pipe) -> None:
        """Serve one stream (`channels.PipeService`). Raises DirectOnly, TooManyStreamsOpen, BadPacketStream."""
        endpoint = pipe.carrier_endpoint
        if endpoint is None:
            raise DirectOnly
        network = network_of(endpoint, pipe.origin)
        if len(self._served) >= MOST_STREAMS:
            dismissed = youngest_of(self._served.items(), network)
            if dismissed is None:
                raise TooManyStreamsOpen
            del self._served[dismissed]
            dismissed.reset(TooManyStreamsOpen.code)
        self._served[pipe] = network
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                port = int.from_bytes(await pipe.read_exactly(2), "big")
            host = plain_host(endpoint.host)
            link = _Link(pipe, _Where(host, endpoint.port, back=True), _now())
            links = self._links.setdefault(pipe.peer, [])
            for older in [known for known in links if known.where.back]:
                # One stream is enough: whoever opens another has lost the first.
                older.pipe.reset(ResetCode.CANCELLED)
            if port:
                self._spawn(self._verify(link, port))
            await self._carry(link, opened_here=False)
        finally:
            self._served.pop(pipe, None)

    # Inside.

    def _write(self, link: _Link, packet: bytes) -> None:
        if packet[0] == REQUEST:
            rid = packet[33 : 33 + RID_BYTES]
            if rid in link.asked:
                return  # a stream loses nothing: it is on its way
            link.asked.append(rid)
        if link.pipe.writable:
            link.used_at = _now()
            link.pipe.write(len(packet).to_bytes(2, "big") + packet)

    async def _open(self, address: ByChannel) -> None:
        """Make a stream to a node and send what waits for it."""
        key, where = address.key, Address(address.host, address.port)
        try:
            pipe = await self._channels.pipe(key, (where,), PACKET_SERVICE, self._listening().to_bytes(2, "big"))
        except P2PError as e:
            log.debug("no stream for packets: %s", e.detail)
            self._waiting.pop(key, None)
            if not self._closed:
                self._unreachable(key)
            return
        except asyncio.CancelledError:
            self._waiting.pop(key, None)
            raise
        link = _Link(pipe, _Where(address.host, address.port, back=False), _now())
        for packet in self._waiting.pop(key, ()):
            self._write(link, packet)
        try:
            await self._carry(link, opened_here=True)
        except (OSError, P2PError) as e:
            log.debug("a stream for packets ended: %s", e)
            if isinstance(e, PipeBroken) and e.code is not None and not self._closed:
                self._unreachable(key)  # it said no

    async def _carry(self, link: _Link, *, opened_here: bool) -> None:
        """Hand on what comes by a stream until it ends or rests. Raises PipeBroken, BadPacketStream."""
        key, pipe = link.pipe.peer, link.pipe
        links = self._links.setdefault(key, [])
        links.append(link)
        reading = asyncio.ensure_future(self._read(link, opened_here=opened_here))
        try:
            while not reading.done():
                rest = link.used_at + IDLE_SECONDS - _now()
                if rest <= 0:
                    break
                await asyncio.wait({reading}, timeout=rest)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, PipeBroken, P2PError):
                await reading
            links.remove(link)
            if not links and self._links.get(key) is links:
                del self._links[key]
            pipe.end()
            pipe.reset(ResetCode.CANCELLED)

    async def _read(self, link: _Link, *, opened_here: bool) -> None:
        pipe, data = link.pipe, bytearray()
        while True:
            while len(data) >= 2:
                size = int.from_bytes(data[:2], "big")
                if not 0 < size <= MTU:
                    raise BadPacketStream
                if len(data) < 2 + size:
                    break
                packet = bytes(data[2 : 2 + size])
                del data[: 2 + size]
                link.used_at = _now()
                where = link.where
                # What a node asks on a stream that we opened tells nothing new of where it is.
                back = where.back or (opened_here and packet[0] == REQUEST)
                self._receive(packet, ByChannel(where.host, where.port, pipe.peer, back))
            more = await pipe.read()
            if not more:
                return
            data += more

    async def _verify(self, link: _Link, port: int) -> None:
        """See whether the opener of a stream is reached where it says that it listens."""
        host = link.where.host
        if self._check is None or not self._checks.allow(host, 1.0, _now()):
            return
        if await self._check(link.pipe.peer, Address(host, port)):
            link.where = _Where(host, port, back=False)
            self._verified(ByChannel(host, port, link.pipe.peer))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("a stream for packets failed", exc_info=bug)


def _now() -> float:
    return asyncio.get_running_loop().time()
