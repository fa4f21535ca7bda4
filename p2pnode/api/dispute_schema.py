"""The types of the local API for settlements, disputes, chat and the arbiter's desk. The rules are those of `schema`.

Shares are in parts per million of the traded amount.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pnode.api.schema import Request, Response, SideName, TxidText
from p2pnode.api.schema.base import DeadlineView
from protocol.attachment import MAX_ATTACHMENT, MAX_ATTACHMENTS
from protocol.types import Blocks, FeeRate, Ppm, Sats, Terms, UnixTime

BranchName = Literal["main", "backup"]
ReasonName = Literal[
    "payment-proved",
    "payment-not-proved",
    "payment-late",
    "wrong-amount",
    "wrong-payer",
    "payment-reversed",
    "buyer-silent",
    "seller-silent",
    "terms-broken",
    "agreed-before-me",
    "other",
]
Line = Annotated[str, Meta(min_length=1, max_length=2_000)]


class FileRef(Request, frozen=True, kw_only=True):
    """A file that was uploaded: its content, and the name to show it by."""

    content: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=200)]


Files = Annotated[tuple[FileRef, ...], Meta(max_length=MAX_ATTACHMENTS)]


class ClaimView(Response, frozen=True, kw_only=True):
    """What a party says, and the share of the amount that the buyer should get."""

    text: str
    buyer_share_ppm: int


class AttachmentView(Response, frozen=True, kw_only=True):
    """A file that somebody showed, by its content's hash. `here`: its content is on this node."""

    content: str
    name: str
    media: str
    size_bytes: int
    here: bool


class LineView(Response, frozen=True, kw_only=True):
    """Something that was said. `by` is you, peer, buyer, seller, arbiter or backup; `to` is empty for all.

    `at` is when this node had it (0: it was told in a case file), `height` the block that the speaker says it was.
    """

    at: UnixTime
    height: int = 0
    by: str
    to: str
    kind: str
    text: str
    attachments: tuple[AttachmentView, ...] = ()


class RulingView(Response, frozen=True, kw_only=True):
    """A ruling, with what its payout gives to each, mining fee taken."""

    ruling: str
    branch: BranchName
    buyer_share_ppm: int
    forfeit_ppm: int
    reason: str
    text: str
    payout_txid: str
    buyer_sats: Sats
    seller_sats: Sats
    arbiter_sats: Sats


class ArbiterStatusView(Response, frozen=True, kw_only=True):
    """One arbiter in a dispute. `answer` is waiting, accepted, declined or missed."""

    persona: str
    answer: str
    text: str
    promised_blocks: int
    extended: bool
    ruling: RulingView | None
    contradicted: bool


class ProposalView(Response, frozen=True, kw_only=True):
    """A settlement that somebody signed; it stays open to the other. `by` is you, peer or both."""

    txid: str
    by: str
    cancels: bool
    buyer_sats: Sats
    seller_sats: Sats


class DisputeView(Response, frozen=True, kw_only=True):
    """All about a trade besides paying and releasing. `actions` are what the user may do now."""

    trade: str
    phase: str
    side: SideName
    disputed: bool
    own_claim: ClaimView | None
    peer_claim: ClaimView | None
    bench: BranchName
    arbiter: ArbiterStatusView | None
    backup: ArbiterStatusView | None
    deadlines: tuple[DeadlineView, ...]
    proposals: tuple[ProposalView, ...]
    outcome: str
    actions: tuple[str, ...]
    timeline: tuple[LineView, ...]


class DisputeRequest(Request, frozen=True, kw_only=True):
    """What happened, and the share of the amount that the buyer should get. Opens a dispute, or answers one."""

    text: Line
    buyer_share_ppm: Ppm


class EvidenceRequest(Request, frozen=True, kw_only=True):
    """Something for the arbiter. `attachments` are contents that were uploaded before."""

    text: Line
    attachments: Files = ()


