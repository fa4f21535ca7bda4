"""Searches beside a crowded target, for those whom the crowd hides (ADR 0005). No I/O, no clock.

Identities packed around a key fill every list of those closest to it, so whoever is asked for that place names them,
honest or not. Asked for a place beside it, honest nodes name others. Three searches at points a half to twice the
reach away find nearly everybody. Where fewer are found than live in such a place by chance, three more go out, twice as
wide and from other nodes of our own table.

A search beside is deaf to the crowd, and to more than a few nodes of any other cell: around the next key, a reach
away, may be a crowd as well, and it would fill the search just the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dht.contact import ID_BITS, Contact
from dht.lookup import ANCHORS, PACKED, Lookup
from dht.search import FindNodes, Search

if TYPE_CHECKING:
    from dht.engine import Engine


def look(engine: Engine, search: Search, now: float, *, again: bool) -> None:
    """Search beside the target of `search`, which is told by `found_beside`. `again`: the first time was not enough."""
    lookup = search.lookup
    top = max(1, lookup.reach.bit_length() - 1)
    bits = [bit for bit in (top - 1, top, top + 1) if bit < ID_BITS]
    lookup.beside += len(bits)
    for bit in bits:
        number = lookup.target ^ (1 << bit | int(engine.rng.random() * (1 << bit)))
        there = aside(engine, number, lookup, again=again)
        engine.start(_Beside(engine, number.to_bytes(20, "big"), there, search, again=again), now)


def aside(engine: Engine, point: int, lookup: Lookup, *, again: bool) -> Lookup:
    """A search at a point near a crowd that hears of the crowd neither from us nor from others."""
    target, radius, bits = lookup.target, lookup.reach // 2, lookup.cell_bits
    packed = lookup.packed()
    held: dict[int, int] = {}

    def crowd(contact: Contact) -> bool:
        distance = contact.long_id ^ target
        return distance <= radius or distance >> bits in packed

    def avoid(contact: Contact) -> bool:
        if crowd(contact):
            return True
        cell = contact.long_id >> bits
        held[cell] = count = held.get(cell, 0) + 1
        return count > PACKED

    k = engine.config.k * (1 + again)
    known = engine.table.closest(point, 2 * engine.config.k, lambda c: crowd(c) or engine.is_late(c))
    return Lookup(
        point,
        # Who lives near the crowd knows best who else does, when asked for another place than the crowd's.
        [*known, *sorted(lookup.known(), key=lambda c: c.long_id ^ point)],
        own_id=engine.own_id,
        k=k,
        alpha=engine.config.alpha,
        anchors=known[ANCHORS : 3 * ANCHORS] if again else known[:ANCHORS],
        exempt=engine.exempt,
        avoid=avoid,
        plain=True,  # one step aside is enough
    )


class _Beside(FindNodes):
    """A search beside the target of another one, for its sake."""

    def __init__(self, engine: Engine, point: bytes, lookup: Lookup, of: Search, *, again: bool) -> None:
        super().__init__(engine, point, lookup, lambda _: None)
        self._of = of
        self._again = again

    def _ended(self, now: float) -> None:
        if not self._of.over:
            # When few were found before: those, too, whom nobody reached yet.
            self._of.found_beside(self.lookup.known() if self._again else self.lookup.closest(), now)
