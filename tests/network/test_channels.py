"""Channels over real sockets on loopback: what a caller may rely on, and what goes wrong on networks."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from p2pnode.channels import CannotListen, Link, PeerRefused, PeerUnable, TimedOut, Unreachable, dial_tcp
from p2pnode.channels.links import origin_of
from p2pnode.channels.paths import interleaved
from protocol.contact import Address
from protocol.errors import Malformed, TooLarge, UnknownKind
from protocol.session import CloseCode
from protocol.streams import ResetCode
from protocol.types import Network
from tests.network.channel_support import (
    BREAK,
    ECHO,
    GROW,
    REFUSE,
    STALL,
    VIOLATE,
    WHO,
    FaultyLink,
    Node,
    PipeLink,
    eventually,
    session_limits,
)

Make = Callable[..., Awaitable[Node]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes listening nodes; afterwards closes them and sees that nothing of them is left."""
    nodes: list[Node] = []

    async def _make(seed: int, *, host: str = "127.0.0.1", **options: object) -> Node:
        node = Node(seed, **options)  # type: ignore[arg-type]
        nodes.append(node)
        return await node.listen(host)

    yield _make
    for node in nodes:
        await node.channels.close()
        await node.channels.close()
        assert node.session_count == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def pair(make: Make) -> tuple[Node, Node]:
    return await make(1), await make(2)


