"""An Electrum server that lies, breaks off, floods or is slow: ElectrumX behind someone who changes its words."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from escrow.chain.base import (
    BackendUnreachable,
    ChainEvent,
    Confirmed,
    Health,
    ProofFailed,
    Seen,
    SpentBy,
    TipChanged,
    Unseen,
    WatchRequest,
    WrongNetwork,
)
from escrow.chain.driver import Backend
from escrow.chain.electrum import ElectrumBackend
from escrow.chain.headers import BadHeader
from escrow.chain.stream import EventStream
from escrow.chain.tls import Trust, fingerprint
from escrow.coins import OutPoint, txid_text
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.backend_kinds import electrum_backend, opened
from tests.regtest.chain_support import SLOW_POLL, next_of, node_spend, own_output, pay, until
from tests.regtest.electrum_between import ElectrumBetween, Said, between_electrum, honest
from tests.regtest.electrumx_node import ElectrumX, electrumx_on

TLS = Path(__file__).parents[1] / "vectors" / "tls"
HISTORY = "blockchain.scripthash.get_history"
HEADERS = "blockchain.block.headers"


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(bitcoind_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RegtestNode]:
    """One for all tests here: ElectrumX takes its time to start."""
    async with RegtestNode(tmp_path_factory.mktemp("node"), binary=bitcoind_binary, txindex=True) as made:
        await made.ensure_coins(4)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(node: RegtestNode, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ElectrumX]:
    async with electrumx_on(node, tmp_path_factory.mktemp("electrumx")) as made:
        yield made


@pytest.fixture
async def middle(server: ElectrumX) -> AsyncIterator[ElectrumBetween]:
    async with between_electrum(server) as made:
        yield made


@asynccontextmanager
async def electrum_on(middle: ElectrumBetween, **options: object) -> AsyncIterator[ElectrumBackend]:
    backend = electrum_backend(middle, **options)
    async with opened(backend):
        yield backend


async def told_nothing_while(
    stream: EventStream[ChainEvent], work: Callable[[], Awaitable[object]], seconds: float = 1.5
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


class TestLies:
    async def test_what_waits_told_as_confirmed_with_a_forged_branch_is_not_believed(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random
    ) -> None:
        async with electrum_on(middle) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            coin = await pay(node, script)
            await next_of(stream, Seen)
            height = await node.height()
            status = sha256(f"{txid_text(coin.txid)}:{height}:".encode()).hexdigest()

            def confirm(method: str, params: list[Any], said: Said) -> Said:
                del params
                match method:
                    case "blockchain.scripthash.subscribe" if "id" in said:
                        return {**said, "result": status}
                    case "blockchain.scripthash.get_history":
                        return {**said, "result": [{"tx_hash": txid_text(coin.txid), "height": height}]}
                    case "blockchain.transaction.get_merkle":
                        branch = [rng.randbytes(32).hex()]
                        return {"jsonrpc": "2.0", "id": said["id"], "result": {"merkle": branch, "pos": 1}}
                    case _:
                        return said

            middle.lie = confirm
            await middle.cut()
            await told_nothing_while(stream, lambda: node.mine_empty(1))
            with pytest.raises(ProofFailed, match="could not prove"):
                await backend.transaction(coin.txid)
            middle.lie = honest
            await middle.cut()
            await node.mine(1)
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_false_branch_for_what_a_block_holds_is_not_believed_and_the_true_one_is(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random
    ) -> None:
        async with electrum_on(middle) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))

            def forge(method: str, params: list[Any], said: Said) -> Said:
                del params
                if method == "blockchain.transaction.get_merkle" and "result" in said:
                    said["result"]["merkle"] = [rng.randbytes(32).hex() for _ in said["result"]["merkle"]]
                return said

            middle.lie = forge
            await told_nothing_while(stream, lambda: pay(node, script, confirmations=1))
            await unwell(backend, "could not prove")
            middle.lie = honest
            await next_of(stream, Confirmed)

    async def test_a_tip_without_work_is_refused(self, node: RegtestNode, middle: ElectrumBetween) -> None:
        async with electrum_on(middle) as backend:
            before = await backend.tip()

            def invent(method: str, params: list[Any], said: Said) -> Said:
                del params
                if method == HEADERS and "result" in said:
                    # A block on top of the tip, of a target that no hash meets by chance, in both forms of the answer.
                    parent = before.hash
                    raw = (4).to_bytes(4, "little") + parent + bytes(32) + (2_000_000_000).to_bytes(4, "little")
                    header = (raw + (0x1D00FFFF).to_bytes(4, "little") + bytes(4)).hex()
                    said["result"] = {"count": 1, "max": 2016, "hex": header, "headers": [header]}
                return said

            middle.lie = invent
            await node.mine_empty(2)
            await unwell(backend, "")
            assert (await backend.tip()) == before
            middle.lie = honest

            async def caught_up() -> bool:
                return (await backend.tip()).height == before.height + 2

            await until(caught_up)

    async def test_a_wrong_tip_is_only_a_hint(self, node: RegtestNode, middle: ElectrumBetween) -> None:
        async with electrum_on(middle, safety_poll_seconds=SLOW_POLL) as backend:

            def boast(method: str, params: list[Any], said: Said) -> Said:
                if method == "blockchain.headers.subscribe" and "id" not in said:
                    said["params"] = [{"height": 9_999_999, "hex": "00" * 80}]
                del params
                return said

            middle.lie = boast
            await node.mine_empty(3)

            async def there() -> bool:
                return (await backend.tip()).height == await node.height()

            await until(there)

    async def test_a_transaction_left_out_of_a_history_is_noticed(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random
    ) -> None:
        async with electrum_on(middle) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))

            def hide(method: str, params: list[Any], said: Said) -> Said:
                del params
                if method == HISTORY and "result" in said:
                    said["result"] = said["result"][:-1]
                return said

            middle.lie = hide
            await told_nothing_while(stream, lambda: pay(node, script, confirmations=1), seconds=2.5)
            await unwell(backend, "leaves something out")
            middle.lie = honest
            await next_of(stream, Confirmed)

    async def test_another_transaction_than_was_asked_for_is_refused(
        self, node: RegtestNode, middle: ElectrumBetween
    ) -> None:
        coin, _ = await own_output(node)
        other, _ = await own_output(node)
        await node.mine(1)
        false = await node.rpc("getrawtransaction", txid_text(other.txid))

        def swap(method: str, params: list[Any], said: Said) -> Said:
            del params
            return {**said, "result": false} if method == "blockchain.transaction.get" else said

        async with electrum_on(middle) as backend:
            middle.lie = swap
            with pytest.raises(ProofFailed, match="another transaction"):
                await backend.transaction(coin.txid)
            with pytest.raises(ProofFailed, match="another transaction"):
                await backend.unspent(OutPoint(coin.txid, 0))

    async def test_a_server_of_another_network_is_refused(self, node: RegtestNode, middle: ElectrumBetween) -> None:
        del node
        with pytest.raises(WrongNetwork):
            async with electrum_on(middle, network=Network.SIGNET):
                pass

    async def test_headers_of_a_made_up_chain_do_not_start(self, middle: ElectrumBetween) -> None:
        def invent(method: str, params: list[Any], said: Said) -> Said:
            del params
            if method == HEADERS and "result" in said:
                junk = "11" * 80
                said["result"] = {"count": 2, "max": 2016, "hex": junk * 2, "headers": [junk, junk]}
            return said

        middle.lie = invent
        with pytest.raises(BadHeader):
            async with electrum_on(middle):
                pass


class TestNonsense:
    @pytest.mark.parametrize(
        ("said", "line"),
        [
            (b"{]\n", "no JSON"),
            (b"[1,2]\n", "no answer"),
            (b'{"jsonrpc":"2.0","id":1,"result":"' + b"9" * 17_000_000 + b'"}\n', "over 16,000,000 bytes"),
        ],
    )
    async def test_garbage_and_floods_end_the_connection_and_the_next_one_serves(
        self, node: RegtestNode, middle: ElectrumBetween, said: bytes, line: str
    ) -> None:
        async with electrum_on(middle) as backend:
            middle.lie = lambda *_: said
            await unwell(backend, line)
            middle.lie = honest
            await node.mine_empty(1)

            async def there() -> bool:
                status = backend.status()
                return status.health is Health.READY and (await backend.tip()).height == await node.height()

            await until(there)

    @pytest.mark.parametrize("result", [None, 7, "x", {"merkle": 1}, [{"tx_hash": "zz", "height": "q"}], {"hex": 5}])
    async def test_answers_of_another_shape_are_one_line(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random, result: object
    ) -> None:
        async with electrum_on(middle) as backend:
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await pay(node, script, confirmations=1)

            def nonsense(method: str, params: list[Any], said: Said) -> Said:
                del params
                return said if method.startswith("server.") else {**said, "result": result}

            middle.lie = nonsense
            await middle.cut()
            await node.mine_empty(1)
            await asyncio.sleep(0.5)
            assert "unexpectedly" not in backend.status().detail
            middle.lie = honest
            await middle.cut()

            async def well() -> bool:
                status = backend.status()
                return status.health is Health.READY and (await backend.tip()).height == await node.height()

            await until(well)

    async def test_one_that_does_not_answer_is_given_up_and_taken_back(
        self, node: RegtestNode, middle: ElectrumBetween
    ) -> None:
        async with electrum_on(middle, timeout_seconds=0.5) as backend:
            middle.lie = lambda *_: None
            await unwell(backend, "in time")
            middle.lie = honest
            await node.mine_empty(1)

            async def there() -> bool:
                return (await backend.tip()).height == await node.height()

            await until(there)


class TestConnection:
    async def test_after_a_break_subscriptions_stand_again_without_a_poll(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random
    ) -> None:
        async with electrum_on(middle, poll_seconds=SLOW_POLL, safety_poll_seconds=SLOW_POLL) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, 1))
            await middle.stop()
            coin = await pay(node, script, confirmations=1)
            await unwell(backend, "can't be reached")
            await middle.start()
            assert (await next_of(stream, Confirmed)).outpoint == coin
            second = await pay(node, script)
            assert (await next_of(stream, Seen)).outpoint == second

    async def test_many_scripts_are_asked_about_a_few_at_a_time(
        self, node: RegtestNode, middle: ElectrumBetween, rng: random.Random
    ) -> None:
        async with electrum_on(middle) as backend:
            scripts = [fresh_script(rng) for _ in range(1_000)]
            await pay(node, scripts[700], confirmations=1)
            stream = backend.events()
            await backend.watch_many([WatchRequest(s[2:], s, None, 1) for s in scripts])
            assert (await next_of(stream, Confirmed)).key == scripts[700][2:]
            assert middle.most_open <= 200
            asked = [p for m, p in middle.asked if m == HISTORY]
            assert len(asked) < 20  # whose status says that there is nothing is not asked about

    async def test_the_fee_of_what_waits_is_told(self, node: RegtestNode, middle: ElectrumBetween) -> None:
        coin, script = await own_output(node)
        await node.mine(1)
        async with electrum_on(middle) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await node_spend(node, coin, 90_000)
            spent = await next_of(stream, SpentBy)
            assert await backend.mempool_fee(spent.txid) == 10_000
            await node.mine(1)
            await next_of(stream, SpentBy, depth=1)
            assert await backend.mempool_fee(spent.txid) is None


class TestCertificates:
    @pytest.fixture
    async def secured(self, server: ElectrumX) -> AsyncIterator[ElectrumBetween]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "own-cert.pem", TLS / "own-key.pem")
        async with between_electrum(server, context) as made:
            yield made

    async def test_one_that_nobody_vouches_for_is_refused_with_its_fingerprint(self, secured: ElectrumBetween) -> None:
        with pytest.raises(BackendUnreachable, match="not trusted") as refused:
            async with electrum_on(secured):
                pass
        assert fingerprint(own_certificate()) in refused.value.detail

    async def test_the_pinned_one_is_taken(self, secured: ElectrumBetween, node: RegtestNode) -> None:
        pin = bytes.fromhex(fingerprint(own_certificate()).replace(":", ""))
        async with electrum_on(secured, trust=Trust(pin=pin)) as backend:
            assert (await backend.tip()).height == await node.height()

    async def test_another_than_the_pinned_one_is_refused(self, secured: ElectrumBetween) -> None:
        with pytest.raises(BackendUnreachable, match="not the pinned one"):
            async with electrum_on(secured, trust=Trust(pin=bytes(32))):
                pass

    async def test_one_in_the_users_file_is_taken(self, secured: ElectrumBetween, node: RegtestNode) -> None:
        async with electrum_on(secured, trust=Trust(TLS / "own-cert.pem")) as backend:
            assert (await backend.tip()).height == await node.height()

    async def test_a_missing_file_is_one_line(self, secured: ElectrumBetween, tmp_path: Path) -> None:
        with pytest.raises(BackendUnreachable, match=r"none\.pem"):
            async with electrum_on(secured, trust=Trust(tmp_path / "none.pem")):
                pass


def own_certificate() -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / "own-cert.pem").read_text())
