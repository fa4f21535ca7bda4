"""The wire format is what `tests/vectors/dht.json` says: another implementation must be able to talk to us."""

from __future__ import annotations

import json

import pytest

from dht import messages, packet
from dht.contact import unpack_contact
from dht.errors import BadPacket
from protocol.identity import SigningKey
from protocol.types import Network
from tests.vectors.make_dht import FILE, make

VECTORS = json.loads(FILE.read_text())


def test_every_byte_is_as_written_down() -> None:
    assert make() == VECTORS


@pytest.mark.parametrize("case", VECTORS["nodes"], ids=lambda c: c["host"])
def test_contacts_unpack(case: dict[str, str]) -> None:
    contact = unpack_contact(bytes.fromhex(case["packed"]))
    assert (contact.ip, str(contact.port), contact.key.hex()) == (case["host"], str(case["port"]), case["key"])
    assert contact.id.hex() == case["id"]


def test_the_other_side_opens_what_one_side_sealed() -> None:
    case = {k: bytes.fromhex(v) if isinstance(v, str) else v for k, v in VECTORS["packets"].items()}
    a, b = SigningKey(case["a_seed"]), SigningKey(case["b_seed"])
    to_a, from_a = packet.direction_keys(b.x25519_secret, b.public, a.public, a.x25519_public, Network.REGTEST)
    assert (from_a, to_a) == (case["key_a_to_b"], case["key_b_to_a"])
    assert packet.open_request(from_a, case["request"]) == case["request_plaintext"]
    assert packet.open_reply(to_a, case["reply"]) == case["reply_plaintext"]


@pytest.mark.parametrize("field", ["request", "reply"])
def test_every_flipped_bit_is_noticed(field: str) -> None:
    case = {k: bytes.fromhex(v) if isinstance(v, str) else v for k, v in VECTORS["packets"].items()}
    key = case["key_a_to_b"] if field == "request" else case["key_b_to_a"]
    opened = packet.open_request if field == "request" else packet.open_reply
    # The head byte and the sender's key are not sealed: they choose the reader and the key it uses.
    start = 33 if field == "request" else 1
    for at in range(start, len(case[field])):
        broken = bytearray(case[field])
        broken[at] ^= 1
        with pytest.raises(BadPacket):
            opened(key, bytes(broken))


@pytest.mark.parametrize("case", VECTORS["invalid_replies"], ids=lambda c: c["why"])
def test_invalid_replies_are_refused(case: dict[str, str]) -> None:
    plaintext, op = bytes.fromhex(case["plaintext"]), int(case["op"])

    def read() -> None:
        messages.parse_reply(plaintext, op)
        if op == messages.Op.FIND_VALUE:
            messages.value_of(plaintext)
        else:
            messages.contacts_of(plaintext)

    with pytest.raises(BadPacket):
        read()
