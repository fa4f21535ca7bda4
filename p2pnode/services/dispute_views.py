"""Settlements, disputes and cases as people see them. Nothing here decides or changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from escrow.coins import txid_text
from escrow.errors import BadPayout
from escrow.payout import PayoutPlan, derive_payout
from escrow.script import Role
from p2pnode.api import dispute_schema as d
from p2pnode.conversations import Conversation
from p2pnode.money import format_sats
from protocol.attachment import Attachment
from protocol.case_messages import CaseAccepted, CaseDeclined, CaseExtended, CaseOpening, CaseRuling, Evidence
from protocol.contract import Contract
from protocol.messages import (
    Agreed,
    AttachmentOffer,
    ChatLine,
    Claim,
    Disputed,
    Extension,
    ExtensionRequest,
    Proposal,
    RulingShown,
)
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome, cancelled_due
from protocol.ruling import Reason, Ruling, read_ruling
from protocol.types import Branch, Network, Side
from protocol.wire import parse_envelope

BRANCHES: Final[dict[Branch, d.BranchName]] = {Branch.MAIN: "main", Branch.BACKUP: "backup"}
ARBITERS: Final = {Branch.MAIN: "arbiter", Branch.BACKUP: "backup"}
PARTIES: Final = {Side.BUY: "buyer", Side.SELL: "seller"}
REASONS: Final = {reason: reason.name.lower().replace("_", "-") for reason in Reason}

IsHere = Callable[[bytes], bool]
"""Whether an attachment's content is on this node."""


@lru_cache(maxsize=512)
def payout_of(contract: Contract, network: Network, outcome: Outcome) -> PayoutPlan:
    """The payout of an outcome. Raises BadPayout."""
    return derive_payout(contract, network, outcome)


def claim_view(claim: Claim | None) -> d.ClaimView | None:
    """A claim."""
    return None if claim is None else d.ClaimView(text=claim.text, buyer_share_ppm=claim.buyer_share)


def ruling_view(raw: bytes, text: str, contract: Contract, network: Network) -> d.RulingView:
    """A verified ruling."""
    envelope = parse_envelope(raw, network)
    ruling: Ruling = read_ruling(envelope)
    plan = payout_of(contract, network, ruling.outcome)
    return d.RulingView(
        ruling=envelope.id.hex(),
        branch=BRANCHES[ruling.branch],
        buyer_share_ppm=ruling.buyer_share,
        forfeit_ppm=ruling.forfeit,
        reason=REASONS[ruling.reason],
        text=text,
        payout_txid=txid_text(plan.txid),
        buyer_sats=plan.value(Role.BUYER),
        seller_sats=plan.value(Role.SELLER),
        arbiter_sats=plan.value(Role.ARBITER),
    )


def outcome_text(outcome: Outcome | None, contract: Contract | None) -> str:
    """How a trade ended, or is about to."""
    match outcome:
        case None:
            return ""
        case ReleaseOutcome():
            return "released"
        case SettlementOutcome(due):
            if contract is not None and due == cancelled_due(contract):
                return "cancelled by both"
            return f"settled: {format_sats(due)} BTC of amount and deposits to the buyer"
        case RulingOutcome(branch, share, forfeit):
            lost = f", {forfeit / 10_000:g}% of the loser's deposit forfeited" if forfeit else ""
            return f"ruled by the {ARBITERS[branch]}: {share / 10_000:g}% of the amount to the buyer{lost}"


def proposal_values(contract: Contract, network: Network, outcome: SettlementOutcome) -> tuple[int, int]:
    """What a settlement pays to buyer and seller; zeros for one that can't be paid."""
    try:
        plan = payout_of(contract, network, outcome)
    except BadPayout:
        return 0, 0
    return plan.value(Role.BUYER), plan.value(Role.SELLER)


def attachment_view(attachment: Attachment, here: IsHere) -> d.AttachmentView:
    """A file that was shown."""
    return d.AttachmentView(
        content=attachment.content.hex(),
        name=attachment.name,
        media=attachment.media,
        size_bytes=attachment.size,
        here=here(attachment.content),
    )


class Said(NamedTuple):
    """Something that was said, as a timeline and a list of exhibits are made of it. `at` 0: from a case file."""

    at: int
    by: str
    to: str
    payload: object
    height: int


def line(said: Said, here: IsHere) -> d.LineView | None:
    """A message as a line of the timeline; None for those that are no talk."""
    found = _said(said.payload)
    if found is None:
        return None
    kind, text, attachments = found
    shown = tuple(attachment_view(a, here) for a in attachments)
    return d.LineView(at=said.at, height=said.height, by=said.by, to=said.to, kind=kind, text=text, attachments=shown)


def _said(payload: object) -> tuple[str, str, Sequence[Attachment]] | None:
    match payload:
        case ChatLine(text):
            return "chat", text, ()
        case AttachmentOffer(attachment, note):
            return "attachment", note, (attachment,)
        case Evidence(text, attachments):
            return "evidence", text, attachments
        case Disputed(claim):
            return "disputed", claim_text(claim), ()
        case CaseOpening(claim=claim):
            return "claim", claim_text(claim), ()
        case Proposal(buyer_due):
            return "proposal", f"{format_sats(buyer_due)} BTC of amount and deposits to the buyer", ()
        case Agreed():
            return "agreed", "", ()
        case _:
            found = _announced(payload)
            return None if found is None else (*found, ())


def _announced(payload: object) -> tuple[str, str] | None:
    match payload:
        case Extension(blocks):
            return "extension", f"{blocks} blocks more to pay"
        case ExtensionRequest(blocks, reason):
            return "extension-request", f"{blocks} blocks more to pay: {reason}"
        case CaseAccepted(heard_until):
            return "accepted", f"evidence is heard up to block {heard_until}"
        case CaseDeclined(text):
            return "declined", text
        case CaseExtended(blocks, heard_until, text):
            return "extended", f"{blocks} blocks more; evidence is heard up to block {heard_until}. {text}"
        case CaseRuling(_, text):
            return "ruling", text
        case RulingShown(_, text):
            return "ruling-shown", text
        case _:
            return None


def claim_text(claim: Claim) -> str:
    """A claim in one line."""
    return f"{claim.text} (asks {claim.buyer_share / 10_000:g}% of the amount for the buyer)"


def shown_in(payload: object) -> Sequence[Attachment]:
    """The files that a message shows."""
    match payload:
        case AttachmentOffer(attachment):
            return (attachment,)
        case Evidence(_, attachments):
            return attachments
        case _:
            return ()


def timeline(talk: Iterable[Said], here: IsHere) -> tuple[d.LineView, ...]:
    """What was said, oldest first."""
    found = (line(said, here) for said in talk)
    return tuple(sorted((x for x in found if x is not None), key=lambda x: x.at))


def talker(conversation: Conversation, *, out: bool, us: str = "you") -> tuple[str, str]:
    """(by, to) of a message in a conversation: who is who, seen from us."""
    party, arbiter = PARTIES[conversation.side], ARBITERS[conversation.branch]
    if conversation.arbitrates:
        return (us, party) if out else (party, us)
    return (us, arbiter) if out else (arbiter, us)
