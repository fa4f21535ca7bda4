"""Following the best chain block by block, through reorganisations, for everyone who looks for scripts in it.

Theory of operation. A `ChainFollower` (the watch book, the wallet's ledger) names scripts and outputs; `Follow` brings
it every transaction that touches them, in the chain's order, and takes back what a reorganisation undid. It reads from
a `BlockSource`, which answers questions about the node's view and may change its mind between any two answers.
Three rules make that sound:

* Blocks are connected only onto the followed tip, and the tip is disconnected as long as the source says that it is
  not in its best chain. So every follower sees a path through the block tree, whatever the node does meanwhile.
* A transaction counts as waiting only when the source says that its mempool holds it *now*; notifications are hints.
* After blocks were disconnected, the mempool is read again before anything else is told about it.

Everything happens under one lock. Telling a follower twice is harmless, and telling it nothing new is cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Final, Protocol

import msgspec

from escrow.chain.base import BackendUnreachable, BlockRef, ChainBackend, WatchRequest
from escrow.chain.blocks import ParsedTx, touching
from escrow.chain.watchbook import WatchBook
from escrow.coins import OutPoint
from protocol.types import Hash32, Txid

_RECENT: Final = 2_016
"""Blocks below the tip that are remembered: how deep a reorganisation is followed step by step."""
_RECENT_AT_START: Final = 100
_LEAP: Final = 24
"""Blocks behind from which on filters are asked which of them matter."""
_MEMPOOL_CHUNK: Final = 500
_ATTEMPTS: Final = 10
_LATE: Final = 6
"""Blocks in which late news is looked for."""


class ChainFollower(Protocol):
    """Someone who looks for scripts in the chain. `WatchBook` is one. No method may block."""

    @property
    def scripts(self) -> AbstractSet[bytes]:
        """Scripts to look for in outputs; may grow while blocks are told."""
        ...

    @property
    def outpoints(self) -> AbstractSet[bytes]:
        """Outputs, 36 wire bytes each, to look for in inputs; may grow while blocks are told."""
        ...

    def unconfirmed(self) -> Collection[Txid]:
        """Transactions thought to wait, or just taken out of the chain."""
        ...

    def known(self, txid: Txid) -> ParsedTx | None:
        """One of those."""
        ...

    def checkpoints(self) -> Sequence[BlockRef]:
        """Blocks that it was told of and that matter to it, highest first."""
        ...

    def connected(self, block: BlockRef, txs: Iterable[ParsedTx]) -> None:
        """A block joined the chain."""
        ...

    def disconnected(self, block: BlockRef) -> None:
        """A block left the chain."""
        ...

    def in_mempool(self, tx: ParsedTx) -> None:
        """A transaction waits."""
        ...

    def left_mempool(self, txid: Txid) -> None:
        """A transaction waits no longer, and no block holds it."""
        ...

    def settled(self, tip: BlockRef, *, new_tip: bool = False) -> None:
        """All of it was told; `tip` is where the chain ends."""
        ...


class FollowedChain(ChainBackend, Protocol):
    """A backend that also tells whole followers, such as a wallet's ledger."""

    async def broadcast_package(self, txs: Sequence[bytes]) -> list[Txid]:
        """Hand a child and its unconfirmed parents to the network, parents first: the child may pay for them.

        Idempotent. Raises Rejected, NotRelayed, NotSynced.
        """
        ...

    async def follow(self, follower: ChainFollower, from_height: int) -> None:
        """Tell `follower` the chain since the last block that it knows, or `from_height`, and all from now on.

        Raises BlocksPruned.
        """
        ...

    def unfollow(self, follower: ChainFollower) -> None:
        """Tell it no more."""
        ...


class HeaderInfo(msgspec.Struct, frozen=True):
    """A block as the source sees it now."""

    block: BlockRef
    active: bool
    """Whether it is in the best chain."""
    next: Hash32 | None
    """The block on top of it in the best chain."""


