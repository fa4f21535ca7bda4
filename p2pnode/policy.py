"""What this node agrees to without asking its user: fee bands, load, confirmations. Set in the configuration."""

from __future__ import annotations

from msgspec import Struct

from p2pnode.tradestore import TradeStore
from protocol.contract import FeeTerms
from protocol.errors import PeerRefusal
from protocol.types import MAX_MONEY


class FeesRefused(PeerRefusal):
    """The fee rates that the peer proposes are outside this node's band."""

    code = 2150


class TooBusy(PeerRefusal):
    """This node has as many open trades as it takes."""

    code = 2151


class AmountRefused(PeerRefusal):
    """The amount is over what one trade may have on this node."""

    code = 2152


class TradePolicy(Struct, frozen=True):
    """Limits on trades. Fee rates in satoshis per 1,000 vB."""

    least_fee_rate: int = 1_000
    greatest_fee_rate: int = 500_000
    payout_band: int = 10
    """The greatest payout fee rate of a contract is the payout's rate times this, within `greatest_fee_rate`."""
    max_open_trades: int = 100
    max_amount: int = MAX_MONEY
    """Satoshis of one trade."""
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

    def check_load(self, trades: TradeStore) -> None:
        """Raises TooBusy."""
        if trades.count_open() >= self.max_open_trades:
            raise TooBusy

    def fees(self, rate: int) -> FeeTerms:
        """The fee terms that we propose when `rate` is what the chain asks for now."""
        fair = min(max(rate, self.least_fee_rate), self.greatest_fee_rate)
        return FeeTerms(funding=fair, payout=fair, payout_max=min(fair * self.payout_band, self.greatest_fee_rate))
