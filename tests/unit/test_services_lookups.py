"""Questions to the network: asked once, waited for only so long, answers kept for a while. And sequence numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dht.errors import NoPeers
from p2pnode.counters import next_number
from p2pnode.database import Database
from p2pnode.lookups import Lookups


class Network:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = 0
        self.free = asyncio.Event()
        self.good = True

    async def ask(self) -> bool:
        self.asked += 1
        await self.free.wait()
        self.answers += 1
        return self.good


async def test_nobody_waits_longer_than_told_and_the_late_answer_still_counts() -> None:
    lookups, network = Lookups(), Network()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(5):
        await lookups.ask("market", network.ask, fresh_seconds=60, wait_seconds=0.02)
    assert 0.02 <= loop.time() - began < 2
    assert (network.asked, network.answers) == (1, 0)
    network.free.set()
    await lookups.ask("market", network.ask, fresh_seconds=60, wait_seconds=5)
    assert (network.asked, network.answers) == (1, 1)
    await lookups.ask("market", network.ask, fresh_seconds=60, wait_seconds=5)
    assert network.asked == 1


async def test_those_who_ask_together_share_one_question() -> None:
    lookups, network = Lookups(), Network()
    asks = [asyncio.create_task(lookups.ask("m", network.ask, fresh_seconds=0, wait_seconds=5)) for _ in range(20)]
    other = asyncio.create_task(lookups.ask("other", network.ask, fresh_seconds=0, wait_seconds=5))
    await asyncio.sleep(0)
    asks[0].cancel()  # one who leaves takes the answer from nobody
    await asyncio.sleep(0)
    assert network.asked == 2
    network.free.set()
    await asyncio.gather(*asks[1:], other)
    assert network.answers == 2


async def test_no_answer_is_not_kept_to() -> None:
    lookups, network = Lookups(), Network()
    network.free.set()
    network.good = False
    for _ in range(2):
        await lookups.ask("m", network.ask, fresh_seconds=60, wait_seconds=5)
    assert network.asked == 2

    async def lonely() -> bool:
        network.asked += 1
        raise NoPeers

    for _ in range(2):
        await lookups.ask("n", lonely, fresh_seconds=60, wait_seconds=5)
    assert network.asked == 4


async def test_closing_gives_up_what_is_out() -> None:
    lookups, network = Lookups(), Network()
    await lookups.ask("m", network.ask, fresh_seconds=0, wait_seconds=0)
    async with asyncio.timeout(2):
        await lookups.close()
    assert network.answers == 0
    assert lookups._running == {}


def test_sequence_numbers_only_grow_whatever_the_clock_does(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    database = Database(path)
    assert [next_number(database, "a", now) for now in (1_000, 1_000, 990, 2_000)] == [1_000, 1_001, 1_002, 2_000]
    assert next_number(database, "b", 5) == 5
    database.close()
    database = Database(path)
    assert next_number(database, "a", 0) == 2_001
    database.close()
