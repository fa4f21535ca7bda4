"""Bytes to values and back: MessagePack bodies and signed envelopes (SPEC section 2).

A body is one MessagePack array with positional fields; a union is an array whose first element is its tag. Only
nil, booleans, integers, strings, binaries and arrays occur. Decoding checks the size before it parses, converts
strictly, and must encode to the same bytes again: one value has exactly one encoding, so hashes and signatures can
never be about two different readings.

An envelope is the array `[version, kind, network, signer, body, signature]`. The signature covers
`"p2pnode/1" ‖ kind ‖ network ‖ body` and the id is the BLAKE2b-256 of that same input. The id does not cover the
signer: whoever needs a key for an envelope uses `(signer, id)`, or a body that names its author.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgpack
import msgspec
from msgspec import inspect
from nacl import bindings
from nacl.exceptions import BadSignatureError

from protocol.errors import BadSignature, Malformed, TooLarge, UnknownKind, WrongNetworkEnvelope
from protocol.types import Network

VERSION: Final = 1
DOMAIN: Final = b"p2pnode/1"
MAX_ENVELOPE: Final = 1_000_000
"""Bytes of the largest envelope of any kind; each kind has its own, smaller limit."""

_SMALL: Final = 65_536
"""Bytes in which no array can be longer than `_parse` allows."""
_ENCODER: Final = msgspec.msgpack.Encoder()
_PLAIN: Final = (
    inspect.BoolType,
    inspect.BytesType,
    inspect.EnumType,
    inspect.IntType,
    inspect.LiteralType,
    inspect.NoneType,
    inspect.StrType,
)

T = TypeVar("T")


class Kind(IntEnum):
    """What a signed body is. An even kind must be understood; an odd one may be ignored (SPEC section 2.3)."""

    OFFER = 2
    OFFER_REVOCATION = 4
    CONTACT = 6
    ARBITER = 8
    CONTRACT = 16
    TAKE = 18
    ACCEPT = 20
    SEAL = 22
    PAYMENT_DETAILS = 24
    PAID = 26
    RELEASED = 28
    DECLINE = 30
    DISPUTED = 32
    SYNC = 33
    PROPOSAL = 34
    SYNCED = 35
    AGREED = 36
    RETURNED = 37
    EXTENSION = 38
    EXTENSION_REQUEST = 39
    FEE_PROPOSAL = 40
    CHAT = 41
    ATTACHMENT = 43
    RULING_SHOWN = 45
    FETCH = 46
    CASE_OPENING = 48
    CASE_ACCEPTED = 50
    CASE_DECLINED = 52
    CASE_EXTENDED = 54
    EVIDENCE = 56
    CASE_RULING = 58
    RULING = 60
    EQUIVOCATION = 62
    MAIL_SLIP = 64
    MAIL_CHUNK = 66
    MAIL_ANSWER = 68
    RECEIPT = 70
    RECEIPT_HALF = 71
    RATING = 72
    RULING_RECEIPT = 74
    BOND = 76

    @property
    def limit(self) -> int:
        """The largest envelope of this kind, in bytes."""
        return _LIMITS[self]


_LIMITS: Final[dict[Kind, int]] = {
    Kind.OFFER: 1_024,
    Kind.OFFER_REVOCATION: 512,
    Kind.CONTACT: 1_024,
    Kind.ARBITER: 1_024,
    Kind.CONTRACT: 16_384,
    Kind.TAKE: 500_000,
    Kind.ACCEPT: 500_000,
    Kind.SEAL: 16_384,
    Kind.PAYMENT_DETAILS: 8_192,
    Kind.PAID: 8_192,
    Kind.RELEASED: 1_024,
    Kind.DECLINE: 2_048,
    Kind.DISPUTED: 10_240,
    Kind.SYNC: 1_024,
    Kind.SYNCED: 1_024,
    Kind.RETURNED: MAX_ENVELOPE,
    Kind.PROPOSAL: 1_024,
    Kind.AGREED: 1_024,
    Kind.EXTENSION: 1_024,
    Kind.EXTENSION_REQUEST: 10_240,
    Kind.FEE_PROPOSAL: 1_024,
    Kind.CHAT: 10_240,
    Kind.ATTACHMENT: 4_096,
    Kind.RULING_SHOWN: 16_384,
    Kind.FETCH: 512,
    Kind.CASE_OPENING: 1_000_000,
    Kind.CASE_ACCEPTED: 32_768,
    Kind.CASE_DECLINED: 10_240,
    Kind.CASE_EXTENDED: 10_240,
    Kind.EVIDENCE: 32_768,
    Kind.CASE_RULING: 16_384,
    Kind.RULING: 512,
    Kind.EQUIVOCATION: 1_024,
    Kind.MAIL_SLIP: 512,
    Kind.MAIL_CHUNK: 1_024,
    Kind.MAIL_ANSWER: 512,
    Kind.RECEIPT: 512,
    Kind.RECEIPT_HALF: 1_024,
    Kind.RATING: 1_024,
    Kind.RULING_RECEIPT: 1_024,
    Kind.BOND: 512,
}
_LIMITS_BY_NUMBER: Final[dict[int, int]] = {int(kind): limit for kind, limit in _LIMITS.items()}


def kind_of(number: int) -> Kind | None:
    """The kind that `number` names; None where it is unknown and may be ignored.

    Raises UnknownKind for an even number that is not in the registry.
    """
    try:
        return Kind(number)
    except ValueError:
        if number % 2 == 0:
            raise UnknownKind(f"the peer sent a message of kind {number}, which this version does not know") from None
        return None


def digest(domain: bytes, *parts: bytes) -> bytes:
    """BLAKE2b-256 over a domain tag and length-prefixed parts: `len(x) as u32 ‖ x` for the tag and each part.

    The prefixes keep two different lists of parts from meeting in one input.
    """
    return blake2b(b"".join([len(x).to_bytes(4, "big") + x for x in (domain, *parts)]), digest_size=32).digest()


def pack(value: object) -> bytes:
    """The one encoding of a Struct (array-like), tuple or scalar of the protocol."""
    return bytes(msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)), use_bin_type=True))


def unpack(data: bytes, cls: type[T], *, limit: int) -> T:
    """Decode `data` as `cls`.

    Raises TooLarge when `data` is over `limit` bytes (before parsing), Malformed when it is not the one encoding
    of a valid value.
    """
    if len(data) > limit:
        raise TooLarge(f"the peer sent {len(data)} bytes where at most {limit} are allowed")
    decoder = _decoder(cls) if len(data) <= _SMALL else None  # type: ignore[arg-type]  # types are hashable
    if decoder is not None:
        try:
            value: T = decoder.decode(data)
            if _ENCODER.encode(value) == data:
                return value
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # the slow way says what is wrong
    return _unpack_slowly(data, cls, limit)


def _unpack_slowly(data: bytes, cls: type[T], limit: int) -> T:
    """What `unpack` means: parsed as the protocol's subset of MessagePack, converted, and encoded again."""
    raw = _parse(data, limit)
    try:
        value = msgspec.convert(raw, cls, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as e:
        raise Malformed(f"not a valid {cls_name(cls)}: {e}") from e
    except RecursionError as e:
        raise Malformed(f"not a valid {cls_name(cls)}: nested too deeply") from e
    # One value, one encoding: trailing fields, long integers and the like would let two byte strings mean the same.
    if pack(value) != data:
        raise Malformed(f"not a valid {cls_name(cls)}: not in canonical form")
    return value


@lru_cache(maxsize=512)
def _decoder(cls: Any) -> msgspec.msgpack.Decoder[Any] | None:  # noqa: ANN401  (a class or a union of classes)
    """A decoder that goes from bytes to values at once; None for types that it might read more from than `_parse`."""
    return msgspec.msgpack.Decoder(cls) if _is_plain(inspect.type_info(cls), ()) else None


def _is_plain(info: inspect.Type, seen: tuple[type, ...]) -> bool:
    """Whether a type holds only what has one encoding and no depth without end: then to encode again proves it all."""
    match info:
        case inspect.Metadata():
            return _is_plain(info.type, seen)
        case inspect.StructType():
            fields = (_is_plain(field.type, (*seen, info.cls)) for field in info.fields)
            return info.array_like and info.cls not in seen and all(fields)
        case inspect.UnionType():
            return all(_is_plain(one, seen) for one in info.types)
        case inspect.VarTupleType():
            return _is_plain(info.item_type, seen)
        case inspect.TupleType():
            return all(_is_plain(one, seen) for one in info.item_types)
        case _:
            return isinstance(info, _PLAIN)


def cls_name(cls: Any) -> str:  # noqa: ANN401  (a class or a union of classes)
    """A readable name for a Struct or a union, for messages."""
    return getattr(cls, "__name__", str(cls))


def _parse(data: bytes, limit: int) -> Any:  # noqa: ANN401  (MessagePack is untyped until converted)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=min(limit, 65_536),
            max_map_len=0,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as e:
        raise Malformed(f"not MessagePack as this protocol uses it: {type(e).__name__}") from e


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    version: int
    kind: int
    network: int
    signer: bytes
    body: bytes
    signature: bytes


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A body and the signature of the key that vouches for it. `raw` is exactly what was received or sent."""

    kind: int
    network: Network
    signer: bytes
    body: bytes
    signature: bytes
    raw: bytes

    @property
    def id(self) -> bytes:
        """BLAKE2b-256 of the signed input; the same for every signer of the same body."""
        return envelope_id(self.kind, self.network, self.body)


def signed_input(kind: int, network: Network, body: bytes) -> bytes:
    """What an envelope's signature covers: `"p2pnode/1" ‖ kind as u16 ‖ network as u8 ‖ body`."""
    return _signed_head(kind, network) + body


@lru_cache(maxsize=512)
def _signed_head(kind: int, network: Network) -> bytes:
    return DOMAIN + kind.to_bytes(2, "big") + network.to_bytes(1, "big")


def envelope_id(kind: int, network: Network, body: bytes) -> bytes:
    """The id an envelope of this content has, whoever signs it."""
    return blake2b(signed_input(kind, network, body), digest_size=32).digest()


def sign_body(kind: int, network: Network, seed: bytes, body: bytes) -> bytes:
    """The 64-byte Ed25519 signature of the key with this 32-byte seed over the envelope's input."""
    _, secret = _keypair(seed)
    return bindings.crypto_sign(signed_input(kind, network, body), secret)[:64]


def verify_body(kind: int, network: Network, signer: bytes, body: bytes, signature: bytes) -> None:
    """Check a detached envelope signature. Raises BadSignature."""
    try:
        bindings.crypto_sign_open(signature + signed_input(kind, network, body), signer)
    except (BadSignatureError, ValueError, TypeError) as e:
        raise BadSignature from e


def seal(kind: int, network: Network, seed: bytes, body: bytes) -> Envelope:
    """Sign `body` with the Ed25519 key of the 32-byte `seed`."""
    signer, _ = _keypair(seed)
    return assemble(kind, network, signer, body, sign_body(kind, network, seed, body))


def assemble(kind: int, network: Network, signer: bytes, body: bytes, signature: bytes) -> Envelope:
    """The envelope of parts that are already signed; nothing is verified."""
    raw = pack(_Wire(VERSION, kind, int(network), signer, body, signature))
    return Envelope(kind=kind, network=network, signer=signer, body=body, signature=signature, raw=raw)


def open_envelope(raw: bytes, network: Network, *, limit: int = MAX_ENVELOPE) -> Envelope:
    """Decode and verify an envelope.

    Raises TooLarge, Malformed, WrongNetworkEnvelope, or BadSignature. An unknown kind passes: see `kind_of`.
    """
    envelope = parse_envelope(raw, network, limit=limit)
    verify_body(envelope.kind, envelope.network, envelope.signer, envelope.body, envelope.signature)
    return envelope


def parse_envelope(raw: bytes, network: Network, *, limit: int = MAX_ENVELOPE) -> Envelope:
    """`open_envelope` without the signature check, for callers that verify in batches or only on use."""
    wire = unpack(raw, _Wire, limit=limit)
    if wire.version != VERSION:
        raise Malformed(f"envelope version {wire.version} is not known to this version")
    if not 0 <= wire.kind <= 0xFFFF or len(wire.signer) != 32 or len(wire.signature) != 64:
        raise Malformed("envelope fields have the wrong size")
    if wire.network != network:
        raise WrongNetworkEnvelope
    if len(raw) > (most := _LIMITS_BY_NUMBER.get(wire.kind, limit)):
        raise TooLarge(f"a message of kind {wire.kind} may have {most} bytes, not {len(raw)}")
    return Envelope(
        kind=wire.kind, network=network, signer=wire.signer, body=wire.body, signature=wire.signature, raw=raw
    )


@lru_cache(maxsize=256)
def _keypair(seed: bytes) -> tuple[bytes, bytes]:
    public, secret = bindings.crypto_sign_seed_keypair(seed)
    return public, secret
