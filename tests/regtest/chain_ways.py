"""Ways for a daemon to see a regtest chain, each through someone who can be made to die or to lie."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

from escrow.chain.headers import hash256
from escrow.chain.p2pwire import Message, compact
from p2pnode.regtest import RegtestNode
from tests.regtest import electrum_between, esplora_twin, go_between
from tests.regtest.electrum_between import ElectrumBetween, Said
from tests.regtest.electrumx_node import ElectrumX
from tests.regtest.esplora_twin import EsploraTwin
from tests.regtest.go_between import GoBetween


def invented_header(parent: str) -> bytes:
    """A header on top of a block (its name as shown), of a target that no hash meets by chance."""
    fields = (2_000_000_000, 0x1D00FFFF, 7)
    return (
        (4).to_bytes(4, "little")
        + bytes.fromhex(parent)[::-1]
        + bytes(32)
        + b"".join(field.to_bytes(4, "little") for field in fields)
    )


class Way(ABC):
    """One way. `lines` are of a daemon's [chain] section."""

    def __init__(self, node: RegtestNode, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.tip = ""
        self.claimed: dict[str, int] = {}
        self.told = 0

    @abstractmethod
    async def start(self) -> None:
        """Answer, at the same address after `die` too."""

    @abstractmethod
    async def die(self) -> None:
        """Answer nobody and end every connection."""

    async def close(self) -> None:
        """Let go of all."""
        await self.die()

    @property
    @abstractmethod
    def lines(self) -> list[str]:
        """How a daemon is told of it."""

    async def claim(self, txid: str, script: str) -> None:
        """From now on: the transaction, which waits, is said to be in the newest block, beneath an invented one."""
        self.tip = await self.node.rpc("getbestblockhash")
        self.claimed = {txid: await self.node.height(), script: 0}
        self.tell_lies()
        # A block without the transaction, so that whoever waits for news asks.
        await self.node.mine_empty(1)

    async def hide(self) -> None:
        """From now on: there are no new blocks."""
        self.tip = await self.node.rpc("getbestblockhash")
        self.claimed = {}
        self.tell_lies()

    def tell_lies(self) -> None:
        """Begin; `told` counts what was said that is not so."""
        raise NotImplementedError(f"{type(self).__name__} is believed: it has no liar before it")

    def be_honest(self) -> None:
        """End."""
        raise NotImplementedError


class Forwarder:
    """TCP, passed on as it is."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(_pour(reader, back), _pour(there, writer))


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class RpcWay(Way):
    """One's own bitcoind, which is believed; it can only die."""

    def __init__(self, node: RegtestNode, folder: Path) -> None:
        super().__init__(node, folder)
        self._forwarder: Forwarder | None = None

    async def start(self) -> None:
        self._forwarder = self._forwarder or Forwarder(self.node.rpc_port)
        await self._forwarder.start()

    async def die(self) -> None:
        if self._forwarder is not None:
            await self._forwarder.stop()

    @property
    def lines(self) -> list[str]:
        port = self._forwarder.port if self._forwarder else 0
        return [
            f'url = "http://127.0.0.1:{port}"',
            f"cookie_file = {json.dumps(str(self.node.cookie_path.absolute()))}",
            f'zmq = ["{self.node.zmq_url}"]',
        ]


class CbfWay(Way):
    """A Bitcoin peer."""

    def __init__(self, node: RegtestNode, folder: Path) -> None:
        super().__init__(node, folder)
        self._between: GoBetween | None = None

    async def start(self) -> None:
        self._between = self._between or GoBetween(self.node.p2p_port)
        await self._between.start()

    async def die(self) -> None:
        if self._between is not None:
            await self._between.stop()

    @property
    def lines(self) -> list[str]:
        return [f'peers = ["{self._between.address if self._between else ""}"]']

    def tell_lies(self) -> None:
        header = invented_header(self.tip)

        def lie(message: Message) -> Message | None:
            if message.command == "headers":
                self.told += 1
                body = compact(1) + header + b"\0" if self.claimed else compact(0)
                return Message("headers", body)
            return None if message.command in ("inv", "cmpctblock") and not self.claimed else message

        if self._between is not None:
            self._between.tamper = lie

    def be_honest(self) -> None:
        if self._between is not None:
            self._between.tamper = go_between.honest


class ElectrumWay(Way):
    """An Electrum server."""

    def __init__(self, node: RegtestNode, folder: Path) -> None:
        super().__init__(node, folder)
        self._server = ElectrumX(node, folder / "electrumx")
        self._between: ElectrumBetween | None = None

    async def start(self) -> None:
        if self._between is None:
            await self._server.start()
            self._between = ElectrumBetween(self._server.port)
        await self._between.start()

    async def die(self) -> None:
        if self._between is not None:
            await self._between.stop()

    async def close(self) -> None:
        await self.die()
        await self._server.stop()

    @property
    def lines(self) -> list[str]:
        return [f'electrum = ["{self._between.url if self._between else ""}"]']

    def tell_lies(self) -> None:
        header = invented_header(self.tip).hex()

        def lie(method: str, params: list[Any], said: Said) -> Said | None:
            if method == "blockchain.headers.subscribe" and "id" not in said:
                return None if not self.claimed else said
            if method == "blockchain.block.headers" and "result" in said:
                self.told += 1
                count = 1 if self.claimed else 0
                told = {"count": count, "max": 2016, "hex": header * count, "headers": [header] * count}
                return {**said, "result": told}
            if not self.claimed:
                return said
            (txid, height), (script, _) = self.claimed.items()
            if script in params and method == "blockchain.scripthash.subscribe":
                return {**said, "result": sha256(f"{txid}:{height}:".encode()).hexdigest()}
            if script in params and method == "blockchain.scripthash.get_history":
                return {**said, "result": [{"tx_hash": txid, "height": height}]}
            if method == "blockchain.transaction.get_merkle":
                return {"jsonrpc": "2.0", "id": said["id"], "result": {"merkle": ["11" * 32], "pos": 0}}
            return said

        if self._between is not None:
            self._between.lie = lie

    def be_honest(self) -> None:
        if self._between is not None:
            self._between.lie = electrum_between.honest


class EsploraWay(Way):
    """An Esplora server."""

    def __init__(self, node: RegtestNode, folder: Path) -> None:
        super().__init__(node, folder)
        self._twin: EsploraTwin | None = None

    async def start(self) -> None:
        self._twin = self._twin or EsploraTwin(self.node)
        await self._twin.start()

    async def die(self) -> None:
        if self._twin is not None:
            await self._twin.stop()

    @property
    def lines(self) -> list[str]:
        return [f'esplora = ["{self._twin.url if self._twin else ""}"]']

    def tell_lies(self) -> None:
        header = invented_header(self.tip)
        name = hash256(header)[::-1].hex()

        def lie(path: str, answer: web.Response) -> web.Response | None:
            del answer
            if path == "/blocks/tip/hash":
                self.told += 1
                return esplora_twin.text(name if self.claimed else self.tip)
            if not self.claimed:
                return None
            txid, height = next(iter(self.claimed.items()))
            if path == "/blocks/tip/height":
                return esplora_twin.text(height + 1)
            if path == f"/tx/{txid}/status":
                status = {"confirmed": True, "block_height": height, "block_hash": self.tip}
                return esplora_twin.js(status)
            if path == f"/tx/{txid}/merkle-proof":
                return esplora_twin.js({"block_height": height, "merkle": ["11" * 32], "pos": 0})
            return None

        if self._twin is not None:
            self._twin.lie = lie

    def be_honest(self) -> None:
        if self._twin is not None:
            self._twin.lie = esplora_twin.honest


WAYS: dict[str, type[Way]] = {"bitcoind": RpcWay, "cbf": CbfWay, "electrum": ElectrumWay, "esplora": EsploraWay}
