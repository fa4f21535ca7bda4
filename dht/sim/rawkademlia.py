"""The same eclipse against kademlia 2.2.3 as published: real sockets on 127.0.0.1, for it can't run in virtual time."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Any

from kademlia.network import Server
from kademlia.storage import ForgetfulStorage
from kademlia.utils import digest

from dht.sim.lab import Row

EVIL = b"the attacker's"


class _Evil(ForgetfulStorage):  # type: ignore[misc]  # kademlia ships no types
    """Answers every question with the attacker's value."""

    def get(self, key: bytes, default: object = None) -> object:
        """The attacker's value, whatever was stored."""
        del key, default
        return EVIL


async def _eclipse(nodes: int, ids: int, reads: int, seed: int) -> tuple[int, int]:
    rng = Random(seed)
    key = f"offer/{rng.getrandbits(32)}"
    number = int.from_bytes(digest(key), "big")
    honest: list[Any] = [Server(node_id=rng.randbytes(20)) for _ in range(nodes)]
    evil = [Server(node_id=(number ^ (i + 1)).to_bytes(20, "big"), storage=_Evil()) for i in range(ids)]
    try:
        first: list[tuple[str, int]] = []
        for server in (*honest, *evil):
            await server.listen(0, interface="127.0.0.1")
            if first:
                await server.bootstrap(first)
            else:
                first.append(server.transport.get_extra_info("sockname"))
        await honest[0].set(key, b"the publisher's")
        readers = [s for s in honest if s.storage.get(digest(key)) is None] or honest
        found = [await rng.choice(readers).get(key) for _ in range(reads)]
    finally:
        for server in (*honest, *evil):
            server.stop()
        await asyncio.sleep(0)
    return sum(value == b"the publisher's" for value in found), len(found)


def eclipse(*, nodes: int = 100, ids: int = 20, reads: int = 40, seed: int = 1) -> Row:
    """`ids` chosen node ids closer to a key than any honest node; its record was put before anybody read."""
    began = time.process_time()
    good, done = asyncio.run(_eclipse(nodes, ids, reads, seed))
    return Row(
        experiment=f"kademlia 2.2.3: {ids} free ids around a key",
        nodes=nodes,
        reads=done,
        success=good / done,
        rtts_p50=0.0,
        rtts_p95=0.0,
        messages_per_node_hour=0.0,
        cpu_s=round(time.process_time() - began, 1),
    )
