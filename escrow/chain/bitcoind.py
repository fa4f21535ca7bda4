"""The chain as one's own bitcoind sees it: JSON-RPC for answers, ZMQ for hints.

Theory of operation. `BitcoindSource` answers what `Follow` asks; this view adds the one-off questions, and hints from
ZMQ (found through `getzmqnotifications`, nothing to configure). Nothing is asked of bitcoind's wallet and no address
index is needed. The block filter index (`blockfilterindex=1`), where it is there, makes looking into the past quick;
without it blocks are read one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import ROUND_CEILING, Decimal
from typing import Final
from urllib.parse import urlsplit

import msgspec

from escrow.chain.base import BackendTooOld, ChainTx, FeeUnknown, Rejected, WrongNetwork
from escrow.chain.blocks import ParsedTx, match_block, parse_tx
from escrow.chain.driver import Backend
from escrow.chain.rpc import BitcoindRpc, Login, RpcError
from escrow.chain.source import NOT_FOUND, BitcoindSource
from escrow.chain.view import Hint
from escrow.chain.zmqfeed import TOPICS, ZmqFeed
from escrow.coins import OutPoint, txid_bytes, txid_text
from protocol.types import FeeRate, Hash32, Network, Sats, Txid

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

_HAS_IT: Final = ("txn-already-in-mempool", "txn-already-known")
"""Reasons for a refusal that are as good as acceptance."""
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


class BitcoindView(BitcoindSource):
    """A `ChainView` over one bitcoind."""

    name = "bitcoind"
    judges = True
    note = ""
    disagreement = False

    def __init__(self, config: BitcoindConfig) -> None:
        """Keep the configuration; nothing is opened yet."""
        self.rpc = BitcoindRpc(config.url, config.login, timeout=config.timeout_seconds)
        super().__init__(self.rpc)
        self._config = config
        self._zmq: ZmqFeed | None = None
        self._listener: asyncio.Task[None] | None = None
        self._hint: Callable[[Hint], None] = lambda _hint: None

    @property
    def network(self) -> Network:
        """The network that bitcoind must be on."""
        return self._config.network

    @property
    def prompt(self) -> bool:
        """ZMQ tells of blocks, and of transactions."""
        topics = self._zmq.endpoints.keys() if self._zmq is not None else ()
        return "hashblock" in topics and len(topics) > 1

    async def open(self, hint: Callable[[Hint], None]) -> None:
        """Nothing but to remember whom to tell: `check` connects."""
        self._hint = hint

    async def close(self) -> None:
        """End the subscription and all connections."""
        await self._stop_listening()
        await self.rpc.close()

    async def check(self) -> str:
        """Ask for version, network and progress; subscribe to ZMQ.

        Raises BackendUnreachable, BackendAuthFailed, BackendTooOld, WrongNetwork.
        """
        info = await self.rpc.call("getblockchaininfo")
        chain = str(info["chain"])
        if _CHAINS.get(chain) is not self.network:
            raise WrongNetwork(f"the Bitcoin node is on {chain}, this node on {self.network.name.lower()}: use another")
        version = int((await self.rpc.call("getnetworkinfo"))["version"])
        if version < MIN_VERSION:
            raise BackendTooOld(f"the Bitcoin node is version {version // 10_000}, needed is {MIN_VERSION // 10_000}")
        await self.learn_indices()
        await self._listen()
        blocks, headers = int(info["blocks"]), int(info["headers"])
        # A fresh regtest chain is in "initial block download" until it has a recent block.
        behind = bool(info["initialblockdownload"]) and self.network is not Network.REGTEST
        if behind or headers > blocks + _BEHIND:
            percent = int(Decimal(info["verificationprogress"]) * 100)
            return f"the Bitcoin node is syncing: {percent} %, block {blocks:,} of {headers:,}"
        return ""

    async def refresh(self) -> None:
        """Nothing: bitcoind learns of blocks by itself."""

    # -- questions --------------------------------------------------------------------------------------------

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """Bitcoind's estimate, never under what its mempool takes now, in satoshis per 1,000 vB, rounded up."""
        blocks = max(1, min(1_008, target_blocks))
        estimate, mempool = await self.rpc.batch([("estimatesmartfee", blocks), ("getmempoolinfo",)])
        if isinstance(mempool, RpcError):
            raise mempool
        floor = max(_sat_per_kvb(mempool["mempoolminfee"]), _sat_per_kvb(mempool["minrelaytxfee"]))
        if isinstance(estimate, RpcError) or "feerate" not in estimate:
            if self._config.fallback_fee_rate is None:
                raise FeeUnknown
            return max(floor, self._config.fallback_fee_rate)
        return max(floor, _sat_per_kvb(estimate["feerate"]))

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """By bitcoind's mempool."""
        try:
            entry = await self.rpc.call("getmempoolentry", txid_text(txid))
        except RpcError as e:
            if e.rpc_code == NOT_FOUND:
                return None
            raise
        return int(Decimal(entry["fees"]["base"]) * 100_000_000)

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        """Ask whether the mempool would take them, or has them. Raises Rejected.

        A package is judged by its parts only where each would be taken alone; else `send` tells.
        """
        if len(txs) > 1:
            return
        tx = txs[0]
        try:
            verdict = (await self.rpc.call("testmempoolaccept", [tx.hex()]))[0]
        except RpcError as e:
            if e.rpc_code == _NO_TX:
                raise Rejected("it does not decode") from e
            raise
        if verdict.get("allowed"):
            return
        reason = str(verdict.get("reject-reason", "no reason given"))
        if reason in _HAS_IT:
            return
        if "missing" in reason and await self._in_chain(parse_tx(tx)):
            return
        details = str(verdict.get("reject-details", ""))
        raise Rejected(details if details.startswith(reason) else reason)

    async def send(self, txs: Sequence[bytes]) -> None:
        """`sendrawtransaction`, or `submitpackage` for a package: a child then pays for parents under the floor."""
        if len(txs) > 1:
            await self._send_package(txs)
            return
        try:
            await self.rpc.call("sendrawtransaction", txs[0].hex())
        except RpcError as e:
            if e.rpc_code != _IN_CHAIN and not await self._in_chain(parse_tx(txs[0])):
                raise (Rejected(e.message) if e.rpc_code in (_VERIFY, _REJECTED) else e) from e

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """By bitcoind's own set of unspent outputs, its mempool taken into account."""
        found = await self.rpc.call("gettxout", txid_text(outpoint.txid), outpoint.vout, True)
        return found is not None and int(found["confirmations"]) > 0

    async def transaction(self, txid: Txid, block_hash: Hash32 | None) -> ChainTx | None:
        """Look in the mempool, in `block_hash`, and wherever bitcoind's own index (`txindex`) finds it."""
        known = [txid_text(block_hash)] if block_hash is not None else []
        answers = await self.rpc.batch(
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
                info = await self.header(block)
                return ChainTx(raw, info.block.height, block, depth) if info is not None and info.active else None
        return None

    # -- inside -----------------------------------------------------------------------------------------------

    async def _send_package(self, txs: Sequence[bytes]) -> None:
        try:
            answer = await self.rpc.call("submitpackage", [tx.hex() for tx in txs])
        except RpcError as e:
            raise (Rejected(e.message) if e.rpc_code in (_NO_TX, _VERIFY, _REJECTED) else e) from e
        if answer.get("package_msg") == "success":
            return
        for result in answer.get("tx-results", {}).values():
            if "error" in result and result["error"] not in _HAS_IT:
                raise Rejected(str(result["error"]))

    async def _listen(self) -> None:
        """Subscribe to ZMQ where bitcoind offers it."""
        endpoints = self._config.zmq
        if endpoints is None:
            host = urlsplit(self._config.url).hostname or "127.0.0.1"
            offered = await self.rpc.call("getzmqnotifications")
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
            self._listener = asyncio.create_task(self._hear(self._zmq), name="bitcoind-zmq")

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
            self._listener = None
        if self._zmq is not None:
            self._zmq.close()
            self._zmq = None

    async def _hear(self, feed: ZmqFeed) -> None:
        async for hint in feed.hints():
            self._hint(hint)

    async def _in_chain(self, tx: ParsedTx) -> bool:
        """Whether a block of the best chain holds `tx`: by its unspent outputs, else by looking at the last blocks."""
        name = txid_text(tx.txid)
        outputs = await self.rpc.batch([("gettxout", name, i, False) for i in range(len(tx.outputs))])
        if any(o is not None and not isinstance(o, RpcError) for o in outputs):
            return True
        info = await self.header(await self.best())
        high = 0 if info is None else info.block.height
        scripts = {o.script_pubkey for o in tx.outputs}
        for block in await self.relevant(scripts, max(1, high - _LOOK_BACK), high):
            raw = await self.block(block.hash)
            if any(found.txid == tx.txid for found in match_block(raw, scripts, frozenset())):
                return True
        return False


class BitcoindBackend(Backend):
    """A `FollowedChain` over one bitcoind."""

    def __init__(self, config: BitcoindConfig) -> None:
        """Keep the configuration; nothing is opened yet."""
        self.view = BitcoindView(config)
        super().__init__(self.view, poll_seconds=config.poll_seconds, safety_poll_seconds=config.safety_poll_seconds)


def _reachable(address: str, host: str) -> str:
    """A ZMQ address as seen from here: bitcoind may say that it listens on all interfaces."""
    for anywhere in ("0.0.0.0", "[::]", "*"):  # noqa: S104 - recognised, not bound to
        address = address.replace(f"//{anywhere}:", f"//{host}:")
    return address


def _sat_per_kvb(btc_per_kvb: Decimal | int) -> int:
    return int((Decimal(btc_per_kvb) * 100_000_000).to_integral_value(ROUND_CEILING))
