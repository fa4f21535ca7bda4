"""Keys that come back from the mnemonic alone, or refuse to."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import bdkpython as bdk
import pytest

from escrow.hd import HARDENED, ExtendedKey, base58check, base58check_decode
from escrow.seed import (
    BadMnemonic,
    EscrowRole,
    Seed,
    bip39_seed,
    bip85_entropy,
    entropy_from_mnemonic,
    mnemonic_from_entropy,
    trade_words,
)

Case = dict[str, Any]
VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Case:
    loaded: Case = json.loads((VECTORS / name).read_text())
    return loaded


BIP32 = load("bitcoin/bip32.json")["vectors"]
BIP39 = load("bitcoin/bip39.json")
BIP85 = load("bitcoin/bip85.json")
KEYS = load("keys.json")


def indices(path: str) -> list[int]:
    return [int(p.rstrip("'")) + (HARDENED if p.endswith("'") else 0) for p in path.split("/")[1:]]


@pytest.mark.parametrize("case", BIP32, ids=lambda c: f"{c['seed'][:8]}:{c['path']}")
def test_bip32_derives_what_every_other_wallet_derives(case: Case) -> None:
    key = ExtendedKey.from_seed(bytes.fromhex(case["seed"])).derive(*indices(case["path"]))
    assert key.xprv() == case["xprv"]
    assert key.xpub() == case["xpub"]


def test_extended_keys_outside_the_group_are_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    for secret in (0, order, order + 1):
        with pytest.raises(ValueError, match="not a valid"):
            ExtendedKey(secret.to_bytes(32, "big"), bytes(32))
    ExtendedKey((order - 1).to_bytes(32, "big"), bytes(32))
    with pytest.raises(ValueError, match="32 bits"):
        ExtendedKey.from_seed(bytes(16)).derive(2**32)
    with pytest.raises(ValueError, match="16 to 64"):
        ExtendedKey.from_seed(bytes(15))


@pytest.mark.parametrize("case", BIP39["seeds"] + BIP39["mnemonics"], ids=lambda c: c["entropy"][:16])
def test_bip39_words_and_entropy_are_each_others_inverse(case: Case) -> None:
    entropy = bytes.fromhex(case["entropy"])
    assert mnemonic_from_entropy(entropy) == case["mnemonic"]
    assert entropy_from_mnemonic(case["mnemonic"]) == entropy
    if "seed" in case:
        assert bip39_seed(case["mnemonic"], BIP39["passphrase"]).hex() == case["seed"]


def test_a_mnemonic_typed_carelessly_is_the_same_mnemonic() -> None:
    clean = BIP39["mnemonics"][2]["mnemonic"]
    careless = "  " + clean.upper().replace(" ", "\n  ") + "\t"
    assert bip39_seed(careless) == bip39_seed(clean)


def test_an_unknown_word_is_named_with_its_place() -> None:
    with pytest.raises(BadMnemonic, match=r"word 23 of the mnemonic, “abandno”.*did you mean “abandon”"):
        entropy_from_mnemonic("abandon " * 22 + "abandno art")


@pytest.mark.parametrize("case", KEYS["invalid_mnemonics"], ids=lambda c: c.get("why", "unknown word"))
def test_an_invalid_mnemonic_is_refused(case: Case) -> None:
    with pytest.raises(BadMnemonic) as refusal:
        Seed.from_mnemonic(case["mnemonic"])
    assert (case["names"] if "names" in case else case["why"]) in str(refusal.value)


def test_two_swapped_words_do_not_open_another_wallet() -> None:
    words = BIP39["mnemonics"][2]["mnemonic"].split()
    refused = 0
    for i in range(23):
        swapped = [*words]
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        try:
            entropy_from_mnemonic(" ".join(swapped))
        except BadMnemonic:
            refused += 1
    # 24 words carry eight checksum bits: one swap in 256 goes unseen.
    assert refused >= 22


def test_entropy_of_another_length_is_refused() -> None:
    for size in (0, 15, 17, 33, 64):
        with pytest.raises(ValueError, match="16, 20, 24, 28 or 32"):
            mnemonic_from_entropy(bytes(size))


def test_bdk_reads_our_mnemonics_as_we_do() -> None:
    rng = random.Random(39)
    for size in (16, 20, 24, 28, 32):
        entropy = rng.randbytes(size)
        words = mnemonic_from_entropy(entropy)
        assert str(bdk.Mnemonic.from_entropy(entropy)) == words
        theirs = bdk.DescriptorSecretKey(bdk.NetworkKind.MAIN, bdk.Mnemonic.from_string(words), "pässword")
        assert str(theirs).partition("/")[0] == ExtendedKey.from_seed(bip39_seed(words, "pässword")).xprv()


@pytest.mark.parametrize("case", BIP85["vectors"], ids=lambda c: c["path"])
def test_bip85_entropy_is_what_other_wallets_derive(case: Case) -> None:
    raw = base58check_decode(BIP85["master"])
    master = ExtendedKey(raw[46:], raw[13:45])
    assert master.xprv() == BIP85["master"]
    key = master.derive(*indices(case["path"]))
    assert key.secret.hex() == case["key"]
    assert bip85_entropy(key).hex() == case["entropy"]


@pytest.mark.parametrize("case", KEYS["keys"], ids=lambda c: f"{c['mnemonic'][:6]}:{c['path'][24:48]}")
def test_every_secret_comes_back_from_mnemonic_and_contract(case: Case) -> None:
    seed = Seed.from_mnemonic(case["mnemonic"])
    match case["key"]:
        case "node":
            secret = seed.node_key(case["index"])
        case "persona":
            secret = seed.persona_key(case["index"])
        case "arbiter":
            secret = seed.arbiter_base_key(case["index"])
        case _:
            secret = seed.escrow_key(bytes.fromhex(case["trade_id"]), EscrowRole[case["role"].upper()])
    assert secret.hex() == case["secret"]
    # The documented path says the same.
    assert bip85_entropy(seed.master.derive(*indices(case["path"])))[:32] == secret


def test_no_two_secrets_of_a_node_are_the_same() -> None:
    seed = Seed.from_mnemonic("abandon " * 23 + "art")
    rng = random.Random(85)
    trades = [bytes(32), bytes(31) + b"\x01", b"\x01" + bytes(31), *(rng.randbytes(32) for _ in range(20))]
    secrets = [seed.escrow_key(t, r) for t in trades for r in EscrowRole]
    secrets += [f(i) for f in (seed.node_key, seed.persona_key, seed.arbiter_base_key) for i in range(5)]
    assert len(set(secrets)) == len(secrets)
    assert len({trade_words(t) for t in trades}) == len(trades)


def test_a_trade_id_of_another_length_is_refused() -> None:
    seed = Seed.from_mnemonic("abandon " * 23 + "art")
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            seed.escrow_key(bytes(size), EscrowRole.BUYER)


def test_no_repr_shows_a_secret() -> None:
    seed = Seed.from_mnemonic("abandon " * 23 + "art")
    for shown in (repr(seed), repr(seed.master), str(seed)):
        assert seed.master.secret.hex() not in shown
        assert seed.master.chain_code.hex() not in shown


def test_base58_with_a_wrong_checksum_is_refused() -> None:
    good = base58check(bytes(3) + b"payload")
    assert base58check_decode(good) == bytes(3) + b"payload"
    for bad in ("", good[:-1], good[:-1] + ("1" if good[-1] != "1" else "2"), good + "0", "1" * 200):
        with pytest.raises(ValueError, match="Base58"):
            base58check_decode(bad)
