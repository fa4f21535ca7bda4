"""Nodes of the local network, found by multicast DNS (RFC 6762, RFC 6763; ADR 0012).

Off unless `node.mdns` names a group. Then the node announces itself as a service `_p2pnode._udp.local.` with its port
and, in the TXT record, its node key, its Bitcoin network and the group; and it listens for others of the same network
and group. What it hears are seeds like any other: somebody may answer there, and counts only once he has proved the key
in the DHT's own way. So the worst that a neighbour can do by lying is to have us knock in vain, which is bounded.

It tells the local network that a node runs here. Hence it is off by default.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import ifaddr
from zeroconf import Error, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from dht.contact import Scope, scope_of
from dht.node import Seed
from dht.udp import listening_hosts
from protocol.errors import UserError
from protocol.identity import node_text, parse_node
from protocol.types import Network

SERVICE: Final = "_p2pnode._udp.local."
MOST_KNOWN: Final = 64
"""Nodes that are remembered; the first of them is forgotten for another. Each is looked into when it is found."""
MOST_AT_ONCE: Final = 8
"""Names that are looked up at a time; what comes meanwhile is ignored until it announces itself again."""
RESOLVE_MS: Final = 3_000

log = logging.getLogger(__name__)


class Discovery:
    """Announces one node and finds others."""

    def __init__(self, node: bytes, network: Network, group: str, host: str, port: int) -> None:
        """`node`: our node key; `host` and `port`: where the node listens, over UDP."""
        self._node = node
        self._network = network
        self._group = group
        self._host = host
        self._port = port
        self._known: dict[bytes, Seed] = {}
        self._listeners: list[Callable[[Seed], None]] = []
        self._resolving: set[asyncio.Task[None]] = set()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    @property
    def seeds(self) -> tuple[Seed, ...]:
        """Where others say that they are."""
        return tuple(self._known.values())

    def subscribe(self, listener: Callable[[Seed], None]) -> None:
        """Call `listener` with each node that is found, and again when it has moved."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Announce and listen. Where that is not possible, the node goes on without, and the log says why."""
        try:
            addresses = _own_addresses(self._host)
            if not addresses:
                raise OSError("this machine has no address there")
            self._zeroconf = AsyncZeroconf(interfaces=addresses)
            await self._zeroconf.async_register_service(self._service(addresses), allow_name_change=True)
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
        except (OSError, Error) as e:
            log.warning("the local network can't be searched for nodes: %s", str(e) or type(e).__name__)
            await self.close()

    async def close(self) -> None:
        """Say goodbye and stop listening."""
        for task in list(self._resolving):
            task.cancel()
        await asyncio.gather(*self._resolving, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        if self._zeroconf is not None:
            with suppress(OSError, Error):
                await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None

    def _service(self, addresses: list[str]) -> AsyncServiceInfo:
        # A DNS label has 63 bytes: enough of the key to be the only one of its name.
        label = f"{self._node.hex()[:24]}-{self._network.name.lower()}"
        return AsyncServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=self._port,
            properties={"key": node_text(self._node), "network": self._network.name.lower(), "group": self._group},
            parsed_addresses=addresses,
            server=f"{label}.local.",
        )

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or len(self._resolving) >= MOST_AT_ONCE:
            return
        task = asyncio.ensure_future(self._resolve(zeroconf, service_type, name))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        try:
            info = AsyncServiceInfo(service_type, name)
            if not await info.async_request(zeroconf, RESOLVE_MS):
                return
        except (OSError, Error) as e:
            log.info("a node of the local network can't be looked up: %s", type(e).__name__)
            return
        seed = self._read(info)
        if seed is None or seed.key is None or self._known.get(seed.key) == seed:
            return
        if seed.key not in self._known and len(self._known) >= MOST_KNOWN:
            # Not the newcomer: or who announces so many that do not exist hides all that do.
            del self._known[next(iter(self._known))]
        self._known[seed.key] = seed
        for listener in self._listeners:
            listener(seed)

    def _read(self, info: AsyncServiceInfo) -> Seed | None:
        """The seed in an announcement; None when it is not for us."""
        said = info.decoded_properties
        if said.get("network") != self._network.name.lower() or said.get("group") != self._group:
            return None
        try:
            key = parse_node(said.get("key") or "")
        except UserError:
            return None
        usable = [a for a in info.parsed_addresses() if scope_of(a) is not Scope.UNUSABLE]
        if key == self._node or not usable or not info.port:
            return None
        return Seed(usable[0], info.port, key)


def _own_addresses(host: str) -> list[str]:
    """Where this machine is on its local networks: `host` itself, or all of its addresses where `host` names none."""
    named = [h for h in listening_hosts(host) if scope_of(h) is not Scope.UNUSABLE]
    if named:
        return named
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    # An IPv6 address comes with its zone, which is 0 unless it is link-local: those we can't be reached at by others.
    found = [ip if isinstance(ip, str) else str(ip[0]) for ip in ips if isinstance(ip, str) or not ip[2]]
    return [a for a in found if scope_of(a) not in (Scope.LOOPBACK, Scope.UNUSABLE)]
