"""What can happen to a trade that is settled, disputed or talked about, and what it then asks for.

The second half of `trade_events`, whose unions hold all of this; the rules of naming are the same. Events of arbiters
come verified: the conversation is with an arbiter that the contract names, and a ruling's payout signature is valid for
the payout that we derive from it ourselves.
"""

from __future__ import annotations

from msgspec import Struct

from protocol.attachment import Attachment
from protocol.case_messages import CaseAccepted, CaseDeclined, CaseExtended, CasePayload
from protocol.messages import (
    Agreed,
    AttachmentOffer,
    ChatLine,
    Claim,
    Disputed,
    Extension,
    ExtensionRequest,
    FeeProposal,
    Proposal,
)
from protocol.outcome import Agreement, Outcome, RulingOutcome
from protocol.ruling import Equivocation
from protocol.types import Branch

# --- commands of the user ---------------------------------------------------------------------------------------


class ProposeSettlement(Struct, frozen=True, tag=True):
    """Sign a division of the escrow (satoshis, sat per 1,000 vB) and offer it to the peer. It can't be taken back."""

    buyer_due: int
    rate: int


class AcceptSettlement(Struct, frozen=True, tag=True):
    """Complete and broadcast the settlement that the peer proposed, named by its payout's txid."""

    txid: bytes


class RaiseFee(Struct, frozen=True, tag=True):
    """Sign the agreed payout again at this fee rate (sat per 1,000 vB), and ask the peer's node to do the same."""

    rate: int


class RequestExtension(Struct, frozen=True, tag=True):
    """Buyer: ask for so many blocks more to pay."""

    blocks: int
    reason: str = ""


class GrantExtension(Struct, frozen=True, tag=True):
    """Seller: give the buyer so many blocks more to pay."""

    blocks: int


class SendChat(Struct, frozen=True, tag=True):
    """Write to the counterparty."""

    text: str


class SendAttachment(Struct, frozen=True, tag=True):
    """Show a file to the counterparty; its content is in our store already."""

    attachment: Attachment
    note: str = ""


class OpenDispute(Struct, frozen=True, tag=True):
    """Ask the arbiter, or answer the dispute that the peer has opened."""

    claim: Claim


class SendEvidence(Struct, frozen=True, tag=True):
    """Show something to the arbiter."""

    text: str
    attachments: tuple[Attachment, ...] = ()


class WriteArbiter(Struct, frozen=True, tag=True):
    """Write to the arbiter."""

    text: str


class CompleteRuling(Struct, frozen=True, tag=True):
    """Sign and broadcast what the arbiter decided. The winner's node does so by itself."""


# --- messages of the peer, verified ------------------------------------------------------------------------------


class ProposalReceived(Struct, frozen=True, tag=True):
    """The peer signed a settlement; `txid` is the payout that follows from it, and the signature on that is valid."""

    message: Proposal
    txid: bytes


class AgreedReceived(Struct, frozen=True, tag=True):
    """The peer completed a settlement that we had signed; its signature is valid."""

    message: Agreed


class FeeProposalReceived(Struct, frozen=True, tag=True):
    """The peer signed the payout `txid`: what we agreed on, at a higher rate. Its signature is valid."""

    message: FeeProposal
    outcome: Agreement
    txid: bytes


class ExtensionRequested(Struct, frozen=True, tag=True):
    """The buyer asks for more time."""

    message: ExtensionRequest


class ExtensionReceived(Struct, frozen=True, tag=True):
    """The seller gave us more time."""

    message: Extension


class ChatReceived(Struct, frozen=True, tag=True):
    """The counterparty wrote."""

    message: ChatLine


class AttachmentReceived(Struct, frozen=True, tag=True):
    """The counterparty shows a file."""

    message: AttachmentOffer


class DisputedReceived(Struct, frozen=True, tag=True):
    """The counterparty has asked the arbiter."""

    message: Disputed


# --- messages of an arbiter, verified ----------------------------------------------------------------------------


class CaseAcceptedReceived(Struct, frozen=True, tag=True):
    """The arbiter hears the case."""

    branch: Branch
    message: CaseAccepted


class CaseDeclinedReceived(Struct, frozen=True, tag=True):
    """The arbiter does not hear the case."""

    branch: Branch
    message: CaseDeclined


class CaseExtendedReceived(Struct, frozen=True, tag=True):
    """The arbiter takes more time, once."""

    branch: Branch
    message: CaseExtended


class ArbiterChatReceived(Struct, frozen=True, tag=True):
    """The arbiter wrote."""

    branch: Branch
    message: ChatLine


class RulingReceived(Struct, frozen=True, tag=True):
    """The arbiter decided. `txid` is the payout that follows from `outcome`; `signature` on it is valid.

    It comes from the arbiter or, shown by RulingShown, from the counterparty: the arbiter's signature is what counts.
    """

    ruling_id: bytes
    raw: bytes
    text: str
    outcome: RulingOutcome
    txid: bytes
    signature: bytes


# --- results of effects ------------------------------------------------------------------------------------------


class OutcomeSigned(Struct, frozen=True, tag=True):
    """Our signature on the payout `txid` of a settlement or ruling."""

    outcome: Outcome
    txid: bytes
    signature: bytes


class OutcomeBroadcast(Struct, frozen=True, tag=True):
    """Our backend took the payout of a settlement or ruling."""

    txid: bytes


DisputeCommand = (
    ProposeSettlement
    | AcceptSettlement
    | RaiseFee
    | RequestExtension
    | GrantExtension
    | SendChat
    | SendAttachment
    | OpenDispute
    | SendEvidence
    | WriteArbiter
    | CompleteRuling
)
DisputePeerEvent = (
    ProposalReceived
    | AgreedReceived
    | FeeProposalReceived
    | ExtensionRequested
    | ExtensionReceived
    | ChatReceived
    | AttachmentReceived
    | DisputedReceived
)
ArbiterEvent = CaseAcceptedReceived | CaseDeclinedReceived | CaseExtendedReceived | ArbiterChatReceived | RulingReceived
DisputeResult = OutcomeSigned | OutcomeBroadcast
DisputeEvent = DisputeCommand | DisputePeerEvent | ArbiterEvent | DisputeResult


# --- effects -----------------------------------------------------------------------------------------------------


class OpenCase(Struct, frozen=True, tag=True):
    """Send our case file and claim to the arbiter of that branch. The file is made of the recorded messages."""

    branch: Branch
    claim: Claim


class SendToArbiter(Struct, frozen=True, tag=True):
    """Sign, chain and deliver this payload in our conversation with the arbiter of that branch."""

    branch: Branch
    payload: CasePayload


class ExposeArbiter(Struct, frozen=True, tag=True):
    """An arbiter has signed two rulings for this contract: here are both, for everybody to see."""

    proof: Equivocation


class SignOutcome(Struct, frozen=True, tag=True):
    """Derive and sign the payout of a settlement or ruling -> OutcomeSigned."""

    outcome: Outcome


class BroadcastOutcome(Struct, frozen=True, tag=True):
    """Assemble and broadcast that payout from the two signatures that the state holds -> OutcomeBroadcast."""

    txid: bytes
