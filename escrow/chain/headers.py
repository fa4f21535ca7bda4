"""The chain of block headers with its proof of work: what makes a stranger's word worth something (sans-IO).

Theory of operation. A `HeaderChain` holds one chain of headers, the one with the most work that anyone has shown, from
a starting block that is written below (an `Anchor`) up to the tip. `add` takes headers in a row that begin on any
block of it: each must hang on the one before, meet the target that the rules demand there, and carry a plausible time.
A branch replaces what it forks from only if it has more work. Whoever wants to invent a block must pay for its work.

The rules: on mainnet and signet the target changes every 2,016 blocks by the time that they took (for the first change
after the anchor that time is not known, so any change by a factor of up to four is taken), and on mainnet a target
above `floor` is never taken: an invented branch costs at least an eighth of what real blocks cost. Testnet4 has the
rules of BIP94 and regtest has none; coins there are worth nothing. That the blocks behind the
headers are valid is not checked: as in any light client, the miners' work vouches for that.

Anchors are blocks that Bitcoin Core itself carries for its snapshots (`kernel/chainparams.cpp`, m_assumeutxo_data).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from escrow.chain.base import BlockRef, ProofFailed
from protocol.types import Hash32, Height, Network, UnixTime

HEADER_BYTES: Final = 80
RETARGET: Final = 2_016
"""Blocks between two changes of the target."""
_TIMESPAN: Final = 14 * 24 * 3_600
_LULL: Final = 20 * 60
_WARP: Final = 10 * 60
"""Seconds that the first block of a period may be older than the one before it (BIP94)."""
_AHEAD: Final = 2 * 3_600
"""Seconds that a block's time may be ahead of ours."""
_MEDIAN: Final = 11
_INDEXED: Final = 20_000
"""Blocks below the tip that are found by hash at once; older ones are searched for."""


class Anchor(msgspec.Struct, frozen=True):
    """A block that is known beforehand. Headers are kept from the next one on, or from this one if it is `header`."""

    height: Height
    hash: Hash32
    header: bytes = b""


class Rules(msgspec.Struct, frozen=True):
    """What a network demands of targets."""

    limit: int
    """The easiest target that exists."""
    floor: int
    """The easiest target that is taken from strangers above the highest anchor."""
    retargets: bool
    """Whether the target follows from the blocks before."""
    lulls: bool = False
    """Whether a block that comes 20 minutes after the one before may have the easiest target (testnet4, BIP94)."""


class BadHeader(ProofFailed):
    """A peer sent block headers that break the rules."""

    code = 4014


def hash256(data: bytes) -> bytes:
    """Bitcoin's double SHA-256."""
    return sha256(sha256(data).digest()).digest()


def target_of(bits: int) -> int:
    """The target that a header's compact form stands for. Raises BadHeader for negative, zero and too large ones."""
    exponent, mantissa = bits >> 24, bits & 0x007F_FFFF
    target = mantissa >> 8 * (3 - exponent) if exponent <= 3 else mantissa << 8 * (exponent - 3)
    if bits & 0x0080_0000 or target == 0 or target >> 256:
        raise BadHeader("a block header has an impossible target")
    return target


def bits_of(target: int) -> int:
    """The compact form of a target, rounded down as Bitcoin Core does (arith_uint256::GetCompact)."""
    size = (target.bit_length() + 7) // 8
    mantissa = target << 8 * (3 - size) if size <= 3 else target >> 8 * (size - 3)
    if mantissa & 0x0080_0000:
        mantissa >>= 8
        size += 1
    return size << 24 | mantissa


def work_of(bits: int) -> int:
    """Hashes that it takes on average to meet a target."""
    return (1 << 256) // (target_of(bits) + 1)


