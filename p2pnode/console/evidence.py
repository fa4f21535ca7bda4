"""Looking at evidence on the terminal, and saving it: nothing in a file is ever run, opened or unpacked.

Text is shown with everything removed that a terminal would obey; tables and JSON are laid out. Of pictures and
documents the facts are shown that their headers tell. Saved files get names of our own making, in a folder that must be
no link, and are never made executable.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from p2pnode.api import evidence_schema as e
from p2pnode.console.cells import Cell, clean, columns, moment, pairs, row
from p2pnode.console.inputs import BadInput
from p2pnode.looking import text_kind
from protocol.attachment import safe_name

MOST_LINES: Final = 400
MOST_COLUMNS: Final = 16
MOST_CELL: Final = 200
MOST_LINE: Final = 2_000
_ENDINGS: Final = {
    "image/png": (".png",), "image/jpeg": (".jpg", ".jpeg"), "image/webp": (".webp",), "application/pdf": (".pdf",),
    "text/plain": (".txt", ".csv", ".json"),
}  # fmt: skip
INDEX: Final = "index.json"


def picture(file: e.EvidenceFile) -> RenderableType:
    """A file as a terminal can show it."""
    item, data = file.item, content(file)
    rows: list[tuple[str, Cell]] = [
        ("exhibit", str(item.number)),
        ("name", item.name),
        ("from", f"{item.by}{f', to {item.to}' if item.to else ''}"),
        ("when", moment(item.at) if item.at else ""),
        ("block", f"{item.height:,}, by its owner's word" if item.height else ""),
        ("note", item.note),
        ("type", f"{item.media}, {item.size_bytes:,} bytes"),
        ("hash", item.content),
        ("signed log", agrees(item)),
        *(
            (fact.name, Text(clean(fact.value), style="bold red" if fact.name == "beware" else ""))
            for fact in item.facts
        ),
    ]
    if item.media != "text/plain":
        return Group(pairs(rows), Text("To look at it, save it: --save FOLDER", style="dim"))
    return Group(pairs(rows), Text(""), *_text(data.decode("utf-8", "replace")))


def content(file: e.EvidenceFile) -> bytes:
    """Its bytes; none where the node sent something else than base64."""
    try:
        return b64decode(file.data, validate=True)
    except ValueError:
        return b""


def _text(text: str) -> list[RenderableType]:
    kind = text_kind(text)
    shown: list[RenderableType]
    if kind == "json" and (laid := _json(text)) is not None:
        lines = laid.splitlines()
        shown = [Text(clean(line[:MOST_LINE])) for line in lines[:MOST_LINES]]
    elif kind == "csv":
        lines = text.splitlines()
        shown = [_table(lines)]
    else:
        lines = text.splitlines()
        shown = [Text(clean(line.replace("\t", "    ")[:MOST_LINE])) for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        shown.append(Text(f"... and {len(lines) - MOST_LINES:,} lines more: --save FOLDER", style="dim"))
    return shown


def _json(text: str) -> str | None:
    """Laid out; None for what is no JSON, or too deep to be meant for people."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def _table(lines: Sequence[str]) -> RenderableType:
    marks = {mark: lines[0].count(mark) for mark in ",;\t"}
    mark = max(marks, key=lambda m: marks[m])
    try:
        rows = list(csv.reader(io.StringIO("\n".join(line[:MOST_LINE] for line in lines[:MOST_LINES])), delimiter=mark))
    except csv.Error:
        return Text(clean("\n".join(lines[:MOST_LINES])))
    wide = min(max((len(cells) for cells in rows), default=0), MOST_COLUMNS)
    # Headings are cells like others: rich would read markup in a column's name.
    found = columns(*("" for _ in range(wide)))
    found.show_header = False
    for cells in rows:
        padded = [*cells[:wide], *("" for _ in range(wide - len(cells)))]
        row(found, *(cell[:MOST_CELL] for cell in padded))
    return found


def agrees(item: e.EvidenceItem) -> Text:
    """Whether a file is the one that its owner's signed message names."""
    match item.matches:
        case None:
            return Text("not here yet", style="yellow")
        case True:
            return Text("matches", style="green")
        case False:
            return Text("DIFFERS", style="bold red")


# --- saving ------------------------------------------------------------------------------------------------------


def save(files: Sequence[e.EvidenceFile], folder: Path) -> list[str]:
    """Write files and an index of them into a folder, which is made where there is none; returns the names.

    Raises BadInput when the folder is a link, or a file of that name is there already.
    """
    opened = _open_folder(folder)
    try:
        names = [_write(opened, _file_name(file.item), content(file)) for file in files]
        index = [{"file": name, **msgspec.to_builtins(file.item)} for name, file in zip(names, files, strict=True)]
        _write(opened, INDEX, json.dumps(index, indent=2).encode())
        return names
    finally:
        os.close(opened)


def _file_name(item: e.EvidenceItem) -> str:
    """Number, owner and what is left of the name that its owner gave it, with the ending of its true type."""
    endings = _ENDINGS.get(item.media, (".bin",))
    name = safe_name(item.name)[:60]
    stem, dot, ending = name.rpartition(".")
    if dot and f".{ending.lower()}" in endings:
        return f"{item.number:02}-{safe_name(item.by)}-{stem}.{ending.lower()}"
    return f"{item.number:02}-{safe_name(item.by)}-{name}{endings[0]}"


def _open_folder(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        what = "is a link: name the folder itself" if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
        raise BadInput(f"{folder} can't be used: {what}") from error
    return opened


def _write(folder: int, name: str, data: bytes) -> str:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
    except OSError as error:
        raise BadInput(f"{name} can't be written: {error.strerror}") from error
    return name


# --- reading what is to be shown -----------------------------------------------------------------------------------


def read(name: str, most: int) -> bytes:
    """A file of the user's: a plain one, of at most so many bytes. Raises BadInput.

    A pipe or a device could be endless, whatever size it tells; nothing is read from one.
    """
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"{name} can't be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise BadInput(f"{name} is no plain file")
    with os.fdopen(opened, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadInput(f"{name} has more than {most:,} bytes")
    return data
