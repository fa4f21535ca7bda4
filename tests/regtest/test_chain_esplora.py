"""An Esplora server that lies, floods, is slow, has no time or goes away."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from escrow.chain.base import (
    BackendUnreachable,
    ChainEvent,
    Confirmed,
    Health,
    ProofFailed,
    Rejected,
    Seen,
    SpentBy,
    TipChanged,
    Unseen,
    WatchRequest,
    WrongNetwork,
)
from escrow.chain.blocks import parse_tx
from escrow.chain.driver import Backend
from escrow.chain.esplora import EsploraBackend
from escrow.chain.headers import hash256
from escrow.chain.stream import EventStream
from escrow.chain.tls import Trust, fingerprint
from escrow.coins import OutPoint, txid_bytes, txid_text
from p2pnode.regtest import RegtestNode
from protocol.errors import ChainError
from protocol.types import Network
from tests.regtest.backend_kinds import esplora_backend, opened
from tests.regtest.chain_support import next_of, node_spend, own_output, pay, until
from tests.regtest.chain_ways import invented_header
from tests.regtest.esplora_twin import EsploraTwin, esplora_on, honest, js, text

TLS = Path(__file__).parents[1] / "vectors" / "tls"


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


@pytest.fixture
async def node(bitcoind_binary: Path, tmp_path: Path) -> AsyncIterator[RegtestNode]:
    async with RegtestNode(tmp_path / "node", binary=bitcoind_binary, txindex=True) as made:
        await made.ensure_coins(4)
        yield made


@pytest.fixture
async def server(node: RegtestNode) -> AsyncIterator[EsploraTwin]:
    async with esplora_on(node) as made:
        yield made


@asynccontextmanager
async def esplora_backend_on(server: EsploraTwin, **options: object) -> AsyncIterator[EsploraBackend]:
    backend = esplora_backend(server, **options)
    async with opened(backend):
        yield backend


async def told_nothing_while(
    stream: EventStream[ChainEvent], work: Callable[[], Awaitable[object]], seconds: float = 1.0
) -> None:
    """That `work`, and the looks after it, bring nothing but blocks and what waits."""
    await work()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for event in stream:
                assert isinstance(event, TipChanged | Seen | Unseen), event


async def unwell(backend: Backend, because: str) -> None:
    async def so() -> bool:
        status = backend.status()
        return status.health is Health.UNREACHABLE and because in status.detail

    await until(so)


async def at_tip(backend: Backend, node: RegtestNode) -> None:
    async def there() -> bool:
        return (await backend.tip()).height == await node.height() and backend.status().health is Health.READY

    await until(there)


class TestLies:
    async def test_what_waits_told_as_confirmed_with_a_forged_branch_is_not_believed(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            coin = await pay(node, script)
            await next_of(stream, Seen)
            height, tip, name = await node.height(), await node.rpc("getbestblockhash"), txid_text(coin.txid)
            status = {"confirmed": True, "block_height": height, "block_hash": tip}

            def confirm(path: str, answer: web.Response) -> web.Response | None:
                del answer
                if path == f"/tx/{name}/status":
                    return js(status)
                if path == f"/tx/{name}/merkle-proof":
                    return js({"block_height": height, "merkle": [rng.randbytes(32).hex()], "pos": 0})
                return js([{"txid": name, "status": status}]) if path.endswith("/txs/chain") else None

            server.lie = confirm
            await told_nothing_while(stream, lambda: node.mine_empty(6))
            with pytest.raises(ProofFailed, match="could not prove"):
                await backend.transaction(coin.txid)
            with pytest.raises(ProofFailed, match="could not prove"):
                await backend.unspent(coin)
            with pytest.raises(ProofFailed, match="could not prove"):
                # Looking back further than the newest blocks goes by histories.
                await backend.watch(WatchRequest(b"again", script, None, 1))
            server.lie = honest
            await backend.unwatch(b"again")
            await node.mine(1)
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_block_of_which_a_payment_was_taken_out_or_put_in_is_refused(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            script, invented = fresh_script(rng), fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await backend.watch(WatchRequest(b"i", invented, None, 1))

            def swap(path: str, answer: web.Response) -> web.Response | None:
                if path.startswith("/block/") and path.endswith("/raw") and isinstance(answer.body, bytes):
                    return web.Response(body=answer.body.replace(script, invented))
                return None

            server.lie = swap
            await told_nothing_while(stream, lambda: pay(node, script, confirmations=1))
            await unwell(backend, "not those of its header")
            server.lie = honest
            assert (await next_of(stream, Confirmed)).key == b"k"

    @pytest.mark.parametrize("shown", [True, False])
    async def test_a_tip_without_work_or_without_a_header_is_refused(
        self, node: RegtestNode, server: EsploraTwin, shown: bool
    ) -> None:
        async with esplora_backend_on(server) as backend:
            before = await backend.tip()
            tip = await node.rpc("getbestblockhash")
            fake = {
                "id": "",
                "height": before.height + 1,
                "version": 4,
                "timestamp": 2_000_000_000,
                "merkle_root": "00" * 32,
                "previousblockhash": tip,
                "nonce": 7,
                "bits": 0x1D00FFFF,
            }
            fake["id"] = hash256(invented_header(tip))[::-1].hex()

            def boast(path: str, answer: web.Response) -> web.Response | None:
                del answer
                if path == "/blocks/tip/hash":
                    return text(fake["id"])
                if path == "/blocks/tip/height":
                    return text(before.height + 1)
                return js([fake] if shown else []) if path.startswith("/blocks/") else None

            server.lie = boast
            await unwell(backend, "work" if shown else "other headers")
            assert (await backend.tip()) == before
            server.lie = honest
            await node.mine_empty(2)
            await at_tip(backend, node)

    async def test_headers_whose_fields_are_not_those_of_their_names_are_refused(
        self, node: RegtestNode, server: EsploraTwin
    ) -> None:
        async with esplora_backend_on(server) as backend:

            def false(path: str, answer: web.Response) -> web.Response | None:
                if (
                    path.startswith("/blocks/")
                    and not path.startswith("/blocks/tip")
                    and isinstance(answer.body, bytes)
                ):
                    return web.Response(body=answer.body.replace(b'"nonce":', b'"nonce":1'))
                return None

            server.lie = false
            await node.mine_empty(1)
            await unwell(backend, "headers that do not parse")
            server.lie = honest
            await at_tip(backend, node)

    async def test_another_transaction_than_was_asked_for_is_refused(
        self, node: RegtestNode, server: EsploraTwin
    ) -> None:
        coin, _ = await own_output(node)
        other, _ = await own_output(node)
        raw = bytes.fromhex(await node.rpc("getrawtransaction", txid_text(other.txid)))
        async with esplora_backend_on(server) as backend:
            server.lie = lambda path, _answer: web.Response(body=raw) if path.endswith("/raw") else None
            with pytest.raises(ProofFailed, match="another transaction"):
                await backend.transaction(coin.txid)

    async def test_a_history_without_an_end_is_given_up(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        async with esplora_backend_on(server) as backend:

            def endless(path: str, answer: web.Response) -> web.Response | None:
                del answer
                if "/txs/chain" not in path:
                    return None
                status = {"confirmed": True, "block_height": 5, "block_hash": "00" * 32}
                return js([{"txid": f"{i:064x}", "status": status} for i in range(25)])

            server.lie = endless
            with pytest.raises(ProofFailed, match="without an end"):
                await backend.watch(WatchRequest(b"k", fresh_script(rng), None, 1))

    async def test_a_server_of_another_network_is_refused(self, server: EsploraTwin) -> None:
        with pytest.raises(WrongNetwork):
            async with esplora_backend_on(server, network=Network.SIGNET):
                pass


class TestReorganisations:
    @pytest.mark.parametrize("depth", [3, 40, 320])
    async def test_another_branch_is_followed_however_deep(
        self, node: RegtestNode, server: EsploraTwin, depth: int
    ) -> None:
        await node.mine(depth)
        async with esplora_backend_on(server) as backend:
            await node.reorganise(depth)
            await at_tip(backend, node)
            assert (await backend.tip()).hash == txid_bytes(await node.rpc("getbestblockhash"))

    async def test_a_branch_of_the_same_height_does_not_replace_ours(
        self, node: RegtestNode, server: EsploraTwin
    ) -> None:
        await node.mine(2)
        async with esplora_backend_on(server) as backend:
            ours = (await backend.tip()).hash
            await node.rpc("invalidateblock", await node.rpc("getbestblockhash"))
            await node.mine_empty(1)
            await backend.look()
            assert (await backend.tip()).hash == ours
            await node.mine_empty(1)
            await at_tip(backend, node)


class TestTrouble:
    @pytest.mark.parametrize(
        "answer", ["", "{", "[]", "null", "7", '{"confirmed":1}', '[{"txid":4}]', "[[1]]", "x" * 99]
    )
    async def test_nonsense_is_one_line_and_passes(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random, answer: str
    ) -> None:
        async with esplora_backend_on(server) as backend:
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await pay(node, script, confirmations=1)
            server.lie = lambda _path, _answer: text(answer)
            await unwell(backend, "")
            for work in (backend.fee_rate(3), backend.mempool_fee(bytes(32)), backend.unspent(OutPoint(bytes(32), 0))):
                with suppress(ChainError):
                    await work
            assert "unexpectedly" not in backend.status().detail
            assert "\n" not in backend.status().detail
            server.lie = honest
            await at_tip(backend, node)

    async def test_an_answer_that_is_too_long_is_cut_off(self, node: RegtestNode, server: EsploraTwin) -> None:
        async with esplora_backend_on(server) as backend:
            server.lie = lambda _path, _answer: text("9" * 5_000_000)
            await unwell(backend, "over")
            server.lie = honest
            await at_tip(backend, node)

    async def test_one_that_does_not_answer_is_given_up_and_taken_back(
        self, node: RegtestNode, server: EsploraTwin
    ) -> None:
        async with esplora_backend_on(server, timeout_seconds=0.4) as backend:
            gate = asyncio.Event()

            async def wait(_path: str) -> None:
                await gate.wait()

            server.before = wait
            await unwell(backend, "in time")
            gate.set()
            await node.mine_empty(1)
            await at_tip(backend, node)

    async def test_one_that_asks_for_patience_is_given_it(self, node: RegtestNode, server: EsploraTwin) -> None:
        async with esplora_backend_on(server) as backend:
            refused: list[float] = []
            loop = asyncio.get_running_loop()

            def busy(_path: str, _answer: web.Response) -> web.Response | None:
                if len(refused) >= 2:
                    return None
                refused.append(loop.time())
                return web.Response(status=429, headers={"Retry-After": "1"})

            await node.mine_empty(1)
            server.lie = busy
            await at_tip(backend, node)
            assert len(refused) == 2
            assert loop.time() - refused[0] >= 1.0

    async def test_one_that_asks_for_too_much_patience_is_left_alone_and_told_in_one_line(
        self, node: RegtestNode, server: EsploraTwin
    ) -> None:
        async with esplora_backend_on(server, timeout_seconds=2.0) as backend:
            server.lie = lambda *_: web.Response(status=429, headers={"Retry-After": "900"})
            await unwell(backend, "asks to wait")
            server.asked.clear()
            await asyncio.sleep(0.5)
            assert server.asked == []
            await node.mine_empty(1)

    async def test_it_goes_away_and_comes_back_and_nothing_is_missed(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await server.stop()
            coin = await pay(node, script, confirmations=2)
            await unwell(backend, "can't be reached")
            await server.start()
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_redirection_is_not_followed(self, node: RegtestNode, server: EsploraTwin) -> None:
        async with esplora_backend_on(server) as backend:
            server.lie = lambda *_: web.Response(status=302, headers={"Location": "http://192.0.2.1/"})
            await unwell(backend, "302")
            server.lie = honest
            await at_tip(backend, node)


class TestQuestions:
    async def test_a_long_history_is_read_page_by_page(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        script = fresh_script(rng)
        made = set()
        for n in range(60):
            made.add(await pay(node, script, 10_000 + n))
            if n % 6 == 5:
                await node.mine(1)
        await node.mine(10)
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, None, 1))
            told = {(await next_of(stream, Confirmed)).outpoint for _ in range(60)}
            assert told == made
            assert sum("/txs/chain" in path for path in server.asked) == 3

    async def test_few_blocks_are_read_whole_when_many_scripts_are_watched_and_the_scripts_stay_secret(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        scripts = [fresh_script(rng) for _ in range(200)]
        height = await node.height()
        coin = await pay(node, scripts[150], confirmations=1)
        async with esplora_backend_on(server, scripts_a_poll=0) as backend:
            stream = backend.events()
            await backend.watch_many([WatchRequest(s[2:], s, None, height) for s in scripts])
            assert (await next_of(stream, Confirmed)).outpoint == coin
            assert not any("scripthash" in path for path in server.asked)

    async def test_the_newest_blocks_are_read_although_the_servers_index_does_not_know_them_yet(
        self, node: RegtestNode, server: EsploraTwin, rng: random.Random
    ) -> None:
        script = fresh_script(rng)
        coin = await pay(node, script, confirmations=1)
        server.lie = lambda path, _answer: js([]) if "/txs/chain" in path else None
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, None, 1))
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_refusal_says_the_nodes_own_reason(self, node: RegtestNode, server: EsploraTwin) -> None:
        async with esplora_backend_on(server) as backend:
            coin, _ = await own_output(node)
            await node.mine(1)
            late = await node_spend(node, coin, 80_000, send=False)
            await node_spend(node, coin, 90_000)
            await node.mine(1)
            with pytest.raises(Rejected, match=r"missingorspent|missing-inputs"):
                await backend.broadcast(late)

    async def test_a_package_goes_out_together(self, node: RegtestNode, server: EsploraTwin) -> None:
        coin, _ = await own_output(node)
        await node.mine(1)
        parent = await node_spend(node, coin, 95_000, send=False)
        async with esplora_backend_on(server) as backend:
            child = await node_spend(node, parse_tx(parent).outpoint(0), 80_000, send=False, parent=parent)
            sent = await backend.broadcast_package([parent, child])
            assert "/txs/package" in server.asked
            pool = await node.rpc("getrawmempool")
            assert {txid_text(t) for t in sent} <= set(pool)

    async def test_the_fee_of_what_waits_is_told(self, node: RegtestNode, server: EsploraTwin) -> None:
        coin, script = await own_output(node)
        await node.mine(1)
        async with esplora_backend_on(server) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await node_spend(node, coin, 90_000)
            spent = await next_of(stream, SpentBy)
            assert await backend.mempool_fee(spent.txid) == 10_000
            await node.mine(1)
            await next_of(stream, SpentBy, depth=1)
            assert await backend.mempool_fee(spent.txid) is None

    @pytest.mark.parametrize(
        ("told", "target", "rate"),
        [
            ('{"1":87.882,"3":50.5,"144":1.027}', 3, 50_500),
            ('{"1":87.882,"3":50.5,"144":1.027}', 6, 50_500),
            ('{"2":20.1}', 1, 20_100),
            ('{"2":0.1}', 2, 1_000),
            ("{}", 2, 2_000),
        ],
    )
    async def test_fee_rates(self, server: EsploraTwin, told: str, target: int, rate: int) -> None:
        async with esplora_backend_on(server) as backend:
            server.lie = lambda path, _answer: text(told) if path == "/fee-estimates" else None
            assert await backend.fee_rate(target) == rate

    async def test_headers_are_kept_for_the_next_start(
        self, node: RegtestNode, server: EsploraTwin, tmp_path: Path
    ) -> None:
        folder = tmp_path / "kept"
        async with esplora_backend_on(server, folder=folder):
            assert sum(p.startswith("/blocks/") and "tip" not in p for p in server.asked) >= 10
        server.asked.clear()
        async with esplora_backend_on(server, folder=folder) as backend:
            assert (await backend.tip()).hash == txid_bytes(await node.rpc("getbestblockhash"))
            assert not any(p.startswith("/blocks/") and "tip" not in p for p in server.asked)


class TestCertificates:
    @pytest.fixture
    async def secured(self, node: RegtestNode) -> AsyncIterator[EsploraTwin]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "own-cert.pem", TLS / "own-key.pem")
        async with esplora_on(node, tls=context) as made:
            yield made

    async def test_one_that_nobody_vouches_for_is_refused_with_its_fingerprint(self, secured: EsploraTwin) -> None:
        with pytest.raises(BackendUnreachable, match="not trusted") as refused:
            async with esplora_backend_on(secured):
                pass
        assert fingerprint(own_certificate()) in refused.value.detail

    async def test_the_pinned_one_is_taken(self, secured: EsploraTwin, node: RegtestNode) -> None:
        pin = bytes.fromhex(fingerprint(own_certificate()).replace(":", ""))
        async with esplora_backend_on(secured, trust=Trust(pin=pin)) as backend:
            assert (await backend.tip()).height == await node.height()

    async def test_another_than_the_pinned_one_is_refused(self, secured: EsploraTwin) -> None:
        with pytest.raises(BackendUnreachable, match="not the pinned one"):
            async with esplora_backend_on(secured, trust=Trust(pin=bytes(32))):
                pass

    async def test_one_in_the_users_file_is_taken(self, secured: EsploraTwin, node: RegtestNode) -> None:
        async with esplora_backend_on(secured, trust=Trust(TLS / "own-cert.pem")) as backend:
            assert (await backend.tip()).height == await node.height()


def own_certificate() -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / "own-cert.pem").read_text())
