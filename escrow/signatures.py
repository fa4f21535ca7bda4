"""ECDSA and BIP340 signatures on libsecp256k1, as strict as Bitcoin's relay rules and a little stricter.

A DER signature here never carries its sighash byte; the byte is always SIGHASH_ALL and is added where a witness is
built. Signing is deterministic: RFC 6979, with Bitcoin Core's counter until R is low (so that a signature has at
most 70 bytes), and BIP340 without auxiliary randomness. What is received must be strict DER (BIP66) with low S
(BIP146); a signature of another party need not have a low R, because not every signing device can make one.
"""

from __future__ import annotations

from typing import Final

from coincurve import PrivateKey, PublicKey, PublicKeyXOnly

# The only way in coincurve to hand extra entropy to RFC 6979 is a pointer of its own foreign function interface.
from coincurve._libsecp256k1 import ffi

from escrow.hd import ORDER

SIGHASH_ALL: Final = 1
MAX_DER: Final = 71
"""Bytes of the largest DER signature with low S."""


def sign_ecdsa(secret: bytes, sighash: bytes) -> bytes:
    """The DER signature with low S and low R, at most 70 bytes; the very bytes that Bitcoin Core's wallet makes.

    Raises ValueError for a secret outside the group or a hash that has not 32 bytes.
    """
    key = PrivateKey(secret)
    signature = key.sign(sighash, hasher=None)
    counter = 0
    # A low R needs no sign byte: its DER integer has at most 32 bytes.
    while signature[3] > 32:
        counter += 1
        extra = ffi.new("unsigned char[32]", counter.to_bytes(32, "little"))
        signature = key.sign(sighash, hasher=None, custom_nonce=(ffi.NULL, extra))
    return signature


def verify_ecdsa(public: bytes, sighash: bytes, signature: bytes) -> bool:
    """Whether `signature` (strict DER, low S) is that of the compressed key `public` over `sighash`."""
    if not is_strict_der(signature) or len(public) != 33:
        return False
    try:
        return bool(PublicKey(public).verify(signature, sighash, hasher=None))
    except ValueError:
        return False


def is_strict_der(signature: bytes) -> bool:
    """Whether bytes are the one DER encoding (BIP66) of a signature whose S is in the lower half (BIP146)."""
    if not 8 <= len(signature) <= MAX_DER or signature[0] != 0x30 or signature[1] != len(signature) - 2:
        return False
    r_size = signature[3]
    if 5 + r_size >= len(signature) or 6 + r_size + signature[5 + r_size] != len(signature):
        return False
    r, s = signature[4 : 4 + r_size], signature[6 + r_size :]
    if signature[2] != 0x02 or signature[4 + r_size] != 0x02 or not (_is_der_integer(r) and _is_der_integer(s)):
        return False
    return int.from_bytes(r, "big") < ORDER and int.from_bytes(s, "big") <= ORDER // 2


def _is_der_integer(data: bytes) -> bool:
    """A positive integer in as few bytes as it needs."""
    if not data or data[0] & 0x80 or not any(data):
        return False
    return len(data) == 1 or data[0] != 0 or bool(data[1] & 0x80)


def sign_schnorr(secret: bytes, message: bytes) -> bytes:
    """The 64-byte BIP340 signature over 32 bytes, with auxiliary data of zeros. Raises ValueError."""
    return PrivateKey(secret).sign_schnorr(message, bytes(32))


def verify_schnorr(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a BIP340 signature is that of the 32-byte x-only key `public` over `message`."""
    # coincurve reads 32 bytes of key whatever it is given.
    if len(public) != 32 or len(signature) != 64:
        return False
    try:
        return bool(PublicKeyXOnly(public).verify(signature, message))
    except ValueError:
        return False


def is_point(public: bytes) -> bool:
    """Whether bytes are a compressed point of the curve."""
    if len(public) != 33:
        return False
    try:
        PublicKey(public)
    except ValueError:
        return False
    return True
