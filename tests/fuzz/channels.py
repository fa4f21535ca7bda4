"""What comes by streams of channels, and to the API: relays, packets, books, probes, requests of pages and programs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from dht.errors import BadPacket
from dht.storage import Storage
from dht.stream import TcpFrames, serve_stream
from dht.sync import Index, Puller
from p2pnode.api import schema, server
from p2pnode.booksync import PipeFrames
from p2pnode.channels import PipeBroken
from p2pnode.reach.packets import Packets
from p2pnode.reach.service import RelayDoor
from protocol.contact import Address
from protocol.errors import P2PError
from tests.fuzz.servers import Writer, run

TOPIC = b"t" * 20


@dataclass(eq=False)
class Channel:
    """A pipe whose other end has said all that it will."""

    data: bytes
    peer: bytes = bytes(32)
    carrier_endpoint: Address = Address("127.0.0.1", 4_000)  # noqa: RUF009  (frozen)
    origin: str = "127.0.0.1"
    writable: bool = True

    async def read(self) -> bytes:
        """A little at a time."""
        size = 1 + len(self.data) % 7 * 40
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    async def read_exactly(self, size: int) -> bytes:
        """So many bytes. Raises PipeBroken."""
        if len(self.data) < size:
            raise PipeBroken(None)
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    async def drain(self) -> None:
        """Nobody listens."""

    def end(self) -> None:
        """Nobody listens."""

    def reset(self, code: int) -> None:
        """Nobody listens."""

    async def close(self) -> None:
        """Done."""


class _Served:
    """Whom a door leads to."""

    async def register(self, pipe: Channel) -> None:
        """Nothing is read."""

    async def connect(self, pipe: Channel) -> None:
        """The key of the node that is wanted."""
        await pipe.read_exactly(32)

    async def answer(self, pipe: Channel) -> None:
        """A port."""
        await pipe.read_exactly(2)

    def incoming(self, pipe: Channel) -> None:
        """Nothing is read."""


def pipes(data: bytes) -> None:
    """Streams of a channel from their first byte on: relays, packets of the DHT, books."""
    served: Any = _Served()
    storage = Storage(secret=b"s" * 16)

    async def talk() -> None:
        door = RelayDoor(served, served, served)
        channels: Any = None
        packets = Packets(channels, lambda _packet, _address: None, lambda _key: None, lambda _address: None)
        works: tuple[Callable[[Any], Awaitable[None]], ...] = (
            door.serve,
            packets.serve,
            lambda pipe: serve_stream(PipeFrames(pipe), storage, lambda: 1),
        )
        for work in works:
            with suppress(P2PError, PipeBroken):
                await work(Channel(data))
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        writer: Any = Writer(lambda _: None)
        with suppress(EOFError, BadPacket):
            while True:
                await TcpFrames(reader, writer).receive()

    run(talk)


def reconcile(data: bytes) -> None:
    """Both sides of a comparison of two sets, the other side's messages being these: n × (length u16 ‖ message)."""
    index = Index([(bytes([i]) * 8, bytes([i ^ 1]) * 8) for i in range(64)])
    puller = Puller(TOPIC, index)
    puller.start()
    at = 0
    with suppress(BadPacket):
        while at + 2 <= len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            puller.heard(data[at + 2 : end])
            at = end
    for tag in puller.missing[:9]:
        index.set(tag, tag)
        assert index.has(tag, tag)


REQUESTS = [
    found
    for found in vars(schema).values()
    if isinstance(found, type) and issubclass(found, schema.Request) and found is not schema.Request
]


def api_requests(data: bytes) -> None:
    """Requests to the API: type u8 ‖ content type u8 ‖ body; the same bytes as a query and as an id."""
    if len(data) < 2:
        return
    kind = REQUESTS[data[0] % len(REQUESTS)]
    content = "application/json" if data[1] % 2 else data[1:9].decode("latin-1").translate({10: 32, 13: 32})
    text = data[2:400].decode("utf-8", "replace")
    request = make_mocked_request("POST", str(URL.build(path="/", query=text[:200])), {hdrs.CONTENT_TYPE: content})
    for call in (
        lambda: server._parse_body(request, data[2:], kind),
        lambda: server.parse_query(request, kind),
        lambda: server._parse_id(text),
        lambda: server.check_site(request),
    ):
        with suppress(P2PError):
            call()


CHANNEL_TARGETS: dict[str, Callable[[bytes], None]] = {"pipes": pipes, "reconcile": reconcile, "api": api_requests}


def channel_seeds(name: str, plain: list[bytes]) -> list[bytes]:
    """What a target starts from. `plain`: all that the vectors hold."""
    match name:
        case "pipes":
            packet = b"\x10\x92" + len(plain[0]).to_bytes(2, "big") + plain[0]
            frame = b"\0\x15\3" + TOPIC
            return [bytes([op]) + bytes(40) for op in range(6)] + [packet, frame, frame * 3, b"\xff\xff"]
        case "reconcile":
            whole = b"\2\0" + bytes(8) + b"\xff" * 8 + bytes(12)
            leaf = b"\2\1" + bytes(8) + b"\xff" * 8 + b"\0\2" + b"\5" * 8 + bytes(8) + b"\x77" * 16
            return [
                b"".join(len(m).to_bytes(2, "big") + m for m in ms) for ms in ([whole], [leaf], [whole, leaf, whole])
            ]
        case _:
            bodies = (b"{}", b"[]", b'{"amount":1,"currency":"EUR","id":"%s"}' % (b"ab" * 32), b"a=1&b=2")
            return [bytes([kind, 1]) + body for kind in range(len(REQUESTS)) for body in bodies]
