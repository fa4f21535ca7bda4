"""Coins sent to a mistyped address, or to one of another network, are lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bdkpython as bdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from escrow.address import HRP, BadAddress, WrongNetworkAddress, address_of, is_segwit, script_of
from protocol.types import Network

Case = dict[str, Any]
VECTORS = json.loads((Path(__file__).parents[1] / "vectors/bitcoin/segwit_addresses.json").read_text())
BDK_NETWORKS = {
    Network.MAINNET: bdk.Network.BITCOIN,
    Network.TESTNET: bdk.Network.TESTNET,
    Network.SIGNET: bdk.Network.SIGNET,
    Network.REGTEST: bdk.Network.REGTEST,
}


@pytest.mark.parametrize("case", VECTORS["valid"], ids=lambda c: c["address"][:24])
def test_valid_segwit_addresses_of_every_version_are_understood(case: Case) -> None:
    network = Network.MAINNET if case["address"].lower().startswith("bc") else Network.TESTNET
    script = script_of(case["address"], network)
    assert script.hex() == case["script"]
    assert address_of(script, network) == case["address"].lower()


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda c: c["why"])
def test_invalid_segwit_addresses_are_refused(case: Case) -> None:
    network = Network.MAINNET if case["address"].lower().startswith("bc") else Network.TESTNET
    with pytest.raises(BadAddress):
        script_of(case["address"], network)


@given(
    st.sampled_from(list(Network)),
    st.one_of(
        st.tuples(st.just(0), st.binary(min_size=20, max_size=20)),
        st.tuples(st.just(0), st.binary(min_size=32, max_size=32)),
        st.tuples(st.integers(1, 16), st.binary(min_size=2, max_size=40)),
    ),
)
def test_bdk_and_we_agree_on_every_script(network: Network, program: tuple[int, bytes]) -> None:
    version, data = program
    script = bytes([version + 0x50 if version else 0, len(data)]) + data
    assert is_segwit(script)
    text = address_of(script, network)
    assert script_of(text, network) == script
    assert str(bdk.Address.from_script(bdk.Script(script), BDK_NETWORKS[network])) == text


@given(st.integers(0, 41), st.integers(0, 31))
def test_one_wrong_character_is_always_refused(place: int, value: int) -> None:
    good = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    bad = good[:place] + "qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] + good[place + 1 :]
    if bad != good:
        with pytest.raises(BadAddress):
            script_of(bad, Network.MAINNET)


@pytest.mark.parametrize(
    ("address", "network", "script"),
    [
        ("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", Network.MAINNET, "76a91477bff20c60e522dfaa3350c39b030a5d004e839a88ac"),
        ("3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy", Network.MAINNET, "a914b472a266d0bd89c13706a4132ccfb16f7c3b9fcb87"),
        ("mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn", Network.REGTEST, "76a914243f1394f44554f4ce3fd68649c19adc483ce92488ac"),
        ("2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc", Network.SIGNET, "a9144e9f39ca4688ff102128ea4ccda34105324305b087"),
    ],
)
def test_old_addresses_can_be_paid(address: str, network: Network, script: str) -> None:
    assert script_of(f" {address}\n", network).hex() == script
    theirs = bdk.Address(address, BDK_NETWORKS[network]).script_pubkey().to_bytes()
    assert theirs.hex() == script


@pytest.mark.parametrize("hrp", sorted(set(HRP.values())))
@pytest.mark.parametrize("network", list(Network))
def test_an_address_of_another_network_names_both_networks(hrp: str, network: Network) -> None:
    owner = next(n for n, h in HRP.items() if h == hrp)
    address = address_of(b"\x00\x14" + bytes(20), owner)
    if HRP[network] == hrp:
        assert script_of(address, network) == b"\x00\x14" + bytes(20)
    else:
        with pytest.raises(WrongNetworkAddress, match=f"{owner.name.lower()}.*{network.name.lower()}"):
            script_of(address, network)
    with pytest.raises(WrongNetworkAddress if network is not Network.MAINNET else BadAddress):
        script_of("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2" + ("" if network is not Network.MAINNET else "2"), network)


@pytest.mark.parametrize("text", ["", " ", "bc1", "1", "x" * 91, "bc1q" + "\u00df" * 38, "\uff10" * 20])
def test_rubbish_is_a_bad_address(text: str) -> None:
    with pytest.raises(BadAddress):
        script_of(text, Network.MAINNET)


@pytest.mark.parametrize(
    "script", ["", "00", "0014", "0013" + "00" * 19, "6a14" + "00" * 20, "76a914" + "00" * 20 + "88ac"]
)
def test_other_scripts_have_no_segwit_address(script: str) -> None:
    assert not is_segwit(bytes.fromhex(script))
    with pytest.raises(ValueError, match="not a native segwit script"):
        address_of(bytes.fromhex(script), Network.MAINNET)
