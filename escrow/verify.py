"""The gates before a signature leaves and before a transaction does (SPEC section 6.4).

Each gate is enough to stop a wrong transaction, and each is blind to how the others judge:

1. `same_as_derived`: without its witnesses, the transaction is the very bytes that follow from the contract.
2. `signatures_hold`: every witness has its one legal form, and each signature in it is right for the key at its place
   and for this very transaction, whose hashes are computed anew.
3. `finalisation_holds`: BDK, given the contract's transaction and the signatures as a PSBT, verifies them and makes
   the same bytes of it. Only where bdkpython is installed.
4. `consensus_holds`: Bitcoin Core's own verifier accepts every input. Only where py-bitcoinkernel is installed.

What follows them is not pure and lies elsewhere: the node's `testmempoolaccept`, which every backend that has it asks
before it broadcasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Final

from msgspec.structs import replace

from escrow.coins import TxOut
from escrow.errors import BadFundingWitness, BadPayoutSignature, GateRefused
from escrow.funding import FundingPlan, derive_funding
from escrow.inputs import check_witnesses
from escrow.payout import RELEASE, PayoutPlan, check_payout_signature, derive_payout
from escrow.psbt import IN_PARTIAL, IN_SPENT, IN_TAP_SIGNATURE, IN_WITNESS_SCRIPT, Psbt, field, pack_output, text
from escrow.script import Role
from escrow.sizes import is_p2wpkh
from escrow.transactions import NotATransaction, Witness, parse, sighash_v0, stripped, witness_of
from protocol.contract import Contract
from protocol.outcome import Outcome
from protocol.trade_state import EscrowFacts
from protocol.types import Network, Side

MAX_TRANSACTION: Final = 100_000
"""Bytes of the largest transaction that a gate looks at; nodes relay no larger one (400,000 weight units)."""


def escrow_facts(contract: Contract, network: Network) -> EscrowFacts:
    """What the trade machine keeps of a contract; `escrow_script` is the output script. Raises as `derive_funding`."""
    funding = derive_funding(contract, network)
    payout = derive_payout(contract, network)
    return EscrowFacts(
        contract_id=funding.contract_id,
        funding_txid=funding.txid,
        escrow_vout=funding.escrow_vout,
        escrow_value=funding.escrow_value,
        escrow_script=funding.escrow.script_pubkey,
        funding_fee=funding.fee,
        payout_txid=payout.txid,
        payout_fee=payout.fee,
    )


def gate_funding(contract: Contract, network: Network, tx: bytes) -> bool:
    """All gates for a signed funding transaction; whether Bitcoin Core's verifier was one. Raises GateRefused."""
    plan = derive_funding(contract, network)
    same_as_derived(tx, plan.unsigned)
    funding_signatures_hold(plan, tx)
    funding_finalisation_holds(plan, tx)
    return consensus_holds(tx, plan.spent)


def gate_payout(contract: Contract, network: Network, tx: bytes, outcome: Outcome = RELEASE) -> bool:
    """All gates for a signed payout; whether Bitcoin Core's verifier was one.

    Raises GateRefused, and BadPayout for an outcome that the contract forbids.
    """
    plan = derive_payout(contract, network, outcome)
    same_as_derived(tx, plan.unsigned)
    payout_signatures_hold(plan, tx)
    payout_finalisation_holds(plan, tx)
    return consensus_holds(tx, [TxOut(plan.escrow_value, plan.escrow.script_pubkey)])


def same_as_derived(tx: bytes, unsigned: bytes) -> None:
    """Gate 1: `tx` without its witnesses is `unsigned`. Raises GateRefused."""
    try:
        if len(tx) <= MAX_TRANSACTION and stripped(parse(tx)) == unsigned:
            return
    except NotATransaction as e:
        raise GateRefused("what should be broadcast is not a transaction") from e
    raise GateRefused("the transaction is not the one that follows from the contract")


def funding_signatures_hold(plan: FundingPlan, tx: bytes) -> None:
    """Gate 2 for a funding. Raises GateRefused."""
    witnesses = _witnesses(tx, len(plan.inputs))
    shown = replace(plan, unsigned=stripped(parse(tx)))
    try:
        for side in Side:
            check_witnesses(shown, side, [witnesses[index] for index in plan.indices(side)])
    except (BadFundingWitness, OverflowError, ValueError) as e:
        # The last two: outputs that no funding of ours has, a negative value or a long script.
        raise GateRefused("a signature of the funding transaction is not valid") from e


def payout_signatures_hold(plan: PayoutPlan, tx: bytes) -> None:
    """Gate 2 for a payout: two signatures of this branch's keys in the one legal witness. Raises GateRefused."""
    (witness,) = _witnesses(tx, 1)
    sighash = sighash_v0(stripped(parse(tx)), 0, plan.escrow.witness_script, plan.escrow_value)
    shown = replace(plan, sighash=sighash)
    for signatures in _pairs(witness):
        if plan.escrow.witness(plan.branch, signatures) != witness:
            break
        try:
            for role, signature in signatures.items():
                check_payout_signature(shown, role, signature)
        except BadPayoutSignature:
            continue
        return
    raise GateRefused("the payout's witness is not two valid signatures of the escrow's keys")


