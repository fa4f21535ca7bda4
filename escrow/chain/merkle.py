"""The hash tree of a block's transactions: proof that a transaction is in a block, or that a block is the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from escrow.chain.base import ProofFailed
from escrow.chain.blocks import ParsedTx, block_txids
from escrow.chain.headers import HEADER_BYTES, hash256
from escrow.transactions import weight
from protocol.types import Hash32, Txid

_MOST_LEVELS: Final = 32
_NODE_SIZE: Final = 64
"""Bytes of an inner node of the hash tree: a transaction of that size proves nothing."""


def root_of(txids: Sequence[Txid]) -> Hash32:
    """The root over all transactions of a block, at least one.

    Raises ProofFailed when two neighbours are equal: rows can then be repeated without changing the root
    (CVE-2012-2459), and no real block has them.
    """
    row = list(txids)
    while len(row) > 1:
        if any(row[i] == row[i + 1] for i in range(0, len(row) - 1, 2)):
            raise ProofFailed("a block repeats transactions")
        if len(row) % 2:
            row.append(row[-1])
        row = [hash256(row[i] + row[i + 1]) for i in range(0, len(row), 2)]
    return row[0]


def check_block(raw: bytes, block: Hash32) -> list[Txid]:
    """The names of the transactions of a whole block, which must be `block`. Raises ProofFailed, BackendError.

    Witnesses are not covered by the root: what they are is told by whoever sent the block.
    """
    if hash256(raw[:HEADER_BYTES]) != block:
        raise ProofFailed("a server sent another block than was asked for")
    txids = block_txids(raw)
    if not txids or root_of(txids) != raw[36:68]:
        raise ProofFailed("a server sent a block whose transactions are not those of its header")
    return txids


def check_provable(tx: ParsedTx) -> None:
    """That a branch can prove `tx` at all: without witnesses it is not as long as an inner node. Raises ProofFailed."""
    if (weight(tx.raw) - len(tx.raw)) // 3 == _NODE_SIZE:
        raise ProofFailed("a transaction of 64 bytes can't be proved to be in a block")


def check_branch(txid: Txid, position: int, branch: Sequence[Hash32], header: bytes) -> None:
    """That the block of `header` holds `txid` at `position`. Raises ProofFailed.

    Whoever calls has seen the transaction itself and asked `check_provable`: an inner node of the tree can be passed
    off as a transaction of its length.
    """
    if len(branch) > _MOST_LEVELS or position >> len(branch):
        raise ProofFailed("a server sent a proof of another shape than a block's")
    node = txid
    for level, sibling in enumerate(branch):
        node = hash256(sibling + node) if position >> level & 1 else hash256(node + sibling)
    if node != header[36:68]:
        raise ProofFailed("a server could not prove that a transaction is in a block")
