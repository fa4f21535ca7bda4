"""The plots and the table of a run, as SVG and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dht.sim import experiments as ex
from dht.sim.judge import Verdict
from dht.sim.lab import Row

OURS, THEIRS, LIMIT = "#1f6f8b", "#c0504d", "#888888"


def _figure(height: float = 3.8) -> tuple[Any, Any, Any]:
    # An extra: only this file needs it, and only when there is something to draw.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    # The same run gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "dht", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6.4, height))
    axes.spines[["top", "right"]].set_visible(False)
    return plt, figure, axes


def _save(plt: Any, figure: Any, path: Path) -> Path:  # noqa: ANN401  (matplotlib)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    text = path.read_text()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return path


def messages(rows: Iterable[Row], path: Path) -> Path:
    """Datagrams per node and hour against the size of the network."""
    plt, figure, axes = _figure()
    points = sorted((r.nodes, r.messages_per_node_hour) for r in rows if r.experiment == ex.LOAD)
    axes.plot([n for n, _ in points], [m for _, m in points], marker="o", color=OURS)
    for n, m in points:
        axes.annotate(f"{m:.0f}", (n, m), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.4 * max(m for _, m in points))
    axes.set_xlabel("nodes")
    axes.set_ylabel("datagrams per node and hour")
    axes.set_title("Upkeep and republishing, half of the nodes replaced per hour")
    return _save(plt, figure, path)


def lookups(rows: Iterable[Row], path: Path) -> Path:
    """How many reads had ended after so many round trips."""
    plt, figure, axes = _figure()
    wanted = (ex.COLD, ex.CHURN)
    for row, colour in zip([r for r in rows if r.experiment in wanted], (OURS, THEIRS), strict=False):
        share = [100 * (i + 1) / len(row.rtts) for i in range(len(row.rtts))]
        axes.step(row.rtts, share, where="post", color=colour, label=f"{row.experiment}, {row.nodes:,} nodes")
    axes.axvline(4, color=LIMIT, linestyle=":", label="what the median must stay under")
    axes.set_xlim(0, 12)
    axes.set_ylim(0, 101)
    axes.set_xlabel("round trips (of the network's median)")
    axes.set_ylabel("reads that ended, %")
    axes.set_title("How long a read takes")
    axes.legend(frameon=False, loc="lower right")
    return _save(plt, figure, path)


def attacks(rows: Iterable[Row], path: Path) -> Path:
    """Reads that found the honest record, by what attackers do."""
    plt, figure, axes = _figure(5.6)
    chosen = [r for r in rows if ex.HOSTILE in r.experiment or ex.FREE_IDS in r.experiment][::-1]
    names = [r.experiment for r in chosen]
    colours = [THEIRS if r.experiment.startswith("kademlia") else OURS for r in chosen]
    bars = axes.barh(names, [100 * r.success for r in chosen], color=colours)
    axes.bar_label(bars, [f"{r.success:.2%}" for r in chosen], padding=3)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("reads that found the honest record, %")
    axes.set_title("Under attack")
    return _save(plt, figure, path)


TABLES = """# The DHT in the simulator

Made by `{command}` (seed {seed}, {seconds:.0f} s on two cores); the plots beside this file come from the same run.
The engine is the daemon's, byte for byte of what it sends; simulated are the wires (median round trip 80 ms,
log-normal by node), the clock, NATs, the attackers, and the Diffie-Hellman of a pair of nodes. The same seed gives
the same run: `digest` in `out/dht-sim.json` sums up every datagram and its time. A read counts as found when it
returns the newest version of the honest record, and it is made by a node that does not hold it. What the defences
are: ADR 0005; what is measured how: `dht/sim/experiments.py`.

## Targets

| target | asked | measured | |
| --- | --- | --- | --- |
{targets}

## Reads

| experiment | nodes | reads | found | round trips p50 | p95 |
| --- | --- | --- | --- | --- | --- |
{reads}

Plain reads end when two nodes gave records. Two that are hostile can agree on an old version, so what must be new
(contact records, arbiters, small markets) is read by three paths, until all of the closest nodes that live have
answered. In "eclipse" a fifth of all nodes, each with an address group of its own, lie nearer to the 100 keys that are
read than any honest node.

## What it costs a node

Half of the nodes replaced per hour; each node has a contact record out, every fourth an offer too, put again hourly.
"Care" is what holders and publishers ask for the records' sake.

| nodes | datagrams per node and hour | care per node and hour | busiest 10 s over mean | records held per node |
| --- | --- | --- | --- | --- |
{loads}

| storm | care in quiet, per node and hour | in the busiest 10 s, per node and second | busiest node, in 1 s |
| --- | --- | --- | --- |
{storms}

![datagrams per node and hour](dht-sim-messages.svg)
![how long a read takes](dht-sim-lookups.svg)
![under attack](dht-sim-attacks.svg)
"""


def _cells(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write_tables(
    rows: list[Row], verdicts: Iterable[Verdict], path: Path, *, command: str, seed: int, seconds: float
) -> Path:
    """The run as Markdown."""
    loads = [r for r in rows if r.experiment == ex.LOAD]
    storms = [r for r in rows if r.experiment in (ex.JOINS, ex.LEAVES)]
    text = TABLES.format(
        command=command,
        seed=seed,
        seconds=seconds,
        targets="\n".join(_cells(v.target, v.asked, v.measured, "ok" if v.ok else "**missed**") for v in verdicts),
        reads="\n".join(
            _cells(r.experiment, f"{r.nodes:,}", f"{r.reads:,}", f"{r.success:.2%}", *(r.rtts_p50, r.rtts_p95))
            if r.rtts
            else _cells(r.experiment, f"{r.nodes:,}", f"{r.reads:,}", f"{r.success:.2%}", "-", "-")
            for r in rows
            if r.reads
        ),
        loads="\n".join(
            _cells(
                f"{r.nodes:,}",
                f"{r.messages_per_node_hour:.0f}",
                *(r.notes[n] for n in ("care_per_node_hour", "care_peak_over_mean", "records_per_node")),
            )
            for r in loads
        ),
        storms="\n".join(
            _cells(
                r.experiment,
                *(r.notes[n] for n in ("care_quiet_per_node_hour", "care_peak_per_node_second", "busiest_node_per_s")),
            )
            for r in storms
        ),
    )
    path.write_text(text)
    return path


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """All plots. Raises ImportError without matplotlib."""
    return [
        messages(rows, folder / "dht-sim-messages.svg"),
        lookups(rows, folder / "dht-sim-lookups.svg"),
        attacks(rows, folder / "dht-sim-attacks.svg"),
    ]
