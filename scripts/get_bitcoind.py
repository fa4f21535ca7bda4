#!/usr/bin/env python3
"""Print the path of a usable bitcoind, fetching one first if this machine has none.

A bitcoind that is named by P2PNODE_BITCOIND, is on PATH, or was fetched before is used as it is. Otherwise, on
Debian, the package `bitcoin-knots` (a derivative of Bitcoin Core) and the libraries it needs are taken from the
*unstable* suite of the mirror that this machine's own apt is configured with:

1. a private apt state in a temporary folder, with an empty list of installed packages, so that apt's own resolver
   computes the complete closure, down to the C library;
2. Debian's archive keyring checks the suite's signature, and apt checks each package against the signed index;
3. `dpkg -x` unpacks into a staging folder below the cache; two wrappers, `bitcoind` and `bitcoin-cli`, start the
   programs through the folder's own dynamic loader and libraries, whatever this machine's are;
4. the result is started once, then renamed into place. A lock file lets one process at a time do this.

Nothing outside the cache folder and the temporary folder is written. Standard library only: this runs before any
dependency is installed. See docs/adr/0002-how-bitcoind-is-obtained.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from p2pnode.findbitcoind import MIN_VERSION, BitcoindMissing, cache_folder, find_bitcoind, major_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUITE = "unstable"
PACKAGE = "bitcoin-knots"
PROGRAMS = ("bitcoind", "bitcoin-cli")
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
# What a package of shared libraries is called in Debian. The rest of the closure (systemd for its user accounts,
# debconf for questions at installation) is there for a service that we do not install.
LIBRARY = re.compile(r"^(lib|zlib)")
NOT_NEEDED = re.compile(r"^lib(systemd|c-gconv|c-bin|c-l10n)")
PATIENCE_SECONDS = 600.0


class FetchError(Exception):
    """One line that says why bitcoind could not be fetched."""


def say(text: str) -> None:
    """Tell the person at the terminal; stdout carries the path alone."""
    print(f"bitcoind: {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run `command` and return its output; its last complaint becomes the error's text."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{Path(command[0]).name} did not run: {error}"
        raise FetchError(msg) from error
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        msg = f"{Path(command[0]).name} failed: {complaints[-1] if complaints else done.returncode}"
        raise FetchError(msg)
    return done.stdout


def mirrors() -> list[str]:
    """Return the Debian mirrors in this machine's own apt configuration, in its order."""
    listing = run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(COMPONENT)", "Created-By: Packages"])
    found: list[str] = []
    for line in listing.splitlines():
        uri, _, component = line.rpartition("|")
        # Security suites live in an archive of their own, which has no unstable.
        if component == "main" and uri not in found and "security" not in uri:
            found.append(uri)
    # An address that says Debian comes first; whether it is, the keyring decides.
    return sorted(found, key=lambda uri: not uri.rstrip("/").endswith("/debian"))


class PrivateApt:
    """An apt whose sources, state and downloads are below one folder, and which knows of no installed package."""

    def __init__(self, folder: Path, mirror: str, keyring: Path) -> None:
        """Write the sources; nothing is downloaded yet."""
        self.downloads = folder / "archives"
        state, cache, config = folder / "state", folder / "cache", folder / "etc"
        for needed in (state / "lists/partial", cache / "archives/partial", config, self.downloads):
            needed.mkdir(parents=True)
        architecture = run(["dpkg", "--print-architecture"]).strip()
        sources = config / "sources.list"
        sources.write_text(f"deb [arch={architecture} signed-by={keyring}] {mirror} {SUITE} main\n")
        status = state / "status"
        status.touch()
        self._options = [
            f"-oDir::Etc::sourcelist={sources}", "-oDir::Etc::sourceparts=/dev/null",
            "-oDir::Etc::preferences=/dev/null", "-oDir::Etc::preferencesparts=/dev/null",
            f"-oDir::State={state}", f"-oDir::State::status={status}", f"-oDir::Cache={cache}",
            "-oAcquire::Languages=none", "-oAcquire::Retries=3",
            # A failed update must fail here; by default apt only warns and goes on with nothing.
            "-oAPT::Update::Error-Mode=any",
        ]  # fmt: skip
        # Root's apt fetches as the user _apt, who has to reach these folders.
        for path in (folder, self.downloads):
            path.chmod(0o755)
        if os.geteuid() == 0:
            with contextlib.suppress(LookupError):
                shutil.chown(self.downloads, "_apt")

    def update(self) -> None:
        """Fetch and verify the suite's index."""
        run(["apt-get", *self._options, "-q", "update"])

    def closure(self, package: str) -> dict[str, str]:
        """Return name and version of `package` and of everything it needs."""
        plan = run(["apt-get", *self._options, "-qs", "--no-install-recommends", "install", package])
        return dict(re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE))

    def download(self, packages: dict[str, str]) -> list[Path]:
        """Fetch these packages, checked against the signed index."""
        names = [f"{name}={version}" for name, version in packages.items()]
        run(["apt-get", *self._options, "-q", "download", *names], cwd=self.downloads)
        return sorted(self.downloads.glob("*.deb"))


