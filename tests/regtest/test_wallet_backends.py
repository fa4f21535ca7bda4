"""The wallet on every kind of backend: coins come, go, and are found again by the seed alone."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from escrow.address import script_of
from escrow.chain.driver import Backend
from escrow.coins import txid_text
from escrow.seed import Seed, mnemonic_from_entropy
from escrow.wallet.engines import make_engine
from escrow.wallet.hot import HotWallet, WalletOptions
from escrow.wallet.reservations import SqliteReservations
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.backend_kinds import INDEXED, KINDS, kind_on
from tests.regtest.chain_support import pay, until

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def node(bitcoind_binary: Path, tmp_path: Path, kind: str) -> AsyncIterator[RegtestNode]:
    async with RegtestNode(tmp_path / "node", binary=bitcoind_binary, txindex=kind in INDEXED) as made:
        await made.ensure_coins(4)
        yield made


@asynccontextmanager
async def wallet_over(
    backend: Backend, folder: Path, seed: Seed, birthday: int | None = None, gap_limit: int = 20
) -> AsyncIterator[HotWallet]:
    folder.mkdir(exist_ok=True)
    connection = sqlite3.connect(folder / "node.sqlite", isolation_level=None)
    wallet = HotWallet(
        make_engine(seed.master, Network.REGTEST, "auto"),
        backend,
        SqliteReservations(connection),
        folder / "wallet.sqlite",
        lambda: 1_800_000_000,
        WalletOptions(birthday=birthday, gap_limit=gap_limit),
    )
    await wallet.start()
    try:
        yield wallet
    finally:
        await wallet.close()
        connection.close()


async def has(wallet: HotWallet, spendable: int) -> None:
    async def so() -> bool:
        return (await wallet.balance()).spendable == spendable

    await until(so)


async def test_coins_come_go_and_are_found_again_by_the_seed(node: RegtestNode, tmp_path: Path, kind: str) -> None:
    seed = Seed.from_mnemonic(mnemonic_from_entropy(random.Random(kind).randbytes(32)))
    born = await node.height()
    async with kind_on(kind, node, tmp_path / "chain") as backend:
        async with wallet_over(backend, tmp_path / "first", seed) as wallet:
            for sats in (40_000, 50_000):
                await pay(node, (await wallet.new_address("")).script_pubkey, sats)
            await node.mine(1)
            await has(wallet, 90_000)
            # Each address is within the gap of the one before, the last is far beyond it.
            for sats in (1_000, 2_000, 3_000):
                addresses = [await wallet.new_address("") for _ in range(18)]
                await pay(node, addresses[-1].script_pubkey, sats)
                await node.mine(1)
            await has(wallet, 96_000)
            target = await node.new_address()
            sent = await wallet.send(target, 30_000, 2_000)
            assert txid_text(sent.txid) in await node.rpc("getrawmempool")
            await node.mine(1)
            left = 96_000 - 30_000 - sent.fee
            await has(wallet, left)
            paid = (await node.rpc("gettransaction", txid_text(sent.txid), wallet="miner"))["hex"]
            assert script_of(target, Network.REGTEST).hex() in paid
        async with wallet_over(backend, tmp_path / "again", seed, birthday=born) as wallet:
            await has(wallet, left)
        async with wallet_over(backend, tmp_path / "unborn", seed, birthday=await node.height() + 1) as wallet:
            await has(wallet, 0)


async def test_what_came_while_the_wallet_was_closed_is_found(node: RegtestNode, tmp_path: Path, kind: str) -> None:
    seed = Seed.from_mnemonic(mnemonic_from_entropy(random.Random(f"{kind} closed").randbytes(32)))
    async with kind_on(kind, node, tmp_path / "chain") as backend:
        async with wallet_over(backend, tmp_path / "wallet", seed) as wallet:
            script = (await wallet.new_address("")).script_pubkey
        await pay(node, script, 70_000)
        await node.mine(40)
        async with wallet_over(backend, tmp_path / "wallet", seed) as wallet:  # the same files again
            await has(wallet, 70_000)
