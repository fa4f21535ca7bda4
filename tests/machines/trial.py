"""A duel with its arbiters: four machines, and the post between them all. The test plays wallets, clocks and chain."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.arbitration import step_case
from protocol.case_messages import (
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseOpening,
    CasePayload,
    CaseRuling,
    Evidence,
)
from protocol.errors import IllegalTransition
from protocol.messages import ChatLine, Claim, RulingShown
from protocol.outcome import RulingOutcome
from protocol.ruling import Reason
from protocol.types import Branch, Side
from protocol.wire import digest
from tests.machines.duel import NETWORK, Duel, Seat, txid_of

FEE_SCRIPT = b"\x00\x14" + b"\x0f" * 20
HEIGHT = 200


@dataclass
class Desk:
    """An arbiter's machine."""

    branch: Branch
    state: ce.CaseState | None = None
    effects: deque[ce.CaseEffect] = field(default_factory=deque)
    sent: list[tuple[Side, CasePayload]] = field(default_factory=list)
    read: int = 0
    silent: bool = False

    def feed(self, event: ce.CaseEvent) -> None:
        """Step."""
        self.state, effects = step_case(self.state, event)
        self.effects.extend(effects)

    @property
    def phase(self) -> str:
        """The phase's name."""
        return type(self.state.phase).__name__ if self.state else "None"


