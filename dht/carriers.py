"""What carries packets: UDP, or streams of channels where no datagram passes; and which of them to use now.

With `Carry.BOTH` a node finds out by itself. It begins with UDP. When nothing has come by it for a while although much
was asked, or when nobody answers at the entrance, questions go by channels; then a few nodes are asked by UDP now and
then, and any answer takes it back.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Final

from dht.contact import Address, ByChannel, Contact
from dht.errors import BadContact, NoPeers
from dht.udp import Receive, Transport, UdpTransport

SILENT_S: Final = 5.0
SILENT_FAILURES: Final = 4
"""Questions that failed since anything came, and for so long nothing did: datagrams do not pass any more."""
UDP_AGAIN_S: Final = 300.0
"""How often a node that does without UDP looks whether it works by now."""

log = logging.getLogger(__name__)


class Carry(Enum):
    """What carries packets."""

    UDP = "udp"
    CHANNEL = "channel"
    BOTH = "both"
    """UDP where it works, else channels."""


class Carriers:
    """The transports of one node."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry
        self.udp: UdpTransport | None = None
        self.streams: Transport | None = None
        self.by_channel = carry is Carry.CHANNEL
        """Whether questions go by channels now."""
        self._asked_udp = 0.0
        self._heard_at = 0.0
        self._came = 0

    def listen(self, host: str, port: int, receive: Receive) -> None:
        """Open the UDP sockets, unless UDP is not to be used. Raises PortInUse."""
        if self.carry is not Carry.CHANNEL:
            self.udp = UdpTransport(host, port, receive)

    def close(self) -> None:
        """Let go of all."""
        for transport in (self.udp, self.streams):
            if transport is not None:
                transport.close()
        self.udp = self.streams = None

    @property
    def local(self) -> tuple[str, int]:
        """Where the first UDP socket is bound. Raises NoPeers."""
        if self.udp is None:
            raise NoPeers("the DHT node does not listen on UDP")
        return self.udp.local

    def usable(self, versions: frozenset[int]) -> frozenset[int]:
        """Of these versions of IP, those that there is a way to send by."""
        return versions if self.udp is None or self.by_channel else versions & self.udp.versions

    def wrote_to(self, host: str) -> bool:
        """Whether a datagram of ours went to this address lately."""
        return self.udp is not None and self.udp.wrote_to(host)

    def route(self, contact: Contact) -> Address:
        """Where packets for a contact go. Raises BadContact."""
        if not contact.via and not self.by_channel:
            return contact.address
        if self.streams is None:
            raise BadContact("only channels lead there, and there are none")
        return contact.address if contact.via else ByChannel(contact.ip, contact.port, contact.key)

    def send(self, packet: bytes, address: Address) -> None:
        """Send or drop."""
        transport = self.streams if isinstance(address, ByChannel) else self.udp
        if transport is not None:
            transport.send(packet, address)

    # -- which of them -----------------------------------------------------------------------------------------

    def switch(self, now: float, *, by_channel: bool, trial: bool = False) -> bool:
        """Use the other one; False where there is no other. `trial`: only to see, so it is no news yet."""
        if self.carry is not Carry.BOTH or self.streams is None or self.udp is None or by_channel == self.by_channel:
            return False
        if not trial:
            self.tell(by_channel=by_channel)
        self.by_channel = by_channel
        self._asked_udp = self._heard_at = now
        return True

    def tell(self, *, by_channel: bool) -> None:
        """Write to the log what is used from now on."""
        log.info("questions of the DHT go %s from now on", "by channels" if by_channel else "by UDP")

    def watch(self, unanswered: int, came: int, now: float) -> None:
        """Notice that nothing comes any more. `unanswered`: questions that failed since the last answer.

        `came`: requests that came by UDP so far: who asks and does not answer is silent, but the way is open.
        """
        if not unanswered or self.by_channel or came != self._came:
            self._heard_at = now
            self._came = came
        elif unanswered >= SILENT_FAILURES and now - self._heard_at >= SILENT_S:
            self.switch(now, by_channel=True)

    def udp_is_due(self, now: float) -> bool:
        """Whether it is time to see if UDP works again; true once."""
        if not self.by_channel or self.udp is None or now - self._asked_udp < UDP_AGAIN_S:
            return False
        self._asked_udp = now
        return True

    def moved(self) -> None:
        """We are in another network: see to UDP at once."""
        self._asked_udp = -UDP_AGAIN_S
