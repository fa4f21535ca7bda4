#!/usr/bin/env python3
"""A market of 10,000 offers: cold fetch, refresh with 1% changed, on loopback, streams over TCP.

The holders run in a process of their own, so that the CPU time is the reader's alone. `--quick`: 1,000 offers, of which
the ratios to payload and CPU say little.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from nacl import bindings  # noqa: E402

from dht.market import Market  # noqa: E402
from dht.node import Seed  # noqa: E402
from dht.records import Record, Registry  # noqa: E402
from dht.stream import TcpFrames  # noqa: E402
from protocol.types import Network  # noqa: E402
from protocol.wire import signed_input  # noqa: E402
from tests.bench.report import Report  # noqa: E402
from tests.network.test_dht_market import BIDS, KEY, MarketNet, bid  # noqa: E402

QUICK = "--quick" in sys.argv
COUNT = 1_000 if QUICK else 10_000
NODES = 30


def holders(pipe: Connection, count: int) -> None:
    async def run() -> None:
        net = MarketNet(1)
        await net.grow(NODES)
        counts = net.load([bid(i) for i in range(count)])
        pipe.send((net.nodes[0].local, len(counts)))
        loop = asyncio.get_running_loop()
        while (order := await loop.run_in_executor(None, pipe.recv)) != "stop":
            net.replace([bid(i, sequence=order) for i in range(0, count, 100)], counts)
            pipe.send("done")
        await net.close()

    asyncio.run(run())


def cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


async def read(pipe: Connection) -> dict[str, float]:
    seed, shards = pipe.recv()
    raws = [bid(i)[1] for i in range(COUNT)]
    payload = sum(len(r.raw) for r in raws)
    started = time.process_time()
    for envelope in raws:
        message = signed_input(envelope.kind, envelope.network, envelope.body)
        bindings.crypto_sign_open(envelope.signature + message, envelope.signer)
    verify = time.process_time() - started
    net = MarketNet(2)
    node = net.make("127.90.1.1")
    await node.start()
    node.engine.registry = Registry(Network.REGTEST, (BIDS,))
    await node.bootstrap([Seed(*seed)])
    seen: list[Record] = []
    market = Market(node, KEY, seen.append, open_stream=TcpFrames.open)
    before, began = cpu(), time.perf_counter()
    cold = await market.refresh()
    took, used = time.perf_counter() - began, cpu() - before
    pipe.send(2)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    began = time.perf_counter()
    warm = await market.refresh()
    result = {
        "offers": len(seen) - warm.records,
        "shards": shards,
        "payload_bytes": payload,
        "cold_s": round(took, 3),
        "cold_bytes_ratio": round((cold.received + cold.sent) / payload, 3),
        "cold_cpu_ratio_to_ed25519": round(used / verify, 2),
        "refresh_1pct_records": warm.records,
        "refresh_1pct_s": round(time.perf_counter() - began, 3),
        "refresh_1pct_bytes_ratio": round((warm.received + warm.sent) / payload, 4),
    }
    await market.close()
    await net.close()
    return result


def main() -> None:
    ours, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=holders, args=(theirs, COUNT))
    child.start()
    report = Report("dht market")
    report.numbers = found = asyncio.run(read(ours))
    print(json.dumps(found, indent=1))
    name = f"{COUNT:,} offers"
    report.at_most(f"{name} from cold, s", found["cold_s"], 3.0)
    if not QUICK:
        report.at_most(f"{name} from cold, bytes / payload", found["cold_bytes_ratio"], 1.2)
        report.at_most(f"{name} from cold, CPU / bare Ed25519", found["cold_cpu_ratio_to_ed25519"], 1.5)
        report.at_most("refresh with 1% changed, bytes / payload", found["refresh_1pct_bytes_ratio"], 0.05)
    report.write()
    ours.send("stop")
    child.join(10)


if __name__ == "__main__":
    main()
