"""The chain as an Electrum server tells it, as far as it can prove it.

Theory of operation. The server keeps an index by script: each script is subscribed to once, its history (transactions
with their heights) is fetched when its status changed, and from the histories follows which blocks matter. Headers are
fetched and checked for their work (`headers`); each transaction that a history places in a block is fetched, and
proved by a branch of the block's hash tree. So the server can hide, and delay, but not invent. Privacy there is none:
it learns every script of ours.

Histories come a moment later than headers: when a status changes, the last blocks are looked through again
(`ScriptHint`). A status is a hash over the history, so who leaves something out must lie there too.
What waits is believed: nothing moves on depth 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from escrow.chain import electrumwords as words
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
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.chain.driver import Backend
from escrow.chain.electrumrpc import ElectrumError, ElectrumRpc
from escrow.chain.fees import fee_of
from escrow.chain.follow import HeaderInfo
from escrow.chain.headers import ANCHORS, RETARGET, NotConnected
from escrow.chain.headerstore import HeaderStore
from escrow.chain.localtest import check_alone
from escrow.chain.merkle import check_branch, check_provable
from escrow.chain.tls import Trust
from escrow.chain.view import BlockHint, Hint, Lost, ScriptHint
from escrow.coins import OutPoint, txid_bytes, txid_text
from protocol.types import FeeRate, Hash32, Height, Network, Sats, Txid, UnixTime

_log = logging.getLogger(__name__)

_PROTOCOL: Final = ["1.4", "1.6"]
_KEPT: Final = 20_000
_DONE: Final = ("already in block chain", "already in utxo set", "txn-already-in-mempool", "txn-already-known")
_COMPARISONS: Final = 4
_COMPARE_AGAIN: Final = 0.2
"""Seconds, growing, between comparisons of a history with its status: a server may be between two blocks."""
_STEPS: Final = (0, 6, 100, RETARGET - 1)
"""How far below our tip headers are asked for until they connect."""


class ElectrumConfig(msgspec.Struct, frozen=True):
    """Where the server is."""

    network: Network
    url: str
    """`ssl://host:port` or `tcp://host:port`."""
    trust: Trust = Trust()
    """What its certificate must be."""
    folder: Path | None = None
    """Where headers are kept; None: nowhere."""
    from_height: Height | None = None
    """The lowest block that will be asked about; None: none before the highest anchor."""
    poll_seconds: float = 30.0
    safety_poll_seconds: float = 120.0
    timeout_seconds: float = 20.0
    fallback_fee_rate: FeeRate | None = None


class _History(msgspec.Struct):
    """What the server tells of one script. `entries`: height (0 or -1 while it waits) by transaction."""

    script_pubkey: bytes
    status: str | None = None
    fresh: bool = False
    entries: dict[Txid, int] = msgspec.field(default_factory=dict)


class ElectrumView:
    """A `ChainView` over one Electrum server."""

    judges = False
    note = ""
    disagreement = False

    def __init__(self, config: ElectrumConfig, clock: Callable[[], UnixTime]) -> None:
        """Keep the configuration; nothing is opened yet."""
        self._config = config
        parts = urlsplit(config.url)
        self._host, self._port, self._tls = parts.hostname or "", parts.port or 0, parts.scheme == "ssl"
        self.name = f"electrum {self._host}"
        self._store = HeaderStore(config.network, config.folder, config.from_height, clock)
        self._hint: Callable[[Hint], None] = lambda _hint: None
        self._rpc: ElectrumRpc | None = None
        self._connecting = asyncio.Lock()
        self._learning = asyncio.Lock()
        self._histories: dict[str, _History] = {}
        self._txs: OrderedDict[Txid, ParsedTx] = OrderedDict()
        self._proved: OrderedDict[tuple[Txid, Hash32], int] = OrderedDict()

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that the server must be on."""
        return self._config.network

    @property
    def prompt(self) -> bool:
        """The server tells of blocks and of scripts."""
        return self._rpc is not None and self._rpc.ended is None

    async def open(self, hint: Callable[[Hint], None]) -> None:
        """Load stored headers; `check` connects."""
        self._hint = hint
        await self._store.open()

    async def close(self) -> None:
        """Hang up."""
        rpc, self._rpc = self._rpc, None
        if rpc is not None:
            await rpc.close()

    async def check(self) -> str:
        """Connect, check the network, follow the headers. Raises BackendUnreachable, WrongNetwork, ProofFailed."""
        await self.refresh()
        if self._store.chain.height < self._store.chain.first:
            return "the Electrum server has no headers after the starting block"
        return self._store.stale()

    async def refresh(self) -> None:
        """Follow the server's headers."""
        rpc = await self._connected()
        async with self._learning:
            await self._learn(rpc, self._store)
            await self._store.save()

    async def _reach(self, height: Height) -> None:
        """Know the chain from `height` on: a wallet may be older than the first header."""
        rpc = await self._connected()
        async with self._learning:
            if self._store.chain.first <= height:
                return
            lower = await self._store.reaching(height)
            await self._learn(rpc, lower)
            await lower.save()
            if lower.chain.height_of(self._store.chain.tip_hash) is None:
                raise BackendUnreachable(f"the Electrum server {rpc.name} tells another chain than a moment ago")
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
        self,
        block: BlockRef,
        scripts: AbstractSet[bytes],
        outpoints: AbstractSet[bytes],  # noqa: ARG002 - scripts tell
    ) -> list[ParsedTx]:
        """What the histories place in the block, each proved. Raises ProofFailed, BlockUnknown."""
        self._store.must_have(block, self.name)
        histories = await self._fresh(scripts)
        txids = dict.fromkeys(t for h in histories for t, height in h.entries.items() if height == block.height)
        places = await asyncio.gather(*(self._prove(t, block) for t in txids))
        in_order = [txid for _, txid in sorted(zip(places, txids, strict=True))]
        return [await self._transaction(txid) for txid in in_order]

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Blocks in the scripts' histories; for blocks below the first header, fetch the missing headers before."""
        first = self._store.chain.first
        histories = await self._fresh(scripts)
        heights = sorted({h for x in histories for h in x.entries.values() if low <= h <= high and h > 0})
        if heights and heights[0] < first:
            await self._reach(heights[0])
        return self._store.refs(heights)

    # -- what waits -------------------------------------------------------------------------------------------

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:
        """What waits of the scripts' histories, and which of the others of `txids` wait."""
        listed = dict.fromkeys(_waiting(await self._fresh(scripts)))
        others = [txid for txid in txids if txid not in listed and txid not in self._mined()]
        found = await self.waiting(others)
        return [*listed, *(tx.txid for tx in found if tx is not None)]

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """The transactions among `txids` of which the server says that they wait."""
        return list(await asyncio.gather(*(self._if_waiting(txid) for txid in txids)))

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:
        """What waits of the scripts' histories and spends."""
        wanted = set(outpoints)
        found = [await self._transaction(txid) for txid in dict.fromkeys(_waiting(await self._fresh(scripts)))]
        return [tx.txid for tx in found if wanted & set(tx.spends)]

    # -- questions --------------------------------------------------------------------------------------------

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """The server's estimate, never under what its node takes. Raises FeeUnknown."""
        rpc = await self._connected()
        estimate = words.sat(await rpc.call("blockchain.estimatefee", max(1, min(1_008, target_blocks))))
        try:
            floor = words.sat(await rpc.call("blockchain.relayfee"))
        except ElectrumError:  # 1.6 has another question for it
            answer = await rpc.call("mempool.get_info")
            info = answer if isinstance(answer, dict) else {}
            floor = max(words.sat(info.get("mempoolminfee", 0)), words.sat(info.get("minrelaytxfee", 0)))
        if estimate <= 0:
            if self._config.fallback_fee_rate is None:
                raise FeeUnknown
            estimate = self._config.fallback_fee_rate
        return max(estimate, floor)

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """What a waiting transaction pays, by what it spends: every part has the name that was asked for."""
        tx = await self._if_waiting(txid)
        if tx is None:
            return None
        try:
            spent = await asyncio.gather(*(self._transaction(t) for t in {o.txid for o in tx.spends}))
        except ElectrumError:
            return None
        return fee_of(tx, spent)

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """What can be told without a mempool. Raises Rejected."""
        for raw in txs:
            check_alone(raw)

    async def send(self, txs: Sequence[bytes]) -> None:
        """Let the server's node judge. Raises Rejected."""
        rpc = await self._connected()
        if len(txs) > 1:
            with suppress(ElectrumError):
                answer = await rpc.call("blockchain.transaction.broadcast_package", [tx.hex() for tx in txs])
                if isinstance(answer, dict) and answer.get("success"):
                    return
        for raw in txs:
            try:
                await rpc.call("blockchain.transaction.broadcast", raw.hex())
            except ElectrumError as e:
                if any(done in e.message for done in _DONE) or await self._is_known(parse_tx(raw)):
                    continue
                # Servers repeat the transaction after the reason.
                reason = e.message.split("\n\n")[1] if e.message.count("\n\n") else e.message
                raise Rejected(reason.partition("\n[")[0].strip()) from e

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """Look it up by its name, and find its place by the history of what it pays."""
        try:
            tx = await self._transaction(txid)
        except ElectrumError:
            return None
        height = await self._height_of(tx)
        if height is None:
            return None
        if height <= 0:
            return ChainTx(tx.raw, None, None, 0)
        refs = self._store.refs([height])
        if not refs or (block_hash is not None and refs[0].hash != block_hash):
            return None
        await self._prove(txid, refs[0])
        return ChainTx(tx.raw, height, refs[0].hash, self._store.chain.height - height + 1)

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """By the server's list for the output's script."""
        try:
            tx = await self._transaction(outpoint.txid)
        except ElectrumError:
            return False
        if outpoint.vout >= len(tx.outputs):
            return False
        rpc = await self._connected()
        script = tx.outputs[outpoint.vout].script_pubkey
        listed = await rpc.call("blockchain.scripthash.listunspent", words.scripthash(script))
        name = txid_text(outpoint.txid)
        mempool = await rpc.call("blockchain.scripthash.get_mempool", words.scripthash(script))
        try:
            there = any(e["tx_hash"] == name and e["tx_pos"] == outpoint.vout and e["height"] > 0 for e in listed)
            waiting = [txid_bytes(entry["tx_hash"]) for entry in mempool]
        except (KeyError, TypeError, ValueError) as e:
            raise ProofFailed("an Electrum server sent a list of outputs that does not parse") from e
        spending = [await self._transaction(other) for other in waiting]
        return there and not any(outpoint in tx.spends for tx in spending)

    # -- the connection ---------------------------------------------------------------------------------------

    async def _connected(self) -> ElectrumRpc:
        async with self._connecting:
            if self._rpc is not None and self._rpc.ended is None:
                return self._rpc
            if self._rpc is not None:
                await self.close()
            config = self._config
            rpc = await ElectrumRpc.connect(
                self._host,
                self._port,
                tls=self._tls,
                trust=config.trust,
                timeout=config.timeout_seconds,
            )
            try:
                await rpc.call("server.version", "p2pnode", _PROTOCOL)
                features = await rpc.call("server.features")
                genesis = txid_text(ANCHORS[self.network][0].hash)
                if isinstance(features, dict) and features.get("genesis_hash") != genesis:
                    raise WrongNetwork(f"the Electrum server {rpc.name} is not on {self.network.name.lower()}")
                rpc.on_notification = self._notified
                rpc.on_end = lambda: self._hint(Lost())
                await rpc.call("blockchain.headers.subscribe")
                # Subscriptions ended with the old connection.
                for history in self._histories.values():
                    history.fresh, history.status = False, None
                await self._subscribe(rpc, list(self._histories))
            except BaseException:
                await rpc.close()
                raise
            self._rpc = rpc
            return rpc

    def _notified(self, method: str, params: list[Any]) -> None:
        if method == "blockchain.headers.subscribe":
            self._hint(BlockHint(self._store.chain.tip_hash))
        elif method == "blockchain.scripthash.subscribe" and len(params) == 2:
            history = self._histories.get(str(params[0]))
            if history is not None and history.status != params[1]:
                history.status, history.fresh = params[1], False
                self._hint(ScriptHint(history.script_pubkey))

    async def _learn(self, rpc: ElectrumRpc, store: HeaderStore) -> None:
        """Follow the server's headers to its tip; step back until they hang on ours."""
        chain = store.chain
        step = 0
        while True:
            start = max(chain.anchor.height + 1, chain.height + 1 - _STEPS[step])
            answer = await rpc.call("blockchain.block.headers", start, RETARGET)
            headers = words.headers(answer)
            if not headers and step == 0:
                # Nothing above our tip; whether our tip is the server's too, the block below tells.
                step = 1
                if chain.height == chain.anchor.height:
                    return
                continue
            try:
                changed = store.add(headers)
            except NotConnected:
                if step == len(_STEPS) - 1 or start == chain.anchor.height + 1:
                    raise
                step += 1
                continue
            if len(headers) < RETARGET or changed is None:
                return
            _log.info("headers up to block %d", chain.height)
            step = 0

    # -- histories --------------------------------------------------------------------------------------------

    async def _fresh(self, scripts: Iterable[bytes]) -> list[_History]:
        """The histories of these scripts as the server has them now."""
        rpc = await self._connected()
        named = {words.scripthash(script): script for script in scripts}
        new = [name for name in named if name not in self._histories]
        for name in new:
            self._histories[name] = _History(named[name])
        await self._subscribe(rpc, new)
        while stale := [n for n in named if not self._histories[n].fresh]:
            for name in stale:
                # Set first: a notification that comes meanwhile makes it stale again.
                self._histories[name].fresh = True
            asked = [name for name in stale if self._histories[name].status is not None]
            try:
                answers = await rpc.calls("blockchain.scripthash.get_history", [[name] for name in asked])
            except BaseException:
                for name in stale:
                    self._histories[name].fresh = False
                raise
            for name in set(stale) - set(asked):
                self._histories[name].entries = {}
            for name, answer in zip(asked, answers, strict=True):
                self._histories[name].entries = words.entries(answer)
            await self._compare(rpc, {n: words.status_of(a) for n, a in zip(asked, answers, strict=True)})
        return [self._histories[name] for name in named]

    async def _compare(self, rpc: ElectrumRpc, told: dict[str, str | None]) -> None:
        """A script's status is a hash over its history; where they differ one is older, or something was left out.

        Raises ProofFailed when they still differ after both were asked for again.
        """
        odd = [n for n, status in told.items() if self._histories[n].fresh and self._histories[n].status != status]
        for attempt in range(_COMPARISONS):
            if not odd:
                return
            await asyncio.sleep(_COMPARE_AGAIN * attempt)
            try:
                await self._subscribe(rpc, odd)
                answers = await rpc.calls("blockchain.scripthash.get_history", [[name] for name in odd])
            except BaseException:
                self._distrust(odd)
                raise
            for name, answer in zip(odd, answers, strict=True):
                self._histories[name].entries = words.entries(answer)
            odd = [n for n, a in zip(odd, answers, strict=True) if self._histories[n].status != words.status_of(a)]
        if odd:
            self._distrust(odd)
            raise ProofFailed(f"the Electrum server {rpc.name} leaves something out of an address's history")

    def _distrust(self, names: Iterable[str]) -> None:
        for name in names:
            self._histories[name].fresh = False

    async def _subscribe(self, rpc: ElectrumRpc, names: Sequence[str]) -> None:
        statuses = await rpc.calls("blockchain.scripthash.subscribe", [[name] for name in names])
        for name, status in zip(names, statuses, strict=True):
            self._histories[name].status = status

    def _mined(self) -> set[Txid]:
        return {t for h in self._histories.values() for t, height in h.entries.items() if height > 0}

    async def _if_waiting(self, txid: Txid) -> ParsedTx | None:
        try:
            tx = await self._transaction(txid)
        except ElectrumError:
            return None
        height = await self._height_of(tx)
        return tx if height is not None and height <= 0 else None

    async def _height_of(self, tx: ParsedTx) -> int | None:
        """Where the server's index has it: by the history of one of the scripts that it pays."""
        rpc = await self._connected()
        for output in tx.outputs:
            if output.script_pubkey[:1] != b"\x6a":
                entries = words.entries(
                    await rpc.call("blockchain.scripthash.get_history", words.scripthash(output.script_pubkey))
                )
                return entries.get(tx.txid)
        return None

    async def _is_known(self, tx: ParsedTx) -> bool:
        with suppress(ElectrumError):
            return await self._height_of(tx) is not None
        return False

    async def _transaction(self, txid: Txid) -> ParsedTx:
        """A transaction by its name. Raises ElectrumError, ProofFailed."""
        known = self._txs.get(txid)
        if known is not None:
            return known
        rpc = await self._connected()
        answer = await rpc.call("blockchain.transaction.get", txid_text(txid))
        try:
            tx = parse_tx(bytes.fromhex(answer))
        except (ValueError, TypeError, BackendError) as e:
            raise ProofFailed(f"the Electrum server {rpc.name} sent something that is no transaction") from e
        if tx.txid != txid:
            raise ProofFailed(f"the Electrum server {rpc.name} sent another transaction than was asked for")
        self._txs[txid] = tx
        while len(self._txs) > _KEPT:
            self._txs.popitem(last=False)
        return tx

    async def _prove(self, txid: Txid, block: BlockRef) -> int:
        """The transaction's place in the block. Raises ProofFailed, BackendUnreachable while the server catches up."""
        known = self._proved.get((txid, block.hash))
        if known is not None:
            return known
        tx = await self._transaction(txid)
        rpc = await self._connected()
        try:
            answer = await rpc.call("blockchain.transaction.get_merkle", txid_text(txid), block.height)
            branch = [txid_bytes(node) for node in answer["merkle"]]
            place = int(answer["pos"])
        except ElectrumError as e:
            raise BackendUnreachable(
                f"the Electrum server {rpc.name} is busy with a new block: {e.message[:80]}"
            ) from e
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ProofFailed(f"the Electrum server {rpc.name} sent something that is no proof") from e
        self._store.must_have(block, self.name)
        check_provable(tx)
        check_branch(txid, place, branch, self._store.chain.raw_at(block.height))
        self._proved[(txid, block.hash)] = place
        while len(self._proved) > _KEPT:
            self._proved.popitem(last=False)
        return place


class ElectrumBackend(Backend):
    """A `FollowedChain` over one Electrum server."""

    def __init__(self, config: ElectrumConfig, clock: Callable[[], UnixTime]) -> None:
        """Keep the configuration; nothing is opened yet."""
        self.view = ElectrumView(config, clock)
        super().__init__(self.view, poll_seconds=config.poll_seconds, safety_poll_seconds=config.safety_poll_seconds)


def _waiting(histories: Iterable[_History]) -> list[Txid]:
    """What waits, parents before children: 0 means that all inputs are in blocks, -1 that some are not."""
    found = [(-height, txid) for h in histories for txid, height in h.entries.items() if height <= 0]
    return [txid for _, txid in sorted(found)]
