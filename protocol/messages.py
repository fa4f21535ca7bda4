"""What the two parties of a trade say to each other: the six messages of a happy trade, and the rest (SPEC section 7).

A message's body is `[header, payload]`. The header chains it: `prev` is the id of the sender's previous message in
this trade, `seen` the id of the last message that it had received. Together they make one transcript that neither
side can change afterwards, and divergence shows at the next message.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.attachment import Attachment
from protocol.contract import MAX_INPUTS, Bargain, Party
from protocol.errors import Malformed
from protocol.offer import Offer
from protocol.ruling import RawRuling
from protocol.types import Blocks, EcdsaDer, FeeRate, Hash32, Height, Nonce32, Ppm, Sats, Signature64, Terms, Txid
from protocol.wire import MAX_ENVELOPE, Envelope, Kind, pack, unpack

NONE_YET: Final = bytes(32)
"""The id that stands for "no message before this one"."""
MAX_RETURNED: Final = 256
"""Messages that are returned at once."""

RawTransaction = Annotated[bytes, Meta(min_length=60, max_length=60_000)]
WitnessItem = Annotated[bytes, Meta(max_length=72)]
WitnessStack = Annotated[tuple[WitnessItem, ...], Meta(max_length=4)]
RawReturned = Annotated[bytes, Meta(min_length=100, max_length=MAX_ENVELOPE)]
RawEnvelope = Annotated[bytes, Meta(min_length=100, max_length=1_024)]
DetailName = Annotated[str, Meta(min_length=1, max_length=32)]
DetailValue = Annotated[str, Meta(max_length=500)]
Details = Annotated[tuple[tuple[DetailName, DetailValue], ...], Meta(min_length=1, max_length=16)]
"""Payment details as shown to the counterparty: (field, value) pairs, such as ("iban", "DE02...")."""
Keepsake = Annotated[bytes, Meta(max_length=9_216)]
"""What its sender will need again and nobody else can read (SPEC section 7.6); empty: nothing."""


class Header(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a message stands: its trade, its number in its sender's chain (from 0), and both chains' heads.

    `height` is the best block that the sender had followed when it signed: its own word on when, held against nobody
    but itself. Deadlines are heights, so a record shows by it what came too late.
    """

    trade_id: Hash32
    number: Annotated[int, Meta(ge=0, le=100_000)]
    prev: Hash32
    seen: Hash32
    height: Height = 0


