"""The demo's nodes, each in its namespace: real processes, asked through their own APIs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import aiohttp

from p2pnode.client import Client
from p2pnode.demo.cast import Cast, Daemon, together
from p2pnode.demo.play import Play
from p2pnode.regtest import RegtestNode
from tests.netns.lab import Lab, socket_in


class NamespacedCast(Cast):
    """All nodes of one trade. `places` says where each is: its namespace, and the address that it listens on."""

    def __init__(self, folder: Path, binary: Path, lab: Lab, places: dict[str, tuple[str, str]], seeds: int) -> None:
        super().__init__(folder, binary, keep=False)
        self._lab = lab
        self._places = places
        self.seeds = self.seeds[:seeds]  # type: ignore[assignment]  # one is enough
        self.settings: dict[str, list[str]] = {}
        """More lines of a node's [node] section."""
        traders = {places[d.name][0] for d in self.daemons if d not in self.seeds}
        self._chain = {namespace: lab.chain_link(namespace) for namespace in sorted(traders)}
        self.bitcoind = RegtestNode(
            folder / "bitcoind",
            binary=binary,
            txindex=True,
            extra_args=("-rpcallowip=10.99.0.0/16", *(f"-rpcbind={ours}" for ours in self._chain.values())),
        )
        for daemon in self.daemons:
            namespace = places[daemon.name][0]
            daemon.prefix = ("ip", "netns", "exec", namespace)
            daemon.client = client_in(namespace)

    async def start_chain_and_seeds(self) -> None:
        await self.bitcoind.start()
        for namespace in self._chain:
            self._lab.chain_guard(namespace, self.bitcoind.rpc_port)
        known: list[str] = []
        for daemon in self.seeds:
            await self._start(daemon, known)
            known.append(daemon.seed)

    async def start_others(self) -> None:
        # A bootstrap node may be had by IPv4 and by IPv6; which of them a trader can use is its own to find out.
        known = tuple(f"{daemon.info.node}@{where}" for daemon in self.seeds for where in daemon.info.listen)
        await together(*(self._start(daemon, known) for daemon in (*self.arbiters, *self.traders)))

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        namespace, host = self._places[daemon.name]
        lines = [
            line
            for line in super()._config(daemon, seeds).splitlines()
            if not line.startswith(("host =", "zmq =", "url ="))
        ]
        at = lines.index("[node]") + 1
        lines[at:at] = [f'host = "{host}"', *self.settings.get(daemon.name, ())]
        if "[chain]" in lines:
            at = lines.index("[chain]") + 1
            lines[at:at] = [f'url = "http://{self._chain[namespace]}:{self.bitcoind.rpc_port}"', "poll_seconds = 1"]
        return "\n".join([*lines, "[log]", 'level = "debug"', ""])


class _There(Client):
    """A client in the node's namespace."""

    namespace = ""

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(socket_factory=partial(socket_in, self.namespace))
            self._http = aiohttp.ClientSession(auto_decompress=False, connector=connector)
        return self._http


def client_in(namespace: str) -> type[Client]:
    """The class of clients that speak from a namespace."""

    class There(_There):
        pass

    There.namespace = namespace
    return There


class PlayWith(Play):
    """The demo's trade, with something happening in the middle of it."""

    async def meanwhile(self) -> None:
        """Between the funded escrow and the payment."""

    async def _pay_and_release(self, trade: str, mempool: object) -> None:
        await self.meanwhile()
        await super()._pay_and_release(trade, mempool)  # type: ignore[arg-type]
