"""Who may send the next bytes through a relay: one rate for all, shared evenly between clients. No I/O, no clock.

Theory of operation. Whoever wants to forward asks for a number of bytes and waits for its ticket. Tickets are granted
while the bucket of the whole relay and the bucket of the client hold enough. Among clients that wait, the one that has
been granted the least goes first (start-time fair queueing: each has a virtual time that its bytes advance, and who
comes back from a pause starts where the others are). So a client that opens many circuits gets no more than one that
opened a single one, and a quiet client is never behind a loud one by more than a ticket of each.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_TICKET: Final = 65_536
"""The most bytes of one ticket."""


class _Bucket:
    __slots__ = ("at", "burst", "level", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.at = now

    def refill(self, now: float) -> None:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now

    def wait(self, size: int) -> float:
        """Seconds until it holds `size`."""
        return max(0.0, (size - self.level) / self.rate)


class _Client(Generic[T]):
    __slots__ = ("bucket", "virtual", "waiting")

    def __init__(self, bucket: _Bucket) -> None:
        self.bucket = bucket
        self.virtual = 0.0
        self.waiting: deque[tuple[int, T]] = deque()


class Pacer(Generic[T]):
    """Grants tickets of type T to clients."""

    def __init__(self, *, rate: float, client_rate: float) -> None:
        """Bytes per second of all together, and of one client. A second's worth may come at once."""
        self._rate = rate
        self._client_rate = client_rate
        self._all: _Bucket | None = None
        self._clients: dict[str, _Client[T]] = {}
        self._virtual = 0.0

    def ask(self, client: str, size: int, ticket: T, now: float) -> None:
        """Queue a ticket for `size` bytes, at most MAX_TICKET."""
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(_Bucket(self._client_rate, max(self._client_rate, MAX_TICKET), now))
        if not known.waiting:
            known.virtual = max(known.virtual, self._virtual)
        known.waiting.append((size, ticket))

    def granted(self, now: float) -> list[T]:
        """The tickets that may go now, in their order."""
        out: list[T] = []
        total = self._bucket(now)
        total.refill(now)
        while (client := self._next(now)) is not None:
            size, ticket = client.waiting[0]
            if total.level < size:
                break
            client.waiting.popleft()
            total.level -= size
            client.bucket.level -= size
            self._virtual = client.virtual
            client.virtual += size
            out.append(ticket)
        self._forget(now)
        return out

    def wait(self, now: float) -> float | None:
        """Seconds until something more can be granted; None when nobody waits."""
        waits = [c.bucket.wait(c.waiting[0][0]) for c in self._clients.values() if c.waiting]
        if not waits:
            return None
        smallest = min(c.waiting[0][0] for c in self._clients.values() if c.waiting)
        return max(min(waits), self._bucket(now).wait(smallest), 0.001)

    def _bucket(self, now: float) -> _Bucket:
        if self._all is None:
            self._all = _Bucket(self._rate, max(self._rate, MAX_TICKET), now)
        return self._all

    def _next(self, now: float) -> _Client[T] | None:
        """Of the clients that wait and may send, the one that has sent least."""
        best: _Client[T] | None = None
        for client in self._clients.values():
            if client.waiting and (best is None or client.virtual < best.virtual):
                client.bucket.refill(now)
                if client.bucket.level >= client.waiting[0][0]:
                    best = client
        return best

    def _forget(self, now: float) -> None:
        """Drop clients that wait for nothing and whose bucket is full: they are as good as new."""
        for name, client in list(self._clients.items()):
            if not client.waiting:
                client.bucket.refill(now)
                if client.bucket.level >= client.bucket.burst:
                    del self._clients[name]
