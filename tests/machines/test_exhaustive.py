"""Nothing is forgotten and nobody gets stuck: every state that can be reached, with every event that there is."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest

from protocol import case_events as ce
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.arbitration import CASE_TRANSITIONS, step_case
from protocol.errors import IllegalTransition
from protocol.trade import TRANSITIONS, step
from protocol.trade_state import Answer
from protocol.types import Branch, Side
from tests.machines.explore import By, Explorer, Node, can_end
from tests.machines.explore_case import CaseExplorer, CaseNode, ends
from tests.machines.samples import members, variants

EVENTS = members(ev.TradeEvent)
PHASES = members(st.AnyPhase)
CASE_EVENTS = members(ce.CaseEvent)
CASE_PHASES = members(ce.AnyCasePhase)

AGREEING = [(side, made, True) for side, made in product(Side, (True, False))]
"""From the take on, with reorganisations, lies and settlements."""
DISPUTING = list(product(Side, (0, 500_000, 700_000)))
"""From the buried escrow on, with arbiters that decide so."""

COURTS: dict[tuple[Branch, Side, int], CaseExplorer] = {}

Nodes = dict[tuple[object, ...], Node]


@cache
def agreeing(side: Side, *, made: bool, settles: bool) -> Nodes:
    return Explorer(side, made=made, chaos=True, settles=settles).run()


@cache
def disputing(side: Side, share: int) -> Nodes:
    return Explorer(side, made=False, share=share).run()


@cache
def raising(side: Side, *, settles: bool) -> Nodes:
    return Explorer(side, made=False, settles=settles, raises=True).run()


@cache
def hearing(branch: Branch, side: Side, share: int = 700_000) -> dict[tuple[object, ...], CaseNode]:
    COURTS[branch, side, share] = CaseExplorer(branch, side, share)
    return COURTS[branch, side, share].run()


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
        samples = [value for event in EVENTS for value in variants(event)]
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

    @pytest.mark.parametrize("branch", list(Branch))
    def test_every_event_in_every_reachable_state_of_a_case_is_handled_or_refused(self, branch: Branch) -> None:
        values = [value for event in CASE_EVENTS for value in variants(event)]
        seen: set[tuple[type, type]] = set()
        for node, event in product(hearing(branch, Side.BUY).values(), values):
            pair = type(node.state.phase), type(event)
            seen.add(pair)
            try:
                new, _ = step_case(node.state, event)
            except IllegalTransition:
                continue
            assert type(new.phase) in CASE_TRANSITIONS[pair][1]
        assert seen == set(product(CASE_PHASES, CASE_EVENTS)), "every phase is reachable, and no event was forgotten"

    def test_nothing_but_a_beginning_begins(self) -> None:
        for value in (v for event in CASE_EVENTS if event is not ce.CaseOpened for v in variants(event)):
            with pytest.raises(IllegalTransition):
                step_case(None, value)
        for value in (v for event in EVENTS if event not in (ev.TakeOffer, ev.TakeReceived) for v in variants(event)):
            with pytest.raises(IllegalTransition):
                step(None, value)

    def test_every_transition_of_a_case_is_taken(self) -> None:
        """What the table allows and nothing leads to would be drawn in the SPEC, and be untested."""
        taken: set[tuple[type, type, type]] = set()
        for side in Side:
            hearing(Branch.MAIN, side)
            taken |= COURTS[Branch.MAIN, side, 700_000].steps
        drawn = {(a, e, b) for (a, e), (_, to) in CASE_TRANSITIONS.items() for b in to if a is not b}
        assert drawn <= taken

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

    # The buyer's with settlements has 100,000 states, and its handlers know no sides.
    @pytest.mark.parametrize(("side", "settles"), [(Side.BUY, False), (Side.SELL, False), (Side.SELL, True)])
    def test_with_the_chain_alone_once_a_payout_is_out_whatever_fees_are_proposed(
        self, side: Side, *, settles: bool
    ) -> None:
        """A fee that one side wants and the other does not answer holds nothing up."""
        nodes = raising(side, settles=settles)
        assert any(n.state.payout.variants for n in nodes.values())
        able = can_end(nodes, {By.SELF, By.CHAIN, By.PEER})
        stuck = [n for k, n in nodes.items() if k not in able]
        assert not stuck, explain(nodes, stuck)
        able = can_end(nodes, {By.SELF, By.CHAIN})
        stuck = [n for k, n in nodes.items() if k not in able and isinstance(n.state.phase, st.Settling)]
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


class TestArbiterIsNotStuck:
    """From every reachable state of a case the arbiter and one other key-holder bring it to an end."""

    @pytest.mark.parametrize(
        ("branch", "side"), [(Branch.MAIN, Side.BUY), (Branch.MAIN, Side.SELL), (Branch.BACKUP, Side.BUY)]
    )
    def test_with_one_party_alone(self, branch: Branch, side: Side) -> None:
        nodes = hearing(branch, side)
        able = ends(nodes, {By.SELF, By.CHAIN, By.PEER})
        assert not [n for k, n in nodes.items() if k not in able]

    @pytest.mark.parametrize("side", list(Side))
    def test_before_it_decides_it_needs_nobody(self, side: Side) -> None:
        """It can always decline; so nobody can keep a case open against its will."""
        nodes = hearing(Branch.MAIN, side)
        able = ends(nodes, {By.SELF})
        undecided = (ce.Queued, ce.Hearing)
        assert not [n for k, n in nodes.items() if k not in able and isinstance(n.state.phase, undecided)]

    def test_silent_party_and_silent_chain_do_not_stop_a_decision(self) -> None:
        """Once the escrow was seen, its own clock is enough to come to a ruling."""
        nodes = hearing(Branch.MAIN, Side.BUY)
        ruled = {k for k, n in nodes.items() if isinstance(n.state.phase, ce.Ruled)}
        assert ruled
        back: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
        for key, node in nodes.items():
            for by, target in node.moves:
                if by is By.SELF:
                    back.setdefault(target, []).append(key)
        found, waiting = set(ruled), list(ruled)
        while waiting:
            for source in back.get(waiting.pop(), ()):
                if source not in found:
                    found.add(source)
                    waiting.append(source)
        seen = [k for k, n in nodes.items() if isinstance(n.state.phase, ce.Hearing) and n.state.buried]
        assert seen
        assert all(k in found for k in seen)

    def test_no_path_leads_to_a_second_decision(self) -> None:
        for node in hearing(Branch.MAIN, Side.BUY).values():
            if node.state.decision is not None:
                assert not [by for by, key in node.moves if decision_of(key) != node.state.decision]


def decision_of(key: tuple[object, ...]) -> object:
    """The decision in the key of a case's node."""
    return key[6]


def passed_over(node: Node, branch: Branch) -> bool:
    dispute = node.state.dispute
    return dispute is not None and dispute.arbiter(branch).answer in (Answer.DECLINED, Answer.MISSED)
