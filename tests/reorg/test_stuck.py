"""Transactions of trades that the network forgets or does not take: real nodes, two real bitcoinds, a floor that rises.

The buyer's bitcoind is another than the seller's, so what one side's node forgets the other's may still have, and what
one side hands to its own node alone the other must get by the network.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from escrow.coins import OutPoint, TxOut, txid_bytes
from escrow.transactions import REPLACEABLE, build
from p2pnode.client import ApiError
from p2pnode.demo.cast import Daemon
from p2pnode.regtest import WALLET, RegtestNode
from tests.reorg.split_cast import SplitCast, until

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

CLI = Path(__file__).parents[2] / "cli.py"
FLOOR = "-minrelaytxfee=0.00010000"
"""10 sat/vB, whatever else is in the mempool."""
SMALL = ("-maxmempool=5",)
"""A mempool that is soon full."""
SENDERS = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[SplitCast]:
    cast = SplitCast(tmp_path_factory.mktemp("stuck"), bitcoind_binary)
    try:
        await cast.begin()
        yield cast
    finally:
        await cast.close()


async def funded(cast: SplitCast) -> str:
    _, trade = await cast.trade()
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "funded", "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    return trade


async def paid(cast: SplitCast) -> str:
    trade = await funded(cast)
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    return trade


async def mempool(node: RegtestNode) -> list[str]:
    found: list[str] = await node.rpc("getrawmempool")
    return found


async def again(node: RegtestNode, *extra: str) -> None:
    """Start a bitcoind again with an empty mempool, on the ports that the nodes know."""
    ports = node.rpc_port, node.p2p_port, node.zmq_port
    await node.rpc("savemempool")
    await node.stop()
    (node.datadir / "regtest" / "mempool.dat").unlink()
    await node.start_on(ports, "-persistmempool=0", *extra)


async def typed(trader: Daemon, *words: str) -> str:
    command = [sys.executable, str(CLI), *words, "--datadir", str(trader.data.path)]
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def forget(cast: SplitCast, *extra: str) -> None:
    """Both bitcoinds lose their mempools, and meet again."""
    await asyncio.gather(again(cast.bitcoind, *extra), again(cast.other, *extra))
    await cast.bitcoind.connect(cast.other)


async def complete(cast: SplitCast, trade: str) -> None:
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "completed", "the end")


async def test_what_both_nodes_forgot_is_sent_again_after_the_next_block(cast: SplitCast) -> None:
    _, trade = await cast.trade()
    view = (await cast.views(trade))[0]
    await forget(cast)
    assert await mempool(cast.bitcoind) == []
    await cast.bitcoind.mine_empty(1)

    async def funding_is_back() -> bool:
        return view.escrow.funding_txid in await mempool(cast.bitcoind)

    await until(funding_is_back, "the funding to be sent again")
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "funded", "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling" and t.escrow.payout_depth == 0, "the payout")
    await forget(cast)
    await cast.bitcoind.mine_empty(1)

    async def payout_is_back() -> bool:
        return len(await mempool(cast.bitcoind)) == 1

    await until(payout_is_back, "the payout to be sent again")
    await complete(cast, trade)


@pytest.mark.long
async def test_buyer_hands_its_own_node_what_that_forgot_though_only_the_seller_can_complete_it(
    cast: SplitCast,
) -> None:
    """It has seen the whole funding once; the seller's node can't be reached to send it again."""
    _, trade = await cast.trade()
    funding = (await cast.buyer.api.trade(trade)).escrow.funding_txid
    await cast.split()
    await again(cast.other)
    assert await mempool(cast.other) == []
    await cast.one(cast.buyer, trade, lambda t: t.escrow.funding_depth is None, "the loss to be noticed")
    await cast.other.mine_empty(1)

    async def in_its_mempool() -> bool:
        return funding in await mempool(cast.other)

    await until(in_its_mempool, "the funding in the buyer's own mempool")
    await cast.other.mine(2)
    await cast.rejoin()
    await cast.both(trade, lambda t: t.phase == "funded", "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling", "the payout in both mempools")
    await complete(cast, trade)


async def test_either_side_pays_for_a_funding_or_a_payout_by_a_child(cast: SplitCast) -> None:
    """From the change of its own share, or from what the payout gives it; the txid that others rely on stays."""
    _, trade = await cast.trade()
    funding = (await cast.seller.api.trade(trade)).escrow.funding_txid
    assert funding is not None
    await pays_by_child(cast, cast.buyer, funding, 15)
    await pays_by_child(cast, cast.seller, funding, 40)
    await cast.bitcoind.mine(2)
    await cast.both(trade, lambda t: t.phase == "funded", "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling" and t.escrow.payout_depth == 0, "the payout")
    payout = (await cast.seller.api.trade(trade)).escrow.payout_txid
    assert payout is not None
    await pays_by_child(cast, cast.seller, payout, 15)
    await pays_by_child(cast, cast.buyer, payout, 40)
    await complete(cast, trade)


async def pays_by_child(cast: SplitCast, trader: Daemon, txid: str, rate: int) -> None:
    """Miners that take the child and its parent get at least the rate for both."""
    node = cast.other if trader is cast.buyer else cast.bitcoind

    async def there() -> bool:
        listed = (await trader.api.history()).entries
        return txid in await mempool(node) and any(entry.txid == txid for entry in listed)

    await until(there, "the parent")
    said = await typed(trader, "wallet", "bump", txid, "--fee-rate", str(rate), "--json")
    child = json.loads(said)
    assert child["how"] == "child"
    entry = await node.rpc("getmempoolentry", child["txid"])
    parent = await node.rpc("getmempoolentry", txid)
    paid = float(entry["fees"]["base"] + parent["fees"]["base"]) * 1e8
    assert paid >= rate * (entry["vsize"] + parent["vsize"])


async def test_payout_under_the_floor_is_signed_again_by_both_at_one_word(cast: SplitCast) -> None:
    """The release can't be broadcast at all: neither node has it. The buyer's node signs the dearer one by itself."""
    trade = await paid(cast)
    await forget(cast, FLOOR)
    await cast.seller.api.trade_release(trade)

    async def told() -> bool:
        return any(
            e.topic == "payout-fee-too-low" for e in (await cast.seller.api.events(0)).events if e.trade == trade
        )

    await until(told, "the seller to be told")
    assert await mempool(cast.bitcoind) == []
    assert "trade bump" in " ".join((await typed(cast.seller, "trade", "show", trade)).split())
    with pytest.raises(ApiError, match="sat/vB"):
        await cast.seller.api.trade_raise_fee(trade, 10_000_000)
    await typed(cast.seller, "trade", "bump", trade, "--fee-rate", "12")
    await cast.both(trade, lambda t: t.phase == "settling" and t.escrow.payout_depth == 0, "the dearer payout")
    (txid,) = await mempool(cast.bitcoind)
    entry = await cast.bitcoind.rpc("getmempoolentry", txid)
    assert float(entry["fees"]["base"]) * 1e8 >= 12 * entry["vsize"]
    # And once more, by the buyer: it replaces what waits in both mempools.
    await typed(cast.buyer, "trade", "bump", trade, "--fee-rate", "19")

    async def replaced() -> bool:
        pools = [await mempool(cast.bitcoind), await mempool(cast.other)]
        return all(len(pool) == 1 and pool != [txid] for pool in pools)

    await until(replaced, "the replacement in both mempools")
    views = await cast.views(trade)
    assert len({view.escrow.payout_txid for view in views}) == 1
    await complete(cast, trade)
    await forget(cast)


@pytest.mark.long
async def test_funding_under_the_floor_goes_out_with_a_child_that_pays(cast: SplitCast) -> None:
    """No mempool takes it alone; the seller's wallet makes the child, and both go as a package.

    A node's own `minrelaytxfee` no child can lift; the floor of a mempool that is full it can.
    """
    crowd = await sign_crowd(cast.bitcoind)
    await again(cast.bitcoind, *SMALL)
    await cast.bitcoind.connect(cast.other)
    await fill(cast.bitcoind, crowd)
    before = set(await mempool(cast.bitcoind))
    trade = await cast.take_only(fee_rate=2_000)

    async def told() -> bool:
        found = (await cast.seller.api.events(0)).events
        return any(e.topic == "funding-fee-too-low" for e in found if e.trade == trade)

    await until(told, "the seller to be told")
    funding = (await cast.seller.api.trade(trade)).escrow.funding_txid
    assert funding is not None
    assert funding not in await mempool(cast.bitcoind)
    said = await typed(cast.seller, "wallet", "bump", funding, "--fee-rate", "60")
    assert "child" in said

    async def both_are_there() -> bool:
        added = set(await mempool(cast.bitcoind)) - before
        return len(added) == 2 and funding in added

    await until(both_are_there, "parent and child in the mempool")
    await cast.both(trade, lambda t: t.phase == "funding" and t.escrow.funding_depth == 0, "both to see it")
    # Pushed out, they come back together: the floor is as high as before.
    await again(cast.bitcoind, *SMALL)
    await cast.bitcoind.connect(cast.other)
    await fill(cast.bitcoind, crowd)
    assert funding not in await mempool(cast.bitcoind)
    await cast.bitcoind.mine_empty(1)

    async def back() -> bool:
        return funding in await mempool(cast.bitcoind)

    await until(back, "the funding again")
    await again(cast.bitcoind)
    await cast.bitcoind.connect(cast.other)
    await cast.bitcoind.mine(1)

    async def mined() -> bool:
        await cast.bitcoind.mine(1)
        return all(v.phase == "funded" for v in await cast.views(trade))

    await until(mined, "a funded escrow")
    await cast.one(cast.buyer, trade, lambda t: bool(t.peer_details), "the seller's details")
    await cast.buyer.api.trade_pay(trade)
    await cast.one(cast.seller, trade, lambda t: t.phase == "paid", "the payment to be declared")
    await cast.seller.api.trade_release(trade)
    await cast.both(trade, lambda t: t.phase == "settling", "the payout")
    await complete(cast, trade)


async def sign_crowd(node: RegtestNode) -> list[str]:
    """Large transactions of the miner's at rising rates, each from a coin of its own."""
    targets = {await node.new_address(): "0.5" for _ in range(SENDERS)}
    await node.ensure_coins(3)
    txid = await node.rpc("sendmany", "", targets, wallet=WALLET)
    await node.mine(1)
    made = await node.rpc("getrawtransaction", txid, True)
    coins = [out for out in made["vout"] if out["value"] == Decimal("0.5")]
    crowd = []
    for number, out in enumerate(coins):
        script = bytes.fromhex(out["scriptPubKey"]["hex"])
        rest = 50_000_000 - 3_000_000 - (12 + number) * 95_000
        outputs = [*[TxOut(1_000, script)] * 3_000, TxOut(rest, script)]
        unsigned = build([(OutPoint(txid_bytes(txid), out["n"]), REPLACEABLE)], outputs)
        crowd.append((await node.rpc("signrawtransactionwithwallet", unsigned.hex(), wallet=WALLET))["hex"])
    return crowd


async def fill(node: RegtestNode, crowd: list[str]) -> None:
    """Until the mempool's floor is over 10 sat/vB."""
    for raw in crowd:
        await node.rpc("sendrawtransaction", raw, 0)
        if (await node.rpc("getmempoolinfo"))["mempoolminfee"] > Decimal("0.0001"):
            return
    raise AssertionError(f"the mempool is not full: {await node.rpc('getmempoolinfo')}")
