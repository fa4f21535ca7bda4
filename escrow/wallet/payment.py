"""Transactions of our own before they are signed: payments, sweeps, replacements, and children that pay for parents.

Pure. A `Draft` conserves value to the satoshi; inputs and outputs are sorted (BIP69), so that neither tells which
output is change, and the same request gives the same transaction on every engine. Nodes replace a transaction only for
a higher fee *and* for what relaying the new one costs (BIP125 rules 3 and 4): `INCREMENT` is Bitcoin Core's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from escrow.coins import OutPoint, TxOut
from escrow.sizes import OVERHEAD_WEIGHT, ROUNDING_WEIGHT, dust_limit, fee, output_weight
from escrow.transactions import REPLACEABLE, build
from escrow.wallet.base import AmountBelowDust, InsufficientFunds
from escrow.wallet.coinselect import OWN_INPUT_WEIGHT, Choice
from protocol.types import FeeRate, Sats

INCREMENT: Final[FeeRate] = 1_000
"""Satoshis per 1,000 vB that a replacement pays on top of what it replaces."""


class Coin(msgspec.Struct, frozen=True):
    """An output to spend."""

    outpoint: OutPoint
    value: Sats


class Draft(msgspec.Struct, frozen=True):
    """An unsigned transaction: `outputs` are the payees' and ours, `fee` is what the coins leave."""

    coins: tuple[Coin, ...]
    outputs: tuple[TxOut, ...]
    fee: Sats

    @property
    def unsigned(self) -> bytes:
        """Its serialisation."""
        return build([(c.outpoint, REPLACEABLE) for c in self.coins], self.outputs)


def draft(coins: Sequence[Coin], outputs: Sequence[TxOut]) -> Draft:
    """Put in order; what the outputs leave is the fee."""
    left = sum(c.value for c in coins) - sum(o.value for o in outputs)
    return Draft(
        tuple(sorted(coins, key=lambda c: (c.outpoint.txid[::-1], c.outpoint.vout))),
        tuple(sorted(outputs, key=lambda o: (o.value, o.script_pubkey))),
        left,
    )


def payment(choice: Choice, payee: TxOut, change_script: bytes) -> Draft:
    """What `coinselect.choose` chose, as a transaction."""
    change = [TxOut(choice.change, change_script)] if choice.change else []
    return draft([Coin(c.outpoint, c.value) for c in choice.coins], [payee, *change])


def sweep(coins: Sequence[Coin], script: bytes, rate: FeeRate, *, least: Sats) -> Draft:
    """All of `coins` to one output of at least `least` satoshis. Raises InsufficientFunds."""
    total = sum(c.value for c in coins)
    cost = fee(_weight(len(coins), [TxOut(0, script)]), rate)
    if not coins or total - cost < least:
        raise InsufficientFunds(cost + least, total, 0)
    return draft(coins, [TxOut(total - cost, script)])


def worthwhile(value: Sats, rate: FeeRate) -> bool:
    """Whether a coin brings more than its input costs."""
    return value > fee(OWN_INPUT_WEIGHT, rate)


def compose(
    fixed: Sequence[Coin],
    payees: Sequence[TxOut],
    own_script: bytes,
    needed: Callable[[int], Sats],
    spare: Sequence[Coin],
) -> Draft:
    """A transaction with all of `fixed`, the payees unchanged, and the rest to ourselves.

    `needed` tells the fee for a weight. As many of `spare` are added as it takes, in their order. Raises
    InsufficientFunds; AmountBelowDust when without payees nothing would be left.
    """
    paid = sum(o.value for o in payees)
    least = dust_limit(own_script)
    coins = list(fixed)
    more = iter(spare)
    while True:
        total = sum(c.value for c in coins)
        with_rest = [*payees, TxOut(0, own_script)]
        rest = total - paid - needed(_weight(len(coins), with_rest))
        if rest >= least:
            return draft(coins, [*payees, TxOut(rest, own_script)])
        # What is too small for an output of its own is left to the miners.
        if payees and total - paid >= needed(_weight(len(coins), payees)):
            return draft(coins, payees)
        coin = next(more, None)
        if coin is None:
            if not payees:
                raise AmountBelowDust("the coins are worth less than that fee")
            raise InsufficientFunds(paid + needed(_weight(len(coins), payees)), total, 0)
        coins.append(coin)


def replacement_fee(rate: FeeRate, replaced: Sats, *, deficit: Sats = 0) -> Callable[[int], Sats]:
    """The fee for a weight that reaches `rate`, makes good a parent's `deficit`, and may replace `replaced` satoshis.

    With nothing to replace, give 0.
    """

    def needed(weight: int) -> Sats:
        return max(fee(weight, rate) + deficit, replaced + fee(weight, INCREMENT) if replaced else 0)

    return needed


def _weight(inputs: int, outputs: Sequence[TxOut]) -> int:
    rest = sum(output_weight(len(o.script_pubkey)) for o in outputs)
    return OVERHEAD_WEIGHT + ROUNDING_WEIGHT + inputs * OWN_INPUT_WEIGHT + rest
