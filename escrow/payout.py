"""Every transaction that may spend an escrow, derived from the contract (SPEC section 6.4).

An outcome says who is due what; everything else follows. The steps, in this order:

1. Dues. Release: amount and its deposit to the buyer, its deposit to the seller. Settlement: what the two agreed on; to
   cancel is to agree that everybody gets its own coins back. Ruling: the amount by share, deposits back, then a part
   of the loser's deposit to the winner. The loser is the party with less than half of the amount.
2. Arbiter. A ruling pays the arbiter's fee out of the loser's due (an even split has two losers: in halves, an odd
   satoshi from the seller); what that due does not cover comes out of the winner's.
3. Fee. The escrow carries the fee of a release at the contract's rate. What a payout costs beyond it (more outputs, a
   higher rate) is split as the funding's common fee was, and what one due does not cover comes out of the other. It
   never costs less: a rest would be dust for somebody.
4. Outputs. A due of zero has no output; one that would be dust is left to the miners.

A release pays to the payout scripts; everything else pays to the refund scripts, because a payout script may be an
address that expects exactly one payment, such as a shop's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, assert_never

from bitcoin.core import Hash
from msgspec import Struct

from escrow.coins import OutPoint, TxOut
from escrow.errors import BadPayout, BadPayoutSignature, GateRefused
from escrow.funding import PlannedOutput, derive_funding, order_key
from escrow.keys import public_key
from escrow.script import EscrowScript, Keys, Role
from escrow.shares import halves, payout_weight
from escrow.signatures import sign_ecdsa, verify_ecdsa
from escrow.sizes import check_payee, dust_limit, fee
from escrow.transactions import REPLACEABLE, build, output_bytes, sighash_v0, with_witnesses
from protocol.contract import Contract
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome, pot
from protocol.types import PPM, Branch, Network, Side

RELEASE: Final = ReleaseOutcome()


class PayoutPlan(Struct, frozen=True):
    """A payout before it is signed. `weight` is counted with the largest signatures; `fee` in satoshis."""

    contract_id: bytes
    outcome: Outcome
    unsigned: bytes
    txid: bytes
    sighash: bytes
    fee: int
    weight: int
    outputs: tuple[PlannedOutput, ...]
    escrow: EscrowScript
    escrow_outpoint: OutPoint
    escrow_value: int

    def value(self, role: Role) -> int:
        """The satoshis that this payout pays to `role`."""
        return sum(o.value for o in self.outputs if o.owner is role)

    @property
    def branch(self) -> Branch:
        """The branch of the script that it spends by."""
        return branch_of(self.outcome)

    @property
    def keys(self) -> Keys:
        """The keys that may sign, by role."""
        return self.escrow.keys(self.branch)


def branch_of(outcome: Outcome) -> Branch:
    """The branch that an outcome spends by: the parties need no delay, the backup arbiter does."""
    return outcome.branch if isinstance(outcome, RulingOutcome) else Branch.MAIN


def rate_of(contract: Contract, outcome: Outcome) -> int:
    """The fee rate that an outcome pays; a release says one only where it was signed again."""
    return contract.fees.payout if outcome.rate is None else outcome.rate


def derive_payout(contract: Contract, network: Network, outcome: Outcome = RELEASE) -> PayoutPlan:
    """The payout of a contract for `outcome`, which pays the outcome's own rate (`rate_of`).

    Raises BadPayout (a rate outside the contract's band, no backup branch, a share over one whole, nothing left to
    pay), UnsupportedScript, and what `derive_funding` raises.
    """
    branch = branch_of(outcome)
    rate = rate_of(contract, outcome)
    if not contract.fees.payout <= rate <= contract.fees.payout_max:
        raise BadPayout("the payout's fee rate is outside the band that the contract allows")
    funding = derive_funding(contract, network)
    if branch is Branch.BACKUP and funding.escrow.backup is None:
        raise BadPayout("this escrow has no branch for a backup arbiter")
    dues = dues_of(contract, outcome)
    scripts = _scripts(contract, outcome)
    weight = payout_weight(
        contract.escrow_type, contract.backup_delay, [len(scripts[role]) for role, due in dues.items() if due]
    )
    # Paid from the dues: what the escrow does not carry already.
    extra = max(0, fee(weight, rate) - funding.payout_fee)
    for side, cost in halves(extra, both=contract.buyer_deposit > 0).items():
        _take(dues, Role.of(side), cost, "the fee is more than the escrow holds")
    outputs = [
        PlannedOutput(role, TxOut(due, scripts[role])) for role, due in dues.items() if due >= dust_limit(scripts[role])
    ]
    if not outputs:
        raise BadPayout("nothing is left to pay after the fees")
    outputs.sort(key=lambda o: order_key(funding.contract_id, output_bytes(o.output)))
    sequence = REPLACEABLE if branch is Branch.MAIN else funding.escrow.delay
    unsigned = build([(funding.escrow_outpoint, sequence)], [o.output for o in outputs])
    paid = funding.escrow_value - sum(o.value for o in outputs)
    if paid < fee(weight, rate):
        raise GateRefused("the payout's fee came out lower than its rate")
    return PayoutPlan(
        contract_id=funding.contract_id,
        outcome=outcome,
        unsigned=unsigned,
        txid=bytes(Hash(unsigned)),
        sighash=sighash_v0(unsigned, 0, funding.escrow.witness_script, funding.escrow_value),
        fee=paid,
        weight=weight,
        outputs=tuple(outputs),
        escrow=funding.escrow,
        escrow_outpoint=funding.escrow_outpoint,
        escrow_value=funding.escrow_value,
    )


def dues_of(contract: Contract, outcome: Outcome) -> dict[Role, int]:
    """Who is due what, before fees: amount and deposits, by role. Raises BadPayout."""
    match outcome:
        case ReleaseOutcome():
            return {Role.BUYER: contract.amount + contract.buyer_deposit, Role.SELLER: contract.seller_deposit}
        case SettlementOutcome(buyer_due, _):
            whole = pot(contract)
            if not 0 <= buyer_due <= whole:
                raise BadPayout("a settlement can't give more than amount and deposits")
            return {Role.BUYER: buyer_due, Role.SELLER: whole - buyer_due}
        case RulingOutcome():
            return _ruled(contract, outcome)
        case _:
            assert_never(outcome)


def _ruled(contract: Contract, ruling: RulingOutcome) -> dict[Role, int]:
    share, forfeit = ruling.buyer_share, ruling.forfeit
    arbiter = contract.arbiter if ruling.branch is Branch.MAIN else contract.backup
    if arbiter is None:
        raise BadPayout("this escrow has no branch for a backup arbiter")
    if not (0 <= share <= PPM and 0 <= forfeit <= PPM):
        raise BadPayout("a share is at most one whole")
    part = contract.amount * share // PPM
    dues = {
        Role.BUYER: part + contract.buyer_deposit,
        Role.SELLER: contract.amount - part + contract.seller_deposit,
    }
    shortage = "the arbiter's fee is more than the escrow holds"
    if share * 2 == PPM:
        if forfeit:
            raise BadPayout("an even split has no loser whose deposit could be forfeited")
        for side, cost in halves(arbiter.fee, both=True).items():
            _take(dues, Role.of(side), cost, shortage)
    else:
        loses = Side.BUY if share * 2 < PPM else Side.SELL
        deposit = contract.buyer_deposit if loses is Side.BUY else contract.seller_deposit
        penalty = deposit * forfeit // PPM
        dues[Role.of(loses)] -= penalty
        dues[Role.of(loses.other)] += penalty
        _take(dues, Role.of(loses), arbiter.fee, shortage)
    return {**dues, Role.ARBITER: arbiter.fee}


def _take(dues: dict[Role, int], role: Role, cost: int, shortage: str) -> None:
    """Take `cost` out of a party's due; what it does not cover, out of the other's. Raises BadPayout."""
    other = Role.SELLER if role is Role.BUYER else Role.BUYER
    own = min(cost, dues[role])
    if cost - own > dues[other]:
        raise BadPayout(shortage)
    dues[role] -= own
    dues[other] -= cost - own


def _scripts(contract: Contract, outcome: Outcome) -> dict[Role, bytes]:
    refunds = {Role.BUYER: contract.buyer.refund_script, Role.SELLER: contract.seller.refund_script}
    match outcome:
        case ReleaseOutcome():
            return {Role.BUYER: contract.buyer.payout_script, Role.SELLER: contract.seller.payout_script}
        case SettlementOutcome():
            return refunds
        case RulingOutcome():
            check_payee(outcome.fee_script)
            return {**refunds, Role.ARBITER: outcome.fee_script}
        case _:
            assert_never(outcome)


def sign_payout(plan: PayoutPlan, secret: bytes) -> bytes:
    """The DER signature (low S, low R) of one of the plan's keys. Raises GateRefused for a foreign secret."""
    if public_key(secret) not in plan.keys:
        raise GateRefused("the key that should sign the payout is not one of its escrow's")
    return sign_ecdsa(secret, plan.sighash)


def check_payout_signature(plan: PayoutPlan, role: Role, signature: bytes) -> None:
    """Check that `signature` (strict DER, low S, SIGHASH_ALL) is by the key of `role`. Raises BadPayoutSignature."""
    if not verify_ecdsa(plan.keys[role], plan.sighash, signature):
        raise BadPayoutSignature


def assemble_payout(plan: PayoutPlan, signatures: Mapping[Role, bytes]) -> bytes:
    """The signed payout of exactly two DER signatures. Raises BadPayoutSignature."""
    if len(signatures) != 2:
        raise BadPayoutSignature("a payout needs exactly two signatures")
    for role, signature in signatures.items():
        check_payout_signature(plan, role, signature)
    return with_witnesses(plan.unsigned, [plan.escrow.witness(plan.branch, signatures)])
