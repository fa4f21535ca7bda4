"""An apt of one's own: packages from this machine's Debian mirror without changing this machine.

The state (sources, indexes, downloads, an empty list of installed packages) is in one temporary folder, so neither
root nor a free lock of the system's apt is needed. The mirror's address comes from the machine's own configuration,
and so do its proxy and credentials, which apt reads as always. Debian's archive keyring checks the suite's
signature, and apt checks each package against the signed index. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
PATIENCE_SECONDS = 600.0


class SetupError(Exception):
    """One line that says why something could not be set up."""


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run `command` and return its output; its last complaint becomes the text of the `SetupError`."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{name} did not run: {error}") from error
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        raise SetupError(f"{name} failed: {complaints[-1] if complaints else done.returncode}")
    return done.stdout


def mirrors() -> list[str]:
    """Return the Debian mirrors in this machine's own apt configuration, the likeliest first.

    Raises:
        SetupError: there are none.
    """
    listing = run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(COMPONENT)", "Created-By: Packages"])
    found: list[str] = []
    for line in listing.splitlines():
        uri, _, component = line.rpartition("|")
        # Security suites live in an archive of their own, which has neither unstable nor pip.
        if component == "main" and uri not in found and "security" not in uri:
            found.append(uri)
    if not found:
        raise SetupError("apt is configured with no Debian mirror")
    # An address that says Debian comes first; whether it is Debian's, the keyring decides.
    return sorted(found, key=lambda uri: not uri.rstrip("/").endswith("/debian"))


def keyring() -> Path:
    """Return Debian's archive keyring.

    Raises:
        SetupError: this is no Debian, or the keyring is missing.
    """
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg")):
        raise SetupError("this is not a Debian system")
    for path in KEYRINGS:
        if path.exists():
            return path
    raise SetupError("Debian's archive keyring is missing (package debian-archive-keyring)")


class PrivateApt:
    """An apt whose sources, state and downloads are below one folder, and which knows of no installed package."""

    def __init__(self, folder: Path, mirror: str, suite: str) -> None:
        """Write the sources; nothing is downloaded yet."""
        self.downloads = folder / "archives"
        state, cache, config = folder / "state", folder / "cache", folder / "etc"
        for needed in (state / "lists/partial", cache / "archives/partial", config, self.downloads):
            needed.mkdir(parents=True)
        architecture = run(["dpkg", "--print-architecture"]).strip()
        sources = config / "sources.list"
        sources.write_text(f"deb [arch={architecture} signed-by={keyring()}] {mirror} {suite} main\n")
        # It may hold a mirror's credentials.
        sources.chmod(0o600)
        status = state / "status"
        status.touch()
        self._options = [
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oDir::Etc::preferences=/dev/null",
            "-oDir::Etc::preferencesparts=/dev/null",
            f"-oDir::State={state}",
            f"-oDir::State::status={status}",
            f"-oDir::Cache={cache}",
            f"-oAPT::Architecture={architecture}",
            f"-oAPT::Architectures::={architecture}",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=3",
            # A failed update must fail here; by default apt only warns and goes on with nothing.
            "-oAPT::Update::Error-Mode=any",
        ]
        # Root's apt fetches as the user _apt, who has to reach these folders.
        for path in (folder, self.downloads):
            path.chmod(0o755)
        if os.geteuid() == 0:
            with contextlib.suppress(LookupError):
                shutil.chown(self.downloads, "_apt")

    @classmethod
    @contextlib.contextmanager
    def at(cls, mirror: str, suite: str) -> Iterator[PrivateApt]:
        """Provide one with a fetched and verified index; its folder is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="p2pnode-apt-") as folder:
            apt = cls(Path(folder), mirror, suite)
            run(["apt-get", *apt._options, "-q", "update"])
            yield apt

    def closure(self, package: str) -> dict[str, str]:
        """Return name and version of `package` and of all that it needs, down to the C library."""
        plan = run(["apt-get", *self._options, "-qs", "--no-install-recommends", "install", package])
        return dict(re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE))

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Fetch these packages (`name` or `name=version`), each checked against the signed index."""
        run(["apt-get", *self._options, "-q", "download", *packages], cwd=self.downloads)
        return sorted(self.downloads.glob("*.deb"))
