"""NAT-PMP: asking the default gateway for a port (RFC 6886). Two requests of twelve bytes; no library is needed."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from protocol.contact import Address

PORT: Final = 5351
TRIES: Final = (0.25, 0.5, 1.0)
"""Seconds to wait for each sending (section 3.1 asks for nine; a router on the same cable answers the first)."""
ROUTES: Final = Path("/proc/net/route")
EXTERNAL: Final = b"\x00\x00"
OP_UDP: Final = 1
OP_TCP: Final = 2
_RTF_GATEWAY: Final = 2
_MAP: Final = struct.Struct(">BBHHHI")
_MAPPED: Final = struct.Struct(">BBHIHHI")
_SEEN: Final = struct.Struct(">BBHI4s")


class NatPmpFailed(OSError):
    """The gateway does not speak NAT-PMP, or refuses."""


def gateway(routes: str | None = None) -> str | None:
    """The default gateway's IPv4 address; None where it can't be told (only Linux says it in a file)."""
    if routes is None:
        try:
            routes = ROUTES.read_text()
        except OSError:
            return None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        try:
            if len(fields) > 3 and fields[1] == "00000000" and int(fields[3], 16) & _RTF_GATEWAY:
                return str(IPv4Address(int(fields[2], 16).to_bytes(4, "little")))
        except (ValueError, OverflowError):
            continue  # no line of a routing table
    return None


async def map_port(router: str, port: int, seconds: int, server_port: int = PORT) -> Address:
    """Map `port`, TCP and UDP, for `seconds`; where others reach it. Raises NatPmpFailed, having mapped nothing.

    The same number or nothing: the DHT believes the address that our datagrams come from.
    """
    seen = _SEEN.unpack(await _ask(router, EXTERNAL, _SEEN.size, server_port))
    for op in (OP_UDP, OP_TCP):
        answer = await _ask(router, _MAP.pack(0, op, 0, port, port, seconds), _MAPPED.size, server_port)
        _, _, _, _, internal, external, _ = _MAPPED.unpack(answer)
        if (internal, external) != (port, port):
            await unmap_port(router, port, server_port)
            raise NatPmpFailed("the router has another port to give only")
    return Address(str(IPv4Address(seen[-1])), port)


async def unmap_port(router: str, port: int, server_port: int = PORT) -> None:
    """Give both mappings back (section 3.4: a lifetime of zero). Raises NatPmpFailed."""
    for op in (OP_UDP, OP_TCP):
        await _ask(router, _MAP.pack(0, op, 0, port, 0, 0), _MAPPED.size, server_port)


async def _ask(router: str, request: bytes, size: int, port: int) -> bytes:
    """The router's answer of `size` bytes to a request. Raises NatPmpFailed."""
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(answers), remote_addr=(router, port))
    try:
        for wait in TRIES:
            transport.sendto(request)
            try:
                async with asyncio.timeout(wait):
                    answer = await answers.get()
            except TimeoutError:
                continue
            if len(answer) != size or answer[0] != 0 or answer[1] != request[1] | 0x80:
                raise NatPmpFailed("the router's answer makes no sense")
            if result := int.from_bytes(answer[2:4], "big"):
                raise NatPmpFailed(f"the router refuses (NAT-PMP result {result})")
            return answer
    finally:
        transport.close()
    raise NatPmpFailed("the router does not speak NAT-PMP")


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, answers: asyncio.Queue[bytes]) -> None:
        self._answers = answers

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if self._answers.qsize() < len(TRIES):
            self._answers.put_nowait(data)

    def error_received(self, _exc: Exception) -> None:
        """Nobody listens there: silence says the same, a little later."""