class Trial(Duel):
    """Maker, taker, arbiter and backup arbiter."""

    def __init__(self, maker_side: Side, *, buyer_deposit: int = 100_000) -> None:
        super().__init__(maker_side, buyer_deposit=buyer_deposit)
        self.main, self.backup = Desk(Branch.MAIN), Desk(Branch.BACKUP)
        self.desks = (self.main, self.backup)
        self.to_arbiters: list[tuple[Side, Branch, str]] = []
        self.opener: Seat | None = None
        self.given: dict[bytes, RulingOutcome] = {}
        """What was ruled, by the bytes of the ruling."""

    def desk(self, branch: Branch) -> Desk:
        """The arbiter of a branch."""
        return self.main if branch is Branch.MAIN else self.backup

    def side_of(self, seat: Seat) -> Side:
        """On which side a machine trades."""
        return Side.BUY if seat is self.buyer else Side.SELL

    def settle(self) -> None:
        """Carry out effects and deliver messages until nothing moves."""
        super().settle()
        while any(machine.effects for machine in (*self.both, *self.desks)):
            super().settle()
            for desk in self.desks:
                while desk.effects:
                    self.rule(desk, desk.effects.popleft())

    def perform(self, seat: Seat, other: Seat, effect: ev.Effect) -> None:
        """Play the executor and the post, also to the arbiters."""
        side = self.side_of(seat)
        match effect:
            case dv.OpenCase(branch, claim):
                self.to_arbiters.append((side, branch, "CaseOpening"))
                self.reach(self.desk(branch), self.opening(side, claim, branch))
            case dv.SendToArbiter(branch, payload):
                self.to_arbiters.append((side, branch, type(payload).__name__))
                self.reach(self.desk(branch), self.heard(self.desk(branch), side, payload))
            case _:
                super().perform(seat, other, effect)

    def reach(self, desk: Desk, event: ce.CaseEvent) -> None:
        """Deliver to an arbiter, unless it has vanished."""
        if not desk.silent:
            desk.feed(event)

    def opening(self, side: Side, claim: Claim, branch: Branch) -> ce.CaseOpened:
        """What the arbiter's intake makes of a case file that holds."""
        message = digest(b"test/opening", side.name.encode(), claim.text.encode())
        return ce.CaseOpened(message, side, NETWORK, self.contract, self.facts.contract_id, branch, claim)

    def heard(self, desk: Desk, side: Side, payload: CasePayload) -> ce.CaseEvent:
        """What the arbiter's intake makes of a party's message."""
        desk.read += 1
        message = digest(b"test/heard", str(desk.read).encode())
        if isinstance(payload, Evidence):
            return ce.EvidenceReceived(message, side)
        return ce.PartyChatReceived(message, side)

    def rule(self, desk: Desk, effect: ce.CaseEffect) -> None:
        """Play the arbiter's executor and the post."""
        match effect:
            case ce.SendToParty(side, payload):
                desk.sent.append((side, payload))
                self.seat(side).feed(self.arbiter_says(desk.branch, payload))
            case ce.SignRuling(decision):
                raw = digest(b"test/ruling", repr(decision).encode())
                desk.feed(ce.RulingSigned(raw, txid_of(decision.outcome)))
            case ce.WatchCase():
                state = self.buyer.state
                assert state is not None
                if state.funding.depth is not None and state.funding.height is not None:
                    desk.feed(ev.FundingConfirmed(state.funding.depth, state.funding.height))
            case _:
                pass

    def arbiter_says(self, branch: Branch, payload: CasePayload) -> ev.TradeEvent:
        """What a party's intake makes of an arbiter's message."""
        match payload:
            case CaseAccepted():
                return dv.CaseAcceptedReceived(branch, payload)
            case CaseDeclined():
                return dv.CaseDeclinedReceived(branch, payload)
            case CaseExtended():
                return dv.CaseExtendedReceived(branch, payload)
            case ChatLine():
                return dv.ArbiterChatReceived(branch, payload)
            case CaseRuling(raw, text):
                decision = self.decision(branch)
                outcome = decision.outcome
                self.given[raw] = outcome
                return dv.RulingReceived(raw, raw, text, outcome, txid_of(outcome), b"arbiter")
            case CaseOpening() | Evidence():
                raise AssertionError(payload)

    def received(self, payload: object) -> ev.TradeEvent:
        """What intake makes of a payload: a ruling that is shown is one of an arbiter of ours."""
        if not isinstance(payload, RulingShown):
            return super().received(payload)
        outcome = self.given[payload.ruling]
        return dv.RulingReceived(payload.ruling, payload.ruling, "", outcome, txid_of(outcome), b"arbiter")

    def decision(self, branch: Branch) -> ce.Decision:
        """What an arbiter has decided."""
        state = self.desk(branch).state
        assert state is not None
        assert state.decision is not None
        return state.decision

    def chain(self, *events: ev.TradeEvent) -> None:
        """All backends see the same."""
        for event in events:
            for desk in self.desks:
                if desk.state is not None and not desk.silent:
                    try:
                        desk.feed(event)  # type: ignore[arg-type]
                    except IllegalTransition:
                        continue
        super().chain(*events)

    def spend(self, txid: bytes) -> None:
        """A transaction that spends the escrow appears and is buried."""
        self.chain(ev.EscrowSpent(txid, 0), ev.EscrowSpent(txid, 2))

    # --- what tests say ------------------------------------------------------------------------------------------

    def fund(self) -> None:
        """Up to a buried escrow."""
        self.agree()
        self.bury()

    def open(self, seat: Seat, share: int, text: str = "look") -> None:
        """A party opens, or answers."""
        self.opener = self.opener or seat
        seat.feed(dv.OpenDispute(Claim(text, share)))
        self.settle()

    def do(self, machine: Seat | Desk, event: object) -> None:
        """One event to one machine, and all that follows."""
        machine.feed(event)  # type: ignore[arg-type]
        self.settle()

    def decide(self, desk: Desk, share: int, forfeit: int = 0) -> bytes:
        """An arbiter decides; returns the txid of the payout."""
        self.do(desk, ce.Decide(share, forfeit, Reason.OTHER, "because", FEE_SCRIPT, 2_000))
        return txid_of(self.decision(desk.branch).outcome)

    @property
    def messages(self) -> int:
        """Messages of the dispute so far, beyond what both sides show (evidence, and the other side's answer)."""
        assert self.opener is not None
        notices = sum(type(m).__name__ == "Disputed" for m in self.opener.sent)
        settling = sum(type(m).__name__ in ("Proposal", "Agreed") for s in self.both for m in s.sent)
        side = self.side_of(self.opener)
        openings = sum(kind == "CaseOpening" and by is side for by, _, kind in self.to_arbiters)
        return notices + settling + openings + sum(len(d.sent) for d in self.desks)
