"""Find a `bitcoind` on this machine: the environment, `PATH`, then the cache that `make setup` fills.

Only regtest needs this (the demo, the tests, the benchmarks); on other networks the user names a running node.
The module imports the standard library and the error types alone, so that `scripts/get_bitcoind.py` can share
it before any dependency is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from protocol.errors import UserError

MIN_VERSION: Final = 28
"""Oldest major version that offers what we use (package relay and `testmempoolaccept` of packages)."""

_VERSION_LINE: Final = re.compile(r"version v?(\d+)\.")
_PROBE_SECONDS: Final = 20.0


class BitcoindMissing(UserError):
    """No usable bitcoind: run `make setup`, or install Bitcoin Core 28 or newer, or point P2PNODE_BITCOIND at it."""

    code = 3901


def cache_folder() -> Path:
    """Return the folder that holds fetched copies of bitcoind; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "p2pnode"


def major_version(binary: str | Path) -> int | None:
    """Return the major version that `binary -version` prints, or None if it is no bitcoind that runs here."""
    try:
        # The path is the user's own choice (environment, PATH or our cache); there is no shell.
        done = subprocess.run(
            [str(binary), "-version"], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION_LINE.search(done.stdout)
    return int(match.group(1)) if done.returncode == 0 and match else None


def find_bitcoind() -> Path:
    """Return the path of a bitcoind of version 28 or newer.

    `P2PNODE_BITCOIND` is taken or refused, never skipped: a user who names a binary means that one. On `PATH`
    an old version is passed over in favour of the cached copy.

    Raises:
        BitcoindMissing: nothing usable was found; the message says what to install.
    """
    named = os.environ.get("P2PNODE_BITCOIND")
    if named:
        path = shutil.which(named)
        version = major_version(path) if path else None
        if path is None or version is None:
            raise BitcoindMissing(f"P2PNODE_BITCOIND is {named!r}, no bitcoind that runs here: correct or unset it")
        if version < MIN_VERSION:
            raise BitcoindMissing(f"P2PNODE_BITCOIND is version {version}; {MIN_VERSION} or newer is needed")
        return Path(path).absolute()
    on_path = shutil.which("bitcoind")
    if on_path and (major_version(on_path) or 0) >= MIN_VERSION:
        return Path(on_path).absolute()
    # Newest first by time: package versions do not sort as text. A folder is renamed into place only when whole.
    cached = sorted(cache_folder().glob("bitcoind-*/bitcoind"), key=lambda p: p.stat().st_mtime, reverse=True)
    for candidate in cached:
        if (major_version(candidate) or 0) >= MIN_VERSION:
            return candidate
    raise BitcoindMissing
