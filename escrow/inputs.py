"""A party's coins: what it claims of them, and its signatures for them (SPEC section 6.3).

A peer's inputs are trusted for nothing. The full previous transaction must hash to the txid that the contract names,
and its output must hold the value and the script that the contract tells: a wrong value would turn into a fee, or
into a signature that is worthless. Only P2WPKH and P2TR key path spends of SIGHASH_ALL meaning are taken, each in its
one standard form, so a witness can neither be larger than the fee was counted for nor be changed on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

from escrow.coins import TxOut
from escrow.errors import BadFundingInput, BadFundingWitness
from escrow.funding import FundingPlan
from escrow.hd import hash160
from escrow.signatures import SIGHASH_ALL, verify_ecdsa, verify_schnorr
from escrow.sizes import input_weight, is_p2wpkh
from escrow.transactions import (
    NotATransaction,
    Witness,
    find_output,
    p2wpkh_code,
    sighash_v0,
    sighash_v1,
    with_witnesses,
)
from protocol.contract import FundingInput, Party
from protocol.types import Side


def check_previous(party: Party, previous_txs: Sequence[bytes]) -> None:
    """Check each input of a party against the full transaction that made it.

    Whether the output is buried and unspent only the chain can tell; the caller asks it.
    Raises BadFundingInput, UnsupportedInput.
    """
    if len(previous_txs) != len(party.inputs):
        raise BadFundingInput("the peer must send one previous transaction for each of its inputs")
    if len({(i.txid, i.vout) for i in party.inputs}) != len(party.inputs):
        raise BadFundingInput("the peer names one of its inputs twice")
    for claimed, raw in zip(party.inputs, previous_txs, strict=True):
        input_weight(claimed.script_pubkey)
        _check_output(claimed, raw)


def _check_output(claimed: FundingInput, raw: bytes) -> None:
    try:
        txid, found = find_output(raw, claimed.vout)
    except NotATransaction as e:
        raise BadFundingInput("the peer sent something else than the previous transaction of its input") from e
    if txid != claimed.txid:
        raise BadFundingInput("the peer's previous transaction has another txid than its input names")
    if found is None:
        raise BadFundingInput("the peer's input names an output that does not exist")
    if found != TxOut(claimed.value, claimed.script_pubkey):
        raise BadFundingInput("the output that the peer's input names has another value or script than it claims")


def check_witnesses(plan: FundingPlan, side: Side, witnesses: Sequence[Witness]) -> None:
    """Check a party's witnesses, given in the order of its own list of inputs. Raises BadFundingWitness."""
    indices = plan.indices(side)
    if len(witnesses) != len(indices):
        raise BadFundingWitness("the peer must send one witness for each of its inputs")
    for index, witness in zip(indices, witnesses, strict=True):
        if not witness_holds(plan.unsigned, plan.spent, index, tuple(witness)):
            raise BadFundingWitness


def witness_holds(unsigned: bytes, spent_outputs: Sequence[TxOut], index: int, witness: Witness) -> bool:
    """Whether `witness` is the one legal form of a P2WPKH or P2TR key spend of that input, and its signature valid."""
    spent = spent_outputs[index]
    script = spent.script_pubkey
    if is_p2wpkh(script):
        if len(witness) != 2 or len(witness[0]) < 9 or len(witness[1]) != 33:
            return False
        (signature, sighash_type), public = (witness[0][:-1], witness[0][-1]), witness[1]
        if sighash_type != SIGHASH_ALL or hash160(public) != script[2:]:
            return False
        return verify_ecdsa(public, sighash_v0(unsigned, index, p2wpkh_code(script), spent.value), signature)
    # Taproot: 64 bytes mean the default sighash, which covers what ALL covers. `input_weight` let no other kind in.
    if len(witness) != 1 or len(witness[0]) != 64:
        return False
    return verify_schnorr(script[2:], sighash_v1(unsigned, index, spent_outputs), witness[0])


def assemble_funding(
    plan: FundingPlan, buyer_witnesses: Sequence[Witness], seller_witnesses: Sequence[Witness]
) -> bytes:
    """The signed funding transaction; both lists in the order of the parties' own inputs. Raises BadFundingWitness."""
    stacks: list[Witness] = [()] * len(plan.inputs)
    for side, witnesses in ((Side.BUY, buyer_witnesses), (Side.SELL, seller_witnesses)):
        check_witnesses(plan, side, witnesses)
        for index, witness in zip(plan.indices(side), witnesses, strict=True):
            stacks[index] = tuple(witness)
    return with_witnesses(plan.unsigned, stacks)
