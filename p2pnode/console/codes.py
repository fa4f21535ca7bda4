"""Codes of the second factor at the terminal: asking for one, enabling a device, and the way out without it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from p2pnode.client import ApiError, Client, schema
from p2pnode.clock import SystemClock
from p2pnode.config import load
from p2pnode.console.inputs import BadInput
from p2pnode.console.launch import unlock
from p2pnode.console.progress import aside
from p2pnode.console.qr import squares
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.secondfactor import CodeNeeded, SecondFactor, WrongCode

CODE_VARIABLE: Final = "P2PNODE_CODE"
ATTEMPTS: Final = 3


async def ask_code() -> str:
    """A code from the environment or from whoever sits at the terminal. Raises CodeNeeded."""
    if CODE_VARIABLE in os.environ:
        return os.environ[CODE_VARIABLE].strip()
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CodeNeeded(f"this needs a code of the second factor: set {CODE_VARIABLE} to what your device shows")
    return await _read("Code of your second factor: ")


def digits(text: str) -> str:
    """Six digits. Raises BadInput."""
    cleaned = text.replace(" ", "")
    if not re.fullmatch(r"[0-9]{6}", cleaned):
        raise BadInput("a code has six digits, as your device shows them")
    return cleaned


def show_secret(secret: schema.FactorSecret) -> None:
    """What the device is to read, on stderr."""
    print(squares(secret.uri), file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        "Let your authenticator read the code above, or type its secret in:\n"
        f"  {' '.join(secret.secret[i : i + 4] for i in range(0, len(secret.secret), 4))}\n",
        file=sys.stderr,
    )


async def confirmed(node: Client) -> schema.RecoveryCodes:
    """Ask for the device's first code until it is right. Raises BadInput, ApiError."""
    left = ATTEMPTS
    while True:
        left -= 1
        try:
            return await node.second_factor_confirm(digits(await _read("The six digits that it shows now: ")))
        except (ApiError, BadInput) as e:
            if left == 0 or (isinstance(e, ApiError) and e.code != WrongCode.code):
                raise
            print(e, file=sys.stderr)  # noqa: T201


def reset(flags: Mapping[str, object], file: Path | None) -> None:
    """Switch the factor off without a code; the keystore's passphrase says that it is the owner.

    Raises P2PError: the node runs, the passphrase is wrong, ...
    """
    config = load(flags=flags, file=file, environ=os.environ)
    folder = DataDir(config.data_dir)
    folder.require_node()
    with folder.lock():
        keys = unlock(config, folder)
        with closing(Database(folder.database)) as database:
            SecondFactor(database, keys.node().seed, SystemClock(), "").remove()


async def _read(prompt: str) -> str:
    with aside():
        print(prompt, end="", file=sys.stderr, flush=True)  # noqa: T201
        line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()
