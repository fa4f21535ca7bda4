"""Whole nodes in one process over in-memory twins: the real engine, intake, executor, delivery, store and machine.

A node can be killed after (or instead of) its n-th commit: nothing of it runs any more, and what is not in its database
file is gone. `restart` builds it anew from that file, as a new process would.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from escrow.coins import OutPoint
from escrow.keys import public_key
from escrow.seed import Seed, mnemonic_from_entropy
from p2pnode.chainwatch import ChainWatch
from p2pnode.contacts import Contacts
from p2pnode.contractfile import ContractDirectory
from p2pnode.contribution import Contributor
from p2pnode.database import Database
from p2pnode.delivery import Delivery, Refusal, Undelivered, local_contact
from p2pnode.engine import Engine, HeldTrade
from p2pnode.executor import Executor
from p2pnode.intake import Intake
from p2pnode.keyring import Keyring
from p2pnode.notices import Notices
from p2pnode.offerbook import OfferBook
from p2pnode.ownoffers import OwnOffers
from p2pnode.policy import TradePolicy
from p2pnode.recall import Recall
from p2pnode.reconcile import Pace, Reconciler
from p2pnode.taking import ArbiterChoice, Taking
from p2pnode.tradestore import TradeStore
from protocol import trade_events as ev
from protocol.announcement import ARBITER_WORK_BITS, Announcement, FeeTerms
from protocol.contact import CONTACT_WORK_BITS, ContactRecord
from protocol.contract import Party
from protocol.identity import SigningKey
from protocol.messages import Details
from protocol.offer import SALT_BYTES, ArbiterRef, FixedPrice, Offer, Price, Requirements, make_offer_id
from protocol.trade_state import TradeState
from protocol.types import EscrowType, Network, Side
from protocol.wire import Envelope, Kind, open_envelope, pack
from protocol.work import find_work
from tests.twins import TwinBackend, TwinChain, TwinPost, TwinWallet

NETWORK = Network.REGTEST
NOW = 1_700_000_000
PATIENCE = 20.0


class Killed(BaseException):
    """The process is gone."""


class FixedClock:
    """A clock that stands, and chance that is repeatable."""

    def __init__(self, name: str) -> None:
        self.time = NOW
        self._name = name
        self._drawn = 0

    def now(self) -> int:
        return self.time

    def random(self, size: int) -> bytes:
        self._drawn += 1
        return sha256(f"{self._name}{self._drawn}".encode()).digest()[:size]


class MortalDatabase(Database):
    """Dies at a given commit: just after it, or just before (then the commit is lost)."""

    commits = 0
    dies_at: int | None = None
    loses_it = False
    on_death: Callable[[], None] = staticmethod(lambda: None)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        if self.connection.in_transaction:
            yield self.connection
            return
        dying = self.dies_at is not None and self.commits + 1 >= self.dies_at
        try:
            with super().transaction() as connection:
                yield connection
                if dying and self.loses_it:
                    raise Killed
        except Killed:
            self.on_death()
            raise
        self.commits += 1
        if dying:
            self.on_death()
            raise Killed


def make_arbiter(index: int) -> ArbiterChoice:
    """An arbiter with a valid announcement."""
    key = SigningKey(bytes([200 + index]) * 32)
    announcement = Announcement(
        persona=key.public,
        sequence=1,
        base_point=public_key(bytes([200 + index]) * 32),
        fee=FeeTerms(5_000, 1_000, 50_000),
        currencies=(),
        methods=(),
        languages=("en",),
        max_amount=10**9,
        response_blocks=144,
        policy_hash=bytes(32),
        policy="",
        bond=None,
        created=NOW - 100,
        expires=NOW + 10**6,
    )
    body = find_work(Kind.ARBITER, NETWORK, pack(announcement), ARBITER_WORK_BITS)
    envelope = key.seal(Kind.ARBITER, NETWORK, body)
    return ArbiterChoice(envelope, announcement)


class TwinNode:
    """One node; `up` starts it from its file, `kill` ends it without a word."""

    def __init__(self, name: str, folder: Path, chain: TwinChain, post: TwinPost) -> None:
        self.name = name
        self.folder = folder
        self.chain = chain
        self.post = post
        self.held: dict[OutPoint, bytes] = {}
        self.scripts: dict[bytes, bytes] = {}
        entropy = sha256(name.encode()).digest()
        self.keyring = Keyring(Seed.from_mnemonic(mnemonic_from_entropy(entropy)), NETWORK)
        self.clock = FixedClock(name)
        self.alive = False
        self.reconciles = False
        """Whether it asks its counterparties what it may have lost, as a real node does."""
        self._tasks_before: set[asyncio.Task[object]] = set()

    async def up(self, *, dies_at: int | None = None, loses_it: bool = False) -> None:
        """Start from what the file holds."""
        self.database = MortalDatabase(self.folder / f"{self.name}.db")
        self.database.dies_at = dies_at
        self.database.loses_it = loses_it
        self.database.on_death = self.die
        self.notices = Notices(self.database)
        self.book = OfferBook(self.database, NETWORK)
        trades = TradeStore(self.database)
        self.own = OwnOffers(self.database, self.book, self.notices, self.keyring, NETWORK, self.clock, work_bits=1)
        self.backend = TwinBackend(self.chain)
        self.wallet = TwinWallet(self.chain, self.name, self.held, self.scripts)
        self.engine = Engine(
            trades,
            self.notices,
            self.keyring,
            self.clock,
            lambda: self.watch.height,
            network=NETWORK,
            contact=self.contact,
        )
        self.engine.subscribe(self.own.follow)
        self.watch = ChainWatch(self.backend, self.engine, self.clock)
        contributor = Contributor(self.keyring, self.wallet, self.clock)  # type: ignore[arg-type]
        contracts = ContractDirectory(self.folder / f"{self.name}-contracts")
        self.executor = Executor(
            self.engine,
            self.wallet,  # type: ignore[arg-type]
            self.backend,
            self.watch,
            self.keyring,
            contributor,
            self.own,
            contracts,
            self.clock,
        )
        self.contacts = Contacts(self.database, NETWORK, self._no_lookup)
        sender = self.post.from_node(self.keyring.node.public)
        self.delivery = Delivery(trades, self.contacts, sender, self.clock, on_refusal=self._refused)
        self.engine.subscribe(lambda state: self.delivery.kick(state.peer))
        self.reconciler = Reconciler(
            self.engine,
            self.delivery,
            self.contacts,
            sender,
            self.keyring,
            self.notices,
            NETWORK,
            self.clock,
            height=lambda: self.watch.height,
            watch=self.watch.watch,
            pace=Pace(held=0.01, open=0.05),
        )
        self.delivery.on_unknown = self.reconciler.ask
        policy = TradePolicy()
        self.intake = Intake(
            self.engine,
            self.own,
            self.contacts,
            policy,
            NETWORK,
            self.clock,
            on_sync=self.reconciler.received,
            unspent=self.backend.unspent,
        )
        self.recall = Recall(
            self.engine,
            self.intake,
            self.keyring,
            self.contacts,
            NETWORK,
            self.clock,
            reserve=self._reserve,
            export=contracts.add,
        )
        self.intake.on_returned = self.recall.returned
        self.taking = Taking(
            self.engine,
            self.keyring,
            contributor,
            self.wallet,  # type: ignore[arg-type]
            self.backend,
            policy,
            NETWORK,
            self.clock,
            contact=self.contact,
        )
        self.alive = True
        self.own.reconcile()
        for reservation in await self.wallet.reservations():
            if trades.get(reservation.holder) is None:
                await self.wallet.release(reservation.holder)
        try:
            await self.watch.start()
            self.post.nodes[self.keyring.node.public] = self._receive
            self.executor.start()
            self.delivery.start()
            if self.reconciles:
                self.reconciler.start()
        except Killed:
            self.die()

    def die(self) -> None:
        """What a SIGKILL does: nothing more happens here."""
        if not self.alive:
            return
        self.alive = False
        self.wallet.dead = True
        self.post.nodes.pop(self.keyring.node.public, None)
        self.chain.views.remove(self.backend)
        self.executor._closing = True
        self.delivery._closing = True
        self.reconciler._closing = True
        for task in self.tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def tasks(self) -> list[asyncio.Task[None]]:
        """All that runs in this node."""
        return [
            *self.executor._workers.values(),
            *self.delivery._workers.values(),
            *self.watch._tasks,
            *self.reconciler._tasks,
        ]

    async def buried(self) -> None:
        """Wait until the dead node's tasks are gone, and close the file."""
        await asyncio.gather(*self.tasks(), return_exceptions=True)
        self.database.close()

    async def down(self) -> None:
        """An orderly stop."""
        for part in (self.reconciler, self.delivery, self.executor, self.watch):
            await part.close()
        self.die()
        await self.buried()

    async def _receive(self, node: bytes, raw: bytes) -> bytes:
        try:
            return await self.intake.deliver(node, raw)
        except Killed:
            raise Undelivered from None

    def _refused(self, refusal: Refusal) -> None:
        self.engine.apply(refusal.message.trade_id, ev.DeliveryRefused(refusal.code, refusal.text))

    def _reserve(self, trade: bytes, party: Party) -> None:
        for coin in party.inputs:
            self.held.setdefault(OutPoint(coin.txid, coin.vout), trade)

    async def _no_lookup(self, persona: bytes) -> list[Envelope]:
        del persona
        return []

    def contact(self, at: int = NOW) -> Envelope:
        """Our contact record, as made at that time."""
        persona = self.keyring.persona
        node = self.keyring.node.public
        record = ContactRecord(persona.public, 1, local_contact(node, "127.0.0.1", 1), (), at - 10, at + 86_400)
        body = find_work(Kind.CONTACT, NETWORK, pack(record), CONTACT_WORK_BITS)
        return persona.seal(Kind.CONTACT, NETWORK, body)

    def fund(self, *values: int) -> None:
        """Coins of our own."""
        for value in values:
            self.chain.coin(self.wallet.script(), value)

    @property
    def trade(self) -> TradeState | None:
        """The only trade."""
        trades = self.engine.trades.all()
        return trades[0].state if trades else None

    @property
    def phase(self) -> str:
        """Its phase."""
        return type(self.trade.phase).__name__ if self.trade else "None"


