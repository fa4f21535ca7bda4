"""Decide and record: one event, one step of the machine, one commit (DESIGN section 3).

`apply` runs the pure machine and writes, in one durable transaction: the received message (so that it is never
handled twice), the event, the new snapshot, messages to send (signed here: Ed25519 is deterministic, so what is
recorded is what leaves), deadlines, notices, and the effects that `executor` carries out afterwards. Whoever listens is
told only after the commit returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

from msgspec.structs import replace

from p2pnode.clock import Clock
from p2pnode.conversations import Conversation, Conversations
from p2pnode.divergence import TOPIC, Divergences
from p2pnode.notices import Notices
from p2pnode.tradestore import SIGNING, Heads, OutgoingMessage, Timer, TradeStore
from protocol.attachment import Attachment
from protocol.case_messages import CaseFile, CaseOpening, CasePayload, Evidence
from protocol.dispute_events import ExposeArbiter, OpenCase, SendToArbiter
from protocol.errors import IllegalTransition
from protocol.identity import SigningKey
from protocol.messages import AttachmentOffer, Claim, Header, Message, Payload, encode
from protocol.ruling import Equivocation
from protocol.trade import step
from protocol.trade_agreeing import witnesses_of
from protocol.trade_events import (
    BroadcastFunding,
    DeclarePaid,
    DeferredEffect,
    DeliveryRefused,
    NotifyUser,
    RecordedEffect,
    SendMessage,
    SetTimer,
    StopTimer,
    TradeEvent,
)
from protocol.trade_state import TERMINAL, TradeState
from protocol.trade_table import agreed
from protocol.transcript import fit
from protocol.types import Branch, Network
from protocol.wire import Envelope

MAX_FILE: Final = 900_000
"""Bytes of messages in a case file; what does not fit is left out (`transcript.fit`)."""

DIVERGED: Final = 2145
"""The code of `intake.Diverged`."""
UNCONFIRMED: Final = (
    "this node was restored, and the counterparty has not told what you had signed before: if you had offered it a "
    "settlement, it could take that and your payment. Don't pay; open a dispute instead"
)

Listener = Callable[[TradeState], None]
Fix = Callable[[TradeState], TradeState]


class HeldTrade(IllegalTransition):
    """This trade was restored from a copy: nothing is done before the counterparty has told how far it had come."""

    code = 1310


class Keys(Protocol):
    """What the engine needs of the unlocked keystore."""

    def persona_key(self, persona: bytes) -> SigningKey:
        """The signing key of one of our personas. Raises NotFound."""
        ...


class Files(Protocol):
    """What the engine tells of files; the calls join the transaction that is open."""

    def show_to(self, content: bytes, persona: bytes) -> None:
        """We have shown a content to a persona."""
        ...

    def want(self, attachment: Attachment, persona: bytes, own: bytes) -> None:
        """A persona has shown a file to our persona `own`."""
        ...


def own_persona(state: TradeState) -> bytes:
    """The persona under which we trade."""
    return state.offer.maker if state.made else state.take.party.persona


def correspondents(state: TradeState) -> tuple[bytes, ...]:
    """The personas for whom a step may have left something in the outbox."""
    if state.dispute is None or state.contract is None:
        return (state.peer,)
    arbiters = (state.contract.arbiter, state.contract.backup)
    return (state.peer, *(a.persona for a in arbiters if a is not None))


def case_file(state: TradeState, trades: TradeStore) -> CaseFile:
    """A trade as we can prove it to others. Raises IllegalTransition before there is a contract."""
    if state.contract is None or state.maker_signature is None:
        raise IllegalTransition("the trade has no contract yet")
    raws = [raw for _, raw, _ in trades.transcript(state.trade_id)]
    fitting = fit(raws, MAX_FILE, state.network, keep_take=state.taker_signature is None)
    return CaseFile(state.offer, state.contract, state.maker_signature, state.taker_signature, fitting)


class Engine:
    """The only writer of trades."""

    def __init__(
        self,
        trades: TradeStore,
        notices: Notices,
        keys: Keys,
        clock: Clock,
        height: Callable[[], int],
        *,
        network: Network,
        contact: Callable[[], Envelope],
    ) -> None:
        """`height` gives the height of the best block that the node has followed, `contact` our contact record."""
        self.trades = trades
        self.conversations = Conversations(trades, keys, network, height)
        self.divergences = Divergences(trades, self.conversations, notices, network, clock)
        self._contact = contact
        self._notices = notices
        self._keys = keys
        self._clock = clock
        self._height = height
        self._listeners: list[Listener] = []
        self.files: Files | None = None
        """Takes note of files that are shown, by us and to us; set it before anything is sent or received."""
        self.on_exposed: Callable[[Equivocation], None] | None = None
        """Takes note of the proof that an arbiter ruled twice; called inside the commit that records the second ruling,
        and again for a second proof of it."""

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with the new state after each commit."""
        self._listeners.append(listener)

    def apply(
        self,
        trade_id: bytes,
        event: TradeEvent,
        *,
        received: Message | None = None,
        heard: tuple[Conversation, Envelope] | None = None,
        done: int | None = None,
        returned: bool = False,
    ) -> TradeState:
        """Step the trade and record it.

        `received` is the peer's message that the event came in, `heard` an arbiter's, `done` the pending effect whose
        result it is. `returned`: the message was received before, by a disk that is lost. Raises IllegalTransition;
        then nothing is recorded.
        """
        now = self._clock.now()
        with self.trades.database.transaction():
            if not returned:
                self._check_not_held(trade_id, event)
            stored = self.trades.get(trade_id)
            state, effects = step(stored.state if stored else None, event)
            heads = stored.heads if stored else Heads()
            if received is not None:
                heads = self._record_received(state, heads, received, now)
            if heard is not None:
                self.conversations.record_received(*heard, now)
            if stored is None or stored.state.contract is None:
                self._expect_arbiters(state, returned=returned)
            deferred: list[DeferredEffect] = []
            for effect in effects:
                if isinstance(effect, SendMessage):
                    heads = self._record_message(state, heads, effect.payload, now)
                elif isinstance(effect, RecordedEffect):
                    self._record(effect, state, now)
                else:
                    deferred.append(effect)
            if stored is None or type(stored.state.phase) is not type(state.phase):
                self._notices.add("phase", now, trade_id=trade_id, phase=type(state.phase).__name__)
            self.trades.add_effects(trade_id, deferred)
            if done is not None:
                self.trades.finish_effect(done)
            self.trades.log(trade_id, type(state.phase).__name__, event, now)
            self.trades.save(state, heads, now)
        self._notices.wake()
        for listener in self._listeners:
            listener(state)
        return state

    def recall(
        self,
        trade_id: bytes,
        events: Sequence[TradeEvent],
        message: Message | None = None,
        *,
        fix: Fix = lambda state: state,
    ) -> TradeState:
        """Record what was done on a disk that is lost: events, and the message of ours that they led to.

        Nothing is signed or sent, and nobody is told: all that was done then. What the chain is to show is asked for
        again. `fix` corrects what the events assumed. Raises IllegalTransition; then nothing is recorded.
        """
        now = self._clock.now()
        with self.trades.database.transaction():
            stored = self.trades.get(trade_id)
            state, heads = (stored.state, stored.heads) if stored else (None, Heads())
            known = state.contract if state is not None else None
            deferred: list[DeferredEffect] = []
            for event in events:
                state, effects = step(state, event)
                self.trades.log(trade_id, type(state.phase).__name__, event, now)
                for effect in effects:
                    if isinstance(effect, StopTimer) or (isinstance(effect, SetTimer) and effect.height is None):
                        self._record(effect, state, now)
                    elif not isinstance(effect, (RecordedEffect, *SIGNING)):
                        deferred.append(effect)
            if state is None:
                raise IllegalTransition("the message belongs to a trade that this node does not know")
            if known is None:
                self._expect_arbiters(state, returned=True)
            state = fix(state)
            if not witnesses_of(state, state.side):
                # Another life signed the funding: only the chain has it, and nothing is left to broadcast.
                deferred = [effect for effect in deferred if not isinstance(effect, BroadcastFunding)]
            if events:
                self.trades.drop_signing(trade_id)
            self.trades.add_effects(trade_id, deferred)
            if message is not None:
                envelope = message.envelope
                self.trades.add_message(trade_id, heads.sent, envelope.id, envelope.raw, now, out=True)
                if self.files is not None and isinstance(message.payload, AttachmentOffer):
                    self.files.show_to(message.payload.attachment.content, state.peer)
                heads = replace(heads, sent=heads.sent + 1, sent_head=envelope.id)
            self.trades.save(state, heads, now)
        return state

    def resume(self, trade_id: bytes) -> None:
        """A trade that was held goes on: whoever listens is told, and the arbiter is asked if it has never been."""
        with self.trades.database.transaction():
            stored = self.trades.get(trade_id)
            if stored is None:
                return
            state = stored.state
            over = isinstance(state.phase, TERMINAL) or state.dispute is None
            claim = None if over or state.dispute is None else state.dispute.own_claim
            talk = self.conversations.find(trade_id, state.bench, state.side, arbitrates=False)
            if claim is not None and talk is not None and talk.heads.sent == 0:
                self._record(OpenCase(state.bench, claim), state, self._clock.now())
        for listener in self._listeners:
            listener(state)

    def _check_not_held(self, trade_id: bytes, event: TradeEvent) -> None:
        """Raises HeldTrade, a user's IllegalTransition."""
        if isinstance(event, DeliveryRefused):
            return
        if self.trades.is_held(trade_id):
            raise HeldTrade
        if isinstance(event, DeclarePaid) and self.trades.is_unconfirmed(trade_id):
            raise HeldTrade(UNCONFIRMED)

    def _expect_arbiters(self, state: TradeState, *, returned: bool) -> None:
        for branch in Branch if state.contract is not None else ():
            self.conversations.expect(agreed(state), branch, state.side, arbitrates=False)
            talk = self.conversations.find(state.trade_id, branch, state.side, arbitrates=False)
            if returned and talk is not None:
                self.trades.hold(talk.chain)

    def refused(self, conversation_or_trade: bytes, code: int, text: str) -> None:
        """A node will not take a message of ours: the peer's, an arbiter's, or a party's of a case of ours."""
        conversation = self.conversations.get(conversation_or_trade)
        if code == DIVERGED:
            trade = conversation_or_trade if conversation is None else conversation.trade_id
            self._notices.add(TOPIC, self._clock.now(), trade_id=trade)
        if conversation is not None and conversation.arbitrates:
            self._notices.add("case-message-refused", self._clock.now(), trade_id=conversation.trade_id)
            self._notices.wake()
            return
        trade_id = conversation_or_trade if conversation is None else conversation.trade_id
        self.apply(trade_id, DeliveryRefused(code, text))

    def _record(self, effect: RecordedEffect, state: TradeState, now: int) -> None:
        """Do an effect that only changes rows."""
        trade_id = state.trade_id
        match effect:
            case SetTimer(name, seconds, blocks, height):
                at_time = None if seconds is None else now + seconds
                at_height = height if blocks is None else self._height() + blocks
                self.trades.set_timer(Timer(trade_id, name, at_time, at_height))
            case StopTimer(name):
                self.trades.stop_timer(trade_id, name)
            case NotifyUser(topic):
                self._notices.add(topic, now, trade_id=trade_id, phase=type(state.phase).__name__)
            case OpenCase(branch, claim):
                self._converse(state, branch, self._opening(state, claim, branch), now)
            case SendToArbiter(branch, payload):
                self._converse(state, branch, payload, now)
            case ExposeArbiter(proof):
                if self.on_exposed is not None:
                    self.on_exposed(proof)
            case SendMessage():
                raise AssertionError("messages to the peer need the heads of their chain")
            case _:
                assert_never(effect)

    def _converse(self, state: TradeState, branch: Branch, payload: CasePayload, now: int) -> None:
        conversation = self.conversations.find(state.trade_id, branch, state.side, arbitrates=False)
        if conversation is None:
            raise IllegalTransition("the contract names no such arbiter")
        self.conversations.send(conversation, payload, now)
        if self.files is not None and isinstance(payload, Evidence):
            for attachment in payload.attachments:
                self.files.show_to(attachment.content, conversation.other)

    def _opening(self, state: TradeState, claim: Claim, branch: Branch) -> CaseOpening:
        """What an arbiter needs, made of what is recorded. Raises IllegalTransition."""
        declined = None if branch is Branch.MAIN else self.conversations.refusal(state.trade_id, Branch.MAIN)
        height = state.funding.height or self._height()
        return CaseOpening(case_file(state, self.trades), claim, height, self._contact().raw, declined)

    def _record_received(self, state: TradeState, heads: Heads, message: Message, now: int) -> Heads:
        trade_id = state.trade_id
        envelope = message.envelope
        self.trades.add_message(trade_id, heads.received, envelope.id, envelope.raw, now, out=False)
        if self.files is not None and isinstance(message.payload, AttachmentOffer):
            self.files.want(message.payload.attachment, envelope.signer, own_persona(state))
        return replace(heads, received=heads.received + 1, received_head=envelope.id)

    def _now_at(self, state: TradeState) -> int:
        """The best block that we know of: what a watch has told may be ahead of the tip that we were told."""
        funding = state.funding
        known = 0 if funding.height is None or not funding.depth else funding.height + funding.depth - 1
        return max(self._height(), known)

    def _record_message(self, state: TradeState, heads: Heads, payload: Payload, now: int) -> Heads:
        header = Header(state.trade_id, heads.sent, heads.sent_head, heads.received_head, self._now_at(state))
        kind, body = encode(header, payload)
        envelope = self._keys.persona_key(own_persona(state)).seal(kind, state.network, body)
        self.trades.add_message(state.trade_id, heads.sent, envelope.id, envelope.raw, now, out=True)
        message = OutgoingMessage(envelope.id, heads.sent, state.trade_id, state.peer, envelope.raw)
        self.trades.queue_message(message, now)
        if self.files is not None and isinstance(payload, AttachmentOffer):
            self.files.show_to(payload.attachment.content, state.peer)
        return replace(heads, sent=heads.sent + 1, sent_head=envelope.id)
