"""How often an address may be dialled in vain: what strangers write into records must not make us knock at a victim.

A record may name anybody's address. Each attempt costs its owner a few packets, and many nodes may be made to try; so
failures are counted by address (an IPv4 /24, an IPv6 /48, a name), and after a burst of them an address is left alone
but for one attempt every few seconds. Success costs nothing.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from dht.limits import Buckets
from p2pnode.channels.links import plain_host
from protocol.contact import Address

FAILURES: Final = 32.0
"""Failures in a burst."""
PER_SECOND: Final = 0.2
"""Failures per second after that."""
ORIGINS: Final = 4_096


class DialledTooOften(OSError):
    """The address was dialled in vain too often lately."""


class DialGuard:
    """Failures by address."""

    def __init__(self) -> None:
        self._buckets: Buckets[str] = Buckets(PER_SECOND, FAILURES, ORIGINS)

    def begin(self, address: Address, now: float) -> None:
        """Count an attempt as failed until it succeeds: one that is given up half-way has knocked as well.

        Raises DialledTooOften when the address has to be left alone for now.
        """
        if not self._buckets.allow(_unit(address), 1.0, now):
            raise DialledTooOften(f"{address.host} was dialled in vain too often; it is left alone for a while")

    def succeeded(self, address: Address) -> None:
        """The attempt led to the node that was looked for."""
        self._buckets.give_back(_unit(address), 1.0)


def _unit(address: Address) -> str:
    """What failures are counted by. On loopback every port is a node of its own, and no victim of anybody else's."""
    try:
        ip = ip_address(plain_host(address.host))
    except ValueError:
        return address.host.lower()
    if ip.is_loopback:
        return f"{ip} {address.port}"
    return (ip.packed[:3] if ip.version == 4 else ip.packed[:6]).hex()
