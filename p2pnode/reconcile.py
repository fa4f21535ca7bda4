"""After an interruption: both sides compare how far their message chains reach, and send again what one lacks.

The outbox alone covers crashes; this covers a node that was restored from an older copy of its database. A `Sync` says
how many messages its sender has sent and received in a trade, with both heads. Whoever holds messages that the other
lacks puts them into its outbox again; chains that contradict each other are shown to the user, for then one side's
record was changed. Conversations with arbiters are chains like a trade's own; before there is one, nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec import Struct

from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.delivery import Delivery, Post, Refused, Undelivered
from p2pnode.engine import Engine, Keys, own_persona
from p2pnode.notices import Notices
from p2pnode.tradestore import Heads, OutgoingMessage
from protocol.messages import NONE_YET, Sync
from protocol.types import Network
from protocol.wire import Envelope, Kind, open_envelope, pack

ANSWER_EVERY: Final = 30
"""Seconds between two answers in one trade: two nodes that both lack something must not echo each other."""
ATTEMPT_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


class Link(Struct, frozen=True):
    """Two message chains with somebody: of a trade, or of a conversation with an arbiter."""

    chain: bytes
    trade_id: bytes
    own: bytes
    other: bytes
    heads: Heads


class Reconciler:
    """Sends and answers `Sync`."""

    def __init__(
        self,
        engine: Engine,
        delivery: Delivery,
        contacts: Contacts,
        post: Post,
        keys: Keys,
        notices: Notices,
        network: Network,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._delivery = delivery
        self._contacts = contacts
        self._post = post
        self._keys = keys
        self._notices = notices
        self._network = network
        self._clock = clock
        self._answered: dict[bytes, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Ask the other side of everything that is open."""
        conversations = self._engine.conversations
        for stored in self._engine.trades.all(open_only=True):
            self._spawn(stored.state.trade_id)
            for conversation in conversations.of_trade(stored.state.trade_id, arbitrates=False):
                if conversation.heads.sent or conversation.heads.received:
                    self._spawn(conversation.chain)

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def received(self, envelope: Envelope, sync: Sync) -> None:
        """Somebody told how far its chains reach."""
        link = self._link(sync.trade_id)
        if link is None or envelope.signer != link.other:
            return
        heads, trades = link.heads, self._engine.trades
        if not (self._agrees(link, sync.received, sync.received_head, out=True)) or not (
            self._agrees(link, sync.sent, sync.sent_head, out=False)
        ):
            self._notices.add("transcript-diverged", self._clock.now(), trade_id=link.trade_id)
            self._notices.wake()
            if self._may_answer(link.chain):
                # Our own heads show the other side the same.
                self._spawn(link.chain)
            return
        with trades.database.transaction():
            for number in range(sync.received, heads.sent):
                self._queue_again(link, number)
        if sync.received < heads.sent:
            self._delivery.kick(link.other)
        if sync.sent > heads.received and self._may_answer(link.chain):
            self._spawn(link.chain)

    def _link(self, chain: bytes) -> Link | None:
        stored = self._engine.trades.get(chain)
        if stored is not None:
            return Link(chain, chain, own_persona(stored.state), stored.state.peer, stored.heads)
        talk = self._engine.conversations.get(chain)
        return None if talk is None else Link(chain, talk.trade_id, talk.own, talk.other, talk.heads)

    def _agrees(self, link: Link, count: int, head: bytes, *, out: bool) -> bool:
        """Whether the other's head of a chain of `count` messages is ours too, as far as we can tell."""
        if count == 0:
            return head == NONE_YET
        raw = self._engine.trades.message(link.chain, count - 1, out=out)
        if raw is None:
            return not out  # the other sent more than we have: nothing to compare with
        return open_envelope(raw, self._network).id == head

    def _queue_again(self, link: Link, number: int) -> None:
        raw = self._engine.trades.message(link.chain, number, out=True)
        if raw is not None:
            message = OutgoingMessage(open_envelope(raw, self._network).id, number, link.chain, link.other, raw)
            self._engine.trades.queue_message(message, self._clock.now())

    def _may_answer(self, chain: bytes) -> bool:
        now = self._clock.now()
        if now - self._answered.get(chain, 0) < ANSWER_EVERY:
            return False
        self._answered[chain] = now
        return True

    def _spawn(self, chain: bytes) -> None:
        task = asyncio.create_task(self._tell(chain), name="reconcile")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, chain: bytes) -> None:
        link = self._link(chain)
        contact = None if link is None else self._contacts.known(link.other)
        if link is None or contact is None:
            return
        heads = link.heads
        sync = Sync(chain, heads.sent, heads.sent_head, heads.received, heads.received_head)
        envelope = self._keys.persona_key(link.own).seal(Kind.SYNC, self._network, pack(sync))
        try:
            await self._post.deliver(contact, envelope.raw, ATTEMPT_SECONDS)
        except (Undelivered, Refused) as e:
            log.info("a peer was not asked how far it is: %s", e.detail)
