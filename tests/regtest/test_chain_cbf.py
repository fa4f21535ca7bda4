"""The light client among peers that lie, hide, fall silent or go away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from escrow.chain.base import (
    BackendUnreachable,
    Confirmed,
    Health,
    NotRelayed,
    ProofFailed,
    Seen,
    SpentBy,
    WatchRequest,
)
from escrow.chain.blocks import parse_tx
from escrow.chain.cbf import CbfBackend
from escrow.chain.gcs import filter_matches
from escrow.chain.headers import hash256
from escrow.chain.p2pwire import Message, compact, read_cfheaders, read_cfilter
from escrow.coins import txid_bytes
from p2pnode.regtest import RegtestNode
from tests.regtest.backend_kinds import cbf_config, clock, opened
from tests.regtest.chain_support import next_of, node_spend, own_output, pay, until
from tests.regtest.go_between import GoBetween, between


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


def light(*peers: GoBetween | RegtestNode, **options: object) -> CbfBackend:
    names = [p.address if isinstance(p, GoBetween) else f"127.0.0.1:{p.p2p_port}" for p in peers]
    return CbfBackend(cbf_config(peers=tuple(names), **options), clock, random.Random(1))


@asynccontextmanager
async def light_on(*peers: GoBetween | RegtestNode, **options: object) -> AsyncIterator[CbfBackend]:
    backend = light(*peers, **options)
    async with opened(backend):
        yield backend


class FalseFilters:
    """Hides: every filter says that its block holds nothing of anyone's, consistently in headers and filters."""

    EMPTY = b"\0"

    def __init__(self) -> None:
        self.told = 0

    def __call__(self, message: Message) -> Message | None:
        if message.command == "cfheaders":
            answer = read_cfheaders(message.body)
            self.told += 1
            hashes = hash256(self.EMPTY) * len(answer.hashes)
            body = b"\0" + answer.stop + answer.previous + compact(len(answer.hashes)) + hashes
            return Message("cfheaders", body)
        if message.command == "cfilter":
            block, _ = read_cfilter(message.body)
            return Message("cfilter", b"\0" + block + compact(1) + self.EMPTY)
        return message


