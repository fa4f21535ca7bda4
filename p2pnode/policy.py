"""What this node agrees to without asking its user: fee bands, load, confirmations. Set in the configuration."""

from __future__ import annotations

from msgspec import Struct

from p2pnode.tradestore import TradeStore
from protocol.contract import FeeTerms
from protocol.errors import PeerRefusal
from protocol.offer import FixedPrice, Offer, price_at
from protocol.types import MAX_MONEY, PPM, Side


class FeesRefused(PeerRefusal):
    """The fee rates that the peer proposes are outside this node's band."""

    code = 2150


class TooBusy(PeerRefusal):
    """This node has as many open trades as it takes."""

    code = 2151


class AmountRefused(PeerRefusal):
    """The amount is over what one trade may have on this node."""

    code = 2152


class PriceRefused(PeerRefusal):
    """The price is not the offer's, or not the market's as this node sees it."""

    code = 2153


class TradePolicy(Struct, frozen=True):
    """Limits on trades. Fee rates in satoshis per 1,000 vB."""

    least_fee_rate: int = 1_000
    greatest_fee_rate: int = 500_000
    payout_band: int = 10
    """The greatest payout fee rate of a contract is the payout's rate times this, within `greatest_fee_rate`."""
    max_open_trades: int = 100
    max_amount: int = MAX_MONEY
    """Satoshis of one trade."""
    price_tolerance: int = 10_000
    """How far, in ppm, a taker's price of an offer at market price may lie from our own."""
    confirmations: int = 1
    """Least confirmations of an escrow before money is paid."""

    def check_fees(self, fees: FeeTerms) -> None:
        """Raises FeesRefused."""
        for name, rate in (("funding", fees.funding), ("payout", fees.payout), ("greatest payout", fees.payout_max)):
            if not self.least_fee_rate <= rate <= self.greatest_fee_rate:
                raise FeesRefused(
                    f"the {name} fee rate of {rate} sat/kvB is outside "
                    f"{self.least_fee_rate} to {self.greatest_fee_rate}"
                )

    def check_amount(self, amount: int) -> None:
        """Raises AmountRefused."""
        if amount > self.max_amount:
            raise AmountRefused(f"{amount:,} sat is over the {self.max_amount:,} sat that one trade may have")

    def check_price(self, offer: Offer, price: int, market: int | None) -> None:
        """The exact price of a take; `market` is our own market price now. Raises PriceRefused."""
        ours = price_at(offer.price, offer.side, market)
        if isinstance(offer.price, FixedPrice):
            if price != ours:
                raise PriceRefused("the price is not the offer's")
            return
        if ours is None:
            raise PriceRefused(f"this node has no market price of {offer.currency} now")
        limit = offer.price.limit
        if limit is not None and (price > limit if offer.side is Side.BUY else price < limit):
            raise PriceRefused("the price is past the offer's limit")
        if abs(price - ours) * PPM > ours * self.price_tolerance:
            raise PriceRefused(f"the price is more than {self.price_tolerance} ppm off this node's own")

    def check_load(self, trades: TradeStore) -> None:
        """Raises TooBusy."""
        if trades.count_open() >= self.max_open_trades:
            raise TooBusy

    def fees(self, rate: int) -> FeeTerms:
        """The fee terms that we propose when `rate` is what the chain asks for now."""
        fair = min(max(rate, self.least_fee_rate), self.greatest_fee_rate)
        return FeeTerms(funding=fair, payout=fair, payout_max=min(fair * self.payout_band, self.greatest_fee_rate))
