"""What can happen to a trade, and what it can ask for. Both are closed unions of values.

Commands are imperative and come from the user; events are past tense and come already verified (`p2pnode/intake.py`
for peers, `escrow/` for signatures, the chain backend for chain facts). Effects are imperative; they are recorded
with the step that asked for them and carried out only after that commit, at least once, so each is idempotent.
Settlements, disputes and talk are in `dispute_events`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from protocol.contract import Contract
from protocol.dispute_events import (
    ArbiterEvent,
    BroadcastOutcome,
    DisputeCommand,
    DisputePeerEvent,
    DisputeResult,
    ExposeArbiter,
    OpenCase,
    SendToArbiter,
    SignOutcome,
)
from protocol.messages import (
    Accept,
    Decline,
    OpenedDetails,
    Paid,
    Payload,
    PaymentDetails,
    Released,
    Seal,
    Take,
    WitnessStack,
)
from protocol.offer import Offer
from protocol.trade_state import EscrowFacts
from protocol.types import Network

# --- commands of the user ---------------------------------------------------------------------------------------


class TakeOffer(Struct, frozen=True, tag=True):
    """None -> Taking. Our side of the contract is prepared and its coins are reserved."""

    network: Network
    trade_id: bytes
    offer: Offer
    take: Take
    own_details: OpenedDetails


class DeclarePaid(Struct, frozen=True, tag=True):
    """Funded -> Paying, for the buyer."""

    note: str = ""


class Release(Struct, frozen=True, tag=True):
    """Paid -> Releasing, for the seller."""


class Cancel(Struct, frozen=True, tag=True):
    """Any phase before the funding is seen -> Cancelled or, when our signatures are out, Reclaiming."""

    reason: str = ""


# --- messages of the peer, verified ------------------------------------------------------------------------------


class TakeReceived(Struct, frozen=True, tag=True):
    """None -> Accepting."""

    network: Network
    trade_id: bytes
    offer: Offer
    take: Take


class AcceptReceived(Struct, frozen=True, tag=True):
    """Taking -> SigningFunding. The contract was derived here and the maker's signature on it holds."""

    accept: Accept
    contract: Contract
    facts: EscrowFacts


class SealReceived(Struct, frozen=True, tag=True):
    """Accepted -> SigningFunding (seller) or Funding (buyer)."""

    seal: Seal


class DetailsReceived(Struct, frozen=True, tag=True):
    """A fact for the buyer: the opening fits the contract's commitment."""

    message: PaymentDetails


class PaidReceived(Struct, frozen=True, tag=True):
    """Funded -> Paid, for the seller. The payout signature is valid for our own derivation of the payout."""

    message: Paid


class ReleasedReceived(Struct, frozen=True, tag=True):
    """A fact for the buyer; only the chain completes a trade."""

    message: Released


class DeclineReceived(Struct, frozen=True, tag=True):
    """The peer withdrew before the funding was seen."""

    message: Decline


class DeliveryRefused(Struct, frozen=True, tag=True):
    """The peer's node will not take a message of ours. Not signed by the peer: it ends a trade only in Taking."""

    code: int
    text: str


# --- facts of our own chain backend ------------------------------------------------------------------------------


class FundingSeen(Struct, frozen=True, tag=True):
    """The funding transaction is in the mempool."""


class FundingConfirmed(Struct, frozen=True, tag=True):
    """The funding transaction is `depth` blocks deep, first at `height`."""

    depth: int
    height: int


class FundingReorged(Struct, frozen=True, tag=True):
    """The funding transaction left the chain."""


class FundingConflicted(Struct, frozen=True, tag=True):
    """Another transaction spends one of the funding's inputs, `depth` blocks deep (0: mempool)."""

    txid: bytes
    depth: int


class EscrowSpent(Struct, frozen=True, tag=True):
    """The escrow output is spent by `txid`, `depth` blocks deep (0: mempool)."""

    txid: bytes
    depth: int


class SpendReorged(Struct, frozen=True, tag=True):
    """The transaction that spent the escrow left the chain and the mempool."""


# --- deadlines ---------------------------------------------------------------------------------------------------

TimerName = Literal[
    "answer", "seal", "signing", "funding", "payment", "payment-reminder", "arbiter", "hearing-reminder", "backup"
]


class TimerFired(Struct, frozen=True, tag=True):
    """A deadline that this trade set has passed."""

    name: TimerName


# --- results of effects ------------------------------------------------------------------------------------------


class ContributionReady(Struct, frozen=True, tag=True):
    """Accepting -> Accepted or SigningFunding. Our coins are reserved and the contract is derived."""

    previous: tuple[bytes, ...]
    contract: Contract
    facts: EscrowFacts
    contract_signature: bytes
    own_details: OpenedDetails
    keepsake: bytes = b""


class ContributionFailed(Struct, frozen=True, tag=True):
    """Accepting -> Declined: we can't serve this take."""

    reason: int
    text: str


