"""The plaintext of requests and replies: fixed layouts, read and written with slices (SPEC, DHT messages).

The vocabulary is Kademlia's: ping, find_node, find_value, store. Layouts are fixed instead of MessagePack because a
node handles thousands of them per second and each has one reading: no lengths within lengths, nothing to allocate
before a check. Bytes after the last field are padding and are ignored; they let a request pay in advance for a large
reply.

    request  op u8 ‖ flags u8 ‖ token (8) ‖ body
    reply    op|80 u8 ‖ status u8 ‖ token (8) ‖ body
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b
from typing import Final, NamedTuple

from dht.contact import Contact, pack_address, unpack_address, unpack_contacts
from dht.errors import BadPacket

MAX_CONTACTS: Final = 16
ADDRESS_BYTES: Final = {4: 7, 6: 19}
"""Of a packed address, by its first byte."""
HEAD: Final = 10
NO_TOKEN: Final = bytes(8)
FIRST: Final = bytes(8)
"""The cursor that means: from the beginning."""
CLIENT: Final = 1
"""Flag of a request: the sender can't be reached unasked; never put it in a routing table."""
SPEAKS_V4: Final = 2
SPEAKS_V6: Final = 4
"""Flags of a request: the sender can use contacts of these versions of IP. Neither: of the one that it asks from."""
SPEAKS_CHANNEL: Final = 8
"""Flag of a request: the sender can use contacts that only channels lead to."""


class Op(IntEnum):
    """What a request asks for."""

    PING = 1
    FIND_NODE = 2
    FIND_VALUE = 3
    STORE = 4
    STORE_PART = 5
    FETCH_PART = 6
    WATCH = 7
    NOTIFY = 8
    SYNC = 9


class Status(IntEnum):
    """How a request was answered."""

    OK = 0
    BAD_TOKEN = 1
    INVALID = 2
    FULL = 3
    OLDER = 4
    BUSY = 5
    UNSUPPORTED = 6
    UNCHANGED = 7


class Request(NamedTuple):
    """A parsed request; the body is read by the function of its op."""

    op: int
    flags: int
    token: bytes
    data: bytes


class Reply(NamedTuple):
    """A parsed reply; the body begins at HEAD."""

    status: int
    token: bytes
    data: bytes


class ValueReply(NamedTuple):
    """What a node answered to find_value."""

    total: int
    digest: bytes
    more: bool
    records: list[bytes]
    large: list[tuple[bytes, int]]
    """(tag, bytes) of records that do not fit a datagram: fetch them by parts."""
    contacts: list[Contact]


def request(op: int, flags: int, token: bytes, body: bytes) -> bytes:
    """The plaintext of a request."""
    return bytes((op, flags)) + token + body


def parse_request(data: bytes) -> Request:
    """The head of a request. Raises BadPacket."""
    if len(data) < HEAD:
        raise BadPacket("a request shorter than its head")
    return Request(data[0], data[1], data[2:HEAD], data)


def reply(op: int, status: int, token: bytes, body: bytes = b"") -> bytes:
    """The plaintext of a reply."""
    return bytes((op | 0x80, status)) + token + body


def parse_reply(data: bytes, op: int) -> Reply:
    """The head of the reply to a request of `op`. Raises BadPacket."""
    if len(data) < HEAD or data[0] != op | 0x80:
        raise BadPacket("a reply to something else")
    return Reply(data[1], data[2:HEAD], data)


def find_node_body(target: bytes, want: int) -> bytes:
    """Target (20) ‖ want u8."""
    return target + bytes((want,))


def find_value_body(topic: bytes, want: int, after: bytes, digest: bytes, *, beside: int = 0) -> bytes:
    """Topic (20) ‖ beside × 16 + want u8 ‖ after (8) ‖ digest (8). `beside`: contacts wanted beside records."""
    return topic + bytes((beside << 4 | want,)) + after + digest


def store_body(topic: bytes, want: int, raw: bytes) -> bytes:
    """Topic (20) ‖ want u8 ‖ length u16 ‖ record."""
    return topic + bytes((want,)) + len(raw).to_bytes(2, "big") + raw


def target_of(data: bytes) -> tuple[bytes, int]:
    """(target, want) of any request but ping. Raises BadPacket."""
    if len(data) < HEAD + 21:
        raise BadPacket("a request without its target")
    return data[HEAD : HEAD + 20], data[HEAD + 20] & 15


def want_beside_records(data: bytes) -> int:
    """How many contacts find_value would like beside records."""
    return data[HEAD + 20] >> 4


def cursor_of(data: bytes) -> tuple[bytes, bytes]:
    """(after, digest) of find_value. Raises BadPacket."""
    if len(data) < HEAD + 37:
        raise BadPacket("a find_value without its cursor")
    return data[HEAD + 21 : HEAD + 29], data[HEAD + 29 : HEAD + 37]


def record_of(data: bytes) -> bytes:
    """The record of a store. Raises BadPacket."""
    start = HEAD + 23
    end = start + int.from_bytes(data[HEAD + 21 : start], "big")
    if len(data) < start or len(data) < end:
        raise BadPacket("a store that ends early")
    return data[start:end]


def contacts_body(contacts: list[Contact]) -> bytes:
    """Count u8 ‖ packed contacts."""
    return bytes((len(contacts),)) + b"".join([c.packed for c in contacts])


def contacts_of(data: bytes, offset: int = HEAD) -> list[Contact]:
    """The contacts of a reply to find_node or store. Raises BadPacket."""
    return unpack_contacts(data, offset, MAX_CONTACTS)[0]


