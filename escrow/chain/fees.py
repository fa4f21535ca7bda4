"""Fee rates without a mempool: what the newest blocks earned (sans-IO).

A block's coinbase pays its miner the subsidy and all fees; divided by the block's size that is the average rate that
it took, though not the least. With the inputs' values unknown, nothing finer can be told from a block alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from escrow.chain.base import FeeUnknown
from escrow.chain.blocks import ParsedTx, first_tx
from protocol.types import FeeRate, Hash32, Height, Network, Sats

MIN_RELAY: Final = 1_000
"""Satoshis per 1,000 vB under which many nodes take nothing."""
_SUBSIDY: Final = 50 * 100_000_000
_FULL: Final = 400_000
"""Weight from which on a block says something about fees: a tenth of what it may have."""
_HALVINGS: Final = {Network.REGTEST: 150}
_HALVING: Final = 210_000
_KEPT: Final = 20


def fee_of(tx: ParsedTx, spent: Sequence[ParsedTx]) -> Sats | None:
    """What `tx` pays, where `spent` holds all that it spends from; None else, and for sums that can't be."""
    made = {source.txid: source.outputs for source in spent}
    total = 0
    for outpoint in tx.spends:
        outputs = made.get(outpoint.txid, ())
        if outpoint.vout >= len(outputs):
            return None
        total += outputs[outpoint.vout].value
    fee = total - sum(output.value for output in tx.outputs)
    return fee if fee >= 0 else None


class FeeGauge:
    """Average rates of the newest blocks."""

    BLOCKS: Final = 3
    """How many blocks are looked at."""

    def __init__(self, network: Network, fallback: FeeRate | None) -> None:
        """`fallback` is for chains whose blocks are nearly empty."""
        self._halving = _HALVINGS.get(network, _HALVING)
        self._fallback = fallback
        self._rates: OrderedDict[Hash32, FeeRate | None] = OrderedDict()

    def knows(self, block: Hash32) -> bool:
        """Whether it was added."""
        return block in self._rates

    def add(self, block: Hash32, height: Height, raw: bytes) -> None:
        """Look at a block, which was checked."""
        earned = sum(o.value for o in first_tx(raw).outputs) - (_SUBSIDY >> height // self._halving)
        # Its weight is between one and four times its size; most blocks have some two thirds of it in witnesses.
        vsize = len(raw) * 10 // 16
        self._rates[block] = earned * 1_000 // vsize if len(raw) * 2 >= _FULL and earned > 0 else None
        while len(self._rates) > _KEPT:
            self._rates.popitem(last=False)

    def rate(self, blocks: Sequence[Hash32], target_blocks: int, floor: FeeRate) -> FeeRate:
        """For confirmation within `target_blocks`: the highest of the newest rates if soon, else the middle or lowest.

        Never under `floor`. Raises FeeUnknown.
        """
        rates = sorted(rate for block in blocks if (rate := self._rates.get(block)) is not None)
        if rates:
            place = -1 if target_blocks <= 3 else len(rates) // 2 if target_blocks <= 12 else 0
            return max(floor, MIN_RELAY, rates[place])
        if self._fallback is None:
            raise FeeUnknown
        return max(floor, self._fallback)
