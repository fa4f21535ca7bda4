"""The chain without a node of one's own: BIP157 light client over several peers (ADR 0010 says why not BDK's).

Theory of operation. Headers come from all peers and are checked for their work (`headers`). Filters tell which blocks
touch our scripts (`gcs`); all peers are asked for the hashes of the filters, and where they differ the block itself is
read, which settles what is in it; a peer whose filter misses what the block pays is let go. Blocks are checked against
their header. So peers can hide a block or a transaction only together, and can invent neither. What peers learn of us
is which blocks we read, and our own transactions.

There is no mempool here. What is known of waiting transactions: those that we sent, and any whose name is known
beforehand (an escrow's funding is), because peers tell of a transaction that is asked for by its name if their mempool
holds it. With `relay` every transaction that a peer announces is read as well, some 200 MB a day on mainnet.

*Accepted* therefore means: a peer that was given the transaction gives it back when asked, so its mempool took it.
Peers do not say why they refuse. What no peer shows within `accept_seconds` raises NotRelayed; the transaction is
kept all the same, and handed to every new peer and again every ten minutes until a block holds it or a rival.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from escrow.chain import p2pwire as wire
from escrow.chain.base import BackendUnreachable, BlockRef, ChainTx, NotRelayed, Rejected
from escrow.chain.blocks import ParsedTx, all_txs, match_block, parse_tx
from escrow.chain.driver import Backend
from escrow.chain.fees import FeeGauge
from escrow.chain.follow import HeaderInfo
from escrow.chain.gcs import contains_all, filter_matches
from escrow.chain.headers import BadHeader, hash256
from escrow.chain.headerstore import HeaderStore
from escrow.chain.localtest import check_alone
from escrow.chain.outgoing import Outgoing
from escrow.chain.p2pwire import CFHeaders, PeerBroken
from escrow.chain.peer import Peer
from escrow.chain.peerpool import PeerPool
from escrow.chain.signet import check_whole
from escrow.chain.view import ArrivedHint, BlockHint, Hint, Lost, TxHint
from escrow.coins import OutPoint
from protocol.errors import ChainError
from protocol.types import FeeRate, Hash32, Height, Network, Sats, Txid, UnixTime

_log = logging.getLogger(__name__)

_CHUNK: Final = 500
"""Blocks whose filters are asked for at once: some 10 MB on mainnet."""
_REPEAT: Final = 600.0
"""Seconds after which what waits is sent again."""
_KEPT: Final = 1_000
_ANNOUNCED: Final = 50_000
_BATCH: Final = 100
_LOOK_BACK: Final = 36
"""Blocks that are searched for a transaction that no peer will take: it may be in one of them."""
_LONG_BRANCH: Final = 20


class CbfConfig(msgspec.Struct, frozen=True):
    """How to find peers and how much to ask of them."""

    network: Network
    peers: tuple[str, ...] = ()
    """`host:port` of the only peers to use; none: find them."""
    connections: int = 4
    """How many peers, where they are found."""
    folder: Path | None = None
    """Where headers and known peers are kept; None: nowhere."""
    from_height: Height | None = None
    """The lowest block that will be asked about; None: none before the highest anchor."""
    relay: bool = True
    """Read every announced transaction, to see payments before they are confirmed."""
    poll_seconds: float = 30.0
    safety_poll_seconds: float = 120.0
    timeout_seconds: float = 20.0
    """When to give a peer up that does not answer."""
    accept_seconds: float = 40.0
    """How long peers may take to show a transaction; Bitcoin Core tells of new ones every 5 s on average."""
    fallback_fee_rate: FeeRate | None = None
    """Satoshis per 1,000 vB where blocks tell nothing: they are nearly empty. None: FeeUnknown."""


class CbfView:
    """A `ChainView` over Bitcoin peers."""

    name = "cbf"
    judges = False
    disagreement = False

    def __init__(self, config: CbfConfig, clock: Callable[[], UnixTime], rng: random.Random) -> None:
        """Keep the configuration; nothing is opened yet. `rng` picks peers."""
        self._config = config
        self._clock = clock
        self._store = HeaderStore(config.network, config.folder, config.from_height, clock)
        self.pool = PeerPool(
            config.network,
            named=config.peers,
            wanted=config.connections,
            timeout=config.timeout_seconds,
            file=None if config.folder is None else config.folder / "peers.json",
            clock=clock,
            rng=rng,
        )
        self.pool.on_block = self._block_announced
        self.pool.on_txs = self._txs_announced
        self.pool.on_peer = self._send_again_to
        self._hint: Callable[[Hint], None] = lambda _hint: None
        self.pool.on_alone = lambda: self._hint(Lost())
        self._outgoing = Outgoing(lambda block: self._store.chain.height_of(block) is not None)
        self.pool.offer(self._outgoing.offer)
        # Blocks that are known to matter, so that their filter is not asked for twice.
        self._hits: OrderedDict[Hash32, None] = OrderedDict()
        self._awaited: frozenset[Txid] = frozenset()
        self._announced: OrderedDict[Txid, None] = OrderedDict()
        self._unread: asyncio.Queue[tuple[Peer, list[Txid]]] = asyncio.Queue(1_000)
        self._fees = FeeGauge(config.network, config.fallback_fee_rate)
        self._tasks: list[asyncio.Task[None]] = []
        self._learning = asyncio.Lock()

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network whose peers are asked."""
        return self._config.network

    @property
    def prompt(self) -> bool:
        """Peers announce blocks."""
        return bool(self.pool.live)

    @property
    def note(self) -> str:
        """A lone peer can hide what it likes."""
        if self.network is Network.REGTEST or len(self.pool.live) != 1 or self._config.peers:
            return ""
        return f"only one Bitcoin peer, {self.pool.live[0].name}, is connected: it could hide payments"

    async def open(self, hint: Callable[[Hint], None]) -> None:
        """Load what an earlier run left; `check` connects."""
        self._hint = hint
        await self._store.open()
        await self.pool.open()
        self._tasks = [
            asyncio.create_task(self._read_announced(), name="cbf-relay"),
            asyncio.create_task(self._repeat(), name="cbf-repeat"),
        ]

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self.pool.close()

    async def check(self) -> str:
        """Connect, and follow the headers to the peers' tip: seconds, or a minute the first time."""
        await self.refresh()
        if self._store.chain.height < self._store.chain.first:
            return "the light client has no headers yet: its peers have none after the starting block"
        return self._store.stale()

    async def refresh(self) -> None:
        """Ask all peers for headers."""
        await self.pool.fill(self._store.chain.height)
        async with self._learning:
            await self._learn_from_all(self._store)
        if not self.pool.live:
            raise BackendUnreachable("no Bitcoin peer is left that answers")

    async def _learn_from_all(self, store: HeaderStore) -> None:
        # The first time one peer brings nearly all; then the others are asked whether they know better.
        await asyncio.gather(*(self._learn(peer, store) for peer in self.pool.live[:1]))
        await asyncio.gather(*(self._learn(peer, store) for peer in self.pool.live[1:]))
        await store.save()

    async def _reach(self, height: Height) -> None:
        """Know the chain from `height` on: a wallet may be older than the first header."""
        async with self._learning:
            if self._store.chain.first <= height:
                return
            lower = await self._store.reaching(height)
            await self._learn_from_all(lower)
            if lower.chain.height_of(self._store.chain.tip_hash) is None:
                raise BackendUnreachable(f"no Bitcoin peer told all headers from block {lower.chain.first:,} on yet")
            self._store = lower

    # -- the chain --------------------------------------------------------------------------------------------

    async def best(self) -> Hash32:
        """The tip of the chain with the most work that a peer has shown."""
        return self._store.chain.tip_hash

    async def header(self, block: Hash32) -> HeaderInfo | None:
        """A block of that chain."""
        return self._store.info(block)

    async def headers_at(self, heights: Sequence[int]) -> list[BlockRef]:
        """Blocks of that chain."""
        return self._store.refs(heights)

    async def matching(
        self, block: BlockRef, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
    ) -> list[ParsedTx]:
        """Ask the filter; if it says so, read the block. Raises BlockUnknown."""
        self._store.must_have(block, self.name)
        if not scripts:
            return []
        if block.hash not in self._hits and not await self._filtered(scripts, block.height, block.height):
            return []
        raw = await self._block(block.hash)
        wanted = frozenset(outpoints)
        txs = await asyncio.to_thread(match_block, raw, scripts, wanted)
        self._outgoing.found(block.hash, txs)
        return txs

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Ask the filters; for blocks below the first header, fetch the missing headers before."""
        if low < self._store.chain.first and high > 0:
            await self._reach(low)
        first = self._store.chain.first
        found: list[BlockRef] = []
        if scripts:
            for at in range(max(low, first), high + 1, _CHUNK):
                found += await self._filtered(scripts, at, min(high, at + _CHUNK - 1))
        return found

    # -- what waits -------------------------------------------------------------------------------------------

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:  # noqa: ARG002 - peers are not told our scripts
        """Which of `txids` wait, and what we sent."""
        self._awaited = frozenset(txids)
        ours = self._outgoing.waiting()
        found = await self._ask_for(set(txids) - ours.keys())
        return [*ours, *found]

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """Ours, and what a peer shows."""
        ours = self._outgoing.waiting()
        found = await self._ask_for({t for t in txids if t not in ours})
        return [ours.get(t) or found.get(t) for t in txids]

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:  # noqa: ARG002 - it goes by outpoint
        """Of others' nobody can say; ours."""
        wanted = set(outpoints)
        return [txid for txid, tx in self._outgoing.waiting().items() if wanted & set(tx.spends)]

    # -- questions --------------------------------------------------------------------------------------------

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """What the newest blocks earned per vB, never under what most peers take. Raises FeeUnknown."""
        chain = self._store.chain
        heights = range(max(chain.first, chain.height - FeeGauge.BLOCKS + 1), chain.height + 1)
        for height in heights:
            block = chain.hash_at(height)
            if height > 0 and not self._fees.knows(block):
                self._fees.add(block, height, await self._block(block))
        floors = sorted(peer.fee_floor for peer in self.pool.live)
        newest = [chain.hash_at(h) for h in heights if h > 0]
        return self._fees.rate(newest, target_blocks, floors[len(floors) // 2] if floors else 0)

    async def mempool_fee(self, txid: Txid) -> Sats | None:  # noqa: ARG002 - what it spends is not known here
        """Nobody can say."""
        return None

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """What can be told without a mempool: form, size, dust, and whether a block holds a rival. Raises Rejected."""
        for raw in txs:
            tx = check_alone(raw)
            if self._outgoing.block_of(tx.txid) is None and self._outgoing.rival_of(tx) is not None:
                raise Rejected("missing-inputs: a block holds another transaction that spends the same")

    async def send(self, txs: Sequence[bytes]) -> None:
        """Hand it to all peers, and wait until one of them shows it. Raises NotRelayed."""
        missing = [tx for raw in txs if self._outgoing.block_of((tx := parse_tx(raw)).txid) is None]
        if not missing:
            return
        for tx in missing:
            self._outgoing.add(tx)
        if not self.pool.live:
            await self.pool.fill(self._store.chain.height)
        for peer in self.pool.live:
            for tx in missing:
                peer.send_tx(tx.raw)
        if await self._shown({tx.txid for tx in missing}):
            return
        for tx in missing:
            if tx.txid not in self._outgoing.waiting() and not await self._found_in_chain(tx):
                raise NotRelayed

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """Look in `block_hash`, in the block where it was found before, and in the mempools of peers."""
        # Peers also show what the newest block holds, so blocks are asked first.
        block = block_hash or self._outgoing.block_of(txid)
        info = None if block is None else self._store.info(block)
        if block is not None and info is not None:
            for found in await asyncio.to_thread(all_txs, await self._block(block)):
                if found.txid == txid:
                    height = info.block.height
                    return ChainTx(found.raw, height, block, self._store.chain.height - height + 1)
        tx = (await self.waiting([txid]))[0]
        return None if tx is None else ChainTx(tx.raw, None, None, 0)

    async def unspent(self, outpoint: OutPoint) -> bool | None:  # noqa: ARG002 - peers can't be asked that
        """Nobody can say."""
        return None

    # -- headers ----------------------------------------------------------------------------------------------

    async def _learn(self, peer: Peer, store: HeaderStore) -> None:
        """Follow the headers of one peer to its tip. It is let go if they are not sound."""
        chain = store.chain
        branch: list[bytes] = []
        try:
            while True:
                locator = [hash256(branch[-1])] if branch else chain.locator()
                headers = await peer.headers(locator)
                full = len(headers) == wire.MAX_HEADERS
                branch += headers
                changed = store.add(branch)
                if changed is not None or not full:
                    branch = []
                if not full:
                    return
                if changed is None and (
                    chain.height_of(hash256(headers[-1])) is not None or len(branch) > _LONG_BRANCH * wire.MAX_HEADERS
                ):
                    return
                _log.info("headers up to block %d", chain.height)
        except BadHeader as e:
            peer.fail(PeerBroken(f"the Bitcoin peer {peer.name}: {e.detail}"))
        except ChainError:
            return  # it said why when it ended

    # -- filters ----------------------------------------------------------------------------------------------

    async def _filtered(self, scripts: Collection[bytes], low: Height, high: Height) -> list[BlockRef]:
        """Blocks that may touch `scripts`, by their filters; also those about whose filter peers disagree."""
        blocks = self._store.refs(range(low, high + 1))
        names = [b.hash for b in blocks]
        if len(blocks) != high - low + 1:
            raise BackendUnreachable("the chain was reorganised meanwhile")
        while True:
            answers = await self._filter_hashes(low, names)
            agreed = [a.pop() if len(a := {h[i] for h in answers.values()}) == 1 else None for i in range(len(names))]
            peer = next(iter(answers))
            try:
                filters = await peer.cfilters(low, set(names), names[-1])
                matched = await asyncio.to_thread(_match, names, filters, answers[peer], scripts)
            except ChainError as e:
                peer.fail(e)
                continue
            break
        for i in range(len(names)):
            if agreed[i] is None:
                await self._judge(blocks[i], {peer: hashes[i] for peer, hashes in answers.items()})
                matched[i] = True
        found = [block for block, hit in zip(blocks, matched, strict=True) if hit]
        for block_ref in found:
            self._hits[block_ref.hash] = None
        while len(self._hits) > _KEPT * 10:
            self._hits.popitem(last=False)
        return found

    async def _filter_hashes(self, low: Height, names: Sequence[Hash32]) -> dict[Peer, tuple[Hash32, ...]]:
        """What each peer says that the hashes of these filters are. Raises BackendUnreachable if none says it."""

        async def ask(peer: Peer) -> tuple[Peer, CFHeaders | None]:
            with suppress(ChainError):
                return peer, await peer.cfheaders(low, names[-1])
            return peer, None

        peers = self.pool.live
        if not peers:
            await self.pool.fill(self._store.chain.height)
            peers = self.pool.live
        answers = await asyncio.gather(*(ask(peer) for peer in peers))
        sound: dict[Peer, tuple[Hash32, ...]] = {}
        for peer, answer in answers:
            if answer is not None and len(answer.hashes) == len(names):
                sound[peer] = answer.hashes
            elif answer is not None:
                peer.fail(PeerBroken(f"the Bitcoin peer {peer.name} sent another number of filters than was asked for"))
        if not sound:
            raise BackendUnreachable("no Bitcoin peer tells the filters of its blocks")
        return sound

    async def _judge(self, block: BlockRef, claims: dict[Peer, Hash32]) -> None:
        """Let go of peers whose filter misses what the block pays."""
        _log.warning("Bitcoin peers disagree about the filter of block %d: reading the block", block.height)
        raw = await self._block(block.hash)
        txs = await asyncio.to_thread(all_txs, raw)
        paid = {o.script_pubkey for tx in txs for o in tx.outputs}
        # BIP158 leaves out empty scripts and those that can never be spent.
        paid = {script for script in paid if script and script[0] != 0x6A}
        for peer, claim in claims.items():
            try:
                own = (await peer.cfilters(block.height, {block.hash}, block.hash))[block.hash]
                sound = hash256(own) == claim and (not paid or contains_all(block.hash, own, paid))
            except ChainError:
                sound = False
            if not sound:
                peer.fail(PeerBroken(f"the Bitcoin peer {peer.name} sent a false filter of block {block.height}"))

    async def _block(self, block: Hash32) -> bytes:
        """A whole block, checked. Raises BackendUnreachable when no peer has it."""
        if not self.pool.live:
            await self.pool.fill(self._store.chain.height)
        for peer in self.pool.live:
            try:
                raw = await peer.block(block)
                if raw is not None:
                    await asyncio.to_thread(check_whole, raw, block, self.network)
                    return raw
            except ChainError as e:
                peer.fail(e)
        raise BackendUnreachable("no Bitcoin peer has a block that is needed")

    # -- transactions -----------------------------------------------------------------------------------------

    async def _ask_for(self, txids: Collection[Txid]) -> dict[Txid, ParsedTx]:
        """Those that a peer shows."""
        missing, found = set(txids), dict[Txid, ParsedTx]()
        for peer in self.pool.live:
            if missing:
                with suppress(ChainError):
                    for txid, raw in (await peer.transactions(missing)).items():
                        found[txid] = parse_tx(raw)
                        missing.discard(txid)
        return found

    async def _shown(self, txids: Collection[Txid]) -> bool:
        """Wait until peers have shown them all."""
        missing = set(txids)
        pause = 0.05
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.accept_seconds):
                while missing:
                    for txid in await self._ask_for(missing):
                        missing.discard(txid)
                        self._outgoing.took(txid)
                    if missing:
                        await asyncio.sleep(pause)
                        pause = min(2.0, pause * 2)
        return not missing

    async def _found_in_chain(self, tx: ParsedTx) -> bool:
        chain = self._store.chain
        scripts = {o.script_pubkey for o in tx.outputs}
        for block in await self.relevant(scripts, max(chain.first, chain.height - _LOOK_BACK), chain.height):
            await self.matching(block, scripts, frozenset())
        return self._outgoing.block_of(tx.txid) is not None

    def _send_again_to(self, peer: Peer) -> None:
        for tx in self._outgoing.unmined():
            peer.send_tx(tx.raw)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(_REPEAT)
            for peer in self.pool.live:
                self._send_again_to(peer)

    # -- what peers announce ----------------------------------------------------------------------------------

    def _block_announced(self, block: Hash32) -> None:
        if self._store.chain.height_of(block) is None:
            self._hint(BlockHint(block))

    def _txs_announced(self, peer: Peer, txids: Collection[Txid]) -> None:
        news = [t for t in txids if t not in self._announced]
        self._announced.update(dict.fromkeys(news))
        while len(self._announced) > _ANNOUNCED:
            self._announced.popitem(last=False)
        if self._config.relay:
            # Whoever floods us is not read to the end: the poll finds what matters by its name.
            with suppress(asyncio.QueueFull):
                self._unread.put_nowait((peer, news[:_ANNOUNCED]))
        else:
            for txid in self._awaited.intersection(news):
                self._hint(ArrivedHint(txid))

    async def _read_announced(self) -> None:
        while True:
            peer, txids = await self._unread.get()
            for at in range(0, len(txids), _BATCH):
                with suppress(ChainError):
                    for raw in (await peer.transactions(txids[at : at + _BATCH])).values():
                        self._hint(TxHint(raw))


class CbfBackend(Backend):
    """A `FollowedChain` over Bitcoin peers."""

    def __init__(self, config: CbfConfig, clock: Callable[[], UnixTime], rng: random.Random) -> None:
        """Keep the configuration; nothing is opened yet."""
        self.view = CbfView(config, clock, rng)
        super().__init__(self.view, poll_seconds=config.poll_seconds, safety_poll_seconds=config.safety_poll_seconds)


def _match(
    names: Sequence[Hash32], filters: Mapping[Hash32, bytes], hashes: Sequence[Hash32], scripts: Collection[bytes]
) -> list[bool]:
    """Which filters match, after each was found to be the announced one. Raises PeerBroken, ProofFailed."""
    if any(hash256(filters[name]) != announced for name, announced in zip(names, hashes, strict=True)):
        raise PeerBroken("a Bitcoin peer sent another filter than it announced")
    return [filter_matches(name, filters[name], scripts) for name in names]
