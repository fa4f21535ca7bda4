"""Bundles from strangers: whatever lies in the file, `dispute verify` says one line and no more, soon."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest

from escrow.judge import EscrowChecks
from protocol.bundle import MAX_BUNDLE, BadBundle, Bundle, Conversation, build_bundle, verify_bundle
from protocol.case_messages import CaseOpening
from protocol.errors import P2PError
from protocol.messages import Agreed, Claim, ExtensionRequest, Proposal
from protocol.types import Branch, Network, Side
from tests.unit.escrow_support import NETWORK, fixed
from tests.unit.record_support import Record

NO_SIGNATURE = b"\x30\x06\x02\x01\x01\x02\x01\x01" + bytes(2)
ROOT = Path(__file__).resolve().parents[2]


def good(network: Network = NETWORK) -> bytes:
    record = Record()
    record.pay()
    contact = record.announced[Branch.MAIN][0].raw
    record.tell(Side.BUY, Branch.MAIN, CaseOpening(record.file(), Claim("paid", 1_000_000), 100, contact, None))
    talk = Conversation(
        record.keys[Side.BUY].public, record.arbiters[Branch.MAIN].public, tuple(record.cases[Side.BUY, Branch.MAIN][2])
    )
    return build_bundle(Bundle(network, record.file(), (), (talk,), ()))


def nested(depth: int) -> bytes:
    """An array in an array in an array."""
    return b"\x91" * depth + b"\xc0"


HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "cut": good()[:-500],
    "longer": good() + b"\0",
    "nested": nested(100_000),
    "a million elements": b"\xdd\x00\x0f\x42\x40" + b"\xc0" * 1_000_000,
    "claims to be huge": b"\xdd\xff\xff\xff\xff",
    "bytes that are not there": b"\xc6\xff\xff\xff\xff",
    "a map": msgpack.packb({"a": 1}),
    "floats": msgpack.packb([2, 1.5, []]),
    "an ext": msgpack.packb(msgpack.ExtType(1, b"x")),
    "another version": msgpack.packb([1, 4, [], [], [], []]),
    "another network": good(Network.MAINNET),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundle_is_refused_at_once(name: str) -> None:
    began = time.perf_counter()
    with pytest.raises(P2PError) as refused:
        verify_bundle(HOSTILE[name], EscrowChecks())
    assert "\n" not in refused.value.detail
    assert time.perf_counter() - began < 5


def test_good_bundle_is_not_refused() -> None:
    """The others differ from it by what they are named after."""
    assert verify_bundle(good(), EscrowChecks()).findings == ()


def test_bundle_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(BadBundle):
        verify_bundle(bytes(MAX_BUNDLE + 1), EscrowChecks())


def test_no_change_of_a_byte_makes_it_fail_otherwise() -> None:
    data, rng = good(), random.Random(7)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            verify_bundle(bytes(changed), EscrowChecks())
        except P2PError:
            continue


def test_record_as_long_as_one_may_be_is_judged_soon() -> None:
    """Each answer is looked up among the proposals: a thousand of both must not make a million payouts."""
    record = Record()
    record.pay()
    for n in range(400):
        record.say(Side.SELL, Proposal(1_000 + n, record.contract.fees.payout, NO_SIGNATURE))
        record.say(Side.BUY, Agreed(fixed(f"txid-{n}"), NO_SIGNATURE))
    for _ in range(1_000):
        record.say(Side.BUY, ExtensionRequest(1, "x"))
    began = time.perf_counter()
    verdict = verify_bundle(build_bundle(Bundle(NETWORK, record.file(), (), (), ())), EscrowChecks())
    assert verdict.findings
    taken = time.perf_counter() - began
    print(f"{len(record.raws)} messages judged in {taken:.1f} s")
    assert taken < 20


@pytest.mark.parametrize("name", ["empty", "cut", "nested", "another network", "folder", "pipe", "missing"])
def test_command_line_says_one_line_without_a_node_or_a_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "case.p2p"
    if name in HOSTILE:
        file.write_bytes(HOSTILE[name])
    elif name == "folder":
        file.mkdir()
    elif name == "pipe":
        os.mkfifo(file)
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "dispute", "verify", str(file), "--datadir", str(tmp_path / "none")],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("p2pnode:")
    assert not (tmp_path / "none").exists()


def test_command_line_verifies_what_holds(tmp_path: Path) -> None:
    file = tmp_path / "case.p2p"
    file.write_bytes(good())
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "dispute", "verify", str(file)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Every signature holds" in done.stdout
