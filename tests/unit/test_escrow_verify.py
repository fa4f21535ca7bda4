"""The gates: each alone stops a wrong transaction, and Bitcoin Core's verifier agrees about the right ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from escrow import verify
from escrow.coins import OutPoint, TxOut
from escrow.errors import BadPayout, GateRefused
from escrow.funding import derive_funding
from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, PayoutPlan, assemble_payout, derive_payout
from escrow.script import Role
from escrow.signatures import sign_ecdsa
from escrow.transactions import build, parse, sighash_v0, with_witnesses, witness_of
from escrow.verify import (
    consensus_holds,
    escrow_facts,
    funding_signatures_hold,
    gate_funding,
    gate_payout,
    payout_signatures_hold,
    same_as_derived,
)
from protocol.outcome import ReleaseOutcome
from protocol.types import Branch, EscrowType, Side
from tests.unit.escrow_support import NETWORK, Deal, cancelled, coin, fixed, p2wpkh, ruled

DEAL = Deal(buyer_coins=(coin(100_000, "one"), coin(250_000, "two", taproot=True)))
CONTRACT = DEAL.contract()
FUNDING = derive_funding(CONTRACT, NETWORK)
FUNDED = assemble_funding(FUNDING, DEAL.witnesses(FUNDING, Side.BUY), DEAL.witnesses(FUNDING, Side.SELL))
PAYOUT = derive_payout(CONTRACT, NETWORK)
PAID = assemble_payout(PAYOUT, DEAL.signatures(CONTRACT, PAYOUT, Role.BUYER, Role.SELLER))
ESCROW = [TxOut(PAYOUT.escrow_value, PAYOUT.escrow.script_pubkey)]

needs_kernel = pytest.mark.skipif(verify._kernel() is None, reason="py-bitcoinkernel is not installed")


def repaid(plan: PayoutPlan, change: Callable[[list[TxOut]], list[TxOut]]) -> bytes:
    """The payout with other outputs, signed by buyer and seller as if they had agreed."""
    outputs = change([o.output for o in plan.outputs])
    unsigned = build([(plan.escrow_outpoint, 0xFFFFFFFD)], outputs)
    sighash = sighash_v0(unsigned, 0, plan.escrow.witness_script, plan.escrow_value)
    signatures = {role: sign_ecdsa(DEAL.secret(role), sighash) for role in (Role.BUYER, Role.SELLER)}
    return with_witnesses(unsigned, [plan.escrow.witness(plan.branch, signatures)])


def bend(tx: bytes, change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> bytes:
    """The transaction with another witness at its first input."""
    parsed = parse(tx)
    stacks = [witness_of(parsed, index) for index in range(len(parsed.vin))]
    stacks[0] = change(stacks[0])
    unsigned = build(
        [(OutPoint(bytes(i.prevout.hash), i.prevout.n), i.nSequence) for i in parsed.vin],
        [TxOut(o.nValue, bytes(o.scriptPubKey)) for o in parsed.vout],
    )
    return with_witnesses(unsigned, stacks)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A platform for which there is no py-bitcoinkernel."""
    monkeypatch.setitem(sys.modules, "pbk", None)
    verify._kernel.cache_clear()
    yield
    verify._kernel.cache_clear()


def test_right_transactions_pass_all_gates() -> None:
    installed = verify._kernel() is not None
    assert gate_funding(CONTRACT, NETWORK, FUNDED) is installed
    assert gate_payout(CONTRACT, NETWORK, PAID) is installed


