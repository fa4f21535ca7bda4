"""Our own reading of blocks: nothing is missed, and nothing crooked gets past."""

from __future__ import annotations

import random
import struct
import time

import pytest
from bitcoin.core import CTransaction
from hypothesis import given
from hypothesis import strategies as st

from escrow.chain.base import BackendError
from escrow.chain.blocks import match_block, parse_tx
from escrow.coins import OutPoint, TxOut
from escrow.transactions import REPLACEABLE, build, txid_of, with_witnesses


def size(n: int) -> bytes:
    if n < 0xFD:
        return bytes([n])
    return b"\xfd" + n.to_bytes(2, "little") if n <= 0xFFFF else b"\xfe" + n.to_bytes(4, "little")


def block_of(*txs: bytes) -> bytes:
    return bytes(80) + size(len(txs)) + b"".join(txs)


SCRIPTS = st.binary(max_size=300)
OUTPOINTS = st.builds(OutPoint, st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1))


@st.composite
def transactions(draw: st.DrawFn) -> bytes:
    spends = draw(st.lists(OUTPOINTS, min_size=1, max_size=4))
    outputs = draw(st.lists(st.builds(TxOut, st.integers(0, 21 * 10**14), SCRIPTS), min_size=1, max_size=4))
    unsigned = build([(o, REPLACEABLE) for o in spends], outputs)
    if draw(st.booleans()):
        return unsigned
    stack = st.lists(st.binary(max_size=600), min_size=1, max_size=3).map(tuple)
    return with_witnesses(unsigned, [draw(stack) for _ in spends])


@given(transactions())
def test_a_transaction_is_read_as_python_bitcoinlib_reads_it(raw: bytes) -> None:
    theirs, ours = CTransaction.deserialize(raw), parse_tx(raw)
    assert ours.txid == txid_of(raw) == theirs.GetTxid()
    assert [(o.txid, o.vout) for o in ours.spends] == [(i.prevout.hash, i.prevout.n) for i in theirs.vin]
    assert [(o.value, o.script_pubkey) for o in ours.outputs] == [
        (o.nValue, bytes(o.scriptPubKey)) for o in theirs.vout
    ]
    assert ours.raw == raw


@given(st.lists(transactions(), min_size=1, max_size=5), st.data())
def test_every_touching_transaction_of_a_block_is_found_and_no_other(txs: list[bytes], data: st.DataObject) -> None:
    parsed = [parse_tx(raw) for raw in txs]
    scripts = set(
        data.draw(st.lists(st.sampled_from([o.script_pubkey for t in parsed for o in t.outputs]), max_size=2))
    )
    outpoints = {
        o.wire for o in data.draw(st.lists(st.sampled_from([o for t in parsed for o in t.spends]), max_size=2))
    }
    found = match_block(block_of(*txs), scripts, outpoints)
    wanted = [
        t
        for t in parsed
        if any(o.script_pubkey in scripts for o in t.outputs) or any(o.wire in outpoints for o in t.spends)
    ]
    assert found == wanted


def test_spend_of_an_output_in_the_same_block_is_found() -> None:
    script = b"\x00\x14" + bytes(20)
    first = build([(OutPoint(b"\x01" * 32, 0), REPLACEABLE)], [TxOut(5_000, script)])
    second = build([(OutPoint(txid_of(first), 0), REPLACEABLE)], [TxOut(4_000, b"\x51")])
    unrelated = build([(OutPoint(b"\x02" * 32, 0), REPLACEABLE)], [TxOut(4_000, b"\x51")])
    found = match_block(block_of(unrelated, first, second), {script}, frozenset())
    assert [t.raw for t in found] == [first, second]


@given(st.lists(transactions(), min_size=1, max_size=3), st.data())
def test_a_block_that_is_cut_short_or_longer_raises_the_right_error(txs: list[bytes], data: st.DataObject) -> None:
    whole = block_of(*txs)
    cut = data.draw(st.integers(80, len(whole) - 1))
    for broken in (whole[:cut], whole + b"\x00"):
        with pytest.raises(BackendError):
            match_block(broken, frozenset(), frozenset())
    raw = txs[0]
    for broken in (raw[: data.draw(st.integers(0, len(raw) - 1))], raw + b"\x00"):
        with pytest.raises(BackendError):
            parse_tx(broken)


def test_counts_that_lie_do_not_hang_or_crash() -> None:
    for lie in (b"\xff" + b"\xff" * 8, b"\xfe\xff\xff\xff\xff", b"\xfd\xff\xff"):
        with pytest.raises(BackendError):
            match_block(bytes(80) + lie, frozenset(), frozenset())
        with pytest.raises(BackendError):
            parse_tx(b"\x02\x00\x00\x00" + lie + bytes(50))
        with pytest.raises(BackendError):
            parse_tx(b"\x02\x00\x00\x00\x01" + bytes(36) + lie + bytes(50))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (1, 3_000), (300, 1)])
def test_ten_thousand_scripts_are_matched_against_a_full_block_in_under_a_second(inputs: int, outputs: int) -> None:
    rng = random.Random(7)
    raw = b"\x02\x00\x00\x00\x00\x01" + size(inputs)
    raw += b"".join(rng.randbytes(36) + b"\x00" + b"\xff" * 4 for _ in range(inputs)) + size(outputs)
    raw += b"".join(struct.pack("<q", 1_000) + b"\x22\x00\x20" + rng.randbytes(32) for _ in range(outputs))
    raw += (b"\x02\x47" + bytes(71) + b"\x21" + bytes(33)) * inputs + bytes(4)
    weight = 3 * (10 + inputs * 41 + outputs * 43) + len(raw)
    count = 4_000_000 // weight
    block = block_of(*[raw] * count)
    scripts = {b"\x00\x20" + rng.randbytes(32) for _ in range(10_000)}
    outpoints = {rng.randbytes(36) for _ in range(10_000)}
    began = time.perf_counter()
    assert match_block(block, scripts, outpoints) == []
    took = time.perf_counter() - began
    print(f"{count} transactions, {len(block):,} bytes: {took * 1e3:.0f} ms")
    assert took < 1