class FileUpload(Request, frozen=True, kw_only=True):
    """A file to show: PNG, JPEG, WebP, PDF or plain text, its bytes in base64."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    data: Annotated[str, Meta(min_length=4, max_length=MAX_ATTACHMENT * 4 // 3 + 8)]


class FileData(Response, frozen=True, kw_only=True):
    """The bytes of a file that is on this node, in base64."""

    content: str
    size_bytes: int
    media: str
    data: str


class ChatRequest(Request, frozen=True, kw_only=True):
    """A line of chat, with `arbiter` to the arbiter of the open dispute."""

    text: Line
    arbiter: bool = False
    attachments: Files = ()


class SettleRequest(Request, frozen=True, kw_only=True):
    """A settlement to propose: satoshis of amount and deposits to the buyer, or None to cancel the trade."""

    buyer_due_sats: Sats | None = None
    fee_rate_sats_per_kvb: FeeRate | None = None


class AcceptRequest(Request, frozen=True, kw_only=True):
    """A settlement to accept, by its payout."""

    txid: TxidText


class ExtendRequest(Request, frozen=True, kw_only=True):
    """Buyer: ask for more time to pay. Seller: give it."""

    blocks: Blocks
    reason: Annotated[str, Meta(max_length=500)] = ""


class BundleView(Response, frozen=True, kw_only=True):
    """A bundle of all that was said and signed, in base64; `p2pnode dispute verify` reads it."""

    trade: str
    size_bytes: int
    bundle: str


# --- the arbiter's desk --------------------------------------------------------------------------------------------


class PartyView(Response, frozen=True, kw_only=True):
    """A party of a case: its claim (None: it has not told its side), what it showed, its opened payment details."""

    persona: str
    claim: ClaimView | None
    evidence: int
    late: int
    details: dict[str, str]


class FindingView(Response, frozen=True, kw_only=True):
    """What the record itself shows against somebody (`who` is buyer, seller, arbiter or backup)."""

    who: str
    what: str


class CaseView(Response, frozen=True, kw_only=True):
    """A case on our desk. A depth is None while unseen, 0 in the mempool, else confirmations."""

    id: str
    contract_id: str
    phase: str
    open: bool
    role: BranchName
    opened_by: str
    amount_sats: Sats
    currency: str
    volume: str
    price: str
    method: str
    buyer_deposit_sats: Sats
    seller_deposit_sats: Sats
    fee_sats: Sats
    escrow_value_sats: Sats
    funding_txid: str
    escrow_depth: int | None
    spent_by: str | None
    spent_depth: int | None
    buyer: PartyView
    seller: PartyView
    heard: bool
    extended: bool
    overdue: bool
    deadlines: tuple[DeadlineView, ...]
    ruling: RulingView | None
    findings: tuple[FindingView, ...]
    actions: tuple[str, ...]
    ending: str
    created: UnixTime
    updated: UnixTime
    timeline: tuple[LineView, ...] = ()


class CaseList(Response, frozen=True, kw_only=True):
    """Cases, those first that wait longest; without timelines."""

    cases: tuple[CaseView, ...]


class CaseText(Request, frozen=True, kw_only=True):
    """A reason, told to the parties."""

    text: Terms = ""


class CaseExtension(Request, frozen=True, kw_only=True):
    """More time to decide, once."""

    blocks: Blocks
    text: Terms = ""


class CaseLine(Request, frozen=True, kw_only=True):
    """A line of chat to one party."""

    side: SideName
    text: Line


class QuoteRequest(Request, frozen=True, kw_only=True):
    """A decision to look at first: the buyer's share of the amount, and the part of the loser's deposit to forfeit."""

    buyer_share_ppm: Ppm
    forfeit_ppm: Ppm = 0
    fee_rate_sats_per_kvb: FeeRate | None = None


class QuoteView(Response, frozen=True, kw_only=True):
    """What a decision pays to whom, to the satoshi."""

    buyer_share_ppm: int
    forfeit_ppm: int
    buyer_sats: Sats
    seller_sats: Sats
    arbiter_sats: Sats
    mining_fee_sats: Sats
    fee_rate_sats_per_kvb: int
    escrow_value_sats: Sats = 0


class PreviewRow(Response, frozen=True, kw_only=True):
    """One decision to look at. `quote` is None, and `trouble` tells why, for one that the contract does not allow."""

    label: str
    buyer_share_ppm: int
    quote: QuoteView | None
    trouble: str = ""


class Preview(Response, frozen=True, kw_only=True):
    """Decisions side by side, to the satoshi."""

    case: str
    escrow_value_sats: Sats
    rows: tuple[PreviewRow, ...]


class RuleRequest(QuoteRequest, frozen=True, kw_only=True):
    """A decision. `buyer_sats` and `seller_sats` are what the quote said: the second look. It can't be taken back."""

    reason: ReasonName
    text: Line
    buyer_sats: Sats
    seller_sats: Sats


class Verified(Response, frozen=True, kw_only=True):
    """What a bundle proves. `findings` names who broke the contract or the protocol where the record shows it."""

    network: str
    contract_id: str
    buyer: str
    seller: str
    messages: int
    left_out: int
    buyer_phase: str
    seller_phase: str
    claims: tuple[str, ...]
    rulings: tuple[str, ...]
    attachments: tuple[AttachmentView, ...]
    findings: tuple[FindingView, ...]
