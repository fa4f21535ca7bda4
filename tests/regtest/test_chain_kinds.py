"""What every kind of chain backend must do alike, on a real chain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from escrow.chain.base import Confirmed, Rejected, Seen, SpendUndone, SpentBy, TipChanged, Unconfirmed, WatchRequest
from escrow.chain.blocks import parse_tx
from escrow.coins import OutPoint
from p2pnode.regtest import RegtestNode
from tests.regtest.backend_kinds import INDEXED, KINDS, kind_on
from tests.regtest.chain_support import next_of, node_spend, own_output, pay, until

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def bitcoind(bitcoind_binary: Path, tmp_path: Path, kind: str) -> AsyncIterator[RegtestNode]:
    """A node of the test's own, indexed as the backend needs it."""
    async with RegtestNode(tmp_path / "node", binary=bitcoind_binary, txindex=kind in INDEXED) as node:
        await node.ensure_coins(4)
        yield node


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


async def test_payment_is_seen_and_each_depth_told(
    bitcoind: RegtestNode, rng: random.Random, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        script = fresh_script(rng)
        tip = await backend.tip()
        await backend.watch(WatchRequest(b"k", script, None, tip.height + 1, depth=3))
        coin = await pay(bitcoind, script, 123_456)
        seen = await next_of(stream, Seen)
        assert (seen.outpoint, seen.value) == (coin, 123_456)
        depths = []
        for _ in range(4):
            await bitcoind.mine(1)
            async for event in stream:
                if isinstance(event, TipChanged):
                    break
                if isinstance(event, Confirmed):
                    assert (event.outpoint, event.height, event.value) == (coin, tip.height + 1, 123_456)
                    depths.append(event.depth)
        assert sorted(set(depths)) == [1, 2, 3]


async def test_a_named_output_is_seen_before_it_is_mined(bitcoind: RegtestNode, kind: str, tmp_path: Path) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        coin, script = await own_output(bitcoind)
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        assert (await next_of(stream, Seen)).outpoint == coin


async def test_what_happened_while_we_were_off_is_told(bitcoind: RegtestNode, kind: str, tmp_path: Path) -> None:
    coin, script = await own_output(bitcoind)
    await bitcoind.mine(20)
    raw = await node_spend(bitcoind, coin, 90_000)
    await bitcoind.mine(12)
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        assert (await next_of(stream, Confirmed)).depth == 32
        spent = await next_of(stream, SpentBy)
        assert (spent.depth, spent.tx) == (12, raw)


async def test_many_blocks_at_once_are_followed(
    bitcoind: RegtestNode, rng: random.Random, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        script = fresh_script(rng)
        await backend.watch(WatchRequest(b"k", script, None, 1))
        coin = await pay(bitcoind, script)
        await bitcoind.mine(60)
        confirmed = await next_of(stream, Confirmed)
        assert confirmed.outpoint == coin

        async def there() -> bool:
            return (await backend.tip()).height == await bitcoind.height()

        await until(there)


async def test_a_reorganisation_takes_back_and_tells_anew(
    bitcoind: RegtestNode, rng: random.Random, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(3)
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        await node_spend(bitcoind, coin, 90_000)
        await bitcoind.mine(1)
        await next_of(stream, SpentBy, depth=1)
        await bitcoind.reorganise(4)
        await next_of(stream, SpendUndone)
        assert (await next_of(stream, Unconfirmed)).outpoint == coin
        await bitcoind.mine(1)
        told = set()
        async with asyncio.timeout(20):
            async for event in stream:
                if isinstance(event, Confirmed | SpentBy) and event.depth == 1:
                    told.add(type(event))
                    if told == {Confirmed, SpentBy}:
                        break


async def test_broadcast_reaches_the_mempool_and_may_be_repeated(
    bitcoind: RegtestNode, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(1)
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        raw = await node_spend(bitcoind, coin, 90_000, send=False)
        txid = parse_tx(raw).txid
        for _ in range(2):
            assert await backend.broadcast(raw) == txid
        assert (await next_of(stream, SpentBy)).txid == txid
        await bitcoind.mine(1)
        assert (await next_of(stream, SpentBy, depth=1)).tx == raw
        assert await backend.broadcast(raw) == txid  # it is in a block already
        found = await backend.transaction(txid, (await backend.tip()).hash)
        assert found is not None
        assert (found.raw, found.depth) == (raw, 1)
        with pytest.raises(Rejected):
            await backend.broadcast(raw[:-5])


async def test_a_double_spend_of_what_a_block_holds_is_refused(
    bitcoind: RegtestNode, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(1)
        late = await node_spend(bitcoind, coin, 80_000, send=False)
        await node_spend(bitcoind, coin, 90_000)
        await bitcoind.mine(1)
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        await next_of(stream, SpentBy)
        with pytest.raises(Rejected):
            await backend.broadcast(late)


async def test_unknown_transactions_are_not_found(
    bitcoind: RegtestNode, rng: random.Random, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        assert await backend.transaction(rng.randbytes(32)) is None
        assert await backend.transaction(rng.randbytes(32), (await backend.tip()).hash) is None
        assert await backend.unspent(OutPoint(rng.randbytes(32), 0)) in (None, False)


async def test_fee_rate_has_a_floor(bitcoind: RegtestNode, kind: str, tmp_path: Path) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        assert 1_000 <= await backend.fee_rate(3) <= 100_000


async def test_what_a_waiting_transaction_pays_is_told_by_all_who_can_know(
    bitcoind: RegtestNode, kind: str, tmp_path: Path
) -> None:
    async with kind_on(kind, bitcoind, tmp_path) as backend:
        stream = backend.events()
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(1)
        await backend.watch(WatchRequest(b"k", script, coin, 1))
        raw = await node_spend(bitcoind, coin, 90_000)
        await next_of(stream, SpentBy)
        assert await backend.mempool_fee(parse_tx(raw).txid) == (None if kind == "cbf" else 10_000)
        await bitcoind.mine(1)
        await next_of(stream, SpentBy, depth=1)
        assert await backend.mempool_fee(parse_tx(raw).txid) is None
