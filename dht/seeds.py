"""Where to try to enter the network: an address, and the key of the node there if it is known."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from dht.contact import Address, Contact, Scope, intern_contact, parse_seed, plain_host, scope_of
from dht.errors import BadContact

MOST_ADDRESSES: Final = 8
"""Addresses of one name that are tried."""

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
    """Who is there, by each of these versions of IP. `who_is` None: a node whose key is not known is of no use.

    A name may stand for several addresses, of which some may be dead: the first that answers is taken.
    """
    if isinstance(seed, Contact):
        return [seed]
    hosts = [seed.host]
    if scope_of(seed.host) is Scope.UNUSABLE:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(seed.host, seed.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):  # the latter for what can't be a name: an empty label, one that is too long
            found = []
        hosts = list(dict.fromkeys(plain_host(str(sockaddr[0])) for *_, sockaddr in found))
    by_version = {version: [h for h in hosts if (":" in h) == (version == 6)] for version in sorted(versions)}
    if not any(by_version.values()):
        log.warning("the seed %s does not resolve to an address that this node can use", seed.host)
    contacts = await asyncio.gather(*(_first_of(several, seed, who_is) for several in by_version.values() if several))
    return [contact for contact in contacts if contact is not None]


async def _first_of(hosts: list[str], seed: Seed, who_is: WhoIs | None) -> Contact | None:
    """The node at one of these addresses; of several the first that answers."""
    if len(hosts) == 1 or who_is is None:
        return await _contact_of(hosts[0], seed, who_is)
    asking = [asyncio.create_task(_answering(host, seed, who_is)) for host in hosts[:MOST_ADDRESSES]]
    try:
        for answer in asyncio.as_completed(asking):
            if (contact := await answer) is not None:
                return contact
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return None


async def _answering(host: str, seed: Seed, who_is: WhoIs) -> Contact | None:
    """The node at an address if it answers there, as the one that is looked for."""
    key = await who_is((host, seed.port))
    if key is None or (seed.key is not None and key != seed.key):
        return None
    return await _contact_of(host, Seed(seed.host, seed.port, key), who_is)


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
