"""The funding transaction, derived from the contract alone (SPEC section 6.3).

Both parties build it from the same document, so no amount, script or output is ever taken from a peer. The escrow
holds amount + both deposits + the payout's fee, so that a release at the contract's rate pays every party to the
satoshi what the contract says. `escrow/shares.py` tells who pays which fee; change that would be dust is left to the
miners. Inputs and outputs stand in the order of a hash keyed by the contract id: the parties know it, and an onlooker
learns nothing of roles from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitcoin.core import Hash
from msgspec import Struct

from escrow.coins import OutPoint, TxOut
from escrow.errors import BadEscrowTerms, GateRefused, ShortInputs
from escrow.script import EscrowScript, Role, escrow_script
from escrow.shares import SHARED_WEIGHT, carried_fee, targets
from escrow.sizes import dust_limit, fee, input_weight, output_weight
from escrow.transactions import REPLACEABLE, Witness, build, output_bytes
from protocol.contract import Contract, contract_id
from protocol.types import MAX_MONEY, Network, Side
from protocol.wire import digest


class PlannedInput(Struct, frozen=True):
    """An input of the funding: whose it is, and its place in that party's own list."""

    side: Side
    position: int
    outpoint: OutPoint
    spent: TxOut


class PlannedOutput(Struct, frozen=True):
    """An output and its owner; None for the escrow itself."""

    owner: Role | None
    output: TxOut

    @property
    def value(self) -> int:
        """Satoshis."""
        return self.output.value


class FundingPlan(Struct, frozen=True):
    """A funding transaction before it is signed; values in satoshis, `weight` with the largest signatures."""

    contract_id: bytes
    unsigned: bytes
    txid: bytes
    inputs: tuple[PlannedInput, ...]
    outputs: tuple[PlannedOutput, ...]
    escrow: EscrowScript
    escrow_vout: int
    escrow_value: int
    fee: int
    payout_fee: int
    weight: int

    @property
    def escrow_outpoint(self) -> OutPoint:
        """The output that the payout spends."""
        return OutPoint(self.txid, self.escrow_vout)

    @property
    def spent(self) -> tuple[TxOut, ...]:
        """The outputs that the inputs spend, in order."""
        return tuple(i.spent for i in self.inputs)

    def indices(self, side: Side) -> tuple[int, ...]:
        """The indices of a party's inputs, in the order of that party's own list."""
        own = [(planned.position, index) for index, planned in enumerate(self.inputs) if planned.side is side]
        return tuple(index for _, index in sorted(own))

    def change(self, side: Side) -> int:
        """The satoshis that come back to a party; 0 when it has no change output."""
        return sum(o.value for o in self.outputs if o.owner is Role.of(side))


def derive_funding(contract: Contract, network: Network) -> FundingPlan:
    """The funding transaction of a contract. Pure; a few tenths of a millisecond.

    Raises ShortInputs, UnsupportedInput, BadArbiterKey, BadEscrowTerms.
    """
    commitment = contract_id(contract, network)
    escrow = escrow_script(contract, network)
    payout_fee = carried_fee(contract)
    value = contract.amount + contract.buyer_deposit + contract.seller_deposit + payout_fee
    outputs = [PlannedOutput(None, TxOut(value, escrow.script_pubkey))]
    inputs: list[PlannedInput] = []
    weight = SHARED_WEIGHT
    for side, target in targets(contract).items():
        added = _contribution(contract, side)
        change = _change(contract, side, target, added)
        inputs += added
        outputs += change
        weight += sum(input_weight(i.spent.script_pubkey) for i in added)
        weight += sum(output_weight(len(o.output.script_pubkey)) for o in change)
    inputs.sort(key=lambda i: order_key(commitment, i.outpoint.wire))
    outputs.sort(key=lambda o: order_key(commitment, output_bytes(o.output)))
    brought = sum(i.spent.value for i in inputs)
    given = sum(o.value for o in outputs)
    if not 0 < given <= brought <= MAX_MONEY or len({i.outpoint for i in inputs}) != len(inputs):
        raise BadEscrowTerms("the funding's inputs do not add up, or one is there twice")
    if brought - given < fee(weight, contract.fees.funding):
        raise GateRefused("the funding's fee came out lower than its rate")
    unsigned = build([(i.outpoint, REPLACEABLE) for i in inputs], [o.output for o in outputs])
    return FundingPlan(
        contract_id=commitment,
        unsigned=unsigned,
        txid=bytes(Hash(unsigned)),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        escrow=escrow,
        escrow_vout=next(index for index, o in enumerate(outputs) if o.owner is None),
        escrow_value=value,
        fee=brought - given,
        payout_fee=payout_fee,
        weight=weight,
    )


def order_key(contract_id: bytes, item: bytes) -> bytes:
    """By what inputs (their 36 bytes) and outputs (their serialisation) are sorted."""
    return digest(b"p2pnode/order", contract_id, item)


def in_message_order(plan: FundingPlan, side: Side, by_index: Mapping[int, Witness]) -> tuple[Witness, ...]:
    """A party's witnesses, keyed by input index, in the order of its own list of inputs: as messages carry them.

    Raises GateRefused unless they are for exactly this party's inputs.
    """
    indices = plan.indices(side)
    if set(by_index) != set(indices):
        raise GateRefused("the wallet signed other inputs of the funding than our own")
    return tuple(tuple(by_index[index]) for index in indices)


def _contribution(contract: Contract, side: Side) -> list[PlannedInput]:
    return [
        PlannedInput(side, position, OutPoint(i.txid, i.vout), TxOut(i.value, i.script_pubkey))
        for position, i in enumerate(contract.party(side).inputs)
    ]


def _change(contract: Contract, side: Side, target: int, inputs: Sequence[PlannedInput]) -> list[PlannedOutput]:
    """A party's change output; none when it would be dust. Raises ShortInputs."""
    if not inputs and not target:
        return []
    script = contract.party(side).change_script
    if script is None:
        raise BadEscrowTerms("a party that brings coins needs a script for its change")
    brought = sum(i.spent.value for i in inputs)
    weight = sum(input_weight(i.spent.script_pubkey) for i in inputs)
    missing = target + fee(weight, contract.fees.funding) - brought
    if missing > 0:
        raise ShortInputs(side, missing)
    change = brought - target - fee(weight + output_weight(len(script)), contract.fees.funding)
    if change < dust_limit(script):
        return []
    return [PlannedOutput(Role.of(side), TxOut(change, script))]
