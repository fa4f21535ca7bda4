"""The contract: one canonical document that both sign before any coin moves (DESIGN section 7).

Neither party sends it. Each derives it from the signed offer, the signed take and the maker's signed side with
`build_contract`, and signs the result; if the two derivations differ, the signatures do not fit and nothing is
funded. Everything on chain follows from this document alone (`escrow/`).
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.announcement import Announcement
from protocol.errors import PeerViolation
from protocol.offer import Offer, OfferRef, deposit, volume
from protocol.types import (
    Blocks,
    CurrencyCode,
    EscrowType,
    FeeRate,
    Hash32,
    MethodCode,
    MinorUnits,
    Network,
    Nonce32,
    PersonaId,
    PositiveSats,
    PricePerBtc,
    PubKey33,
    Sats,
    ScriptPubKey,
    Side,
    Signature64,
    Txid,
)
from protocol.wire import Kind, digest, envelope_id, pack, sign_body, verify_body

MAX_INPUTS: Final = 8
"""Funding inputs of one party."""


class BadContract(PeerViolation):
    """The terms that the peer sent do not make a contract that both can sign."""

    code = 2130


class FundingInput(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A native segwit output that a party spends into the escrow."""

    txid: Txid
    vout: Annotated[int, Meta(ge=0, le=65_535)]
    value: PositiveSats
    script_pubkey: ScriptPubKey


