"""A machine for which bdkpython has no wheel runs the node in full with a bitcoind.

The wallet's own suites (sending, raising fees, restoring), whole trades between real nodes, every way that a dispute is
paid out, recovery and PSBTs are run by interpreters in which the import of bdkpython fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = Path(__file__).with_name("without_bdk")


def without_bdk(*command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
    environ |= {"PYTHONPATH": f"{BLOCKED}{os.pathsep}{ROOT}", **extra}
    return subprocess.run(
        [sys.executable, *command], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_import_is_really_blocked() -> None:
    done = without_bdk("-c", "import bdkpython")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.parametrize("suite", ["test_wallet.py", "test_wallet_spending.py", "test_wallet_cli.py"])
def test_the_wallets_own_tests_pass(bitcoind_binary: Path, suite: str) -> None:
    path = str(Path(__file__).with_name(suite))
    done = without_bdk("-m", "pytest", "-q", "-p", "no:cacheprovider", path, P2PNODE_BITCOIND=str(bitcoind_binary))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [("--escrow-type", "2"), ("--escrow-type", "1", "--single")], ids=["both", "single"])
def test_a_whole_trade_between_real_nodes_completes(bitcoind_binary: Path, kind: tuple[str, ...]) -> None:
    folder = tempfile.mkdtemp(prefix="p2p-")
    try:
        done = without_bdk(
            str(ROOT / "cli.py"), "demo", "--json", *kind, P2PNODE_BITCOIND=str(bitcoind_binary), TMPDIR=folder
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said = json.loads(done.stdout)
        assert said["payout_txid"]
        assert len(said["messages"]) == 6
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_way_that_a_dispute_ends_is_paid_out(bitcoind_binary: Path) -> None:
    """The payouts of rulings, of the backup arbiter's too, and of settlements."""
    folder = tempfile.mkdtemp(prefix="p2p-")
    try:
        done = without_bdk(
            str(ROOT / "cli.py"),
            "demo",
            "--dispute",
            "--json",
            P2PNODE_BITCOIND=str(bitcoind_binary),
            TMPDIR=folder,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        scenes = json.loads(done.stdout)["scenes"]
        assert len(scenes) == 7
        assert {scene["branch"] for scene in scenes} == {"main", "backup"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.parametrize("suite", ["test_recovery.py", "test_recovery_node.py", "test_wallet_watched.py"])
def test_recovery_and_coins_on_a_device_need_no_bdk(bitcoind_binary: Path, suite: str) -> None:
    path = str(Path(__file__).with_name(suite))
    done = without_bdk("-m", "pytest", "-q", "-p", "no:cacheprovider", path, P2PNODE_BITCOIND=str(bitcoind_binary))
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
