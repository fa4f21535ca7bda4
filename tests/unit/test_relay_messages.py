"""The relay's messages, byte for byte, and bytes from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.contact import Address
from protocol.errors import Malformed
from protocol.relay import (
    Op,
    Probed,
    Reached,
    Registered,
    connect,
    pack_endpoint,
    probe,
    probed,
    read_endpoint,
    read_port,
    read_probed,
    read_registered,
    registered,
)

V4 = "04c6336402 1b58".replace(" ", "")
V6 = "06 20010db8000000000000000000000001 ffff".replace(" ", "")


@pytest.mark.parametrize(
    ("address", "hexed"),
    [(Address("198.51.100.2", 7000), V4), (Address("2001:db8::1", 65_535), V6)],
)
def test_endpoint_is_family_address_port(address: Address, hexed: str) -> None:
    assert pack_endpoint(address).hex() == hexed
    assert read_endpoint(bytes.fromhex(hexed)) == address


def test_heads_are_what_the_specification_says() -> None:
    key = bytes(range(32))
    assert (Op.REGISTER, Op.CONNECT, Op.INCOMING, Op.PROBE) == (1, 2, 3, 4)
    assert connect(key) == b"\x02" + key
    assert probe(7352).hex() == "041cb8"
    seen = Address("198.51.100.2", 7000)
    assert probed(Reached.TCP | Reached.UDP, seen).hex() == "03" + V4
    assert read_probed(bytes.fromhex("01" + V4)) == Probed(Reached.TCP, seen)


@pytest.mark.parametrize("bad", ["", "04", V4[:-2], V4 + "00", "05" + V4[2:], V6[:-2], "00" * 19])
def test_wrong_endpoints_are_refused(bad: str) -> None:
    with pytest.raises(Malformed):
        read_endpoint(bytes.fromhex(bad))


@pytest.mark.parametrize("bad", ["", "1c", "0000", "1cb800"])
def test_wrong_ports_are_refused(bad: str) -> None:
    with pytest.raises(Malformed):
        read_port(bytes.fromhex(bad))


def test_relay_says_where_it_sees_the_client_and_where_it_is_itself() -> None:
    seen, other = Address("198.51.100.2", 7000), Address("2001:db8::1", 65_535)
    assert registered(seen, ()).hex() == V4 + "00"
    assert registered(seen, (other, seen)).hex() == V4 + "02" + V6 + V4
    assert read_registered(registered(seen, (other, seen))) == Registered(seen, (other, seen))
    # A name can't be told, and more than four are not.
    assert registered(seen, (Address("relay.example.org", 1),)).hex() == V4 + "00"
    assert len(read_registered(registered(seen, (seen,) * 9)).own) == 4


@pytest.mark.parametrize(
    "bad", ["", V4, V4 + "01", V4 + "05" + 5 * V4, V4 + "00" + "00", V4 + "01" + V6[:-2], "00" + V4]
)
def test_wrong_answers_to_a_registration_are_refused(bad: str) -> None:
    with pytest.raises(Malformed):
        read_registered(bytes.fromhex(bad))


@given(st.binary(max_size=60))
def test_any_answer_to_a_registration_is_read_to_the_same_bytes_or_refused(data: bytes) -> None:
    try:
        found = read_registered(data)
    except Malformed:
        return
    assert registered(*found) == data


@given(st.binary(max_size=40))
def test_any_bytes_are_read_to_the_same_bytes_or_refused(data: bytes) -> None:
    try:
        found = read_probed(data)
    except Malformed:
        return
    assert probed(*found) == data
