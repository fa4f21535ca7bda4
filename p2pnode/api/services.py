"""What the API's routes ask for; `p2pnode.app` gives it to them.

Every method is a coroutine that takes and returns values of `schema`. What can't be done is a P2PError. The rule for
those that write: *an error of the P2PError family means that nothing was changed, or that doing it again is harmless*.
The routes rely on it: such a request may be sent again under its idempotency key. Any other exception counts as "the
outcome is not known" and is never retried.

An id argument (`offer`, `trade`) is 8 to 64 hex digits: the whole id or the beginning of it. Raise NotFound when
nothing fits and AmbiguousId when more than one does, also when two makers use the same offer id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.api.schema import (
    AddressRequest,
    AddressView,
    AnnounceRequest,
    ArbiterList,
    ArbiterView,
    BalanceView,
    BumpRequest,
    BumpView,
    CancelRequest,
    ConsolidateRequest,
    DescriptorsView,
    EventView,
    FactorSecret,
    FactorView,
    FreezeRequest,
    HistoryView,
    LabelImport,
    LabelList,
    NodeView,
    OfferDraft,
    OfferEdit,
    OfferFilter,
    OfferPage,
    OfferView,
    PayRequest,
    PeerAdd,
    PeerList,
    PeerView,
    RaiseFeeRequest,
    RecoveryCodes,
    SendRequest,
    SentView,
    TakeRequest,
    TradeList,
    TradeView,
    UtxoList,
)
from p2pnode.api.schema import personas as p
from p2pnode.web.sessions import Session
from protocol.errors import UserError


class AmbiguousId(UserError):
    """More than one thing has an id that begins like this: give more of it."""

    code = 3002


class RoleMissing(UserError):
    """This node does not play that role: switch it on in its configuration and start it again."""

    code = 3003


class Node(Protocol):
    """The daemon itself."""

    async def info(self) -> NodeView:
        """Who, where and how it is. Never waits for the network."""
        ...

    async def stop(self) -> None:
        """Begin to shut down; returns at once, the answer is still sent."""
        ...


class Offers(Protocol):
    """One's own offers and the book."""

    async def create(self, draft: OfferDraft) -> OfferView:
        """Sign and publish; returns once the record is in the store and was handed to the DHT.

        Raises BadOffer, BadPrice, and others of the user's or the DHT's.
        """
        ...

    async def find(self, wanted: OfferFilter) -> OfferPage:
        """The book (of the market asked for, looked up in the DHT when it is stale), or one's own offers."""
        ...

    async def show(self, offer: str) -> OfferView:
        """One offer, own or of the book."""
        ...

    async def edit(self, offer: str, changes: OfferEdit) -> OfferView:
        """Publish the next version of an own offer."""
        ...

    async def revoke(self, offer: str) -> OfferView:
        """Withdraw an own offer; again is fine."""
        ...

    async def take(self, offer: str, request: TakeRequest) -> TradeView:
        """Begin a trade; returns once the take is recorded, before the maker answers."""
        ...


class Trades(Protocol):
    """Trades, open and ended."""

    async def list(self, *, open_only: bool) -> TradeList:
        """Newest first, without steps."""
        ...

    async def show(self, trade: str) -> TradeView:
        """One trade, with its steps."""
        ...

    async def pay(self, trade: str, request: PayRequest) -> TradeView:
        """Buyer: declare the payment. Raises IllegalTransition when the trade is not there (yet, or any more)."""
        ...

    async def release(self, trade: str) -> TradeView:
        """Seller: give the coins. Raises IllegalTransition."""
        ...

    async def raise_fee(self, trade: str, request: RaiseFeeRequest) -> TradeView:
        """Sign an agreed payout that waits again, at a higher fee rate. Raises IllegalTransition."""
        ...

    async def cancel(self, trade: str, request: CancelRequest) -> TradeView:
        """Leave a trade that is not funded. Raises IllegalTransition."""
        ...


class WalletService(Protocol):
    """The user's coins."""

    async def balance(self) -> BalanceView:
        """The present balance."""
        ...

    async def address(self, request: AddressRequest) -> AddressView:
        """A fresh receiving address."""
        ...

    async def utxos(self) -> UtxoList:
        """All unspent coins, largest first."""
        ...

    async def history(self, limit: int) -> HistoryView:
        """The newest `limit` transactions."""
        ...

    async def send(self, request: SendRequest) -> SentView:
        """Pay out of what is spendable, or of the coins that are named."""
        ...

    async def consolidate(self, request: ConsolidateRequest) -> SentView:
        """Make one coin of many."""
        ...

    async def bump(self, request: BumpRequest) -> BumpView:
        """Raise the fee of a transaction that waits."""
        ...

    async def freeze(self, request: FreezeRequest) -> UtxoList:
        """Set coins aside, or give them back; all coins are the answer."""
        ...

    async def labels(self) -> LabelList:
        """All labels."""
        ...

    async def set_labels(self, request: LabelImport) -> LabelList:
        """Keep labels; all of them are the answer."""
        ...

    async def descriptors(self) -> DescriptorsView:
        """The public descriptors."""
        ...


