"""The node's own coins."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from escrow.wallet.base import LabelKind
from p2pnode.api.schema.base import Coins, Request, Response, TxidText
from protocol.types import FeeRate, PositiveSats, Sats, UnixTime


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
