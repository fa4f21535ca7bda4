"""The plots and the table of a run, as SVG and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dht.sim.experiments import Row

OURS, THEIRS, LIMIT = "#1f6f8b", "#c0504d", "#888888"


def _figure() -> tuple[Any, Any, Any]:
    # An extra: only this file needs it, and only when there is something to draw.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    # The same run gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "dht", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
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
    points = sorted((r.nodes, r.messages_per_node_hour) for r in rows if r.experiment.startswith("no reads"))
    axes.plot([n for n, _ in points], [m for _, m in points], marker="o", color=OURS)
    for n, m in points:
        axes.annotate(f"{m:.0f}", (n, m), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.4 * max(m for _, m in points))
    axes.set_xlabel("nodes")
    axes.set_ylabel("datagrams per node and hour")
    axes.set_title("Upkeep while half of the nodes are replaced per hour")
    return _save(plt, figure, path)


def lookups(rows: Iterable[Row], path: Path) -> Path:
    """How many reads had ended after so many round trips."""
    plt, figure, axes = _figure()
    wanted = ("first read", "50%/h")
    for row, colour in zip([r for r in rows if r.experiment.startswith(wanted)], (OURS, THEIRS), strict=False):
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
    plt, figure, axes = _figure()
    chosen = [r for r in rows if "hostile" in r.experiment or "free ids" in r.experiment][::-1]
    names = [r.experiment for r in chosen]
    colours = [THEIRS if r.experiment.startswith("kademlia") else OURS for r in chosen]
    bars = axes.barh(names, [100 * r.success for r in chosen], color=colours)
    axes.bar_label(bars, [f"{r.success:.2%}" for r in chosen], padding=3)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("reads that found the honest record, %")
    axes.set_title("Under attack")
    return _save(plt, figure, path)


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """All plots. Raises ImportError without matplotlib."""
    return [
        messages(rows, folder / "dht-sim-messages.svg"),
        lookups(rows, folder / "dht-sim-lookups.svg"),
        attacks(rows, folder / "dht-sim-attacks.svg"),
    ]
