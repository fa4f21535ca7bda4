"""What the network must show, each target beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from dht.sim import experiments as ex
from dht.sim.lab import Row

FLAT: Final = 1.25
"""Datagrams per node and hour in the dearest network over those in the cheapest."""
CARE_PEAK: Final = 2.0
"""Under churn: questions for the records' sake in the busiest ten seconds over their mean."""
LARGE: Final = 5_000
"""In smaller networks a few neighbours that come together are a peak already: half as much again is allowed there."""
BURST: Final = 0.5
"""The same per node and second in the busiest ten seconds after a tenth joined or vanished."""
BUSIEST: Final = 200.0
"""Such questions of any one node in any second: what one address is served."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target."""

    target: str
    asked: str
    measured: str
    ok: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'MISS'} {self.target:<58} {self.asked:>16}   {self.measured}"


def _found(row: Row) -> str:
    return f"{row.success:.2%} of {row.reads:,}"


def _attacked(row: Row) -> list[Verdict]:
    name, captured = row.experiment, 1 - row.success
    if name.startswith("kademlia"):
        return [Verdict(f"{name}: reads captured", "100%", f"{captured:.0%}", captured == 1)]
    if ex.FREE_IDS in name:
        return [Verdict(f"{name}: reads captured", "0%", f"{captured:.2%} of {row.reads:,}", captured == 0)]
    if ex.PLAIN in name and any(gang.value in name for gang in (ex.Gang.STALE, ex.Gang.MIXED)):
        return []  # two answers can't outvote two that are old: a read that must be of the newest takes three paths
    return [Verdict(f"{name}: honest record found", ">= 99%", _found(row), row.success >= 0.99)]


def _storm(row: Row) -> list[Verdict]:
    peak, busiest = row.notes["care_peak_per_node_second"], row.notes["busiest_node_per_s"]
    name = row.experiment
    return [
        Verdict(f"{name}: care per node and s, peak", f"<= {BURST:g}", f"{peak:g}", peak <= BURST),
        Verdict(f"{name}: care of the busiest node in 1 s", f"<= {BUSIEST:g}", f"{busiest:g}", busiest <= BUSIEST),
    ]


def _one(row: Row) -> list[Verdict]:
    name, notes = row.experiment, row.notes
    if ex.FREE_IDS in name or ex.HOSTILE in name:
        return _attacked(row)
    if name in (ex.JOINS, ex.LEAVES):
        return _storm(row)
    if name == ex.LOAD:
        return []
    out = [Verdict(f"{name}: record found", ">= 99.9%", _found(row), row.success >= 0.999)]
    if name == ex.COLD:
        out.append(Verdict(f"{name}: round trips, p50", "< 4", f"{row.rtts_p50}", row.rtts_p50 < 4))
    if name == ex.NAT:
        inside, clients = int(notes["clients_in_tables"]), int(notes["clients"])
        out.append(Verdict(f"{clients:,} {name}: entries in routing tables", "0", f"{inside}", inside == 0))
    return out


def judge(rows: Iterable[Row]) -> list[Verdict]:
    """Each target with what was measured."""
    rows = list(rows)
    out = [verdict for row in rows for verdict in _one(row)]
    loads = sorted((r for r in rows if r.experiment == ex.LOAD), key=lambda r: r.nodes)
    if loads:
        sent = [r.messages_per_node_hour for r in loads]
        ratio = max(sent) / min(sent)
        sizes = f"{loads[0].nodes:,} to {loads[-1].nodes:,}"
        told = f"{', '.join(f'{s:.0f}' for s in sent)} (x {ratio:.2f})"
        out.append(Verdict(f"datagrams per node and hour, {sizes} nodes", f"<= x {FLAT}", told, ratio <= FLAT))
        peak = loads[-1].notes["care_peak_over_mean"]
        name = f"republishing at {loads[-1].nodes:,} nodes, 50%/h replaced: peak over mean"
        most = CARE_PEAK if loads[-1].nodes >= LARGE else 1.5 * CARE_PEAK
        out.append(Verdict(name, f"<= {most:g}", f"{peak:g}", peak <= most))
    return out
