"""The regtest node itself: what the demo and the other tests take for granted."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

import p2pnode.regtest
from p2pnode.findbitcoind import find_bitcoind, major_version
from p2pnode.regtest import BitcoindMissing, RegtestError, RegtestNode, RpcFailed


async def test_session_node_has_mature_coins_and_exact_amounts(bitcoind: RegtestNode) -> None:
    balance = await bitcoind.rpc("getbalance", wallet="miner")
    assert isinstance(balance, Decimal)
    assert balance >= 50
    txid = await bitcoind.fund(await bitcoind.new_address(), 12_345_679)
    details = await bitcoind.rpc("getrawtransaction", txid, 1, await bitcoind.rpc("getbestblockhash"))
    assert Decimal("0.12345679") in [output["value"] for output in details["vout"]]


async def test_rpc_errors_keep_their_number(bitcoind: RegtestNode) -> None:
    with pytest.raises(RpcFailed) as caught:
        await bitcoind.rpc("nonsense")
    assert caught.value.rpc_code == -32601


async def test_reorganise_unconfirms_what_the_lost_blocks_held(own_bitcoind: RegtestNode) -> None:
    txid = await own_bitcoind.fund(await own_bitcoind.new_address(), 100_000, confirmations=2)
    height = await own_bitcoind.height()
    await own_bitcoind.reorganise(2)
    assert await own_bitcoind.height() == height + 1
    assert txid in await own_bitcoind.rpc("getrawmempool")
    # The same again at the same height must be a different chain, not the invalid one.
    await own_bitcoind.reorganise(3)
    assert await own_bitcoind.height() == height + 2


async def test_split_network_mines_alone_and_follows_the_longer_chain_afterwards(
    two_bitcoinds: tuple[RegtestNode, RegtestNode],
) -> None:
    one, two = two_bitcoinds
    await one.disconnect(two)
    ours = (await one.mine(1))[-1]
    theirs = (await two.mine(2))[-1]
    assert await one.rpc("getbestblockhash") == ours
    await one.connect(two)
    assert await one.rpc("getbestblockhash") == theirs


async def test_restart_keeps_chain_and_wallet(own_bitcoind: RegtestNode) -> None:
    height, pid = await own_bitcoind.height(), own_bitcoind.pid
    await own_bitcoind.stop()
    with pytest.raises(RegtestError):
        await own_bitcoind.height()
    await own_bitcoind.start()
    assert own_bitcoind.pid != pid
    assert await own_bitcoind.height() == height
    await own_bitcoind.fund(await own_bitcoind.new_address(), 50_000)


async def test_taken_port_is_replaced_by_another(
    bitcoind_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_ports = p2pnode.regtest._free_ports
    tries = 0

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()

        def taken(count: int) -> list[int]:
            nonlocal tries
            tries += 1
            ports = free_ports(count)
            if tries <= count:  # each of the three once
                ports[tries - 1] = holder.getsockname()[1]
            return ports

        monkeypatch.setattr(p2pnode.regtest, "_free_ports", taken)
        async with RegtestNode(tmp_path, binary=bitcoind_binary) as node:
            assert await node.rpc("getzmqnotifications")
            assert await node.height() == 0
    assert tries == 4


async def test_failed_start_says_why_and_leaves_no_process(bitcoind_binary: Path, tmp_path: Path) -> None:
    node = RegtestNode(tmp_path, binary=bitcoind_binary, extra_args=("-nosuchoption",))
    with pytest.raises(RegtestError, match="nosuchoption"):
        await node.start()
    assert node.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only an orderly exit of the parent ends the node")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_node_does_not_outlive_the_program_that_started_it(
    bitcoind_binary: Path, tmp_path: Path, how: signal.Signals
) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from p2pnode.regtest import RegtestNode\n"
        "async def main():\n"
        "    async with RegtestNode(pathlib.Path(sys.argv[1]), binary=pathlib.Path(sys.argv[2])) as node:\n"
        "        print(node.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(bitcoind_binary)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=root,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        waiting = os.pidfd_open(child)
        try:
            parent.send_signal(how)
            ended, _, _ = select.select([waiting], [], [], 20)
        finally:
            os.close(waiting)
        assert ended


class TestFindBitcoind:
    """Which bitcoind is used."""

    @staticmethod
    def fake(folder: Path, version: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        binary = folder / "bitcoind"
        binary.write_text(f"#!/bin/sh\necho 'Bitcoin Core daemon version v{version}.0'\n")
        binary.chmod(0o755)
        return binary

    @pytest.fixture(autouse=True)
    def empty_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("P2PNODE_BITCOIND", raising=False)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_named_one_wins_over_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake(tmp_path / "bin", "30.1")
        named = self.fake(tmp_path / "named", "28.2")
        monkeypatch.setenv("P2PNODE_BITCOIND", str(named))
        assert find_bitcoind() == named
        assert major_version(named) == 28

    @pytest.mark.parametrize("version", ["27.1", None])
    def test_named_one_that_will_not_do_is_refused_not_skipped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
    ) -> None:
        self.fake(tmp_path / "bin", "30.1")
        named = self.fake(tmp_path / "named", version) if version else tmp_path / "absent"
        monkeypatch.setenv("P2PNODE_BITCOIND", str(named))
        with pytest.raises(BitcoindMissing, match="P2PNODE_BITCOIND"):
            find_bitcoind()

    def test_old_one_on_path_gives_way_to_the_cached_one(self, tmp_path: Path) -> None:
        self.fake(tmp_path / "bin", "25.0")
        cached = self.fake(tmp_path / "cache/p2pnode/bitcoind-29.4-1", "29.4")
        assert find_bitcoind() == cached

    def test_nothing_usable_is_one_clear_line(self, tmp_path: Path) -> None:
        self.fake(tmp_path / "bin", "25.0")
        with pytest.raises(BitcoindMissing, match=r"^No usable bitcoind: run `make setup`[^\n]*$"):
            find_bitcoind()
