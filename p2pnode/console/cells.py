"""Cells and small tables: what every view is put together from. A stranger's text becomes harmless on its way."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from p2pnode.api.schema.base import DeadlineView
from p2pnode.money import format_sats

SHORT: Final = 16
"""Digits of an id in a list; enough to name it in a command."""

MOST_MARKS: Final = 3
"""Combining marks on one letter; no language needs more."""

_PHASE_STYLES: Final = {"completed": "green", "declined": "yellow", "cancelled": "yellow", "anomalous": "bold red"}

Cell = str | Text | None


def clean(text: str) -> str:
    """Text of a stranger without characters that could paint over the terminal or turn lines round; line breaks stay.

    What is not printable goes: controls, and those of writing direction. So do piles of combining marks, which would
    cover the lines above.
    """
    shown: list[str] = []
    piled = 0
    for c in text:
        piled = piled + 1 if unicodedata.combining(c) else 0
        if piled <= MOST_MARKS:
            shown.append(c if c.isprintable() or c == "\n" else "�")
    return "".join(shown)


def columns(*names: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    """A table with these columns; the ones in `right` are numbers."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in names:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def row(table: Table, *cells: Cell) -> None:
    """Add a row; plain text becomes harmless on its way."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell or "")) for cell in cells))


def pairs(rows: Sequence[tuple[str, Cell]], *, title: str | None = None) -> Table:
    """Names and values below each other; rows without a value are left out."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, ""):
            row(table, name, value)
    return table


def phase(phase: str) -> Text:
    """A phase, in its colour."""
    return Text(clean(phase), style=_PHASE_STYLES.get(phase, "cyan"))


def btc(sats: int) -> str:
    """An amount."""
    return f"{format_sats(sats)} BTC"


def tx(txid: str, vout: int | None) -> str:
    """A transaction, or an output of it."""
    return txid if vout is None else f"{txid}:{vout}"


def depth(depth: int | None, required: int | None) -> str:
    """How deep a transaction is."""
    if depth is None:
        return "not seen on the chain yet"
    of = f" of {required}" if required is not None and depth < required else ""
    return "in the mempool" if depth == 0 else f"{depth}{of} confirmation{'s' if depth != 1 or of else ''}"


def when(unix: int) -> str:
    """A time, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


DEADLINES: Final = {
    "answer": "the maker's answer", "seal": "the taker's signature", "signing": "a signature on a device",
    "funding": "the seller's funding", "payment": "time to pay", "arbiter": "the arbiter's time",
    "backup": "backup arbiter works", "hearing": "evidence", "reminder": "reminder", "ruling": "your ruling",
}  # fmt: skip
"""What is due, by the names of deadlines."""


def due(view: DeadlineView) -> str:
    """A deadline: the block, which decides, and about when that will be, in local time."""
    if view.height is None or view.blocks is None:
        return f"{moment(view.estimated_at)}, by this machine's clock"
    if view.blocks > 0:
        left = f"in {view.blocks:,} block{'s' if view.blocks != 1 else ''}, estimated {moment(view.estimated_at)}"
    else:
        left = "now" if view.blocks == 0 else f"{-view.blocks:,} block{'s' if view.blocks != -1 else ''} ago"
    return f"block {view.height:,}, {left}"


def due_short(view: DeadlineView | None) -> str:
    """The same for a list."""
    if view is None:
        return ""
    name = DEADLINES.get(view.name, view.name)
    if view.height is None or view.blocks is None:
        return f"{name}: {moment(view.estimated_at)}"
    return f"{name}: block {view.height:,} (~{moment(view.estimated_at)})"


def moment(unix: int) -> str:
    """A time to the minute, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def span(seconds: int) -> str:
    """How long."""
    if seconds <= 0:
        return "0 s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
