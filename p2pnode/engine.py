"""Decide and record: one event, one step of the machine, one commit (DESIGN section 3).

`apply` runs the pure machine and writes, in one durable transaction: the received message (so that it is never
handled twice), the event, the new snapshot, messages to send (signed here: Ed25519 is deterministic, so what is
recorded is what leaves), deadlines, notices, and the effects that `executor` carries out afterwards. Whoever listens is
told only after the commit returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, assert_never

from msgspec.structs import replace

from p2pnode.clock import Clock
from p2pnode.notices import Notices
from p2pnode.tradestore import Heads, OutgoingMessage, Timer, TradeStore
from protocol.dispute_events import BroadcastOutcome, OpenCase, SendToArbiter, SignOutcome
from protocol.errors import IllegalTransition
from protocol.identity import SigningKey
from protocol.messages import Header, Message, Payload, encode
from protocol.trade import step
from protocol.trade_events import (
    BroadcastFunding,
    BroadcastPayout,
    DeferredEffect,
    NotifyUser,
    PrepareContribution,
    ReclaimCoins,
    ReleaseCoins,
    SendMessage,
    SetTimer,
    SignFunding,
    SignPayout,
    StopTimer,
    StopWatching,
    TradeEvent,
    WatchEscrow,
)
from protocol.trade_state import TradeState

Listener = Callable[[TradeState], None]


class Keys(Protocol):
    """What the engine needs of the unlocked keystore."""

    def persona_key(self, persona: bytes) -> SigningKey:
        """The signing key of one of our personas. Raises NotFound."""
        ...


def own_persona(state: TradeState) -> bytes:
    """The persona under which we trade."""
    return state.offer.maker if state.made else state.take.party.persona


class Engine:
    """The only writer of trades."""

    def __init__(
        self, trades: TradeStore, notices: Notices, keys: Keys, clock: Clock, height: Callable[[], int]
    ) -> None:
        """`height` gives the height of the best block that the node has followed."""
        self.trades = trades
        self._notices = notices
        self._keys = keys
        self._clock = clock
        self._height = height
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with the new state after each commit."""
        self._listeners.append(listener)

    def apply(
        self, trade_id: bytes, event: TradeEvent, *, received: Message | None = None, done: int | None = None
    ) -> TradeState:
        """Step the trade and record it.

        `received` is the message that the event came in, `done` the pending effect whose result it is.
        Raises IllegalTransition; then nothing is recorded.
        """
        now = self._clock.now()
        with self.trades.database.transaction():
            stored = self.trades.get(trade_id)
            state, effects = step(stored.state if stored else None, event)
            heads = stored.heads if stored else Heads()
            if received is not None:
                heads = self._record_received(trade_id, heads, received, now)
            deferred: list[DeferredEffect] = []
            for effect in effects:
                match effect:
                    case SendMessage(payload):
                        heads = self._record_message(state, heads, payload, now)
                    case SetTimer(name, seconds, blocks, height):
                        at_time = None if seconds is None else now + seconds
                        at_height = height if blocks is None else self._height() + blocks
                        self.trades.set_timer(Timer(trade_id, name, at_time, at_height))
                    case StopTimer(name):
                        self.trades.stop_timer(trade_id, name)
                    case NotifyUser(topic):
                        self._notices.add(topic, now, trade_id=trade_id, phase=type(state.phase).__name__)
                    case (
                        PrepareContribution()
                        | SignFunding()
                        | BroadcastFunding()
                        | WatchEscrow()
                        | StopWatching()
                        | SignPayout()
                        | BroadcastPayout()
                        | ReclaimCoins()
                        | ReleaseCoins()
                    ):
                        deferred.append(effect)
                    case OpenCase() | SendToArbiter() | SignOutcome() | BroadcastOutcome():
                        raise IllegalTransition("this node can't carry out disputes and settlements yet")
                    case _:
                        assert_never(effect)
            if stored is None or type(stored.state.phase) is not type(state.phase):
                self._notices.add("phase", now, trade_id=trade_id, phase=type(state.phase).__name__)
            self.trades.add_effects(trade_id, deferred)
            if done is not None:
                self.trades.finish_effect(done)
            self.trades.log(trade_id, type(state.phase).__name__, event, now)
            self.trades.save(state, heads, now)
        self._notices.wake()
        for listener in self._listeners:
            listener(state)
        return state

    def _record_received(self, trade_id: bytes, heads: Heads, message: Message, now: int) -> Heads:
        envelope = message.envelope
        self.trades.add_message(trade_id, heads.received, envelope.id, envelope.raw, now, out=False)
        return replace(heads, received=heads.received + 1, received_head=envelope.id)

    def _record_message(self, state: TradeState, heads: Heads, payload: Payload, now: int) -> Heads:
        header = Header(state.trade_id, heads.sent, heads.sent_head, heads.received_head)
        kind, body = encode(header, payload)
        envelope = self._keys.persona_key(own_persona(state)).seal(kind, state.network, body)
        self.trades.add_message(state.trade_id, heads.sent, envelope.id, envelope.raw, now, out=True)
        message = OutgoingMessage(envelope.id, heads.sent, state.trade_id, state.peer, envelope.raw)
        self.trades.queue_message(message, now)
        return replace(heads, sent=heads.sent + 1, sent_head=envelope.id)
