"""Other nodes: those that this one talks to, and those that its routing table holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dht.contact import Contact
from dht.errors import BadContact
from dht.node import DhtNode, Seed
from p2pnode.api.schema import PeerAdd, PeerList, PeerView
from p2pnode.channels import SessionView
from p2pnode.clock import Clock
from protocol.errors import UserError
from protocol.identity import node_text

Sessions = Callable[[], Sequence[SessionView]]


class BadPeerAddress(UserError):
    """That is not where a node can be: write host:port or node1...@host:port."""

    code = 3060


class NoAnswer(UserError):
    """Nobody answers there: check the address, and that the node runs on the same network."""

    code = 3061


class PeerService:
    """`api.services.Peers` over the DHT node and the channels."""

    def __init__(self, dht: DhtNode, sessions: Sessions, clock: Clock) -> None:
        self._dht = dht
        self._sessions = sessions
        self._clock = clock

    async def list(self) -> PeerList:
        """Open sessions, then contacts of the routing table."""
        now = self._clock.now()
        sessions = tuple(
            PeerView(node=node_text(s.peer), address=s.remote, via="channel", outgoing=s.outgoing, last_seen=now)
            for s in self._sessions()
        )
        return PeerList(peers=(*sessions, *(self._contact(c) for c in self._dht.peers())))

    async def add(self, request: PeerAdd) -> PeerView:
        """Ping a node and take it into the routing table. Raises BadPeerAddress, BadId, NoAnswer."""
        try:
            seed = Seed.parse(request.address)
        except BadContact as e:
            raise BadPeerAddress from e
        contact = await self._dht.meet(seed)
        if contact is None:
            where = f"[{seed.host}]:{seed.port}" if ":" in seed.host else f"{seed.host}:{seed.port}"
            raise NoAnswer(f"that node does not answer at {where}" if seed.key else f"nobody answers at {where}")
        return self._contact(contact)

    def _contact(self, contact: Contact) -> PeerView:
        engine = self._dht.engine
        peer = engine.peer_of(contact)
        heard = peer is not None and peer.heard_at > 0
        host = f"[{contact.ip}]" if ":" in contact.ip else contact.ip
        return PeerView(
            node=node_text(contact.key),
            address=f"{host}:{contact.port}",
            via="dht",
            last_seen=engine.unix(peer.heard_at) if peer is not None and heard else None,
            rtt_ms=round(peer.rtt * 1000) if peer is not None and heard else None,
        )
