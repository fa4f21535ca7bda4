"""Keeps our records in the DHT: offers and their tombstones, the persona's contact, the arbiter's announcement.

Theory of operation. What must be there is read off the store each time, never remembered: an offer whose `published` is
behind its `sequence` is due at once (so nothing is lost by a crash), everything else when its time has come again,
with jitter, so that a network that was started together does not publish together. The holders of a record hand it on
among themselves; our own repetition heals what they lose, and is all that a record needs that every holder has left.

An offer is put into the shard of its market that is not full (`dht.market`), which is found anew at each time.

Tombstones go out before anything else: until they are there, somebody may try to take what is gone.
A put counts only when another node took the record. While none does, attempts are made with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Final

from msgspec import Struct

from dht.errors import NoPeers, RecordRejected
from dht.node import DhtNode
from dht.records import RecordMeta, tag_of
from dht.topics import arbiters_topic, contact_topic, offers_topic
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.clock import Clock
from p2pnode.counters import next_number
from p2pnode.database import Database
from p2pnode.ownoffers import OfferState, OwnOffer, OwnOffers
from protocol.contact import CONTACT_WORK_BITS, Address, ContactRecord, NodeContact
from protocol.identity import SigningKey
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work

REPUBLISH_SECONDS: Final = 1_200.0
"""How often a record is put again: a third of the time after which its holders hand it on (`dht.engine`)."""
CONTACT_SECONDS: Final = 2 * 86_400
"""Lifetime of a contact record; it is made anew at half of it."""
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
AT_ONCE: Final = 8
"""Puts that run at a time."""
MAX_ADDRESSES: Final = 8
MAX_RELAYS: Final = 4
MAX_HINTS: Final = 2
"""Addresses in an offer's contact hint, which shares the datagram with the offer."""

Extra = Callable[[int], Iterable[tuple[bytes, Envelope, RecordMeta]]]
"""More records to keep, asked with the time: topic, envelope, and what names its slot (publisher and sub-key)."""

Place = Callable[[str, Side, bytes], Awaitable[bytes]]
"""The topic that an offer belongs under now, by its currency, side and id (`services.market`)."""

log = logging.getLogger(__name__)


class OwnContact:
    """Our persona's contact record, always fresh."""

    def __init__(
        self,
        database: Database,
        key: SigningKey,
        network: Network,
        clock: Clock,
        node: bytes,
        addresses: Callable[[], Sequence[Address]],
        relays: Callable[[], Sequence[NodeContact]] = tuple,
    ) -> None:
        """`key` is the persona's, `node` the node key's public half; `addresses` where others can dial it now.

        `relays` are those that bring others to it.
        """
        self._database = database
        self._key = key
        self._network = network
        self._clock = clock
        self._node = node
        self._addresses = addresses
        self._relays = relays
        self._made: tuple[Envelope, ContactRecord] | None = None

    @property
    def persona(self) -> bytes:
        """Whose contact it is."""
        return self._key.public

    def envelope(self) -> Envelope:
        """The signed record: the last one, or another when the addresses changed or half of its life is over."""
        now = self._clock.now()
        contact = NodeContact(self._node, tuple(self._addresses())[:MAX_ADDRESSES])
        relays = tuple(self._relays())[:MAX_RELAYS]
        if self._made is not None:
            envelope, record = self._made
            known = record.contact == contact and record.relays == relays
            if known and record.created <= now < record.created + CONTACT_SECONDS // 2:
                return envelope
        record = ContactRecord(
            persona=self._key.public,
            sequence=next_number(self._database, f"contact:{self._key.public.hex()}", now),
            contact=contact,
            relays=relays,
            created=now,
            expires=now + CONTACT_SECONDS,
        )
        # Some 256 attempts, half a millisecond: not worth a thread.
        body = find_work(Kind.CONTACT, self._network, pack(record), CONTACT_WORK_BITS)
        envelope = self._key.seal(Kind.CONTACT, self._network, body)
        self._made = envelope, record
        return envelope

    @property
    def leads_somewhere(self) -> bool:
        """Whether anybody could reach us by the record."""
        return bool(self._addresses() or self._relays())

    def hint(self) -> tuple[NodeContact, ...]:
        """The contact that an offer carries, with a relay where nobody dials us; empty when neither leads here.

        It need not stay true as long as the offer lives: whom it does not lead to us asks the DHT for our record.
        """
        addresses = tuple(self._addresses())[:MAX_HINTS]
        if addresses:
            return (NodeContact(self._node, addresses),)
        relay = next(iter(self._relays()), None)
        if relay is None:
            return ()
        return NodeContact(self._node, ()), NodeContact(relay.node, relay.addresses[:MAX_HINTS])


