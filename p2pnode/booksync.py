"""Channel service 3: whole markets over encrypted streams, from those who hold them (SPEC section 10.6).

`dht.market` and `dht.sync` know what is said; here is what they say it over. A frame travels in a pipe as
`length u16 ‖ frame`. A holder serves whom it does not know, so it meters: streams at a time (shared fairly by networks
when all are taken), messages per stream, and bytes per address group. Who asks too much finds its stream closed and
turns to another holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dht.contact import Contact, Scope, group_of, scope_of
from dht.errors import BadPacket
from dht.limits import Buckets
from dht.storage import Storage
from dht.stream import Stream, serve_stream
from dht.sync import FRAME
from p2pnode.channels import Channels, Pipe
from p2pnode.channels.shares import network_of, youngest_of
from protocol.contact import Address
from protocol.errors import P2PError
from protocol.streams import ResetCode

BOOK_SERVICE: Final = 3
DIAL_SECONDS: Final = 5.0
MESSAGE_COST: Final = 4_096
"""Bytes that answering one message counts as, beside those of the answer: a holder sums up a shard for it."""


@dataclass(frozen=True, slots=True)
class BookLimits:
    """What readers may take of this node."""

    streams: int = 64
    """At a time."""
    messages: int = 64
    """Per stream; a reconciliation takes fewer than 30."""
    burst_bytes: float = 64_000_000.0
    """By one address group: some ten whole markets of 10,000 offers."""
    bytes_per_second: float = 256_000.0
    """How fast that grows again."""


class PipeFrames:
    """`dht.stream.Stream` over a pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._data = bytearray()

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the peer is slow. Raises PipeBroken, an OSError."""
        self._pipe.write(len(frame).to_bytes(2, "big") + frame)
        await self._pipe.drain()

    async def receive(self) -> bytes:
        """The next frame. Raises EOFError at the end, PipeBroken, BadPacket."""
        size = int.from_bytes(await self._take(2), "big")
        if size > FRAME:
            raise BadPacket("a frame larger than any may be")
        return await self._take(size)

    async def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            data = await self._pipe.read()
            if not data:
                raise EOFError
            self._data += data
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    async def close(self) -> None:
        """Let go of it."""
        await self._pipe.close()


class _Metered:
    """A stream whose reader may take so much."""

    def __init__(self, inner: Stream, messages: int, charge: Callable[[int], bool]) -> None:
        self._inner = inner
        self._messages = messages
        self._charge = charge

    async def receive(self) -> bytes:
        """As `Stream.receive`; the end, too, once the reader has asked enough."""
        if self._messages == 0 or not self._charge(MESSAGE_COST):
            raise EOFError
        self._messages -= 1
        return await self._inner.receive()

    async def send(self, frame: bytes) -> None:
        """As `Stream.send`."""
        if not self._charge(len(frame)):
            raise EOFError
        await self._inner.send(frame)

    async def close(self) -> None:
        """As `Stream.close`."""
        await self._inner.close()


class BookSync:
    """Both ends of the service."""

    def __init__(
        self, channels: Channels, storage: Storage, unix: Callable[[], int], limits: BookLimits | None = None
    ) -> None:
        """`storage` is the DHT node's, `unix` gives its seconds."""
        self._channels = channels
        self._storage = storage
        self._unix = unix
        self._limits = limits or BookLimits()
        self._streams: dict[Pipe, str] = {}
        """With the network that each is read from, oldest first."""
        self._taken: Buckets[bytes] = Buckets(self._limits.bytes_per_second, self._limits.burst_bytes)

    async def open(self, holder: Contact) -> Stream:
        """A stream to a holder (`dht.stream.OpenStream`). Raises OSError when it can't be reached."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                # Holders are servers of the DHT: others reach them where the DHT does, over TCP.
                pipe = await self._channels.pipe(holder.key, (Address(holder.ip, holder.port),), BOOK_SERVICE, b"")
        except P2PError as e:
            raise ConnectionError(e.detail) from e
        return PipeFrames(pipe)

    async def serve(self, pipe: Pipe) -> None:
        """Serve one stream (`channels.PipeService`)."""
        stream: Stream = PipeFrames(pipe)
        network = network_of(pipe.carrier_endpoint, pipe.origin)
        if len(self._streams) >= self._limits.streams:
            # Streams cost nothing to hold open: who holds most of them gives one to a reader from elsewhere.
            dismissed = youngest_of(self._streams.items(), network)
            if dismissed is None:
                await stream.close()
                return
            del self._streams[dismissed]
            dismissed.reset(ResetCode.BUSY)
        self._streams[pipe] = network
        try:
            await serve_stream(_Metered(stream, self._limits.messages, self._meter_of(pipe)), self._storage, self._unix)
        finally:
            self._streams.pop(pipe, None)

    def _meter_of(self, pipe: Pipe) -> Callable[[int], bool]:
        where = pipe.carrier_endpoint
        if where is None:
            key = pipe.origin.encode()
        elif scope_of(where.host) is not Scope.GLOBAL:
            # The nodes of a test network share one address.
            return lambda _: True
        else:
            key = group_of(where.host)
        clock = asyncio.get_running_loop().time
        return lambda cost: self._taken.allow(key, cost, clock())
