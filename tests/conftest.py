"""What all tests share: Hypothesis' settings, and bitcoind nodes for those that ask for one.

A test that asks for a node is marked `regtest`, wherever it is. Fixtures, cheapest first:

* `bitcoind`: the session's node, with coins. For tests that only add blocks; heights and balances are nobody's own.
* `own_bitcoind`: a node of the test's own, with coins. For tests that reorganise, stop or restart it.
* `two_bitcoinds`: two of them, connected, at the same tip. For tests that split the network.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from p2pnode.regtest import BitcoindMissing, RegtestNode, find_bitcoind

_NODE_FIXTURES = {"bitcoind_binary", "bitcoind", "own_bitcoind", "two_bitcoinds"}

# Derandomised, so that a change that breaks a property fails at that change. `HYPOTHESIS_PROFILE=explore` looks for
# new cases and prints how to repeat what it finds. No deadlines: two cores are shared with nodes at work.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("repeatable")


MEMORY = Path("/dev/shm")
ENOUGH = 4 << 30


def _work_in_memory() -> None:
    """Keep the files of tests where a flush to the disk costs nothing: it is half of the time of some of them.

    No test takes the power away, so nothing is lost to what they show. `TMPDIR` says otherwise.
    """
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


_work_in_memory()


# A shell that starts us in the background has us ignore Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let the environment choose Hypothesis' profile."""
    if profile := os.environ.get("HYPOTHESIS_PROFILE"):
        settings.load_profile(profile)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs bitcoind, and leave out what takes long unless it was asked for."""
    long = "long" in (config.getoption("-m") or "")
    for item in items:
        if item.get_closest_marker("long") and not long:
            item.add_marker(pytest.mark.skip(reason="runs with make long"))
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & _NODE_FIXTURES or "regtest" in item.path.parts:
            item.add_marker(pytest.mark.regtest)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short path, removed afterwards; pytest's own is too long for the name of a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="p2p-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bitcoind_binary() -> Path:
    """The bitcoind to test with; its absence is a failure, because a skipped test proves nothing."""
    try:
        return find_bitcoind()
    except BitcoindMissing as missing:
        pytest.fail(missing.detail, pytrace=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bitcoind(bitcoind_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RegtestNode]:
    """The session's node."""
    async with RegtestNode(tmp_path_factory.mktemp("bitcoind"), binary=bitcoind_binary) as node:
        await node.ensure_coins()
        yield node


@pytest_asyncio.fixture
async def own_bitcoind(bitcoind_binary: Path, tmp_path: Path) -> AsyncIterator[RegtestNode]:
    """A node of the test's own."""
    async with RegtestNode(tmp_path / "bitcoind", binary=bitcoind_binary) as node:
        await node.ensure_coins()
        yield node


@pytest_asyncio.fixture
async def two_bitcoinds(
    own_bitcoind: RegtestNode, bitcoind_binary: Path, tmp_path: Path
) -> AsyncIterator[tuple[RegtestNode, RegtestNode]]:
    """Two connected nodes; the first has the coins."""
    async with RegtestNode(tmp_path / "bitcoind-2", binary=bitcoind_binary) as other:
        await own_bitcoind.connect(other)
        yield own_bitcoind, other
