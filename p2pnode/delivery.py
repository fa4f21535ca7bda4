"""The outbox's postman: each peer's messages in order, again and again, until the peer's ack.

An ack is the empty answer of the peer's deliver service and is given only after the peer's own commit. A peer that
refuses a message for good (its node answered with an error code) ends the attempts; the machine is told. There is one
worker per recipient, so a silent peer delays nobody else. Listeners are told of a peer that nothing has reached for a
while, so that a copy can wait in its mailbox (`p2pnode.mailbox`); the attempts go on all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from msgspec import Struct

from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.database import DiskFull
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol.contact import Address, ContactRecord, NodeContact
from protocol.errors import P2PError

DELIVER_SERVICE: Final = 1
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 60.0
ATTEMPT_SECONDS: Final = 20.0
HINT_SECONDS: Final = 5.0
"""How long the way that an offer hints at is tried before the DHT's word is waited for."""
STUCK_SECONDS: Final = 30.0
"""After so long without reaching a peer, it counts as away."""

WRONG_TIME: Final = 2142
"""The code of `intake.WrongTime`."""
UNKNOWN_TRADE: Final = 2144
"""The code of `intake.UnknownTrade`: the peer may have lost its disk, and gets the trade back (`p2pnode.reconcile`)."""
WRONG_TIME_SECONDS: Final = 3_600
"""How long a message that does not fit the peer's present state of the trade is offered again."""

log = logging.getLogger(__name__)


class Undelivered(P2PError):
    """The peer could not be reached; the message stays in the outbox."""

    code = 1302


class Refused(P2PError):
    """The peer's node answered that it will not take the message."""

    code = 1303

    def __init__(self, peer_code: int, text: str) -> None:
        super().__init__(text)
        self.peer_code = peer_code


class Post(Protocol):
    """A way to hand bytes to a node. `channels` is wrapped to fit; tests use it as well."""

    async def deliver(self, contact: ContactRecord, payload: bytes, seconds: float) -> None:
        """Return on the ack. Raises Undelivered (try again) or Refused (do not)."""
        ...


Hints = Callable[[OutgoingMessage], Sequence[NodeContact]]
"""The recipient's node and relays that may bring us there, as an offer has them; none when it says nothing."""


class Refusal(Struct, frozen=True):
    """What a peer's node said when it refused one of our messages."""

    message: OutgoingMessage
    code: int
    text: str


