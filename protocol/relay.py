"""What is said on a stream of the relay service (SPEC section 7): fixed layouts, no more than forty bytes.

A stream of service 4 begins with one byte that says what it is for. REGISTER and PROBE are a question and an answer;
CONNECT and INCOMING are the two ends of a *circuit*, and every byte after their head belongs to the two nodes that
talk through it. A refusal is a RESET of the stream with an error's code.

All integers are big endian. An *endpoint* is `family (4 or 6) ‖ address (4 or 16) ‖ port u16`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from protocol.contact import Address
from protocol.errors import Malformed
from protocol.types import NodeKey

RELAY_SERVICE: Final = 4
KEY_BYTES: Final = 32
_V4: Final = 4
_V6: Final = 6
_ADDRESS_BYTES: Final = {_V4: 4, _V6: 16}


class Op(IntEnum):
    """What a stream is for: the first byte of its body."""

    REGISTER = 1
    """Client to relay: bring me those who ask for my node key, as long as this stream is open."""
    CONNECT = 2
    """Dialler to relay: followed by a node key; bring me to that node."""
    INCOMING = 3
    """Relay to client: somebody asked for you, and is at the other end of this stream."""
    PROBE = 4
    """Client to helper: followed by a port; can you reach me there, at the address that you see me at?"""


class Reached(IntFlag):
    """The answer to a PROBE: how the client was reached."""

    NOT = 0
    TCP = 1
    UDP = 2


class Probed(NamedTuple):
    """The whole answer to a PROBE."""

    reached: Reached
    seen: Address


def pack_endpoint(address: Address) -> bytes:
    """An endpoint with a numeric host. Raises ValueError for a name."""
    ip = ip_address(address.host)
    return bytes((ip.version,)) + ip.packed + address.port.to_bytes(2, "big")


def read_endpoint(data: bytes) -> Address:
    """The endpoint that `data` is. Raises Malformed."""
    size = _ADDRESS_BYTES.get(data[0], 0) if data else 0
    if not size or len(data) != 1 + size + 2:
        raise Malformed("an endpoint is neither IPv4 nor IPv6")
    host = IPv4Address(data[1:-2]) if size == _ADDRESS_BYTES[_V4] else IPv6Address(data[1:-2])
    return Address(str(host), int.from_bytes(data[-2:], "big"))


class Registered(NamedTuple):
    """The whole answer to a REGISTER."""

    seen: Address
    """Where the relay sees the client."""
    own: tuple[Address, ...]
    """Where the relay says that others reach it, at most MAX_OWN."""


MAX_OWN: Final = 4


def registered(seen: Address, own: Sequence[Address]) -> bytes:
    """The answer to a REGISTER. Of `own`, names are left out."""
    numeric = [address for address in own if ":" in address.host or address.host.replace(".", "").isdigit()][:MAX_OWN]
    return pack_endpoint(seen) + bytes((len(numeric),)) + b"".join(map(pack_endpoint, numeric))


def read_registered(data: bytes) -> Registered:
    """The answer to a REGISTER, read. Raises Malformed."""
    seen, at = _endpoint_at(data, 0)
    count = data[at] if at < len(data) else MAX_OWN + 1
    if count > MAX_OWN:
        raise Malformed("the answer to a registration names too many addresses, or does not say how many")
    own: list[Address] = []
    at += 1
    for _ in range(count):
        address, at = _endpoint_at(data, at)
        own.append(address)
    if at != len(data):
        raise Malformed("the answer to a registration goes on")
    return Registered(seen, tuple(own))


def _endpoint_at(data: bytes, at: int) -> tuple[Address, int]:
    size = _ADDRESS_BYTES.get(data[at], 0) if at < len(data) else 0
    end = at + 1 + size + 2
    return read_endpoint(data[at:end]), end


def connect(target: NodeKey) -> bytes:
    """The head of a CONNECT stream."""
    return bytes((Op.CONNECT,)) + target


def probe(port: int) -> bytes:
    """The body of a PROBE."""
    return bytes((Op.PROBE,)) + port.to_bytes(2, "big")


def read_port(data: bytes) -> int:
    """The port of a PROBE. Raises Malformed."""
    port = int.from_bytes(data, "big")
    if len(data) != 2 or not port:
        raise Malformed("a probe names no port")
    return port


def probed(reached: Reached, seen: Address) -> bytes:
    """The answer to a PROBE."""
    return bytes((reached,)) + pack_endpoint(seen)


def read_probed(data: bytes) -> Probed:
    """The answer to a PROBE, read. Raises Malformed."""
    if not data or data[0] > Reached.TCP | Reached.UDP:
        raise Malformed("the answer to a probe has an unknown result")
    return Probed(Reached(data[0]), read_endpoint(data[1:]))
