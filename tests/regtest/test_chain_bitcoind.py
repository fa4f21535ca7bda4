"""The bitcoind backend against a real bitcoind: what it must never miss, and what it must say when it can't work."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from escrow.address import address_of
from escrow.chain.base import (
    BackendAuthFailed,
    BackendUnreachable,
    BlocksPruned,
    Confirmed,
    FeeUnknown,
    Health,
    NotSynced,
    Rejected,
    Seen,
    SpendUndone,
    SpentBy,
    TipChanged,
    Unconfirmed,
    Unseen,
    WatchRequest,
    WrongNetwork,
)
from escrow.chain.bitcoind import BitcoindBackend, BitcoindConfig
from escrow.chain.blocks import parse_tx
from escrow.chain.rpc import BitcoindRpc, CookieLogin, PasswordLogin, RpcError
from escrow.coins import OutPoint, txid_bytes, txid_text
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.chain_support import (
    SLOW_POLL,
    backend_on,
    config_for,
    next_of,
    node_spend,
    own_output,
    pay,
    until,
    zmq_only_on,
)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


class TestWatching:
    async def test_payment_is_seen_within_milliseconds_of_zmq_and_each_depth_is_told(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with zmq_only_on(bitcoind) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            tip = await backend.tip()
            await backend.watch(WatchRequest(b"k", script, None, tip.height + 1, depth=3))
            coin = await pay(bitcoind, script, 123_456)
            seen = await next_of(stream, Seen)
            assert (seen.key, seen.outpoint, seen.value) == (b"k", coin, 123_456)
            assert parse_tx(seen.tx).txid == coin.txid
            depths = []
            for _ in range(5):
                await bitcoind.mine(1)
                async for event in stream:
                    if isinstance(event, TipChanged):
                        break
                    assert isinstance(event, Confirmed)
                    assert (event.outpoint, event.height, event.value) == (coin, tip.height + 1, 123_456)
                    depths.append(event.depth)
            assert depths == [1, 2, 3]

    async def test_spend_is_seen_in_the_mempool_then_in_a_block(self, bitcoind: RegtestNode) -> None:
        async with zmq_only_on(bitcoind) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await bitcoind.mine(1)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            raw = await node_spend(bitcoind, coin, 90_000)
            waiting = await next_of(stream, SpentBy)
            assert (waiting.tx, waiting.height, waiting.depth, waiting.outpoint) == (raw, None, 0, coin)
            block = (await bitcoind.mine(1))[0]
            buried = await next_of(stream, SpentBy)
            assert (buried.tx, buried.block_hash, buried.depth) == (raw, txid_bytes(block), 1)

    @pytest.mark.parametrize("by_outpoint", [True, False])
    @pytest.mark.parametrize("index", [True, False])
    async def test_what_happened_while_we_were_off_is_told(
        self, bitcoind_binary: Path, tmp_path: Path, rng: random.Random, *, by_outpoint: bool, index: bool
    ) -> None:
        args = () if index else ("-blockfilterindex=0", "-peerblockfilters=0")
        async with RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args) as node:
            await node.ensure_coins(2)
            coin, script = await own_output(node)
            await node.mine(20)
            await node_spend(node, coin, 90_000)
            # No poll: what the watch itself does not look up stays unseen.
            async with backend_on(node, poll_seconds=SLOW_POLL) as backend:
                stream = backend.events()
                request = WatchRequest(b"k", script, coin if by_outpoint else None, 1, depth=6)
                await backend.watch(request)
                confirmed = await next_of(stream, Confirmed)
                assert (confirmed.outpoint, confirmed.depth) == (coin, 20)
                assert (await next_of(stream, SpentBy)).depth == 0
                await node.mine(12)
                await next_of(stream, SpentBy, depth=6)
            # And again, with both transactions in blocks.
            async with backend_on(node) as backend:
                stream = backend.events()
                await backend.watch(request)
                assert (await next_of(stream, Confirmed)).depth == 32
                assert (await next_of(stream, SpentBy)).depth == 12

    async def test_only_the_watched_outpoint_counts(self, bitcoind: RegtestNode, rng: random.Random) -> None:
        async with backend_on(bitcoind) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            first = await pay(bitcoind, script)
            await backend.watch(WatchRequest(b"k", script, first, (await backend.tip()).height))
            assert (await next_of(stream, Seen)).outpoint == first
            decoy = await pay(bitcoind, script, 55_555)
            await bitcoind.mine(1)
            assert (await next_of(stream, Confirmed)).outpoint == first
            await next_of(stream, TipChanged)
            await backend.watch(WatchRequest(b"any", script, None, 1))
            told = {(await next_of(stream, Confirmed, key=b"any")).outpoint for _ in range(2)}
            assert told == {first, decoy}

    async def test_rearming_a_watch_tells_its_present_state_again_and_unwatching_ends_it(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with backend_on(bitcoind) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            request = WatchRequest(b"k", script, None, (await backend.tip()).height)
            coin = await pay(bitcoind, script, confirmations=1)
            for _ in range(2):
                await backend.watch(request)
                assert (await next_of(stream, Confirmed, key=b"k")).outpoint == coin
            await backend.unwatch(b"k")
            await backend.unwatch(b"never armed")
            await bitcoind.mine(1)
            async for event in stream:
                assert isinstance(event, TipChanged)
                if event.tip.height == await bitcoind.height():
                    break

    async def test_polling_alone_misses_nothing(self, bitcoind: RegtestNode) -> None:
        async with backend_on(bitcoind, zmq={}, poll_seconds=0.02) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, None, (await backend.tip()).height))
            await next_of(stream, Seen)
            await node_spend(bitcoind, coin, 90_000)
            assert (await next_of(stream, SpentBy)).depth == 0
            await bitcoind.mine(2)
            await next_of(stream, Confirmed, depth=2)
            await next_of(stream, SpentBy, depth=2)

    async def test_zmq_without_raw_transactions_is_enough(self, bitcoind: RegtestNode) -> None:
        topics = {"hashblock": bitcoind.zmq_url, "sequence": bitcoind.zmq_url}
        async with zmq_only_on(bitcoind, zmq=topics) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await next_of(stream, Seen)
            first = await node_spend(bitcoind, coin, 99_000)
            assert (await next_of(stream, SpentBy)).tx == first
            second = await node_spend(bitcoind, coin, 80_000)
            assert (await next_of(stream, SpendUndone)).txid == parse_tx(first).txid
            assert (await next_of(stream, SpentBy)).tx == second
            await bitcoind.mine(1)
            assert (await next_of(stream, SpentBy)).depth == 1

    async def test_silent_zmq_is_found_out_by_the_poll(self, bitcoind: RegtestNode) -> None:
        # Nothing is ever published where we listen.
        nowhere = {"hashblock": "tcp://127.0.0.1:1", "rawtx": "tcp://127.0.0.1:1"}
        async with backend_on(bitcoind, zmq=nowhere, poll_seconds=0.02) as backend:
            stream = backend.events()
            for _ in range(2):
                await bitcoind.mine(1)
                await next_of(stream, TipChanged)

    async def test_zmq_that_falls_silent_is_replaced_by_polling(self, bitcoind: RegtestNode) -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.linger = 0
            port = publisher.bind_to_random_port("tcp://127.0.0.1")
            topics = dict.fromkeys(("hashblock", "rawtx"), f"tcp://127.0.0.1:{port}")
            async with backend_on(bitcoind, zmq=topics, poll_seconds=0.02, safety_poll_seconds=0.2) as backend:

                async def trusted() -> bool:
                    # A subscriber hears only what is sent after it has joined.
                    await publisher.send_multipart([b"hashblock", bytes(32), bytes(4)])
                    return backend.prompt

                async def distrusted() -> bool:
                    await bitcoind.mine(1)
                    return not backend.prompt

                await until(trusted)
                await until(distrusted)
                stream = backend.events()
                await bitcoind.mine(1)
                await next_of(stream, TipChanged)

    async def test_many_blocks_at_once_are_leapt_over_without_missing_one(
        self, own_bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with backend_on(own_bitcoind, zmq={}, poll_seconds=SLOW_POLL) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await own_bitcoind.mine(30)
            coin = await pay(own_bitcoind, script, confirmations=30)
            await backend.look()
            confirmed = await next_of(stream, Confirmed)
            assert (confirmed.outpoint, confirmed.depth) == (coin, 30)
            assert (await next_of(stream, TipChanged)).tip.height == await own_bitcoind.height()
            # A reorganisation within the leap is taken back all the same.
            await own_bitcoind.reorganise(40)
            await backend.look()
            assert (await next_of(stream, Unconfirmed)).outpoint == coin
            # bitcoind puts back what at most ten lost blocks held.
            await next_of(stream, Unseen)
            await backend.broadcast(confirmed.tx)
            await next_of(stream, Seen)


class TestReorganisation:
    async def test_reorg_takes_the_confirmation_back_before_it_gives_a_new_one(
        self, own_bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with backend_on(own_bitcoind) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            coin = await pay(own_bitcoind, script, confirmations=2)
            first = await next_of(stream, Confirmed, depth=2)
            await own_bitcoind.reorganise(2)
            undone = await next_of(stream, Unconfirmed)
            assert (undone.outpoint, undone.block_hash, undone.height) == (coin, first.block_hash, first.height)
            await next_of(stream, Seen)
            await own_bitcoind.mine(1)
            again = await next_of(stream, Confirmed)
            assert (again.outpoint, again.depth) == (coin, 1)
            assert again.block_hash != first.block_hash

    async def test_reorg_undoes_a_spend_and_tells_it_anew(self, own_bitcoind: RegtestNode) -> None:
        async with backend_on(own_bitcoind) as backend:
            stream = backend.events()
            coin, script = await own_output(own_bitcoind)
            await own_bitcoind.mine(1)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            raw = await node_spend(own_bitcoind, coin, 90_000)
            await own_bitcoind.mine(1)
            await next_of(stream, SpentBy, depth=1)
            await own_bitcoind.reorganise(1)
            assert (await next_of(stream, SpendUndone)).txid == parse_tx(raw).txid
            assert (await next_of(stream, SpentBy)).depth == 0
            await own_bitcoind.mine(1)
            assert (await next_of(stream, SpentBy)).depth == 1

    async def test_spend_that_moves_to_another_block_in_a_reorg_ends_confirmed_at_the_right_depth(
        self, two_bitcoinds: tuple[RegtestNode, RegtestNode]
    ) -> None:
        one, two = two_bitcoinds
        async with backend_on(one) as backend:
            stream = backend.events()
            coin, script = await own_output(one)
            await backend.watch(WatchRequest(b"k", script, coin, 1, depth=10))
            raw = await one.rpc("getrawtransaction", txid_text(coin.txid))

            async def arrived() -> bool:
                return txid_text(coin.txid) in await two.rpc("getrawmempool")

            await until(arrived)
            await one.disconnect(two)
            await one.mine(1)
            first = await next_of(stream, Confirmed)
            address = await two.new_address()
            await two.rpc("generateblock", address, [])
            theirs = (await two.rpc("generateblock", address, [raw]))["hash"]
            await two.mine_empty(3)
            await one.connect(two)
            assert (await next_of(stream, Unconfirmed)).block_hash == first.block_hash
            last = await next_of(stream, Confirmed, depth=4)
            assert last.block_hash == txid_bytes(theirs)

    async def test_funding_that_is_double_spent_in_a_reorg_is_unseen(
        self, two_bitcoinds: tuple[RegtestNode, RegtestNode], rng: random.Random
    ) -> None:
        one, two = two_bitcoinds
        async with backend_on(one) as backend:
            stream = backend.events()
            coin, _ = await own_output(one)
            await one.mine(1)
            await one._until_same_tip(two)
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout}]
            outs = [{address_of(script, Network.REGTEST): "0.0009"}], [{await one.new_address(): "0.0009"}]
            funding, thief = [
                (
                    await one.rpc(
                        "signrawtransactionwithwallet",
                        await one.rpc("createrawtransaction", inputs, out),
                        wallet="miner",
                    )
                )["hex"]
                for out in outs
            ]
            await one.disconnect(two)
            await one.rpc("sendrawtransaction", funding)
            await next_of(stream, Seen)
            await one.mine(1)
            await next_of(stream, Confirmed)
            await two.rpc("sendrawtransaction", thief)
            await two.mine(2)
            await one.connect(two)
            await next_of(stream, Unconfirmed)
            gone = await next_of(stream, Unseen)
            assert gone.outpoint.txid == parse_tx(bytes.fromhex(funding)).txid
            # Nothing brings it back.
            await one.mine(1)
            async for event in stream:
                assert isinstance(event, TipChanged)
                if event.tip.height == await one.height():
                    break

    async def test_reorg_deeper_than_the_backend_remembers(self, own_bitcoind: RegtestNode, rng: random.Random) -> None:
        script = fresh_script(rng)
        await own_bitcoind.mine(120)
        coin = await pay(own_bitcoind, script, confirmations=130)
        async with backend_on(own_bitcoind) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            confirmed = await next_of(stream, Confirmed)
            assert confirmed.depth == 130
            # The backend knows 100 blocks below the tip at which it started.
            await own_bitcoind.reorganise(135)
            assert (await next_of(stream, Unconfirmed)).outpoint == coin
            await next_of(stream, Unseen)
            await backend.broadcast(confirmed.tx)
            await next_of(stream, Seen)
            await own_bitcoind.mine(1)
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_reorg_while_we_were_off_needs_no_memory(self, own_bitcoind: RegtestNode, rng: random.Random) -> None:
        script = fresh_script(rng)
        request = WatchRequest(b"k", script, None, 1)
        async with backend_on(own_bitcoind) as backend:
            await backend.watch(request)
            coin = await pay(own_bitcoind, script, confirmations=3)
        await own_bitcoind.reorganise(3)
        async with backend_on(own_bitcoind) as backend:
            stream = backend.events()
            await backend.watch(request)
            assert (await next_of(stream, Seen)).outpoint == coin


class TestMempool:
    async def test_replacement_undoes_the_first_spend(self, bitcoind: RegtestNode) -> None:
        async with zmq_only_on(bitcoind) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            first = await node_spend(bitcoind, coin, 99_000)
            assert (await next_of(stream, SpentBy)).tx == first
            second = await node_spend(bitcoind, coin, 80_000)
            assert (await next_of(stream, SpendUndone)).txid == parse_tx(first).txid
            assert (await next_of(stream, SpentBy)).tx == second
            await bitcoind.mine(1)
            assert (await next_of(stream, SpentBy)).tx == second

    @pytest.mark.parametrize("by_zmq", [True, False])
    async def test_payment_that_is_replaced_away_is_unseen(
        self, bitcoind: RegtestNode, rng: random.Random, *, by_zmq: bool
    ) -> None:
        async with zmq_only_on(bitcoind) if by_zmq else backend_on(bitcoind, zmq={}) as backend:
            stream = backend.events()
            coin, _ = await own_output(bitcoind)
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, (await backend.tip()).height))
            inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout, "sequence": 0xFFFFFFFD}]
            raw = await bitcoind.rpc("createrawtransaction", inputs, [{address_of(script, Network.REGTEST): "0.00099"}])
            signed = (await bitcoind.rpc("signrawtransactionwithwallet", raw, wallet="miner"))["hex"]
            await bitcoind.rpc("sendrawtransaction", signed)
            paid = await next_of(stream, Seen)
            await node_spend(bitcoind, coin, 80_000)
            assert (await next_of(stream, Unseen)).outpoint == paid.outpoint


class TestBroadcast:
    async def test_broadcast_is_idempotent_in_mempool_and_chain_and_after_its_outputs_are_spent(
        self, bitcoind: RegtestNode
    ) -> None:
        async with backend_on(bitcoind) as backend:
            coin, _ = await own_output(bitcoind)
            raw = await node_spend(bitcoind, coin, 90_000, send=False)
            txid = parse_tx(raw).txid
            await backend.test_accept(raw)
            for _ in range(2):
                assert await backend.broadcast(raw) == txid
            assert (await backend.transaction(txid)) is not None
            block = (await bitcoind.mine(1))[0]
            await backend.look()
            assert await backend.broadcast(raw) == txid
            await node_spend(bitcoind, OutPoint(txid, 0), 80_000)
            assert await backend.broadcast(raw) == txid
            await bitcoind.mine(1)
            await backend.look()
            assert await backend.broadcast(raw) == txid
            found = await backend.transaction(txid, txid_bytes(block))
            assert found is not None
            assert (found.raw, found.depth) == (raw, 2)
            assert await backend.transaction(bytes(32)) is None

    async def test_broadcast_tells_watches_at_once(self, bitcoind: RegtestNode) -> None:
        async with backend_on(bitcoind, zmq={}, poll_seconds=SLOW_POLL) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            raw = await node_spend(bitcoind, coin, 90_000, send=False)
            await backend.broadcast(raw)
            assert (await next_of(stream, SpentBy)).tx == raw

    async def test_a_child_pays_for_a_parent_that_no_mempool_would_take_alone(
        self, bitcoind: RegtestNode, bitcoind_binary: Path, tmp_path: Path
    ) -> None:
        # A parent without any fee is taken in a package if both are of version 3 (BIP431); Knots must be told to.
        knots = "Knots" in (await bitcoind.rpc("getnetworkinfo"))["subversion"]
        args = ("-mempooltruc=enforce",) if knots else ()
        async with (
            RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args) as node,
            backend_on(node) as backend,
        ):
            await node.ensure_coins(2)
            coin, _ = await own_output(node, 100_000)
            await node.mine(1)
            parent = await node_spend(node, coin, 100_000, send=False, version=3)
            with pytest.raises(Rejected, match="fee"):
                await backend.broadcast(parent)
            made = OutPoint(parse_tx(parent).txid, 0)
            poor = await node_spend(node, made, 100_000, send=False, parent=parent, version=3)
            with pytest.raises(Rejected, match="fee"):
                await backend.broadcast_package([parent, poor])
            child = await node_spend(node, made, 90_000, send=False, parent=parent, version=3)
            for _ in range(2):
                txids = await backend.broadcast_package([parent, child])
                assert txids == [made.txid, parse_tx(child).txid]
                assert {txid_text(t) for t in txids} <= set(await node.rpc("getrawmempool"))

    async def test_a_refused_transaction_names_the_nodes_reason(self, bitcoind: RegtestNode) -> None:
        async with backend_on(bitcoind) as backend:
            coin, _ = await own_output(bitcoind)
            free = await node_spend(bitcoind, coin, 100_000, send=False)
            with pytest.raises(Rejected, match="min relay fee not met"):
                await backend.broadcast(free)
            good = await node_spend(bitcoind, coin, 90_000, send=False)
            broken = good[:-80] + bytes([good[-80] ^ 1]) + good[-79:]  # in the signature
            with pytest.raises(Rejected, match=r"script-verify|Signature|mandatory"):
                await backend.broadcast(broken)
            with pytest.raises(Rejected, match="decode"):
                await backend.broadcast(good[:-1])
            unknown = good.replace(coin.txid, bytes(31) + b"\x07")
            with pytest.raises(Rejected, match="missing"):
                await backend.test_accept(unknown)

    async def test_fee_rate_is_never_under_what_the_mempool_takes(self, own_bitcoind: RegtestNode) -> None:
        async with backend_on(own_bitcoind) as backend:
            assert await backend.fee_rate(6) == 2_000
        async with backend_on(own_bitcoind, fallback_fee_rate=None) as backend:
            with pytest.raises(FeeUnknown):
                await backend.fee_rate(6)
        info = await own_bitcoind.rpc("getmempoolinfo")
        floor = int(max(info["minrelaytxfee"], info["mempoolminfee"]) * 100_000_000)
        async with backend_on(own_bitcoind, fallback_fee_rate=1) as backend:
            assert await backend.fee_rate(6) == floor


class TestTroubles:
    async def test_no_bitcoind_is_one_clear_line(self, tmp_path: Path) -> None:
        cookie = tmp_path / ".cookie"
        config = BitcoindConfig(Network.REGTEST, "http://127.0.0.1:1", CookieLogin(cookie))
        with pytest.raises(BackendUnreachable, match="no cookie file"):
            await BitcoindBackend(config).start()
        cookie.write_text("a:b")
        with pytest.raises(BackendUnreachable, match=r"127\.0\.0\.1:1 does not answer"):
            await BitcoindBackend(config).start()

    async def test_wrong_password_is_named_without_showing_it(self, bitcoind: RegtestNode) -> None:
        backend = BitcoindBackend(config_for(bitcoind, login=PasswordLogin("me", "s3cret")))
        with pytest.raises(BackendAuthFailed, match="check user and password") as refused:
            await backend.start()
        assert "s3cret" not in str(refused.value)
        assert "s3cret" not in repr(config_for(bitcoind, login=PasswordLogin("me", "s3cret")))

    async def test_wrong_network_names_both(self, bitcoind: RegtestNode) -> None:
        with pytest.raises(WrongNetwork, match="is on regtest, this node on signet"):
            await BitcoindBackend(config_for(bitcoind, network=Network.SIGNET)).start()

    async def test_node_that_still_syncs_is_followed_but_trusted_with_no_money(
        self, own_bitcoind: RegtestNode, bitcoind_binary: Path, tmp_path: Path
    ) -> None:
        async with RegtestNode(tmp_path / "behind", binary=bitcoind_binary) as behind:
            for height in range(1, 20):
                block = await own_bitcoind.rpc("getblockhash", height)
                await behind.rpc("submitheader", await own_bitcoind.rpc("getblockheader", block, False))
            async with backend_on(behind) as backend:
                assert backend.status().health is Health.SYNCING
                assert "block 0 of 19" in backend.status().detail
                assert (await backend.tip()).height == 0
                for question in (backend.fee_rate(2), backend.test_accept(b""), backend.broadcast(b"")):
                    with pytest.raises(NotSynced, match="wait until it is done"):
                        await question
                await own_bitcoind.connect(behind)

                async def ready() -> bool:
                    return backend.status().health is Health.READY

                await until(ready)
                assert await backend.fee_rate(2) == 2_000

    async def test_pruned_blocks_are_named_as_the_trouble(
        self, bitcoind_binary: Path, tmp_path: Path, rng: random.Random
    ) -> None:
        args = ("-prune=1", "-fastprune", "-blockfilterindex=0", "-peerblockfilters=0")
        async with RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args) as node:
            await node.ensure_coins(1)
            await node.mine(700)
            await node.rpc("pruneblockchain", 400)
            async with backend_on(node) as backend:
                with pytest.raises(BlocksPruned, match="unpruned node"):
                    await backend.watch(WatchRequest(b"old", fresh_script(rng), None, 1))
                stream = backend.events()
                script = fresh_script(rng)
                await backend.watch(WatchRequest(b"new", script, None, await node.height()))
                await pay(node, script, confirmations=1)
                await next_of(stream, Confirmed, key=b"new")

    async def test_user_and_password_work(self, bitcoind_binary: Path, tmp_path: Path) -> None:
        args = ("-rpcuser=alice", "-rpcpassword=wonder")
        node = RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args)
        rpc = None
        try:
            starting = asyncio.create_task(node.start())
            while rpc is None:
                await asyncio.sleep(0.02)
                if node.rpc_port:
                    rpc = BitcoindRpc(node.rpc_url, PasswordLogin("alice", "wonder"))
            answered = None
            async with asyncio.timeout(20):
                while answered is None:
                    try:
                        answered = await rpc.call("getblockcount")
                    except BackendUnreachable:
                        await asyncio.sleep(0.05)
            assert answered == 0
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            node.kill()
            if rpc is not None:
                await rpc.close()

    async def test_restart_of_bitcoind_with_a_new_cookie_goes_unnoticed(
        self, own_bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with backend_on(own_bitcoind) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            proxy = backend.view.rpc
            old_cookie = own_bitcoind.cookie_path.read_text()
            await own_bitcoind.stop()

            async def down() -> bool:
                return backend.status().health is Health.UNREACHABLE

            await until(down)
            with pytest.raises(BackendUnreachable):
                await backend.fee_rate(2)
            await own_bitcoind.start()
            assert own_bitcoind.cookie_path.read_text() != old_cookie
            proxy.url = own_bitcoind.rpc_url  # the test's node takes a new port at each start

            async def up() -> bool:
                return backend.status().health is Health.READY

            await until(up)
            coin = await pay(own_bitcoind, script, confirmations=1)
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_rpc_batches_keep_order_and_errors_apart(self, bitcoind: RegtestNode) -> None:
        rpc = BitcoindRpc(bitcoind.rpc_url, CookieLogin(bitcoind.cookie_path))
        try:
            height = await bitcoind.height()
            answers = await rpc.batch([("getblockhash", 10**6), ("getblockcount",), ("nonsense",), ("getblockhash", 0)])
            assert isinstance(answers[0], RpcError)
            assert answers[0].rpc_code == -8
            assert answers[1] == height
            assert isinstance(answers[2], RpcError)
            assert answers[3].startswith("0f9188")
            assert await rpc.batch([]) == []
            # The cookie of an earlier run of bitcoind is replaced by what the file holds now.
            rpc._header = "Basic " + base64.b64encode(b"__cookie__:old").decode()
            assert await rpc.call("getblockcount") == height
        finally:
            await rpc.close()
        with pytest.raises(ValueError, match="login"):
            BitcoindRpc("http://me:secret@127.0.0.1:1", CookieLogin(Path("x")))

    async def test_events_end_when_the_backend_closes(self, bitcoind: RegtestNode) -> None:
        async with backend_on(bitcoind) as backend:
            streams = [backend.events(), backend.events()]
            await bitcoind.mine(1)
            for stream in streams:
                await next_of(stream, TipChanged)
        for stream in streams:
            assert [e async for e in stream] == []
        await backend.close()


async def test_latency_from_broadcast_to_event(bitcoind: RegtestNode, rng: random.Random) -> None:
    """Printed by `pytest -s`; the bound is loose because two cores are shared."""
    async with zmq_only_on(bitcoind) as backend:
        stream = backend.events()
        samples = []
        for i in range(20):
            coin, _ = await own_output(bitcoind)
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"%d" % i, script, None, (await backend.tip()).height + 1))
            inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout}]
            raw = await bitcoind.rpc("createrawtransaction", inputs, [{address_of(script, Network.REGTEST): "0.0009"}])
            signed = (await bitcoind.rpc("signrawtransactionwithwallet", raw, wallet="miner"))["hex"]
            began = time.perf_counter()
            await bitcoind.rpc("sendrawtransaction", signed)
            await next_of(stream, Seen)
            samples.append(time.perf_counter() - began)
        samples.sort()
        print(f"broadcast to Seen: p50 {samples[10] * 1e3:.1f} ms, worst {samples[-1] * 1e3:.1f} ms")
        assert samples[10] < 0.5


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Repeatable scripts that differ from test to test."""
    print(f"seed: {request.node.nodeid}")
    return random.Random(request.node.nodeid)
