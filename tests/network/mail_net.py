"""Mail between traders: a DHT of real nodes on loopback that keeps it, and trading nodes that come and go."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dht.disk import open_storage
from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed, mine_node_key
from p2pnode.contacts import Contacts
from p2pnode.database import Database
from p2pnode.delivery import Delivery, Refusal
from p2pnode.mailbox import Incoming, Mailbox, Outgoing, Pace
from p2pnode.mailstore import Posted
from p2pnode.records import record_kinds
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol.identity import SigningKey
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, open_envelope, pack, unpack
from tests.network.dht_net import address_of
from tests.twins import TwinPost
from tests.world import NOW, FixedClock, TwinNode, World

NETWORK = Network.REGTEST
QUICK = Pace(reading=0.3, answers=0.3, gap=0.02, retry=0.1)
PATIENCE = 30.0


class WorldClock:
    """The clocks of a DHT in which it is NOW when the test begins."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic()

    def unix(self) -> float:
        return NOW + time.monotonic() - self._began


class MailNet:
    """DHT nodes that are always up, and the means to make more."""

    def __init__(self, seed: int, slots: int | None = None) -> None:
        """`slots`: how many a mailbox has, instead of the real number."""
        print(f"seed {seed}")
        kinds = record_kinds(NETWORK)
        if slots is not None:
            mailbox = (Kind.MAIL_SLIP, Kind.MAIL_ANSWER)
            kinds = tuple(replace(k, max_per_topic=slots) if k.kind in mailbox else k for k in kinds)
        self.kinds = kinds
        self.rng = random.Random(seed)
        self.clock = WorldClock()
        self.nodes: list[DhtNode] = []
        self._guests: list[DhtNode] = []
        self._made = 0

    def make(self, host: str | None = None, storage: Path | None = None, **engine: Any) -> DhtNode:  # noqa: ANN401
        """A node that is not started."""
        _, key = mine_node_key(lambda _: self.rng.randbytes(32), 4)
        self._made += 1
        config = DhtConfig(
            host=host or address_of(self._made), port=0, engine=EngineConfig(local_addresses=True, **engine)
        )
        return DhtNode(
            config,
            key,
            NETWORK,
            self.kinds,
            None if storage is None else open_storage(storage, self.rng),
            clock=self.clock,
            rng=random.Random(self.rng.random()),
        )

    async def grow(self, count: int) -> None:
        """Add nodes that stay."""
        for _ in range(count):
            node = self.make()
            await self.enter(node)
            self.nodes.append(node)

    async def enter(self, node: DhtNode) -> None:
        """Start a node and let it meet the others."""
        await node.start()
        if self.nodes:
            assert await node.bootstrap([self.seed])

    @property
    def seed(self) -> Seed:
        """Where to enter."""
        return Seed(*self.nodes[0].local)

    async def guest(self, host: str | None = None) -> DhtNode:
        """One more node that is up until the end, a client: it keeps nothing."""
        node = self.make(host, client=True)
        await self.enter(node)
        self._guests.append(node)
        return node

    async def close(self) -> None:
        """Stop all nodes that are up."""
        for node in (*self._guests, *self.nodes):
            await node.close()


class MailNode(TwinNode):
    """A trading node with a mailbox over a DHT node of its own."""

    net: MailNet
    mail = True
    away_after = 0.0
    """Seconds of vain attempts after which a peer counts as away."""
    read: int

    async def up(self, *, dies_at: int | None = None, loses_it: bool = False) -> None:
        """Start; the mail begins to be read and sent at once."""
        await super().up(dies_at=dies_at, loses_it=loses_it)
        self.delivery._stuck_after = self.away_after
        self.read = 0
        self.dht = self.net.make(client=True)
        await self.net.enter(self.dht)
        self.mailbox = Mailbox(
            self.engine.trades,
            self.delivery,
            self._read,
            self.dht,
            (self.keyring.persona,),
            self.clock,
            self.net.rng,
            QUICK,
        )
        if self.mail:
            self.mailbox.start()

    async def down(self) -> None:
        """Stop, the mail first."""
        await self.mailbox.close()
        await super().down()
        await self.dht.close()

    async def _read(self, author: bytes, raw: bytes) -> bytes:
        answer = await self.intake.deliver(author, raw)
        self.read += 1
        return answer

    @property
    def waiting(self) -> list[OutgoingMessage]:
        """What is in the outbox."""
        trades = self.engine.trades
        return [m for recipient in trades.recipients() for m in trades.outbox(recipient)]

    @property
    def posted(self) -> bool:
        """Whether all of it waits in a mailbox too, and there is some."""
        placed = self.mailbox.outgoing._placed
        return bool(self.waiting) and all(m.id in placed for m in self.waiting)


