"""Mail: what waits for a persona that no path leads to, and what waits for us (DESIGN section 8, SPEC section 12).

Theory of operation. Two loops over the DHT, each with its own pace and a way to be woken.

*Outgoing.* Every message is in the outbox until its peer has committed it, and `delivery` tries on all the while. Once
a peer counts as away, each of its messages gets a copy: made, recorded together with the secret of its keys, then put,
chunks before the slip. Each round looks for the recipients' answers; an answer ends a message exactly as a direct one
would. A copy whose message has left the outbox, by whatever way, is withdrawn. All of it is read off the store, so a
crash at any point repeats work and loses none.

*Incoming.* Each round reads our personas' mailboxes, opens what is sealed to us and hands it to the same intake that
serves the channels, in the order in which it was posted and again while something moves on. Committed or refused, it is
answered by a record that takes the slip's place. What comes too early (a message before it is missing, the chain is not
that far yet) is left where it is: the mailbox is the queue. A repetition is acknowledged again by the intake.

What a stranger can do is put slips into a mailbox: each costs him work, there are few slots, and they are shared fairly
by address groups (`dht.storage`). A slip that does not open costs us one Diffie-Hellman, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from dht.errors import NoPeers, RecordRejected
from dht.node import DhtNode
from dht.records import Record
from dht.rpc import Rng
from dht.topics import mailbox_topic, parcel_topic, receipt_topic
from p2pnode.clock import Clock
from p2pnode.delivery import Delivery
from p2pnode.intake import OutOfOrder, WrongTime
from p2pnode.mailstore import MailStore, Posted
from p2pnode.post import meaning
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol.errors import Fault, Malformed, P2PError, PeerViolation
from protocol.identity import BadId, SigningKey
from protocol.mailbox import (
    ACCEPTED,
    CHUNKS_PER_TOPIC,
    MAX_MAIL,
    MAX_MAIL_LIFETIME,
    Parcel,
    Slip,
    join,
    make_answer,
    make_parcel,
    open_answer,
    open_slip,
    read_answer,
    read_chunk,
    read_slip,
    withdraw_parcel,
)
from protocol.wire import Envelope, Kind, open_envelope

RENEW_SECONDS: Final = 86_400
"""A copy that nobody answered is made anew when less than this is left of its life."""
PATIENCE_SECONDS: Final = 3_600
"""So long a message that does not fit the state of its trade is tried again before it is refused."""
LEAST_HOLDERS: Final = 3
"""A record counts as placed when so many others hold it, or all others where there are fewer."""
ALL: Final = 8
"""All holders of a topic: what a node is asked for when anything may be missing."""
PATHS: Final = 3
MOST_AT_ONCE: Final = 32
"""Parcels that one round opens."""
PUTS_AT_ONCE: Final = 8
REMEMBERED: Final = 4_096
"""Slips that did not open: not tried again."""

log = logging.getLogger(__name__)

Deliver = Callable[[bytes, bytes], Awaitable[bytes]]
"""(who brought it, raw envelope) -> nothing, after the commit; raises what the intake raises."""


class Pace(Struct, frozen=True):
    """Seconds between rounds, before jitter of a quarter."""

    reading: float = 240.0
    answers: float = 180.0
    gap: float = 15.0
    """Least time between two rounds, however often they are asked for."""
    retry: float = 2.0
    """First pause after a round that could not do everything; doubles up to the ordinary one."""


class _Rounds:
    """Calls `work` again and again until cancelled; `work` says whether it did everything that there was."""

    def __init__(self, name: str, work: Callable[[], Awaitable[bool]], every: float, pace: Pace, rng: Rng) -> None:
        self._name = name
        self._work = work
        self._every = every
        self._pace = pace
        self._rng = rng
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        retry = self._pace.retry
        while True:
            self._wake.clear()
            complete = False
            try:
                complete = await self._work()
            except Exception:
                # One message's trouble must not end the mail of all others.
                log.exception("a round of the %s failed", self._name)
            pause = self._every if complete else retry
            retry = self._pace.retry if complete else min(retry * 2, self._every)
            await asyncio.sleep(min(self._pace.gap, pause))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * (0.75 + 0.5 * self._rng.random())):
                    await self._wake.wait()


class Mailbox:
    """Both directions of one node's mail."""

    def __init__(
        self,
        trades: TradeStore,
        delivery: Delivery,
        deliver: Deliver,
        dht: DhtNode,
        personas: Sequence[SigningKey],
        clock: Clock,
        rng: Rng,
        pace: Pace | None = None,
    ) -> None:
        """`deliver` is the intake; `personas` are the keys whose mailboxes are ours; `rng` makes jitter, no secrets."""
        pace = pace or Pace()
        self.outgoing = Outgoing(trades, delivery, dht, clock)
        self.incoming = Incoming(deliver, dht, personas, clock)
        self._sending = _Rounds("outgoing mail", self.outgoing.round, pace.answers, pace, rng)
        self._reading = _Rounds("incoming mail", self.incoming.round, pace.reading, pace, rng)
        delivery.subscribe_stuck(self._sending.wake)

    def start(self) -> None:
        """Begin; the DHT node must be running."""
        self._sending.start()
        self._reading.start()

    def kick(self) -> None:
        """The network can be reached, or a peer showed up: look at once."""
        self._sending.wake()
        self._reading.wake()

    async def close(self) -> None:
        """Stop. What is not done is found in the store, and in the mailbox."""
        await self._sending.close()
        await self._reading.close()


