"""Keys that nobody can put into an escrow without holding them, and an arbiter that stays unrecognised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from escrow.errors import BadArbiterKey, BadEscrowKey
from escrow.hd import ORDER
from escrow.keys import (
    KeyPurpose,
    arbiter_public,
    arbiter_secret,
    arbiter_tweak,
    check_keys,
    make_keys,
    prove,
    public_key,
    tweak_public,
    tweak_secret,
)
from protocol.contract import EscrowKeys
from protocol.types import Side
from tests.unit.escrow_support import Deal, fixed

DEAL = Deal()
PARTY = DEAL.party(Side.BUY)
MAIN, BACKUP = fixed("main"), fixed("backup")


def test_own_keys_pass() -> None:
    check_keys(PARTY, DEAL.trade_id)


def test_proof_of_another_trade_is_refused() -> None:
    """Else a key could be moved from trade to trade by whoever has seen its proof."""
    with pytest.raises(BadEscrowKey, match="main"):
        check_keys(PARTY, fixed("another trade"))


def test_proof_of_another_persona_is_refused() -> None:
    """Else the peer could claim our own key and our own proof for itself."""
    with pytest.raises(BadEscrowKey, match="main"):
        check_keys(replace(PARTY, persona=fixed("another")), DEAL.trade_id)


def test_proof_of_the_other_purpose_is_refused() -> None:
    keys = PARTY.keys
    swapped = EscrowKeys(keys.backup, keys.backup_proof, keys.main, keys.main_proof)
    with pytest.raises(BadEscrowKey, match="main"):
        check_keys(replace(PARTY, keys=swapped), DEAL.trade_id)


def test_forged_backup_proof_is_refused() -> None:
    keys = replace(PARTY.keys, backup_proof=PARTY.keys.main_proof)
    with pytest.raises(BadEscrowKey, match="backup"):
        check_keys(replace(PARTY, keys=keys), DEAL.trade_id)


def test_one_key_for_both_branches_is_refused() -> None:
    keys = make_keys(MAIN, MAIN, DEAL.trade_id, PARTY.persona)
    with pytest.raises(BadEscrowKey, match="same"):
        check_keys(replace(PARTY, keys=keys), DEAL.trade_id)


def test_mirrored_key_for_the_backup_branch_is_refused() -> None:
    """The point with the other sign has the same secret but for its sign."""
    mirrored = (ORDER - int.from_bytes(MAIN, "big")).to_bytes(32, "big")
    keys = make_keys(MAIN, mirrored, DEAL.trade_id, PARTY.persona)
    assert keys.main != keys.backup
    with pytest.raises(BadEscrowKey, match="same"):
        check_keys(replace(PARTY, keys=keys), DEAL.trade_id)


@pytest.mark.parametrize("key", [bytes(33), b"\x05" + bytes(32), b"\x02" + b"\xff" * 32])
def test_key_off_the_curve_is_refused(key: bytes) -> None:
    with pytest.raises(BadEscrowKey, match="curve"):
        check_keys(replace(PARTY, keys=replace(PARTY.keys, main=key)), DEAL.trade_id)


def test_purposes_have_proofs_of_their_own() -> None:
    proofs = {prove(MAIN, DEAL.trade_id, PARTY.persona, purpose) for purpose in KeyPurpose}
    assert len(proofs) == 2


@given(st.integers(1, ORDER - 1), st.binary(min_size=32, max_size=32))
def test_arbiter_holds_the_key_that_the_parties_derive(base: int, contract: bytes) -> None:
    secret = base.to_bytes(32, "big")
    assert public_key(arbiter_secret(secret, contract)) == arbiter_public(public_key(secret), contract)


def test_arbiter_key_is_the_base_point_plus_the_tweak() -> None:
    """Plain integers, so that the derivation does not only agree with itself."""
    base, contract = fixed("base"), fixed("contract")
    tweak = int.from_bytes(arbiter_tweak(public_key(base), contract), "big")
    expected = (int.from_bytes(base, "big") + tweak) % ORDER
    assert int.from_bytes(arbiter_secret(base, contract), "big") == expected


def test_arbiter_signs_for_one_contract_only() -> None:
    base = fixed("base")
    assert arbiter_secret(base, fixed("one")) != arbiter_secret(base, fixed("two"))


@pytest.mark.parametrize("point", [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64)])
def test_base_point_off_the_curve_is_refused(point: bytes) -> None:
    with pytest.raises(BadArbiterKey):
        arbiter_public(point, fixed("contract"))


BASE = fixed("base")


@pytest.mark.parametrize(
    "tweak",
    [
        ORDER.to_bytes(32, "big"),
        b"\xff" * 32,
        (ORDER - int.from_bytes(BASE, "big")).to_bytes(32, "big"),
    ],
    ids=["order", "largest", "sum at infinity"],
)
def test_tweak_that_gives_no_key_is_refused_not_reduced(tweak: bytes) -> None:
    with pytest.raises(BadArbiterKey):
        tweak_public(public_key(BASE), tweak)
    with pytest.raises(BadArbiterKey):
        tweak_secret(BASE, tweak)
