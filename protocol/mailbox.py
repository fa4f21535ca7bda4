"""Mail for a persona that can't be reached: sealed, cut into records, answered by a record (SPEC section 12).

Theory of operation. A *parcel* is one signed envelope on its way to one persona. All its keys come from one random
secret of 32 bytes, which its sender forgets once the parcel is answered:

    secret ─┬─ slip key    signs the slip, and is the ephemeral key of the sealed box in it
            └─ chunk key   signs the chunks; its seed travels inside the box

The *slip* lies in the recipient's mailbox. It says in clear only whose mailbox, and from when to when; the sealed box
in it holds the seed of the chunk key, how many chunks there are, and the hash of them all. The *chunks* lie under
topics that follow from the chunk key. So who holds a slip learns neither the sender nor the size, who holds chunks
learns neither end, and a stranger can put nothing between the chunks: what lies there is signed by a key that he lacks.

The *answer* is the recipient's: signed by the persona, it takes the slip's place as its tombstone and says, readable
only by the two, which envelope was handled and with which code. The sender may take slip and chunks back by tombstones
of its own: the same records without content.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Final, TypeVar

from msgspec import Meta, Struct
from nacl import bindings
from nacl.exceptions import CryptoError

from protocol.errors import Malformed, TooLarge
from protocol.identity import BadId, SigningKey, x25519_of
from protocol.types import Hash32, Network, PersonaId, UnixTime
from protocol.wire import Envelope, Kind, digest, pack, unpack
from protocol.work import NO_WORK, WorkNonce, find_work, work_bits

MAX_MAIL_LIFETIME: Final = 14 * 86_400
"""Seconds that mail waits."""
SLIP_WORK_BITS: Final = 14
CHUNK_WORK_BITS: Final = 12
"""Per chunk: the work of a parcel grows with its size."""
ANSWER_WORK_BITS: Final = 10
CHUNK_BYTES: Final = 800
BUCKETS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of chunks that a parcel may have; content is padded to the next."""
CHUNKS_PER_TOPIC: Final = 8
"""So many lie under one topic, so that a large parcel is fetched from several at once."""
ACCEPTED: Final = 0
"""The code of an answer that says: committed."""

_TAG: Final = 16
_OVERHEAD: Final = _TAG + 4
MAX_MAIL: Final = BUCKETS[-1] * CHUNK_BYTES - _OVERHEAD
"""Bytes of the largest envelope that goes by mail."""
_SEALED: Final = 32 + 1 + 32 + _TAG
_ANSWER: Final = 24 + 32 + 2 + _TAG
_ONCE: Final = bytes(24)
"""The nonce under a key that encrypts one thing only."""

Key32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key that serves one parcel."""


class Slip(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """There is mail for `recipient`. `sealed` is empty in the tombstone by which the sender takes it back."""

    author: Key32
    recipient: PersonaId
    created: UnixTime
    expires: UnixTime
    sealed: Annotated[bytes, Meta(max_length=_SEALED)]
    work: WorkNonce = NO_WORK


class Chunk(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A piece of a parcel's ciphertext. `data` is empty in the tombstone by which the sender takes it back."""

    author: Key32
    index: Annotated[int, Meta(ge=0, le=BUCKETS[-1] - 1)]
    created: UnixTime
    expires: UnixTime
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]
    work: WorkNonce = NO_WORK


class Answer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The recipient has handled the parcel of `slip`. `sequence` is the slip's `created`, `expires` the slip's."""

    recipient: PersonaId
    slip: Key32
    sequence: UnixTime
    expires: UnixTime
    sealed: Annotated[bytes, Meta(min_length=_ANSWER, max_length=_ANSWER)]
    work: WorkNonce = NO_WORK


_Mail = TypeVar("_Mail", Slip, Chunk, Answer)


class Manifest(Struct, frozen=True):
    """What a slip says to its recipient."""

    seed: bytes
    """Of the chunk key."""
    count: int
    hash: Hash32
    """BLAKE2b-256 of the chunks' data, in order."""

    @property
    def author(self) -> bytes:
        """Whose chunks they are, and what their topics follow from."""
        return SigningKey(self.seed).public


class Parcel(Struct, frozen=True):
    """The records of one parcel, or their tombstones."""

    slip: Envelope
    chunks: tuple[Envelope, ...]


# --- the sender's side ------------------------------------------------------------------------------------------------


