"""The chain as an Esplora server tells it (HTTP), as far as it can prove it.

Theory of operation. Headers are fetched ten at a time and checked for their work (`headers`). A new block is read whole
and checked against its header: nothing in it can be hidden or invented, and the server does not learn our scripts. The
past would be too much to read whole; there the server's histories of our scripts tell which transactions matter, and
each is proved by a branch of its block's hash tree. So the server can hide what happened before we looked, and delay,
but not invent.

Nothing is pushed: everything is asked for again at each poll. What waits is known by its name where it was named
beforehand (an escrow's funding is); for the rest some scripts are asked about at each poll, in turn, so that a wallet
of many addresses is not a flood of requests. Nothing moves on depth 0.

Source: Esplora's API.md. A script is named there by the hexadecimal SHA-256 of its bytes, not reversed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from decimal import ROUND_CEILING, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from escrow.chain.base import (
    BackendError,
    BackendUnreachable,
    BlockRef,
    ChainTx,
    FeeUnknown,
    ProofFailed,
    Rejected,
    WrongNetwork,
)
from escrow.chain.blocks import ParsedTx, match_block, parse_tx
from escrow.chain.driver import Backend
from escrow.chain.esploraheaders import EsploraHeaders
from escrow.chain.esplorahttp import MAX_BLOCK, EsploraHttp, EsploraRefused
from escrow.chain.fees import MIN_RELAY, fee_of
from escrow.chain.follow import HeaderInfo
from escrow.chain.headers import ANCHORS
from escrow.chain.headerstore import HeaderStore
from escrow.chain.localtest import check_alone
from escrow.chain.merkle import check_branch, check_provable
from escrow.chain.signet import check_whole
from escrow.chain.tls import Trust
from escrow.chain.view import Hint
from escrow.coins import OutPoint, txid_bytes, txid_text
from protocol.types import FeeRate, Hash32, Height, Network, Sats, Txid, UnixTime

_log = logging.getLogger(__name__)

_KEPT: Final = 20_000
_BLOCKS_KEPT: Final = 4
_PAGE: Final = 25
"""Confirmed transactions in one answer."""
_MOST_PAGES: Final = 400
_NEWEST: Final = 2
"""Blocks that are read whole in any case: a server may know a block before its index of scripts does."""
_BLOCK_COST: Final = 16
"""So many questions about scripts cost a server and us what one block does."""
_DONE: Final = ("already in block chain", "already in utxo set", "txn-already-in-mempool", "txn-already-known")


class EsploraConfig(msgspec.Struct, frozen=True):
    """Where the server is."""

    network: Network
    url: str
    """Such as `https://blockstream.info/api`."""
    trust: Trust = Trust()
    folder: Path | None = None
    """Where headers are kept; None: nowhere."""
    from_height: Height | None = None
    """The lowest block that will be asked about; None: none before the highest anchor."""
    poll_seconds: float = 15.0
    timeout_seconds: float = 20.0
    scripts_a_poll: int = 20
    """Scripts that are asked about at each poll, to see payments before a block holds them."""
    fallback_fee_rate: FeeRate | None = None


class _History(msgspec.Struct, frozen=True):
    """What a script's confirmed history was when `tip` was our tip."""

    tip: BlockRef
    entries: dict[Txid, Height]


