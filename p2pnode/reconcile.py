"""After an interruption: both sides compare how far their message chains reach, and send again what one lacks.

The outbox alone covers crashes; this covers a node that was restored from an older copy of its database. A `Sync` says
how many messages its sender has sent and received in a trade, with both heads. Whoever holds messages that the other
lacks puts them into its outbox again; chains that contradict each other are shown to the user, for then one side's
record was changed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.delivery import Delivery, Post, Refused, Undelivered
from p2pnode.engine import Engine, Keys, own_persona
from p2pnode.notices import Notices
from p2pnode.tradestore import OutgoingMessage, StoredTrade
from protocol.messages import NONE_YET, Sync
from protocol.types import Network
from protocol.wire import Envelope, Kind, open_envelope, pack

ANSWER_EVERY: Final = 30
"""Seconds between two answers in one trade: two nodes that both lack something must not echo each other."""
ATTEMPT_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


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
        """Ask the peers of all open trades."""
        for stored in self._engine.trades.all(open_only=True):
            self._spawn(stored)

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def received(self, envelope: Envelope, sync: Sync) -> None:
        """A peer told how far its chains reach."""
        stored = self._engine.trades.get(sync.trade_id)
        if stored is None or envelope.signer != stored.state.peer:
            return
        heads, trades = stored.heads, self._engine.trades
        if not (self._agrees(stored, sync.received, sync.received_head, out=True)) or not (
            self._agrees(stored, sync.sent, sync.sent_head, out=False)
        ):
            self._notices.add("transcript-diverged", self._clock.now(), trade_id=sync.trade_id)
            self._notices.wake()
            return
        with trades.database.transaction():
            for number in range(sync.received, heads.sent):
                self._queue_again(stored, number)
        if sync.received < heads.sent:
            self._delivery.kick(stored.state.peer)
        if sync.sent > heads.received and self._may_answer(sync.trade_id):
            self._spawn(stored)

    def _agrees(self, stored: StoredTrade, count: int, head: bytes, *, out: bool) -> bool:
        """Whether the peer's head of a chain of `count` messages is ours too, as far as we can tell."""
        if count == 0:
            return head == NONE_YET
        raw = self._engine.trades.message(stored.state.trade_id, count - 1, out=out)
        if raw is None:
            return not out  # the peer sent more than we have: nothing to compare with
        return open_envelope(raw, self._network).id == head

    def _queue_again(self, stored: StoredTrade, number: int) -> None:
        state = stored.state
        raw = self._engine.trades.message(state.trade_id, number, out=True)
        if raw is not None:
            message = OutgoingMessage(open_envelope(raw, self._network).id, number, state.trade_id, state.peer, raw)
            self._engine.trades.queue_message(message, self._clock.now())

    def _may_answer(self, trade_id: bytes) -> bool:
        now = self._clock.now()
        if now - self._answered.get(trade_id, 0) < ANSWER_EVERY:
            return False
        self._answered[trade_id] = now
        return True

    def _spawn(self, stored: StoredTrade) -> None:
        task = asyncio.create_task(self._tell(stored), name="reconcile")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, stored: StoredTrade) -> None:
        state, heads = stored.state, stored.heads
        contact = self._contacts.known(state.peer)
        if contact is None:
            return
        sync = Sync(state.trade_id, heads.sent, heads.sent_head, heads.received, heads.received_head)
        envelope = self._keys.persona_key(own_persona(state)).seal(Kind.SYNC, self._network, pack(sync))
        try:
            await self._post.deliver(contact, envelope.raw, ATTEMPT_SECONDS)
        except (Undelivered, Refused) as e:
            log.info("a peer was not asked how far it is: %s", e.detail)
