"""The arbiter of an undisputed trade: what reaches its node, and what it could make of that and of the chain.

The arbiters are real nodes that write down everything they decrypt. They hold records of the DHT like any other node,
so they see offers and contact records; of the trade they must see nothing. And with all of it, with the announcement's
secret side left to them and every byte of the chain, they must not find their key in the escrow.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from escrow.funding import derive_funding
from escrow.keys import tweak_public
from escrow.payout import derive_payout
from escrow.transactions import parse
from p2pnode.api import schema as s
from p2pnode.contractfile import load
from p2pnode.demo.cast import Cast, Daemon
from p2pnode.demo.disputes import DisputePlay
from p2pnode.demo.mempool import Mempool
from p2pnode.demo.steps import Steps
from protocol.contract import Contract
from protocol.identity import parse_persona
from protocol.types import Network
from protocol.wire import digest

pytestmark = [pytest.mark.regtest, pytest.mark.slow, pytest.mark.timeout(180)]
RECORDER = Path(__file__).with_name("recording_node.py")
NETWORK = Network.REGTEST
MOST_GUESSES = 150_000


class Undisputed(DisputePlay):
    """Trades that go well, before arbiters who listen."""

    async def prepare(self) -> None:
        """Nodes, coins, announcements."""
        await self._set_up()
        for arbiter in self._cast.arbiters:
            terms = s.AnnounceRequest(fee_ppm=10_000, response_blocks=6)
            await arbiter.ask(arbiter.api.announce(terms), "could not announce itself")
        chosen = tuple(a.persona for a in self._cast.arbiters)
        for trader in self._cast.traders:
            await self._poll(trader, partial(self._knows, trader, chosen), "did not find the arbiters")

    async def trade(self, *, vanish: tuple[Daemon, ...] = ()) -> Contract:
        """A whole trade with a word of chat; `vanish` are ended as soon as it is agreed on."""
        seller, buyer = self._cast.traders
        trade = await self._begin()
        for daemon in vanish:
            daemon.terminate()
            await daemon.ended_well()
        await buyer.ask(buyer.api.trade_chat(trade, "the money is on its way"), "could not write")
        await self._pay(trade)
        await seller.ask(seller.api.trade_release(trade), "could not release")
        view = await self._until(buyer, trade, lambda t: t.escrow.payout_txid is not None, "has no payout")
        await self._in_mempool(buyer, self._mempool, view.escrow.payout_txid, "payout")
        await self._mine(view.confirmations_required)
        for trader in self._cast.traders:
            await self._until(trader, trade, lambda t: t.phase == "completed", "is not done")
        return load(buyer.data.path / "contracts" / f"{trade}.json").contract


@pytest_asyncio.fixture
async def play(tmp_path: Path, bitcoind_binary: Path) -> AsyncIterator[Undisputed]:
    cast = Cast(tmp_path, bitcoind_binary, keep=False)
    for arbiter in cast.arbiters:
        arbiter.prefix = (sys.executable, str(RECORDER), str(tmp_path / f"{arbiter.name}.heard"))
    try:
        play = Undisputed(cast, Steps(Console(quiet=True)))
        await play.prepare()
        async with Mempool(cast.bitcoind) as mempool:
            play._mempool = mempool
            yield play
    finally:
        await cast.close()


def heard(folder: Path, daemon: Daemon) -> list[bytes]:
    """All that a node has decrypted."""
    raw, found, at = (folder / f"{daemon.name}.heard").read_bytes(), [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def secrets_of(contract: Contract) -> dict[str, bytes]:
    """What would tell an arbiter that this trade exists, or which it is."""
    funding, payout = derive_funding(contract, NETWORK), derive_payout(contract, NETWORK)
    found = {
        "trade id": contract.trade_id,
        "contract id": payout.contract_id,
        "funding txid": funding.txid,
        "funding txid, as shown": funding.txid[::-1],
        "payout txid": payout.txid,
        "payout txid, as shown": payout.txid[::-1],
        "escrow script": funding.escrow.witness_script,
        "escrow's script hash": funding.escrow.script_pubkey[2:],
        "buyer's account": b"FR7630006000011234567890189",
        "seller's account": b"DE02120300000000202051",
        "what was said": b"the money is on its way",
    }
    for name, party in (("buyer", contract.buyer), ("seller", contract.seller)):
        found |= {
            f"{name}'s key": party.keys.main,
            f"{name}'s backup key": party.keys.backup,
            f"{name}'s nonce": party.nonce,
            f"{name}'s details hash": party.details_hash,
            f"{name}'s payout script": party.payout_script,
        }
        found |= {f"{name}'s coin {n}": coin.txid for n, coin in enumerate(party.inputs)}
    return found


async def chain(cast: Cast) -> list[bytes]:
    """Every transaction there is."""
    found = []
    for height in range(int(await cast.bitcoind.rpc("getblockcount")) + 1):
        block = await cast.bitcoind.rpc("getblock", await cast.bitcoind.rpc("getblockhash", height), 2)
        found += [bytes.fromhex(tx["hex"]) for tx in block["tx"]]
    return found


def keys_on(transactions: list[bytes]) -> set[bytes]:
    """Every compressed public key in a witness: also those of scripts that were spent."""
    found = set[bytes]()
    for raw in transactions:
        for witness in parse(raw).wit.vtxinwit:
            for item in (bytes(i) for i in witness.scriptWitness.stack):
                spots = (at for at in range(len(item) - 32) if item[at] in (2, 3))
                found |= {item[at : at + 33] for at in spots}
    return found


async def test_arbiter_hears_nothing_and_finds_nothing(play: Undisputed, tmp_path: Path) -> None:
    cast = play._cast
    contract = await play.trade()
    offer = contract.offer.offer_id
    everything: list[bytes] = []
    for arbiter in cast.arbiters:
        got = heard(tmp_path, arbiter)
        everything += got
        assert len(got) > 20, "it was awake, and part of the network"
        cases = (await arbiter.api.cases()).cases
        assert cases == ()
        for what, secret in secrets_of(contract).items():
            assert not [p for p in got if secret in p], f"{arbiter.name} was told the {what}"
    assert [p for p in everything if offer in p or contract.maker.persona in p], "public records did reach them"

    transactions = await chain(cast)
    keys = keys_on(transactions)
    script = derive_funding(contract, NETWORK).escrow
    base = contract.arbiter.base_point
    assert parse_persona(cast.arbiter.persona) == contract.arbiter.persona
    assert script.main[2] in keys, "the escrow was spent, so its script is there for everybody to read"
    assert base not in keys
    guesses: dict[bytes, None] = {}
    for raw in transactions:
        tx = parse(raw)
        guesses |= dict.fromkeys([bytes(tx.GetTxid()), bytes(tx.GetTxid())[::-1]])
        guesses |= dict.fromkeys(bytes(out.scriptPubKey)[-32:] for out in tx.vout)
        guesses |= dict.fromkeys(bytes(i.prevout.hash) for i in tx.vin)
    for plain in everything:
        guesses |= dict.fromkeys(plain[at : at + 32] for at in range(max(0, len(plain) - 31)))
        if len(guesses) > MOST_GUESSES:
            break
    identity = derive_payout(contract, NETWORK).contract_id

    def key_of(guess: bytes) -> bytes:
        return tweak_public(base, digest(b"p2pnode/arbiter-key", base, guess))

    assert key_of(identity) == script.main[2], "that is how it would be found, by whoever has the contract"
    hits = [guess for guess in guesses if len(guess) == 32 and key_of(guess) in keys]
    print(f"{len(everything)} plaintexts, {len(guesses)} guesses, {len(keys)} candidate keys")
    assert hits == []


async def test_trade_needs_no_arbiter_awake(play: Undisputed) -> None:
    """Both are gone before the buyer pays; nobody notices."""
    contract = await play.trade(vanish=play._cast.arbiters)
    assert contract.arbiter.persona == parse_persona(play._cast.arbiter.persona)
