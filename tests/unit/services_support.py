"""Nodes for the tests of what stands behind the API: real databases, real DHT nodes on loopback, the real engine.

Only the wallet and the chain are twins. Time stands until a test moves it, and is the same for the DHT.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed
from dht.stream import TcpFrames
from escrow.address import address_of
from escrow.coins import OutPoint
from escrow.script import escrow_script
from escrow.seed import Seed as Mnemonic
from escrow.seed import mnemonic_from_entropy
from p2pnode.arbiters import ArbiterDirectory, ArbiterTerms, Listed
from p2pnode.blocktime import BlockTimes
from p2pnode.channels import SessionView
from p2pnode.contribution import Contributor
from p2pnode.database import Database
from p2pnode.engine import Engine
from p2pnode.keyring import Keyring
from p2pnode.notices import Notices
from p2pnode.offerbook import OfferBook
from p2pnode.ownoffers import OwnOffers
from p2pnode.policy import TradePolicy
from p2pnode.prices import Prices
from p2pnode.publisher import OwnContact, Publisher
from p2pnode.records import record_kinds
from p2pnode.services.market import Markets
from p2pnode.services.offers import OfferService
from p2pnode.services.trades import TradeService
from p2pnode.services.views import TradeViews
from p2pnode.taking import Taking
from p2pnode.tradestore import TradeStore
from protocol.announcement import FeeTerms
from protocol.contact import Address
from protocol.contract import Contract
from protocol.messages import Details
from protocol.offer import (
    OFFER_WORK_BITS,
    SALT_BYTES,
    ArbiterRef,
    FixedPrice,
    Offer,
    Price,
    Requirements,
    make_offer_id,
)
from protocol.types import EscrowType, Network, Side
from protocol.wire import Envelope, Kind, pack, unpack
from protocol.work import NO_WORK, find_work
from tests.twins import TwinBackend, TwinChain, TwinWallet

NETWORK = Network.REGTEST
T0 = 1_800_000_000
DETAILS: dict[str, Details] = {"sepa": (("iban", "DE02120300000000202051"), ("holder", "M. Aker"))}
ARBITER_TERMS = ArbiterTerms(
    fee=FeeTerms(5_000, 1_000, 100_000),
    currencies=(),
    methods=(),
    languages=("en",),
    max_amount=100_000_000,
    response_blocks=144,
    policy="be fair",
    lifetime=90 * 86_400,
)


class TestClock:
    """A clock for nodes and for their DHT: it stands until it is moved, its chance is repeatable."""

    __test__ = False

    def __init__(self, name: str = "") -> None:
        self.time = T0
        self._name = name
        self._drawn = 0

    def now(self) -> int:
        return self.time

    def unix(self) -> float:
        return float(self.time)

    def monotonic(self) -> float:
        return time.monotonic()

    def random(self, size: int) -> bytes:
        self._drawn += 1
        return sha256(f"{self._name}{self._drawn}".encode()).digest()[:size]


def keyring_of(name: str) -> Keyring:
    """Keys made of a name."""
    return Keyring(Mnemonic.from_mnemonic(mnemonic_from_entropy(sha256(name.encode()).digest())), NETWORK)


def offer_ids(maker: bytes, count: int) -> Iterator[bytes]:
    """Ids that this maker may give its offers."""
    return (make_offer_id(maker, sha256(b"offer" + n.to_bytes(4, "big")).digest()[:SALT_BYTES]) for n in range(count))


def offer_id_of(maker: bytes, start: bytes = b"") -> bytes:
    """The first of them that begins with `start`."""
    return next(made for made in offer_ids(maker, 1_000_000) if made.startswith(start))


def offer_of(maker: bytes, **changes: object) -> Offer:
    """An offer's body, not yet signed."""
    price: Price = FixedPrice(6_500_000)
    fields: dict[str, object] = {
        "maker": maker,
        "offer_id": offer_id_of(maker),
        "sequence": 0,
        "side": Side.SELL,
        "amount_min": 100_000,
        "amount_max": 1_000_000,
        "currency": "EUR",
        "price": price,
        "methods": ("sepa",),
        "payment_window": 144,
        "buyer_deposit": 150_000,
        "seller_deposit": 150_000,
        "arbiters": (ArbiterRef(b"a" * 32, b"A" * 32), ArbiterRef(b"b" * 32, b"B" * 32)),
        "escrow_types": (EscrowType.WSH_2OF3_BACKUP,),
        "backup_delay": 1008,
        "confirmations": 1,
        "terms": "",
        "requirements": Requirements(),
        "contacts": (),
        "created": T0,
        "expires": T0 + 7 * 86_400,
        "work": NO_WORK,
    }
    return Offer(**(fields | changes))  # type: ignore[arg-type]


def signed(offer: Offer, keyring: Keyring, *, work: int = OFFER_WORK_BITS) -> tuple[Envelope, Offer]:
    """The offer with its work, and its envelope."""
    body = find_work(Kind.OFFER, NETWORK, pack(offer), work)
    envelope = keyring.persona.seal(Kind.OFFER, NETWORK, body)
    return envelope, unpack(body, Offer, limit=Kind.OFFER.limit)


