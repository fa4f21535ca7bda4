"""What an escrow may pay, and by whose agreement (SPEC section 6.4).

A transaction that spends an escrow is legal only as one of these. Each gives exactly one transaction, which
`escrow/payout.py` derives, so an outcome is known on chain by its txid. Cancelling by mutual consent is no outcome of
its own: it is the settlement that gives the buyer its deposit, and nothing else, back.
"""

from __future__ import annotations

from msgspec import Struct

from protocol.contract import Contract
from protocol.types import Branch, FeeRate, Ppm, Sats, ScriptPubKey, Side


class ReleaseOutcome(Struct, frozen=True, tag="release", omit_defaults=True):
    """The seller released: the buyer gets the amount, both get their deposits.

    `rate` is None for the contract's own fee rate, else what both have signed it again at.
    """

    rate: FeeRate | None = None


class SettlementOutcome(Struct, frozen=True, tag="settlement"):
    """Both agreed: `buyer_due` satoshis of amount and deposits to the buyer, the rest to the seller, before the fee."""

    buyer_due: Sats
    rate: FeeRate


class RulingOutcome(Struct, frozen=True, tag="ruling"):
    """An arbiter decided: `buyer_share` ppm of the amount to the buyer, `forfeit` ppm of the loser's deposit lost."""

    branch: Branch
    buyer_share: Ppm
    forfeit: Ppm
    fee_script: ScriptPubKey
    rate: FeeRate

    @property
    def winners(self) -> tuple[Side, ...]:
        """The party with more than half of the amount; both for an even split."""
        if self.buyer_share * 2 == 1_000_000:
            return (Side.BUY, Side.SELL)
        return (Side.BUY,) if self.buyer_share * 2 > 1_000_000 else (Side.SELL,)


Agreement = ReleaseOutcome | SettlementOutcome
"""What the two parties sign, and may sign again at a higher fee rate."""
Outcome = ReleaseOutcome | SettlementOutcome | RulingOutcome


def same_dues(one: Agreement, other: Agreement) -> bool:
    """Whether two payouts that the parties sign give each the same, before fees."""
    if isinstance(one, SettlementOutcome) and isinstance(other, SettlementOutcome):
        return one.buyer_due == other.buyer_due
    return isinstance(one, ReleaseOutcome) and isinstance(other, ReleaseOutcome)


def pot(contract: Contract) -> int:
    """The satoshis that a settlement divides."""
    return contract.amount + contract.buyer_deposit + contract.seller_deposit


def cancelled_due(contract: Contract) -> int:
    """The buyer's due in a settlement that gives everybody its own coins back."""
    return contract.buyer_deposit
