"""Ours beside raw kademlia 2.2.3 and libtorrent's BEP 44: the same harness, the same machine, one after the other.

    python -m tests.bench.dht.bench_side_by_side [--runs 1] [--n 100] [--only lo|wan|loss] [--no-competitors]

Needs `pip install libtorrent cryptography anyio`, root (each run has a network namespace of its own) and a C compiler
for the delayed nets. Prints one row per system and net, then each target with what was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ADAPTERS = ("ours", "kademlia_raw", "libtorrent_bep44")
PHASES = ("put_c1", "put_c32", "get_c1", "get_c32", "miss_c1", "get_dead20_c8", "put_dead20_c8")

Result = dict[str, Any]


def run(adapter: str, n: int, net: str, loss: float, runs: int, out: Path) -> list[Result]:
    """The runs of one system on one net."""
    tag = net + (f"-loss{loss}" if loss else "")
    command = [sys.executable, str(HERE / "run.py"), "--adapter", adapter, "--n", str(n), "--net", net]
    command += ["--loss", str(loss), "--runs", str(runs)]
    subprocess.run(command, check=False, env={**os.environ, "DHT_BENCH_RESULTS": str(out)}, stdout=subprocess.DEVNULL)
    path = out / f"{adapter}-n{n}-{tag}.json"
    runs_of: list[Result] = json.loads(path.read_text())["runs"] if path.exists() else []
    return runs_of


def median(runs: list[Result], phase: str, field: str) -> float:
    """The median over the runs of a number of a phase."""
    values = [r["phases"][phase][field] for r in runs if phase in r["phases"]]
    return float(statistics.median(values)) if values else float("nan")


def show(title: str, results: dict[str, list[Result]]) -> None:
    """One row per system."""
    print(f"\n{title}")
    print(f"{'':<18}" + "".join(f"{p + ' p50/p95 ms':>30}" for p in PHASES) + f"{'KB/node':>9}")
    for adapter, runs in results.items():
        if not runs:
            print(f"{adapter:<18} did not run")
            continue
        row = f"{adapter:<18}"
        for phase in PHASES:
            cell = f"{median(runs, phase, 'p50_ms'):.2f} / {median(runs, phase, 'p95_ms'):.1f}"
            row += f"{cell + ' (' + str(median(runs, phase, 'dgrams_op')) + ')':>30}"
        print(row + f"{statistics.median(r['mem_kb_node'] for r in runs):>9.0f}")
    sys.stdout.flush()


def target(what: str, value: float, limit: float) -> None:
    """One line of the judgement."""
    print(f"{'ok  ' if value <= limit else 'MISS'} {what}: {value:.4g}, at most {limit:.4g}")


def judge_loopback(results: dict[str, list[Result]]) -> None:
    """The targets side by side at N = 100."""
    ours, kad, torrent = (results.get(a) or [] for a in ADAPTERS)
    if not ours:
        return
    get, put = median(ours, "get_c1", "p50_ms"), median(ours, "put_c1", "p50_ms")
    if kad:
        target("get p50 / kademlia", get / median(kad, "get_c1", "p50_ms"), 1.0)
        target("put p50 / kademlia", put / median(kad, "put_c1", "p50_ms"), 0.5)
        target(
            "kademlia's puts per s / ours", median(kad, "put_c32", "ops_s") / median(ours, "put_c32", "ops_s"), 1 / 3
        )
        dead = median(ours, "get_dead20_c8", "p95_ms") / median(kad, "get_dead20_c8", "p95_ms")
        target("20% dead: get p95 / kademlia", dead, 0.02)
        dead = median(ours, "put_dead20_c8", "p50_ms") / median(kad, "put_dead20_c8", "p50_ms")
        target("20% dead: put p50 / kademlia", dead, 0.015)
        share = median(ours, "put_c1", "dgrams_op") / median(kad, "put_c1", "dgrams_op")
        target("datagrams per put / kademlia", share, 0.6)
    if torrent:
        target("get p50 / libtorrent", get / median(torrent, "get_c1", "p50_ms"), 1.5)
    target("20% dead: put p50, ms", median(ours, "put_dead20_c8", "p50_ms"), 300)
    target("KB per node", float(statistics.median(r["mem_kb_node"] for r in ours)), 120)


def judge_wan(results: dict[str, list[Result]]) -> None:
    """The targets at a round trip of 50 ms."""
    ours, kad = results["ours"], results.get("kademlia_raw") or []
    target("RTT 50 ms: get p50, ms", median(ours, "get_c1", "p50_ms"), 55)
    if kad:
        ratio = median(ours, "put_c1", "p50_ms") / median(kad, "put_c1", "p50_ms")
        target("RTT 50 ms: put p50 / kademlia", ratio, 0.75)


def judge_loss(results: dict[str, list[Result]]) -> None:
    """The targets at 1% loss on top."""
    ours = results["ours"]
    failed = sum(r["phases"][p]["ops"] - r["phases"][p]["ok"] for r in ours for p in PHASES)
    target("1% loss: failed operations", failed, 0)
    target("1% loss: get p95, ms", median(ours, "get_c1", "p95_ms"), 160)
    target("1% loss: put p95, ms", median(ours, "put_c1", "p95_ms"), 400)


def main() -> int:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--only", choices=("lo", "wan", "loss"))
    parser.add_argument("--no-competitors", action="store_true")
    args = parser.parse_args()
    missing = [m for m in ("libtorrent", "cryptography", "anyio") if importlib.util.find_spec(m) is None]
    if missing:
        print(f"not run: pip install {' '.join(missing)}")
        return 0
    adapters = ADAPTERS[:1] if args.no_competitors else ADAPTERS
    with tempfile.TemporaryDirectory() as folder:
        for name, net, loss, n, judge in (
            ("lo", "lo", 0.0, args.n, judge_loopback),
            ("wan", "wan50", 0.0, args.n, judge_wan),
            ("loss", "wan50", 1.0, 50, judge_loss),
        ):
            if args.only in (None, name):
                # Kademlia takes ten minutes over the lossy net, to no one's surprise: ours alone there.
                who = adapters if name != "loss" else adapters[:1]
                results = {a: run(a, n, net, loss, args.runs, Path(folder)) for a in who}
                show(f"N = {n}, {net}{', 1% loss' if loss else ''}; (datagrams per operation)", results)
                judge(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
