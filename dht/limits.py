"""Token buckets by key (an address, a group): how much of this node's time a stranger may take."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")


class Buckets(Generic[K]):
    """One bucket per key, all of one size; the number of buckets is bounded, the oldest is forgotten first.

    A forgotten key starts with a full bucket again, so the table must be larger than the number of addresses that an
    attacker can send from at once, or he gains by cycling through them; each still gets at most `burst` per cycle.
    """

    __slots__ = ("_full", "_keys", "burst", "rate")

    def __init__(self, rate: float, burst: float, keys: int = 8_192) -> None:
        """`rate`: units per second; `burst`: units a full bucket holds."""
        self.rate = rate
        self.burst = burst
        self._keys = keys
        self._full: dict[K, float] = {}
        """The time at which each bucket will be full again: one number says it all."""

    def allow(self, key: K, cost: float, now: float) -> bool:
        """Take `cost` units from the key's bucket; False (and nothing taken) when it holds less."""
        full = self._full.get(key, 0.0)
        base = max(full, now)
        after = base + cost / self.rate
        if after - now > self.burst / self.rate:
            return False
        if full == 0.0 and len(self._full) >= self._keys:
            del self._full[next(iter(self._full))]
        self._full[key] = after
        return True

    def give_back(self, key: K, cost: float) -> None:
        """Return units that `allow` took."""
        if key in self._full:
            self._full[key] -= cost / self.rate
