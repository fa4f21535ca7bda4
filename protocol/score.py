"""What a history is worth, and what it would cost to forge it (SPEC section 14.4). Integers only.

Personas are free, so nothing counts that is free. A receipt counts for what the chain shows: the satoshis that it
moved, the fees that were burnt, the blocks for which coins were locked. The credit of one receipt is

    cost   = payout fee + value * blocks locked * 2% a year
    credit = min(value / 1000, 4 * cost)

so a satoshi of cost buys at most four points, whatever a ring of personas does with each other, and no fee makes a tiny
trade a great one. The n-th receipt with one counterparty counts 1/n. A young receipt counts half, an old one whole:
(age + 4320) / (age + 8640), in blocks. All three factors are at most one: the bound holds for every history.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from protocol.bond import YEAR_BLOCKS
from protocol.types import PPM

INTEREST: Final = 20_000
"""What locking coins for a year costs, in ppm."""
LEVERAGE: Final = 4
"""Points that a satoshi of provable cost can buy, at most."""
VALUE_SHARE: Final = 1_000
"""One point for so many satoshis of value, at most."""
RIPE_BLOCKS: Final = 4_320
SATS_A_POINT: Final = 100
"""Cost that stands behind one point of an arbiter's rank."""
LATE_PENALTY: Final = 10
MAX_WEEKS: Final = 52
REFERENCE_AMOUNT: Final = 1_000_000
"""Satoshis for which fees are compared when no amount is given."""


class Proved(Struct, frozen=True):
    """A receipt as the reader's own chain shows it, from one party's view. Satoshis and heights."""

    counterparty: bytes
    value: int
    fee: int
    funded: int
    paid: int

    @property
    def locked(self) -> int:
        """For how many blocks the coins lay in escrow."""
        return max(0, self.paid - self.funded)

    @property
    def cost(self) -> int:
        """Satoshis that this receipt provably cost whoever made it."""
        return self.fee + lock_cost(self.value, self.locked)

    @property
    def credit(self) -> int:
        """Points of this receipt alone, before repetition and age."""
        return min(self.value // VALUE_SHARE, LEVERAGE * self.cost)


class ForgingCost(Struct, frozen=True):
    """What it would take to forge a history: `fees` burnt, and `locked` satoshis locked for `blocks` blocks."""

    fees: int
    locked: int
    blocks: int

    @property
    def sats(self) -> int:
        """Both as satoshis."""
        return self.fees + lock_cost(self.locked, self.blocks)


def lock_cost(value: int, blocks: int) -> int:
    """What it costs to do without `value` satoshis for `blocks` blocks."""
    return value * blocks * INTEREST // (PPM * YEAR_BLOCKS)


def score(history: Iterable[Proved], tip: int) -> int:
    """Points of a history at the height `tip`: at most LEVERAGE times what forging it costs."""
    seen: dict[bytes, int] = {}
    total = 0
    # The best ones first: what a counterparty adds does not depend on the order of its trades.
    for receipt in sorted(history, key=lambda r: (-r.credit, r.paid, r.counterparty)):
        seen[receipt.counterparty] = seen.get(receipt.counterparty, 0) + 1
        age = max(0, tip - receipt.paid)
        total += receipt.credit * (age + RIPE_BLOCKS) // ((age + 2 * RIPE_BLOCKS) * seen[receipt.counterparty])
    return total


def forging_cost(history: Iterable[Proved]) -> ForgingCost:
    """What the receipts of a history cost, at least. The same coins may have served one trade after the other."""
    receipts = list(history)
    blocks = sum(r.locked for r in receipts)
    most = max((r.value for r in receipts), default=0)
    locked = sum(r.value * r.locked for r in receipts) // blocks if blocks else most
    return ForgingCost(sum(r.fee for r in receipts), locked, blocks)


class ArbiterMerit(Struct, frozen=True):
    """Why an arbiter stands where it stands: points, each of which stands for some SATS_A_POINT of cost, or a week."""

    bond: int
    rulings: int
    late: int
    weeks: int
    fee: int

    @property
    def points(self) -> int:
        """The sum; a higher one ranks first."""
        return self.bond + self.rulings + self.weeks - self.late - self.fee


def arbiter_merit(
    *, bond_worth: int, rulings: Iterable[Proved], late: int, weeks: int, fee: int, amount: int
) -> ArbiterMerit:
    """The rank of an arbiter for a trade of `amount` satoshis at a `fee` in satoshis.

    `bond_worth` in satoshi-years, checked on chain; `rulings` kept in time and paid out, `late` their number that were
    not; `weeks` since it was first seen here, or since its bond was made.
    """
    return ArbiterMerit(
        bond=bond_worth * INTEREST // PPM // SATS_A_POINT,
        rulings=sum(r.credit for r in rulings) // (LEVERAGE * SATS_A_POINT),
        late=late * LATE_PENALTY,
        weeks=min(weeks, MAX_WEEKS),
        fee=fee * 1_000 // max(amount, 1),
    )
