"""Who gives way when all places are taken: the network that holds most of them, to one that holds fewer.

Places that are given to whoever comes first are all an attacker's as soon as he has a few addresses. Networks are IPv4
/24s and IPv6 /48s, since addresses side by side cost no more than one; what comes through one relay counts as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from dht.contact import group_of
from protocol.contact import Address

UNFAIR: Final = 2
"""By so many more places than a newcomer's a network has to hold to give one up: else two would swap for ever."""

T = TypeVar("T")


def network_of(endpoint: Address | None, origin: str) -> str:
    """What places are shared by. `endpoint`: where somebody is; None where a relay, the `origin`, hides it."""
    return origin if endpoint is None else group_of(endpoint.host).hex()


def gives_way(held: Mapping[str, int], newcomer: str) -> str | None:
    """The network that gives up a place to another; None: nobody has to. `held`: places by network."""
    heaviest = max(held, key=held.__getitem__, default=newcomer)
    return heaviest if held.get(heaviest, 0) >= held.get(newcomer, 0) + UNFAIR else None


def youngest_of(places: Iterable[tuple[T, str]], newcomer: str) -> T | None:
    """Of places with the network of each, oldest first, the one to give up; None: nobody has to.

    The youngest: whoever came before the crowd is more likely to be honest.
    """
    places = list(places)
    heaviest = gives_way(Counter(network for _, network in places), newcomer)
    return next((place for place, network in reversed(places) if network == heaviest), None)
