"""Who may watch a topic when many want to: nobody is kept out by one network, and nobody's end disturbs another."""

from __future__ import annotations

import random
import time

import pytest

from dht.contact import Contact, group_of
from dht.engine import Engine, EngineConfig
from dht.messages import Status
from dht.records import Registry
from dht.rpc import Peer, Rpc
from dht.storage import Outcome, Storage
from dht.watch import MAX_PER_GROUP, MAX_PER_TOPIC, PUSHES_BURST, TTL_S, Watchers
from protocol.identity import SigningKey
from protocol.types import Network
from tests.network.dht_net import NOTES, note

TOPIC = b"t" * 20


@pytest.fixture
def watchers() -> Watchers:
    rng = random.Random(3)
    rpc = Rpc(SigningKey(b"e" * 32), Network.REGTEST, send=lambda *_: None, rng=rng)
    return Engine(EngineConfig(), rpc, Registry(Network.REGTEST), Storage(secret=b"s" * 16), rng).watchers


def watch(watchers: Watchers, number: int, host: str, topic: bytes = TOPIC, now: float = 0.0) -> int:
    contact = Contact(SigningKey(number.to_bytes(32, "big")).public, host, 4_000)
    return watchers.serve(topic, Peer(contact), (host, 4_000), now)[0]


def test_one_network_does_not_take_all_places_of_a_topic(watchers: Watchers) -> None:
    assert {watch(watchers, n, f"9.9.9.{n % 250}") for n in range(MAX_PER_TOPIC)} == {Status.OK}
    assert watch(watchers, 9_000, "9.9.9.1") == Status.BUSY
    assert {watch(watchers, 10_000 + n, f"8.8.{n}.1") for n in range(100)} == {Status.OK}
    assert watchers.count == MAX_PER_TOPIC


def test_places_that_are_shared_evenly_are_not_taken_away(watchers: Watchers) -> None:
    assert {watch(watchers, n, f"8.{n}.8.1") for n in range(MAX_PER_TOPIC)} == {Status.OK}
    assert watch(watchers, 9_000, "7.7.7.7") == Status.BUSY


def test_watcher_that_is_refused_where_the_last_one_just_ended_raises_nothing(watchers: Watchers) -> None:
    for n in range(MAX_PER_GROUP):
        watch(watchers, n, "9.9.9.9", topic=n.to_bytes(20, "big"), now=TTL_S)
    watch(watchers, 5_000, "7.7.7.7")
    assert watch(watchers, 5_001, "9.9.9.9", now=TTL_S + 1) == Status.BUSY


@pytest.mark.parametrize(
    ("host", "most"), [("9.9.9.9", PUSHES_BURST), ("2a00:1:2::3", PUSHES_BURST), ("127.0.0.1", 999)]
)
def test_one_network_does_not_make_a_holder_push_without_end(watchers: Watchers, host: str, most: float) -> None:
    """Each version of a record that costs nothing would become as many datagrams as there are watchers."""
    engine = watchers._engine
    engine.registry.add(NOTES)
    maker = SigningKey(b"m" * 32)
    for n in range(10):
        watch(watchers, n, f"8.8.{n}.1")
    sent = []
    engine.rpc._send = lambda _, address: sent.append(address)
    for sequence in range(600):
        record = engine.registry.check(note(maker, TOPIC, sequence=sequence, gone=True).raw, TOPIC, int(time.time()))
        assert engine.keep(TOPIC, record, group_of(host), 1.0).outcome is Outcome.STORED
    assert len(sent) == 10 * min(600, most)