class Outgoing:
    """Copies of what waits in the outbox, and the answers to them."""

    def __init__(self, trades: TradeStore, delivery: Delivery, dht: DhtNode, clock: Clock) -> None:
        self._store = MailStore(trades.database, dht.network)
        self._trades = trades
        self._delivery = delivery
        self._dht = dht
        self._network = dht.network
        self._clock = clock
        self._placed: dict[bytes, int] = {}
        """By message: the creation of the copy that this run has placed. The DHT node keeps it there."""
        self._too_large: set[bytes] = set()

    async def round(self) -> bool:
        """Do what there is to do. False when something could not be done."""
        now = self._clock.now()
        waiting = {m.id: m for recipient in self._trades.recipients() for m in self._trades.outbox(recipient)}
        complete = True
        for message in waiting.values():
            if self._delivery.is_stuck(message.recipient) and not self._store.has(message.id):
                try:
                    await self._copy(message, now)
                except BadId:
                    log.warning("a message waits for its peer, whose key can't be sealed to")
        for posted in self._store.all():
            try:
                complete &= await self._attend(posted, waiting.get(posted.message), now)
            except NoPeers:
                return False
            except P2PError as e:
                log.warning("an answer from a mailbox could not be handled: %s", e.detail)
                complete = False
        return complete

    async def _attend(self, posted: Posted, message: OutgoingMessage | None, now: int) -> bool:
        if message is None or posted.expires <= now:
            return await self._withdraw(posted, now)
        if posted.expires - now < RENEW_SECONDS:
            await self._copy(message, now, posted.secret)
            return False
        if self._placed.get(posted.message) != posted.created:
            if not await self._place(posted.recipient, posted.parcel, keep=True):
                return False
            self._placed[posted.message] = posted.created
            log.info("a message waits in its recipient's mailbox", extra={"trade": message.trade_id.hex()[:16]})
        if await self._answered(posted, message):
            return await self._withdraw(posted, now)
        return True

    async def _copy(self, message: OutgoingMessage, now: int, secret: bytes | None = None) -> None:
        """Make and record a copy; with the secret of an older one it will take its place."""
        if len(message.raw) > MAX_MAIL:
            if message.id not in self._too_large:
                self._too_large.add(message.id)
                log.warning("a message of %d bytes is too large for mail: it waits for its peer", len(message.raw))
            return
        secret = secret or self._clock.random(32)
        expires = now + MAX_MAIL_LIFETIME
        # In a thread: the work of a large parcel takes a second or two.
        parcel = await asyncio.to_thread(
            make_parcel, secret, message.recipient, message.raw, self._network, created=now, expires=expires
        )
        self._store.add(Posted(message.id, message.recipient, secret, parcel, now, expires))

    async def _place(self, recipient: bytes, parcel: Parcel, *, keep: bool) -> bool:
        """Put the records of a parcel. The slip goes last, so that whoever finds it finds the rest."""
        limit = asyncio.Semaphore(PUTS_AT_ONCE)

        async def put(topic: bytes, record: Envelope) -> bool:
            async with limit:
                return await _put(self._dht, topic, record, keep=keep)

        author = parcel.chunks[0].signer
        topics = [parcel_topic(self._network, author, i // CHUNKS_PER_TOPIC) for i in range(len(parcel.chunks))]
        done = await asyncio.gather(*(put(t, chunk) for t, chunk in zip(topics, parcel.chunks, strict=True)))
        return all(done) and await put(mailbox_topic(self._network, recipient), parcel.slip)

    async def _answered(self, posted: Posted, message: OutgoingMessage) -> bool:
        """Whether the recipient has answered; then the message has left the outbox."""
        topic = receipt_topic(self._network, posted.recipient, posted.parcel.slip.signer)
        found = await self._dht.find_records(topic)
        for record in found.records:
            try:
                answer = read_answer(record.envelope, self._network)
                about, code = open_answer(answer, posted.secret)
            except Malformed:
                continue
            if about != posted.message or answer.recipient != posted.recipient:
                continue
            if code == ACCEPTED:
                self._delivery.acknowledge(message)
            else:
                self._delivery.refuse(message, code, meaning(code))
            return True
        return False

    async def _withdraw(self, posted: Posted, now: int) -> bool:
        """Take a copy back and forget it."""
        if posted.expires > now:
            tombstones = await asyncio.to_thread(
                withdraw_parcel,
                posted.secret,
                posted.recipient,
                len(posted.parcel.chunks),
                self._network,
                created=posted.created,
                expires=posted.expires,
            )
            if not await self._place(posted.recipient, tombstones, keep=False):
                return False
        self._store.remove(posted.message)
        self._placed.pop(posted.message, None)
        return True


class _Letter(Struct, frozen=True):
    """An opened parcel."""

    slip: Slip
    key: SigningKey
    envelope: Envelope


class Incoming:
    """What waits in our mailboxes."""

    def __init__(self, deliver: Deliver, dht: DhtNode, personas: Sequence[SigningKey], clock: Clock) -> None:
        self._deliver = deliver
        self._dht = dht
        self._personas = tuple(personas)
        self._network = dht.network
        self._clock = clock
        self._secret = clock.random(16)
        self._junk: dict[bytes, None] = {}
        self._tries: dict[bytes, int] = {}
        """By slip key: how often it was opened in vain."""
        self._early: dict[bytes, int] = {}
        """By slip key: when its message was first found not to fit."""

    async def round(self) -> bool:
        """Read everything. False when something could not be read or answered."""
        if not self._dht.peers():
            return False
        complete = True
        for key in self._personas:
            complete &= await self._read(key)
        return complete

    async def _read(self, key: SigningKey) -> bool:
        found = await self._dht.find_records(mailbox_topic(self._network, key.public), quorum=ALL, paths=PATHS)
        slips = [read_slip(r.envelope, self._network) for r in found.records if _is_slip(r)]
        self._forget({slip.author for slip in slips})
        slips = [slip for slip in slips if slip.author not in self._junk]
        slips.sort(key=self._turn)
        letters: list[_Letter] = []
        complete = len(slips) <= MOST_AT_ONCE
        for slip in slips[:MOST_AT_ONCE]:
            try:
                letter = await self._open(slip, key)
            except PeerViolation as e:
                log.info("a slip in the mailbox is of no use: %s", e.detail)
                self._discard(slip.author)
                continue
            if letter is None:
                self._tries[slip.author] = self._tries.get(slip.author, 0) + 1
                complete = False
            else:
                letters.append(letter)
        letters.sort(key=lambda letter: letter.slip.created)
        return await self._hand_on(letters) and complete

    def _turn(self, slip: Slip) -> tuple[int, bytes]:
        """Those that were opened in vain come last; among equals a lot decides that nobody can foresee."""
        lot = blake2b(slip.author, key=self._secret, digest_size=8).digest()
        return self._tries.get(slip.author, 0), lot

    def _forget(self, present: set[bytes]) -> None:
        """What is no longer in the mailbox needs no remembering; junk is kept, since a holder may show it again."""
        self._tries = {author: n for author, n in self._tries.items() if author in present}
        self._early = {author: at for author, at in self._early.items() if author in present}

    def _discard(self, author: bytes) -> None:
        self._junk[author] = None
        if len(self._junk) > REMEMBERED:
            del self._junk[next(iter(self._junk))]

    async def _open(self, slip: Slip, key: SigningKey) -> _Letter | None:
        """The envelope that a slip announces; None while chunks are missing. Raises PeerViolation."""
        manifest = open_slip(slip, key)
        parts = range(-(-manifest.count // CHUNKS_PER_TOPIC))
        topics = [parcel_topic(self._network, manifest.author, part) for part in parts]
        for quorum in (None, ALL):
            found = await asyncio.gather(*(self._dht.get(topic, quorum=quorum) for topic in topics))
            raw = join(manifest, (read_chunk(e, self._network) for envelopes in found for e in envelopes))
            if raw is not None:
                return _Letter(slip, key, open_envelope(raw, self._network))
        return None

    async def _hand_on(self, letters: list[_Letter]) -> bool:
        """Give letters to the intake, in order, and again while one that is taken may be what another waits for."""
        complete, moved = True, True
        while letters and moved:
            moved = False
            left: list[_Letter] = []
            for letter in letters:
                code = await self._handle(letter)
                if code is None:
                    left.append(letter)
                else:
                    moved = True
                    complete &= await self._reply(letter, code)
            letters = left
        return complete

    async def _handle(self, letter: _Letter) -> int | None:
        """The code to answer with; None to leave the letter where it is."""
        try:
            await self._deliver(letter.slip.author, letter.envelope.raw)
        except OutOfOrder:
            return None
        except WrongTime as e:
            # At a channel the sender would be refused. Here the sender may be gone for days, while we may have been
            # started a second ago and not have followed the chain yet.
            now = self._clock.now()
            first = self._early.setdefault(letter.slip.author, now)
            return None if now - first < PATIENCE_SECONDS else e.code
        except P2PError as e:
            if e.fault is Fault.PEER:
                return e.code
            log.warning("a message from the mailbox could not be handled: %s", e.detail)
            return None
        except Exception:
            log.exception("a message from the mailbox could not be handled")
            return None
        return ACCEPTED

    async def _reply(self, letter: _Letter, code: int) -> bool:
        slip = letter.slip
        answer = make_answer(slip, letter.key, letter.envelope.id, code, self._network)
        topics = (
            receipt_topic(self._network, slip.recipient, slip.author),
            mailbox_topic(self._network, slip.recipient),
        )
        return all(await asyncio.gather(*(_put(self._dht, topic, answer, keep=False) for topic in topics)))


def _is_slip(record: Record) -> bool:
    return record.envelope.kind == Kind.MAIL_SLIP and not record.meta.tombstone


async def _put(dht: DhtNode, topic: bytes, record: Envelope, *, keep: bool) -> bool:
    """Whether enough other nodes hold the record now, or one that has taken its place."""
    try:
        result = await dht.put(topic, record, keep=keep)
    except RecordRejected as e:
        log.warning("mail can't be stored: %s", e.detail)
        return False
    ourselves = record.raw in dht.storage.all(topic, dht.unix())
    enough = max(1, min(LEAST_HOLDERS, len(dht.peers())))
    return result.newer is not None or result.acks - ourselves >= enough
