"""A trade's record with real keys: contracts that can be funded, envelopes that verify, signatures that hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from escrow.payout import derive_payout, sign_payout
from escrow.script import Role
from protocol.announcement import Announcement, FeeTerms
from protocol.case_messages import CaseFile, CasePayload, case_id, encode_case
from protocol.contract import Bargain, Contract, Party, arbiter_terms, build_contract, details_hash, sign_contract
from protocol.identity import SigningKey
from protocol.messages import (
    NONE_YET,
    Accept,
    Funding,
    Header,
    OpenedDetails,
    Paid,
    Payload,
    PaymentDetails,
    Released,
    Seal,
    Take,
    encode,
    encode_details,
)
from protocol.offer import ArbiterRef, FixedPrice, Offer, Requirements, reference
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome
from protocol.ruling import Reason, Ruling, text_hash
from protocol.types import Branch, EscrowType, Network, Side
from protocol.wire import Envelope, Kind, pack
from tests.unit.escrow_support import NETWORK, Deal, fixed, p2wpkh

FEE_SCRIPT = p2wpkh(fixed("arbiter's wallet"))


@dataclass
class Chain:
    """One sender's half of a conversation."""

    key: SigningKey
    sent: int = 0
    head: bytes = NONE_YET
    seen: bytes = NONE_YET