def next_bits(bits: int, first: UnixTime, last: UnixTime, limit: int) -> int:
    """The target's compact form after a period that began at `first` and whose last block is of `last`.

    Source: Bitcoin Core, CalculateNextWorkRequired. A period is counted between its own two ends, one block short.
    """
    took = max(_TIMESPAN // 4, min(_TIMESPAN * 4, last - first))
    return bits_of(min(limit, target_of(bits) * took // _TIMESPAN))


def _genesis(merkle_root: str, time: int, bits: int, nonce: int) -> Anchor:
    raw = (
        (1).to_bytes(4, "little")
        + bytes(32)
        + bytes.fromhex(merkle_root)[::-1]
        + time.to_bytes(4, "little")
        + bits.to_bytes(4, "little")
        + nonce.to_bytes(4, "little")
    )
    return Anchor(0, hash256(raw), raw)


def _anchor(height: int, block_hash: str) -> Anchor:
    return Anchor(height, bytes.fromhex(block_hash)[::-1])


_ROOT: Final = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b"
_ROOT4: Final = "7aa0a7ae1e223414cb807e40cd57e667b718e42aaf9306db9102fe28912b7b4e"

ANCHORS: Final[dict[Network, tuple[Anchor, ...]]] = {
    Network.MAINNET: (
        _genesis(_ROOT, 1_231_006_505, 0x1D00FFFF, 2_083_236_893),
        _anchor(840_000, "0000000000000000000320283a032748cef8227873ff4872689bf23f1cda83a5"),
        _anchor(880_000, "000000000000000000010b17283c3c400507969a9c2afd1dcf2082ec5cca2880"),
        _anchor(910_000, "0000000000000000000108970acb9522ffd516eae17acddcb1bd16469194a821"),
    ),
    Network.TESTNET: (_genesis(_ROOT4, 1_714_777_860, 0x1D00FFFF, 393_743_547),),
    Network.SIGNET: (
        _genesis(_ROOT, 1_598_918_400, 0x1E0377AE, 52_613_770),
        _anchor(160_000, "0000003ca3c99aff040f2563c2ad8f8ec88bd0fd6b8f0895cfaf1ef90353a62c"),
    ),
    Network.REGTEST: (_genesis(_ROOT, 1_296_688_602, 0x207FFFFF, 2),),
}
"""Lowest first."""

_EASY: Final = target_of(0x1D00FFFF)
RULES: Final = {
    # 2**44 times the difficulty of the first block: mainnet's has been above it since 2021.
    Network.MAINNET: Rules(_EASY, _EASY >> 44, retargets=True),
    Network.TESTNET: Rules(_EASY, _EASY, retargets=True, lulls=True),
    Network.SIGNET: Rules(target_of(0x1E0377AE), target_of(0x1E0377AE), retargets=True),
    Network.REGTEST: Rules(target_of(0x207FFFFF), target_of(0x207FFFFF), retargets=False),
}


def anchor_for(network: Network, height: Height | None) -> Anchor:
    """The highest anchor below `height`, from which on the chain will be known; None for the highest of all."""
    return next(a for a in reversed(ANCHORS[network]) if height is None or a.height < max(1, height))


class HeaderChain:
    """The chain with the most work."""

    def __init__(self, network: Network, anchor: Anchor, rules: Rules | None = None) -> None:
        """Begin with nothing but `anchor`; `load` and `add` bring the rest."""
        self.network = network
        self.anchor = anchor
        self._rules = rules or RULES[network]
        # Above a lower anchor the higher ones must be met, and above the highest the floor holds.
        self._met = {a.height: a.hash for a in ANCHORS[network] if a.height > anchor.height}
        self._top = ANCHORS[network][-1].height
        self._first = anchor.height if anchor.header else anchor.height + 1
        self._raw = bytearray(anchor.header)
        self._hashes: dict[Hash32, Height] = {anchor.hash: anchor.height}
        self._tip = anchor.hash

    # -- what is known ----------------------------------------------------------------------------------------

    @property
    def first(self) -> Height:
        """The lowest block whose header is here."""
        return self._first

    @property
    def height(self) -> Height:
        """Of the tip; the anchor's at first."""
        return self._first + len(self._raw) // HEADER_BYTES - 1

    @property
    def tip_hash(self) -> Hash32:
        """Of the tip."""
        return self._tip

    def raw_at(self, height: Height) -> bytes:
        """The 80 bytes of a header. Raises KeyError for what is not here."""
        if not self._first <= height <= self.height:
            raise KeyError(height)
        at = (height - self._first) * HEADER_BYTES
        return bytes(self._raw[at : at + HEADER_BYTES])

    def hash_at(self, height: Height) -> Hash32:
        """The hash of a block. Raises KeyError."""
        if height == self.height:
            return self._tip
        if height == self.anchor.height:
            return self.anchor.hash
        return self.raw_at(height + 1)[4:36]

    def at(self, height: Height) -> BlockRef:
        """A block. Raises KeyError."""
        return BlockRef(height, self.hash_at(height), _time(self.raw_at(height)), self._median_time(height))

    def height_of(self, block: Hash32) -> Height | None:
        """Where a block is in this chain; None if it is not."""
        known = self._hashes.get(block)
        if known is not None:
            return known
        # Every header names the one before it; a coincidence at another offset is passed over.
        at = self._raw.find(block)
        while at >= 0 and at % HEADER_BYTES != 4:
            at = self._raw.find(block, at + 1)
        return None if at < 0 else self._first + at // HEADER_BYTES - 1

    def locator(self) -> list[Hash32]:
        """Hashes by which another node finds where its chain and this one part: dense at the tip, then ever sparser."""
        hashes: list[Hash32] = []
        height, step = self.height, 1
        while height > self._first:
            hashes.append(self.hash_at(height))
            if len(hashes) >= 10:
                step *= 2
            height -= step
        return [*hashes, self.anchor.hash]

    def export(self, from_height: Height) -> bytes:
        """All headers from a height on, for storage."""
        return bytes(self._raw[(from_height - self._first) * HEADER_BYTES :])

    # -- growing ----------------------------------------------------------------------------------------------

    def add(self, headers: Sequence[bytes], now: UnixTime) -> Height | None:
        """Take headers in a row; return the height of the lowest block that is new here, None if nothing changed.

        Raises BadHeader when they break a rule, or do not begin on a block of this chain (`NotConnected`).
        """
        if not headers:
            return None
        parent = self.height_of(headers[0][4:36])
        if parent is None:
            raise NotConnected
        # What is known already costs nothing.
        fresh = list(headers)
        while fresh and parent < self.height and self.hash_at(parent + 1) == hash256(fresh[0]):
            fresh.pop(0)
            parent += 1
        if not fresh:
            return None
        branch = self._check(parent, fresh, now)
        if parent < self.height:
            ours = sum(work_of(_bits(self.raw_at(h))) for h in range(parent + 1, self.height + 1))
            if sum(work_of(_bits(raw)) for raw in fresh) <= ours:
                return None
        self._cut(parent)
        for raw, block in zip(fresh, branch, strict=True):
            self._raw += raw
            self._hashes[block] = self.height
        self._tip = branch[-1]
        self._forget_old()
        return parent + 1

    def load(self, raw: bytes, now: UnixTime) -> None:
        """Take stored headers; as strict as `add`, since a disk may lie too. Raises BadHeader."""
        whole = len(raw) - len(raw) % HEADER_BYTES
        for at in range(0, whole, HEADER_BYTES * RETARGET):
            part = raw[at : min(whole, at + HEADER_BYTES * RETARGET)]
            self.add([part[i : i + HEADER_BYTES] for i in range(0, len(part), HEADER_BYTES)], now)

    # -- inside -----------------------------------------------------------------------------------------------

    def _check(self, parent: Height, headers: Sequence[bytes], now: UnixTime) -> list[Hash32]:
        """The hashes of `headers` on top of `parent`. Raises BadHeader."""
        hashes: list[Hash32] = []
        previous = self.hash_at(parent)
        for n, raw in enumerate(headers):
            if len(raw) != HEADER_BYTES or raw[4:36] != previous:
                raise BadHeader("block headers do not hang together")
            bits, time = _bits(raw), _time(raw)
            target = target_of(bits)
            height = parent + 1 + n
            if target > self._rules.limit or (height > self._top and target > self._rules.floor):
                raise BadHeader("a block header shows less work than any real one")
            previous = hash256(raw)
            if int.from_bytes(previous, "little") > target:
                raise BadHeader("a block header does not show the work that it claims")
            if previous != self._met.get(height, previous):
                raise BadHeader(f"a peer shows another block {height:,} than the one that is known")
            self._check_bits(parent, headers, n, bits)
            before = self._times(parent, headers, n)
            # Right above an anchor fewer than eleven are known, and their median is another one: times may fall.
            if before and (len(before) == _MEDIAN or self._first == 0) and time <= sorted(before)[len(before) // 2]:
                raise BadHeader("a block header is older than those before it")
            if time > now + _AHEAD:
                raise BadHeader("a block header is from the future: check this machine's clock")
            hashes.append(previous)
        return hashes

    def _check_bits(self, parent: Height, headers: Sequence[bytes], n: int, bits: int) -> None:
        """The target must be the one that follows from the blocks before."""
        if not self._rules.retargets:
            return
        height = parent + 1 + n
        before = self._header(parent, headers, height - 1)
        if before is None:
            return  # right on an anchor whose header is not known
        if height % RETARGET:
            expected = self._after_lull(parent, headers, n) if self._rules.lulls else _bits(before)
            if bits != expected:
                raise BadHeader("a block header changes the target at the wrong block")
            return
        oldest = self._header(parent, headers, height - RETARGET)
        if oldest is None:
            old = target_of(_bits(before))
            if not old // 4 - 1 <= target_of(bits) <= min(self._rules.limit, old * 4):
                raise BadHeader("a block header changes the target too much")
            return
        # BIP94: the last block's target says nothing if it came after a lull; the first one's is the period's.
        old_bits = _bits(oldest) if self._rules.lulls else _bits(before)
        if self._rules.lulls and _time(headers[n]) < _time(before) - _WARP:
            raise BadHeader("a block header is too old to begin a period")
        if bits != next_bits(old_bits, _time(oldest), _time(before), self._rules.limit):
            raise BadHeader("a block header has another target than the blocks before it demand")

    def _after_lull(self, parent: Height, headers: Sequence[bytes], n: int) -> int:
        """The target of a block within a period where lulls make it easy: else that of the last block without one."""
        height = parent + n
        before = self._header(parent, headers, height)
        easiest = bits_of(self._rules.limit)
        if before is None or _time(headers[n]) > _time(before) + _LULL:
            return easiest
        while height % RETARGET and _bits(before) == easiest:
            height -= 1
            earlier = self._header(parent, headers, height)
            if earlier is None:
                return _bits(headers[n])  # below an anchor: anything may have been
            before = earlier
        return _bits(before)

    def _header(self, parent: Height, headers: Sequence[bytes], height: Height) -> bytes | None:
        if height > parent:
            return headers[height - parent - 1]
        return self.raw_at(height) if height >= self._first else None

    def _times(self, parent: Height, headers: Sequence[bytes], n: int) -> list[int]:
        """The times of the up to eleven blocks before the n-th of `headers`."""
        height = parent + 1 + n
        raws = (self._header(parent, headers, h) for h in range(max(self._first, height - _MEDIAN), height))
        return [_time(raw) for raw in raws if raw is not None]

    def _median_time(self, height: Height) -> UnixTime:
        times = sorted(_time(self.raw_at(h)) for h in range(max(self._first, height - _MEDIAN + 1), height + 1))
        return times[len(times) // 2]

    def _cut(self, height: Height) -> None:
        """Forget all blocks above `height`."""
        for h in range(height + 1, self.height + 1):
            self._hashes.pop(self.hash_at(h), None)
        self._tip = self.hash_at(height)
        del self._raw[(height + 1 - self._first) * HEADER_BYTES :]

    def _forget_old(self) -> None:
        if len(self._hashes) > 2 * _INDEXED:
            lowest = self.height - _INDEXED
            self._hashes = {block: h for block, h in self._hashes.items() if h >= lowest or h == self.anchor.height}


class NotConnected(BadHeader):
    """Block headers begin on a block that is not known here."""

    code = 4015


def _time(raw: bytes) -> int:
    return int.from_bytes(raw[68:72], "little")


def _bits(raw: bytes) -> int:
    return int.from_bytes(raw[72:76], "little")
