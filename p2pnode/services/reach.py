"""How others reach this node, for its owner: the state, the addresses, the relays, and what would make it better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from dht.node import DhtNode
from p2pnode.api.schema import ReachView, RelayView, WayView
from p2pnode.clock import Clock
from p2pnode.ports import host_port
from p2pnode.reach.evidence import Udp
from p2pnode.reach.portmap import PortMapper
from p2pnode.reach.reachability import Reachability, Verdict
from protocol.contact import Address
from protocol.identity import node_text

_STATES: Final[dict[Verdict, Literal["reachable", "behind NAT", "unknown"]]] = {
    Verdict.REACHABLE: "reachable",
    Verdict.UNREACHABLE: "behind NAT",
    Verdict.UNKNOWN: "unknown",
}
_DATAGRAMS: Final[dict[Udp, Literal["strangers", "untried", "known", "no"]]] = {
    Udp.STRANGERS: "strangers",
    Udp.UNTRIED: "untried",
    Udp.KNOWN: "known",
    Udp.NONE: "no",
}


def reach_of(
    reach: Reachability, dht: DhtNode, mapper: PortMapper | None, port: int, clock: Clock
) -> Callable[[], ReachView]:
    """Gives what is known at each call. `port`: where the node listens."""

    def view() -> ReachView:
        setting = reach.told.setting
        state = _STATES[reach.verdict] if setting != "no" else "behind NAT"
        ago = asyncio.get_running_loop().time()
        since = reach.registrar.since()
        mapped = None if mapper is None else mapper.external
        return ReachView(
            state=state,
            since=reach.since,
            told=setting != "auto",
            addresses=tuple(
                WayView(host=way.host, tcp=way.tcp, udp=_DATAGRAMS[way.udp]) for way in reach.ways.values()
            ),
            published=tuple(map(_text, reach.addresses())),
            mapped_port=None if mapped is None else _text(mapped),
            mapped_by=None if mapped is None or mapper is None else mapper.how,
            relays=tuple(
                RelayView(
                    node=node_text(relay.node),
                    addresses=tuple(map(_text, relay.addresses)),
                    since=clock.now() - int(ago - since.get(relay.node, ago)),
                )
                for relay in reach.relays()
            ),
            dht="server" if dht.serves else "client",
            carried_by="channel" if dht.by_channel else "udp",
            advice=_advice(reach, dht, port, mapped=mapped is not None),
        )

    return view


def _advice(reach: Reachability, dht: DhtNode, port: int, *, mapped: bool) -> str:
    """What the owner can do, in one line; empty when nothing is amiss."""
    forward = f"forward TCP and UDP port {port} of the router to this machine"
    if reach.told.setting == "no":
        return "" if reach.relays() else "no relay has been found yet: check the seeds and the connection"
    if reach.verdict is Verdict.UNKNOWN:
        if not dht.peers():
            return "no other node is known yet: check the seeds and the connection"
        return "peers are being asked to dial back; look again in a minute"
    if reach.verdict is Verdict.UNREACHABLE:
        if not reach.relays():
            return f"no relay has been found yet, so nobody reaches this node: wait, or {forward}"
        asked = "" if mapped else ', or let the node ask for it (node.port_mapping = "yes")'
        return f"relays bring others here, which suffices for trading; to do without them, {forward}{asked}"
    if dht.by_channel:
        return f"no datagram passes: let UDP port {port} through, in and out, if you can"
    if reach.told.setting == "auto" and not dht.serves and not reach.told.client:
        return f"datagrams of strangers do not arrive: let UDP port {port} in too, and this node can hold records"
    return ""


def _text(address: Address) -> str:
    return host_port(address.host, address.port)