class _Urgency(IntEnum):
    """The order in which records go out."""

    WITHDRAWN = 0
    FIRST_TIME = 1
    AGAIN = 2


class _Item(Struct, frozen=True):
    """A record that belongs in the DHT."""

    key: bytes
    """What it is the newest version of."""
    urgency: _Urgency
    topic: bytes
    """Empty for an offer, whose place is found when it is put."""
    envelope: Envelope
    meta: RecordMeta
    own: OwnOffer | None = None
    """The offer that it is about, if it is about one."""


class Publisher:
    """The background task."""

    def __init__(  # noqa: PLR0913  (it keeps whatever a node publishes)
        self,
        dht: DhtNode,
        clock: Clock,
        rng: random.Random,
        *,
        own: OwnOffers | None = None,
        contact: OwnContact | None = None,
        directory: ArbiterDirectory | None = None,
        personas: Sequence[bytes] = (),
        place: Place | None = None,
        extra: Extra = lambda _now: (),
        interval: float = REPUBLISH_SECONDS,
    ) -> None:
        """`personas` are those whose announcements in `directory` are ours; `rng` makes jitter, no secrets.

        Without `place` every market is one shard. `extra` gives whatever else is to be kept.
        """
        self._dht = dht
        self._network = dht.network
        self._clock = clock
        self._rng = rng
        self._own = own
        self._contact = contact
        self._directory = directory
        self._personas = tuple(personas)
        self._place = place or self._undivided
        self._extra = extra
        self._interval = interval
        self._done: dict[bytes, tuple[bytes, float]] = {}
        """By item key: the raw record that was put last, and when it is due again in the event loop's time."""
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the DHT node must be running."""
        if self._own is not None:
            self._own.subscribe(self.kick)
        self._task = asyncio.create_task(self._run(), name="publisher")

    def kick(self) -> None:
        """Something changed (an offer, an address, the DHT's peers): look at once."""
        self._wake.set()

    async def close(self) -> None:
        """Stop. What is not published yet is found in the store at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def placed(self, record: Envelope, seconds: float) -> None:
        """Return once the DHT has taken this record of ours, after `seconds`, or at once when the DHT has no peers."""
        self.kick()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._dht.peers() and all(raw != record.raw for raw, _ in self._done.values()):
                    await self._progress.wait()

    # --- the loop -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            complete = False
            try:
                complete = await self._pass()
            except Exception:
                # One record's trouble must not end the keeping of all others.
                log.exception("publishing failed")
            if complete:
                pause = FIRST_PAUSE
                await self._sleep(self._until_due())
            else:
                await self._sleep(pause * self._rng.uniform(0.75, 1.25))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _sleep(self, seconds: float) -> None:
        # Not wait_for: before Python 3.12 it forgets a cancellation that comes together with the wake-up.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _pass(self) -> bool:
        """Put everything that is due. False when something could not be put."""
        now = self._clock.now()
        if self._own is not None:
            self._own.expire(now)
            for own in self._own.living(now):
                if own.unsigned:
                    await self._own.renew(own.offer_id)
        items = list(self._items(now))
        self._done = {item.key: self._done[item.key] for item in items if item.key in self._done}
        due = [item for item in items if self._is_due(item)]
        if due and not self._dht.peers():
            log.info("%d records wait: this node knows no other node of the DHT yet", len(due))
            return False
        complete = True
        limit = asyncio.Semaphore(AT_ONCE)
        for urgency in _Urgency:
            puts = [self._put(item, limit) for item in due if item.urgency is urgency]
            complete &= all(await asyncio.gather(*puts))
        return complete

    def _is_due(self, item: _Item) -> bool:
        raw, again = self._done.get(item.key, (b"", 0.0))
        return item.urgency is not _Urgency.AGAIN or raw != item.envelope.raw or self._time() >= again

    def _until_due(self) -> float:
        """Seconds until a record is to be put again, made anew, or has expired."""
        waits = [again - self._time() for _, again in self._done.values()]
        now = self._clock.now()
        if self._own is not None and (expiry := self._own.next_expiry()) is not None:
            waits.append(float(expiry - now))
        return max(FIRST_PAUSE, min(waits, default=self._interval))

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    # --- what there is ------------------------------------------------------------------------------------------

    def _items(self, now: int) -> Iterable[_Item]:
        if self._own is not None:
            for own in self._own.living(now):
                if not own.unsigned:
                    yield self._offer_item(self._own, own)
        if self._contact is not None and self._contact.leads_somewhere:
            persona = self._contact.persona
            envelope = self._contact.envelope()
            yield self._item(b"contact", contact_topic(self._network, persona), envelope, persona)
        if self._directory is not None:
            for persona in self._personas:
                listed = self._directory.newest_of(persona)
                if listed is not None:
                    yield self._item(b"arbiter" + persona, arbiters_topic(self._network), listed.envelope, persona)
        for topic, envelope, meta in self._extra(now):
            key = b"extra" + topic + envelope.kind.to_bytes(2, "big") + meta.publisher + meta.sub_key
            yield _Item(key, _Urgency.AGAIN, topic, envelope, meta)

    def _offer_item(self, offers: OwnOffers, own: OwnOffer) -> _Item:
        offer = own.offer
        if own.published >= own.sequence:
            urgency = _Urgency.AGAIN
        else:
            urgency = _Urgency.FIRST_TIME if own.state is OfferState.OPEN else _Urgency.WITHDRAWN
        return _Item(
            offer.offer_id,
            urgency,
            b"",
            offers.record(own),
            RecordMeta(offer.maker, offer.offer_id, own.sequence, offer.expires, ()),
            own,
        )

    def _item(self, key: bytes, topic: bytes, envelope: Envelope, publisher: bytes) -> _Item:
        return _Item(key, _Urgency.AGAIN, topic, envelope, RecordMeta(publisher, b"", 0, 0, ()))

    # --- putting ------------------------------------------------------------------------------------------------

    async def _put(self, item: _Item, limit: asyncio.Semaphore) -> bool:
        async with limit:
            try:
                topic = item.topic or await self._place_of(item)
                # An offer's place may be another next time: only this task puts it again.
                result = await self._dht.put(topic, item.envelope, keep=item.own is None)
            except NoPeers:
                return False
            except RecordRejected as e:
                # A clock that was just set may mend it, so it is tried again, as seldom as everything that fails.
                log.warning("a record of this node can't be published: %s", e.detail)
                return False
        held = self._dht.storage.get(topic, tag_of(item.meta)) == item.envelope.raw
        others = result.acks - held
        if result.newer is not None:
            log.warning("the DHT holds a newer record than ours: does another node use the same keys?")
        if others <= 0:
            return False
        self._schedule(item)
        if item.own is not None and self._own is not None and item.own.published < item.own.sequence:
            self._own.mark_published(item.own.offer_id, item.own.sequence, result.acks)
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
        return True

    async def _place_of(self, item: _Item) -> bytes:
        if item.own is None:
            raise AssertionError("what is no offer has its topic")
        offer = item.own.offer
        return await self._place(offer.currency, offer.side, offer.offer_id)

    async def _undivided(self, currency: str, side: Side, _: bytes) -> bytes:
        return offers_topic(self._network, currency, side)

    def _schedule(self, item: _Item) -> None:
        again = self._time() + self._interval * self._rng.uniform(0.75, 1.0)
        self._done[item.key] = item.envelope.raw, again
