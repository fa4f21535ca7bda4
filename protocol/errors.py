"""Every error that this system raises on purpose, by whose fault it is.

The docstring of a class is the sentence a user may read when nothing more exact was said. `code` is stable and
travels in problem documents, peer refusals and exit codes; `action` tells the driver what to do. Codes: 1000s are
ours, 2000s a peer's, 3000s the user's, 4000s the chain's. Subclasses live beside the code that raises them.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Action(Enum):
    """What the code that catches an error should do."""

    DISCONNECT = "disconnect"
    """Close the peer's session; what it sent can't be an accident of timing."""
    IGNORE = "ignore"
    """Drop the input and go on."""
    REFUSE = "refuse"
    """Answer with the error's code; the session may go on."""
    RETRY = "retry"
    """The same call may succeed later."""
    TELL_USER = "tell-user"
    """Only the user can mend this."""
    STOP = "stop"
    """Going on could lose data or money: shut down."""


class Fault(Enum):
    """Whose fault an error is."""

    PEER = "peer"
    USER = "user"
    CHAIN = "chain"
    OURS = "ours"


class P2PError(Exception):
    """Something went wrong."""

    code: ClassVar[int] = 1000
    action: ClassVar[Action] = Action.TELL_USER
    fault: ClassVar[Fault] = Fault.OURS

    def __init__(self, detail: str | None = None) -> None:
        """Keep `detail`, one line for the user; without it the class's docstring is shown."""
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(self.detail)


class LocalError(P2PError):
    """This node could not do what it should."""

    code = 1001


class DataCorrupt(LocalError):
    """Data on this node's disk is damaged; restore it from a backup."""

    code = 1002
    action = Action.STOP


class IllegalTransition(LocalError):
    """That step is not possible in the trade's present state."""

    code = 1003
    action = Action.IGNORE


class PeerViolation(P2PError):
    """The peer broke the protocol."""

    code = 2000
    action = Action.DISCONNECT
    fault = Fault.PEER


class TooLarge(PeerViolation):
    """The peer sent more bytes than the protocol allows."""

    code = 2001


class Malformed(PeerViolation):
    """The peer sent bytes that do not decode to what they claim to be."""

    code = 2002


class BadSignature(PeerViolation):
    """The peer's message was not signed by the key it claims."""

    code = 2003


class WrongNetworkEnvelope(PeerViolation):
    """The peer's message belongs to another Bitcoin network."""

    code = 2004


class UnknownKind(PeerViolation):
    """The peer sent a kind of message that must be understood and is not: one of the two nodes needs an update."""

    code = 2005
    action = Action.REFUSE


class PeerRefusal(P2PError):
    """The peer declined politely; nothing was broken."""

    code = 2100
    action = Action.REFUSE
    fault = Fault.PEER


class UserError(P2PError):
    """The request can't be carried out as given."""

    code = 3000
    fault = Fault.USER


class NotFound(UserError):
    """There is no such thing on this node."""

    code = 3001


class ChainError(P2PError):
    """The Bitcoin backend failed."""

    code = 4000
    action = Action.RETRY
    fault = Fault.CHAIN
