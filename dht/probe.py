"""How a node keeps its table: probes, at a rate that does not depend on the size of the network. No I/O, no clock.

A probe is one question. It goes to the node heard longest ago or, every other time, to one that was named and would fit
the table, so that idle nodes get to know those that joined. It asks for the nodes at a place that the node asked knows
well and we know little of: at our own id when it is a neighbour, in its bucket while that has room. Where there is
nothing to learn it is a ping, which also tells at what address we are seen.
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
        peer = peers.get(contact.path)
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
    bucket = engine.table.bucket_of(contact)
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


class Meeting:
    """Asks one node, by one way, whether it is there: only an authenticated answer says so."""

    def __init__(self, engine: Engine, done: Callable[[bool], None]) -> None:
        self._engine = engine
        self._done = done

    def answered(self, call: Call, _reply: Reply, now: float) -> None:
        """It is."""
        self._engine.heard(call.peer.contact, now)
        self._done(True)

    def late(self, call: Call, now: float) -> None:
        """Wait."""

    def failed(self, _call: Call, _now: float) -> None:
        """It is not, or is another."""
        self._done(False)
