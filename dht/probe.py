"""How a node keeps its table: probes, at a rate that does not depend on the size of the network. No I/O, no clock.

A probe is one question. It goes to the node heard longest ago or, every other time, to one that was named and would fit
the table, so that idle nodes get to know those that joined. It asks for the nodes at a place that the node asked knows
well and we know little of: at our own id when it is a neighbour, in its bucket while that has room. Where there is
nothing to learn it is a ping, which also tells at what address we are seen.

On joining, the larger parts of the network that are not ours get a glance each: two questions, the second to a node
that the first one named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dht import messages
from dht.contact import Contact
from dht.errors import BadPacket
from dht.messages import Op, Reply
from dht.rpc import Call

if TYPE_CHECKING:
    from dht.engine import Engine

WANT: Final = 15
"""Contacts asked for: the most that a request can name."""
PING_SHARE: Final = 0.125
"""Share of the probes that are pings in any case."""


def probe(engine: Engine, now: float) -> None:
    """Ask one node."""
    fresh = _named(engine) if engine.rng.random() < 0.5 else None
    contact = fresh or _quietest(engine)
    if contact is None:
        return
    target = None if engine.rng.random() < PING_SHARE else _place(engine, contact)
    if target is None:
        engine.ping(contact, now)
    else:
        engine.ask(contact, Op.FIND_NODE, messages.find_node_body(target, WANT), _Probe(engine), now)


def _quietest(engine: Engine) -> Contact | None:
    """The node heard longest ago: the first of a bucket, for buckets are kept in that order."""
    peers = engine.rpc.peers
    best: Contact | None = None
    when = float("inf")
    for bucket in engine.table.buckets:
        contact = next(iter(bucket.nodes.values()), None)
        if contact is None:
            continue
        peer = peers.get(contact.key)
        heard = peer.heard_at if peer is not None else -1e9
        if heard < when:
            best, when = contact, heard
    return best


def _named(engine: Engine) -> Contact | None:
    """A node that others named and that would fit, from the emptiest bucket; our neighbours first."""
    table = engine.table
    own = int.from_bytes(engine.own_id, "big")
    best: Contact | None = None
    fewest = table.ksize
    for bucket in table.buckets:
        if not bucket.named or len(bucket.nodes) >= fewest:
            continue
        closest = min(bucket.named.values(), key=lambda c: c.long_id ^ own)
        if not engine.is_late(closest):
            best, fewest = closest, len(bucket.nodes)
    return best


def _place(engine: Engine, contact: Contact) -> bytes | None:
    """The id that the node is asked for; None when it can tell us nothing new."""
    if engine.neighbour(contact):
        return engine.own_id
    bucket = engine.table.buckets[engine.table.get_bucket_for(contact)]
    return _spot(engine, bucket.low, bucket.bits) if len(bucket.nodes) < engine.table.ksize else None


def _spot(engine: Engine, low: int, bits: int) -> bytes:
    """A random id from `low` on whose last `bits` bits are free."""
    return (low + int(engine.rng.random() * (1 << bits))).to_bytes(20, "big")


class _Probe:
    """Notes who lives and whom it names."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """It lives."""
        self._engine.heard(call.peer.contact, now)
        try:
            self._engine.named(messages.contacts_of(reply.data))
        except BadPacket:
            return

    def late(self, call: Call, now: float) -> None:
        """It is not named to anybody for now."""
        del now
        self._engine.late(call.peer.contact)

    def failed(self, call: Call, now: float) -> None:
        """It is gone."""
        self._engine.lost(call.peer.contact, now)


class Glance:
    """Get to know a few nodes of one part of the network."""

    def __init__(self, engine: Engine, prefix: int, bits: int, done: Callable[[], None]) -> None:
        """The part: ids that begin with `prefix` and whose last `bits` bits are free."""
        self._engine = engine
        self._prefix, self._bits = prefix, bits
        self._target = _spot(engine, prefix << bits, bits)
        self._done = done
        self._left = 2

    def start(self, now: float) -> None:
        """Ask the node that we know closest to it."""
        known = self._engine.table.closest(int.from_bytes(self._target, "big"), 1, self._engine.is_late, named=True)
        self._ask(known, now)

    def _ask(self, known: list[Contact], now: float) -> None:
        body = messages.find_node_body(self._target, WANT)
        if not known or not self._left:
            self._done()
            return
        self._left -= 1
        if self._engine.ask(known[0], Op.FIND_NODE, body, self, now) is None:
            self._done()

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """It named some."""
        self._engine.heard(call.peer.contact, now)
        try:
            contacts = messages.contacts_of(reply.data)
        except BadPacket:
            contacts = []
        self._engine.named(contacts)
        inside = [c for c in contacts if c.long_id >> self._bits == self._prefix]
        self._ask(inside or contacts, now)

    def late(self, call: Call, now: float) -> None:
        """Wait: joining is in no hurry."""
        del now
        self._engine.late(call.peer.contact)

    def failed(self, call: Call, now: float) -> None:
        """Ask somebody else."""
        self._engine.lost(call.peer.contact, now)
        self.start(now)
