"""Rulings, and the proof that an arbiter gave two (DESIGN section 11, SPEC section 7.5).

A ruling is a signed document of its own: the same bytes go to both parties, and anybody may verify them later. Its
payout signature is by the arbiter's key in the escrow of exactly one contract, over the transaction that follows from
the contract and the ruling's numbers; so a ruling can neither be altered nor moved to another trade.

An arbiter decides a contract once. Two different rulings of one arbiter for one contract are their own proof.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.contract import ArbiterTerms, Contract
from protocol.errors import Malformed, PeerViolation
from protocol.outcome import RulingOutcome
from protocol.types import PPM, Branch, EcdsaDer, FeeRate, Hash32, Network, PersonaId, Ppm, Sats, ScriptPubKey
from protocol.wire import Envelope, Kind, digest, open_envelope, unpack


class BadRuling(PeerViolation):
    """The ruling is not one that this contract's arbiter may give."""

    code = 2170


class NoEquivocation(PeerViolation):
    """The two rulings do not prove that an arbiter contradicted itself."""

    code = 2171


class Reason(IntEnum):
    """Why an arbiter decided as it did; the text says it in words."""

    PAYMENT_PROVED = 1
    PAYMENT_NOT_PROVED = 2
    PAYMENT_LATE = 3
    WRONG_AMOUNT = 4
    WRONG_PAYER = 5
    PAYMENT_REVERSED = 6
    BUYER_SILENT = 7
    SELLER_SILENT = 8
    TERMS_BROKEN = 9
    AGREED_BEFORE_ME = 10
    OTHER = 99


class Ruling(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an arbiter decides. Shares in ppm as in `RulingOutcome`, the fee in satoshis.

    `buyer_head` and `seller_head` are the last messages of each party that the arbiter had read (32 zero bytes: it
    never wrote); through their chain they commit to the whole case file that was seen.
    """

    arbiter: PersonaId
    contract_id: Hash32
    branch: Branch
    buyer_share: Ppm
    forfeit: Ppm
    fee: Sats
    fee_script: ScriptPubKey
    rate: FeeRate
    reason: Reason
    text_hash: Hash32
    buyer_head: Hash32
    seller_head: Hash32
    payout_signature: EcdsaDer

    @property
    def outcome(self) -> RulingOutcome:
        """What the escrow pays by this ruling."""
        return RulingOutcome(self.branch, self.buyer_share, self.forfeit, self.fee_script, self.rate)


RawRuling = Annotated[bytes, Meta(min_length=200, max_length=Kind.RULING.limit)]


class Equivocation(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two rulings by `arbiter` for one contract, as signed envelopes. A public record; anybody may publish it."""

    arbiter: PersonaId
    first: RawRuling
    second: RawRuling


def arbiter_of(contract: Contract, branch: Branch) -> ArbiterTerms | None:
    """The arbiter that a contract names for a branch."""
    return contract.arbiter if branch is Branch.MAIN else contract.backup


def text_hash(text: str) -> bytes:
    """The commitment of a ruling to its text."""
    return digest(b"p2pnode/ruling-text", text.encode())


def read_ruling(envelope: Envelope) -> Ruling:
    """The ruling in a verified envelope. Raises Malformed, BadRuling."""
    if envelope.kind != Kind.RULING:
        raise Malformed("not a ruling")
    ruling = unpack(envelope.body, Ruling, limit=Kind.RULING.limit)
    if ruling.arbiter != envelope.signer:
        raise BadRuling("a ruling must be signed by the arbiter that it names")
    return ruling


def check_ruling(ruling: Ruling, contract: Contract, contract_id: bytes) -> None:
    """Everything about a ruling but its payout signature, which is `escrow`'s to check. Raises BadRuling."""
    terms = arbiter_of(contract, ruling.branch)
    rules = (
        (ruling.contract_id == contract_id, "the ruling is for another contract"),
        (terms is not None and terms.persona == ruling.arbiter, "the ruling is not by this contract's arbiter"),
        (terms is not None and terms.fee == ruling.fee, "the ruling takes another fee than the contract fixes"),
        (
            contract.fees.payout <= ruling.rate <= contract.fees.payout_max,
            "the ruling's fee rate is outside the contract's band",
        ),
        (ruling.buyer_share * 2 != PPM or ruling.forfeit == 0, "an even split has no loser to forfeit a deposit"),
    )
    for holds, complaint in rules:
        if not holds:
            raise BadRuling(complaint)


def read_equivocation(proof: Equivocation, network: Network) -> bytes:
    """The contract about which `proof.arbiter` contradicted itself.

    Raises NoEquivocation for anything that does not prove it, and what `open_envelope` raises.
    """
    first, second = (open_envelope(raw, network, limit=Kind.RULING.limit) for raw in (proof.first, proof.second))
    one, other = read_ruling(first), read_ruling(second)
    if not one.arbiter == other.arbiter == proof.arbiter or one.contract_id != other.contract_id:
        raise NoEquivocation
    # By body, not by bytes of the envelope: one ruling signed twice is no contradiction.
    if first.id == second.id:
        raise NoEquivocation("the two rulings are the same")
    return one.contract_id
