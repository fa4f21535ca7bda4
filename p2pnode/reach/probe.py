"""Can others reach us? Whoever we ask dials back, to the address from which we asked and to a port that we name.

Only the port is the asker's to choose: a helper never sends to an address that did not come to it by itself over TCP,
so nobody can be made to knock at a third party's door. It dials under a key made for that one attempt, or its session
with the asker would be mistaken for a second one; TCP counts when the handshake proves the asker's node key. UDP counts
when a datagram from a socket that the asker has never sent to is answered with that key: a mapping that a NAT keeps for
our own packets does not let it in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from dht import packet
from dht.limits import Buckets
from p2pnode.channels import Channels, Dialer, Pipe, PipeBroken, Unreachable
from p2pnode.channels.links import ip_version, origin_of
from p2pnode.clock import Clock
from p2pnode.reach.errors import RelayedAlready, RelayFull
from protocol.contact import Address, NodeContact
from protocol.errors import P2PError, PeerViolation
from protocol.identity import SigningKey
from protocol.relay import RELAY_SERVICE, Probed, Reached, probe, probed, read_port, read_probed
from protocol.session import Role, Session
from protocol.types import Network, NodeKey

DIAL_SECONDS: Final = 4.0
ASK_SECONDS: Final = 10.0
AT_ONCE: Final = 8
"""Probes that a helper makes at a time."""
PER_SECOND: Final = 0.05
BURST: Final = 6.0
"""Probes for one address."""
REPLY_BYTES: Final = 64
HELLOS: Final = 3
KEY_BYTES: Final = 32

log = logging.getLogger(__name__)


class Helper:
    """Dials back for others."""

    def __init__(
        self,
        network: Network,
        clock: Clock,
        dial: Dialer,
        *,
        enabled: bool = True,
        sources: Mapping[int, str] | None = None,
    ) -> None:
        """`dial` decides which addresses may be dialled at all.

        `sources`: our own address by version of IP (4, 6), where datagrams have to leave by a certain one.
        """
        self._network = network
        self._clock = clock
        self._dial = dial
        self.enabled = enabled
        self._sources = sources or {}
        self._running = 0
        self._buckets: Buckets[str] = Buckets(PER_SECOND, BURST)

    async def answer(self, pipe: Pipe) -> None:
        """Serve a PROBE stream. Raises RelayedAlready, RelayFull, Malformed."""
        endpoint = pipe.carrier_endpoint
        if endpoint is None:
            raise RelayedAlready
        now = asyncio.get_running_loop().time()
        origin = origin_of(endpoint.host)
        if not self.enabled or self._running >= AT_ONCE or not self._buckets.allow(origin, 1.0, now):
            raise RelayFull("refused to dial back: too many ask")
        async with asyncio.timeout(ASK_SECONDS):
            port = read_port(await pipe.read_exactly(2))
        self._running += 1
        try:
            target = Address(endpoint.host, port)
            tcp, udp = await asyncio.gather(self.answers(pipe.peer, target), self._udp(pipe.peer, target))
        finally:
            self._running -= 1
        reached = (Reached.TCP if tcp else Reached.NOT) | (Reached.UDP if udp else Reached.NOT)
        pipe.write(probed(reached, endpoint))
        await pipe.close()

    async def answers(self, key: NodeKey, target: Address) -> bool:
        """Whether the node with `key` answers a handshake there."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                link = await self._dial(target)
                try:
                    now = asyncio.get_running_loop().time
                    ephemeral = partial(self._clock.random, KEY_BYTES)
                    session = Session(Role.INITIATOR, SigningKey(ephemeral()), key, ephemeral, self._network, now())
                    link.write(session.data_to_send())
                    while not session.is_open:
                        data = await link.read()
                        if not data:
                            return False
                        session.receive_data(data, now())
                    # The last message too: what it completes over there is what the asker believes.
                    link.write(session.data_to_send())
                    await link.drain()
                    return True
                finally:
                    await link.close()
        except (OSError, PeerViolation):
            return False

    async def _udp(self, key: NodeKey, target: Address) -> bool:
        """Whether a node that says it has `key` answers a hello from a fresh socket."""
        loop = asyncio.get_running_loop()
        rid = self._clock.random(packet.RID_BYTES)
        answered: asyncio.Future[None] = loop.create_future()

        def received(datagram: bytes) -> None:
            if datagram == packet.welcome(rid, key) and not answered.done():
                answered.set_result(None)

        source = self._sources.get(ip_version(target.host))
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Ear(received),
                remote_addr=(target.host, target.port),
                local_addr=None if source is None else (source, 0),
            )
        except OSError:
            return False
        try:
            for _ in range(HELLOS):
                transport.sendto(packet.hello(rid))
                try:
                    async with asyncio.timeout(DIAL_SECONDS / HELLOS):
                        await asyncio.shield(answered)
                        return True
                except TimeoutError:
                    continue
            return False
        finally:
            answered.cancel()
            transport.close()


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, _addr: object) -> None:
        self._received(data)

    def error_received(self, _exc: Exception) -> None:
        """An ICMP error: nobody listens there, which silence says as well."""


async def ask(channels: Channels, helper: NodeContact, port: int) -> Probed | None:
    """What a helper found out about us; None when it does not help, or says nothing sensible."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            pipe = await channels.pipe(helper.node, helper.addresses, RELAY_SERVICE, probe(port))
            try:
                pipe.end()
                reply = bytearray()
                while (data := await pipe.read()) and len(reply) <= REPLY_BYTES:
                    reply += data
                return read_probed(bytes(reply))
            finally:
                await pipe.close()
    except (TimeoutError, PipeBroken, Unreachable, P2PError) as e:
        log.debug("a peer did not dial back: %s", e)
        return None
