"""Fundings and payouts that wait are sent again, until they are buried.

A node forgets what waits: it restarts, its mempool fills up, a backend is replaced by another. So after a new block
every open trade is looked at. What our backend does not see is sent at once; what it sees waiting every few blocks
only, because a transaction that is always announced by the same node tells whose it is. Where the mempool's floor is
over what a transaction pays, it goes together with its child that pays for both, if the wallet has made one.

It decides nothing: which transactions may be sent follows from the trade's state (`p2pnode.completing`), and they
pass every gate again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from escrow.chain.base import Rejected
from escrow.chain.follow import FollowedChain
from escrow.coins import txid_text
from escrow.wallet.base import Wallet
from p2pnode.completing import funding_of, standing_payouts
from p2pnode.engine import Engine
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition, P2PError
from protocol.trade_state import TradeState

PACE: Final = 6
"""Blocks between two broadcasts of what our backend sees waiting."""
_FUNDED: Final = (st.Funding, st.Funded, st.Paying, st.Paid, st.Releasing, st.Settling)

log = logging.getLogger(__name__)


class Rebroadcaster:
    """Looks at every open trade after each block."""

    def __init__(self, engine: Engine, wallet: Wallet, chain: FollowedChain) -> None:
        self._engine = engine
        self._trades = engine.trades
        self._wallet = wallet
        self._chain = chain
        self._height = 0
        self._sent: dict[bytes, int] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Work after each block."""
        self._task = asyncio.create_task(self._run(), name="rebroadcast")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def new_tip(self, height: int) -> None:
        """There is a new block."""
        self._height = height
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for stored in self._trades.all(open_only=True):
                await self.look(stored.state)

    async def look(self, state: TradeState) -> None:
        """Send what of this trade waits and is due. What goes wrong is tried again at the next block."""
        if self._trades.pending_effects(state.trade_id):
            # The executor is about to do so.
            return
        try:
            if isinstance(state.phase, _FUNDED):
                await self._funding(state)
            await self._payout(state)
        except P2PError as e:
            log.info(
                "a transaction of a trade can't be sent again: %s", e.detail, extra={"trade": state.trade_id.hex()}
            )

    async def _funding(self, state: TradeState) -> None:
        facts = state.facts
        if facts is None or not self._due(facts.funding_txid, state.funding.depth):
            return
        # Only the seller has all witnesses; the buyer may have seen the whole.
        tx = await self._wallet.transaction(facts.funding_txid) if state.buys else funding_of(state)
        if tx is not None and await self._send(facts.funding_txid, tx) and not state.buys:
            self._tell(state, ev.FundingBroadcast())

    async def _payout(self, state: TradeState) -> None:
        for txid, tx in await self._payouts(state):
            if not self._due(txid, state.payout.depth):
                return
            if await self._send(txid, tx):
                if not isinstance(state.phase, st.Settling) or state.payout.lost:
                    released = state.facts is not None and txid == state.facts.payout_txid and not state.buys
                    self._tell(state, ev.PayoutBroadcast(txid) if released else dv.OutcomeBroadcast(txid))
                return

    async def _payouts(self, state: TradeState) -> list[tuple[bytes, bytes]]:
        """What we can send, the best first; else what was seen."""
        found = standing_payouts(state) if not _still_open(state) else []
        if not found and state.payout.txid is not None and state.payout.outcome is not None:
            seen = await self._wallet.transaction(state.payout.txid)
            found = [] if seen is None else [(state.payout.txid, seen)]
        return found

    def _due(self, txid: bytes, depth: int | None) -> bool:
        if depth:
            self._sent.pop(txid, None)
            return False
        return depth is None or self._height - self._sent.setdefault(txid, self._height) >= PACE

    async def _send(self, txid: bytes, tx: bytes) -> bool:
        """Whether our backend has it now."""
        self._sent[txid] = self._height
        try:
            await self._chain.broadcast(tx)
        except Rejected as e:
            child = await self._wallet.child_of(txid) if e.too_cheap else None
            if child is None:
                log.info("%s can't be sent again: %s", txid_text(txid), e.reason)
                return False
            await self._chain.broadcast_package([tx, child])
        return True

    def _tell(self, state: TradeState, event: ev.TradeEvent) -> None:
        try:
            self._engine.apply(state.trade_id, event)
        except IllegalTransition as e:
            # The chain was faster.
            log.debug("dropped: %s", e.detail)


def _still_open(state: TradeState) -> bool:
    """Whether the machine has not decided yet that a payout is to be broadcast."""
    agreed = any(o.complete for o in state.settlement.options)
    ruled = state.dispute is not None and any(r.own_signature is not None for r in state.dispute.rulings)
    return isinstance(state.phase, st.Funded | st.Paying | st.Paid) and not agreed and not ruled


def waiting(states: Iterator[TradeState], txid: bytes) -> bytes | None:
    """The signed funding or payout with this txid, if one of the trades has it whole; for a child that pays for it.

    Raises GateRefused.
    """
    for state in states:
        facts = state.facts
        if facts is not None and txid == facts.funding_txid and not state.buys and isinstance(state.phase, st.Funding):
            return funding_of(state)
        for known, tx in standing_payouts(state) if isinstance(state.phase, st.Releasing | st.Settling) else ():
            if known == txid:
                return tx
    return None
