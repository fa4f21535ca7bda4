"""`p2pnode demo --dispute`, run as a user runs it: seven trades that go wrong, each to its end on a real chain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
AMOUNT, DEPOSIT, FEE = 1_000_000, 150_000, 10_000

pytestmark = [pytest.mark.regtest, pytest.mark.slow]

Scenes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def scenes(bitcoind_binary: Path) -> Iterator[Scenes]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-"))
    environment = {**os.environ, "P2PNODE_BITCOIND": str(bitcoind_binary), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "demo", "--dispute", "--json"],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    yield {scene["name"]: scene for scene in json.loads(done.stdout)["scenes"]}
    shutil.rmtree(folder, ignore_errors=True)


def test_every_way_that_a_dispute_can_go_is_played(scenes: Scenes) -> None:
    assert set(scenes) == {
        "buyer paid, seller silent",
        "seller right, buyer's deposit forfeited",
        "split 70/30",
        "settlement during the dispute",
        "mutual cancel",
        "case declined, backup rules",
        "arbiter vanished, backup rules",
    }


def test_no_dispute_takes_more_than_six_messages_beyond_evidence(scenes: Scenes) -> None:
    assert all(0 < scene["messages"] <= 6 for scene in scenes.values())


def test_not_a_satoshi_is_lost_and_the_fee_is_the_contracts(scenes: Scenes) -> None:
    for scene in scenes.values():
        ruled = scene["outcome"].startswith("ruled")
        assert scene["arbiter_sats"] == scene["fee_agreed_sats"] == (FEE if ruled else 0)
        given = scene["buyer_sats"] + scene["seller_sats"] + scene["arbiter_sats"]
        # The escrow carries the fee of a release; what a payout costs beyond it comes out of the dues.
        assert AMOUNT + 2 * DEPOSIT - 500 <= given <= AMOUNT + 2 * DEPOSIT


@pytest.mark.parametrize(
    ("name", "buyer", "branch", "signed_by"),
    [
        ("buyer paid, seller silent", AMOUNT + DEPOSIT, "main", ["buyer", "arbiter"]),
        ("seller right, buyer's deposit forfeited", DEPOSIT // 2 - FEE, "main", ["seller", "arbiter"]),
        ("split 70/30", AMOUNT * 7 // 10 + DEPOSIT, "main", ["buyer", "arbiter"]),
        ("settlement during the dispute", AMOUNT * 8 // 10 + DEPOSIT, "main", ["buyer", "seller"]),
        ("mutual cancel", DEPOSIT, "main", ["buyer", "seller"]),
        ("case declined, backup rules", AMOUNT + DEPOSIT, "backup", ["buyer", "arbiter"]),
        ("arbiter vanished, backup rules", AMOUNT + DEPOSIT, "backup", ["buyer", "arbiter"]),
    ],
)
def test_the_right_two_keys_paid_the_right_shares(
    scenes: Scenes, name: str, buyer: int, branch: str, signed_by: list[str]
) -> None:
    scene = scenes[name]
    assert buyer - 100 <= scene["buyer_sats"] <= buyer
    assert (scene["branch"], scene["signed_by"]) == (branch, signed_by)
