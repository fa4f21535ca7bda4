"""What a node knows of one trade: phases are states, everything else is a fact beside them (STYLE, rule 3).

A `TradeState` is a value. It is stored whole as the snapshot, in msgspec's MessagePack with tags; it never travels,
so it may change with a migration. Buyer or seller (`side`) and maker or taker (`seat`) are independent.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocol.contract import Contract
from protocol.messages import Claim, OpenedDetails, Take, WitnessStack
from protocol.offer import Offer
from protocol.outcome import Agreement, Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.ruling import Equivocation, arbiter_of
from protocol.types import Branch, Network, Seat, Side

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
    `awaited`: a person was asked to sign for our inputs.
    """

    own_witnesses: tuple[WitnessStack, ...] | None = None
    peer_witnesses: tuple[WitnessStack, ...] | None = None
    depth: int | None = None
    height: int | None = None
    announced: bool = False
    awaited: bool = False


class Variant(Struct, frozen=True):
    """An agreed payout at a higher fee rate, which one side has signed, or both."""

    outcome: Agreement
    txid: bytes
    own_signature: bytes | None = None
    peer_signature: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether both have signed."""
        return self.own_signature is not None and self.peer_signature is not None


class PayoutFacts(Struct, frozen=True):
    """The release: signatures given. And what spends the escrow by our chain backend (`depth` as in FundingFacts).

    `outcome` is what that transaction `txid` is by the contract; None while unspent, or when we do not know it.
    `lost`: it has left the chain and the mempool. `variants`: agreed payouts at higher fee rates; `raising`: the one
    that our signature is being made for.
    """

    own_signature: bytes | None = None
    peer_signature: bytes | None = None
    announced: bool = False
    depth: int | None = None
    txid: bytes | None = None
    outcome: Outcome | None = None
    lost: bool = False
    variants: tuple[Variant, ...] = ()
    raising: Agreement | None = None

    def variant(self, txid: bytes) -> Variant | None:
        """The variant whose payout is `txid`."""
        return next((v for v in self.variants if v.txid == txid), None)

    def put(self, variant: Variant) -> PayoutFacts:
        """The same with this variant in place of the one with its txid, or added."""
        return replace(self, variants=(*(v for v in self.variants if v.txid != variant.txid), variant))


class Option(Struct, frozen=True):
    """A settlement that one side has signed, or both.

    A signature can't be taken back, so an option stays open to whoever holds it until the escrow is spent.
    """

    outcome: SettlementOutcome
    txid: bytes
    own_signature: bytes | None = None
    peer_signature: bytes | None = None

    @property
    def complete(self) -> bool:
        """Whether both have signed."""
        return self.own_signature is not None and self.peer_signature is not None


class SettlementFacts(Struct, frozen=True):
    """Settlements by agreement. `signing`: what our signature is being made for."""

    options: tuple[Option, ...] = ()
    signing: SettlementOutcome | None = None

    def find(self, txid: bytes) -> Option | None:
        """The option whose payout is `txid`."""
        return next((o for o in self.options if o.txid == txid), None)

    def put(self, option: Option) -> SettlementFacts:
        """The same with this option in place of the one with its txid, or added."""
        others = tuple(o for o in self.options if o.txid != option.txid)
        return replace(self, options=(*others, option))

    @property
    def binding(self) -> bool:
        """Whether the peer can end the trade by a settlement that we have signed, or are signing."""
        return self.signing is not None or any(o.own_signature is not None for o in self.options)


class RulingFacts(Struct, frozen=True):
    """A ruling that was verified: its signed envelope `raw` with its id, its text, its payout and both signatures."""

    ruling_id: bytes
    raw: bytes
    text: str
    outcome: RulingOutcome
    txid: bytes
    arbiter_signature: bytes
    own_signature: bytes | None = None


class Answer(IntEnum):
    """How far an arbiter has gone. DECLINED and MISSED: it was passed over."""

    WAITING = 0
    ACCEPTED = 1
    DECLINED = 2
    MISSED = 3

    @property
    def passed_over(self) -> bool:
        """Whether the case is no longer this arbiter's."""
        return self in (Answer.DECLINED, Answer.MISSED)


