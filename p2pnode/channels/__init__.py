"""Encrypted channels to other nodes: `Channels` asks and answers by node key, over sessions that it keeps.

`protocol.session` says what travels; here are the sockets. `links` is what a session rides on, `connection` drives one
session, `channels` keeps one per peer.
"""

from __future__ import annotations

from p2pnode.channels.channels import Channels, Limits, SessionView
from p2pnode.channels.connection import Service
from p2pnode.channels.errors import CannotListen, PeerRefused, PeerUnable, TimedOut, Unreachable
from p2pnode.channels.links import Dialer, Link, TcpLink, dial_tcp

__all__ = [
    "CannotListen",
    "Channels",
    "Dialer",
    "Limits",
    "Link",
    "PeerRefused",
    "PeerUnable",
    "Service",
    "SessionView",
    "TcpLink",
    "TimedOut",
    "Unreachable",
    "dial_tcp",
]
