"""Signet blocks that nobody signed must not confirm a payment (BIP325)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from escrow.chain.base import BackendError, ProofFailed
from escrow.chain.headers import ANCHORS, hash256
from escrow.chain.signet import check_signed, check_whole
from protocol.types import Network

REAL = json.loads((Path(__file__).parents[1] / "vectors" / "bitcoin" / "real-blocks.json").read_text())["blocks"]
BLOCK = bytes.fromhex(next(b["block"] for b in REAL if b["network"] == "signet"))
TESTNET = bytes.fromhex(next(b["block"] for b in REAL if b["network"] == "testnet"))


def test_a_real_block_is_signed() -> None:
    check_signed(BLOCK)
    check_whole(BLOCK, hash256(BLOCK[:80]), Network.SIGNET)


def test_a_whole_block_without_a_signature_passes_anywhere_but_on_signet() -> None:
    name = hash256(TESTNET[:80])
    check_whole(TESTNET, name, Network.TESTNET)
    with pytest.raises(ProofFailed, match="not signed"):
        check_whole(TESTNET, name, Network.SIGNET)


@pytest.mark.parametrize("at", [0, 4, 68])
def test_what_the_signature_covers_can_not_be_changed(at: int) -> None:
    changed = bytearray(BLOCK)
    changed[at] ^= 1
    with pytest.raises(ProofFailed, match="not signed"):
        check_signed(bytes(changed))


def test_a_payment_that_was_put_in_is_noticed() -> None:
    changed = bytearray(BLOCK)
    value = BLOCK.rindex(bytes.fromhex("6a24aa21a9ed")) - 10
    changed[value - 1] ^= 1
    with pytest.raises(ProofFailed, match="not signed"):
        check_signed(bytes(changed))


def test_a_block_of_another_network_and_one_without_a_signature_are_refused() -> None:
    with pytest.raises(ProofFailed, match="not signed"):
        check_signed(TESTNET)
    mark = bytes.fromhex("ecc7daa2")
    with pytest.raises(ProofFailed, match="not signed"):
        check_signed(BLOCK.replace(mark, b"\0" * 4))


def test_a_block_that_is_cut_short_is_one_error() -> None:
    for size in range(81, len(BLOCK), 7):
        with pytest.raises((ProofFailed, BackendError)):
            check_signed(BLOCK[:size])


def test_the_signature_itself_is_not_covered_by_work_alone() -> None:
    """Whoever mines on top of the first block without the keys has a header that is taken, and a block that is not."""
    assert ANCHORS[Network.SIGNET][0].height == 0
    changed = bytearray(BLOCK)
    at = BLOCK.index(bytes.fromhex("ecc7daa2")) + 20
    changed[at] ^= 1
    with pytest.raises(ProofFailed, match="not signed"):
        check_signed(bytes(changed))
