"""UDP for the DHT: one non-blocking socket, many datagrams per wake-up.

asyncio's own datagram transport reads one datagram per turn of the loop and copies addresses and buffers through two
layers; a plain socket with `add_reader` halves the cost per datagram (ADR 0005).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol

from dht.contact import Address
from dht.errors import PortInUse
from dht.packet import MTU

BATCH: Final = 64
"""Datagrams read in one turn of the loop, so that a flood can't keep everything else from running."""
BUFFER: Final = 1 << 20

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


class UdpTransport:
    """A bound UDP socket on the running loop."""

    def __init__(self, host: str, port: int, receive: Receive) -> None:
        """Bind (port 0: any). Raises PortInUse. Must be called on the loop that will serve it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, port))
        except OSError as e:
            self._socket.close()
            raise PortInUse(f"can't listen on UDP {host}:{port}: {e.strerror}") from e
        self._receive = receive
        self._recvfrom = self._socket.recvfrom
        self._sendto = self._socket.sendto
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self.dropped = 0

    @property
    def local(self) -> tuple[str, int]:
        """Where the socket is bound."""
        name = self._socket.getsockname()
        return name[0], name[1]

    def send(self, datagram: bytes, address: Address) -> None:
        """Send or drop, as UDP does: a full buffer and an unreachable host both look like loss."""
        try:
            self._sendto(datagram, address)
        except OSError:
            self.dropped += 1

    def _readable(self) -> None:
        receive, recvfrom = self._receive, self._recvfrom
        for _ in range(BATCH):
            try:
                datagram, address = recvfrom(MTU + 1)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier send; the socket lives on.
                self.dropped += 1
                continue
            receive(datagram, address if len(address) == 2 else address[:2])

    def close(self) -> None:
        """Stop reading and close the socket."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