def value_body(total: int, digest: bytes, *, more: bool, records: list[bytes], large: list[tuple[bytes, int]]) -> bytes:
    """The answer to find_value without its contacts, which follow.

    Total u16 ‖ digest (8) ‖ more u8 ‖ n u8 ‖ n × (length u16 ‖ record) ‖ m u8 ‖ m × (tag (8) ‖ length u16).
    """
    parts = [min(total, 65_535).to_bytes(2, "big"), digest, bytes((more, len(records)))]
    for raw in records:
        parts.append(len(raw).to_bytes(2, "big"))
        parts.append(raw)
    parts.append(bytes((len(large),)))
    for tag, size in large:
        parts.append(tag + size.to_bytes(2, "big"))
    return b"".join(parts)


def value_of(data: bytes) -> ValueReply:
    """The body of a reply to find_value. Raises BadPacket."""
    at = HEAD + 12
    if len(data) < at + 1:
        raise BadPacket("a value reply that ends early")
    records: list[bytes] = []
    for _ in range(data[at - 1]):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end >= len(data):
            raise BadPacket("a value reply that ends early")
        records.append(data[at + 2 : end])
        at = end
    if at >= len(data):
        raise BadPacket("a value reply that ends early")
    count = data[at]
    at += 1
    if at + 10 * count >= len(data):
        raise BadPacket("a value reply that ends early")
    large = [(data[p : p + 8], int.from_bytes(data[p + 8 : p + 10], "big")) for p in range(at, at + 10 * count, 10)]
    contacts, _ = unpack_contacts(data, at + 10 * count, MAX_CONTACTS)
    return ValueReply(
        total=int.from_bytes(data[HEAD : HEAD + 2], "big"),
        digest=data[HEAD + 2 : HEAD + 10],
        more=bool(data[HEAD + 10]),
        records=records,
        large=large,
        contacts=contacts,
    )


def ping_body(seen: tuple[str, int], elsewhere: tuple[str, int] | None) -> bytes:
    """The answer to a ping: where the asker was seen and, if there is one, the answerer's address of the other IP."""
    return pack_address(*seen) + (b"" if elsewhere is None else pack_address(*elsewhere))


def observed_of(data: bytes) -> tuple[str, int]:
    """The address that the answering node saw us at, from its reply to a ping. Raises BadPacket."""
    return unpack_address(data[HEAD:])


def elsewhere_of(data: bytes) -> tuple[str, int] | None:
    """Where else the answering node says that it is, from its reply to a ping; None: nowhere. Raises BadPacket."""
    at = HEAD + ADDRESS_BYTES.get(data[HEAD], 0)
    return unpack_address(data[at:]) if len(data) > at else None


PART_BYTES: Final = 1_024


def store_part_body(topic: bytes, raw: bytes, offset: int) -> bytes:
    """Topic (20) ‖ want u8 = 0 ‖ BLAKE2b-64 of the record (8) ‖ size u16 ‖ offset u16 ‖ part."""
    name = blake2b(raw, digest_size=8).digest()
    part = raw[offset : offset + PART_BYTES]
    return (
        topic
        + b"\0"
        + name
        + len(raw).to_bytes(2, "big")
        + offset.to_bytes(2, "big")
        + len(part).to_bytes(2, "big")
        + part
    )


def part_end(body: bytes) -> int:
    """How far the record is sent with this store_part body."""
    return int.from_bytes(body[31:33], "big") + int.from_bytes(body[33:35], "big")


def store_part_of(data: bytes) -> tuple[bytes, int, int, bytes]:
    """(name, size, offset, part) of a store_part request. Raises BadPacket."""
    start = HEAD + 35
    if len(data) < start:
        raise BadPacket("a part that ends early")
    end = start + int.from_bytes(data[start - 2 : start], "big")
    if len(data) < end:
        raise BadPacket("a part that ends early")
    size, offset = (
        int.from_bytes(data[start - 6 : start - 4], "big"),
        int.from_bytes(data[start - 4 : start - 2], "big"),
    )
    if end == start or offset + end - start > size:
        raise BadPacket("a part outside of its record")
    return data[HEAD + 21 : HEAD + 29], size, offset, data[start:end]


def fetch_body(topic: bytes, tag: bytes, offset: int) -> bytes:
    """Topic (20) ‖ tag (8) ‖ offset u16."""
    return topic + tag + offset.to_bytes(2, "big")


def fetch_of(data: bytes) -> tuple[bytes, bytes, int]:
    """(topic, tag, offset) of a fetch_part request. Raises BadPacket."""
    if len(data) < HEAD + 30:
        raise BadPacket("a fetch that ends early")
    return data[HEAD : HEAD + 20], data[HEAD + 20 : HEAD + 28], int.from_bytes(data[HEAD + 28 : HEAD + 30], "big")


def part_of(data: bytes) -> bytes:
    """The part in the reply to fetch_part: length u16 ‖ bytes. Raises BadPacket."""
    end = HEAD + 2 + int.from_bytes(data[HEAD : HEAD + 2], "big")
    if len(data) < HEAD + 2 or len(data) < end:
        raise BadPacket("a part that ends early")
    return data[HEAD + 2 : end]


def older_body(contacts: list[Contact], standing: bytes) -> bytes:
    """Contacts ‖ length u16 ‖ the record that stands."""
    return contacts_body(contacts) + len(standing).to_bytes(2, "big") + standing


def older_of(data: bytes) -> tuple[list[Contact], bytes]:
    """The inverse of `older_body`. Raises BadPacket."""
    contacts, at = unpack_contacts(data, HEAD, MAX_CONTACTS)
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    if len(data) < end:
        raise BadPacket("a standing record that ends early")
    return contacts, data[at + 2 : end]
