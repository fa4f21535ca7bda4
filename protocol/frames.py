"""The layout of one channel frame (SPEC, section Channels).

A frame is one Noise transport message. On the wire: its length in two bytes, then the ciphertext. Inside:

    kind 1 | flags 1 | stream 8 | size 2 | payload | zeros

all integers big endian. The zeros pad the plaintext to one of `PLAINTEXT_SIZES`, so that an eavesdropper sees few
distinct lengths; a receiver refuses any other, hence knows from the two length bytes alone whether to read on.
Kinds that are even must be understood; odd ones may be ignored. Which frame is allowed when is `session.py`'s matter.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from protocol.errors import Malformed, PeerViolation
from protocol.noise import MAX_MESSAGE_BYTES, TAG_BYTES, CipherState

PLAINTEXT_SIZES: Final = (128, 512, 2_048, 4_096, 8_192, 16_384, 32_768, MAX_MESSAGE_BYTES - TAG_BYTES)
"""What a plaintext is padded to: the smallest of these that holds it."""

FRAME_SIZES: Final = frozenset(size + TAG_BYTES for size in PLAINTEXT_SIZES)
"""The values of the length bytes that a transport message may have."""

LENGTH: Final = Struct(">H")
HEADER: Final = Struct(">BBQH")
MAX_PAYLOAD: Final = PLAINTEXT_SIZES[-1] - HEADER.size
REKEY_FRAMES: Final = 65_536
"""How many frames one key may encrypt; the last of them must be REKEY."""
FLAG_END: Final = 1
"""The sender's half of the stream ends with this frame. The other seven flags are reserved and zero."""

_ZEROS: Final = bytes(PLAINTEXT_SIZES[-1])


class FrameKind(IntEnum):
    """What a frame says; the payload's layout stands beside each."""

    OPEN = 2
    """Begin a stream. Payload: service 2, then the first bytes of the body."""
    DATA = 4
    """More of the body. Payload: bytes, at least one unless the stream ends here."""
    RESET = 6
    """Abandon the stream, both ways. Payload: code 2."""
    WINDOW = 8
    """Allow more bytes, on a stream or (stream 0) on the session. Payload: increment 4."""
    PING = 10
    """Ask for a sign of life. Payload: 8 bytes to return."""
    PONG = 12
    """The answer to a ping. Payload: its 8 bytes."""
    REKEY = 14
    """The sender's key changes after this frame. No payload."""
    CLOSE = 16
    """Nothing follows. Payload: code 2, the highest stream of the receiver's that the sender saw 8."""


class BadFrame(Malformed):
    """The peer sent a channel frame of a wrong size or layout."""

    code = 2203


class RekeyMissed(PeerViolation):
    """The peer encrypted more under one key than the protocol allows."""

    code = 2204


class Frame(NamedTuple):
    """A frame's content. `kind` may be one that this version does not know."""

    kind: int
    stream: int
    payload: bytes
    flags: int = 0


def encode(kind: int, stream: int, flags: int, *parts: bytes | memoryview) -> bytes:
    """The padded plaintext of a frame whose payload is `parts` joined: so a large body is copied once only.

    Raises ValueError for more than MAX_PAYLOAD bytes.
    """
    size = sum(map(len, parts))
    if size > MAX_PAYLOAD:
        raise ValueError("a frame's payload is limited to MAX_PAYLOAD bytes")
    used = HEADER.size + size
    padded = PLAINTEXT_SIZES[bisect_left(PLAINTEXT_SIZES, used)]
    return b"".join((HEADER.pack(kind, flags, stream, size), *parts, _ZEROS[: padded - used]))


def decode(plaintext: bytes) -> Frame:
    """The frame in a padded plaintext. Raises BadFrame for a wrong length, size field or padding."""
    if len(plaintext) + TAG_BYTES not in FRAME_SIZES:
        raise BadFrame("a frame was not padded to one of the allowed sizes")
    kind, flags, stream, size = HEADER.unpack_from(plaintext)
    end = HEADER.size + size
    if end > len(plaintext):
        raise BadFrame("a frame claims more bytes than it has")
    if plaintext[end:] != _ZEROS[: len(plaintext) - end]:
        raise BadFrame("a frame's padding is not zero")
    return Frame(kind, stream, plaintext[HEADER.size : end], flags)


class Sealer:
    """Encrypts the frames of one direction."""

    __slots__ = ("_cipher", "_count")

    def __init__(self, cipher: CipherState) -> None:
        """Begin with the fresh cipher of the handshake."""
        self._cipher = cipher
        self._count = 0

    @property
    def must_rekey(self) -> bool:
        """Whether the next frame has to be REKEY."""
        return self._count == REKEY_FRAMES - 1

    def seal(self, plaintext: bytes) -> bytes:
        """The bytes on the wire of an encoded frame that is not REKEY."""
        self._count += 1
        sealed = self._cipher.encrypt(plaintext)
        return LENGTH.pack(len(sealed)) + sealed

    def seal_rekey(self) -> bytes:
        """The bytes on the wire of a REKEY frame; what follows is encrypted under the next key."""
        wire = self.seal(encode(FrameKind.REKEY, 0, 0))
        self._cipher.rekey()
        self._count = 0
        return wire


class Opener:
    """Decrypts the frames of one direction, and follows its REKEY frames."""

    __slots__ = ("_cipher", "_count")

    def __init__(self, cipher: CipherState) -> None:
        """Begin with the fresh cipher of the handshake."""
        self._cipher = cipher
        self._count = 0

    def open(self, sealed: bytes) -> Frame:
        """The frame in a ciphertext; that a REKEY is empty is the session's to check. Raises PeerViolations."""
        frame = decode(self._cipher.decrypt(sealed))
        self._count += 1
        if frame.kind == FrameKind.REKEY:
            self._cipher.rekey()
            self._count = 0
        elif self._count == REKEY_FRAMES:
            raise RekeyMissed
        return frame
