"""What an attacker tries on relays, helpers and diallers; each costs a bounded amount, and nobody else anything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from time import monotonic

import pytest

from p2pnode.channels import Limits, NotPublic, Pipe, PipeBroken, TimedOut, Unreachable, dial_public
from p2pnode.channels.guard import FAILURES, DialGuard, DialledTooOften
from p2pnode.channels.links import Dialer, dial_tcp
from p2pnode.reach import probe as probing
from p2pnode.reach.errors import BadRelayRequest, NoRelay, NotMyRelay, NotRegistered, RelayedAlready, RelayFull
from p2pnode.reach.relay import RelayLimits
from protocol.contact import Address, NodeContact
from protocol.identity import SigningKey
from protocol.relay import RELAY_SERVICE, Op, connect
from tests.network.channel_support import eventually
from tests.network.relay_support import BULK, ECHO, MEGABYTE, RelayNode

Make = Callable[..., RelayNode]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    nodes: list[RelayNode] = []

    def _make(seed: int, kind: type[RelayNode] = RelayNode, **options: object) -> RelayNode:
        nodes.append(kind(seed, **options))  # type: ignore[arg-type]
        return nodes[-1]

    yield _make
    for node in nodes:
        await node.registrar.close()
    for node in nodes:
        await node.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def stream(node: RelayNode, to: RelayNode, head: bytes) -> Pipe:
    """A stream of the relay service, whatever it says."""
    return await node.channels.pipe(to.key.public, to.addresses, RELAY_SERVICE, head)


async def refusal(pipe: Pipe) -> int | None:
    """The code with which a stream is reset."""
    try:
        while await asyncio.wait_for(pipe.read(), 10):
            pass
    except PipeBroken as broken:
        return broken.code
    pytest.fail("the stream was not reset")


def from_host(host: str) -> Dialer:
    """Dials from this address."""
    return partial(dial_tcp, source=host)


REGISTER = bytes((Op.REGISTER,))


class TestDraining:
    async def test_registrations_beyond_the_limit_are_refused_politely(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(registrations=2)).listen()
        for seed in (2, 3):
            await make(seed).hide_behind(relay)
        late = make(4)
        assert await refusal(await stream(late, relay, REGISTER)) == RelayFull.code
        assert relay.relay.registrations == 2
        # The session lives on: nothing was broken.
        assert await late.ask(relay) == b"hello"

    async def test_one_address_can_not_take_all_registrations(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(registrations_per_origin=1)).listen("0.0.0.0")
        relay.addresses = (Address("127.0.0.1", relay.addresses[0].port),)
        await make(2).hide_behind(relay)
        assert await refusal(await stream(make(3), relay, REGISTER)) == RelayFull.code

    async def test_one_node_holds_one_registration_however_often_it_asks(self, make: Make) -> None:
        relay = await make(1).listen()
        bob = make(2)
        first = await stream(bob, relay, REGISTER)
        assert await first.read()
        second = await stream(bob, relay, REGISTER)
        assert await second.read()
        await refusal(first)
        assert relay.relay.registrations == 1

    async def test_client_that_comes_back_is_not_in_its_own_way(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(registrations=2, registrations_per_origin=2)).listen()
        await make(2).hide_behind(relay)
        bob = make(3)
        for _ in range(3):
            pipe = await stream(bob, relay, REGISTER)
            assert await pipe.read()
        assert relay.relay.registrations == 2
        assert await refusal(await stream(make(4), relay, REGISTER)) == RelayFull.code

    async def test_one_network_can_not_take_all_registrations(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(registrations=4, registrations_per_origin=1)).listen()
        hogs = [make(10 + n, dial=from_host(f"127.0.7.{n + 1}")) for n in range(4)]
        pipes = [await stream(hog, relay, REGISTER) for hog in hogs]
        for pipe in pipes:
            assert await pipe.read()
        honest = [await make(20 + n, dial=from_host(f"127.0.{n}.1")).hide_behind(relay) for n in range(2)]
        assert await refusal(pipes[-1]) == RelayFull.code
        assert all(len(one.registrar.relays()) == 1 for one in honest)
        late = make(30, dial=from_host("127.0.7.9"))
        assert await refusal(await stream(late, relay, REGISTER)) == RelayFull.code, "now all have a fair share"

    @pytest.mark.parametrize("limits", [RelayLimits(circuits=6), RelayLimits(circuits_per_client=6)])
    async def test_one_network_can_not_take_all_circuits(self, make: Make, limits: RelayLimits) -> None:
        relay = await make(1, relay_limits=limits).listen()
        bob = await make(2).hide_behind(relay)
        for n in range(3):
            hog = make(10 + n, dial=from_host(f"127.0.7.{n + 1}"))
            for _ in range(2):
                await stream(hog, relay, connect(bob.key.public))
        await eventually(lambda: relay.relay.circuits == 6)
        for n in range(2):
            honest = make(20 + n, dial=from_host(f"127.0.{n}.1"))
            assert await honest.ask(bob) == b"hello"
        await eventually(lambda: relay.relay.circuits == 6)
        late = make(30, dial=from_host("127.0.7.9"))
        assert await refusal(await stream(late, relay, connect(bob.key.public))) == RelayFull.code

    async def test_circuits_beyond_the_limit_are_refused_and_places_come_back(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(circuits=2, circuits_per_node=8)).listen()
        bob = await make(2).hide_behind(relay)
        mallory = make(3)
        held = [await stream(mallory, relay, connect(bob.key.public)) for _ in range(2)]
        await eventually(lambda: relay.relay.circuits == 2)
        assert await refusal(await stream(mallory, relay, connect(bob.key.public))) == RelayFull.code
        for pipe in held:
            pipe.reset(1)
        await eventually(lambda: relay.relay.circuits == 0)
        assert await make(4).ask(bob) == b"hello"

    async def test_one_node_can_not_take_all_circuits(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(circuits_per_node=1)).listen()
        bob = await make(2).hide_behind(relay)
        mallory = make(3)
        await stream(mallory, relay, connect(bob.key.public))
        assert await refusal(await stream(mallory, relay, connect(bob.key.public))) == RelayFull.code
        assert await make(4).ask(bob) == b"hello"

    async def test_asking_again_and_again_is_cut_off_per_address(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        relay = await make(1).listen()
        monkeypatch.setattr(relay.relay._attempts, "burst", 5.0)
        mallory = make(2)
        codes = [await refusal(await stream(mallory, relay, connect(bytes(32)))) for _ in range(8)]
        assert codes[:5] == [NotRegistered.code] * 5
        assert codes[5:] == [RelayFull.code] * 3

    async def test_circuit_that_carried_its_share_ends(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(bytes_per_circuit=200_000)).listen()
        bob = await make(2).hide_behind(relay)
        with pytest.raises(Unreachable):
            await make(3).ask(bob, service=BULK)
        assert relay.relay.carried <= 200_000
        assert await make(4).ask(bob) == b"hello"

    async def test_circuit_that_rests_ends(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(idle_seconds=0.05)).listen()
        bob = await make(2).hide_behind(relay)
        await stream(make(3), relay, connect(bob.key.public))
        await eventually(lambda: relay.relay.circuits == 1)
        await eventually(lambda: relay.relay.circuits == 0)

    async def test_circuit_in_use_does_not_end_for_its_age(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(idle_seconds=0.3)).listen()
        bob = await make(2).hide_behind(relay)
        alice = make(3)
        end = monotonic() + 0.9
        while monotonic() < end:
            assert await alice.ask(bob) == b"hello"
            await asyncio.sleep(0.05)
        assert relay.relay.circuits == 1

    async def test_one_client_is_not_buried_under_circuits(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(circuits_per_client=2)).listen()
        bob, carol = await make(2).hide_behind(relay), await make(3).hide_behind(relay)
        for seed in (4, 5):
            await stream(make(seed), relay, connect(bob.key.public))
        assert await refusal(await stream(make(6), relay, connect(bob.key.public))) == RelayFull.code
        assert await make(7).ask(carol) == b"hello"

    @pytest.mark.parametrize("whose", ["all", "one address"])
    async def test_rate_is_kept(self, make: Make, whose: str) -> None:
        rate, plenty = 2_000_000, 10**9
        limits = RelayLimits(
            bytes_per_second=rate if whose == "all" else plenty,
            bytes_per_second_per_origin=plenty if whose == "all" else rate,
        )
        relay = await make(1, relay_limits=limits).listen()
        bob = await make(2).hide_behind(relay)
        alice = make(3)
        began = monotonic()
        for _ in range(3):
            await alice.ask(bob, service=BULK)
        # The first second's worth may come at once.
        assert relay.relay.carried <= rate * (1 + monotonic() - began) + 100_000
        assert monotonic() - began > 0.4

    async def test_node_that_does_not_relay_says_so(self, make: Make) -> None:
        node = await make(1, relay=False).listen()
        assert await refusal(await stream(make(2), node, REGISTER)) == NoRelay.code
        assert await refusal(await stream(make(3), node, connect(bytes(32)))) == NoRelay.code
        assert node.relay.registrations == 0

    async def test_client_that_reads_nothing_makes_the_relay_keep_little(self, make: Make) -> None:
        wide = RelayLimits(bytes_per_second=10**9, bytes_per_second_per_origin=10**9)
        relay = await make(1, relay_limits=wide).listen()
        bob = make(2)
        registered = await stream(bob, relay, REGISTER)
        assert await registered.read()
        incoming: asyncio.Future[Pipe] = asyncio.get_running_loop().create_future()

        async def deaf(pipe: Pipe) -> None:
            incoming.set_result(pipe)

        bob.door.serve = deaf  # type: ignore[method-assign]
        flood = await stream(make(3), relay, connect(bob.key.public))
        await incoming
        sent, stuck = 0, False
        while not stuck and sent < 5 * MEGABYTE:
            flood.write(bytes(65_536))
            sent += 65_536
            try:
                await asyncio.wait_for(flood.drain(), 0.3)
            except TimeoutError:
                stuck = True
        # Two windows, and what waits at each of three places.
        assert sent < 1_000_000


class TestLies:
    async def test_nobody_registers_for_another_key(self, make: Make) -> None:
        relay = await make(1).listen()
        bob, mallory = await make(2).hide_behind(relay), make(3)
        claim = await stream(mallory, relay, REGISTER + bob.key.public)
        assert await refusal(claim) == BadRelayRequest.code
        alice = make(4)
        assert await alice.ask(bob) == b"hello"
        assert bob.callers == [alice.key.public]

    async def test_circuit_to_oneself_is_a_violation(self, make: Make) -> None:
        relay = await make(1).listen()
        mallory = make(2)
        await stream(mallory, relay, REGISTER)
        loop = await stream(mallory, relay, connect(mallory.key.public))
        assert await refusal(loop) == BadRelayRequest.code
        await eventually(lambda: not relay.channels.sessions())

    async def test_own_circuits_under_two_keys_stay_within_the_share_of_one_address(self, make: Make) -> None:
        relay = await make(1, relay_limits=RelayLimits(circuits_per_origin=3)).listen()
        one, other = await make(2).hide_behind(relay), make(3)
        for _ in range(3):
            await stream(other, relay, connect(one.key.public))
        assert await refusal(await stream(make(4), relay, connect(one.key.public))) == RelayFull.code
        assert relay.relay.circuits == 3

    async def test_circuits_do_not_chain_so_they_can_not_loop(self, make: Make) -> None:
        relay = await make(1).listen()
        # Bob relays for others, and can himself be reached only through the relay.
        bob = await make(2).hide_behind(relay)
        alice = make(3)
        assert await alice.ask(bob) == b"hello"
        for head in (REGISTER, connect(relay.key.public), connect(bob.key.public)):
            assert await refusal(await stream(alice, bob, head)) == RelayedAlready.code
        assert bob.relay.circuits == bob.relay.registrations == 0

    async def test_stranger_brings_nobody(self, make: Make) -> None:
        relay, bob = await make(1).listen(), await make(2).listen()
        incoming = await stream(relay, bob, bytes((Op.INCOMING,)))
        assert await refusal(incoming) == NotMyRelay.code

    @pytest.mark.parametrize("head", [b"\x00", b"\x07", b"\xff" * 40])
    async def test_unknown_stream_ends_the_session(self, make: Make, head: bytes) -> None:
        relay = await make(1).listen()
        assert await refusal(await stream(make(2), relay, head)) == BadRelayRequest.code

    async def test_answer_of_a_relay_that_is_no_endpoint_is_no_registration(self, make: Make) -> None:
        liar = await make(1).listen()

        async def mumble(pipe: Pipe) -> None:
            pipe.write(b"\x09whatever")

        liar.door.serve = mumble  # type: ignore[method-assign]
        honest = await make(2).listen()
        bob = make(3)
        bob.candidates = [liar.candidate, honest.candidate]
        bob.registrar.start()
        bob.registrar.want(True)
        await eventually(lambda: bob.registrar.relays() == (honest.contact,))


class TestHostileRelay:
    async def test_relay_that_alters_bytes_is_found_out_and_another_path_is_used(self, make: Make) -> None:
        evil, honest = await make(1).listen(), await make(2).listen()
        alice, bob = make(3), await make(4).hide_behind(evil, honest)
        copy = evil.relay._copy

        async def bend(source: Pipe, sink: Pipe, *rest: object) -> None:
            write = sink.write
            count = 0

            def bent(data: bytes) -> None:
                nonlocal count
                count += 1
                # The handshake passes, then one bit of each piece is turned.
                write(data if count <= 1 else data[:-1] + bytes((data[-1] ^ 1,)))

            sink.write = bent  # type: ignore[method-assign]
            await copy(source, sink, *rest)  # type: ignore[arg-type]

        evil.relay._copy = bend  # type: ignore[assignment, method-assign]
        reached = [r for r in bob.registrar.relays() if r.node == evil.key.public]
        with pytest.raises(Unreachable):
            await alice.channels.request(bob.key.public, (), ECHO, b"money", timeout=10, relays=reached)
        assert bob.callers == []
        assert await alice.ask(bob, b"money") == b"money"

    async def test_relay_that_falls_silent_after_the_handshake_is_asked_last(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        evil, honest = await make(1).listen(), await make(2).listen()
        alice, bob = make(3), await make(4).hide_behind(evil, honest)
        copy = evil.relay._copy

        async def choke(source: Pipe, sink: Pipe, *rest: object) -> None:
            write = sink.write
            pieces = 0

            def choked(data: bytes) -> None:
                nonlocal pieces
                pieces += 1
                if pieces <= 2:
                    write(data)

            sink.write = choked  # type: ignore[method-assign]
            await copy(source, sink, *rest)  # type: ignore[arg-type]

        evil.relay._copy = choke  # type: ignore[assignment, method-assign]
        relays = sorted(bob.registrar.relays(), key=lambda r: r.node != evil.key.public)
        with pytest.raises((TimedOut, Unreachable)):
            await alice.channels.request(bob.key.public, (), ECHO, b"x", timeout=0.5, relays=relays)
        reply = await alice.channels.request(bob.key.public, (), ECHO, b"x", timeout=5, relays=relays)
        assert reply == b"x"

    async def test_relay_that_plays_the_node_itself_gets_nothing(self, make: Make) -> None:
        evil = await make(1).listen()
        honest = await make(2).listen()
        alice, bob = make(3), await make(4).hide_behind(evil, honest)

        async def impersonate(pipe: Pipe) -> None:
            await pipe.read_exactly(33)
            evil.channels.accept(pipe)

        evil.door.serve = impersonate  # type: ignore[method-assign]
        bob.addresses = ()
        assert await alice.ask(bob, b"secret") == b"secret"
        assert evil.callers == []
        assert bob.callers == [alice.key.public]

    async def test_relay_that_swallows_everything_costs_a_quarter_of_a_second(self, make: Make) -> None:
        hole, honest = await make(1).listen(), await make(2).listen()
        alice, bob = make(3), await make(4).hide_behind(hole, honest)
        assert await alice.ask(hole) == b"hello"

        async def swallow(pipe: Pipe) -> None:
            while await pipe.read():
                pass

        hole.door.serve = swallow  # type: ignore[method-assign]
        relays = sorted(bob.registrar.relays(), key=lambda r: r.node != hole.key.public)
        began = monotonic()
        reply = await alice.channels.request(bob.key.public, (), ECHO, b"x", timeout=10, relays=relays)
        assert reply == b"x"
        assert monotonic() - began < 1.5


class TestVictims:
    async def test_record_that_names_a_victim_makes_us_knock_a_bounded_number_of_times(self, make: Make) -> None:
        knocks = 0

        async def knocked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal knocks
            knocks += 1
            writer.close()

        victim = await asyncio.start_server(knocked, "127.0.0.1", 0)
        port = victim.sockets[0].getsockname()[1]
        alice = make(1)
        target = Address("127.0.0.1", port)
        for seed in range(100, 100 + int(FAILURES) + 20):
            wanted = SigningKey(bytes([seed]) * 32).public
            with pytest.raises(Unreachable):
                await alice.channels.request(wanted, [target] * 16, ECHO, b"", timeout=5)
        victim.close()
        await victim.wait_closed()
        assert knocks <= FAILURES + 1

    def test_guard_counts_a_network_as_one_and_lets_success_off(self) -> None:
        guard = DialGuard()
        for number in range(int(FAILURES)):
            guard.begin(Address(f"198.51.100.{number}", 1), 0.0)
        with pytest.raises(DialledTooOften):
            guard.begin(Address("198.51.100.200", 7), 0.0)
        guard.begin(Address("203.0.113.1", 7), 0.0)
        guard.succeeded(Address("198.51.100.1", 1))
        guard.begin(Address("198.51.100.1", 1), 0.0)
        guard.begin(Address("198.51.100.1", 1), 6.0)
        with pytest.raises(DialledTooOften):
            guard.begin(Address("198.51.100.1", 1), 6.0)

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fe80::1", "fc00::1", "0.0.0.0",
         "::ffff:10.0.0.1", "224.0.0.1", "100.64.0.1", "localhost", "fec0::1", "2002:7f00:1::1", "64:ff9b::7f00:1",
         "64:ff9b:1::1", "::7f00:1", "::ffff:0:7f00:1", "ff0e::1"],
    )  # fmt: skip
    async def test_addresses_of_private_networks_are_not_dialled_on_the_public_one(self, host: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with pytest.raises(NotPublic):
                await dial_public(Address(host, listener.getsockname()[1]))
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()

    async def test_helper_dials_only_where_the_asker_is_and_not_often(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probing, "DIAL_SECONDS", 0.2)
        helper, asker = await make(1).listen(), await make(2).listen()
        port = asker.addresses[0].port
        answers = [await probing.ask(asker.channels, helper.contact, port) for _ in range(int(probing.BURST) + 2)]
        told = [a for a in answers if a is not None]
        assert len(told) == int(probing.BURST)
        assert {a.seen.host for a in told} == {"127.0.0.1"}

    async def test_helper_is_no_oracle_for_a_relayed_asker(self, make: Make) -> None:
        relay = await make(1).listen()
        bob, alice = await make(2).hide_behind(relay), make(3)
        assert await alice.ask(bob) == b"hello"
        through = NodeContact(bob.key.public, ())
        assert await probing.ask(alice.channels, through, 22) is None


class TestPlaces:
    async def test_idle_session_makes_room_for_a_newcomer(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("p2pnode.channels.channels.IDLE_ENOUGH", 0.0)
        bob = await make(1, limits=Limits(max_inbound=2)).listen()
        for seed in (2, 3):
            assert await make(seed).ask(bob) == b"hello"
        await asyncio.sleep(0)
        assert await make(4).ask(bob) == b"hello"
        await eventually(lambda: len(bob.channels.sessions()) == 2)

    async def test_busy_sessions_are_not_thrown_out(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("p2pnode.channels.channels.IDLE_ENOUGH", 0.0)
        relay = await make(1, limits=Limits(max_inbound=1)).listen()
        await make(2).hide_behind(relay)
        with pytest.raises(Unreachable):
            await make(3).ask(relay)
        assert relay.relay.registrations == 1


async def test_dialled_back_handshake_needs_the_askers_key(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that reaches another node at the asker's address must not call the asker reachable."""
    monkeypatch.setattr(probing, "DIAL_SECONDS", 0.2)
    helper, other = await make(1).listen(), await make(2).listen()
    asker = make(3)
    answer = await probing.ask(asker.channels, helper.contact, other.addresses[0].port)
    assert answer is not None
    assert answer.reached == 0
