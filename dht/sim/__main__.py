"""Run the experiments, print the table, draw the plots: `python -m dht.sim [--quick] [--nodes N] [--out FOLDER]`.

The large network is built once; each experiment on it runs in a fork, so that all begin with the same network and
share its memory. `--out` gets dht-sim.json and the plots. By default a full run writes the plots to docs/ and a quick
one to out/.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dht.sim import experiments as ex
from dht.sim import rawkademlia
from dht.sim.attack import Behaviour
from dht.sim.draw import draw

HEAD = (
    f"{'experiment':<42}{'nodes':>7}{'reads':>7}{'found':>9}{'RTT p50':>9}{'RTT p95':>9}{'msg/node/h':>12}{'cpu s':>8}"
)

Job = Callable[[], ex.Row]


def small_jobs(nodes: int, seed: int, *, quick: bool) -> list[Job]:
    """What needs no large network."""
    seconds = 600 if quick else 1_800
    out: list[Job] = [
        lambda n=n: ex.idle(ex.Lab(seed, n), seconds=seconds)  # type: ignore[misc]
        for n in (100, 300, 1_000, 3_000)
        if n < nodes
    ]
    return [*out, partial(rawkademlia.eclipse, nodes=50 if quick else 100)]


def large_jobs(lab: ex.Lab, *, quick: bool) -> list[Job]:
    """What starts from the large network, the longest first."""
    reads = 200 if quick else 1_000
    return [
        partial(ex.churn, lab, seconds=600 if quick else 3_600, reads=reads if quick else 2 * reads),
        partial(ex.idle, lab, seconds=600 if quick else 1_800),
        partial(ex.eclipse, lab, reads=reads),
        *(partial(ex.hostile, lab, behaviour=b, reads=reads) for b in Behaviour),
        partial(ex.cold, lab, reads=100 if quick else 300),
    ]


def line(row: ex.Row) -> str:
    """A row of the table."""
    found = f"{row.success:.2%}" if row.reads else "-"
    p50, p95 = (str(row.rtts_p50), str(row.rtts_p95)) if row.rtts else ("-", "-")
    sent = str(row.messages_per_node_hour) if row.messages_per_node_hour else "-"
    return f"{row.experiment:<42}{row.nodes:>7}{row.reads:>7}{found:>9}{p50:>9}{p95:>9}{sent:>12}{row.cpu_s:>8}"


def target(what: str, *, ok: bool) -> str:
    """A line of the judgement."""
    return f"{'ok  ' if ok else 'MISS'} {what}"


def judge(rows: list[ex.Row]) -> list[str]:
    """Each target with what was measured."""
    out: list[str] = []
    sent = sorted((r.nodes, r.messages_per_node_hour) for r in rows if r.experiment.startswith("no reads"))
    for row in rows:
        if row.experiment.startswith("50%/h"):
            out.append(
                target(f"50% replaced per hour: {row.success:.2%} found, at least 99.9%", ok=row.success >= 0.999)
            )
        elif row.experiment.startswith("first read"):
            out.append(target(f"cold read: p50 {row.rtts_p50} round trips, under 4", ok=row.rtts_p50 < 4))
        elif "hostile" in row.experiment:
            out.append(target(f"{row.experiment}: {row.success:.2%} found, at least 99%", ok=row.success >= 0.99))
        elif "free ids" in row.experiment and not row.experiment.startswith("kademlia"):
            out.append(target(f"{row.experiment}: {1 - row.success:.2%} captured, 0%", ok=row.success == 1))
    if sent:
        (least, few), (most, many) = sent[0], sent[-1]
        flat = f"datagrams per node and hour: {few} at {least:,} nodes, {many} at {most:,}, at most a quarter more"
        out.append(target(flat, ok=many <= 1.25 * few))
    return out


def _run(jobs: Iterable[Job], pipe: Connection) -> None:
    for job in jobs:
        pipe.send(job())
    pipe.close()


class Forks:
    """Jobs in forked processes."""

    def __init__(self) -> None:
        self._context = mp.get_context("fork")
        self._running: dict[Connection, mp.process.BaseProcess] = {}
        self.rows: list[ex.Row] = []

    def fork(self, jobs: list[Job]) -> None:
        """Run jobs one after the other in a process of their own."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run, args=(jobs, theirs))
        process.start()
        theirs.close()
        self._running[ours] = process

    def collect(self, most: int) -> None:
        """Take in rows until at most so many processes run. Raises RuntimeError when one of them failed."""
        while len(self._running) > most:
            for pipe in wait(list(self._running)):
                assert isinstance(pipe, Connection)  # noqa: S101  (what was handed in comes out)
                try:
                    row = pipe.recv()
                except EOFError:
                    process = self._running.pop(pipe)
                    process.join()
                    if process.exitcode:
                        raise RuntimeError("an experiment failed (see above)") from None
                    continue
                self.rows.append(row)
                sys.stdout.write(line(row) + "\n")
                sys.stdout.flush()


def run(nodes: int, seed: int, workers: int, *, quick: bool) -> list[ex.Row]:
    """All experiments, printed as they end."""
    forks = Forks()
    forks.fork(small_jobs(nodes, seed, quick=quick))
    lab = ex.Lab(seed, nodes)
    # The collector would walk over (and so copy) in every child what was built here and never dies.
    gc.collect()
    gc.freeze()
    for job in large_jobs(lab, quick=quick):
        forks.collect(workers - 1)
        forks.fork([job])
    forks.collect(0)
    return sorted(forks.rows, key=lambda r: (r.experiment.startswith("no reads"), r.experiment, r.nodes))


def main() -> int:
    """Run everything on all cores."""
    parser = argparse.ArgumentParser(prog="python -m dht.sim")
    parser.add_argument("--nodes", type=int, help="nodes of the large network (10,000; with --quick 1,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of the nodes, a sixth of the time")
    parser.add_argument("--out", type=Path, help="folder of the plots (docs; with --quick out)")
    args = parser.parse_args()
    began = time.monotonic()
    out: Path = args.out or Path("out" if args.quick else "docs")
    out.mkdir(exist_ok=True, parents=True)
    sys.stdout.write(f"seed {args.seed}\n{HEAD}\n")
    sys.stdout.flush()
    rows = run(args.nodes or (1_000 if args.quick else 10_000), args.seed, args.workers, quick=args.quick)
    verdicts = judge(rows)
    sys.stdout.write("\n" + "\n".join(verdicts) + "\n")
    report = Path("out")
    report.mkdir(exist_ok=True)
    (report / "dht-sim.json").write_text(json.dumps([r.as_dict() for r in rows], indent=1) + "\n")
    try:
        drawn = draw(rows, out)
    except ImportError:
        sys.stdout.write("no plots: matplotlib is not installed (`make sim` sees to it)\n")
    else:
        sys.stdout.write(f"drew {', '.join(map(str, drawn))}\n")
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")
    return 1 if any(v.startswith("MISS") for v in verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
