"""Two trade machines back to back: what one sends, the other receives; the test plays wallet, clock and chain."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.contract import (
    ArbiterTerms,
    Bargain,
    Contract,
    EscrowKeys,
    FeeTerms,
    FundingInput,
    Party,
    build_contract,
    contract_id,
    trade_id,
)
from protocol.messages import (
    Accept,
    Agreed,
    AttachmentOffer,
    ChatLine,
    Decline,
    Disputed,
    Extension,
    ExtensionRequest,
    FeeProposal,
    Funding,
    OpenedDetails,
    Paid,
    PaymentDetails,
    Proposal,
    Released,
    Seal,
    Take,
)
from protocol.offer import SALT_BYTES, ArbiterRef, FixedPrice, Offer, OfferRef, Requirements, make_offer_id
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.trade import step
from protocol.types import EscrowType, Network, Side
from protocol.wire import digest

NETWORK = Network.REGTEST
SALT = b"\x07" * 32


def tagged(tag: str, size: int = 32) -> bytes:
    """Bytes that differ by tag."""
    return (tag.encode() * size)[:size]


def offer_of(side: Side, *, buyer_deposit: int = 100_000) -> Offer:
    """An offer that both machines can agree on."""
    return Offer(
        maker=tagged("maker"),
        offer_id=make_offer_id(tagged("maker"), tagged("offer", SALT_BYTES)),
        sequence=1,
        side=side,
        amount_min=10_000,
        amount_max=1_000_000,
        currency="EUR",
        price=FixedPrice(6_500_000),
        methods=("sepa",),
        payment_window=144,
        buyer_deposit=buyer_deposit,
        seller_deposit=buyer_deposit,
        arbiters=(ArbiterRef(tagged("arb1"), tagged("ann1")), ArbiterRef(tagged("arb2"), tagged("ann2"))),
        escrow_types=(EscrowType.WSH_2OF3_BACKUP,),
        backup_delay=1008,
        confirmations=2,
        terms="",
        requirements=Requirements(),
        contacts=(),
        created=1_000,
        expires=2_000,
    )


def party_of(name: str, *, funds: bool) -> Party:
    """A party whose keys and coins are made of its name."""
    inputs = (FundingInput(tagged(f"coin-{name}"), 0, 5_000_000, b"\x00\x14" + tagged(name, 20)),) if funds else ()
    return Party(
        persona=tagged(name),
        keys=EscrowKeys(b"\x02" + tagged(f"m{name}"), bytes(64), b"\x02" + tagged(f"b{name}"), bytes(64)),
        payout_script=b"\x00\x14" + tagged(f"p{name}", 20),
        refund_script=b"\x00\x14" + tagged(f"p{name}", 20),
        change_script=b"\x00\x14" + tagged(f"c{name}", 20) if funds else None,
        inputs=inputs,
        details_hash=tagged(f"d{name}"),
        nonce=tagged(f"n{name}"),
    )


def bargain_of(offer: Offer, amount: int = 500_000) -> Bargain:
    """The numbers of the take."""
    reference = OfferRef(offer.maker, offer.offer_id, offer.sequence, tagged("envelope"))
    return Bargain(reference, amount, 6_500_000, "sepa", EscrowType.WSH_2OF3_BACKUP, FeeTerms(2_000, 2_000, 50_000))


def facts_of(contract: Contract) -> st.EscrowFacts:
    """Stand-ins for what `escrow/` derives: equal on both sides because the contract is."""
    cid = contract_id(contract, NETWORK)
    return st.EscrowFacts(cid, cid[::-1], 0, 600_000, b"\x00\x20" + cid, 500, tagged("payout"), 400)


def txid_of(outcome: Outcome) -> bytes:
    """A stand-in for the payout that `escrow/` derives: one outcome, one txid."""
    return digest(b"test/payout", repr(outcome).encode())


@dataclass
class Seat:
    """One machine, what it asked for, and what it still has to deliver."""

    state: st.TradeState | None = None
    effects: deque[ev.Effect] = field(default_factory=deque)
    sent: list[object] = field(default_factory=list)

    def feed(self, event: ev.TradeEvent) -> None:
        """Step."""
        self.state, effects = step(self.state, event)
        self.effects.extend(effects)

    @property
    def phase(self) -> str:
        """The phase's name."""
        return type(self.state.phase).__name__ if self.state else "None"


