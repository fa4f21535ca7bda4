"""Bitcoin's peer-to-peer messages, those that a light client needs (sans-IO).

Sources: the protocol as Bitcoin Core speaks it (`src/protocol.h`), BIP144 for witnesses, BIP157 for filters. Everything
that comes in is from strangers: sizes are checked before anything is allocated, and whatever does not parse raises
`PeerBroken`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum, IntFlag
from typing import Final

import msgspec

from escrow.chain.base import ProofFailed
from escrow.chain.headers import HEADER_BYTES, hash256
from protocol.types import Hash32, Network

MAGIC: Final = {
    Network.MAINNET: bytes.fromhex("f9beb4d9"),
    Network.TESTNET: bytes.fromhex("1c163f28"),
    Network.SIGNET: bytes.fromhex("0a03cf40"),
    Network.REGTEST: bytes.fromhex("fabfb5da"),
}
PORTS: Final = {Network.MAINNET: 8333, Network.TESTNET: 48333, Network.SIGNET: 38333, Network.REGTEST: 18444}
VERSION: Final = 70_016
MAX_MESSAGE: Final = 4_000_000
"""Bytes of a message's body, as in Bitcoin Core (MAX_PROTOCOL_MESSAGE_LENGTH)."""
MAX_HEADERS: Final = 2_000
MAX_FILTERS: Final = 1_000
"""Filters that may be asked for at once (BIP157)."""
_MAX_INV: Final = 50_000
_MAX_LOCATOR: Final = 101
_HEAD: Final = 24
_BASIC: Final = b"\0"
"""The one filter type that exists."""


class Services(IntFlag):
    """What a node offers."""

    NETWORK = 1
    WITNESS = 1 << 3
    FILTERS = 1 << 6
    LIMITED = 1 << 10


class Inv(IntEnum):
    """What an inventory entry names."""

    TX = 1
    BLOCK = 2
    WTX = 5
    WITNESS_TX = 1 << 30 | 1
    WITNESS_BLOCK = 1 << 30 | 2


class PeerBroken(ProofFailed):
    """A Bitcoin peer sent something that breaks the protocol, or that it could not prove."""

    code = 4016


class Message(msgspec.Struct, frozen=True):
    """One message."""

    command: str
    body: bytes


class VersionInfo(msgspec.Struct, frozen=True):
    """What a peer says of itself."""

    version: int
    services: int
    agent: str
    height: int
    relays: bool


