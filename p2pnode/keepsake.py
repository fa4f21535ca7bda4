"""Keepsakes: what we shall need of a trade after a loss, left with the counterparty, readable by nobody but us.

A party's Take or Accept holds everything that its own seat of the trade was made of, except its payment details: the
contract only commits to them, under a random salt. A node whose disk is lost gets its own messages back from its
counterparty (`p2pnode.recall`), but could then never open that commitment. So the opening rides along, encrypted under
a key of the seed and the trade id (`escrow/seed.py`): the counterparty and an arbiter see noise.

    nonce, 24 bytes ‖ XSalsa20-Poly1305 of (length u16 ‖ details ‖ zeros up to a multiple of 256)

The nonce is a keyed hash of the content: no randomness, and two different contents never meet under one nonce.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from protocol.errors import P2PError
from protocol.messages import OpenedDetails
from protocol.wire import pack, unpack

_STEP: Final = 256
_NONCE: Final = bindings.crypto_secretbox_NONCEBYTES
_MOST: Final = 9_216 - _NONCE - bindings.crypto_secretbox_MACBYTES


def seal_keepsake(key: bytes, opened: OpenedDetails) -> bytes:
    """Encrypt; empty where the details are too large to be left with anybody (they may have 8 kB)."""
    packed = pack(opened)
    size = -(-(2 + len(packed)) // _STEP) * _STEP
    if size > _MOST:
        return b""
    plain = (len(packed).to_bytes(2, "big") + packed).ljust(size, b"\0")
    nonce = blake2b(plain, digest_size=_NONCE, key=key, person=b"p2p-keepsake").digest()
    return nonce + bindings.crypto_secretbox(plain, nonce, key)


def open_keepsake(key: bytes, data: bytes) -> OpenedDetails | None:
    """Undo `seal_keepsake`; None for what is not ours, or is nothing."""
    try:
        plain = bindings.crypto_secretbox_open(data[_NONCE:], data[:_NONCE], key)
        return unpack(plain[2 : 2 + int.from_bytes(plain[:2], "big")], OpenedDetails, limit=_MOST)
    except (CryptoError, ValueError, P2PError):
        return None
