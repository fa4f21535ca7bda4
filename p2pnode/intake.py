"""What peers send, checked once and for all: bytes in, a verified event out (STYLE, rule 4).

Everything that a message claims about coins is derived again from the signed contract and compared; everything that
it claims about the chain is ignored. A message that was recorded before is acknowledged again and changes nothing. An
answer is an ack only after the commit. What breaks the protocol raises a PeerViolation, what comes at the wrong time a
PeerRefusal; both travel back as their code.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, assert_never

from escrow.coins import OutPoint
from escrow.inputs import check_previous, check_witnesses
from escrow.keys import check_keys
from escrow.payout import check_payout_signature
from escrow.script import Role
from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.contracting import Derived, agreed_arbiters, derive
from p2pnode.conversations import Conversation
from p2pnode.engine import Engine
from p2pnode.hearing import agreed_event, arbiter_event, fee_event, proposal_event, shown_event
from p2pnode.policy import TradePolicy
from p2pnode.prices import Prices
from p2pnode.tradestore import Heads, StoredTrade, TradeStore
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.announcement import read_announcement
from protocol.case_messages import CASE_PAYLOAD_OF, CaseMessage, CaseOpening, decode_case
from protocol.contract import Contract, build_contract, details_hash, trade_id, verify_contract
from protocol.errors import BadSignature, IllegalTransition, Malformed, PeerRefusal, PeerViolation
from protocol.messages import (
    NONE_YET,
    Accept,
    Agreed,
    AttachmentOffer,
    ChatLine,
    Decline,
    Disputed,
    Extension,
    ExtensionRequest,
    FeeProposal,
    Header,
    Message,
    OpenedDetails,
    Paid,
    PaymentDetails,
    Proposal,
    Released,
    Returned,
    RulingShown,
    Seal,
    Sync,
    Take,
    decode,
    encode_details,
)
from protocol.offer import MarketPrice, Offer, OfferRef
from protocol.types import Network
from protocol.wire import Envelope, Kind, kind_of, open_envelope, parse_envelope, unpack

log = logging.getLogger(__name__)

HELD: Final = "this node was restored from a copy, and asks first for what it has lost"


class OfferGone(PeerRefusal):
    """The offer is no longer open: it was taken, edited, revoked or has expired."""

    code = 2140


class TermsRefused(PeerRefusal):
    """The maker's node does not agree to these terms."""

    code = 2141


class WrongTime(PeerRefusal):
    """The message does not fit the present state of the trade."""

    code = 2142


class OutOfOrder(PeerRefusal):
    """A message before this one is missing; send that first."""

    code = 2143


class NoSuchCoins(PeerRefusal):
    """The coins that should fund the escrow do not exist, are unconfirmed, or are spent."""

    code = 2147


class UnknownTrade(PeerRefusal):
    """This node does not know that trade."""

    code = 2144


class Diverged(PeerViolation):
    """The peer's record of this trade contradicts ours."""

    code = 2145


class KeyReuse(PeerViolation):
    """The peer used an escrow key that it had shown in another trade."""

    code = 2146


class Makers(Protocol):
    """What intake needs of our own offers."""

    def open_offer(self, reference: OfferRef, now: int) -> Offer | None:
        """The offer, if exactly this version is open."""
        ...

    def mark_taken(self, offer_id: bytes, trade_id: bytes, now: int) -> None:
        """Withdraw the offer from the book; joins the transaction that is open."""
        ...


class Cases(Protocol):
    """What intake needs of an arbiter's desk."""

    def escrow_of(self, opening: CaseOpening) -> OutPoint | None:
        """The escrow of a case that is new to us; None for one that we have. Raises Malformed."""
        ...

    def deliver(self, message: CaseMessage, conversation: Conversation | None) -> None:
        """A party's message; `conversation` is None for one that is not known yet. Raises a peer's error."""
        ...


