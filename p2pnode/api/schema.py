"""The types of the local API: every request and response, as JSON and in the OpenAPI document.

Bitcoin amounts are integer satoshis, in fields that end in `_sats`. Money of a counter currency comes twice: as a
decimal text in whole units for people (`price`, `volume`), and as an integer whose name has the unit
(`price_minor_per_btc`, `volume_minor`). Ids, keys and scripts are text: personas and nodes in their checked form
(`persona1...`, `node1...`), txids as explorers show them, everything else in hex. Times are Unix seconds.

Requests refuse unknown fields. Responses may gain fields; none is ever removed or changes its meaning under `/api/v1`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from escrow.wallet.base import LabelKind
from p2pnode.money import format_minor, parse_minor
from protocol.errors import UserError
from protocol.offer import MAX_OFFER_LIFETIME, FixedPrice, MarketPrice, Price
from protocol.types import (
    Blocks,
    CurrencyCode,
    FeeRate,
    MethodCode,
    PositiveSats,
    Ppm,
    Sats,
    SignedPpm,
    Terms,
    UnixTime,
)

IdText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8,64}\Z", description="An id in hex, or its first 8 digits or more")]
PersonaText = Annotated[str, Meta(min_length=20, max_length=80, description="A persona: persona1...")]
DecimalText = Annotated[str, Meta(pattern=r"\A[0-9]{1,19}(\.[0-9]{1,18})?\Z", description="A decimal number")]
Cursor = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[int, Meta(ge=0, le=2**31)]
DetailMap = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=32)],
        Annotated[str, Meta(min_length=1, max_length=500)],
    ],
    Meta(max_length=16, description="Payment details: field names and values, such as iban and holder"),
]

TxidText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="A txid, as explorers show it")]
CoinText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}:[0-9]{1,9}\Z", description="A coin: txid:number")]
Coins = Annotated[tuple[CoinText, ...], Meta(max_length=500)]

SideName = Literal["buy", "sell"]
NetworkName = Literal["mainnet", "testnet", "signet", "regtest"]
ActionName = Literal["pay", "release", "cancel"]


class BadOffer(UserError):
    """The offer can't be made like this."""

    code = 3040


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every request body is: strict."""


class Response(Struct, frozen=True, kw_only=True):
    """What every response body is: it may grow."""


# --- the node ----------------------------------------------------------------------------------------------------


class ChainView(Response, frozen=True, kw_only=True):
    """The Bitcoin backend. `health` is starting, syncing, ready or unreachable, `detail` why it is not ready."""

    backend: str
    health: str
    height: int | None
    tip: str | None
    detail: str = ""


class DhtView(Response, frozen=True, kw_only=True):
    """The node's place in the DHT; `network_size` is an estimate."""

    peers: int
    records: int
    network_size: int


class NodeView(Response, frozen=True, kw_only=True):
    """Who and where this node is, and how it does."""

    version: str
    network: NetworkName
    node: str
    persona: str | None
    roles: tuple[str, ...]
    listen: tuple[str, ...]
    data_dir: str
    pid: int
    uptime_seconds: int
    sessions: int
    chain: ChainView | None
    dht: DhtView
    open_trades: int
    open_offers: int
    api: str = ""
    """Where this API answers; the API itself fills it in."""


class StopView(Response, frozen=True, kw_only=True):
    """The node has begun to shut down."""

    stopping: bool = True


# --- offers ------------------------------------------------------------------------------------------------------


class MethodDetails(Request, frozen=True, kw_only=True):
    """A payment method and one's own details for it. They stay on this node until the escrow is funded."""

    method: MethodCode
    details: DetailMap


