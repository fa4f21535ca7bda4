"""Who a node is and where it is reached: ids bound to keys, the static puzzle, compact contacts, address groups.

A node is its Ed25519 key. Its 160-bit id is a hash of the key, so an id can't be chosen, and a second hash of the key
must begin with a number of zero bits (S/Kademlia's static puzzle), so that trying keys until one lands near a target
costs 2^bits as much. Addresses are facts about a node, never its identity.

A `Contact` is a `kademlia` Node (that package's XOR arithmetic and buckets work on it) which also knows its key and its
packed form. Contacts are immutable and interned by packed form: parsing twenty of them is twenty dictionary look-ups.

One node may be had in several ways: by IPv4, by IPv6 and, where no datagrams pass, by a stream of a channel. Each is
a contact of its own with the same id, and has a `path` of its own, under which its round trips are kept.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias

from kademlia.node import Node

from dht.errors import BadContact, BadPacket
from protocol.errors import P2PError
from protocol.identity import parse_node, x25519_of
from protocol.types import Network

ID_BYTES: Final = 20
ID_BITS: Final = 160
PUZZLE_BITS: Final[dict[Network, int]] = {
    Network.MAINNET: 16,
    Network.TESTNET: 12,
    Network.SIGNET: 12,
    Network.REGTEST: 4,
}
"""Zero bits that the puzzle hash of a node key must begin with: about 1.3 s of one core for 16 in Python."""

_V4: Final = 4
_V6: Final = 6
PACKED_V4: Final = 1 + 32 + 4 + 2
PACKED_V6: Final = 1 + 32 + 16 + 2
_MAX_INTERNED: Final = 65_536

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out to the public (RFC 4291)."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 as an IPv6 network sees it (RFC 6052)."""
_DOCUMENTATION: Final = ipaddress.IPv6Network("3fff::/20")
"""Of newer date than some Pythons (RFC 9637)."""

Address: TypeAlias = Any
"""What a transport sends to: `(host, port)` for UDP, `ByChannel`, or another hashable thing in a simulation."""


class ByChannel(NamedTuple):
    """The far end of a channel stream that carries packets: a node key that the channel has proved."""

    host: str
    port: int
    """TCP; of a stream that the node itself opened, the port that it came from, where nobody listens."""
    key: bytes
    back: bool = False
    """The node is reached only by the stream that it opened itself."""


class Scope(IntEnum):
    """How far an address reaches."""

    UNUSABLE = 0
    LOOPBACK = 1
    PRIVATE = 2
    GLOBAL = 3


class Via(IntEnum):
    """How packets get to a contact; added to the IP version in its packed form."""

    UDP = 0
    CHANNEL = 0x10
    """By a stream of a channel to its TCP port: no datagram reaches it."""
    BACK = 0x20
    """By the stream that it opened itself, and no other way. Never in a table, never told to anybody."""


_SIZES: Final = {
    _V4: PACKED_V4,
    _V6: PACKED_V6,
    _V4 | Via.CHANNEL: PACKED_V4,
    _V6 | Via.CHANNEL: PACKED_V6,
}
"""Bytes of a packed contact by its first one."""


def node_id(key: bytes) -> bytes:
    """The 20-byte DHT id of a 32-byte node key."""
    return blake2b(key, digest_size=ID_BYTES, person=b"p2pnode/dht-id").digest()


def puzzle_zero_bits(key: bytes) -> int:
    """How many zero bits the puzzle hash of `key` begins with."""
    value = int.from_bytes(blake2b(key, digest_size=8, person=b"p2pnode/dht-pow").digest(), "big")
    return 64 - value.bit_length()


@lru_cache(maxsize=8_192)
def plain_host(host: str) -> str:
    """A numeric host in its one spelling: an IPv4 address that is dressed as IPv6 as itself; a name as it is."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip)


@lru_cache(maxsize=8_192)
def scope_of(host: str) -> Scope:
    """How far the numeric address `host` reaches; UNUSABLE for names, multicast and the like."""
    try:
        ip = ipaddress.ip_address(plain_host(host))
    except ValueError:
        return Scope.UNUSABLE
    if ip.is_multicast or ip.is_unspecified or ip == ipaddress.IPv4Address("255.255.255.255"):
        return Scope.UNUSABLE
    if ip.is_loopback:
        return Scope.LOOPBACK
    return Scope.GLOBAL if _is_global(ip) else Scope.PRIVATE


def _is_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether anybody can reach it. What stands for an IPv4 address in another dress is judged by that one."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    dressed = ip.sixtofour or (ipaddress.IPv4Address(ip.packed[12:]) if ip in _NAT64 else None)
    if dressed is not None:
        return _is_global(dressed)
    # Python takes all that is not reserved for public: site-local addresses, those of translators, and the unassigned.
    return ip.is_global and ip in _UNICAST and ip not in _DOCUMENTATION


@lru_cache(maxsize=8_192)
def group_of(host: str) -> bytes:
    """The address group that quotas count by: an IPv4 /24 or an IPv6 /48. Any other address is its own."""
    try:
        ip = ipaddress.ip_address(plain_host(host))
    except ValueError:
        return host.encode()[:64]
    return ip.packed[:3] if ip.version == _V4 else ip.packed[:6]


@lru_cache(maxsize=8_192)
def host_in(group: bytes) -> str:
    """The first address of a group."""
    if len(group) == 3:
        return str(ipaddress.IPv4Address(group + b"\0"))
    return str(ipaddress.IPv6Address(group.ljust(16, b"\0")[:16]))


class Contact(Node):  # type: ignore[misc]  # kademlia ships no types
    """A node's key, id and UDP address. Equal by key and address; immutable by convention."""

    id: bytes
    ip: str
    port: int
    long_id: int

    def __init__(self, key: bytes, host: str, port: int, via: Via | None = None) -> None:
        """Make the contact of a 32-byte node key at a numeric `host`. Raises BadContact when it can't be one.

        `via`: how packets get there; None: as datagrams.
        """
        host = plain_host(host)
        super().__init__(node_id(key), host, port)
        if len(key) != 32 or not 0 < port < 65_536 or scope_of(host) is Scope.UNUSABLE or "%" in host:
            raise BadContact(f"{host}:{port} is not an address a node can have")
        self.key = key
        self.via = via or Via.UDP
        self.version = _V6 if ":" in host else _V4
        self.address: Address = ByChannel(host, port, key, self.via is Via.BACK) if self.via else (host, port)
        self.group = group_of(host)
        self.scope = scope_of(host)
        self.path = path_of(key, self.version, self.via)
        self.packed = _pack(key, host, port, self.via)
        self._curve: bytes | None = None

    @property
    def curve(self) -> bytes:
        """The X25519 form of the key. Raises BadContact for a key that has none."""
        if self._curve is None:
            try:
                self._curve = x25519_of(self.key)
            except P2PError as e:
                raise BadContact("a node key that is no curve point") from e
        return self._curve

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contact) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"Contact({self.key.hex()[:12]}@{self.ip}:{self.port}{f' {self.via.name}' if self.via else ''})"


