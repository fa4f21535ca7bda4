"""What a trade costs on chain, from real bytes: a promise to the users, kept to the virtual byte."""

from __future__ import annotations

import pytest

from escrow.funding import derive_funding
from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, derive_payout
from escrow.payout import assemble_payout as assemble
from escrow.script import Role
from escrow.sizes import dust_limit, fee
from escrow.transactions import vsize, weight
from protocol.types import Branch, EscrowType, Side
from tests.unit.escrow_support import NETWORK, Deal, cancelled, fixed, p2tr, p2wpkh, p2wsh, ruled

SAMPLES = 8
"""Deals with other keys each: the sizes must not hang on lucky signatures."""


def sizes_of(deal: Deal) -> tuple[int, int]:
    contract = deal.contract()
    funding = derive_funding(contract, NETWORK)
    payout = derive_payout(contract, NETWORK)
    funded = assemble_funding(funding, deal.witnesses(funding, Side.BUY), deal.witnesses(funding, Side.SELL))
    paid = assemble(payout, deal.signatures(contract, payout, Role.BUYER, Role.SELLER))
    return vsize(funded), vsize(paid)


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_whole_trade_with_backup_arbiter_stays_within_460_vbytes(sample: int) -> None:
    assert sum(sizes_of(Deal(name=f"sample {sample}"))) <= 460


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_whole_trade_with_one_arbiter_stays_within_430_vbytes(sample: int) -> None:
    assert sum(sizes_of(Deal(name=f"sample {sample}", escrow_type=EscrowType.WSH_2OF3))) <= 430


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_trade_funded_by_the_seller_alone_stays_within_300_vbytes(sample: int) -> None:
    deal = Deal(name=f"sample {sample}", escrow_type=EscrowType.WSH_2OF3, buyer_deposit=0, seller_deposit=0)
    assert sum(sizes_of(deal)) <= 300


@pytest.mark.parametrize("branch", Branch)
def test_ruling_with_three_outputs_stays_within_240_vbytes(branch: Branch) -> None:
    deal = Deal()
    contract = deal.contract()
    plan = derive_payout(contract, NETWORK, ruled(700_000, branch=branch))
    assert len(plan.outputs) == 3
    assert vsize(assemble(plan, deal.signatures(contract, plan, Role.SELLER, Role.ARBITER))) <= 240


def test_counted_weight_is_never_under_the_real_one() -> None:
    # Low-R signatures save one unit each; the rest of the difference is the rounding to whole virtual bytes.
    for kind in EscrowType:
        deal = Deal(escrow_type=kind)
        contract = deal.contract()
        funding = derive_funding(contract, NETWORK)
        funded = assemble_funding(funding, deal.witnesses(funding, Side.BUY), deal.witnesses(funding, Side.SELL))
        assert funding.weight - weight(funded) == 3 + 2
        for outcome in (RELEASE, cancelled(contract)):
            plan = derive_payout(contract, NETWORK, outcome)
            paid = assemble(plan, deal.signatures(contract, plan, Role.BUYER, Role.ARBITER))
            assert plan.weight - weight(paid) == 3 + 2


@pytest.mark.parametrize(
    ("script", "limit"),
    [(p2wpkh(fixed("a")), 294), (p2tr(fixed("a")), 330), (p2wsh("a"), 330)],
    ids=["wpkh", "tr", "wsh"],
)
def test_dust_limits_are_those_of_bitcoin_core(script: bytes, limit: int) -> None:
    assert dust_limit(script) == limit


def test_fee_is_rounded_up_so_that_it_never_misses_its_rate() -> None:
    assert [fee(w, 1_000) for w in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert fee(401, 100) == 11