class OfferDraft(Request, frozen=True, kw_only=True):
    """An offer to publish. Exactly one of `price` and `margin_ppm` is given.

    `price` is in whole units of `currency` per bitcoin. Empty `arbiters`: the node chooses among those it knows that
    serve the offer; empty `escrow_types`: what those arbiters allow, a backup arbiter preferred.
    """

    side: SideName
    amount_min_sats: PositiveSats
    amount_max_sats: PositiveSats
    currency: CurrencyCode
    methods: Annotated[tuple[MethodDetails, ...], Meta(min_length=1, max_length=16)]
    price: DecimalText | None = None
    margin_ppm: SignedPpm | None = None
    price_limit: DecimalText | None = None
    feeds: MethodCode = "default"
    payment_window_blocks: Blocks = 144
    buyer_deposit_ppm: Ppm = 150_000
    seller_deposit_ppm: Ppm = 150_000
    arbiters: Annotated[tuple[PersonaText, ...], Meta(max_length=8)] = ()
    escrow_types: Annotated[tuple[Literal[1, 2], ...], Meta(max_length=4)] = ()
    backup_delay_blocks: Blocks = 1008
    confirmations: Annotated[int, Meta(ge=1, le=100)] = 1
    terms: Terms = ""
    min_completed_trades: Annotated[int, Meta(ge=0, le=10_000)] = 0
    lifetime_seconds: Annotated[int, Meta(ge=60, le=MAX_OFFER_LIFETIME)] = 7 * 86_400

    def protocol_price(self) -> Price:
        """The price as offers carry it. Raises BadOffer, BadPrice."""
        return _price(self.currency, self.price, self.margin_ppm, self.price_limit, self.feeds)


class OfferEdit(Request, frozen=True, kw_only=True):
    """What to change of an offer; None leaves a field as it is. Side and currency can't change.

    A `price` replaces a margin and the other way round; `price_limit` belongs to a margin.
    """

    amount_min_sats: PositiveSats | None = None
    amount_max_sats: PositiveSats | None = None
    methods: Annotated[tuple[MethodDetails, ...], Meta(min_length=1, max_length=16)] | None = None
    price: DecimalText | None = None
    margin_ppm: SignedPpm | None = None
    price_limit: DecimalText | None = None
    payment_window_blocks: Blocks | None = None
    buyer_deposit_ppm: Ppm | None = None
    seller_deposit_ppm: Ppm | None = None
    arbiters: Annotated[tuple[PersonaText, ...], Meta(min_length=1, max_length=8)] | None = None
    confirmations: Annotated[int, Meta(ge=1, le=100)] | None = None
    terms: Terms | None = None
    min_completed_trades: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    lifetime_seconds: Annotated[int, Meta(ge=60, le=MAX_OFFER_LIFETIME)] | None = None

    def protocol_price(self, currency: str, present: Price) -> Price:
        """The price after the edit, given the offer's currency and present price. Raises BadOffer, BadPrice."""
        if self.price is None and self.margin_ppm is None and self.price_limit is None:
            return present
        if self.price is not None or not isinstance(present, MarketPrice):
            return _price(currency, self.price, self.margin_ppm, self.price_limit, "default")
        margin = present.margin if self.margin_ppm is None else self.margin_ppm
        limit = present.limit if self.price_limit is None else parse_minor(self.price_limit, currency)
        return MarketPrice(margin, present.feeds, limit)


class OfferFilter(Request, frozen=True, kw_only=True):
    """Which offers to list, best price first. `mine` lists one's own, newest first, the ended ones too.

    `side` is the maker's side. `amount_sats` keeps offers whose range holds it. `cursor` is the `next` of the page
    before.
    """

    mine: bool = False
    side: SideName | None = None
    currency: CurrencyCode | None = None
    method: MethodCode | None = None
    amount_sats: PositiveSats | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class OfferView(Response, frozen=True, kw_only=True):
    """An offer. `state` is open, taken, revoked or expired. `price` is None where a margin has no feed to go by."""

    id: str
    sequence: int
    maker: str
    mine: bool
    state: str
    side: SideName
    amount_min_sats: Sats
    amount_max_sats: Sats
    currency: str
    price: str | None
    price_minor_per_btc: int | None
    margin_ppm: int | None
    price_limit_minor_per_btc: int | None
    methods: tuple[str, ...]
    payment_window_blocks: int
    buyer_deposit_ppm: int
    seller_deposit_ppm: int
    arbiters: tuple[str, ...]
    escrow_types: tuple[int, ...]
    backup_delay_blocks: int
    confirmations: int
    terms: str
    min_completed_trades: int
    created: UnixTime
    expires: UnixTime
    stored_on: int | None = None
    """Nodes of the DHT that took the record when it was last published, where this node published it."""


