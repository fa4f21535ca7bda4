#!/usr/bin/env python3
"""Set up what the Makefile's targets need: the virtual environment, then (unless --no-bitcoind) bitcoind.

With --bench also the packages of requirements-bench.txt, which only `make bench`, `make sim` and `make fuzz` use.

Run by the system's Python, 3.11 to 3.13; needs nothing else. Quick when nothing changed: a stamp in the environment
holds a hash of all that went into it. Everything installed is in requirements-dev.txt and requirements-electrum.txt by
version and hash, as wheels, so no code runs that the locks do not name. The one package that has no wheel, the tests'
Electrum server, is built from its source (pure Python) with the build back end that the lock holds.

A Debian without `python3-venv` has no `ensurepip`. There pip itself comes from Debian's package `python3-pip-whl`,
through an apt that changes nothing of the system (see private_apt.py); root is not needed.
"""

from __future__ import annotations

import os
import shutil
import sys

# Before any other import of ours: a much older Python could not even read those.
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    for other in ("python3.13", "python3.12", "python3.11"):
        if found := shutil.which(other):
            os.execv(found, [found, *sys.argv])
    sys.exit(
        f"setup: Python 3.11, 3.12 or 3.13 is needed and {sys.executable} is {sys.version.split()[0]}: "
        "install one of them (on Debian 12 and newer the package python3)"
    )

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import get_bitcoind
from scripts.private_apt import PrivateApt, SetupError, mirrors, run

if TYPE_CHECKING:
    from collections.abc import Iterator

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".p2pnode-setup"
LOCK = ROOT / "requirements-dev.txt"
ELECTRUM_LOCK = ROOT / "requirements-electrum.txt"
SOURCE_ONLY = "e-x"
BENCH_STAMP = VENV / ".p2pnode-setup-bench"
BENCH_LOCK = ROOT / "requirements-bench.txt"
PIP_PACKAGE = "python3-pip-whl"


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fingerprint() -> str:
    """Return a hash of all that decides what the environment holds."""
    digest = hashlib.sha256(sys.version.encode())
    for part in (LOCK, ELECTRUM_LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Let one process at a time set up this checkout."""
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def works() -> bool:
    """Tell whether the environment's Python starts, is of this version and has pip."""
    probe = "import pip, sys; print(sys.version)"
    try:
        done = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == sys.version


def pip_from_debian(folder: Path) -> Path:
    """Unpack Debian's own wheel of pip below `folder` and return its path."""
    if not shutil.which("apt-get"):
        raise SetupError("this Python has no ensurepip: install it (on Debian and Ubuntu the package python3-venv)")
    release = Path("/etc/os-release")
    settings = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
    suite = settings.get("VERSION_CODENAME", "stable").strip('"')
    say(f"this Python has no ensurepip; taking pip from Debian {suite}")
    failures: list[SetupError] = []
    for mirror in mirrors():
        try:
            with PrivateApt.at(mirror, suite) as apt:
                for deb in apt.download([PIP_PACKAGE]):
                    run(["dpkg", "-x", deb, folder])
        except SetupError as error:
            failures.append(error)
            continue
        if wheels := sorted(folder.glob("usr/share/python-wheels/pip-*.whl")):
            return wheels[-1]
        failures.append(SetupError(f"the package {PIP_PACKAGE} holds no pip"))
    raise SetupError(f"{failures[0]}. Install the package python3-venv and run this again")


def create() -> None:
    """Make the environment anew, with pip in it."""
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    if importlib.util.find_spec("ensurepip"):
        run([sys.executable, "-m", "venv", VENV])
        return
    run([sys.executable, "-m", "venv", "--without-pip", VENV])
    wheel = pip_from_debian(VENV / "bootstrap")
    # A wheel is a zip file that Python can import from: this pip installs itself.
    run([PYTHON, f"{wheel}/pip", "install", "--quiet", "--no-index", "--no-deps", wheel])
    shutil.rmtree(VENV / "bootstrap")


def pip_install(*arguments: str) -> None:
    """Run pip in the environment."""
    # Quiet twice: errors only. A machine's own pip settings may warn at length.
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    # pip speaks for itself: it names the package and the reason.
    if subprocess.run([*pip, *arguments], check=False).returncode != 0:
        raise SetupError("pip could not install the packages (see above)")


def install_locked(lock: Path, *options: str) -> None:
    """Install what a lock names."""
    say(f"installing the packages of {lock.name}")
    pip_install("--require-hashes", "--only-binary", ":all:", *options, "--requirement", str(lock))


def install() -> None:
    """Install what the lock names, then this project in place."""
    install_locked(LOCK)
    # Without isolation, since that would fetch a build back end that no lock names; the one from above builds.
    install_locked(ELECTRUM_LOCK, "--no-binary", SOURCE_ONLY, "--no-build-isolation")
    # The lock holds the build back end too, so nothing is fetched here.
    pip_install("--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))


def environment() -> None:
    """Bring the virtual environment up to date."""
    wanted = fingerprint()
    with locked():
        if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
            return
        began = time.monotonic()
        if not works():
            create()
        STAMP.unlink(missing_ok=True)
        install()
        STAMP.write_text(wanted)
        say(f"the virtual environment is ready ({time.monotonic() - began:.0f} s)")


def bench_packages() -> None:
    """Add what only the benches, the simulator and the fuzzer use."""
    wanted = fingerprint() + hashlib.sha256(BENCH_LOCK.read_bytes()).hexdigest()
    with locked():
        if BENCH_STAMP.exists() and BENCH_STAMP.read_text() == wanted:
            return
        began = time.monotonic()
        install_locked(BENCH_LOCK)
        BENCH_STAMP.write_text(wanted)
        say(f"the packages of the benches are ready ({time.monotonic() - began:.0f} s)")


def main() -> int:
    """Set up; exit code 1 and one line if that can't be done."""
    parser = argparse.ArgumentParser(description="Set up the virtual environment and bitcoind.")
    parser.add_argument("--no-bitcoind", action="store_true", help="the virtual environment only")
    parser.add_argument("--bench", action="store_true", help="the packages of the benches too")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        environment()
        if arguments.bench:
            bench_packages()
        if not arguments.no_bitcoind:
            get_bitcoind.obtain()
    except (SetupError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
