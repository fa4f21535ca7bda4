"""Just enough of Bitcoin's serialisation to find our transactions in blocks and mempool, quickly.

A full block is read once, by hand, without building an object for each of its parts: 10,000 scripts are matched against
4 million weight units in a fraction of a second. Only what matches becomes a `ParsedTx`. The bytes come from the
user's own node; a block that does not parse raises `BackendError` and never an IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from hashlib import sha256

import msgspec

from escrow.chain.base import BackendError
from escrow.coins import OutPoint, TxOut
from protocol.types import Txid

_HEADER_BYTES = 80
# What follows the version where a transaction has witnesses: an empty list of inputs, then the flag (BIP144).
_SEGWIT_MARK = b"\0\1"


class ParsedTx(msgspec.Struct, frozen=True):
    """A transaction taken apart. `spends` and `outputs` are in the transaction's order."""

    txid: Txid
    raw: bytes
    spends: tuple[OutPoint, ...]
    outputs: tuple[TxOut, ...]

    @property
    def is_coinbase(self) -> bool:
        """Whether it makes new coins; such a transaction can't be in a mempool."""
        return self.spends[0].txid == bytes(32)

    def outpoint(self, vout: int) -> OutPoint:
        """Name one of its outputs."""
        return OutPoint(self.txid, vout)


def parse_tx(raw: bytes) -> ParsedTx:
    """Take a serialised transaction apart. Raises BackendError when it is not one, or has bytes left over."""
    try:
        end, _, _ = _skim_tx(raw, 0, frozenset(), frozenset())
        if end == len(raw):
            return _take_apart(raw)
    except IndexError as e:
        raise BackendError("the Bitcoin node sent a transaction that is cut short") from e
    raise BackendError("the Bitcoin node sent a transaction with bytes left over")


def match_block(raw: bytes, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]) -> list[ParsedTx]:
    """The transactions of a block that pay one of `scripts` or spend one of `outpoints` (36 wire bytes each).

    Spends of outputs found in the same block are found too. Raises BackendError when it does not parse.
    """
    found: list[ParsedTx] = []
    seen = set(outpoints)
    try:
        count, at = _compact(raw, _HEADER_BYTES)
        for _ in range(count):
            end, _, hit = _skim_tx(raw, at, scripts, seen)
            if hit:
                tx = _take_apart(raw[at:end])
                found.append(tx)
                seen.update(tx.outpoint(i).wire for i, o in enumerate(tx.outputs) if o.script_pubkey in scripts)
            at = end
    except IndexError as e:
        raise BackendError("the Bitcoin node sent a block that is cut short") from e
    if at != len(raw):
        raise BackendError("the Bitcoin node sent a block with bytes left over")
    return found


def block_txids(raw: bytes) -> list[Txid]:
    """The names of all transactions of a block, in order. Raises BackendError when it does not parse."""
    txids: list[Txid] = []
    nothing: frozenset[bytes] = frozenset()
    try:
        count, at = _compact(raw, _HEADER_BYTES)
        for _ in range(count):
            end, core, _ = _skim_tx(raw, at, nothing, nothing)
            plain = raw[at:end]
            if plain[4:6] == _SEGWIT_MARK:
                plain = plain[:4] + raw[at + 6 : core] + plain[-4:]
            txids.append(sha256(sha256(plain).digest()).digest())
            at = end
    except IndexError as e:
        raise BackendError("the Bitcoin node sent a block that is cut short") from e
    if at != len(raw):
        raise BackendError("the Bitcoin node sent a block with bytes left over")
    return txids


def first_tx(raw: bytes) -> ParsedTx:
    """A block's coinbase. Raises BackendError."""
    found = next(_each(raw), None)
    if found is None:
        raise BackendError("the Bitcoin node sent a block without transactions")
    return found


def all_txs(raw: bytes) -> list[ParsedTx]:
    """Every transaction of a block: for the rare case that names them all. Raises BackendError."""
    return list(_each(raw))