class EsploraView:
    """A `ChainView` over one Esplora server."""

    judges = False
    prompt = False
    note = ""
    disagreement = False

    def __init__(self, config: EsploraConfig, clock: Callable[[], UnixTime]) -> None:
        """Keep the configuration; nothing is opened yet."""
        self._config = config
        self._http = EsploraHttp(config.url, config.trust, config.timeout_seconds, clock)
        self._headers = EsploraHeaders(self._http)
        self.name = f"esplora {self._http.name}"
        self._store = HeaderStore(config.network, config.folder, config.from_height, clock)
        self._learning = asyncio.Lock()
        self._right_network = False
        self._histories: dict[bytes, _History] = {}
        self._blocks: OrderedDict[Hash32, bytes] = OrderedDict()
        self._txs: OrderedDict[Txid, ParsedTx] = OrderedDict()
        self._proved: OrderedDict[tuple[Txid, Hash32], int] = OrderedDict()
        # What waited when its script was last asked about, and where the turn is.
        self._seen: dict[bytes, tuple[Txid, ...]] = {}
        self._turn = 0

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that the server must be on."""
        return self._config.network

    async def open(self, hint: Callable[[Hint], None]) -> None:  # noqa: ARG002 - it never tells anything by itself
        """Load stored headers; `check` connects."""
        await self._store.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def check(self) -> str:
        """Ask for the network, follow the headers. Raises BackendUnreachable, WrongNetwork, ProofFailed."""
        if not self._right_network:
            told = await self._http.text("/block-height/0")
            if told != txid_text(ANCHORS[self.network][0].hash):
                raise WrongNetwork(f"the Esplora server {self._http.name} is not on {self.network.name.lower()}")
            self._right_network = True
        await self.refresh()
        if self._store.chain.height < self._store.chain.first:
            return "the Esplora server has no headers after the starting block"
        return self._store.stale()

    async def refresh(self) -> None:
        """Follow the server's headers."""
        async with self._learning:
            await self._headers.follow(self._store)

    async def _reach(self, height: Height) -> None:
        """Know the chain from `height` on: a wallet may be older than the first header."""
        async with self._learning:
            if self._store.chain.first <= height:
                return
            above = self._store.chain
            lower = await self._store.reaching(height)
            try:
                await self._headers.learn(lower, above.anchor.height)
                await asyncio.to_thread(lower.take_over, above)
            finally:
                await lower.save()
            self._store = lower

    # -- the chain --------------------------------------------------------------------------------------------

    async def best(self) -> Hash32:
        """The tip of the chain with the most work that the server has shown."""
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
        """What the histories place in the block, each proved; without histories of that time, read all of it.

        Raises ProofFailed, BlockUnknown.
        """
        self._store.must_have(block, self.name)
        if not scripts:
            return []
        known = None if block.hash in self._blocks else self._placed(block, scripts)
        if known is None:
            raw = await self._block(block)
            return await asyncio.to_thread(match_block, raw, scripts, frozenset(outpoints))
        places = await asyncio.gather(*(self._prove(t, block) for t in known))
        return [await self._transaction(txid) for _, txid in sorted(zip(places, known, strict=True))]

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Blocks in the scripts' histories, or all where that is cheaper.

        For blocks below the first header, fetch the missing headers before.
        """
        first = self._store.chain.first
        if low > high or not scripts:
            return []
        if (high - max(low, first) + 1) * _BLOCK_COST <= len(scripts) and low >= first:
            return self._store.refs(range(low, high + 1))
        histories = await asyncio.gather(*(self._history(script) for script in scripts))
        newest = range(max(low, first, self._store.chain.height - _NEWEST + 1), high + 1)
        heights = sorted({h for x in histories for h in x.entries.values() if low <= h <= high} | set(newest))
        if heights and heights[0] < first:
            await self._reach(heights[0])
        return self._store.refs(heights)

    # -- what waits -------------------------------------------------------------------------------------------

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:
        """Which of `txids` wait, and what waits of some of the scripts, others at each call."""
        self._seen = {script: seen for script, seen in self._seen.items() if script in scripts}
        await self._look_at(self._next_scripts(scripts))
        named = dict.fromkeys([*txids, *(t for seen in self._seen.values() for t in seen)])
        found = await self.waiting(list(named))
        return _parents_first([tx for tx in found if tx is not None])

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """The transactions among `txids` of which the server says that they wait."""
        return list(await asyncio.gather(*(self._if_waiting(txid) for txid in txids)))

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:  # noqa: ARG002 - it goes by outpoint
        """What the server says that waits and spends."""
        found: dict[Txid, None] = {}
        for spent in await asyncio.gather(*(self._spender(outpoint) for outpoint in outpoints)):
            if spent is not None and not spent[1]:
                found[spent[0]] = None
        return list(found)

    # -- questions --------------------------------------------------------------------------------------------

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """The server's estimate for the slowest target that is quick enough. Raises FeeUnknown."""
        answer = await self._http.json("/fee-estimates")
        try:
            told = sorted((int(blocks), Decimal(rate)) for blocks, rate in (answer or {}).items())
            usable = [rate for blocks, rate in told if blocks <= max(1, target_blocks)] or [r for _, r in told[:1]]
            rates = [int((rate * 1_000).to_integral_value(ROUND_CEILING)) for rate in usable]
        except (ArithmeticError, AttributeError, TypeError, ValueError) as e:
            raise BackendError(f"the Esplora server {self._http.name} sent fee rates that do not parse") from e
        if rates and rates[-1] > 0:
            return max(MIN_RELAY, rates[-1])
        if self._config.fallback_fee_rate is None:
            raise FeeUnknown
        return max(MIN_RELAY, self._config.fallback_fee_rate)

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """What a waiting transaction pays, by what it spends: every part has the name that was asked for."""
        tx = await self._if_waiting(txid)
        if tx is None:
            return None
        spent = await asyncio.gather(*(self._known(outpoint.txid) for outpoint in tx.spends))
        return fee_of(tx, [s for s in spent if s is not None])

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """What can be told without a mempool. Raises Rejected."""
        for raw in txs:
            check_alone(raw)

    async def send(self, txs: Sequence[bytes]) -> None:
        """Let the server's node judge. Raises Rejected."""
        if len(txs) > 1 and await self._send_package(txs):
            return
        for raw in txs:
            try:
                await self._http.post("/tx", raw.hex().encode())
            except EsploraRefused as e:
                if any(done in e.message for done in _DONE) or await self._is_known(parse_tx(raw).txid):
                    continue
                raise Rejected(_reason(e.message)) from e

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """Look it up by its name; what is said to be in a block is proved. Raises ProofFailed."""
        tx = await self._known(txid)
        if tx is None:
            return None
        placed = await self._place(txid)
        if placed is None:
            return None
        height, block = placed
        if height is None or block is None:
            return ChainTx(tx.raw, None, None, 0)
        refs = self._store.refs([height])
        if not refs or refs[0].hash != block or (block_hash is not None and block != block_hash):
            return None
        await self._prove(txid, refs[0])
        return ChainTx(tx.raw, height, block, self._store.chain.height - height + 1)

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """By the server's index, after the output's own transaction was proved to be in a block."""
        made = await self.transaction(outpoint.txid, None)
        if made is None or made.height is None or outpoint.vout >= len(parse_tx(made.raw).outputs):
            return False
        return await self._spender(outpoint) is None

    # -- transactions in blocks -------------------------------------------------------------------------------

    async def _block(self, block: BlockRef) -> bytes:
        """A whole block, checked against its header. Raises ProofFailed, BackendUnreachable."""
        known = self._blocks.get(block.hash)
        if known is not None:
            return known
        raw = await self._http.get(f"/block/{txid_text(block.hash)}/raw", MAX_BLOCK)
        if raw is None:
            raise BackendUnreachable(f"the Esplora server {self._http.name} does not have block {block.height:,} yet")
        await asyncio.to_thread(check_whole, raw, block.hash, self.network)
        self._blocks[block.hash] = raw
        while len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return raw

    def _placed(self, block: BlockRef, scripts: Iterable[bytes]) -> list[Txid] | None:
        """What the histories place in a block; None if they are older than it, or hardly younger, for some script."""
        found: dict[Txid, None] = {}
        for script in scripts:
            history = self._histories.get(script)
            if history is None or history.tip.height < block.height + _NEWEST:
                return None
            if self._store.chain.height_of(history.tip.hash) is None:
                return None
            found |= dict.fromkeys(t for t, height in history.entries.items() if height == block.height)
        return list(found)

    async def _history(self, script: bytes) -> _History:
        """A script's confirmed history now, newest first, page by page."""
        tip = self._store.chain.at(self._store.chain.height)
        known = self._histories.get(script)
        if known is not None and known.tip == tip:
            return known
        path = f"/scripthash/{sha256(script).hexdigest()}/txs/chain"
        entries: dict[Txid, Height] = {}
        last = ""
        for _ in range(_MOST_PAGES):
            answer = await self._http.json(f"{path}/{last}" if last else path)
            try:
                page = [(txid_bytes(e["txid"]), int(e["status"]["block_height"])) for e in answer or []]
            except (KeyError, TypeError, ValueError) as e:
                raise ProofFailed(f"the Esplora server {self._http.name} sent a history that does not parse") from e
            fresh = [(t, h) for t, h in page if t not in entries]
            entries |= dict(fresh)
            if len(page) < _PAGE:
                break
            if not fresh:
                raise ProofFailed(f"the Esplora server {self._http.name} repeats a history without an end")
            last = txid_text(page[-1][0])
        else:
            raise BackendError(
                f"the Esplora server {self._http.name} tells of over {_MOST_PAGES * _PAGE:,} transactions of an address"
            )
        self._histories[script] = history = _History(tip, entries)
        return history

    async def _prove(self, txid: Txid, block: BlockRef) -> int:
        """The transaction's place in the block. Raises ProofFailed, BackendUnreachable after a reorganisation."""
        known = self._proved.get((txid, block.hash))
        if known is not None:
            return known
        tx = await self._transaction(txid)
        answer = await self._http.json(f"/tx/{txid_text(txid)}/merkle-proof")
        self._store.must_have(block, self.name)
        try:
            branch = [txid_bytes(node) for node in answer["merkle"]]
            place = int(answer["pos"])
        except (KeyError, TypeError, ValueError) as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent something that is no proof") from e
        check_provable(tx)
        check_branch(txid, place, branch, self._store.chain.raw_at(block.height))
        self._proved[(txid, block.hash)] = place
        while len(self._proved) > _KEPT:
            self._proved.popitem(last=False)
        return place

    # -- single transactions ----------------------------------------------------------------------------------

    async def _transaction(self, txid: Txid) -> ParsedTx:
        tx = await self._known(txid)
        if tx is None:
            raise BackendUnreachable(f"the Esplora server {self._http.name} lost a transaction that it told of")
        return tx

    async def _known(self, txid: Txid) -> ParsedTx | None:
        """A transaction by its name, if the server has it. Raises ProofFailed for another one."""
        known = self._txs.get(txid)
        if known is not None:
            return known
        raw = await self._http.get(f"/tx/{txid_text(txid)}/raw", MAX_BLOCK)
        if raw is None:
            return None
        try:
            tx = parse_tx(raw)
        except BackendError as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent something that is no transaction") from e
        if tx.txid != txid:
            raise ProofFailed(f"the Esplora server {self._http.name} sent another transaction than was asked for")
        self._txs[txid] = tx
        while len(self._txs) > _KEPT:
            self._txs.popitem(last=False)
        return tx

    async def _place(self, txid: Txid) -> tuple[Height | None, Hash32 | None] | None:
        """Where the server says that it is: in a block, (None, None) while it waits, None if nowhere."""
        answer = await self._http.json(f"/tx/{txid_text(txid)}/status")
        if answer is None:
            return None
        try:
            if not answer["confirmed"]:
                # Servers say so of what they do not know at all, too.
                return (None, None) if await self._shows(txid) else None
            return int(answer["block_height"]), txid_bytes(answer["block_hash"])
        except (KeyError, TypeError, ValueError) as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent a status that does not parse") from e

    async def _shows(self, txid: Txid) -> bool:
        """Whether the server still has it; one that was evicted is gone although we keep its bytes."""
        return await self._http.get(f"/tx/{txid_text(txid)}/raw", MAX_BLOCK) is not None

    async def _if_waiting(self, txid: Txid) -> ParsedTx | None:
        if await self._place(txid) != (None, None):
            return None
        return await self._known(txid)

    async def _is_known(self, txid: Txid) -> bool:
        return await self._place(txid) is not None

    async def _spender(self, outpoint: OutPoint) -> tuple[Txid, bool] | None:
        """What spends an output, and whether in a block."""
        answer = await self._http.json(f"/tx/{txid_text(outpoint.txid)}/outspend/{outpoint.vout}")
        try:
            if not answer or not answer["spent"]:
                return None
            return txid_bytes(answer["txid"]), bool(answer["status"]["confirmed"])
        except (KeyError, TypeError, ValueError) as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent a spend that does not parse") from e

    def _next_scripts(self, scripts: AbstractSet[bytes]) -> list[bytes]:
        """Whose turn it is."""
        all_of_them = sorted(scripts)
        count = min(len(all_of_them), self._config.scripts_a_poll)
        if not count:
            return []
        start = self._turn % len(all_of_them)
        self._turn = start + count
        return [*all_of_them, *all_of_them][start : start + count]

    async def _look_at(self, scripts: Sequence[bytes]) -> None:
        """Learn what waits of these scripts."""
        answers = await asyncio.gather(
            *(self._http.json(f"/scripthash/{sha256(script).hexdigest()}/txs/mempool") for script in scripts)
        )
        try:
            for script, answer in zip(scripts, answers, strict=True):
                self._seen[script] = tuple(txid_bytes(entry["txid"]) for entry in answer or [])
        except (KeyError, TypeError, ValueError) as e:
            raise ProofFailed(f"the Esplora server {self._http.name} sent a mempool that does not parse") from e

    async def _send_package(self, txs: Sequence[bytes]) -> bool:
        """Whether the server took them together; older ones do not know how."""
        try:
            raw = await self._http.post("/txs/package", msgspec.json.encode([tx.hex() for tx in txs]))
            answer: Any = msgspec.json.decode(raw)
        except (EsploraRefused, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return isinstance(answer, dict) and answer.get("package_msg") == "success"


class EsploraBackend(Backend):
    """A `FollowedChain` over one Esplora server."""

    def __init__(self, config: EsploraConfig, clock: Callable[[], UnixTime]) -> None:
        """Keep the configuration; nothing is opened yet."""
        self.view = EsploraView(config, clock)
        super().__init__(self.view, poll_seconds=config.poll_seconds, safety_poll_seconds=config.poll_seconds)


def _parents_first(txs: Sequence[ParsedTx]) -> list[Txid]:
    """The names of transactions, each after those of them that it spends."""
    left = {tx.txid: tx for tx in txs}
    order: list[Txid] = []
    while left:
        free = [t for t, tx in left.items() if not any(o.txid in left for o in tx.spends)]
        for txid in free or list(left):
            order.append(txid)
            del left[txid]
    return order


def _reason(message: str) -> str:
    """The node's own words from what the server wraps around them."""
    _, mark, inner = message.partition('"message":"')
    return inner.partition('"')[0] if mark else message[:200]
