"""What the types of the local API are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from protocol.types import UnixTime

IdText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8,64}\Z", description="An id in hex, or its first 8 digits or more")]
PersonaText = Annotated[str, Meta(min_length=20, max_length=80, description="A persona: persona1...")]
AddressText = Annotated[str, Meta(min_length=6, max_length=100, description="A Bitcoin address")]
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


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every request body is: strict."""


class Response(Struct, frozen=True, kw_only=True):
    """What every response body is: it may grow."""


class DeadlineView(Response, frozen=True, kw_only=True):
    """Something ends or begins with a block. The height decides; `estimated_at` is an estimate for people.

    `blocks` are counted from our best block (negative: past). Without a height the deadline is one of the clock.
    """

    name: str
    height: int | None
    blocks: int | None
    estimated_at: UnixTime
