"""Our own DHT with everything on: packet authentication, record signatures, quotas, address limits.

Node i listens on 127.x.y.1, so that every node is in an address group of its own, as on a real network.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from common import Adapter  # noqa: E402

from dht import DhtConfig, DhtNode, EngineConfig, RecordKind, RecordMeta, Seed, mine_node_key  # noqa: E402
from dht.topics import topic  # noqa: E402
from protocol.identity import SigningKey  # noqa: E402
from protocol.types import Network  # noqa: E402
from protocol.wire import pack  # noqa: E402

KIND = 60_002


class Clock:
    """The system's clocks."""

    monotonic = staticmethod(time.monotonic)
    unix = staticmethod(time.time)


def validate(envelope, now):
    """The body is the value; the topic is derived from its first 8 bytes, the number of the key."""
    return RecordMeta(
        publisher=envelope.signer,
        sub_key=b"",
        sequence=1,
        expires=now + 3600,
        topics=(topic_of(int.from_bytes(envelope.body[:8], "big")),),
    )


def topic_of(key):
    return topic(b"bench", Network.REGTEST, key.to_bytes(8, "big"))


class Ours(Adapter):
    name = "p2pnode"
    version = "0.1"
    get_is_verified = True
    settings = {"k": EngineConfig().k, "alpha": EngineConfig().alpha, "signed": True, "packets": "authenticated and encrypted"}

    def __init__(self):
        self.nodes = []
        self.keys = []

    async def start(self, n):
        rng = random.Random(1)
        for i in range(n):
            _, key = mine_node_key(lambda _: rng.randbytes(32), 4)
            config = DhtConfig(
                host=f"127.{1 + i // 250}.{i % 250 + 1}.1",
                port=20_000,
                engine=EngineConfig(local_addresses=True, count_local=True),
            )
            node = DhtNode(config, key, Network.REGTEST, (RecordKind(KIND, validate),), clock=Clock(), rng=random.SystemRandom())
            await node.start()
            if i:
                await node.bootstrap([Seed(*self.nodes[0].local)])
            self.nodes.append(node)
            self.keys.append(SigningKey(rng.randbytes(32)))

    async def put(self, node, key, value):
        record = self.keys[node].seal(KIND, Network.REGTEST, pack_value(key, value))
        return (await self.nodes[node].put(topic_of(key), record)).acks >= 5

    async def get(self, node, key):
        found = await self.nodes[node].get(topic_of(key))
        return found[0].body[8:] if found else None

    async def get_missing(self, node, key):
        await self.get(node, key)
        return True

    async def kill(self, nodes):
        for i in nodes:
            await self.nodes[i].close()

    async def stop(self):
        for node in self.nodes:
            await node.close()

    def routing_sizes(self):
        return [len(n.peers()) for n in self.nodes]

    def holders(self, key):
        return sum(1 for n in self.nodes if n.storage.total(topic_of(key)))

    def extra(self):
        return {
            "retries": sum(n.stats().retries for n in self.nodes),
            "failures": sum(n.stats().failures for n in self.nodes),
            "refused": sum(n.stats().refused for n in self.nodes),
        }


def pack_value(key, value):
    return key.to_bytes(8, "big") + value


ADAPTER = Ours