class BlockSource(Protocol):
    """A node that can be asked. Every method may raise what a `ChainBackend` raises."""

    async def best(self) -> Hash32:
        """The tip of its best chain."""
        ...

    async def header(self, block: Hash32) -> HeaderInfo | None:
        """What it knows of a block; None if nothing."""
        ...

    async def headers_at(self, heights: Sequence[int]) -> list[BlockRef]:
        """Blocks of its best chain by height."""
        ...

    async def matching(
        self, block: BlockRef, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
    ) -> list[ParsedTx]:
        """Transactions of a block that pay `scripts` or spend `outpoints`, in the block's order.

        More may be among them. The script of each of `outpoints` is in `scripts`.
        """
        ...

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Blocks from height `low` to `high` that may touch `scripts`, lowest first; all of them if it can't tell."""
        ...

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:
        """What waits, parents before children: all of it, or what it can tell of `scripts` and `txids`.

        A transaction of `txids` that is not in the answer does not wait.
        """
        ...

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """The transactions that its mempool holds now, None for those that it does not."""
        ...

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:
        """Transactions in its mempool that spend one of `outpoints`, which have these scripts."""
        ...


class Follow:
    """The best chain as told to all followers. After `start` call `sync` and `poll_mempool` now and then."""

    def __init__(self, source: BlockSource, book: WatchBook, tell: Callable[[], None]) -> None:
        """Take the node, the watches, and what to call whenever the book may have events."""
        self._source = source
        self._book = book
        self._tell = tell
        # Each with the height from which it wants to know the chain; the book's watches have their own.
        self._followers: dict[ChainFollower, int] = {book: 0}
        self._recent: list[BlockRef] = []
        self._lock = asyncio.Lock()
        # What the mempool held when it was last read; emptied to have all of it read again.
        self._mempool: set[Txid] = set()
        # Blocks were disconnected, and it was not yet read what became of their transactions.
        self._limbo = False

    @property
    def tip(self) -> BlockRef:
        """The block up to which followers were told. Raises BackendUnreachable before `start`."""
        if not self._recent:
            raise BackendUnreachable("the Bitcoin node was not asked yet")
        return self._recent[-1]

    @property
    def started(self) -> bool:
        """Whether there is a tip."""
        return bool(self._recent)

    async def start(self) -> None:
        """Learn the tip and the blocks below it."""
        async with self._lock:
            await self._root()

    async def sync(self) -> bool:
        """Follow the source to its tip. Returns whether the tip moved."""
        async with self._told():
            before = self.tip
            await self._sync()
            return self.tip != before

    async def poll_mempool(self) -> None:
        """Read what is new in the mempool, and what became of the transactions that followers wait for."""
        async with self._told():
            await self._read_mempool()

    async def saw(self, tx: ParsedTx) -> None:
        """A hint: this transaction moved. Asks the source only if it touches anyone."""
        if tx.is_coinbase or not any(_touches(f, tx) for f in self._followers):
            return
        async with self._told():
            if (await self._source.waiting([tx.txid]))[0] is not None:
                self._put_in_mempool(tx)
                self._settle()

    async def gone(self, txid: Txid) -> None:
        """A hint: this transaction left the mempool."""
        self._mempool.discard(txid)
        if not any(txid in f.unconfirmed() for f in self._followers):
            return
        async with self._told():
            for _ in range(_ATTEMPTS):
                # It may have gone into a block that was not told yet.
                await self._sync()
                if (await self._source.waiting([txid]))[0] is not None:
                    break
                if await self._source.best() == self.tip.hash:
                    self._take_out_of_mempool([txid])
                    self._settle()
                    break

    async def look_again(self, script: bytes) -> None:
        """A hint: something about this script changed, in the mempool or in a block that was told already.

        A server may tell of a block before it knows what is in it; what comes late is told late.
        """
        if not any(script in f.scripts for f in self._followers):
            return
        async with self._told():
            await self._sync()
            low = max(1, self.tip.height - _LATE + 1)
            for block in await self._source.relevant({script}, low, self.tip.height):
                for follower in self._followers:
                    if script in follower.scripts:
                        txs = await self._source.matching(block, {script}, follower.outpoints)
                        follower.connected(block, touching(txs, follower.scripts, follower.outpoints))
            await self._read_mempool()

    async def attach(self, follower: ChainFollower, from_height: int) -> None:
        """Tell `follower` all since the last block that it knows, or since `from_height`, and all from now on."""
        async with self._told():
            await self._sync()
            await self._catch_up(follower, from_height)
            self._followers[follower] = from_height
            self._mempool.clear()
            await self._read_mempool()

    def detach(self, follower: ChainFollower) -> None:
        """Tell it no more; one that is not attached is fine."""
        self._followers.pop(follower, None)

    async def watch(self, requests: Sequence[WatchRequest]) -> None:
        """Arm watches and tell them the past: blocks from their heights on, then the mempool."""
        async with self._told():
            await self._sync()
            for request in requests:
                self._book.arm(request)
            await self._tell_the_past(requests)
            await self._tell_the_mempool(requests)
            self._book.settled(self.tip)

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Hold the lock; afterwards have told what is known, even if the source failed half-way."""
        async with self._lock:
            try:
                yield
            finally:
                self._tell()

    # -- blocks -----------------------------------------------------------------------------------------------

    async def _root(self) -> None:
        """Take the source's tip for the followed one, without telling anyone of the way there."""
        info = await self._source.header(await self._source.best())
        if info is None:
            raise BackendUnreachable("the Bitcoin node does not know its own tip")
        height = info.block.height
        below = range(max(0, height - _RECENT_AT_START), height)
        self._recent = [*await self._source.headers_at(below), info.block]

    async def _sync(self) -> None:
        await self._advance()
        if self._limbo:
            await self._read_mempool()

    async def _advance(self) -> None:
        """Follow to the tip."""
        leapt = False
        while True:
            info = await self._source.header(self.tip.hash)
            if info is None or not info.active:
                self._limbo = True
                block = self._recent.pop()
                for follower in self._followers:
                    follower.disconnected(block)
                # Below the oldest block that is remembered, or the edge of a leap, steps are unknown.
                if not self._recent or self._recent[-1].height != block.height - 1:
                    await self._start_over()
            elif info.next is None:
                return
            elif leapt or not await self._leap():
                await self._connect(info.next)
            else:
                leapt = True

    async def _connect(self, block_hash: Hash32) -> None:
        info = await self._source.header(block_hash)
        if info is None or not info.active:
            return  # reorganised meanwhile; the next look at the tip will tell
        txs = await self._source.matching(info.block, *self._wanted())
        for follower in self._followers:
            follower.connected(info.block, touching(txs, follower.scripts, follower.outpoints))
        self._extend([info.block])

    def _wanted(self) -> tuple[AbstractSet[bytes], AbstractSet[bytes]]:
        """The scripts and the outputs of all followers."""
        return (
            frozenset().union(*(f.scripts for f in self._followers)),
            frozenset().union(*(f.outpoints for f in self._followers)),
        )

    async def _leap(self) -> bool:
        """From far behind, go to the tip through the blocks that matter alone. Returns whether it was far."""
        info = await self._source.header(await self._source.best())
        if info is None or info.block.height - self.tip.height < _LEAP:
            return False
        low, high = self.tip.height + 1, info.block.height
        for follower in tuple(self._followers):
            await self._scan(follower, low, high)
        self._extend(await self._source.headers_at(range(max(low, high - _RECENT_AT_START), high + 1)))
        return True

    def _extend(self, blocks: Sequence[BlockRef]) -> None:
        self._recent.extend(blocks)
        del self._recent[:-_RECENT]
        for follower in self._followers:
            follower.settled(self.tip, new_tip=True)

    async def _start_over(self) -> None:
        """The reorganisation goes deeper than is remembered: begin anew, and tell followers what changed for them."""
        await self._root()
        for follower, from_height in tuple(self._followers.items()):
            if follower is self._book:
                await self._undo_inactive(self._book, all_of_them=True)
                await self._tell_the_past(self._book.requests)
                self._book.settled(self.tip, new_tip=True)
            else:
                await self._catch_up(follower, from_height)

    async def _catch_up(self, follower: ChainFollower, from_height: int) -> None:
        last = await self._undo_inactive(follower)
        await self._scan(follower, from_height if last is None else last.height + 1, self.tip.height)
        follower.settled(self.tip, new_tip=True)

    async def _undo_inactive(self, follower: ChainFollower, *, all_of_them: bool = False) -> BlockRef | None:
        """Disconnect the checkpoints that left the chain; return the highest that is in it.

        What is below a block of the chain is in the chain, unless checkpoints were made on both sides of a fork.
        """
        highest: BlockRef | None = None
        for block in follower.checkpoints():
            info = await self._source.header(block.hash)
            if info is None or not info.active:
                follower.disconnected(block)
            elif not all_of_them:
                return block
            else:
                highest = highest or block
        return highest

    async def _scan(self, follower: ChainFollower, low: int, high: int) -> None:
        """Tell `follower` the blocks from `low` to `high` that touch it. Its scripts may grow on the way."""
        while low <= high:
            asked = len(follower.scripts)
            blocks = await self._source.relevant(follower.scripts, low, high)
            low = high + 1
            for block in blocks:
                txs = await self._source.matching(block, follower.scripts, follower.outpoints)
                follower.connected(block, touching(txs, follower.scripts, follower.outpoints))
                if len(follower.scripts) > asked:
                    # New scripts may be in this block, and in blocks that were passed over.
                    low = block.height
                    break

    async def _tell_the_past(self, requests: Sequence[WatchRequest]) -> None:
        past = [r for r in requests if r.from_height <= self.tip.height]
        if not past:
            return
        low = min(r.from_height for r in past)
        scripts = {r.script_pubkey for r in past}
        for block in await self._source.relevant(scripts, low, self.tip.height):
            txs = await self._source.matching(block, scripts, self._book.outpoints)
            only = {r.key for r in past if r.from_height <= block.height}
            self._book.connected(block, txs, only)

    # -- the mempool ------------------------------------------------------------------------------------------

    async def _read_mempool(self) -> None:
        for _ in range(_ATTEMPTS):
            await self._advance()
            scripts, _ = self._wanted()
            waiting = await self._source.mempool(scripts, self._awaited())
            # Only if no block came meanwhile does absence from the mempool mean that a transaction is gone.
            if await self._source.best() == self.tip.hash:
                break
        else:
            raise BackendUnreachable("the Bitcoin node's chain moves faster than it can be read")
        new = [txid for txid in waiting if txid not in self._mempool]
        for at in range(0, len(new), _MEMPOOL_CHUNK):
            for tx in await self._source.waiting(new[at : at + _MEMPOOL_CHUNK]):
                if tx is not None:
                    self._put_in_mempool(tx)
        self._mempool = set(waiting)
        for follower in self._followers:
            for txid in tuple(follower.unconfirmed()):
                tx = follower.known(txid)
                if txid in self._mempool and tx is not None:
                    follower.in_mempool(tx)
        gone = {txid for f in self._followers for txid in f.unconfirmed() if txid not in self._mempool}
        self._take_out_of_mempool(sorted(gone))
        self._limbo = False
        self._settle()

    async def _tell_the_mempool(self, requests: Sequence[WatchRequest]) -> None:
        only = {r.key for r in requests}
        outpoints = [r.outpoint for r in requests]
        txids: list[Txid] = (
            # Which output will pay the script is not known, so every transaction must be looked at.
            await self._source.mempool({r.script_pubkey for r in requests}, self._awaited())
            if None in outpoints
            else list({o.txid for o in outpoints if o is not None})
        )
        for at in range(0, len(txids), _MEMPOOL_CHUNK):
            for tx in await self._source.waiting(txids[at : at + _MEMPOOL_CHUNK]):
                if tx is not None:
                    self._book.in_mempool(tx, only)
        scripts = {r.script_pubkey for r in requests}
        for tx in await self._source.waiting(await self._source.spenders(self._book.unspent(only), scripts)):
            if tx is not None:
                self._book.in_mempool(tx, only)

    def _awaited(self) -> set[Txid]:
        """Transactions that would be news to someone, whether they wait or not."""
        return set(self._book.awaited()).union(*(f.unconfirmed() for f in self._followers))

    def _put_in_mempool(self, tx: ParsedTx) -> None:
        for follower in self._followers:
            if _touches(follower, tx):
                follower.in_mempool(tx)

    def _take_out_of_mempool(self, txids: Iterable[Txid]) -> None:
        for txid in txids:
            for follower in self._followers:
                if txid in follower.unconfirmed():
                    follower.left_mempool(txid)

    def _settle(self) -> None:
        for follower in self._followers:
            follower.settled(self.tip)


def _touches(follower: ChainFollower, tx: ParsedTx) -> bool:
    scripts, outpoints = follower.scripts, follower.outpoints
    return any(o.script_pubkey in scripts for o in tx.outputs) or any(s.wire in outpoints for s in tx.spends)
