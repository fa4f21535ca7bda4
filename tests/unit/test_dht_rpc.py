"""How long a node is waited for."""

from __future__ import annotations

import random

from dht.contact import Contact, intern_contact
from dht.messages import Op, Reply, Request
from dht.rpc import Call, Peer, Rpc
from protocol.identity import SigningKey
from protocol.types import Network

HERE, THERE = ("127.0.0.1", 4_000), ("127.0.0.2", 4_000)


class Answers:
    """A node that answers pings."""

    def serve(
        self, request: Request, peer: Peer, address: tuple[str, int], *, proved: bool, room: int, now: float
    ) -> bytes:
        """An empty answer."""
        del request, peer, address, proved, room, now
        return b"\0"


class Ear:
    """Notes nothing."""

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """Fine."""

    def late(self, call: Call, now: float) -> None:
        """Well."""

    def failed(self, call: Call, now: float) -> None:
        """Never mind."""


class Pair:
    """Two nodes and the time between them."""

    def __init__(self) -> None:
        self.wire: list[bytes] = []
        self.back: list[bytes] = []
        rng = random.Random(5)
        print("seed 5")
        self.asker = Rpc(SigningKey(b"a" * 32), Network.REGTEST, send=lambda d, _: self.wire.append(d), rng=rng)
        self.slow = Rpc(
            SigningKey(b"b" * 32),
            Network.REGTEST,
            send=lambda d, _: self.back.append(d),
            rng=rng,
            exempt=lambda _: True,
        )
        self.slow.server = Answers()
        self.contact = intern_contact(Contact(self.slow.key.public, *THERE))
        self.now = 1_000.0

    def ask(self, seconds: float) -> float:
        """One question, answered after so long; how long it was waited for before it was sent again."""
        call = self.asker.call(self.contact, Op.PING, b"", Ear(), self.now)
        waited, until = call.rto, self.now + seconds
        while (deadline := self.asker.deadline) is not None and deadline < until:
            self.asker.tick(deadline)
        self.now = until
        for datagram in self.wire:
            self.slow.receive(datagram, HERE, self.now)
        for datagram in self.back:
            self.asker.receive(datagram, THERE, self.now)
        self.wire.clear()
        self.back.clear()
        return waited


def test_a_node_that_became_slow_is_not_asked_twice_for_ever() -> None:
    """To send everything twice to a node that can't keep up makes it slower still."""
    pair = Pair()
    for _ in range(20):
        pair.ask(0.02)
    assert pair.ask(0.3) < 0.1, "it was quick until now"
    assert pair.ask(0.3) >= 0.29
    retries = pair.asker.totals.retries
    for _ in range(20):
        pair.ask(0.3)
    assert pair.asker.totals.retries == retries


def test_one_lost_datagram_is_forgotten_soon() -> None:
    pair = Pair()
    for _ in range(20):
        pair.ask(0.02)
    pair.ask(0.1)
    for _ in range(12):
        pair.ask(0.02)
    assert pair.ask(0.02) < 0.07


def test_a_quick_node_that_is_held_up_for_a_quarter_of_a_second_is_not_given_up() -> None:
    pair = Pair()
    for _ in range(20):
        pair.ask(0.001)
    assert pair.ask(0.25) < 0.05, "somebody else is asked soon"
    assert pair.asker.totals.failures == 0
