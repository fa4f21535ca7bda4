"""Arbiters and their announcements."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pnode.api.schema.base import Request, Response
from protocol.types import Blocks, CurrencyCode, MethodCode, PositiveSats, Ppm, Sats, Terms, UnixTime


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
    rank: int = 0
    """Its place in the list, from 1; 0 where it stands alone."""
    points: int = 0
    """The sum that it is ranked by: SPEC section 14.4."""
    why: tuple[str, ...] = ()
    """What the points are made of."""
    bond_state: str = "none"
    """What our own chain says of the bond: none, stands, spent, false, contested, or unchecked."""
    bond_lock_height: int | None = None


class ArbiterList(Response, frozen=True, kw_only=True):
    """Arbiters that this node knows of."""

    arbiters: tuple[ArbiterView, ...]
