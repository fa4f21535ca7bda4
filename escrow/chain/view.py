"""One view of the Bitcoin chain: what a kind of backend must bring; `driver.Backend` does the rest.

Theory of operation. A `ChainView` is a `BlockSource` (what `Follow` asks) that can be opened and closed, tells its
health, carries transactions out, and gives hints. Hints are only a reason to look: each may be lost, doubled, late or
a lie. Views differ in what their word is worth. `bitcoind` is the user's own node and believed. The others prove what
they say: headers with their work, and for each transaction in a block the block itself or a branch of its hash tree
(`headers`, `merkle`). So a lying server can hide a transaction but not invent one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from escrow.chain.base import ChainTx
from escrow.chain.follow import BlockSource
from escrow.coins import OutPoint
from protocol.types import FeeRate, Hash32, Network, Sats, Txid


class BlockHint(msgspec.Struct, frozen=True):
    """The best chain changed."""

    hash: Hash32


class TxHint(msgspec.Struct, frozen=True):
    """A transaction entered the mempool, or a block, or left one by reorganisation."""

    raw: bytes


class ArrivedHint(msgspec.Struct, frozen=True):
    """A transaction entered the mempool; only its name is known."""

    txid: Txid


class GoneHint(msgspec.Struct, frozen=True):
    """A transaction left the mempool otherwise than into a block."""

    txid: Txid


class ScriptHint(msgspec.Struct, frozen=True):
    """Something about this script changed, in the mempool or in a block."""

    script_pubkey: bytes


class Lost(msgspec.Struct, frozen=True):
    """Hints were lost, or can't say more: look for yourself."""


Hint = BlockHint | TxHint | ArrivedHint | GoneHint | ScriptHint | Lost


class ChainView(BlockSource, Protocol):
    """A node, a server, or a set of peers. Every method may raise what a `ChainBackend` raises."""

    @property
    def name(self) -> str:
        """What users call it: `bitcoind`, `cbf`, `electrum`, `esplora`."""
        ...

    @property
    def network(self) -> Network:
        """The network that it must be on."""
        ...

    @property
    def prompt(self) -> bool:
        """Whether its hints tell of every block within moments, so that polling may be seldom."""
        ...

    @property
    def judges(self) -> bool:
        """Whether `test_accept` asks a mempool; else it tells only what no mempool would take."""
        ...

    @property
    def note(self) -> str:
        """What the user should know although money may move, in a line; mostly empty."""
        ...

    @property
    def disagreement(self) -> bool:
        """Whether `note` tells of members that contradict each other; only several views as one can."""
        ...

    async def open(self, hint: Callable[[Hint], None]) -> None:
        """Connect and check the network; call `hint` from now on. Raises what `ChainBackend.start` raises."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe to call twice, and after `open` failed."""
        ...

    async def check(self) -> str:
        """Mend connections; return why money may not move yet (it syncs), in a line, or nothing.

        Asked after failures and for as long as the answer is not empty.
        """
        ...

    async def refresh(self) -> None:
        """Learn of new blocks. Called before the chain is followed, at each hint and each poll."""
        ...

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """As `ChainBackend.fee_rate`."""
        ...

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """See `ChainBackend.mempool_fee`."""
        ...

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """Ask, as far as that is possible here, whether a transaction or a package would be taken. Raises Rejected."""
        ...

    async def send(self, txs: Sequence[bytes]) -> None:
        """Hand out a transaction, or a package, parents first. Idempotent. Raises Rejected, NotRelayed."""
        ...

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """See `ChainBackend.unspent`."""
        ...

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """As `ChainBackend.transaction`."""
        ...
