"""A whole market, kept up to date: shards, bulk over streams, pushes for what changes (ADR 0005).

The records of a market lie in a binary tree of shards. A publisher walks down from the undivided market while the
shard it stands in is full (SPLIT_AT records by the median of what holders answer; nobody is believed alone) and puts
its record there. A reader fetches a shard and goes down while it is at least half full, so that a shard which emptied
a little since hides nothing below it. Publishers walk
again each time they put a record again, so the tree folds back by itself.

Fetching a shard: one search finds the holders and their digests; where these are not ours, reconciliation over a stream
with one holder of each digest, that of most holders first, so that a few that lie about what they hold are not the only
ones read. A shard of a few records is read by datagrams, which a stream's handshake would not beat; so is one whose
holders serve no streams. After that the shard is watched: holders push what changes, and tell their digest at each
renewal. A watched shard that grows is followed into its halves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from statistics import median_high
from typing import TYPE_CHECKING, Final

from dht import sync
from dht.contact import Contact
from dht.errors import BadPacket, InvalidRecord
from dht.records import Record
from dht.stream import IDLE_S, OpenStream, Stream
from dht.survey import Holder
from dht.topics import MAX_SHARD_BITS, offers_topic, shard_of
from dht.writing import PutResult
from protocol.errors import P2PError
from protocol.types import Network, Side
from protocol.wire import Envelope

if TYPE_CHECKING:
    from dht.node import DhtNode

SPLIT_AT: Final = 2_000
"""Half of what a topic holds (`RecordKind.max_per_topic`): each shard costs its reader a search and a channel."""
DESCEND_AT: Final = SPLIT_AT // 2
SOURCES: Final = 2
"""Different states of a shard that are read, of those that its holders say they have."""
CROWDED_SOURCES: Final = 4
"""The same where somebody may have packed nodes around the shard."""
PATHS: Final = 3
FEW: Final = 8
"""Records of a shard that are read by datagrams: two or three round trips."""
MAX_PULLED: Final = 8_000
"""Records that one holder may send at a time: twice what a topic holds."""
MAX_BAD: Final = 50
"""Records of a holder's that may fail their checks, as those do that expire just now."""
PATIENCE_S: Final = 5.0
"""Seconds that a holder may take for one frame."""
REPUBLISH_STEP_S: Final = 30.0
YIELD_EVERY: Final = 64
"""Records verified between two turns of the event loop: 3 ms of work."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MarketKey:
    """One side of one currency's book on one network."""

    network: Network
    currency: str
    side: Side

    def topic(self, shard: tuple[int, int]) -> bytes:
        """The topic of a shard (bits, prefix)."""
        return offers_topic(self.network, self.currency, self.side, shard)


@dataclass(slots=True)
class Refreshed:
    """What a refresh did."""

    records: int = 0
    """Records that were new."""
    received: int = 0
    """Bytes over streams."""
    sent: int = 0
    shards: int = 0
    answers: int = 0
    """Holders that told their digest."""
    failures: int = 0
    """Holders that could not be read from."""


@dataclass(slots=True)
class _Published:
    """One of our own records, and when to put it again."""

    record: Envelope
    expires: int
    due: float


class Shard:
    """What is known of one shard."""

    def __init__(self) -> None:
        self.index = sync.Index()
        self.records: dict[bytes, tuple[tuple[int, bool, bytes], int]] = {}
        """Rank and expiry by tag."""
        self.unwatch: Callable[[], None] | None = None
        self.busy = False
        self.descended = False
        """Whether the halves are followed as well."""

    def take(self, record: Record) -> bool:
        """Note a record; False when it is known or older than what is."""
        tag, rank = record.tag, record.rank
        known = self.records.get(tag)
        if known is not None and known[0] >= rank:
            return False
        self.records[tag] = rank, record.meta.expires
        self.index.set(tag, rank[2])
        return True

    def expire(self, now: int) -> None:
        """Forget what has expired, as the holders do."""
        for tag in [t for t, (_, at) in self.records.items() if at <= now]:
            del self.records[tag]
            self.index.discard(tag)