def funding_finalisation_holds(plan: FundingPlan, tx: bytes) -> bool:
    """Gate 3 for a funding; False when BDK is not installed, so nothing was judged. Raises GateRefused."""
    if _bdk() is None:
        return False
    inputs = []
    for planned, witness in zip(plan.inputs, _witnesses(tx, len(plan.inputs)), strict=True):
        fields = {field(IN_SPENT): pack_output(planned.spent)}
        if is_p2wpkh(planned.spent.script_pubkey) and len(witness) == 2:
            fields[field(IN_PARTIAL, witness[1])] = witness[0]
        elif len(witness) == 1:
            fields[field(IN_TAP_SIGNATURE)] = witness[0]
        inputs.append(fields)
    if not _finalises(Psbt(plan.unsigned, tuple(inputs), tuple({} for _ in plan.outputs)), tx):
        raise GateRefused("BDK does not make this transaction of the funding and its signatures")
    return True


def payout_finalisation_holds(plan: PayoutPlan, tx: bytes) -> bool:
    """Gate 3 for a payout; False when BDK is not installed, so nothing was judged. Raises GateRefused."""
    if _bdk() is None:
        return False
    (witness,) = _witnesses(tx, 1)
    # The witness does not say whose the signatures are: one of the three pairs must do.
    for signatures in _pairs(witness):
        fields = {
            field(IN_SPENT): pack_output(TxOut(plan.escrow_value, plan.escrow.script_pubkey)),
            field(IN_WITNESS_SCRIPT): plan.escrow.witness_script,
            **{field(IN_PARTIAL, plan.keys[role]): der + witness[1][-1:] for role, der in signatures.items()},
        }
        if _finalises(Psbt(plan.unsigned, (fields,), tuple({} for _ in plan.outputs)), tx):
            return True
    raise GateRefused("BDK does not make this transaction of the payout and its signatures")


def _finalises(psbt: Psbt, tx: bytes) -> bool:
    """Whether BDK verifies and finalises `psbt`, and what it makes is `tx`."""
    bdk = _bdk()
    if bdk is None:
        raise AssertionError("asked only where BDK is")
    try:
        result = bdk.Psbt(text(psbt)).finalize()
        # Our own fee band is the limit; BDK's is a guard for users of its wallet.
        return result.could_finalize and bytes(result.psbt.extract_tx_unchecked_fee_rate().serialize()) == tx
    except (bdk.PsbtParseError, bdk.ExtractTxError):
        return False


def _pairs(witness: Witness) -> list[dict[Role, bytes]]:
    """A payout's two signatures, by each pair of roles that they may be of; none when there are not two."""
    found = [item[:-1] for item in witness[1:3]]
    pairs = ((Role.BUYER, Role.SELLER), (Role.BUYER, Role.ARBITER), (Role.SELLER, Role.ARBITER))
    return [dict(zip(pair, found, strict=True)) for pair in pairs] if len(found) == 2 else []


def consensus_holds(tx: bytes, spent: Sequence[TxOut]) -> bool:
    """Gate 4: Bitcoin Core's verifier accepts each input of `tx`, which spend `spent` in order.

    False when the verifier is not installed, so nothing was judged. Raises GateRefused.
    """
    kernel = _kernel()
    if kernel is None:
        return False
    if len(spent) != len(_witnesses(tx)):
        raise GateRefused("the transaction has another number of inputs than the contract says")
    try:
        candidate = kernel.Transaction(tx)
        scripts = [kernel.ScriptPubkey(o.script_pubkey) for o in spent]
        outputs = [kernel.TransactionOutput(s, o.value) for s, o in zip(scripts, spent, strict=True)]
        known = kernel.script.PrecomputedTransactionData(candidate, outputs)
        flags = kernel.ScriptVerificationFlags.ALL
        accepted = all(
            script.verify(output.value, candidate, known, index, flags)
            for index, (script, output) in enumerate(zip(scripts, spent, strict=True))
        )
    except (RuntimeError, kernel.KernelException) as e:
        raise GateRefused("Bitcoin Core's verifier can't read the transaction") from e
    if not accepted:
        raise GateRefused("Bitcoin Core's verifier refuses the transaction")
    return True


def _witnesses(tx: bytes, count: int | None = None) -> list[Witness]:
    try:
        parsed = parse(tx)
    except NotATransaction as e:
        raise GateRefused("what should be broadcast is not a transaction") from e
    if count is not None and len(parsed.vin) != count:
        raise GateRefused("the transaction has another number of inputs than the contract says")
    return [witness_of(parsed, index) for index in range(len(parsed.vin))]


@cache
def _kernel() -> ModuleType | None:
    """py-bitcoinkernel, loaded at the first need (a tenth of a second), or None where it does not load."""
    try:
        return import_module("pbk")
    except (ImportError, OSError):
        # OSError: the package is there, its library does not load on this machine.
        return None


@cache
def _bdk() -> ModuleType | None:
    """bdkpython, loaded at the first need, or None where there is no wheel for the platform."""
    try:
        return import_module("bdkpython")
    except (ImportError, OSError):
        return None