def unpack(debs: list[Path], into: Path) -> None:
    """Unpack `debs` below `into` and write the wrappers beside them."""
    root = into / "root"
    root.mkdir(parents=True)
    for deb in debs:
        run(["dpkg", "-x", deb, root])
    loaders = sorted(p for p in root.glob("usr/lib*/**/ld-linux*.so.*") if not p.is_symlink())
    if not loaders:
        msg = "the C library's package holds no dynamic loader"
        raise FetchError(msg)
    loader = loaders[0].relative_to(into)
    libraries = sorted({p.parent.relative_to(into) for p in root.glob("usr/lib/**/*.so.*")})
    for program in PROGRAMS:
        binary = next(iter(root.glob(f"usr/bin/{program}")), None)
        if binary is None:
            msg = f"the package {PACKAGE} holds no {program}"
            raise FetchError(msg)
        path = ":".join(f"$here/{p}" for p in libraries)
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


def fetch_from(mirror: str, keyring: Path, cache: Path) -> Path:
    """Fetch from one mirror into `cache` and return the wrapper's path."""
    with tempfile.TemporaryDirectory(prefix="p2pnode-apt-") as temporary:
        apt = PrivateApt(Path(temporary), mirror, keyring)
        say(f"reading the index of Debian {SUITE}")
        apt.update()
        closure = apt.closure(PACKAGE)
        if PACKAGE not in closure:
            msg = f"this mirror's {SUITE} has no {PACKAGE}"
            raise FetchError(msg)
        needed = {
            name: version
            for name, version in closure.items()
            if name == PACKAGE or (LIBRARY.match(name) and not NOT_NEEDED.match(name))
        }
        say(f"fetching {PACKAGE} {closure[PACKAGE]} and {len(needed) - 1} libraries")
        debs = apt.download(needed)
        name = "bitcoind-" + re.sub(r"[^A-Za-z0-9.+~-]", "_", closure[PACKAGE])
        staging, final = cache / f".{name}.staging", cache / name
        # Left by a process that was killed; the lock says that nobody is at work on it.
        shutil.rmtree(staging, ignore_errors=True)
        try:
            unpack(debs, staging)
            version = major_version(staging / "bitcoind")
            if version is None or version < MIN_VERSION:
                msg = f"the fetched bitcoind does not start here: {shlex.quote(str(staging / 'bitcoind'))} -version"
                raise FetchError(msg)
            # There only if it did not work: a whole and working one would have been found before.
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return final / "bitcoind"


def fetch() -> Path:
    """Fetch bitcoind from the first of this machine's mirrors that has it."""
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg")):
        msg = "this is not a Debian system"
        raise FetchError(msg)
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    if keyring is None:
        msg = "Debian's archive keyring is missing (package debian-archive-keyring)"
        raise FetchError(msg)
    candidates = mirrors()
    if not candidates:
        msg = "apt is configured with no Debian mirror"
        raise FetchError(msg)
    failures: list[FetchError] = []
    for mirror in candidates:
        try:
            return fetch_from(mirror, keyring, cache_folder())
        except FetchError as error:
            failures.append(error)
    # The likeliest mirror is tried first, so its failure tells most.
    raise failures[0]


def main() -> int:
    """Print the path; exit code 1 and one line if there is none."""
    try:
        try:
            path = find_bitcoind()
        except BitcoindMissing as missing:
            if os.environ.get("P2PNODE_BITCOIND"):
                raise FetchError(missing.detail) from missing
            with locked(cache_folder()):
                # Another process may have fetched it while this one waited.
                try:
                    path = find_bitcoind()
                except BitcoindMissing:
                    path = fetch()
    except (FetchError, OSError) as error:
        say(f"{error}. Install Bitcoin Core {MIN_VERSION} or newer so that bitcoind is on PATH,")
        say("or set P2PNODE_BITCOIND to its path, and run this again.")
        return 1
    except KeyboardInterrupt:
        return 130
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
