"""Whether a case file proves what it claims: that both parties agreed on this contract, and said these things.

Used by the arbiter when a case is opened, and by anybody who verifies a bundle. What only the curve can tell (payout
signatures, keys) is `escrow`'s, and what only the chain can tell is the chain backend's.
"""

from __future__ import annotations

from msgspec import Struct

from protocol.announcement import Announcement
from protocol.case_messages import CaseFile
from protocol.contract import (
    ArbiterTerms,
    Contract,
    arbiter_terms,
    build_contract,
    check_terms,
    contract_id,
    verify_contract,
)
from protocol.errors import P2PError, PeerViolation
from protocol.messages import Accept, Message, Take
from protocol.offer import Offer
from protocol.transcript import Transcript, read_transcript
from protocol.types import Branch, Network, Side
from protocol.wire import Kind, envelope_id, open_envelope, pack, unpack


class BadCase(PeerViolation):
    """The case file does not prove that both parties agreed on its contract."""

    code = 2172


class NotMyCase(PeerViolation):
    """The contract names another arbiter, or the sender is none of its parties."""

    code = 2173


class CheckedCase(Struct, frozen=True):
    """A case file that holds."""

    contract: Contract
    contract_id: bytes
    offer: Offer
    transcript: Transcript[Message]
    taker_signature: bytes | None


def check_file(file: CaseFile, network: Network) -> CheckedCase:
    """Verify a case file: contract, signatures, messages. Raises BadCase, BadTranscript."""
    contract, offer = file.contract, file.offer
    identity = contract_id(contract, network)
    if envelope_id(Kind.OFFER, network, pack(offer)) != contract.offer.envelope:
        raise BadCase("the case file holds another offer than its contract names")
    maker, taker = contract.maker.persona, contract.taker.persona
    transcript = read_transcript(file.messages, network, contract.trade_id, (maker, taker))
    try:
        check_terms(contract, offer)
        verify_contract(contract, network, maker, file.maker_signature)
        if file.taker_signature is not None:
            verify_contract(contract, network, taker, file.taker_signature)
        elif derived(offer, transcript, network) != contract:
            raise BadCase("the contract does not follow from what the taker signed")
    except P2PError as e:
        raise BadCase(f"the case file does not hold: {e.detail}") from e
    return CheckedCase(contract, identity, offer, transcript, file.taker_signature)


def derived(offer: Offer, transcript: Transcript[Message], network: Network) -> Contract:
    """The contract that follows from the signed Take and Accept. Raises BadCase, and what `build_contract` raises."""
    take = next((m.payload for m in transcript.messages if _is_take(m)), None)
    accept = next((m.payload for m in transcript.by(offer.maker) if isinstance(m.payload, Accept)), None)
    if not isinstance(take, Take) or not isinstance(accept, Accept):
        raise BadCase("without the taker's signature, its Take and the maker's Accept are needed")
    amount = take.bargain.amount
    return build_contract(
        offer,
        take.bargain,
        taker=take.party,
        maker=accept.party,
        arbiter=_terms(take.arbiter, amount, network),
        backup=None if take.backup is None else _terms(take.backup, amount, network),
    )


def _is_take(message: Message) -> bool:
    """A Take binds whoever signed it, and nobody else."""
    return isinstance(message.payload, Take) and message.payload.party.persona == message.envelope.signer


def _terms(raw: bytes, amount: int, network: Network) -> ArbiterTerms:
    envelope = open_envelope(raw, network, limit=Kind.ARBITER.limit)
    announcement = unpack(envelope.body, Announcement, limit=Kind.ARBITER.limit)
    if envelope.kind != Kind.ARBITER or announcement.persona != envelope.signer:
        raise BadCase("what the take names as an arbiter's announcement is none")
    return arbiter_terms(envelope.id, announcement, amount)


def side_of(contract: Contract, persona: bytes) -> Side:
    """Which party of a contract this persona is. Raises NotMyCase."""
    for side in Side:
        if contract.party(side).persona == persona:
            return side
    raise NotMyCase("the sender is no party of that contract")


def branch_of(contract: Contract, arbiter: bytes) -> Branch:
    """For which branch a contract names this arbiter. Raises NotMyCase."""
    if contract.arbiter.persona == arbiter:
        return Branch.MAIN
    if contract.backup is not None and contract.backup.persona == arbiter:
        return Branch.BACKUP
    raise NotMyCase("the contract names another arbiter")
