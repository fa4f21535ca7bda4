"""The node itself, its peers, its events, and what went wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from p2pnode.api.schema.base import Cursor, NetworkName, Request, Response
from protocol.types import UnixTime


class ChainView(Response, frozen=True, kw_only=True):
    """The Bitcoin backend. `health` is starting, syncing, ready or unreachable, `detail` why it is not ready."""

    backend: str
    health: str
    height: int | None
    tip: str | None
    detail: str = ""


class DhtView(Response, frozen=True, kw_only=True):
    """The node's place in the DHT; `network_size` is an estimate."""

    peers: int
    records: int
    network_size: int


class WayView(Response, frozen=True, kw_only=True):
    """How one address of this node is reached, by peers that were asked to try.

    `udp` says whose datagrams arrive: `strangers` (anybody's), `untried` (of those that this node wrote to; no stranger
    was there to try), `known` (of those, and no others') or `no`.
    """

    host: str
    tcp: bool
    udp: Literal["strangers", "untried", "known", "no"]


class RelayView(Response, frozen=True, kw_only=True):
    """A relay that brings others to this node."""

    node: str
    addresses: tuple[str, ...]
    since: UnixTime


class ReachView(Response, frozen=True, kw_only=True):
    """Whether others can reach this node, and how.

    `state`: `reachable` (others dial it), `behind NAT` (nobody can; relays bring them) or `unknown`.
    `told`: it is the configuration that says so. `published`: the addresses in the contact record. `dht`: `server` when
    it holds records for others, else `client`. `carried_by`: what carries the DHT's packets now. `advice`: what would
    make it better; empty when nothing is amiss.
    """

    state: Literal["reachable", "behind NAT", "unknown"]
    since: UnixTime
    told: bool
    addresses: tuple[WayView, ...]
    published: tuple[str, ...]
    mapped_port: str | None
    mapped_by: Literal["NAT-PMP", "UPnP"] | None
    relays: tuple[RelayView, ...]
    dht: Literal["server", "client"]
    carried_by: Literal["udp", "channel"]
    advice: str


class NodeView(Response, frozen=True, kw_only=True):
    """Who and where this node is, and how it does."""

    version: str
    network: NetworkName
    node: str
    persona: str | None
    roles: tuple[str, ...]
    listen: tuple[str, ...]
    data_dir: str
    pid: int
    uptime_seconds: int
    sessions: int
    chain: ChainView | None
    dht: DhtView
    reach: ReachView | None = None
    open_trades: int
    open_offers: int
    api: str = ""
    """Where this API answers; the API itself fills it in."""


class PageLink(Response, frozen=True, kw_only=True):
    """Where a browser of this machine is logged in: good once, for two minutes."""

    url: str


class StopView(Response, frozen=True, kw_only=True):
    """The node has begun to shut down."""

    stopping: bool = True


class PeerView(Response, frozen=True, kw_only=True):
    """A node that this one knows. `via` is `dht` (a contact in the routing table) or `channel` (an open session)."""

    node: str | None
    address: str
    via: Literal["dht", "channel"]
    outgoing: bool | None = None
    last_seen: UnixTime | None = None
    rtt_ms: int | None = None


class PeerList(Response, frozen=True, kw_only=True):
    """Peers, the open sessions first."""

    peers: tuple[PeerView, ...]


class PeerAdd(Request, frozen=True, kw_only=True):
    """A node to get to know: `node1...@host:port`, or `host:port`."""

    address: Annotated[str, Meta(min_length=3, max_length=400)]


class EventView(Response, frozen=True, kw_only=True):
    """Something that happened. `number` grows; `topic` is stable; a trade's events name the phase it is now in."""

    number: Cursor
    at: UnixTime
    topic: str
    trade: str | None = None
    offer: str | None = None
    phase: str | None = None


class EventPage(Response, frozen=True, kw_only=True):
    """Events in order, and the cursor to ask with next."""

    events: tuple[EventView, ...]
    next: Cursor


class Problem(Response, frozen=True, kw_only=True):
    """An RFC 9457 problem document. `code` is stable; `fault` and `action` are those of the error (protocol/errors)."""

    type: str
    title: str
    status: int
    detail: str
    code: int
    fault: Literal["peer", "user", "chain", "ours"]
    action: str
    instance: str | None = None
