"""The order book through the daemon's path: signed offers, encrypted channels, the SQLite book.

`tests/bench/dht/bench_market.py` measures the same without channels and book. The holders run in a process of their
own, so that the CPU time is the reader's alone; bytes are those of its TCP connections. Then 100 nodes subscribe to a
market, one of its offers is taken, and it is measured when the last of their books has lost it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from nacl import bindings

from dht.node import Seed
from p2pnode.channels import Channels, Limits, Link, dial_tcp
from p2pnode.clock import SystemClock
from protocol.contact import Address
from protocol.wire import signed_input
from tests.network.book_net import KEY, NETWORK, BookNet, BookNode, edited, fresh_offer, offers

COUNT = 10_000
HOLDERS = 30
SUBSCRIBERS = 100
PATIENCE = 60.0


class Counted:
    """Bytes of all TCP connections that a node opens."""

    def __init__(self) -> None:
        self.bytes = 0

    async def dial(self, address: Address) -> Link:
        """As `dial_tcp`."""
        link = await dial_tcp(address)
        read, write = link.read, link.write

        async def counted_read() -> bytes:
            data = await read()
            self.bytes += len(data)
            return data

        def counted_write(data: bytes) -> None:
            self.bytes += len(data)
            write(data)

        link.read = counted_read  # type: ignore[method-assign]
        link.write = counted_write  # type: ignore[method-assign]
        return link


def hold(pipe: Connection) -> None:
    """The holders' process."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            net = BookNet(1, Path(folder))
            await net.grow(HOLDERS)
            counts = net.load(offers(COUNT))
            pipe.send((net.nodes[0].local, len(counts)))
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            for number in range(0, COUNT, 100):
                net.replace(edited(number)[1])
            pipe.send("done")
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            await net.close()

    asyncio.run(run())


def cpu() -> float:
    """Seconds of the processor that this process used."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def verified(signed: list[tuple[bytes, bytes, bytes]]) -> float:
    """CPU seconds of the bare checks of (signature, message, signer)."""
    began = time.process_time()
    for signature, message, signer in signed:
        bindings.crypto_sign_open(signature + message, signer)
    return time.process_time() - began


async def read(pipe: Connection) -> dict[str, object]:
    """The reader's numbers."""
    envelopes = [envelope for _, envelope in offers(COUNT)]
    payload = sum(len(e.raw) for e in envelopes)
    bare = verified([(e.signature, signed_input(e.kind, e.network, e.body), e.signer) for e in envelopes])
    seed, shards = pipe.recv()
    with tempfile.TemporaryDirectory() as folder:
        net = BookNet(2, Path(folder))
        dht = net.make("127.90.1.1")
        await dht.start()
        await dht.bootstrap([Seed(*seed)])
        reader = BookNode(dht, Path(folder), "reader")
        counted = Counted()
        reader.channels = Channels(dht.key, NETWORK, {}, limits=Limits(), clock=SystemClock(), dial=counted.dial)
        reader.sync._channels = reader.channels
        before, began = cpu(), time.perf_counter()
        await reader.look(PATIENCE)
        took, used = time.perf_counter() - began, cpu() - before
        cold = counted.bytes
        found = len(reader.shown())
        pipe.send("change")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        before, began = cpu(), time.perf_counter()
        await reader.look(PATIENCE)
        result: dict[str, object] = {
            "offers": found,
            "shards": shards,
            "payload_bytes": payload,
            "cold_s": round(took, 3),
            "cold_bytes_ratio": round(cold / payload, 3),
            "cold_cpu_s": round(used, 3),
            "cold_cpu_ratio_to_ed25519": round(used / bare, 2),
            "refresh_1pct_s": round(time.perf_counter() - began, 3),
            "refresh_1pct_cpu_s": round(cpu() - before, 3),
            "refresh_1pct_bytes_ratio": round((counted.bytes - cold) / payload, 4),
            "refresh_1pct_offers": sum(
                entry[0] for entry in reader.database.connection.execute("SELECT count(*) FROM book WHERE sequence = 1")
            ),
        }
        await reader.close()
        await net.close()
    return result


async def take() -> dict[str, object]:
    """How long a taken offer stays in the books of subscribers."""
    with tempfile.TemporaryDirectory() as folder:
        net = BookNet(3, Path(folder))
        await net.grow(SUBSCRIBERS)
        maker, *others = net.books
        for other in others:
            await other.look()
        own = await maker.own.create(fresh_offer(maker.maker.public, 1), {})
        await _until(lambda: all(other.shown() == {own.offer_id} for other in others))
        began = time.perf_counter()
        maker.own.mark_taken(own.offer_id, b"t" * 32, int(time.time()))
        await _until(lambda: not any(other.shown() for other in others))
        took = time.perf_counter() - began
        await net.close()
    return {"subscribers": len(others), "market": KEY.currency, "taken_offer_gone_from_all_s": round(took, 3)}


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110  (what is waited for happens in other nodes)
            await asyncio.sleep(0.02)


def main() -> None:
    """Print the numbers."""
    ours, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=hold, args=(theirs,))
    child.start()
    print(json.dumps(asyncio.run(read(ours)), indent=1))
    ours.send("stop")
    child.join(30)
    print(json.dumps(asyncio.run(take()), indent=1))


if __name__ == "__main__":
    main()