class OfferPage(Response, frozen=True, kw_only=True):
    """Offers, and the cursor of the next page (None: this was the last)."""

    offers: tuple[OfferView, ...]
    next: str | None = None


class TakeRequest(Request, frozen=True, kw_only=True):
    """A take. `amount_sats` may be None when the offer has one amount only.

    `sequence` or `price` guard against an edit since the offer was looked at: the take is refused when they differ.
    None for an arbiter or the escrow type: the maker's first choice.
    """

    amount_sats: PositiveSats | None = None
    method: MethodCode
    details: DetailMap
    sequence: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    price: DecimalText | None = None
    arbiter: PersonaText | None = None
    backup: PersonaText | None = None
    escrow_type: Literal[1, 2] | None = None
    fee_rate_sats_per_kvb: FeeRate | None = None


# --- trades ------------------------------------------------------------------------------------------------------


class EscrowView(Response, frozen=True, kw_only=True):
    """What a trade has on the chain. A depth is None while unseen, 0 in the mempool, else confirmations."""

    type: int
    contract_id: str | None = None
    script: str | None = None
    """The witness script, in hex."""
    address: str | None = None
    value_sats: int | None = None
    funding_txid: str | None = None
    vout: int | None = None
    funding_fee_sats: int | None = None
    funding_depth: int | None = None
    payout_txid: str | None = None
    payout_fee_sats: int | None = None
    payout_depth: int | None = None


class StepView(Response, frozen=True, kw_only=True):
    """One recorded step of a trade: when, what happened, and the phase that it led to."""

    at: UnixTime
    event: str
    phase: str


class TradeView(Response, frozen=True, kw_only=True):
    """A trade as this node knows it.

    `phase` is the phase's name in kebab-case (`signing-funding`); `open` until nothing more is asked of anybody.
    `side` is ours. `actions` are what the user may do now, `hint` one line on what is awaited and from whom.
    `peer_details` are the counterparty's payment details, once opened. `steps` are only in the answer for one trade.
    """

    id: str
    offer_id: str
    phase: str
    open: bool
    side: SideName
    seat: Literal["maker", "taker"]
    peer: str
    amount_sats: Sats
    currency: str
    price: str
    price_minor_per_btc: int
    volume: str
    volume_minor: int
    method: str
    buyer_deposit_sats: Sats
    seller_deposit_sats: Sats
    arbiter: str
    backup: str | None
    confirmations_required: int
    payment_window_blocks: int
    escrow: EscrowView
    own_details: dict[str, str] = field(default_factory=dict)
    peer_details: dict[str, str] = field(default_factory=dict)
    payment_note: str = ""
    window_passed: bool = False
    actions: tuple[ActionName, ...] = ()
    hint: str = ""
    ending: str = ""
    outcome: str = ""
    """How the escrow was paid out, once that is on the chain: released, settled, cancelled by both, ruled by whom."""
    disputed: bool = False
    window_ends_height: int | None = None
    """The block with which the buyer's time to pay is over."""
    messages_sent: int = 0
    messages_received: int = 0
    unacknowledged: int = 0
    """Messages of ours that the peer has not confirmed to have stored."""
    created: UnixTime
    updated: UnixTime
    steps: tuple[StepView, ...] = ()


class TradeList(Response, frozen=True, kw_only=True):
    """Trades, newest first."""

    trades: tuple[TradeView, ...]


class PayRequest(Request, frozen=True, kw_only=True):
    """The buyer says to have paid."""

    note: Annotated[str, Meta(max_length=140)] = ""


class CancelRequest(Request, frozen=True, kw_only=True):
    """A reason, shown to the counterparty."""

    reason: Annotated[str, Meta(max_length=200)] = ""


class Empty(Request, frozen=True, kw_only=True):
    """A write that needs no more than its path."""


