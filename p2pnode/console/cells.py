"""Cells and small tables: what every view is put together from. A stranger's text becomes harmless on its way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from p2pnode.money import format_sats

SHORT: Final = 16
"""Digits of an id in a list; enough to name it in a command."""

_PHASE_STYLES: Final = {"completed": "green", "declined": "yellow", "cancelled": "yellow", "anomalous": "bold red"}

Cell = str | Text | None


def clean(text: str) -> str:
    """Text of a stranger without characters that could paint over the terminal; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


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


def span(seconds: int) -> str:
    """How long."""
    if seconds <= 0:
        return "0 s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