class Peers(Protocol):
    """Other nodes."""

    async def list(self) -> PeerList:
        """Open sessions, then contacts of the routing table."""
        ...

    async def add(self, request: PeerAdd) -> PeerView:
        """Ping a node and take it into the routing table. Raises a P2PError when it does not answer."""
        ...


class Arbiters(Protocol):
    """Arbiters that this node knows, and itself as one."""

    async def announce(self, request: AnnounceRequest) -> ArbiterView:
        """Publish the next announcement of the node's own persona. Raises RoleMissing."""
        ...

    async def list(self, currency: str | None, method: str | None, language: str | None = None) -> ArbiterList:
        """Those with a living announcement that serve `currency`, `method` and `language` (None: any), best first."""
        ...


class Personas(Protocol):
    """What is known of personas, and the user's own word on them."""

    async def list(self) -> p.PersonaList:
        """Everybody the user has said something of."""
        ...

    async def show(self, persona: str) -> p.PersonaView:
        """One persona, looked up and checked on the chain. Raises BadId."""
        ...

    async def note(self, request: p.NoteRequest) -> p.PersonaView:
        """Keep a note. Raises BadId."""
        ...

    async def stand(self, request: p.StandingRequest) -> p.PersonaView:
        """Trust, block, or neither. Raises BadId."""
        ...


class TradeReceipts(Protocol):
    """Receipts and ratings of the user's own trades."""

    async def show(self, trade: str) -> p.ReceiptView:
        """The receipt of a trade."""
        ...

    async def publish(self, trade: str, request: p.PublishRequest) -> p.ReceiptView:
        """Consent to its publication. Raises NotRatable."""
        ...

    async def rate(self, trade: str, request: p.RateRequest) -> p.ReceiptView:
        """Say what one thinks of the counterparty. Raises NotRatable."""
        ...


class BondDesk(Protocol):
    """Bonds of the node's persona."""

    async def list(self) -> p.BondList:
        """All of them."""
        ...

    async def create(self, request: p.BondRequest) -> p.BondView:
        """Lock coins. Raises BadBondTerms and what a payment raises."""
        ...

    async def spend(self, bond: str, request: p.BondSpend) -> p.BondView:
        """Take one back. Raises NotFound, BondLocked, BadBondTerms, Rejected."""
        ...

    async def search(self, request: p.BondSearch) -> p.BondList:
        """Find them from the mnemonic."""
        ...


class Disputes(Protocol):
    """Settlements, disputes, extensions and chat of the user's own trades."""

    async def show(self, trade: str) -> d.DisputeView:
        """How they stand."""
        ...

    async def open(self, trade: str, request: d.DisputeRequest) -> d.DisputeView:
        """Open a dispute, or answer the counterparty's. Raises IllegalTransition."""
        ...

    async def evidence(self, trade: str, request: d.EvidenceRequest) -> d.DisputeView:
        """Show something to the arbiter. Raises IllegalTransition."""
        ...

    async def chat(self, trade: str, request: d.ChatRequest) -> d.DisputeView:
        """Write to the counterparty, or to the arbiter. Raises IllegalTransition."""
        ...

    async def settle(self, trade: str, request: d.SettleRequest) -> d.DisputeView:
        """Propose a settlement, or to cancel. Raises IllegalTransition."""
        ...

    async def accept(self, trade: str, request: d.AcceptRequest) -> d.DisputeView:
        """Accept a settlement that the counterparty proposed. Raises IllegalTransition."""
        ...

    async def extend(self, trade: str, request: d.ExtendRequest) -> d.DisputeView:
        """Buyer: ask for more time to pay; seller: give it. Raises IllegalTransition."""
        ...

    async def complete(self, trade: str) -> d.DisputeView:
        """Sign and broadcast what the arbiter ruled. Raises IllegalTransition."""
        ...

    async def bundle(self, trade: str) -> d.BundleView:
        """All that was said and signed. Raises IllegalTransition before there is a contract."""
        ...

    async def upload(self, request: d.FileUpload) -> d.AttachmentView:
        """Keep a file, to be shown. Raises NotAttachable."""
        ...

    async def exhibits(self, trade: str) -> e.EvidenceList:
        """The files that were shown."""
        ...

    async def exhibit(self, trade: str, number: int) -> e.EvidenceFile:
        """One of them. Raises NotFound."""
        ...

    async def file(self, content: str) -> d.FileData:
        """A file that is here, by its content's hash. Raises NotFound."""
        ...


