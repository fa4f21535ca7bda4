"""The iterative search, without I/O: who to ask next, and when to stop (ADR 0005).

The driver takes contacts from `next()` and asks them; it reports `answered`, `late` (past the peer's adaptive
timeout: the question may still be answered) or `failed` (given up). Nothing ever waits for a round: as soon as a
question is answered or late, the next candidate is asked. A late node keeps its place for its answer but not its
slot, so one dead node costs nothing but one extra question.

The search ends when the `k` closest live candidates have answered. "Live" leaves out late and failed ones. When
`reach` is given (how far the k closest should reach in a network of the measured size), all within 0.6 of it count as
closest as well: identities that were packed around a key can then not push the honest ones out of the set. Where that
region is so crowded that chance can't explain it, it is widened to 1.5 of the reach. (The idea: Sridhar et al.,
Content Censorship in the InterPlanetary File System, NDSS 2024.)

Answers are not trusted: a responder may name only so many contacts, those of one address group fill at most
`GROUP_LIMIT` places, and on disjoint paths each contact is asked by the path that found it first only, so that one liar
leads at most one path astray.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final

from dht.contact import Contact

MAX_REGION: Final = 64
MAX_CANDIDATES: Final = 160
GROUP_LIMIT: Final = 3


class Stage(IntEnum):
    """Where a candidate stands."""

    FRESH = 0
    ASKED = 1
    LATE = 2
    ANSWERED = 3
    FAILED = 4


_GONE: Final = frozenset((Stage.LATE, Stage.FAILED))


class Candidate:
    """A node that the search knows of."""

    __slots__ = ("contact", "distance", "path", "stage")

    def __init__(self, distance: int, contact: Contact, path: int) -> None:
        self.distance = distance
        self.contact = contact
        self.path = path
        self.stage = Stage.FRESH

    def __lt__(self, other: Candidate) -> bool:
        return self.distance < other.distance


class Lookup:
    """One search for the nodes closest to a target."""

    __slots__ = (
        "_by_id",
        "_exempt",
        "_groups",
        "_in_flight",
        "_inner",
        "_order",
        "_outer",
        "alpha",
        "asked",
        "k",
        "own_id",
        "paths",
        "target",
    )

    def __init__(
        self,
        target: int,
        seeds: Iterable[Contact],
        *,
        own_id: bytes,
        k: int,
        alpha: int,
        paths: int = 1,
        reach: int = 0,
        exempt: Callable[[Contact], bool] = lambda _: False,
    ) -> None:
        """`alpha`: questions in flight per path. `paths`: disjoint paths; the seeds are dealt out to them in turn."""
        self.target = target
        self.own_id = own_id
        self.k = k
        self.alpha = alpha
        self.paths = paths
        self._inner = reach * 3 // 5
        self._outer = reach * 3 // 2
        self.asked = 0
        self._exempt = exempt
        self._order: list[Candidate] = []
        self._by_id: dict[bytes, Candidate] = {}
        self._groups: dict[bytes, int] = {}
        self._in_flight = [0] * paths
        for i, contact in enumerate(seeds):
            self._add(contact, i % paths)

    def _add(self, contact: Contact, path: int) -> None:
        node_id = contact.id
        if node_id in self._by_id or node_id == self.own_id or len(self._order) >= MAX_CANDIDATES:
            return
        if not self._exempt(contact):
            count = self._groups.get(contact.group, 0)
            if count >= GROUP_LIMIT:
                return
            self._groups[contact.group] = count + 1
        candidate = Candidate(contact.long_id ^ self.target, contact, path)
        self._by_id[node_id] = candidate
        order = self._order
        if order and candidate.distance < order[-1].distance:
            insort(order, candidate)
        else:
            order.append(candidate)

    def _window(self, *, answered_only: bool = False) -> list[Candidate]:
        """The closest candidates that could still be (or are) part of the result."""
        out: list[Candidate] = []
        inner, k = self._inner, self.k
        limit = inner
        for candidate in self._order:
            stage = candidate.stage
            if stage in _GONE or (answered_only and stage != Stage.ANSWERED):
                continue
            if (count := len(out)) >= k:
                if count == 2 * k and candidate.distance <= inner:
                    # Twice as many as should be there, in six tenths of the room: widen.
                    limit = self._outer
                if candidate.distance > limit or count >= MAX_REGION:
                    break
            out.append(candidate)
        return out

    def next(self) -> Contact | None:
        """The next node to ask, counted as asked from now; None when all slots are taken or nobody is left."""
        flying = self._in_flight
        if self.paths == 1 and flying[0] >= self.alpha:
            return None
        for candidate in self._window():
            if candidate.stage == Stage.FRESH and flying[candidate.path] < self.alpha:
                candidate.stage = Stage.ASKED
                flying[candidate.path] += 1
                self.asked += 1
                return candidate.contact
        return None

    def answered(self, contact: Contact, contacts: Iterable[Contact]) -> None:
        """The node answered and named these contacts."""
        candidate = self._by_id[contact.id]
        if candidate.stage == Stage.ASKED:
            self._in_flight[candidate.path] -= 1
        candidate.stage = Stage.ANSWERED
        for named in contacts:
            self._add(named, candidate.path)

    def late(self, contact: Contact) -> None:
        """The node did not answer in its usual time."""
        self._leave(contact, Stage.LATE)

    def failed(self, contact: Contact) -> None:
        """The node did not answer at all, or not sensibly."""
        self._leave(contact, Stage.FAILED)

    def _leave(self, contact: Contact, stage: Stage) -> None:
        candidate = self._by_id[contact.id]
        if candidate.stage == Stage.ASKED:
            self._in_flight[candidate.path] -= 1
        if candidate.stage != Stage.ANSWERED:
            candidate.stage = stage

    @property
    def finished(self) -> bool:
        """Whether the closest live candidates have all answered."""
        return all(c.stage == Stage.ANSWERED for c in self._window())

    @property
    def waiting(self) -> bool:
        """Whether a question that is not late is out."""
        return any(self._in_flight)

    @property
    def late_ones(self) -> bool:
        """Whether a late answer could still come."""
        return any(c.stage == Stage.LATE for c in self._order)

    def closest(self) -> list[Contact]:
        """The closest nodes that answered, closest first: k of them, more where the region is crowded."""
        return [c.contact for c in self._window(answered_only=True)]

    def count_within(self, ids: set[bytes]) -> int:
        """How many of these ids are among the closest candidates as far as is known now."""
        return sum(1 for c in self._window() if c.contact.id in ids)

    def within(self, contact: Contact) -> bool:
        """Whether the node is among the closest candidates as far as is known now."""
        candidate = self._by_id.get(contact.id)
        return candidate is not None and candidate in self._window()
