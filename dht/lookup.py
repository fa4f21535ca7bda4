"""The iterative search, without I/O: who to ask next, and when to stop (ADR 0005).

The driver takes contacts from `next()` and asks them; it reports `answered`, `late` (past the peer's adaptive
timeout: the question may still be answered) or `failed` (given up). Nothing ever waits for a round: as soon as a
question is answered or late, the next candidate is asked. A late node keeps its place for its answer but not its
slot, so one dead node costs nothing but one extra question.

The search ends when the `k` closest live candidates have answered. "Live" leaves out late and failed ones. When
`reach` is given (how far the k closest should reach in a network of the measured size) and the k closest lie within
half of it, the place is `crowded`: by chance that is one search in twenty, by design it is an eclipse, identities
packed around a key so that nobody else is named any more. Then everything within 1.5 of the reach counts as closest,
and at least six nodes where it is not crowded (by chance few may live there), and the driver searches beside the target
for those whom the crowd hides, and hands them in with `add`. (The idea: Sridhar et al., Content Censorship in the
InterPlanetary File System, NDSS 2024.)

Nor may a crowd fill what a search can hold. Ids are dealt out by chance, so each cell, a span of ids an eighth of the
reach wide, has about one node. When the list is full, one of a packed cell gives way, or else the farthest; when more
lie in a crowded place than may be asked, the closest few of each cell are; and while the place is `thin` where it is
not packed, whoever should be there may be hidden still.

When the k closest lie more than 1.5 of the reach away, somebody hides those between: then up to `MAX_REGION` candidates
are asked, the closest first, until the place is as dense as it should be.

Nor does it end before the `anchors` closest nodes of our own table have answered, however close the rest is: liars that
name each other as the closest would otherwise fill the set, and nobody honest would be asked.

Answers are not trusted: a responder may name only so many contacts, those of one address group fill at most
`GROUP_LIMIT` places, and on disjoint paths each contact is asked by the path that found it first only, so that one liar
leads at most one path astray.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from enum import IntEnum
from itertools import chain, islice
from typing import Final

from dht.contact import Contact

ANCHORS: Final = 4
"""Closest nodes of our own table that a search asks in any case: that all are hostile is as likely as (share)^4."""
MAX_REGION: Final = 64
CELLS: Final = 8
"""Cells per reach: one of the k closest is expected in each."""
CELL_LIMIT: Final = 8
"""Candidates of one cell that are asked in a crowded place: chance puts more there once in a million times."""
MAX_CANDIDATES: Final = 160
GROUP_LIMIT: Final = 3
PACKED: Final = 4
"""Candidates of one cell beyond which it is taken for packed: chance does that to one cell in 250."""
LOOSE: Final = 6
"""Nodes expected at the very least in a crowded place outside its packed cells, of which it has twelve."""
RICH: Final = 6


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
        "_anchors",
        "_avoid",
        "_by_id",
        "_exempt",
        "_first",
        "_groups",
        "_in_flight",
        "_order",
        "alpha",
        "asked",
        "beside",
        "crowded",
        "k",
        "own_id",
        "paths",
        "plain",
        "reach",
        "target",
    )

    def __init__(  # noqa: PLR0913  (each is one knob of a search)
        self,
        target: int,
        seeds: Iterable[Contact],
        *,
        own_id: bytes,
        k: int,
        alpha: int,
        paths: int = 1,
        reach: int = 0,
        anchors: Iterable[Contact] = (),
        exempt: Callable[[Contact], bool] = lambda _: False,
        avoid: Callable[[Contact], bool] | None = None,
        plain: bool = False,
    ) -> None:
        """`alpha`: questions in flight per path. `paths`: disjoint paths; the seeds are dealt out to them in turn.

        `anchors`: nodes that must be asked in any case; they are seeds too. `avoid`: contacts to take no notice of.
        `plain`: the k closest will do, however dense the place is.
        """
        self.target = target
        self.own_id = own_id
        self.k = k
        self.alpha = alpha
        self.paths = paths
        self.plain = plain
        self.reach = 0 if plain else reach
        self.crowded = False
        self.beside = 0
        """Searches beside the target that are still out: the driver counts them."""
        self.asked = 0
        self._exempt = exempt
        self._avoid = avoid
        self._order: list[Candidate] = []
        self._by_id: dict[bytes, Candidate] = {}
        self._groups: dict[bytes, int] = {}
        self._in_flight = [0] * paths
        self._first: list[Candidate] = []
        path = 0
        for contact in anchors:
            self._add(contact, path % paths)
            path += 1
        self._anchors = self._order[:]
        for contact in seeds:
            self._add(contact, path % paths)
            path += 1

    def _add(self, contact: Contact, path: int) -> None:
        node_id = contact.id
        if node_id in self._by_id or node_id == self.own_id:
            return
        if self._avoid is not None and self._avoid(contact):
            return
        group = contact.group
        count = self._groups.get(group, 0)
        if count >= GROUP_LIMIT and not self._exempt(contact):
            return
        if len(self._order) >= MAX_CANDIDATES and not self._make_room(contact.long_id ^ self.target):
            return
        self._groups[group] = count + 1
        candidate = Candidate(contact.long_id ^ self.target, contact, path)
        self._by_id[node_id] = candidate
        order = self._order
        if order and candidate.distance < order[-1].distance:
            insort(order, candidate)
        else:
            order.append(candidate)

    def _make_room(self, distance: int) -> bool:
        """Forget a candidate that was not asked for a new one: one of a packed cell, or the farthest if it is farther.

        Liars name many, mostly far away or in one place: that must not keep out whom somebody honest names.
        """
        packed = self._cells() if self.reach else {}
        bits = self.cell_bits
        spare = packed.get(distance >> bits, 0) >= CELL_LIMIT
        farthest = -1
        for i in range(len(self._order) - 1, -1, -1):
            candidate = self._order[i]
            if candidate.stage != Stage.FRESH or candidate in self._anchors or candidate in self._first:
                continue
            if not spare and packed.get(candidate.distance >> bits, 0) > CELL_LIMIT:
                break
            if farthest < 0:
                farthest = i
        else:
            i = farthest
            if i < 0 or self._order[i].distance <= distance:
                return False
        gone = self._order.pop(i).contact
        del self._by_id[gone.id]
        self._groups[gone.group] -= 1
        return True

    @property
    def cell_bits(self) -> int:
        """Binary logarithm of a cell's width: at most an eighth of the reach."""
        return max(0, (self.reach // CELLS).bit_length() - 1)

    def _cells(self) -> dict[int, int]:
        """How many candidates each cell holds, by distance."""
        bits = self.cell_bits
        out: dict[int, int] = {}
        for candidate in self._order:
            cell = candidate.distance >> bits
            out[cell] = out.get(cell, 0) + 1
        return out

    def packed(self) -> set[int]:
        """Cells, by distance from the target, that hold more candidates than chance puts there."""
        return {cell for cell, count in self._cells().items() if count > PACKED}

    @property
    def thin(self) -> bool:
        """Whether a crowded place is thin where it is not packed: whoever should be there may be hidden still."""
        packed, bits, limit = self.packed(), self.cell_bits, self.reach * 3 // 2
        found = [c for c in self._region(answered_only=True) if c.distance <= limit]
        return sum(1 for c in found if c.distance >> bits not in packed) < LOOSE

    def _window(self, *, answered_only: bool = False) -> list[Candidate]:
        """The closest candidates that could still be (or are) part of the result."""
        if self.crowded:
            return self._region(answered_only=answered_only)
        out: list[Candidate] = []
        k, limit = self.k, 0
        for candidate in self._order:
            stage = candidate.stage
            if stage in _GONE or (answered_only and stage != Stage.ANSWERED):
                continue
            if (count := len(out)) >= k:
                if count == k and self.reach:
                    kth = out[-1].distance
                    if kth <= self.reach // 2:
                        self.crowded = True
                        return self._region(answered_only=answered_only)
                    # Too thin for chance (one search in ten): somebody names his own only. Go on with whoever is known.
                    limit = kth * 64 if 2 * kth > 3 * self.reach else 0
                if candidate.distance > limit or count >= MAX_REGION:
                    break
            out.append(candidate)
        return out

    def _region(self, *, answered_only: bool) -> list[Candidate]:
        """What counts as closest in a crowded place."""
        packed, bits, radius, limit = self.packed(), self.cell_bits, self.reach // 2, self.reach * 3 // 2
        out: list[Candidate] = []
        loose = 0
        for candidate in self._order:
            stage, distance = candidate.stage, candidate.distance
            if stage in _GONE or (answered_only and stage != Stage.ANSWERED):
                continue
            if distance > limit and loose >= LOOSE:
                break
            out.append(candidate)
            loose += distance > radius and distance >> bits not in packed
        return out if len(out) <= MAX_REGION else self._spread(out)

    def _spread(self, region: list[Candidate]) -> list[Candidate]:
        """Those of a crowded region to ask when they are too many: the closest few of each cell."""
        bits = self.cell_bits
        cells: dict[int, int] = {}
        out: list[Candidate] = []
        for candidate in region:
            cell = candidate.distance >> bits
            cells[cell] = held = cells.get(cell, 0) + 1
            if held <= CELL_LIMIT:
                out.append(candidate)
        return out[:MAX_REGION]

    def add(self, contacts: Iterable[Contact]) -> None:
        """Take in nodes found by other means."""
        for contact in contacts:
            self._add(contact, 0)

    def prefer(self, familiar: Callable[[Contact], bool]) -> None:
        """Begin with those of the k closest known within reach that are familiar: any of them will do as well."""
        near = (c for c in self._order[: self.k] if c.distance <= self.reach and familiar(c.contact))
        self._first = list(islice(near, self.alpha))

    def next(self) -> Contact | None:
        """The next node to ask, counted as asked from now; None when all slots are taken or nobody is left."""
        flying = self._in_flight
        if self.paths == 1 and flying[0] >= self.alpha:
            return None
        while self._first:
            candidate = self._first.pop(0)
            if candidate.stage == Stage.FRESH and flying[candidate.path] < self.alpha:
                return self._ask(candidate)
        for candidate in chain(self._window(), self._anchors):
            if candidate.stage == Stage.FRESH and flying[candidate.path] < self.alpha:
                return self._ask(candidate)
        return None

    def _ask(self, candidate: Candidate) -> Contact:
        candidate.stage = Stage.ASKED
        self._in_flight[candidate.path] += 1
        self.asked += 1
        return candidate.contact

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
        """Whether the closest live candidates, and the anchors, have all answered."""
        return (
            not self.beside
            and all(c.stage == Stage.ANSWERED for c in self._window())
            and not any(c.stage <= Stage.ASKED for c in self._anchors)
        )

    @property
    def rich(self) -> bool:
        """Whether enough candidates are known within reach to do without being told of more."""
        return len(self._order) >= RICH and self._order[RICH - 1].distance <= self.reach

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

    def known(self) -> list[Contact]:
        """Every candidate that may be alive."""
        return [c.contact for c in self._order if c.stage not in _GONE]

    def count_within(self, ids: set[bytes]) -> int:
        """How many of these ids are among the closest candidates as far as is known now."""
        return sum(1 for c in self._window() if c.contact.id in ids)

    def within(self, contact: Contact) -> bool:
        """Whether the node is among the closest candidates as far as is known now."""
        candidate = self._by_id.get(contact.id)
        return candidate is not None and candidate in self._window()
