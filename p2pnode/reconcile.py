"""After an interruption: both sides compare how far their message chains reach, and give back what one lacks.

The outbox alone covers crashes; this covers a node that was restored from an older copy of its database, or from its
mnemonic alone. A `Sync` asks: it says how many messages its sender has sent and received in a chain, with both heads.
The answer, `Synced`, says the same. Whoever holds messages of its own that the other lacks puts them into its outbox
again. Whoever holds messages *of the other* that the other lacks returns them before it answers (`Returned`; taken by
`recall`), together with its own, in the order in which they were said; to one who does not know the trade at all, from
the first on. Chains that contradict each other are shown to the user: one side's record was changed. Conversations with
arbiters are chains like a trade's own; before there is one, nothing is asked.

A restored node does not know what it has lost. Everything that was open in the copy is *held* (`TradeStore.hold`):
asked about every few seconds, and untouched until the other side has answered and nothing is lacking. Then it goes on.
What the copy does not know at all comes to it: every node asks about each open trade now and then, and when its peer
shows up. A counterparty that can't be reached for `PEER_BLOCKS` is not waited for any longer, an arbiter for
`ARBITER_BLOCKS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from msgspec import Struct

from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.database import DiskFull
from p2pnode.delivery import Delivery, Post, Refused, Undelivered
from p2pnode.engine import Engine, Keys, own_persona
from p2pnode.intake import UnknownTrade
from p2pnode.notices import Notices
from p2pnode.tradestore import Heads, OutgoingMessage
from protocol import trade_state as st
from protocol.errors import IllegalTransition, P2PError
from protocol.messages import MAX_RETURNED, NONE_YET, Returned, Sync
from protocol.trade_agreeing import ANSWER_SECONDS
from protocol.trade_events import Cancel
from protocol.trade_state import TERMINAL, TradeState
from protocol.transcript import read_conversation, read_transcript
from protocol.types import Branch, Network
from protocol.wire import Envelope, Kind, open_envelope, pack

ATTEMPT_SECONDS: Final = 10.0
PEER_BLOCKS: Final = 144
"""Blocks for which a restored trade waits for its counterparty."""
ARBITER_BLOCKS: Final = 6
"""The same for an arbiter that was asked; one that has vanished is what the backup arbiter is for."""
BATCH: Final = 900_000
"""Bytes of messages that are returned at once."""
STALE: Final = "this node was restored from an older copy, and nothing was locked yet"

log = logging.getLogger(__name__)


class Pace(Struct, frozen=True):
    """Seconds between two questions about what is held, and about every other open trade."""

    held: float = 5.0
    open: float = 600.0


class Link(Struct, frozen=True):
    """Two message chains with somebody: of a trade, or of a conversation with an arbiter."""

    chain: bytes
    trade_id: bytes
    own: bytes
    other: bytes
    heads: Heads
    is_trade: bool


class Reconciler:
    """Asks and answers."""

    def __init__(  # noqa: PLR0913  (what it needs of others)
        self,
        engine: Engine,
        delivery: Delivery,
        contacts: Contacts,
        post: Post,
        keys: Keys,
        notices: Notices,
        network: Network,
        clock: Clock,
        *,
        height: Callable[[], int],
        watch: Callable[[TradeState], Awaitable[None]],
        pace: Pace | None = None,
    ) -> None:
        """`height` is that of the best block that we have followed; `watch` looks for a trade's escrow in the chain."""
        self._engine = engine
        self._trades = engine.trades
        self._delivery = delivery
        self._contacts = contacts
        self._post = post
        self._keys = keys
        self._notices = notices
        self._network = network
        self._clock = clock
        self._height = height
        self._watch = watch
        self._pace = pace or Pace()
        self._answered: set[bytes] = set()
        """Chains that were held and whose other side has told that nothing is lacking."""
        self._busy: set[tuple[str, bytes]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def start(self) -> None:
        """Ask the other side of everything that is open, now and from time to time."""
        self._spawn("rounds", b"", self._rounds)

    async def close(self) -> None:
        """Stop asking."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ask(self, chain: bytes) -> None:
        """Compare one chain with the other side's."""
        self._spawn("ask", chain, partial(self._ask, chain))

    def appeared(self, node: bytes) -> None:
        """A node made a session with us: if it is somebody's with whom something is open, ask at once."""
        for link in self._open():
            contact = self._contacts.known(link.other)
            if contact is not None and contact.contact.node == node:
                self._spawn("ask", link.chain, partial(self._ask, link.chain))

    def received(self, envelope: Envelope, sync: Sync) -> None:
        """Somebody asked or answered how far a chain reaches. Raises UnknownTrade."""
        link = self._link(sync.trade_id)
        if link is None:
            raise UnknownTrade
        if envelope.signer != link.other:
            return
        if envelope.kind == Kind.SYNC:
            self._spawn("answer", link.chain, partial(self._answer, link.chain, sync))
        if not self._agrees(link, sync.received, sync.received_head, out=True) or not (
            self._agrees(link, sync.sent, sync.sent_head, out=False)
        ):
            self._notices.add("transcript-diverged", self._clock.now(), trade_id=link.trade_id)
            self._notices.wake()
            return
        with self._trades.database.transaction():
            for number in range(sync.received, link.heads.sent):
                self._queue_again(link, number)
        self._delivery.kick(link.other)
        if sync.received > link.heads.sent:
            return  # it has more of ours than we: it returns that, and answers again
        if envelope.kind == Kind.SYNCED:
            if sync.sent < link.heads.received:
                self._spawn("return", link.chain, partial(self._return, link, sync))
            if link.is_trade or sync.sent <= link.heads.received:
                # What a counterparty has yet to say may wait for the chain; what an arbiter has, explains it.
                self._hears(link)

    # --- chains -----------------------------------------------------------------------------------------------------

    def _link(self, chain: bytes) -> Link | None:
        stored = self._trades.get(chain)
        if stored is not None:
            return Link(chain, chain, own_persona(stored.state), stored.state.peer, stored.heads, is_trade=True)
        talk = self._engine.conversations.get(chain)
        if talk is None:
            return None
        return Link(chain, talk.trade_id, talk.own, talk.other, talk.heads, is_trade=False)

    def _open(self) -> Iterator[Link]:
        """Everything that is open and has begun, and whatever is held."""
        chains = {chain for chain, _ in self._trades.held()}
        conversations = self._engine.conversations
        for stored in self._trades.all(open_only=True):
            chains.add(stored.state.trade_id)
            for talk in conversations.of_trade(stored.state.trade_id, arbitrates=False):
                if talk.heads.sent or talk.heads.received:
                    chains.add(talk.chain)
        for chain in sorted(chains):
            link = self._link(chain)
            if link is not None and self._may_ask(link):
                yield link

    def _may_ask(self, link: Link) -> bool:
        """An arbiter learns nothing of a trade in which nobody has asked it."""
        if link.is_trade:
            return True
        talk = self._engine.conversations.get(link.chain)
        stored = self._trades.get(link.trade_id)
        if talk is None or talk.arbitrates or stored is None:
            return talk is not None
        begun = talk.heads.sent > 0 or talk.heads.received > 0
        return begun or talk.branch in _asked(stored.state)

    def _agrees(self, link: Link, count: int, head: bytes, *, out: bool) -> bool:
        """Whether the other's head of a chain of `count` messages is ours too, as far as we can tell."""
        if count == 0:
            return head == NONE_YET
        raw = self._trades.message(link.chain, count - 1, out=out)
        if raw is None:
            return True  # beyond what we have: nothing to compare with
        return open_envelope(raw, self._network).id == head

    def _queue_again(self, link: Link, number: int) -> None:
        raw = self._trades.message(link.chain, number, out=True)
        if raw is not None:
            message = OutgoingMessage(open_envelope(raw, self._network).id, number, link.chain, link.other, raw)
            self._trades.queue_message(message, self._clock.now())

    # --- asking and answering ---------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        loop = asyncio.get_running_loop()
        everything = loop.time()
        while True:
            try:
                self._round(everything=loop.time() >= everything)
            except DiskFull as e:
                log.error("%s", e.detail)  # noqa: TRY400  (a full disk needs no traceback)
            if loop.time() >= everything:
                everything = loop.time() + self._pace.open
            await asyncio.sleep(min(self._pace.held, self._pace.open))

    def _round(self, *, everything: bool) -> None:
        held = {chain for chain, _ in self._trades.held()}
        for link in self._open():
            if link.chain in held:
                self._trades.held_since(link.chain, self._height())
            if link.chain in held or everything:
                self._spawn("ask", link.chain, partial(self._ask, link.chain))
        self._let_go()

    def _spawn(self, what: str, chain: bytes, work: Callable[[], Awaitable[None]]) -> None:
        """One of a kind for one chain at a time."""
        key = (what, chain)

        async def run() -> None:
            try:
                await work()
            except P2PError as e:
                log.info("%s: %s", what, e.detail)
            finally:
                self._busy.discard(key)

        if self._closing or key in self._busy:
            return
        self._busy.add(key)
        task = asyncio.create_task(run(), name="reconcile")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, chain: bytes) -> None:
        link = self._link(chain)
        if link is None:
            return
        try:
            await self._send(link, Kind.SYNC, _heads(link))
        except Undelivered as e:
            log.info("a peer was not asked how far it is: %s", e.detail)
        except Refused as e:
            if e.peer_code == UnknownTrade.code:
                await self._unknown(link)

    async def _unknown(self, link: Link) -> None:
        """The other has never heard of it, or has lost it."""
        if link.heads.received:
            await self._return(link, Sync(link.chain, 0, NONE_YET, 0, NONE_YET))
            return
        # It has said nothing, so it has nothing of ours to hold against us: we say it again.
        with self._trades.database.transaction():
            for number in range(link.heads.sent):
                self._queue_again(link, number)
        self._delivery.kick(link.other)
        self._hears(link)

    async def _answer(self, chain: bytes, sync: Sync) -> None:
        link = self._link(chain)
        if link is None:
            return
        if sync.sent < link.heads.received:
            await self._return(link, sync)
        link = self._link(chain)
        if link is not None:
            with suppress(Undelivered, Refused):
                await self._send(link, Kind.SYNCED, _heads(link))

    async def _return(self, link: Link, sync: Sync) -> None:
        """Give back what the other lacks, in the order in which it was said; a refusal ends the attempt."""
        try:
            for batch in self._batches(link, sync):
                await self._send(link, Kind.RETURNED, batch)
        except Refused as e:
            log.info("a peer does not take back what it has lost: %s", e.detail)
        except Undelivered as e:
            log.info("what a peer has lost was not returned: %s", e.detail)

    def _batches(self, link: Link, sync: Sync) -> Iterator[Returned]:
        stored = self._trades.get(link.trade_id)
        offer = stored.state.offer if stored is not None and link.is_trade and sync.sent == 0 else None
        raws = [raw for _, raw, _ in self._trades.transcript(link.chain)]
        read = read_transcript if link.is_trade else read_conversation
        lacking: list[bytes] = []
        for message in read(raws, self._network, link.chain, (link.own, link.other)).messages:
            has = sync.received if message.envelope.signer == link.own else sync.sent
            if message.header.number < has:
                continue
            if lacking and (sum(map(len, lacking)) + len(message.envelope.raw) > BATCH or len(lacking) == MAX_RETURNED):
                yield Returned(link.chain, offer, tuple(lacking))
                lacking = []
            lacking.append(message.envelope.raw)
        if lacking:
            yield Returned(link.chain, offer, tuple(lacking))

    async def _send(self, link: Link, kind: Kind, body: Sync | Returned) -> None:
        contact = self._contacts.known(link.other)
        contact = contact or await self._contacts.refresh(link.other, self._clock.now())
        if contact is None:
            raise Undelivered("no contact record of the peer was found yet")
        envelope = self._keys.persona_key(link.own).seal(kind, self._network, pack(body))
        try:
            await self._post.deliver(contact, envelope.raw, ATTEMPT_SECONDS)
        except Undelivered:
            await self._contacts.refresh(link.other, self._clock.now())
            raise

    # --- what is held -----------------------------------------------------------------------------------------------

    def _hears(self, link: Link) -> None:
        """The other side has told what it has, and has no more of ours than we."""
        if self._trades.is_held(link.chain):
            self._answered.add(link.chain)
            self._let_go()

    def _let_go(self) -> None:
        for chain, since in self._trades.held():
            link = self._link(chain)
            if link is None or not link.is_trade:
                if link is None or self._is_desk(chain):
                    self._let_desk_go(chain, since)
                continue
            stored = self._trades.get(chain)
            if stored is None:
                continue
            waited = 0 if since is None else self._height() - since
            if (chain in self._answered or waited >= PEER_BLOCKS) and self._arbiters_answered(stored.state):
                self._resume(stored.state, in_vain=chain not in self._answered)

    def _is_desk(self, chain: bytes) -> bool:
        talk = self._engine.conversations.get(chain)
        return talk is not None and talk.arbitrates

    def _let_desk_go(self, chain: bytes, since: int | None) -> None:
        """As an arbiter: a party that can't be reached holds up nobody's case for long."""
        if chain in self._answered or (since is not None and self._height() - since >= ARBITER_BLOCKS):
            self._trades.let_go(chain)

    def _arbiters_answered(self, state: TradeState) -> bool:
        for talk in self._engine.conversations.of_trade(state.trade_id, arbitrates=False):
            if talk.branch in _asked(state) and self._trades.is_held(talk.chain) and talk.chain not in self._answered:
                since = self._trades.held_since(talk.chain, self._height())
                if self._height() - since < ARBITER_BLOCKS:
                    self._spawn("ask", talk.chain, partial(self._ask, talk.chain))
                    return False
        return True

    def _resume(self, state: TradeState, *, in_vain: bool) -> None:
        """Go on with a trade as it now stands."""
        with self._trades.database.transaction():
            self._trades.let_go(state.trade_id, in_vain=in_vain)
            for talk in self._engine.conversations.of_trade(state.trade_id, arbitrates=False):
                self._trades.let_go(talk.chain)
            topic = "trade-restored-alone" if in_vain else "trade-restored"
            self._notices.add(topic, self._clock.now(), trade_id=state.trade_id, phase=type(state.phase).__name__)
        if isinstance(state.phase, UNSIGNED) and not self._fresh():
            with suppress(IllegalTransition):
                self._engine.apply(state.trade_id, Cancel(STALE))
        self._spawn("watch", state.trade_id, partial(self._look, state.trade_id))

    async def _look(self, trade_id: bytes) -> None:
        stored = self._trades.get(trade_id)
        if stored is not None and stored.state.contract is not None and not isinstance(stored.state.phase, TERMINAL):
            await self._watch(stored.state)
        self._engine.resume(trade_id)

    def _fresh(self) -> bool:
        """Whether the copy is so young that what it shows without signatures is still being waited for."""
        made = self._trades.restored()
        return made is not None and 0 <= self._clock.now() - made < ANSWER_SECONDS


UNSIGNED: Final = (st.Taking, st.Accepting, st.SigningFunding)
"""Phases in which nothing on chain is signed, as far as a copy or a counterparty shows."""


def _heads(link: Link) -> Sync:
    heads = link.heads
    return Sync(link.chain, heads.sent, heads.sent_head, heads.received, heads.received_head)


def _asked(state: TradeState) -> tuple[Branch, ...]:
    """The arbiters that know of the trade, as far as we do."""
    if state.dispute is None:
        return ()
    return (Branch.MAIN,) if state.bench is Branch.MAIN else (Branch.MAIN, Branch.BACKUP)
