"""Datagrams: authenticated, encrypted, at most one MTU (SPEC, DHT packets).

Two nodes share a secret: X25519 of their node keys. From it come two keys, one per direction, made once and kept with
the peer. A request carries the sender's node key in clear, since the receiver must know whose secret to use; a reply
does not, since its request id says it. Both are sealed with XSalsa20-Poly1305: 1.6 µs, half of what ChaCha20-Poly1305
costs through the same library, and one fortieth of an Ed25519 signature and its check.

    request  D1 ‖ sender key (32) ‖ request id (12) ‖ box(plaintext)           nonce: id ‖ 12 zero bytes
    reply    D2 ‖ request id (12) ‖ salt (8) ‖ box(plaintext)                  nonce: id ‖ salt ‖ 00 00 00 01
    hello    D3 ‖ request id (12) ‖ zeros to 64 bytes                          asks for a node key, nothing else
    welcome  D4 ‖ request id (12) ‖ node key (32)

A request is sent again with the same bytes, so its nonce never seals two plaintexts; a reply is made anew each time and
has a fresh salt. The keys name the network, so networks can't mix.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from dht.errors import BadPacket
from protocol.types import Network

MTU: Final = 1_200
REQUEST: Final = 0xD1
REPLY: Final = 0xD2
HELLO: Final = 0xD3
WELCOME: Final = 0xD4
RID_BYTES: Final = 12
SALT_BYTES: Final = 8
BOX_BYTES: Final = 16
REQUEST_HEAD: Final = 1 + 32 + RID_BYTES
REPLY_HEAD: Final = 1 + RID_BYTES + SALT_BYTES
REQUEST_ROOM: Final = MTU - REQUEST_HEAD - BOX_BYTES
"""Bytes of the largest plaintext of a request: 1,139."""
REPLY_ROOM: Final = MTU - REPLY_HEAD - BOX_BYTES
"""Bytes of the largest plaintext of a reply: 1,163."""
HELLO_BYTES: Final = 64
WELCOME_BYTES: Final = 1 + RID_BYTES + 32

_REQUEST_TAIL: Final = bytes(12)
_REPLY_TAIL: Final = b"\0\0\0\1"

_seal = bindings.crypto_secretbox
_open = bindings.crypto_secretbox_open


def direction_keys(
    x25519_secret: bytes, own_key: bytes, peer_key: bytes, peer_curve: bytes, network: Network
) -> tuple[bytes, bytes]:
    """The keys (to the peer, from the peer) of two nodes. `own_key` and `peer_key` are the Ed25519 node keys.

    Raises BadPacket when the peer's point has a small order (the secret would be known to everyone).
    """
    try:
        shared = bindings.crypto_scalarmult(x25519_secret, peer_curve)
    except (CryptoError, RuntimeError) as e:
        raise BadPacket("a node key of small order") from e
    person = b"p2pnode/dht-" + bytes([int(network)])
    to_peer = blake2b(own_key + peer_key, key=shared, digest_size=32, person=person).digest()
    from_peer = blake2b(peer_key + own_key, key=shared, digest_size=32, person=person).digest()
    return to_peer, from_peer


def seal_request(key: bytes, sender: bytes, rid: bytes, plaintext: bytes) -> bytes:
    """The datagram of a request under the key towards the peer."""
    return b"\xd1" + sender + rid + _seal(plaintext, rid + _REQUEST_TAIL, key)


def open_request(key: bytes, datagram: bytes) -> bytes:
    """The plaintext of a request under the key from the peer. Raises BadPacket."""
    try:
        return bytes(_open(datagram[REQUEST_HEAD:], datagram[33:REQUEST_HEAD] + _REQUEST_TAIL, key))
    except (CryptoError, ValueError) as e:
        raise BadPacket("a request that does not authenticate") from e


def seal_reply(key: bytes, rid: bytes, salt: bytes, plaintext: bytes) -> bytes:
    """The datagram of a reply under the key towards the peer; `salt` is 8 fresh random bytes."""
    return b"\xd2" + rid + salt + _seal(plaintext, rid + salt + _REPLY_TAIL, key)


def open_reply(key: bytes, datagram: bytes) -> bytes:
    """The plaintext of a reply under the key from the peer. Raises BadPacket."""
    try:
        return bytes(_open(datagram[REPLY_HEAD:], datagram[1:REPLY_HEAD] + _REPLY_TAIL, key))
    except (CryptoError, ValueError) as e:
        raise BadPacket("a reply that does not authenticate") from e


def hello(rid: bytes) -> bytes:
    """A datagram that asks for the node key at an address. Larger than its answer, so nothing is amplified."""
    return (b"\xd3" + rid).ljust(HELLO_BYTES, b"\0")


def welcome(rid: bytes, key: bytes) -> bytes:
    """The answer to a hello."""
    return b"\xd4" + rid + key


class Tokens:
    """Proofs that a peer receives at an address: 8-byte MACs over key and address under a secret that rotates.

    Stateless: nothing is kept per peer. A token is honoured for at least one and at most two periods.
    """

    PERIOD_S: Final = 300.0

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._epoch = -1
        self._macs: tuple[blake2b, blake2b] | None = None

    def issue(self, peer_key: bytes, address: bytes, now: float) -> bytes:
        """The token to hand to `peer_key` at `address` (any stable bytes of it)."""
        mac = self._current(now)[0].copy()
        mac.update(peer_key + address)
        return mac.digest()

    def valid(self, token: bytes, peer_key: bytes, address: bytes, now: float) -> bool:
        """Whether `token` was issued to this key at this address, this period or the last."""
        for base in self._current(now):
            mac = base.copy()
            mac.update(peer_key + address)
            # Not a constant-time comparison on purpose: 8 bytes over the network, for a right that expires in minutes.
            if mac.digest() == token:
                return True
        return False

    def _current(self, now: float) -> tuple[blake2b, blake2b]:
        epoch = int(now / self.PERIOD_S)
        if self._macs is None or epoch != self._epoch:
            self._epoch = epoch
            self._macs = (self._mac(epoch), self._mac(epoch - 1))
        return self._macs

    def _mac(self, epoch: int) -> blake2b:
        return blake2b(key=self._secret, digest_size=8, salt=(epoch & (2**64 - 1)).to_bytes(8, "big"))