class CFHeaders(msgspec.Struct, frozen=True):
    """A row of filter hashes that ends at `stop`; `previous` is the filter header before it."""

    stop: Hash32
    previous: Hash32
    hashes: tuple[Hash32, ...]


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self, network: Network) -> None:
        self._magic = MAGIC[network]
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises PeerBroken."""
        self._buffer += data
        while len(self._buffer) >= _HEAD:
            head = bytes(self._buffer[:_HEAD])
            if head[:4] != self._magic:
                raise PeerBroken("a peer is on another network, or speaks no Bitcoin")
            size = int.from_bytes(head[16:20], "little")
            if size > MAX_MESSAGE:
                raise PeerBroken("a peer sent a message over 4 MB")
            if len(self._buffer) < _HEAD + size:
                return
            body = bytes(self._buffer[_HEAD : _HEAD + size])
            del self._buffer[: _HEAD + size]
            if hash256(body)[:4] != head[20:24]:
                raise PeerBroken("a peer sent a message with a wrong checksum")
            yield Message(head[4:16].rstrip(b"\0").decode("ascii", "replace"), body)


def frame(network: Network, command: str, body: bytes = b"") -> bytes:
    """A message as it goes over the wire."""
    head = MAGIC[network] + command.encode().ljust(12, b"\0") + len(body).to_bytes(4, "little")
    return head + hash256(body)[:4] + body


class Reader:
    """Reads a body front to back; PeerBroken when it ends too early."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._body):
            raise PeerBroken("a peer sent a message that is cut short")
        part = self._body[self._at : end]
        self._at = end
        return part

    def number(self, size: int) -> int:
        """A little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    def count(self, most: int, size: int) -> int:
        """A CompactSize, at most `most`, of things of `size` bytes at least that follow."""
        first = self.number(1)
        value = first if first < 0xFD else self.number(1 << first - 0xFC)
        if value > most or value * size > len(self._body) - self._at:
            raise PeerBroken("a peer sent a list that is too long")
        return value

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._body) - self._at)


def compact(value: int) -> bytes:
    """A CompactSize."""
    if value < 0xFD:
        return bytes([value])
    if value <= 0xFFFF:
        return b"\xfd" + value.to_bytes(2, "little")
    return b"\xfe" + value.to_bytes(4, "little")


# -- what we say ----------------------------------------------------------------------------------------------


def version(nonce: bytes, height: int, now: int) -> bytes:
    """The first message: we offer nothing, and want to hear of transactions.

    The addresses are left empty and the name says no more than that this is a light client.
    """
    nowhere = bytes(26)
    agent = b"/p2pnode/"
    return (
        VERSION.to_bytes(4, "little")
        + bytes(8)
        + now.to_bytes(8, "little")
        + nowhere
        + nowhere
        + nonce
        + compact(len(agent))
        + agent
        + height.to_bytes(4, "little")
        + b"\1"
    )


def getheaders(locator: Sequence[Hash32]) -> bytes:
    """Ask for the headers after the first of `locator` that the peer knows."""
    hashes = locator[: _MAX_LOCATOR - 1]
    return VERSION.to_bytes(4, "little") + compact(len(hashes)) + b"".join(hashes) + bytes(32)


def getcf(start: int, stop: Hash32) -> bytes:
    """The body of getcfheaders and of getcfilters."""
    return _BASIC + start.to_bytes(4, "little") + stop


def inventory(entries: Iterable[tuple[int, Hash32]]) -> bytes:
    """The body of inv, getdata and notfound."""
    listed = list(entries)
    return compact(len(listed)) + b"".join(kind.to_bytes(4, "little") + name for kind, name in listed)


# -- what peers say -------------------------------------------------------------------------------------------


def read_version(body: bytes) -> VersionInfo:
    """A peer's first message."""
    reader = Reader(body)
    number, services = reader.number(4), reader.number(8)
    reader.take(8 + 26 + 26 + 8)
    agent = reader.take(reader.count(256, 1)).decode("ascii", "replace")
    height = reader.number(4)
    relays = reader.rest()[:1] != b"\0"
    return VersionInfo(number, services, "".join(c if c.isprintable() else "?" for c in agent), height, relays)


def read_headers(body: bytes) -> list[bytes]:
    """Headers in a row."""
    reader = Reader(body)
    count = reader.count(MAX_HEADERS, HEADER_BYTES + 1)
    headers = []
    for _ in range(count):
        headers.append(reader.take(HEADER_BYTES))
        if reader.take(1) != b"\0":
            raise PeerBroken("a peer sent headers with transactions")
    return headers


def read_inventory(body: bytes) -> list[tuple[int, Hash32]]:
    """Kinds and names."""
    reader = Reader(body)
    return [(reader.number(4), reader.take(32)) for _ in range(reader.count(_MAX_INV, 36))]


def read_cfheaders(body: bytes) -> CFHeaders:
    """Filter hashes."""
    reader = Reader(body)
    kind, stop, previous = reader.take(1), reader.take(32), reader.take(32)
    hashes = tuple(reader.take(32) for _ in range(reader.count(MAX_HEADERS, 32)))
    if kind != _BASIC:
        raise PeerBroken("a peer sent filters of another type")
    return CFHeaders(stop, previous, hashes)


def read_cfilter(body: bytes) -> tuple[Hash32, bytes]:
    """A block's hash and its filter."""
    reader = Reader(body)
    kind, block = reader.take(1), reader.take(32)
    raw = reader.take(reader.count(MAX_MESSAGE, 1))
    if kind != _BASIC:
        raise PeerBroken("a peer sent filters of another type")
    return block, raw


def read_addresses(body: bytes) -> list[tuple[str, int, int]]:
    """Host, port and services of IPv4 and IPv6 nodes."""
    reader = Reader(body)
    found: list[tuple[str, int, int]] = []
    for _ in range(reader.count(1_000, 30)):
        reader.take(4)
        services, raw, port = reader.number(8), reader.take(16), int.from_bytes(reader.take(2), "big")
        address = ipaddress.IPv6Address(raw)
        found.append((str(address.ipv4_mapped or address), port, services))
    return found
