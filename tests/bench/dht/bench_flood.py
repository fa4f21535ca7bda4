"""What a flood costs the others, and how soon a taken offer is gone from a hundred followers.

    python -m tests.bench.dht.bench_flood [--quick]

The flood: datagrams go through a real socket into a real node, and what is timed is the node alone, from the socket's
buffer to the answer in the socket: batches of honest requests from many addresses, and the same batches with as many
datagrams of garbage from one address among them. How long the honest ones then take is what the flood costs.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import sys
import time

from dht import messages, packet
from dht.contact import Address, Contact, intern_contact
from dht.engine import Engine, EngineConfig
from dht.market import Market
from dht.messages import Op
from dht.node import mine_node_key
from dht.records import Record, Registry
from dht.rpc import Rpc
from dht.storage import Storage
from dht.stream import TcpFrames
from dht.udp import BATCH, UdpTransport
from protocol.identity import SigningKey
from protocol.types import Network
from tests.bench.report import Report
from tests.network.test_dht_market import KEY, MarketNet, bid

QUICK = "--quick" in sys.argv
CLIENTS = 32
ROUNDS = 100 if QUICK else 600
FOLLOWERS = 30 if QUICK else 100
HOLDERS = 30
HONEST_PER_S = 4_000.0
"""What the others ask in all: each of them stays below its own limit."""


class _Client:
    """An honest node at an address of its own, whose requests are made beforehand."""

    def __init__(self, index: int, rng: random.Random, server: SigningKey, count: int) -> None:
        _, key = mine_node_key(lambda _: rng.randbytes(32), 4)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((f"127.70.{index + 1}.1", 0))
        to, _ = packet.direction_keys(
            key.x25519_secret, key.public, server.public, server.x25519_public, Network.REGTEST
        )
        self.requests = [
            packet.seal_request(to, key.public, rng.randbytes(12), self._plaintext(rng)) for _ in range(count)
        ]

    def _plaintext(self, rng: random.Random) -> bytes:
        body = messages.find_node_body(rng.randbytes(20), 8)
        return messages.request(Op.FIND_NODE, messages.CLIENT, messages.NO_TOKEN, body).ljust(339, b"\0")


class _Server:
    """A node with a full table behind a UDP socket."""

    def __init__(self, rng: random.Random) -> None:
        _, self.key = mine_node_key(lambda _: rng.randbytes(32), 4)
        self.now = 1_000.0
        self.transport = UdpTransport("127.50.1.1", 0, self._receive)
        rpc = Rpc(self.key, Network.REGTEST, send=self.transport.send, rng=rng)
        config = EngineConfig(local_addresses=True, count_local=True)
        self.engine = Engine(config, rpc, Registry(Network.REGTEST), Storage(secret=rng.randbytes(16)), rng)
        for _ in range(200):
            host = f"127.{rng.randrange(1, 250)}.{rng.randrange(250)}.1"
            self.engine.table.add_contact(intern_contact(Contact(rng.randbytes(32), host, 4_000)))

    def _receive(self, datagram: bytes, address: Address) -> None:
        self.engine.receive(datagram, address, self.now)

    def work(self) -> float:
        """Seconds that it takes to handle all that waits in the socket."""
        began = time.perf_counter()
        self.transport._readable(self.transport._sockets[0].recvfrom)
        return time.perf_counter() - began


async def throughput(report: Report) -> None:
    """Requests per second of others, without and with garbage among them."""
    rng = random.Random(5)
    print("seed 5")
    server = _Server(rng)
    clients = [_Client(i, rng, server.key, 2 * ROUNDS + 2) for i in range(CLIENTS)]
    flooder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flooder.bind(("127.66.1.1", 0))
    junk = [bytes([head]) + rng.randbytes(size) for head in (0xD1, 0xD2, 0xD3, 0xD4) for size in (60, 400, 1_199)]

    def batch(number: int, garbage: int) -> float:
        server.now += CLIENTS / HONEST_PER_S
        for i, client in enumerate(clients):
            client.socket.sendto(client.requests[number], server.transport.local)
            for at in range(i * garbage, (i + 1) * garbage):
                flooder.sendto(junk[at % len(junk)], server.transport.local)
        return sum(server.work() for _ in range(1 + CLIENTS * (1 + garbage) // BATCH))

    served = server.engine.rpc.totals
    for number in range(2):
        batch(number, 0)  # keys are agreed on
    quiet, loud = [], []
    for number in range(2, 2 * ROUNDS + 2, 2):
        quiet.append(batch(number, 0))
        loud.append(batch(number + 1, 1))
    alone, flooded = CLIENTS / statistics.median(quiet), CLIENTS / statistics.median(loud)
    print(f"{alone:,.0f} requests/s of others alone, {flooded:,.0f} with as much garbage; {served.refused} refused")
    report.numbers["flood"] = {"alone_per_s": alone, "flooded_per_s": flooded, "served": served.served}
    report.at_least("flood of garbage: honest requests answered", served.served / (CLIENTS * (2 * ROUNDS + 2)), 1.0)
    report.at_most("flood of garbage: throughput lost to others", max(0.0, 1 - flooded / alone), 0.2)
    for one in (flooder, *(client.socket for client in clients)):
        one.close()
    server.transport.close()


async def followers(report: Report) -> None:
    """From the put of a revocation to the moment when the last follower has it."""
    net = MarketNet(3)
    await net.grow(HOLDERS)
    publisher = Market(net.nodes[1], KEY, lambda _: None, open_stream=TcpFrames.open)
    books: list[dict[bytes, Record]] = []
    markets = []
    offer_id, record = bid(7)
    await publisher.publish(offer_id, record)
    first = len(net.nodes)
    await net.grow(FOLLOWERS, client=True)
    for node in net.nodes[first:]:
        book: dict[bytes, Record] = {}
        books.append(book)
        market = Market(node, KEY, lambda r, book=book: book.update({r.tag: r}), open_stream=TcpFrames.open)  # type: ignore[misc]
        markets.append(market)
        await market.follow()
    for _ in range(600):
        if all(books):
            break
        await asyncio.sleep(0.05)
    missing = sum(not book for book in books)
    began = time.perf_counter()
    await publisher.publish(offer_id, bid(7, sequence=2, gone=True)[1])
    while time.perf_counter() - began < 60:
        if all(r.meta.tombstone for book in books for r in book.values()):
            break
        await asyncio.sleep(0.002)
    took = time.perf_counter() - began
    report.numbers["followers"] = {"followers": len(books), "never_saw_the_offer": missing, "gone_s": took}
    report.at_most(f"taken offer gone from {len(books) - missing} followers, s", took, 5.0)
    report.at_most("followers that never saw the offer", missing, 0)
    for market in (publisher, *markets):
        await market.close()
    await net.close()


def main() -> int:
    """Measure both."""
    report = Report("dht flood and followers")
    asyncio.run(followers(report))
    asyncio.run(throughput(report))
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