class Market:
    """A reader's and publisher's view of one market."""

    def __init__(
        self, node: DhtNode, key: MarketKey, on_record: Callable[[Record], None], *, open_stream: OpenStream
    ) -> None:
        """`on_record` gets every new record of the market once, verified, tombstones too."""
        self._node = node
        self.key = key
        self._on_record = on_record
        self._open = open_stream
        self._shards: dict[tuple[int, int], Shard] = {}
        self._following = False
        self._draw = b""
        self._best: dict[bytes, tuple[int, bool, bytes]] = {}
        self._published: dict[bytes, _Published] = {}
        self._republishing = False
        self._tasks: set[asyncio.Task[object]] = set()

    def known(self) -> int:
        """Records known, tombstones too."""
        return sum(len(s.index) for s in self._shards.values())

    def depths(self) -> dict[tuple[int, int], int]:
        """Records known per shard (bits, prefix)."""
        return {at: len(s.index) for at, s in self._shards.items()}

    def unfollow(self) -> None:
        """Be told no more. What is known stays, so that the next refresh fetches only what has changed by then."""
        self._following = False
        for shard in self._shards.values():
            _let_go(shard)

    async def close(self) -> None:
        """Stop following."""
        self.unfollow()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- publishing --------------------------------------------------------------------------------------------

    async def shard_for(self, offer_id: bytes) -> tuple[int, int]:
        """The shard that a new record belongs in: the first on its way down that is not full."""
        for bits in range(MAX_SHARD_BITS):
            shard = shard_of(offer_id, bits)
            holders = (await self._node.survey(self.key.topic(shard))).holders
            if not holders or median_high([holder.total for holder in holders]) < SPLIT_AT:
                return shard
        return shard_of(offer_id, MAX_SHARD_BITS)

    async def publish(self, offer_id: bytes, record: Envelope) -> PutResult:
        """Put a record where readers look for it, and again at intervals until it expires or a newer one is published.

        The new version of an offer, or its revocation, may land in another shard than the old one: readers read all
        shards of the market and keep the highest rank. Raises RecordRejected.
        """
        result, expires = await self._put(offer_id, record)
        due = self._node.now() + self._node.config.engine.republish_s
        self._published[offer_id] = _Published(record, expires, due)
        if not self._republishing:
            self._republishing = True
            self._spawn(self._republish())
        return result

    async def _put(self, offer_id: bytes, record: Envelope) -> tuple[PutResult, int]:
        topic = self.key.topic(await self.shard_for(offer_id))
        result = await self._node.put(topic, record, keep=False)
        return result, self._node.engine.check(record.raw, topic, self._node.now()).meta.expires

    async def _republish(self) -> None:
        while self._published:
            await asyncio.sleep(REPUBLISH_STEP_S)
            now = self._node.now()
            for offer_id, published in list(self._published.items()):
                if published.expires <= self._node.unix():
                    del self._published[offer_id]
                elif published.due <= now:
                    spread = 0.75 + 0.5 * self._node.engine.rng.random()
                    published.due = now + self._node.config.engine.republish_s * spread
                    await self._put(offer_id, published.record)
        self._republishing = False

    # -- reading -----------------------------------------------------------------------------------------------

    async def refresh(self) -> Refreshed:
        """Bring every shard up to date."""
        done = Refreshed()
        self._draw = self._node.engine.rng.randbytes(16)
        visited = await self._read_tree([(0, 0)], done)
        for at in [at for at in self._shards if at not in visited]:
            # The tree has folded back.
            _let_go(self._shards.pop(at))
        return done

    async def _read_tree(self, level: list[tuple[int, int]], done: Refreshed) -> set[tuple[int, int]]:
        """Read these shards and what is below them; which they were."""
        visited = set(level)
        while level:
            deeper = await asyncio.gather(*(self._refresh_shard(at, done) for at in level))
            level = [
                (bits + 1, prefix * 2 + half)
                for (bits, prefix), split in zip(level, deeper, strict=True)
                if split and bits < MAX_SHARD_BITS
                for half in (0, 1)
            ]
            visited.update(level)
        return visited

    async def follow(self) -> Refreshed:
        """Refresh, then keep up to date by pushes until `close`."""
        self._following = True
        return await self.refresh()

    async def _refresh_shard(self, at: tuple[int, int], done: Refreshed) -> bool:
        """Bring one shard up to date; whether its halves are to be read as well."""
        shard = self._shards.setdefault(at, Shard())
        shard.expire(self._node.unix())
        topic = self.key.topic(at)
        done.shards += 1
        holders, crowded = await self._node.survey(topic)
        done.answers += len(holders)
        self._take_own(topic, shard, done)
        most = max((holder.total for holder in holders), default=0)
        if most > FEW:
            sources = CROWDED_SOURCES if crowded else SOURCES
            read = await self._read_groups(at, shard, _by_digest(holders, self._draw), sources, done)
        else:
            read = not any(holder.total and holder.digest != shard.index.digest for holder in holders)
        if not read:
            await self._search(topic, shard, done)
        if self._following and shard.unwatch is None:
            self._watch(at, shard, [holder.contact for holder in holders])
        typical = median_high([holder.total for holder in holders]) if holders else 0
        # A crowd may have told publishers that the shard is full, and tell us that it is not.
        shard.descended = crowded or max(len(shard.index), typical) >= DESCEND_AT
        return shard.descended

    async def _read_groups(
        self, at: tuple[int, int], shard: Shard, groups: list[list[Holder]], sources: int, done: Refreshed
    ) -> bool:
        """Read from holders that say different things; whether there was anybody to read from."""
        left = sources
        for group in groups:
            pulls = 0
            for holder in group:
                # The second one only if the first gave less than they both say that they have.
                if pulls == 2 or holder.digest == shard.index.digest:
                    break
                try:
                    await self._pull(holder.contact, at, shard, done)
                except (OSError, EOFError, TimeoutError, BadPacket, InvalidRecord) as e:
                    # The next holder has the same.
                    log.info("reading a market from %s failed: %s", holder.contact, e)
                    done.failures += 1
                    continue
                pulls += 1
            left -= pulls > 0 or group[0].digest == shard.index.digest
            if left == 0:
                break
        return left < sources

    def _take_own(self, topic: bytes, shard: Shard, done: Refreshed) -> None:
        """What this node holds itself, verified when it was stored."""
        node = self._node
        if node.storage.digest(topic) == shard.index.digest:
            return
        now = node.unix()
        for slot in node.storage.slots(topic):
            raw = None if shard.index.has(slot.tag, slot.rank[2]) else node.storage.get(topic, slot.tag)
            if raw is not None and slot.expires > now:
                with suppress(InvalidRecord):
                    self._note(node.engine.registry.trust(raw, topic, now), shard, done)

    async def _search(self, topic: bytes, shard: Shard, done: Refreshed) -> None:
        """Read a shard by datagrams: by several paths, or two holders could keep a revocation from us."""
        for record in (await self._node.find_records(topic, paths=PATHS)).records:
            self._note(record, shard, done)

    def _note(self, record: Record, shard: Shard, done: Refreshed) -> None:
        if shard.take(record):
            done.records += self._tell(record)

    async def _pull(self, holder: Contact, at: tuple[int, int], shard: Shard, done: Refreshed) -> None:
        topic = self.key.topic(at)
        async with asyncio.timeout(IDLE_S):
            stream = await self._open(holder)
            try:
                puller = sync.Puller(topic, shard.index)
                message: bytes | None = puller.start()
                if message is not None and message[0] == sync.WANT:
                    done.sent += len(message)
                    await stream.send(message)
                    await self._take(stream, topic, shard, done)
                    return
                while message is not None:
                    done.sent += len(message)
                    await stream.send(message)
                    async with asyncio.timeout(PATIENCE_S):
                        answer = await stream.receive()
                    done.received += len(answer)
                    message = puller.heard(answer)
                for start in range(0, len(puller.missing), sync.MAX_WANTED):
                    message = sync.want(topic, puller.missing[start : start + sync.MAX_WANTED])
                    done.sent += len(message)
                    await stream.send(message)
                    await self._take(stream, topic, shard, done)
            finally:
                await stream.close()

    async def _take(self, stream: Stream, topic: bytes, shard: Shard, done: Refreshed) -> None:
        more = True
        count = bad = 0
        while more:
            async with asyncio.timeout(PATIENCE_S):
                frame = await stream.receive()
            done.received += len(frame)
            raws, more = sync.read_records(frame)
            check, take, now = self._node.engine.registry.check, shard.take, self._node.unix()
            for raw in raws:
                try:
                    if take(record := check(raw, topic, now)):
                        done.records += self._tell(record)
                except InvalidRecord:
                    bad += 1
                    if bad > MAX_BAD:
                        raise
                count += 1
                if count > MAX_PULLED:
                    raise BadPacket("a holder that sends more records than a topic has")
                if count % YIELD_EVERY == 0:
                    await asyncio.sleep(0)

    def _tell(self, record: Record) -> bool:
        """Pass a record on, unless another shard gave this or a newer version."""
        best = self._best.get(record.tag)
        if best is not None and best >= record.rank:
            return False
        self._best[record.tag] = record.rank
        self._on_record(record)
        return True

    # -- following ---------------------------------------------------------------------------------------------

    def _watch(self, at: tuple[int, int], shard: Shard, holders: list[Contact]) -> None:
        def pushed(record: Record) -> None:
            if shard.take(record):
                self._tell(record)
                self._descend(at, shard)

        def told(holder: Contact, digest: bytes, total: int) -> None:
            if total == 0 or shard.busy or not self._following:
                return
            shard.expire(self._node.unix())
            self._forget_expired()
            if digest != shard.index.digest:
                shard.busy = True
                self._spawn(self._catch_up(holder, total, at, shard))

        shard.unwatch = self._node.watch(self.key.topic(at), pushed, told, holders)

    def _spawn(self, coroutine: Coroutine[object, object, object]) -> None:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, P2PError):
            log.info("following a market failed: %s", error.detail)
        elif error is not None:
            log.error("following a market failed", exc_info=error)

    def _descend(self, at: tuple[int, int], shard: Shard) -> None:
        """Follow the halves of a shard that has grown: publishers may turn to them from now on."""
        if self._following and not shard.descended and len(shard.index) >= DESCEND_AT and at[0] < MAX_SHARD_BITS:
            shard.descended = True
            self._spawn(self._read_tree([(at[0] + 1, at[1] * 2 + half) for half in (0, 1)], Refreshed()))

    def _forget_expired(self) -> None:
        """Forget the ranks of records that no shard has any more."""
        if len(self._best) > 2 * self.known() + 1_000:
            known = {tag for shard in self._shards.values() for tag in shard.records}
            self._best = {tag: rank for tag, rank in self._best.items() if tag in known}

    async def _catch_up(self, holder: Contact, total: int, at: tuple[int, int], shard: Shard) -> None:
        try:
            if total <= FEW:
                await self._search(self.key.topic(at), shard, Refreshed())
            else:
                await self._pull(holder, at, shard, Refreshed())
            self._descend(at, shard)
        except (OSError, EOFError, TimeoutError, BadPacket, InvalidRecord) as e:
            log.info("catching up with %s failed: %s", holder, e)
        finally:
            shard.busy = False


def _let_go(shard: Shard) -> None:
    if shard.unwatch is not None:
        shard.unwatch()
        shard.unwatch = None
    shard.descended = False


def _by_digest(holders: list[Holder], draw: bytes) -> list[list[Holder]]:
    """Holders of something, in groups that say the same of it: the largest group first, in each in an order by chance.

    So the load is spread, and who wants to hide something needs more groups of liars, each larger than that of the
    honest, than a reader asks. One draw serves all shards of a refresh: a node that holds several of them is then
    likely to be read for all, over one channel.
    """
    groups: dict[bytes, list[Holder]] = {}
    for holder in sorted(holders, key=lambda h: blake2b(h.contact.id, key=draw, digest_size=8).digest()):
        if holder.total:
            groups.setdefault(holder.digest, []).append(holder)
    return sorted(groups.values(), key=len, reverse=True)
