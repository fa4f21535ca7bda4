"""Nodes that relay, register and dial through relays, on loopback."""

from __future__ import annotations

from p2pnode.channels import AnyService, Channels, Dialer, Limits, Pipe, PipeService, Service, dial_tcp
from p2pnode.clock import SystemClock
from p2pnode.reach.probe import Helper
from p2pnode.reach.registrar import Candidate, Registrar
from p2pnode.reach.relay import Relay, RelayLimits
from p2pnode.reach.service import RelayDoor
from protocol.contact import Address, NodeContact
from protocol.identity import SigningKey
from protocol.relay import RELAY_SERVICE
from protocol.types import Network
from tests.network.channel_support import eventually

ECHO, BULK = 20, 21
PATIENCE = 15.0
MEGABYTE = 1_000_000


class RelayNode:
    """A node that can be all of it: relay, client of relays, dialler."""

    def __init__(
        self,
        seed: int,
        *,
        relay: bool = True,
        relay_limits: RelayLimits | None = None,
        limits: Limits | None = None,
        dial: Dialer = dial_tcp,
    ) -> None:
        self.key = SigningKey(bytes([seed]) * 32)
        self.addresses: tuple[Address, ...] = ()
        self.candidates: list[Candidate] = []
        self.changes = 0
        self.callers: list[bytes] = []
        services: dict[int, AnyService] = {
            ECHO: Service(self._echo, MEGABYTE, MEGABYTE),
            BULK: Service(self._bulk, 100, MEGABYTE),
            RELAY_SERVICE: PipeService(self._relayed),
        }
        self.channels = Channels(self.key, Network.REGTEST, services, limits=limits, clock=SystemClock(), dial=dial)
        self.relay = Relay(self.channels, relay_limits, enabled=relay)
        self.helper = Helper(Network.REGTEST, SystemClock(), dial_tcp)
        self.registrar = Registrar(self.channels, lambda: self.candidates, self._changed)
        self.door = RelayDoor(self.relay, self.helper, self.registrar)

    async def listen(self, host: str = "127.0.0.1") -> RelayNode:
        """Accept sessions: nodes that do not are behind a NAT."""
        self.addresses = (Address(*await self.channels.listen(host, 0)),)
        return self

    @property
    def contact(self) -> NodeContact:
        return NodeContact(self.key.public, self.addresses)

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.contact, self.key.public[:3])

    async def hide_behind(self, *relays: RelayNode) -> RelayNode:
        """Register with relays, all of them."""
        self.candidates = [r.candidate for r in relays]
        self.registrar.start()
        self.registrar.want(True)
        await eventually(lambda: len(self.registrar.relays()) == min(len(relays), 3))
        return self

    async def ask(
        self, other: RelayNode, payload: bytes = b"hello", *, service: int = ECHO, timeout: float = PATIENCE
    ) -> bytes:
        return await self.channels.request(
            other.key.public,
            other.addresses,
            service,
            payload,
            timeout=timeout,
            reply_limit=MEGABYTE,
            relays=other.registrar.relays(),
        )

    async def close(self) -> None:
        await self.registrar.close()
        await self.channels.close()
        self.relay.close()

    def _changed(self) -> None:
        self.changes += 1

    async def _relayed(self, pipe: Pipe) -> None:
        await self.door.serve(pipe)

    async def _echo(self, peer: bytes, request: bytes) -> bytes:
        self.callers.append(peer)
        return request

    async def _bulk(self, peer: bytes, request: bytes) -> bytes:
        return bytes(MEGABYTE)
