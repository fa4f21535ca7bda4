"""IPv4 and IPv6 side by side: nodes of one version, of the other and of both are one network."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from dht.contact import (
    Contact,
    Scope,
    group_of,
    intern_contact,
    pack_address,
    scope_of,
    unpack_contact,
    unpack_contacts,
)
from dht.errors import BadContact, BadPacket, PortInUse
from dht.node import DhtNode, Seed
from dht.routing import GROUP_PER_BUCKET
from dht.tables import Tables
from dht.udp import UdpTransport, listening_hosts
from protocol.identity import SigningKey
from tests.network.channel_support import eventually
from tests.network.dht_net import Net, note

ALICE = SigningKey(b"a" * 32)
TOPIC = b"t" * 20
BOTH = "127.0.0.1,::1"


async def join(net: Net, host: str, entry: DhtNode | None = None) -> DhtNode:
    """A node that listens on `host` (or both) and enters by `entry`, by whichever version both have."""
    node = net.make(host)
    await node.start()
    port = node.local[1]
    node.engine.elsewhere = {6 if ":" in h else 4: (h, port) for h in listening_hosts(host)}
    if entry is not None:
        common = node.engine.versions & entry.engine.versions
        assert await node.bootstrap([Seed(*entry.engine.elsewhere[min(common)])])
    return node


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    """Eight nodes with both versions, entered by IPv4."""
    built = Net(20_261_122)
    first = await join(built, BOTH)
    for _ in range(7):
        await join(built, BOTH, first)
    yield built
    await built.close()


async def test_node_answers_on_both_versions_on_one_port(net: Net) -> None:
    port = net.nodes[0].local[1]
    asker = await join(net, BOTH)
    for host in ("127.0.0.1", "::1"):
        met = await asker.meet(Seed(host, port))
        assert met is not None
        assert (met.key, met.ip) == (net.nodes[0].key.public, host)


async def test_nodes_with_both_learn_each_others_other_address(net: Net) -> None:
    """All entered by IPv4; yet each is had by IPv6 too, when its IPv4 line is gone or a node without IPv4 asks."""
    await eventually(lambda: all(len(set(n.engine.table.v6)) >= 5 for n in net.nodes))
    table = net.nodes[3].engine.table
    assert {c.id for c in table.v6} <= {c.id for c in table.v4}
    assert len(table) == len({c.id for c in table})
    near = table.closest(0, 30)
    assert len({c.id for c in near}) == len(near)
    gone = next(iter(table.v4))
    table.remove_contact(gone)
    assert any(c.id == gone.id and c.version == 6 for c in table.closest(gone.long_id, 1))


async def test_other_address_of_nodes_far_away_is_learnt_too(net: Net) -> None:
    """Neighbours ping each other in any case; the others have to be asked for it."""
    for _ in range(22):
        await join(net, BOTH, net.nodes[0])
    await eventually(lambda: all(n.engine.table.v6.size >= 0.8 * n.engine.table.v4.size for n in net.nodes))


async def test_node_that_is_reached_by_one_version_only_is_told_by_that_one_only(net: Net) -> None:
    """Behind an IPv4 router with an open IPv6 line: its IPv4 address in a table would lead nobody anywhere."""
    await eventually(lambda: all(len(set(n.engine.table.v6)) >= 5 for n in net.nodes))
    node = net.make(BOTH)
    await node.start()
    node.serve(True, frozenset({4}))
    assert await node.bootstrap([Seed(*net.nodes[0].engine.elsewhere[4]), Seed(*net.nodes[0].engine.elsewhere[6])])
    await node.find_nodes(node.node_id)
    for contact in list(node.engine.table.v6):
        await node.meet(Seed(contact.ip, contact.port))
        await node.meet(Seed(contact.ip, contact.port))
    own = {node.node_id}
    assert any(own & {c.id for c in n.engine.table.v6} for n in net.nodes)
    assert not any(own & {c.id for c in n.engine.table.v4} for n in net.nodes[:8])


async def test_node_of_each_version_finds_what_the_other_published(net: Net) -> None:
    await eventually(lambda: all(len(set(n.engine.table.v6)) >= 5 for n in net.nodes))
    old, new = await join(net, "127.0.0.1", net.nodes[0]), await join(net, "::1", net.nodes[0])
    assert {c.version for c in old.peers()} == {4}
    assert {c.version for c in new.peers()} == {6}
    assert len(new.peers()) >= 5
    ours, theirs = note(ALICE, TOPIC, b"by IPv4"), note(SigningKey(b"b" * 32), TOPIC, b"by IPv6")
    assert (await old.put(TOPIC, ours)).acks >= 5
    assert (await new.put(TOPIC, theirs)).acks >= 5
    for reader in (old, new):
        assert {e.raw for e in await reader.get(TOPIC, quorum=5)} == {ours.raw, theirs.raw}


async def test_network_of_ipv6_alone_works() -> None:
    net = Net(6)
    first = await join(net, "::1")
    for _ in range(9):
        await join(net, "::1", first)
    record = note(ALICE, TOPIC)
    assert (await net.nodes[2].put(TOPIC, record)).acks >= 5
    assert [e.raw for e in await net.nodes[8].get(TOPIC)] == [record.raw]
    await net.close()


async def test_kept_peers_are_of_both_versions(net: Net) -> None:
    await eventually(lambda: len(set(net.nodes[0].engine.table.v6)) >= 3)
    assert {c.version for c in net.nodes[0].peers()} == {4, 6}


async def test_ipv6_socket_takes_no_ipv4(net: Net) -> None:
    """Else one peer would have two spellings of its address, each with quotas of its own."""
    del net
    heard: list[bytes] = []
    transport = UdpTransport("::", 0, lambda datagram, _: heard.append(datagram))
    try:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"x", ("127.0.0.1", transport.local[1]))
        with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"y", ("::1", transport.local[1]))
        await eventually(lambda: bool(heard))
        assert heard == [b"y"]
    finally:
        transport.close()


async def test_port_that_is_taken_on_one_version_is_refused_and_nothing_stays_open() -> None:
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as taken:
        taken.bind(("::1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match="::1"):
            UdpTransport(BOTH, port, lambda *_: None)
        UdpTransport("127.0.0.1", port, lambda *_: None).close()


def test_ipv4_in_ipv6_clothes_is_one_address() -> None:
    plain, dressed = Contact(ALICE.public, "9.8.7.6", 70), Contact(ALICE.public, "::ffff:9.8.7.6", 70)
    assert plain == dressed
    assert dressed.version == 4
    assert group_of("::ffff:9.8.7.6") == group_of("9.8.7.200") != group_of("9.8.8.6")
    assert group_of("2001:db8:1:1::1") == group_of("2001:db8:1:ffff::9") != group_of("2001:db8:2::1")
    assert scope_of("::ffff:127.0.0.1") is Scope.LOOPBACK
    packed = b"\x06" + ALICE.public + pack_address("::ffff:9.8.7.6", 70)[1:]
    with pytest.raises(BadContact):
        unpack_contact(packed)
    # One among others costs the others nothing.
    assert unpack_contacts(b"\x02" + packed + plain.packed, 0, 8)[0] == [plain]


@pytest.mark.parametrize("first", [0, 5, 0x24, 0x26, 0x34, 0xFF])
def test_contact_of_no_known_kind_is_refused(first: int) -> None:
    with pytest.raises(BadPacket):
        unpack_contacts(b"\x01" + bytes((first,)) + ALICE.public + bytes(18), 0, 8)


def test_link_local_address_is_nobodys_contact() -> None:
    with pytest.raises(BadContact):
        Contact(ALICE.public, "fe80::1%eth0", 70)


@pytest.mark.parametrize(
    ("hosts", "other"),
    [(lambda i: f"9.9.9.{i}", "9.9.8.1"), (lambda i: f"2600:1:1:{i:x}::1", "2600:1:2::1")],
    ids=["/24", "/48"],
)
def test_each_version_has_its_own_limit_of_neighbours(hosts: object, other: str) -> None:
    rng = random.Random(3)
    own = Contact(rng.randbytes(32), "1.2.3.4", 5)
    tables = Tables(own, bucket_size=16, digit_bits=3, exempt=lambda _: False)
    crowd = [intern_contact(Contact(rng.randbytes(32), hosts(i), 9)) for i in range(1, 60)]  # type: ignore[operator]
    entered = [c for c in crowd if tables.add_contact(c)]
    assert 0 < len(entered) <= 10
    assert all(
        sum(c.group == crowd[0].group for c in bucket.nodes.values()) <= GROUP_PER_BUCKET for bucket in tables.buckets
    )
    assert tables.add_contact(Contact(rng.randbytes(32), other, 9))
