"""What an arbiter's node knows of one case, what can happen to it, and what it asks for. Values only.

The twin of `trade_state` and `trade_events` for the third key. Chain facts are the same events as a trader's.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocol.case_messages import CasePayload
from protocol.contract import Contract
from protocol.messages import NONE_YET, Claim
from protocol.outcome import RulingOutcome
from protocol.ruling import Reason
from protocol.trade_events import (
    EscrowSpent,
    FundingConfirmed,
    FundingReorged,
    FundingSeen,
    NotifyUser,
    SpendReorged,
)
from protocol.types import Branch, Network, Side

CASE_SNAPSHOT_VERSION: Final = 1

# --- state -------------------------------------------------------------------------------------------------------


class CasePhase(Struct, frozen=True, tag=True):
    """Where a case stands. The subclasses are all the phases that there are."""


class Queued(CasePhase, frozen=True, tag=True):
    """A party has asked; the contract and its signatures hold. To be accepted or declined."""


class Hearing(CasePhase, frozen=True, tag=True):
    """Accepted: both parties may show evidence."""


class Deciding(CasePhase, frozen=True, tag=True):
    """The decision is recorded and is being signed. From here there is no way back to another decision."""


class Ruled(CasePhase, frozen=True, tag=True):
    """The ruling is signed and sent."""


class Dismissed(CasePhase, frozen=True, tag=True):
    """Declined. The arbiter has no more to do with this trade."""


class Closed(CasePhase, frozen=True, tag=True):
    """The escrow is spent, and that is buried."""


AnyCasePhase = Queued | Hearing | Deciding | Ruled | Dismissed | Closed

CASE_TERMINAL: Final = (Dismissed, Closed)


class PartyFacts(Struct, frozen=True):
    """One party in a case: its claim (None: it has not told its side), how much it showed, and its last message.

    `written` and `heard` count its lines of chat and ours to it.
    """

    claim: Claim | None = None
    evidence: int = 0
    late: int = 0
    head: bytes = NONE_YET
    written: int = 0
    heard: int = 0


class Decision(Struct, frozen=True):
    """What the arbiter decided, before it is signed; `buyer_head` and `seller_head` are what it had read."""

    outcome: RulingOutcome
    reason: Reason
    text: str
    buyer_head: bytes
    seller_head: bytes


class CaseState(Struct, frozen=True):
    """One case as the arbiter's node knows it. Depths and heights as in `trade_state.FundingFacts`."""

    trade_id: bytes
    contract_id: bytes
    network: Network
    contract: Contract
    branch: Branch
    opened_by: Side
    phase: AnyCasePhase
    buyer: PartyFacts = PartyFacts()
    seller: PartyFacts = PartyFacts()
    depth: int | None = None
    height: int | None = None
    spent_by: bytes | None = None
    spent_depth: int | None = None
    heard: bool = False
    extended: bool = False
    overdue: bool = False
    decision: Decision | None = None
    ruling: bytes | None = None
    payout_txid: bytes | None = None
    ending: str = ""

    def party(self, side: Side) -> PartyFacts:
        """The facts of one party."""
        return self.buyer if side is Side.BUY else self.seller

    def with_party(self, side: Side, facts: PartyFacts) -> CaseState:
        """The same with other facts of one party."""
        return replace(self, buyer=facts) if side is Side.BUY else replace(self, seller=facts)

    @property
    def buried(self) -> bool:
        """Whether our chain shows the escrow as deep as the contract asks, and unspent."""
        return self.depth is not None and self.depth >= self.contract.confirmations and self.spent_by is None

    @property
    def both_told(self) -> bool:
        """Whether both parties have told their side."""
        return self.buyer.claim is not None and self.seller.claim is not None


class _Snapshot(Struct, frozen=True, array_like=True):
    version: int
    state: CaseState


def dump_case(state: CaseState) -> bytes:
    """The snapshot that the store keeps."""
    return msgspec.msgpack.encode(_Snapshot(CASE_SNAPSHOT_VERSION, state))


def load_case(data: bytes) -> CaseState:
    """The state of a snapshot. Raises msgspec.DecodeError when it is damaged."""
    return msgspec.msgpack.decode(data, type=_Snapshot).state


# --- commands of the arbiter -------------------------------------------------------------------------------------


class AcceptCase(Struct, frozen=True, tag=True):
    """Queued -> Hearing. `height` is the present block."""

    height: int


class DeclineCase(Struct, frozen=True, tag=True):
    """Queued or Hearing -> Dismissed."""

    text: str


class ExtendCase(Struct, frozen=True, tag=True):
    """Take so many blocks more, once. `height` is the present block."""

    height: int
    blocks: int
    text: str


class Decide(Struct, frozen=True, tag=True):
    """Queued or Hearing -> Deciding: the one decision of this case. `fee_script` is where the fee goes."""

    buyer_share: int
    forfeit: int
    reason: Reason
    text: str
    fee_script: bytes
    rate: int


class WriteParty(Struct, frozen=True, tag=True):
    """Write to one party."""

    side: Side
    text: str


# --- messages of the parties, verified ---------------------------------------------------------------------------


class CaseOpened(Struct, frozen=True, tag=True):
    """None -> Queued; from the other party, its answer. Everything in the case file was verified."""

    message_id: bytes
    side: Side
    network: Network
    contract: Contract
    contract_id: bytes
    branch: Branch
    claim: Claim


class EvidenceReceived(Struct, frozen=True, tag=True):
    """A party shows something."""

    message_id: bytes
    side: Side


class PartyChatReceived(Struct, frozen=True, tag=True):
    """A party wrote."""

    message_id: bytes
    side: Side


# --- deadlines and results ---------------------------------------------------------------------------------------

CaseTimerName = Literal["answer", "hearing", "reminder", "ruling"]


class CaseTimerFired(Struct, frozen=True, tag=True):
    """A deadline that this case set has passed."""

    name: CaseTimerName


class RulingSigned(Struct, frozen=True, tag=True):
    """Deciding -> Ruled. The ruling's signed envelope, and the txid of its payout."""

    raw: bytes
    txid: bytes


CaseCommand = AcceptCase | DeclineCase | ExtendCase | Decide | WriteParty
PartyEvent = CaseOpened | EvidenceReceived | PartyChatReceived
CaseChainFact = FundingSeen | FundingConfirmed | FundingReorged | EscrowSpent | SpendReorged
CaseEvent = CaseCommand | PartyEvent | CaseChainFact | CaseTimerFired | RulingSigned

# --- effects -----------------------------------------------------------------------------------------------------


class SendToParty(Struct, frozen=True, tag=True):
    """Sign, chain and deliver this payload in our conversation with that party."""

    side: Side
    payload: CasePayload


class WatchCase(Struct, frozen=True, tag=True):
    """Watch the escrow output, from its funding on -> chain facts."""


class StopWatchingCase(Struct, frozen=True, tag=True):
    """Stop watching for this case."""


class SignRuling(Struct, frozen=True, tag=True):
    """Derive the payout of the recorded decision, sign it and the ruling -> RulingSigned. Never of another decision."""

    decision: Decision


class SetCaseTimer(Struct, frozen=True, tag=True):
    """Call back with CaseTimerFired after `blocks` more blocks."""

    name: CaseTimerName
    blocks: int


class StopCaseTimers(Struct, frozen=True, tag=True):
    """Forget all deadlines of the case."""


CaseEffect = SendToParty | WatchCase | StopWatchingCase | SignRuling | SetCaseTimer | StopCaseTimers | NotifyUser
