"""Our own DHT with everything on: packet authentication, record signatures, quotas, address limits.

Node i listens on 127.x.y.1, so that every node is in an address group of its own, as on a real network.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

ROOT = str(Path(__file__).resolve().parents[4])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from common import Adapter  # noqa: E402  (the harness puts its own folder on the path)

from dht import DhtConfig, DhtNode, EngineConfig, RecordKind, RecordMeta, Seed, mine_node_key  # noqa: E402
from dht.topics import topic  # noqa: E402
from protocol.identity import SigningKey  # noqa: E402
from protocol.types import Network  # noqa: E402
from protocol.wire import Envelope  # noqa: E402

KIND = 60_002


class Clock:
    """The system's clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds since 1970."""
        return time.time()


def topic_of(number: int) -> bytes:
    """The topic of the harness's key `number`."""
    return topic(b"bench", Network.REGTEST, number.to_bytes(8, "big"))


def validate(envelope: Envelope, now: int) -> RecordMeta:
    """The body is the number of its key (8 bytes) and the value."""
    where = topic_of(int.from_bytes(envelope.body[:8], "big"))
    return RecordMeta(publisher=envelope.signer, sub_key=b"", sequence=1, expires=now + 3_600, topics=(where,))


class Ours(Adapter):  # type: ignore[misc]  # the harness is untyped
    """A network of our nodes in one process."""

    name = "p2pnode"
    version = "0.1"
    get_is_verified = True
    settings: ClassVar[dict[str, Any]] = {
        "k": EngineConfig().k,
        "alpha": EngineConfig().alpha,
        "signed": True,
        "packets": "authenticated and encrypted",
        "quotas": True,
    }

    def __init__(self) -> None:
        self.nodes: list[DhtNode] = []
        self.keys: list[SigningKey] = []

    async def start(self, n: int) -> None:
        """Create and bootstrap n nodes."""
        rng = random.Random(1)
        for i in range(n):
            _, key = mine_node_key(lambda _: rng.randbytes(32), 4)
            config = DhtConfig(
                host=f"127.{1 + i // 250}.{i % 250 + 1}.1",
                port=20_000,
                engine=EngineConfig(local_addresses=True, count_local=True),
            )
            node = DhtNode(
                config, key, Network.REGTEST, (RecordKind(KIND, validate),), clock=Clock(), rng=random.SystemRandom()
            )
            await node.start()
            if i:
                await node.bootstrap([Seed(*self.nodes[0].local)])
            self.nodes.append(node)
            self.keys.append(SigningKey(rng.randbytes(32)))

    async def put(self, node: int, key: int, value: bytes) -> bool:
        """Sign and store a value."""
        record = self.keys[node].seal(KIND, Network.REGTEST, key.to_bytes(8, "big") + value)
        return (await self.nodes[node].put(topic_of(key), record)).acks >= 5

    async def get(self, node: int, key: int) -> bytes | None:
        """Read a value from the network; its signature is checked."""
        found = await self.nodes[node].get(topic_of(key))
        return found[0].body[8:] if found else None

    async def get_missing(self, node: int, key: int) -> bool:
        """Look for what nobody stored."""
        await self.get(node, key)
        return True

    async def kill(self, nodes: list[int]) -> None:
        """Vanish without leaving."""
        for i in nodes:
            await self.nodes[i].close()

    async def stop(self) -> None:
        """End all."""
        for node in self.nodes:
            await node.close()

    def routing_sizes(self) -> list[int]:
        """Nodes per routing table."""
        return [len(n.peers()) for n in self.nodes]

    def holders(self, key: int) -> int:
        """How many nodes hold a key."""
        return sum(1 for n in self.nodes if n.storage.total(topic_of(key)))

    def extra(self) -> dict[str, Any]:
        """Counters of all nodes together."""
        stats = [n.stats() for n in self.nodes]
        return {name: sum(getattr(s, name) for s in stats) for name in ("retries", "failures", "refused", "bad")}


ADAPTER = Ours
