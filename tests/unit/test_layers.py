"""The layers that import-linter can't see: the module `cli.py`, and what `protocol/` may reach at all.

import-linter judges packages, and a list of forbidden modules forgets the one it does not name. Here the lists name
what is allowed; everything else fails.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CLI_MAY_IMPORT = {"p2pnode.client", "p2pnode.console", "p2pnode.demo", "rich"}

PROTOCOL_MAY_IMPORT = {"protocol", "msgspec", "msgpack", "nacl"}
IMPURE_STDLIB = {
    "asyncio", "concurrent", "fcntl", "fileinput", "ftplib", "glob", "http", "imaplib", "importlib", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "poplib", "pty", "random", "resource", "sched", "secrets", "select",
    "selectors", "shelve", "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess",
    "sys", "syslog", "tempfile", "termios", "threading", "time", "urllib", "uuid", "xmlrpc", "zipfile",
}  # fmt: skip
IMPURE_CALLS = {"open", "input", "print", "breakpoint", "exec", "eval", "__import__"}
# Methods of pure modules that read the clock or draw chance all the same.
IMPURE_METHODS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    ("nacl.utils", "random"), ("utils", "random"), ("PrivateKey", "generate"), ("SigningKey", "generate"),
}  # fmt: skip


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of all that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            else:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


def is_stdlib(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def cli_trespasses(source: str) -> list[str]:
    return [
        f"line {line} imports {name}"
        for line, name in imports(ast.parse(source))
        if not is_stdlib(name) and not within(name, CLI_MAY_IMPORT)
    ]


def impurities(source: str) -> list[str]:
    """Name what makes a module of `protocol/` impure."""
    tree = ast.parse(source)
    found = []
    for line, name in imports(tree):
        top = name.partition(".")[0]
        if not (within(name, PROTOCOL_MAY_IMPORT) or (is_stdlib(name) and top not in IMPURE_STDLIB)):
            found.append(f"line {line} imports {name}")
        if within(name, {"nacl.utils.random"}):
            found.append(f"line {line} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno} is asynchronous")
        elif isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=called) if called in IMPURE_CALLS:
                    found.append(f"line {node.lineno} calls {called}")
                case ast.Attribute(value=owner, attr=method) if (ast.unparse(owner), method) in IMPURE_METHODS or (
                    ast.unparse(owner).rpartition(".")[2],
                    method,
                ) in IMPURE_METHODS:
                    found.append(f"line {node.lineno} calls {ast.unparse(node.func)}")
                case _:
                    pass
    return found


def test_cli_talks_to_the_daemon_through_its_client_only() -> None:
    cli = ROOT / "cli.py"
    assert cli_trespasses(cli.read_text()) == []


@pytest.mark.parametrize("path", modules("protocol"), ids=lambda path: str(path.relative_to(ROOT)))
def test_protocol_has_no_clock_chance_files_or_sockets(path: Path) -> None:
    assert impurities(path.read_text()) == []


@pytest.mark.parametrize("folder", ["protocol", "dht", "escrow", "p2pnode"])
def test_each_module_opens_with_its_theory_of_operation(folder: str) -> None:
    mute = [str(path) for path in modules(folder) if not ast.get_docstring(ast.parse(path.read_text()))]
    assert mute == []


@pytest.mark.parametrize(
    "source",
    [
        "import p2pnode.engine", "from p2pnode import engine", "from p2pnode.store import Store",
        "import protocol.wire", "def f():\n    from dht.node import Node", "import aiohttp",
    ],
)  # fmt: skip
def test_guard_of_cli_sees_a_trespass(source: str) -> None:
    assert cli_trespasses(source)


@pytest.mark.parametrize("source", ["from p2pnode.client import Client", "import p2pnode.client", "import json"])
def test_guard_of_cli_lets_its_own_imports_pass(source: str) -> None:
    assert not cli_trespasses(source)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio", "from time import time", "import os.path", "from random import random", "import aiohttp",
        "import coincurve", "from p2pnode import store", "from . import wire", "def f():\n    import secrets",
        "open('x')", "import datetime\ndatetime.datetime.now()", "from datetime import datetime\ndatetime.now()",
        "import nacl.utils\nnacl.utils.random(32)", "from nacl.utils import random", "async def f(): ...",
        "from nacl.signing import SigningKey\nSigningKey.generate()",
    ],
)  # fmt: skip
def test_guard_of_protocol_sees_an_impurity(source: str) -> None:
    assert impurities(source)


@pytest.mark.parametrize("source", ["import hashlib", "from nacl.signing import SigningKey", "import msgspec.structs"])
def test_guard_of_protocol_lets_pure_imports_pass(source: str) -> None:
    assert not impurities(source)
