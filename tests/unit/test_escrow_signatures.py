"""Signatures that must be exactly as strict as the chain, or a little stricter."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from coincurve.ecdsa import cdata_to_der, der_to_cdata, signature_normalize
from hypothesis import given
from hypothesis import strategies as st

from escrow.coins import TxOut
from escrow.hd import ORDER
from escrow.keys import public_key
from escrow.signatures import (
    MAX_DER,
    is_point,
    is_strict_der,
    sign_ecdsa,
    sign_schnorr,
    verify_ecdsa,
    verify_schnorr,
)
from escrow.transactions import sighash_v1
from tests.unit.escrow_support import fixed

VECTORS = Path(__file__).parents[1] / "vectors" / "bitcoin"
BIP340 = list(csv.DictReader((VECTORS / "bip340.csv").read_text().splitlines()))
BIP341: dict[str, Any] = json.loads((VECTORS / "bip341.json").read_text())["keyPathSpending"][0]

KEY = fixed("key")
PUBLIC = public_key(KEY)
HASH = fixed("message")

secrets = st.integers(1, ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
hashes = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("case", BIP340, ids=lambda c: c["index"])
def test_bip340_verifies_and_signs_as_the_standard_says(case: dict[str, str]) -> None:
    message, signature = bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])
    public = bytes.fromhex(case["public key"])
    assert verify_schnorr(public, message, signature) == (case["verification result"] == "TRUE")
    if case["secret key"] and case["aux_rand"] == "00" * 32 and len(message) == 32:
        assert sign_schnorr(bytes.fromhex(case["secret key"]), message) == signature


def test_bip341_hash_of_a_key_path_spend_is_that_of_the_standard() -> None:
    spent = [TxOut(u["amountSats"], bytes.fromhex(u["scriptPubKey"])) for u in BIP341["given"]["utxosSpent"]]
    cases = [c for c in BIP341["inputSpending"] if c["given"]["hashType"] == 0]
    assert cases
    for case in cases:
        found = sighash_v1(bytes.fromhex(BIP341["given"]["rawUnsignedTx"]), case["given"]["txinIndex"], spent)
        assert found.hex() == case["intermediary"]["sigHash"]


@given(secrets, hashes)
def test_every_signature_of_ours_is_small_low_and_verifies(secret: bytes, sighash: bytes) -> None:
    signature = sign_ecdsa(secret, sighash)
    # 70 bytes: with the sighash byte the 71 that sizes are promised with.
    assert len(signature) <= 70
    assert is_strict_der(signature)
    assert verify_ecdsa(public_key(secret), sighash, signature)
    assert sign_ecdsa(secret, sighash) == signature


def test_first_attempt_is_plain_rfc_6979() -> None:
    """Most signatures need no counter: they are the ones that any other library makes."""
    names = [fixed("plain", i) for i in range(16)]
    plain = [PrivateKey(KEY).sign(name, hasher=None) for name in names]
    low = [i for i, signature in enumerate(plain) if signature[3] == 32]
    assert 0 < len(low) < len(names)
    assert all(sign_ecdsa(KEY, names[i]) == plain[i] for i in low)


@pytest.mark.parametrize(
    ("secret", "sighash"), [(bytes(32), HASH), (ORDER.to_bytes(32, "big"), HASH), (KEY, HASH[:-1]), (KEY, HASH + b"\0")]
)
def test_a_secret_outside_the_group_or_a_short_hash_signs_nothing(secret: bytes, sighash: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        sign_ecdsa(secret, sighash)


def der(r: bytes, s: bytes) -> bytes:
    body = b"\x02" + bytes([len(r)]) + r + b"\x02" + bytes([len(s)]) + s
    return b"\x30" + bytes([len(body)]) + body


def integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


LOW_S = ORDER // 2


@pytest.mark.parametrize(
    ("signature", "strict"),
    [
        (der(integer(1), integer(1)), True),
        (der(integer(ORDER - 1), integer(LOW_S)), True),
        (der(integer(1), integer(LOW_S + 1)), False),
        (der(integer(ORDER), integer(1)), False),
        (der(b"\x00", integer(1)), False),
        (der(integer(1), b"\x00"), False),
        (der(b"", integer(1)), False),
        (der(integer(1), b""), False),
        (der(b"\x00\x01", integer(1)), False),
        (der(integer(1), b"\x00\x01"), False),
        (der(b"\x81", integer(1)), False),
        (der(integer(1), b"\x81"), False),
        (der(integer(1), integer(1)) + b"\x00", False),
        (der(integer(1), integer(1))[:-1], False),
        (b"\x31" + der(integer(1), integer(1))[1:], False),
        (b"\x30\x81\x06" + der(integer(1), integer(1))[2:], False),
        (b"\x30\x06\x03\x01\x01\x02\x01\x01", False),
        (b"\x30\x06\x02\x01\x01\x03\x01\x01", False),
        (b"\x30\x06\x02\x7f\x01\x02\x01\x01", False),
        (b"\x30\x06\x02\x01\x01\x02\x7f\x01", False),
        (b"", False),
        (bytes(8), False),
        (bytes(MAX_DER + 1), False),
    ],
)
def test_der_has_one_form(signature: bytes, strict: bool) -> None:
    assert is_strict_der(signature) == strict


@given(secrets, hashes, st.data())
def test_what_is_strict_is_what_libsecp256k1_writes(secret: bytes, sighash: bytes, data: st.DataObject) -> None:
    """A difference would let a signature pass here and fail on the chain, or the other way round."""
    raw = bytearray(sign_ecdsa(secret, sighash))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    changed = bytes(raw)
    try:
        parsed = der_to_cdata(changed)
        canonical = cdata_to_der(parsed) == changed and not signature_normalize(parsed)[0]
    except ValueError:
        canonical = False
    # A value of zero, or one over the order, parses and can never verify.
    assert not is_strict_der(changed) or canonical
    assert is_strict_der(changed) or not canonical or not PrivateKey(secret).public_key.verify(changed, sighash, None)


def test_high_s_of_a_valid_signature_is_refused() -> None:
    """Anyone can make it from the valid one, and a txid-stable chain would still not relay it."""
    signature = sign_ecdsa(KEY, HASH)
    size = signature[3]
    high = der(signature[4 : 4 + size], integer(ORDER - int.from_bytes(signature[6 + size :], "big")))
    assert verify_ecdsa(PUBLIC, HASH, signature)
    assert not verify_ecdsa(PUBLIC, HASH, high)


@pytest.mark.parametrize(
    "public", [b"", PUBLIC[:-1], PUBLIC + b"\0", b"\x04" + PUBLIC[1:], bytes(33), b"\x02" + b"\xff" * 32]
)
def test_bad_keys_verify_nothing(public: bytes) -> None:
    assert not is_point(public)
    assert not verify_ecdsa(public, HASH, sign_ecdsa(KEY, HASH))
    assert not verify_schnorr(public, HASH, sign_schnorr(KEY, HASH))


def test_short_schnorr_signature_or_key_is_refused_not_read_past_its_end() -> None:
    signature = sign_schnorr(KEY, HASH)
    assert verify_schnorr(PUBLIC[1:], HASH, signature)
    assert not verify_schnorr(PUBLIC[1:], HASH, signature[:-1])
    assert not verify_schnorr(PUBLIC[2:], HASH, signature)
