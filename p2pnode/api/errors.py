"""What can be wrong with a request itself, and how errors become RFC 9457 problem documents.

`type` is `urn:p2pnode:error:<code>`. The HTTP status tells machines the class of the error, `code` which it is, `fault`
and `action` what to make of it; `detail` is one line for a person. An exception that is no P2PError says nothing of
itself to the outside: its text may hold anything.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Literal

from p2pnode.api.schema import Problem
from p2pnode.api.services import AmbiguousId, RoleMissing
from protocol.errors import (
    Action,
    ChainError,
    Fault,
    IllegalTransition,
    LocalError,
    NotFound,
    P2PError,
    PeerRefusal,
    PeerViolation,
    UserError,
)


class BadRequest(UserError):
    """The request does not have the form that this route asks for."""

    code = 3140


class NotAuthorized(UserError):
    """The request carries no valid login: the cookie file has it, and it changes with every start of the node."""

    code = 3141


class ForeignOrigin(UserError):
    """The request comes from another site, or names another host than this machine."""

    code = 3142


class KeyMissing(UserError):
    """A write needs the header Idempotency-Key: 8 to 128 letters, digits, - or _, new for each write."""

    code = 3143


class KeyReused(UserError):
    """That idempotency key was used for another write: take a new one."""

    code = 3144


class NoSuchRoute(NotFound):
    """There is no such resource or method in this API: see /api/v1/openapi.json."""

    code = 3145


class BodyTooLarge(UserError):
    """The request's body is too large."""

    code = 3146


class Busy(LocalError):
    """This node has as many listeners as it takes: close one, or try again later."""

    code = 1031
    action = Action.RETRY


class OutcomeUnknown(LocalError):
    """This write was begun and interrupted: look whether it was done, then repeat it under a new key if not."""

    code = 1032


class InternalError(LocalError):
    """Something went wrong in this node; its log says what."""

    code = 1033


class Stopping(LocalError):
    """The node is shutting down."""

    code = 1034
    action = Action.RETRY


# The first class that fits decides; the order matters.
_STATUS: Final[tuple[tuple[type[P2PError], HTTPStatus], ...]] = (
    (NotAuthorized, HTTPStatus.UNAUTHORIZED),
    (ForeignOrigin, HTTPStatus.FORBIDDEN),
    (RoleMissing, HTTPStatus.FORBIDDEN),
    (BadRequest, HTTPStatus.BAD_REQUEST),
    (KeyMissing, HTTPStatus.BAD_REQUEST),
    (BodyTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (NotFound, HTTPStatus.NOT_FOUND),
    (AmbiguousId, HTTPStatus.CONFLICT),
    (OutcomeUnknown, HTTPStatus.CONFLICT),
    (IllegalTransition, HTTPStatus.CONFLICT),
    (PeerRefusal, HTTPStatus.CONFLICT),
    (UserError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (PeerViolation, HTTPStatus.BAD_GATEWAY),
    (ChainError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    (Stopping, HTTPStatus.SERVICE_UNAVAILABLE),
)

_FAULTS: Final[dict[Fault, Literal["peer", "user", "chain", "ours"]]] = {
    Fault.PEER: "peer",
    Fault.USER: "user",
    Fault.CHAIN: "chain",
    Fault.OURS: "ours",
}


def status_of(error: P2PError) -> HTTPStatus:
    """The HTTP status of an error."""
    fits = (status for kind, status in _STATUS if isinstance(error, kind))
    return next(fits, HTTPStatus.INTERNAL_SERVER_ERROR)


def problem_of(error: P2PError, instance: str | None = None) -> Problem:
    """The problem document of an error; `instance` is the path that was asked for."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    return Problem(
        type=f"urn:p2pnode:error:{error.code}",
        title=title,
        status=status_of(error),
        detail=error.detail,
        code=error.code,
        fault=_FAULTS[error.fault],
        action=error.action.value,
        instance=instance,
    )
