"""Mail between traders: a DHT of real nodes on loopback that keeps it, and trading nodes that come and go."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dht.disk import open_storage
from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed, mine_node_key
from p2pnode.mailbox import Mailbox, Pace
from p2pnode.records import record_kinds
from p2pnode.tradestore import OutgoingMessage
from protocol.types import Network, Side
from tests.network.dht_net import address_of
from tests.world import NOW, TwinNode, World

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

    def __init__(self, seed: int) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.clock = WorldClock()
        self.nodes: list[DhtNode] = []
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
            record_kinds(NETWORK),
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

    async def close(self) -> None:
        """Stop the nodes that stay."""
        for node in self.nodes:
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


async def until(done: Callable[[], bool], what: str) -> None:
    """Let everything run until `done`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not done():
        if loop.time() > deadline:
            raise AssertionError(f"never came to: {what}")
        await asyncio.sleep(0.01)
