"""A dispute in one file that anybody can verify (DESIGN section 11, SPEC section 9.2).

A bundle holds a case file, the other party's copy of the messages where its maker has one, the conversations with
arbiters, and the contents of attachments. It is not signed as a whole: everything in it is. Whoever verifies it needs
no node and trusts nobody. `verify_bundle` refuses a bundle that does not hold; of one that holds it tells what
happened, and who broke the contract or the protocol where the record shows it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.attachment import MAX_ATTACHMENT, Attachment, check_content, content_hash
from protocol.case_messages import (
    MAX_TRANSCRIPT,
    CaseFile,
    CaseMessage,
    CaseRuling,
    Evidence,
    RawMessage,
    case_id,
)
from protocol.casefile import CheckedCase, branch_of, check_file, side_of
from protocol.conduct import judge_conduct, opening_heights
from protocol.errors import Malformed, P2PError, PeerViolation, TooLarge
from protocol.messages import AttachmentOffer, RulingShown
from protocol.replay import Checks, Finding, replay
from protocol.ruling import Equivocation, Ruling, arbiter_of, check_ruling, read_ruling, text_hash
from protocol.transcript import (
    Fork,
    Transcript,
    check_fork,
    find_fork,
    header_of,
    read_conversation,
    read_transcript,
)
from protocol.types import Branch, Network, PersonaId
from protocol.wire import MAX_ENVELOPE, Kind, open_envelope, pack, unpack

MAX_BUNDLE: Final = 100_000_000
"""Bytes of the largest bundle."""

RawCaseMessage = Annotated[bytes, Meta(min_length=100, max_length=MAX_ENVELOPE)]
Content = Annotated[bytes, Meta(min_length=1, max_length=MAX_ATTACHMENT)]


class BadBundle(PeerViolation):
    """The bundle does not hold: something in it was made up or changed."""

    code = 2191


class Conversation(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a party and an arbiter said to each other, as envelopes."""

    party: PersonaId
    arbiter: PersonaId
    messages: Annotated[tuple[RawCaseMessage, ...], Meta(max_length=MAX_TRANSCRIPT)]


