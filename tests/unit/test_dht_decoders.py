"""Nothing that comes in by datagram may raise anything but what its reader announces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import messages, packet
from dht.contact import Contact, node_id, parse_seed, puzzle_zero_bits, unpack_contact, unpack_contacts
from dht.engine import Engine, EngineConfig
from dht.errors import BadContact, BadPacket
from dht.node import mine_node_key
from dht.records import Registry
from dht.rpc import Rpc
from dht.storage import Storage
from protocol.errors import P2PError
from protocol.identity import SigningKey, node_text
from protocol.types import Network
from tests.network.dht_net import NOTES

ALICE = SigningKey(b"a" * 32)
BOB = SigningKey(b"b" * 32)

JUNK = st.binary(max_size=1_300)
HEADED = st.builds(lambda head, rest: bytes([head]) + rest, st.sampled_from([0xD1, 0xD2, 0xD3, 0xD4]), JUNK)
CONTACT_LISTS = st.builds(lambda n, rest: bytes([n]) + rest, st.integers(0, 20), JUNK)


def make_engine() -> tuple[Engine, list[tuple[bytes, object]]]:
    sent: list[tuple[bytes, object]] = []
    rng = random.Random(7)
    _, key = mine_node_key(lambda _: rng.randbytes(32), 4)
    rpc = Rpc(
        key, Network.REGTEST, send=lambda d, a: sent.append((d, a)), rng=rng, puzzle_bits=0, exempt=lambda _: True
    )
    config = EngineConfig(local_addresses=True)
    return Engine(config, rpc, Registry(Network.REGTEST, (NOTES,)), Storage(secret=b"s" * 16), rng), sent


@given(JUNK | HEADED)
def test_no_datagram_of_a_stranger_raises(datagram: bytes) -> None:
    engine, _ = make_engine()
    engine.receive(datagram, ("127.0.0.9", 4_000), 1.0)


@given(JUNK, st.integers(0, 12))
def test_no_authenticated_plaintext_raises(plaintext: bytes, op: int) -> None:
    engine, _ = make_engine()
    mine, _ = packet.direction_keys(
        ALICE.x25519_secret, ALICE.public, engine.rpc.key.public, engine.rpc.key.x25519_public, Network.REGTEST
    )
    for body in (plaintext[: packet.REQUEST_ROOM], (bytes([op]) + plaintext)[: packet.REQUEST_ROOM]):
        engine.receive(packet.seal_request(mine, ALICE.public, b"r" * 12, body), ("127.0.0.9", 4_000), 1.0)


@given(st.sampled_from(["find", "get", "put"]), st.lists(JUNK, min_size=1, max_size=4), st.integers(0, 8))
def test_no_answer_of_a_hostile_node_raises(operation: str, answers: list[bytes], status: int) -> None:
    from tests.network.dht_net import note

    engine, sent = make_engine()
    hostile = Contact(BOB.public, "127.0.0.8", 4_000)
    engine.table.add_contact(hostile)
    ended: list[object] = []
    topic = b"t" * 20
    if operation == "find":
        engine.find(topic, ended.append, 1.0)
    elif operation == "get":
        engine.get(topic, ended.append, 1.0)
    else:
        record = note(ALICE, topic)
        import time

        engine.offset = time.time()
        engine.put(topic, engine.check(record.raw, topic, 1.0), ended.append, 1.0)
    _, theirs = packet.direction_keys(
        engine.rpc.key.x25519_secret, engine.rpc.key.public, BOB.public, BOB.x25519_public, Network.REGTEST
    )
    for answer in answers:
        if not sent:
            break
        datagram, address = sent.pop()
        opened = packet.open_request(
            packet.direction_keys(
                BOB.x25519_secret, BOB.public, engine.rpc.key.public, engine.rpc.key.x25519_public, Network.REGTEST
            )[1],
            datagram,
        )
        body = bytes([opened[0] | 0x80, status]) + b"k" * 8 + answer
        engine.receive(packet.seal_reply(theirs, datagram[33:45], b"s" * 8, body[: packet.REPLY_ROOM]), address, 1.1)
    for step in range(40):
        engine.tick(2.0 + step)
    assert len(ended) == 1, "an operation must end, and once"


@given(JUNK)
def test_readers_raise_only_bad_packet(data: bytes) -> None:
    for reader in (
        messages.parse_request,
        messages.target_of,
        messages.cursor_of,
        messages.record_of,
        messages.contacts_of,
        messages.value_of,
        messages.store_part_of,
        messages.fetch_of,
        messages.part_of,
        messages.older_of,
        messages.observed_of,
    ):
        try:
            reader(data)
        except BadPacket:
            continue


@given(CONTACT_LISTS)
def test_contact_lists_are_bounded(data: bytes) -> None:
    try:
        contacts, end = unpack_contacts(data, 0, 16)
    except BadPacket:
        return
    assert len(contacts) <= 16
    assert end <= len(data)


@given(st.binary(min_size=39, max_size=51))
def test_a_contact_has_one_packed_form(packed: bytes) -> None:
    try:
        contact = unpack_contact(packed)
    except (BadPacket, BadContact):
        return
    assert contact.packed == packed


@given(st.text(max_size=60))
def test_seed_texts_never_raise_anything_unexpected(text: str) -> None:
    try:
        parse_seed(text)
    except P2PError:
        return


def test_seeds_with_and_without_a_key_are_understood() -> None:
    assert parse_seed("127.0.0.1:9735") == (None, "127.0.0.1", 9735)
    assert parse_seed("[::1]:9735") == (None, "::1", 9735)
    assert parse_seed(f"{node_text(ALICE.public)}@seed.example:1") == (ALICE.public, "seed.example", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:0",
        "host:65536",
        ":1",
        "host:x",
        "a:b:c:-1",
        "host:\u0663\u0664",
        "host:" + "9" * 5_000,
    ],
)
def test_a_seed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadContact):
        parse_seed(text)


def test_the_id_of_a_node_is_not_its_choice() -> None:
    assert len(node_id(ALICE.public)) == 20
    assert node_id(ALICE.public) != node_id(BOB.public)
    index, key = mine_node_key(lambda i: i.to_bytes(32, "big"), 8)
    assert puzzle_zero_bits(key.public) >= 8
    assert all(puzzle_zero_bits(SigningKey(i.to_bytes(32, "big")).public) < 8 for i in range(index))
