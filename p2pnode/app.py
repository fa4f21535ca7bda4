"""The composition root: one node, put together from its parts, started in order and stopped in reverse.

Order of start: lock, keys, database; chain and wallet; channels and DHT; what an earlier run left to do; the API last,
so that whoever finds it finds a whole node. A part that fails to start stops those before it, and the error is one
line. Nothing below this file makes another part; each is handed what it needs.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import signal
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from dht.contact import Scope, scope_of
from dht.disk import open_storage
from dht.engine import EngineConfig
from dht.errors import PortInUse
from dht.node import DhtConfig, DhtNode, Seed
from dht.topics import contact_topic
from escrow.address import address_of
from escrow.chain.base import ChainBackend
from escrow.script import escrow_script
from escrow.wallet.base import Wallet
from p2pnode.api.server import ApiServer
from p2pnode.api.services import Services
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.attachments import ATTACHMENT_SERVICE, AttachmentService, AttachmentStore, Fetcher, ask_for_file
from p2pnode.backends import make_backend, make_wallet
from p2pnode.booksync import BOOK_SERVICE, BookSync
from p2pnode.cases.desk import CaseDesk
from p2pnode.chainwatch import ChainWatch
from p2pnode.channels import (
    AnyService,
    CannotListen,
    Channels,
    Dialer,
    Limits,
    Pipe,
    PipeService,
    Service,
    dial_public,
    dial_tcp,
)
from p2pnode.clock import Clock, SystemClock
from p2pnode.config import Config
from p2pnode.contacts import Contacts
from p2pnode.contractfile import ContractDirectory
from p2pnode.contribution import Contributor
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.delivery import DELIVER_SERVICE, Delivery, Refusal
from p2pnode.engine import Engine, correspondents
from p2pnode.entry import Entry
from p2pnode.executor import Executor
from p2pnode.intake import Intake
from p2pnode.keyring import Keyring
from p2pnode.keystore import Keys
from p2pnode.mailbox import Mailbox
from p2pnode.notices import Notices
from p2pnode.offerbook import OfferBook
from p2pnode.ownoffers import OwnOffers
from p2pnode.policy import TradePolicy
from p2pnode.ports import AddressUnavailable, unavailable
from p2pnode.post import ChannelPost
from p2pnode.prices import Feed, PriceFeeds, parse_manual
from p2pnode.publisher import OwnContact, Publisher
from p2pnode.reach.portmap import PortMapper
from p2pnode.reach.probe import Helper
from p2pnode.reach.reachability import Reachability, Told, own_ipv4
from p2pnode.reach.relay import Relay, RelayLimits
from p2pnode.reach.service import RelayDoor
from p2pnode.reconcile import Reconciler
from p2pnode.records import record_kinds
from p2pnode.services.arbiters import ArbiterService
from p2pnode.services.cases import CaseService
from p2pnode.services.disputes import DisputeService
from p2pnode.services.events import EventService, IdempotencyService
from p2pnode.services.market import Markets
from p2pnode.services.node import NodeFacts, NodeService
from p2pnode.services.offers import OfferService
from p2pnode.services.peers import PeerService
from p2pnode.services.trades import TradeService
from p2pnode.services.views import TradeViews
from p2pnode.services.wallet import CoinService, TradeEscrows
from p2pnode.taking import Taking
from p2pnode.tradestore import TradeStore
from protocol.attachment import PART_BYTES
from protocol.contact import Address
from protocol.contract import Contract
from protocol.errors import P2PError
from protocol.relay import RELAY_SERVICE
from protocol.types import Network
from protocol.wire import MAX_ENVELOPE, Envelope, Kind

if TYPE_CHECKING:
    from p2pnode.discovery import Discovery

PORT_ATTEMPTS: Final = 8
"""With port 0: how often a UDP port is tried whose TCP twin turns out to be taken."""

log = logging.getLogger(__name__)


class DhtClock:
    """The DHT's view of time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()


