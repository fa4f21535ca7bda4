"""What we have seen with our own eyes of being reached. No I/O, no clock.

A peer that says it reached us may lie; a connection that arrives does not. So peers are asked to knock, and their word
that they did counts only where the knock was heard. What counts is who can come unasked: a TCP session that somebody
else opened; a datagram from an address that we have not written to lately. A NAT that lets in whom we wrote to (it is
called address-restricted) lets through all but that last one.
"""

from __future__ import annotations

from enum import IntEnum

from p2pnode.channels.links import ip_version


class Udp(IntEnum):
    """Whose datagrams arrive."""

    NONE = 0
    KNOWN = 1
    """Those that we wrote to before, and no others'."""
    UNTRIED = 2
    """Those that we wrote to before. No stranger was there to try."""
    STRANGERS = 3
    """Anybody's."""


class Evidence:
    """When somebody last came in, by IP version and manner."""

    def __init__(self) -> None:
        self._tcp: dict[int, float] = {}
        self._unasked: dict[int, float] = {}
        self._udp: dict[tuple[int, bool], float] = {}

    def connected(self, host: str, now: float, *, asked: bool) -> None:
        """A session from this address was opened to us, perhaps because we asked around for it."""
        (self._tcp if asked else self._unasked)[ip_version(host)] = now

    def heard(self, host: str, now: float, *, written: bool) -> None:
        """A first datagram came from this address, to which we had or had not written."""
        self._udp[ip_version(host), written] = now

    def tcp(self, version: int, since: float) -> bool:
        """Whether a session came in by this version of IP."""
        return self._tcp.get(version, -1.0) >= since or self.unasked(version, since)

    def unasked(self, version: int, since: float) -> bool:
        """Whether one did that we had not asked for."""
        return self._unasked.get(version, -1.0) >= since

    def udp(self, version: int, since: float) -> Udp:
        """Whose datagrams came in by this version of IP."""
        if self._udp.get((version, False), -1.0) >= since:
            return Udp.STRANGERS
        return Udp.UNTRIED if self._udp.get((version, True), -1.0) >= since else Udp.NONE

    def forget(self) -> None:
        """We have moved: what was seen before says nothing any more."""
        self._tcp.clear()
        self._unasked.clear()
        self._udp.clear()
