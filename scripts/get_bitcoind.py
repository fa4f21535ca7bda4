#!/usr/bin/env python3
"""Print the path of a usable bitcoind, fetching one first if this machine has none.

A bitcoind that is named by P2PNODE_BITCOIND, is on PATH, or was fetched before is used as it is. Otherwise, on
Debian, the package `bitcoin-knots` (a derivative of Bitcoin Core) and the libraries it needs come from the *unstable*
suite of this machine's own mirror, through an apt that changes nothing of the system (see private_apt.py).
`dpkg -x` unpacks them into a staging folder below the cache, and two wrappers, `bitcoind` and `bitcoin-cli`, start
the programs through that folder's own dynamic loader and libraries, whatever this machine's are. The result is started
once, then renamed into place. A lock file lets one process at a time do this.

Nothing outside the cache folder and a temporary folder is written. Standard library only.
docs/adr/0002-how-bitcoind-is-obtained.md says why it is done so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from p2pnode.findbitcoind import MIN_VERSION, BitcoindMissing, cache_folder, find_bitcoind, major_version
from scripts.private_apt import PrivateApt, SetupError, mirrors, run

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "unstable"
PACKAGE = "bitcoin-knots"
PROGRAMS = ("bitcoind", "bitcoin-cli")
# What a package of shared libraries is called in Debian. The rest of the closure (systemd for its user accounts,
# debconf for questions at installation) is there for a service that we do not install.
LIBRARY = re.compile(r"^(lib|zlib)")
NOT_NEEDED = re.compile(r"^lib(systemd|c-gconv|c-bin|c-l10n)")


def say(text: str) -> None:
    """Tell the person at the terminal; stdout carries the path alone."""
    print(f"bitcoind: {text}", file=sys.stderr, flush=True)


def unpack(debs: list[Path], into: Path) -> None:
    """Unpack `debs` below `into` and write the wrappers beside them."""
    root = into / "root"
    root.mkdir(parents=True)
    for deb in debs:
        run(["dpkg", "-x", deb, root])
    loaders = sorted(p for p in root.glob("usr/lib*/**/ld-linux*.so.*") if not p.is_symlink())
    if not loaders:
        raise SetupError("the C library's package holds no dynamic loader")
    loader = loaders[0].relative_to(into)
    libraries = sorted({p.parent.relative_to(into) for p in root.glob("usr/lib/**/*.so.*")})
    path = ":".join(f"$here/{p}" for p in libraries)
    for program in PROGRAMS:
        binary = root / "usr/bin" / program
        if not binary.exists():
            raise SetupError(f"the package {PACKAGE} holds no {program}")
        wrapper = into / program
        # exec keeps the process id, so that whoever starts this can stop it.
        wrapper.write_text(
            "#!/bin/sh\n"
            'here=$(dirname "$(readlink -f "$0")")\n'
            f'exec "$here/{loader}" --library-path "{path}" "$here/{binary.relative_to(into)}" "$@"\n'
        )
        wrapper.chmod(0o755)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache's lock; waits while another process fetches."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "bitcoind.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch_from(mirror: str, cache: Path) -> Path:
    """Fetch from one mirror into `cache` and return the wrapper's path."""
    say(f"none found; reading the index of Debian {SUITE}")
    with PrivateApt.at(mirror, SUITE) as apt:
        closure = apt.closure(PACKAGE)
        if PACKAGE not in closure:
            raise SetupError(f"this mirror's {SUITE} has no {PACKAGE}")
        needed = [
            f"{name}={version}"
            for name, version in closure.items()
            if name == PACKAGE or (LIBRARY.match(name) and not NOT_NEEDED.match(name))
        ]
        say(f"fetching {PACKAGE} {closure[PACKAGE]} and {len(needed) - 1} packages of libraries")
        debs = apt.download(needed)
        name = "bitcoind-" + re.sub(r"[^A-Za-z0-9.+~-]", "_", closure[PACKAGE])
        staging, final = cache / f".{name}.staging", cache / name
        # Left by a process that was killed; the lock says that nobody is at work on it.
        shutil.rmtree(staging, ignore_errors=True)
        try:
            unpack(debs, staging)
            version = major_version(staging / "bitcoind")
            if version is None or version < MIN_VERSION:
                raise SetupError(f"what was fetched does not start: {shlex.quote(str(staging / 'bitcoind'))} -version")
            # There only if it did not work: a whole and working one would have been found before.
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return final / "bitcoind"


def fetch() -> Path:
    """Fetch bitcoind from the first of this machine's mirrors that has it.

    Raises:
        SetupError: none has it, or this is no Debian.
    """
    if not shutil.which("apt-get"):
        raise SetupError("none found, and this is not a Debian system to fetch it from")
    failures: list[SetupError] = []
    for mirror in mirrors():
        try:
            return fetch_from(mirror, cache_folder())
        except SetupError as error:
            failures.append(error)
    # The likeliest mirror is tried first, so its failure tells most.
    raise failures[0]


def obtain() -> Path:
    """Return the path of a bitcoind, found or fetched.

    Raises:
        SetupError: neither was possible; the message says what to install.
    """
    try:
        return find_bitcoind()
    except BitcoindMissing as missing:
        if os.environ.get("P2PNODE_BITCOIND"):
            raise SetupError(missing.detail) from missing
    try:
        with locked(cache_folder()):
            # Another process may have fetched it while this one waited.
            with contextlib.suppress(BitcoindMissing):
                return find_bitcoind()
            return fetch()
    except (SetupError, OSError) as error:
        advice = f"Put bitcoind {MIN_VERSION} or newer on PATH, or point P2PNODE_BITCOIND at one"
        raise SetupError(f"{error}. {advice}") from error


def main() -> int:
    """Print the path; exit code 1 and one line if there is none."""
    try:
        print(obtain())
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