class Cases(Protocol):
    """The arbiter's desk."""

    async def list(self, *, open_only: bool) -> d.CaseList:
        """The queue, those first that wait longest."""
        ...

    async def show(self, case: str) -> d.CaseView:
        """One case with all that was said."""
        ...

    async def exhibits(self, case: str) -> e.EvidenceList:
        """The files that were shown."""
        ...

    async def exhibit(self, case: str, number: int) -> e.EvidenceFile:
        """One of them. Raises NotFound."""
        ...

    async def quote(self, case: str, request: d.QuoteRequest) -> d.QuoteView:
        """What a decision would pay to whom. Raises BadPayout."""
        ...

    async def bundle(self, case: str) -> d.BundleView:
        """All that was said and signed."""
        ...

    async def accept(self, case: str) -> d.CaseView:
        """Hear the case. Raises IllegalTransition."""
        ...

    async def decline(self, case: str, request: d.CaseText) -> d.CaseView:
        """Do not decide it. Raises IllegalTransition."""
        ...

    async def extend(self, case: str, request: d.CaseExtension) -> d.CaseView:
        """Take more time, once. Raises IllegalTransition."""
        ...

    async def write(self, case: str, request: d.CaseLine) -> d.CaseView:
        """Write to one party. Raises IllegalTransition."""
        ...

    async def rule(self, case: str, request: d.RuleRequest) -> d.CaseView:
        """Decide, once and for all. Raises SecondLook, IllegalTransition, BadPayout."""
        ...


class Events(Protocol):
    """The feed. Numbers grow, without gaps that fill later; events survive a restart.

    There is at least one event for each change of a trade's phase and of an own offer's state, recorded in the same
    commit.
    """

    async def since(self, after: int, limit: int) -> Sequence[EventView]:
        """Up to `limit` events with a number over `after`, in order; at once."""
        ...

    async def last(self) -> int:
        """The number of the newest event, 0 when there is none."""
        ...

    async def wait(self, after: int) -> None:
        """Return as soon as there is an event with a number over `after`. May be cancelled."""
        ...


class Recorded(Struct, frozen=True):
    """What became of a write. `status` 0: it was begun, and its end is not known."""

    request: bytes
    status: int
    body: bytes


class Idempotency(Protocol):
    """Memory of the writes that were asked for, by their idempotency key; it survives a restart."""

    async def claim(self, key: str, request: bytes) -> Recorded | None:
        """Record that the write `request` (a 32-byte hash) begins, unless `key` is known: then return its record.

        Committed before it returns. Records may be forgotten after a day, unfinished ones never before.
        """
        ...

    async def finish(self, key: str, status: int, body: bytes) -> None:
        """Keep the answer."""
        ...

    async def forget(self, key: str) -> None:
        """The write changed nothing: the key is free again."""
        ...


class Guard(Protocol):
    """The second factor: codes of another device for what moves coins."""

    async def show(self) -> FactorView:
        """Whether codes are asked for."""
        ...

    async def begin(self) -> FactorSecret:
        """Make a secret for a device. Raises IllegalTransition when the factor is on."""
        ...

    async def confirm(self, code: str) -> RecoveryCodes:
        """Switch it on with a first code. Raises IllegalTransition, WrongCode, TooManyCodes."""
        ...

    async def remove(self) -> FactorView:
        """Switch it off; the route has asked for a code."""
        ...

    async def check(self, code: str) -> None:
        """That `code` is good now, if codes are asked for. Raises CodeNeeded, WrongCode, TooManyCodes."""
        ...


class Pages(Protocol):
    """The browsers that may see the page (`p2pnode.web.sessions`)."""

    def link(self) -> str:
        """A token that logs a browser in, once."""
        ...

    def enter(self, token: str) -> str:
        """The session's token for a link's. Raises NoSession."""
        ...

    def find(self, token: str) -> Session:
        """The session of a cookie. Raises NoSession."""
        ...

    def leave(self, token: str) -> None:
        """End a session."""
        ...


class Services(Struct, frozen=True, kw_only=True):
    """All that the API needs. What a role does not have is None, and its routes answer with RoleMissing."""

    node: Node
    peers: Peers
    arbiters: Arbiters
    events: Events
    idempotency: Idempotency
    guard: Guard
    pages: Pages
    offers: Offers | None = None
    trades: Trades | None = None
    wallet: WalletService | None = None
    disputes: Disputes | None = None
    cases: Cases | None = None
    personas: Personas | None = None
    receipts: TradeReceipts | None = None
    bonds: BondDesk | None = None
