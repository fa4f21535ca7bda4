"""What `Follow` asks of a bitcoind, in JSON-RPC."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from escrow.chain.base import BackendError, BlockRef, BlocksPruned
from escrow.chain.blocks import ParsedTx, match_block, parse_tx
from escrow.chain.follow import HeaderInfo
from escrow.chain.rpc import BitcoindRpc, RpcError
from escrow.coins import OutPoint, txid_bytes, txid_text
from protocol.types import Hash32, Txid

# bitcoind's numbers for errors (its src/rpc/protocol.h).
MISC: Final = -1
NOT_FOUND: Final = -5
BAD_PARAMETER: Final = -8

_SCAN_SECONDS: Final = 3_600.0
"""Looking through all block filters of mainnet takes minutes."""
_FEW_BLOCKS: Final = 6
"""So many blocks are sooner read than asked about."""
_BATCH: Final = 1_000


class BitcoindSource:
    """A `BlockSource` over one bitcoind."""

    def __init__(self, rpc: BitcoindRpc) -> None:
        self._rpc = rpc
        self._has_txindex = True

    async def learn_indices(self) -> None:
        """Ask whether bitcoind indexes all transactions: `getrawtransaction` then finds confirmed ones too."""
        self._has_txindex = "txindex" in await self._rpc.call("getindexinfo")

    async def best(self) -> Hash32:
        """The tip's hash."""
        return txid_bytes(await self._rpc.call("getbestblockhash"))

    async def header(self, block: Hash32) -> HeaderInfo | None:
        """What bitcoind knows of a block."""
        try:
            header = await self._rpc.call("getblockheader", txid_text(block))
        except RpcError as e:
            if e.rpc_code == NOT_FOUND:
                return None
            raise
        following = header.get("nextblockhash")
        return HeaderInfo(
            _block_ref(header), int(header["confirmations"]) >= 0, txid_bytes(following) if following else None
        )

    async def headers_at(self, heights: Sequence[int]) -> list[BlockRef]:
        """Blocks of the best chain."""
        hashes: list[str] = []
        for at in range(0, len(heights), _BATCH):
            hashes += _all(await self._rpc.batch([("getblockhash", h) for h in heights[at : at + _BATCH]]))
        return await self._headers(hashes)

    async def block(self, block: Hash32) -> bytes:
        """A whole block. Raises BlocksPruned when bitcoind has deleted it."""
        try:
            return bytes.fromhex(await self._rpc.call("getblock", txid_text(block), 0))
        except RpcError as e:
            if e.rpc_code == MISC and "pruned" in e.message:
                raise BlocksPruned from e
            raise

    async def matching(
        self, block: BlockRef, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
    ) -> list[ParsedTx]:
        """Read the block. Raises BlocksPruned."""
        return match_block(await self.block(block.hash), scripts, outpoints)

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        """Ask the block filter index; without one every block is relevant."""
        if low > high or not scripts:
            return []
        if high - low < _FEW_BLOCKS or not await self._filters_reach(high):
            return await self.headers_at(range(low, high + 1))
        answer = await self._scan([f"raw({script.hex()})" for script in scripts], low, high)
        if not answer.get("completed", True):
            raise BackendError("the Bitcoin node ended its scan of block filters early")
        return sorted(await self._headers(answer["relevant_blocks"]), key=lambda b: b.height)

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:  # noqa: ARG002 - all are told
        """What waits; bitcoind lists parents before children."""
        return [txid_bytes(t) for t in await self._rpc.call("getrawmempool")]

    async def waiting(self, txids: Sequence[Txid]) -> list[ParsedTx | None]:
        """The transactions among `txids` that the mempool holds now."""
        names = [txid_text(t) for t in txids]
        raws = await self._rpc.batch([("getrawtransaction", n) for n in names])
        if self._has_txindex:
            # Asked after the transactions: one that was confirmed in between is not waiting.
            entries = await self._rpc.batch([("getmempoolentry", n) for n in names])
            raws = [entry if isinstance(entry, RpcError) else raw for raw, entry in zip(raws, entries, strict=True)]
        return [_tx_or_none(raw) for raw in raws]

    async def spenders(self, outpoints: Sequence[OutPoint], scripts: AbstractSet[bytes]) -> list[Txid]:  # noqa: ARG002 - it goes by outpoint
        """Transactions in the mempool that spend one of `outpoints`."""
        found: dict[Txid, None] = {}
        for at in range(0, len(outpoints), _BATCH):
            asked = [{"txid": txid_text(o.txid), "vout": o.vout} for o in outpoints[at : at + _BATCH]]
            for answer in await self._rpc.call("gettxspendingprevout", asked):
                if "spendingtxid" in answer:
                    found[txid_bytes(answer["spendingtxid"])] = None
        return list(found)

    async def _scan(self, wanted: Sequence[str], low: int, high: int) -> dict[str, Any]:
        pause = 0.01
        while True:
            try:
                answer: dict[str, Any] = await self._rpc.call(
                    "scanblocks", "start", wanted, low, high, timeout=_SCAN_SECONDS
                )
            except RpcError as e:
                # bitcoind makes one scan at a time; another program may be at it.
                if e.rpc_code != BAD_PARAMETER or "in progress" not in e.message:
                    raise
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
            else:
                return answer

    async def _headers(self, hashes: Sequence[str]) -> list[BlockRef]:
        headers: list[BlockRef] = []
        for at in range(0, len(hashes), _BATCH):
            answers = await self._rpc.batch([("getblockheader", h) for h in hashes[at : at + _BATCH]])
            headers += [_block_ref(h) for h in _all(answers)]
        return headers

    async def _filters_reach(self, height: int) -> bool:
        index = (await self._rpc.call("getindexinfo", "basic block filter index")).get("basic block filter index")
        return index is not None and bool(index["synced"]) and int(index["best_block_height"]) >= height


def _all(answers: Sequence[Any]) -> Sequence[Any]:
    for answer in answers:
        if isinstance(answer, RpcError):
            raise answer
    return answers


def _tx_or_none(answer: object) -> ParsedTx | None:
    if isinstance(answer, RpcError):
        if answer.rpc_code == NOT_FOUND:
            return None
        raise answer
    return parse_tx(bytes.fromhex(str(answer)))


def _block_ref(header: dict[str, Any]) -> BlockRef:
    return BlockRef(int(header["height"]), txid_bytes(header["hash"]), int(header["time"]), int(header["mediantime"]))
