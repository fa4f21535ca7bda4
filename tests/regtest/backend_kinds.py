"""Every kind of chain backend over a regtest bitcoind, for tests that must hold for each of them."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from escrow.chain.cbf import CbfBackend, CbfConfig
from escrow.chain.driver import Backend
from escrow.chain.electrum import ElectrumBackend, ElectrumConfig
from escrow.chain.esplora import EsploraBackend, EsploraConfig
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.chain_support import backend_on
from tests.regtest.electrum_between import ElectrumBetween
from tests.regtest.electrumx_node import ElectrumX, electrumx_on
from tests.regtest.esplora_twin import EsploraTwin, esplora_on

KINDS = ("bitcoind", "cbf", "electrum", "esplora")
INDEXED = ("electrum", "esplora")
"""Kinds whose servers need a bitcoind with `txindex`."""


def clock() -> int:
    return int(time.time())


def cbf_config(*nodes: RegtestNode, **options: object) -> CbfConfig:
    base: dict[str, object] = {
        "network": Network.REGTEST,
        "peers": tuple(f"127.0.0.1:{node.p2p_port}" for node in nodes),
        "poll_seconds": 0.2,
        "safety_poll_seconds": 0.2,
        "timeout_seconds": 10.0,
        "fallback_fee_rate": 2_000,
    }
    return CbfConfig(**{**base, **options})  # type: ignore[arg-type]


def electrum_backend(server: ElectrumX | ElectrumBetween, **options: object) -> ElectrumBackend:
    base: dict[str, object] = {
        "network": Network.REGTEST,
        "url": server.url,
        "poll_seconds": 0.2,
        "safety_poll_seconds": 0.2,
        "timeout_seconds": 10.0,
        "fallback_fee_rate": 2_000,
    }
    return ElectrumBackend(ElectrumConfig(**{**base, **options}), clock)  # type: ignore[arg-type]


def esplora_backend(server: EsploraTwin, **options: object) -> EsploraBackend:
    base: dict[str, object] = {
        "network": Network.REGTEST,
        "url": server.url,
        "poll_seconds": 0.2,
        "timeout_seconds": 10.0,
        "fallback_fee_rate": 2_000,
    }
    return EsploraBackend(EsploraConfig(**{**base, **options}), clock)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(backend: Backend) -> AsyncIterator[Backend]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def kind_on(kind: str, node: RegtestNode, folder: Path) -> AsyncIterator[Backend]:
    match kind:
        case "bitcoind":
            async with backend_on(node) as backend:
                yield backend
        case "cbf":
            async with opened(CbfBackend(cbf_config(node), clock, random.Random(1))) as light:
                yield light
        case "electrum":
            async with electrumx_on(node, folder) as server, opened(electrum_backend(server)) as backend:
                yield backend
        case "esplora":
            async with esplora_on(node) as twin, opened(esplora_backend(twin)) as backend:
                yield backend
        case _:
            raise AssertionError(kind)