class Delivery:
    """Drains the outbox."""

    def __init__(
        self,
        trades: TradeStore,
        contacts: Contacts,
        post: Post,
        clock: Clock,
        *,
        on_refusal: Callable[[Refusal], None],
        on_delivered: Callable[[OutgoingMessage], None] = lambda _message: None,
        hints: Hints = lambda _message: (),
        stuck_after: float = STUCK_SECONDS,
    ) -> None:
        """`on_refusal` is called before the refused message leaves the outbox, in the same commit.

        `hints`: where to try a recipient of whom no contact record is known yet.
        """
        self._trades = trades
        self._contacts = contacts
        self._post = post
        self._clock = clock
        self._on_refusal = on_refusal
        self._on_delivered = on_delivered
        self._hints = hints
        self._stuck_after = stuck_after
        self._lookups: set[asyncio.Task[object]] = set()
        self._failing_since: dict[bytes, float] = {}
        """By recipient: when the first of the attempts was made that have failed ever since."""
        self._stuck_listeners: list[Callable[[], None]] = []
        self._workers: dict[bytes, asyncio.Task[None]] = {}
        self._nudges: dict[bytes, asyncio.Event] = {}
        self._closing = False
        self.on_unknown: Callable[[bytes], None] = lambda _chain: None
        """Told of a chain that a peer does not know, though it is part of it."""

    def start(self) -> None:
        """Take up what an earlier run left."""
        for recipient in self._trades.recipients():
            self.kick(recipient)

    def kick(self, recipient: bytes) -> None:
        """There may be something for this persona, or it may be reachable now: try at once."""
        if self._closing:
            return
        self._nudges.setdefault(recipient, asyncio.Event()).set()
        worker = self._workers.get(recipient)
        if worker is None or worker.done():
            self._workers[recipient] = asyncio.create_task(self._drain(recipient), name="delivery")

    def kick_all(self, recipients: Iterable[bytes]) -> None:
        """The same for several."""
        for recipient in recipients:
            self.kick(recipient)

    def appeared(self, node: bytes) -> None:
        """A node made a session with us: if something waits for its persona, try at once."""
        for recipient in self._trades.recipients():
            record = self._contacts.known(recipient)
            if record is not None and record.contact.node == node:
                self.kick(recipient)

    def subscribe_stuck(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an attempt has failed at a peer that counts as away."""
        self._stuck_listeners.append(listener)

    def is_stuck(self, recipient: bytes) -> bool:
        """Whether nothing has reached this persona for so long that it counts as away."""
        since = self._failing_since.get(recipient)
        return since is not None and asyncio.get_running_loop().time() - since >= self._stuck_after

    def acknowledge(self, message: OutgoingMessage) -> None:
        """The peer has committed the message, as we learnt by whatever way."""
        self._trades.dequeue_message(message.id)
        self._on_delivered(message)

    def refuse(self, message: OutgoingMessage, code: int, text: str) -> None:
        """The peer will not take the message, as we learnt by whatever way. Of two such answers the first counts."""
        with self._trades.database.transaction():
            if all(m.id != message.id for m in self._trades.outbox(message.recipient)):
                return
            self._on_refusal(Refusal(message, code, text))
            self._trades.dequeue_message(message.id)

    async def close(self) -> None:
        """Stop; what was not acknowledged stays in the outbox."""
        self._closing = True
        tasks = [*self._workers.values(), *self._lookups]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, recipient: bytes) -> None:
        pause = FIRST_PAUSE
        while waiting := self._trades.outbox(recipient):
            self._nudges[recipient].clear()
            try:
                for message in waiting:
                    await self._deliver(message, fresh=pause > FIRST_PAUSE)
                    pause = FIRST_PAUSE
                    self._failing_since.pop(recipient, None)
            except DiskFull as e:
                # Acknowledged perhaps, and not recorded: it is said again, and acknowledged again.
                log.error("%s", e.detail)  # noqa: TRY400  (a full disk needs no traceback)
                await self._pause(recipient, pause)
            except Undelivered as e:
                log.info("not delivered yet: %s", e.detail)
                self._failed(recipient)
                await self._pause(recipient, pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _deliver(self, message: OutgoingMessage, *, fresh: bool) -> None:
        """One message. `fresh`: the known contact failed before, so ask the DHT for a newer one first."""
        contact, seconds = self._contacts.known(message.recipient), ATTEMPT_SECONDS
        if contact is None and not fresh and (contact := self._hinted(message)) is not None:
            seconds = HINT_SECONDS
        if fresh or contact is None:
            contact = await self._contacts.refresh(message.recipient, self._clock.now())
        if contact is None:
            raise Undelivered("no contact record of the peer was found yet")
        try:
            await self._post.deliver(contact, message.raw, seconds)
        except Refused as e:
            if e.peer_code == UNKNOWN_TRADE:
                self.on_unknown(message.trade_id)
            patient = e.peer_code in (WRONG_TIME, UNKNOWN_TRADE)
            if patient and self._clock.now() - message.created < WRONG_TIME_SECONDS:
                # The peer's view of the chain may be behind ours: what it refuses now, it may want later.
                raise Undelivered(e.detail) from e
            self.refuse(message, e.peer_code, e.detail)
        else:
            self.acknowledge(message)

    def _hinted(self, message: OutgoingMessage) -> ContactRecord | None:
        """Where the offer says that its maker is; meanwhile the DHT is asked, for the messages to come."""
        hints = self._hints(message)
        if not hints:
            return None
        lookup: asyncio.Task[object] = asyncio.create_task(self._learn(message.recipient), name="contact of a maker")
        self._lookups.add(lookup)
        lookup.add_done_callback(self._lookups.discard)
        return ContactRecord(message.recipient, 0, hints[0], tuple(hints[1:]), 0, 0)

    async def _learn(self, recipient: bytes) -> None:
        try:
            await self._contacts.refresh(recipient, self._clock.now())
        except P2PError as e:
            log.debug("no contact record yet: %s", e.detail)

    def _failed(self, recipient: bytes) -> None:
        self._failing_since.setdefault(recipient, asyncio.get_running_loop().time())
        if self.is_stuck(recipient):
            for listener in self._stuck_listeners:
                listener()

    async def _pause(self, recipient: bytes, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nudges[recipient].wait()


def local_contact(node: bytes, host: str, port: int) -> NodeContact:
    """The contact of a node with one address."""
    return NodeContact(node, (Address(host, port),))
