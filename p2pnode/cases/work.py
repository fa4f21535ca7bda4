"""Acting on cases: the escrow is watched, and rulings are signed (DESIGN section 3, act after the commit).

One worker does the effects of all cases in order; what may succeed later is tried again with growing pauses. A ruling
is signed from the decision that the effect carries, and Ed25519 and RFC 6979 make the same bytes each time, so a crash
between signing and its record changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final, assert_never

from escrow.chain.base import ChainBackend, ChainEvent, TipChanged, WatchRequest
from escrow.coins import OutPoint
from escrow.funding import derive_funding
from escrow.keys import arbiter_secret
from escrow.payout import derive_payout, sign_payout
from p2pnode.cases.engine import CaseEngine, HeldCase
from p2pnode.cases.store import PendingCaseEffect
from p2pnode.chainwatch import REORG_MARGIN, escrow_event
from p2pnode.database import until_there_is_room
from p2pnode.keyring import Keyring
from protocol.case_events import (
    CaseChainFact,
    CaseState,
    CaseTimerFired,
    Decision,
    RulingSigned,
    SignRuling,
    StopWatchingCase,
    WatchCase,
)
from protocol.errors import IllegalTransition, LocalError, P2PError
from protocol.ruling import Ruling, arbiter_of, text_hash
from protocol.wire import Kind, pack

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 60.0
WATCH_PREFIX: Final = b"case"
"""In front of a trade id it makes the key of a case's watch: a trader's own watches begin with the trade id."""

log = logging.getLogger(__name__)


class NoSuchArbiter(LocalError):
    """The contract of the case names another arbiter than this node."""

    code = 1306


class CaseWork:
    """Watches escrows of cases, fires deadlines, signs rulings."""

    def __init__(self, engine: CaseEngine, backend: ChainBackend, keyring: Keyring) -> None:
        self._engine = engine
        self._backend = backend
        self._keyring = keyring
        self._kicked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.height = 0
        engine.subscribe(lambda _state: self._kicked.set())

    async def start(self) -> None:
        """Follow the chain, arm the watches, take up what an earlier run left."""
        self.height = (await self._backend.tip()).height
        events = self._backend.events()
        self._tasks = [
            asyncio.create_task(self._follow(events), name="case-chain"),
            asyncio.create_task(self._drain(), name="case-effects"),
        ]
        requests = [
            self._request(stored.state, stored.watch_from)
            for stored in self._engine.cases.all()
            if stored.watch_from is not None
        ]
        if requests:
            await self._backend.watch_many(requests)
        self._fire()
        self._kicked.set()

    async def close(self) -> None:
        """Stop; what is not done is taken up at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the chain ----------------------------------------------------------------------------------------------

    async def _follow(self, events: object) -> None:
        async for event in events:  # type: ignore[attr-defined]
            try:
                await until_there_is_room(partial(self._handle, event))
            except Exception:
                # One case's trouble must not blind all others; the watch tells its state again at the next depth.
                log.exception("a chain event could not be handled")

    def _handle(self, event: ChainEvent) -> None:
        if isinstance(event, TipChanged):
            self.height = event.tip.height
            self._fire()
            return
        if not event.key.startswith(WATCH_PREFIX):
            return
        fact = escrow_event(event)
        if isinstance(fact, CaseChainFact):
            self._apply(event.key.removeprefix(WATCH_PREFIX), fact)

    def _fire(self) -> None:
        for trade_id, name, height in self._engine.cases.timers():
            if height <= self.height:
                with self._engine.cases.database.transaction():
                    self._engine.cases.stop_timer(trade_id, name)
                    self._apply(trade_id, CaseTimerFired(name))

    def _apply(self, trade_id: bytes, event: CaseChainFact | CaseTimerFired) -> None:
        try:
            self._engine.apply(trade_id, event)
        except IllegalTransition as e:
            log.debug("dropped: %s", e.detail)

    def _request(self, state: CaseState, height: int) -> WatchRequest:
        plan = derive_funding(state.contract, state.network)
        return WatchRequest(
            WATCH_PREFIX + state.trade_id,
            plan.escrow.script_pubkey,
            OutPoint(plan.txid, plan.escrow_vout),
            max(0, height - REORG_MARGIN),
            max(state.contract.confirmations, 6),
        )

    # --- effects ------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._kicked.clear()
            failed = False
            for pending in self._engine.cases.pending_effects():
                try:
                    await self._run(pending)
                except P2PError as e:
                    log.warning("%s waits: %s", type(pending.effect).__name__, e.detail)
                    failed = True
                except Exception:
                    log.exception("%s failed", type(pending.effect).__name__)
                    failed = True
            if failed:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            elif not self._engine.cases.pending_effects():
                pause = FIRST_PAUSE
                await self._kicked.wait()

    async def _run(self, pending: PendingCaseEffect) -> None:
        stored = self._engine.cases.get(pending.trade_id)
        if stored is None:
            self._engine.cases.finish_effect(pending.id)
            return
        effect, state = pending.effect, stored.state
        match effect:
            case WatchCase():
                if stored.watch_from is not None:
                    await self._backend.watch(self._request(state, stored.watch_from))
            case StopWatchingCase():
                self._engine.cases.set_watch(state.trade_id, None)
                await self._backend.unwatch(WATCH_PREFIX + state.trade_id)
            case SignRuling(decision):
                if self._engine.is_held(state.trade_id):
                    raise HeldCase
                signed = self._sign(state, decision)
                try:
                    self._engine.apply(state.trade_id, signed, done=pending.id)
                except IllegalTransition as e:
                    # The escrow was paid out meanwhile: this signature never leaves.
                    log.info("a ruling came too late: %s", e.detail)
                    self._engine.cases.finish_effect(pending.id)
                return
            case _:
                assert_never(effect)
        self._engine.cases.finish_effect(pending.id)

    def _sign(self, state: CaseState, decision: Decision) -> RulingSigned:
        """The ruling of a recorded decision: the payout's signature, then the persona's over all of it."""
        terms = arbiter_of(state.contract, decision.outcome.branch)
        if terms is None or not self._keyring.owns(terms.persona):
            raise NoSuchArbiter
        outcome = decision.outcome
        plan = derive_payout(state.contract, state.network, outcome)
        secret = arbiter_secret(self._keyring.arbiter_secret(terms.persona), state.contract_id)
        ruling = Ruling(
            arbiter=terms.persona,
            contract_id=state.contract_id,
            branch=outcome.branch,
            buyer_share=outcome.buyer_share,
            forfeit=outcome.forfeit,
            fee=terms.fee,
            fee_script=outcome.fee_script,
            rate=outcome.rate,
            reason=decision.reason,
            text_hash=text_hash(decision.text),
            buyer_head=decision.buyer_head,
            seller_head=decision.seller_head,
            payout_signature=sign_payout(plan, secret),
        )
        envelope = self._keyring.persona_key(terms.persona).seal(Kind.RULING, state.network, pack(ruling))
        return RulingSigned(envelope.raw, plan.txid)
