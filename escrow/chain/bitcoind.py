"""The chain as one's own bitcoind sees it: JSON-RPC for answers, ZMQ for hints, polling as the fallback.

Theory of operation. `Follow` follows the chain through `BitcoindSource`; this module drives it, and answers the one-off
questions of `ChainBackend`. A task waits for hints from ZMQ (found through `getzmqnotifications`, nothing to configure)
and looks at the tip when one comes, or when the poll is due: seldom while ZMQ works, often without. Nothing is asked
of bitcoind's wallet and no address index is needed. The block filter index (`blockfilterindex=1`), where it is there,
makes looking into the past quick; without it blocks are read one by one.

Money moves only on a node that is in sync: `fee_rate`, `test_accept` and `broadcast` raise NotSynced before that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from decimal import ROUND_CEILING, Decimal
from typing import Final, assert_never
from urllib.parse import urlsplit

import msgspec

from escrow.chain.base import (
    BackendTooOld,
    BlockRef,
    ChainEvent,
    ChainStatus,
    ChainTx,
    FeeUnknown,
    Health,
    NotSynced,
    Rejected,
    WatchRequest,
    WrongNetwork,
)
from escrow.chain.blocks import ParsedTx, match_block, parse_tx
from escrow.chain.follow import ChainFollower, Follow
from escrow.chain.rpc import BitcoindRpc, Login, RpcError
from escrow.chain.source import NOT_FOUND, BitcoindSource
from escrow.chain.stream import EventStream, Streams
from escrow.chain.watchbook import WatchBook
from escrow.chain.zmqfeed import TOPICS, ArrivedHint, BlockHint, GoneHint, Hint, Lost, TxHint, ZmqFeed
from escrow.coins import txid_bytes, txid_text
from protocol.errors import ChainError
from protocol.types import FeeRate, Hash32, Network, Txid

_log = logging.getLogger(__name__)

MIN_VERSION: Final = 280_000
"""Oldest bitcoind that is supported."""

_CHAINS: Final = {
    "main": Network.MAINNET,
    "test": Network.TESTNET,
    "testnet4": Network.TESTNET,
    "signet": Network.SIGNET,
    "regtest": Network.REGTEST,
}
# bitcoind's numbers for errors (its src/rpc/protocol.h).
_NO_TX: Final = -22
_VERIFY: Final = -25
_REJECTED: Final = -26
_IN_CHAIN: Final = -27

_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_BEHIND: Final = 6
"""Blocks that headers may be ahead before the node counts as syncing."""
_LOOK_BACK: Final = 144
"""Blocks that are searched for a transaction when bitcoind says that its inputs are spent."""


class BitcoindConfig(msgspec.Struct, frozen=True):
    """How to reach and use one bitcoind."""

    network: Network
    url: str
    """Its JSON-RPC interface, such as `http://127.0.0.1:8332`, without a login."""
    login: Login
    zmq: Mapping[str, str] | None = None
    """Address of each topic; None asks bitcoind, an empty mapping goes without."""
    poll_seconds: float = 2.0
    """How often to look when ZMQ is absent or silent."""
    safety_poll_seconds: float = 30.0
    """How often to look although ZMQ works."""
    timeout_seconds: float = 30.0
    """When to give up a call."""
    fallback_fee_rate: FeeRate | None = None
    """Satoshis per 1,000 vB where bitcoind has no estimate (regtest never has one). None: FeeUnknown."""


class BitcoindBackend:
    """A `ChainBackend` over one bitcoind; `follow` also feeds it to a wallet's ledger."""

    def __init__(self, config: BitcoindConfig) -> None:
        """Keep the configuration; nothing is opened yet."""
        self._config = config
        self._rpc = BitcoindRpc(config.url, config.login, timeout=config.timeout_seconds)
        self._source = BitcoindSource(self._rpc)
        self._book = WatchBook()
        self._streams: Streams[ChainEvent] = Streams()
        self._follow = Follow(self._source, self._book, self._tell)
        self._zmq: ZmqFeed | None = None
        self._follower: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._mempool_due = False
        self._zmq_works = False
        self._health = Health.STARTING
        self._detail = ""

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that bitcoind must be on."""
        return self._config.network

    async def start(self) -> None:
        """Connect, check, learn the tip, begin to follow.

        Raises BackendUnreachable, BackendAuthFailed, BackendTooOld, WrongNetwork.
        """
        if self._follower is not None:
            return
        try:
            await self._check()
            await self._source.learn_indices()
            await self._follow.start()
            await self._listen()
        except BaseException:
            await self.close()
            raise
        self._follower = self._spawn(self._run(), "bitcoind-follow")

    async def close(self) -> None:
        """Stop following and end every stream of events."""
        await _cancel(self._follower)
        self._follower = None
        await self._stop_listening()
        self._streams.close()
        await self._rpc.close()

    def status(self) -> ChainStatus:
        """Health as of the last look."""
        tip = self._follow.tip if self._follow.started else None
        return ChainStatus(self._health, "bitcoind", tip, self._detail)

    # -- questions --------------------------------------------------------------------------------------------

    async def tip(self) -> BlockRef:
        """The block up to which events were told."""
        return self._follow.tip

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """Bitcoind's estimate, never under what its mempool takes now, in satoshis per 1,000 vB, rounded up."""
        self._need_sync()
        blocks = max(1, min(1_008, target_blocks))
        estimate, mempool = await self._rpc.batch([("estimatesmartfee", blocks), ("getmempoolinfo",)])
        if isinstance(mempool, RpcError):
            raise mempool
        floor = max(_sat_per_kvb(mempool["mempoolminfee"]), _sat_per_kvb(mempool["minrelaytxfee"]))
        if isinstance(estimate, RpcError) or "feerate" not in estimate:
            if self._config.fallback_fee_rate is None:
                raise FeeUnknown
            return max(floor, self._config.fallback_fee_rate)
        return max(floor, _sat_per_kvb(estimate["feerate"]))

    async def test_accept(self, tx: bytes) -> None:
        """Ask whether the mempool would take `tx`, or has it. Raises Rejected, NotSynced."""
        self._need_sync()
        try:
            verdict = (await self._rpc.call("testmempoolaccept", [tx.hex()]))[0]
        except RpcError as e:
            if e.rpc_code == _NO_TX:
                raise Rejected("it does not decode") from e
            raise
        if verdict.get("allowed"):
            return
        reason = str(verdict.get("reject-reason", "no reason given"))
        if reason in ("txn-already-in-mempool", "txn-already-known"):
            return
        if "missing" in reason and await self._in_chain(parse_tx(tx)):
            return
        details = str(verdict.get("reject-details", ""))
        raise Rejected(details if details.startswith(reason) else reason)

    async def broadcast(self, tx: bytes) -> Txid:
        """Send `tx` after `test_accept`; followers hear of it at once. Idempotent. Raises Rejected, NotSynced."""
        await self.test_accept(tx)
        parsed = parse_tx(tx)
        try:
            await self._rpc.call("sendrawtransaction", tx.hex())
        except RpcError as e:
            if e.rpc_code != _IN_CHAIN and not await self._in_chain(parsed):
                raise (Rejected(e.message) if e.rpc_code in (_VERIFY, _REJECTED) else e) from e
        await self._follow.saw(parsed)
        return parsed.txid

    async def transaction(self, txid: Txid, block_hash: Hash32 | None = None) -> ChainTx | None:
        """Look in the mempool, in `block_hash`, and wherever bitcoind's own index (`txindex`) finds it."""
        known = [txid_text(block_hash)] if block_hash is not None else []
        answers = await self._rpc.batch(
            [("getrawtransaction", txid_text(txid), 1), ("getrawtransaction", txid_text(txid), 1, *known)]
        )
        for answer in answers:
            if isinstance(answer, RpcError):
                if answer.rpc_code != NOT_FOUND:
                    raise answer
                continue
            raw = bytes.fromhex(answer["hex"])
            if "blockhash" not in answer:
                return ChainTx(raw, None, None, 0)
            if (depth := int(answer.get("confirmations", 0))) > 0:
                block = txid_bytes(answer["blockhash"])
                info = await self._source.header(block)
                return ChainTx(raw, info.block.height, block, depth) if info is not None and info.active else None
        return None

    # -- watching ---------------------------------------------------------------------------------------------

    async def watch(self, request: WatchRequest) -> None:
        """Arm or replace a watch. Raises BlocksPruned."""
        await self._follow.watch([request])

    async def watch_many(self, requests: Sequence[WatchRequest]) -> None:
        """Arm many watches with one look into the past. Raises BlocksPruned."""
        await self._follow.watch(requests)

    async def unwatch(self, key: bytes) -> None:
        """Forget a watch."""
        self._book.disarm(key)

    def events(self) -> EventStream[ChainEvent]:
        """A new stream of everything from now on."""
        return self._streams.open()

    async def follow(self, follower: ChainFollower, from_height: int) -> None:
        """Tell `follower` the chain since the last block that it knows, or since `from_height`, and from now on.

        Raises BlocksPruned.
        """
        await self._follow.attach(follower, from_height)

    def unfollow(self, follower: ChainFollower) -> None:
        """Tell it no more."""
        self._follow.detach(follower)

    async def look(self) -> None:
        """Look at tip and mempool now instead of at the next hint or poll."""
        await self._follow.sync()
        await self._follow.poll_mempool()

    # -- inside -----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        for event in self._book.take_events():
            self._streams.put(event)

    async def _check(self) -> None:
        """Ask for version, network and progress; sets the health."""
        info = await self._rpc.call("getblockchaininfo")
        chain = str(info["chain"])
        if _CHAINS.get(chain) is not self.network:
            raise WrongNetwork(f"the Bitcoin node is on {chain}, this node on {self.network.name.lower()}: use another")
        version = int((await self._rpc.call("getnetworkinfo"))["version"])
        if version < MIN_VERSION:
            raise BackendTooOld(f"the Bitcoin node is version {version // 10_000}, needed is {MIN_VERSION // 10_000}")
        blocks, headers = int(info["blocks"]), int(info["headers"])
        # A fresh regtest chain is in "initial block download" until it has a recent block.
        behind = bool(info["initialblockdownload"]) and self.network is not Network.REGTEST
        if behind or headers > blocks + _BEHIND:
            percent = int(Decimal(info["verificationprogress"]) * 100)
            self._say(Health.SYNCING, f"the Bitcoin node is syncing: {percent} %, block {blocks:,} of {headers:,}")
        else:
            self._say(Health.READY, "")

    def _say(self, health: Health, detail: str) -> None:
        if (health, detail) != (self._health, self._detail):
            _log.info("bitcoind is %s %s", health.value, detail)
        self._health, self._detail = health, detail

    def _need_sync(self) -> None:
        if self._health is Health.SYNCING:
            raise NotSynced(self._detail + "; wait until it is done")

    async def _listen(self) -> None:
        """Subscribe to ZMQ where bitcoind offers it."""
        endpoints = self._config.zmq
        if endpoints is None:
            host = urlsplit(self._config.url).hostname or "127.0.0.1"
            offered = await self._rpc.call("getzmqnotifications")
            endpoints = {
                o["type"].removeprefix("pub"): _reachable(o["address"], host)
                for o in offered
                if o["type"].removeprefix("pub") in TOPICS
            }
        if self._zmq is not None and self._zmq.endpoints == endpoints:
            return
        await self._stop_listening()
        if endpoints:
            self._zmq = ZmqFeed(endpoints)
            self._listener = self._spawn(self._hear(self._zmq), "bitcoind-zmq")

    async def _stop_listening(self) -> None:
        await _cancel(self._listener)
        self._listener = None
        self._zmq_works = False
        if self._zmq is not None:
            self._zmq.close()
            self._zmq = None

    async def _hear(self, feed: ZmqFeed) -> None:
        topics = feed.endpoints.keys()
        enough = "hashblock" in topics and len(topics) > 1
        async for hint in feed.hints():
            # Trusted to tell of the next block once it has told of anything.
            self._zmq_works = enough
            try:
                await self._take(hint)
            except ChainError as e:
                # The follower finds out what is wrong, and looks for itself.
                _log.info("a notification of bitcoind could not be followed up: %s", e)
                self._mempool_due = True
                self._wake.set()

    async def _take(self, hint: Hint) -> None:
        match hint:
            case BlockHint():
                self._wake.set()
            case TxHint(raw):
                await self._follow.saw(parse_tx(raw))
            case ArrivedHint(txid):
                for tx in await self._source.waiting([txid]):
                    if tx is not None:
                        await self._follow.saw(tx)
            case GoneHint(txid):
                await self._follow.gone(txid)
            case Lost():
                self._mempool_due = True
                self._wake.set()
            case _:
                assert_never(hint)

    async def _run(self) -> None:
        """Look at the chain on every hint and every poll, for ever; after failures ever more slowly."""
        failures = 0
        while True:
            config = self._config
            usual = config.safety_poll_seconds if self._zmq_works else config.poll_seconds
            hinted = await self._woken(_BACKOFF[min(failures, len(_BACKOFF)) - 1] if failures else usual)
            try:
                await self._look(hinted=hinted, anew=failures > 0)
                failures = 0
            except ChainError as e:
                failures += 1
                self._say(Health.UNREACHABLE, e.detail)

    async def _look(self, *, hinted: bool, anew: bool) -> None:
        if anew or self._health is not Health.READY:
            await self._check()
            await self._source.learn_indices()
            await self._listen()
        if self._health is Health.SYNCING:
            return  # thousands of blocks a minute: leap to the tip when it is there
        moved = await self._follow.sync()
        if moved and not hinted:
            self._zmq_works = False
        if anew or not hinted or self._mempool_due:
            self._mempool_due = False
            await self._follow.poll_mempool()

    async def _woken(self, seconds: float) -> bool:
        """Wait for a hint; False when none came in time."""
        try:
            # Not wait_for: until Python 3.12 it can swallow a cancellation that comes together with the hint.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("following bitcoind ended: a defect of this program", exc_info=error)
            self._say(Health.UNREACHABLE, "following the Bitcoin node ended unexpectedly: restart this node")

    async def _in_chain(self, tx: ParsedTx) -> bool:
        """Whether a block of the best chain holds `tx`: by its unspent outputs, else by looking at the last blocks."""
        name = txid_text(tx.txid)
        outputs = await self._rpc.batch([("gettxout", name, i, False) for i in range(len(tx.outputs))])
        if any(o is not None and not isinstance(o, RpcError) for o in outputs):
            return True
        high = self._follow.tip.height
        scripts = {o.script_pubkey for o in tx.outputs}
        for block in await self._source.relevant(scripts, max(1, high - _LOOK_BACK), high):
            raw = await self._source.block(block.hash)
            if any(found.txid == tx.txid for found in match_block(raw, scripts, frozenset())):
                return True
        return False


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _reachable(address: str, host: str) -> str:
    """A ZMQ address as seen from here: bitcoind may say that it listens on all interfaces."""
    for anywhere in ("0.0.0.0", "[::]", "*"):  # noqa: S104 - recognised, not bound to
        address = address.replace(f"//{anywhere}:", f"//{host}:")
    return address


def _sat_per_kvb(btc_per_kvb: Decimal | int) -> int:
    return int((Decimal(btc_per_kvb) * 100_000_000).to_integral_value(ROUND_CEILING))