def slip_key(secret: bytes) -> SigningKey:
    """The slip key of a parcel's 32-byte secret."""
    return SigningKey(digest(b"p2pnode/mail-slip", secret))


def chunk_key(secret: bytes) -> SigningKey:
    """The chunk key of a parcel's 32-byte secret."""
    return SigningKey(digest(b"p2pnode/mail-chunks", secret))


def make_parcel(
    secret: bytes, recipient: bytes, envelope: bytes, network: Network, *, created: int, expires: int
) -> Parcel:
    """Seal the raw `envelope` to the persona `recipient`.

    `secret`: 32 random bytes used for nothing else. Takes 2^14 attempts of work, and 2^12 more for each chunk (about 30
    and 8 milliseconds). Raises TooLarge when it has over MAX_MAIL bytes, BadId when `recipient` is no usable key.
    """
    if len(envelope) > MAX_MAIL:
        raise TooLarge(f"a message of {len(envelope)} bytes: at most {MAX_MAIL} go by mail")
    theirs = x25519_of(recipient)
    count = next(n for n in BUCKETS if n * CHUNK_BYTES >= len(envelope) + _OVERHEAD)
    seed = chunk_key(secret).seed
    padded = len(envelope).to_bytes(4, "big") + envelope
    sealed = bindings.crypto_secretbox(padded.ljust(count * CHUNK_BYTES - _TAG, b"\0"), _ONCE, _content_key(seed))
    manifest = seed + bytes([count]) + _hash(sealed)
    key = slip_key(secret)
    box = bindings.crypto_box(manifest, _box_nonce(key.x25519_public, theirs), theirs, key.x25519_secret)
    pieces = [sealed[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES] for i in range(count)]
    return _parcel(secret, recipient, box, pieces, network, created, expires)


def withdraw_parcel(
    secret: bytes, recipient: bytes, count: int, network: Network, *, created: int, expires: int
) -> Parcel:
    """The tombstones of a parcel of `count` chunks that was made with the same times."""
    return _parcel(secret, recipient, b"", [b""] * count, network, created, expires)


def _parcel(
    secret: bytes, recipient: bytes, sealed: bytes, pieces: list[bytes], network: Network, created: int, expires: int
) -> Parcel:
    key, cutter = slip_key(secret), chunk_key(secret)
    slip = Slip(key.public, recipient, created, expires, sealed)
    chunks = (Chunk(cutter.public, i, created, expires, piece) for i, piece in enumerate(pieces))
    return Parcel(
        _worked(Kind.MAIL_SLIP, network, key, slip, SLIP_WORK_BITS),
        tuple(_worked(Kind.MAIL_CHUNK, network, cutter, chunk, CHUNK_WORK_BITS) for chunk in chunks),
    )


def open_answer(answer: Answer, secret: bytes) -> tuple[bytes, int]:
    """What the recipient says to the sender of the parcel: the id of the envelope, and the code.

    Raises Malformed when the answer was not made by one who opened the slip and its content.
    """
    nonce, box = answer.sealed[:24], answer.sealed[24:]
    try:
        key = _answer_key(slip_key(secret), answer.recipient)
        said = bindings.crypto_secretbox_open(box, nonce, key)
    except (CryptoError, BadId) as e:
        raise Malformed("not an answer to this parcel") from e
    return said[:32], int.from_bytes(said[32:], "big")


# --- the recipient's side ---------------------------------------------------------------------------------------------


def open_slip(slip: Slip, key: SigningKey) -> Manifest:
    """What the sealed box in a slip says, opened with the recipient's persona key. Raises Malformed."""
    try:
        ephemeral = x25519_of(slip.author)
        plain = bindings.crypto_box_seal_open(ephemeral + slip.sealed, key.x25519_public, key.x25519_secret)
    except (CryptoError, BadId) as e:
        raise Malformed("a slip that was not sealed to this persona") from e
    if plain[32] not in BUCKETS:
        raise Malformed("a slip with an impossible number of chunks")
    return Manifest(plain[:32], plain[32], plain[33:])