class App:
    """One running node."""

    def __init__(self, config: Config, keys: Keys, clock: Clock | None = None) -> None:
        self.config = config
        self.keyring = Keyring(keys.seed, config.network)
        self.keys = keys
        self.clock = clock or SystemClock()
        self.data = DataDir(config.data_dir)
        self.desk: CaseDesk | None = None
        self._parts = AsyncExitStack()
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start everything. Raises P2PError with one clear line; then everything is stopped again."""
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything, newest part first."""
        await self._parts.aclose()

    def stop(self) -> None:
        """Ask the node to shut down."""
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Return once `stop` was called."""
        await self._stopping.wait()

    # --- parts ------------------------------------------------------------------------------------------------

    async def _start(self) -> None:  # noqa: PLR0915  (one line per part)
        config, clock, network = self.config, self.clock, self.config.network
        database = Database(self.data.database)
        self._parts.callback(database.close)
        self.notices = Notices(database)
        self.book = OfferBook(database, network, capacity=config.limits.book_offers)
        trades = TradeStore(database)

        backend: ChainBackend | None = None
        wallet: Wallet | None = None
        if not config.has("bootstrap"):
            backend = make_backend(config, clock)
            self._parts.push_async_callback(backend.close)
            await backend.start()
            wallet = make_wallet(config, self.keys, backend, database, clock)
            self._parts.push_async_callback(wallet.close)
            await wallet.start()

        files = AttachmentStore(database, self.keyring.node.seed)
        # Bound late: what answers is made of parts that need the channels themselves.
        services: dict[int, AnyService] = {
            RELAY_SERVICE: PipeService(self._relayed),
            BOOK_SERVICE: PipeService(self._synced),
        }
        if backend is not None:
            services[DELIVER_SERVICE] = Service(self._deliver, request_bytes=MAX_ENVELOPE, reply_bytes=0)
            attached = AttachmentService(files, self.keyring.owns, network)
            services[ATTACHMENT_SERVICE] = Service(
                attached.answer, request_bytes=Kind.FETCH.limit, reply_bytes=PART_BYTES
            )
        channels = Channels(
            self.keyring.node, network, services, limits=_channel_limits(config), clock=clock, dial=_dialer(config)
        )
        self._parts.push_async_callback(channels.close)
        host, port, dht = await self._listen(channels)
        reach = self._reachability(channels, dht, Address(host, port))

        contacts = Contacts(database, network, partial(_lookup_contact, dht, network))
        own_contact = OwnContact(
            database,
            self.keyring.persona,
            network,
            clock,
            self.keyring.node.public,
            reach.addresses,
            reach.relays,
        )
        self.own = OwnOffers(database, self.book, self.notices, self.keyring, network, clock)
        arbitrates = config.has("arbiter")
        self._prices = _prices(config, clock, self.own)
        self._parts.push_async_callback(self._prices.close)
        own = (self.keyring.persona.public,)
        directory = ArbiterDirectory(database, dht, network, clock, own=own, referenced=self.own.announcement_ids)
        self._parts.push_async_callback(directory.close)
        self._books = BookSync(channels, dht.storage, dht.unix)
        market = Markets(self.book, dht, network, clock, self._books.open)
        self._parts.push_async_callback(market.close)
        publisher = Publisher(
            dht,
            clock,
            random.SystemRandom(),
            own=self.own,
            contact=None if config.has("bootstrap") else own_contact,
            directory=directory,
            # Without the role, an announcement of earlier must not be kept alive.
            personas=own if arbitrates else (),
            place=market.topic_for,
        )
        self._parts.push_async_callback(publisher.close)

        on_entry = [publisher.kick, reach.kick]
        offers: OfferService | None = None
        trade_service: TradeService | None = None
        coins: CoinService | None = None
        disputes: DisputeService | None = None
        cases: CaseService | None = None
        if backend is not None and wallet is not None:
            watch, engine, executor, delivery, reconciler, taking = self._trading(
                trades, backend, wallet, channels, contacts, own_contact
            )
            engine.files = files
            fetcher = Fetcher(
                files,
                contacts,
                partial(ask_for_file, channels),
                self.keyring.persona_key,
                self.notices,
                network,
                clock,
            )
            engine.subscribe(lambda _state: fetcher.kick())
            channels.subscribe(lambda _peer: fetcher.kick())
            if arbitrates:
                self.desk = CaseDesk(
                    trades,
                    engine.conversations,
                    self.notices,
                    self.keyring,
                    contacts,
                    backend,
                    directory.own,
                    network,
                    clock,
                )
                self.desk.kick_on(delivery.kick)
                self.desk.intake.files = files
                self.desk.engine.subscribe(lambda _state: fetcher.kick())
                self._intake.cases = self.desk.intake
            views = TradeViews(trades, network, _describe_escrow)
            trade_service = TradeService(engine, views)
            disputes = DisputeService(engine, views, clock, lambda: watch.height, files)
            if self.desk is not None:
                cases = CaseService(self.desk, engine.conversations, wallet, clock, files)
            offers = OfferService(
                self.own,
                self.book,
                market,
                directory,
                publisher,
                taking,
                views,
                trades,
                own_contact,
                self.keyring.persona,
                network,
                clock,
                prices=self._prices,
                prices_ready=self._prices.ready,
            )
            coins = CoinService(
                wallet,
                backend,
                TradeEscrows(trades),
                max_fee_rate=config.trade.max_fee_rate_sats_per_kvb,
                fee_target_blocks=config.wallet.fee_target_blocks,
            )
            await _release_orphans(wallet, trades)
            self.own.reconcile()
            rng = random.SystemRandom()
            mailbox = Mailbox(trades, delivery, self._deliver, dht, (self.keyring.persona,), clock, rng)
            channels.subscribe(delivery.appeared)
            channels.subscribe(lambda _peer: mailbox.kick())
            on_entry.append(mailbox.kick)
            for part in (watch, executor, delivery, reconciler, mailbox):
                self._parts.push_async_callback(part.close)
            await watch.start()
            executor.start()
            delivery.start()
            reconciler.start()
            mailbox.start()
            self._parts.push_async_callback(fetcher.close)
            fetcher.start()
            if self.desk is not None:
                self._parts.push_async_callback(self.desk.close)
                await self.desk.start()

        self._prices.start()
        publisher.start()
        reach.subscribe(publisher.kick)
        reach.start()
        local = self._discovery(host, port) if config.node.mdns else None
        entry = Entry(dht, [Seed.parse(text) for text in config.node.seeds], on_entry, local=local)
        self._parts.push_async_callback(entry.close)
        entry.start()
        persona = self.keyring.persona.public
        facts = NodeFacts(
            network=network,
            node=self.keyring.node.public,
            persona=None if config.has("bootstrap") else persona,
            roles=config.roles,
            listen=(f"{host}:{port}",),
            data_dir=config.data_dir,
            started=clock.now(),
        )
        api_services = Services(
            node=NodeService(
                facts, dht, clock, self.stop, chain=backend, sessions=channels.sessions, trades=trades, own=self.own
            ),
            peers=PeerService(dht, channels.sessions, clock),
            arbiters=ArbiterService(
                directory,
                publisher if arbitrates else None,
                self.keyring.persona if arbitrates else None,
                self.keyring.arbiter_base_point if arbitrates else None,
            ),
            events=EventService(self.notices),
            idempotency=IdempotencyService(database, clock),
            offers=offers,
            trades=trade_service,
            wallet=coins,
            disputes=disputes,
            cases=cases,
        )
        api = ApiServer(api_services, config.api, self.data)
        self._parts.push_async_callback(api.close)
        await api.start()
        self._every_minute(lambda: self._housekeep(contacts))

    def _trading(
        self,
        trades: TradeStore,
        backend: ChainBackend,
        wallet: Wallet,
        channels: Channels,
        contacts: Contacts,
        own_contact: OwnContact,
    ) -> tuple[ChainWatch, Engine, Executor, Delivery, Reconciler, Taking]:
        config, clock, network = self.config, self.clock, self.config.network
        engine = Engine(
            trades,
            self.notices,
            self.keyring,
            clock,
            lambda: watch.height,
            network=network,
            contact=own_contact.envelope,
        )
        engine.subscribe(self.own.follow)
        watch = ChainWatch(backend, engine, clock)
        contributor = Contributor(self.keyring, wallet, clock)
        files = ContractDirectory(config.data_dir / "contracts")
        engine.subscribe(files.keep)
        executor = Executor(engine, wallet, backend, watch, self.keyring, contributor, self.own, files, clock)
        policy = TradePolicy(
            greatest_fee_rate=config.trade.max_fee_rate_sats_per_kvb,
            max_open_trades=config.trade.max_open,
            max_amount=config.trade.max_amount_sats,
            confirmations=config.trade.confirmations,
            price_tolerance=config.prices.tolerance_ppm,
        )

        def refused(refusal: Refusal) -> None:
            engine.refused(refusal.message.trade_id, refusal.code, refusal.text)

        post = ChannelPost(channels)
        delivery = Delivery(trades, contacts, post, clock, on_refusal=refused)
        engine.subscribe(lambda state: delivery.kick_all(correspondents(state)))
        reconciler = Reconciler(engine, delivery, contacts, post, self.keyring, self.notices, network, clock)
        self._intake = Intake(
            engine,
            self.own,
            contacts,
            policy,
            network,
            clock,
            on_sync=reconciler.received,
            unspent=backend.unspent,
            prices=self._prices,
        )
        taking = Taking(
            engine,
            self.keyring,
            contributor,
            wallet,
            backend,
            policy,
            network,
            clock,
            contact=own_contact.envelope,
        )
        return watch, engine, executor, delivery, reconciler, taking

    def _discovery(self, host: str, port: int) -> Discovery:
        # Its library takes a tenth of a second to load: only who wants it waits for it.
        from p2pnode.discovery import Discovery  # noqa: PLC0415

        return Discovery(self.keyring.node.public, self.config.network, self.config.node.mdns, host, port)

    def _reachability(self, channels: Channels, dht: DhtNode, listening: Address) -> Reachability:
        config, network = self.config, self.config.network
        relay = Relay(channels, _relay_limits(config))
        self._parts.callback(relay.close)
        mapper: PortMapper | None = None
        if _maps_port(config):
            mapper = PortMapper(listening.port, own_ipv4)
        reach = Reachability(
            dht, channels, relay, listening, _told(config), lambda: None if mapper is None else mapper.external
        )
        self._parts.push_async_callback(reach.close)
        if mapper is not None:
            self._parts.push_async_callback(mapper.close)
            reach.subscribe_moves(mapper.kick)
            mapper.start(reach.kick)
        helper = Helper(network, self.clock, _dialer(config))
        self._door = RelayDoor(relay, helper, reach.registrar)
        return reach

    async def _synced(self, pipe: Pipe) -> None:
        await self._books.serve(pipe)

    async def _relayed(self, pipe: Pipe) -> None:
        await self._door.serve(pipe)

    async def _deliver(self, peer: bytes, raw: bytes) -> bytes:
        return await self._intake.deliver(peer, raw)

    async def _listen(self, channels: Channels) -> tuple[str, int, DhtNode]:
        """TCP and UDP on one port number. With port 0, one that is free for both."""
        config = self.config.node
        for attempt in range(PORT_ATTEMPTS):
            dht = self._dht()
            try:
                await dht.start()
            except PortInUse as e:
                raise _taken(e, config.host, config.port) from e
            port = dht.local[1]
            try:
                await channels.listen(config.host, port)
            except CannotListen as e:
                await dht.close()
                if config.port != 0 or attempt + 1 == PORT_ATTEMPTS:
                    raise _taken(e, config.host, port) from e
                continue
            self._parts.push_async_callback(dht.close)
            return config.host, port, dht
        raise AssertionError("the loop above returns or raises")

    def _dht(self) -> DhtNode:
        config = self.config
        rng = random.SystemRandom()
        return DhtNode(
            DhtConfig(
                config.node.host,
                config.node.port,
                engine=EngineConfig(client=config.node.dht_client, local_addresses=_local(config)),
            ),
            self.keyring.node,
            config.network,
            record_kinds(config.network),
            open_storage(config.data_dir / "dht.db", rng),
            clock=DhtClock(),
            rng=rng,
        )

    # --- in the background --------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]  # a coroutine
        task.set_name(name)

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._parts.push_async_callback(end)

    def _every_minute(self, work: object) -> None:
        async def loop() -> None:
            while True:
                work()  # type: ignore[operator]
                await asyncio.sleep(60)

        self._spawn("housekeeping", loop())

    def _housekeep(self, contacts: Contacts) -> None:
        now = self.clock.now()
        self.book.expire(now)
        self.own.expire(now)
        contacts.forget_expired(now)


def run(config: Config, keys: Keys) -> None:
    """Run a node until it is told to stop (SIGINT, SIGTERM, or the API). Raises P2PError when it can't start."""
    asyncio.run(_serve(config, keys))


