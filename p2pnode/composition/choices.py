"""What the configuration chooses, and what it leaves to us."""

from __future__ import annotations

import random

from dht.contact import Scope, scope_of
from dht.udp import listening_hosts
from p2pnode.channels import Dialer, Limits, Link, dial_public, dial_tcp
from p2pnode.channels.links import ip_version
from p2pnode.clock import Clock
from p2pnode.config import Config
from p2pnode.ownoffers import OwnOffers
from p2pnode.prices import Feed, PriceFeeds, parse_manual
from p2pnode.reach.reachability import Told
from p2pnode.reach.relay import RelayLimits
from protocol.contact import Address
from protocol.types import Network


def channel_limits(config: Config) -> Limits:
    """How many sessions, in all and from one origin."""
    per_origin = config.limits.sessions if config.network is Network.REGTEST else config.limits.sessions_per_address
    return Limits(max_inbound=config.limits.sessions, max_inbound_per_origin=per_origin)


def local(config: Config) -> bool:
    """Whether private and loopback addresses are worth talking to."""
    return config.node.local_addresses or config.network is Network.REGTEST


def sources(config: Config) -> dict[int, str]:
    """The address to speak from, by version of IP (4, 6), where the node listens on a certain one."""
    hosts = listening_hosts(config.node.host)
    return {ip_version(host): host for host in reversed(hosts) if scope_of(host) >= Scope.PRIVATE}


def dialer(config: Config) -> Dialer:
    """How this node dials: from the address that it listens on, if that is a certain one, as others see it then."""
    dial, own = (dial_tcp if local(config) else dial_public), sources(config)

    async def from_ours(address: Address) -> Link:
        return await dial(address, source=own.get(ip_version(address.host)))

    return from_ours


def on_loopback(config: Config) -> bool:
    """Whether the node listens on this machine's loopback addresses only."""
    return all(scope_of(host) is Scope.LOOPBACK for host in listening_hosts(config.node.host))


def relay_limits(config: Config) -> RelayLimits:
    """What this node carries for others."""
    limits = config.limits
    rate = limits.relay_kilobytes_per_second * 1_000
    if config.network is Network.REGTEST:
        # All nodes of a test network may share one address.
        return RelayLimits(
            registrations=limits.relay_clients,
            registrations_per_origin=limits.relay_clients,
            circuits=limits.relay_circuits,
            circuits_per_origin=limits.relay_circuits,
            bytes_per_second=rate,
            bytes_per_second_per_origin=rate,
        )
    return RelayLimits(
        registrations=limits.relay_clients,
        circuits=limits.relay_circuits,
        bytes_per_second=rate,
        bytes_per_second_per_origin=rate // 2,
    )


def prices(config: Config, clock: Clock, own: OwnOffers) -> PriceFeeds:
    """The price feeds. Raises BadConfig."""
    prices = config.prices
    return PriceFeeds(
        [Feed.parse(text) for text in prices.feeds],
        clock,
        random.SystemRandom(),
        interval=prices.interval_seconds,
        max_age=prices.max_age_seconds,
        manual=parse_manual(prices.manual),
        file=prices.file,
        wanted=own.floating,
    )


def told(config: Config) -> Told:
    """What the user said of this node's place in the network."""
    node = config.node
    pairs = (text.rpartition(":") for text in node.external)
    setting = node.reachable
    if setting == "auto" and (config.has("bootstrap") or on_loopback(config)):
        # Whom others enter by says that they can; and on loopback there is nothing to find out.
        setting = "yes"
    return Told(
        setting=setting,
        external=tuple(Address(host.strip("[]"), int(port)) for host, _, port in pairs),
        relaying=node.relay,
        client=node.dht_client,
        local=local(config),
    )


def maps_port(config: Config) -> bool:
    """Whether to ask the router for a port."""
    if config.node.port_mapping != "auto":
        return config.node.port_mapping == "yes"
    return config.network is not Network.REGTEST and not on_loopback(config)
