"""From chain events to trade events: one watch on the escrow, one on each input of the funding.

A watch's key is the trade id and one byte: 0 for the escrow output, 1 + n for the n-th input. Watches live in the
backend's memory only; `rearm` sets them again after a restart, from the height at which the trade began. Events state
what is so, hence telling one twice is harmless, and an event that the trade's phase has no use for is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, assert_never

from escrow.chain.base import (
    ChainBackend,
    ChainEvent,
    Confirmed,
    Seen,
    SpendUndone,
    SpentBy,
    TipChanged,
    Unconfirmed,
    Unseen,
    WatchRequest,
)
from escrow.coins import OutPoint
from p2pnode.clock import Clock
from p2pnode.database import until_there_is_room
from p2pnode.engine import Engine
from p2pnode.tradestore import Timer
from protocol import trade_events as ev
from protocol.errors import IllegalTransition
from protocol.trade_state import TradeState

ESCROW: Final = 0
FIRST_INPUT: Final = 1
REORG_MARGIN: Final = 6
"""Blocks below the tip at which a trade's watch begins: a reorganisation may put the funding lower than that tip."""

log = logging.getLogger(__name__)


class ChainWatch:
    """Feeds the engine with what our own backend sees, and fires the deadlines."""

    def __init__(self, backend: ChainBackend, engine: Engine, clock: Clock) -> None:
        self._backend = backend
        self._engine = engine
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._on_tip: list[Callable[[int], None]] = []
        self.height = 0
        self._timers_changed = asyncio.Event()

    def on_tip(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with each new height, after the watches were told."""
        self._on_tip.append(listener)

    async def start(self) -> None:
        """Follow the chain and arm the watches of all open trades."""
        self.height = (await self._backend.tip()).height
        events = self._backend.events()
        self._tasks = [
            asyncio.create_task(self._follow(events), name="chain-events"),
            asyncio.create_task(self._wall_clock(), name="deadlines"),
        ]
        self._engine.subscribe(lambda _state: self._timers_changed.set())
        requests: list[WatchRequest] = []
        for stored in self._engine.trades.all():
            if stored.watch_from is not None and not self._engine.trades.is_held(stored.state.trade_id):
                requests += self._requests(stored.state, stored.watch_from)
        if requests:
            await self._backend.watch_many(requests)
        self._fire_heights()

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def watch(self, state: TradeState) -> None:
        """Watch a trade's escrow and the inputs of its funding. Again is fine."""
        trades = self._engine.trades
        trades.set_watch_from(state.trade_id, max(0, self.height - REORG_MARGIN))
        stored = trades.get(state.trade_id)
        if stored is not None and stored.watch_from is not None:
            await self._backend.watch_many(self._requests(state, stored.watch_from))

    async def unwatch(self, state: TradeState) -> None:
        """Stop watching for a trade, now and after a restart."""
        self._engine.trades.clear_watch(state.trade_id)
        inputs = len(state.contract.buyer.inputs) + len(state.contract.seller.inputs) if state.contract else 0
        for tag in range(FIRST_INPUT + inputs):
            await self._backend.unwatch(state.trade_id + bytes([tag]))

    def _requests(self, state: TradeState, from_height: int) -> list[WatchRequest]:
        if state.contract is None or state.facts is None:
            return []
        escrow = OutPoint(state.facts.funding_txid, state.facts.escrow_vout)
        depth = max(state.contract.confirmations, 6)
        requests = [
            WatchRequest(state.trade_id + bytes([ESCROW]), state.facts.escrow_script, escrow, from_height, depth)
        ]
        inputs = (*state.contract.buyer.inputs, *state.contract.seller.inputs)
        for n, coin in enumerate(inputs):
            key = state.trade_id + bytes([FIRST_INPUT + n])
            requests.append(WatchRequest(key, coin.script_pubkey, OutPoint(coin.txid, coin.vout), from_height, depth))
        return requests

    async def _follow(self, events: object) -> None:
        async for event in events:  # type: ignore[attr-defined]
            try:
                await until_there_is_room(partial(self._handle, event))
            except Exception:
                # One trade's trouble must not blind all others; the watch tells its state again at the next depth.
                log.exception("a chain event could not be handled")

    def _handle(self, event: ChainEvent) -> None:
        if isinstance(event, TipChanged):
            self.height = event.tip.height
            self._fire_heights()
            for listener in self._on_tip:
                listener(self.height)
            return
        trade_id, tag = event.key[:32], event.key[32]
        stored = self._engine.trades.get(trade_id)
        if stored is None:
            return
        trade_event = escrow_event(event) if tag == ESCROW else _input_event(event, stored.state)
        if trade_event is not None:
            self._apply(trade_id, trade_event)

    def _apply(self, trade_id: bytes, event: ev.TradeEvent) -> None:
        try:
            self._engine.apply(trade_id, event)
        except IllegalTransition as e:
            log.debug("dropped: %s", e.detail)

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _fire_heights(self) -> None:
        for timer in self._engine.trades.timers():
            if timer.at_height is not None and timer.at_height <= self.height:
                self._fire(timer.trade_id, timer.name)

    def _fire(self, trade_id: bytes, name: str) -> None:
        if self._engine.trades.is_held(trade_id):
            return
        with self._engine.trades.database.transaction():
            self._engine.trades.stop_timer(trade_id, name)
            self._apply(trade_id, ev.TimerFired(name))  # type: ignore[arg-type]  # only names that a trade set

    def _held(self, timer: Timer) -> bool:
        return self._engine.trades.is_held(timer.trade_id)

    async def _wall_clock(self) -> None:
        """Fire deadlines in seconds; sleep until the next one, or until one changes."""
        while True:
            self._timers_changed.clear()
            now = self._clock.now()
            due = [(t.at_time, t) for t in self._engine.trades.timers() if t.at_time is not None]
            for at_time, timer in due:
                if at_time <= now:
                    await until_there_is_room(partial(self._fire, timer.trade_id, timer.name))
            pending = [max(at_time - now, 1) for at_time, timer in due if at_time > now or self._held(timer)]
            # Not wait_for: on Python 3.11 it may swallow a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pending, default=None)):
                    await self._timers_changed.wait()


def escrow_event(event: ChainEvent) -> ev.TradeEvent | None:
    """What an event of a watch on an escrow's output means for its trade; None for none of a watch."""
    match event:
        case Seen():
            return ev.FundingSeen()
        case Confirmed(height=height, depth=depth):
            return ev.FundingConfirmed(depth, height)
        case Unseen() | Unconfirmed():
            return ev.FundingReorged()
        case SpentBy(txid=txid, depth=depth):
            return ev.EscrowSpent(txid, depth)
        case SpendUndone():
            return ev.SpendReorged()
        case TipChanged():
            return None
        case _:
            assert_never(event)


def _input_event(event: ChainEvent, state: TradeState) -> ev.TradeEvent | None:
    """Only a spend by another transaction than the funding matters; what created the input does not."""
    if isinstance(event, SpentBy) and state.facts is not None and event.txid != state.facts.funding_txid:
        return ev.FundingConflicted(event.txid, event.depth)
    return None