@dataclass
class Record:
    """A trade in which the maker sells, from its take on; its messages in the order in which they were sent."""

    network: Network = NETWORK
    raws: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deal = Deal(name="record")
        self.keys = {side: SigningKey(fixed("persona", side)) for side in Side}
        self.arbiters = {branch: SigningKey(fixed("arbiter", branch)) for branch in Branch}
        self.announced = {branch: self._announce(branch) for branch in Branch}
        self.offer = self._offer()
        offer_envelope = self.keys[Side.SELL].seal(Kind.OFFER, self.network, pack(self.offer))
        bargain = Bargain(
            reference(offer_envelope, self.offer),
            self.deal.amount,
            6_500_000,
            "sepa-instant",
            EscrowType.WSH_2OF3_BACKUP,
            self.deal.fees,
        )
        self.opened = {side: OpenedDetails(fixed("salt", side), (("iban", side.name),)) for side in Side}
        parties = {side: self._party(side) for side in Side}
        terms = {b: arbiter_terms(e.id, a, self.deal.amount) for b, (e, a) in self.announced.items()}
        self.contract: Contract = build_contract(
            self.offer,
            bargain,
            taker=parties[Side.BUY],
            maker=parties[Side.SELL],
            arbiter=terms[Branch.MAIN],
            backup=terms[Branch.BACKUP],
        )
        self.take = Take(
            bargain,
            self.announced[Branch.MAIN][0].raw,
            self.announced[Branch.BACKUP][0].raw,
            parties[Side.BUY],
            Funding(()),
            self.announced[Branch.MAIN][0].raw,
        )
        self.chains = {side: Chain(self.keys[side]) for side in Side}
        self.height = 0
        """The block that whoever speaks has followed."""
        self.cases: dict[tuple[Side, Branch], tuple[Chain, Chain, list[bytes]]] = {}

    def _party(self, side: Side) -> Party:
        plain = self.deal.party(side)
        details = details_hash(self.opened[side].salt, encode_details(self.opened[side].details))
        return replace(plain, persona=self.keys[side].public, details_hash=details)

    def _announce(self, branch: Branch) -> tuple[Envelope, Announcement]:
        key = self.arbiters[branch]
        terms = self.deal.arbiter(branch)
        announcement = Announcement(
            key.public, 1, terms.base_point, FeeTerms(10_000, 1_000, 50_000), (), (), ("en",), 10**9, 144,
            bytes(32), "", None, 1, 10**9,
        )  # fmt: skip
        return key.seal(Kind.ARBITER, self.network, pack(announcement)), announcement

    def _offer(self) -> Offer:
        refs = tuple(ArbiterRef(a.persona, e.id) for e, a in self.announced.values())
        return Offer(
            maker=self.keys[Side.SELL].public,
            offer_id=fixed("offer"),
            sequence=1,
            side=Side.SELL,
            amount_min=1_000,
            amount_max=10**8,
            currency="EUR",
            price=FixedPrice(6_500_000),
            methods=("sepa-instant",),
            payment_window=144,
            buyer_deposit=150_000,
            seller_deposit=150_000,
            arbiters=refs,
            escrow_types=(EscrowType.WSH_2OF3_BACKUP,),
            backup_delay=1008,
            confirmations=1,
            terms="",
            requirements=Requirements(),
            contacts=(),
            created=1,
            expires=1_000,
        )

    # --- the trade -----------------------------------------------------------------------------------------------

    def say(self, side: Side, payload: Payload) -> Envelope:
        """The next message of a party, read by the other at once."""
        own, other = self.chains[side], self.chains[side.other]
        header = Header(self.contract.trade_id, own.sent, own.head, own.seen, self.height)
        kind, body = encode(header, payload)
        envelope = own.key.seal(kind, self.network, body)
        own.sent, own.head, other.seen = own.sent + 1, envelope.id, envelope.id
        self.raws.append(envelope.raw)
        return envelope

    def sign(self, side: Side, outcome: Outcome | None = None) -> bytes:
        """A party's signature on a payout."""
        plan = derive_payout(self.contract, self.network, outcome or ReleaseOutcome())
        return sign_payout(plan, self.deal.secret(Role.of(side)))

    def contract_signature(self, side: Side) -> bytes:
        """A party's signature on the contract."""
        return sign_contract(self.contract, self.network, self.keys[side].seed)

    def agree(self, *, seal: bool = True) -> None:
        """Take, Accept and Seal."""
        self.say(Side.BUY, self.take)
        self.say(Side.SELL, Accept(self.contract.seller, Funding(()), self.contract_signature(Side.SELL), None))
        if seal:
            self.say(Side.BUY, Seal(self.contract_signature(Side.BUY), (), None))

    def pay(self) -> None:
        """Up to the declared payment."""
        self.agree()
        self.say(Side.SELL, PaymentDetails(self.opened[Side.SELL]))
        self.say(Side.BUY, Paid(self.opened[Side.BUY], self.sign(Side.BUY), ""))

    def release(self) -> None:
        """A whole happy trade."""
        self.pay()
        self.say(Side.SELL, Released(derive_payout(self.contract, self.network).txid))

    def file(self, *, sealed: bool = True) -> CaseFile:
        """The case file of either party."""
        taker = self.contract_signature(Side.BUY) if sealed else None
        return CaseFile(self.offer, self.contract, self.contract_signature(Side.SELL), taker, tuple(self.raws))

    # --- arbiters ------------------------------------------------------------------------------------------------

    def case(self, side: Side, branch: Branch) -> tuple[Chain, Chain, list[bytes]]:
        """A party's conversation with an arbiter: the party's chain, the arbiter's, and what was said."""
        if (side, branch) not in self.cases:
            self.cases[side, branch] = Chain(self.keys[side]), Chain(self.arbiters[branch]), []
        return self.cases[side, branch]

    def tell(self, side: Side, branch: Branch, payload: CasePayload, *, by_arbiter: bool = False) -> Envelope:
        """The next message of a conversation."""
        party, arbiter, raws = self.case(side, branch)
        own, other = (arbiter, party) if by_arbiter else (party, arbiter)
        chain = case_id(self.contract.trade_id, self.keys[side].public, self.arbiters[branch].public)
        kind, body = encode_case(Header(chain, own.sent, own.head, own.seen, self.height), payload)
        envelope = own.key.seal(kind, self.network, body)
        own.sent, own.head, other.seen = own.sent + 1, envelope.id, envelope.id
        raws.append(envelope.raw)
        return envelope

    def ruling(self, share: int, *, branch: Branch = Branch.MAIN, text: str = "because", **changes: object) -> Envelope:
        """An arbiter's ruling; `changes` are made before it is signed by the persona, after the payout's signature."""
        terms = self.contract.arbiter if branch is Branch.MAIN else self.contract.backup
        assert terms is not None
        outcome = RulingOutcome(branch, share, 0, FEE_SCRIPT, self.contract.fees.payout)
        plan = derive_payout(self.contract, self.network, outcome)
        ruling = Ruling(
            arbiter=terms.persona,
            contract_id=plan.contract_id,
            branch=branch,
            buyer_share=share,
            forfeit=0,
            fee=terms.fee,
            fee_script=FEE_SCRIPT,
            rate=outcome.rate,
            reason=Reason.OTHER,
            text_hash=text_hash(text),
            buyer_head=NONE_YET,
            seller_head=NONE_YET,
            payout_signature=sign_payout(plan, self.deal.signer(self.contract, Role.ARBITER, branch)),
        )
        return self.arbiters[branch].seal(Kind.RULING, self.network, pack(replace(ruling, **changes)))
