"""Metrics and health of a node over real HTTP: what is told, and what is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2pnode.api.schema import PeerAdd
from p2pnode.app import App
from p2pnode.config import load
from p2pnode.keystore import Keys, new_mnemonic
from p2pnode.ports import AddressUnavailable
from protocol.types import Network
from tests.network.api_twin import make_data_dir


def bootstrap(folder: Path, port: str) -> App:
    """A bootstrap node with metrics on `port`."""
    data = make_data_dir(folder)
    config = load(flags={"data_dir": str(data.path), "roles": ["bootstrap"], "metrics.port": port}, file=data.config)
    return App(config, Keys(Network.REGTEST, new_mnemonic()))


async def read(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.text()


async def test_a_node_tells_counts_and_nothing_of_anybody(tmp_path: Path) -> None:
    async with bootstrap(tmp_path / "node", "0") as node:
        status, text = await read(f"{node.metrics.url}/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert status == 200
        assert {"p2pnode_dht_peers", "p2pnode_sessions", "p2pnode_dht_packets_bad", "p2pnode_relay_clients"} <= set(
            families
        )
        assert families["p2pnode_up_seconds"].samples[0].value >= 0
        for secret in ("persona1", "node1", node.keyring.node.public.hex(), str(tmp_path)):
            assert secret not in text


async def test_a_node_that_knows_nobody_is_not_ready_until_it_does(tmp_path: Path) -> None:
    async with bootstrap(tmp_path / "a", "0") as a, bootstrap(tmp_path / "b", "0") as b:
        status, text = await read(f"{a.metrics.url}/health")
        assert (status, "no other node is known" in text) == (503, True)
        await a.services.peers.add(await a_peer(b))
        async with asyncio.timeout(10):
            while status != 200:
                status, text = await read(f"{a.metrics.url}/health")
        assert text == '{"ready": true, "reasons": []}'


async def a_peer(node: App) -> PeerAdd:
    """How others call it."""
    info = await node.services.node.info()
    return PeerAdd(address=f"{info.node}@{info.listen[0]}")


async def test_without_a_port_nothing_listens(tmp_path: Path) -> None:
    data = make_data_dir(tmp_path / "node")
    config = load(flags={"data_dir": str(data.path), "roles": ["bootstrap"]}, file=data.config)
    async with App(config, Keys(Network.REGTEST, new_mnemonic())) as node:
        assert node.metrics.url == ""


async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(AddressUnavailable, match=r"metrics\.port"):
        async with bootstrap(tmp_path / "node", str(port)):
            pass
    server.close()
    await server.wait_closed()