@pytest.fixture
def dead_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class TestRequests:
    async def test_session_is_kept_and_serves_both_directions(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        assert await alice.ask(bob, ECHO, b"one") == b"one"
        assert await alice.ask(bob, ECHO, b"two") == b"two"
        assert await bob.ask(alice, ECHO, b"three", addresses=[]) == b"three"
        assert (alice.session_count, bob.session_count) == (1, 1)
        assert bob.requests == [b"one", b"two"]

    async def test_service_learns_the_node_key_of_its_caller(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        assert await alice.ask(bob, WHO) == alice.key.public
        assert await bob.ask(alice, WHO, addresses=[]) == bob.key.public

    async def test_empty_reply_is_an_acknowledgement(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        assert await alice.ask(bob, ECHO, b"") == b""

    async def test_requests_to_a_new_peer_share_one_dial(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        replies = await asyncio.gather(*(alice.ask(bob, ECHO, bytes([i])) for i in range(100)))
        assert replies == [bytes([i]) for i in range(100)]
        assert (alice.session_count, bob.session_count) == (1, 1)

    async def test_dialling_at_once_leaves_one_session_and_loses_no_request(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        for turn in range(5):
            mine, theirs = await asyncio.gather(
                asyncio.gather(*(alice.ask(bob, ECHO, bytes([turn, i])) for i in range(10))),
                asyncio.gather(*(bob.ask(alice, ECHO, bytes([turn, i])) for i in range(10))),
            )
            assert mine == theirs == [bytes([turn, i]) for i in range(10)]
        await eventually(lambda: (alice.session_count, bob.session_count) == (1, 1))
        assert alice.channels.sessions()[0].outgoing != bob.channels.sessions()[0].outgoing
        assert await alice.ask(bob, addresses=[]) == await bob.ask(alice, addresses=[]) == b"hello"

    async def test_large_bodies_both_ways_at_once_do_not_lock_up(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        body = bytes(range(250)) * 4_000
        replies = await asyncio.gather(
            *(one.ask(other, ECHO, body) for one, other in ((alice, bob), (bob, alice)) for _ in range(2))
        )
        assert all(reply == body for reply in replies)

    async def test_more_requests_at_once_than_the_peer_takes_wait_their_turn(self, make: Make) -> None:
        alice, bob = await make(1), await make(2)
        assert await alice.ask(bob) == b"hello"
        stalled = [asyncio.ensure_future(alice.ask(bob, STALL)) for _ in range(31)]
        replies = await asyncio.gather(*(alice.ask(bob, ECHO, bytes([i])) for i in range(50)))
        assert replies == [bytes([i]) for i in range(50)]
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        await eventually(bob.cancelled.is_set)


class TestRefusals:
    async def test_services_error_code_travels_and_the_session_lives(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(PeerRefused) as caught:
            await alice.ask(bob, REFUSE)
        assert caught.value.peer_code == UnknownKind.code
        assert await alice.ask(bob, addresses=[]) == b"hello"

    async def test_violation_is_refused_with_its_code_and_ends_the_session(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(PeerRefused) as caught:
            await alice.ask(bob, VIOLATE)
        assert caught.value.peer_code == Malformed.code
        await eventually(lambda: (alice.session_count, bob.session_count) == (0, 0))
        assert await alice.ask(bob) == b"hello"

    async def test_services_own_bug_is_not_the_callers_fault(
        self, pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
    ) -> None:
        alice, bob = pair
        with pytest.raises(PeerUnable) as caught:
            await alice.ask(bob, BREAK)
        assert caught.value.peer_code == ResetCode.FAILED
        assert [r.levelno for r in caplog.records if r.message == "a service failed"] == [logging.ERROR]
        assert await alice.ask(bob, addresses=[]) == b"hello"

    async def test_reply_longer_than_the_service_promised_is_our_bug(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(PeerUnable) as caught:
            await alice.ask(bob, GROW)
        assert caught.value.peer_code == ResetCode.FAILED

    async def test_unknown_service_is_refused_for_good(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(PeerRefused) as caught:
            await alice.ask(bob, 999)
        assert caught.value.peer_code == ResetCode.UNKNOWN_SERVICE

    async def test_request_over_the_services_limit_does_not_reach_it(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(PeerRefused) as caught:
            await alice.ask(bob, ECHO, bytes(1_000_001))
        assert caught.value.peer_code == ResetCode.TOO_LARGE
        assert bob.requests == []
        assert await alice.ask(bob, addresses=[]) == b"hello"

    async def test_reply_over_the_callers_limit_is_cut_off(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(TooLarge):
            await alice.ask(bob, ECHO, bytes(500_000), reply_limit=499_999)
        assert await alice.ask(bob, addresses=[]) == b"hello"


class TestTime:
    async def test_silent_service_times_out_and_is_cancelled(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        await alice.ask(bob)
        with pytest.raises(TimedOut):
            await alice.ask(bob, STALL, timeout=0.05)
        await asyncio.wait_for(bob.cancelled.wait(), 5)
        await eventually(lambda: alice.channels.sessions() == ())  # nothing was heard: it is not trusted any more
        assert await alice.ask(bob) == b"hello"

    async def test_cancelled_request_is_cancelled_at_the_peer(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        task = asyncio.ensure_future(alice.ask(bob, STALL))
        await asyncio.wait_for(bob.stalled.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(bob.cancelled.wait(), 5)
        assert await alice.ask(bob, addresses=[]) == b"hello"

    async def test_service_has_a_deadline_of_its_own(self, make: Make) -> None:
        alice, bob = await make(1), await make(2, seconds=0.05)
        with pytest.raises(PeerUnable) as caught:
            await alice.ask(bob, STALL)
        assert caught.value.peer_code == ResetCode.TOO_SLOW
        assert bob.cancelled.is_set()

    async def test_idle_session_is_closed_and_made_again(self, make: Make) -> None:
        alice, bob = await make(1, limits=session_limits(idle_after=0.05)), await make(2)
        assert await alice.ask(bob) == b"hello"
        await eventually(lambda: (alice.session_count, bob.session_count) == (0, 0))
        assert await alice.ask(bob) == b"hello"

    async def test_request_that_meets_a_closing_session_is_made_again(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        for i in range(10):
            assert await alice.ask(bob, ECHO, b"warm") == b"warm"
            crossing = asyncio.ensure_future(alice.ask(bob, ECHO, bytes([i])))
            for connection in list(bob.channels._runs):
                connection.close(CloseCode.IDLE)
            assert await crossing == bytes([i])
        assert [r for r in bob.requests if r != b"warm"] == [bytes([i]) for i in range(10)]

    async def test_peer_that_closes_every_session_is_unreachable(self, make: Make) -> None:
        alice, bob = await make(1), await make(2, limits=session_limits(idle_after=0.0))
        with pytest.raises(Unreachable) as caught:
            await alice.ask(bob)
        assert not caught.value.maybe_received
        assert bob.requests == []


class TestReaching:
    async def test_nobody_listens(self, pair: tuple[Node, Node], dead_port: int) -> None:
        alice, bob = pair
        with pytest.raises(Unreachable) as caught:
            await alice.ask(bob, addresses=[Address("127.0.0.1", dead_port)])
        assert not caught.value.maybe_received
        assert "\n" not in caught.value.detail

    async def test_no_address_own_key_and_broken_key_are_refused_at_once(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(Unreachable, match="no address"):
            await alice.ask(bob, addresses=[])
        with pytest.raises(Unreachable, match="this node itself"):
            await alice.ask(alice)
        with pytest.raises(Unreachable, match="not a usable node key"):
            await alice.channels.request(bytes(32), bob.addresses, ECHO, b"", timeout=5)

    @pytest.mark.parametrize("host", ["a" * 200, "no.such.host.invalid", "::::", "999.1.1.1"])
    async def test_host_that_is_none(self, pair: tuple[Node, Node], host: str) -> None:
        alice, bob = pair
        with pytest.raises(Unreachable):
            await alice.ask(bob, addresses=[Address(host, 1)])

    async def test_other_node_at_the_address_gets_nothing(self, make: Make) -> None:
        alice, bob, mallory = await make(1), await make(2), await make(3)
        with pytest.raises(Unreachable) as caught:
            await alice.ask(bob, addresses=mallory.addresses)
        assert not caught.value.maybe_received
        assert mallory.requests == []
        assert mallory.session_count == 0

    async def test_other_network_is_not_reached(self, make: Make) -> None:
        alice, bob = await make(1), await make(2, network=Network.SIGNET)
        with pytest.raises(Unreachable):
            await alice.ask(bob)

    async def test_silent_dead_and_foreign_addresses_do_not_hide_the_good_one(self, make: Make, dead_port: int) -> None:
        alice, bob, mallory = await make(1), await make(2), await make(3)
        ends: list[asyncio.StreamWriter] = []
        silent = await asyncio.start_server(lambda _r, w: ends.append(w), "127.0.0.1", 0)
        host, port = silent.sockets[0].getsockname()
        addresses = [Address(host, port), Address(host, dead_port), *mallory.addresses, *bob.addresses]
        began = asyncio.get_running_loop().time()
        assert await alice.ask(bob, addresses=addresses) == b"hello"
        assert asyncio.get_running_loop().time() - began < 5.0  # not the 10 s of a handshake that never comes
        assert (alice.session_count, mallory.session_count) == (1, 0)
        for end in ends:
            end.close()
            await end.wait_closed()
        silent.close()
        await silent.wait_closed()

    async def test_request_with_better_addresses_is_not_bound_to_a_failing_dial(
        self, pair: tuple[Node, Node], dead_port: int
    ) -> None:
        alice, bob = pair
        dead = [Address("127.0.0.1", dead_port)]
        results = await asyncio.gather(alice.ask(bob, addresses=dead), alice.ask(bob), return_exceptions=True)
        assert isinstance(results[0], Unreachable)
        assert results[1] == b"hello"

    async def test_ipv6_and_host_names(self, make: Make) -> None:
        alice, bob, carol = await make(1), await make(2, host="::1"), await make(3)
        assert await alice.ask(bob) == b"hello"
        assert alice.channels.sessions()[0].remote.startswith("[::1]:")
        assert await alice.ask(carol, addresses=[Address("localhost", carol.addresses[0].port)]) == b"hello"

    async def test_session_can_ride_on_something_else_than_a_socket(self, make: Make) -> None:
        bob = await make(2)

        async def dial_pipe(address: Address) -> Link:
            ours, theirs = PipeLink.pair()
            assert bob.channels.accept(theirs)
            return ours

        alice = await make(1, dial=dial_pipe)
        assert await alice.ask(bob) == b"hello"
        assert await bob.ask(alice, addresses=[]) == b"hello"
        assert alice.channels.sessions()[0].remote == "a pipe"


class TestLosses:
    async def test_peer_that_goes_away_fails_the_request_and_can_come_back(self, make: Make) -> None:
        alice, bob = await make(1), await make(2)
        task = asyncio.ensure_future(alice.ask(bob, STALL))
        await asyncio.wait_for(bob.stalled.wait(), 5)
        await bob.channels.close()
        with pytest.raises(Unreachable) as caught:
            await task
        assert caught.value.maybe_received
        with pytest.raises(Unreachable) as caught:
            await alice.ask(bob)
        assert not caught.value.maybe_received
        again = await make(2)
        assert await alice.ask(again) == b"hello"

    async def test_silence_under_a_request_is_noticed_long_before_the_keepalive(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("p2pnode.channels.connection.PATIENCE", 0.05)
        links: list[FaultyLink] = []

        async def dial(address: Address) -> Link:
            links.append(FaultyLink(await dial_tcp(address)))
            return links[-1]

        alice = await make(1, dial=dial, limits=session_limits(probe_timeout=0.05))
        bob = await make(2)
        assert await alice.ask(bob) == b"hello"
        links[0].dead.set()
        with pytest.raises(Unreachable):
            await alice.ask(bob, timeout=5)
        assert await alice.ask(bob) == b"hello"
        # A peer that is only slow answers the probe, and is waited for.
        with pytest.raises(TimedOut):
            await alice.ask(bob, STALL, timeout=0.5)
        assert alice.session_count == 1

    async def test_network_that_swallows_everything_is_noticed(self, make: Make) -> None:
        links: list[FaultyLink] = []

        async def dial_faulty(address: Address) -> Link:
            links.append(FaultyLink(await dial_tcp(address)))
            return links[-1]

        limits = session_limits(ping_after=0.05, ping_timeout=0.05)
        alice, bob = await make(1, limits=limits, dial=dial_faulty), await make(2)
        assert await alice.ask(bob) == b"hello"
        links[0].dead.set()
        with pytest.raises(Unreachable) as caught:
            await alice.ask(bob)
        assert caught.value.maybe_received
        assert alice.session_count == 0
        assert await alice.ask(bob) == b"hello"
        assert len(links) == 2

    async def test_after_a_timeout_in_silence_the_next_request_takes_another_session(self, make: Make) -> None:
        links: list[FaultyLink] = []

        async def dial_faulty(address: Address) -> Link:
            links.append(FaultyLink(await dial_tcp(address)))
            return links[-1]

        alice, bob = await make(1, dial=dial_faulty), await make(2)
        assert await alice.ask(bob) == b"hello"
        links[0].dead.set()
        with pytest.raises(TimedOut):
            await alice.ask(bob, timeout=0.05)
        assert await alice.ask(bob) == b"hello"
        await eventually(lambda: bob.session_count == 1)  # the new session retired the one that bob thought good

    async def test_session_that_only_one_side_lost_is_replaced(self, make: Make) -> None:
        """A restarted peer dials anew while the old session still looks alive here."""
        alice, bob = await make(1), await make(2)
        assert await alice.ask(bob) == b"hello"
        await alice.channels.close()
        restarted = await make(1)
        assert await restarted.ask(bob, WHO) == restarted.key.public
        assert await bob.ask(restarted, addresses=[]) == b"hello"
        await eventually(lambda: bob.session_count == 1)


class TestEnd:
    async def test_close_fails_what_runs_and_stops_listening(self, make: Make) -> None:
        alice, bob = await make(1), await make(2)
        ours = asyncio.ensure_future(alice.ask(bob, STALL))
        await asyncio.wait_for(bob.stalled.wait(), 5)
        await alice.channels.close()
        with pytest.raises(Unreachable):
            await ours
        assert asyncio.current_task() is not None
        await eventually(lambda: bob.session_count == 0)
        with pytest.raises(Unreachable):
            await bob.ask(alice)
        with pytest.raises(Unreachable, match="shutting down"):
            await alice.ask(bob)

    async def test_close_while_dialling_leaves_nothing_behind(self, make: Make) -> None:
        async def dial_never(address: Address) -> Link:
            await asyncio.Event().wait()
            raise AssertionError

        alice, bob = await make(1, dial=dial_never), await make(2)
        task = asyncio.ensure_future(alice.ask(bob))
        await asyncio.sleep(0)
        await alice.channels.close()
        with pytest.raises(Unreachable):
            await task

    async def test_close_in_the_middle_of_a_storm_leaves_nothing_behind(self, make: Make) -> None:
        alice, bob = await make(1), await make(2)
        tasks = [
            asyncio.ensure_future(one.ask(other, ECHO, bytes(50_000)))
            for one, other in ((alice, bob), (bob, alice))
            for _ in range(20)
        ]
        await eventually(lambda: len(bob.requests) > 3)
        await bob.channels.close()
        await alice.channels.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result == bytes(50_000) or isinstance(result, Unreachable | PeerUnable)

    async def test_port_in_use_is_one_clear_line(self, pair: tuple[Node, Node]) -> None:
        alice, bob = pair
        with pytest.raises(CannotListen) as caught:
            await alice.channels.listen("127.0.0.1", bob.addresses[0].port)
        assert "\n" not in caught.value.detail
        assert str(bob.addresses[0].port) in caught.value.detail


def test_addresses_of_each_kind_take_turns() -> None:
    def at(*hosts: str) -> list[Address]:
        return [Address(host, 1) for host in hosts]

    given = at("10.0.0.1", "10.0.0.2", "10.0.0.1", "::1", "name", "::2", "10.0.0.3")
    assert interleaved(given) == at("10.0.0.1", "::1", "name", "10.0.0.2", "::2", "10.0.0.3")
    assert len(interleaved(at(*(f"10.0.0.{i}" for i in range(100))))) == 16


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_addresses_that_one_party_controls_count_as_one(host: str, origin: str) -> None:
    assert origin_of(host) == origin