class FundingSigned(Struct, frozen=True, tag=True):
    """SigningFunding -> Accepted or Funding. Our inputs are signed, and so is the contract.

    `accept` is what a buying maker now sends with its witnesses; None for all others.
    """

    witnesses: tuple[WitnessStack, ...]
    contract_signature: bytes
    accept: Accept | None = None


class SignatureAwaited(Struct, frozen=True, tag=True):
    """Our coins' keys are elsewhere: a person was asked to sign the funding, or the reclaim of our coins."""


class FundingBroadcast(Struct, frozen=True, tag=True):
    """Our backend took the funding transaction."""


class FundingDelayed(Struct, frozen=True, tag=True):
    """Our backend does not take the funding now: it pays less than the mempool's floor. It is tried again."""

    text: str


class FundingRefused(Struct, frozen=True, tag=True):
    """Our backend refused the funding transaction for good: it can't be mined."""

    text: str


class PayoutSigned(Struct, frozen=True, tag=True):
    """Our payout signature (DER)."""

    signature: bytes


class PayoutBroadcast(Struct, frozen=True, tag=True):
    """Our backend took the payout."""

    txid: bytes


class PayoutDelayed(Struct, frozen=True, tag=True):
    """Our backend does not take the release now: it pays less than the mempool's floor. It is tried again."""

    text: str


class CoinsReclaimed(Struct, frozen=True, tag=True):
    """Our double-spend of the funding's inputs is broadcast."""

    txid: bytes


Command = TakeOffer | DeclarePaid | Release | Cancel | DisputeCommand
PeerEvent = (
    TakeReceived
    | AcceptReceived
    | SealReceived
    | DetailsReceived
    | PaidReceived
    | ReleasedReceived
    | DeclineReceived
    | DeliveryRefused
    | DisputePeerEvent
    | ArbiterEvent
)
ChainFact = FundingSeen | FundingConfirmed | FundingReorged | FundingConflicted | EscrowSpent | SpendReorged
EffectResult = (
    ContributionReady
    | ContributionFailed
    | FundingSigned
    | SignatureAwaited
    | FundingBroadcast
    | FundingRefused
    | FundingDelayed
    | PayoutSigned
    | PayoutBroadcast
    | PayoutDelayed
    | CoinsReclaimed
    | DisputeResult
)
TradeEvent = Command | PeerEvent | ChainFact | TimerFired | EffectResult


# --- effects -----------------------------------------------------------------------------------------------------


class SendMessage(Struct, frozen=True, tag=True):
    """Sign, chain and deliver this payload to the peer; only the peer's ack ends the attempts."""

    payload: Payload


class PrepareContribution(Struct, frozen=True, tag=True):
    """Reserve our coins for the take and derive the contract -> ContributionReady or ContributionFailed."""


class SignFunding(Struct, frozen=True, tag=True):
    """Export the contract, sign it, and sign our inputs -> FundingSigned, which hands `accept` back."""

    accept: Accept | None


class BroadcastFunding(Struct, frozen=True, tag=True):
    """Assemble and broadcast the funding transaction -> FundingBroadcast or FundingRefused."""


class WatchEscrow(Struct, frozen=True, tag=True):
    """Watch the escrow output and the funding's inputs -> chain facts."""


class StopWatching(Struct, frozen=True, tag=True):
    """Stop watching for this trade."""


class SignPayout(Struct, frozen=True, tag=True):
    """Derive and sign the payout -> PayoutSigned."""


class BroadcastPayout(Struct, frozen=True, tag=True):
    """Assemble and broadcast the payout from both signatures -> PayoutBroadcast."""


class ReclaimCoins(Struct, frozen=True, tag=True):
    """Spend our funding inputs back to ourselves -> CoinsReclaimed."""


class ReleaseCoins(Struct, frozen=True, tag=True):
    """Drop the trade's coin reservations."""


class SetTimer(Struct, frozen=True, tag=True):
    """Call back with TimerFired after `seconds`, after `blocks` more blocks, or at `height`; exactly one is given."""

    name: TimerName
    seconds: int | None = None
    blocks: int | None = None
    height: int | None = None


class StopTimer(Struct, frozen=True, tag=True):
    """Forget that deadline."""

    name: TimerName


class NotifyUser(Struct, frozen=True, tag=True):
    """Tell the user; `topic` is stable, the text is made by whoever shows it."""

    topic: str


RecordedEffect = SendMessage | SetTimer | StopTimer | NotifyUser | OpenCase | SendToArbiter | ExposeArbiter
"""Done by the very commit that records the step: they only change rows."""

DeferredEffect = (
    PrepareContribution
    | SignFunding
    | BroadcastFunding
    | WatchEscrow
    | StopWatching
    | SignPayout
    | BroadcastPayout
    | ReclaimCoins
    | ReleaseCoins
    | SignOutcome
    | BroadcastOutcome
)
"""Done after the commit, at least once, in the order asked for."""

Effect = RecordedEffect | DeferredEffect
