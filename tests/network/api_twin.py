"""A small node in memory behind the real API: it keeps what it is told and answers in the real types.

It follows the promises of `p2pnode.api.services` (a P2PError changed nothing; events have growing numbers) and has a
few handles for tests: `trouble` is raised by the next call, `hold` keeps calls waiting, `calls` counts them.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from p2pnode.api import schema as s
from p2pnode.api.server import ApiServer
from p2pnode.api.services import AmbiguousId, Recorded, Services
from p2pnode.config import ApiConfig, KdfCost
from p2pnode.database import Database
from p2pnode.datadir import DataDir, write_private
from p2pnode.keystore import create
from p2pnode.money import format_minor
from p2pnode.secondfactor import SecondFactor
from p2pnode.services.guard import GuardService
from p2pnode.web.sessions import Sessions
from protocol.errors import IllegalTransition, NotFound
from protocol.identity import node_text, persona_text
from protocol.offer import FixedPrice, deposit, volume
from protocol.types import Network
from tests.world import FixedClock

WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
PASSPHRASE = "correct horse"
PERSONA = persona_text(b"\x01" * 32)
ARBITER = persona_text(b"\x02" * 32)
NODE = node_text(b"\x03" * 32)
START = 1_700_000_000
T = TypeVar("T")


class Twin:
    """The state, and what tests turn."""

    def __init__(self) -> None:
        self.offers: dict[str, s.OfferView] = {}
        self.trades: dict[str, s.TradeView] = {}
        self.peers: list[s.PeerView] = []
        self.arbiters: list[s.ArbiterView] = []
        self.events: list[s.EventView] = []
        self.records: dict[str, Recorded] = {}
        self.sent: list[s.SendRequest] = []
        self.taken: list[s.TakeRequest] = []
        self.drafts: list[s.OfferDraft] = []
        self.addresses = 0
        self.frozen: set[str] = set()
        self.labels: dict[tuple[str, str], s.LabelRecord] = {}
        self.calls = 0
        self.stopped = asyncio.Event()
        self.waiting = asyncio.Event()
        """Set when a call is held, or an event is waited for."""
        self.trouble: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.news = asyncio.Event()
        self.clock = FixedClock("twin")
        self.pages = Sessions(self.clock)
        self.factor = SecondFactor(Database(":memory:"), b"\x07" * 32, self.clock, "twin")
        self.claims = asyncio.Semaphore(0)
        """Released once for each idempotency key that is asked about."""

    async def work(self) -> None:
        """What every call does first."""
        self.calls += 1
        if self.hold is not None:
            self.waiting.set()
            await self.hold.wait()
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble

    def tell(self, topic: str, *, trade: str | None = None, phase: str | None = None) -> None:
        number = len(self.events) + 1
        self.events.append(s.EventView(number=number, at=START + number, topic=topic, trade=trade, phase=phase))
        self.news.set()
        self.news = asyncio.Event()

    def set_trade(self, trade: s.TradeView) -> s.TradeView:
        self.trades[trade.id] = trade
        self.tell("trade-changed", trade=trade.id, phase=trade.phase)
        return trade

    def services(self, *, bootstrap: bool = False) -> Services:
        return Services(
            node=_Node(self),
            peers=_Peers(self),
            arbiters=_Arbiters(self),
            events=_Events(self),
            idempotency=_Idempotency(self),
            guard=GuardService(self.factor),
            pages=self.pages,
            offers=None if bootstrap else _Offers(self),
            trades=None if bootstrap else _Trades(self),
            wallet=None if bootstrap else _Wallet(self),
        )


def _one(among: dict[str, T], beginning: str) -> T:
    fits = [value for key, value in among.items() if key.startswith(beginning)]
    if not fits:
        raise NotFound("there is no such thing on this node")
    if len(fits) > 1:
        raise AmbiguousId
    return fits[0]


class _Part:
    def __init__(self, twin: Twin) -> None:
        self.twin = twin


class _Node(_Part):
    async def info(self) -> s.NodeView:
        await self.twin.work()
        return s.NodeView(
            version="0.1.0",
            network="regtest",
            node=NODE,
            persona=PERSONA,
            roles=("trader",),
            listen=("127.0.0.1:28352",),
            data_dir="/nowhere",
            pid=1,
            uptime_seconds=61,
            sessions=0,
            chain=s.ChainView(backend="bitcoind", health="ready", height=101, tip="00" * 32),
            dht=s.DhtView(peers=2, records=0, network_size=2),
            open_trades=0,
            open_offers=len(self.twin.offers),
        )

    async def stop(self) -> None:
        await self.twin.work()
        self.twin.stopped.set()


class _Offers(_Part):
    async def create(self, draft: s.OfferDraft) -> s.OfferView:
        await self.twin.work()
        self.twin.drafts.append(draft)
        price = draft.protocol_price()
        exact = price.price if isinstance(price, FixedPrice) else None
        number = len(self.twin.offers)
        view = s.OfferView(
            id=f"{number:08x}" + "ab" * 28,
            sequence=0,
            maker=PERSONA,
            mine=True,
            state="open",
            side=draft.side,
            amount_min_sats=draft.amount_min_sats,
            amount_max_sats=draft.amount_max_sats,
            currency=draft.currency,
            price=s.price_text(exact, draft.currency),
            price_minor_per_btc=exact,
            margin_ppm=draft.margin_ppm,
            price_limit_minor_per_btc=None,
            methods=tuple(m.method for m in draft.methods),
            payment_window_blocks=draft.payment_window_blocks,
            buyer_deposit_ppm=draft.buyer_deposit_ppm,
            seller_deposit_ppm=draft.seller_deposit_ppm,
            arbiters=draft.arbiters,
            escrow_types=tuple(draft.escrow_types),
            backup_delay_blocks=draft.backup_delay_blocks,
            confirmations=draft.confirmations,
            terms=draft.terms,
            min_completed_trades=draft.min_completed_trades,
            created=START,
            expires=START + draft.lifetime_seconds,
        )
        self.twin.offers[view.id] = view
        return view

    async def find(self, wanted: s.OfferFilter) -> s.OfferPage:
        await self.twin.work()
        fits = [
            o
            for o in self.twin.offers.values()
            if wanted.side in (None, o.side) and wanted.currency in (None, o.currency)
        ]
        start = int(wanted.cursor or 0)
        end = start + wanted.limit
        return s.OfferPage(offers=tuple(fits[start:end]), next=str(end) if end < len(fits) else None)

    async def show(self, offer: str) -> s.OfferView:
        await self.twin.work()
        return _one(self.twin.offers, offer)

    async def edit(self, offer: str, changes: s.OfferEdit) -> s.OfferView:
        await self.twin.work()
        old = _one(self.twin.offers, offer)
        new = replace(
            old,
            sequence=old.sequence + 1,
            terms=old.terms if changes.terms is None else changes.terms,
            amount_max_sats=changes.amount_max_sats or old.amount_max_sats,
        )
        self.twin.offers[new.id] = new
        return new

    async def revoke(self, offer: str) -> s.OfferView:
        await self.twin.work()
        new = replace(_one(self.twin.offers, offer), state="revoked")
        self.twin.offers[new.id] = new
        return new

    async def take(self, offer: str, request: s.TakeRequest) -> s.TradeView:
        await self.twin.work()
        self.twin.taken.append(request)
        return self.twin.set_trade(trade_view(_one(self.twin.offers, offer), request, len(self.twin.trades)))


def trade_view(offer: s.OfferView, request: s.TakeRequest, number: int = 0) -> s.TradeView:
    amount = request.amount_sats or offer.amount_max_sats
    price = offer.price_minor_per_btc or 1
    minor = volume(amount, price)
    return s.TradeView(
        id=f"{number:08x}" + "cd" * 28,
        offer_id=offer.id,
        phase="taking",
        open=True,
        side="buy" if offer.side == "sell" else "sell",
        seat="taker",
        peer=PERSONA,
        amount_sats=amount,
        currency=offer.currency,
        price=format_minor(price, offer.currency),
        price_minor_per_btc=price,
        volume=format_minor(minor, offer.currency),
        volume_minor=minor,
        method=request.method,
        buyer_deposit_sats=deposit(amount, offer.buyer_deposit_ppm),
        seller_deposit_sats=deposit(amount, offer.seller_deposit_ppm),
        arbiter=ARBITER,
        backup=None,
        confirmations_required=1,
        payment_window_blocks=144,
        escrow=s.EscrowView(type=1),
        own_details=dict(request.details),
        actions=("cancel",),
        hint="waiting for the maker",
        created=START,
        updated=START,
    )


class _Trades(_Part):
    async def list(self, *, open_only: bool) -> s.TradeList:
        await self.twin.work()
        return s.TradeList(trades=tuple(t for t in self.twin.trades.values() if t.open or not open_only))

    async def show(self, trade: str) -> s.TradeView:
        await self.twin.work()
        return _one(self.twin.trades, trade)

    async def pay(self, trade: str, request: s.PayRequest) -> s.TradeView:
        await self.twin.work()
        return self._move(trade, "pay", "paid", request.note)

    async def release(self, trade: str) -> s.TradeView:
        await self.twin.work()
        return self._move(trade, "release", "releasing")

    async def raise_fee(self, trade: str, request: s.RaiseFeeRequest) -> s.TradeView:
        await self.twin.work()
        return self._move(trade, "fee", "settling", str(request.fee_rate_sats_per_kvb))

    async def cancel(self, trade: str, request: s.CancelRequest) -> s.TradeView:
        await self.twin.work()
        return self._move(trade, "cancel", "cancelled", ended=True)

    def _move(self, trade: str, action: str, phase: str, note: str = "", *, ended: bool = False) -> s.TradeView:
        view = _one(self.twin.trades, trade)
        if action not in view.actions:
            raise IllegalTransition(f"{action} is not possible while the trade is {view.phase}")
        return self.twin.set_trade(replace(view, phase=phase, actions=(), open=not ended, payment_note=note, hint=""))


class _Wallet(_Part):
    async def balance(self) -> s.BalanceView:
        await self.twin.work()
        return s.BalanceView(
            spendable_sats=150_000_000, confirmed_sats=160_000_000, pending_sats=0, immature_sats=0,
            reserved_sats=10_000_000,
        )  # fmt: skip

    async def address(self, request: s.AddressRequest) -> s.AddressView:
        await self.twin.work()
        self.twin.addresses += 1
        return s.AddressView(address=f"bcrt1qtwin{self.twin.addresses}", index=self.twin.addresses, label=request.label)

    async def utxos(self) -> s.UtxoList:
        await self.twin.work()
        coin = s.UtxoView(
            txid="ee" * 32, vout=1, value_sats=5_000, address=None, confirmations=3, trade=None, change=False
        )
        return s.UtxoList(utxos=(coin,))

    async def history(self, limit: int) -> s.HistoryView:
        await self.twin.work()
        entry = s.HistoryEntryView(txid="ff" * 32, net_sats=-5_000, fee_sats=141, height=None, time=START)
        return s.HistoryView(entries=(entry,) * min(limit, 2))

    async def send(self, request: s.SendRequest) -> s.SentView:
        await self.twin.work()
        self.twin.sent.append(request)
        return s.SentView(txid=f"{len(self.twin.sent):064x}", amount_sats=request.amount_sats or 7, fee_sats=141)

    async def consolidate(self, request: s.ConsolidateRequest) -> s.SentView:
        await self.twin.work()
        return s.SentView(txid="cc" * 32, amount_sats=request.below_sats or 9, fee_sats=141)

    async def bump(self, request: s.BumpRequest) -> s.BumpView:
        await self.twin.work()
        return s.BumpView(txid=request.txid, fee_sats=request.fee_rate_sats_per_kvb or 1, how="child")

    async def freeze(self, request: s.FreezeRequest) -> s.UtxoList:
        await self.twin.work()
        self.twin.frozen = (self.twin.frozen - set(request.coins)) | (set(request.coins) if request.frozen else set())
        return await self.utxos()

    async def labels(self) -> s.LabelList:
        await self.twin.work()
        return s.LabelList(labels=tuple(self.twin.labels.values()))

    async def set_labels(self, request: s.LabelImport) -> s.LabelList:
        await self.twin.work()
        self.twin.labels |= {(x.type, x.ref): x for x in request.labels}
        return await self.labels()

    async def descriptors(self) -> s.DescriptorsView:
        await self.twin.work()
        return s.DescriptorsView(external="wpkh(tpub/0/*)#twin", internal="wpkh(tpub/1/*)#twin")


class _Peers(_Part):
    async def list(self) -> s.PeerList:
        await self.twin.work()
        return s.PeerList(peers=tuple(self.twin.peers))

    async def add(self, request: s.PeerAdd) -> s.PeerView:
        await self.twin.work()
        peer = s.PeerView(node=NODE, address=request.address, via="dht", last_seen=START, rtt_ms=2)
        self.twin.peers.append(peer)
        return peer


class _Arbiters(_Part):
    async def announce(self, request: s.AnnounceRequest) -> s.ArbiterView:
        await self.twin.work()
        view = s.ArbiterView(
            persona=PERSONA,
            announcement="aa" * 32,
            mine=True,
            fee_ppm=request.fee_ppm,
            fee_floor_sats=request.fee_floor_sats,
            fee_cap_sats=request.fee_cap_sats,
            currencies=request.currencies,
            methods=request.methods,
            languages=request.languages,
            max_amount_sats=request.max_amount_sats,
            response_blocks=request.response_blocks,
            policy=request.policy,
            bond_sats=None,
            created=START,
            expires=START + request.lifetime_seconds,
        )
        self.twin.arbiters.append(view)
        return view

    async def list(self, currency: str | None, method: str | None, language: str | None = None) -> s.ArbiterList:
        await self.twin.work()
        return s.ArbiterList(arbiters=tuple(self.twin.arbiters))


class _Events(_Part):
    async def since(self, after: int, limit: int) -> Sequence[s.EventView]:
        return self.twin.events[after : after + limit]

    async def last(self) -> int:
        return len(self.twin.events)

    async def wait(self, after: int) -> None:
        while len(self.twin.events) <= after:
            self.twin.waiting.set()
            await self.twin.news.wait()


class _Idempotency(_Part):
    async def claim(self, key: str, request: bytes) -> Recorded | None:
        self.twin.claims.release()
        known = self.twin.records.get(key)
        if known is None:
            self.twin.records[key] = Recorded(request, 0, b"")
        return known

    async def finish(self, key: str, status: int, body: bytes) -> None:
        self.twin.records[key] = Recorded(self.twin.records[key].request, status, body)

    async def forget(self, key: str) -> None:
        del self.twin.records[key]


@cache
def _keystore() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keystore.json"
        create(path, mnemonic=WORDS, passphrase=PASSPHRASE, network=Network.REGTEST, cost=KdfCost.INTERACTIVE)
        return path.read_bytes()


def make_data_dir(path: Path) -> DataDir:
    """A data directory as `p2pnode init` leaves it: on regtest, with ports of its own choice."""
    folder = DataDir(path)
    folder.create()
    write_private(folder.keystore, _keystore())
    write_private(folder.config, b'network = "regtest"\n[api]\nport = 0\n[node]\nport = 0\nhost = "127.0.0.1"\n')
    return folder


@asynccontextmanager
async def serving(twin: Twin, folder: DataDir, *, bootstrap: bool = False) -> AsyncIterator[ApiServer]:
    """The real API over a twin, on a free port."""
    server = ApiServer(twin.services(bootstrap=bootstrap), ApiConfig(port=0), folder)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
