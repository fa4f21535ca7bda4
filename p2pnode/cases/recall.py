"""Cases that a lost disk knew, back from their parties (SPEC section 7.6; the traders' side is `p2pnode.recall`).

What a party said passes the checks that it had passed then. What we said proves itself by our signature, and tells
how far we had come: that we had accepted, declined, taken more time, or ruled. Above all the last: an arbiter that has
ruled and forgotten it must not rule again, for its second ruling would be the proof that it contradicts itself. So a
case that was restored or got back is held until each party that had written was heard, or could not be reached for some
blocks (`p2pnode.reconcile`): until then nothing is decided or said in it.
"""

from __future__ import annotations

from msgspec.structs import replace

from escrow.payout import derive_payout
from p2pnode.cases.engine import CaseEngine
from p2pnode.cases.intake import CaseIntake
from p2pnode.clock import Clock
from p2pnode.conversations import Conversation
from p2pnode.intake import OutOfOrder, UnknownTrade
from p2pnode.keyring import Keyring
from p2pnode.tradestore import TradeStore
from protocol import case_events as ce
from protocol.case_messages import CaseAccepted, CaseDeclined, CaseExtended, CaseMessage, CaseOpening, CaseRuling
from protocol.errors import BadSignature, Malformed
from protocol.outcome import RulingOutcome
from protocol.ruling import Ruling
from protocol.wire import Kind, open_envelope, unpack


class CaseRecall:
    """Takes what parties return: `recall.CaseReturns`."""

    def __init__(
        self, engine: CaseEngine, intake: CaseIntake, trades: TradeStore, keyring: Keyring, clock: Clock
    ) -> None:
        self._engine = engine
        self._intake = intake
        self._trades = trades
        self._keyring = keyring
        self._clock = clock

    def returned(self, message: CaseMessage, conversation: Conversation | None, bringer: bytes) -> None:
        """One message of a conversation with `bringer`. Raises PeerViolation, PeerRefusal."""
        envelope = message.envelope
        if envelope.signer == bringer:
            self._intake.deliver(message, conversation)
            if conversation is None and isinstance(message.payload, CaseOpening):
                self._trades.hold(message.header.trade_id)
            return
        if conversation is None or self._engine.cases.get(conversation.trade_id) is None:
            raise UnknownTrade("this node knows no such case")
        if bringer != conversation.party or envelope.signer != conversation.arbiter:
            raise BadSignature("a conversation is returned by its party")
        if not self._keyring.owns(envelope.signer):
            raise BadSignature("what is returned is neither ours nor its sender's")
        heads = conversation.heads
        if message.header.number != heads.sent or message.header.prev != heads.sent_head:
            raise OutOfOrder
        with self._trades.database.transaction():
            self._engine.conversations.record_sent(conversation, envelope, self._clock.now())
            self._said(conversation.trade_id, message)

    def _said(self, trade_id: bytes, message: CaseMessage) -> None:
        stored = self._engine.cases.get(trade_id)
        if stored is None:
            raise UnknownTrade("this node knows no such case")
        state, payload = stored.state, message.payload
        open_still = isinstance(state.phase, ce.Queued | ce.Hearing)
        match payload:
            case CaseAccepted(heard_until, _) if isinstance(state.phase, ce.Queued):
                self._engine.cases.set_timer(trade_id, "hearing", heard_until)
                state = replace(state, phase=ce.Hearing())
            case CaseExtended(_, heard_until, _) if isinstance(state.phase, ce.Hearing):
                self._engine.cases.set_timer(trade_id, "hearing", heard_until)
                state = replace(state, extended=True, heard=False)
            case CaseDeclined(text) if open_still:
                state = replace(state, phase=ce.Dismissed(), ending=text)
            case CaseRuling(raw, text) if open_still or isinstance(state.phase, ce.Deciding):
                state = self._ruled(state, raw, text)
            case _:
                return
        self._engine.cases.save(state, self._clock.now())

    def _ruled(self, state: ce.CaseState, raw: bytes, text: str) -> ce.CaseState:
        envelope = open_envelope(raw, state.network, limit=Kind.RULING.limit)
        ruling = unpack(envelope.body, Ruling, limit=Kind.RULING.limit)
        if envelope.kind != Kind.RULING or not self._keyring.owns(envelope.signer):
            raise Malformed("what is returned as our ruling is none")
        if ruling.contract_id != state.contract_id:
            raise Malformed("the ruling is of another contract")
        outcome = RulingOutcome(ruling.branch, ruling.buyer_share, ruling.forfeit, ruling.fee_script, ruling.rate)
        decision = ce.Decision(outcome, ruling.reason, text, ruling.buyer_head, ruling.seller_head)
        plan = derive_payout(state.contract, state.network, outcome)
        self._engine.cases.stop_timer(state.trade_id)
        self._engine.cases.drop_signing(state.trade_id)
        return replace(state, phase=ce.Ruled(), decision=decision, ruling=raw, payout_txid=plan.txid)
