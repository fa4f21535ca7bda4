"""Run the experiments, print the table, draw the plots: `python -m dht.sim [--quick] [--nodes N] [--out FOLDER]`.

The large network is built once; each experiment on it runs in a fork, so that all begin with the same network and
share its memory. `out/dht-sim.json` gets all of it; `--out` the plots and the tables (docs; with --quick out/).
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
from hashlib import blake2b
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dht.sim import experiments as ex
from dht.sim import rawkademlia
from dht.sim.draw import draw, write_tables
from dht.sim.judge import judge
from dht.sim.lab import Lab, Row

HEAD = (
    f"{'experiment':<42}{'nodes':>7}{'reads':>7}{'found':>9}{'RTT p50':>9}{'RTT p95':>9}{'msg/node/h':>12}{'cpu s':>8}"
)

Job = Callable[[], list[Row]]


def _single(experiment: Callable[..., Row], lab: Callable[[], Lab], **options: object) -> list[Row]:
    return [experiment(lab(), **options)]


def small_jobs(nodes: int, seed: int, *, quick: bool) -> list[Job]:
    """What needs no large network."""
    seconds = 600 if quick else 1_800
    sizes = {100: 6, 300: 2} if quick else {100: 12, 300: 4, 1_000: 1, 3_000: 1}
    out: list[Job] = [
        lambda n=n, often=often: [ex.load_often(range(seed, seed + often), n, seconds=seconds)]  # type: ignore[misc]
        for n, often in sizes.items()
        if n < nodes
    ]
    return [*out, lambda: [rawkademlia.eclipse(nodes=50 if quick else 100)]]


def large_jobs(lab: Lab, *, quick: bool) -> list[Job]:
    """What starts from the large network, the longest first."""
    reads = 200 if quick else 1_000

    def here() -> Lab:
        return lab

    return [
        partial(_single, ex.churn, here, seconds=600 if quick else 3_600, reads=reads if quick else 2 * reads),
        partial(_single, ex.load, here, seconds=600 if quick else 1_800),
        *(partial(_single, ex.storm, here, leave=leave) for leave in (False, True)),
        partial(_single, ex.nat, here, reads=3 * reads // 2),
        partial(_single, ex.eclipse, here, reads=reads),
        *(partial(ex.hostile, lab, gang=gang, reads=reads, keys=30 if quick else 100) for gang in ex.Gang),
        partial(_single, ex.cold, here, reads=100 if quick else 300),
    ]


def line(row: Row) -> str:
    """A row of the table."""
    found = f"{row.success:.2%}" if row.reads else "-"
    p50, p95 = (str(row.rtts_p50), str(row.rtts_p95)) if row.rtts else ("-", "-")
    sent = str(row.messages_per_node_hour) if row.messages_per_node_hour else "-"
    return f"{row.experiment:<42}{row.nodes:>7}{row.reads:>7}{found:>9}{p50:>9}{p95:>9}{sent:>12}{row.cpu_s:>8}"


def digest_of(rows: Iterable[Row]) -> str:
    """Equal for two runs in which every node sent the same bytes at the same times."""
    told = "".join(f"{r.experiment}/{r.nodes}/{r.trace}\n" for r in rows if r.trace)
    return blake2b(told.encode(), digest_size=16).hexdigest()


def _run(jobs: Iterable[Job], pipe: Connection) -> None:
    for job in jobs:
        for row in job():
            pipe.send(row)
    pipe.close()


class Forks:
    """Jobs in forked processes."""

    def __init__(self) -> None:
        self._context = mp.get_context("fork")
        self._running: dict[Connection, mp.process.BaseProcess] = {}
        self.rows: list[Row] = []

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


def run(nodes: int, seed: int, workers: int, *, quick: bool) -> list[Row]:
    """All experiments, printed as they end."""
    forks = Forks()
    forks.fork(small_jobs(nodes, seed, quick=quick))
    lab = Lab(seed, nodes)
    # The collector would walk over (and so copy) in every child what was built here and never dies.
    gc.collect()
    gc.freeze()
    for job in large_jobs(lab, quick=quick):
        forks.collect(workers - 1)
        forks.fork([job])
    forks.collect(0)
    return sorted(forks.rows, key=lambda r: (r.experiment == ex.LOAD, r.experiment, r.nodes))


def main() -> int:
    """Run everything on all cores."""
    parser = argparse.ArgumentParser(prog="python -m dht.sim")
    parser.add_argument("--nodes", type=int, help="nodes of the large network (10,000; with --quick 1,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of the nodes, a sixth of the time")
    parser.add_argument("--out", type=Path, help="folder of the plots and tables (docs; with --quick out)")
    args = parser.parse_args()
    began = time.monotonic()
    out: Path = args.out or Path("out" if args.quick else "docs")
    out.mkdir(exist_ok=True, parents=True)
    sys.stdout.write(f"seed {args.seed}\n{HEAD}\n")
    sys.stdout.flush()
    rows = run(args.nodes or (1_000 if args.quick else 10_000), args.seed, args.workers, quick=args.quick)
    verdicts = judge(rows)
    sys.stdout.write("\n" + "\n".join(map(str, verdicts)) + f"\ndigest {digest_of(rows)}\n")
    report = Path("out")
    report.mkdir(exist_ok=True)
    told = {
        "seed": args.seed,
        "digest": digest_of(rows),
        "targets": [v.as_dict() for v in verdicts],
        "rows": [r.as_dict() for r in rows],
    }
    (report / "dht-sim.json").write_text(json.dumps(told, indent=1) + "\n")
    seconds = time.monotonic() - began
    command = "make sim" + (" ARGS=--quick" if args.quick else "")
    drawn = [write_tables(rows, verdicts, out / "dht-sim.md", command=command, seed=args.seed, seconds=seconds)]
    try:
        drawn += draw(rows, out)
    except ImportError:
        sys.stdout.write("no plots: matplotlib is not installed (`make sim` sees to it)\n")
    sys.stdout.write(f"wrote out/dht-sim.json, {', '.join(map(str, drawn))}\n{seconds:.0f} s\n")
    return 0 if all(v.ok for v in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
