"""The user's commands to trades, and what the user sees of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pnode.api.schema import CancelRequest, PayRequest, RaiseFeeRequest, TradeList, TradeView
from p2pnode.engine import Engine
from p2pnode.services.views import TradeViews
from protocol.dispute_events import RaiseFee
from protocol.trade_events import Cancel, Command, DeclarePaid, Release


class TradeService:
    """`api.services.Trades` over the engine."""

    def __init__(self, engine: Engine, views: TradeViews, fee_rate: Callable[[], Awaitable[int]]) -> None:
        """`fee_rate` tells what the chain asks now, in satoshis per 1,000 vB."""
        self._engine = engine
        self._views = views
        self._fee_rate = fee_rate

    async def list(self, *, open_only: bool) -> TradeList:
        """Newest first, without steps."""
        return TradeList(trades=self._views.list(open_only=open_only))

    async def show(self, trade: str) -> TradeView:
        """One trade, with its steps."""
        return self._views.show(self._views.find(trade).state.trade_id)

    async def pay(self, trade: str, request: PayRequest) -> TradeView:
        """Buyer: declare the payment. Raises IllegalTransition."""
        return self._command(trade, DeclarePaid(request.note))

    async def release(self, trade: str) -> TradeView:
        """Seller: give the coins. Raises IllegalTransition."""
        return self._command(trade, Release())

    async def raise_fee(self, trade: str, request: RaiseFeeRequest) -> TradeView:
        """Either: sign the payout that waits again, at a higher fee rate. Raises IllegalTransition, ChainError."""
        rate = request.fee_rate_sats_per_kvb
        return self._command(trade, RaiseFee(await self._fee_rate() if rate is None else rate))

    async def cancel(self, trade: str, request: CancelRequest) -> TradeView:
        """Leave a trade that is not funded. Raises IllegalTransition."""
        return self._command(trade, Cancel(request.reason))

    def _command(self, trade: str, command: Command) -> TradeView:
        trade_id = self._views.find(trade).state.trade_id
        self._engine.apply(trade_id, command)
        return self._views.show(trade_id)
