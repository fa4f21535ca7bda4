"""Proof of work for public records: a price for flooding, none for reading (SPEC section 2.4).

A body that carries work ends in an 8-byte nonce field. Its work is the number of leading zero bits of
`digest("p2pnode/work", envelope id)`, so a changed byte anywhere in the body undoes it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

from msgspec import Meta

from protocol.types import Network
from protocol.wire import envelope_id

WorkNonce = Annotated[bytes, Meta(min_length=8, max_length=8)]
"""The nonce that a record's publisher varied until its work sufficed."""

NO_WORK: Final = bytes(8)


_HEAD: Final = b"\0\0\0\x0cp2pnode/work\0\0\0\x20"
"""What `digest` puts before an id of 32 bytes: done once, for what is hashed thousands of times."""


def work_bits(envelope: bytes) -> int:
    """Leading zero bits of the work digest of an envelope id of 32 bytes, 0 to 256."""
    return 256 - int.from_bytes(blake2b(_HEAD + envelope, digest_size=32).digest(), "big").bit_length()


def find_work(kind: int, network: Network, body: bytes, bits: int, *, start: int = 0) -> bytes:
    """`body` with its trailing 8-byte nonce replaced so that the work is at least `bits`.

    Takes 2^bits attempts on average (about 2 microseconds each). `body` must end in its nonce field; nonces are
    tried from `start` upwards, so equal input gives equal output.
    """
    head = body[:-8]
    nonce = start
    while True:
        candidate = head + nonce.to_bytes(8, "big")
        if work_bits(envelope_id(kind, network, candidate)) >= bits:
            return candidate
        nonce += 1
