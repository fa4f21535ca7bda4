"""Decide and record for cases: one event, one step of the arbiter's machine, one commit (DESIGN section 3).

The twin of `p2pnode.engine`. That a case is decided once rests on the commit as well: the decision is in the snapshot
before anything is signed, and what is signed afterwards is the decision that the effect carries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from p2pnode.cases.store import CaseStore, DeferredCaseEffect
from p2pnode.clock import Clock
from p2pnode.conversations import Conversation, Conversations
from p2pnode.notices import Notices
from protocol.arbitration import step_case
from protocol.case_events import (
    CaseCommand,
    CaseEvent,
    CaseOpened,
    CaseState,
    SendToParty,
    SetCaseTimer,
    SignRuling,
    StopCaseTimers,
    StopWatchingCase,
    WatchCase,
)
from protocol.case_messages import CasePayload
from protocol.errors import IllegalTransition
from protocol.trade_events import NotifyUser
from protocol.types import Side
from protocol.wire import Envelope

CaseListener = Callable[[CaseState], None]


class HeldCase(IllegalTransition):
    """This case was restored from a copy: nothing is decided in it before its parties have told how far it had come."""

    code = 1311


class CaseEngine:
    """The only writer of cases."""

    def __init__(
        self,
        cases: CaseStore,
        conversations: Conversations,
        notices: Notices,
        clock: Clock,
        height: Callable[[], int],
    ) -> None:
        """`height` gives the height of the best block that the node has followed."""
        self.cases = cases
        self.conversations = conversations
        self._notices = notices
        self._clock = clock
        self._height = height
        self._listeners: list[CaseListener] = []

    def subscribe(self, listener: CaseListener) -> None:
        """Call `listener` with the new state after each commit."""
        self._listeners.append(listener)

    def apply(
        self,
        trade_id: bytes,
        event: CaseEvent,
        *,
        heard: tuple[Conversation, Envelope] | None = None,
        watch_from: int | None = None,
        done: int | None = None,
    ) -> CaseState:
        """Step the case and record it.

        `heard` is the party's message that the event came in, `watch_from` the height from which a new case's escrow is
        looked for, `done` the pending effect whose result it is. Raises IllegalTransition; then nothing is recorded.
        """
        now = self._clock.now()
        if isinstance(event, CaseCommand) and self.is_held(trade_id):
            raise HeldCase
        with self.cases.database.transaction():
            stored = self.cases.get(trade_id)
            state, effects = step_case(stored.state if stored else None, event)
            if stored is None and isinstance(event, CaseOpened):
                for side in Side:
                    self.conversations.expect(event.contract, event.branch, side, arbitrates=True)
            if heard is not None:
                self.conversations.record_received(*heard, now)
            deferred: list[DeferredCaseEffect] = []
            for effect in effects:
                match effect:
                    case SendToParty(side, payload):
                        self._send(state, side, payload, now)
                    case SetCaseTimer(name, blocks):
                        self.cases.set_timer(trade_id, name, self._height() + blocks)
                    case StopCaseTimers():
                        self.cases.stop_timer(trade_id)
                    case NotifyUser(topic):
                        self._notices.add(topic, now, trade_id=trade_id, phase=type(state.phase).__name__)
                    case WatchCase() | StopWatchingCase() | SignRuling():
                        deferred.append(effect)
                    case _:
                        assert_never(effect)
            self.cases.save(state, now)
            if watch_from is not None:
                self.cases.set_watch(trade_id, watch_from)
            self.cases.add_effects(trade_id, deferred)
            if done is not None:
                self.cases.finish_effect(done)
            self.cases.log(trade_id, type(state.phase).__name__, event, now)
        self._notices.wake()
        for listener in self._listeners:
            listener(state)
        return state

    def is_held(self, trade_id: bytes) -> bool:
        """Whether the case was restored, and a party has still to tell what we had said in it."""
        talks = self.conversations.of_trade(trade_id, arbitrates=True)
        return any(self.conversations.is_held(talk) for talk in talks)

    def _send(self, state: CaseState, side: Side, payload: CasePayload, now: int) -> None:
        conversation = self.conversations.find(state.trade_id, state.branch, side, arbitrates=True)
        if conversation is None:
            raise IllegalTransition("this case has no such party")
        self.conversations.send(conversation, payload, now)