class EscrowKeys(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A party's two fresh escrow keys, each with a BIP340 proof of possession (SPEC section 5.2).

    `backup` signs in the branch of the backup arbiter; a script must not hold one key twice.
    """

    main: PubKey33
    main_proof: Signature64
    backup: PubKey33
    backup_proof: Signature64


class Party(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One side of a contract. `change_script` is None exactly when there are no inputs."""

    persona: PersonaId
    keys: EscrowKeys
    payout_script: ScriptPubKey
    refund_script: ScriptPubKey
    change_script: ScriptPubKey | None
    inputs: Annotated[tuple[FundingInput, ...], Meta(max_length=MAX_INPUTS)]
    details_hash: Hash32
    nonce: Nonce32


class ArbiterTerms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An arbiter as the contract fixes it, from one announcement."""

    persona: PersonaId
    announcement: Hash32
    base_point: PubKey33
    fee: Sats
    response_blocks: Blocks


class FeeTerms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Fee rates in satoshis per 1,000 vB: the funding's, the payout's, and the band for re-signed payouts."""

    funding: FeeRate
    payout: FeeRate
    payout_max: FeeRate


class Contract(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything that the two parties agree on. Its id is the envelope id of its canonical bytes."""

    trade_id: Hash32
    offer: OfferRef
    maker_side: Side
    amount: PositiveSats
    price: PricePerBtc
    currency: CurrencyCode
    volume: MinorUnits
    method: MethodCode
    buyer_deposit: Sats
    seller_deposit: Sats
    arbiter: ArbiterTerms
    backup: ArbiterTerms | None
    escrow_type: EscrowType
    backup_delay: Blocks
    confirmations: Annotated[int, Meta(ge=1, le=100)]
    payment_window: Blocks
    fees: FeeTerms
    buyer: Party
    seller: Party

    @property
    def maker(self) -> Party:
        """The side that published the offer."""
        return self.party(self.maker_side)

    @property
    def taker(self) -> Party:
        """The side that took it."""
        return self.party(self.maker_side.other)

    def party(self, side: Side) -> Party:
        """The party on `side`."""
        return self.buyer if side is Side.BUY else self.seller


class Bargain(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the taker proposes within an offer: the numbers that the two must agree on."""

    offer: OfferRef
    amount: PositiveSats
    price: PricePerBtc
    method: MethodCode
    escrow_type: EscrowType
    fees: FeeTerms


def trade_id(offer: OfferRef, taker: bytes, nonce: bytes) -> bytes:
    """The id of a trade: bound to one offer version, one taker and the taker's secret nonce."""
    return digest(b"p2pnode/trade", offer.envelope, offer.maker, taker, nonce)


def details_hash(salt: bytes, details: bytes) -> bytes:
    """The commitment to payment details that a contract carries until they are opened."""
    return digest(b"p2pnode/details", salt, details)


def required_confirmations(amount: int) -> int:
    """Blocks that must bury the escrow before money is paid, by amount (SPEC section 5.5).

    Rewriting n blocks must cost more than the trade is worth; makers may ask for more in their offer.
    """
    for limit, blocks in ((1_000_000, 1), (10_000_000, 2), (100_000_000, 3)):
        if amount <= limit:
            return blocks
    return 6


def arbiter_terms(announcement_id: bytes, announcement: Announcement, amount: int) -> ArbiterTerms:
    """The arbiter's terms for a trade of `amount` satoshis."""
    return ArbiterTerms(
        persona=announcement.persona,
        announcement=announcement_id,
        base_point=announcement.base_point,
        fee=announcement.fee.fee(amount),
        response_blocks=announcement.response_blocks,
    )


def build_contract(
    offer: Offer,
    bargain: Bargain,
    *,
    taker: Party,
    maker: Party,
    arbiter: ArbiterTerms,
    backup: ArbiterTerms | None,
) -> Contract:
    """Derive the contract. Pure: both parties get the same bytes or no trade. Raises BadContract."""
    buyer, seller = (maker, taker) if offer.side is Side.BUY else (taker, maker)
    amount = bargain.amount
    contract = Contract(
        trade_id=trade_id(bargain.offer, taker.persona, taker.nonce),
        offer=bargain.offer,
        maker_side=offer.side,
        amount=amount,
        price=bargain.price,
        currency=offer.currency,
        volume=volume(amount, bargain.price),
        method=bargain.method,
        buyer_deposit=deposit(amount, offer.buyer_deposit),
        seller_deposit=deposit(amount, offer.seller_deposit),
        arbiter=arbiter,
        backup=backup,
        escrow_type=bargain.escrow_type,
        backup_delay=offer.backup_delay,
        confirmations=max(offer.confirmations, required_confirmations(amount)),
        payment_window=offer.payment_window,
        fees=bargain.fees,
        buyer=buyer,
        seller=seller,
    )
    check_terms(contract, offer)
    return contract


def check_terms(contract: Contract, offer: Offer) -> None:
    """What must hold between an offer and a contract made of it. Raises BadContract."""
    rules = (
        (offer.amount_min <= contract.amount <= offer.amount_max, "the amount is outside the offer's range"),
        (contract.method in offer.methods, "the offer does not accept that payment method"),
        (contract.escrow_type in offer.escrow_types, "the offer does not accept that escrow type"),
        (contract.volume >= 1, "the amount is worth less than the smallest unit of the currency"),
        (
            (contract.backup is not None) == (contract.escrow_type is EscrowType.WSH_2OF3_BACKUP),
            "exactly an escrow with a backup branch names a backup arbiter",
        ),
        (contract.fees.payout <= contract.fees.payout_max, "the payout's fee rate is outside its own band"),
        (_arbiters_are_offered(contract, offer), "the arbiters are not those that the offer accepts"),
        (_all_differ(contract), "two of the trade's parties or keys are the same"),
        (_funding_is_complete(contract), "a party without a deposit must bring no inputs, all others at least one"),
    )
    for holds, complaint in rules:
        if not holds:
            raise BadContract(complaint)


def _arbiters_are_offered(contract: Contract, offer: Offer) -> bool:
    offered = {(a.persona, a.announcement) for a in offer.arbiters}
    chosen = [a for a in (contract.arbiter, contract.backup) if a is not None]
    return all((a.persona, a.announcement) in offered for a in chosen)


def _all_differ(contract: Contract) -> bool:
    """No persona, key, nonce or coin in two roles: an arbiter that is a party decides its own case."""
    arbiters = [a for a in (contract.arbiter, contract.backup) if a is not None]
    parties = (contract.buyer, contract.seller)
    personas = [p.persona for p in parties] + [a.persona for a in arbiters]
    keys = [k for p in parties for k in (p.keys.main, p.keys.backup)] + [a.base_point for a in arbiters]
    nonces = [p.nonce for p in parties]
    coins = [(i.txid, i.vout) for p in parties for i in p.inputs]
    return all(len(set(group)) == len(group) for group in (personas, [k[1:] for k in keys], nonces, coins))


def _funding_is_complete(contract: Contract) -> bool:
    buyer_funds = contract.buyer_deposit > 0
    return (
        bool(contract.buyer.inputs) == buyer_funds
        and bool(contract.seller.inputs)
        and all((p.change_script is not None) == bool(p.inputs) for p in (contract.buyer, contract.seller))
    )


def contract_id(contract: Contract, network: Network) -> bytes:
    """The contract's id, and the terms hash that the arbiter keys commit to."""
    return envelope_id(Kind.CONTRACT, network, pack(contract))


def sign_contract(contract: Contract, network: Network, seed: bytes) -> bytes:
    """The Ed25519 signature of the persona with this seed, 64 bytes."""
    return sign_body(Kind.CONTRACT, network, seed, pack(contract))


def verify_contract(contract: Contract, network: Network, persona: bytes, signature: bytes) -> None:
    """Check one party's signature. Raises BadSignature."""
    verify_body(Kind.CONTRACT, network, persona, pack(contract), signature)
