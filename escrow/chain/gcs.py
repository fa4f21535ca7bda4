"""Compact block filters (BIP158): does a block touch one of our scripts? Never a false no, seldom a false yes.

A basic filter is a Golomb-coded set of the hashes of every script that a block's outputs pay and of every script that
its inputs spend. Decoding it costs some 8 ms for a full block, hashing our scripts about a microsecond each: the key
of the hash is the block's, so nothing can be kept.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from typing import Final

from nacl.bindings import crypto_shorthash_siphash24

from escrow.chain.base import ProofFailed
from protocol.types import Hash32

_P: Final = 19
_M: Final = 784_931


def filter_matches(block: Hash32, raw: bytes, scripts: Collection[bytes]) -> bool:
    """Whether the block may touch one of `scripts`.

    Args:
        block: its hash, in internal byte order.
        raw: the filter as BIP158 serialises it: a count, then the coded set.
        scripts: output scripts; at least one.

    Raises ProofFailed when the filter is not well-formed.
    """
    count, at = _count(raw)
    if count == 0:
        return False
    ours = _hashes(block, count, scripts)
    return not ours.isdisjoint(accumulate(_deltas(raw, at, count)))


def contains_all(block: Hash32, raw: bytes, scripts: Collection[bytes]) -> bool:
    """Whether none of `scripts` is missing: a filter that misses what its block pays is a lie. Raises ProofFailed."""
    count, at = _count(raw)
    return count > 0 and _hashes(block, count, scripts) <= set(accumulate(_deltas(raw, at, count)))


def _hashes(block: Hash32, count: int, scripts: Collection[bytes]) -> set[int]:
    key, span = block[:16], count * _M
    hashes = (crypto_shorthash_siphash24(script, key) for script in scripts)
    return {int.from_bytes(h, "little") * span >> 64 for h in hashes}


def _count(raw: bytes) -> tuple[int, int]:
    """The CompactSize at the start and where it ends."""
    width = 0 if not raw or raw[0] < 0xFD else 1 << raw[0] - 0xFC
    if len(raw) <= width:
        raise ProofFailed("a block filter is cut short")
    count = int.from_bytes(raw[1 : 1 + width], "little") if width else raw[0]
    # Each element takes at least 20 bits: a count that lies is found out before any work.
    if count * (_P + 1) > 8 * (len(raw) - 1 - width):
        raise ProofFailed("a block filter claims more than it holds")
    return count, 1 + width


def _deltas(raw: bytes, at: int, count: int) -> list[int]:
    """The differences between the sorted hashes. Text is the quickest bit string that Python has."""
    bits = format(int.from_bytes(raw[at:], "big"), f"0{8 * (len(raw) - at)}b")
    deltas: list[int] = []
    here = 0
    try:
        for _ in range(count):
            end = bits.index("0", here)
            deltas.append((end - here << _P) | int(bits[end + 1 : end + 1 + _P], 2))
            here = end + 1 + _P
    except ValueError as e:
        raise ProofFailed("a block filter is cut short") from e
    if here > len(bits):
        raise ProofFailed("a block filter is cut short")
    return deltas
