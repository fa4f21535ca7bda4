"""Hostile peers on real sockets: each costs the node a bounded amount, and nobody else anything."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from struct import pack

import pytest

from p2pnode.channels import Limits, Unreachable
from p2pnode.channels.links import HIGH_WATER, dial_tcp
from protocol.contact import Address
from protocol.frames import LENGTH, MAX_PAYLOAD, Frame, FrameKind, encode
from protocol.identity import SigningKey
from protocol.session import PingAbuse, Role, Session, Settings
from protocol.streams import MAX_STREAMS, BodyLimits, ResetCode, StreamFlood
from protocol.types import Network
from tests.network.channel_support import ECHO, STALL, Node, PipeLink, eventually, session_limits

MALLORY = SigningKey(b"\xee" * 32)


class Attacker:
    """Speaks the protocol over a socket, and whatever else the test wants to send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session) -> None:
        self.reader = reader
        self.writer = writer
        self.session = session

    @classmethod
    async def connect(cls, victim: Node) -> Attacker:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        address = victim.addresses[0]
        await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4_096)
        session = Session(
            Role.INITIATOR,
            MALLORY,
            victim.key.public,
            lambda: os.urandom(32),
            Network.REGTEST,
            0.0,
            services={ECHO: BodyLimits(10, 10)},
        )
        attacker = cls(reader, writer, session)
        writer.write(session.data_to_send())
        session.receive_data(await reader.readexactly(50), 0.0)
        writer.write(session.data_to_send())
        assert session.is_open
        return attacker

    def send(self, kind: int, stream: int, payload: bytes, flags: int = 0) -> None:
        assert self.session._sealer is not None
        self.writer.write(self.session._sealer.seal(encode(kind, stream, flags, payload)))

    async def frame(self) -> Frame:
        """The next frame from the victim, whatever it means."""
        assert self.session._opener is not None
        (size,) = LENGTH.unpack(await asyncio.wait_for(self.reader.readexactly(LENGTH.size), 10))
        return self.session._opener.open(await self.reader.readexactly(size))

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def _make(seed: int, **options: object) -> Node:
        nodes.append(Node(seed, **options))  # type: ignore[arg-type]
        return nodes[-1]

    yield _make
    for node in nodes:
        await node.channels.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


Make = Callable[..., Node]


