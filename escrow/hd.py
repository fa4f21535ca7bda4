"""Hierarchical deterministic keys (BIP32), the small part that we need, on libsecp256k1 through coincurve.

Private derivation only: whoever holds an account's public key alone uses a descriptor. It is our own because the
one maintained library that we have for it, BDK, has no wheel on every platform that runs a node.
"""

from __future__ import annotations

import hashlib
import hmac
from hashlib import sha256
from typing import Final

from bitcoin.core.contrib.ripemd160 import ripemd160
from coincurve import PrivateKey

HARDENED: Final = 0x8000_0000
"""The bit that makes a child's index hardened."""

ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


class ExtendedKey:
    """A private key and its chain code. Its repr shows no secret."""

    __slots__ = ("chain_code", "child", "depth", "parent", "secret")

    def __init__(
        self, secret: bytes, chain_code: bytes, depth: int = 0, parent: bytes = bytes(4), child: int = 0
    ) -> None:
        """Take the parts of BIP32's serialisation; `parent` is the parent's fingerprint.

        Raises ValueError when `secret` is not a valid private key.
        """
        if not 0 < int.from_bytes(secret, "big") < ORDER or len(secret) != 32 or len(chain_code) != 32:
            raise ValueError("not a valid extended private key")
        self.secret = secret
        self.chain_code = chain_code
        self.depth = depth
        self.parent = parent
        self.child = child

    @classmethod
    def from_seed(cls, seed: bytes) -> ExtendedKey:
        """The master key of a seed of 16 to 64 bytes. Raises ValueError."""
        if not 16 <= len(seed) <= 64:
            raise ValueError("a BIP32 seed has 16 to 64 bytes")
        digest = hmac.digest(b"Bitcoin seed", seed, "sha512")
        return cls(digest[:32], digest[32:])

    def __repr__(self) -> str:
        """Name the key by its fingerprint."""
        return f"ExtendedKey({self.fingerprint.hex()}, depth={self.depth})"

    @property
    def public(self) -> bytes:
        """The compressed public key, 33 bytes."""
        return PrivateKey(self.secret).public_key.format()

    @property
    def fingerprint(self) -> bytes:
        """The first four bytes of the public key's HASH160."""
        return hash160(self.public)[:4]

    def derive(self, *path: int) -> ExtendedKey:
        """The descendant at `path`; add HARDENED to an index for a hardened child. Raises ValueError."""
        key = self
        for index in path:
            key = key._step(index)
        return key

    def _step(self, index: int) -> ExtendedKey:
        if not 0 <= index < 2 * HARDENED:
            raise ValueError("a BIP32 index has 32 bits")
        public = self.public
        head = b"\0" + self.secret if index >= HARDENED else public
        digest = hmac.digest(self.chain_code, head + index.to_bytes(4, "big"), "sha512")
        # Both ways to fail (a tweak over the group's order, a sum of zero) have probability 2^-127; coincurve raises
        # ValueError for them and BIP32 says to go on with the next index, which a fixed path can't.
        secret = PrivateKey(self.secret).add(digest[:32]).secret
        return ExtendedKey(secret, digest[32:], self.depth + 1, hash160(public)[:4], index)

    def xprv(self, version: bytes = bytes.fromhex("0488ade4")) -> str:
        """BIP32's Base58Check text; `version` is that of mainnet unless told."""
        payload = version + bytes([self.depth]) + self.parent + self.child.to_bytes(4, "big")
        return base58check(payload + self.chain_code + b"\0" + self.secret)

    def xpub(self, version: bytes = bytes.fromhex("0488b21e")) -> str:
        """The public half as BIP32's Base58Check text."""
        payload = version + bytes([self.depth]) + self.parent + self.child.to_bytes(4, "big")
        return base58check(payload + self.chain_code + self.public)


_B58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def hash160(data: bytes) -> bytes:
    """RIPEMD-160 of SHA-256, 20 bytes."""
    inner = sha256(data).digest()
    # Some builds of OpenSSL 3 have no RIPEMD-160; python-bitcoinlib's is slower and always there.
    if "ripemd160" in hashlib.algorithms_available:
        return hashlib.new("ripemd160", inner).digest()
    return bytes(ripemd160(inner))


def base58check(payload: bytes) -> str:
    """Base58 of `payload` with its four-byte double-SHA-256 checksum."""
    raw = payload + sha256(sha256(payload).digest()).digest()[:4]
    number = int.from_bytes(raw, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _B58[digit] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def base58check_decode(text: str) -> bytes:
    """Undo `base58check`. Raises ValueError for foreign characters, a wrong checksum or more than 120 characters."""
    if not 0 < len(text) <= 120 or any(c not in _B58 for c in text):
        raise ValueError("not Base58")
    number = 0
    for c in text:
        number = number * 58 + _B58.index(c)
    zeros = len(text) - len(text.lstrip("1"))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(raw) < 5 or sha256(sha256(raw[:-4]).digest()).digest()[:4] != raw[-4:]:
        raise ValueError("the Base58 checksum does not fit")
    return raw[:-4]
