"""Partially signed transactions, version 0 (BIP174): bytes to values and back. Nothing here decides.

A PSBT is an unsigned transaction and maps of fields: one for the whole, one for each input, one for each output. They
are kept as they come, keys and values as bytes, so that what another program added survives; what we need of them is
read by the functions below. Our own because no library that we have on every platform can write the fields that
hardware wallets ask for (docs/adr/0009-psbt-and-recovery.md). `escrow/psbtplan.py` fills and judges them.

Decoding is strict: sizes before parsing, no key twice, no byte left over, keys of known fields of their one length.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from escrow.coins import TxOut
from escrow.signatures import is_point
from escrow.transactions import NotATransaction, Witness, parse, stripped
from protocol.errors import UserError

MAX_PSBT: Final = 2_000_000
"""Bytes of the largest PSBT that is read; sixteen inputs with the largest previous transactions take half of it."""

MAGIC: Final = b"psbt\xff"

GLOBAL_UNSIGNED: Final = 0x00
GLOBAL_VERSION: Final = 0xFB
PROPRIETARY: Final = 0xFC

IN_PREVIOUS: Final = 0x00
IN_SPENT: Final = 0x01
IN_PARTIAL: Final = 0x02
IN_SIGHASH: Final = 0x03
IN_WITNESS_SCRIPT: Final = 0x05
IN_ORIGIN: Final = 0x06
IN_FINAL_SCRIPT: Final = 0x07
IN_FINAL_WITNESS: Final = 0x08
IN_TAP_SIGNATURE: Final = 0x13
IN_TAP_ORIGIN: Final = 0x16
IN_TAP_INTERNAL: Final = 0x17

OUT_ORIGIN: Final = 0x02
OUT_TAP_INTERNAL: Final = 0x05
OUT_TAP_ORIGIN: Final = 0x07

Map = Mapping[bytes, bytes]
"""Fields by key; a key is the field's type and, for some types, data such as a public key."""

_PLAIN: Final = {0x00, 0x01, 0x03, 0x04, 0x05, 0x07, 0x08, 0x13, 0x17, 0x18}
"""Types of input fields whose key holds nothing else."""
_PLAIN_OUT: Final = {0x00, 0x01, 0x05, 0x06}
_KEYED: Final = {IN_PARTIAL: 33, IN_ORIGIN: 33, IN_TAP_ORIGIN: 32}
_KEYED_OUT: Final = {OUT_ORIGIN: 33, OUT_TAP_ORIGIN: 32}


class BadPsbt(UserError):
    """That is not a PSBT that this trade can use."""

    code = 3231


class StalePsbt(UserError):
    """Stale PSBT: it is for another transaction than this trade's present one; export it again and sign that."""

    code = 3232


class UnsignedPsbt(UserError):
    """The PSBT lacks a signature that is needed: sign it with the wallet that holds the key, then try again."""

    code = 3233


class Psbt(Struct, frozen=True):
    """A PSBT. `unsigned` is its transaction; `extra` the other fields of the whole."""

    unsigned: bytes
    inputs: tuple[Map, ...]
    outputs: tuple[Map, ...]
    extra: Map = {}


class KeyOrigin(Struct, frozen=True):
    """Where a key comes from (BIP32): its master's fingerprint, 4 bytes, and the path from it (BIP174's own form).

    `public` has 33 bytes; for a taproot output it is the internal key.
    """

    public: bytes
    fingerprint: bytes
    path: tuple[int, ...]

    @property
    def packed(self) -> bytes:
        """The value of an origin field."""
        return self.fingerprint + b"".join(step.to_bytes(4, "little") for step in self.path)


def encode(psbt: Psbt) -> bytes:
    """The bytes of a PSBT, fields sorted by key."""
    whole = {bytes([GLOBAL_UNSIGNED]): psbt.unsigned, **psbt.extra}
    return MAGIC + b"".join(map(_map_bytes, (whole, *psbt.inputs, *psbt.outputs)))


def text(psbt: Psbt) -> str:
    """The Base64 form, which most programs read."""
    return base64.b64encode(encode(psbt)).decode()


def read(data: bytes) -> Psbt:
    """A PSBT from a file's content: binary, or Base64 text with or without line breaks. Raises BadPsbt."""
    if len(data) > MAX_PSBT * 4 // 3 + 100_000:
        raise BadPsbt(f"a PSBT of more than {MAX_PSBT:,} bytes is not read")
    if not data.startswith(MAGIC):
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except (binascii.Error, ValueError) as e:
            raise BadPsbt("that is not a PSBT: neither its binary form nor Base64") from e
    return decode(data)


