"""What a party of a trade and an arbiter say to each other, from a dispute's opening on (SPEC section 7.4).

Each party has a conversation of its own with the arbiter, chained as a trade's messages are; its header carries
`case_id` where a trade's carries the trade id. Before the opening an arbiter receives nothing, so a trade without a
dispute stays unknown to it. The opening holds all that it needs: one party's copy suffices, since both signed the
contract.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.attachment import MAX_ATTACHMENTS, Attachment
from protocol.contract import Contract
from protocol.errors import Malformed
from protocol.messages import ChatLine, Claim, Header, RawEnvelope
from protocol.offer import Offer
from protocol.ruling import RawRuling
from protocol.types import Blocks, Height, Signature64, Terms
from protocol.wire import MAX_ENVELOPE, Envelope, Kind, digest, pack, unpack

MAX_TRANSCRIPT: Final = 2_000
"""Messages of a trade that an opening or a bundle may hold."""
MAX_EVIDENCE: Final = 200
"""Messages with evidence that one party may send in one case."""
MAX_LINES: Final = 200
"""Lines of chat that a party and an arbiter may each send the other in one case."""
RawMessage = Annotated[bytes, Meta(min_length=100, max_length=500_000)]


class CaseFile(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A trade as one party can prove it: the offer, the contract, the signatures on it, and the messages.

    `taker_signature` may be missing when the taker withheld its Seal; then the first two messages must show that the
    contract follows from what the taker signed (SPEC section 7.3). Messages may be left out where they are too many.
    """

    offer: Offer
    contract: Contract
    maker_signature: Signature64
    taker_signature: Signature64 | None
    messages: Annotated[tuple[RawMessage, ...], Meta(max_length=MAX_TRANSCRIPT)]


class CaseOpening(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Party to arbiter, first in its conversation: my case file and my claim. The other party's is its answer.

    `height` is the block that holds the escrow by the sender's chain: from there the arbiter looks for itself.
    `contact` is the sender's contact record. `declined` is the main arbiter's signed refusal when the backup is asked.
    """

    file: CaseFile
    claim: Claim
    height: Height
    contact: RawEnvelope
    declined: Annotated[bytes, Meta(min_length=100, max_length=Kind.CASE_DECLINED.limit)] | None


class CaseAccepted(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arbiter to each party: I decide this. Evidence is heard up to block `heard_until`.

    `claim` is what the other party says, so that nobody need take that from its counterparty.
    """

    heard_until: Height
    claim: Claim | None


class CaseDeclined(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arbiter to whoever asked: I do not decide this."""

    text: Terms


class CaseExtended(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arbiter to each party, at most once: I need so many blocks more; evidence is heard up to `heard_until`."""

    blocks: Blocks
    heard_until: Height
    text: Terms


class Evidence(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Party to arbiter: what shows that I am right."""

    text: Terms
    attachments: Annotated[tuple[Attachment, ...], Meta(max_length=MAX_ATTACHMENTS)]


class CaseRuling(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arbiter to each party: the ruling's envelope, and the text whose hash it holds."""

    ruling: RawRuling
    text: Terms


CasePayload = CaseOpening | CaseAccepted | CaseDeclined | CaseExtended | Evidence | CaseRuling | ChatLine

CASE_KIND_OF: Final[dict[type[CasePayload], Kind]] = {
    CaseOpening: Kind.CASE_OPENING,
    CaseAccepted: Kind.CASE_ACCEPTED,
    CaseDeclined: Kind.CASE_DECLINED,
    CaseExtended: Kind.CASE_EXTENDED,
    Evidence: Kind.EVIDENCE,
    CaseRuling: Kind.CASE_RULING,
    ChatLine: Kind.CHAT,
}
CASE_PAYLOAD_OF: Final = {kind: payload for payload, kind in CASE_KIND_OF.items()}


class CaseMessage(Struct, frozen=True):
    """A decoded message of a conversation with an arbiter, and the envelope that it came in."""

    header: Header
    payload: CasePayload
    envelope: Envelope


def case_id(trade_id: bytes, party: bytes, arbiter: bytes) -> bytes:
    """What names the conversation of the persona `party` with the persona `arbiter` about a trade."""
    return digest(b"p2pnode/case", trade_id, party, arbiter)


def encode_case(header: Header, payload: CasePayload) -> tuple[Kind, bytes]:
    """The kind and the body of a message."""
    return CASE_KIND_OF[type(payload)], pack((header, payload))


def decode_case(envelope: Envelope) -> CaseMessage:
    """The message in a verified envelope. Raises Malformed, TooLarge."""
    try:
        payload_type = CASE_PAYLOAD_OF[Kind(envelope.kind)]
    except (KeyError, ValueError):
        raise Malformed(f"kind {envelope.kind} is no message to or from an arbiter") from None
    header, payload = unpack(envelope.body, tuple[Header, payload_type], limit=MAX_ENVELOPE)  # type: ignore[valid-type]
    return CaseMessage(header=header, payload=payload, envelope=envelope)
