"""The composition root: one node, put together from its parts, started in order and stopped in reverse.

Order of start: lock, keys, database; chain and wallet; channels and DHT; what an earlier run left to do; the API last,
so that whoever finds it finds a whole node. A part that fails to start stops those before it, and the error is one
line. Nothing below this file and `p2pnode.composition` makes another part; each is handed what it needs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

from dht.node import DhtNode, Seed
from dht.topics import contact_topic
from escrow.chain.follow import FollowedChain
from escrow.wallet.base import Wallet
from p2pnode.api.server import ApiServer
from p2pnode.api.services import Services
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.attachments import ATTACHMENT_SERVICE, AttachmentService, AttachmentStore
from p2pnode.autobackup import AutoBackup
from p2pnode.backends import make_backend, make_wallet, report_to
from p2pnode.booksync import BOOK_SERVICE, BookSync
from p2pnode.channels import AnyService, Channels, Pipe, PipeService, Service
from p2pnode.clock import Clock, SystemClock
from p2pnode.composition import choices
from p2pnode.composition.listening import listen
from p2pnode.composition.standing import Standing
from p2pnode.composition.trading import Ground, Trading
from p2pnode.config import Config
from p2pnode.contacts import Contacts
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.delivery import DELIVER_SERVICE
from p2pnode.entry import Entry
from p2pnode.keyring import Keyring
from p2pnode.keystore import Keys
from p2pnode.metrics import Metrics
from p2pnode.notices import Notices
from p2pnode.offerbook import OfferBook
from p2pnode.ownoffers import OwnOffers
from p2pnode.ports import host_port
from p2pnode.publisher import OwnContact, Publisher
from p2pnode.reach.packets import PACKET_SERVICE, Packets
from p2pnode.reach.portmap import PortMapper
from p2pnode.reach.probe import Helper
from p2pnode.reach.reachability import Reachability, own_ipv4
from p2pnode.reach.relay import Relay
from p2pnode.reach.service import RelayDoor
from p2pnode.secondfactor import SecondFactor
from p2pnode.services.arbiters import ArbiterService
from p2pnode.services.events import EventService, IdempotencyService
from p2pnode.services.guard import GuardService
from p2pnode.services.market import Markets
from p2pnode.services.node import NodeFacts, NodeService
from p2pnode.services.offers import OfferService
from p2pnode.services.peers import PeerService
from p2pnode.services.reach import reach_of
from p2pnode.tradestore import TradeStore
from p2pnode.web.sessions import Sessions
from protocol.attachment import PART_BYTES
from protocol.contact import Address
from protocol.relay import RELAY_SERVICE
from protocol.types import Network
from protocol.wire import MAX_ENVELOPE, Envelope, Kind

if TYPE_CHECKING:
    from p2pnode.discovery import Discovery

log = logging.getLogger(__name__)


class App:
    """One running node."""

    def __init__(self, config: Config, keys: Keys, clock: Clock | None = None) -> None:
        self.config = config
        self.keyring = Keyring(keys.seed, config.network)
        self.keys = keys
        self.clock = clock or SystemClock()
        self.data = DataDir(config.data_dir)
        self._trading: asyncio.Future[Trading] = asyncio.Future()
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
        notices = Notices(database)
        book = OfferBook(database, network, capacity=config.limits.book_offers)
        trades = TradeStore(database)
        coins = None if config.has("bootstrap") else await self._coins(database, notices)
        files = AttachmentStore(database, self.keyring.node.seed)

        channels = self._channels(files if coins is not None else None)
        listening, dht = await listen(config, self.keyring.node, channels)
        self._parts.push_async_callback(dht.close)
        reach = self._reachability(channels, dht, listening)
        contacts = Contacts(database, network, partial(_lookup_contact, dht, network))
        own_contact = OwnContact(
            database, self.keyring.persona, network, clock, self.keyring.node.public, reach.addresses, reach.relays
        )

        own = OwnOffers(database, book, notices, self.keyring, network, clock)
        prices = choices.prices(config, clock, own)
        self._parts.push_async_callback(prices.close)
        arbitrates = config.has("arbiter")
        personas = (self.keyring.persona.public,)
        directory = ArbiterDirectory(database, dht, network, clock, own=personas, referenced=own.announcement_ids)
        self._parts.push_async_callback(directory.close)
        self._books = BookSync(channels, dht.storage, dht.unix)
        market = Markets(book, dht, network, clock, self._books.open)
        self._parts.push_async_callback(market.close)
        publisher = Publisher(
            dht,
            clock,
            random.SystemRandom(),
            own=own,
            contact=None if coins is None else own_contact,
            directory=directory,
            # Without the role, an announcement of earlier must not be kept alive.
            personas=personas if arbitrates else (),
            place=market.topic_for,
            extra=lambda now: () if standing is None else standing.records(now),
        )
        self._parts.push_async_callback(publisher.close)

        on_entry = [publisher.kick, reach.kick]
        offers: OfferService | None = None
        trading: Trading | None = None
        standing: Standing | None = None
        if coins is not None:
            backend, wallet = coins
            ground = Ground(
                config,
                self.keyring,
                clock,
                notices,
                trades,
                backend,
                wallet,
                files,
                channels,
                dht,
                contacts,
                own_contact,
                own,
                prices,
                directory,
            )
            trading = Trading(ground)
            standing = Standing(ground, trading, publisher)
            offers = OfferService(
                own,
                book,
                market,
                directory,
                publisher,
                trading.taking,
                trading.views,
                trades,
                own_contact,
                self.keyring.persona,
                network,
                clock,
                prices=prices,
                prices_ready=prices.ready,
                gate=standing.gate,
                shown_trades=standing.receipts.count_public,
            )
            on_entry.append(trading.mailbox.kick)
            await trading.start(self._parts)
            if config.backup.folder is not None:
                copies = AutoBackup(self.data, self.keys, config.backup.folder, clock)
                trading.engine.subscribe(lambda _state: copies.changed())
                self._parts.push_async_callback(copies.close)
                copies.start()
            await standing.start(self._parts)
            self._trading.set_result(trading)

        prices.start()
        publisher.start()
        reach.subscribe(publisher.kick)
        reach.start()
        local = self._discovery(listening[0].port) if config.node.mdns else None
        entry = Entry(dht, [Seed.parse(text) for text in config.node.seeds], on_entry, local=local)
        self._parts.push_async_callback(entry.close)
        entry.start()
        facts = NodeFacts(
            network=network,
            node=self.keyring.node.public,
            persona=None if coins is None else self.keyring.persona.public,
            roles=config.roles,
            listen=tuple(host_port(address.host, address.port) for address in listening),
            data_dir=config.data_dir,
            started=clock.now(),
        )
        account = f"{network.name.lower()} {facts.persona.hex()[:8] if facts.persona else ''}".strip()
        factor = SecondFactor(database, self.keyring.node.seed, clock, account)
        node = NodeService(
            facts,
            dht,
            clock,
            self.stop,
            chain=None if coins is None else coins[0],
            sessions=channels.sessions,
            trades=trades,
            own=own,
            reach=self._reach_view,
        )
        services = Services(
            node=node,
            peers=PeerService(dht, channels.sessions, clock),
            arbiters=ArbiterService(
                directory,
                publisher if arbitrates else None,
                self.keyring.persona if arbitrates else None,
                self.keyring.arbiter_base_point if arbitrates else None,
                None if standing is None else standing.current_bond,
            ),
            events=EventService(notices),
            idempotency=IdempotencyService(database, clock),
            guard=GuardService(factor),
            pages=Sessions(clock),
            offers=offers,
            trades=None if trading is None else trading.trade_service(),
            wallet=None if trading is None else trading.coin_service(),
            disputes=None if trading is None else trading.dispute_service(),
            cases=None if trading is None else trading.case_service(),
            personas=None if standing is None else standing.personas,
            receipts=None if standing is None else standing.receipt_service,
            bonds=None if standing is None else standing.bond_service,
        )
        self.services = services
        api = ApiServer(services, config.api, self.data)
        self._parts.push_async_callback(api.close)
        await api.start()
        self.metrics = metrics = Metrics(node.info, dht.stats, book, trades, self._relay, config=config.metrics)
        self._parts.push_async_callback(metrics.close)
        await metrics.start()
        expiring = () if standing is None else (standing.forget_expired,)
        self._every_minute(book.expire, own.expire, contacts.forget_expired, *expiring)

    async def _coins(self, database: Database, notices: Notices) -> tuple[FollowedChain, Wallet]:
        """The chain backend and the wallet, both started."""
        backend = make_backend(self.config, self.clock)
        backend.on_report = report_to(notices, self.clock)
        self._parts.push_async_callback(backend.close)
        await backend.start()
        wallet = make_wallet(self.config, self.keys, backend, database, self.clock)
        self._parts.push_async_callback(wallet.close)
        await wallet.start()
        return backend, wallet

    def _channels(self, files: AttachmentStore | None) -> Channels:
        """The channels, with all that they answer. `files` is None for a node that does not trade."""
        # Bound late: what answers is made of parts that need the channels themselves.
        services: dict[int, AnyService] = {
            RELAY_SERVICE: PipeService(self._relayed),
            BOOK_SERVICE: PipeService(self._synced),
        }
        if self.config.node.dht_transport != "udp":
            services[PACKET_SERVICE] = PipeService(self._packed)
        if files is not None:
            services[DELIVER_SERVICE] = Service(self._deliver, request_bytes=MAX_ENVELOPE, reply_bytes=0)
            attached = AttachmentService(files, self.keyring.owns, self.config.network)
            services[ATTACHMENT_SERVICE] = Service(
                attached.answer, request_bytes=Kind.FETCH.limit, reply_bytes=PART_BYTES
            )
        channels = Channels(
            self.keyring.node,
            self.config.network,
            services,
            limits=choices.channel_limits(self.config),
            clock=self.clock,
            dial=choices.dialer(self.config),
        )
        self._parts.push_async_callback(channels.close)
        return channels

    def _reachability(self, channels: Channels, dht: DhtNode, listening: Sequence[Address]) -> Reachability:
        config, network = self.config, self.config.network
        self._relay = relay = Relay(channels, choices.relay_limits(config))
        self._parts.callback(relay.close)
        mapper: PortMapper | None = None
        if choices.maps_port(config):
            mapper = PortMapper(listening[0].port, own_ipv4)
        reach = Reachability(
            dht, channels, relay, listening, choices.told(config), lambda: None if mapper is None else mapper.external
        )
        self._parts.push_async_callback(reach.close)
        self._reach_view = reach_of(reach, dht, mapper, listening[0].port, self.clock)
        if mapper is not None:
            self._parts.push_async_callback(mapper.close)
            reach.subscribe_moves(mapper.kick)
            mapper.start(reach.kick)
        helper = Helper(network, self.clock, choices.dialer(config), sources=choices.sources(config))
        self._door = RelayDoor(relay, helper, reach.registrar)
        if config.node.dht_transport != "udp":
            self._packets = Packets(
                channels,
                dht.receive,
                dht.unreachable,
                dht.verified,
                listening=reach.listening_port,
                check=helper.answers,
            )
            dht.attach(self._packets)
        return reach

    def _discovery(self, port: int) -> Discovery:
        # Its library takes a tenth of a second to load: only who wants it waits for it.
        from p2pnode.discovery import Discovery  # noqa: PLC0415

        own = self.config.node
        return Discovery(self.keyring.node.public, self.config.network, own.mdns, own.host, port)

    # --- what channels answer ---------------------------------------------------------------------------------------

    async def _synced(self, pipe: Pipe) -> None:
        await self._books.serve(pipe)

    async def _packed(self, pipe: Pipe) -> None:
        await self._packets.serve(pipe)

    async def _relayed(self, pipe: Pipe) -> None:
        await self._door.serve(pipe)

    async def _deliver(self, peer: bytes, raw: bytes) -> bytes:
        # The first peers may call before all is ready; a cancelled call must not cancel what all wait for.
        trading = await asyncio.shield(self._trading)
        return await trading.intake.deliver(peer, raw)

    # --- in the background --------------------------------------------------------------------------------------

    def _every_minute(self, *expiring: Callable[[int], object]) -> None:
        """Tell each, once a minute, what time it is."""

        async def loop() -> None:
            while True:
                for expire in expiring:
                    expire(self.clock.now())
                await asyncio.sleep(60)

        task = asyncio.create_task(loop(), name="housekeeping")

        async def end() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._parts.push_async_callback(end)


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


async def _lookup_contact(dht: DhtNode, network: Network, persona: bytes) -> list[Envelope]:
    return await dht.get(contact_topic(network, persona), paths=3)
