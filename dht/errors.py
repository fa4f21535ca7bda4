"""What goes wrong in the DHT, by whose fault it is."""

from __future__ import annotations

from protocol.errors import Action, LocalError, PeerRefusal, PeerViolation, UserError


class BadPacket(PeerViolation):
    """The peer sent a datagram that does not decode."""

    code = 2300
    action = Action.IGNORE


class BadContact(PeerViolation):
    """The peer named a node at an address that no node can have."""

    code = 2301
    action = Action.IGNORE


class InvalidRecord(PeerViolation):
    """The record is not valid for its kind."""

    code = 2302
    action = Action.IGNORE


class RecordRefused(PeerRefusal):
    """The record is valid but this node does not keep it: a quota is full or a newer one is known."""

    code = 2310


class RecordRejected(UserError):
    """The record can't be published as it is."""

    code = 3300


class NoPeers(LocalError):
    """This node knows no other node of the DHT yet: check the seeds and the network connection."""

    code = 1300
    action = Action.RETRY


class PortInUse(UserError):
    """The DHT's UDP port is taken: choose another or stop the program that holds it."""

    code = 3301


class BadNodeKey(UserError):
    """The node key does not solve the puzzle of this network: make it with `mine_node_key`."""

    code = 3302
