"""The watches, as a machine that is fed blocks and mempool sightings and tells `ChainEvent`s (sans-IO).

Theory of operation. The driver (a backend) tells the book what happened on the chain, in the chain's own words:
`connected`, `disconnected`, `in_mempool`, `left_mempool`, each only for transactions that touch `scripts` or
`outpoints`; then `settled` with the tip that was reached. The book keeps, for every output that a watch has found,
where its transaction stands and who spends it, and says in `take_events` what a consumer must know. It asks nobody.

What a reorganisation takes out of the chain is in limbo: neither confirmed nor known to wait. The driver looks up
everything in `unconfirmed` in the mempool afterwards and says which it is.

Cost: a block costs what it touches plus the outputs that are still maturing, not the number of watches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from enum import Enum, IntEnum
from typing import TypeVar

import msgspec

from escrow.chain.base import (
    BlockRef,
    ChainEvent,
    Confirmed,
    Seen,
    SpendUndone,
    SpentBy,
    TipChanged,
    Unconfirmed,
    Unseen,
    WatchRequest,
)
from escrow.chain.blocks import ParsedTx
from escrow.coins import OutPoint
from protocol.types import Hash32, Txid


class _Where(Enum):
    MEMPOOL = 1
    LIMBO = 2


class _Part(IntEnum):
    """Which of the two transactions of a coin. What spends is taken back before what made."""

    SPENT = 0
    MADE = 1


class _Standing(msgspec.Struct):
    """A transaction and where it stands."""

    tx: ParsedTx
    place: BlockRef | _Where


_Coin = dict[_Part, _Standing]
"""An output that a watch has found or was told of: what made it and what spends it, as far as known."""

_Mark = tuple[bytes, OutPoint, _Part]
"""A watch's key, one of its coins, and one of the two transactions."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class WatchBook:
    """All watches of one backend."""

    def __init__(self) -> None:
        self._watches: dict[bytes, WatchRequest] = {}
        self._coins: dict[bytes, dict[OutPoint, _Coin]] = {}
        self._by_script: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self._by_outpoint: defaultdict[bytes, set[tuple[bytes, OutPoint]]] = defaultdict(set)
        self._by_block: defaultdict[Hash32, set[_Mark]] = defaultdict(set)
        self._blocks: dict[Hash32, BlockRef] = {}
        self._unconfirmed: defaultdict[Txid, set[_Mark]] = defaultdict(set)
        # Marks of which something new is to be told, and marks of which each new depth is to be told; in order.
        self._changed: dict[_Mark, None] = {}
        self._maturing: dict[_Mark, None] = {}
        self._events: list[ChainEvent] = []

    # -- what the driver reads --------------------------------------------------------------------------------

    @property
    def scripts(self) -> AbstractSet[bytes]:
        """The scripts to look for in outputs."""
        return self._by_script.keys()

    @property
    def outpoints(self) -> AbstractSet[bytes]:
        """The outputs (36 wire bytes) to look for in inputs."""
        return self._by_outpoint.keys()

    @property
    def requests(self) -> tuple[WatchRequest, ...]:
        """The watches as they were asked for."""
        return tuple(self._watches.values())

    def unspent(self, keys: Collection[bytes]) -> tuple[OutPoint, ...]:
        """The coins of these watches of which no spend is known."""
        coins = (item for key in keys for item in self._coins.get(key, {}).items())
        return tuple(outpoint for outpoint, coin in coins if _Part.SPENT not in coin)

    def awaited(self) -> set[Txid]:
        """Transactions that make an output that a watch names, and that were not seen yet."""
        return {
            request.outpoint.txid
            for key, request in self._watches.items()
            if request.outpoint is not None and _Part.MADE not in self._coins[key][request.outpoint]
        }

    def unconfirmed(self) -> tuple[Txid, ...]:
        """Transactions that the book has as waiting, or in limbo: the driver tells what became of them."""
        return tuple(self._unconfirmed)

    def known(self, txid: Txid) -> ParsedTx | None:
        """An unconfirmed transaction of the book."""
        for key, outpoint, part in self._unconfirmed.get(txid, ()):
            return self._coins[key][outpoint][part].tx
        return None

    def checkpoints(self) -> tuple[BlockRef, ...]:
        """Blocks that events were told of, highest first: some may have left the chain while nobody looked."""
        return tuple(sorted(self._blocks.values(), key=lambda b: b.height, reverse=True))

    def take_events(self) -> list[ChainEvent]:
        """What is to be told, in order; each once."""
        taken, self._events = self._events, []
        return taken

    # -- watches ----------------------------------------------------------------------------------------------

    def arm(self, request: WatchRequest) -> None:
        """Add or replace a watch. What it should know of the past is fed to it before `settled`."""
        self.disarm(request.key)
        self._watches[request.key] = request
        self._by_script[request.script_pubkey].add(request.key)
        self._coins[request.key] = {}
        if request.outpoint is not None:
            self._coin(request.key, request.outpoint)

    def disarm(self, key: bytes) -> None:
        """Forget a watch and what it found."""
        request = self._watches.pop(key, None)
        if request is None:
            return
        _drop(self._by_script, request.script_pubkey, key)
        for outpoint, coin in self._coins.pop(key).items():
            _drop(self._by_outpoint, outpoint.wire, (key, outpoint))
            for part, standing in coin.items():
                self._forget((key, outpoint, part), standing)

    # -- what the driver tells --------------------------------------------------------------------------------

    def connected(self, block: BlockRef, txs: Iterable[ParsedTx], only: AbstractSet[bytes] | None = None) -> None:
        """A block joined the chain; `txs` are those of its transactions that touch the book, in order.

        With `only`, the block is old and is told to these watches alone.
        """
        for tx in txs:
            self._sort_in(tx, block, only)

    def disconnected(self, block: BlockRef) -> None:
        """A block left the chain. Told from the tip downwards."""
        for mark in sorted(self._by_block.get(block.hash, ()), key=lambda m: m[2]):
            key, outpoint, part = mark
            standing = self._coins[key][outpoint][part]
            self._forget(mark, standing)
            standing.place = _Where.LIMBO
            self._unconfirmed[standing.tx.txid].add(mark)
            if part is _Part.SPENT:
                self._events.append(SpendUndone(key, outpoint, standing.tx.txid))
            else:
                self._events.append(Unconfirmed(key, outpoint, block.height, block.hash))

    def in_mempool(self, tx: ParsedTx, only: AbstractSet[bytes] | None = None) -> None:
        """A transaction waits in the mempool now. Ignored where a block is known to hold it."""
        self._sort_in(tx, _Where.MEMPOOL, only)

    def left_mempool(self, txid: Txid) -> None:
        """A transaction waits no longer and no block holds it: evicted, replaced or double-spent."""
        for mark in sorted(self._unconfirmed.get(txid, ()), key=lambda m: m[2]):
            key, outpoint, part = mark
            standing = self._coins[key][outpoint].pop(part)
            self._forget(mark, standing)
            if part is _Part.MADE:
                self._events.append(Unseen(key, outpoint))
            elif standing.place is _Where.MEMPOOL:  # from limbo it was taken back already
                self._events.append(SpendUndone(key, outpoint, txid))

    def settled(self, tip: BlockRef, *, new_tip: bool = False) -> None:
        """All that was told up to here is in; make it events, as seen from `tip`."""
        fresh, self._changed = self._changed, {}
        for mark in dict.fromkeys((*fresh, *self._maturing)) if new_tip else fresh:
            self._tell(mark, tip, fresh=mark in fresh)
        if new_tip:
            self._events.append(TipChanged(tip))

    # -- inside -----------------------------------------------------------------------------------------------

    def _sort_in(self, tx: ParsedTx, place: BlockRef | _Where, only: AbstractSet[bytes] | None) -> None:
        for spent in tx.spends:
            for key, outpoint in tuple(self._by_outpoint.get(spent.wire, ())):
                if only is None or key in only:
                    self._put((key, outpoint, _Part.SPENT), tx, place)
        for vout, output in enumerate(tx.outputs):
            for key in tuple(self._by_script.get(output.script_pubkey, ())):
                outpoint = tx.outpoint(vout)
                if (only is None or key in only) and self._watches[key].outpoint in (None, outpoint):
                    self._put((key, outpoint, _Part.MADE), tx, place)

    def _put(self, mark: _Mark, tx: ParsedTx, place: BlockRef | _Where) -> None:
        key, outpoint, part = mark
        coin = self._coin(key, outpoint)
        old = coin.get(part)
        if old is not None:
            # The mempool is no news of what a block holds, nor of what it is known to hold itself.
            if place is _Where.MEMPOOL and (isinstance(old.place, BlockRef) or (old.tx, old.place) == (tx, place)):
                return
            self._forget(mark, old)
            if old.tx.txid != tx.txid and old.place is _Where.MEMPOOL:
                self._events.append(SpendUndone(key, outpoint, old.tx.txid))
        coin[part] = _Standing(tx, place)
        if isinstance(place, BlockRef):
            self._blocks[place.hash] = place
            self._by_block[place.hash].add(mark)
            self._maturing[mark] = None
        else:
            self._unconfirmed[tx.txid].add(mark)
        self._changed[mark] = None

    def _coin(self, key: bytes, outpoint: OutPoint) -> _Coin:
        self._by_outpoint[outpoint.wire].add((key, outpoint))
        return self._coins[key].setdefault(outpoint, {})

    def _forget(self, mark: _Mark, standing: _Standing) -> None:
        """Take a standing out of every index."""
        self._changed.pop(mark, None)
        self._maturing.pop(mark, None)
        if isinstance(standing.place, BlockRef):
            _drop(self._by_block, standing.place.hash, mark)
            if standing.place.hash not in self._by_block:
                self._blocks.pop(standing.place.hash, None)
        else:
            _drop(self._unconfirmed, standing.tx.txid, mark)

    def _tell(self, mark: _Mark, tip: BlockRef, *, fresh: bool) -> None:
        key, outpoint, part = mark
        tx, place = (standing := self._coins[key][outpoint][part]).tx, standing.place
        height = block_hash = None
        depth = 0
        if isinstance(place, BlockRef):
            height, block_hash = place.height, place.hash
            depth = tip.height - height + 1
            bound = self._watches[key].depth
            if depth >= bound:
                self._maturing.pop(mark, None)
            if depth > bound and not fresh:
                return
        if part is _Part.SPENT:
            self._events.append(SpentBy(key, outpoint, tx.txid, tx.raw, height, block_hash, depth))
            return
        value = tx.outputs[outpoint.vout].value
        if height is None or block_hash is None:
            self._events.append(Seen(key, outpoint, value, tx.raw))
        else:
            self._events.append(Confirmed(key, outpoint, value, tx.raw, height, block_hash, depth))


def _drop(index: defaultdict[_K, set[_V]], key: _K, item: _V) -> None:
    """Remove `item` from a set of an index, and the set when it is empty."""
    members = index.get(key)
    if members is not None:
        members.discard(item)
        if not members:
            del index[key]
