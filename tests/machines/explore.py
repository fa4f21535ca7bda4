"""Every state that one trader's machine can come to, whatever its peer, the arbiters, the chain and its user do.

A node is the machine's state with what the world around it holds: effects that are not carried out yet, what is on
chain, who was asked. Moves are labelled with who makes them, so that a test can ask what is still possible with some of
them gone. The world lets nobody do what keys or blocks forbid: a payout appears only when two of its keys have
signed it, and the backup's only when the escrow is old enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

from msgspec.structs import replace as replace_struct

from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.case_messages import CaseAccepted, CaseDeclined
from protocol.errors import IllegalTransition
from protocol.messages import (
    Accept,
    Agreed,
    Claim,
    Decline,
    Disputed,
    FeeProposal,
    Funding,
    Paid,
    PaymentDetails,
    Proposal,
    Released,
    Seal,
)
from protocol.outcome import ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.trade import step
from protocol.types import Branch, Side
from tests.machines.duel import NETWORK, Duel, txid_of

RATE = 2_000
HIGHER = 5_000
"""The rate to which a payout that waits is raised."""
RECLAIM = b"r" * 32
SCRIPT = b"\x00\x14" + bytes(20)
LIMIT = 60_000
BROADCASTS = (ev.BroadcastFunding, ev.BroadcastPayout, dv.BroadcastOutcome)
REMINDERS = {"payment-reminder", "hearing-reminder"}
"""Deadlines that only tell the user something."""
DUES = {Side.BUY: 300_000, Side.SELL: 200_000}
"""What each side proposes, if it does."""


class By(Enum):
    """Who makes a move."""

    SELF = "self"
    PEER = "peer"
    MAIN = "main"
    BACKUP = "backup"
    CHAIN = "chain"
    CHAOS = "chaos"
    """What may happen but nobody can count on: reorganisations, lies, refusals, delays."""


@dataclass(frozen=True)
class World:
    """What is so outside of the machine."""

    pending: tuple[ev.Effect, ...] = ()
    timers: frozenset[str] = frozenset()
    funding: int | None = None
    spend: tuple[bytes, int] | None = None
    mempool: frozenset[bytes] = frozenset()
    asked: frozenset[Branch] = frozenset()
    old: bool = False
    reorgs: int = 0
    peer_signed: bool = False
    """The peer's witnesses or seal are out, so that the funding can appear without us."""


@dataclass
class Node:
    """One joint state, and where its moves lead."""

    state: st.TradeState
    world: World
    moves: list[tuple[By, tuple[object, ...]]] = field(default_factory=list)
    order: int = 0

    @cached_property
    def key(self) -> tuple[object, ...]:
        """What tells it from others; the contract and all that never changes is left out, and what came before what."""
        s = self.state
        return (
            type(s.phase),
            s.contract is None,
            s.maker_signature is None,
            s.taker_signature is None,
            s.peer_details is None,
            s.funding,
            replace_struct(s.payout, variants=()),
            frozenset(s.payout.variants),
            s.window_passed,
            s.settlement.signing,
            frozenset(s.settlement.options),
            s.dispute,
            self.world,
        )

    @property
    def phase(self) -> str:
        """The phase's name."""
        return type(self.state.phase).__name__

    @property
    def over(self) -> bool:
        """Whether nothing more is asked of anybody."""
        return isinstance(self.state.phase, st.TERMINAL)


