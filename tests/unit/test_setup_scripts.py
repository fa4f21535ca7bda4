"""The set-up scripts, with the network left out: what they choose, what they build, what they say when they can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import get_bitcoind, private_apt
from scripts.private_apt import SetupError

ROOT = Path(__file__).resolve().parents[2]

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="packages are built with Debian's own tools")


def fake_program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def build_deb(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Build a package of executable files."""
    tree = folder / name
    for path, script in files.items():
        fake_program((tree / path).parent, (tree / path).name, script)
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control)
    deb = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
    return deb


def test_security_archive_and_repeats_are_passed_over_and_debian_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = (
        "http://other.example/tool|main\nhttp://mirror.example/debian-security/|main\n"
        "http://mirror.example/debian/|contrib\nhttp://mirror.example/debian/|main\nhttp://mirror.example/debian/|main"
    )
    fake_program(tmp_path, "apt-get", f"echo '{listing}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert private_apt.mirrors() == ["http://mirror.example/debian/", "http://other.example/tool"]


def test_apt_without_mirror_is_an_error_not_an_empty_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path, "apt-get", "true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SetupError, match="no Debian mirror"):
        private_apt.mirrors()


def test_failure_of_a_tool_is_told_in_its_own_last_words(tmp_path: Path) -> None:
    tool = fake_program(tmp_path, "tool", "echo first >&2; echo 'E: no space left' >&2; exit 100")
    with pytest.raises(SetupError, match=r"^tool failed: E: no space left$"):
        private_apt.run([tool])


@needs_dpkg
def test_wrapper_uses_the_folders_own_loader_and_keeps_the_process_id(tmp_path: Path) -> None:
    # The "loader" prints what it is given, and its own process id.
    libraries = build_deb(
        tmp_path,
        "libc6",
        {"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": 'echo $$ "$@"', "usr/lib/x86_64-linux-gnu/libc.so.6": ""},
    )
    programs = build_deb(tmp_path, "programs", {"usr/bin/bitcoind": "", "usr/bin/bitcoin-cli": ""})
    staging = tmp_path / "staging"
    get_bitcoind.unpack([libraries, programs], staging)
    moved = staging.rename(tmp_path / "moved")
    link = tmp_path / "link"
    link.symlink_to(moved / "bitcoind")
    with subprocess.Popen([link, "-a", "two words"], stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate()
    root = moved / "root"
    expected = f"{process.pid} --library-path {root}/usr/lib/x86_64-linux-gnu {root}/usr/bin/bitcoind -a two words"
    assert said.strip() == expected


@needs_dpkg
@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"usr/bin/bitcoind": "", "usr/bin/bitcoin-cli": ""}, "loader"),
        ({"usr/lib/ld-linux.so.2": "", "usr/bin/bitcoind": ""}, "bitcoin-cli"),
    ],
)
def test_package_that_lacks_a_part_is_refused(tmp_path: Path, files: dict[str, str], missing: str) -> None:
    with pytest.raises(SetupError, match=missing):
        get_bitcoind.unpack([build_deb(tmp_path, "package", files)], tmp_path / "staging")


def test_machine_without_apt_and_bitcoind_is_told_what_to_install_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/get_bitcoind.py"],
        env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "bitcoind 28 or newer" in done.stderr


def test_present_bitcoind_is_used_and_nothing_is_fetched(tmp_path: Path) -> None:
    present = fake_program(tmp_path / "bin", "bitcoind", "echo 'Bitcoin Core daemon version v29.0.0'")
    fake_program(tmp_path / "bin", "apt-get", f"touch {tmp_path}/asked; exit 1")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/get_bitcoind.py"],
        env={"PATH": f"{tmp_path / 'bin'}:{os.defpath}", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{present}\n")
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "cache").exists()