class ArbiterFacts(Struct, frozen=True):
    """One arbiter in a dispute. `contradiction` is a second, different ruling, kept as a proof and never acted on.

    `shown` and `written` count our evidence and our lines of chat.
    """

    answer: Answer = Answer.WAITING
    text: str = ""
    extended: bool = False
    ruling: RulingFacts | None = None
    contradiction: RulingFacts | None = None
    shown: int = 0
    written: int = 0


class DisputeFacts(Struct, frozen=True):
    """A dispute: who claims what, and how far each arbiter is. `backup_open`: the backup branch may be spent.

    `peer_told`: the peer's claim came from itself, not only from the arbiter. `showed`: the peer has the rulings that
    we were given, because something contradicted them.
    """

    own_claim: Claim | None = None
    peer_claim: Claim | None = None
    peer_told: bool = False
    main: ArbiterFacts = ArbiterFacts()
    backup: ArbiterFacts = ArbiterFacts()
    backup_open: bool = False
    showed: bool = False

    def arbiter(self, branch: Branch) -> ArbiterFacts:
        """The facts of one arbiter."""
        return self.main if branch is Branch.MAIN else self.backup

    def with_arbiter(self, branch: Branch, facts: ArbiterFacts) -> DisputeFacts:
        """The same with other facts of one arbiter."""
        return replace(self, main=facts) if branch is Branch.MAIN else replace(self, backup=facts)

    @property
    def rulings(self) -> tuple[RulingFacts, ...]:
        """Every ruling that was seen, also those that are not acted on: any of them may appear on chain."""
        found = (self.main.ruling, self.main.contradiction, self.backup.ruling, self.backup.contradiction)
        return tuple(r for r in found if r is not None)


class TalkFacts(Struct, frozen=True):
    """How often each side has spoken: lines of chat, files, requests for time and what was given of it.

    `arbiters`: lines of chat of both arbiters.
    """

    own: int = 0
    peer: int = 0
    arbiters: int = 0


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
    extension: int = 0
    window_passed: bool = False
    settlement: SettlementFacts = SettlementFacts()
    dispute: DisputeFacts | None = None
    talk: TalkFacts = TalkFacts()
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

    @property
    def window_ends(self) -> int | None:
        """The block with which the buyer's time to pay is over; None while the escrow is in no block."""
        if self.contract is None or self.funding.height is None:
            return None
        buried_at = self.funding.height + self.contract.confirmations - 1
        return buried_at + self.contract.payment_window + self.extension

    @property
    def backup_from(self) -> int | None:
        """The first block that may hold a payout signed by the backup arbiter; None where there can be none."""
        if self.contract is None or self.contract.backup is None or self.funding.height is None:
            return None
        return self.funding.height + self.contract.backup_delay

    @property
    def bench(self) -> Branch:
        """Whose case it is: the backup arbiter's once the main one was passed over."""
        has_backup = self.contract is not None and self.contract.backup is not None
        passed = self.dispute is not None and self.dispute.main.answer.passed_over
        return Branch.BACKUP if has_backup and passed else Branch.MAIN

    def equivocation(self, branch: Branch) -> Equivocation | None:
        """The proof that the arbiter of a branch contradicted itself, if it did."""
        terms = None if self.contract is None else arbiter_of(self.contract, branch)
        facts = None if self.dispute is None else self.dispute.arbiter(branch)
        if terms is None or facts is None or facts.ruling is None or facts.contradiction is None:
            return None
        return Equivocation(terms.persona, facts.ruling.raw, facts.contradiction.raw)

    def outcome_of(self, txid: bytes) -> Outcome | None:
        """What the transaction `txid` is by all that we know; None: it is not of this contract, or not yet known."""
        if self.facts is not None and txid == self.facts.payout_txid:
            return ReleaseOutcome()
        option = self.settlement.find(txid) or self.payout.variant(txid)
        if option is not None:
            return option.outcome
        rulings = self.dispute.rulings if self.dispute is not None else ()
        return next((r.outcome for r in rulings if r.txid == txid), None)


class _Snapshot(Struct, frozen=True, array_like=True):
    version: int
    state: TradeState


def dump_state(state: TradeState) -> bytes:
    """The snapshot that the store keeps."""
    return msgspec.msgpack.encode(_Snapshot(SNAPSHOT_VERSION, state))


def load_state(data: bytes) -> TradeState:
    """The state of a snapshot. Raises msgspec.DecodeError (also for validation) when it is damaged."""
    return msgspec.msgpack.decode(data, type=_Snapshot).state
