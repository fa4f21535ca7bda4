"""The one table of the trade machine, and how a handler enters it.

The handlers lie in `trade_agreeing`, `trade_escrow`, `trade_paying`, `trade_settling`, `trade_raising` and
`trade_dispute`; `trade` loads them all. A handler is a pure function of state and event; the decorator says for which
phases it is, and where it may lead. A message that comes at a time when it changes nothing has a handler too: refusing
it would break the chain of messages, and with it all that its sender says afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, cast

from msgspec.structs import replace

from protocol import trade_events as ev
from protocol.contract import Contract
from protocol.errors import IllegalTransition
from protocol.trade_events import Effect, TimerName, TradeEvent
from protocol.trade_state import AnyPhase, TradeState
from protocol.types import Seat, Side

Step = tuple[TradeState, tuple[Effect, ...]]
Handler = Callable[[TradeState, TradeEvent], Step]
E = TypeVar("E", bound=TradeEvent)

TRANSITIONS: Final[dict[tuple[type[AnyPhase], type[TradeEvent]], tuple[Handler, frozenset[type[AnyPhase]]]]] = {}
"""(phase, event) -> (handler, phases it may lead to). Complete once `protocol.trade` is loaded."""

TIMERS: Final[tuple[TimerName, ...]] = ("payment", "payment-reminder", "arbiter", "hearing-reminder", "backup")
"""The deadlines of a trade that is funded."""


def on(
    phases: tuple[type[AnyPhase], ...], event: type[E], *, to: tuple[type[AnyPhase], ...]
) -> Callable[[Callable[[TradeState, E], Step]], Callable[[TradeState, E], Step]]:
    """Enter a handler in the table. `to` lists the phases it may lead to; the present one counts as included."""

    def enter(handler: Callable[[TradeState, E], Step]) -> Callable[[TradeState, E], Step]:
        for phase in phases:
            key = (phase, cast("type[TradeEvent]", event))
            if key in TRANSITIONS:
                raise AssertionError(f"two handlers for {key}")
            # Sound: `step` looks a handler up by the very type of the event that it is given.
            TRANSITIONS[key] = (cast("Handler", handler), frozenset((*to, phase)))
        return handler

    return enter


def refusal(state: TradeState, event: TradeEvent) -> IllegalTransition:
    """What is said of a pair that is not in the table."""
    phase = type(state.phase).__name__
    return IllegalTransition(f"{type(event).__name__} is not possible while the trade is {phase}")


def only(side: Side, state: TradeState, what: str) -> None:
    """Raises IllegalTransition unless we are on `side`."""
    if state.side is not side:
        who = "buyer" if side is Side.BUY else "seller"
        raise IllegalTransition(f"only the {who} can {what}")


def only_seat(seat: Seat, state: TradeState, what: str) -> None:
    """Raises IllegalTransition unless we are in `seat`."""
    if state.seat is not seat:
        raise IllegalTransition(f"only the {seat.name.lower()} can {what}")


def agreed(state: TradeState) -> Contract:
    """The contract. Raises IllegalTransition before there is one."""
    if state.contract is None:
        raise IllegalTransition("the trade has no contract yet")
    return state.contract


def close(state: TradeState, phase: AnyPhase, ending: str, *effects: Effect) -> Step:
    """End a trade whose coins are free again."""
    stopped = (ev.StopTimer("answer"), ev.StopTimer("seal"), ev.StopTimer("signing"))
    tidy = (ev.ReleaseCoins(), *stopped, ev.NotifyUser("trade-ended"))
    return replace(state, phase=phase, ending=ending), (*effects, *tidy)


def stop_timers() -> tuple[Effect, ...]:
    """Forget every deadline of a funded trade."""
    return tuple(ev.StopTimer(name) for name in TIMERS)
