"""Transactions from peers: read cheaply, in one way, and never past their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escrow.coins import OutPoint, TxOut
from escrow.transactions import NotATransaction, build, find_output, parse, txid_of, with_witnesses
from tests.unit.escrow_support import fixed, p2wpkh

VECTORS = Path(__file__).parents[1] / "vectors" / "bitcoin"
BIP341: dict[str, Any] = json.loads((VECTORS / "bip341.json").read_text())["keyPathSpending"][0]
KEY = fixed("key")
LEGACY = build([(OutPoint(fixed("in", i), i), i) for i in range(3)], [TxOut(1_000 + i, p2wpkh(KEY)) for i in range(4)])
SEGWIT = with_witnesses(LEGACY, [(b"one", b"two"), (), (b"",)])


@given(st.binary(max_size=300))
def test_bytes_that_are_no_transaction_are_refused_in_one_way(raw: bytes) -> None:
    with pytest.raises(NotATransaction):
        parse(raw)


@given(st.data())
def test_a_damaged_transaction_is_refused_or_another_one(data: st.DataObject) -> None:
    raw = bytearray.fromhex(BIP341["given"]["rawUnsignedTx"])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        tx = parse(changed)
    except NotATransaction:
        return
    assert bytes(tx.serialize()) == changed


def test_a_transaction_written_in_another_way_is_refused() -> None:
    """Two byte strings with one txid: what is compared byte for byte must have one form."""
    raw = build([(OutPoint(fixed("previous"), 0), 0)], [TxOut(1_000, p2wpkh(KEY))])
    parse(raw)
    long_count = raw[:4] + b"\xfd\x01\x00" + raw[5:]
    empty_witness = raw[:4] + b"\x00\x01" + raw[4:-4] + b"\x00" + raw[-4:]
    for other in (long_count, empty_witness, raw + b"\x00"):
        with pytest.raises(NotATransaction):
            parse(other)


@pytest.mark.parametrize("raw", [LEGACY, SEGWIT], ids=["legacy", "segwit"])
def test_output_is_found_as_the_full_parser_finds_it(raw: bytes) -> None:
    for index, output in enumerate(parse(raw).vout):
        assert find_output(raw, index) == (txid_of(raw), TxOut(output.nValue, bytes(output.scriptPubKey)))
    assert find_output(raw, 4) == (txid_of(LEGACY), None)


def test_large_counts_and_scripts_are_read() -> None:
    outputs = [TxOut(i, bytes(i)) for i in range(300)]
    raw = build([(OutPoint(fixed("in"), i), 0) for i in range(300)], outputs)
    for index in (0, 252, 253, 299):
        assert find_output(raw, index) == (txid_of(raw), outputs[index])


@given(st.binary(max_size=300), st.integers(0, 65_535))
def test_bytes_that_are_no_transaction_are_never_read_past_their_end(raw: bytes, vout: int) -> None:
    try:
        find_output(raw, vout)
    except NotATransaction:
        return


@given(st.sampled_from([LEGACY, SEGWIT]), st.data())
def test_what_is_found_in_a_damaged_transaction_is_what_its_txid_commits_to(raw: bytes, data: st.DataObject) -> None:
    """With the txid unchanged, value and script must be, too: else a peer could claim another value."""
    bent = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    vout = data.draw(st.integers(0, 3))
    try:
        txid, found = find_output(bytes(bent), vout)
    except NotATransaction:
        return
    assert txid != txid_of(raw) or found == find_output(raw, vout)[1]


@pytest.mark.parametrize("raw", [LEGACY[:-1], LEGACY + b"\0", SEGWIT[:50], b"", bytes(4)])
def test_cut_or_longer_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(NotATransaction):
        find_output(raw, 0)


@pytest.mark.parametrize("count", [b"\xfe\xff\xff\xff\xff", b"\xff" + b"\xff" * 8])
def test_a_count_that_lies_costs_no_more_than_its_bytes(count: bytes) -> None:
    """Eight such transactions come with one message."""
    for raw in (LEGACY[:4] + count + bytes(59_000), LEGACY[:4] + b"\x01" + bytes(41) + count + bytes(59_000)):
        with pytest.raises(NotATransaction):
            find_output(raw, 0)
