"""Which functions of ours take bytes or texts apart, and which of them the targets get to."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

from tests.fuzz.targets import TARGETS, seeds

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("protocol", "dht", "escrow", "p2pnode")
ELSEWHERE: Final = ("dht/sim/", "p2pnode/demo/", "p2pnode/console/")
"""A simulation, a demonstration, and what reads the command line and nothing else."""
DECODES: Final = frozenset({
    "from_bytes", "loads", "unpackb", "fromhex", "unpack", "unpack_from", "iter_unpack", "convert", "decode",
    "b64decode", "b32decode", "fromstring", "deserialize", "stream_deserialize", "Decoder", "decompress",
    "inet_ntop", "readexactly", "read_exactly",
})  # fmt: skip
"""Calls that take something apart."""
SEEDS: Final = 150
ENDS: Final = 200
"""Seeds at the end of a corpus were made by hand, those before come from vectors."""


def _name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _within(node: ast.AST, file: str, outer: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _within(child, file, (*outer, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(isinstance(n, ast.Call) and _name(n) in DECODES for n in ast.walk(child)):
                yield f"{file}:{'.'.join((*outer, child.name))}"
        elif not isinstance(child, ast.expr):
            yield from _within(child, file, outer)


@cache
def decoders() -> frozenset[str]:
    """`file:qualified name` of every function that takes something apart."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = str(path.relative_to(ROOT))
            if not file.startswith(ELSEWHERE):
                found.update(_within(ast.parse(path.read_text()), file, ()))
    return frozenset(found)


@cache
def reached() -> frozenset[str]:
    """The same of every function that a target ran on some of its seeds."""
    ran: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            ran.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    for name, target in TARGETS.items():
        corpus = seeds(name)
        sys.setprofile(note)
        try:
            for data in (*corpus[:: 1 + len(corpus) // SEEDS], *corpus[-ENDS:]):
                # What it raises, other tests tell.
                with suppress(Exception):
                    target(data)
        finally:
            sys.setprofile(None)
    root = f"{ROOT}/"
    return frozenset(f"{file.removeprefix(root)}:{name}" for file, name in ran if file.startswith(root))
