"""Channels on loopback: what a handshake, a request and a megabyte cost.

    python -m tests.bench.bench_channels

Two nodes in one process, so that each number holds the work of both sides. Prints a table, then one JSON document.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time

from p2pnode.channels import Channels, Limits, Service
from p2pnode.clock import SystemClock
from protocol.contact import Address
from protocol.identity import SigningKey
from protocol.session import Role, Session, Settings
from protocol.streams import BodyLimits, BodyReceived
from protocol.types import Network, NodeKey

ECHO, BULK = 1, 2
MEGABYTE = 1_000_000
SERVICES = {ECHO: BodyLimits(MEGABYTE, MEGABYTE)}

HANDSHAKES = 300
ROUND_TRIPS = 5_000
AT_ONCE = 16
BULK_MEGABYTES = 100


def entropy() -> bytes:
    return os.urandom(32)


def sessions(alice: SigningKey, bob: SigningKey) -> tuple[Session, Session]:
    """A connected pair without sockets."""
    one = Session(Role.INITIATOR, alice, bob.public, entropy, Network.REGTEST, 0.0)
    other = Session(Role.RESPONDER, bob, None, entropy, Network.REGTEST, 0.0, services=SERVICES)
    other.receive_data(one.data_to_send(), 0.0)
    one.receive_data(other.data_to_send(), 0.0)
    other.receive_data(one.data_to_send(), 0.0)
    return one, other


def sans_io() -> dict[str, float]:
    """The protocol alone: what the processor does."""
    alice, bob = SigningKey(entropy()), SigningKey(entropy())
    sessions(alice, bob)
    began = process_time()
    for _ in range(HANDSHAKES):
        sessions(alice, bob)
    handshake = (process_time() - began) / HANDSHAKES

    one, other = sessions(alice, bob)
    while other.next_event() is not None:
        pass
    one.next_event()
    request = bytes(200)
    began = process_time()
    for _ in range(ROUND_TRIPS):
        stream = one.open_stream(ECHO, request, reply_limit=1_000)
        other.receive_data(one.data_to_send(), 0.0)
        while (event := other.next_event()) is not None:
            if isinstance(event, BodyReceived):
                other.consume(event.stream, len(event.data))
        other.send(stream, b"", end=True)
        one.receive_data(other.data_to_send(), 0.0)
        while one.next_event() is not None:
            pass
    round_trip = (process_time() - began) / ROUND_TRIPS
    return {"sans_io_handshake_us": handshake * 1e6, "sans_io_round_trip_us": round_trip * 1e6}


async def echo(peer: NodeKey, request: bytes) -> bytes:
    return request


async def bulk(peer: NodeKey, request: bytes) -> bytes:
    return bytes(MEGABYTE)


def node(key: SigningKey) -> Channels:
    services = {ECHO: Service(echo, MEGABYTE, MEGABYTE), BULK: Service(bulk, 100, MEGABYTE)}
    limits = Limits(session=Settings(max_inbound_bytes=32 * MEGABYTE), max_inbound_per_origin=1_000)
    return Channels(key, Network.REGTEST, services, limits=limits, clock=SystemClock())


async def timed(count: int, work: Callable[[], Awaitable[object]]) -> list[float]:
    """Seconds of each of `count` runs, one after the other."""
    gc.collect()
    seconds = []
    for _ in range(count):
        began = perf_counter()
        await work()
        seconds.append(perf_counter() - began)
    return seconds


async def sockets() -> dict[str, float]:
    """The same over TCP on loopback, through `Channels`."""
    alice_key, bob_key = SigningKey(entropy()), SigningKey(entropy())
    alice, bob = node(alice_key), node(bob_key)
    addresses = [Address(*await bob.listen("127.0.0.1", 0))]

    async def ask(service: int, payload: bytes) -> bytes:
        return await alice.request(bob_key.public, addresses, service, payload, timeout=30, reply_limit=MEGABYTE)

    async def dial_and_ask() -> None:
        fresh = node(alice_key)
        await fresh.request(bob_key.public, addresses, ECHO, b"", timeout=30)
        await fresh.close()

    found: dict[str, float] = {}
    dials = await timed(HANDSHAKES, dial_and_ask)
    found["dial_handshake_request_close_ms_p50"] = statistics.median(dials) * 1e3
    found["handshakes_per_second"] = HANDSHAKES / sum(dials)

    await ask(ECHO, b"")
    trips = await timed(ROUND_TRIPS, lambda: ask(ECHO, bytes(200)))
    found["round_trip_us_p50"] = statistics.median(trips) * 1e6
    found["round_trip_us_p99"] = statistics.quantiles(trips, n=100)[98] * 1e6
    found["round_trips_per_second"] = ROUND_TRIPS / sum(trips)

    async def worker() -> None:
        for _ in range(ROUND_TRIPS // AT_ONCE):
            await ask(ECHO, bytes(200))

    began = perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    found[f"round_trips_per_second_{AT_ONCE}_at_once"] = ROUND_TRIPS / (perf_counter() - began)

    messages = await timed(500, lambda: ask(ECHO, bytes(10_000)))
    found["echo_of_10_kB_us_p50"] = statistics.median(messages) * 1e6
    loads = await timed(BULK_MEGABYTES, lambda: ask(BULK, b""))
    found["bulk_megabytes_per_second"] = BULK_MEGABYTES / sum(loads)
    await alice.close()
    await bob.close()
    return found


def main() -> int:
    """Measure, print, done."""
    found = sans_io() | asyncio.run(sockets())
    for name, value in found.items():
        print(f"{name:40} {value:12,.1f}")
    print(json.dumps({"benchmark": "channels"} | {name: round(value, 1) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
