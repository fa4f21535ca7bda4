"""Every state that an arbiter's machine can come to, whatever the parties, the chain and its user do.

Counters are followed up to one: what a second piece of evidence does, the first has shown. Moves are labelled with who
makes them, as in `explore`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from protocol import case_events as ce
from protocol import trade_events as ev
from protocol.arbitration import step_case
from protocol.case_events import CaseState
from protocol.errors import IllegalTransition
from protocol.messages import Claim
from protocol.ruling import Reason
from protocol.types import Branch, Side
from tests.machines.duel import NETWORK, Duel, txid_of
from tests.machines.explore import By

HEIGHT = 100
SCRIPT = b"\x00\x14" + bytes(20)
LIMIT = 60_000
MOST = 1
FOREIGN = b"f" * 32
DUE = 4
"""The least number of blocks that a test's arbiter may take more."""


@dataclass(frozen=True)
class Court:
    """What is so outside of the machine."""

    timers: frozenset[str] = frozenset()
    signing: tuple[ce.SignRuling, ...] = ()
    sent: bool = False
    """The ruling is out: its winner may complete it."""


@dataclass
class CaseNode:
    """One joint state, and where its moves lead."""

    state: CaseState
    court: Court
    moves: list[tuple[By, tuple[object, ...]]] = field(default_factory=list)
    order: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from others; the contract is left out."""
        s = self.state
        # Lines of chat change nothing else.
        told = tuple((p.claim is None, p.evidence, p.late) for p in (s.buyer, s.seller))
        escrow = (s.depth, s.height, s.spent_by, s.spent_depth)
        return (type(s.phase), told, escrow, s.heard, s.extended, s.overdue, s.decision, s.ruling, self.court)

    @property
    def over(self) -> bool:
        """Whether nothing more is asked of the arbiter."""
        return isinstance(self.state.phase, ce.CASE_TERMINAL)


class CaseExplorer:
    """All nodes of a case of one branch, opened by `side`; the arbiter decides by `share`, if it decides."""

    def __init__(self, branch: Branch, side: Side, share: int) -> None:
        self.branch = branch
        self.side = side
        self.share = share
        self.duel = Duel(Side.SELL)
        self.nodes: dict[tuple[object, ...], CaseNode] = {}
        self.steps: set[tuple[type, type, type]] = set()

    def run(self) -> dict[tuple[object, ...], CaseNode]:
        """Explore breadth first."""
        state, effects = step_case(None, self.opening(self.side))
        waiting = [self._know(self._after(state, Court(), effects))]
        for node in waiting:
            for by, moved in self._moves(node):
                known = self.nodes.get(moved.key)
                if known is None:
                    known = self._know(moved)
                    waiting.append(known)
                node.moves.append((by, known.key))
        return self.nodes

    def opening(self, side: Side) -> ce.CaseOpened:
        """A party tells its side."""
        identity = self.duel.facts.contract_id
        return ce.CaseOpened(
            side.name.encode(), side, NETWORK, self.duel.contract, identity, self.branch, Claim("mine", 0)
        )

    def _know(self, node: CaseNode) -> CaseNode:
        node.order = len(self.nodes)
        assert node.order < LIMIT, "more states than expected: is something unbounded?"
        self.nodes[node.key] = node
        return node

    def _after(self, state: CaseState, court: Court, effects: tuple[ce.CaseEffect, ...]) -> CaseNode:
        timers, signing, sent = set(court.timers), list(court.signing), court.sent
        for effect in effects:
            match effect:
                case ce.SetCaseTimer(name):
                    timers.add(name)
                case ce.StopCaseTimers():
                    timers.clear()
                case ce.SignRuling():
                    signing.append(effect)
                case ce.SendToParty(_, payload) if type(payload).__name__ == "CaseRuling":
                    sent = True
                case _:
                    continue
        return CaseNode(state, Court(frozenset(timers), tuple(signing), sent))

    def _feed(self, node: CaseNode, event: ce.CaseEvent, **court: object) -> CaseNode | None:
        try:
            new, effects = step_case(node.state, event)
        except IllegalTransition:
            return None
        self.steps.add((type(node.state.phase), type(event), type(new.phase)))
        found = self._after(new, replace(node.court, **court), effects)  # type: ignore[arg-type]
        many = any(max(p.evidence, p.late) > MOST for p in (new.buyer, new.seller))
        return None if many else found

    def _moves(self, node: CaseNode) -> Iterator[tuple[By, CaseNode]]:
        for by, moved in (*self._own(node), *self._parties(node), *self._chain(node)):
            if moved is not None and moved.key != node.key:
                yield by, moved

    def _own(self, node: CaseNode) -> Iterator[tuple[By, CaseNode | None]]:
        decide = ce.Decide(self.share, 0, Reason.OTHER, "because", SCRIPT, node.state.contract.fees.payout)
        for command in (
            ce.AcceptCase(HEIGHT),
            ce.DeclineCase("no"),
            ce.ExtendCase(HEIGHT, DUE, "ill"),
            decide,
            ce.WriteParty(Side.BUY, "hello"),
        ):
            yield By.SELF, self._feed(node, command)
        for effect in node.court.signing:
            signed = ce.RulingSigned(b"raw", txid_of(effect.decision.outcome))
            moved = self._feed(node, signed, signing=())
            yield By.SELF, moved or CaseNode(node.state, replace(node.court, signing=()))
        for name in sorted(node.court.timers):
            event = ce.CaseTimerFired(name)  # type: ignore[arg-type]
            yield By.SELF, self._feed(node, event, timers=node.court.timers - {name})

    def _parties(self, node: CaseNode) -> Iterator[tuple[By, CaseNode | None]]:
        yield By.PEER, self._feed(node, self.opening(self.side.other))
        yield By.PEER, self._feed(node, ce.EvidenceReceived(b"e", self.side))
        yield By.CHAOS, self._feed(node, ce.PartyChatReceived(b"c", self.side))

    def _chain(self, node: CaseNode) -> Iterator[tuple[By, CaseNode | None]]:
        state = node.state
        if state.spent_by is None:
            yield By.CHAIN, self._feed(node, ev.FundingConfirmed(2, HEIGHT))
            yield By.CHAOS, self._feed(node, ev.FundingSeen())
            yield By.CHAOS, self._feed(node, ev.FundingReorged())
        else:
            yield By.CHAOS, self._feed(node, ev.SpendReorged())
        if state.buried or state.spent_by is not None:
            # The parties may release or settle whenever they like; the ruling needs one of them.
            spends = [(By.CHAOS, FOREIGN)]
            if node.court.sent and state.payout_txid is not None:
                spends.append((By.PEER, state.payout_txid))
            for by, txid in spends:
                for depth in (0, 2):
                    yield by, self._feed(node, ev.EscrowSpent(txid, depth))


def ends(nodes: dict[tuple[object, ...], CaseNode], allowed: set[By]) -> set[tuple[object, ...]]:
    """The nodes from which some moves of `allowed` lead to an end."""
    back: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
    for key, node in nodes.items():
        for by, target in node.moves:
            if by in allowed:
                back.setdefault(target, []).append(key)
    waiting = [key for key, node in nodes.items() if node.over]
    found = set(waiting)
    while waiting:
        for source in back.get(waiting.pop(), ()):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
