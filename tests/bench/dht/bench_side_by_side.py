"""Ours beside raw kademlia 2.2.3 and libtorrent's BEP 44: the same harness, the same machine, one after the other.

    python -m tests.bench.dht.bench_side_by_side [--runs 3] [--n 100] [--only lo|wan|loss] [--no-competitors] [--quick]

Needs the packages of requirements-bench.txt (`make bench` sees to them), root (each run has a network namespace of its
own) and a C compiler for the delayed nets. Prints one row per system and net, then each target with what was measured.
Numbers are medians over the runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.report import Report

HERE = Path(__file__).resolve().parent
ADAPTERS = ("ours", "kademlia_raw", "libtorrent_bep44")
PHASES = ("put_c1", "put_c32", "get_c1", "get_c32", "miss_c1", "get_dead20_c8", "put_dead20_c8")

Result = dict[str, Any]


def run(adapter: str, n: int, net: str, loss: float, runs: int, scale: float, out: Path) -> list[Result]:
    """The runs of one system on one net."""
    tag = net + (f"-loss{loss}" if loss else "")
    command = [sys.executable, str(HERE / "run.py"), "--adapter", adapter, "--n", str(n), "--net", net]
    command += ["--loss", str(loss), "--runs", str(runs), "--scale", str(scale)]
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


def judge_loopback(report: Report, results: dict[str, list[Result]]) -> None:
    """The targets side by side at N = 100."""
    ours, kad, torrent = (results.get(a) or [] for a in ADAPTERS)
    if not ours:
        return
    get, put = median(ours, "get_c1", "p50_ms"), median(ours, "put_c1", "p50_ms")
    if kad:
        report.at_most("get p50 / kademlia", get / median(kad, "get_c1", "p50_ms"), 1.0)
        report.at_most("put p50 / kademlia", put / median(kad, "put_c1", "p50_ms"), 0.5)
        times = median(ours, "put_c32", "ops_s") / median(kad, "put_c32", "ops_s")
        report.at_least("puts per second, 32 at once / kademlia", times, 3.0)
        dead = median(ours, "get_dead20_c8", "p95_ms") / median(kad, "get_dead20_c8", "p95_ms")
        report.at_most("20% dead: get p95 / kademlia", dead, 0.02)
        dead = median(ours, "put_dead20_c8", "p50_ms") / median(kad, "put_dead20_c8", "p50_ms")
        report.at_most("20% dead: put p50 / kademlia", dead, 0.015)
        share = median(ours, "put_c1", "dgrams_op") / median(kad, "put_c1", "dgrams_op")
        report.at_most("datagrams per put / kademlia", share, 0.6)
    if torrent:
        report.at_most("get p50 / libtorrent", get / median(torrent, "get_c1", "p50_ms"), 1.5)
    report.at_most("20% dead: put p50, ms", median(ours, "put_dead20_c8", "p50_ms"), 300)
    report.at_most("KB per node", float(statistics.median(r["mem_kb_node"] for r in ours)), 120)


def judge_wan(report: Report, results: dict[str, list[Result]]) -> None:
    """The targets at a round trip of 50 ms."""
    ours, kad = results["ours"], results.get("kademlia_raw") or []
    if not ours:
        return
    report.at_most("RTT 50 ms: get p50, ms", median(ours, "get_c1", "p50_ms"), 55)
    if kad:
        ratio = median(ours, "put_c1", "p50_ms") / median(kad, "put_c1", "p50_ms")
        report.at_most("RTT 50 ms: put p50 / kademlia", ratio, 0.75)


def judge_loss(report: Report, results: dict[str, list[Result]]) -> None:
    """The targets at 1% loss on top."""
    ours = results["ours"]
    if not ours:
        return
    failed = sum(r["phases"][p]["ops"] - r["phases"][p]["ok"] for r in ours for p in PHASES)
    report.at_most("1% loss: failed operations", failed, 0)
    report.at_most("1% loss: get p95, ms", median(ours, "get_c1", "p95_ms"), 160)
    report.at_most("1% loss: put p95, ms", median(ours, "put_c1", "p95_ms"), 400)


def main() -> int:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--only", choices=("lo", "wan", "loss"))
    parser.add_argument("--no-competitors", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="one run of 40 nodes on loopback, a third of the operations"
    )
    args = parser.parse_args()
    report = Report("dht side by side")
    if args.quick:
        args.runs, args.n, args.only = 1, 40, args.only or "lo"
    if why := unusable():
        report.skip("the DHT beside kademlia and libtorrent", why)
        report.write()
        return 0
    adapters = ADAPTERS[:1] if args.no_competitors else ADAPTERS
    with tempfile.TemporaryDirectory() as folder:
        for name, net, loss, n, judge in (
            ("lo", "lo", 0.0, args.n, judge_loopback),
            ("wan", "wan50", 0.0, args.n, judge_wan),
            ("loss", "wan50", 1.0, 50, judge_loss),
        ):
            if args.only not in (None, name):
                continue
            title = f"N = {n}, {net}{', 1% loss' if loss else ''}"
            if net != "lo" and shutil.which("cc") is None:
                report.skip(title, "no C compiler, which the delayed net needs")
                continue
            # Kademlia takes ten minutes over the lossy net, to no one's surprise: ours alone there.
            who = adapters if name != "loss" else adapters[:1]
            scale = 0.34 if args.quick else 1.0
            results = {a: run(a, n, net, loss, args.runs, scale, Path(folder)) for a in who}
            show(f"{title}; (datagrams per operation)", results)
            judge(report, results)
            report.numbers[title] = results
            for adapter in [a for a, runs in results.items() if not runs]:
                report.skip(f"{title}: {adapter}", "it did not run")
    report.write()
    return 0


def unusable() -> str:
    """Why it can't run here; empty when it can."""
    missing = [m for m in ("libtorrent", "cryptography", "anyio") if importlib.util.find_spec(m) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (`make bench` installs them)"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode
    ):
        return "network namespaces need root on Linux"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