def path_of(key: bytes, version: int, via: Via) -> bytes:
    """What round trips, tokens and suspicions are kept under: a node, had in one way."""
    return key if version == _V4 and not via else key + bytes((version | via,))


def contact_at(key: bytes, address: Address) -> Contact:
    """The contact of a node that a packet came from. Raises BadContact."""
    via = Via.UDP
    if isinstance(address, ByChannel):
        via = Via.BACK if address.back else Via.CHANNEL
    return intern_contact(Contact(key, address[0], address[1], via))


def _pack(key: bytes, host: str, port: int, via: Via) -> bytes:
    packed = pack_address(host, port)
    return bytes((packed[0] | via,)) + key + packed[1:]


@lru_cache(maxsize=8_192)
def pack_address(host: str, port: int) -> bytes:
    """`family (4 or 6) ‖ address ‖ port as u16`, 7 or 19 bytes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tag = bytes([_V6 if family == socket.AF_INET6 else _V4])
    return tag + socket.inet_pton(family, host) + port.to_bytes(2, "big")


def unpack_address(data: bytes) -> tuple[str, int]:
    """The inverse of `pack_address`; bytes after it are ignored. Raises BadPacket."""
    if len(data) >= 7 and data[0] == _V4:
        return socket.inet_ntop(socket.AF_INET, data[1:5]), int.from_bytes(data[5:7], "big")
    if len(data) >= 19 and data[0] == _V6:
        return socket.inet_ntop(socket.AF_INET6, data[1:17]), int.from_bytes(data[17:19], "big")
    raise BadPacket("an address that is neither IPv4 nor IPv6")


_interned: dict[bytes, Contact] = {}


def unpack_contact(packed: bytes) -> Contact:
    """The contact of exactly one packed form. Raises BadPacket or BadContact."""
    contact = _interned.get(packed)
    if contact is None or contact.via is Via.BACK:
        if _SIZES.get(packed[0] if packed else 0) != len(packed):
            raise BadPacket("a contact that is too short, too long or of no known kind")
        via = Via(packed[0] & 0xF0)
        host, port = unpack_address(bytes((packed[0] & 0x0F,)) + packed[33:])
        contact = Contact(packed[1:33], host, port, via)
        if contact.packed != packed:
            raise BadContact("an IPv4 address that is dressed as IPv6")
        contact = intern_contact(contact)
    return contact


def intern_contact(contact: Contact) -> Contact:
    """The one shared object of this contact. The table is dropped when full: it is a cache, not a registry."""
    if len(_interned) >= _MAX_INTERNED:
        _interned.clear()
    return _interned.setdefault(contact.packed, contact)


def unpack_contacts(data: bytes, offset: int, limit: int) -> tuple[list[Contact], int]:
    """`count u8 ‖ packed...` at `offset`: the contacts and the offset after them.

    Raises BadPacket when the bytes end early, the family is unknown or there are more than `limit`. Contacts at
    unusable addresses are left out.
    """
    try:
        count = data[offset]
        offset += 1
        if count > limit:
            raise BadPacket("more contacts than were asked for")
        out: list[Contact] = []
        for _ in range(count):
            size = _SIZES.get(data[offset])
            if size is None:
                raise BadPacket("a contact of no known kind")
            end = offset + size
            packed = data[offset:end]
            if len(packed) != size:
                raise BadPacket("the list of contacts ends early")
            offset = end
            try:
                out.append(_interned.get(packed) or unpack_contact(packed))
            except BadContact:
                continue
    except IndexError as e:
        raise BadPacket("the list of contacts ends early") from e
    return out, offset


def parse_seed(text: str) -> tuple[bytes | None, str, int]:
    """A seed as configured: `host:port`, `[v6]:port` or `node1...@host:port`. Returns (key or None, host, port).

    Raises BadContact; a wrong node id raises protocol.identity.BadId.
    """
    key_text, mark, where = text.strip().rpartition("@")
    host, colon, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise BadContact(f"{text!r} is not host:port or node1...@host:port")
    return (parse_node(key_text) if mark else None), host, int(port)
