"""What the tests of the chain backend and of the wallet share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from escrow.address import address_of
from escrow.chain.base import ChainEvent
from escrow.chain.bitcoind import BitcoindBackend, BitcoindConfig
from escrow.chain.blocks import parse_tx
from escrow.chain.rpc import CookieLogin
from escrow.chain.stream import EventStream
from escrow.coins import OutPoint, txid_bytes, txid_text
from p2pnode.regtest import RegtestNode
from protocol.types import Network

E = TypeVar("E")

SLOW_POLL = 3_600.0
"""With this, only ZMQ can be the reason for what is seen."""


def config_for(node: RegtestNode, **options: object) -> BitcoindConfig:
    base: dict[str, object] = {
        "network": Network.REGTEST,
        "url": node.rpc_url,
        "login": CookieLogin(node.cookie_path),
        "fallback_fee_rate": 2_000,
        "poll_seconds": 0.05,
        "safety_poll_seconds": SLOW_POLL,
    }
    return BitcoindConfig(**{**base, **options})  # type: ignore[arg-type]


@asynccontextmanager
async def backend_on(node: RegtestNode, **options: object) -> AsyncIterator[BitcoindBackend]:
    backend = BitcoindBackend(config_for(node, **options))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def zmq_only_on(node: RegtestNode, **options: object) -> AsyncIterator[BitcoindBackend]:
    """A backend that never polls; what it sees came by ZMQ, whose subscription is known to stand."""
    async with backend_on(node, **{"poll_seconds": SLOW_POLL, **options}) as backend:

        async def heard() -> bool:
            await node.mine_empty(1)
            await asyncio.sleep(0.02)
            return (await backend.tip()).hash == txid_bytes(await node.rpc("getbestblockhash"))

        # A subscriber is told only what is published after it has joined.
        await until(heard)
        yield backend


async def next_of(stream: EventStream[ChainEvent], kind: type[E], **fields: object) -> E:
    """The next event of a kind with such fields; others are passed over."""
    async with asyncio.timeout(20):
        async for event in stream:
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
                return event
    raise AssertionError("the stream ended")


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():  # noqa: ASYNC110 - bitcoind has no event to wait for
            await asyncio.sleep(0.01)


async def pay(node: RegtestNode, script: bytes, sats: int = 100_000, confirmations: int = 0) -> OutPoint:
    """Pay `script` from the node's wallet."""
    txid = txid_bytes(await node.fund(address_of(script, Network.REGTEST), sats, confirmations=confirmations))
    raw = await node.rpc("gettransaction", txid_text(txid), wallet="miner")
    outputs = parse_tx(bytes.fromhex(raw["hex"])).outputs
    return OutPoint(txid, next(i for i, o in enumerate(outputs) if o.script_pubkey == script))


async def own_output(node: RegtestNode, sats: int = 100_000) -> tuple[OutPoint, bytes]:
    """A coin of the node's own wallet, in its mempool, that the node can spend again."""
    address = await node.new_address()
    script = bytes.fromhex((await node.rpc("getaddressinfo", address, wallet="miner"))["scriptPubKey"])
    return await pay(node, script, sats), script


async def node_spend(
    node: RegtestNode, coin: OutPoint, sats: int, *, send: bool = True, parent: bytes | None = None, version: int = 2
) -> bytes:
    """A signed transaction of the node's wallet that spends exactly `coin` to itself; `parent` made it, if unsent."""
    inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout, "sequence": 0xFFFFFFFD}]
    raw = await node.rpc("createrawtransaction", inputs, [{await node.new_address(): f"{sats / 1e8:.8f}"}])
    raw = f"{version:02x}{raw[2:]}"
    spent = []
    if parent is not None:
        output = parse_tx(parent).outputs[coin.vout]
        amount = f"{output.value / 1e8:.8f}"
        spent = [inputs[0] | {"scriptPubKey": output.script_pubkey.hex(), "amount": amount}]
    signed = (await node.rpc("signrawtransactionwithwallet", raw, spent, wallet="miner"))["hex"]
    if send:
        await node.rpc("sendrawtransaction", signed)
    return bytes.fromhex(signed)
