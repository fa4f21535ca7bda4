"""Hostile nodes: they keep the packet rules (or nobody would hear them) and break all others."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from dht import messages
from dht.contact import Address, Contact, node_id
from dht.messages import Op, Request
from dht.rpc import Peer
from dht.sim.world import SimNode, World

_WRITES: Final = (Op.STORE, Op.STORE_PART)


class Behaviour(Enum):
    """What a hostile node does."""

    DROP = "drop"
    """Answers searches like anyone, keeps and returns no record, acknowledges every store."""
    LIE = "lie"
    """Names only hostile nodes as the closest, and has no record."""
    SILENT = "silent"
    """Answers nothing but pings."""
    STALE = "stale"
    """Keeps and returns the first version of a record, acknowledges every newer one and forgets it."""


def turn(world: World, node: SimNode, behaviour: Behaviour, gang: list[Contact]) -> None:
    """Make a node hostile. `gang`: the contacts it advertises."""
    node.honest = False
    desk = node.engine.desk
    storage = node.engine.storage
    honest: Callable[..., bytes | None] = desk.serve
    rng = world.rng

    def closest(target: bytes, room: int) -> bytes:
        number = int.from_bytes(target, "big")
        pool = gang if len(gang) <= 400 else rng.sample(gang, 400)
        chosen = sorted(pool, key=lambda c: c.long_id ^ number)[: min(8, (room - 20) // 39)]
        return messages.contacts_body(chosen)

    def serve(request: Request, peer: Peer, address: Address, *, proved: bool, room: int, now: float) -> bytes | None:
        if request.op == Op.PING or request.op not in (Op.FIND_NODE, Op.FIND_VALUE, Op.STORE, Op.STORE_PART):
            return honest(request, peer, address, proved=proved, room=room, now=now)
        if behaviour is Behaviour.SILENT:
            return None
        target, want = messages.target_of(request.data)
        if behaviour is Behaviour.STALE:
            if request.op in _WRITES and proved and storage.total(target):
                return b"\0" + desk.contacts(target, want, peer, room - 20)
            return honest(request, peer, address, proved=proved, room=room, now=now)
        lie = behaviour is Behaviour.LIE
        contacts = closest(target, room) if lie else desk.contacts(target, want, peer, room - 20)
        if request.op == Op.FIND_VALUE:
            return b"\0" + messages.value_body(0, bytes(8), more=False, records=[], large=[]) + contacts
        return b"\0" + contacts

    desk.serve = serve  # type: ignore[method-assign]


def grind_keys(world: World, target: bytes, count: int, within: int) -> list[bytes]:
    """Node keys whose ids lie within XOR distance `within` of a target: what free identities allow."""
    return grind_around(world, {target: within}, count)


def grind_around(world: World, within: dict[bytes, int], total: int) -> list[bytes]:
    """`total` node keys, about as many around each target, whose ids lie within its distance of it."""
    low = max(distance.bit_length() for distance in within.values())
    # Most keys fall near no target: leading bits tell at the price of one look-up.
    near: dict[int, list[int]] = {}
    wanted: dict[int, tuple[int, int]] = {}
    shares = [total // len(within) + (i < total % len(within)) for i in range(len(within))]
    for (target, distance), count in zip(within.items(), shares, strict=True):
        number = int.from_bytes(target, "big")
        near.setdefault(number >> low, []).append(number)
        wanted[number] = (distance, count)
    found: list[bytes] = []
    while len(found) < total:
        key = world.rng.randbytes(32)
        number = int.from_bytes(node_id(key), "big")
        for target_number in near.get(number >> low, ()):
            distance, left = wanted[target_number]
            if left and number ^ target_number <= distance:
                wanted[target_number] = (distance, left - 1)
                found.append(key)
                break
    return found
