"""Transactions as values: built, read, hashed for signing. python-bitcoinlib serialises; nothing here decides.

Every transaction of ours is version 2, has lock time 0 and inputs that signal replacement (BIP125). Only segwit inputs
occur, so an unsigned transaction has its final txid.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from typing import Final

from bitcoin.core import (
    COutPoint,
    CTransaction,
    CTxIn,
    CTxInWitness,
    CTxOut,
    CTxWitness,
    Hash,
    SerializationError,
)
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, CScriptWitness, SignatureHash

from escrow.coins import OutPoint, TxOut
from escrow.signatures import SIGHASH_ALL

REPLACEABLE: Final = 0xFFFF_FFFD
"""The sequence number that signals replacement and sets no lock."""
VERSION: Final = 2

Witness = tuple[bytes, ...]
"""The witness stack of one input, bottom first."""


class NotATransaction(ValueError):
    """Bytes are not the serialisation of one transaction."""


def build(inputs: Sequence[tuple[OutPoint, int]], outputs: Sequence[TxOut]) -> bytes:
    """The unsigned transaction of (outpoint, sequence) pairs and outputs, in the order given."""
    tx = CTransaction(
        [CTxIn(COutPoint(o.txid, o.vout), nSequence=sequence) for o, sequence in inputs],
        [CTxOut(o.value, CScript(o.script_pubkey)) for o in outputs],
        nLockTime=0,
        nVersion=VERSION,
    )
    return bytes(tx.serialize())


def with_witnesses(unsigned: bytes, witnesses: Sequence[Witness]) -> bytes:
    """The transaction with one witness per input. Raises ValueError when their number is not that of the inputs."""
    tx = parse(unsigned)
    if len(witnesses) != len(tx.vin):
        raise ValueError("every input needs a witness")
    stacks = [CTxInWitness(CScriptWitness(list(stack))) for stack in witnesses]
    signed = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion, CTxWitness(stacks))
    return bytes(signed.serialize())


def parse(raw: bytes) -> CTransaction:
    """Read a transaction; the caller has limited its size. Raises NotATransaction."""
    try:
        tx = CTransaction.deserialize(raw)
        # A number may be written in several ways; what is hashed and compared is the only right one.
        canonical = bytes(tx.serialize()) == raw
    except (SerializationError, ValueError) as e:
        raise NotATransaction from e
    if not canonical:
        raise NotATransaction
    return tx


def stripped(tx: CTransaction) -> bytes:
    """The serialisation without witnesses, of which the txid is the hash."""
    stream = BytesIO()
    tx.stream_serialize(stream, include_witness=False)
    return stream.getvalue()


def txid_of(raw: bytes) -> bytes:
    """The txid, internal byte order. Raises NotATransaction."""
    return bytes(Hash(stripped(parse(raw))))


def find_output(raw: bytes, vout: int) -> tuple[bytes, TxOut | None]:
    """The txid of a transaction and one of its outputs; None when there is no such output.

    For transactions that peers send: it costs a small part of `parse`, whatever the bytes (a count that lies runs off
    the end). Witnesses are skipped unread, because neither txid nor output hangs on them. Raises NotATransaction.
    """
    core = 6 if raw[4:6] == b"\0\1" else 4
    found = None
    try:
        count, at = _compact_size(raw, core)
        for _ in range(count):
            size, at = _compact_size(raw, at + 36)
            at += size + 4
        count, at = _compact_size(raw, at)
        for index in range(count):
            size, start = _compact_size(raw, at + 8)
            if index == vout:
                found = TxOut(int.from_bytes(raw[at : at + 8], "little"), raw[start : start + size])
            at = start + size
    except IndexError as e:
        raise NotATransaction from e
    # Without witnesses the lock time is all that follows; with them at least one byte for each input lies between.
    if at + 4 > len(raw) or (core == 4 and at + 4 != len(raw)):
        raise NotATransaction
    return bytes(Hash(raw[:4] + raw[core:at] + raw[-4:])), found


def _compact_size(raw: bytes, at: int) -> tuple[int, int]:
    """A CompactSize integer at `at`, and where it ends. Raises IndexError past the end."""
    first = raw[at]
    if first < 0xFD:
        return first, at + 1
    width = 1 << first - 0xFC
    return int.from_bytes(raw[at + 1 : at + 1 + width], "little"), at + 1 + width


def scripts_of(raw: bytes) -> list[bytes]:
    """The output scripts of a transaction, in order. Raises NotATransaction."""
    return [bytes(output.scriptPubKey) for output in parse(raw).vout]


def witness_of(tx: CTransaction, index: int) -> Witness:
    """The witness stack of an input (empty: none)."""
    if tx.wit.is_null():
        return ()
    return tuple(bytes(item) for item in tx.wit.vtxinwit[index].scriptWitness.stack)


def weight(raw: bytes) -> int:
    """Weight units (BIP141). Raises NotATransaction."""
    return 3 * len(stripped(parse(raw))) + len(raw)


def vsize(raw: bytes) -> int:
    """Virtual bytes: a quarter of the weight, rounded up. Raises NotATransaction."""
    return -(-weight(raw) // 4)


def sighash_v0(unsigned: bytes, index: int, script_code: bytes, value: int) -> bytes:
    """The BIP143 hash that a SIGHASH_ALL signature of input `index` covers; `value` is what the input holds."""
    tx = parse(unsigned)
    return bytes(
        SignatureHash(CScript(script_code), tx, index, SIGHASH_ALL, amount=value, sigversion=SIGVERSION_WITNESS_V0)
    )


def sighash_v1(unsigned: bytes, index: int, spent: Sequence[TxOut]) -> bytes:
    """The BIP341 hash that a key path signature of input `index` covers, for the default sighash.

    `spent` are the outputs that all inputs spend, in order. python-bitcoinlib knows no taproot.
    """
    tx = parse(unsigned)
    outputs = [TxOut(o.nValue, bytes(o.scriptPubKey)) for o in tx.vout]
    message = b"".join(
        (
            b"\x00",  # epoch
            b"\x00",  # SIGHASH_DEFAULT
            tx.nVersion.to_bytes(4, "little"),
            tx.nLockTime.to_bytes(4, "little"),
            sha256(b"".join(i.prevout.serialize() for i in tx.vin)).digest(),
            sha256(b"".join(o.value.to_bytes(8, "little") for o in spent)).digest(),
            sha256(b"".join(bytes([len(o.script_pubkey)]) + o.script_pubkey for o in spent)).digest(),
            sha256(b"".join(i.nSequence.to_bytes(4, "little") for i in tx.vin)).digest(),
            sha256(b"".join(map(output_bytes, outputs))).digest(),
            b"\x00",  # key path, no annex
            index.to_bytes(4, "little"),
        )
    )
    return _tagged_hash(b"TapSighash", message)


def output_bytes(output: TxOut) -> bytes:
    """The serialisation of an output whose script has fewer than 253 bytes."""
    return output.value.to_bytes(8, "little") + bytes([len(output.script_pubkey)]) + output.script_pubkey


def p2wpkh_code(script_pubkey: bytes) -> bytes:
    """The script code of a P2WPKH output (BIP143)."""
    return b"\x76\xa9\x14" + script_pubkey[2:] + b"\x88\xac"


def _tagged_hash(tag: bytes, message: bytes) -> bytes:
    """BIP340's tagged hash."""
    prefix = sha256(tag).digest()
    return sha256(prefix + prefix + message).digest()
