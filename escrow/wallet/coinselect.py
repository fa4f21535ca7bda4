"""Which coins pay: a party's share of an escrow, or a payment of our own. Pure, and the same for the same coins.

The order of preference:

1. one coin that needs no change (what is over is less than a change output is worth): the smallest such;
2. one coin with change: the smallest that covers, which leaves the large ones whole;
3. as few coins as possible: the largest first, and then the smallest that completes the sum.

Fewer inputs come first because each costs 68 vB and, in a trade, tells the counterparty of one more coin. `Price` says
what is paid for: a share pays for its own inputs and change only, as `escrow.shares` counts them; a payment for the
whole transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from escrow.sizes import (
    OVERHEAD_WEIGHT,
    P2WPKH_INPUT_WEIGHT,
    ROUNDING_WEIGHT,
    dust_limit,
    fee,
    output_weight,
)
from escrow.wallet.base import AmountBelowDust, InsufficientFunds, TooManyInputs, Utxo
from protocol.types import FeeRate, Sats

CHANGE_SCRIPT = b"\x00\x14" + bytes(20)
"""Of the form that all our change has; only its size matters."""
OWN_INPUT_WEIGHT = P2WPKH_INPUT_WEIGHT - 1
"""An input that we sign ourselves: its signature has a low R, always."""


class Price(msgspec.Struct, frozen=True):
    """What is paid for at `rate`: `base` weight units whatever coins are chosen, and so much for each input."""

    rate: FeeRate
    base: int = 0
    input: int = P2WPKH_INPUT_WEIGHT

    def fee(self, inputs: int, *, change: bool) -> Sats:
        """The fee with so many inputs."""
        return fee(self.base + self.input * inputs + (output_weight(len(CHANGE_SCRIPT)) if change else 0), self.rate)


class Choice(msgspec.Struct, frozen=True):
    """The chosen coins, and what comes back (0: no change output). `fee` is what remains for the miners."""

    coins: tuple[Utxo, ...]
    change: Sats
    fee: Sats


def whole(rate: FeeRate, *scripts: bytes) -> Price:
    """The price of a transaction of our own that pays to `scripts`, in whole virtual bytes."""
    base = OVERHEAD_WEIGHT + ROUNDING_WEIGHT + sum(output_weight(len(s)) for s in scripts)
    return Price(rate, base, OWN_INPUT_WEIGHT)


def choose(
    coins: Sequence[Utxo],
    target: Sats,
    price: Price,
    *,
    max_inputs: int,
    reserved: Sats = 0,
    pending: Sats = 0,
    unfit: Sats = 0,
) -> Choice:
    """Coins that cover `target` and the fee.

    `reserved`, `pending` and `unfit` are what else there is in the wallet, for the message. Raises InsufficientFunds,
    TooManyInputs, AmountBelowDust.
    """
    if target <= 0:
        raise AmountBelowDust("nothing to pay for")
    ranked = sorted(coins, key=lambda c: (c.value, c.outpoint))
    single = [c for c in (settle([coin], target, price) for coin in ranked) if c is not None]
    if single:
        return next((c for c in single if not c.change), single[0])
    total = 0
    for count, coin in enumerate(reversed(ranked), 1):
        total += coin.value
        if total < target + price.fee(count, change=False):
            continue
        if count > max_inputs:
            raise TooManyInputs
        chosen = ranked[len(ranked) - count :][::-1]
        # The last coin may be larger than it need be.
        for smaller in ranked[: len(ranked) - count + 1]:
            choice = settle([*chosen[:-1], smaller], target, price)
            if choice is not None:
                return choice
    needed = target + price.fee(max(1, len(ranked)), change=False)
    raise InsufficientFunds(needed, total, reserved, pending, unfit)


def settle(coins: Sequence[Utxo], target: Sats, price: Price) -> Choice | None:
    """What these coins leave after `target`; None if they do not cover it."""
    total = sum(c.value for c in coins)
    if total < target + price.fee(len(coins), change=False):
        return None
    change = total - target - price.fee(len(coins), change=True)
    if change < dust_limit(CHANGE_SCRIPT):
        change = 0
    return Choice(tuple(coins), change, total - target - change)
