"""The second factor: codes of another device for what moves coins."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pnode.api.schema.base import Request, Response


class FactorView(Response, frozen=True, kw_only=True):
    """Whether codes are asked for (`pending`: a device was given the secret and has not shown a code yet)."""

    state: Literal["off", "pending", "on"]
    recovery_left: int = 0


class FactorSecret(Response, frozen=True, kw_only=True):
    """What the device needs. It is told once."""

    secret: str
    uri: str
    """`otpauth:`, to be shown as a QR code."""


class FactorConfirm(Request, frozen=True, kw_only=True):
    """The first code of the device."""

    code: Annotated[str, Meta(pattern=r"\A[0-9]{6}\Z", description="The six digits that the device shows")]


class RecoveryCodes(Response, frozen=True, kw_only=True):
    """Each stands in for the device once. They are told once."""

    codes: tuple[str, ...]
