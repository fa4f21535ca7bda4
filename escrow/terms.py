"""What must hold of a contract before anybody signs it, as far as Bitcoin is concerned (SPEC section 6.2).

`protocol.contract.check_terms` compares the contract with the offer; this looks at what only the curve and the chain
can tell: keys, scripts, and whether every legal payout of this contract can be paid.
"""

from __future__ import annotations

from typing import Final

from escrow.errors import BadEscrowTerms
from escrow.funding import derive_funding
from escrow.keys import check_keys
from escrow.shares import payout_weight
from escrow.sizes import P2WSH_SCRIPT_SIZE, check_payee, fee
from protocol.contract import Contract
from protocol.types import MAX_MONEY, Network

_LARGEST_DUST: Final = 330


def check_contract(contract: Contract, network: Network) -> None:
    """Check a contract that was just derived, ours and the peer's part alike. About a millisecond.

    Raises BadEscrowKey, BadArbiterKey, UnsupportedScript, UnsupportedInput, ShortInputs, BadEscrowTerms.
    """
    for party in (contract.buyer, contract.seller):
        check_keys(party, contract.trade_id)
        for script in (party.payout_script, party.refund_script, party.change_script):
            if script is not None:
                check_payee(script)
        if bool(party.inputs) != (party.change_script is not None):
            raise BadEscrowTerms("a change script is there exactly when inputs are")
    if bool(contract.buyer.inputs) != (contract.buyer_deposit > 0):
        raise BadEscrowTerms("a buyer brings inputs exactly when it makes a deposit")
    if contract.fees.payout > contract.fees.payout_max:
        raise BadEscrowTerms("the payout's fee rate is outside its own band")
    # Both sums are compared with the money that exists before any of them is put into a transaction.
    if contract.amount + contract.buyer_deposit + contract.seller_deposit + _highest_costs(contract) > MAX_MONEY:
        raise BadEscrowTerms("the contract is about more coins than there are")
    if contract.amount < _highest_costs(contract):
        raise BadEscrowTerms("the amount is too small for the fees: the dearest legal payout would leave only dust")
    derive_funding(contract, network)


def _highest_costs(contract: Contract) -> int:
    """What the dearest legal payout takes away, and dust for both parties."""
    sizes = [P2WSH_SCRIPT_SIZE] * 3
    dearest = fee(payout_weight(contract.escrow_type, contract.backup_delay, sizes), contract.fees.payout_max)
    arbiters = [contract.arbiter.fee] + ([contract.backup.fee] if contract.backup else [])
    return dearest + max(arbiters) + 2 * _LARGEST_DUST