class MailWorld(World):
    """A maker and a taker with mailboxes."""

    maker: MailNode
    taker: MailNode

    def __init__(self, folder: Path, maker_side: Side, net: MailNet, **options: Any) -> None:  # noqa: ANN401
        super().__init__(folder, maker_side, **options)
        for name in ("maker", "taker"):
            node = MailNode(name, folder, self.chain, self.post)
            node.net = net
            setattr(self, name, node)
        self.both = (self.maker, self.taker)


class Post:
    """One who has messages for personas that are away: an outbox, a delivery that gets nowhere, and copies."""

    def __init__(self, name: str, dht: DhtNode) -> None:
        self.dht = dht
        self.clock = FixedClock(name)
        self.persona = SigningKey(sha256(name.encode()).digest())
        self.database = Database(":memory:")
        self.trades = TradeStore(self.database)
        self.refusals: list[Refusal] = []
        self.delivered: list[bytes] = []
        contacts = Contacts(self.database, NETWORK, _nothing)
        self.delivery = Delivery(
            self.trades,
            contacts,
            TwinPost().from_node(dht.key.public),
            self.clock,
            on_refusal=self.refusals.append,
            on_delivered=lambda message: self.delivered.append(message.id),
            stuck_after=0.0,
        )
        self.outgoing = Outgoing(self.trades, self.delivery, dht, self.clock)

    async def write(self, recipient: bytes, text: bytes, number: int = 0) -> OutgoingMessage:
        """A message for somebody who is away."""
        envelope = self.persona.seal(Kind.CHAT, NETWORK, pack(text))
        message = OutgoingMessage(envelope.id, number, bytes(32), recipient, envelope.raw)
        self.trades.queue_message(message, self.clock.now())
        self.delivery.kick(recipient)
        await until(lambda: self.delivery.is_stuck(recipient), "the recipient counts as away")
        return message

    async def sent(self, recipient: bytes, text: bytes) -> Posted:
        """Write, place the copy and return it."""
        message = await self.write(recipient, text)
        assert await self.outgoing.round()
        return self.copy_of(message)

    def copy_of(self, message: OutgoingMessage) -> Posted:
        return next(p for p in self.outgoing._store.all() if p.message == message.id)

    async def close(self) -> None:
        await self.delivery.close()
        self.database.close()


async def _nothing(_persona: bytes) -> list[Envelope]:
    return []


class Desk:
    """One who reads his mailbox; what comes is kept, or treated as `verdict` says."""

    def __init__(self, name: str, dht: DhtNode) -> None:
        self.persona = SigningKey(sha256(name.encode()).digest())
        self.came: list[bytes] = []
        self.verdict: Callable[[bytes], None] = lambda _text: None
        self.clock = FixedClock(name)
        self.incoming = Incoming(self._deliver, dht, (self.persona,), self.clock)

    async def _deliver(self, _author: bytes, raw: bytes) -> bytes:
        text = unpack(open_envelope(raw, NETWORK).body, bytes, limit=100_000)
        self.verdict(text)
        self.came.append(text)
        return b""

    async def read(self) -> bool:
        """One round."""
        return await self.incoming.round()


@asynccontextmanager
async def mail_net(seed: int, nodes: int = 8, slots: int | None = None) -> AsyncIterator[MailNet]:
    """A network that keeps mail."""
    net = MailNet(seed, slots)
    await net.grow(nodes)
    try:
        yield net
    finally:
        await net.close()


async def until(done: Callable[[], bool], what: str) -> None:
    """Let everything run until `done`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not done():
        if loop.time() > deadline:
            raise AssertionError(f"never came to: {what}")
        await asyncio.sleep(0.01)