def join(manifest: Manifest, chunks: Iterable[Chunk]) -> bytes | None:
    """The raw envelope of a parcel; None while chunks are missing.

    Raises Malformed when they are all there and are not what the slip promised.
    """
    by_index = {c.index: c.data for c in chunks if c.author == manifest.author and c.index < manifest.count}
    if len(by_index) < manifest.count:
        return None
    sealed = b"".join(by_index[i] for i in range(manifest.count))
    if len(sealed) != manifest.count * CHUNK_BYTES or _hash(sealed) != manifest.hash:
        raise Malformed("the chunks of a parcel are not those that its slip names")
    try:
        padded = bindings.crypto_secretbox_open(sealed, _ONCE, _content_key(manifest.seed))
    except CryptoError as e:
        raise Malformed("the content of a parcel does not open") from e
    size = int.from_bytes(padded[:4], "big")
    if size > len(padded) - 4 or any(padded[4 + size :]):
        raise Malformed("the content of a parcel is not padded with zeros")
    return padded[4 : 4 + size]


def make_answer(slip: Slip, key: SigningKey, message: bytes, code: int, network: Network) -> Envelope:
    """The recipient's answer about the envelope with the id `message`: ACCEPTED, or the error code of the refusal."""
    said = message + code.to_bytes(2, "big")
    secret = _answer_key(key, slip.author)
    # From what is said, so that two different answers to one parcel never share a nonce.
    nonce = blake2b(said, key=secret, digest_size=24).digest()
    sealed = nonce + bindings.crypto_secretbox(said, nonce, secret)
    answer = Answer(key.public, slip.author, slip.created, slip.expires, sealed)
    return _worked(Kind.MAIL_ANSWER, network, key, answer, ANSWER_WORK_BITS)


# --- what every node checks -------------------------------------------------------------------------------------------


def read_slip(envelope: Envelope, network: Network) -> Slip:
    """The slip in a verified envelope. Raises Malformed."""
    slip = _read(envelope, network, Kind.MAIL_SLIP, Slip, SLIP_WORK_BITS)
    if slip.author != envelope.signer:
        raise Malformed("a slip must be signed by the key that it names")
    if len(slip.sealed) not in (0, _SEALED):
        raise Malformed("a slip's box has the wrong size")
    _check_life(slip.created, slip.expires)
    return slip


def read_chunk(envelope: Envelope, network: Network) -> Chunk:
    """The chunk in a verified envelope. Raises Malformed."""
    chunk = _read(envelope, network, Kind.MAIL_CHUNK, Chunk, CHUNK_WORK_BITS)
    if chunk.author != envelope.signer:
        raise Malformed("a chunk must be signed by the key that it names")
    if len(chunk.data) not in (0, CHUNK_BYTES):
        raise Malformed("a chunk has the wrong size")
    _check_life(chunk.created, chunk.expires)
    return chunk


def read_answer(envelope: Envelope, network: Network) -> Answer:
    """The answer in a verified envelope. Raises Malformed."""
    answer = _read(envelope, network, Kind.MAIL_ANSWER, Answer, ANSWER_WORK_BITS)
    if answer.recipient != envelope.signer:
        raise Malformed("an answer must be signed by the recipient that it names")
    _check_life(answer.sequence, answer.expires)
    return answer


def _read(envelope: Envelope, network: Network, kind: Kind, cls: type[_Mail], bits: int) -> _Mail:
    if envelope.kind != kind or envelope.network != network:
        raise Malformed("not mail of this network")
    value = unpack(envelope.body, cls, limit=kind.limit)
    if work_bits(envelope.id) < bits:
        raise Malformed("mail needs more proof of work")
    return value


def _check_life(created: int, expires: int) -> None:
    if not created < expires <= created + MAX_MAIL_LIFETIME:
        raise Malformed("mail must expire after its creation and within 14 days")


def _worked(kind: Kind, network: Network, key: SigningKey, value: Slip | Chunk | Answer, bits: int) -> Envelope:
    return key.seal(kind, network, find_work(kind, network, pack(value), bits))


def _content_key(seed: bytes) -> bytes:
    return digest(b"p2pnode/mail-content", seed)


def _hash(sealed: bytes) -> bytes:
    return blake2b(sealed, digest_size=32).digest()


def _box_nonce(ephemeral: bytes, recipient: bytes) -> bytes:
    """As libsodium's sealed boxes have it, so that any of its bindings opens them."""
    return blake2b(ephemeral + recipient, digest_size=24).digest()


def _answer_key(own: SigningKey, other: bytes) -> bytes:
    return digest(b"p2pnode/mail-answer", bindings.crypto_box_beforenm(x25519_of(other), own.x25519_secret))
