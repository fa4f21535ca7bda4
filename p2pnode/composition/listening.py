"""Where a node listens: UDP for the DHT and TCP for channels, on one port number."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Sequence
from typing import Final

from dht.disk import open_storage
from dht.engine import EngineConfig
from dht.errors import PortInUse
from dht.node import Carry, DhtConfig, DhtNode
from dht.udp import EVERYWHERE, listening_hosts
from p2pnode.channels import CannotListen, Channels
from p2pnode.composition.choices import local
from p2pnode.config import Config
from p2pnode.ports import AddressUnavailable, unavailable
from p2pnode.records import record_kinds
from protocol.contact import Address
from protocol.errors import P2PError
from protocol.identity import SigningKey

TAKEN: Final = frozenset((errno.EADDRINUSE, errno.EACCES, errno.EPERM))
PORT_ATTEMPTS: Final = 8
"""With port 0: how often a UDP port is tried whose TCP twin turns out to be taken."""


class DhtClock:
    """The DHT's view of time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()


async def listen(config: Config, node: SigningKey, channels: Channels) -> tuple[tuple[Address, ...], DhtNode]:
    """TCP and UDP on one port number, on each of the addresses of `node.host`. With port 0, one that is free for all.

    The channels listen then; the DHT is the caller's to close. Raises AddressUnavailable.
    """
    own = config.node
    for attempt in range(PORT_ATTEMPTS):
        dht = _dht(config, node)
        try:
            await dht.start()
        except PortInUse as e:
            raise _taken(e, own.host, own.port) from e
        port = own.port if dht.config.carry is Carry.CHANNEL else dht.local[1]
        try:
            return await _listen(listening_hosts(own.host), port, channels), dht
        except CannotListen as e:
            await dht.close()
            if own.port != 0 or attempt + 1 == PORT_ATTEMPTS:
                raise _taken(e, own.host, port) from e
    raise AssertionError("the loop above returns or raises")


async def _listen(hosts: Sequence[str], port: int, channels: Channels) -> tuple[Address, ...]:
    """TCP on all hosts and one port. Of `*`, what this machine does not have is left out. Raises CannotListen."""
    made: list[Address] = []
    for host in hosts:
        try:
            made.append(Address(*await channels.listen(host, made[0].port if made else port)))
        except CannotListen as e:
            # A machine without a version of IP says so in many ways; whoever is there, or forbids it, in these.
            lacks = isinstance(e.__cause__, OSError) and e.__cause__.errno not in TAKEN
            last = host == hosts[-1] and not made
            if tuple(hosts) != EVERYWHERE or not lacks or last:
                await channels.unlisten()
                raise
    return tuple(made)


def _dht(config: Config, node: SigningKey) -> DhtNode:
    rng = random.SystemRandom()
    return DhtNode(
        DhtConfig(
            config.node.host,
            config.node.port,
            Carry(config.node.dht_transport),
            engine=EngineConfig(client=config.node.dht_client, local_addresses=local(config)),
        ),
        node,
        config.network,
        record_kinds(config.network),
        open_storage(config.data_dir / "dht.db", rng),
        clock=DhtClock(),
        rng=rng,
    )


def _taken(error: P2PError, host: str, port: int) -> AddressUnavailable:
    """Why the port for peers can't be had, from the system's own reason where there is one."""
    cause = error.__cause__
    reason = cause if isinstance(cause, OSError) else OSError(errno.EADDRINUSE, "")
    return unavailable(reason, host, port, "node.port")
