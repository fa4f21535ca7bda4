"""`Noise_XK_25519_ChaChaPoly_BLAKE2b`, sans-IO (the Noise Protocol Framework, revision 34).

Three messages turn two X25519 static keys into two cipher states, one per direction:

    <- s            the initiator knew the responder's static key beforehand (its contact record)
    -> e, es        only the holder of that key can read on
    <- e, ee        ephemeral agreement: forward secrecy
    -> s, se        the initiator's static key, encrypted; only now does the responder learn who called

`Handshake` walks that table; `SymmetricState` and `CipherState` are the framework's objects of the same names
(section 5). The primitives are libsodium's (PyNaCl) and hashlib's BLAKE2b-512; HMAC and HKDF follow section 4.3.
Nothing here makes randomness: the ephemeral secret comes from a callable given at construction, asked exactly once.
Any failure kills the handshake object; a Noise handshake can't be resumed after a bad message.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from struct import Struct
from typing import Final, Literal, NamedTuple, assert_never

from nacl import bindings
from nacl.exceptions import CryptoError

from protocol.errors import LocalError, PeerViolation

PROTOCOL_NAME: Final = b"Noise_XK_25519_ChaChaPoly_BLAKE2b"
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
MAX_MESSAGE_BYTES: Final = 65_535
"""Largest Noise message, ciphertext and tag included (section 3)."""

_HASH_BYTES: Final = 64
_LAST_NONCE: Final = 2**64 - 1
"""Reserved for rekeying (section 5.1)."""
_NONCE: Final = Struct("<4xQ")
"""ChaChaPoly's nonce: 32 zero bits, then the counter in little endian (section 12.3)."""

_Token = Literal["e", "s", "es", "ee", "se"]
_PATTERN: Final[tuple[tuple[_Token, ...], ...]] = (("e", "es"), ("e", "ee"), ("s", "se"))
"""XK's messages after its pre-message; the initiator writes the first and third."""
_DEAD: Final = -1


class HandshakeFailed(PeerViolation):
    """The peer failed the handshake: it is another node than expected, or speaks for another network or version."""

    code = 2201


class ForgedMessage(PeerViolation):
    """Bytes from the peer were altered, replayed or reordered on their way."""

    code = 2202


class NonceExhausted(LocalError):
    """The channel has encrypted as much as one key may; open a new one."""

    code = 1401


class KeyPair(NamedTuple):
    """An X25519 key pair, 32 bytes each."""

    secret: bytes
    public: bytes

    @classmethod
    def of(cls, secret: bytes) -> KeyPair:
        """The pair of a 32-byte secret. Raises ValueError for another length."""
        # libsodium reads 32 bytes wherever it is pointed at; PyNaCl does not check.
        if len(secret) != KEY_BYTES:
            raise ValueError("an X25519 secret has 32 bytes")
        return cls(secret, bindings.crypto_scalarmult_base(secret))


class CipherState:
    """One direction's key and counter (section 5.1). Messages must be decrypted in the order of their encryption."""

    __slots__ = ("_key", "_nonce")

    def __init__(self, key: bytes) -> None:
        """Start at counter 0 under the 32-byte `key`."""
        self._key = key
        self._nonce = 0

    def encrypt(self, plaintext: bytes, associated: bytes | None = None) -> bytes:
        """Ciphertext and tag, 16 bytes longer than `plaintext`. Raises NonceExhausted."""
        sealed: bytes = bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, associated, _NONCE.pack(self._spare_nonce()), self._key
        )
        self._nonce += 1
        return sealed

    def decrypt(self, ciphertext: bytes, associated: bytes | None = None) -> bytes:
        """The plaintext. Raises ForgedMessage (the counter then stays) and NonceExhausted."""
        if len(ciphertext) < TAG_BYTES:
            raise ForgedMessage
        try:
            plaintext: bytes = bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
                ciphertext, associated, _NONCE.pack(self._spare_nonce()), self._key
            )
        except CryptoError as e:
            raise ForgedMessage from e
        self._nonce += 1
        return plaintext

    def rekey(self) -> None:
        """Replace the key by a one-way function of itself (section 4.2); the counter goes on (section 11.3)."""
        sealed = bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            bytes(KEY_BYTES), None, _NONCE.pack(_LAST_NONCE), self._key
        )
        self._key = sealed[:KEY_BYTES]

    def _spare_nonce(self) -> int:
        if self._nonce == _LAST_NONCE:
            raise NonceExhausted
        return self._nonce


class SymmetricState:
    """The running hash and chaining key of a handshake (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "hash")

    def __init__(self, protocol_name: bytes) -> None:
        """Begin with a name of at most 64 bytes, padded with zeros."""
        self.hash = protocol_name.ljust(_HASH_BYTES, b"\0")
        self._chaining_key = self.hash
        self._cipher: CipherState | None = None

    def mix_key(self, material: bytes) -> None:
        """Absorb a DH output into the keys."""
        self._chaining_key, key = _hkdf2(self._chaining_key, material)
        self._cipher = CipherState(key[:KEY_BYTES])

    def mix_hash(self, data: bytes) -> None:
        """Bind `data` to everything authenticated from here on."""
        self.hash = hashlib.blake2b(self.hash + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypt under the present key, if there is one, and bind the result."""
        sealed = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        """The inverse of `encrypt_and_hash`. Raises ForgedMessage."""
        plaintext = sealed if self._cipher is None else self._cipher.decrypt(sealed, self.hash)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """The transport ciphers: initiator to responder, then responder to initiator."""
        first, second = _hkdf2(self._chaining_key, b"")
        return CipherState(first[:KEY_BYTES]), CipherState(second[:KEY_BYTES])


