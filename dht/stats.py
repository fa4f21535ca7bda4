"""Counters of a node, for people and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dht.engine import Engine


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters for people and metrics."""

    peers: int
    records: int
    topics: int
    record_bytes: int
    evicted: int
    sent: int
    received: int
    served: int
    retries: int
    failures: int
    refused: int
    bad: int
    rtt: float
    """Smoothed round trip, seconds."""
    network_size: int
    """Nodes, estimated from how dense ids are."""


def stats_of(engine: Engine) -> Stats:
    """What a node has counted since its start."""
    totals = engine.rpc.totals
    return Stats(
        peers=len(engine.table),
        records=engine.storage.records,
        topics=len(engine.storage.topics()),
        record_bytes=engine.storage.bytes,
        evicted=engine.storage.evicted,
        sent=totals.sent,
        received=totals.received,
        served=totals.served,
        retries=totals.retries,
        failures=totals.failures,
        refused=totals.refused,
        bad=totals.bad,
        rtt=engine.rpc.rtt,
        network_size=max(len(engine.table) + 1, engine.config.k * 2**160 // max(1, engine.reach())),
    )
