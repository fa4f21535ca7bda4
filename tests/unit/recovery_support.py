"""A deal whose people have mnemonics, and its contract file: what recovery starts from."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from escrow.funding import derive_funding
from escrow.keys import make_keys
from escrow.payout import RELEASE, derive_payout, sign_payout
from escrow.script import Role
from escrow.seed import EscrowRole, Seed, mnemonic_from_entropy
from p2pnode.contractfile import ContractFile, HeldSignature
from protocol.contract import Contract, Party, sign_contract, trade_id
from protocol.identity import SigningKey
from protocol.offer import OfferRef
from protocol.outcome import Outcome
from protocol.types import Branch, Side
from tests.unit.escrow_support import NETWORK, Deal, fixed

_ESCROW_ROLES = {
    (Role.BUYER, Branch.MAIN): EscrowRole.BUYER,
    (Role.SELLER, Branch.MAIN): EscrowRole.SELLER,
    (Role.BUYER, Branch.BACKUP): EscrowRole.BUYER_BACKUP,
    (Role.SELLER, Branch.BACKUP): EscrowRole.SELLER_BACKUP,
}


@dataclass
class SeededDeal(Deal):
    """A `Deal` in which every secret follows from somebody's mnemonic. The seller made the offer."""

    def words(self, role: Role, branch: Branch = Branch.MAIN) -> str:
        """The mnemonic of a party, or of the arbiter of a branch."""
        who = (role, branch) if role is Role.ARBITER else (role,)
        return mnemonic_from_entropy(fixed("words", self.name, *who))

    def seed(self, role: Role, branch: Branch = Branch.MAIN) -> Seed:
        return Seed.from_mnemonic(self.words(role, branch))

    def persona(self, side: Side) -> SigningKey:
        return SigningKey(self.seed(Role.of(side)).persona_key())

    @property
    def offer(self) -> OfferRef:
        return OfferRef(self.persona(Side.SELL).public, fixed("offer"), 1, fixed("offer envelope"))

    @property
    def trade_id(self) -> bytes:
        return trade_id(self.offer, self.persona(Side.BUY).public, fixed("nonce", "BUYER"))

    def secret(self, role: Role, branch: Branch = Branch.MAIN) -> bytes:
        seed = self.seed(role, branch)
        if role is Role.ARBITER:
            return seed.arbiter_base_key()
        return seed.escrow_key(self.trade_id, _ESCROW_ROLES[role, branch])

    def party(self, side: Side) -> Party:
        role, persona = Role.of(side), self.persona(side).public
        keys = make_keys(self.secret(role), self.secret(role, Branch.BACKUP), self.trade_id, persona)
        return replace(super().party(side), persona=persona, keys=keys)

    def contract(self) -> Contract:
        return replace(super().contract(), offer=self.offer)

    def file(
        self, side: Side = Side.BUY, *, height: int | None = None, held: tuple[HeldSignature, ...] = ()
    ) -> ContractFile:
        contract = self.contract()
        return ContractFile(
            contract=contract,
            network=NETWORK,
            side=side,
            maker_signature=sign_contract(contract, NETWORK, self.persona(Side.SELL).seed),
            taker_signature=sign_contract(contract, NETWORK, self.persona(Side.BUY).seed),
            funding_height=height,
            signatures=held,
        )

    def held(self, role: Role, outcome: Outcome = RELEASE) -> HeldSignature:
        """What `role` gave away."""
        contract = self.contract()
        plan = derive_payout(contract, NETWORK, outcome)
        return HeldSignature(role, outcome, sign_payout(plan, self.signer(contract, role, plan.branch)))


def escrow_of(file: ContractFile) -> str:
    return str(derive_funding(file.contract, file.network).escrow_outpoint)
