"""One port for UDP and TCP, on IPv4 and IPv6; and machines that have one of them only."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dht.node import mine_node_key
from p2pnode.channels import Channels
from p2pnode.clock import SystemClock
from p2pnode.composition.listening import listen
from p2pnode.config import Config, load
from p2pnode.ports import AddressUnavailable
from protocol.types import Network

_, KEY = mine_node_key(lambda index: index.to_bytes(32, "big"), 4)


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    made = Channels(KEY, Network.REGTEST, {}, clock=SystemClock())
    yield made
    await made.close()


def config(folder: Path, **node: object) -> Config:
    return load(flags={"network": "regtest", "data_dir": str(folder)} | {f"node.{k}": v for k, v in node.items()})


async def test_everywhere_is_ipv4_and_ipv6_on_one_port(tmp_path: Path, channels: Channels) -> None:
    listening, dht = await listen(config(tmp_path, port=0), KEY, channels)
    try:
        assert [a.host for a in listening] == ["0.0.0.0", "::"]
        assert {a.port for a in listening} == {dht.local[1]}
        assert dht.engine.versions == {4, 6}
        for host in ("127.0.0.1", "::1"):
            with closing(socket.create_connection((host, listening[0].port), timeout=5)):
                pass
    finally:
        await dht.close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_machine_without_ipv6_listens_on_what_it_has(
    tmp_path: Path, channels: Channels, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = socket.socket

    class WithoutIpv6(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = socket.AF_INET, *rest: Any, **named: Any) -> None:  # noqa: ANN401
            if family == socket.AF_INET6:
                raise OSError(number, "no IPv6 here")
            super().__init__(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    listening, dht = await listen(config(tmp_path, port=0), KEY, channels)
    try:
        assert [a.host for a in listening] == ["0.0.0.0"]
        assert dht.engine.versions == {4}
    finally:
        await dht.close()


async def test_port_that_is_taken_on_ipv6_is_not_mistaken_for_a_machine_without_it(
    tmp_path: Path, channels: Channels
) -> None:
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as taken:
        taken.bind(("::", 0))
        taken.listen()
        with pytest.raises(AddressUnavailable, match="in use"):
            await listen(config(tmp_path, port=taken.getsockname()[1]), KEY, channels)


async def test_node_without_udp_listens_on_tcp_alone(tmp_path: Path, channels: Channels) -> None:
    settings = config(tmp_path, port=0, dht_transport="channel", host="127.0.0.1,::1")
    listening, dht = await listen(settings, KEY, channels)
    try:
        assert [a.host for a in listening] == ["127.0.0.1", "::1"]
        assert dht.by_channel
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as free:
            free.bind(("127.0.0.1", listening[0].port))
    finally:
        await dht.close()
