"""A stream of a session as a pipe of bytes: what a service that does not fit into request and reply speaks through.

A pipe is also a `Link`, so that a session can ride on a stream of another session: that is what a circuit through a
relay is. Nothing is read ahead: the peer may send as much as the windows allow, and may send more only once `read` has
taken it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from p2pnode.channels.links import LINGER_SECONDS
from protocol.contact import Address
from protocol.errors import Malformed
from protocol.identity import node_text
from protocol.session import SessionOver
from protocol.streams import NoRoom, ResetCode, StreamOver
from protocol.types import NodeKey

PIPE_HIGH_WATER: Final = 65_536
"""Bytes waiting in a pipe above which it is no longer writable."""


class PipeBroken(ConnectionError):
    """The peer reset the stream, or the session ended."""

    def __init__(self, code: int | None) -> None:
        """`code` is that of the RESET; None when the session ended."""
        super().__init__("the session ended" if code is None else f"the stream was reset with code {code}")
        self.code = code


class Carrier(Protocol):
    """What a pipe needs of its connection."""

    @property
    def peer(self) -> NodeKey:
        """The peer's node key."""
        ...

    @property
    def endpoint(self) -> Address | None:
        """The peer's IP address and port; None when the session itself is relayed."""
        ...

    def open_pipe(self, service: int, head: bytes) -> Pipe:
        """Another pipe on the same session. Raises Unreachable, TooManyStreams."""
        ...

    def pipe_send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Send on a stream. Raises SessionOver, StreamOver or NoRoom."""
        ...

    def pipe_taken(self, stream: int, size: int) -> None:
        """So many received bytes were taken."""
        ...

    def pipe_backlog(self, stream: int) -> int:
        """Bytes that wait to be sent."""
        ...

    def pipe_reset(self, stream: int, code: int) -> None:
        """Abandon a stream."""
        ...


class Pipe:
    """One end of a stream; made by a connection."""

    def __init__(self, carrier: Carrier, stream: int) -> None:
        self._carrier = carrier
        self.stream = stream
        self._pieces: deque[bytes] = deque()
        self._rest = b""  # taken from the session, but not by the reader
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._over = asyncio.Event()
        self._received_end = False
        self._sent_end = False
        self._closed = False
        self.broken: PipeBroken | None = None
        """Why nothing more can come or go."""

    # What it is.

    @property
    def peer(self) -> NodeKey:
        """The node key at the other end of the session that carries the pipe."""
        return self._carrier.peer

    @property
    def carrier_endpoint(self) -> Address | None:
        """Where that session's peer is; None when that session is relayed as well."""
        return self._carrier.endpoint

    @property
    def endpoint(self) -> Address | None:
        """As `Link.endpoint`: who speaks through a pipe may be anywhere."""
        return None

    @property
    def remote(self) -> str:
        """As `Link.remote`."""
        return f"relay {node_text(self.peer)[:16]}"

    @property
    def origin(self) -> str:
        """As `Link.origin`: all that one relay brings counts as one origin."""
        return f"relay {self.peer.hex()}"

    def sibling(self, service: int, head: bytes) -> Pipe:
        """Open another pipe to the same peer on the same session. Raises Unreachable, TooManyStreams."""
        return self._carrier.open_pipe(service, head)

    # Link.

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises PipeBroken, an OSError."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        while not self._pieces:
            if self.broken is not None:
                raise self.broken
            if self._received_end or self._closed:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        data = self._pieces.popleft()
        self._carrier.pipe_taken(self.stream, len(data))
        return data

    async def read_exactly(self, size: int) -> bytes:
        """`size` bytes. Raises Malformed when the body ends before, PipeBroken."""
        parts = bytearray()
        while len(parts) < size:
            data = await self.read()
            if not data:
                raise Malformed("a stream ends within its head")
            parts += data
        self._rest = bytes(parts[size:])
        return bytes(parts[:size])

    @property
    def writable(self) -> bool:
        """As `Link.writable`."""
        return self._carrier.pipe_backlog(self.stream) <= PIPE_HIGH_WATER

    def write(self, data: bytes) -> None:
        """As `Link.write`; what is written to a broken pipe is lost, and reading tells."""
        self._send(data, end=False)

    def end(self) -> None:
        """Say that nothing more will be written."""
        if not self._sent_end:
            self._sent_end = True
            self._send(b"", end=True)

    async def drain(self) -> None:
        """Return when writable. Raises PipeBroken."""
        while not self.writable and self.broken is None:
            self._drained.clear()
            await self._drained.wait()
        if self.broken is not None:
            raise self.broken

    async def close(self) -> None:
        """End this side; the other gets LINGER_SECONDS to end its own, then the stream is reset."""
        self.end()
        self._closed = True
        self._drop()
        self._arrived.set()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._over.wait()
        except TimeoutError:
            self.reset(ResetCode.CANCELLED)

    def reset(self, code: int) -> None:
        """Abandon the stream with a ResetCode or an error's code. Without effect on one that is over."""
        if self.broken is None and not self._over.is_set():
            self._carrier.pipe_reset(self.stream, code)
            self.on_broken(None)

    def _send(self, data: bytes, *, end: bool) -> None:
        if self.broken is not None:
            return
        try:
            self._carrier.pipe_send(self.stream, data, end=end)
        except (SessionOver, StreamOver, NoRoom):
            self.on_broken(None)

    # What the connection tells.

    def on_data(self, data: bytes, *, end: bool) -> None:
        """The peer sent more."""
        if data:
            if self._closed:
                self._carrier.pipe_taken(self.stream, len(data))
            else:
                self._pieces.append(data)
        self._received_end |= end
        self._arrived.set()

    def on_sent(self) -> None:
        """Something was sent."""
        if self.writable:
            self._drained.set()

    def on_broken(self, code: int | None) -> None:
        """The stream was reset, or its session ended."""
        if self.broken is None:
            self.broken = PipeBroken(code)
        self.on_over()
        self._drop()

    def on_over(self) -> None:
        """Both sides have ended."""
        self._over.set()
        self._arrived.set()
        self._drained.set()

    def _drop(self) -> None:
        """Forget what nobody will read; the session's window must not stay the smaller for it."""
        while self._pieces:
            self._carrier.pipe_taken(self.stream, len(self._pieces.popleft()))
