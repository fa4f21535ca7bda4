"""Finds Bitcoin peers that serve block filters, and keeps some connections open.

Theory of operation. With named peers, only those are used, all of them. Otherwise the network's DNS seeds are asked for
nodes with the right services, and peers for more; what answered is remembered in a file, so that a restart needs
no seed. At most one peer is taken per /16 (IPv4) or /32 (IPv6): it is cheap to run many nodes in one network, and what
protects a light client is that not all its peers are one person's. Whoever lied is not asked again for a day.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import random
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from escrow.chain.base import BackendUnreachable
from escrow.chain.p2pwire import PORTS, PeerBroken, Services
from escrow.chain.peer import NEEDED, Peer
from protocol.errors import ChainError
from protocol.types import Hash32, Network, Txid, UnixTime

_log = logging.getLogger(__name__)

SEEDS: Final[Mapping[Network, tuple[str, ...]]] = {
    # As Bitcoin Core lists them (`kernel/chainparams.cpp`); x49 asks for full nodes with witnesses and filters.
    Network.MAINNET: (
        "x49.seed.bitcoin.sipa.be",
        "x49.dnsseed.bluematt.me",
        "x49.seed.bitcoin.jonasschnelli.ch",
        "x49.seed.bitcoin.sprovoost.nl",
        "x49.dnsseed.emzy.de",
        "x49.seed.bitcoin.wiz.biz",
    ),
    Network.TESTNET: ("x49.seed.testnet4.bitcoin.sprovoost.nl", "x49.seed.testnet4.wiz.biz"),
    Network.SIGNET: ("x49.seed.signet.bitcoin.sprovoost.nl", "x49.seed.signet.achownodes.xyz"),
    Network.REGTEST: (),
}
_REMEMBERED: Final = 500
_CANDIDATES: Final = 5_000
_AT_ONCE: Final = 8
_BAN: Final = 24 * 3_600
_PAUSE: Final = 5
_RETRY: Final = 10 * 60
"""Seconds until a peer that could not be reached is tried again; named peers are tried at each occasion."""

Address = tuple[str, int]


class PeerPool:
    """The peers of one light client."""

    def __init__(
        self,
        network: Network,
        *,
        named: Collection[str],
        wanted: int,
        timeout: float,
        file: Path | None,
        clock: Callable[[], UnixTime],
        rng: random.Random,
        seeds: Collection[str] | None = None,
    ) -> None:
        """Keep the options.

        Args:
            network: whose peers.
            named: `host` or `host:port`; if there are any, no others are used.
            wanted: how many connections to keep.
            timeout: seconds for each answer.
            file: where known peers are remembered; None: nowhere.
            clock: tells Unix seconds.
            rng: picks peers, and the nonce of each connection.
            seeds: other DNS seeds than the network's own.
        """
        self._network = network
        self._named = tuple(_address(text, network) for text in named)
        self._wanted = len(self._named) or wanted
        self._timeout = timeout
        self._file = file
        self._clock = clock
        self._rng = rng
        self._seeds = SEEDS[network] if seeds is None else tuple(seeds)
        self._known: dict[Address, None] = {}
        self._not_before: dict[Address, UnixTime] = {}
        self._peers: dict[Address, Peer] = {}
        self._offered: Mapping[Txid, bytes] = {}
        self._failure: ChainError | None = None
        self.on_block: Callable[[Hash32], None] = lambda _block: None
        self.on_txs: Callable[[Peer, Collection[Txid]], None] = lambda _peer, _txids: None
        self.on_peer: Callable[[Peer], None] = lambda _peer: None
        self.on_alone: Callable[[], None] = lambda: None

    @property
    def live(self) -> list[Peer]:
        """The open connections, oldest first."""
        return [peer for peer in self._peers.values() if peer.live]

    def offer(self, txs: Mapping[Txid, bytes]) -> None:
        """Let peers ask for these transactions; the mapping may change later."""
        self._offered = txs

    async def open(self) -> None:
        """Remember the peers of an earlier run."""
        if self._file is not None:
            for host, port in await asyncio.to_thread(_read, self._file):
                self._known[(host, port)] = None

    async def close(self) -> None:
        """Hang up on all, and remember them."""
        if self._file is not None and not self._named:
            good = list(dict.fromkeys([*(a for a, p in self._peers.items() if p.live), *self._known]))
            await asyncio.to_thread(_write, self._file, good[:_REMEMBERED])
        peers, self._peers = list(self._peers.values()), {}
        await asyncio.gather(*(peer.close() for peer in peers))

    async def fill(self, height: int) -> None:
        """Open connections until there are enough, as far as peers are found. Raises BackendUnreachable if none is.

        `height` is told to them; it is our tip's.
        """
        for address, peer in list(self._peers.items()):
            if not peer.live:
                del self._peers[address]
                await peer.close()
                if isinstance(peer.ended, PeerBroken):
                    # A named peer is its user's choice; what it says is checked each time.
                    self._not_before[address] = self._clock() + (_PAUSE if self._named else _BAN)
                    self._failure = peer.ended
        if len(self._peers) < self._wanted and not self._ready() and not self._named:
            await self._ask_around()
        while (missing := self._wanted - len(self._peers)) > 0 and (candidates := self._ready()):
            batch = candidates[: max(missing, 0 if self._named else _AT_ONCE)]
            await asyncio.gather(*(self._connect(address, height) for address in batch))
        if not self.live:
            raise self._failure or BackendUnreachable(
                "no Bitcoin peer with block filters was found: check the network, or name one in chain.peers"
            )

    # -- as a PeerOwner ---------------------------------------------------------------------------------------

    def block_announced(self, block: Hash32) -> None:
        """Pass it on."""
        self.on_block(block)

    def txs_announced(self, peer: Peer, txids: Collection[Txid]) -> None:
        """Pass it on."""
        self.on_txs(peer, txids)

    def peer_ended(self, peer: Peer) -> None:
        """Say so when it was the last one."""
        if peer in self._peers.values() and not self.live:
            self.on_alone()

    def addresses(self, found: Collection[tuple[str, int, int]]) -> None:
        """Remember those that offer what is needed."""
        for host, port, services in found:
            if Services(services) & NEEDED == NEEDED and port and len(self._known) < _CANDIDATES:
                self._known[(host, port)] = None

    def offered(self) -> Mapping[Txid, bytes]:
        """What `offer` was given."""
        return self._offered

    # -- inside -----------------------------------------------------------------------------------------------

    def _ready(self) -> list[Address]:
        """Whom to try next, in random order."""
        now = self._clock()
        taken = {_group(host) for host, _ in self._peers}
        ready = [
            address
            for address in (self._named or self._known)
            if address not in self._peers
            and self._not_before.get(address, 0) <= now
            and (self._named or _group(address[0]) not in taken)
        ]
        self._rng.shuffle(ready)
        return ready

    async def _connect(self, address: Address, height: int) -> None:
        host, port = address
        self._not_before[address] = self._clock() + (1 if self._named else _RETRY)
        try:
            peer = await Peer.connect(
                host,
                port,
                self._network,
                self,
                nonce=self._rng.randbytes(8),
                height=height,
                now=self._clock(),
                timeout=self._timeout,
            )
        except ChainError as e:
            _log.info("%s", e.detail)
            self._failure = e
            if isinstance(e, PeerBroken) and not self._named:
                self._known.pop(address, None)
                self._not_before[address] = self._clock() + _BAN
            return
        if len(self._peers) >= self._wanted or any(
            _group(h) == _group(host) for h, _ in self._peers if not self._named
        ):
            await peer.close()
            return
        self._peers[address] = peer
        _log.info("connected to the Bitcoin peer %s (%s)", peer.name, peer.info.agent)
        if not self._named and len(self._known) < _REMEMBERED:
            peer.ask_for_addresses()
        self.on_peer(peer)

    async def _ask_around(self) -> None:
        """DNS seeds, then peers, for more peers."""
        port = PORTS[self._network]
        answers = await asyncio.gather(*(_resolve(seed, port) for seed in self._seeds))
        for host in _interleaved(answers):
            if len(self._known) < _CANDIDATES:
                self._known[(host, port)] = None


async def _resolve(seed: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        found = await loop.getaddrinfo(seed, port, type=socket.SOCK_STREAM)
        return [str(entry[4][0]) for entry in found]
    return []


def _interleaved(lists: Iterable[list[str]]) -> list[str]:
    """One of each in turn: no seed shall choose all our peers."""
    rows = [list(x) for x in lists]
    return [row[i] for i in range(max(map(len, rows), default=0)) for row in rows if i < len(row)]


def _group(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 16 if address.version == 4 else 32), strict=False))


def _address(text: str, network: Network) -> Address:
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (not host.count(":") or host.startswith("[")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), PORTS[network]


def _read(file: Path) -> list[Address]:
    """A file that is damaged or absent is as good as an empty one: peers can be found anew."""
    with suppress(OSError, ValueError, TypeError):
        if file.stat().st_size < 1_000_000:
            return [(str(h), int(p)) for h, p in json.loads(file.read_text())][:_REMEMBERED]
    return []


def _write(file: Path, known: list[Address]) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known))