class Bundle(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """One case. `other` is the second party's copy of the trade's messages; empty where there is none.

    `forks` are pairs of messages that contradict each other, as a node of either side or an arbiter has met them.
    """

    network: Network
    file: CaseFile
    other: Annotated[tuple[RawMessage, ...], Meta(max_length=MAX_TRANSCRIPT)]
    conversations: Annotated[tuple[Conversation, ...], Meta(max_length=4)]
    contents: Annotated[tuple[Content, ...], Meta(max_length=400)]
    forks: Annotated[tuple[tuple[RawCaseMessage, RawCaseMessage], ...], Meta(max_length=16)] = ()


class RulingSeen(Struct, frozen=True):
    """A ruling in a bundle, with its signed envelope and the payout that follows from it."""

    ruling: Ruling
    raw: bytes
    text: str
    payout_txid: bytes


class Verdict(Struct, frozen=True):
    """What a bundle proves. Phases by name, None where messages are left out and nothing can be replayed."""

    network: Network
    case: CheckedCase
    conversations: tuple[Transcript[CaseMessage], ...]
    buyer_phase: str | None
    seller_phase: str | None
    rulings: tuple[RulingSeen, ...]
    forks: tuple[Fork, ...]
    equivocation: Equivocation | None
    attachments: tuple[tuple[Attachment, bool], ...]
    findings: tuple[Finding, ...]


def build_bundle(bundle: Bundle) -> bytes:
    """The file. Nothing is verified: verify what you export before you hand it out."""
    return pack(bundle)


def verify_bundle(data: bytes, checks: Checks) -> Verdict:
    """Verify a bundle and judge what it shows.

    Raises BadBundle, and BadCase or BadTranscript where that part of it does not hold.
    """
    try:
        bundle = unpack(data, Bundle, limit=MAX_BUNDLE)
    except (Malformed, TooLarge) as e:
        raise BadBundle(f"this is no bundle of a dispute, or it is damaged: {e.detail}") from e
    network = bundle.network
    case = check_file(bundle.file, network)
    contract = case.contract
    parties = (contract.maker.persona, contract.taker.persona)
    findings: list[Finding] = []
    fork = None
    if bundle.other:
        fork = find_fork(case.transcript, read_transcript(bundle.other, network, contract.trade_id, parties))
    forks = _forks(bundle, case, fork)
    findings += [Finding(f.signer, f.number, "told two stories: signed messages that contradict it") for f in forks]
    conversations = tuple(_conversation(c, case, network) for c in bundle.conversations)
    buyer_phase = seller_phase = None
    if case.transcript.omitted == 0:
        judged = replay(case, network, checks, opening_heights(conversations))
        buyer_phase, seller_phase = judged.buyer_phase, judged.seller_phase
        findings += judged.findings
    rulings = _rulings(conversations, case, network, checks)
    equivocation = _contradiction(rulings)
    if equivocation is not None:
        findings.append(Finding(equivocation.arbiter, None, "signed two different rulings for this contract"))
    findings += judge_conduct(case, conversations, {seen.raw: seen.ruling for seen in rulings})
    return Verdict(
        network=network,
        case=case,
        conversations=conversations,
        buyer_phase=buyer_phase,
        seller_phase=seller_phase,
        rulings=rulings,
        forks=forks,
        equivocation=equivocation,
        attachments=_attachments(bundle, case, conversations),
        findings=tuple(findings),
    )


def _conversation(conversation: Conversation, case: CheckedCase, network: Network) -> Transcript[CaseMessage]:
    side_of(case.contract, conversation.party)
    branch_of(case.contract, conversation.arbiter)
    chain = case_id(case.contract.trade_id, conversation.party, conversation.arbiter)
    return read_conversation(conversation.messages, network, chain, (conversation.party, conversation.arbiter))


def _rulings(
    conversations: tuple[Transcript[CaseMessage], ...], case: CheckedCase, network: Network, checks: Checks
) -> tuple[RulingSeen, ...]:
    """Every different ruling. Raises BadBundle for one of an arbiter's messages that is not its own, or not valid.

    A party may show another what it was given; what does not hold of that is held against the party (`replay`).
    """
    found: dict[bytes, RulingSeen] = {}
    for message in (m for c in conversations for m in c.messages):
        if isinstance(message.payload, CaseRuling):
            identity, seen = _ruling(message.payload.ruling, message.payload.text, case, network, checks)
            found[identity] = seen
    for shown in case.transcript.messages:
        if isinstance(shown.payload, RulingShown):
            with suppress(BadBundle):
                identity, seen = _ruling(shown.payload.ruling, shown.payload.text, case, network, checks)
                found.setdefault(identity, seen)
    return tuple(found.values())


def _ruling(raw: bytes, text: str, case: CheckedCase, network: Network, checks: Checks) -> tuple[bytes, RulingSeen]:
    try:
        envelope = open_envelope(raw, network, limit=Kind.RULING.limit)
        ruling = read_ruling(envelope)
        check_ruling(ruling, case.contract, case.contract_id)
        txid = checks.payout_txid(case.contract, network, ruling.outcome)
        good = checks.signed(case.contract, network, ruling.outcome, None, ruling.payout_signature)
    except P2PError as e:
        raise BadBundle(f"a ruling in the bundle does not hold: {e.detail}") from e
    if not good or ruling.text_hash != text_hash(text):
        raise BadBundle("a ruling's payout signature or text is not the one that was signed")
    return envelope.id, RulingSeen(ruling, envelope.raw, text, txid)


def _contradiction(rulings: tuple[RulingSeen, ...]) -> Equivocation | None:
    by_arbiter: dict[bytes, RulingSeen] = {}
    for seen in rulings:
        earlier = by_arbiter.setdefault(seen.ruling.arbiter, seen)
        if earlier is not seen:
            return Equivocation(seen.ruling.arbiter, earlier.raw, seen.raw)
    return None


def _forks(bundle: Bundle, case: CheckedCase, known: Fork | None) -> tuple[Fork, ...]:
    """Every contradiction that the bundle proves. Raises BadBundle for one that proves nothing, or nothing here."""
    contract = case.contract
    arbiters = [terms.persona for branch in Branch if (terms := arbiter_of(contract, branch)) is not None]
    parties = (contract.maker.persona, contract.taker.persona)
    chains = {contract.trade_id: set(parties)}
    chains |= {case_id(contract.trade_id, party, a): {party, a} for party in parties for a in arbiters}
    found = [known] if known is not None else []
    for first, second in bundle.forks:
        try:
            envelope = open_envelope(first, bundle.network, limit=MAX_ENVELOPE)
            fork = Fork(envelope.signer, header_of(envelope).number, first, second)
            chain = check_fork(fork, bundle.network)
        except P2PError as e:
            raise BadBundle(f"two messages in the bundle do not contradict each other: {e.detail}") from e
        if fork.signer not in chains.get(chain, set()):
            raise BadBundle("a contradiction in the bundle belongs to another trade")
        if all((fork.signer, fork.number) != (f.signer, f.number) for f in found):
            found.append(fork)
    return tuple(found)


def _attachments(
    bundle: Bundle, case: CheckedCase, conversations: tuple[Transcript[CaseMessage], ...]
) -> tuple[tuple[Attachment, bool], ...]:
    """Every attachment that was named, and whether its content is here. Raises BadBundle for any other content."""
    named = [m.payload.attachment for m in case.transcript.messages if isinstance(m.payload, AttachmentOffer)]
    for message in (m for c in conversations for m in c.messages):
        named += message.payload.attachments if isinstance(message.payload, Evidence) else ()
    contents = {content_hash(data): data for data in bundle.contents}
    if contents.keys() - {a.content for a in named}:
        raise BadBundle("the bundle holds a file that nobody has shown")
    seen: dict[bytes, tuple[Attachment, bool]] = {}
    for attachment in named:
        data = contents.get(attachment.content)
        if data is not None:
            try:
                check_content(attachment, data)
            except PeerViolation as e:
                raise BadBundle(f"{attachment.name}: {e.detail}") from e
        seen.setdefault(attachment.content, (attachment, data is not None))
    return tuple(seen.values())