async def _serve(config: Config, keys: Keys) -> None:
    async with App(config, keys) as app:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, app.stop)
        log.info("ready")
        await app.wait_stopped()
        log.info("stopping")


def _channel_limits(config: Config) -> Limits:
    per_origin = config.limits.sessions if config.network is Network.REGTEST else config.limits.sessions_per_address
    return Limits(max_inbound=config.limits.sessions, max_inbound_per_origin=per_origin)


def _taken(error: P2PError, host: str, port: int) -> AddressUnavailable:
    """Why the port for peers can't be had, from the system's own reason where there is one."""
    cause = error.__cause__
    reason = cause if isinstance(cause, OSError) else OSError(errno.EADDRINUSE, "")
    return unavailable(reason, host, port, "node.port")


async def _lookup_contact(dht: DhtNode, network: Network, persona: bytes) -> list[Envelope]:
    return await dht.get(contact_topic(network, persona), paths=3)


def _local(config: Config) -> bool:
    """Whether private and loopback addresses are worth talking to."""
    return config.node.local_addresses or config.network is Network.REGTEST


def _dialer(config: Config) -> Dialer:
    """How this node dials: from the address that it listens on, if that is a certain one, as others see it then."""
    source = config.node.host if scope_of(config.node.host) >= Scope.PRIVATE else None
    return partial(dial_tcp if _local(config) else dial_public, source=source)