class Duel:
    """Maker and taker over an offer of the given side."""

    def __init__(self, maker_side: Side, *, buyer_deposit: int = 100_000) -> None:
        self.offer = offer_of(maker_side, buyer_deposit=buyer_deposit)
        self.maker, self.taker = Seat(), Seat()
        self.both = (self.maker, self.taker)
        self.broadcast: list[bytes] = []
        self.payouts: dict[bytes, Outcome] = {tagged("payout"): ReleaseOutcome()}
        """What each txid pays."""
        both_fund = buyer_deposit > 0
        self.maker_party = party_of("maker", funds=both_fund or maker_side is Side.SELL)
        self.taker_party = party_of("taker", funds=both_fund or maker_side is Side.BUY)
        bargain = bargain_of(self.offer)
        self.contract = build_contract(
            self.offer,
            bargain,
            taker=self.taker_party,
            maker=self.maker_party,
            arbiter=ArbiterTerms(tagged("arb1"), tagged("ann1"), b"\x02" + tagged("A1"), 1_000, 144),
            backup=ArbiterTerms(tagged("arb2"), tagged("ann2"), b"\x02" + tagged("A2"), 1_000, 144),
        )
        self.facts = facts_of(self.contract)
        take = Take(bargain, bytes(100), bytes(100), self.taker_party, Funding(()), bytes(100))
        self.id = trade_id(bargain.offer, self.taker_party.persona, self.taker_party.nonce)
        self.take = ev.TakeOffer(NETWORK, self.id, self.offer, take, self.opened("taker"))

    def opened(self, name: str) -> OpenedDetails:
        """Payment details of a party."""
        return OpenedDetails(SALT, (("iban", name),))

    def seat(self, side: Side) -> Seat:
        """The machine on one side of the trade."""
        return self.maker if self.offer.side is side else self.taker

    @property
    def buyer(self) -> Seat:
        """The machine that buys."""
        return self.seat(Side.BUY)

    @property
    def seller(self) -> Seat:
        """The machine that sells."""
        return self.seat(Side.SELL)

    def settle(self) -> None:
        """Carry out effects and deliver messages until nothing moves."""
        while any(seat.effects for seat in self.both):
            for seat, other in ((self.maker, self.taker), (self.taker, self.maker)):
                while seat.effects:
                    self.perform(seat, other, seat.effects.popleft())

    def perform(self, seat: Seat, other: Seat, effect: ev.Effect) -> None:
        """Play the executor and the post."""
        name = "maker" if seat is self.maker else "taker"
        match effect:
            case ev.SendMessage(payload):
                seat.sent.append(payload)
                other.feed(self.received(payload))
            case ev.PrepareContribution():
                seat.feed(ev.ContributionReady((), self.contract, self.facts, bytes(64), self.opened(name)))
            case ev.SignFunding(accept):
                inputs = (self.maker_party if seat is self.maker else self.taker_party).inputs
                seat.feed(ev.FundingSigned(tuple((b"sig", b"key") for _ in inputs), b"\x01" * 64, accept))
            case ev.BroadcastFunding():
                seat.feed(ev.FundingBroadcast())
            case ev.SignPayout():
                seat.feed(ev.PayoutSigned(name.encode() * 3))
            case ev.BroadcastPayout():
                seat.feed(ev.PayoutBroadcast(self.facts.payout_txid))
            case dv.SignOutcome(outcome):
                self.payouts[txid_of(outcome)] = outcome
                seat.feed(dv.OutcomeSigned(outcome, txid_of(outcome), name.encode() * 3))
            case dv.BroadcastOutcome(txid):
                self.broadcast.append(txid)
                seat.feed(dv.OutcomeBroadcast(txid))
            case _:
                pass

    def received(self, payload: object) -> ev.TradeEvent:  # noqa: PLR0911, PLR0912
        """What intake makes of a payload."""
        match payload:
            case Proposal(buyer_due, rate, _):
                return dv.ProposalReceived(payload, txid_of(SettlementOutcome(buyer_due, rate)))
            case Agreed():
                return dv.AgreedReceived(payload)
            case FeeProposal(txid, rate, _):
                agreed = self.payouts[txid]
                assert not isinstance(agreed, RulingOutcome)
                raised = replace(agreed, rate=rate)
                self.payouts[txid_of(raised)] = raised
                return dv.FeeProposalReceived(payload, raised, txid_of(raised))
            case Extension():
                return dv.ExtensionReceived(payload)
            case ExtensionRequest():
                return dv.ExtensionRequested(payload)
            case ChatLine():
                return dv.ChatReceived(payload)
            case AttachmentOffer():
                return dv.AttachmentReceived(payload)
            case Disputed():
                return dv.DisputedReceived(payload)
            case Take():
                return ev.TakeReceived(NETWORK, self.id, self.offer, payload)
            case Accept():
                return ev.AcceptReceived(payload, self.contract, self.facts)
            case Seal():
                return ev.SealReceived(payload)
            case PaymentDetails():
                return ev.DetailsReceived(payload)
            case Paid():
                return ev.PaidReceived(payload)
            case Released():
                return ev.ReleasedReceived(payload)
            case Decline():
                return ev.DeclineReceived(payload)
        raise AssertionError(payload)

    def chain(self, *events: ev.TradeEvent) -> None:
        """Both backends see the same."""
        for event in events:
            for seat in self.both:
                seat.feed(event)
        self.settle()

    def agree(self) -> None:
        """Up to the funding being broadcast."""
        self.taker.feed(self.take)
        self.settle()

    def bury(self) -> None:
        """Bury the escrow as deep as the contract asks."""
        self.chain(ev.FundingSeen(), ev.FundingConfirmed(1, 100), ev.FundingConfirmed(2, 100))

    def pay(self) -> None:
        """The buyer declares its payment."""
        self.buyer.feed(ev.DeclarePaid("thanks"))
        self.settle()

    def release(self) -> None:
        """The seller releases."""
        self.seller.feed(ev.Release())
        self.settle()

    def patch(self, seat: Seat, **facts: object) -> None:
        """Change facts of one machine, for a test that starts from a rare state."""
        assert seat.state is not None
        seat.state = replace(seat.state, **facts)