class Funding(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The full previous transactions of a party's inputs, in the order of the inputs (empty: no inputs)."""

    previous: Annotated[tuple[RawTransaction, ...], Meta(max_length=MAX_INPUTS)]


class Take(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Taker to maker: I take this offer on these numbers, and here is my side.

    `arbiter` and `backup` are the signed announcements themselves, so that the maker needs no look-up; `contact`
    is the taker's signed contact record.
    """

    bargain: Bargain
    arbiter: RawEnvelope
    backup: RawEnvelope | None
    party: Party
    funding: Funding
    contact: RawEnvelope
    keepsake: Keepsake = b""


class Accept(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Maker to taker: my side, and my signature on the contract that both of us now derive.

    `witnesses` are the maker's funding witnesses when it buys (the seller always signs last), else None.
    """

    party: Party
    funding: Funding
    contract_signature: Signature64
    witnesses: Annotated[tuple[WitnessStack, ...], Meta(max_length=MAX_INPUTS)] | None
    keepsake: Keepsake = b""


class Seal(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Taker to maker: my signature on the contract, with my funding witnesses or, when I sold, the funding txid."""

    contract_signature: Signature64
    witnesses: Annotated[tuple[WitnessStack, ...], Meta(max_length=MAX_INPUTS)] | None
    funding_txid: Txid | None


class OpenedDetails(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The opening of a details commitment."""

    salt: Nonce32
    details: Details


class PaymentDetails(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Seller to buyer, once the escrow is buried: pay here."""

    opened: OpenedDetails


class Paid(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Buyer to seller: I have paid from here, and this is my signature on the payout."""

    opened: OpenedDetails
    payout_signature: EcdsaDer
    note: Annotated[str, Meta(max_length=140)]


class Released(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Seller to buyer: the payout is broadcast."""

    payout_txid: Txid


class Decline(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other, while nothing is locked: no, or not any more. `reason` is an error code."""

    reason: Annotated[int, Meta(ge=1000, le=9999)]
    text: Terms


class Claim(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a party says in a dispute: what happened, and the share of the amount that the buyer should get."""

    text: Terms
    buyer_share: Ppm


class Disputed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other: I have asked the arbiter, and this is what I claim."""

    claim: Claim


class Proposal(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other: let us divide the escrow so; my signature on that payout is here.

    It can't be taken back: whoever holds it may complete and broadcast that payout at any time. `buyer_due` equal to
    the buyer's deposit cancels the trade.
    """

    buyer_due: Sats
    rate: FeeRate
    payout_signature: EcdsaDer


class Agreed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer to a proposal: my signature on the same payout, which I broadcast."""

    payout_txid: Txid
    payout_signature: EcdsaDer


class FeeProposal(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other: the payout that we agreed on waits; my signature on the same at this fee rate is here.

    The answer is an Agreed. `payout_txid` is the payout that should be replaced.
    """

    payout_txid: Txid
    rate: FeeRate
    payout_signature: EcdsaDer


class Extension(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Seller to buyer: the payment window is so many blocks longer."""

    blocks: Blocks


class ExtensionRequest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Buyer to seller: I need so many blocks more to pay."""

    blocks: Blocks
    reason: Terms


class ChatLine(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A line of chat: between the parties, or between one of them and the arbiter."""

    text: Annotated[str, Meta(min_length=1, max_length=2_000)]


class AttachmentOffer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Here is a file; its content is fetched by its hash."""

    attachment: Attachment
    note: Annotated[str, Meta(max_length=500)]


class RulingShown(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other, when the escrow went another way than the ruling that it was given: this is mine.

    Whoever has another shows that in turn; then both hold the proof that the arbiter ruled twice.
    """

    ruling: RawRuling
    text: Terms


class Sync(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other after an interruption: how far my two chains reach. Not part of the transcript."""

    trade_id: Hash32
    sent: Annotated[int, Meta(ge=0, le=100_000)]
    sent_head: Hash32
    received: Annotated[int, Meta(ge=0, le=100_000)]
    received_head: Hash32


class Returned(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a trade or conversation `chain` holds, back to one who has lost it: messages of both, in their order.

    `offer` is the trade's, for one who does not know the trade at all. Not part of the transcript: what it holds is
    signed already, the receiver's own messages by the receiver itself.
    """

    chain: Hash32
    offer: Offer | None
    messages: Annotated[tuple[RawReturned, ...], Meta(min_length=1, max_length=MAX_RETURNED)]


Payload = (
    Take
    | Accept
    | Seal
    | PaymentDetails
    | Paid
    | Released
    | Decline
    | Disputed
    | Proposal
    | Agreed
    | FeeProposal
    | Extension
    | ExtensionRequest
    | ChatLine
    | AttachmentOffer
    | RulingShown
)

KIND_OF: Final[dict[type[Payload], Kind]] = {
    Take: Kind.TAKE,
    Accept: Kind.ACCEPT,
    Seal: Kind.SEAL,
    PaymentDetails: Kind.PAYMENT_DETAILS,
    Paid: Kind.PAID,
    Released: Kind.RELEASED,
    Decline: Kind.DECLINE,
    Disputed: Kind.DISPUTED,
    Proposal: Kind.PROPOSAL,
    Agreed: Kind.AGREED,
    FeeProposal: Kind.FEE_PROPOSAL,
    Extension: Kind.EXTENSION,
    ExtensionRequest: Kind.EXTENSION_REQUEST,
    ChatLine: Kind.CHAT,
    AttachmentOffer: Kind.ATTACHMENT,
    RulingShown: Kind.RULING_SHOWN,
}
PAYLOAD_OF: Final = {kind: payload for payload, kind in KIND_OF.items()}


class Message(Struct, frozen=True):
    """A decoded message and the envelope that it came in."""

    header: Header
    payload: Payload
    envelope: Envelope


def encode(header: Header, payload: Payload) -> tuple[Kind, bytes]:
    """The kind and the body of a message."""
    return KIND_OF[type(payload)], pack((header, payload))


def decode(envelope: Envelope) -> Message:
    """The message in a verified envelope. Raises Malformed, TooLarge."""
    try:
        payload_type = PAYLOAD_OF[Kind(envelope.kind)]
    except (KeyError, ValueError):
        raise Malformed(f"kind {envelope.kind} is not a trade message") from None
    limit = Kind(envelope.kind).limit
    # A fixed-length tuple type per kind: the header, then exactly that kind's payload.
    header, payload = unpack(envelope.body, tuple[Header, payload_type], limit=limit)  # type: ignore[valid-type]
    return Message(header=header, payload=payload, envelope=envelope)


def encode_details(details: Details) -> bytes:
    """The bytes that a details commitment hashes."""
    return pack(details)