def _relay_limits(config: Config) -> RelayLimits:
    limits = config.limits
    rate = limits.relay_kilobytes_per_second * 1_000
    if config.network is Network.REGTEST:
        # All nodes of a test network may share one address.
        return RelayLimits(
            registrations=limits.relay_clients,
            registrations_per_origin=limits.relay_clients,
            circuits=limits.relay_circuits,
            circuits_per_origin=limits.relay_circuits,
            bytes_per_second=rate,
            bytes_per_second_per_origin=rate,
        )
    return RelayLimits(
        registrations=limits.relay_clients,
        circuits=limits.relay_circuits,
        bytes_per_second=rate,
        bytes_per_second_per_origin=rate // 2,
    )


def _prices(config: Config, clock: Clock, own: OwnOffers) -> PriceFeeds:
    """Raises BadConfig."""
    prices = config.prices
    return PriceFeeds(
        [Feed.parse(text) for text in prices.feeds],
        clock,
        random.SystemRandom(),
        interval=prices.interval_seconds,
        max_age=prices.max_age_seconds,
        manual=parse_manual(prices.manual),
        file=prices.file,
        wanted=own.floating,
    )


def _told(config: Config) -> Told:
    """What the user said of this node's place in the network."""
    node = config.node
    pairs = (text.rpartition(":") for text in node.external)
    setting = node.reachable
    if setting == "auto" and (config.has("bootstrap") or scope_of(node.host) is Scope.LOOPBACK):
        # Whom others enter by says that they can; and on loopback there is nothing to find out.
        setting = "yes"
    return Told(
        setting=setting,
        external=tuple(Address(host.strip("[]"), int(port)) for host, _, port in pairs),
        relaying=node.relay,
        client=node.dht_client,
        local=_local(config),
    )


def _maps_port(config: Config) -> bool:
    if config.node.port_mapping != "auto":
        return config.node.port_mapping == "yes"
    return config.network is not Network.REGTEST and scope_of(config.node.host) is not Scope.LOOPBACK


def _describe_escrow(contract: Contract, network: Network) -> tuple[bytes, str]:
    script = escrow_script(contract, network)
    return script.witness_script, address_of(script.script_pubkey, network)


async def _release_orphans(wallet: Wallet, trades: TradeStore) -> None:
    """A crash between reserving coins and recording the take leaves coins that no trade knows."""
    for reservation in await wallet.reservations():
        stored = trades.get(reservation.holder)
        if stored is None:
            await wallet.release(reservation.holder)
