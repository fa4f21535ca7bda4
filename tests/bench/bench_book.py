"""The order book through the daemon's path: signed offers, encrypted channels, the SQLite book.

    python -m tests.bench.bench_book [--quick]

`tests/bench/dht/bench_market.py` measures the same without channels and book. The holders run in a process of their
own, so that the CPU time (user and system) is the reader's alone, all of it: searches, channels, checks, book. Bytes
are those of its TCP connections. Several readers start from nothing, one after the other; right before and after each,
the bare Ed25519 checks of the same offers are timed in the same process, and the ratio to their mean is the median of
all readers: so what else runs on the machine, and its changes of pace, touch both alike.

Then 100 nodes subscribe to a market, one of its offers is taken, and it is measured when the last of their books has
lost it; and once more with a fifth of them deaf to pushes, as if every datagram of these had been lost.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import resource
import statistics
import sys
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
from tests.bench.report import Report
from tests.network.book_net import KEY, NETWORK, BookNet, BookNode, edited, fresh_offer, offers

QUICK = "--quick" in sys.argv
COUNT = 2_000 if QUICK else 10_000
READERS = 1 if QUICK else 9
HOLDERS = 30
SUBSCRIBERS = 30 if QUICK else 100
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
            loop = asyncio.get_running_loop()
            while (order := await loop.run_in_executor(None, pipe.recv)) != "stop":
                for number in range(0, COUNT, 100):
                    net.replace(edited(number, order)[1])
                pipe.send("done")
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


async def read(pipe: Connection) -> dict[str, float]:
    """The readers' numbers."""
    envelopes = [envelope for _, envelope in offers(COUNT)]
    payload = sum(len(e.raw) for e in envelopes)
    signed = [(e.signature, signed_input(e.kind, e.network, e.body), e.signer) for e in envelopes]
    del envelopes
    seed, shards = pipe.recv()
    found: dict[str, list[float]] = {}
    for number in range(READERS):
        with tempfile.TemporaryDirectory() as folder:
            for name, value in (await _one(pipe, Path(folder), Seed(*seed), number, signed, payload)).items():
                found.setdefault(name, []).append(value)
    print(json.dumps(found, indent=1))
    result = {name: statistics.median(values) for name, values in found.items()}
    return result | {"shards": shards, "payload_bytes": payload}


async def _one(
    pipe: Connection, folder: Path, seed: Seed, number: int, signed: list[tuple[bytes, bytes, bytes]], payload: int
) -> dict[str, float]:
    """One reader from cold, and its refresh after 1% has changed."""
    net = BookNet(2 + number, folder)
    dht = net.make(f"127.90.1.{1 + number}")
    await dht.start()
    await dht.bootstrap([seed])
    reader = BookNode(dht, folder, "reader")
    counted = Counted()
    reader.channels = Channels(dht.key, NETWORK, {}, limits=Limits(), clock=SystemClock(), dial=counted.dial)
    reader.sync._channels = reader.channels
    bare = verified(signed) / 2
    before, began = cpu(), time.perf_counter()
    await reader.look(PATIENCE)
    took, used = time.perf_counter() - began, cpu() - before
    cold, bare = counted.bytes, bare + verified(signed) / 2
    found = len(reader.shown())
    pipe.send(number + 1)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    before, began = cpu(), time.perf_counter()
    await reader.look(PATIENCE)
    result: dict[str, float] = {
        "offers": found,
        "ed25519_s": round(bare, 3),
        "cold_s": round(took, 3),
        "cold_bytes_ratio": round(cold / payload, 3),
        "cold_cpu_s": round(used, 3),
        "cold_cpu_ratio_to_ed25519": round(used / bare, 2),
        "refresh_1pct_s": round(time.perf_counter() - began, 3),
        "refresh_1pct_cpu_s": round(cpu() - before, 3),
        "refresh_1pct_bytes_ratio": round((counted.bytes - cold) / payload, 4),
        "refresh_1pct_offers": reader.database.connection.execute(
            "SELECT count(*) FROM book WHERE sequence = ?", (number + 1,)
        ).fetchone()[0],
    }
    await reader.close()
    await net.close()
    return result


async def take(deaf: int) -> float:
    """How long a taken offer stays in the books of subscribers, of whom `deaf` never get a push, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        net = BookNet(3, Path(folder))
        await net.grow(SUBSCRIBERS + 1)
        maker, *others = net.books
        for other in others:
            await other.look()
        own = await maker.own.create(fresh_offer(maker.maker.public, 1), {})
        await _until(lambda: all(other.shown() == {own.offer_id} for other in others))
        holders = {node.node_id for node in net.nearest(KEY.topic((0, 0)))[:8]}
        for other in [other for other in others if other.dht.node_id not in holders][:deaf]:
            other.dht.engine.watching.pushed = lambda request, now: b"\0"  # type: ignore[method-assign]
        began = time.perf_counter()
        maker.own.mark_taken(own.offer_id, b"t" * 32, int(time.time()))
        await _until(lambda: not any(other.shown() for other in others))
        took = time.perf_counter() - began
        await net.close()
    return took


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110  (what is waited for happens in other nodes)
            await asyncio.sleep(0.02)


def main() -> None:
    """Measure and judge."""
    report = Report("book")
    ours, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=hold, args=(theirs,))
    child.start()
    found = asyncio.run(read(ours))
    ours.send("stop")
    child.join(30)
    name = f"book of {COUNT:,} through the daemon"
    report.at_least(f"{name}: offers found", found["offers"], COUNT)
    report.at_most(f"{name} from cold, s", found["cold_s"], 3.0)
    if not QUICK:
        report.at_most(f"{name} from cold, bytes / payload", found["cold_bytes_ratio"], 1.2)
        report.at_most(f"{name} from cold, CPU / bare Ed25519", found["cold_cpu_ratio_to_ed25519"], 1.5)
        report.at_most(f"{name}, 1% changed, bytes / payload", found["refresh_1pct_bytes_ratio"], 0.05)
    gone = asyncio.run(take(0))
    report.at_most(f"taken offer gone from the books of {SUBSCRIBERS} subscribers, s", gone, 5.0)
    report.numbers = {"reader": found, "taken_offer_gone_s": gone}
    if not QUICK:
        late = asyncio.run(take(SUBSCRIBERS // 5))
        report.at_most("taken offer gone from everyone, a fifth of them deaf to pushes, s", late, 60.0)
        report.numbers["taken_offer_gone_from_the_deaf_s"] = late
    report.write()


if __name__ == "__main__":
    main()
