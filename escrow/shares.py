"""Who pays what into the escrow and its fees (SPEC section 6.2). Integer satoshis throughout.

* Each party pays for its own inputs and its own change output.
* What is common (the funding's frame, the escrow output, and the payout's fee, which the escrow carries) is split in
  halves when both bring coins, an odd satoshi to the seller; else the seller pays it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from escrow.script import spend_weight
from escrow.sizes import OVERHEAD_WEIGHT, P2WSH_SCRIPT_SIZE, ROUNDING_WEIGHT, fee, output_weight
from protocol.contract import Contract, FeeTerms
from protocol.types import EscrowType, Side

SHARED_WEIGHT: Final = OVERHEAD_WEIGHT + output_weight(P2WSH_SCRIPT_SIZE) + ROUNDING_WEIGHT
"""Weight units of the funding that are nobody's own."""


def payout_weight(escrow_type: EscrowType, delay: int, script_sizes: Sequence[int]) -> int:
    """Weight units of a payout to scripts of these sizes, with the largest signatures."""
    outputs = sum(map(output_weight, script_sizes))
    return OVERHEAD_WEIGHT + spend_weight(escrow_type, delay) + outputs + ROUNDING_WEIGHT


def carried_fee(contract: Contract) -> int:
    """The payout fee that the escrow holds: that of a release at the contract's rate."""
    scripts = [contract.buyer.payout_script] + [contract.seller.payout_script] * (contract.seller_deposit > 0)
    weight = payout_weight(contract.escrow_type, contract.backup_delay, [len(s) for s in scripts])
    return fee(weight, contract.fees.payout)


def halves(total: int, *, both: bool) -> dict[Side, int]:
    """A common cost by party: in halves when both fund, else all to the seller."""
    buyer = total // 2 if both else 0
    return {Side.BUY: buyer, Side.SELL: total - buyer}


def targets(contract: Contract) -> dict[Side, int]:
    """What each party's inputs must hold besides the fee of those inputs and of its change."""
    shared = fee(SHARED_WEIGHT, contract.fees.funding) + carried_fee(contract)
    return _targets(contract.amount, contract.buyer_deposit, contract.seller_deposit, shared)


def share_target(
    side: Side,
    *,
    amount: int,
    buyer_deposit: int,
    seller_deposit: int,
    escrow_type: EscrowType,
    backup_delay: int,
    fees: FeeTerms,
) -> int:
    """The same for coin selection, before the peer's payout script is known: that is taken as the largest.

    So it may be over the true target, by at most the fee of 24 vB; what is over comes back as change.
    """
    sizes = [P2WSH_SCRIPT_SIZE] * (1 + (seller_deposit > 0))
    payout = fee(payout_weight(escrow_type, backup_delay, sizes), fees.payout)
    shared = fee(SHARED_WEIGHT, fees.funding) + payout
    return _targets(amount, buyer_deposit, seller_deposit, shared)[side]


def _targets(amount: int, buyer_deposit: int, seller_deposit: int, shared: int) -> dict[Side, int]:
    common = halves(shared, both=buyer_deposit > 0)
    return {Side.BUY: buyer_deposit + common[Side.BUY], Side.SELL: amount + seller_deposit + common[Side.SELL]}
