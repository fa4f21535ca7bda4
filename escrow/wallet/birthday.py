"""From which block on a seed can have coins.

Scanning from the tip is right only for a seed that nobody ever used, and a wallet's file may be lost later; so the time
at which a seed was made is kept beside it, and a seed of unknown age is scanned from the first block that can hold a
P2WPKH output. A time becomes a height by the tip and the rhythm of blocks, with a margin on the early side. Where the
rhythm says nothing (regtest mines at will, testnet in storms) the whole chain is scanned.
"""

from __future__ import annotations

from typing import Final

from escrow.chain.base import BlockRef
from protocol.types import Height, Network, UnixTime

FIRST_SEGWIT: Final = {Network.MAINNET: 481_824, Network.TESTNET: 0, Network.SIGNET: 0, Network.REGTEST: 0}
"""The first block with BIP141's rules; the younger networks had them from their first."""
_TARGET_SECONDS: Final = 600
_HASTE_PERCENT: Final = 115
"""Blocks came up to so much faster than they should, over any long time since segwit."""
_MARGIN: Final = 144
"""Blocks for chance, and for clocks that differ; fewer than what a pruned node keeps (288)."""


def first_block(network: Network, tip: BlockRef, born: UnixTime | None) -> Height:
    """A height that is not above the first block after `born`; None: the age is not known."""
    floor = FIRST_SEGWIT[network]
    if born is None or network in (Network.REGTEST, Network.TESTNET):
        return floor
    blocks = max(0, tip.time - born) * _HASTE_PERCENT // (100 * _TARGET_SECONDS) + _MARGIN
    return max(floor, tip.height - blocks)
