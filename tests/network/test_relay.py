"""Relays on loopback: nodes that nobody can dial are reached, privately, and stay reached when a relay dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from p2pnode.channels import Pipe, Unreachable
from p2pnode.reach.relay import RelayLimits
from protocol.contact import Address
from protocol.relay import RELAY_SERVICE, Op, connect
from tests.network.channel_support import eventually
from tests.network.relay_support import BULK, MEGABYTE, RelayNode

Make = Callable[..., RelayNode]
WIDE = RelayLimits(bytes_per_second=10**9, bytes_per_second_per_origin=10**9)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes nodes; afterwards closes them and sees that nothing of them is left."""
    nodes: list[RelayNode] = []

    def _make(seed: int, **options: object) -> RelayNode:
        nodes.append(RelayNode(seed, **options))  # type: ignore[arg-type]
        return nodes[-1]

    yield _make
    # Before anything else, or they would dial the next relay while it closes.
    for node in nodes:
        await node.registrar.close()
    for node in nodes:
        await node.close()
    for node in nodes:
        assert node.relay.circuits == 0
        assert node.relay.registrations == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_node_that_can_not_be_dialled_is_reached_through_a_relay(make: Make) -> None:
    relay = await make(1).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    assert await alice.ask(bob) == b"hello"
    assert bob.callers == [alice.key.public]
    assert relay.callers == []
    assert [s.relayed for s in alice.channels.sessions()] == [False, True]


async def test_two_hidden_nodes_talk_both_ways_over_one_circuit(make: Make) -> None:
    relay = await make(1).listen()
    alice, bob = await make(2).hide_behind(relay), await make(3).hide_behind(relay)
    assert await alice.ask(bob) == b"hello"
    assert await bob.ask(alice) == b"hello"
    assert relay.relay.circuits == 1
    assert alice.callers == [bob.key.public]


async def test_megabytes_pass_whole_and_in_order(make: Make) -> None:
    relay = await make(1, relay_limits=WIDE).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    body = bytes(range(256)) * 3_000
    assert await alice.ask(bob, body) == body
    assert await alice.ask(bob, b"", service=BULK) == bytes(MEGABYTE)