def details_of(name: str) -> Details:
    return (("iban", f"DE00 {name}"), ("holder", name))


class World:
    """A maker and a taker, two arbiters, one chain."""

    def __init__(
        self, folder: Path, maker_side: Side, *, deposit: int = 100_000, escrow: EscrowType | None = None
    ) -> None:
        self.chain = TwinChain()
        self.post = TwinPost()
        self.maker = TwinNode("maker", folder, self.chain, self.post)
        self.taker = TwinNode("taker", folder, self.chain, self.post)
        self.both = (self.maker, self.taker)
        self.arbiters = (make_arbiter(1), make_arbiter(2))
        self.maker_side = maker_side
        self.price: Price = FixedPrice(6_500_000)
        self.declined = False
        self.deposit = deposit
        self.escrow = escrow or EscrowType.WSH_2OF3_BACKUP

    @property
    def buyer(self) -> TwinNode:
        return self.maker if self.maker_side is Side.BUY else self.taker

    @property
    def seller(self) -> TwinNode:
        return self.taker if self.maker_side is Side.BUY else self.maker

    async def begin(self) -> None:
        """Start both, give them coins, publish the offer (by hand to the taker's book)."""
        for node in self.both:
            if not node.alive:
                await node.up()
            node.fund(5_000_000, 3_000_000)
        offer = Offer(
            maker=self.maker.keyring.persona.public,
            offer_id=make_offer_id(self.maker.keyring.persona.public, sha256(b"offer").digest()[:SALT_BYTES]),
            sequence=0,
            side=self.maker_side,
            amount_min=100_000,
            amount_max=2_000_000,
            currency="EUR",
            price=self.price,
            methods=("sepa",),
            payment_window=144,
            buyer_deposit=self.deposit,
            seller_deposit=self.deposit,
            arbiters=tuple(ArbiterRef(a.announcement.persona, a.envelope.id) for a in self.arbiters),
            escrow_types=tuple(EscrowType),
            backup_delay=1008,
            confirmations=2,
            terms="",
            requirements=Requirements(),
            contacts=(),
            created=NOW - 100,
            expires=NOW + 86_400,
        )
        self.offer = await self.maker.own.create(offer, {"sepa": details_of("maker")})

    async def take(self, amount: int = 1_000_000, *, price: int = 6_500_000) -> None:
        """The taker's command."""
        envelope, offer = self.offer.envelope, self.offer.offer
        self.taker.contacts.remember(self.maker.contact(), NOW)
        backup = self.arbiters[1] if self.escrow is EscrowType.WSH_2OF3_BACKUP else None
        await self.taker.taking.take(
            open_envelope(envelope.raw, NETWORK),
            offer,
            amount=amount,
            price=price,
            method="sepa",
            details=details_of("taker"),
            arbiter=self.arbiters[0],
            backup=backup,
            escrow_type=self.escrow,
        )

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Let everything run until `done`; a killed node is restarted at once. Fails after a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while not done():
            if loop.time() > deadline:
                raise AssertionError(f"never came to: {what} (maker {self.maker.phase}, taker {self.taker.phase})")
            await asyncio.sleep(0.002)
            for node in self.both:
                if not node.alive:
                    await node.buried()
                    await node.up()

    def phases(self, *names: str) -> bool:
        """Whether both nodes are in one of these phases."""
        return all(node.alive and node.phase in names for node in self.both)

    async def command(self, node: TwinNode, event: ev.TradeEvent, reached: Callable[[], bool]) -> None:
        """Give a command as a user would: again, if the node died and has no record of it."""
        while not reached():
            if node.alive and node.trade is not None:
                with suppress(Killed, HeldTrade):
                    node.engine.apply(node.trade.trade_id, event)
            await asyncio.sleep(0.002)
            await self.until(lambda: node.alive, "restart")

    async def happy(self) -> None:
        """The whole trade, whoever dies on the way."""
        await self.begin()
        while self.taker.trade is None:
            try:
                await self.take()
            except Killed:
                await self.until(lambda: self.taker.alive, "restart of the taker")
        await self.until(lambda: len(self.chain.mempool) == 1 and self.phases("Funding"), "funding")
        self.chain.mine(2)
        await self.until(
            lambda: (
                self.phases("Funded") and self.buyer.trade is not None and self.buyer.trade.peer_details is not None
            ),
            "funded with details",
        )
        await self.command(self.buyer, ev.DeclarePaid("ref"), lambda: self.buyer.phase != "Funded")
        await self.until(lambda: self.phases("Paid"), "paid")
        await self.command(self.seller, ev.Release(), lambda: self.seller.phase != "Paid")
        await self.until(lambda: len(self.chain.mempool) == 1 and self.phases("Settling"), "payout")
        self.chain.mine(2)
        await self.until(lambda: self.phases("Completed"), "completion")
        await self.until(self.quiet, "all messages acknowledged")

    def quiet(self) -> bool:
        """Nothing is left to do or to send."""
        return all(
            node.alive and not node.engine.trades.recipients() and not node.engine.trades.trades_with_effects()
            for node in self.both
        )

    async def end(self) -> None:
        """Stop both."""
        for node in self.both:
            if node.alive:
                await node.down()
