"""Nothing is forgotten and nobody gets stuck: every state that can be reached, with every event that there is."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from msgspec.structs import replace

from protocol import case_events as ce
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.arbitration import CASE_TRANSITIONS, step_case
from protocol.errors import IllegalTransition
from protocol.trade import TRANSITIONS, step
from protocol.trade_state import Answer
from protocol.types import Branch, Side
from tests.machines.explore import By, Explorer, Node, can_end
from tests.machines.samples import members, sample
from tests.machines.trial import HEIGHT, Trial

EVENTS = members(ev.TradeEvent)
PHASES = members(st.AnyPhase)
CASE_EVENTS = members(ce.CaseEvent)
CASE_PHASES = members(ce.AnyCasePhase)

AGREEING = [(side, made, True) for side, made in product(Side, (True, False))]
"""From the take on, with reorganisations, lies and settlements."""
DISPUTING = list(product(Side, (0, 500_000, 700_000)))
"""From the buried escrow on, with arbiters that decide so."""

Nodes = dict[tuple[object, ...], Node]


@cache
def agreeing(side: Side, *, made: bool, settles: bool) -> Nodes:
    return Explorer(side, made=made, chaos=True, settles=settles).run()


@cache
def disputing(side: Side, share: int) -> Nodes:
    return Explorer(side, made=False, share=share).run()


def explain(nodes: Nodes, stuck: list[Node]) -> str:
    first = min(stuck, key=lambda n: n.order)
    return f"{len(stuck)} of {len(nodes)} states can't end; the first: {first.phase} {first.key}"


class TestPairs:
    def test_events_of_the_table_are_all_events_there_are(self) -> None:
        handled = {event for _, event in TRANSITIONS}
        assert handled <= set(EVENTS)
        assert set(EVENTS) - handled == {ev.TakeOffer, ev.TakeReceived}, "only these begin a trade"
        assert {phase for phase, _ in TRANSITIONS} <= set(PHASES)

    @pytest.mark.parametrize("phase", PHASES, ids=lambda p: p.__name__)
    def test_every_phase_but_the_ends_can_be_left(self, phase: type) -> None:
        targets = {t for (source, _), (_, to) in TRANSITIONS.items() if source is phase for t in to} - {phase}
        assert targets or phase in st.TERMINAL

    @pytest.mark.parametrize("side", list(Side))
    def test_every_event_in_every_reachable_state_is_handled_or_refused(self, side: Side) -> None:
        """Never anything between: no half-made step, no error of another kind."""
        samples = [sample(event) for event in EVENTS]
        nodes = [*agreeing(side, made=side is Side.SELL, settles=False).values()]
        nodes += [n for n in disputing(side, 700_000).values() if n.order % 9 == 0]
        seen: set[tuple[type, type]] = set()
        for node, event in product(nodes, samples):
            seen.add((type(node.state.phase), type(event)))
            handled = (type(node.state.phase), type(event)) in TRANSITIONS
            try:
                new, _ = step(node.state, event)
            except IllegalTransition:
                continue
            else:
                assert handled
                assert type(new.phase) in TRANSITIONS[type(node.state.phase), type(event)][1]
        assert {event for _, event in seen} == set(EVENTS)

    def test_every_event_in_every_phase_of_a_case_is_handled_or_refused(self) -> None:
        trial = Trial(Side.SELL)
        trial.fund()
        trial.pay()
        trial.open(trial.buyer, 1_000_000)
        trial.open(trial.seller, 0)
        states = [trial.main.state]
        trial.do(trial.main, ce.AcceptCase(HEIGHT))
        states.append(trial.main.state)
        trial.decide(trial.main, 700_000)
        states.append(trial.main.state)
        for state, phase, event in product(states, CASE_PHASES, CASE_EVENTS):
            assert state is not None
            here = replace(state, phase=phase())
            try:
                new, _ = step_case(here, sample(event))
            except IllegalTransition:
                continue
            else:
                assert type(new.phase) in CASE_TRANSITIONS[phase, event][1]

    def test_reachable_phases_are_all_there_are(self) -> None:
        """A phase that nothing leads to would be dead, and untested."""
        phases: set[type] = set()
        for side, made, settles in AGREEING:
            phases |= {type(n.state.phase) for n in agreeing(side, made=made, settles=settles and not made).values()}
        anomalous = {t for _, to in TRANSITIONS.values() for t in to}
        assert phases | {st.Anomalous} == set(PHASES)
        assert st.Anomalous in anomalous, "entered by a foreign spend, which no honest world has"


class TestNobodyIsStuck:
    """From every reachable state one honest party and any one other key-holder bring the trade to an end."""

    @pytest.mark.parametrize(("side", "made"), [(side, made) for side, made, _ in AGREEING])
    def test_with_the_peer_alone(self, side: Side, *, made: bool) -> None:
        nodes = agreeing(side, made=made, settles=not made)
        able = can_end(nodes, {By.SELF, By.CHAIN, By.PEER})
        stuck = [n for k, n in nodes.items() if k not in able]
        assert not stuck, explain(nodes, stuck)

    @pytest.mark.parametrize(("side", "share"), DISPUTING)
    def test_with_the_peer_alone_in_a_dispute(self, side: Side, share: int) -> None:
        nodes = disputing(side, share)
        able = can_end(nodes, {By.SELF, By.CHAIN, By.PEER})
        stuck = [n for k, n in nodes.items() if k not in able]
        assert not stuck, explain(nodes, stuck)

    @pytest.mark.parametrize(("side", "share"), DISPUTING)
    @pytest.mark.parametrize("branch", list(Branch))
    def test_with_one_arbiter_alone(self, side: Side, share: int, branch: Branch) -> None:
        """Whatever the peer and the other arbiter did or do not; unless this one was passed over."""
        nodes = disputing(side, share)
        able = can_end(nodes, {By.SELF, By.CHAIN, By.MAIN if branch is Branch.MAIN else By.BACKUP})
        stuck = [n for k, n in nodes.items() if k not in able and not passed_over(n, branch)]
        assert not stuck, explain(nodes, stuck)

    @pytest.mark.parametrize("side", list(Side))
    def test_alone_before_anything_is_locked(self, side: Side) -> None:
        """Whoever is left by its peer before the escrow exists gets out with nobody's help."""
        nodes = agreeing(side, made=False, settles=False)
        able = can_end(nodes, {By.SELF, By.CHAIN})
        stuck = [n for k, n in nodes.items() if k not in able and n.world.funding is None and not n.state.buried]
        stuck = [n for n in stuck if isinstance(n.state.phase, st.Taking | st.Accepting | st.Accepted | st.Reclaiming)]
        assert not stuck, explain(nodes, stuck)


def passed_over(node: Node, branch: Branch) -> bool:
    dispute = node.state.dispute
    return dispute is not None and dispute.arbiter(branch).answer in (Answer.DECLINED, Answer.MISSED)