async def test_relay_carries_only_ciphertext(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = await make(1).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    secret = b"the seller's account number" * 10
    seen: list[bytes] = []
    copy = relay.relay._copy

    async def tapped(source, sink, *rest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        read = source.read

        async def tap() -> bytes:
            data: bytes = await read()
            seen.append(data)
            return data

        source.read = tap
        await copy(source, sink, *rest)

    monkeypatch.setattr(relay.relay, "_copy", tapped)
    assert await alice.ask(bob, secret) == secret
    everything = b"".join(seen)
    assert len(everything) > 2 * len(secret)
    assert secret[:20] not in everything
    assert alice.key.public not in everything
    assert bob.key.public not in everything


async def test_relay_that_dies_is_replaced_and_requests_go_on(make: Make) -> None:
    first, second, third = [await make(n).listen() for n in (1, 2, 3)]
    alice, bob = make(4), await make(5).hide_behind(first, second)
    bob.candidates.append(third.candidate)
    assert await alice.ask(bob) == b"hello"
    used = first if first.relay.circuits else second
    await used.close()
    assert await alice.ask(bob) == b"hello"
    await eventually(lambda: third.contact in bob.registrar.relays())
    assert used.contact not in bob.registrar.relays()


async def test_direct_path_is_taken_before_a_relay_when_there_is_one(make: Make) -> None:
    relay = await make(1).listen()
    alice, bob = make(2), await (await make(3).listen()).hide_behind(relay)
    assert await alice.ask(bob) == b"hello"
    assert [s.relayed for s in alice.channels.sessions()] == [False]
    assert relay.relay.circuits == 0


async def test_dead_direct_address_does_not_delay_the_relayed_path_for_long(make: Make) -> None:
    relay = await make(1).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    bob.addresses = relay.addresses  # an address at which another node answers
    began = asyncio.get_running_loop().time()
    assert await alice.ask(bob) == b"hello"
    assert asyncio.get_running_loop().time() - began < 2


async def test_node_that_left_its_relay_is_not_brought_and_the_reason_is_told(make: Make) -> None:
    relay = await make(1).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    relays = bob.registrar.relays()
    bob.registrar.want(False)
    await eventually(lambda: relay.relay.registrations == 0)
    with pytest.raises(Unreachable, match="refused with code 2221"):
        await alice.channels.request(bob.key.public, (), 20, b"", timeout=5, relays=relays)


async def test_relays_of_different_address_groups_are_preferred(make: Make) -> None:
    relays = [await make(n).listen() for n in (1, 2, 3, 4, 5)]
    bob = make(6)
    groups = [b"a", b"a", b"a", b"b", b"c"]
    bob.candidates = [type(r.candidate)(r.contact, g) for r, g in zip(relays, groups, strict=True)]
    bob.registrar.start()
    bob.registrar.want(True)
    await eventually(lambda: len(bob.registrar.relays()) == 3)
    assert set(bob.registrar.relays()) == {relays[0].contact, relays[3].contact, relays[4].contact}


async def test_session_of_a_closed_client_takes_its_registration_along(make: Make) -> None:
    relay = await make(1).listen()
    bob = await make(3).hide_behind(relay)
    assert relay.relay.registrations == 1
    await bob.close()
    await eventually(lambda: relay.relay.registrations == 0)


async def test_client_that_comes_back_on_a_new_session_is_reached_at_once(make: Make) -> None:
    """It has moved: its old session is dead, and nobody will say so."""
    relay = await make(1).listen()
    alice, bob = make(2), await make(3).hide_behind(relay)
    assert await alice.ask(bob) == b"hello"
    moved = await make(3).hide_behind(relay)
    await eventually(lambda: all(not s.relayed for s in alice.channels.sessions()))
    assert await alice.ask(moved) == b"hello"
    assert moved.callers == [alice.key.public]


async def test_pipes_that_are_reset_unread_leave_the_session_its_window(make: Make) -> None:
    """Else a few cancelled circuits would choke everything else between two nodes."""
    relay = await make(1, relay_limits=WIDE).listen()
    alice, bob = make(2), make(3)
    registered = await bob.channels.pipe(relay.key.public, relay.addresses, RELAY_SERVICE, bytes((Op.REGISTER,)))
    assert await registered.read()
    unread: list[Pipe] = []

    async def keep(pipe: Pipe) -> None:
        unread.append(pipe)

    bob.door.serve = keep  # type: ignore[method-assign]
    for count in range(1, 9):
        circuit = await alice.channels.pipe(relay.key.public, relay.addresses, RELAY_SERVICE, connect(bob.key.public))
        circuit.write(bytes(200_000))
        await eventually(lambda count=count: len(unread) == count)  # type: ignore[misc]
        await eventually(lambda: sum(map(len, unread[-1]._pieces)) > 150_000)
        circuit.reset(1)
        await eventually(lambda: unread[-1].broken is not None)
    assert await relay.ask(bob, bytes(900_000)) == bytes(900_000)
    assert await alice.ask(relay, bytes(900_000)) == bytes(900_000)


async def test_relay_works_over_ipv6(make: Make) -> None:
    relay = await make(1).listen("::1")
    alice, bob = make(2), await make(3).hide_behind(relay)
    assert await alice.ask(bob) == b"hello"
    assert bob.registrar.seen()[0].host == "::1"


async def test_client_names_its_relay_by_the_version_of_ip_that_it_does_not_use_itself(make: Make) -> None:
    """Or a trader with IPv6 alone could not find the relay of one with IPv4 alone."""
    relay = await make(1).listen()
    relay.relay.own = lambda: (Address("192.0.2.1", 7), Address("2001:db8::9", 7), Address("2001:db8::8", 7))
    client = await make(2).hide_behind(relay)
    (named,) = client.registrar.relays()
    assert named.addresses == (*relay.addresses, Address("2001:db8::9", 7))