def decode(data: bytes) -> Psbt:
    """The PSBT of its binary form. Raises BadPsbt."""
    if len(data) > MAX_PSBT:
        raise BadPsbt(f"a PSBT of more than {MAX_PSBT:,} bytes is not read")
    if not data.startswith(MAGIC):
        raise BadPsbt("that is not a PSBT")
    try:
        whole, at = _read_map(data, len(MAGIC))
        unsigned = _unsigned_of(whole)
        tx = parse(unsigned)
        maps = []
        for _ in range(len(tx.vin) + len(tx.vout)):
            fields, at = _read_map(data, at)
            maps.append(fields)
    except (IndexError, NotATransaction) as e:
        raise BadPsbt("the PSBT is damaged: it ends early, or its transaction can't be read") from e
    if at != len(data):
        raise BadPsbt("the PSBT is damaged: more follows its end")
    inputs, outputs = tuple(maps[: len(tx.vin)]), tuple(maps[len(tx.vin) :])
    try:
        for fields in inputs:
            _check_keys(fields, _PLAIN, _KEYED)
        for fields in outputs:
            _check_keys(fields, _PLAIN_OUT, _KEYED_OUT)
        _check_keys(whole, {GLOBAL_UNSIGNED, GLOBAL_VERSION}, {})
    except IndexError as e:
        raise BadPsbt("the PSBT is damaged: a proprietary field has no name") from e
    return Psbt(unsigned, inputs, outputs, {k: v for k, v in whole.items() if k != bytes([GLOBAL_UNSIGNED])})


def field(kind: int, data: bytes = b"") -> bytes:
    """The key of a field."""
    return bytes([kind]) + data


def keyed(fields: Map, kind: int) -> dict[bytes, bytes]:
    """The fields of one type, by the data in their keys."""
    return {key[1:]: value for key, value in fields.items() if key[0] == kind}


def proprietary(subtype: int) -> bytes:
    """The key of a field of our own: BIP174's proprietary type under the name `p2pnode`."""
    return field(PROPRIETARY, _size(len(_OURS)) + _OURS + _size(subtype))


_OURS: Final = b"p2pnode"


def pack_output(output: TxOut) -> bytes:
    """An output as a field's value."""
    return output.value.to_bytes(8, "little") + _size(len(output.script_pubkey)) + output.script_pubkey


def pack_witness(witness: Witness) -> bytes:
    """A witness stack as a field's value."""
    return _size(len(witness)) + b"".join(_size(len(item)) + item for item in witness)


def unpack_witness(value: bytes) -> Witness:
    """Undo `pack_witness`. Raises BadPsbt."""
    try:
        count, at = _read_size(value, 0)
        items = []
        for _ in range(count):
            size, at = _read_size(value, at)
            items.append(_take(value, at, size))
            at += size
    except IndexError as e:
        raise BadPsbt("the PSBT is damaged: a witness ends early") from e
    if at != len(value):
        raise BadPsbt("the PSBT is damaged: more follows a witness")
    return tuple(items)


def _unsigned_of(whole: Map) -> bytes:
    if any(key[0] == GLOBAL_UNSIGNED and len(key) > 1 for key in whole):
        raise BadPsbt("the PSBT is damaged: a key has the wrong length")
    version = whole.get(field(GLOBAL_VERSION), bytes(4))
    unsigned = whole.get(field(GLOBAL_UNSIGNED))
    if version != bytes(4):
        raise BadPsbt("the PSBT is of a later version: export it as version 0 (BIP174)")
    if unsigned is None:
        raise BadPsbt("the PSBT holds no transaction")
    tx = parse(unsigned)
    if stripped(tx) != unsigned or any(len(i.scriptSig) for i in tx.vin):
        raise BadPsbt("the PSBT's transaction must be unsigned")
    return unsigned


def _check_keys(fields: Map, plain: Iterable[int], lengths: Mapping[int, int]) -> None:
    """Raises BadPsbt, and IndexError for a proprietary key that ends within its name."""
    for key in fields:
        if (key[0] in plain and len(key) != 1) or len(key) - 1 != lengths.get(key[0], len(key) - 1):
            raise BadPsbt("the PSBT is damaged: a key has the wrong length")
        if lengths.get(key[0]) == 33 and not is_point(key[1:]):
            raise BadPsbt("the PSBT is damaged: a public key is none")
        if key[0] == PROPRIETARY:
            size, at = _read_size(key, 1)
            _read_size(key, at + len(_take(key, at, size)))


def _map_bytes(fields: Map) -> bytes:
    pairs = (_size(len(key)) + key + _size(len(fields[key])) + fields[key] for key in sorted(fields))
    return b"".join(pairs) + b"\0"


def _read_map(data: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    """The map at `at`, and where it ends. Raises IndexError past the end, BadPsbt for a key that is there twice."""
    found: dict[bytes, bytes] = {}
    while True:
        size, at = _read_size(data, at)
        if size == 0:
            return found, at
        key = _take(data, at, size)
        size, at = _read_size(data, at + size)
        if key in found:
            raise BadPsbt("the PSBT is damaged: a field is there twice")
        found[key] = _take(data, at, size)
        at += size


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise IndexError
    return data[at : at + size]


def _read_size(data: bytes, at: int) -> tuple[int, int]:
    """A CompactSize in its one shortest form, and where it ends. Raises IndexError, BadPsbt."""
    first = data[at]
    if first < 0xFD:
        return first, at + 1
    width = 1 << first - 0xFC
    size = int.from_bytes(_take(data, at + 1, width), "little")
    if _size(size) != data[at : at + 1 + width]:
        raise BadPsbt("the PSBT is damaged: a length is not in its shortest form")
    return size, at + 1 + width


def _size(count: int) -> bytes:
    """A CompactSize integer."""
    if count < 0xFD:
        return bytes([count])
    for first, width in ((0xFD, 2), (0xFE, 4)):
        if count < 1 << 8 * width:
            return bytes([first]) + count.to_bytes(width, "little")
    return b"\xff" + count.to_bytes(8, "little")