def describe_escrow(contract: Contract, network: Network) -> tuple[bytes, str]:
    """As the composition root does it."""
    script = escrow_script(contract, network)
    return script.witness_script, address_of(script.script_pubkey, network)


def dht_node(keyring: Keyring, clock: TestClock, seed: int) -> DhtNode:
    """A node of the DHT that is not started."""
    return DhtNode(
        DhtConfig("127.0.0.1", 0, engine=EngineConfig(local_addresses=True)),
        keyring.node,
        NETWORK,
        record_kinds(NETWORK),
        clock=clock,
        rng=random.Random(seed),
    )


class Party:
    """All of a node that the services need."""

    def __init__(
        self, name: str, folder: Path, clock: TestClock, chain: TwinChain, *, prices: Prices | None = None
    ) -> None:
        self.name = name
        self.clock = clock
        self.keyring = keyring_of(name)
        self.persona = self.keyring.persona.public
        self.address = [Address("127.0.0.1", 9_999)]
        self.database = Database(folder / f"{name}.db")
        self.notices = Notices(self.database)
        self.book = OfferBook(self.database, NETWORK)
        self.trades = TradeStore(self.database)
        self.own = OwnOffers(self.database, self.book, self.notices, self.keyring, NETWORK, clock)
        self.dht = dht_node(self.keyring, clock, sum(name.encode()))
        self.directory = ArbiterDirectory(
            self.database, self.dht, NETWORK, clock, own=(self.persona,), referenced=self.own.announcement_ids
        )
        self.contact = OwnContact(
            self.database, self.keyring.persona, NETWORK, clock, self.keyring.node.public, lambda: self.address
        )
        # Few offers: no stream is opened.
        self.market = Markets(self.book, self.dht, NETWORK, clock, TcpFrames.open, fresh_seconds=0.0)
        self.publisher = Publisher(
            self.dht,
            clock,
            random.Random(1),
            own=self.own,
            contact=self.contact,
            directory=self.directory,
            personas=(self.persona,),
            place=self.market.topic_for,
        )
        self.views = TradeViews(self.trades, NETWORK, describe_escrow, BlockTimes(lambda: chain.height, clock))
        self.backend = TwinBackend(chain)
        self.held: dict[OutPoint, bytes] = {}
        self.wallet = TwinWallet(chain, name, self.held, {})
        self.engine = Engine(
            self.trades,
            self.notices,
            self.keyring,
            clock,
            lambda: chain.height,
            network=NETWORK,
            contact=self.contact.envelope,
        )
        self.engine.subscribe(self.own.follow)
        contributor = Contributor(self.keyring, self.wallet, clock)  # type: ignore[arg-type]
        self.taking = Taking(
            self.engine,
            self.keyring,
            contributor,
            self.wallet,  # type: ignore[arg-type]
            self.backend,
            TradePolicy(),
            NETWORK,
            clock,
            contact=self.contact.envelope,
        )
        self.offers = OfferService(
            self.own,
            self.book,
            self.market,
            self.directory,
            self.publisher,
            self.taking,
            self.views,
            self.trades,
            self.contact,
            self.keyring.persona,
            NETWORK,
            clock,
            prices=prices,
            currencies=("EUR",),
        )
        self.trade_service = TradeService(self.engine, self.views, partial(self.backend.fee_rate, 6))
        self.sessions: tuple[SessionView, ...] = ()

    def fund(self, *values: int) -> None:
        """Coins of our own."""
        for value in values:
            self.wallet.chain.coin(self.wallet.script(), value)

    async def start(self, *seeds: Party) -> None:
        """Listen, enter the network, publish."""
        await self.dht.start()
        self.publisher.start()
        if seeds:
            await self.dht.bootstrap([Seed(*seed.dht.local) for seed in seeds])
        self.publisher.kick()

    async def close(self) -> None:
        """Stop in order."""
        await self.publisher.close()
        await self.market.close()
        await self.directory.close()
        await self.dht.close()
        await self.backend.close()
        self.database.close()

    async def announce(self, **changes: object) -> Listed:
        """Serve as an arbiter."""
        terms = ArbiterTerms(**({f: getattr(ARBITER_TERMS, f) for f in ARBITER_TERMS.__struct_fields__} | changes))
        listed = await self.directory.announce(self.keyring.persona, self.keyring.arbiter_base_point, terms)
        await self.publisher.placed(listed.envelope, 5)
        return listed


def advance(nodes: Sequence[Party], seconds: int) -> None:
    """Move the one clock that these share; their DHT nodes would look at it only within a second."""
    nodes[0].clock.time += seconds
    for party in nodes:
        party.dht.engine.offset = party.clock.unix() - party.clock.monotonic()


@asynccontextmanager
async def parties(folder: Path, *names: str) -> AsyncIterator[list[Party]]:
    """Nodes that know each other, on one clock and one chain."""
    clock, chain = TestClock(), TwinChain()
    made = [Party(name, folder, clock, chain) for name in names]
    try:
        for n, party in enumerate(made):
            await party.start(*made[:n])
        for party in made[:1]:
            party.publisher.kick()
        yield made
    finally:
        for party in made:
            await party.close()