async def is_hung_up(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionError:
        return True


async def test_connection_that_says_nothing_is_closed_at_the_handshakes_deadline(make: Make) -> None:
    bob = await make(2, limits=session_limits(handshake_timeout=0.05)).listen()
    address = bob.addresses[0]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    assert await is_hung_up(reader)
    writer.close()
    await writer.wait_closed()


async def test_junk_is_hung_up_on_without_a_word_and_without_noise_in_the_log(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = make(1), await make(2).listen()
    address = bob.addresses[0]
    rng = random.Random(7)
    with caplog.at_level(logging.WARNING):
        for junk in [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x30" + bytes(48), *(rng.randbytes(200) for _ in range(10))]:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(junk)
            assert await is_hung_up(reader)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        assert await alice.ask(bob) == b"hello"
    assert caplog.records == []


async def test_one_origin_can_not_take_all_places(make: Make) -> None:
    bob = await make(2, limits=Limits(max_inbound_per_origin=2)).listen()
    address = bob.addresses[0]
    held = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
    await eventually(lambda: bob.channels._inbound == 2)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    assert await is_hung_up(reader)
    for _, end in [*held, (reader, writer)]:
        end.close()
        with suppress(ConnectionError):
            await end.wait_closed()
    await eventually(lambda: bob.channels._inbound == 0)
    assert not bob.channels._origins
    alice = make(1)
    assert await alice.ask(bob) == b"hello"


async def test_total_of_inbound_sessions_is_limited_and_outbound_ones_are_not(make: Make) -> None:
    bob = await make(2, limits=Limits(max_inbound=1)).listen()
    alice, carol = await make(1).listen(), await make(3).listen()
    assert await alice.ask(bob) == b"hello"
    with pytest.raises(Exception, match="reach"):
        await carol.ask(bob)
    assert await bob.ask(carol) == b"hello"
    assert await carol.ask(bob, addresses=[]) == b"hello"


async def test_handshakes_that_hang_do_not_hold_all_places(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.channels.channels.HANDSHAKE_ENOUGH", 0.0)
    bob = await make(2, limits=Limits(max_inbound=4)).listen()
    address = bob.addresses[0]
    held = [
        await asyncio.open_connection(address.host, address.port, local_addr=(f"127.0.{n}.1", 0)) for n in range(1, 5)
    ]
    await eventually(lambda: bob.channels._inbound == 4)
    for seed in (3, 4, 5):
        assert await make(seed).ask(bob) == b"hello"
    for _, end in held:
        end.transport.abort()


class FarLink(PipeLink):
    """From an address of the public network; says nothing."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.origin = host
        self.endpoint = Address(host, 4_000)  # type: ignore[assignment]


async def test_sessions_begun_without_end_from_one_address_are_refused_before_they_cost_anything(make: Make) -> None:
    bob = make(2, limits=Limits(inbound_burst=20.0, max_inbound=1_000, max_inbound_per_origin=1_000))
    assert [bob.channels.accept(FarLink("9.9.9.9")) for _ in range(40)] == [True] * 20 + [False] * 20
    assert bob.channels.accept(FarLink("8.8.8.8"))


async def test_one_network_does_not_hold_all_places_whatever_it_does_on_them(make: Make) -> None:
    bob = await make(2, limits=Limits(max_inbound=4)).listen()
    hogs = []
    for n in range(4):
        node = make(10 + n, dial=partial(dial_tcp, source=f"127.0.7.{n + 1}"))
        hogs.append(asyncio.create_task(node.ask(bob, STALL)))
        await eventually(lambda n=n: bob.session_count == n + 1)  # type: ignore[misc]
    for seed in (3, 4, 5):
        # As many as make both equal; then the newcomer is the one too many.
        asking = make(seed).ask(bob)
        if seed < 5:
            assert await asking == b"hello"
        else:
            with pytest.raises(Unreachable):
                await asking
    for hog in hogs:
        hog.cancel()
    await asyncio.gather(*hogs, return_exceptions=True)


async def test_peer_that_floods_with_pings_and_does_not_read_is_cut_off(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bob = await make(2).listen()
    mallory = await Attacker.connect(bob)
    await eventually(lambda: bob.session_count == 1)
    (connection,) = bob.channels._runs
    transport = connection._link._transport  # type: ignore[attr-defined]
    peak = 0
    mallory.reader._transport.pause_reading()  # type: ignore[attr-defined]
    with suppress(ConnectionError):
        while bob.session_count:
            for _ in range(200):
                mallory.send(FrameKind.PING, 0, bytes(8))
            await mallory.writer.drain()
            await asyncio.sleep(0)
            peak = max(peak, transport.get_write_buffer_size())
    assert peak <= HIGH_WATER + 200_000
    assert any(PingAbuse().detail in r.message for r in caplog.records)
    await mallory.close()


async def test_peer_that_takes_no_replies_can_not_make_them_pile_up(make: Make) -> None:
    limit = 2_000_000
    bob = await make(2, limits=Limits(session=Settings(max_inbound_bytes=limit))).listen()
    mallory = await Attacker.connect(bob)
    await eventually(lambda: bob.session_count == 1)
    (connection,) = bob.channels._runs
    transport = connection._link._transport  # type: ignore[attr-defined]
    body = bytes(200_000)
    held = buffered = 0
    mallory.send(FrameKind.WINDOW, 0, pack(">I", 2**30))
    for i in range(40):
        stream = 1 + 2 * i
        mallory.send(FrameKind.OPEN, stream, pack(">H", ECHO))
        for at in range(0, len(body), MAX_PAYLOAD):
            piece = body[at : at + MAX_PAYLOAD]
            mallory.send(FrameKind.DATA, stream, piece, at + len(piece) == len(body))
        await eventually(lambda: transport.is_closing() or mallory.writer.transport.get_write_buffer_size() == 0)
        held = max(held, connection._session._streams._held)
        buffered = max(buffered, transport.get_write_buffer_size())
    print("most held", held, "most buffered", buffered)
    # The replies fill the socket, then the session; then the peer has used up its window, or is refused.
    assert 200_000 < held <= limit
    assert HIGH_WATER < buffered <= 2 * HIGH_WATER + MAX_PAYLOAD
    await mallory.close()


async def test_stream_flood_ends_the_session_and_every_service_of_it(make: Make) -> None:
    bob = await make(2).listen()
    mallory = await Attacker.connect(bob)
    for i in range(MAX_STREAMS):
        mallory.send(FrameKind.OPEN, 1 + 2 * i, pack(">H", STALL), 1)
    await asyncio.wait_for(bob.stalled.wait(), 10)
    assert len(asyncio.all_tasks()) < 60  # 32 were let in; the others were answered at once
    # Those refused as BUSY are over, since this peer had ended its half; so it takes another MAX_STREAMS, left open.
    for i in range(MAX_STREAMS, 2 * MAX_STREAMS):
        mallory.send(FrameKind.OPEN, 1 + 2 * i, pack(">H", STALL))
    while (frame := await mallory.frame()).kind == FrameKind.RESET:
        assert frame.payload == pack(">H", ResetCode.BUSY)
    assert frame.kind == FrameKind.CLOSE
    assert frame.payload[:2] == pack(">H", StreamFlood.code)
    await asyncio.wait_for(bob.cancelled.wait(), 10)
    await eventually(lambda: bob.session_count == 0)
    await mallory.close()


async def test_request_that_trickles_in_is_cut_off(make: Make) -> None:
    bob = await make(2, seconds=0.1).listen()
    mallory = await Attacker.connect(bob)
    mallory.send(FrameKind.OPEN, 1, pack(">H", STALL) + b"a little")
    assert await mallory.frame() == Frame(FrameKind.RESET, 1, pack(">H", ResetCode.TOO_SLOW))
    assert not bob.stalled.is_set()
    await mallory.close()


async def test_broken_connections_in_every_phase_leave_the_node_working(make: Make) -> None:
    alice, bob = make(1), await make(2).listen()
    address = bob.addresses[0]
    for cut in (0, 1, 49, 50):
        session = Session(Role.INITIATOR, MALLORY, bob.key.public, lambda: os.urandom(32), Network.REGTEST, 0.0)
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(session.data_to_send()[:cut])
        await writer.drain()
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
    for _ in range(5):
        mallory = await Attacker.connect(bob)
        mallory.send(FrameKind.OPEN, 1, pack(">H", STALL), 1)
        await mallory.close()
    assert await alice.ask(bob) == b"hello"
    await eventually(lambda: bob.session_count == 1)
