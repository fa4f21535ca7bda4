"""Personas and what is known of them, receipts and ratings of own trades, and own bonds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pnode.api.schema.base import PersonaText, Request, Response
from protocol.types import FeeRate, PositiveSats, Sats, UnixTime

MarkName = Literal["bad", "neutral", "good"]
StandingName = Literal["", "trusted", "blocked"]
EndingName = Literal["released", "settled", "ruled"]
BondStateName = Literal["waiting", "standing", "free", "spent"]


class PersonaQuery(Request, frozen=True, kw_only=True):
    """Which persona."""

    persona: PersonaText


class NoteRequest(Request, frozen=True, kw_only=True):
    """A note for the user alone; an empty one deletes."""

    persona: PersonaText
    note: Annotated[str, Meta(max_length=500)] = ""


class StandingRequest(Request, frozen=True, kw_only=True):
    """Trust a persona (limits for strangers do not apply), block it, or neither (empty)."""

    persona: PersonaText
    standing: StandingName = ""


class ReceiptLine(Response, frozen=True, kw_only=True):
    """One trade that our own chain has proved. `blocks`: for how long its coins were locked."""

    counterparty: str
    ending: EndingName
    value_sats: Sats
    fee_sats: Sats
    blocks: int
    height: int


class RatingLine(Response, frozen=True, kw_only=True):
    """What a counterparty says of the persona, with a proved receipt. `credit`: points of that trade."""

    rater: str
    mark: MarkName
    text: str
    created: UnixTime
    credit: int


class BondLine(Response, frozen=True, kw_only=True):
    """A bond that stands on our own chain. `worth_sat_years`: amount times remaining time."""

    txid: str
    vout: int
    value_sats: Sats
    lock_height: int
    worth_sat_years: int


class PersonaView(Response, frozen=True, kw_only=True):
    """A persona: the user's own word on it, and what our own chain proves of its history.

    `known`: new (nothing is known, neither good nor bad), known, forged (one escrow was shown for several personas), or
    exposed (an arbiter that gave two rulings in one contract). `score` and the `forging_*` fields: SPEC section 14.4.
    """

    persona: str
    mine: bool
    known: Literal["new", "known", "forged", "exposed"]
    standing: StandingName
    note: str
    trades_with_us: int
    score: int
    completed: int
    settled: int
    ruled: int
    counterparties: int
    good: int
    neutral: int
    bad: int
    unproved: int
    rulings_in_time: int
    rulings_late: int
    first_height: int | None
    forging_fee_sats: Sats
    forging_locked_sats: Sats
    forging_blocks: int
    bond: BondLine | None
    arbiter: bool
    receipts: tuple[ReceiptLine, ...]
    ratings: tuple[RatingLine, ...]


class AcquaintanceView(Response, frozen=True, kw_only=True):
    """What the user says of a persona."""

    persona: str
    standing: StandingName
    note: str
    updated: UnixTime


class PersonaList(Response, frozen=True, kw_only=True):
    """Everybody the user has said something of, the newest first."""

    personas: tuple[AcquaintanceView, ...]


class ReceiptView(Response, frozen=True, kw_only=True):
    """The receipt of one of our trades: who signed, who consents to its publication, and what we say of it."""

    trade: str
    counterparty: str
    ending: EndingName | None
    signed_by_us: bool
    signed_by_peer: bool
    public_for_us: bool
    public_for_peer: bool
    published: bool
    mark: MarkName | None
    text: str
    funding_txid: str | None
    payout_txid: str | None


class PublishRequest(Request, frozen=True, kw_only=True):
    """Consent to the publication of one trade's receipt. It can't be taken back."""

    publish: Literal[True]


class RateRequest(Request, frozen=True, kw_only=True):
    """What we think of the counterparty. Others see it once both consent to the receipt's publication."""

    mark: MarkName
    text: Annotated[str, Meta(max_length=120)] = ""


class BondRequest(Request, frozen=True, kw_only=True):
    """Lock coins for the node's persona, until a block, or for a number of blocks; rounded up to a lock height."""

    amount_sats: PositiveSats
    until_height: Annotated[int, Meta(ge=1, le=499_999_999)] | None = None
    blocks: Annotated[int, Meta(ge=1, le=210_000)] | None = None
    fee_rate_sats_per_kvb: FeeRate | None = None


class BondSpend(Request, frozen=True, kw_only=True):
    """Take a bond back, to an address or to a fresh one of the wallet."""

    address: Annotated[str, Meta(max_length=90)] | None = None
    fee_rate_sats_per_kvb: FeeRate | None = None


class BondSearch(Request, frozen=True, kw_only=True):
    """Find bonds from the mnemonic, in blocks from a height on."""

    from_height: Annotated[int, Meta(ge=0, le=499_999_999)] = 0


class BondView(Response, frozen=True, kw_only=True):
    """A bond of ours. `state`: waiting, standing, free (its height has come), or spent."""

    txid: str
    vout: int
    persona: str
    value_sats: Sats
    lock_height: int
    height: int | None
    state: BondStateName
    blocks_left: int
    worth_sat_years: int
    spent_by: str | None


class BondList(Response, frozen=True, kw_only=True):
    """All of them, those first that are locked longest. `tip`: the height that `blocks_left` counts from."""

    bonds: tuple[BondView, ...]
    tip: int
