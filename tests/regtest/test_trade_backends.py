"""The same trade between real daemons, however they see the chain; and what one that dies or lies can't do to it.

The demo's cast plays: a bitcoind, two bootstrap nodes, two arbiters, a seller and a buyer, each a process. The traders'
chain is the backend in question, through someone who stands between and changes what it says; the arbiters have
bitcoind.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from escrow.address import script_of
from escrow.chain.base import Report
from p2pnode.api import schema as s
from p2pnode.client import ApiError
from p2pnode.demo.cast import Cast, Daemon, together
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.play import Play, Played, Script
from p2pnode.demo.steps import Steps
from protocol.types import Network
from tests.regtest.chain_ways import WAYS, Way

LIARS = ("cbf", "electrum", "esplora")
TROUBLE = {Report.DISAGREEMENT.value, Report.DEGRADED.value}
CALM = 1.5
"""Seconds for which nothing may move: at least one poll of every backend, and many of its events."""


class Stage(Cast):
    """The demo's cast with other eyes for the traders."""

    def __init__(self, folder: Path, binary: Path, kinds: Sequence[str], quorum: int) -> None:
        super().__init__(folder, binary, keep=False)
        self.ways: dict[str, Way] = {kind: WAYS[kind](self.bitcoind, folder) for kind in kinds}
        self._quorum = quorum

    async def start_chain_and_seeds(self) -> None:
        await super().start_chain_and_seeds()
        await self.bitcoind.ensure_coins(2)
        await together(*(way.start() for way in self.ways.values()))

    async def close(self) -> None:
        await super().close()
        for way in self.ways.values():
            await way.close()

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        config = super()._config(daemon, seeds)
        if daemon not in self.traders:
            return config
        lines = [line for way in self.ways.values() for line in way.lines]
        return "\n".join(
            [config.partition("[chain]")[0], "[chain]", *lines, f"quorum = {self._quorum}", "poll_seconds = 1", ""]
        )


class Undisturbed(Play):
    """The trade as it should go, with places where something may happen."""

    _cast: Stage

    @property
    def stage(self) -> Stage:
        return self._cast

    async def healthy(self) -> None:
        """Wait until both traders' backends are well."""
        for trader in self.stage.traders:

            async def look(trader: Daemon = trader) -> bool | None:
                chain = (await trader.api.info()).chain
                return True if chain is not None and chain.health == "ready" else None

            await self._poll(trader, look, "does not get its chain back")

    async def unwell(self, trader: Daemon) -> None:
        async def look() -> bool | None:
            chain = (await trader.api.info()).chain
            assert chain is not None
            assert "\n" not in chain.detail
            return True if chain.health == "unreachable" else None

        await self._poll(trader, look, "does not notice that its chain is gone")

    async def still(self, trade: str, phases: set[str], seconds: float = CALM) -> None:
        """For a while, both traders stay in these phases and no transaction appears."""
        before = set(await self.stage.bitcoind.rpc("getrawmempool"))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            for trader in self.stage.traders:
                view = await trader.api.trade(trade)
                assert view.phase in phases, (trader.name, view.phase)
            assert set(await self.stage.bitcoind.rpc("getrawmempool")) <= before
            await asyncio.sleep(0.1)


class DiesTwice(Undisturbed):
    """The backend is gone before the funding, and again before the payout."""

    async def _take(self, offer: s.OfferView, mempool: Mempool) -> tuple[str, float]:
        (way,) = self.stage.ways.values()
        await way.die()
        buyer = self.stage.buyer
        details = {"holder": "Bob Buyer", "iban": "FR7630006000011234567890189"}
        take = s.TakeRequest(method=offer.methods[0], details=details, sequence=offer.sequence)
        with pytest.raises(ApiError):
            await buyer.api.offer_take(offer.id, take)
        await self.unwell(buyer)
        assert await self.stage.bitcoind.rpc("getrawmempool") == []
        await way.start()
        await self.healthy()
        return await super()._take(offer, mempool)

    async def _pay_and_release(self, trade: str, mempool: Mempool) -> None:
        seller, buyer = self.stage.traders
        (way,) = self.stage.ways.values()
        await buyer.api.trade_pay(trade, "paid by instant transfer")
        await self._until(seller, trade, lambda t: t.phase == "paid", "did not hear of the payment")
        await way.die()
        await seller.api.trade_release(trade)
        await self.still(trade, {"paid", "releasing", "released", "paying_out"})
        assert await self.stage.bitcoind.rpc("getrawmempool") == []
        await way.start()
        view = await self._until(seller, trade, lambda t: t.escrow.payout_txid is not None, "has no payout")
        await self._in_mempool(seller, mempool, view.escrow.payout_txid, "payout")


class OneDies(Undisturbed):
    """One of several backends is gone from the funding on; the others are enough."""

    async def _confirm_escrow(self, trade: str) -> None:
        await next(iter(self.stage.ways.values())).die()
        await super()._confirm_escrow(trade)


