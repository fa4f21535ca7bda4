"""Frames over a byte stream, for what is too much for datagrams.

The daemon gives the market encrypted channels (`Stream` is all it must offer). `TcpFrames` is the plain one: enough
where records prove themselves and nobody may know what is read, as in tests and between nodes of one machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from dht.contact import Contact
from dht.errors import BadPacket
from dht.storage import Storage
from dht.sync import FRAME, answer

IDLE_S: Final = 30.0


class Stream(Protocol):
    """A two-way stream of frames of up to 65,500 bytes."""

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the other side is slow. Raises OSError when the stream is broken."""

    async def receive(self) -> bytes:
        """The next frame. Raises EOFError at the end, OSError when the stream is broken."""

    async def close(self) -> None:
        """Let go of it."""


OpenStream = Callable[[Contact], Awaitable[Stream]]
"""Opens a stream to a node. Raises OSError."""


class TcpFrames:
    """`length u16 ‖ frame` over a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, contact: Contact) -> TcpFrames:
        """Connect to the TCP port that has the number of the node's UDP port. Raises OSError."""
        async with asyncio.timeout(5):
            return cls(*await asyncio.open_connection(contact.ip, contact.port))

    async def send(self, frame: bytes) -> None:
        """Send one frame."""
        self._writer.write(len(frame).to_bytes(2, "big") + frame)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next frame. Raises EOFError or OSError."""
        size = int.from_bytes(await self._reader.readexactly(2), "big")
        if size > FRAME:
            raise BadPacket("a frame larger than any may be")
        return await self._reader.readexactly(size)

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


async def serve_stream(stream: Stream, storage: Storage, unix: Callable[[], int]) -> None:
    """Answer sync messages until the other side ends, is idle for 30 seconds or breaks the rules; closes the stream."""
    try:
        while True:
            async with asyncio.timeout(IDLE_S):
                message = await stream.receive()
            for frame in answer(message, storage, unix()):
                async with asyncio.timeout(IDLE_S):
                    await stream.send(frame)
    except (EOFError, OSError, TimeoutError, BadPacket):
        return
    finally:
        await stream.close()
