"""The daemon itself: who, where and how it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from dht.node import DhtNode
from escrow.chain.base import ChainBackend
from p2pnode.api.schema import ChainView, DhtView, NodeView, ReachView
from p2pnode.clock import Clock
from p2pnode.ownoffers import OwnOffers
from p2pnode.services.peers import Sessions
from p2pnode.services.views import NETWORK_NAMES
from p2pnode.tradestore import TradeStore
from protocol.identity import node_text, persona_text
from protocol.types import Network


class NodeFacts(Struct, frozen=True, kw_only=True):
    """What does not change while a node runs. Keys are raw; `started` is in Unix seconds; `persona` None: it has none.

    `listen` is `host:port` of the DHT and the channels.
    """

    network: Network
    node: bytes
    persona: bytes | None
    roles: tuple[str, ...]
    listen: tuple[str, ...]
    data_dir: Path
    started: int


class NodeService:
    """`api.services.Node`. The API's own address is filled in by the API, which alone knows it."""

    def __init__(
        self,
        facts: NodeFacts,
        dht: DhtNode,
        clock: Clock,
        stop: Callable[[], None],
        *,
        chain: ChainBackend | None = None,
        sessions: Sessions = tuple,
        trades: TradeStore | None = None,
        own: OwnOffers | None = None,
        reach: Callable[[], ReachView | None] = lambda: None,
    ) -> None:
        """`stop` begins the shutdown and returns at once. A bootstrap node has neither chain, trades nor offers.

        `reach` tells how others reach the node.
        """
        self._facts = facts
        self._dht = dht
        self._clock = clock
        self._stop = stop
        self._chain = chain
        self._sessions = sessions
        self._trades = trades
        self._own = own
        self._reach = reach
        self._version = version("p2pnode")

    async def info(self) -> NodeView:
        """Who, where and how it is. Never waits for the network."""
        facts = self._facts
        stats = self._dht.stats()
        return NodeView(
            version=self._version,
            network=NETWORK_NAMES[facts.network],
            node=node_text(facts.node),
            persona=None if facts.persona is None else persona_text(facts.persona),
            roles=facts.roles,
            listen=facts.listen,
            api="",
            data_dir=str(facts.data_dir),
            pid=os.getpid(),
            uptime_seconds=max(0, self._clock.now() - facts.started),
            sessions=len(self._sessions()),
            chain=self._chain_view(),
            dht=DhtView(peers=stats.peers, records=stats.records, network_size=stats.network_size),
            reach=self._reach(),
            open_trades=0 if self._trades is None else self._trades.count_open(),
            open_offers=0 if self._own is None else self._own.count_open(),
        )

    async def stop(self) -> None:
        """Begin to shut down."""
        self._stop()

    def _chain_view(self) -> ChainView | None:
        if self._chain is None:
            return None
        status = self._chain.status()
        tip = status.tip
        return ChainView(
            backend=status.backend,
            health=status.health.value,
            height=None if tip is None else tip.height,
            # A block's hash is shown the other way round than it is hashed, as a txid is.
            tip=None if tip is None else tip.hash[::-1].hex(),
            detail=status.detail,
        )
