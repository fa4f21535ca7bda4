"""Every gate alone refuses a corrupted transaction; what one of them is blind to, another sees.

The five gates stand in order: derivation, signatures, BDK's finalisation, Bitcoin Core's verifier, the node's
`testmempoolaccept`. Each judges here with the others switched off.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio
from msgspec.structs import replace

from escrow.chain.base import Rejected
from escrow.coins import TxOut
from escrow.errors import GateRefused
from escrow.funding import FundingPlan, derive_funding
from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, PayoutPlan, assemble_payout, derive_payout
from escrow.script import Role
from escrow.signatures import sign_ecdsa
from escrow.transactions import build, parse, sighash_v0, stripped, with_witnesses, witness_of
from escrow.verify import (
    consensus_holds,
    funding_finalisation_holds,
    funding_signatures_hold,
    gate_funding,
    gate_payout,
    payout_finalisation_holds,
    payout_signatures_hold,
    same_as_derived,
)
from p2pnode.regtest import RegtestNode
from protocol.contract import Contract
from protocol.types import Side
from tests.regtest.chain_support import backend_on
from tests.regtest.test_escrow_onchain import fund, real_deal
from tests.unit.escrow_support import NETWORK, Deal, fixed, p2wpkh, sign_input

Judge = Callable[[bytes], Awaitable[bool]]
GATES = ["derivation", "signatures", "finalisation", "consensus", "mempool"]


def judge(check: Callable[[bytes], object]) -> Judge:
    """Whether a gate lets a transaction pass. That it judged at all is part of it: here everything is installed."""

    async def passes(tx: bytes) -> bool:
        try:
            return check(tx) is not False
        except GateRefused:
            return False

    return passes


def mempool(node: RegtestNode) -> Judge:
    async def passes(tx: bytes) -> bool:
        async with backend_on(node) as backend:
            try:
                await backend.test_accept(tx)
            except Rejected:
                return False
            return True

    return passes


def payout_gates(node: RegtestNode, plan: PayoutPlan) -> dict[str, Judge]:
    escrow = [TxOut(plan.escrow_value, plan.escrow.script_pubkey)]
    return {
        "derivation": judge(lambda tx: same_as_derived(tx, plan.unsigned)),
        "signatures": judge(lambda tx: payout_signatures_hold(plan, tx)),
        "finalisation": judge(lambda tx: payout_finalisation_holds(plan, tx)),
        "consensus": judge(lambda tx: consensus_holds(tx, escrow)),
        "mempool": mempool(node),
    }


def funding_gates(node: RegtestNode, plan: FundingPlan) -> dict[str, Judge]:
    return {
        "derivation": judge(lambda tx: same_as_derived(tx, plan.unsigned)),
        "signatures": judge(lambda tx: funding_signatures_hold(plan, tx)),
        "finalisation": judge(lambda tx: funding_finalisation_holds(plan, tx)),
        "consensus": judge(lambda tx: consensus_holds(tx, plan.spent)),
        "mempool": mempool(node),
    }


async def blind(gates: dict[str, Judge], tx: bytes) -> set[str]:
    """The gates that let `tx` pass."""
    return {name for name, passes in gates.items() if await passes(tx)}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def funded(bitcoind: RegtestNode) -> tuple[Deal, Contract]:
    """An escrow on the chain."""
    deal, contract = await real_deal(bitcoind, "gates")
    await fund(bitcoind, deal, contract)
    return deal, contract


def outputs_of(unsigned: bytes) -> list[TxOut]:
    return [TxOut(o.nValue, bytes(o.scriptPubKey)) for o in parse(unsigned).vout]


def to_a_thief(outputs: list[TxOut]) -> list[TxOut]:
    return [TxOut(outputs[0].value, p2wpkh(fixed("thief"))), *outputs[1:]]


def witness_changed(tx: bytes, index: int, item: int, change: Callable[[bytes], bytes]) -> bytes:
    parsed = parse(tx)
    stacks = [list(witness_of(parsed, i)) for i in range(len(parsed.vin))]
    stacks[index][item] = change(stacks[index][item])
    return with_witnesses(stripped(parsed), [tuple(stack) for stack in stacks])


def flipped(item: bytes) -> bytes:
    return item[:20] + bytes([item[20] ^ 4]) + item[21:]


async def test_right_transactions_pass_every_gate(bitcoind: RegtestNode, funded: tuple[Deal, Contract]) -> None:
    deal, contract = funded
    plan = derive_payout(contract, NETWORK)
    tx = assemble_payout(plan, deal.signatures(contract, plan, Role.BUYER, Role.SELLER))
    assert await blind(payout_gates(bitcoind, plan), tx) == set(GATES)
    fresh, other = await real_deal(bitcoind, "gates fresh", taproot=True)
    fplan = derive_funding(other, NETWORK)
    tx = assemble_funding(fplan, fresh.witnesses(fplan, Side.BUY), fresh.witnesses(fplan, Side.SELL))
    assert await blind(funding_gates(bitcoind, fplan), tx) == set(GATES)


async def test_payout_with_a_damaged_signature_is_refused_by_each_gate_alone(
    bitcoind: RegtestNode, funded: tuple[Deal, Contract]
) -> None:
    """The one thing that the first gate does not look at."""
    deal, contract = funded
    plan = derive_payout(contract, NETWORK)
    tx = assemble_payout(plan, deal.signatures(contract, plan, Role.BUYER, Role.SELLER))
    for item in (1, 2):
        bent = witness_changed(tx, 0, item, flipped)
        assert await blind(payout_gates(bitcoind, plan), bent) == {"derivation"}
        with pytest.raises(GateRefused):
            gate_payout(contract, NETWORK, bent)


async def test_payout_that_was_changed_after_signing_is_refused_by_each_gate_alone(
    bitcoind: RegtestNode, funded: tuple[Deal, Contract]
) -> None:
    deal, contract = funded
    plan = derive_payout(contract, NETWORK)
    tx = assemble_payout(plan, deal.signatures(contract, plan, Role.BUYER, Role.SELLER))
    witness = witness_of(parse(tx), 0)
    changed = build([(plan.escrow_outpoint, 0xFFFFFFFD)], to_a_thief(outputs_of(plan.unsigned)))
    assert await blind(payout_gates(bitcoind, plan), with_witnesses(changed, [witness])) == set()


async def test_payout_to_a_thief_that_two_keys_really_signed_is_stopped_by_derivation(
    bitcoind: RegtestNode, funded: tuple[Deal, Contract]
) -> None:
    """As after a break-in: every signature is right, and the network would take it. What the contract says stops it."""
    deal, contract = funded
    plan = derive_payout(contract, NETWORK)
    changed = build([(plan.escrow_outpoint, 0xFFFFFFFD)], to_a_thief(outputs_of(plan.unsigned)))
    sighash = sighash_v0(changed, 0, plan.escrow.witness_script, plan.escrow_value)
    signatures = {role: sign_ecdsa(deal.secret(role), sighash) for role in (Role.BUYER, Role.SELLER)}
    tx = with_witnesses(changed, [plan.escrow.witness(plan.branch, signatures)])
    passed = await blind(payout_gates(bitcoind, plan), tx)
    # BDK is given the contract's transaction, so it sees the difference as well.
    assert passed == {"signatures", "consensus", "mempool"}
    with pytest.raises(GateRefused):
        gate_payout(contract, NETWORK, tx, RELEASE)


async def test_funding_with_a_damaged_signature_is_refused_by_each_gate_alone(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "gates damaged", taproot=True)
    plan = derive_funding(contract, NETWORK)
    tx = assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))
    for index in range(len(plan.inputs)):
        bent = witness_changed(tx, index, 0, flipped)
        assert await blind(funding_gates(bitcoind, plan), bent) == {"derivation"}
        with pytest.raises(GateRefused):
            gate_funding(contract, NETWORK, bent)


async def test_funding_of_another_script_that_both_really_signed_is_stopped_by_derivation(
    bitcoind: RegtestNode,
) -> None:
    deal, contract = await real_deal(bitcoind, "gates other script")
    plan = derive_funding(contract, NETWORK)
    outputs = outputs_of(plan.unsigned)
    outputs[plan.escrow_vout] = TxOut(plan.escrow_value, b"\x00\x20" + fixed("thief's script"))
    changed = build([(i.outpoint, 0xFFFFFFFD) for i in plan.inputs], outputs)

    other = replace(plan, unsigned=changed)
    secrets = {c.outpoint: c.secret for c in (*deal.buyer_coins, *deal.seller_coins)}
    stacks = [sign_input(other, index, secrets[i.outpoint]) for index, i in enumerate(plan.inputs)]
    tx = with_witnesses(changed, stacks)
    assert await blind(funding_gates(bitcoind, plan), tx) == {"signatures", "consensus", "mempool"}
    with pytest.raises(GateRefused):
        gate_funding(contract, NETWORK, tx)
    unsigned_by_one = with_witnesses(plan.unsigned, [stacks[0], *[()] * (len(stacks) - 1)])
    assert await blind(funding_gates(bitcoind, plan), unsigned_by_one) == {"derivation"}


@pytest.mark.parametrize("what", ["payout", "funding"])
async def test_no_single_bit_can_be_wrong(bitcoind: RegtestNode, funded: tuple[Deal, Contract], what: str) -> None:
    """Any bit of the whole transaction, witnesses included: each of the three gates that verify refuses it alone."""
    deal, contract = funded
    if what == "payout":
        plan = derive_payout(contract, NETWORK)
        tx = assemble_payout(plan, deal.signatures(contract, plan, Role.BUYER, Role.SELLER))
        gates = payout_gates(bitcoind, plan)
    else:
        # Not on the chain yet: a node answers by txid for what it has, and a txid does not cover witnesses.
        deal, contract = await real_deal(bitcoind, "gates bits", taproot=True)
        fplan = derive_funding(contract, NETWORK)
        tx = assemble_funding(fplan, deal.witnesses(fplan, Side.BUY), deal.witnesses(fplan, Side.SELL))
        gates = funding_gates(bitcoind, fplan)
    chance = random.Random(5)
    for bit in chance.sample(range(8 * len(tx)), 300):
        bent = bytearray(tx)
        bent[bit // 8] ^= 1 << bit % 8
        for name in ("signatures", "finalisation", "consensus"):
            assert not await gates[name](bytes(bent)), (name, bit)
        if bit % 30 == 0:
            assert not await gates["mempool"](bytes(bent)), bit
