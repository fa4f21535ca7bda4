"""What a session rides on: an ordered, reliable stream of bytes. TCP here; a proxy or a relayed stream fits as well.

A link knows nothing of what it carries. `write` never blocks and never refuses: the caller asks `writable` first, and
waits for `drain` when it says no. That is all the backpressure there is to it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol

from dht.contact import Scope, scope_of
from protocol.contact import Address

READ_BYTES: Final = 262_144
"""The most that one read returns."""
HIGH_WATER: Final = 262_144
"""Bytes waiting for the socket above which a link is no longer writable."""
LINGER_SECONDS: Final = 1.0
"""How long closing waits for the peer to take what was written."""
RESOLVED_DELAY: Final = 0.25
"""Head start of one address of a host name over the next (RFC 8305)."""
MAX_RESOLVED: Final = 4
"""Addresses of one name that are tried."""


class Link(Protocol):
    """One connection to one peer."""

    @property
    def remote(self) -> str:
        """Where it leads, for logs and for the owner's eyes."""
        ...

    @property
    def origin(self) -> str:
        """What to count it under when connections per source are limited."""
        ...

    @property
    def endpoint(self) -> Address | None:
        """The other end's IP address and port; None when there is something between that hides it."""
        ...

    @property
    def writable(self) -> bool:
        """Whether little enough is waiting to write more."""
        ...

    async def read(self) -> bytes:
        """The next bytes, at least one; none at the end. Raises OSError when the connection broke."""
        ...

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before."""
        ...

    async def drain(self) -> None:
        """Return when writable again. Raises OSError when the connection broke."""
        ...

    async def close(self) -> None:
        """Close in good order if the peer lets us, within LINGER_SECONDS. Never raises for a broken connection."""
        ...


Dialer = Callable[[Address], Awaitable[Link]]
"""Connects to an address. Raises OSError when that fails."""


class TcpLink:
    """A link over a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take over a connected pair of streams."""
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        host, port = (writer.get_extra_info("peername") or ("", 0))[:2]
        self._endpoint = Address(plain_host(host), port) if host and port else None
        self._local_host = plain_host((writer.get_extra_info("sockname") or ("",))[0])
        self._remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._origin = origin_of(host)

    @property
    def remote(self) -> str:
        """The other end's IP address and port."""
        return self._remote

    @property
    def origin(self) -> str:
        """The other end's IPv4 address, or IPv6 network."""
        return self._origin

    @property
    def endpoint(self) -> Address | None:
        """As `Link.endpoint`."""
        return self._endpoint

    @property
    def local_host(self) -> str:
        """The IP address of this end."""
        return self._local_host

    @property
    def writable(self) -> bool:
        """Whether the socket keeps up."""
        return self._transport.get_write_buffer_size() <= HIGH_WATER

    async def read(self) -> bytes:
        """As `Link.read`."""
        return await self._reader.read(READ_BYTES)

    def write(self, data: bytes) -> None:
        """As `Link.write`."""
        self._transport.write(data)

    async def drain(self) -> None:
        """As `Link.drain`."""
        await self._writer.drain()

    async def close(self) -> None:
        """As `Link.close`."""
        self._writer.close()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._writer.wait_closed()
        except OSError:  # a TimeoutError is one as well
            self._transport.abort()


async def dial_tcp(address: Address, source: str | None = None) -> Link:
    """Connect over TCP, from our address `source` if it is given and of the same version of IP. Raises OSError.

    A host name's addresses are tried side by side.
    """
    local = (source, 0) if source is not None and ip_version(source) == ip_version(address.host) else None
    delay = None if ip_version(address.host) else RESOLVED_DELAY
    try:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, limit=READ_BYTES, happy_eyeballs_delay=delay, local_addr=local
        )
    except UnicodeError as e:
        raise OSError(f"{address.host} is not a host name") from e
    return TcpLink(reader, writer)


class NotPublic(OSError):
    """The address is not one of the public network."""


async def dial_public(address: Address, source: str | None = None) -> Link:
    """Connect over TCP, but only to addresses of the public network: for addresses that strangers name.

    A name is resolved first and judged by what it resolves to; else a record could lead into the networks that only we
    can reach. Raises NotPublic, OSError.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError as e:
        raise OSError(f"{address.host} is not a host name") from e
    hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))[:MAX_RESOLVED]
    if not hosts or not all(is_public(host) for host in hosts):
        raise NotPublic(f"{address.host} is not an address of the public network")
    failure: OSError | None = None
    for host in hosts:
        try:
            return await dial_tcp(Address(host, address.port), source)
        except OSError as e:
            failure = e
    raise failure or NotPublic("no address")


def is_public(host: str) -> bool:
    """Whether the numeric `host` is an address that anybody can reach."""
    return scope_of(plain_host(host)) is Scope.GLOBAL


def plain_host(host: str) -> str:
    """A numeric host without its zone, and an IPv4 address that is dressed as IPv6 as itself; names as they are."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def origin_of(host: str) -> str:
    """The unit that one party controls: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


def ip_version(host: str) -> int:
    """4 or 6 for an IP address, 0 for a name."""
    try:
        return ip_address(host).version
    except ValueError:
        return 0
