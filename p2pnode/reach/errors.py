"""Why a relay or a helper says no. The codes travel in the RESET of the stream."""

from __future__ import annotations

from protocol.errors import PeerRefusal, PeerViolation


class RelayFull(PeerRefusal):
    """The relay has no place left for this: ask another, or later."""

    code = 2220


class NotRegistered(PeerRefusal):
    """The node that was asked for keeps no session to this relay."""

    code = 2221


class CircuitSpent(PeerRefusal):
    """The circuit has carried as much, or rested as long, as the relay allows."""

    code = 2222


class RelayedAlready(PeerRefusal):
    """A relay is not reached through a relay."""

    code = 2223


class BadRelayRequest(PeerViolation):
    """The peer sent the relay service something that no node would."""

    code = 2224


class NoRelay(PeerRefusal):
    """This node does not relay."""

    code = 2225


class NotMyRelay(PeerRefusal):
    """This node did not ask that relay to bring anybody."""

    code = 2226


class DirectOnly(PeerRefusal):
    """The DHT's packets are taken by direct sessions only."""

    code = 2227


class TooManyStreamsOpen(PeerRefusal):
    """This node answers as many others by streams as it can: ask another, or later."""

    code = 2228


class BadPacketStream(PeerViolation):
    """The peer sent what is no packet on a stream for packets."""

    code = 2229
