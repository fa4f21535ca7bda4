"""A whole market, kept up to date: shards, bulk over streams, pushes for what changes (ADR 0005).

The records of a market lie in a binary tree of shards. A publisher walks down from the undivided market while the
shard it stands in is full (SPLIT_AT records by the median of what holders answer; nobody is believed alone) and puts
its record there. A reader fetches a shard and goes down while it is at least half full, so that a shard which emptied
a little since hides nothing below it. Publishers walk
again each time they put a record again, so the tree folds back by itself.

Fetching a shard: a cheap question for the digest; when it is not ours, reconciliation over a stream with one holder,
then with another (equal by then, in one round). Holders that agree with most others come first, so that a few that lie
about what they hold are not the only ones read. A shard of a few records is read by datagrams, which a stream's
handshake would not beat; so is one whose holders serve no streams. After that the shard is watched: holders push what
changes, and tell their digest at each renewal. A watched shard that grows is followed into its halves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING, Final

from dht import messages, sync
from dht.contact import Contact
from dht.errors import BadPacket, InvalidRecord
from dht.messages import Op, Reply
from dht.records import Record
from dht.rpc import Call
from dht.search import PutResult
from dht.stream import IDLE_S, OpenStream, Stream
from dht.topics import MAX_SHARD_BITS, offers_topic, shard_of
from protocol.errors import P2PError
from protocol.types import Network, Side
from protocol.wire import Envelope

if TYPE_CHECKING:
    from dht.node import DhtNode

SPLIT_AT: Final = 500
DESCEND_AT: Final = SPLIT_AT // 2
SOURCES: Final = 2
"""Holders that a shard is reconciled with."""
FEW: Final = 8
"""Records of a shard that are read by datagrams: two or three round trips."""
MAX_PULLED: Final = 4_000
"""Records that one holder may send at a time: twice what a topic holds."""
MAX_BAD: Final = 50
"""Records of a holder's that may fail their checks, as those do that expire just now."""
PATIENCE_S: Final = 5.0
"""Seconds that a holder may take for one frame."""
REPUBLISH_STEP_S: Final = 30.0
YIELD_EVERY: Final = 32
"""Records verified between two turns of the event loop: 2 ms of work."""

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
        self.expires: dict[bytes, int] = {}
        self.ranks: dict[bytes, tuple[int, bool, bytes]] = {}
        self.unwatch: Callable[[], None] | None = None
        self.busy = False
        self.descended = False
        """Whether the halves are followed as well."""

    def take(self, record: Record) -> bool:
        """Note a record; False when it is known or older than what is."""
        known = self.ranks.get(record.tag)
        if known is not None and known >= record.rank:
            return False
        self.ranks[record.tag] = record.rank
        self.index.set(record.tag, record.rank[2])
        self.expires[record.tag] = record.meta.expires
        return True

    def expire(self, now: int) -> None:
        """Forget what has expired, as the holders do."""
        for tag in [t for t, at in self.expires.items() if at <= now]:
            del self.expires[tag], self.ranks[tag]
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
            answers = await self._ask_holders(self.key.topic(shard))
            if not answers or median_high([total for _, _, total in answers]) < SPLIT_AT:
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

    async def _ask_holders(self, topic: bytes) -> list[tuple[Contact, bytes, int]]:
        """(holder, digest, total) of the live nodes closest to a topic."""
        node = self._node
        holders = (await node.find_nodes(topic))[: node.config.engine.k]
        return [a for a in await asyncio.gather(*(self._ask_one(h, topic) for h in holders)) if a is not None]

    async def _ask_one(self, holder: Contact, topic: bytes) -> tuple[Contact, bytes, int] | None:
        ear = _Ear()
        # A digest that nobody has asks for the state; want 0 and a cursor at the end keep the answer short.
        body = messages.find_value_body(topic, 0, sync.LAST, messages.FIRST)
        if self._node.ask(holder, Op.FIND_VALUE, body, ear) is None:
            return None
        reply = await ear.future
        try:
            value = messages.value_of(reply.data) if reply is not None else None
        except BadPacket:
            return None
        return (holder, value.digest, value.total) if value is not None else None

    # -- reading -----------------------------------------------------------------------------------------------

    async def refresh(self) -> Refreshed:
        """Bring every shard up to date."""
        done = Refreshed()
        visited = await self._read_tree([(0, 0)], done)
        for at in [at for at in self._shards if at not in visited]:
            # The tree has folded back.
            _let_go(self._shards.pop(at))
        return done

    async def _read_tree(self, level: list[tuple[int, int]], done: Refreshed) -> set[tuple[int, int]]:
        """Read these shards and what is below them; which they were."""
        visited = set(level)
        while level:
            totals = await asyncio.gather(*(self._refresh_shard(at, done) for at in level))
            level = [
                (bits + 1, prefix * 2 + half)
                for (bits, prefix), total in zip(level, totals, strict=True)
                if total >= DESCEND_AT and bits < MAX_SHARD_BITS
                for half in (0, 1)
            ]
            visited.update(level)
        return visited

    async def follow(self) -> Refreshed:
        """Refresh, then keep up to date by pushes until `close`."""
        self._following = True
        return await self.refresh()

    async def _refresh_shard(self, at: tuple[int, int], done: Refreshed) -> int:
        shard = self._shards.setdefault(at, Shard())
        shard.expire(self._node.unix())
        topic = self.key.topic(at)
        done.shards += 1
        holders = await self._ask_holders(topic)
        done.answers += len(holders)
        self._take_own(topic, shard, done)
        typical = median_high([total for _, _, total in holders]) if holders else 0
        left = SOURCES
        if 0 < typical <= FEW:
            if any(total and digest != shard.index.digest for _, digest, total in holders):
                await self._search(topic, shard, done)
            left = 0
        for holder, digest, total in self._by_agreement(holders):
            if left == 0:
                break
            if total == 0 or digest == shard.index.digest:
                left -= total > 0
                continue
            try:
                await self._pull(holder, at, shard, done)
            except (OSError, EOFError, TimeoutError, BadPacket, InvalidRecord) as e:
                # The next holder has the same.
                log.info("reading a market from %s failed: %s", holder, e)
                done.failures += 1
                continue
            left -= 1
        if left == SOURCES and typical:
            await self._search(topic, shard, done)
        if self._following and shard.unwatch is None:
            self._watch(at, shard)
        size = max(len(shard.index), typical)
        shard.descended = size >= DESCEND_AT
        return size

    def _by_agreement(self, holders: list[tuple[Contact, bytes, int]]) -> list[tuple[Contact, bytes, int]]:
        """Those first whose digest most others share; among equals by chance, so that readers spread."""
        votes = Counter(digest for _, digest, _ in holders)
        return sorted(holders, key=lambda h: (-votes[h[1]], self._node.engine.rng.random()))

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
        """Read a shard by datagrams."""
        for record in (await self._node.find_records(topic)).records:
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
            for raw in raws:
                try:
                    self._note(self._node.engine.check(raw, topic, self._node.now()), shard, done)
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

    def _watch(self, at: tuple[int, int], shard: Shard) -> None:
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

        shard.unwatch = self._node.watch(self.key.topic(at), pushed, told)

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
            known = {tag for shard in self._shards.values() for tag in shard.ranks}
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


class _Ear:
    """Turns one answer into a future."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """The answer."""
        del call, now
        if not self.future.done():
            self.future.set_result(reply)

    def late(self, call: Call, now: float) -> None:
        """Not yet."""

    def failed(self, call: Call, now: float) -> None:
        """None will come."""
        del call, now
        if not self.future.done():
            self.future.set_result(None)