@pytest.mark.usefixtures("no_kernel")
def test_without_the_kernel_our_own_gates_still_stand() -> None:
    assert gate_funding(CONTRACT, NETWORK, FUNDED) is False
    assert gate_payout(CONTRACT, NETWORK, PAID) is False
    for tx in (bend(FUNDED, lambda w: (w[0][:-2] + b"\x00" + w[0][-1:], *w[1:])), bend(FUNDED, lambda _: ())):
        with pytest.raises(GateRefused):
            gate_funding(CONTRACT, NETWORK, tx)
    for tx in (bend(PAID, lambda w: (w[0], w[2], w[1], *w[3:])), bend(PAID, lambda w: (w[0], w[1], b"", *w[3:]))):
        with pytest.raises(GateRefused):
            gate_payout(CONTRACT, NETWORK, tx)


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: [TxOut(outputs[0].value - 1, outputs[0].script_pubkey), *outputs[1:]],
        lambda outputs: outputs[:1],
        lambda outputs: outputs[::-1],
        lambda outputs: [TxOut(outputs[0].value, p2wpkh(fixed("thief"))), *outputs[1:]],
        lambda outputs: [*outputs, TxOut(0, b"\x6a")],
    ],
    ids=["a satoshi less", "an output less", "another order", "another script", "an output more"],
)
def test_payout_that_both_signed_but_the_contract_does_not_know_is_refused(
    change: Callable[[list[TxOut]], list[TxOut]],
) -> None:
    """The first gate alone stops it: its signatures are right, and the network would take it."""
    tx = repaid(PAYOUT, change)
    with pytest.raises(GateRefused, match="follows from the contract"):
        same_as_derived(tx, PAYOUT.unsigned)
    assert consensus_holds(tx, ESCROW) == (verify._kernel() is not None)
    with pytest.raises(GateRefused):
        gate_payout(CONTRACT, NETWORK, tx)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: (w[0], w[2], w[1], *w[3:]),
        lambda w: (w[0], w[1], w[1], *w[3:]),
        lambda w: (w[0], w[1], b"", *w[3:]),
        lambda w: (w[0], w[1], w[2], b"", w[4]),
        lambda w: (w[0], w[1][:-1] + b"\x02", *w[2:]),
        lambda w: (w[0], w[1][:-2] + bytes([w[1][-2] ^ 1]) + w[1][-1:], *w[2:]),
        lambda w: (w[0], w[1], w[2], w[3]),
        lambda w: (b"", *w),
        lambda _: (),
    ],
    ids=[
        "swapped",
        "one signature twice",
        "one signature",
        "backup branch",
        "sighash none",
        "damaged",
        "no script",
        "an item more",
        "empty",
    ],
)
def test_illegal_payout_witness_is_refused_by_each_gate_that_reads_it(
    change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
) -> None:
    tx = bend(PAID, change)
    same_as_derived(tx, PAYOUT.unsigned)
    with pytest.raises(GateRefused):
        payout_signatures_hold(PAYOUT, tx)
    if verify._kernel() is not None:
        with pytest.raises(GateRefused):
            consensus_holds(tx, ESCROW)
    with pytest.raises(GateRefused):
        gate_payout(CONTRACT, NETWORK, tx)


@pytest.mark.parametrize(
    "change",
    [lambda w: (b"\x01", *w[1:]), lambda w: (*w[:3], b"\x02", w[4])],
    ids=["dummy not empty", "selector not 1"],
)
def test_witness_that_only_policy_or_bip147_forbids_is_refused(
    change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
) -> None:
    """A miner may accept what nodes do not relay; we make only the one form that all take."""
    with pytest.raises(GateRefused):
        payout_signatures_hold(PAYOUT, bend(PAID, change))


@pytest.mark.parametrize("pair", [(Role.BUYER, Role.SELLER), (Role.BUYER, Role.ARBITER), (Role.SELLER, Role.ARBITER)])
@pytest.mark.parametrize("kind", EscrowType)
@pytest.mark.parametrize("branch", Branch)
@needs_kernel
def test_every_pair_in_every_branch_satisfies_bitcoin_core(
    pair: tuple[Role, Role], kind: EscrowType, branch: Branch
) -> None:
    if kind is EscrowType.WSH_2OF3 and branch is Branch.BACKUP:
        return
    deal = Deal(escrow_type=kind)
    contract = deal.contract()
    main = (RELEASE, cancelled(contract), ruled(700_000))
    for outcome in main if branch is Branch.MAIN else (ruled(700_000, branch=branch), ruled(0, branch=branch)):
        plan = derive_payout(contract, NETWORK, outcome)
        tx = assemble_payout(plan, deal.signatures(contract, plan, *pair))
        assert consensus_holds(tx, [TxOut(plan.escrow_value, plan.escrow.script_pubkey)])


