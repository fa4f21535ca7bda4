"""The relay's rate: shared evenly, never exceeded, and nobody starved."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.reach.pacing import MAX_TICKET, Pacer

RATE = 100_000.0


def saturate(wishes: dict[str, int], seconds: float, *, client_rate: float = RATE, size: int = 10_000) -> Counter[str]:
    """Bytes granted to clients that each keep so many tickets waiting."""
    pacer: Pacer[tuple[str, int]] = Pacer(rate=RATE, client_rate=client_rate)
    sent: Counter[str] = Counter()
    now = 0.0
    for client, tickets in wishes.items():
        for _ in range(tickets):
            pacer.ask(client, size, (client, size), now)
    while now < seconds:
        for client, granted in pacer.granted(now):
            sent[client] += granted
            pacer.ask(client, size, (client, size), now)
        wait = pacer.wait(now)
        assert wait is not None
        now += max(wait, 0.01)
    return sent


def test_client_with_many_circuits_gets_no_more_than_one_with_a_single_one() -> None:
    sent = saturate({"loud": 50, "quiet": 1}, 20)
    # The first second's worth comes at once, and the quiet one asks for one ticket at a time.
    assert sent["loud"] - sent["quiet"] <= RATE


def test_total_rate_is_kept_whatever_is_asked() -> None:
    sent = saturate({str(n): 5 for n in range(7)}, 30)
    assert sum(sent.values()) <= RATE * 31 + MAX_TICKET
    assert sum(sent.values()) >= RATE * 29


def test_one_client_alone_is_held_to_its_own_rate() -> None:
    sent = saturate({"alone": 10}, 30, client_rate=RATE / 4)
    assert sent["alone"] <= RATE / 4 * 30 + MAX_TICKET


def test_newcomer_is_served_before_the_backlog_of_others() -> None:
    pacer: Pacer[str] = Pacer(rate=RATE, client_rate=RATE)
    for _ in range(100):
        pacer.ask("loud", MAX_TICKET, "loud", 0.0)
    pacer.granted(0.0)
    pacer.ask("new", 1_000, "new", 1.0)
    assert pacer.granted(1.0)[:2].index("new") <= 1


def test_client_back_from_a_pause_gets_no_arrears() -> None:
    pacer: Pacer[str] = Pacer(rate=RATE, client_rate=RATE)
    pacer.ask("early", 1_000, "early", 0.0)
    pacer.granted(0.0)
    for second in range(1, 50):
        pacer.ask("steady", 50_000, "steady", float(second))
        pacer.granted(float(second))
    for _ in range(20):
        pacer.ask("early", 50_000, "early", 50.0)
        pacer.ask("steady", 50_000, "steady", 50.0)
    order: list[str] = []
    for tenth in range(100):
        order += pacer.granted(50.0 + tenth / 10)
    assert "steady" in order[:3]


def test_clients_that_are_gone_are_forgotten() -> None:
    pacer: Pacer[str] = Pacer(rate=RATE, client_rate=RATE)
    for n in range(500):
        pacer.ask(str(n), 10, "x", 0.0)
    pacer.granted(0.0)
    pacer.granted(10.0)
    assert pacer._clients == {}
    assert pacer.wait(10.0) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, MAX_TICKET)), min_size=1, max_size=40))
def test_every_ticket_is_granted_once_within_the_time_it_takes(asked: list[tuple[str, int]]) -> None:
    pacer: Pacer[int] = Pacer(rate=RATE, client_rate=RATE)
    for number, (client, size) in enumerate(asked):
        pacer.ask(client, size, number, 0.0)
    granted: list[int] = []
    now = 0.0
    while (wait := pacer.wait(now)) is not None:
        now += wait
        granted += pacer.granted(now)
    assert sorted(granted) == list(range(len(asked)))
    assert now <= sum(size for _, size in asked) / RATE + 1
