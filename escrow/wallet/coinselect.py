"""Which coins pay a party's share of an escrow. Pure, and the same for the same coins.

BDK chooses for whole transactions of our own; here only a share is paid, in a transaction that two parties make and
whose common part is priced by the contract (`escrow.shares`). The order of preference:

1. one coin that needs no change (what is over is less than a change output is worth): the smallest such;
2. one coin with change: the smallest that covers, which leaves the large ones whole;
3. as few coins as possible: the largest first, and then the smallest that completes the sum.

Fewer inputs come first because each costs 68 vB and tells the counterparty of one more coin.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from escrow.sizes import P2WPKH_INPUT_WEIGHT, dust_limit, fee, output_weight
from escrow.wallet.base import AmountBelowDust, InsufficientFunds, TooManyInputs, Utxo
from protocol.types import FeeRate, Sats

_CHANGE_SCRIPT = b"\x00\x14" + bytes(20)
"""Of the form that all our change has; only its size matters."""


class Choice(msgspec.Struct, frozen=True):
    """The chosen coins, and what comes back (0: no change output). `fee` is what remains for the miners."""

    coins: tuple[Utxo, ...]
    change: Sats
    fee: Sats


def choose(
    coins: Sequence[Utxo], target: Sats, fee_rate: FeeRate, *, max_inputs: int, reserved: Sats = 0, pending: Sats = 0
) -> Choice:
    """Coins that cover `target` and the fee of their own inputs and change.

    `reserved` and `pending` are what else there is in the wallet, for the message. Raises InsufficientFunds,
    TooManyInputs, AmountBelowDust.
    """
    if target <= 0:
        raise AmountBelowDust("nothing to pay for")
    ranked = sorted(coins, key=lambda c: (c.value, c.outpoint))
    for coin in ranked:
        choice = settle([coin], target, fee_rate)
        if choice is not None and not choice.change:
            return choice
    for coin in ranked:
        choice = settle([coin], target, fee_rate)
        if choice is not None:
            return choice
    chosen: list[Utxo] = []
    for coin in reversed(ranked):
        chosen.append(coin)
        if settle(chosen, target, fee_rate) is None:
            continue
        # The last coin may be larger than it need be.
        for smaller in ranked:
            choice = settle([*chosen[:-1], smaller], target, fee_rate) if smaller not in chosen[:-1] else None
            if choice is not None:
                if len(choice.coins) > max_inputs:
                    raise TooManyInputs
                return choice
    total = sum(c.value for c in ranked)
    needed = target + fee(P2WPKH_INPUT_WEIGHT * max(1, len(ranked)), fee_rate)
    raise InsufficientFunds(needed, total, reserved, pending)


def settle(coins: Sequence[Utxo], target: Sats, fee_rate: FeeRate) -> Choice | None:
    """What these coins leave after `target`, counted as `escrow.funding` counts it; None if they do not cover it."""
    total = sum(c.value for c in coins)
    weight = P2WPKH_INPUT_WEIGHT * len(coins)
    if total < target + fee(weight, fee_rate):
        return None
    change = total - target - fee(weight + output_weight(len(_CHANGE_SCRIPT)), fee_rate)
    if change < dust_limit(_CHANGE_SCRIPT):
        change = 0
    return Choice(tuple(coins), change, total - target - change)
