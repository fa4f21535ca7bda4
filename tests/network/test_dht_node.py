"""Nodes on loopback: what publishers and readers rely on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dht.errors import PortInUse, RecordRejected
from dht.node import Seed
from protocol.identity import SigningKey
from tests.network.dht_net import Net, note

ALICE = SigningKey(b"a" * 32)
BOB = SigningKey(b"b" * 32)
TOPIC = b"t" * 20


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    built = Net(20_261_121)
    await built.grow(16)
    yield built
    await built.close()


async def test_a_record_is_found_by_a_node_that_never_saw_it(net: Net) -> None:
    record = note(ALICE, TOPIC, b"x" * 700)
    result = await net.nodes[3].put(TOPIC, record)
    assert result.acks >= 5
    assert result.refused == 0
    assert [e.raw for e in await net.nodes[11].get(TOPIC)] == [record.raw]


async def test_records_of_many_publishers_live_side_by_side_under_one_topic(net: Net) -> None:
    publishers = [SigningKey(bytes([i]) * 32) for i in range(1, 25)]
    for i, who in enumerate(publishers):
        await net.nodes[i % 16].put(TOPIC, note(who, TOPIC, b"y" * 300), quorum=8)
    found = await net.nodes[5].get(TOPIC, quorum=3)
    assert {e.signer for e in found} == {who.public for who in publishers}


async def test_a_revoked_record_does_not_come_back_by_a_late_copy(net: Net) -> None:
    first = note(ALICE, TOPIC, sequence=1)
    await net.nodes[1].put(TOPIC, first, quorum=8)
    await net.nodes[1].put(TOPIC, note(ALICE, TOPIC, sequence=2, gone=True), quorum=8)
    late = await net.nodes[2].put(TOPIC, first)
    assert late.acks == 0
    assert late.newer is not None
    assert late.newer.meta.tombstone
    assert await net.nodes[9].get(TOPIC) == []


async def test_a_record_larger_than_a_datagram_travels_in_parts(net: Net) -> None:
    record = note(ALICE, TOPIC, bytes(range(256)) * 25)
    assert len(record.raw) > 6_000
    assert (await net.nodes[4].put(TOPIC, record)).acks >= 5
    assert [e.raw for e in await net.nodes[13].get(TOPIC)] == [record.raw]


async def test_a_get_ends_when_nobody_has_the_topic(net: Net) -> None:
    found = await net.nodes[7].find_records(b"n" * 20)
    assert found.records == []
    assert found.sources == 0
    assert found.asked >= 8


async def test_disjoint_paths_find_the_same_record(net: Net) -> None:
    record = note(BOB, TOPIC)
    await net.nodes[0].put(TOPIC, record, quorum=8)
    assert [e.raw for e in await net.nodes[8].get(TOPIC, quorum=8, paths=3)] == [record.raw]


async def test_a_record_that_nobody_would_accept_is_refused_before_it_is_sent(net: Net) -> None:
    sent = net.nodes[0].stats().sent
    with pytest.raises(RecordRejected, match="topic"):
        await net.nodes[0].put(b"u" * 20, note(ALICE, TOPIC))
    with pytest.raises(RecordRejected, match="expired"):
        await net.nodes[0].put(TOPIC, note(ALICE, TOPIC, lifetime=-5))
    assert net.nodes[0].stats().sent == sent


async def test_entering_by_a_seed_that_is_down_reports_no_nodes() -> None:
    net = Net(2)
    node = net.make()
    await node.start()
    assert await node.bootstrap([Seed("127.9.9.9", 9)]) == 0
    await net.close()


async def test_a_port_in_use_is_one_clear_error() -> None:
    net = Net(3)
    await net.grow(1)
    host, port = net.nodes[0].local
    second = net.make(host)
    object.__setattr__(second.config, "port", port)
    with pytest.raises(PortInUse, match="can't listen"):
        await second.start()
    await net.close()


async def test_a_client_is_never_in_anothers_table(net: Net) -> None:
    client = net.make(client=True)
    await client.start()
    await client.bootstrap([net.seed_of(0)])
    record = note(ALICE, TOPIC)
    assert (await client.put(TOPIC, record)).acks >= 5
    assert [e.raw for e in await client.get(TOPIC)] == [record.raw]
    assert all(client.node_id not in {c.id for c in n.peers()} for n in net.nodes)
