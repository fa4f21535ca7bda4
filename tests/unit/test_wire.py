"""Bodies are read quickly, and what is read is exactly what the slow and obvious way reads."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from protocol import wire
from protocol.announcement import Announcement
from protocol.attachment import Attachment
from protocol.bundle import Bundle
from protocol.contact import ContactRecord
from protocol.contract import Contract
from protocol.errors import Malformed, P2PError, TooLarge
from protocol.messages import Accept, Decline, Header, Proposal, Take
from protocol.offer import Offer, Revocation
from protocol.ruling import Ruling
from protocol.wire import pack, unpack

VECTORS = Path(__file__).parents[1] / "vectors"
SHAPES: list[Any] = [
    wire._Wire,
    Offer,
    Revocation,
    Contract,
    Announcement,
    ContactRecord,
    Attachment,
    Ruling,
    Bundle,
    tuple[Header, Take],
    tuple[Header, Accept],
    tuple[Header, Decline],
    tuple[Header, Proposal],
    tuple[bytes, ...],
    bytes,
]
LIMIT = 100_000
STRANGE: list[Any] = [None, True, 0, -1, 2**63, 1.0, "x", b"x", [], {}, {"a": 1}, msgpack.ExtType(1, b"x")]


@cache
def corpus() -> tuple[bytes, ...]:
    """Every value of the vectors, and the bodies inside of those that are envelopes."""
    found: set[bytes] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for one in value.values():
                collect(one)
        elif isinstance(value, list):
            for one in value:
                collect(one)
        elif isinstance(value, str) and len(value) % 2 == 0 and value:
            try:
                raw = bytes.fromhex(value)
            except ValueError:
                return
            found.add(raw)
            try:
                found.add(unpack(raw, wire._Wire, limit=LIMIT).body)
            except P2PError:
                return

    for path in sorted((VECTORS / "protocol").glob("*.json")):
        collect(json.loads(path.read_text()))
    return tuple(sorted(raw for raw in found if (raw and raw[0] >> 4 == 9) or raw[:1] == b"\xdc"))


def outcome(read: Any, data: bytes, shape: Any) -> object:  # noqa: ANN401
    """The value, or the error and all that it says."""
    try:
        return read(data, shape, LIMIT)
    except P2PError as e:
        return type(e), e.detail


def fast(data: bytes, shape: Any, limit: int) -> object:  # noqa: ANN401
    """`unpack` by position."""
    return unpack(data, shape, limit=limit)


def encoded(value: Any, rng: random.Random, odd: float) -> bytes:  # noqa: ANN401
    """A MessagePack encoding of a parsed value; with the chance `odd` each part is written, or is, otherwise."""
    strange = rng.random() < odd
    size = rng.choice((1, 2, 4))
    if strange and rng.random() < 0.3:
        value = rng.choice(
            [None, True, 0, -1, 2**63, 1.0, "x", b"x", [], [value], {}, {"a": 1}, msgpack.ExtType(1, b"x")]
        )
    if isinstance(value, list):
        items = (
            value[:-1] if strange and rng.random() < 0.3 else value + ([0] if strange and rng.random() < 0.3 else [])
        )
        head = bytes([0xDC + (size == 4)]) + len(items).to_bytes(max(2, size), "big")
        if not strange:
            head = msgpack.Packer().pack_array_header(len(items))
        elif size == 1:
            head = bytes([0xDD]) + rng.choice((len(items), 2**31, 2**32 - 1)).to_bytes(4, "big")
        return bytes(head) + b"".join(encoded(item, rng, odd) for item in items)
    if strange and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256**size:
        return bytes([{1: 0xCC, 2: 0xCD, 4: 0xCE}[size]]) + value.to_bytes(size, "big")
    if strange and isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if strange and isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        if rng.random() < 0.2:
            data = b"\xed\xa0\x80" + data
        first = rng.choice((0xC4, 0xD9)) + {1: 0, 2: 1, 4: 2}[size]
        if len(data) < 256**size:
            return bytes([first]) + len(data).to_bytes(size, "big") + data
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_type_of_the_wire_needs_the_slow_way(shape: Any) -> None:  # noqa: ANN401
    assert wire._decoder(shape) is not None


def test_the_quick_way_reads_what_the_slow_way_reads_and_refuses_the_same() -> None:
    rng = random.Random(20261121)
    print("seed 20261121")
    read = refused = 0
    for raw in corpus():
        try:
            value = msgpack.unpackb(raw, max_ext_len=0)
        except (ValueError, msgpack.UnpackException):
            value = []
        odd = [encoded(value, rng, chance) for chance in (0.0, 0.02, 0.02, 0.05, 0.1, 0.3) for _ in range(2)]
        for _ in range(6):
            changed = bytearray(raw)
            changed[rng.randrange(len(raw))] = rng.randrange(256)
            odd.append(bytes(changed))
        odd += [raw[: rng.randrange(len(raw))], raw + b"\0", raw + raw]
        for data in (raw, *odd):
            for shape in SHAPES:
                one, other = outcome(fast, data, shape), outcome(wire._unpack_slowly, data, shape)
                assert one == other, (shape, data.hex())
                refused += isinstance(one, tuple) and one[:1] == (Malformed,)
                read += not isinstance(one, tuple)
    print(f"{read} read, {refused} refused")
    assert read > 100
    assert refused > 1_000


def test_the_quick_way_writes_as_pack_does() -> None:
    for raw in corpus():
        for shape in SHAPES:
            try:
                value = unpack(raw, shape, limit=LIMIT)
            except P2PError:
                continue
            assert wire._ENCODER.encode(value) == pack(value) == raw


class Loose(msgspec.Struct, array_like=True):
    """Fields that could hold what the protocol has not."""

    anything: Any


class Measured(msgspec.Struct, array_like=True):
    """A number that two encodings have."""

    share: float


class Named(msgspec.Struct):
    """Encoded as a map."""

    name: str


class Endless(msgspec.Struct, array_like=True):
    """As deep as its sender likes."""

    inner: Endless | None


@pytest.mark.parametrize("shape", [Loose, Measured, Named, Endless, dict[str, int], list[Any]], ids=str)
def test_types_that_hold_more_than_the_protocols_values_go_the_slow_way(shape: Any) -> None:  # noqa: ANN401
    assert wire._decoder(shape) is None
    with pytest.raises(Malformed):
        unpack(b"\x91\x81\xa1a\x01", shape, limit=100)


def test_an_array_over_the_limit_is_refused_however_large_the_body_may_be() -> None:
    wide = msgpack.packb([b""] * 65_537)
    with pytest.raises(Malformed):
        unpack(wide, tuple[bytes, ...], limit=1_000_000)
    with pytest.raises(TooLarge):
        unpack(wide, tuple[bytes, ...], limit=1_000)
