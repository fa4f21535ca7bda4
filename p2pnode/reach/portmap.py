"""Asking the router for a port: NAT-PMP first, then UPnP; renewed while we run, given back when we stop.

A mapping is only a hope: whether others can dial us is for `reachability` to find out. So nothing here fails loudly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from p2pnode.reach import natpmp, upnp
from protocol.contact import Address

LEASE_SECONDS: Final = 3_600
AGAIN_SECONDS: Final = 600.0
"""After a failure: the router may come up later than we do."""
UNMAP_SECONDS: Final = 3.0

Unmap = Callable[[], Awaitable[None]]

log = logging.getLogger(__name__)


class PortMapper:
    """Keeps one port mapped, TCP and UDP."""

    def __init__(self, port: int, own_host: Callable[[], str | None]) -> None:
        """`own_host`: our IPv4 address in the local network now."""
        self._port = port
        self._own_host = own_host
        self._unmap: Unmap | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.external: Address | None = None
        """Where the router says that others reach us."""
        self.how: Literal["NAT-PMP", "UPnP"] | None = None
        """What the router was asked by."""

    def start(self, on_change: Callable[[], None]) -> None:
        """Begin. `on_change` is told when `external` has changed."""
        self._task = asyncio.create_task(self._run(on_change), name="port mapping")

    def kick(self) -> None:
        """We are in another network now: ask again."""
        self._wake.set()

    async def close(self) -> None:
        """Give the port back, within UNMAP_SECONDS."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._unmap is not None:
            try:
                async with asyncio.timeout(UNMAP_SECONDS):
                    await self._unmap()
            except OSError as e:  # a TimeoutError is one as well
                log.info("the router keeps our port until its lease ends: %s", e)
            self._unmap = None

    async def _run(self, on_change: Callable[[], None]) -> None:
        while True:
            self._wake.clear()
            external = await self._map()
            if external != self.external:
                self.external = external
                if external is not None:
                    log.info("the router gives us port %d", external.port)
                on_change()
            try:
                async with asyncio.timeout(AGAIN_SECONDS if external is None else LEASE_SECONDS / 2):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _map(self) -> Address | None:
        port = self._port
        router = natpmp.gateway()
        if router is not None:
            try:
                external = await natpmp.map_port(router, port, LEASE_SECONDS)
            except OSError as e:
                log.debug("no port by NAT-PMP: %s", e)
            else:
                self._unmap, self.how = (lambda: natpmp.unmap_port(router, port)), "NAT-PMP"
                return external
        own = self._own_host()
        if own is not None:
            try:
                gateway = await upnp.find_gateway(own)
                external = await gateway.map_port(port, LEASE_SECONDS)
            except OSError as e:
                log.debug("no port by UPnP: %s", e)
            else:
                self._unmap, self.how = (lambda: gateway.unmap_port(port)), "UPnP"
                return external
        self._unmap = self.how = None
        return None
