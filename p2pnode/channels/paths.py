"""The ways to a peer, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from p2pnode.channels.links import ip_version
from protocol.contact import Address, NodeContact

MAX_ADDRESSES: Final = 16
"""Addresses of one peer that are tried."""

Path = Address | NodeContact
"""A way to a peer: straight to an address, or through a relay."""


def interleaved(paths: Sequence[Path]) -> list[Path]:
    """At most MAX_ADDRESSES addresses, each once, IPv6, IPv4 and names taking turns (RFC 8305); then the relays."""
    groups: dict[int, list[Address]] = {}
    relays: list[Path] = []
    for path in dict.fromkeys(paths):
        if isinstance(path, Address):
            groups.setdefault(ip_version(path.host), []).append(path)
        else:
            relays.append(path)
    turns = [address for turn in zip_longest(*groups.values()) for address in turn if address is not None]
    return [*turns[:MAX_ADDRESSES], *relays]
