"""A server that speaks Esplora's HTTP interface over a regtest bitcoind, and that can be made to lie.

Esplora's own server comes neither from a package index nor from a distribution. This one answers as its API.md
documents: the same paths, fields, page sizes and statuses, indexed from what bitcoind tells (with `txindex`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from hashlib import sha256
from typing import Any

import msgspec
from aiohttp import web

from escrow.chain.blocks import parse_tx
from escrow.chain.headers import hash256
from escrow.coins import txid_bytes
from p2pnode.regtest import RegtestNode, RpcFailed

PAGE = 25
BLOCKS = 10
_WORK = web.AppKey("work", object)

Lie = Callable[[str, web.Response], web.Response | None]
"""Gets a path and the honest answer; returns what is sent instead, None for the honest one."""


def honest(path: str, answer: web.Response) -> web.Response | None:
    del path, answer
    return None


def js(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value, enc_hook=float), status=status, content_type="application/json")


def text(value: object, status: int = 200) -> web.Response:
    return web.Response(text=str(value), status=status)


def sats(btc: Decimal | int) -> int:
    return int(Decimal(btc) * 100_000_000)


class EsploraTwin:
    """One server; `lie` changes answers, `before` runs ahead of each."""

    def __init__(self, node: RegtestNode, *, tls: ssl.SSLContext | None = None) -> None:
        self._node = node
        self._tls = tls
        self.lie: Lie = honest
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.asked: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None
        # Per block of the chain, lowest first: its name, and who touches which script.
        self._blocks: list[tuple[str, dict[str, list[str]]]] = []
        self._outputs: dict[str, list[str]] = {}
        self._indexing = asyncio.Lock()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}/api"

    async def start(self) -> None:
        """Serve; after `stop`, at the same port again."""
        app = web.Application(client_max_size=10_000_000)
        app.router.add_route("*", "/api/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.Response:
        path = "/" + request.match_info["path"]
        self.asked.append(path)
        if self.before is not None:
            await self.before(path)
        try:
            answer = await self._answer(request, path)
        except RpcFailed as e:
            answer = text(e.detail, 404)
        return self.lie(path, answer) or answer

    async def _answer(self, request: web.Request, path: str) -> web.Response:  # noqa: PLR0911 - one per path
        parts = path.strip("/").split("/")
        match parts:
            case ["tx"] if request.method == "POST":
                return await self._broadcast((await request.text()).strip())
            case ["txs", "package"] if request.method == "POST":
                return js(await self._node.rpc("submitpackage", await request.json()))
            case ["blocks", "tip", "height"]:
                return text(await self._node.height())
            case ["blocks", "tip", "hash"]:
                return text(await self._node.rpc("getbestblockhash"))
            case ["blocks", *start]:
                return await self._page_of_blocks(int(start[0]) if start else await self._node.height())
            case ["block-height", height]:
                return text(await self._node.rpc("getblockhash", int(height)))
            case ["block", block, "header"]:
                return text(await self._node.rpc("getblockheader", block, False))
            case ["block", block, "raw"]:
                return web.Response(body=bytes.fromhex(await self._node.rpc("getblock", block, 0)))
            case ["tx", txid, *rest]:
                return await self._tx(txid, rest)
            case ["scripthash", script, "txs", *rest]:
                return await self._history(script, rest)
            case ["fee-estimates"]:
                return js({})
            case _:
                return text("not found", 404)

    # -- blocks -----------------------------------------------------------------------------------------------

    async def _page_of_blocks(self, top: int) -> web.Response:
        if top > await self._node.height():
            return js([])
        page = []
        for height in range(top, max(-1, top - BLOCKS), -1):
            block = await self._node.rpc("getblock", await self._node.rpc("getblockhash", height), 1)
            page.append(
                {
                    "id": block["hash"],
                    "height": height,
                    "version": block["version"],
                    "timestamp": block["time"],
                    "tx_count": block["nTx"],
                    "size": block["size"],
                    "weight": block["weight"],
                    "merkle_root": block["merkleroot"],
                    "previousblockhash": block.get("previousblockhash"),
                    "mediantime": block["mediantime"],
                    "nonce": block["nonce"],
                    "bits": int(block["bits"], 16),
                    "difficulty": block["difficulty"],
                }
            )
        return js(page)

    # -- transactions -----------------------------------------------------------------------------------------

    async def _tx(self, txid: str, rest: list[str]) -> web.Response:
        if rest[:1] == ["outspend"]:
            return js(await self._spent(txid, int(rest[1])))
        found = await self._node.rpc("getrawtransaction", txid, 1)
        match rest:
            case ["raw"]:
                return web.Response(body=bytes.fromhex(found["hex"]))
            case ["hex"]:
                return text(found["hex"])
            case ["status"]:
                return js(await self._status(found.get("blockhash")))
            case ["merkle-proof"]:
                return await self._proof(found)
            case _:
                return js({"txid": txid, "status": await self._status(found.get("blockhash"))})

    async def _status(self, block: str | None) -> dict[str, Any]:
        if block is None:
            return {"confirmed": False}
        header = await self._node.rpc("getblockheader", block)
        if header["confirmations"] < 0:
            return {"confirmed": False}
        return {
            "confirmed": True,
            "block_height": header["height"],
            "block_hash": block,
            "block_time": header["time"],
        }

    async def _proof(self, tx: dict[str, Any]) -> web.Response:
        if "blockhash" not in tx:
            return text("Transaction not found or is unconfirmed", 404)
        block = await self._node.rpc("getblock", tx["blockhash"], 1)
        row = [txid_bytes(t) for t in block["tx"]]
        place = at = row.index(txid_bytes(tx["txid"]))
        branch = []
        while len(row) > 1:
            if len(row) % 2:
                row.append(row[-1])
            branch.append(row[at ^ 1][::-1].hex())
            row = [hash256(row[i] + row[i + 1]) for i in range(0, len(row), 2)]
            at //= 2
        return js({"block_height": block["height"], "merkle": branch, "pos": place})

    async def _spent(self, txid: str, vout: int) -> dict[str, Any]:
        await self._index()
        answer = await self._node.rpc("gettxspendingprevout", [{"txid": txid, "vout": vout}])
        if spender := answer[0].get("spendingtxid"):
            return {"spent": True, "txid": spender, "vin": 0, "status": {"confirmed": False}}
        for block, touched in self._blocks:
            for spender in touched.get(f"{txid}:{vout}", []):
                return {"spent": True, "txid": spender, "vin": 0, "status": await self._status(block)}
        return {"spent": False}

    async def _broadcast(self, raw: str) -> web.Response:
        try:
            return text(await self._node.rpc("sendrawtransaction", raw))
        except RpcFailed as e:
            words = e.detail.partition(": ")[2].rpartition(" (")[0]
            return text(f'sendrawtransaction RPC error: {{"code":{e.rpc_code},"message":"{words}"}}', 400)

    # -- histories --------------------------------------------------------------------------------------------

    async def _history(self, script: str, rest: list[str]) -> web.Response:
        waiting = [] if rest[:1] == ["chain"] else await self._waiting(script)
        confirmed: list[dict[str, Any]] = []
        if rest[:1] != ["mempool"]:
            await self._index()
            for block, touched in reversed(self._blocks):
                status = await self._status(block) if script in touched else {}
                confirmed += [{"txid": t, "status": status} for t in reversed(touched.get(script, []))]
            if rest[1:]:
                names = [entry["txid"] for entry in confirmed]
                confirmed = confirmed[names.index(rest[1]) + 1 :] if rest[1] in names else []
        return js([*waiting, *confirmed[:PAGE]])

    async def _waiting(self, script: str) -> list[dict[str, Any]]:
        touched = {
            txid: await self._touched(await self._node.rpc("getrawtransaction", txid, 0))
            for txid in await self._node.rpc("getrawmempool")
        }
        return [
            {"txid": txid, "status": {"confirmed": False}} for txid, scripts in touched.items() if script in scripts
        ]

    async def _touched(self, raw: str) -> list[str]:
        """The scripts that a transaction pays or spends, and the outputs that it spends."""
        tx = parse_tx(bytes.fromhex(raw))
        self._outputs[tx.txid[::-1].hex()] = [sha256(o.script_pubkey).hexdigest() for o in tx.outputs]
        touched = list(self._outputs[tx.txid[::-1].hex()])
        for outpoint in () if tx.is_coinbase else tx.spends:
            name = outpoint.txid[::-1].hex()
            if name not in self._outputs:
                source = parse_tx(bytes.fromhex(await self._node.rpc("getrawtransaction", name, 0)))
                self._outputs[name] = [sha256(o.script_pubkey).hexdigest() for o in source.outputs]
            touched += [self._outputs[name][outpoint.vout], f"{name}:{outpoint.vout}"]
        return touched

    async def _index(self) -> None:
        """Take up the blocks that are new, and drop those that are no longer in the chain."""
        async with self._indexing:
            while self._blocks and (await self._node.rpc("getblockheader", self._blocks[-1][0]))["confirmations"] < 0:
                self._blocks.pop()
            for height in range(len(self._blocks) + 1, await self._node.height() + 1):
                block = await self._node.rpc("getblock", await self._node.rpc("getblockhash", height), 2)
                touched: dict[str, list[str]] = {}
                for tx in block["tx"]:
                    for what in dict.fromkeys(await self._touched(tx["hex"])):
                        touched.setdefault(what, []).append(tx["txid"])
                self._blocks.append((block["hash"], touched))


@asynccontextmanager
async def esplora_on(node: RegtestNode, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[EsploraTwin]:
    server = EsploraTwin(node, tls=tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
