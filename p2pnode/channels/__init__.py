"""Encrypted channels to other nodes: `Channels` asks and answers by node key, over sessions that it keeps.

`protocol.session` says what travels; here are the sockets. `links` is what a session rides on, `connection` drives one
session, `channels` keeps one per peer. `pipes` are streams that both sides speak through as they like; a session that
rides on one is relayed.
"""

from __future__ import annotations

from p2pnode.channels.channels import Channels, Limits, SessionView
from p2pnode.channels.connection import AnyService, PipeService, Service
from p2pnode.channels.errors import CannotListen, PeerRefused, PeerUnable, TimedOut, Unreachable
from p2pnode.channels.links import Dialer, Link, NotPublic, TcpLink, dial_public, dial_tcp
from p2pnode.channels.pipes import Pipe, PipeBroken

__all__ = [
    "AnyService",
    "CannotListen",
    "Channels",
    "Dialer",
    "Limits",
    "Link",
    "NotPublic",
    "PeerRefused",
    "PeerUnable",
    "Pipe",
    "PipeBroken",
    "PipeService",
    "Service",
    "SessionView",
    "TcpLink",
    "TimedOut",
    "Unreachable",
    "dial_public",
    "dial_tcp",
]