class Explorer:
    """All nodes of one cast: the trader on `side`, who published the offer or (else) took it."""

    def __init__(
        self,
        side: Side,
        *,
        made: bool,
        chaos: bool = False,
        settles: bool = False,
        raises: bool = False,
        share: int | None = None,
    ) -> None:
        """`chaos`, `settles` and `raises` tell which moves there are besides a trade's own; with `share` arbiters rule.

        With one of the last two the exploration begins when the escrow is buried.
        """
        self.side = side
        self.made = made
        self.duel = Duel(side if made else side.other)
        self.chaos = chaos
        self.settles = settles
        self.raises = raises
        self.share = share
        self.nodes: dict[tuple[object, ...], Node] = {}
        self.steps: set[tuple[type, type, type]] = set()

    def run(self) -> dict[tuple[object, ...], Node]:
        """Explore breadth first. Fails when there are more than `LIMIT` nodes."""
        waiting = [self._know(self._start())]
        for node in waiting:
            for by, moved in self._moves(node):
                known = self.nodes.get(moved.key)
                if known is None:
                    known = self._know(moved)
                    waiting.append(known)
                node.moves.append((by, known.key))
        return self.nodes

    def _start(self) -> Node:
        if self.share is None and not self.raises:
            take = self.duel.take.take
            first = ev.TakeReceived(NETWORK, self.duel.id, self.duel.offer, take) if self.made else self.duel.take
            start = self._stepped(None, World(), first)
        else:
            # What comes before the escrow is buried is another exploration's: there is nothing to dispute yet.
            self.duel.agree()
            state = self.duel.seat(self.side).state
            assert state is not None
            world = self._in_mempool(World(funding=2), self.duel.facts.funding_txid)
            start = self._stepped(state, world, ev.FundingConfirmed(2, 100))
        assert start is not None
        return start

    def _know(self, node: Node) -> Node:
        node.order = len(self.nodes)
        assert node.order < LIMIT, "more states than expected: is something unbounded?"
        self.nodes[node.key] = node
        return node

    def _stepped(self, state: st.TradeState | None, world: World, event: ev.TradeEvent) -> Node | None:
        """The node after an event, with its effects added to the world; None when the machine refuses."""
        try:
            new, effects = step(state, event)
        except IllegalTransition:
            return None
        timers, pending, asked = set(world.timers), list(world.pending), set(world.asked)
        for effect in effects:
            match effect:
                case ev.SetTimer(name):
                    timers.add(name)
                    timers -= REMINDERS
                case ev.StopTimer(name):
                    timers.discard(name)
                case dv.OpenCase(branch, _):
                    asked.add(branch)
                case ev.NotifyUser() | ev.SendMessage() | dv.SendToArbiter() | dv.ExposeArbiter():
                    continue
                case ev.WatchEscrow() | ev.StopWatching() | ev.ReleaseCoins():
                    continue
                case _ if effect not in pending:
                    pending.append(effect)
                case _:
                    continue
        if state is not None:
            self.steps.add((type(state.phase), type(event), type(new.phase)))
        node = Node(new, replace(world, timers=frozenset(timers), pending=tuple(pending), asked=frozenset(asked)))
        # Signing takes its time, in which anything may happen; a broadcast is there at once.
        while node.world.pending and isinstance(node.world.pending[0], BROADCASTS):
            node = self._carried_out(node)
        return node

    # --- moves ---------------------------------------------------------------------------------------------------

    def _moves(self, node: Node) -> Iterator[tuple[By, Node]]:
        sources: list[Callable[[Node], Iterator[tuple[By, Node | None]]]] = [
            self._own,
            self._effects,
            self._timers,
            self._peer,
            self._chain,
        ]
        sources += [self._settling] if self.settles else []
        sources += [self._raising] if self.raises else []
        sources += [self._disputing, self._arbiters] if self.share is not None else []
        sources += [self._chaos] if self.chaos else []
        for source in sources:
            for by, moved in source(node):
                if moved is not None and moved.key != node.key:
                    yield by, moved

    def _feed(self, node: Node, event: ev.TradeEvent, **world: object) -> Node | None:
        return self._stepped(node.state, replace(node.world, **world), event)  # type: ignore[arg-type]

    def _own(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        commands: list[ev.TradeEvent] = [
            ev.Cancel(),
            ev.DeclarePaid(),
            ev.Release(),
        ]
        for command in commands:
            yield By.SELF, self._feed(node, command)

    def _settling(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        yield By.SELF, self._feed(node, dv.ProposeSettlement(DUES[self.side], RATE))
        for option in node.state.settlement.options:
            yield By.SELF, self._feed(node, dv.AcceptSettlement(option.txid))
            if option.own_signature is not None:
                yield By.PEER, self._feed(node, dv.AgreedReceived(Agreed(option.txid, b"p" * 70)))
                yield By.PEER, self._put(node, option.txid)
        offered = SettlementOutcome(DUES[self.side.other], RATE)
        proposal = Proposal(offered.buyer_due, RATE, b"p" * 70)
        yield By.PEER, self._feed(node, dv.ProposalReceived(proposal, txid_of(offered)))

    def _raising(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        """The payout waits: either side proposes one higher rate, with the peer's node answering or not."""
        payout = node.state.payout
        for variant in payout.variants:
            if variant.own_signature is not None:
                yield By.PEER, self._feed(node, dv.AgreedReceived(Agreed(variant.txid, b"p" * 70)))
                yield By.PEER, self._put(node, variant.txid)
        if node.over or len(payout.variants) > 1:
            # More of the same lead to nothing new, but to many states.
            return
        yield By.SELF, self._feed(node, dv.RaiseFee(HIGHER))
        waits = node.world.spend is not None and node.world.spend[1] == 0
        outcome = node.state.outcome_of(node.world.spend[0]) if waits and node.world.spend is not None else None
        if isinstance(outcome, ReleaseOutcome | SettlementOutcome):
            raised = replace_struct(outcome, rate=HIGHER)
            proposal = FeeProposal(self.duel.facts.payout_txid, HIGHER, b"p" * 70)
            yield By.PEER, self._feed(node, dv.FeeProposalReceived(proposal, raised, txid_of(raised)))

    def _disputing(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        yield By.SELF, self._feed(node, dv.OpenDispute(Claim("mine", 0)))
        yield By.SELF, self._feed(node, dv.CompleteRuling())
        asked = node.world.asked | {Branch.MAIN}
        yield By.PEER, self._feed(node, dv.DisputedReceived(Disputed(Claim("theirs", 0))), asked=asked)
        for ruling in node.state.dispute.rulings if node.state.dispute is not None else ():
            if ruling.outcome.branch is Branch.MAIN or node.world.old:
                yield By.PEER, self._put(node, ruling.txid)

    def _effects(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        """Carry out the first effect that is not done."""
        if node.world.pending:
            yield By.SELF, self._carried_out(node)
        if node.world.pending and isinstance(node.world.pending[0], ev.SignFunding | ev.ReclaimCoins):
            # The keys may be elsewhere: then a person is asked first.
            yield By.CHAOS, self._feed(node, ev.SignatureAwaited())

    def _carried_out(self, node: Node) -> Node:
        """What an effect does to the world, and its result to the machine."""
        effect, *rest = node.world.pending
        result, world = self._result(effect, node.state, replace(node.world, pending=tuple(rest)))
        done = self._stepped(node.state, world, result) if result is not None else None
        return done or Node(node.state, world)

    def _result(  # noqa: PLR0911
        self, effect: ev.Effect, state: st.TradeState, world: World
    ) -> tuple[ev.TradeEvent | None, World]:
        duel = self.duel
        name = "maker" if self.made else "taker"
        match effect:
            case ev.PrepareContribution():
                ready = ev.ContributionReady((), duel.contract, duel.facts, bytes(64), duel.opened(name))
                return ready, world
            case ev.SignFunding(accept):
                party = duel.maker_party if self.made else duel.taker_party
                return ev.FundingSigned(tuple((b"s", b"k") for _ in party.inputs), bytes(64), accept), world
            case ev.BroadcastFunding():
                return ev.FundingBroadcast(), self._in_mempool(world, duel.facts.funding_txid)
            case ev.SignPayout():
                return ev.PayoutSigned(b"mine"), world
            case ev.BroadcastPayout():
                txid = duel.facts.payout_txid
                return ev.PayoutBroadcast(txid), self._in_mempool(world, txid)
            case dv.SignOutcome(outcome):
                return dv.OutcomeSigned(outcome, txid_of(outcome), b"mine"), world
            case dv.BroadcastOutcome(txid):
                ripe = world.old or not self._by_backup(txid, state)
                return dv.OutcomeBroadcast(txid), self._in_mempool(world, txid) if ripe else world
            case ev.ReclaimCoins():
                return ev.CoinsReclaimed(RECLAIM), self._in_mempool(world, RECLAIM)
            case _:
                return None, world

    def _by_backup(self, txid: bytes, state: st.TradeState) -> bool:
        outcome = state.outcome_of(txid)
        return isinstance(outcome, RulingOutcome) and outcome.branch is Branch.BACKUP

    def _timers(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        for name in sorted(node.world.timers):
            old = node.world.old or name == "backup"
            fired = node.world.timers - {name}
            event = ev.TimerFired(name)  # type: ignore[arg-type]
            yield By.SELF, self._feed(node, event, timers=fired, old=old)

    def _peer(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        state, duel, sells = node.state, self.duel, self.side is Side.SELL
        party = duel.taker_party if self.made else duel.maker_party
        stacks = tuple((b"s", b"k") for _ in party.inputs)
        if not self.made and isinstance(state.phase, st.Taking):
            witnesses = stacks if sells else None
            accept = Accept(duel.maker_party, Funding(()), bytes(64), witnesses)
            yield By.PEER, self._feed(node, ev.AcceptReceived(accept, duel.contract, duel.facts))
        if self.made:
            seal = Seal(bytes(64), stacks, None) if sells else Seal(bytes(64), None, duel.facts.funding_txid)
            yield By.PEER, self._feed(node, ev.SealReceived(seal))
        if not sells:
            yield By.PEER, self._feed(node, ev.DetailsReceived(PaymentDetails(duel.opened("peer"))))
            if node.world.funding is None and state.funding.own_witnesses is not None:
                yield By.PEER, self._put(node, duel.facts.funding_txid)
            if state.payout.own_signature is not None:
                yield By.PEER, self._put(node, duel.facts.payout_txid)
        else:
            yield By.PEER, self._feed(node, ev.PaidReceived(Paid(duel.opened("peer"), b"p" * 70, "")))

    def _put(self, node: Node, txid: bytes) -> Node:
        return Node(node.state, self._in_mempool(node.world, txid))

    def _in_mempool(self, world: World, txid: bytes) -> World:
        """A transaction reaches the mempool, which holds one that spends the escrow, the newest."""
        others = frozenset({self.duel.facts.funding_txid, RECLAIM})
        kept = world.mempool if txid in others else world.mempool & others
        return replace(world, mempool=kept | {txid})

    def _arbiters(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        share = self.share or 0
        for branch, by in ((Branch.MAIN, By.MAIN), (Branch.BACKUP, By.BACKUP)):
            if branch not in node.world.asked:
                continue
            yield by, self._feed(node, dv.CaseAcceptedReceived(branch, CaseAccepted(1, None)))
            yield By.CHAOS, self._feed(node, dv.CaseDeclinedReceived(branch, CaseDeclined("no")))
            outcome = RulingOutcome(branch, share, 0, SCRIPT, RATE)
            event = dv.RulingReceived(txid_of(outcome), b"raw", "", outcome, txid_of(outcome), b"a")
            yield by, self._feed(node, event)

    def _chain(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        """What miners do with what is in the mempool: one funding, then one spend of it."""
        world, facts = node.world, self.duel.facts
        reclaimed = RECLAIM in world.mempool
        if facts.funding_txid in world.mempool and world.funding is None:
            yield By.CHAIN, self._fact(node, ev.FundingSeen(), funding=0)
        if world.funding == 0 and not (reclaimed and facts.funding_txid not in world.mempool):
            yield By.CHAIN, self._fact(node, ev.FundingConfirmed(2, 100), funding=2)
        if reclaimed and world.funding in (None, 0):
            yield By.CHAIN, self._fact(node, ev.FundingConflicted(RECLAIM, 2))
        if world.funding == 2:
            for txid in sorted(world.mempool - {facts.funding_txid, RECLAIM}):
                if world.spend is None or (world.spend[1] == 0 and world.spend[0] != txid):
                    yield By.CHAIN, self._fact(node, ev.EscrowSpent(txid, 0), spend=(txid, 0))
            if world.spend is not None and world.spend[1] == 0:
                yield By.CHAIN, self._fact(node, ev.EscrowSpent(world.spend[0], 2), spend=(world.spend[0], 2))

    def _fact(self, node: Node, event: ev.TradeEvent, **world: object) -> Node:
        """A chain fact is so, whether the machine has a use for it or not."""
        changed = replace(node.world, **world)  # type: ignore[arg-type]
        return self._stepped(node.state, changed, event) or Node(node.state, changed)

    def _chaos(self, node: Node) -> Iterator[tuple[By, Node | None]]:
        world = node.world
        yield By.CHAOS, self._feed(node, ev.DeclineReceived(Decline(1100, "no")))
        yield By.CHAOS, self._feed(node, ev.DeliveryRefused(2142, "no"))
        if self.side is Side.BUY:
            yield By.CHAOS, self._feed(node, ev.ReleasedReceived(Released(self.duel.facts.payout_txid)))
        if world.reorgs == 0 and world.funding is not None and world.spend is None:
            mempool = world.mempool | {self.duel.facts.funding_txid}
            yield By.CHAOS, self._fact(node, ev.FundingReorged(), funding=None, reorgs=1, mempool=mempool)
        if world.reorgs == 0 and world.spend is not None:
            mempool = world.mempool - {world.spend[0]}
            yield By.CHAOS, self._fact(node, ev.SpendReorged(), spend=None, reorgs=1, mempool=mempool)


def can_end(nodes: dict[tuple[object, ...], Node], allowed: set[By]) -> set[tuple[object, ...]]:
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
