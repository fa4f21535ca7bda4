"""How a node does, for whoever runs it: `/metrics` for Prometheus and `/health` for load balancers and watchdogs.

Off unless a port is set. It has no login, so it tells counts and states only: no persona, no amount, no address of
anybody; whoever wants it from afar tunnels to it, or lets a collector on the same machine read it. `/health` is 200
while the node can do what it is for, else 503 with the reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from dht.stats import Stats
from p2pnode import ports
from p2pnode.api.schema import NodeView
from p2pnode.config import MetricsConfig
from p2pnode.offerbook import OfferBook
from p2pnode.reach.relay import Relay
from p2pnode.tradestore import TradeStore

CONTENT_TYPE: Final = "text/plain; version=0.0.4"

log = logging.getLogger(__name__)


class Metrics:
    """The two answers, on a port of their own."""

    def __init__(
        self,
        info: Callable[[], Awaitable[NodeView]],
        dht: Callable[[], Stats],
        book: OfferBook,
        trades: TradeStore,
        relay: Relay,
        *,
        config: MetricsConfig,
    ) -> None:
        """The parts that are asked; `info` and `dht` tell how the node and its DHT do."""
        self._info = info
        self._dht = dht
        self._book = book
        self._trades = trades
        self._relay = relay
        self._config = config
        self._registry = CollectorRegistry()
        self._shown = _Shown()
        self._registry.register(self._shown)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._runner: web.AppRunner | None = None
        self.url = ""
        """Where it answers, once started."""

    async def start(self) -> None:
        """Listen, if the configuration wants it. Raises AddressUnavailable."""
        if self._config.port is None:
            return
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._config.host, self._config.port).start()
        except OSError as e:
            await runner.cleanup()
            raise ports.unavailable(e, self._config.host, self._config.port, "metrics.port") from e
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("metrics at %s/metrics", self.url)

    async def close(self) -> None:
        """Stop. Twice is fine."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        self._shown.families = tuple(self._families(await self._info()))
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        reasons = unwell(await self._info())
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    def _families(self, info: NodeView) -> Iterable[Metric]:
        about = {"version": info.version, "network": info.network, "roles": ",".join(info.roles)}
        yield InfoMetricFamily("p2pnode", "What runs here.", about)
        yield _gauge("up_seconds", "How long the node has run.", info.uptime_seconds)
        yield _gauge("ready", "1 while the node can do what it is for.", not unwell(info))
        yield _gauge("sessions", "Open channels to other nodes.", info.sessions)
        yield _gauge("dht_peers", "Contacts in the routing table.", info.dht.peers)
        yield _gauge("dht_records", "Records that this node holds.", info.dht.records)
        yield _gauge("dht_network_size", "Nodes in the network, an estimate.", info.dht.network_size)
        yield _gauge("trades_open", "Trades that have not ended.", info.open_trades)
        yield _gauge("offers_open", "Own offers that are open.", info.open_offers)
        if info.reach is not None:
            yield _gauge("reachable", "1 when others can dial this node.", info.reach.state == "reachable")
            yield _gauge("relays", "Relays that this node is registered with.", len(info.reach.relays))
        if info.chain is not None:
            yield _gauge("chain_ready", "1 while the Bitcoin backend is.", info.chain.health == "ready")
            yield _gauge("chain_height", "The best block.", info.chain.height or 0)
        yield _gauge("book_offers", "Offers of others that this node knows.", self._book.count())
        yield _gauge("outbox_messages", "Messages that wait for their receipt.", self._trades.count_outbox())
        yield _gauge("relay_clients", "Nodes that are reached through this one.", self._relay.registrations)
        yield _gauge("relay_circuits", "Connections that this node carries for others.", self._relay.circuits)
        yield from self._dht_families(self._dht())

    def _dht_families(self, stats: Stats) -> Iterable[Metric]:
        yield _gauge("dht_record_bytes", "Bytes of the records that this node holds.", stats.record_bytes)
        yield _gauge("dht_rtt_seconds", "Smoothed round trip to other nodes.", stats.rtt)
        for name, about, value in (
            ("dht_packets_sent", "Packets sent.", stats.sent),
            ("dht_packets_received", "Packets received.", stats.received),
            ("dht_requests_served", "Requests answered.", stats.served),
            ("dht_requests_retried", "Requests sent again.", stats.retries),
            ("dht_requests_failed", "Requests without an answer.", stats.failures),
            ("dht_packets_refused", "Packets refused for limits.", stats.refused),
            ("dht_packets_bad", "Packets that were none, forged or stale.", stats.bad),
            ("dht_records_evicted", "Records that made room for others.", stats.evicted),
        ):
            yield CounterMetricFamily(f"p2pnode_{name}", about, value)


class _Shown(Collector):
    """What was gathered for the answer that is being made."""

    def __init__(self) -> None:
        self.families: tuple[Metric, ...] = ()

    def collect(self) -> Iterable[Metric]:
        """As the registry wants it."""
        return self.families


def unwell(info: NodeView) -> list[str]:
    """Why the node can't do what it is for; empty when it can."""
    found = []
    if info.chain is not None and info.chain.health != "ready":
        found.append(f"the Bitcoin backend is {info.chain.health}")
    if info.dht.peers == 0:
        found.append("no other node is known")
    return found


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"p2pnode_{name}", about, float(value))
