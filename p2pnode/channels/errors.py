"""What a request to a peer can end in, other than a reply."""

from __future__ import annotations

from protocol.errors import Action, LocalError, P2PError, PeerRefusal, UserError


class Unreachable(LocalError):
    """The peer can't be reached now."""

    code = 1410
    action = Action.RETRY

    def __init__(self, detail: str | None = None, *, maybe_received: bool = False) -> None:
        """`maybe_received`: the peer may have acted on the request; otherwise it certainly did not."""
        super().__init__(detail)
        self.maybe_received = maybe_received


class NotTaken(Unreachable):
    """The session ended before the peer saw the request, which can be made on another one."""

    code = 1413


class TimedOut(LocalError):
    """The peer did not answer in time; whether it acted on the request is not known."""

    code = 1411
    action = Action.RETRY


class PeerUnable(P2PError):
    """The peer is too busy, or failed for reasons of its own; the same request may succeed later."""

    code = 1412
    action = Action.RETRY

    def __init__(self, peer_code: int, detail: str | None = None) -> None:
        """`peer_code` is one of `protocol.streams.ResetCode`."""
        super().__init__(detail)
        self.peer_code = peer_code


class PeerRefused(PeerRefusal):
    """The peer refused the request, and would again."""

    code = 2210

    def __init__(self, peer_code: int, detail: str | None = None) -> None:
        """`peer_code` is the error's code on the peer's side, or UNKNOWN_SERVICE or TOO_LARGE of ResetCode."""
        super().__init__(detail or f"the peer refused the request (its code: {peer_code})")
        self.peer_code = peer_code


class CannotListen(UserError):
    """The address to listen on can't be used."""

    code = 3410
