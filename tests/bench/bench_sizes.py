"""What a trade costs on the chain, in virtual bytes, from real signed transactions, beside Bisq 1's published figures.

Bisq 1 publishes 747 to 778 vB for the four transactions of a trade (maker fee, taker fee, deposit, payout). A trade of
ours is two transactions. A ruling's payout has three outputs, one for the arbiter's fee.

    python -m tests.bench sizes
"""

from __future__ import annotations

from typing import Final

from escrow.funding import derive_funding
from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, assemble_payout, derive_payout
from escrow.script import Role
from escrow.transactions import vsize
from protocol.outcome import Outcome
from protocol.types import Branch, EscrowType, Side
from tests.bench.report import Report
from tests.unit.escrow_support import NETWORK, Deal, cancelled, ruled

BISQ_1: Final = (747, 778)
"""vB of a whole trade, as published."""
KEYS: Final = 8
"""Trades of other keys each: the largest counts."""

CASES: Final[tuple[tuple[str, EscrowType, dict[str, int], int], ...]] = (
    ("backup arbiter, both deposit", EscrowType.WSH_2OF3_BACKUP, {}, 460),
    ("one arbiter, both deposit", EscrowType.WSH_2OF3, {}, 430),
    ("one arbiter, seller funds alone", EscrowType.WSH_2OF3, {"buyer_deposit": 0, "seller_deposit": 0}, 300),
)


def funding_size(deal: Deal) -> int:
    contract = deal.contract()
    plan = derive_funding(contract, NETWORK)
    return vsize(assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL)))


def payout_size(deal: Deal, outcome: Outcome = RELEASE, *signers: Role) -> int:
    contract = deal.contract()
    plan = derive_payout(contract, NETWORK, outcome)
    roles = signers or (Role.BUYER, Role.SELLER)
    return vsize(assemble_payout(plan, deal.signatures(contract, plan, *roles)))


def main() -> None:
    report = Report("sizes")
    low, high = BISQ_1
    print(f"{'a whole trade':34}{'funding':>9}{'payout':>8}{'total vB':>10}{'Bisq 1':>12}{'saved':>8}")
    for name, kind, deposits, limit in CASES:
        deals = [Deal(name=f"sample {n}", escrow_type=kind, **deposits) for n in range(KEYS)]  # type: ignore[arg-type]
        funding, payout = max(map(funding_size, deals)), max(map(payout_size, deals))
        total = funding + payout
        print(f"{name:34}{funding:9}{payout:8}{total:10}{f'{low} to {high}':>12}{1 - total / low:8.0%}")
        report.at_most(f"{name}, vB", total, limit)
        report.numbers[name] = {"funding": funding, "payout": payout, "bisq_1": BISQ_1}
    deal = Deal()
    others = {
        "settlement": payout_size(deal, cancelled(deal.contract())),
        "ruling, three outputs": payout_size(deal, ruled(700_000), Role.BUYER, Role.ARBITER),
        "backup's ruling, three outputs": payout_size(
            deal, ruled(700_000, branch=Branch.BACKUP), Role.SELLER, Role.ARBITER
        ),
    }
    print("\nother payouts of the escrow with a backup arbiter, vB")
    for name, size in others.items():
        print(f"{name:34}{size:17}")
        if "ruling" in name:
            report.at_most(f"{name}, vB", size, 240)
    report.numbers["payouts"] = others
    report.write()


if __name__ == "__main__":
    main()