class OneLies(Undisturbed):
    """One of several backends lies about the funding, about blocks, and about the payout; the others outvote it."""

    async def _confirm_escrow(self, trade: str) -> None:
        way = self.stage.ways["electrum"]
        view = await self.stage.buyer.api.trade(trade)
        assert view.escrow.funding_txid is not None
        script = sha256(script_of(view.escrow.address or "", Network.REGTEST)).digest()[::-1].hex()
        await way.claim(view.escrow.funding_txid, script)
        await self.still(trade, {view.phase})
        await way.hide()
        await super()._confirm_escrow(trade)
        assert way.told


class LiesThroughout(Undisturbed):
    """The backend says that the funding is confirmed, then that there are no new blocks; at last it is honest."""

    async def _confirm_escrow(self, trade: str) -> None:
        way = next(iter(self.stage.ways.values()))
        view = await self.stage.buyer.api.trade(trade)
        assert view.escrow.funding_txid is not None
        script = sha256(script_of(view.escrow.address or "", Network.REGTEST)).digest()[::-1].hex()
        before = view.phase
        await way.claim(view.escrow.funding_txid, script)
        await self.still(trade, {before, "funding", "awaiting_funding", "signing_funding"})
        assert way.told
        await way.hide()
        await self.stage.bitcoind.mine(view.confirmations_required)
        await self.still(trade, {before, "funding", "awaiting_funding", "signing_funding"})
        way.be_honest()
        await super()._confirm_escrow(trade)


@asynccontextmanager
async def staged(binary: Path, kinds: Sequence[str], quorum: int = 0) -> AsyncIterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-"))
    stage = Stage(folder, binary, kinds, quorum)
    try:
        yield stage
    except BaseException:
        for trader in stage.traders:
            print(f"--- {trader.name}\n{trader.log.read_text()[-3_000:] if trader.log.exists() else ''}")
        raise
    finally:
        await stage.close()
        shutil.rmtree(folder, ignore_errors=True)


async def performed(play: type[Undisturbed], stage: Stage) -> Played:
    """Play it, and see that the coins are where they belong."""
    played = await play(stage, Script(), Steps(Console(file=StringIO()))).perform()
    payout = await stage.bitcoind.rpc("getrawtransaction", played.seller.escrow.payout_txid, 1)
    assert payout["confirmations"] >= 1
    assert payout["vin"][0]["txid"] == played.seller.escrow.funding_txid
    assert played.buyer.phase == played.seller.phase == "completed"
    gained = played.after["buyer"].spendable_sats - played.before["buyer"].spendable_sats
    assert 990_000 < gained <= 1_000_000
    return played


@pytest.mark.parametrize("kind", list(WAYS))
async def test_a_trade_completes_on_each_kind_of_backend(bitcoind_binary: Path, kind: str) -> None:
    async with staged(bitcoind_binary, [kind]) as stage:
        await performed(Undisturbed, stage)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", list(WAYS))
async def test_a_backend_that_dies_before_funding_and_before_payout_moves_nothing(
    bitcoind_binary: Path, kind: str
) -> None:
    async with staged(bitcoind_binary, [kind]) as stage:
        await performed(DiesTwice, stage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIARS)
async def test_a_backend_that_lies_moves_nothing_and_the_trade_goes_on_when_it_stops(
    bitcoind_binary: Path, kind: str
) -> None:
    async with staged(bitcoind_binary, [kind]) as stage:
        await performed(LiesThroughout, stage)


async def test_a_trade_completes_where_four_backends_must_agree(bitcoind_binary: Path) -> None:
    async with staged(bitcoind_binary, list(WAYS)) as stage:
        await performed(Undisturbed, stage)


@pytest.mark.slow
async def test_a_backend_that_dies_is_done_without_where_the_quorum_is_left(bitcoind_binary: Path) -> None:
    async with staged(bitcoind_binary, ["bitcoind", "electrum", "esplora"], quorum=2) as stage:
        await performed(OneDies, stage)


@pytest.mark.slow
async def test_a_backend_that_lies_is_outvoted(bitcoind_binary: Path) -> None:
    async with staged(bitcoind_binary, ["electrum", "bitcoind", "cbf"], quorum=2) as stage:
        await performed(OneLies, stage)


@pytest.mark.slow
async def test_of_two_backends_a_liar_stops_the_trade_until_it_is_honest_and_the_user_is_told(
    bitcoind_binary: Path,
) -> None:
    class Told(LiesThroughout):
        async def still(self, trade: str, phases: set[str], seconds: float = CALM) -> None:
            await super().still(trade, phases, seconds)
            if self.stage.ways["electrum"].claimed:
                return

            async def told() -> bool | None:
                seen = (await self.stage.buyer.api.events(0)).events
                return True if any(event.topic in TROUBLE for event in seen) else None

            await self._poll(self.stage.buyer, told, "does not tell that its backends part")

    async with staged(bitcoind_binary, ["electrum", "bitcoind"]) as stage:
        await performed(Told, stage)
