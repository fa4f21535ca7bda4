"""A wallet older than the first block that a backend knows: it must not be told that it has nothing."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from escrow.chain.base import Confirmed, SpentBy, WatchRequest
from escrow.chain.cbf import CbfBackend, CbfView
from escrow.chain.driver import Backend
from escrow.chain.electrum import ElectrumView
from escrow.chain.esplora import EsploraView
from escrow.chain.headers import ANCHORS, Anchor
from escrow.coins import txid_bytes
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.backend_kinds import cbf_config, clock, electrum_backend, esplora_backend, opened
from tests.regtest.chain_support import next_of, node_spend, own_output, until
from tests.regtest.electrumx_node import electrumx_on
from tests.regtest.esplora_twin import esplora_on

KINDS = ("cbf", "electrum", "esplora")


@pytest.fixture
async def node(bitcoind_binary: Path, tmp_path: Path) -> AsyncIterator[RegtestNode]:
    async with RegtestNode(tmp_path / "node", binary=bitcoind_binary, txindex=True) as made:
        await made.ensure_coins(4)
        yield made


@asynccontextmanager
async def on(kind: str, node: RegtestNode, folder: Path) -> AsyncIterator[Backend]:
    kept = folder / "kept"
    if kind == "cbf":
        async with opened(CbfBackend(cbf_config(node, folder=kept), clock, random.Random(1))) as light:
            yield light
    elif kind == "electrum":
        async with (
            electrumx_on(node, folder / "electrumx") as server,
            opened(electrum_backend(server, folder=kept)) as backend,
        ):
            yield backend
    else:
        async with esplora_on(node) as twin, opened(esplora_backend(twin, folder=kept)) as backend:
            yield backend


@pytest.mark.parametrize("kind", KINDS)
async def test_the_missing_headers_are_fetched_by_themselves(
    node: RegtestNode, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coin, script = await own_output(node)
    await node.mine(2)
    await node_spend(node, coin, 90_000)
    await node.mine(30)
    height = await node.height() - 10
    high = Anchor(height, txid_bytes(await node.rpc("getblockhash", height)))
    monkeypatch.setitem(ANCHORS, Network.REGTEST, (*ANCHORS[Network.REGTEST], high))
    async with on(kind, node, tmp_path) as backend:
        view = backend._view
        assert isinstance(view, CbfView | ElectrumView | EsploraView)
        assert view._store.chain.first == height + 1
        stream = backend.events()
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        assert (await next_of(stream, Confirmed)).outpoint == coin
        assert (await next_of(stream, SpentBy)).depth == 30
        assert view._store.chain.first == 0
        await node.mine(1)

        async def there() -> bool:
            return (await backend.tip()).height == await node.height()

        await until(there)
    # What was fetched is kept for the next time.
    assert (tmp_path / "kept" / "headers-regtest-0.dat").stat().st_size >= 80 * height
