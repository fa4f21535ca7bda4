"""One connection to a Bitcoin node, as a light client holds it.

Theory of operation. One task reads and sorts what comes in: what must be answered is answered (`ping`, requests for our
own transactions), announcements become notes to the owner, and the rest is offered to the question that is open.
Questions are asked one at a time. A peer that breaks the protocol, lies or does not answer in time is closed, with the
reason in `ended`; the owner finds another.

Nothing a peer says is believed here: headers, filters and blocks are checked by whoever asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from escrow.chain import p2pwire as wire
from escrow.chain.base import BackendError, BackendUnreachable
from escrow.chain.blocks import parse_tx
from escrow.chain.headers import hash256
from escrow.chain.p2pwire import CFHeaders, Inv, Message, PeerBroken, Services, VersionInfo
from protocol.errors import ChainError
from protocol.types import FeeRate, Hash32, Network, Txid

_log = logging.getLogger(__name__)

T = TypeVar("T")

NEEDED: Final = Services.WITNESS | Services.FILTERS
"""What a peer must offer; and blocks, all or the newest."""
_CHUNK: Final = 1 << 16
_AGAIN: Final = 0.5
"""Seconds until a question is first repeated."""
_PING: Final = 120.0
"""Seconds between signs of life that we ask for."""


class PeerOwner(Protocol):
    """Who holds the peer. No method may block."""

    def block_announced(self, block: Hash32) -> None:
        """The peer has a block."""
        ...

    def txs_announced(self, peer: Peer, txids: Collection[Txid]) -> None:
        """The peer has transactions in its mempool."""
        ...

    def peer_ended(self, peer: Peer) -> None:
        """The connection is over; `peer.ended` says why."""
        ...

    def addresses(self, found: Collection[tuple[str, int, int]]) -> None:
        """Other nodes that the peer knows: host, port, services."""
        ...

    def offered(self) -> Mapping[Txid, bytes]:
        """Transactions of ours that peers may ask for."""
        ...


class Peer:
    """An open connection."""

    def __init__(
        self,
        name: str,
        network: Network,
        owner: PeerOwner,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        timeout: float,
    ) -> None:
        self.name = name
        self.info = VersionInfo(0, 0, "", 0, relays=False)
        self.ended: ChainError | None = None
        self.fee_floor: FeeRate = 0
        """Satoshis per 1,000 vB under which the peer takes no transaction (BIP133)."""
        self._network = network
        self._owner = owner
        self._reader, self._writer = streams
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._open: Callable[[Message], None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._heard = 0.0

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        network: Network,
        owner: PeerOwner,
        *,
        nonce: bytes,
        height: int,
        now: int,
        timeout: float,
    ) -> Peer:
        """Connect and shake hands. Raises BackendUnreachable, PeerBroken."""
        name = f"{host}:{port}"
        try:
            async with asyncio.timeout(timeout):
                streams = await asyncio.open_connection(host, port, limit=_CHUNK)
        except (OSError, TimeoutError) as e:
            reason = "no answer in time" if isinstance(e, TimeoutError) else e.strerror or type(e).__name__
            raise BackendUnreachable(f"the Bitcoin peer {name} can't be reached ({reason})") from e
        peer = cls(name, network, owner, streams, timeout)
        peer._task = asyncio.create_task(peer._read(), name=f"peer {name}")
        try:
            await peer._shake_hands(wire.version(nonce, height, now))
        except BaseException:
            await peer.close()
            raise
        return peer

    @property
    def live(self) -> bool:
        """Whether it can be asked."""
        return self.ended is None

    async def close(self) -> None:
        """Hang up."""
        self._end(BackendUnreachable(f"the Bitcoin peer {self.name} was let go"))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(OSError):
            await self._writer.wait_closed()

    def fail(self, error: ChainError) -> None:
        """Hang up because of what it said."""
        self._end(error)

    # -- questions --------------------------------------------------------------------------------------------

    async def headers(self, locator: list[Hash32]) -> list[bytes]:
        """Up to 2,000 headers after the first block of `locator` that it knows."""
        answer = await self._ask("getheaders", wire.getheaders(locator), "headers")
        return wire.read_headers(answer)

    async def cfheaders(self, start: int, stop: Hash32) -> CFHeaders:
        """Filter hashes of up to 2,000 blocks that end with `stop`."""
        found: list[CFHeaders] = []

        def take(message: Message) -> bool:
            if message.command == "cfheaders" and (answer := wire.read_cfheaders(message.body)).stop == stop:
                found.append(answer)
            return bool(found)

        await self._converse("getcfheaders", wire.getcf(start, stop), take, again=True)
        return found[0]

    async def cfilters(self, start: int, wanted: Collection[Hash32], stop: Hash32) -> dict[Hash32, bytes]:
        """The filters of the blocks from height `start` to `stop`, which are `wanted`."""
        found: dict[Hash32, bytes] = {}

        def take(message: Message) -> bool:
            if message.command == "cfilter":
                block, raw = wire.read_cfilter(message.body)
                if block in wanted:
                    found[block] = raw
            return len(found) == len(wanted)

        await self._converse("getcfilters", wire.getcf(start, stop), take, again=True)
        return found

    async def block(self, block: Hash32) -> bytes | None:
        """A whole block with its witnesses; None if the peer has it no more."""
        found: list[bytes | None] = []

        def take(message: Message) -> bool:
            if message.command == "block" and hash256(message.body[:80]) == block:
                found.append(message.body)
            elif message.command == "notfound" and any(name == block for _, name in wire.read_inventory(message.body)):
                found.append(None)
            return bool(found)

        await self._converse("getdata", wire.inventory([(Inv.WITNESS_BLOCK, block)]), take)
        return found[0]

    async def transactions(self, txids: Collection[Txid]) -> dict[Txid, bytes]:
        """Those of `txids` that its mempool holds. It tells of none that came since its last announcement to us."""
        found: dict[Txid, bytes] = {}
        missing = set(txids)

        def take(message: Message) -> bool:
            if message.command == "tx":
                try:
                    txid = parse_tx(message.body).txid
                except BackendError as e:
                    raise PeerBroken("a peer sent a transaction that does not parse") from e
                if txid in missing:
                    found[txid] = message.body
                    missing.discard(txid)
            elif message.command == "notfound":
                missing.difference_update(name for _, name in wire.read_inventory(message.body))
            return not missing

        if missing:
            await self._converse("getdata", wire.inventory((Inv.WITNESS_TX, t) for t in txids), take)
        return found

    def send_tx(self, raw: bytes) -> None:
        """Hand over a transaction. Whether it is taken, `transactions` tells a little later."""
        self._say("tx", raw)

    def ask_for_addresses(self) -> None:
        """Ask for other nodes; the owner is told."""
        self._say("getaddr", b"")

    # -- inside -----------------------------------------------------------------------------------------------

    async def _shake_hands(self, version: bytes) -> None:
        seen: set[str] = set()

        def take(message: Message) -> bool:
            if message.command == "version":
                self.info = wire.read_version(message.body)
                self._say("verack", b"")
            seen.add(message.command)
            return seen >= {"version", "verack"}

        await self._converse("version", version, take)
        services = Services(self.info.services)
        if services & NEEDED != NEEDED or not services & (Services.NETWORK | Services.LIMITED):
            raise PeerBroken(
                f"the Bitcoin peer {self.name} serves no block filters: it needs peerblockfilters=1, blockfilterindex=1"
            )

    async def _ask(self, command: str, body: bytes, answer: str) -> bytes:
        found: list[bytes] = []

        def take(message: Message) -> bool:
            if message.command == answer:
                found.append(message.body)
            return bool(found)

        await self._converse(command, body, take)
        return found[0]

    async def _converse(
        self, command: str, body: bytes, take: Callable[[Message], bool], *, again: bool = False
    ) -> None:
        """Say something and listen until `take` has all that it waits for.

        With `again` it is said repeatedly: Bitcoin Core is silent when asked for the filter of a block that its index
        has not got to yet. Raises BackendUnreachable, PeerBroken.
        """
        async with self._turn:
            if self.ended is not None:
                raise self.ended
            done = self._waiting = asyncio.get_running_loop().create_future()

            def offer(message: Message) -> None:
                if not done.done() and take(message):
                    done.set_result(None)

            self._open = offer
            try:
                async with asyncio.timeout(self._timeout):
                    pause = _AGAIN
                    self._say(command, body)
                    while again and not done.done():
                        await asyncio.wait([done], timeout=pause)
                        pause *= 2
                        if not done.done():
                            self._say(command, body)
                    await done
            except TimeoutError as e:
                error = BackendUnreachable(f"the Bitcoin peer {self.name} did not answer {command} in time")
                self._end(error)
                raise error from e
            finally:
                self._open = self._waiting = None

    def _say(self, command: str, body: bytes) -> None:
        if self.ended is None:
            self._writer.write(wire.frame(self._network, command, body))

    async def _read(self) -> None:
        frames = wire.Frames(self._network)
        try:
            while self.ended is None:
                try:
                    async with asyncio.timeout(_PING):
                        data = await self._reader.read(_CHUNK)
                except TimeoutError:
                    self._say("ping", bytes(8))
                    async with asyncio.timeout(self._timeout):
                        data = await self._reader.read(_CHUNK)
                if not data:
                    raise BackendUnreachable(f"the Bitcoin peer {self.name} hung up")
                for message in frames.feed(data):
                    self._sort(message)
        except (PeerBroken, BackendUnreachable) as e:
            self._end(e)
        except TimeoutError:
            self._end(BackendUnreachable(f"the Bitcoin peer {self.name} fell silent"))
        except OSError as e:
            self._end(BackendUnreachable(f"the connection to the Bitcoin peer {self.name} broke ({e.strerror})"))

    def _sort(self, message: Message) -> None:
        match message.command:
            case "ping":
                self._say("pong", message.body)
            case "feefilter":
                self.fee_floor = wire.Reader(message.body).number(8)
            case "inv":
                self._announced(wire.read_inventory(message.body))
            case "getdata":
                self._serve(wire.read_inventory(message.body))
            case "addr":
                self._owner.addresses(wire.read_addresses(message.body))
            case _:
                if self._open is not None:
                    self._open(message)

    def _announced(self, entries: list[tuple[int, Hash32]]) -> None:
        for kind, name in entries:
            if kind == Inv.BLOCK:
                self._owner.block_announced(name)
        txids = [name for kind, name in entries if kind == Inv.TX]
        if txids:
            self._owner.txs_announced(self, txids)

    def _serve(self, entries: list[tuple[int, Hash32]]) -> None:
        """Peers ask for a parent of ours again when its child pays for it."""
        offered = self._owner.offered()
        missing: list[tuple[int, Hash32]] = []
        for kind, name in entries:
            raw = offered.get(name) if kind in (Inv.TX, Inv.WITNESS_TX) else None
            if raw is not None:
                self._say("tx", raw)
            else:
                missing.append((kind, name))
        if missing:
            self._say("notfound", wire.inventory(missing))

    def _end(self, error: ChainError) -> None:
        if self.ended is not None:
            return
        _log.info("%s", error.detail)
        self.ended = error
        self._owner.peer_ended(self)
        self._writer.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
