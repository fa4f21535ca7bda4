"""Several backends, of which one lies, falls behind or dies: what they do not agree on must not be told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from escrow.chain.base import (
    BackendUnreachable,
    BlockRef,
    ChainEvent,
    Confirmed,
    Health,
    Rejected,
    Report,
    Seen,
    SpentBy,
    TipChanged,
    Unconfirmed,
    WatchRequest,
    WrongNetwork,
)
from escrow.chain.bitcoind import BitcoindView
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.chain.cbf import CbfView
from escrow.chain.council import CouncilView
from escrow.chain.driver import Backend
from escrow.chain.follow import HeaderInfo
from escrow.chain.stream import EventStream
from escrow.chain.view import ChainView
from escrow.coins import OutPoint, TxOut
from escrow.transactions import build
from p2pnode.regtest import RegtestNode
from protocol.types import Network, Txid
from tests.regtest.backend_kinds import cbf_config, clock
from tests.regtest.chain_support import config_for, next_of, node_spend, own_output, pay, until


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def fresh_script(rng: random.Random) -> bytes:
    return b"\x00\x20" + rng.randbytes(32)


class Liar(BitcoindView):
    """A backend whose answers a test changes. With nothing set it is honest."""

    name = "liar"
    hides: frozenset[Txid] = frozenset()
    """Transactions that it does not find in blocks."""
    invents: tuple[ParsedTx, ...] = ()
    """Transactions that it finds in every block."""
    stuck_at: int | None = None
    """The height above which it knows nothing."""
    dead = False
    refuses = False

    async def _alive(self) -> None:
        if self.dead:
            raise BackendUnreachable("it is dead")

    async def check(self) -> str:
        await self._alive()
        return await super().check()

    async def best(self) -> bytes:
        await self._alive()
        if self.stuck_at is not None:
            return (await super().headers_at([self.stuck_at]))[0].hash
        return await super().best()

    async def header(self, block: bytes) -> HeaderInfo | None:
        await self._alive()
        info = await super().header(block)
        if info is None or self.stuck_at is None:
            return info
        if info.block.height > self.stuck_at:
            return None
        return msgspec.structs.replace(info, next=None) if info.block.height == self.stuck_at else info

    async def headers_at(self, heights: Sequence[int]) -> list[BlockRef]:
        await self._alive()
        return await super().headers_at([h for h in heights if self.stuck_at is None or h <= self.stuck_at])

    async def matching(
        self, block: BlockRef, scripts: AbstractSet[bytes], outpoints: AbstractSet[bytes]
    ) -> list[ParsedTx]:
        await self._alive()
        found = await super().matching(block, scripts, outpoints)
        return [*self.invents, *(tx for tx in found if tx.txid not in self.hides)]

    async def relevant(self, scripts: Collection[bytes], low: int, high: int) -> list[BlockRef]:
        await self._alive()
        return await super().relevant(scripts, low, high)

    async def mempool(self, scripts: AbstractSet[bytes], txids: Collection[Txid]) -> list[Txid]:
        await self._alive()
        return await super().mempool(scripts, txids)

    async def test_accept(self, txs: Sequence[bytes]) -> None:
        await self._alive()
        if self.refuses:
            raise Rejected("because I say so")
        await super().test_accept(txs)

    async def send(self, txs: Sequence[bytes]) -> None:
        await self._alive()
        if self.refuses:
            raise Rejected("because I say so")
        await super().send(txs)


def honest(node: RegtestNode) -> BitcoindView:
    return BitcoindView(config_for(node))


def liar(node: RegtestNode) -> Liar:
    return Liar(config_for(node))


def light(node: RegtestNode) -> CbfView:
    return CbfView(cbf_config(node), clock, random.Random(1))


@asynccontextmanager
async def council_of(*views: ChainView, quorum: int = 0) -> AsyncIterator[Backend]:
    backend = Backend(CouncilView(views, quorum), poll_seconds=0.1, safety_poll_seconds=0.2)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def told_nothing_of(stream: EventStream[ChainEvent], key: bytes, work: Callable[[], Awaitable[object]]) -> None:
    """That `work`, and half a second in which everybody looks, bring no event of the watch but that it waits."""
    await work()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            async for event in stream:
                assert isinstance(event, TipChanged | Seen), event
                assert getattr(event, "key", key) == key


class TestAgreement:
    async def test_members_of_different_kinds_agree_on_a_payment_and_its_spend(self, bitcoind: RegtestNode) -> None:
        async with council_of(honest(bitcoind), light(bitcoind)) as backend:
            assert backend.status().backend == "bitcoind+cbf"
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await bitcoind.mine(2)
            await next_of(stream, Confirmed, depth=2)
            raw = await node_spend(bitcoind, coin, 90_000, send=False)
            await backend.broadcast(raw)
            assert (await next_of(stream, SpentBy)).tx == raw
            await bitcoind.mine(1)
            assert (await next_of(stream, SpentBy, depth=1)).tx == raw

    async def test_a_reorganisation_that_all_see_is_told(self, own_bitcoind: RegtestNode) -> None:
        async with council_of(honest(own_bitcoind), light(own_bitcoind)) as backend:
            stream = backend.events()
            coin, script = await own_output(own_bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await own_bitcoind.mine(2)
            await next_of(stream, Confirmed, depth=2)
            await own_bitcoind.reorganise(2)
            await next_of(stream, Unconfirmed)
            await own_bitcoind.mine(1)
            await next_of(stream, Confirmed, depth=1)


class TestLies:
    async def test_a_payment_that_one_of_two_hides_is_not_confirmed_until_it_stops(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        lying = liar(bitcoind)
        async with council_of(honest(bitcoind), lying) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            coin = await pay(bitcoind, script)
            await next_of(stream, Seen)
            lying.hides = frozenset([coin.txid])
            await told_nothing_of(stream, b"k", lambda: bitcoind.mine(3))
            assert "disagree about block" in backend.status().detail
            assert "liar finds nothing" in backend.status().detail
            lying.hides = frozenset()
            assert (await next_of(stream, Confirmed)).outpoint == coin

    async def test_a_payment_that_one_invents_is_not_confirmed(self, bitcoind: RegtestNode, rng: random.Random) -> None:
        script = fresh_script(rng)
        invented = parse_tx(build([(OutPoint(rng.randbytes(32), 0), 0)], [TxOut(1_000_000, script)]))
        lying = liar(bitcoind)
        async with council_of(lying, honest(bitcoind)) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            lying.invents = (invented,)
            await told_nothing_of(stream, b"k", lambda: bitcoind.mine(7))

    async def test_with_a_quorum_of_two_of_three_the_truth_is_told_in_spite_of_a_liar(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        lying = liar(bitcoind)
        async with council_of(lying, honest(bitcoind), light(bitcoind), quorum=2) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            coin = await pay(bitcoind, script)
            lying.hides = frozenset([coin.txid])
            await bitcoind.mine(2)
            assert (await next_of(stream, Confirmed, depth=2)).outpoint == coin

    async def test_one_that_is_stuck_on_an_old_tip_holds_the_depth_and_takes_nothing_back(
        self, bitcoind: RegtestNode
    ) -> None:
        lying = liar(bitcoind)
        async with council_of(honest(bitcoind), lying) as backend:
            stream = backend.events()
            coin, script = await own_output(bitcoind)
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await bitcoind.mine(1)
            await next_of(stream, Confirmed, depth=1)
            await next_of(stream, TipChanged)
            lying.stuck_at = await bitcoind.height() - 1  # even below what was agreed
            await told_nothing_of(stream, b"k", lambda: bitcoind.mine(5))
            assert "behind" in backend.status().detail or "agree up to" in backend.status().detail
            lying.stuck_at = None
            await next_of(stream, Confirmed, depth=6)

    async def test_a_branch_that_only_one_follows_is_not_told(
        self, two_bitcoinds: tuple[RegtestNode, RegtestNode]
    ) -> None:
        one, other = two_bitcoinds
        coin, script = await own_output(one)
        async with council_of(honest(one), honest(other)) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, coin, 1))
            await one.disconnect(other)
            await told_nothing_of(stream, b"k", lambda: one.mine(3))
            await told_nothing_of(stream, b"k", lambda: other.mine_empty(4))
            assert "agree up to block" in backend.status().detail
            await one.connect(other)
            await other.mine(1)

            async def healed() -> bool:
                return (await backend.tip()).height == await other.height() and not backend.status().detail

            await until(healed)


class TestDeath:
    async def test_one_of_three_dies_and_two_go_on(self, bitcoind: RegtestNode, rng: random.Random) -> None:
        dying = liar(bitcoind)
        async with council_of(dying, honest(bitcoind), light(bitcoind)) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            dying.dead = True
            coin = await pay(bitcoind, script, confirmations=2)
            assert (await next_of(stream, Confirmed, depth=2)).outpoint == coin
            assert backend.status().health is Health.READY
            assert "liar is left out: it is dead" in backend.status().detail

    async def test_one_of_two_dies_and_nothing_moves_until_it_is_back(
        self, bitcoind: RegtestNode, rng: random.Random, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("escrow.chain.council._RETRY", 0.1)
        dying = liar(bitcoind)
        async with council_of(dying, honest(bitcoind)) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            dying.dead = True
            await told_nothing_of(stream, b"k", lambda: pay(bitcoind, script, confirmations=2))
            status = backend.status()
            assert status.health is Health.UNREACHABLE
            assert "1 of 2 chain backends answer, 2 are needed" in status.detail
            dying.dead = False
            await next_of(stream, Confirmed)

    async def test_too_few_at_the_start_is_one_line(self, bitcoind: RegtestNode) -> None:
        dead = liar(bitcoind)
        dead.dead = True
        with pytest.raises(BackendUnreachable, match="1 of 2 chain backends answer"):
            async with council_of(dead, honest(bitcoind)):
                pass

    async def test_a_member_on_another_network_stops_the_start(self, bitcoind: RegtestNode) -> None:
        wrong = BitcoindView(config_for(bitcoind, network=Network.SIGNET))
        with pytest.raises(WrongNetwork):
            async with council_of(honest(bitcoind), wrong):
                pass


class TestSending:
    async def test_one_that_refuses_everything_stops_no_payment(self, bitcoind: RegtestNode) -> None:
        lying = liar(bitcoind)
        lying.refuses = True
        async with council_of(lying, honest(bitcoind)) as backend:
            coin, _ = await own_output(bitcoind)
            await bitcoind.mine(1)
            raw = await node_spend(bitcoind, coin, 90_000, send=False)
            txid = await backend.broadcast(raw)
            assert txid[::-1].hex() in await bitcoind.rpc("getrawmempool")

    async def test_what_all_refuse_is_refused_though_a_light_client_can_not_tell(self, bitcoind: RegtestNode) -> None:
        async with council_of(honest(bitcoind), light(bitcoind)) as backend:
            coin, _ = await own_output(bitcoind)
            await bitcoind.mine(1)
            late = await node_spend(bitcoind, coin, 80_000, send=False)
            await node_spend(bitcoind, coin, 90_000)
            await bitcoind.mine(1)
            with pytest.raises(Rejected):
                await backend.broadcast(late)
            assert 1_000 <= await backend.fee_rate(3) <= 100_000


def test_a_council_of_one_is_none(tmp_path: Path) -> None:
    del tmp_path
    with pytest.raises(ValueError, match="two members"):
        CouncilView([])


class TestQuorum:
    async def test_with_a_quorum_of_one_of_two_the_living_goes_on_alone(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        dying = liar(bitcoind)
        async with council_of(dying, honest(bitcoind), quorum=1) as backend:
            stream = backend.events()
            script = fresh_script(rng)
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            dying.dead = True
            coin = await pay(bitcoind, script, confirmations=2)
            assert (await next_of(stream, Confirmed, depth=2)).outpoint == coin
            raw = await node_spend(bitcoind, (await own_output(bitcoind))[0], 90_000, send=False)
            await backend.broadcast(raw)

    async def test_even_with_a_quorum_of_one_two_that_contradict_each_other_move_nothing(
        self, bitcoind: RegtestNode, rng: random.Random
    ) -> None:
        script = fresh_script(rng)
        lying = liar(bitcoind)
        async with council_of(lying, honest(bitcoind), quorum=1) as backend:
            stream = backend.events()
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))
            coin = await pay(bitcoind, script)
            await next_of(stream, Seen)
            lying.hides = frozenset([coin.txid])
            await told_nothing_of(stream, b"k", lambda: bitcoind.mine(3))
            lying.hides = frozenset()
            await next_of(stream, Confirmed)


class TestReports:
    async def test_lasting_disagreement_death_and_recovery_are_reported_once_each(
        self, bitcoind: RegtestNode, rng: random.Random, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("escrow.chain.council._RETRY", 0.1)
        reports: list[Report] = []
        lying = liar(bitcoind)
        script = fresh_script(rng)
        async with council_of(honest(bitcoind), lying, quorum=1) as backend:
            backend.on_report = reports.append
            await backend.watch(WatchRequest(b"k", script, None, await bitcoind.height()))

            async def reported(expected: Report) -> bool:
                return reports[-1:] == [expected]

            coin = await pay(bitcoind, script)
            lying.hides = frozenset([coin.txid])
            await bitcoind.mine(1)
            await until(lambda: reported(Report.DISAGREEMENT))
            lying.hides = frozenset()
            await until(lambda: reported(Report.WELL))
            lying.dead = True
            await bitcoind.mine(1)
            await until(lambda: reported(Report.DEGRADED))
            lying.dead = False
            await until(lambda: reported(Report.WELL))
            lying.stuck_at = await bitcoind.height()
            await bitcoind.mine(1)
            await until(lambda: reported(Report.DISAGREEMENT))
        assert reports == [Report.DISAGREEMENT, Report.WELL, Report.DEGRADED, Report.WELL, Report.DISAGREEMENT]

    async def test_blocks_that_come_as_usual_are_no_news(self, bitcoind: RegtestNode) -> None:
        reports: list[Report] = []
        async with council_of(honest(bitcoind), light(bitcoind)) as backend:
            backend.on_report = reports.append
            for _ in range(5):
                await bitcoind.mine(1)

                async def there() -> bool:
                    return (await backend.tip()).height == await bitcoind.height()

                await until(there)
        assert reports == []


async def test_a_member_that_is_a_block_behind_abstains_and_keeps_its_vote(
    two_bitcoinds: tuple[RegtestNode, RegtestNode], rng: random.Random
) -> None:
    ahead, behind = two_bitcoinds
    script = fresh_script(rng)
    await ahead.disconnect(behind)
    async with council_of(honest(ahead), light(ahead), light(behind), quorum=2) as backend:
        stream = backend.events()
        await backend.watch(WatchRequest(b"k", script, None, await ahead.height()))
        coin = await pay(ahead, script, confirmations=2)
        assert (await next_of(stream, Confirmed, depth=2)).outpoint == coin
        status = backend.status()
        assert status.health is Health.READY
        assert "left out" not in status.detail
