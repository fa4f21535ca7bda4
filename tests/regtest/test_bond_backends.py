"""A bond on a real chain, looked at through every kind of backend: it stands, it is spent, it was never there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.bond import bond_output, lock_at_least, prove_bond, spend_bond
from escrow.chain.base import Rejected
from escrow.coins import OutPoint
from escrow.keys import public_key
from p2pnode.regtest import RegtestNode
from p2pnode.reputation.chainsight import BondState, ChainSight
from protocol.bond import Bond
from protocol.identity import SigningKey
from protocol.types import Network
from tests.regtest.backend_kinds import INDEXED, KINDS, kind_on
from tests.regtest.chain_support import pay, until

pytestmark = [pytest.mark.regtest, pytest.mark.parametrize("kind", KINDS)]
SECRET = b"\x21" * 32
VALUE = 5_000_000


@pytest.fixture
async def bitcoind(bitcoind_binary: Path, tmp_path: Path, kind: str) -> AsyncIterator[RegtestNode]:
    async with RegtestNode(tmp_path / "node", binary=bitcoind_binary, txindex=kind in INDEXED) as node:
        await node.ensure_coins(4)
        yield node


async def test_a_bond_is_found_to_stand_and_to_be_spent(bitcoind: RegtestNode, kind: str, tmp_path: Path) -> None:
    persona = SigningKey(bytes(32))
    lock = lock_at_least(await bitcoind.height() + 5, Network.REGTEST)
    coin = await pay(bitcoind, bond_output(lock, public_key(SECRET)), VALUE)
    await bitcoind.mine()
    height = await bitcoind.height()
    block = bytes.fromhex(await bitcoind.rpc("getblockhash", height))[::-1]
    bond = prove_bond(
        SECRET,
        Network.REGTEST,
        persona.public,
        Bond(coin.txid, coin.vout, VALUE, lock, public_key(SECRET), block, height, bytes(64)),
    )
    tip = lock
    spend, _ = spend_bond(coin, VALUE, lock, SECRET, b"\x00\x14" + bytes(20), 2_000)
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        sight = ChainSight(backend, Network.REGTEST, lambda: tip)
        assert await sight.bond(bond) is BondState.STANDS
        assert await sight.bond(replace(bond, value=VALUE + 1)) is BondState.FALSE
        assert await sight.bond(replace(bond, block=bytes(32))) in (None, BondState.FALSE)
        if kind == "bitcoind":
            with pytest.raises(Rejected, match="non-final"):
                await backend.broadcast(spend)
        await bitcoind.mine(lock - await bitcoind.height())

        async def caught_up() -> bool:
            return (await backend.tip()).height == await bitcoind.height()

        await until(caught_up)
        # Before its height nobody can spend it; from it on its owner can.
        await bitcoind.rpc("sendrawtransaction", spend.hex())
        await bitcoind.mine()
        await until(caught_up)
        assert await sight.bond(bond) is BondState.SPENT
        trace = await sight.trace(bond_output(lock, public_key(SECRET)), OutPoint(coin.txid, coin.vout), height)
        assert trace.confirmed is not None
        assert trace.spent is not None
        assert trace.spent.block_hash is not None
        assert trace.confirmed.block_hash == block
