"""Trades and what each side does in them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from p2pnode.api.schema.base import ActionName, DeadlineView, Request, Response, SideName
from protocol.types import FeeRate, Sats, UnixTime


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
    payout_address: str | None = None
    """Where the contract pays our part of a release to."""
    payout_outside: bool = False
    """Whether that is an address that was named for this trade, and not the wallet's."""
    deadlines: tuple[DeadlineView, ...] = ()
    """What ends or begins next, soonest first."""
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


class RaiseFeeRequest(Request, frozen=True, kw_only=True):
    """The rate at which both sign an agreed payout again. None: what the chain asks now."""

    fee_rate_sats_per_kvb: FeeRate | None = None


class Empty(Request, frozen=True, kw_only=True):
    """A write that needs no more than its path."""
