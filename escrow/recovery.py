"""Moving an escrow with a mnemonic and its contract alone: no network, no database (SPEC section 9.1).

The contract says what every legal payout is; the mnemonic says who we are in it, because each escrow key follows from
the mnemonic and the trade id, and an arbiter's from its base point and the contract id. So a payout is derived, signed
with our key, completed with signatures that others gave, and passes the same gates as in the node. What lacks a
signature goes out as a PSBT.

Who signs what is stricter here than on chain, where any two keys do: the parties agree on a release or a settlement,
an arbiter signs rulings only, and only of its own branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from escrow.keys import arbiter_secret, public_key
from escrow.payout import PayoutPlan, assemble_payout, check_payout_signature, sign_payout
from escrow.psbt import Psbt
from escrow.psbtplan import payout_psbt
from escrow.script import Role
from escrow.seed import EscrowRole, Seed
from escrow.verify import gate_payout
from protocol.contract import Contract, contract_id
from protocol.errors import UserError
from protocol.outcome import RulingOutcome
from protocol.types import Branch, Height, Network, Side

PERSONAS: Final = 16
"""Personas of one mnemonic whose arbiter keys are tried."""

_ROLES: Final = {
    Side.BUY: {Branch.MAIN: EscrowRole.BUYER, Branch.BACKUP: EscrowRole.BUYER_BACKUP},
    Side.SELL: {Branch.MAIN: EscrowRole.SELLER, Branch.BACKUP: EscrowRole.SELLER_BACKUP},
}


class NotInContract(UserError):
    """None of this mnemonic's keys is in the contract: check the words, and its own passphrase if it has one."""

    code = 3234


class NotYetLegal(UserError):
    """The escrow is not old enough yet for its backup branch."""

    code = 3235


class NotOurs(UserError):
    """That role does not sign such a payout."""

    code = 3237


class Signer:
    """Who a mnemonic is in a contract, and its keys there. Its repr shows no secret."""

    def __init__(self, role: Role, secrets: Mapping[Branch, bytes]) -> None:
        """`secrets` are the keys in the escrow, by the branch in which they sign."""
        self.role = role
        self._secrets = dict(secrets)

    def __repr__(self) -> str:
        """Name the role."""
        return f"Signer({self.role.name})"

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Where it can sign."""
        return tuple(self._secrets)

    def sign(self, plan: PayoutPlan) -> bytes:
        """Our signature (DER) on a payout. Raises NotOurs."""
        if self.role is Role.ARBITER and not isinstance(plan.outcome, RulingOutcome):
            raise NotOurs("an arbiter signs rulings only: a release or settlement is for buyer and seller to sign")
        secret = self._secrets.get(plan.branch)
        if secret is None:
            which = "main" if plan.branch is Branch.MAIN else "backup"
            raise NotOurs(f"this mnemonic is not the {which} arbiter of the contract, so it can't sign that ruling")
        return sign_payout(plan, secret)


class Recovered(Struct, frozen=True):
    """A payout with the signatures that there are. `tx` is the whole transaction, None while one is missing."""

    plan: PayoutPlan
    signatures: dict[Role, bytes]
    missing: tuple[Role, ...]
    tx: bytes | None
    psbt: Psbt


def find_signer(seed: Seed, contract: Contract, network: Network) -> Signer:
    """Who `seed` is in the contract: a party, or an arbiter. Raises NotInContract."""
    for side, roles in _ROLES.items():
        keys = contract.party(side).keys
        secrets = {branch: seed.escrow_key(contract.trade_id, role) for branch, role in roles.items()}
        if (public_key(secrets[Branch.MAIN]), public_key(secrets[Branch.BACKUP])) == (keys.main, keys.backup):
            return Signer(Role.of(side), secrets)
    commitment = contract_id(contract, network)
    benches = {Branch.MAIN: contract.arbiter, Branch.BACKUP: contract.backup}
    for index in range(PERSONAS):
        base = seed.arbiter_base_key(index)
        public = public_key(base)
        secrets = {
            branch: arbiter_secret(base, commitment)
            for branch, terms in benches.items()
            if terms is not None and terms.base_point == public
        }
        if secrets:
            return Signer(Role.ARBITER, secrets)
    raise NotInContract


def recover(
    contract: Contract,
    network: Network,
    plan: PayoutPlan,
    signer: Signer,
    given: Mapping[Role, bytes],
) -> Recovered:
    """Sign `plan`, add what others have signed, and complete it if that is enough.

    Raises NotOurs, BadPayoutSignature for a signature in `given` that is not valid, GateRefused.
    """
    for role, signature in given.items():
        check_payout_signature(plan, role, signature)
    signatures = {**given, signer.role: signer.sign(plan)}
    missing = _missing(plan, signatures)
    if isinstance(plan.outcome, RulingOutcome) and len(signatures) == 3:
        # Two suffice: the arbiter's, and ours.
        kept = signer.role if signer.role is not Role.ARBITER else min(given)
        signatures = {role: signatures[role] for role in (kept, Role.ARBITER)}
    tx = None
    if not missing:
        tx = assemble_payout(plan, signatures)
        gate_payout(contract, network, tx, plan.outcome)
    psbt = payout_psbt(contract, network, plan, signatures)
    return Recovered(plan, signatures, missing, tx, psbt)


def _missing(plan: PayoutPlan, signatures: Mapping[Role, bytes]) -> tuple[Role, ...]:
    """Who has to sign yet. For a ruling that only its arbiter has signed, any of the parties would do."""
    parties = (Role.BUYER, Role.SELLER)
    if not isinstance(plan.outcome, RulingOutcome):
        return tuple(role for role in parties if role not in signatures)
    if Role.ARBITER not in signatures:
        return (Role.ARBITER,)
    return () if any(role in signatures for role in parties) else parties


def opens_at(contract: Contract, plan: PayoutPlan, funding_height: Height) -> Height:
    """The first block that may hold the payout, when the funding is in block `funding_height` (BIP68)."""
    return funding_height + (contract.backup_delay if plan.branch is Branch.BACKUP else 1)


def check_open(contract: Contract, plan: PayoutPlan, funding_height: Height, tip: Height) -> None:
    """That the block after `tip` may hold the payout. Raises NotYetLegal."""
    first = opens_at(contract, plan, funding_height)
    if tip + 1 < first:
        raise NotYetLegal(
            f"the backup branch opens with block {first:,}, {first - tip - 1:,} blocks from now: until then only the "
            "main arbiter or the counterparty can help"
        )