def _each(raw: bytes) -> Iterator[ParsedTx]:
    nothing: frozenset[bytes] = frozenset()
    try:
        count, at = _compact(raw, _HEADER_BYTES)
        for _ in range(count):
            end, _, _ = _skim_tx(raw, at, nothing, nothing)
            yield _take_apart(raw[at:end])
            at = end
    except IndexError as e:
        raise BackendError("the Bitcoin node sent a block that is cut short") from e


def touching(txs: Sequence[ParsedTx], scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]) -> list[ParsedTx]:
    """Those of `txs`, in their order, that pay one of `scripts` or spend one of `outpoints` or of what was found."""
    found: list[ParsedTx] = []
    made: set[bytes] = set()
    for tx in txs:
        paid = [i for i, o in enumerate(tx.outputs) if o.script_pubkey in scripts]
        if paid or any((wire := s.wire) in outpoints or wire in made for s in tx.spends):
            found.append(tx)
            made.update(tx.outpoint(i).wire for i in paid)
    return found


def _compact(raw: bytes, at: int) -> tuple[int, int]:
    """A CompactSize integer and where it ends."""
    first = raw[at]
    if first < 0xFD:
        return first, at + 1
    width = 1 << first - 0xFC
    return int.from_bytes(raw[at + 1 : at + 1 + width], "little"), at + 1 + width


def _skim_tx(
    raw: bytes, start: int, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
) -> tuple[int, int, bool]:
    """Where the transaction ends that starts at `start`, where its outputs end, whether it touches one of the two sets.

    The single-byte sizes, which nearly all are, are read in place: a call for each would double the time.
    """
    size = len(raw)
    at = start + 4
    segwit = raw[at : at + 2] == _SEGWIT_MARK
    if segwit:
        at += 2
    hit = False
    inputs, at = _compact(raw, at)
    for _ in range(inputs):
        if raw[at : at + 36] in outpoints:
            hit = True
        at += 36
        length = raw[at]
        if length < 0xFD:
            at += length + 5
        else:
            length, at = _compact(raw, at)
            at += length + 4
    outputs, at = _compact(raw, at)
    for _ in range(outputs):
        at += 8
        length = raw[at]
        at += 1
        if length >= 0xFD:
            length, at = _compact(raw, at - 1)
        if raw[at : at + length] in scripts:
            hit = True
        at += length
    core = at
    if segwit:
        for _ in range(inputs):
            items, at = _compact(raw, at)
            for _ in range(items):
                length = raw[at]
                at += 1
                if length >= 0xFD:
                    length, at = _compact(raw, at - 1)
                at += length
    at += 4
    # Slices past the end are empty, not errors; a count that lies is caught by the next index or here.
    if at > size:
        raise IndexError
    return at, core, hit


def _take_apart(raw: bytes) -> ParsedTx:
    """Parse a transaction whose bounds `_skim_tx` has checked."""
    segwit = raw[4:6] == _SEGWIT_MARK
    core = at = 6 if segwit else 4
    spends: list[OutPoint] = []
    outputs: list[TxOut] = []
    count, at = _compact(raw, at)
    for _ in range(count):
        spends.append(OutPoint.from_wire(raw[at : at + 36]))
        length, at = _compact(raw, at + 36)
        at += length + 4
    count, at = _compact(raw, at)
    for _ in range(count):
        value = int.from_bytes(raw[at : at + 8], "little")
        length, at = _compact(raw, at + 8)
        outputs.append(TxOut(value, raw[at : at + length]))
        at += length
    if not spends:
        raise BackendError("the Bitcoin node sent a transaction without inputs")
    stripped = raw[:4] + raw[core:at] + raw[-4:] if segwit else raw
    return ParsedTx(sha256(sha256(stripped).digest()).digest(), raw, tuple(spends), tuple(outputs))