# --- the wallet --------------------------------------------------------------------------------------------------


class BalanceView(Response, frozen=True, kw_only=True):
    """Satoshis by what can be done with them (`escrow.wallet.base.Balance`).

    `escrow_sats` lie in the funded escrows of open trades; `escrow_own_sats` of them are what we put in.
    """

    spendable_sats: Sats
    confirmed_sats: Sats
    pending_sats: Sats
    immature_sats: Sats
    reserved_sats: Sats
    frozen_sats: Sats = 0
    escrow_sats: Sats = 0
    escrow_own_sats: Sats = 0


class AddressRequest(Request, frozen=True, kw_only=True):
    """A label for a fresh address; it stays on this node."""

    label: Annotated[str, Meta(max_length=200)] = ""


class AddressView(Response, frozen=True, kw_only=True):
    """An address that was handed out; it never is again."""

    address: str
    index: int
    label: str


class UtxoView(Response, frozen=True, kw_only=True):
    """An unspent coin. `trade` is the id of the trade that it is reserved for. `label` is its own or its address's."""

    txid: str
    vout: int
    value_sats: Sats
    address: str | None
    confirmations: int
    trade: str | None
    change: bool
    frozen: bool = False
    label: str = ""


class UtxoList(Response, frozen=True, kw_only=True):
    """Unspent coins, largest first."""

    utxos: tuple[UtxoView, ...]


class HistoryEntryView(Response, frozen=True, kw_only=True):
    """A transaction that moved our coins. `net_sats` is what we gained (negative: lost), fee included."""

    txid: str
    net_sats: int
    fee_sats: int | None
    height: int | None
    time: UnixTime
    label: str = ""


class HistoryView(Response, frozen=True, kw_only=True):
    """Transactions of the wallet, newest first."""

    entries: tuple[HistoryEntryView, ...]


class SendRequest(Request, frozen=True, kw_only=True):
    """A payment: `amount_sats`, or None for everything that is spendable (then the fee comes out of it).

    With `coins` it is made of exactly these coins.
    """

    address: Annotated[str, Meta(min_length=8, max_length=100)]
    amount_sats: PositiveSats | None
    fee_rate_sats_per_kvb: FeeRate | None = None
    coins: Coins = ()


class SentView(Response, frozen=True, kw_only=True):
    """A payment that was broadcast."""

    txid: str
    amount_sats: Sats
    fee_sats: Sats


class ConsolidateRequest(Request, frozen=True, kw_only=True):
    """Make one coin of all spendable ones, of those `below_sats`, or of `coins`."""

    below_sats: PositiveSats | None = None
    coins: Coins = ()
    fee_rate_sats_per_kvb: FeeRate | None = None


class BumpRequest(Request, frozen=True, kw_only=True):
    """A transaction that waits, and the fee rate that miners shall get for it."""

    txid: TxidText
    fee_rate_sats_per_kvb: FeeRate | None = None


class BumpView(Response, frozen=True, kw_only=True):
    """What was sent to raise a fee: a transaction that `replaced` the other, or a `child` that pays for it."""

    txid: str
    fee_sats: Sats
    how: Literal["replaced", "child"]


class FreezeRequest(Request, frozen=True, kw_only=True):
    """Coins to set aside, or (`frozen` false) to give back."""

    coins: Coins
    frozen: bool = True


class LabelRecord(Request, frozen=True, kw_only=True):
    """One record of BIP329. An `output` with `spendable` false is frozen."""

    type: LabelKind
    ref: Annotated[str, Meta(min_length=1, max_length=200)]
    label: Annotated[str, Meta(max_length=255)] = ""
    origin: Annotated[str, Meta(max_length=200)] | None = None
    spendable: bool | None = None


class LabelImport(Request, frozen=True, kw_only=True):
    """Labels to keep, each in the place of the one with its type and reference; an empty text deletes."""

    labels: Annotated[tuple[LabelRecord, ...], Meta(max_length=1_000)]


class LabelList(Response, frozen=True, kw_only=True):
    """All labels."""

    labels: tuple[LabelRecord, ...]


