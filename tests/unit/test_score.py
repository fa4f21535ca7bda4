"""What a history is worth, and that nobody buys it cheaper than it says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from protocol.bond import YEAR_BLOCKS, bond_worth
from protocol.score import (
    LEVERAGE,
    Proved,
    arbiter_merit,
    forging_cost,
    lock_cost,
    score,
)

TIP = 1_000_000

receipts = some.builds(
    Proved,
    some.sampled_from([bytes([n]) * 32 for n in range(4)]),
    some.integers(0, 10**10),
    some.integers(0, 10**6),
    some.integers(0, TIP),
    some.integers(0, TIP),
)


def wash(rng: random.Random, names: int, trades: int) -> tuple[list[list[Proved]], int]:
    """A ring trades with itself as cheaply or dearly as it likes: each name's history, and what the ring paid."""
    histories: list[list[Proved]] = [[] for _ in range(names)]
    paid = 0
    for _ in range(trades):
        one, other = rng.sample(range(names), 2)
        value, fee = rng.choice([(10_000, 200), (10**6, 300), (10**9, 300), (10**7, 50_000)])
        funded = rng.randrange(TIP - 50_000)
        locked = rng.choice([1, 6, 144, 4_000])
        for me, peer in ((one, other), (other, one)):
            histories[me].append(Proved(bytes([peer]) * 32, value, fee, funded, funded + locked))
        paid += fee + lock_cost(value, locked)
    return histories, paid


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_of_names_buys_no_more_points_than_its_satoshis(seed: int) -> None:
    """Whatever it does with itself: at most LEVERAGE points a satoshi for a name, and each trade serves two names."""
    rng = random.Random(seed)
    histories, paid = wash(rng, names=rng.randrange(2, 20), trades=rng.randrange(1, 200))
    assert sum(score(h, TIP) for h in histories) <= 2 * LEVERAGE * paid
    for history in histories:
        assert score(history, TIP) <= LEVERAGE * sum(r.cost for r in history)


def test_splitting_trades_over_more_names_lifts_only_what_repetition_took() -> None:
    """A hundred trades with one friend are worth little; with a hundred bought names they cost as many fees."""
    friend = [Proved(b"f" * 32, 10**6, 300, 1_000, 1_006)] * 100
    ring = [Proved(n.to_bytes(32, "big"), 10**6, 300, 1_000, 1_006) for n in range(100)]
    assert score(friend, TIP) < score(ring, TIP) // 15
    assert score(ring, TIP) <= LEVERAGE * 100 * (300 + 2)


@given(some.lists(receipts, max_size=30), some.integers(0, 2 * TIP))
def test_the_bound_holds_for_every_history(history: list[Proved], tip: int) -> None:
    assert 0 <= score(history, tip) <= LEVERAGE * sum(r.cost for r in history)
    assert score(history, tip) <= sum(r.value for r in history) // 1_000 + len(history)


@given(some.lists(receipts, max_size=20), some.randoms())
def test_the_order_of_records_changes_nothing(history: list[Proved], rng: random.Random) -> None:
    shuffled = list(history)
    rng.shuffle(shuffled)
    assert score(shuffled, TIP) == score(history, TIP)


def test_what_counts_are_value_cost_counterparties_and_age() -> None:
    plain = Proved(b"a" * 32, 10**6, 300, 500_000, 500_010)
    base = score([plain], TIP)
    assert base > 0
    assert score([Proved(b"a" * 32, 10**7, 300, 500_000, 500_010)], TIP) > base
    assert score([Proved(b"a" * 32, 10**6, 100, 500_000, 500_010)], TIP) < base
    assert score([plain, plain], TIP) < score([plain, Proved(b"b" * 32, 10**6, 300, 500_000, 500_010)], TIP)
    assert score([plain], 500_010) == plain.credit // 2
    # No fee makes a trade of a few satoshis a great one.
    assert score([Proved(b"a" * 32, 10_000, 10**6, 500_000, 500_010)], TIP) <= 10


def test_no_history_is_neither_good_nor_bad() -> None:
    assert score([], TIP) == 0
    assert forging_cost([]).sats == 0


def test_the_price_of_a_forged_history_is_what_the_chain_shows() -> None:
    cost = forging_cost([Proved(b"a" * 32, 1_000, 10, 0, 30), Proved(b"b" * 32, 4_000, 20, 50, 60)])
    assert (cost.fees, cost.locked, cost.blocks) == (30, 1_750, 40)


def test_a_bond_is_worth_amount_times_time_and_splitting_it_gains_nothing() -> None:
    assert bond_worth(10**8, YEAR_BLOCKS) == 10**8
    assert bond_worth(10**8, YEAR_BLOCKS // 2) == 10**8 // 2
    assert bond_worth(10**8, 10 * YEAR_BLOCKS) == 10**8
    assert bond_worth(10**8, 0) == bond_worth(10**8, -5) == 0
    assert 2 * bond_worth(10**8, 1_000) <= bond_worth(2 * 10**8, 1_000) + 1


def test_an_arbiter_ranks_by_bond_rulings_age_and_fee() -> None:
    def points(**changes: object) -> int:
        usual: dict[str, object] = {"bond_worth": 0, "rulings": (), "late": 0, "weeks": 10, "fee": 10_000}
        return arbiter_merit(amount=10**6, **(usual | changes)).points  # type: ignore[arg-type]

    ruled = Proved(bytes(32), 10**7, 2_000, 100, 200)
    base = points()
    assert points(bond_worth=10**7) > base
    assert points(rulings=(ruled,)) > base
    assert points(weeks=20) > base > points(weeks=0)
    assert points(fee=5_000) > base
    assert points(late=1) < base
    assert points(weeks=10_000) == points(weeks=52)
