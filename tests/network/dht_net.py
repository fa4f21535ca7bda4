"""A DHT of real nodes on loopback, for tests: each on its own 127.x.y.1, so that address limits mean something."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dht.engine import EngineConfig
from dht.node import DhtConfig, DhtNode, Seed, mine_node_key
from dht.records import RecordKind, RecordMeta
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope, pack, unpack

NOTE = 60_002
WITHDRAWAL = 60_004


class Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record for tests; with `gone` it is the tombstone of its sub-key."""

    topic: bytes
    sub_key: bytes
    sequence: int
    expires: int
    gone: bool
    text: bytes


def read_note(envelope: Envelope, now: int) -> RecordMeta:
    """The validator of notes."""
    del now
    note = unpack(envelope.body, Note, limit=8_192)
    return RecordMeta(
        publisher=envelope.signer,
        sub_key=note.sub_key,
        sequence=note.sequence,
        expires=note.expires,
        topics=(note.topic,),
        tombstone=note.gone,
    )


NOTES = RecordKind(NOTE, read_note, max_bytes=8_192)


class WallClock:
    """The system's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix(self) -> float:
        return time.time()


def note(
    who: SigningKey,
    topic: bytes,
    text: bytes = b"hello",
    *,
    sub_key: bytes = b"",
    sequence: int = 1,
    lifetime: int = 3_600,
    gone: bool = False,
) -> Envelope:
    """A signed note."""
    body = pack(Note(topic, sub_key, sequence, int(time.time()) + lifetime, gone, text))
    return who.seal(NOTE, Network.REGTEST, body)


def address_of(index: int) -> str:
    """127.x.y.1: every node in a /24 of its own."""
    return f"127.{1 + index // 250}.{index % 250 + 1}.1"


@dataclass
class Net:
    """Nodes that know each other."""

    seed: int
    nodes: list[DhtNode] = field(default_factory=list)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        print(f"seed {self.seed}")
        self.rng = random.Random(self.seed)

    def make(self, host: str | None = None, *, local: bool = True, **engine: Any) -> DhtNode:  # noqa: ANN401
        """A node that is not started."""
        _, key = mine_node_key(lambda _: self.rng.randbytes(32), 4)
        config = DhtConfig(
            host=host or address_of(len(self.nodes)),
            port=0,
            engine=EngineConfig(local_addresses=local, **engine),
        )
        node = DhtNode(config, key, Network.REGTEST, (NOTES,), clock=WallClock(), rng=random.Random(self.rng.random()))
        self.nodes.append(node)
        return node

    async def grow(self, count: int, **engine: Any) -> None:  # noqa: ANN401
        """Add nodes that enter by the first."""
        for _ in range(count):
            node = self.make(**engine)
            await node.start()
            if len(self.nodes) > 1:
                await node.bootstrap([self.seed_of(0)])

    def seed_of(self, index: int) -> Seed:
        """Where node `index` listens, without its key."""
        return Seed(*self.nodes[index].local)

    async def close(self) -> None:
        """Stop all."""
        for node in self.nodes:
            await node.close()