@needs_kernel
def test_backup_branch_with_too_low_a_sequence_is_refused_by_bitcoin_core() -> None:
    plan = derive_payout(CONTRACT, NETWORK, ruled(0, branch=Branch.BACKUP))
    secrets = {role: DEAL.signer(CONTRACT, role, Branch.BACKUP) for role in (Role.BUYER, Role.ARBITER)}
    for sequence, holds in ((1008, True), (1009, True), (1007, False), (0xFFFFFFFD, False), (1008 | 1 << 22, False)):
        unsigned = build([(plan.escrow_outpoint, sequence)], [o.output for o in plan.outputs])
        sighash = sighash_v0(unsigned, 0, plan.escrow.witness_script, plan.escrow_value)
        signatures = {role: sign_ecdsa(secret, sighash) for role, secret in secrets.items()}
        tx = with_witnesses(unsigned, [plan.escrow.witness(Branch.BACKUP, signatures)])
        if holds:
            assert consensus_holds(tx, ESCROW)
        else:
            with pytest.raises(GateRefused):
                consensus_holds(tx, ESCROW)


@needs_kernel
def test_wrong_value_of_the_spent_output_is_refused_by_bitcoin_core() -> None:
    with pytest.raises(GateRefused):
        consensus_holds(PAID, [TxOut(PAYOUT.escrow_value + 1, PAYOUT.escrow.script_pubkey)])
    with pytest.raises(GateRefused, match="number of inputs"):
        consensus_holds(PAID, [])


class TestFunding:
    @pytest.mark.parametrize("index", range(3))
    def test_damaged_signature_at_any_input_is_refused_by_each_gate_that_reads_it(self, index: int) -> None:
        parsed = parse(FUNDED)
        stacks = [witness_of(parsed, i) for i in range(len(parsed.vin))]
        item = bytearray(stacks[index][0])
        item[40] ^= 1
        stacks[index] = (bytes(item), *stacks[index][1:])
        tx = with_witnesses(FUNDING.unsigned, stacks)
        same_as_derived(tx, FUNDING.unsigned)
        with pytest.raises(GateRefused):
            funding_signatures_hold(FUNDING, tx)
        if verify._kernel() is not None:
            with pytest.raises(GateRefused):
                consensus_holds(tx, FUNDING.spent)

    def test_funding_of_another_contract_is_refused(self) -> None:
        other = replace(CONTRACT, price=CONTRACT.price + 1)
        with pytest.raises(GateRefused, match="follows from the contract"):
            gate_funding(other, NETWORK, FUNDED)

    def test_unsigned_or_partly_signed_funding_is_refused(self) -> None:
        with pytest.raises(GateRefused):
            gate_funding(CONTRACT, NETWORK, FUNDING.unsigned)
        with pytest.raises(GateRefused):
            gate_funding(CONTRACT, NETWORK, bend(FUNDED, lambda _: ()))


@pytest.mark.parametrize("tx", [b"", bytes(100), FUNDED[:-1], FUNDED + b"\0", PAID, bytes(200_000)])
def test_other_bytes_are_refused_in_one_way(tx: bytes) -> None:
    with pytest.raises(GateRefused):
        same_as_derived(tx, FUNDING.unsigned)
    with pytest.raises(GateRefused):
        funding_signatures_hold(FUNDING, tx)
    with pytest.raises(GateRefused):
        gate_funding(CONTRACT, NETWORK, tx)


def test_gate_for_one_outcome_does_not_pass_another() -> None:
    with pytest.raises(GateRefused):
        gate_payout(CONTRACT, NETWORK, PAID, cancelled(CONTRACT))
    with pytest.raises(GateRefused):
        gate_payout(CONTRACT, NETWORK, PAID, ruled(0, branch=Branch.BACKUP))
    with pytest.raises(BadPayout):
        gate_payout(CONTRACT, NETWORK, PAID, ReleaseOutcome(1))


def test_facts_are_those_of_the_two_transactions() -> None:
    facts = escrow_facts(CONTRACT, NETWORK)
    assert (facts.funding_txid, facts.escrow_vout, facts.funding_fee) == (
        FUNDING.txid,
        FUNDING.escrow_vout,
        FUNDING.fee,
    )
    assert (facts.payout_txid, facts.payout_fee) == (PAYOUT.txid, PAYOUT.fee)
    assert facts.escrow_script == FUNDING.escrow.script_pubkey
    assert facts.escrow_value == FUNDING.outputs[facts.escrow_vout].value
    assert facts.contract_id == FUNDING.contract_id
