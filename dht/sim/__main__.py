"""Run the experiments and print the table: `python -m dht.sim [--nodes 10000] [--quick] [--out docs]`.

With `--out` the rows are written there as dht-sim.json and, when matplotlib is there, drawn as dht-sim.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dht.sim import experiments as ex
from dht.sim.attack import Behaviour

HEAD = (
    f"{'experiment':<42}{'nodes':>7}{'reads':>7}{'found':>9}{'RTT p50':>9}{'RTT p95':>9}{'msg/node/h':>12}{'cpu s':>8}"
)


def jobs(nodes: int, seed: int, *, quick: bool) -> list[tuple[Callable[..., ex.Row], dict[str, object]]]:
    """What is run, the longest first."""
    sizes = [n for n in (100, 300, 1_000, 3_000, 10_000) if n <= nodes]
    seconds = 900 if quick else 3_600
    out: list[tuple[Callable[..., ex.Row], dict[str, object]]] = [
        (ex.churn, {"nodes": nodes, "seed": seed, "seconds": seconds}),
        (ex.cold, {"nodes": nodes, "seed": seed}),
    ]
    out += [(ex.hostile, {"nodes": nodes, "behaviour": b, "seed": seed}) for b in Behaviour]
    out += [(ex.eclipse, {"nodes": nodes, "seed": seed})]
    out += [(ex.idle, {"nodes": n, "seed": seed, "seconds": seconds / 2}) for n in reversed(sizes)]
    return out


def line(row: ex.Row) -> str:
    """A row of the table."""
    found, p50, p95 = (f"{row.success:.2%}", str(row.rtts_p50), str(row.rtts_p95)) if row.reads else ("-", "-", "-")
    return (
        f"{row.experiment:<42}{row.nodes:>7}{row.reads:>7}{found:>9}{p50:>9}{p95:>9}"
        f"{row.messages_per_node_hour:>12}{row.cpu_s:>8}"
    )


def draw(rows: list[ex.Row], path: Path) -> bool:
    """Messages per node and hour against the size of the network; False without matplotlib."""
    try:
        import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    idle = sorted((r.nodes, r.messages_per_node_hour) for r in rows if r.experiment.startswith("idle"))
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot([n for n, _ in idle], [m for _, m in idle], marker="o")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes")
    axes.set_ylabel("datagrams per node and hour")
    axes.set_title("Upkeep at 50% of nodes replaced per hour")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def main() -> int:
    """Run everything on all cores."""
    parser = argparse.ArgumentParser(prog="python -m dht.sim")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a quarter of the simulated time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[ex.Row] = []
    write = sys.stdout.write
    write(f"seed {args.seed}\n{HEAD}\n")
    with ProcessPoolExecutor(args.workers) as pool:
        running = [pool.submit(do, **how) for do, how in jobs(args.nodes, args.seed, quick=args.quick)]
        for future in running:
            rows.append(future.result())
            write(line(rows[-1]) + "\n")
            sys.stdout.flush()
    if args.out:
        (args.out / "dht-sim.json").write_text(json.dumps([r.as_dict() for r in rows], indent=1) + "\n")
        if draw(rows, args.out / "dht-sim.png"):
            write(f"drew {args.out / 'dht-sim.png'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
