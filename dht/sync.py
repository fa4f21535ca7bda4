"""Two nodes find out what differs between their sets of records, at a cost that grows with the difference (ADR 0005).

Range-based set reconciliation (Meyer, "Range-Based Set Reconciliation", SRDS 2023; Nostr's NIP-77 uses the same idea):
records lie in order of tag; a range is summed up by the XOR of its records' names and their number. Equal sums are
done with; a range that differs is told in sixteen smaller ones, or, when it is small, as a list. No I/O here: `answer`
is what the holder says to a message, `Puller` is the side that wants to be brought up to date.

Messages (each fits a frame of 65,500 bytes; integers big-endian; lists end with the frame):

    ask      01 ‖ topic (20) ‖ n × (from tag (8) ‖ to tag (8, inclusive) ‖ sum (8) ‖ count u32)
    tell     02 ‖ n × (00 ‖ range (28))    this range has this sum here and differs
                    | (01 ‖ from (8) ‖ to (8) ‖ m u16 ‖ m × (tag (8) ‖ name (8)))    all records of this range
    want     03 ‖ topic (20) ‖ n × tag (8)    no tags: everything
    records  04 ‖ more u8 ‖ n × (length u16 ‖ record)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from dht.contact import ID_BYTES
from dht.errors import BadPacket
from dht.storage import Storage

FRAME: Final = 65_500
ASK: Final = 1
TELL: Final = 2
WANT: Final = 3
RECORDS: Final = 4
RANGE: Final = 28
LEAF: Final = 24
FAN: Final = 16
FIRST: Final = bytes(8)
LAST: Final = b"\xff" * 8
MAX_WANTED: Final = 6_000
MAX_ROUNDS: Final = 24

Sum = tuple[bytes, bytes, int, int]
"""A range: from, to, XOR of names, count."""


class Index:
    """Tags and names of a set of records, in order of tag."""

    def __init__(self, entries: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`entries`: (tag (8), name (8 or more bytes of the record's hash))."""
        self._names: dict[bytes, int] = {tag: int.from_bytes(name[:8], "big") for tag, name in entries}
        self._sum = _xor(self._names.values())
        self._order: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def set(self, tag: bytes, name: bytes) -> None:
        """A record is here now, instead of another of the same tag."""
        fresh, old = int.from_bytes(name[:8], "big"), self._names.get(tag)
        if old is None:
            self._order = None
            self._sum ^= fresh
        else:
            self._sum ^= fresh ^ old
        self._names[tag] = fresh

    def discard(self, tag: bytes) -> None:
        """A record is not here any more."""
        old = self._names.pop(tag, None)
        if old is not None:
            self._sum ^= old
            self._order = None

    def has(self, tag: bytes, name: bytes) -> bool:
        """Whether exactly this record is here."""
        return self._names.get(tag) == int.from_bytes(name[:8], "big")

    @property
    def digest(self) -> bytes:
        """The sum of everything, as `Storage.digest` gives it."""
        return self._sum.to_bytes(8, "big")

    def _slice(self, start: bytes, end: bytes) -> list[bytes]:
        if self._order is None:
            self._order = sorted(self._names)
        return self._order[bisect_left(self._order, start) : bisect_right(self._order, end)]

    def count(self, start: bytes, end: bytes) -> int:
        """How many records there are from `start` to `end`; costs next to nothing."""
        if self._order is None:
            self._order = sorted(self._names)
        return max(0, bisect_right(self._order, end) - bisect_left(self._order, start))

    def sum(self, start: bytes, end: bytes) -> Sum:
        """The sum of the range from `start` to `end`, both included."""
        tags = self._slice(start, end)
        return start, end, _xor(self._names[t] for t in tags), len(tags)

    def split(self, start: bytes, end: bytes) -> list[Sum]:
        """The range in FAN parts of about equal count, without gaps."""
        tags = self._slice(start, end)
        step = -(-len(tags) // FAN)
        out: list[Sum] = []
        low = start
        for at in range(0, len(tags), step):
            part = tags[at : at + step]
            last = at + step >= len(tags)
            high = end if last else part[-1]
            out.append((low, high, _xor(self._names[t] for t in part), len(part)))
            if not last:
                low = _after(high)
        return out

    def items(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """(tag, name) of the records of a range."""
        return [(t, self._names[t].to_bytes(8, "big")) for t in self._slice(start, end)]


def _xor(values: Iterable[int]) -> int:
    total = 0
    for value in values:
        total ^= value
    return total


def _after(tag: bytes) -> bytes:
    return (int.from_bytes(tag, "big") + 1).to_bytes(8, "big")


def index_of(storage: Storage, topic: bytes, now: int) -> Index:
    """The index of a stored topic."""
    return Index((s.tag, s.rank[2]) for s in storage.slots(topic) if s.expires > now)


def pack_sum(of: Sum) -> bytes:
    """The 28 bytes of a range."""
    return of[0] + of[1] + of[2].to_bytes(8, "big") + of[3].to_bytes(4, "big")


def _read_sum(data: bytes, at: int) -> Sum:
    start, end = data[at : at + 8], data[at + 8 : at + 16]
    if len(data) < at + RANGE or start > end:
        raise BadPacket("a range that is none")
    return start, end, int.from_bytes(data[at + 16 : at + 24], "big"), int.from_bytes(data[at + 24 : at + 28], "big")


def _spend(left: int, index: Index, start: bytes, end: bytes) -> int:
    """What is left of the records of a message once this range was looked at. Raises BadPacket when ranges overlap.

    Each record is looked at once per message: else a frame that names all records two thousand times costs seconds.
    """
    left -= index.count(start, end)
    if left < 0:
        raise BadPacket("ranges that overlap")
    return left


def ask(topic: bytes, ranges: Iterable[Sum]) -> bytes:
    """The message that tells our sums."""
    return bytes([ASK]) + topic + b"".join(pack_sum(r) for r in ranges)


def want(topic: bytes, tags: Iterable[bytes]) -> bytes:
    """The message that asks for records; without tags for all."""
    return bytes([WANT]) + topic + b"".join(tags)


def answer(message: bytes, storage: Storage, now: int) -> Iterator[bytes]:
    """What a holder says to a message. Raises BadPacket."""
    topic = message[1 : 1 + ID_BYTES]
    if len(message) > FRAME or len(topic) != ID_BYTES:
        raise BadPacket("a sync message of the wrong size")
    body = message[1 + ID_BYTES :]
    if message[0] == ASK:
        yield _tell(index_of(storage, topic, now), body)
    elif message[0] == WANT:
        if len(body) % 8 or len(body) > 8 * MAX_WANTED:
            raise BadPacket("a list of tags that is none")
        tags = [body[i : i + 8] for i in range(0, len(body), 8)]
        yield from _records((storage.get(topic, t) for t in tags) if tags else iter(storage.all(topic, now)))
    else:
        raise BadPacket("a sync message of unknown kind")


def _tell(index: Index, body: bytes) -> bytes:
    if not body or len(body) % RANGE:
        raise BadPacket("a list of ranges that is none")
    out = [bytes([TELL])]
    size = 1
    left = len(index)
    for at in range(0, len(body), RANGE):
        start, end, theirs, count = _read_sum(body, at)
        left = _spend(left, index, start, end)
        mine = index.sum(start, end)
        if mine[2] == theirs and mine[3] == count:
            continue
        if mine[3] <= LEAF:
            items = index.items(start, end)
            parts = [b"\1" + start + end + len(items).to_bytes(2, "big") + b"".join(t + n for t, n in items)]
        else:
            parts = [b"\0" + pack_sum(part) for part in index.split(start, end)]
        length = sum(map(len, parts))
        if size + length > FRAME:
            # What does not fit is told as it is; it will be asked for again.
            parts = [b"\0" + pack_sum(mine)]
            length = 1 + RANGE
            if size + length > FRAME:
                break
        out += parts
        size += length
    return b"".join(out)


def _records(raws: Iterator[bytes | None]) -> Iterator[bytes]:
    frame = bytearray((RECORDS, 1))
    for raw in raws:
        if raw is None:
            continue
        if len(frame) + 2 + len(raw) > FRAME:
            yield bytes(frame)
            frame = bytearray((RECORDS, 1))
        frame += len(raw).to_bytes(2, "big") + raw
    frame[1] = 0
    yield bytes(frame)


def read_records(message: bytes) -> tuple[list[bytes], bool]:
    """The raw records of a `records` message and whether more follow. Raises BadPacket."""
    if len(message) < 2 or message[0] != RECORDS or len(message) > FRAME:
        raise BadPacket("not a message of records")
    out: list[bytes] = []
    at = 2
    while at < len(message):
        end = at + 2 + int.from_bytes(message[at : at + 2], "big")
        if end > len(message) or end == at + 2:
            raise BadPacket("a record that ends early")
        out.append(message[at + 2 : end])
        at = end
    if message[1] and not out:
        raise BadPacket("nothing, and more of it to come")
    return out, bool(message[1])


class Puller:
    """Brings an index up to date with a holder: `start`, then `heard` with each answer until it returns None.

    `missing` are then the tags to ask for with `want`; `surplus` what the holder lacks or has otherwise.
    """

    def __init__(self, topic: bytes, index: Index) -> None:
        self.topic = topic
        self.index = index
        self.missing: list[bytes] = []
        self.surplus: list[bytes] = []
        self._rounds = 0
        self._later: list[Sum] = []

    def start(self) -> bytes:
        """The first message: everything, when there is nothing to compare."""
        if not len(self.index):
            return want(self.topic, ())
        return ask(self.topic, [self.index.sum(FIRST, LAST)])

    def heard(self, message: bytes) -> bytes | None:
        """The next message, or None when all differences are known. Raises BadPacket."""
        self._rounds += 1
        if not message or message[0] != TELL or len(message) > FRAME or self._rounds > MAX_ROUNDS:
            raise BadPacket("not an answer to a comparison")
        ranges: list[Sum] = self._later
        at = 1
        left = len(self.index)
        while at < len(message):
            if message[at] == 0:
                start, end, theirs, count = _read_sum(message, at + 1)
                left = _spend(left, self.index, start, end)
                mine = self.index.sum(start, end)
                if mine[2] != theirs or mine[3] != count:
                    ranges.append(mine)
                at += 1 + RANGE
            elif message[at] == 1:
                left = _spend(left, self.index, message[at + 1 : at + 9], message[at + 9 : at + 17])
                at = self._compare(message, at + 1)
            else:
                raise BadPacket("an answer of unknown kind")
        room = (FRAME - 1 - ID_BYTES) // RANGE
        now, self._later = ranges[:room], ranges[room:]
        return ask(self.topic, now) if now else None

    def _compare(self, message: bytes, at: int) -> int:
        head = at + 18
        if len(message) < head:
            raise BadPacket("a list that ends early")
        start, end = message[at : at + 8], message[at + 8 : at + 16]
        stop = head + 16 * int.from_bytes(message[at + 16 : head], "big")
        if len(message) < stop or start > end:
            raise BadPacket("a list that ends early")
        theirs: set[bytes] = set()
        for p in range(head, stop, 16):
            tag, name = message[p : p + 8], message[p + 8 : p + 16]
            theirs.add(tag)
            if not self.index.has(tag, name):
                self.missing.append(tag)
        self.surplus += [tag for tag, _ in self.index.items(start, end) if tag not in theirs]
        return stop
