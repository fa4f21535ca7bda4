"""What a node knows of one trade: phases are states, everything else is a fact beside them (STYLE, rule 3).

A `TradeState` is a value. It is stored whole as the snapshot, in msgspec's MessagePack with tags; it never travels,
so it may change with a migration. Buyer or seller (`side`) and maker or taker (`seat`) are independent.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from protocol.contract import Contract
from protocol.messages import OpenedDetails, Take, WitnessStack
from protocol.offer import Offer
from protocol.types import Network, Seat, Side

SNAPSHOT_VERSION: Final = 1


class Phase(Struct, frozen=True, tag=True):
    """Where a trade stands. The subclasses are all the phases that there are."""


class Taking(Phase, frozen=True, tag=True):
    """Taker: the take is sent; the maker has not answered. Nothing is signed."""


class Accepting(Phase, frozen=True, tag=True):
    """Maker: a valid take is here; our side of the contract is being prepared. Nothing is signed."""


class SigningFunding(Phase, frozen=True, tag=True):
    """Both sides are known, the contract stands, and our inputs are being signed. Nothing of it has left us."""


class Accepted(Phase, frozen=True, tag=True):
    """Maker: our side and contract signature are sent; the taker's seal is awaited.

    A buying maker's funding signatures are out: from here it watches the chain and can only withdraw by spending
    its own inputs.
    """


class Funding(Phase, frozen=True, tag=True):
    """The funding transaction is complete, or can be completed by the seller; it is not buried yet."""


class Funded(Phase, frozen=True, tag=True):
    """The escrow is buried as deep as the contract asks. The buyer may pay."""


class Paying(Phase, frozen=True, tag=True):
    """Buyer: said to have paid; the payout signature is being made."""


class Paid(Phase, frozen=True, tag=True):
    """The buyer declared payment and gave its payout signature. The seller checks its account."""


class Releasing(Phase, frozen=True, tag=True):
    """Seller: released; the payout is being signed and broadcast."""


class Settling(Phase, frozen=True, tag=True):
    """The payout is in the mempool or in a block, not buried yet."""


class Completed(Phase, frozen=True, tag=True):
    """The payout is buried. The end of a happy trade."""


class Reclaiming(Phase, frozen=True, tag=True):
    """Buyer: the counterparty withholds the funding; our inputs are being spent back to ourselves."""


class Declined(Phase, frozen=True, tag=True):
    """One side refused before anything was locked."""


class Cancelled(Phase, frozen=True, tag=True):
    """The trade ended before it was funded; all coins are back with their owners."""


class Anomalous(Phase, frozen=True, tag=True):
    """The escrow was spent by a transaction that this contract does not know. Needs the user's eyes."""


AnyPhase = (
    Taking
    | Accepting
    | SigningFunding
    | Accepted
    | Funding
    | Funded
    | Paying
    | Paid
    | Releasing
    | Settling
    | Completed
    | Reclaiming
    | Declined
    | Cancelled
    | Anomalous
)

TERMINAL: Final = (Completed, Declined, Cancelled, Anomalous)
"""Phases in which nothing more is asked of anybody."""


class EscrowFacts(Struct, frozen=True):
    """What the escrow layer derived from the contract. Txids in internal byte order; values in satoshis."""

    contract_id: bytes
    funding_txid: bytes
    escrow_vout: int
    escrow_value: int
    escrow_script: bytes
    funding_fee: int
    payout_txid: bytes
    payout_fee: int


class FundingFacts(Struct, frozen=True):
    """The funding transaction as our own chain backend sees it, and the witnesses for it.

    `depth` is None while unseen, 0 in the mempool, else confirmations. `announced`: a selling taker's seal is sent.
    """

    own_witnesses: tuple[WitnessStack, ...] | None = None
    peer_witnesses: tuple[WitnessStack, ...] | None = None
    depth: int | None = None
    height: int | None = None
    announced: bool = False


class PayoutFacts(Struct, frozen=True):
    """The payout: signatures given, and what our chain backend sees (`depth` as in FundingFacts)."""

    own_signature: bytes | None = None
    peer_signature: bytes | None = None
    announced: bool = False
    depth: int | None = None
    txid: bytes | None = None


class TradeState(Struct, frozen=True):
    """One trade as one node knows it."""

    trade_id: bytes
    network: Network
    seat: Seat
    side: Side
    peer: bytes
    offer: Offer
    take: Take
    phase: AnyPhase
    contract: Contract | None = None
    facts: EscrowFacts | None = None
    maker_signature: bytes | None = None
    taker_signature: bytes | None = None
    own_details: OpenedDetails | None = None
    peer_details: OpenedDetails | None = None
    funding: FundingFacts = FundingFacts()
    payout: PayoutFacts = PayoutFacts()
    payment_note: str = ""
    window_passed: bool = False
    ending: str = ""

    @property
    def buys(self) -> bool:
        """Whether we buy bitcoin in this trade."""
        return self.side is Side.BUY

    @property
    def made(self) -> bool:
        """Whether we published the offer."""
        return self.seat is Seat.MAKER

    @property
    def buried(self) -> bool:
        """Whether our chain sees the escrow as deep as the contract asks."""
        return (
            self.contract is not None
            and self.funding.depth is not None
            and self.funding.depth >= self.contract.confirmations
        )


class _Snapshot(Struct, frozen=True, array_like=True):
    version: int
    state: TradeState


def dump_state(state: TradeState) -> bytes:
    """The snapshot that the store keeps."""
    return msgspec.msgpack.encode(_Snapshot(SNAPSHOT_VERSION, state))


def load_state(data: bytes) -> TradeState:
    """The state of a snapshot. Raises msgspec.DecodeError (also for validation) when it is damaged."""
    return msgspec.msgpack.decode(data, type=_Snapshot).state
