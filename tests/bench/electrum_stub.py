"""An Electrum server for benches: answers about one made-up block, from dictionaries, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import msgspec

from escrow.chain.blocks import ParsedTx, all_txs
from escrow.chain.headers import ANCHORS, hash256
from protocol.types import Network


class Stub:
    """`reveal` makes the block known, with the histories of the scripts that it touches."""

    def __init__(self, header: bytes, block: bytes, touched: dict[bytes, list[bytes]]) -> None:
        txs = all_txs(block)
        self._header = header
        self._txs = {tx.txid[::-1].hex(): tx for tx in txs}
        self._branches = _branches(txs, {t[::-1].hex() for ids in touched.values() for t in ids})
        self._touched = {
            sha256(script).digest()[::-1].hex(): [t[::-1].hex() for t in ids] for script, ids in touched.items()
        }
        self._known = False
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    def reveal(self) -> None:
        self._known = True
        for writer in self._writers:
            _tell(writer, {"method": "blockchain.headers.subscribe", "params": [{"height": 1}]})
            for name in self._touched:
                params = [name, self._answer("blockchain.scripthash.subscribe", [name])]
                _tell(writer, {"method": "blockchain.scripthash.subscribe", "params": params})

    def _answer(self, method: str, params: list[Any]) -> object:
        history = self._touched.get(str(params[0]) if params else "", []) if self._known else []
        match method:
            case "server.features":
                return {"genesis_hash": ANCHORS[Network.REGTEST][0].hash[::-1].hex()}
            case "blockchain.block.headers":
                shown = [self._header.hex()] if self._known and params[0] <= 1 else []
                return {"headers": shown}
            case "blockchain.scripthash.subscribe":
                return sha256("".join(f"{t}:1:" for t in history).encode()).hexdigest() if history else None
            case "blockchain.scripthash.get_history":
                return [{"tx_hash": t, "height": 1} for t in history]
            case "blockchain.transaction.get":
                return self._txs[params[0]].raw.hex()
            case "blockchain.transaction.get_merkle":
                place, branch = self._branches[params[0]]
                return {"merkle": branch, "pos": place}
            case _:
                return None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while line := await reader.readline():
            said = msgspec.json.decode(line)
            _tell(writer, {"id": said["id"], "result": self._answer(said["method"], said["params"])})
        writer.close()


def _tell(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n")


def _branches(txs: list[ParsedTx], wanted: set[str]) -> dict[str, tuple[int, list[str]]]:
    rows = [[tx.txid for tx in txs]]
    while len(rows[-1]) > 1:
        if len(rows[-1]) % 2:
            rows[-1].append(rows[-1][-1])
        rows.append([hash256(rows[-1][i] + rows[-1][i + 1]) for i in range(0, len(rows[-1]), 2)])
    found = {}
    for place, tx in enumerate(txs):
        if (name := tx.txid[::-1].hex()) in wanted:
            found[name] = (place, [row[(place >> level) ^ 1][::-1].hex() for level, row in enumerate(rows[:-1])])
    return found


@asynccontextmanager
async def stub_on(header: bytes, block: bytes, touched: dict[bytes, list[bytes]]) -> AsyncIterator[Stub]:
    stub = Stub(header, block, touched)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=1 << 24)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        server.close()
