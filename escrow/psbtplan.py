"""From the plan of a transaction to a PSBT, and from a signed PSBT back to signatures (SPEC section 9.2).

What goes out holds all that a signing device asks for: each spent output and the whole transaction that made it, the
witness script, and where keys come from. It names no hash type, which means SIGHASH_ALL (for taproot the default): with
the field, Bitcoin Core's `walletprocesspsbt` refuses unless the user repeats it.

What comes back is trusted for nothing: its transaction must be the very bytes that follow from the contract, no field
of it may contradict the contract, and every signature is checked against our own derivation. So a PSBT of another
trade, of an earlier state of this one, or one that was changed on the way is refused, whatever it is signed with.

Escrow keys are BIP85 secrets and stand below no BIP32 path that another wallet could follow. They are told as Bitcoin
Core tells single keys: the key's own fingerprint and an empty path. Who holds such a key signs with it as a single key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from escrow.coins import OutPoint, TxOut
from escrow.errors import BadFundingWitness
from escrow.funding import FundingPlan, derive_funding
from escrow.hd import hash160
from escrow.inputs import check_witnesses, witness_holds
from escrow.payout import PayoutPlan, check_payout_signature, derive_payout
from escrow.psbt import (
    IN_FINAL_SCRIPT,
    IN_FINAL_WITNESS,
    IN_ORIGIN,
    IN_PARTIAL,
    IN_PREVIOUS,
    IN_SIGHASH,
    IN_SPENT,
    IN_TAP_INTERNAL,
    IN_TAP_ORIGIN,
    IN_TAP_SIGNATURE,
    IN_WITNESS_SCRIPT,
    OUT_ORIGIN,
    OUT_TAP_INTERNAL,
    OUT_TAP_ORIGIN,
    BadPsbt,
    KeyOrigin,
    Map,
    Psbt,
    StalePsbt,
    UnsignedPsbt,
    field,
    keyed,
    pack_output,
    proprietary,
    unpack_witness,
)
from escrow.script import Role
from escrow.signatures import SIGHASH_ALL
from escrow.sizes import OVERHEAD_WEIGHT, input_weight, is_p2tr, is_p2wpkh, output_weight
from escrow.transactions import NotATransaction, Witness, find_output, parse, scripts_of
from protocol.contract import Contract
from protocol.errors import P2PError
from protocol.outcome import Outcome
from protocol.types import FeeRate, Network, Side

_MEANS: Final = proprietary(0)
"""Our own field of the whole: what the payout is by the contract, as JSON. A hint; it is derived again."""
_ALL: Final = SIGHASH_ALL.to_bytes(4, "little")
_DEFAULT: Final = bytes(4)


class _Meaning(Struct, frozen=True, forbid_unknown_fields=True):
    outcome: Outcome


# --- funding -----------------------------------------------------------------------------------------------------


def funding_psbt(
    plan: FundingPlan,
    side: Side,
    *,
    previous: Mapping[bytes, bytes] | None = None,
    origins: Mapping[bytes, KeyOrigin] | None = None,
) -> Psbt:
    """The funding for the wallet that holds the coins of `side`.

    `previous` are whole previous transactions by txid, both parties' where they are known: some devices want them for
    every input. `origins` tells keys by the scripts that pay to them, of inputs and of our change.
    """
    known, keys = previous or {}, origins or {}
    own = set(plan.indices(side))
    inputs = []
    for index, planned in enumerate(plan.inputs):
        fields = {field(IN_SPENT): pack_output(planned.spent)}
        if planned.outpoint.txid in known:
            fields[field(IN_PREVIOUS)] = known[planned.outpoint.txid]
        if index in own:
            kinds = (IN_ORIGIN, IN_TAP_INTERNAL, IN_TAP_ORIGIN)
            fields.update(_origin_fields(planned.spent.script_pubkey, keys, kinds))
        inputs.append(fields)
    outs = (OUT_ORIGIN, OUT_TAP_INTERNAL, OUT_TAP_ORIGIN)
    outputs = tuple(
        _origin_fields(o.output.script_pubkey, keys, outs) if o.owner is Role.of(side) else {} for o in plan.outputs
    )
    return Psbt(plan.unsigned, tuple(inputs), outputs)


def read_funding(plan: FundingPlan, side: Side, psbt: Psbt) -> tuple[Witness, ...]:
    """The witnesses of the inputs of `side`, in the order of its own list: as messages carry them.

    Raises StalePsbt, BadPsbt, UnsignedPsbt.
    """
    _same_transaction(psbt, plan.unsigned)
    for planned, fields in zip(plan.inputs, psbt.inputs, strict=True):
        _no_contradiction(fields, planned.outpoint, planned.spent)
    witnesses = tuple(
        _witness_of(psbt.inputs[index], plan.inputs[index].outpoint, plan.inputs[index].spent)
        for index in plan.indices(side)
    )
    try:
        check_witnesses(plan, side, witnesses)
    except BadFundingWitness as e:
        raise BadPsbt("a signature in the PSBT is not valid for this trade's funding; nothing was taken over") from e
    return witnesses


def _witness_of(fields: Map, outpoint: OutPoint, spent: TxOut) -> Witness:
    """What a signer left for an input: finalised or not. Raises UnsignedPsbt, BadPsbt."""
    if field(IN_FINAL_SCRIPT) in fields:
        raise BadPsbt("the PSBT holds a signature script, which a native segwit input must not have")
    if field(IN_FINAL_WITNESS) in fields:
        return unpack_witness(fields[field(IN_FINAL_WITNESS)])
    if is_p2tr(spent.script_pubkey):
        if field(IN_TAP_SIGNATURE) in fields:
            return (fields[field(IN_TAP_SIGNATURE)],)
    else:
        for public, signature in keyed(fields, IN_PARTIAL).items():
            if hash160(public) == spent.script_pubkey[2:]:
                return (signature, public)
    raise UnsignedPsbt(f"the PSBT holds no signature for the coin {outpoint}: sign it with the wallet that holds it")


# --- our own coins, outside of a contract ------------------------------------------------------------------------


class OwnSpend(Struct, frozen=True):
    """A transaction that spends coins of ours alone, before it is signed: what it spends, and where that came from."""

    unsigned: bytes
    spent: tuple[TxOut, ...]
    previous: tuple[bytes, ...]
    fee: int


def own_psbt(spend: OwnSpend, origins: Mapping[bytes, KeyOrigin]) -> Psbt:
    """It, for the wallet that holds the keys; `origins` as `funding_psbt` takes them."""
    ins, outs = (IN_ORIGIN, IN_TAP_INTERNAL, IN_TAP_ORIGIN), (OUT_ORIGIN, OUT_TAP_INTERNAL, OUT_TAP_ORIGIN)
    inputs = tuple(
        {
            field(IN_SPENT): pack_output(output),
            field(IN_PREVIOUS): previous,
            **_origin_fields(output.script_pubkey, origins, ins),
        }
        for output, previous in zip(spend.spent, spend.previous, strict=True)
    )
    scripts = scripts_of(spend.unsigned)
    return Psbt(spend.unsigned, inputs, tuple(_origin_fields(script, origins, outs) for script in scripts))


def read_own(asked: Psbt, psbt: Psbt) -> tuple[Witness, ...]:
    """The witnesses of every input of `asked`, which `own_psbt` made. Raises StalePsbt, BadPsbt, UnsignedPsbt."""
    unsigned = asked.unsigned
    _same_transaction(psbt, unsigned)
    outpoints = [OutPoint(bytes(i.prevout.hash), i.prevout.n) for i in parse(unsigned).vin]
    spent = [_spent_by(fields, outpoint) for fields, outpoint in zip(asked.inputs, outpoints, strict=True)]
    found: list[Witness] = []
    for index, (fields, outpoint, output) in enumerate(zip(psbt.inputs, outpoints, spent, strict=True)):
        _no_contradiction(fields, outpoint, output)
        witness = _witness_of(fields, outpoint, output)
        if not witness_holds(unsigned, spent, index, witness):
            raise BadPsbt("a signature in the PSBT is not valid for this transaction; nothing was taken over")
        found.append(witness)
    return tuple(found)


def own_rate(asked: Psbt) -> FeeRate:
    """The fee rate of what `own_psbt` made, once it is signed. Raises BadPsbt."""
    tx = parse(asked.unsigned)
    outpoints = [OutPoint(bytes(i.prevout.hash), i.prevout.n) for i in tx.vin]
    spent = [_spent_by(fields, outpoint) for fields, outpoint in zip(asked.inputs, outpoints, strict=True)]
    paid = sum(o.value for o in spent) - sum(int(o.nValue) for o in tx.vout)
    weight = OVERHEAD_WEIGHT + sum(input_weight(o.script_pubkey) for o in spent)
    return 4_000 * paid // (weight + sum(output_weight(len(o.scriptPubKey)) for o in tx.vout))


def _spent_by(fields: Map, outpoint: OutPoint) -> TxOut:
    """What an input spends, by the whole previous transaction. Raises BadPsbt."""
    damaged = "the PSBT that was exported is damaged: its previous transactions do not fit"
    try:
        txid, output = find_output(fields.get(field(IN_PREVIOUS), b""), outpoint.vout)
    except NotATransaction as e:
        raise BadPsbt(damaged) from e
    if txid != outpoint.txid or output is None:
        raise BadPsbt(damaged)
    return output


# --- payouts -----------------------------------------------------------------------------------------------------


def payout_psbt(
    contract: Contract,
    network: Network,
    plan: PayoutPlan,
    signatures: Mapping[Role, bytes] | None = None,
) -> Psbt:
    """A payout with the signatures (DER) that are there.

    The funding in it has no witnesses; its txid is the same.
    """
    keys = plan.keys
    fields = {
        field(IN_PREVIOUS): derive_funding(contract, network).unsigned,
        field(IN_SPENT): pack_output(TxOut(plan.escrow_value, plan.escrow.script_pubkey)),
        field(IN_WITNESS_SCRIPT): plan.escrow.witness_script,
        **{field(IN_ORIGIN, key): hash160(key)[:4] for key in keys},
        **_partial(plan, signatures or {}),
    }
    meaning = msgspec.json.encode(_Meaning(plan.outcome))
    return Psbt(plan.unsigned, (fields,), tuple({} for _ in plan.outputs), {_MEANS: meaning})


def read_payout(plan: PayoutPlan, psbt: Psbt) -> dict[Role, bytes]:
    """The signatures (DER) in a PSBT of this payout, each of them valid; none is fine. Raises StalePsbt, BadPsbt."""
    _same_transaction(psbt, plan.unsigned)
    (fields,) = psbt.inputs
    _no_contradiction(fields, plan.escrow_outpoint, TxOut(plan.escrow_value, plan.escrow.script_pubkey))
    script = fields.get(field(IN_WITNESS_SCRIPT), plan.escrow.witness_script)
    if script != plan.escrow.witness_script:
        raise BadPsbt("the PSBT was changed: it names another escrow script than the contract's")
    found: dict[Role, bytes] = {}
    for public, signature in _given(fields).items():
        if public not in plan.keys:
            raise BadPsbt("the PSBT is signed by a key that is not one of this escrow's")
        role = Role(plan.keys.index(public))
        if signature[-1:] != bytes([SIGHASH_ALL]):
            raise BadPsbt("a signature in the PSBT does not cover the whole transaction (SIGHASH_ALL)")
        try:
            check_payout_signature(plan, role, signature[:-1])
        except P2PError as e:
            raise BadPsbt(f"the {role.name.lower()}'s signature in the PSBT is not valid for this payout") from e
        found[role] = signature[:-1]
    return found


def _given(fields: Map) -> dict[bytes, bytes]:
    if field(IN_FINAL_WITNESS) in fields or field(IN_FINAL_SCRIPT) in fields:
        raise BadPsbt("the PSBT is finalised already: broadcast its transaction, or give the one before that")
    return keyed(fields, IN_PARTIAL)


def payout_of(contract: Contract, network: Network, psbt: Psbt) -> PayoutPlan:
    """The payout that a PSBT of ours says it is, derived from the contract.

    `read_payout` then tells whether it is. Raises BadPsbt when it does not say, and what `derive_payout` raises.
    """
    hint = psbt.extra.get(_MEANS)
    if hint is None:
        raise BadPsbt(
            "the PSBT does not say which payout it is: name the path, such as release, and give it with --psbt"
        )
    try:
        meaning = msgspec.json.decode(hint, type=_Meaning)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadPsbt("the PSBT is damaged: what it says of its payout can't be read") from e
    return derive_payout(contract, network, meaning.outcome)


def _partial(plan: PayoutPlan, signatures: Mapping[Role, bytes]) -> dict[bytes, bytes]:
    return {field(IN_PARTIAL, plan.keys[role]): der + bytes([SIGHASH_ALL]) for role, der in signatures.items()}


# --- both --------------------------------------------------------------------------------------------------------


def _same_transaction(psbt: Psbt, unsigned: bytes) -> None:
    if psbt.unsigned != unsigned:
        raise StalePsbt


def _no_contradiction(fields: Map, outpoint: OutPoint, spent: TxOut) -> None:
    """What the PSBT says of an input is what the contract says, where it says anything. Raises BadPsbt."""
    if fields.get(field(IN_SPENT), pack_output(spent)) != pack_output(spent):
        raise BadPsbt(f"the PSBT was changed: it names another value or script for {outpoint}")
    previous = fields.get(field(IN_PREVIOUS))
    if previous is not None:
        try:
            txid, found = find_output(previous, outpoint.vout)
        except NotATransaction as e:
            raise BadPsbt("the PSBT is damaged: a previous transaction in it can't be read") from e
        if txid != outpoint.txid or found != spent:
            raise BadPsbt(f"the PSBT was changed: it holds another previous transaction for {outpoint}")
    allowed = (_ALL, _DEFAULT) if is_p2tr(spent.script_pubkey) else (_ALL,)
    if fields.get(field(IN_SIGHASH), _ALL) not in allowed:
        raise BadPsbt("the PSBT asks for a signature that does not cover the whole transaction (SIGHASH_ALL)")


def _origin_fields(
    script: bytes, origins: Mapping[bytes, KeyOrigin], kinds: tuple[int, int, int]
) -> dict[bytes, bytes]:
    """The fields that tell a device which of its keys is meant; none where we do not know."""
    origin = origins.get(script)
    if origin is None:
        return {}
    plain, internal, tap = kinds
    if is_p2wpkh(script):
        return {field(plain, origin.public): origin.packed}
    x_only = origin.public[1:]
    # BIP371: no leaf hashes, then the origin.
    return {field(internal): x_only, field(tap, x_only): b"\0" + origin.packed}


def previous_by_txid(*transactions: bytes) -> dict[bytes, bytes]:
    """Whole transactions by their txids. Raises NotATransaction."""
    return {find_output(raw, 0)[0]: raw for raw in transactions}
