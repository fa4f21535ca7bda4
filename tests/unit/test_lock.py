"""The lock says exactly what is installed: all of it, by hash, and what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME: list[str] = PROJECT["dependencies"]
BENCH: list[str] = [*RUNTIME, *PROJECT["optional-dependencies"]["bench"]]
ALL: list[str] = [*RUNTIME, *PROJECT["optional-dependencies"]["dev"]]


def entries(name: str) -> list[str]:
    """Return the logical lines of a lock, one for each pinned package."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def pins(name: str) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = {}
    for line in entries(name):
        package, version = re.match(r"([a-z0-9-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
        found.setdefault(package, []).append(Version(version))
    return found


ELECTRUM = [line for line in (ROOT / "requirements-electrum.in").read_text().splitlines() if line[0] != "#"]
LOCKS = {
    "requirements.txt": RUNTIME,
    "requirements-dev.txt": ALL,
    "requirements-bench.txt": BENCH,
    "requirements-electrum.txt": ELECTRUM,
}


@pytest.mark.parametrize(("lock", "wanted"), LOCKS.items())
def test_lock_meets_what_the_project_asks_for(lock: str, wanted: list[str]) -> None:
    have = pins(lock)
    for text in wanted:
        requirement = Requirement(text)
        versions = have.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is not in {lock}: run `make lock`"
        assert all(version in requirement.specifier for version in versions), f"{text}: run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_no_entry_without_hash_and_no_address_of_an_index(lock: str) -> None:
    assert entries(lock)
    assert [line for line in entries(lock) if not re.search(r" --hash=sha256:[0-9a-f]{64}", line)] == []
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|--trusted-host", (ROOT / lock).read_text())


def test_tests_run_against_the_versions_that_users_get() -> None:
    developers = pins("requirements-dev.txt")
    assert {name: developers.get(name) for name in pins("requirements.txt")} == pins("requirements.txt")


@pytest.mark.parametrize("lock", ["requirements-bench.txt", "requirements-electrum.txt"])
def test_what_comes_on_top_changes_no_version_that_users_get(lock: str) -> None:
    more, developers = pins(lock), pins("requirements-dev.txt")
    assert {name: more[name] for name in more.keys() & developers} == {
        name: developers[name] for name in more.keys() & developers
    }
