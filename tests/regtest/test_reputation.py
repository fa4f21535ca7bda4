"""Reputation between real processes on a real chain: receipts, ratings, bonds, an arbiter that contradicts itself."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import ClientSession, CookieJar
from rich.console import Console

from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed
from dht.topics import equivocations_topic
from p2pnode import keystore
from p2pnode.api import schema as s
from p2pnode.api.schema.personas import BondRequest, BondSpend, PersonaView
from p2pnode.client import ApiError
from p2pnode.composition.listening import DhtClock
from p2pnode.demo.cast import Cast, Daemon
from p2pnode.demo.play import AMOUNT, CURRENCY, METHOD, Play, Script
from p2pnode.demo.steps import Steps
from p2pnode.records import record_kinds
from protocol.equivocation import EQUIVOCATION_WORK_BITS, EquivocationRecord
from protocol.identity import SigningKey, parse_persona
from protocol.ruling import Equivocation, Reason, Ruling, text_hash
from protocol.types import Branch, Network
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.unit.services_support import keyring_of

pytestmark = [pytest.mark.regtest, pytest.mark.slow]
PATIENCE = 20.0
NETWORK = Network.REGTEST
T = TypeVar("T")


class PublicCast(Cast):
    """Traders and arbiters that consent to the publication of their receipts."""

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        text = super()._config(daemon, seeds)
        return text if "bootstrap" in daemon.roles else f"{text}[reputation]\npublish = true\n"


@asynccontextmanager
async def stage(binary: Path) -> AsyncIterator[PublicCast]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-"))
    cast = PublicCast(folder, binary, keep=False)
    try:
        yield cast
    finally:
        await cast.close()
        shutil.rmtree(folder, ignore_errors=True)


async def until(look: Callable[[], Awaitable[T | None]], what: str, *, patience: float = PATIENCE) -> T:
    deadline = time.monotonic() + patience
    while (found := await look()) is None:
        assert time.monotonic() < deadline, f"never came to {what}"
        await asyncio.sleep(0.1)
    return found


async def fund(cast: Cast, daemon: Daemon, sats: int) -> None:
    await cast.bitcoind.fund((await daemon.api.address("bond")).address, sats, confirmations=0)
    await cast.bitcoind.mine()

    async def funded() -> bool | None:
        return True if (await daemon.api.balance()).spendable_sats >= sats else None

    await until(funded, "coins")


async def page(daemon: Daemon, path: str) -> str:
    """What a browser of the same machine shows."""
    link = (await daemon.api.page()).url
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
        async with browser.get(link):
            pass
        async with browser.get(link.partition("/enter/")[0] + path) as answer:
            assert answer.status == 200
            return unescape(await answer.text())


async def order(daemon: Daemon) -> list[s.ArbiterView]:
    return list((await daemon.api.arbiters(CURRENCY, METHOD)).arbiters)


async def test_a_trade_makes_receipts_and_ratings_that_a_third_node_proves_for_itself(bitcoind_binary: Path) -> None:
    async with stage(bitcoind_binary) as cast:
        played = await Play(cast, Script(), Steps(Console(quiet=True))).perform()
        trade = played.seller.id
        third = cast.backup

        async def signed() -> bool | None:
            view = await cast.buyer.api.trade_receipt(trade)
            return True if view.published else None

        await until(signed, "a published receipt")
        await cast.buyer.api.trade_rate(trade, "good", "released within a minute")
        await cast.seller.api.trade_rate(trade, "good", "paid at once")

        async def seen() -> PersonaView | None:
            view = await third.api.persona(cast.seller.persona)
            return view if view.ratings else None

        view = await until(seen, "the seller's rating")
        assert (view.known, view.completed, view.counterparties, view.good, view.bad) == ("known", 1, 1, 1, 0)
        (rating,) = view.ratings
        assert (rating.rater, rating.text) == (cast.buyer.persona, "released within a minute")
        (receipt,) = view.receipts
        assert receipt.ending == "released"
        escrow = await cast.bitcoind.rpc("getrawtransaction", played.seller.escrow.funding_txid, 2)
        value = round(float(escrow["vout"][played.seller.escrow.vout or 0]["value"]) * 10**8)
        assert receipt.value_sats == value > AMOUNT
        assert view.forging_fee_sats == receipt.fee_sats > 0
        assert view.forging_blocks == receipt.blocks > 0
        assert 0 < view.score <= 4 * (view.forging_fee_sats + 10)
        stranger = await third.api.persona(cast.arbiter.persona)
        assert (stranger.known, stranger.score) == ("new", 0)
        shown = await page(third, f"/persona?persona={cast.seller.persona}")
        assert f"about {view.forging_fee_sats} sat in fees" in shown
        assert "released within a minute" in shown
        assert "neither good nor bad" in await page(third, f"/persona?persona={cast.arbiter.persona}")
        assert "Everybody can see it" in await page(cast.buyer, f"/trades/{trade}")
        assert "Points" in await page(third, "/arbiters")
        await _blocked(cast, played.offer)


async def _blocked(cast: PublicCast, before: s.OfferView) -> None:
    """The seller blocks the buyer: its next take is declined. The buyer blocks the seller: its offers vanish."""
    draft = s.OfferDraft(
        side="sell",
        amount_min_sats=AMOUNT,
        amount_max_sats=AMOUNT,
        currency=CURRENCY,
        methods=(s.MethodDetails(method=METHOD, details={"iban": "DE02120300000000202051"}),),
        price="85000",
        arbiters=before.arbiters,
        escrow_types=(2,),
    )
    await cast.seller.api.persona_standing(cast.buyer.persona, "blocked")
    offer = await cast.seller.api.offer_create(draft)
    wanted = s.OfferFilter(side="sell", currency=CURRENCY)

    async def found() -> bool | None:
        return True if offer.id in [o.id for o in (await cast.buyer.api.offers(wanted)).offers] else None

    await until(found, "the offer", patience=45.0)
    take = s.TakeRequest(method=METHOD, details={"iban": "FR7630006000011234567890189"})
    taken = await cast.buyer.api.offer_take(offer.id, take)

    async def declined() -> s.TradeView | None:
        view = await cast.buyer.api.trade(taken.id)
        return None if view.open else view

    ended = await until(declined, "the refusal")
    assert ended.phase == "declined"
    assert "block" not in ended.ending
    assert (await cast.seller.api.offer(offer.id)).state == "open"
    await cast.buyer.api.persona_standing(cast.seller.persona, "blocked")
    assert offer.id not in [o.id for o in (await cast.buyer.api.offers(wanted)).offers]
    with pytest.raises(ApiError, match="blocked"):
        await cast.buyer.api.offer_take(offer.id, take)


@pytest.mark.long
async def test_a_bond_ranks_an_arbiter_first_until_it_is_spent_and_the_mnemonic_finds_it_again(
    bitcoind_binary: Path,
) -> None:
    async with stage(bitcoind_binary) as cast:
        await cast.start_chain_and_seeds()
        await cast.bitcoind.ensure_coins(2)
        await cast.start_others()
        await cast.arbiter.api.announce(s.AnnounceRequest(fee_ppm=5_000))
        await cast.backup.api.announce(s.AnnounceRequest(fee_ppm=10_000))

        async def both() -> bool | None:
            return True if len(await order(cast.buyer)) == 2 else None

        await until(both, "two arbiters")
        assert [a.persona for a in await order(cast.buyer)] == [cast.arbiter.persona, cast.backup.persona]
        await fund(cast, cast.backup, 60_000_000)
        made = await cast.backup.api.bond_create(BondRequest(amount_sats=50_000_000, blocks=20_000))
        assert made.state == "waiting"
        await cast.bitcoind.mine()

        async def first() -> s.ArbiterView | None:
            best = (await order(cast.buyer))[0]
            return best if best.persona == cast.backup.persona else None

        best = await until(first, "the bonded arbiter on top", patience=45.0)
        assert (best.bond_state, best.bond_sats, best.rank) == ("stands", 50_000_000, 1)
        assert best.why[0].startswith("bond +")
        shown = await cast.buyer.api.persona(cast.backup.persona)
        assert shown.bond is not None
        assert shown.bond.txid == made.txid
        with pytest.raises(ApiError, match="locked until block"):
            await cast.backup.api.bond_spend(made.txid, BondSpend())
        await _spend_and_restore(cast)


async def _spend_and_restore(cast: PublicCast) -> None:
    """A short one is made, spent on time, and both are found by a node that has only the keys."""
    await fund(cast, cast.arbiter, 10_000_000)
    short = await cast.arbiter.api.bond_create(BondRequest(amount_sats=5_000_000, blocks=5))
    await cast.bitcoind.mine()
    height = await cast.bitcoind.height()
    await cast.bitcoind.mine(short.lock_height - height)

    async def free() -> bool | None:
        (bond,) = (await cast.arbiter.api.bonds()).bonds
        return True if bond.state == "free" else None

    await until(free, "the bond's height")
    spent = await cast.arbiter.api.bond_spend(short.txid[:8], BondSpend())
    assert spent.state == "spent"
    assert spent.spent_by in await cast.bitcoind.rpc("getrawmempool")
    await cast.bitcoind.mine()

    async def last() -> s.ArbiterView | None:
        found = {a.persona: a for a in await order(cast.buyer)}
        mine = found[cast.arbiter.persona]
        return mine if mine.bond_state in ("none", "spent") else None

    await until(last, "the spent bond's end", patience=45.0)
    # A new database has no bond; the mnemonic has it.
    cast.backup.terminate()
    await cast.backup.ended_well()
    await cast.backup.hang_up()
    for path in cast.backup.data.path.iterdir():
        if path not in (cast.backup.data.keystore, cast.backup.data.config):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    await cast._start(cast.backup, tuple(daemon.seed for daemon in cast.seeds))
    assert (await cast.backup.api.bonds()).bonds == ()
    (found,) = (await cast.backup.api.bond_search(0)).bonds
    assert (found.value_sats, found.state) == (50_000_000, "standing")


@pytest.mark.long
async def test_an_arbiter_that_contradicts_itself_drops_out_everywhere(bitcoind_binary: Path) -> None:
    async with stage(bitcoind_binary) as cast:
        await cast.start_chain_and_seeds()
        await cast.bitcoind.ensure_coins(2)
        await cast.start_others()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=5_000))

        async def both() -> bool | None:
            return True if len(await order(cast.buyer)) == len(await order(cast.seller)) == 2 else None

        await until(both, "two arbiters")
        persona = keystore.unlock(cast.arbiter.data.keystore, "", NETWORK).persona()
        assert persona.public == parse_persona(cast.arbiter.persona)
        async with bystander([daemon.seed for daemon in cast.seeds]) as dht:
            await dht.put(equivocations_topic(NETWORK), contradiction(persona))

            async def out() -> bool | None:
                for trader in cast.traders:
                    if cast.arbiter.persona in [a.persona for a in await order(trader)]:
                        return None
                return True

            # The proofs are looked up once a minute at most; a node that starts later knows at once.
            await until(out, "the arbiter's end", patience=90.0)
        view = await cast.buyer.api.persona(cast.arbiter.persona)
        assert view.known == "exposed"
        draft = s.OfferDraft(
            side="sell",
            amount_min_sats=AMOUNT,
            amount_max_sats=AMOUNT,
            currency=CURRENCY,
            methods=(s.MethodDetails(method=METHOD, details={"iban": "DE02120300000000202051"}),),
            price="85000",
            arbiters=(cast.arbiter.persona,),
            escrow_types=(1,),
        )
        with pytest.raises(ApiError, match="two rulings"):
            await cast.seller.api.offer_create(draft)


def contradiction(persona: SigningKey) -> Envelope:
    raws = []
    for share in (1_000_000, 0):
        ruling = Ruling(
            persona.public, bytes(32), Branch.MAIN, share, 0, 1_000, b"\x00\x14" + bytes(20), 2_000,
            Reason.OTHER, text_hash(str(share)), bytes(32), bytes(32), b"0" * 70,
        )  # fmt: skip
        raws.append(persona.seal(Kind.RULING, NETWORK, pack(ruling)).raw)
    now = int(time.time())
    record = EquivocationRecord(Equivocation(persona.public, *raws), now, now + 86_400)
    body = find_work(Kind.EQUIVOCATION, NETWORK, pack(record), EQUIVOCATION_WORK_BITS)
    return SigningKey(b"a" * 32).seal(Kind.EQUIVOCATION, NETWORK, body)


@asynccontextmanager
async def bystander(seeds: Sequence[str]) -> AsyncIterator[DhtNode]:
    """A node of the DHT that belongs to nobody in the play."""
    rng = random.Random(5)
    node = DhtNode(
        DhtConfig("127.0.0.1", 0, engine=EngineConfig(local_addresses=True)),
        keyring_of("bystander").node,
        NETWORK,
        record_kinds(NETWORK),
        clock=DhtClock(),
        rng=rng,
    )
    await node.start()
    try:
        await node.bootstrap([Seed.parse(text) for text in seeds])
        yield node
    finally:
        await node.close()
