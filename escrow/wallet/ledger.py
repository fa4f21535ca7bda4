"""What the wallet knows of the chain: a `ChainFollower` that remembers every transaction that touches us (sans-IO).

It keeps facts and no opinions: which transactions pay to or spend from our scripts, and where each stands. What is
unspent follows from the facts; an engine (BDK) works that out. Facts go to disk as `Changes`, after the fact: a
crash before that costs a second look at the blocks since the stored tip, nothing else. Only handing out a script must
be on disk first, which is the wallet's business.

Scripts beyond the last one that was handed out are looked for too (the gap limit, per keychain), so coins are found
after a restore, or when another wallet with the same seed was used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum

import msgspec

from escrow.chain.base import BlockRef
from escrow.chain.blocks import ParsedTx
from escrow.coins import OutPoint, TxOut
from escrow.wallet.engine import Fact, Keychain, Snapshot
from protocol.types import Hash32, Txid, UnixTime

LOOKAHEAD = 50
"""Scripts beyond the last one handed out, unless told otherwise."""


class Place(IntEnum):
    """Where a transaction stands. The numbers are in the database."""

    GONE = 0
    """Neither in a block nor in the mempool: replaced, evicted, or never arrived."""
    MEMPOOL = 1
    LIMBO = 2
    """A reorganisation took its block away; the mempool was not asked yet."""
    BLOCK = 3


class Entry(msgspec.Struct):
    """One transaction. `own`: the wallet made it, and sends it again when it is gone."""

    tx: ParsedTx
    place: Place
    block: BlockRef | None
    seen: UnixTime
    own: bool = False


class Changes(msgspec.Struct):
    """What is to be written."""

    entries: list[Entry]
    revealed: dict[Keychain, int]
    tip: BlockRef | None


class Ledger:
    """All facts of one wallet."""

    def __init__(
        self,
        script: Callable[[Keychain, int], bytes],
        clock: Callable[[], UnixTime],
        *,
        entries: Iterable[Entry] = (),
        revealed: Sequence[int] = (0, 0),
        tip: BlockRef | None = None,
        lookahead: int = LOOKAHEAD,
    ) -> None:
        """Start from what was stored.

        Args:
            script: derives the script of a keychain at an index.
            clock: tells Unix seconds.
            entries: stored transactions.
            revealed: how many scripts of the external and internal keychain were handed out.
            tip: the block up to which the stored facts are complete.
            lookahead: scripts to look for beyond the last one handed out.
        """
        self._script = script
        self._clock = clock
        self._lookahead = lookahead
        self._scripts: dict[bytes, tuple[Keychain, int]] = {}
        self._derived = {Keychain.EXTERNAL: 0, Keychain.INTERNAL: 0}
        self.revealed = {Keychain.EXTERNAL: revealed[0], Keychain.INTERNAL: revealed[1]}
        self.tip = tip
        self._entries: dict[Txid, Entry] = {}
        self._by_block: defaultdict[Hash32, set[Txid]] = defaultdict(set)
        self._outputs: dict[bytes, TxOut] = {}
        self._dirty: set[Txid] = set()
        self._tip_dirty = False
        self._revealed_dirty = False
        self.version = 0
        """Grows with every change of the facts. The tip and what was handed out are none."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is something to write."""
        self.on_block: Callable[[], None] = lambda: None
        """Called when the tip is another one."""
        for keychain in Keychain:
            self._extend(keychain)
        for entry in entries:
            self._keep(entry)
        self._dirty.clear()
        self._revealed_dirty = False

    # -- as a ChainFollower -----------------------------------------------------------------------------------

    @property
    def scripts(self) -> AbstractSet[bytes]:
        """Ours, and those beyond."""
        return self._scripts.keys()

    @property
    def outpoints(self) -> AbstractSet[bytes]:
        """Every output that was ever ours."""
        return self._outputs.keys()

    def unconfirmed(self) -> tuple[Txid, ...]:
        """What waits, or is in limbo."""
        return tuple(t for t, e in self._entries.items() if e.place in (Place.MEMPOOL, Place.LIMBO))

    def known(self, txid: Txid) -> ParsedTx | None:
        """A transaction of ours."""
        entry = self._entries.get(txid)
        return None if entry is None else entry.tx

    def checkpoints(self) -> tuple[BlockRef, ...]:
        """The tip, and every block with a transaction of ours; highest first."""
        blocks = {e.block.hash: e.block for e in self._entries.values() if e.block is not None}
        if self.tip is not None:
            blocks[self.tip.hash] = self.tip
        return tuple(sorted(blocks.values(), key=lambda b: b.height, reverse=True))

    def connected(self, block: BlockRef, txs: Iterable[ParsedTx]) -> None:
        """A block joined the chain."""
        for tx in txs:
            self._put(tx, Place.BLOCK, block)

    def disconnected(self, block: BlockRef) -> None:
        """A block left the chain: its coins are not to be counted any more."""
        for txid in self._by_block.pop(block.hash, ()):
            entry = self._entries[txid]
            self._keep(Entry(entry.tx, Place.LIMBO, None, entry.seen, entry.own))
        if self.tip is not None and self.tip.hash == block.hash:
            # Until the new tip is told, the stored facts are complete up to no block that is known to stand.
            self.tip = None
            self._tip_dirty = True

    def in_mempool(self, tx: ParsedTx) -> None:
        """A transaction waits."""
        entry = self._entries.get(tx.txid)
        if entry is None or entry.place is not Place.BLOCK:
            self._put(tx, Place.MEMPOOL, None)

    def left_mempool(self, txid: Txid) -> None:
        """A transaction waits no longer."""
        entry = self._entries.get(txid)
        if entry is not None and entry.place is not Place.BLOCK:
            self._put(entry.tx, Place.GONE, None)

    def settled(self, tip: BlockRef, *, new_tip: bool = False) -> None:  # noqa: ARG002 - the tip tells it
        """The facts are complete up to `tip`."""
        if tip != self.tip:
            self.tip = tip
            self._tip_dirty = True
            self.on_block()
        if self._dirty or self._tip_dirty or self._revealed_dirty:
            self.on_change()

    # -- as the wallet's memory -------------------------------------------------------------------------------

    def keychain_of(self, script_pubkey: bytes) -> tuple[Keychain, int] | None:
        """Which key a script belongs to."""
        return self._scripts.get(script_pubkey)

    def reveal(self, keychain: Keychain, count: int) -> None:
        """So many scripts of a keychain are handed out now; never fewer than before."""
        if count > self.revealed[keychain]:
            self.revealed[keychain] = count
            self._revealed_dirty = True
            self._extend(keychain)

    def note(self, tx: ParsedTx) -> Entry:
        """There is such a transaction, and no mempool has it yet. Returns what is known of it."""
        if tx.txid not in self._entries:
            self._put(tx, Place.GONE, None)
            self.on_change()
        return self._entries[tx.txid]

    def add_own(self, tx: ParsedTx) -> None:
        """The wallet made this transaction, and the node took it."""
        self.in_mempool(tx)
        entry = self._entries[tx.txid]
        self._keep(Entry(entry.tx, entry.place, entry.block, entry.seen, own=True))
        self.on_change()

    def disown(self, txid: Txid) -> None:
        """A transaction of ours was replaced by us: it is not to be sent again."""
        entry = self._entries[txid]
        self._keep(Entry(entry.tx, entry.place, entry.block, entry.seen, own=False))
        self.on_change()

    def entry(self, txid: Txid) -> Entry | None:
        """A transaction of ours, and where it stands."""
        return self._entries.get(txid)

    def spenders(self, outpoint: OutPoint) -> tuple[Entry, ...]:
        """The transactions that spend an output and are in a block or wait."""
        standing = (e for e in self._entries.values() if e.place in (Place.BLOCK, Place.MEMPOOL, Place.LIMBO))
        return tuple(e for e in standing if outpoint in e.tx.spends)

    def entries(self) -> tuple[Entry, ...]:
        """Every transaction that was ever known."""
        return tuple(self._entries.values())

    def output(self, outpoint: OutPoint) -> TxOut | None:
        """An output that is or was ours."""
        return self._outputs.get(outpoint.wire)

    def snapshot(self, tip: BlockRef) -> Snapshot:
        """The facts that count now."""
        facts = (
            Fact(e.tx.raw, e.block, e.seen)
            for e in self._entries.values()
            if e.place is Place.MEMPOOL or (e.place is Place.BLOCK and e.block is not None)
        )
        return Snapshot(tuple(facts), dict(self.revealed), tip)

    def take_changes(self) -> Changes:
        """What was not written yet."""
        changes = Changes([self._entries[t] for t in self._dirty], dict(self.revealed), self.tip)
        self._dirty.clear()
        self._tip_dirty = self._revealed_dirty = False
        return changes

    def put_back(self, changes: Changes) -> None:
        """What `take_changes` gave could not be written: give it again."""
        self._dirty.update(e.tx.txid for e in changes.entries)
        self._tip_dirty = True

    # -- inside -----------------------------------------------------------------------------------------------

    def _put(self, tx: ParsedTx, place: Place, block: BlockRef | None) -> None:
        old = self._entries.get(tx.txid)
        if old is not None and (old.place, old.block) == (place, block):
            return
        if place is Place.GONE and old is not None and old.place is Place.BLOCK:
            return
        self._keep(Entry(tx, place, block, old.seen if old else self._clock(), old.own if old else False))

    def _keep(self, entry: Entry) -> None:
        txid = entry.tx.txid
        old = self._entries.get(txid)
        if old is not None and old.block is not None and old.block.hash in self._by_block:
            self._by_block[old.block.hash].discard(txid)
        self._entries[txid] = entry
        if entry.block is not None:
            self._by_block[entry.block.hash].add(txid)
        for vout, output in enumerate(entry.tx.outputs):
            key = self._scripts.get(output.script_pubkey)
            if key is not None:
                self._outputs[entry.tx.outpoint(vout).wire] = output
                self.reveal(key[0], key[1] + 1)
        self._dirty.add(txid)
        self.version += 1

    def _extend(self, keychain: Keychain) -> None:
        for index in range(self._derived[keychain], self.revealed[keychain] + self._lookahead):
            self._scripts[self._script(keychain, index)] = (keychain, index)
        self._derived[keychain] = max(self._derived[keychain], self.revealed[keychain] + self._lookahead)