class DescriptorsView(Response, frozen=True, kw_only=True):
    """The wallet's public descriptors (BIP380): receiving addresses, and change."""

    external: str
    internal: str


# --- peers, arbiters ---------------------------------------------------------------------------------------------


class PeerView(Response, frozen=True, kw_only=True):
    """A node that this one knows. `via` is `dht` (a contact in the routing table) or `channel` (an open session)."""

    node: str | None
    address: str
    via: Literal["dht", "channel"]
    outgoing: bool | None = None
    last_seen: UnixTime | None = None
    rtt_ms: int | None = None


class PeerList(Response, frozen=True, kw_only=True):
    """Peers, the open sessions first."""

    peers: tuple[PeerView, ...]


class PeerAdd(Request, frozen=True, kw_only=True):
    """A node to get to know: `node1...@host:port`, or `host:port`."""

    address: Annotated[str, Meta(min_length=3, max_length=400)]


class AnnounceRequest(Request, frozen=True, kw_only=True):
    """The terms on which this node's persona serves as an arbiter. Empty lists mean any."""

    fee_ppm: Ppm
    fee_floor_sats: Sats = 0
    fee_cap_sats: Sats = 10_000_000
    currencies: Annotated[tuple[CurrencyCode, ...], Meta(max_length=64)] = ()
    methods: Annotated[tuple[MethodCode, ...], Meta(max_length=64)] = ()
    languages: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[a-z]{2,3}\Z")], ...], Meta(min_length=1, max_length=16)
    ] = ("en",)
    max_amount_sats: PositiveSats = 100_000_000
    response_blocks: Blocks = 144
    policy: Terms = ""
    lifetime_seconds: Annotated[int, Meta(ge=3_600, le=400 * 86_400)] = 365 * 86_400


class ArbiterView(Response, frozen=True, kw_only=True):
    """An arbiter as its newest announcement describes it."""

    persona: str
    announcement: str
    mine: bool
    fee_ppm: int
    fee_floor_sats: Sats
    fee_cap_sats: Sats
    currencies: tuple[str, ...]
    methods: tuple[str, ...]
    languages: tuple[str, ...]
    max_amount_sats: Sats
    response_blocks: int
    policy: str
    bond_sats: Sats | None
    created: UnixTime
    expires: UnixTime


class ArbiterList(Response, frozen=True, kw_only=True):
    """Arbiters that this node knows of."""

    arbiters: tuple[ArbiterView, ...]


# --- events ------------------------------------------------------------------------------------------------------


class EventView(Response, frozen=True, kw_only=True):
    """Something that happened. `number` grows; `topic` is stable; a trade's events name the phase it is now in."""

    number: Cursor
    at: UnixTime
    topic: str
    trade: str | None = None
    offer: str | None = None
    phase: str | None = None


class EventPage(Response, frozen=True, kw_only=True):
    """Events in order, and the cursor to ask with next."""

    events: tuple[EventView, ...]
    next: Cursor


# --- errors ------------------------------------------------------------------------------------------------------


class Problem(Response, frozen=True, kw_only=True):
    """An RFC 9457 problem document. `code` is stable; `fault` and `action` are those of the error (protocol/errors)."""

    type: str
    title: str
    status: int
    detail: str
    code: int
    fault: Literal["peer", "user", "chain", "ours"]
    action: str
    instance: str | None = None


def price_text(price_minor_per_btc: int | None, currency: str) -> str | None:
    """A price as views show it; None stays None."""
    return None if price_minor_per_btc is None else format_minor(price_minor_per_btc, currency)


def _price(currency: str, price: str | None, margin: int | None, limit: str | None, feeds: str) -> Price:
    if (price is None) == (margin is None):
        raise BadOffer("give a price or a margin on the market price: exactly one of the two")
    if price is not None:
        if limit is not None:
            raise BadOffer("a price limit belongs to a margin; a fixed price has none")
        return FixedPrice(parse_minor(price, currency))
    return MarketPrice(margin or 0, feeds, None if limit is None else parse_minor(limit, currency))
