"""UDP for the DHT: a non-blocking socket for each version of IP, many datagrams per wake-up.

asyncio's own datagram transport reads one datagram per turn of the loop and copies addresses and buffers through two
layers; a plain socket with `add_reader` halves the cost per datagram (ADR 0005).

An IPv6 socket takes IPv6 only: one that takes both would show IPv4 peers under another spelling of their address.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from dht.contact import Address
from dht.errors import PortInUse
from dht.packet import MTU

BATCH: Final = 64
"""Datagrams read in one turn of the loop, so that a flood can't keep everything else from running."""
BUFFER: Final = 1 << 20
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  (a node of a public network)
WRITTEN_S: Final = 600.0
"""How long a router may remember whom we wrote to: UDP mappings rarely live longer than five minutes."""
MOST_WRITTEN: Final = 4_096
"""Addresses of each generation of them."""
PORT_ATTEMPTS: Final = 8
"""With port 0: how often a port is tried that turns out to be taken on another address."""

NO_SUCH_IP: Final = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT))
"""What binding says on a machine without that version of IP."""

log = logging.getLogger(__name__)

Receive = Callable[[bytes, Address], None]


class Transport(Protocol):
    """What carries datagrams of up to MTU bytes: UDP here, channels elsewhere. Delivery is not promised."""

    def send(self, datagram: bytes, address: Address) -> None:
        """Send or drop; never blocks, never raises."""

    @property
    def local(self) -> tuple[str, int]:
        """Where it listens."""

    def close(self) -> None:
        """Stop."""


def listening_hosts(host: str) -> tuple[str, ...]:
    """The addresses that a setting names: one, several with commas between, or `*` for all of IPv4 and of IPv6."""
    if host.strip() == "*":
        return EVERYWHERE
    return tuple(part.strip().removeprefix("[").removesuffix("]") for part in host.split(","))


class UdpTransport:
    """Bound UDP sockets on the running loop, all with one port number."""

    def __init__(self, host: str, port: int, receive: Receive) -> None:
        """Bind (port 0: any) at `host`, as `listening_hosts` reads it. Must be called on the loop that will serve it.

        Of `*`, what this machine does not have is left out. Raises PortInUse.
        """
        hosts = listening_hosts(host)
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._sockets = _bind(hosts, port, lenient=hosts == EVERYWHERE)
                break
            except PortInUse:
                if port or attempt + 1 == PORT_ATTEMPTS:
                    raise
        self._receive = receive
        self._sendto = {sock.family: sock.sendto for sock in reversed(self._sockets)}
        self._loop = asyncio.get_running_loop()
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), partial(self._readable, sock.recvfrom))
        self.dropped = 0
        self._written: set[str] = set()
        self._written_before: set[str] = set()
        self._ageing = self._loop.call_later(WRITTEN_S, self._age)

    @property
    def local(self) -> tuple[str, int]:
        """Where the first socket is bound."""
        name = self._sockets[0].getsockname()
        return name[0], name[1]

    @property
    def versions(self) -> frozenset[int]:
        """The versions of IP that it speaks."""
        return frozenset(6 if sock.family == socket.AF_INET6 else 4 for sock in self._sockets)

    def wrote_to(self, host: str) -> bool:
        """Whether something was sent to this address lately: routers may let its answers in, and no others."""
        return host in self._written or host in self._written_before

    def _age(self) -> None:
        """Forget what is older than twice WRITTEN_S: two sets cost a datagram less than a time for each address."""
        self._written_before, self._written = self._written, set()
        self._ageing = self._loop.call_later(WRITTEN_S, self._age)

    def send(self, datagram: bytes, address: Address) -> None:
        """Send or drop, as UDP does: a full buffer and an unreachable host both look like loss."""
        host = address[0]
        if host not in self._written:
            if len(self._written) >= MOST_WRITTEN:
                self._written.pop()
            self._written.add(host)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._sendto[family](datagram, address)
        except (OSError, KeyError):
            self.dropped += 1

    def _readable(self, recvfrom: Callable[[int], tuple[bytes, Address]]) -> None:
        receive = self._receive
        for _ in range(BATCH):
            try:
                datagram, address = recvfrom(MTU + 1)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier send; the socket lives on.
                self.dropped += 1
                continue
            if len(address) == 2:
                receive(datagram, address)
            elif not address[3]:
                receive(datagram, address[:2])
            else:
                # An address with a zone (link-local) means nothing to anybody else, and can't be passed on.
                self.dropped += 1

    def close(self) -> None:
        """Stop reading and close the sockets."""
        self._ageing.cancel()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()


def _bind(hosts: tuple[str, ...], port: int, *, lenient: bool) -> list[socket.socket]:
    """A socket for each host. `lenient`: one of them will do where this machine lacks a version of IP."""
    made: list[socket.socket] = []
    failure: OSError | None = None
    for host in hosts:
        try:
            made.append(_bind_one(host, made[0].getsockname()[1] if made else port))
        except OSError as e:
            failure = e
            if lenient and e.errno in NO_SUCH_IP:
                continue
            for sock in made:
                sock.close()
            raise PortInUse(f"can't listen on UDP {host}:{port}: {e.strerror}") from e
    if not made:
        raise PortInUse(f"can't listen on UDP {hosts}:{port}: no version of IP") from failure
    return made


def _bind_one(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