class TestLies:
    async def test_a_peer_that_hides_a_payment_by_its_filters_is_found_out_by_an_honest_one(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        lie = FalseFilters()
        async with between(bitcoind.p2p_port, lie) as liar, light_on(liar, bitcoind, relay=False) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            coin = await pay(bitcoind, script, confirmations=1)
            assert (await next_of(stream, Confirmed)).outpoint == coin
            assert lie.told
            assert liar.address not in {peer.name for peer in backend.view.pool.live}

    async def test_a_filter_that_differs_from_its_hash_is_refused(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        lie = FalseFilters()

        def only_filters(message: Message) -> Message | None:
            return message if message.command == "cfheaders" else lie(message)

        async with between(bitcoind.p2p_port, only_filters) as liar, light_on(liar) as backend:
            with pytest.raises(ProofFailed, match="another filter"):
                await backend.watch(WatchRequest(b"k", fresh_script(rng), None, 1))

    async def test_an_invented_transaction_in_a_real_block_is_refused(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        script, invented = fresh_script(rng), fresh_script(rng)

        def swap(message: Message) -> Message | None:
            if message.command == "block":
                return Message("block", message.body.replace(script, invented))
            return message

        async with between(bitcoind.p2p_port, swap) as liar, light_on(liar, relay=False) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            await backend.watch(WatchRequest(b"i", invented, None, await bitcoind.height()))
            await pay(bitcoind, script, confirmations=1)

            async def distrusted() -> bool:
                return backend.status().health is Health.UNREACHABLE

            await until(distrusted)
            liar.tamper = lambda message: message
            assert (await next_of(stream, Confirmed)).key == b"k"

    async def test_headers_without_work_lose_their_peer_and_move_nothing(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        def cheap(message: Message) -> Message | None:
            if message.command == "headers" and len(message.body) > 82:
                body = bytearray(message.body)
                for at in range(len(message.body) - 81, 0, -81):
                    while int.from_bytes(hash256(bytes(body[at : at + 80])), "little") >> 255 == 0:
                        body[at + 76] = (body[at + 76] + 1) % 256
                    break
                return Message("headers", bytes(body))
            return message

        async with between(bitcoind.p2p_port, cheap) as liar:
            with pytest.raises((BackendUnreachable, ProofFailed)):
                await light(liar, timeout_seconds=2.0).start()
            async with light_on(liar, bitcoind) as backend:
                assert (await backend.tip()).hash == txid_bytes(await bitcoind.rpc("getbestblockhash"))

    async def test_the_branch_with_more_work_wins_over_the_peer_that_was_there_first(
        self, two_bitcoinds: tuple[RegtestNode, RegtestNode]
    ) -> None:
        short, long = two_bitcoinds
        await short.disconnect(long)
        coin, script = await own_output(short)
        await short.mine(2)
        async with light_on(short, relay=False) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            assert (await next_of(stream, Confirmed)).depth == 2
        await long.mine(3)
        async with light_on(short, long, relay=False) as backend:
            tip = txid_bytes(await long.rpc("getbestblockhash"))
            assert (await backend.tip()).hash == tip
            await short.mine(2)

            async def switched() -> bool:
                return (await backend.tip()).hash == txid_bytes(await short.rpc("getbestblockhash"))

            await until(switched)

    async def test_a_peer_that_stays_behind_does_not_hold_us_back(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        stuck: list[Message] = []

        def behind(message: Message) -> Message | None:
            if message.command == "headers":
                stuck.append(message)
                return stuck[0] if len(stuck) == 1 else Message("headers", b"\0")
            return None if message.command == "inv" else message

        async with between(bitcoind.p2p_port, behind) as liar, light_on(liar, bitcoind) as backend:
            await bitcoind.mine(2)

            async def there() -> bool:
                return (await backend.tip()).height == await bitcoind.height()

            await until(there)


class TestTrouble:
    async def test_peers_that_go_away_and_come_back_cost_no_payment(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        async with between(bitcoind.p2p_port) as way, light_on(way) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            await way.stop()

            async def down() -> bool:
                return backend.status().health is Health.UNREACHABLE

            await until(down)
            coin = await pay(bitcoind, script, confirmations=2)
            await way.start()
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_node_without_filters_is_told_apart_in_one_line(
        self, bitcoind_binary: Path, tmp_path: Path
    ) -> None:
        args = ("-blockfilterindex=0", "-peerblockfilters=0")
        async with RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args) as node:
            with pytest.raises(ProofFailed, match="peerblockfilters=1"):
                await light(node).start()

    async def test_nobody_there_is_one_line(self, unused_tcp_port: int) -> None:
        backend = CbfBackend(cbf_config(peers=(f"127.0.0.1:{unused_tcp_port}",)), clock, random.Random(1))
        with pytest.raises(BackendUnreachable, match="can't be reached"):
            await backend.start()

    async def test_no_peer_found_says_what_to_do(self) -> None:
        backend = CbfBackend(cbf_config(peers=()), clock, random.Random(1))
        with pytest.raises(BackendUnreachable, match=r"chain\.peers"):
            await backend.start()

    async def test_headers_are_kept_and_damage_is_mended(self, bitcoind: RegtestNode, tmp_path: Path) -> None:
        await bitcoind.mine(30)
        for damage in (False, True):
            async with between(bitcoind.p2p_port) as way:
                async with light_on(way, folder=tmp_path) as backend:
                    height = (await backend.tip()).height
                    assert height == await bitcoind.height()
                file = tmp_path / "headers-regtest-0.dat"
                assert file.stat().st_size == 80 * height
                if damage:
                    raw = bytearray(file.read_bytes())
                    raw[800] ^= 1
                    file.write_bytes(raw)
            async with between(bitcoind.p2p_port) as way, light_on(way, folder=tmp_path) as backend:
                assert (await backend.tip()).height == height
                asked = next(m.body for m in way.asked if m.command == "getheaders")
                # The locator begins with our tip unless the file was damaged.
                assert (asked[5:37] == (await backend.tip()).hash) is not damage
            assert file.stat().st_size == 80 * height

    async def test_blocks_that_touch_nobody_are_not_read(self, bitcoind: RegtestNode, rng: random.Random) -> None:
        async with between(bitcoind.p2p_port) as way, light_on(way, relay=False) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            way.asked.clear()
            await bitcoind.mine_empty(5)
            await pay(bitcoind, script, confirmations=1)
            await next_of(stream, Confirmed)
            read = [m for m in way.asked if m.command == "getdata" and b"\2\0\0\x40" in m.body]
            assert len(read) == 1


class TestSending:
    async def test_what_no_peer_takes_is_not_relayed_and_never_counts_as_waiting(self, bitcoind: RegtestNode) -> None:
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(1)
        good = await node_spend(bitcoind, coin, 90_000, send=False)
        tx = parse_tx(good)
        broken = bytearray(good)
        # A signature that does not hold: the transaction keeps its name.
        at = good.index(b"\x02\x47\x30") if b"\x02\x47\x30" in good else good.index(b"\x30\x44")
        broken[at + 20] ^= 1
        assert parse_tx(bytes(broken)).txid == tx.txid
        async with light_on(bitcoind, accept_seconds=1.0) as backend:
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            with pytest.raises(NotRelayed):
                await backend.broadcast(bytes(broken))
            assert await backend.transaction(tx.txid) is None
            await backend.broadcast(good)

    async def test_a_transaction_is_sent_again_to_a_peer_that_comes_later(self, bitcoind: RegtestNode) -> None:
        coin, script = await own_output(bitcoind)
        await bitcoind.mine(1)
        raw = await node_spend(bitcoind, coin, 90_000, send=False)
        txid = parse_tx(raw).txid

        def swallow(message: Message) -> Message | None:
            return None if message.command in ("tx", "notfound", "inv") else message

        class Deaf(GoBetween):
            def _ask(self, message: Message) -> Message | None:
                return None if message.command == "tx" else super()._ask(message)

        deaf = Deaf(bitcoind.p2p_port)
        await deaf.start()
        try:
            async with light_on(deaf, accept_seconds=0.5) as backend:
                stream = backend.events()
                await backend.watch(WatchRequest(b"k", script, coin, 1))
                with pytest.raises(NotRelayed):
                    await backend.broadcast(raw)
                await deaf.stop()
                deaf._ask = lambda message: message  # type: ignore[method-assign]
                await deaf.start()

                async def arrived() -> bool:
                    return txid[::-1].hex() in await bitcoind.rpc("getrawmempool")

                await until(arrived)
                await bitcoind.mine(1)
                assert (await next_of(stream, SpentBy, depth=1)).txid == txid
        finally:
            await deaf.stop()

    async def test_a_named_payment_is_seen_without_reading_what_others_send(self, bitcoind: RegtestNode) -> None:
        coin, script = await own_output(bitcoind)
        raw = await node_spend(bitcoind, coin, 90_000, send=False)
        made = parse_tx(raw).outpoint(0)
        async with light_on(bitcoind, relay=False, poll_seconds=3_600.0, safety_poll_seconds=3_600.0) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", parse_tx(raw).outputs[0].script_pubkey, made, 1))
            await backend.look()
            await bitcoind.rpc("sendrawtransaction", raw.hex())
            assert (await next_of(stream, Seen)).outpoint == made
        del script


def test_an_empty_filter_matches_nothing() -> None:
    assert not filter_matches(bytes(32), FalseFilters.EMPTY, [b"x"])


async def test_twenty_watches_at_once_do_not_get_in_each_others_way(bitcoind: RegtestNode, rng: random.Random) -> None:
    async with light_on(bitcoind) as backend:
        stream = backend.events()
        scripts = [fresh_script(rng) for _ in range(20)]
        height = await bitcoind.height()
        await asyncio.gather(*(backend.watch(WatchRequest(bytes([i]), s, None, height)) for i, s in enumerate(scripts)))
        for script in scripts:
            await pay(bitcoind, script)
        await bitcoind.mine(1)
        told: set[bytes] = set()
        async with asyncio.timeout(20):
            async for event in stream:
                if isinstance(event, Confirmed):
                    told.add(event.key)
                    if len(told) == 20:
                        break
