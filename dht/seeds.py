"""Where to try to enter the network: an address, and the key of the node there if it is known."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dht.contact import Address, Contact, Scope, intern_contact, parse_seed, scope_of
from dht.errors import BadContact

log = logging.getLogger(__name__)

WhoIs = Callable[[Address], Awaitable[bytes | None]]
"""Asks an address for its node key; None when nobody answers."""


@dataclass(frozen=True, slots=True)
class Seed:
    """Where to try to enter the network; the node key may be unknown."""

    host: str
    port: int
    key: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Seed:
        """A seed from `host:port` or `node1...@host:port`. Raises BadContact or BadId."""
        key, host, port = parse_seed(text)
        return cls(host, port, key)


async def contacts_of(seed: Seed | Contact, versions: frozenset[int], who_is: WhoIs | None) -> list[Contact]:
    """Who is there, by each of these versions of IP. `who_is` None: a node whose key is not known is of no use."""
    if isinstance(seed, Contact):
        return [seed]
    hosts = [seed.host]
    if scope_of(seed.host) is Scope.UNUSABLE:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(seed.host, seed.port, type=socket.SOCK_DGRAM)
        except OSError:
            found = []
        hosts = [str(sockaddr[0]) for *_, sockaddr in found]
    by_version = {6 if ":" in host else 4: host for host in reversed(hosts)}
    usable = [by_version[version] for version in sorted(versions) if version in by_version]
    if not usable:
        log.warning("the seed %s does not resolve to an address that this node can use", seed.host)
    contacts = await asyncio.gather(*(_contact_of(host, seed, who_is) for host in usable))
    return [contact for contact in contacts if contact is not None]


async def _contact_of(host: str, seed: Seed, who_is: WhoIs | None) -> Contact | None:
    key = seed.key
    if key is None:
        if who_is is None:
            log.info("the seed %s is of no use where no datagram passes: its node key is not known", seed.host)
            return None
        key = await who_is((host, seed.port))
    if key is None:
        return None
    try:
        return intern_contact(Contact(key, host, seed.port))
    except BadContact:
        return None
