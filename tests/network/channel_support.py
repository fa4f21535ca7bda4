"""Nodes with channels on loopback, and links that fail in chosen ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from p2pnode.channels import Channels, Dialer, Limits, Link, Service, dial_tcp
from p2pnode.clock import SystemClock
from protocol.contact import Address
from protocol.errors import Malformed, UnknownKind
from protocol.identity import SigningKey
from protocol.session import Settings
from protocol.types import Network

ECHO, REFUSE, VIOLATE, BREAK, STALL, GROW, WHO = range(1, 8)
PATIENCE = 10.0


class Node:
    """A node: its channels, its address, and what its services saw."""

    def __init__(
        self,
        seed: int,
        *,
        limits: Limits | None = None,
        network: Network = Network.REGTEST,
        dial: Dialer = dial_tcp,
        seconds: float = 30.0,
    ) -> None:
        self.key = SigningKey(bytes([seed]) * 32)
        self.addresses: list[Address] = []
        self.requests: list[bytes] = []
        self.stalled = asyncio.Event()
        self.cancelled = asyncio.Event()
        services = {
            ECHO: Service(self._echo, 1_000_000, 1_000_000),
            REFUSE: Service(self._refuse, 100, 100),
            VIOLATE: Service(self._violate, 100, 100),
            BREAK: Service(self._break, 100, 100),
            STALL: Service(self._stall, 100, 100, seconds),
            GROW: Service(self._grow, 100, 100),
            WHO: Service(self._who, 100, 100),
        }
        self.channels = Channels(self.key, network, services, limits=limits, clock=SystemClock(), dial=dial)

    async def listen(self, host: str = "127.0.0.1") -> Node:
        self.addresses = [Address(*await self.channels.listen(host, 0))]
        return self

    async def ask(
        self,
        other: Node,
        service: int = ECHO,
        payload: bytes = b"hello",
        *,
        addresses: list[Address] | None = None,
        timeout: float = PATIENCE,
        reply_limit: int = 1_000_000,
    ) -> bytes:
        return await self.channels.request(
            other.key.public,
            other.addresses if addresses is None else addresses,
            service,
            payload,
            timeout=timeout,
            reply_limit=reply_limit,
        )

    @property
    def session_count(self) -> int:
        return len(self.channels.sessions())

    async def _echo(self, peer: bytes, request: bytes) -> bytes:
        self.requests.append(request)
        return request

    async def _refuse(self, peer: bytes, request: bytes) -> bytes:
        raise UnknownKind

    async def _violate(self, peer: bytes, request: bytes) -> bytes:
        raise Malformed

    async def _break(self, peer: bytes, request: bytes) -> bytes:
        raise RuntimeError("a bug")

    async def _stall(self, peer: bytes, request: bytes) -> bytes:
        self.stalled.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def _grow(self, peer: bytes, request: bytes) -> bytes:
        return bytes(101)

    async def _who(self, peer: bytes, request: bytes) -> bytes:
        return peer


class FaultyLink:
    """A TCP link through a network that can be made to swallow everything, both ways."""

    def __init__(self, inner: Link) -> None:
        self._inner = inner
        self.dead = asyncio.Event()

    @property
    def remote(self) -> str:
        return self._inner.remote

    @property
    def origin(self) -> str:
        return self._inner.origin

    @property
    def endpoint(self) -> Address | None:
        return self._inner.endpoint

    @property
    def writable(self) -> bool:
        return self._inner.writable

    async def read(self) -> bytes:
        data = await self._inner.read()
        if self.dead.is_set():
            await asyncio.Event().wait()
        return data

    def write(self, data: bytes) -> None:
        if not self.dead.is_set():
            self._inner.write(data)

    async def drain(self) -> None:
        await self._inner.drain()

    async def close(self) -> None:
        await self._inner.close()


class PipeLink:
    """A link that is no socket: what one end writes, the other reads."""

    remote = "a pipe"
    origin = "pipes"
    endpoint = None
    writable = True

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.other = self

    @classmethod
    def pair(cls) -> tuple[PipeLink, PipeLink]:
        one, two = cls(), cls()
        one.other, two.other = two, one
        return one, two

    async def read(self) -> bytes:
        return await self.incoming.get()

    def write(self, data: bytes) -> None:
        self.other.incoming.put_nowait(data)

    async def drain(self) -> None:
        return

    async def close(self) -> None:
        self.other.incoming.put_nowait(b"")


async def eventually(holds: Callable[[], bool]) -> None:
    """Return as soon as `holds()`; fail when it does not come to that."""
    end = monotonic() + PATIENCE
    while not holds():
        assert monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.001)


def session_limits(**times: float) -> Limits:
    """Limits with other times of the session."""
    return Limits(session=Settings(**times))  # type: ignore[arg-type]
