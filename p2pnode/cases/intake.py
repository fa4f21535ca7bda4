"""What parties send to us as an arbiter: case files, evidence, chat. Checked once; then the machine is told.

An arbiter owes answers only for contracts that it consented to by an announcement of its own, with the terms of that
announcement. Whatever a file says of the chain is a hint where to look: `cases.watch` looks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import assert_never

from escrow.coins import OutPoint
from escrow.errors import EscrowViolation
from p2pnode.cases.engine import CaseEngine
from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.contracting import derive
from p2pnode.conversations import Conversation
from p2pnode.engine import Files
from p2pnode.intake import OutOfOrder, WrongTime, check_link
from p2pnode.tradestore import TradeStore
from protocol.announcement import Announcement
from protocol.case_events import CaseEvent, CaseOpened, EvidenceReceived, PartyChatReceived
from protocol.case_messages import (
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseMessage,
    CaseOpening,
    CaseRuling,
    Evidence,
    case_id,
)
from protocol.casefile import CheckedCase, branch_of, check_file, side_of
from protocol.contract import ArbiterTerms, Contract, arbiter_terms
from protocol.errors import BadSignature, IllegalTransition, Malformed, PeerRefusal
from protocol.messages import ChatLine, Take
from protocol.ruling import arbiter_of
from protocol.types import Branch, Network, Side
from protocol.wire import Envelope, Kind, open_envelope, unpack

log = logging.getLogger(__name__)

Announced = Callable[[bytes], tuple[Envelope, Announcement] | None]
"""Our own announcement with that id, however old."""


class NotAnnounced(PeerRefusal):
    """This arbiter has made no announcement with the terms that the contract names."""

    code = 2174


class DeskFull(PeerRefusal):
    """This arbiter has as many open cases as it takes."""

    code = 2175


class CaseIntake:
    """`intake.Cases`: a party's messages."""

    def __init__(
        self,
        engine: CaseEngine,
        trades: TradeStore,
        contacts: Contacts,
        persona: bytes,
        announced: Announced,
        network: Network,
        clock: Clock,
        *,
        max_open: int = 200,
    ) -> None:
        """`persona` is the one that we announce; `trades` holds the messages of all conversations."""
        self._engine = engine
        self._trades = trades
        self._contacts = contacts
        self._persona = persona
        self._announced = announced
        self._network = network
        self._clock = clock
        self._max_open = max_open
        self.files: Files | None = None
        """Takes note of files that are shown to us; set it before anything is received."""

    def escrow_of(self, opening: CaseOpening) -> OutPoint | None:
        """The escrow of a case that is new to us; None for one that we have. Raises Malformed."""
        contract = opening.file.contract
        if self._engine.cases.get(contract.trade_id) is not None:
            return None
        try:
            plan = derive(contract, self._network).funding
        except EscrowViolation as e:
            raise Malformed(f"the contract can't be carried out: {e.detail}") from e
        return OutPoint(plan.txid, plan.escrow_vout)

    def deliver(self, message: CaseMessage, conversation: Conversation | None) -> None:
        """Handle a party's message. Raises PeerViolation or PeerRefusal; then nothing was recorded."""
        payload = message.payload
        if isinstance(payload, CaseOpening):
            self._open(message, payload)
            return
        if conversation is None or self._engine.cases.get(conversation.trade_id) is None:
            raise OutOfOrder("open the case first")
        if message.envelope.signer != conversation.party:
            raise BadSignature("the message is not signed by the party of its conversation")
        check_link(message.header, conversation.heads, self._trades)
        self._apply(conversation, message, self._event(message, conversation.side))

    def _event(self, message: CaseMessage, side: Side) -> CaseEvent:
        payload, identity = message.payload, message.envelope.id
        match payload:
            case Evidence():
                return EvidenceReceived(identity, side)
            case ChatLine():
                return PartyChatReceived(identity, side)
            case CaseOpening() | CaseAccepted() | CaseDeclined() | CaseExtended() | CaseRuling():
                raise Malformed("that is not a party's to send")
            case _:
                assert_never(payload)

    def _open(self, message: CaseMessage, opening: CaseOpening) -> None:
        """The first of a party's conversation: it opens the case, or answers."""
        case = check_file(opening.file, self._network)
        contract = case.contract
        side = side_of(contract, message.envelope.signer)
        branch = branch_of(contract, self._persona)
        self._check_terms(case, branch)
        self._check_escrow(contract)
        contact = open_envelope(opening.contact, self._network, limit=Kind.CONTACT.limit)
        if contact.signer != message.envelope.signer:
            raise BadSignature("a case must carry its sender's own contact record")
        chain = case_id(contract.trade_id, message.envelope.signer, self._persona)
        if message.header.trade_id != chain:
            raise Malformed("the case belongs to another conversation")
        known = self._engine.cases.get(contract.trade_id)
        if known is None and self._engine.cases.count_open() >= self._max_open:
            raise DeskFull
        event = _opened(message, case, side, branch, opening, self._network)
        with self._trades.database.transaction():
            try:
                self._contacts.remember(contact, self._clock.now())
            except Malformed as e:
                # It only says where to try. A clock that is wrong, ours or theirs, must not cost them their case.
                log.info("the contact record of a case is not used: %s", e.detail)
            self._engine.conversations.expect(contract, branch, side, arbitrates=True)
            conversation = self._engine.conversations.get(chain)
            if conversation is None:
                raise Malformed("the case belongs to another conversation")
            check_link(message.header, conversation.heads, self._trades)
            self._apply(conversation, message, event, watch_from=opening.height if known is None else None)

    def _check_terms(self, case: CheckedCase, branch: Branch) -> None:
        """Ours are the terms only if we announced them: as our store says, or our signature in the Take."""
        terms = arbiter_of(case.contract, branch)
        found = None if terms is None else self._announced(terms.announcement) or self._shown(case, terms.announcement)
        if found is None or terms != _terms_of(found, case.contract):
            raise NotAnnounced

    def _shown(self, case: CheckedCase, announcement: bytes) -> tuple[Envelope, Announcement] | None:
        """After a restore from the seed our store is empty; but a Take carries what we had signed."""
        takes = [m.payload for m in case.transcript.messages if isinstance(m.payload, Take)]
        for raw in (raw for take in takes for raw in (take.arbiter, take.backup) if raw is not None):
            envelope = open_envelope(raw, self._network, limit=Kind.ARBITER.limit)
            if envelope.id == announcement and envelope.signer == self._persona:
                return envelope, unpack(envelope.body, Announcement, limit=Kind.ARBITER.limit)
        return None

    def _check_escrow(self, contract: Contract) -> None:
        """Keys, scripts and every legal payout: what can't be carried out can't be decided."""
        try:
            derive(contract, self._network)
        except EscrowViolation as e:
            raise Malformed(f"the contract can't be carried out: {e.detail}") from e

    def _apply(
        self, conversation: Conversation, message: CaseMessage, event: CaseEvent, *, watch_from: int | None = None
    ) -> None:
        heard = (conversation, message.envelope)
        with self._trades.database.transaction():
            try:
                self._engine.apply(conversation.trade_id, event, heard=heard, watch_from=watch_from)
            except IllegalTransition as e:
                raise WrongTime(e.detail) from e
            if self.files is not None and isinstance(message.payload, Evidence):
                for attachment in message.payload.attachments:
                    self.files.want(attachment, message.envelope.signer, self._persona)


def _terms_of(found: tuple[Envelope, Announcement], contract: Contract) -> ArbiterTerms:
    envelope, announcement = found
    return arbiter_terms(envelope.id, announcement, contract.amount)


def _opened(
    message: CaseMessage, case: CheckedCase, side: Side, branch: Branch, opening: CaseOpening, network: Network
) -> CaseOpened:
    return CaseOpened(
        message_id=message.envelope.id,
        side=side,
        network=network,
        contract=case.contract,
        contract_id=case.contract_id,
        branch=branch,
        claim=opening.claim,
    )
