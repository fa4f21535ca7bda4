"""What a relay costs: a request through one beside a direct one, on loopback.

    python -m tests.bench.bench_relay

Three nodes in one process, so that each number holds the work of all. Prints a table, then one JSON document.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import sys
from time import perf_counter

from p2pnode.channels import AnyService, Channels, Limits, Pipe, PipeService, Service
from p2pnode.clock import SystemClock
from p2pnode.reach.probe import Helper
from p2pnode.reach.registrar import Candidate, Registrar
from p2pnode.reach.relay import Relay, RelayLimits
from p2pnode.reach.service import RelayDoor
from protocol.contact import Address, NodeContact
from protocol.identity import SigningKey
from protocol.relay import RELAY_SERVICE
from protocol.session import Settings
from protocol.types import Network, NodeKey

ECHO, BULK = 20, 21
MEGABYTE = 1_000_000
DIALS = 200
ROUND_TRIPS = 2_000
BULK_MEGABYTES = 50
WIDE = 10**9


class Party:
    """A node with a relay's door."""

    def __init__(self, key: SigningKey | None = None) -> None:
        self.key = key or SigningKey(os.urandom(32))
        self.candidates: list[Candidate] = []
        self.registered = asyncio.Event()
        services: dict[int, AnyService] = {
            ECHO: Service(_echo, MEGABYTE, MEGABYTE),
            BULK: Service(_bulk, 100, MEGABYTE),
            RELAY_SERVICE: PipeService(self._relayed),
        }
        limits = Limits(session=Settings(max_inbound_bytes=32 * MEGABYTE), max_inbound_per_origin=1_000)
        self.channels = Channels(self.key, Network.REGTEST, services, limits=limits, clock=SystemClock())
        relay_limits = RelayLimits(
            bytes_per_second=WIDE, bytes_per_second_per_origin=WIDE, bytes_per_circuit=WIDE, circuits_per_node=64
        )
        self.relay = Relay(self.channels, relay_limits)
        self.relay._attempts.burst = 1e9  # it dials more often than any node may
        self.registrar = Registrar(self.channels, lambda: self.candidates, self.registered.set)
        self._door = RelayDoor(self.relay, Helper(Network.REGTEST, SystemClock(), _nowhere), self.registrar)

    async def _relayed(self, pipe: Pipe) -> None:
        await self._door.serve(pipe)

    async def close(self) -> None:
        await self.registrar.close()
        await self.channels.close()
        self.relay.close()


async def _echo(peer: NodeKey, request: bytes) -> bytes:
    return request


async def _bulk(peer: NodeKey, request: bytes) -> bytes:
    return bytes(MEGABYTE)


async def _nowhere(address: Address) -> Pipe:
    raise OSError


async def _measure(
    name: str, bob: Party, addresses: tuple[Address, ...], relays: tuple[NodeContact, ...]
) -> dict[str, float]:
    found = {}
    dials = []
    for _ in range(DIALS):
        alice = Party()
        if relays:
            # The session to the relay stands: a node keeps those.
            relay = relays[0]
            await alice.channels.request(relay.node, relay.addresses, ECHO, b"", timeout=10)
        began = perf_counter()
        await alice.channels.request(bob.key.public, addresses, ECHO, b"", timeout=10, relays=relays)
        dials.append(perf_counter() - began)
        await alice.close()
    found[f"{name}_connect_and_ask_ms_p50"] = statistics.median(dials) * 1e3
    if relays:
        dials = []
        for _ in range(DIALS):
            alice = Party()
            began = perf_counter()
            await alice.channels.request(bob.key.public, addresses, ECHO, b"", timeout=10, relays=relays)
            dials.append(perf_counter() - began)
            await alice.close()
        found[f"{name}_connect_from_nothing_ms_p50"] = statistics.median(dials) * 1e3
    alice = Party()

    async def ask(service: int, payload: bytes) -> None:
        await alice.channels.request(
            bob.key.public, addresses, service, payload, timeout=30, reply_limit=MEGABYTE, relays=relays
        )

    await ask(ECHO, b"")
    gc.collect()
    trips = []
    for _ in range(ROUND_TRIPS):
        began = perf_counter()
        await ask(ECHO, bytes(500))
        trips.append(perf_counter() - began)
    found[f"{name}_round_trip_us_p50"] = statistics.median(trips) * 1e6
    found[f"{name}_round_trip_us_p99"] = statistics.quantiles(trips, n=100)[98] * 1e6
    began = perf_counter()
    for _ in range(BULK_MEGABYTES):
        await ask(BULK, b"")
    found[f"{name}_megabytes_per_second"] = BULK_MEGABYTES / (perf_counter() - began)
    await alice.close()
    return found


async def measure() -> dict[str, float]:
    """All numbers."""
    relay, bob, open_bob = Party(), Party(), Party()
    contact = NodeContact(relay.key.public, (Address(*await relay.channels.listen("127.0.0.1", 0)),))
    address = Address(*await open_bob.channels.listen("127.0.0.1", 0))
    found = await _measure("direct", open_bob, (address,), ())
    bob.candidates = [Candidate(contact, b"")]
    bob.registrar.start()
    bob.registrar.want(wanted=True)
    await bob.registered.wait()
    found |= await _measure("relayed", bob, (), (contact,))
    for party in (bob, open_bob, relay):
        await party.close()
    return found


def main() -> int:
    """Measure, print, done."""
    found = asyncio.run(measure())
    for name, value in found.items():
        print(f"{name:40} {value:12,.2f}")
    print(json.dumps({"benchmark": "relay"} | {name: round(value, 2) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
