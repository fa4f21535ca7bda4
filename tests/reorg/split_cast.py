"""Real nodes on two bitcoinds that can be split and joined: the seller and arbiters on one, the buyer on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from coincurve import PrivateKey

from escrow.coins import OutPoint, TxOut
from escrow.hd import HARDENED, hash160
from escrow.signatures import sign_ecdsa
from escrow.transactions import build, p2wpkh_code, sighash_v0, with_witnesses
from p2pnode import keystore
from p2pnode.api import schema as s
from p2pnode.client import ApiError
from p2pnode.demo.cast import Cast, Daemon, together
from p2pnode.regtest import RegtestNode
from protocol.errors import P2PError
from protocol.types import Network

PATIENCE = 40.0
AMOUNT = 2_000_000
"""Satoshis: enough that the schedule asks for two confirmations."""
GAP = 60

T = TypeVar("T")


class SplitCast(Cast):
    """As `Cast`, with a second bitcoind for the buyer."""

    def __init__(self, folder: Path, binary: Path) -> None:
        super().__init__(folder, binary, keep=False)
        self.other = RegtestNode(folder / "bitcoind-2", binary=binary, txindex=True)

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        text = super()._config(daemon, seeds)
        if daemon is self.buyer:
            for mine, others in (
                (self.bitcoind.rpc_url, self.other.rpc_url),
                (str(self.bitcoind.cookie_path.absolute()), str(self.other.cookie_path.absolute())),
                (self.bitcoind.zmq_url, self.other.zmq_url),
            ):
                text = text.replace(mine, others)
        return text

    async def begin(self) -> None:
        """Everything up, joined, funded, announced."""
        await self.other.start()
        await self.start_chain_and_seeds()
        await self.bitcoind.ensure_coins(2)
        await self.bitcoind.connect(self.other)
        await together(self.start_others())
        for trader in self.traders:
            for _ in range(4):
                await self.bitcoind.fund((await trader.api.address("t")).address, 10_000_000, confirmations=0)
        await self.bitcoind.mine()
        await until(self._funded, "the wallets to be funded")
        for arbiter in self.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))

    async def _funded(self) -> bool:
        return all([(await t.api.balance()).spendable_sats >= 40_000_000 for t in self.traders])

    async def close(self) -> None:
        """End all, the second bitcoind too."""
        await super().close()
        self.other.kill()

    async def split(self) -> None:
        """From here on each side has a chain of its own."""
        await self.bitcoind.disconnect(self.other)

    async def rejoin(self) -> None:
        """The longer chain wins."""
        await self.bitcoind.connect(self.other)

    async def trade(self) -> tuple[str, str]:
        """A take whose funding is in both mempools: the offer's and the trade's ids."""
        offer, trade = await self._taken(None)
        await self.both(
            trade, lambda t: t.phase == "funding" and t.escrow.funding_depth == 0, "funding in the mempools"
        )
        return offer, trade

    async def take_only(self, *, fee_rate: int) -> str:
        """A take at a fee rate of satoshis per 1,000 vB; the trade's id."""
        return (await self._taken(fee_rate))[1]

    async def _taken(self, fee_rate: int | None) -> tuple[str, str]:
        arbiters = tuple(a.persona for a in self.arbiters)
        draft = s.OfferDraft(
            side="sell",
            amount_min_sats=AMOUNT,
            amount_max_sats=AMOUNT,
            currency="EUR",
            methods=(s.MethodDetails(method="sepa", details={"iban": "DE seller"}),),
            price="85000",
            arbiters=arbiters,
            escrow_types=(2,),
        )
        offer = await patiently(lambda: self.seller.api.offer_create(draft), "the offer")

        async def found() -> bool:
            wanted = s.OfferFilter(side="sell", currency="EUR")
            return any(o.id == offer.id for o in (await self.buyer.api.offers(wanted)).offers)

        await until(found, "the buyer to find the offer")
        take = s.TakeRequest(
            amount_sats=AMOUNT, method="sepa", details={"iban": "DE buyer"}, fee_rate_sats_per_kvb=fee_rate
        )
        trade = (await self.buyer.api.offer_take(offer.id, take)).id
        return offer.id, trade

    async def views(self, trade: str) -> tuple[s.TradeView, s.TradeView]:
        """The seller's and the buyer's."""
        seller, buyer = [await t.api.trade(trade) for t in self.traders]
        return seller, buyer

    async def both(self, trade: str, holds: Callable[[s.TradeView], bool], what: str) -> None:
        """Wait until both see the trade so."""

        async def look() -> bool:
            return all(holds(view) for view in await self.views(trade))

        await until(look, what)

    async def freed(self, daemon: Daemon) -> None:
        """Wait until no coin of this node is held for a trade."""

        async def look() -> bool:
            return (await daemon.api.balance()).reserved_sats == 0

        await until(look, "the coins to be free")

    async def one(self, daemon: Daemon, trade: str, holds: Callable[[s.TradeView], bool], what: str) -> None:
        """Wait until this node sees the trade so."""

        async def look() -> bool:
            return holds(await daemon.api.trade(trade))

        await until(look, what)


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    """Look again and again; fail after a while."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(ApiError):
            if await true():
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


async def patiently(ask: Callable[[], Awaitable[T]], what: str) -> T:
    """Ask until it is not refused."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except (ApiError, P2PError) as e:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: {e}") from e
        await asyncio.sleep(0.1)


async def rival(node: RegtestNode, owner: Daemon, funding_txid: str, fee: int) -> str:
    """A transaction that spends one of the owner's inputs of a funding elsewhere, as a thief with its keys would.

    Returns it in hex; `node` must know the funding.
    """
    tx = await node.rpc("getrawtransaction", funding_txid, True)
    master = keystore.unlock(owner.data.keystore, "", Network.REGTEST).seed.master
    secrets: dict[bytes, bytes] = {}
    account = master.derive(84 | HARDENED, 1 | HARDENED, 0 | HARDENED)
    for branch in (0, 1):
        for index in range(GAP):
            key = account.derive(branch, index)
            secrets[b"\x00\x14" + hash160(key.public)] = key.secret
    for vin in tx["vin"]:
        spent = (await node.rpc("getrawtransaction", vin["txid"], True))["vout"][vin["vout"]]
        script = bytes.fromhex(spent["scriptPubKey"]["hex"])
        if script not in secrets:
            continue
        value = int(spent["value"] * 100_000_000)
        outpoint = OutPoint(bytes.fromhex(vin["txid"])[::-1], vin["vout"])
        unsigned = build([(outpoint, 0xFFFFFFFD)], [TxOut(value - fee, script)])
        signature = sign_ecdsa(secrets[script], sighash_v0(unsigned, 0, p2wpkh_code(script), value)) + b"\x01"
        public = PrivateKey(secrets[script]).public_key.format()
        return with_witnesses(unsigned, [(signature, public)]).hex()
    raise AssertionError("none of the funding's inputs is the owner's")
