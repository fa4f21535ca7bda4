"""What real nodes leave behind is enough: their mnemonics and one contract file end a trade when the nodes are gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from p2pnode import keystore
from p2pnode.api import schema as s
from p2pnode.contractfile import load
from p2pnode.demo.cast import Cast, Daemon, together
from protocol.types import Network
from tests.crash.test_kill9 import publish, push, the_trade
from tests.regtest.test_recovery import Person

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 40.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[Cast]:
    """Real nodes with funded traders and known arbiters."""
    cast = Cast(tmp_path_factory.mktemp("recover"), bitcoind_binary, keep=False)
    try:
        await cast.start_chain_and_seeds()
        await together(cast.start_others(), cast.bitcoind.ensure_coins(2))
        for trader in cast.traders:
            for _ in range(3):
                await cast.bitcoind.fund((await trader.api.address("t")).address, 20_000_000, confirmations=0)
        await cast.bitcoind.mine()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))
        yield cast
    finally:
        await cast.close()


async def trade_until(cast: Cast, offer: str, done: Callable[[s.TradeView, s.TradeView], bool]) -> s.TradeView:
    """Let both users and the miners act until `done(seller's view, buyer's view)`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        seller, buyer = [await the_trade(d, offer) for d in cast.traders]
        if seller is not None and buyer is not None and done(seller, buyer):
            return seller
        await push(cast, offer, seller, buyer)
        await asyncio.sleep(0.05)
    raise AssertionError("the trade never came so far")


class Survivor(Person):
    """A person whose node is gone, with the words that it once wrote down and a copy of the contract file."""

    def __init__(self, folder: Path, daemon: Daemon, contract: bytes) -> None:
        self.home = folder / daemon.name
        self.home.mkdir()
        self.words = keystore.unlock(daemon.data.keystore, "", Network.REGTEST).mnemonic
        self.file(contract)


def contract_file(daemon: Daemon, trade: s.TradeView) -> Path:
    return daemon.data.path / "contracts" / f"{trade.id}.json"


async def test_seller_whose_machine_is_gone_releases_with_what_its_file_holds(cast: Cast, tmp_path: Path) -> None:
    """The buyer's signature was in a message; the node wrote it into the file, so the seller needs nobody."""
    offer = await publish(cast)
    trade = await trade_until(cast, offer, lambda seller, buyer: (seller.phase, buyer.phase) == ("paid", "paid"))
    kept = contract_file(cast.seller, trade).read_bytes()
    cast.seller.kill()
    await cast.seller.hang_up()
    seller = Survivor(tmp_path, cast.seller, kept)
    read = load(seller.home / "contract.json")
    assert read.maker_signature is not None
    assert read.taker_signature is not None
    assert read.funding_height is not None
    answer = await seller.recover("contract.json", "release")
    assert answer["txid"] == await cast.bitcoind.rpc("sendrawtransaction", answer["transaction"])
    await cast.bitcoind.mine(2)
    deadline = time.monotonic() + PATIENCE
    while (buyer := await the_trade(cast.buyer, offer)) is None or buyer.phase != "completed":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    # The buyer's own node knows it for the release that it waited for.
    assert buyer.escrow.payout_txid == answer["txid"]
    # Back from the same folder, the seller's node finds its trade completed.
    cast.seller.data.endpoint.unlink(missing_ok=True)
    await cast._start(cast.seller, tuple(daemon.seed for daemon in cast.seeds))
    while (seen := await the_trade(cast.seller, offer)) is None or seen.phase != "completed":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_arbiter_from_its_words_alone_rules_for_a_party_that_has_only_its_own(cast: Cast, tmp_path: Path) -> None:
    offer = await publish(cast)
    trade = await trade_until(cast, offer, lambda seller, buyer: (seller.phase, buyer.phase) == ("funded", "funded"))
    kept = contract_file(cast.buyer, trade).read_bytes()
    arbiter, buyer = (Survivor(tmp_path, daemon, kept) for daemon in (cast.arbiter, cast.buyer))
    fee_to = (await cast.arbiter.api.address("fees")).address
    half: dict[str, Any] = await arbiter.recover(
        "contract.json", "ruling", "--buyer-share", "100%", "--fee-to", fee_to, "--out", "ruling.psbt"
    )
    assert half["you"] == "the arbiter"
    buyer.file((arbiter.home / "ruling.psbt").read_bytes(), "ruling.psbt")
    whole = await buyer.recover("contract.json", "sign", "--psbt", "ruling.psbt")
    assert json.dumps(whole).count(fee_to) == 1
    assert whole["txid"] == await cast.bitcoind.rpc("sendrawtransaction", whole["transaction"])
    await cast.bitcoind.mine(1)
    assert await cast.bitcoind.rpc("gettxout", whole["txid"], 0) is not None
