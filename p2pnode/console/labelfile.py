"""Labels to and from a file (BIP329), through the node."""

from __future__ import annotations

import sys
from pathlib import Path

from escrow.wallet.base import Label
from escrow.wallet.labels import BadLabels, read_labels, write_labels
from p2pnode.api.schema import LabelList, LabelRecord
from p2pnode.client import Client
from p2pnode.datadir import DiskError, write_private

MAX_FILE = 16_000_000
PORTION = 500
"""Records in one request."""


async def import_(node: Client, source: str) -> None:
    """Give the node the labels of a file (`-`: standard input). Raises BadLabels, before any is given."""
    try:
        raw = sys.stdin.buffer.read(MAX_FILE + 1) if source == "-" else Path(source).expanduser().read_bytes()
    except OSError as e:
        raise BadLabels(f"the labels can't be read from {source}: {e.strerror or e}") from e
    if len(raw) > MAX_FILE:
        raise BadLabels("that file is too large to be a list of labels")
    try:
        found = read_labels(raw.decode())
    except UnicodeDecodeError as e:
        raise BadLabels("that file is not UTF-8 text; nothing was imported") from e
    records = [
        LabelRecord(type=x.kind, ref=x.ref, label=x.label, origin=x.origin, spendable=x.spendable) for x in found
    ]
    for at in range(0, len(records), PORTION):
        await node.set_labels(records[at : at + PORTION])


def export(found: LabelList, target: str) -> None:
    """Write labels to a file (`-`: standard output). Raises DiskError."""
    text = write_labels(
        Label(kind=x.type, ref=x.ref, label=x.label, origin=x.origin, spendable=x.spendable) for x in found.labels
    )
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target).expanduser().absolute()
    if not path.parent.is_dir():
        raise DiskError(f"{path} can't be written: there is no folder {path.parent}")
    write_private(path, text.encode())