class Handshake:
    """One side of one XK handshake. Write and read alternately; the initiator writes first."""

    def __init__(
        self,
        *,
        initiator: bool,
        static: KeyPair,
        ephemeral: Callable[[], bytes],
        prologue: bytes,
        remote_static: bytes | None = None,
    ) -> None:
        """Begin a handshake that succeeds only between equal prologues.

        `ephemeral` gives 32 fresh secret random bytes and is called once. `remote_static` is the responder's 32-byte
        X25519 key: needed by the initiator, and only by it. Raises ValueError otherwise.
        """
        if initiator != (remote_static is not None):
            raise ValueError("the initiator, and only it, knows the other side's static key beforehand")
        if remote_static is not None and len(remote_static) != KEY_BYTES:
            raise ValueError("an X25519 public key has 32 bytes")
        self._initiator = initiator
        self._static = static
        self._ephemeral_source = ephemeral
        self._ephemeral: KeyPair | None = None
        self._remote_ephemeral: bytes | None = None
        self.remote_static = remote_static
        """The other side's X25519 key; the responder knows it once the third message was read."""
        self._turn = 0
        self._symmetric = SymmetricState(PROTOCOL_NAME)
        self._symmetric.mix_hash(prologue)
        self._symmetric.mix_hash(static.public if remote_static is None else remote_static)

    @property
    def is_complete(self) -> bool:
        """Whether all three messages went through."""
        return self._turn == len(_PATTERN)

    @property
    def handshake_hash(self) -> bytes:
        """64 bytes that name this very session on both sides, once complete (section 11.2)."""
        return self._symmetric.hash

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message. Raises HandshakeFailed for a key of low order, ValueError out of turn."""
        turn = self._begin_turn(writing=True)
        parts: list[bytes] = []
        for token in _PATTERN[turn]:
            match token:
                case "e":
                    self._ephemeral = KeyPair.of(self._ephemeral_source())
                    parts.append(self._ephemeral.public)
                    self._symmetric.mix_hash(self._ephemeral.public)
                case "s":
                    parts.append(self._symmetric.encrypt_and_hash(self._static.public))
                case "es" | "ee" | "se":
                    self._mix_dh(token)
                case _:
                    assert_never(token)
        parts.append(self._symmetric.encrypt_and_hash(payload))
        message = b"".join(parts)
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError("a Noise message has at most 65,535 bytes")
        self._turn = turn + 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the next message. Raises HandshakeFailed for any fault of it, ValueError out of turn."""
        turn = self._begin_turn(writing=False)
        if len(message) > MAX_MESSAGE_BYTES:
            raise HandshakeFailed
        rest = message
        try:
            for token in _PATTERN[turn]:
                match token:
                    case "e":
                        self._remote_ephemeral, rest = _take(rest, KEY_BYTES)
                        self._symmetric.mix_hash(self._remote_ephemeral)
                    case "s":
                        sealed, rest = _take(rest, KEY_BYTES + TAG_BYTES)
                        self.remote_static = self._symmetric.decrypt_and_hash(sealed)
                    case "es" | "ee" | "se":
                        self._mix_dh(token)
                    case _:
                        assert_never(token)
            payload = self._symmetric.decrypt_and_hash(rest)
        except ForgedMessage as e:
            raise HandshakeFailed from e
        self._turn = turn + 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers to send and to receive with, in this order. Raises ValueError before completion."""
        if not self.is_complete:
            raise ValueError("the handshake is not complete")
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    def _begin_turn(self, *, writing: bool) -> int:
        if not 0 <= self._turn < len(_PATTERN) or ((self._turn % 2 == 0) == self._initiator) != writing:
            raise ValueError("not this side's turn, or the handshake is over")
        turn = self._turn
        # Dead until the whole message went through: after a failure part of it is already mixed in.
        self._turn = _DEAD
        return turn

    def _mix_dh(self, token: Literal["es", "ee", "se"]) -> None:
        """DH of the two keys that `token` names, the initiator's first."""
        pair = token if self._initiator else token[::-1]
        local = self._static if pair[0] == "s" else self._ephemeral
        remote = self.remote_static if pair[1] == "s" else self._remote_ephemeral
        if local is None or remote is None:  # unreachable by the pattern's order
            raise HandshakeFailed
        self._symmetric.mix_key(_dh(local.secret, remote))


def _dh(secret: bytes, public: bytes) -> bytes:
    """X25519. Raises HandshakeFailed when the output is all zero: `public` is of low order (section 12.1)."""
    try:
        shared: bytes = bindings.crypto_scalarmult(secret, public)
    except CryptoError as e:
        raise HandshakeFailed from e
    return shared


def _hkdf2(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs of 64 bytes (section 4.3)."""
    prk = hmac.digest(chaining_key, material, hashlib.blake2b)
    first = hmac.digest(prk, b"\x01", hashlib.blake2b)
    return first, hmac.digest(prk, first + b"\x02", hashlib.blake2b)


def _take(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeFailed
    return data[:size], data[size:]
