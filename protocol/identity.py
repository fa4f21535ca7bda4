"""Keys that speak: the node key and the persona keys (DESIGN section 4).

Both are Ed25519. A `SigningKey` wraps a 32-byte seed that comes from the keystore (BIP85); nothing here makes
randomness. Text forms carry a checksum and say what they are, so that a mistyped or misplaced id is refused with a
clear line: `persona1...` and `node1...` in Bech32m (BIP350).
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from protocol.errors import UserError
from protocol.types import Network
from protocol.wire import Envelope, seal, sign_body

PERSONA_PREFIX: Final = "persona"
NODE_PREFIX: Final = "node"

_CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32M: Final = 0x2BC830A3
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


class BadId(UserError):
    """That is not a valid id: check for a missing or mistyped character."""

    code = 3010


class SigningKey:
    """An Ed25519 key with its X25519 form. Its repr never shows the secret."""

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte secret `seed`. Raises ValueError for another length."""
        if len(seed) != 32:
            msg = "an Ed25519 seed has 32 bytes"
            raise ValueError(msg)
        self.seed = seed
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)

    def __repr__(self) -> str:
        """Show the public half only."""
        return f"SigningKey({self.public.hex()[:16]}...)"

    def sign(self, kind: int, network: Network, body: bytes) -> bytes:
        """The detached envelope signature over `body`, 64 bytes."""
        return sign_body(kind, network, self.seed, body)

    def seal(self, kind: int, network: Network, body: bytes) -> Envelope:
        """The envelope of `body` signed by this key."""
        return seal(kind, network, self.seed, body)

    @cached_property
    def x25519_secret(self) -> bytes:
        """The X25519 secret of the same seed, 32 bytes, for Diffie-Hellman."""
        return bytes(bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret))

    @cached_property
    def x25519_public(self) -> bytes:
        """The X25519 public key of `public`, 32 bytes."""
        return x25519_of(self.public)


def x25519_of(public: bytes) -> bytes:
    """The X25519 form of an Ed25519 public key. Raises BadId when `public` is not a point of the right order."""
    try:
        return bytes(bindings.crypto_sign_ed25519_pk_to_curve25519(public))
    except (CryptoError, ValueError, TypeError) as e:
        raise BadId("not a usable Ed25519 public key") from e


def persona_text(persona: bytes) -> str:
    """`persona1...` of a 32-byte persona key."""
    return encode_id(PERSONA_PREFIX, persona)


def node_text(node: bytes) -> str:
    """`node1...` of a 32-byte node key."""
    return encode_id(NODE_PREFIX, node)


def parse_persona(text: str) -> bytes:
    """The persona key of a `persona1...` text. Raises BadId."""
    return decode_id(PERSONA_PREFIX, text)


def parse_node(text: str) -> bytes:
    """The node key of a `node1...` text. Raises BadId."""
    return decode_id(NODE_PREFIX, text)


def encode_id(prefix: str, key: bytes) -> str:
    """Bech32m text of 32 bytes under a human-readable prefix (BIP350, without a witness version)."""
    data = _regroup(key, 8, 5, pad=True)
    values = [*_expand(prefix), *data]
    check = _polymod([*values, 0, 0, 0, 0, 0, 0]) ^ _BECH32M
    return prefix + "1" + "".join(_CHARSET[d] for d in [*data, *((check >> 5 * (5 - i)) & 31 for i in range(6))])


def decode_id(prefix: str, text: str) -> bytes:
    """The 32 bytes of `text`. Raises BadId with what is wrong: prefix, characters, checksum or length."""
    text = text.strip()
    lowered = text.lower()
    if text not in (lowered, text.upper()):
        raise BadId("an id is written in one case, not mixed")
    head, mark, tail = lowered.rpartition("1")
    if not mark or head != prefix:
        raise BadId(f"expected an id that starts with {prefix}1")
    if len(tail) < 6 or any(c not in _CHARSET for c in tail):
        raise BadId
    data = [_CHARSET.index(c) for c in tail]
    if _polymod([*_expand(prefix), *data]) != _BECH32M:
        raise BadId("the id's checksum does not fit: check for a mistyped character")
    key = bytes(_regroup(data[:-6], 5, 8, pad=False))
    if len(key) != 32 or encode_id(prefix, key) != lowered:
        raise BadId
    return key


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            check ^= generator if (top >> i) & 1 else 0
    return check


def _regroup(data: bytes | list[int], width: int, new_width: int, *, pad: bool) -> list[int]:
    """Regroup a stream of `width`-bit values to `new_width` bits, as BIP173's convertbits does."""
    acc = bits = 0
    out: list[int] = []
    for value in data:
        acc = (acc << width) | value
        bits += width
        while bits >= new_width:
            bits -= new_width
            out.append((acc >> bits) & ((1 << new_width) - 1))
        acc &= (1 << bits) - 1
    if pad and bits:
        out.append((acc << (new_width - bits)) & ((1 << new_width) - 1))
    return out