class Gate(Protocol):
    """What intake asks before a stranger's take withdraws an offer of ours."""

    async def admit(self, taker: bytes, offer: Offer, amount: int, arbiters: tuple[bytes, ...]) -> None:
        """Whether this persona may take that offer with these arbiters. Raises a PeerRefusal."""
        ...


class Receipts(Protocol):
    """What intake needs of the receipts of our trades."""

    def deliver(self, envelope: Envelope) -> None:
        """A counterparty's half. Raises a peer's error."""
        ...


class Intake:
    """The deliver service: trade envelopes from the channels."""

    def __init__(
        self,
        engine: Engine,
        makers: Makers,
        contacts: Contacts,
        policy: TradePolicy,
        network: Network,
        clock: Clock,
        *,
        on_sync: Callable[[Envelope, Sync], None],
        unspent: Callable[[OutPoint], Awaitable[bool | None]],
        prices: Prices = lambda _currency, _feeds: None,
    ) -> None:
        """`unspent` asks our own chain backend (`ChainBackend.unspent`); `prices` gives market prices.

        `on_sync` takes `Sync` and its answer; it may raise a peer's error.
        """
        self.cases: Cases | None = None
        """Takes what is addressed to us as an arbiter; None: this node is none."""
        self.gate: Gate | None = None
        """Asked about each taker; None: everybody may take."""
        self.receipts: Receipts | None = None
        """Takes halves of receipts; None: they are refused."""
        self._engine = engine
        self._trades = engine.trades
        self._makers = makers
        self._contacts = contacts
        self._policy = policy
        self._network = network
        self._clock = clock
        self._on_sync = on_sync
        self.on_returned: Callable[[Envelope, Returned], None] | None = None
        """Takes what a peer has kept of ours; it may raise a peer's error."""
        self._unspent = unspent
        self._prices = prices

    async def deliver(self, peer: bytes, raw: bytes) -> bytes:
        """Handle one envelope from the node `peer`; the empty answer is the ack.

        Raises PeerViolation or PeerRefusal; then nothing was recorded but, of a `Diverged`, the proof.
        """
        envelope = open_envelope(raw, self._network)
        kind = kind_of(envelope.kind)
        if kind is None:
            return b""
        if kind in (Kind.SYNC, Kind.SYNCED):
            self._on_sync(envelope, unpack(envelope.body, Sync, limit=kind.limit))
            return b""
        if kind is Kind.RETURNED:
            if self.on_returned is not None:
                self.on_returned(envelope, unpack(envelope.body, Returned, limit=kind.limit))
            return b""
        if kind is Kind.RECEIPT_HALF:
            if self.receipts is None:
                raise UnknownTrade
            self.receipts.deliver(envelope)
            return b""
        known = self._trades.find_message(envelope.id, out=False)
        if known is not None:
            # An id does not cover the signer: a stranger's copy of a message is no repetition of it.
            if parse_envelope(known, self._network).signer != envelope.signer:
                raise BadSignature
            return b""
        log.debug("message received", extra={"kind": kind.name, "node": peer.hex()[:16]})
        if kind is Kind.CASE_OPENING:
            await self._check_case(decode_case(envelope))
        try:
            if kind in CASE_PAYLOAD_OF and self._converse(kind, envelope):
                return b""
            message = decode(envelope)
            if isinstance(message.payload, Take):
                await self._check_coins(message.payload)
                await self._check_taker(message, message.payload)
                self._take(message, message.payload)
            else:
                self._follow_up(message)
        except Diverged:
            self._engine.divergences.met(envelope)
            raise
        return b""

    # --- the take -------------------------------------------------------------------------------------------------

    def _take(self, message: Message, take: Take) -> None:
        now = self._clock.now()
        reference = take.bargain.offer
        taker = take.party.persona
        if message.envelope.signer != taker:
            raise BadSignature("a take must be signed by the persona that it names")
        identity = trade_id(reference, taker, take.party.nonce)
        header = message.header
        if (header.trade_id, header.number, header.prev, header.seen) != (identity, 0, NONE_YET, NONE_YET):
            raise Malformed("a take must be the first message of its trade")
        offer = self._makers.open_offer(reference, now)
        if offer is None:
            raise OfferGone
        self._check_bargain(take, offer, now)
        check_keys(take.party, identity)
        check_previous(take.party, take.funding.previous)
        contact = open_envelope(take.contact, self._network, limit=Kind.CONTACT.limit)
        if contact.signer != taker:
            raise BadSignature("a take must carry the taker's own contact record")
        keys = (take.party.keys.main, take.party.keys.backup)
        with self._trades.database.transaction():
            self._contacts.remember(contact, now)
            if not self._trades.claim_keys(identity, keys):
                raise KeyReuse
            self._makers.mark_taken(offer.offer_id, identity, now)
            self._trades.pledge(identity, (OutPoint(i.txid, i.vout).wire for i in take.party.inputs))
            event = ev.TakeReceived(self._network, identity, offer, take)
            self._engine.apply(identity, event, received=message)

    async def _check_coins(self, take: Take) -> None:
        """A take withdraws the offer, so it must cost something: real coins, which serve one open trade at a time."""
        coins = tuple(OutPoint(i.txid, i.vout) for i in take.party.inputs)
        if self._trades.any_pledged(coin.wire for coin in coins):
            raise NoSuchCoins("those coins are pledged to another open trade")
        for coin in coins:
            if await self._unspent(coin) is False:
                raise NoSuchCoins

    async def _check_taker(self, message: Message, take: Take) -> None:
        """Whether the user wants this counterparty, and this arbiter."""
        if self.gate is None:
            return
        if message.envelope.signer != take.party.persona:
            raise BadSignature("a take must be signed by the persona that it names")
        offer = self._makers.open_offer(take.bargain.offer, self._clock.now())
        if offer is None:
            raise OfferGone
        raws = filter(None, (take.arbiter, take.backup))
        arbiters = tuple(parse_envelope(raw, self._network, limit=Kind.ARBITER.limit).signer for raw in raws)
        await self.gate.admit(take.party.persona, offer, take.bargain.amount, arbiters)

    async def _check_case(self, message: CaseMessage) -> None:
        """A case must be about coins that exist: made-up contracts could fill the desk for nothing."""
        if self.cases is None or not isinstance(message.payload, CaseOpening):
            return
        escrow = self.cases.escrow_of(message.payload)
        if escrow is not None and await self._unspent(escrow) is False:
            raise WrongTime("our chain does not show the escrow of that contract, or shows it spent")

    def _check_bargain(self, take: Take, offer: Offer, now: int) -> None:
        bargain = take.bargain
        if not offer.amount_min <= bargain.amount <= offer.amount_max:
            raise TermsRefused("the amount is outside the offer's range")
        market = self._prices(offer.currency, offer.price.feeds) if isinstance(offer.price, MarketPrice) else None
        self._policy.check_price(offer, bargain.price, market)
        if bargain.method not in offer.methods or bargain.escrow_type not in offer.escrow_types:
            raise TermsRefused("the offer does not accept that payment method or escrow type")
        self._policy.check_amount(bargain.amount)
        self._policy.check_fees(bargain.fees)
        self._policy.check_load(self._trades)
        for raw in filter(None, (take.arbiter, take.backup)):
            envelope = open_envelope(raw, self._network, limit=Kind.ARBITER.limit)
            announcement = read_announcement(envelope, self._network, now)
            if not announcement.serves(offer.currency, bargain.method, bargain.amount):
                raise TermsRefused("the chosen arbiter does not serve such a trade")

    # --- conversations with arbiters ------------------------------------------------------------------------------

    def _converse(self, kind: Kind, envelope: Envelope) -> bool:
        """Handle a message between a party and an arbiter. False for a line of chat between parties."""
        message = decode_case(envelope)
        conversation = self._engine.conversations.get(message.header.trade_id)
        if conversation is None and kind is Kind.CHAT:
            return False
        if conversation is None or conversation.arbitrates:
            if self.cases is None:
                raise UnknownTrade("this node knows no such case")
            held = conversation is not None and self._trades.is_held(conversation.chain)
            if held and not self._have_said(message.header.seen):
                raise OutOfOrder(HELD)
            self.cases.deliver(message, conversation)
            return True
        if envelope.signer != conversation.arbiter:
            raise BadSignature("the message is not signed by the arbiter of its case")
        held = self._trades.is_held(conversation.chain) or self._trades.is_held(conversation.trade_id)
        if held and not self._have_said(message.header.seen):
            raise OutOfOrder(HELD)
        self._hear(message, conversation, returned=held)
        return True

    def _have_said(self, seen: bytes) -> bool:
        """Whether we know the message of ours that the sender had seen last: a restored node may have lost it."""
        return seen == NONE_YET or self._trades.find_message(seen, out=True) is not None

    def returned_case(self, envelope: Envelope, conversation: Conversation) -> None:
        """A verified message of our arbiter that a lost disk had: the same checks, and no hold."""
        self._hear(decode_case(envelope), conversation, returned=True)

    def _hear(self, message: CaseMessage, conversation: Conversation, *, returned: bool = False) -> None:
        stored = self._trades.get(conversation.trade_id)
        if stored is None:
            raise UnknownTrade
        check_link(message.header, conversation.heads, self._trades)
        event = arbiter_event(message, conversation, stored.state, _contract(stored.state))
        heard = (conversation, message.envelope)
        try:
            self._engine.apply(conversation.trade_id, event, heard=heard, returned=returned)
        except IllegalTransition as e:
            raise WrongTime(e.detail) from e

    # --- everything after it -----------------------------------------------------------------------------------

    def _follow_up(self, message: Message) -> None:
        stored = self._trades.get(message.header.trade_id)
        if stored is None:
            raise UnknownTrade
        if self._trades.is_held(stored.state.trade_id):
            raise OutOfOrder(HELD)
        self._take_in(message, stored)

    def returned(self, message: Message, stored: StoredTrade) -> None:
        """A verified message of the counterparty that a lost disk had: the same checks, and no hold."""
        self._take_in(message, stored, returned=True)

    def _take_in(self, message: Message, stored: StoredTrade, *, returned: bool = False) -> None:
        if message.envelope.signer != stored.state.peer:
            raise BadSignature("the message is not signed by the counterparty of its trade")
        check_link(message.header, stored.heads, self._trades)
        event, keys = self._verify(message, stored.state)
        with self._trades.database.transaction():
            if keys and not self._trades.claim_keys(stored.state.trade_id, keys):
                raise KeyReuse
            try:
                self._engine.apply(stored.state.trade_id, event, received=message, returned=returned)
            except IllegalTransition as e:
                raise WrongTime(e.detail) from e

    def _verify(  # noqa: PLR0911  (one per kind)
        self, message: Message, state: st.TradeState
    ) -> tuple[ev.TradeEvent, tuple[bytes, ...]]:
        """The event of a message, and the peer's escrow keys where it is the first to show them."""
        payload = message.payload
        match payload:
            case Accept():
                return self._accept(payload, state)
            case Seal():
                return self._seal(payload, state), ()
            case PaymentDetails(opened):
                self._check_details(opened, state)
                return ev.DetailsReceived(payload), ()
            case Paid(opened, signature, _):
                self._check_details(opened, state)
                check_payout_signature(_derived(state).payout, Role.of(state.side.other), signature)
                return ev.PaidReceived(payload), ()
            case Released(txid):
                if state.facts is None or txid != state.facts.payout_txid:
                    raise Malformed("the peer claims another payout than the contract's")
                return ev.ReleasedReceived(payload), ()
            case Decline():
                return ev.DeclineReceived(payload), ()
            case Take():
                raise WrongTime
            case Proposal():
                return proposal_event(payload, state, _contract(state)), ()
            case Agreed():
                return agreed_event(payload, state, _contract(state)), ()
            case RulingShown():
                return shown_event(payload, state, _contract(state)), ()
            case FeeProposal():
                return fee_event(payload, state, _contract(state)), ()
            case _:
                return _plain_event(payload), ()

    def _accept(self, accept: Accept, state: st.TradeState) -> tuple[ev.TradeEvent, tuple[bytes, ...]]:
        if not isinstance(state.phase, st.Taking):
            raise WrongTime
        if accept.party.persona != state.peer:
            raise Malformed("the accept names another maker than the offer")
        check_keys(accept.party, state.trade_id)
        check_previous(accept.party, accept.funding.previous)
        arbiter, backup = agreed_arbiters(state.take, self._network)
        contract = build_contract(
            state.offer, state.take.bargain, taker=state.take.party, maker=accept.party, arbiter=arbiter, backup=backup
        )
        verify_contract(contract, self._network, state.peer, accept.contract_signature)
        derived = derive(contract, self._network)
        if state.buys:
            if accept.witnesses is not None:
                raise Malformed("a selling maker must not sign the funding before the buyer")
        else:
            check_witnesses(derived.funding, state.side.other, accept.witnesses or ())
        keys = (accept.party.keys.main, accept.party.keys.backup)
        return ev.AcceptReceived(accept, contract, derived.facts), keys

    def _seal(self, seal: Seal, state: st.TradeState) -> ev.TradeEvent:
        if state.contract is None or state.facts is None or not state.made:
            raise WrongTime
        verify_contract(state.contract, self._network, state.peer, seal.contract_signature)
        if state.buys:
            if seal.witnesses is not None or seal.funding_txid != state.facts.funding_txid:
                raise Malformed("the seal names another funding transaction than the contract's")
        else:
            if seal.funding_txid is not None:
                raise Malformed("a buyer can't have broadcast the funding")
            check_witnesses(_derived(state).funding, state.side.other, seal.witnesses or ())
        return ev.SealReceived(seal)

    def _check_details(self, opened: OpenedDetails, state: st.TradeState) -> None:
        if state.contract is None:
            raise WrongTime
        party = state.contract.party(state.side.other)
        if details_hash(opened.salt, encode_details(opened.details)) != party.details_hash:
            raise Malformed("the peer's payment details are not those that the contract commits to")


def check_link(header: Header, heads: Heads, trades: TradeStore) -> None:
    """A message must be the next of its sender's chain, and have seen one that we really sent.

    Raises OutOfOrder, Diverged.
    """
    if header.number > heads.received:
        raise OutOfOrder
    if header.number < heads.received or header.prev != heads.received_head:
        raise Diverged
    if header.seen != NONE_YET and trades.find_message(header.seen, out=True) is None:
        raise Diverged


Plain = Disputed | Extension | ExtensionRequest | ChatLine | AttachmentOffer


def _plain_event(payload: Plain) -> ev.TradeEvent:
    """What needs no check but its signature."""
    match payload:
        case Disputed():
            return dv.DisputedReceived(payload)
        case Extension():
            return dv.ExtensionReceived(payload)
        case ExtensionRequest():
            return dv.ExtensionRequested(payload)
        case ChatLine():
            return dv.ChatReceived(payload)
        case AttachmentOffer():
            return dv.AttachmentReceived(payload)
        case _:
            assert_never(payload)


def _contract(state: st.TradeState) -> Contract:
    if state.contract is None:
        raise WrongTime
    return state.contract


def _derived(state: st.TradeState) -> Derived:
    return derive(_contract(state), state.network)
