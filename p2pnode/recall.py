"""Getting back what a lost disk knew, from those who hold it (SPEC section 7.6).

Whoever trades with us keeps what we signed. After a restore they return it: for a trade that our copy does not know at
all, or whose newest steps it does not know. Nothing of this is believed because they say so.

* A message of ours proves itself by our own signature, and its place by the chain that it stands in. `recall` finds the
  events that had led our machine to send it, steps through them, and records the message as it was signed. It never
  signs a second one in its place: two messages with one number, both ours, would be a proof against us, and a second,
  other payout signature would let the counterparty choose.
* A message of theirs passes the very checks that it had passed then, and is recorded behind what it had seen.
* Contract, keys, coins, payouts are derived again, from the seed and from what was signed. What only our disk held, the
  payment details, comes back in the keepsake of our own first message.
* That the escrow was buried, which our signature shows that we had seen, is assumed only to let the machine pass; the
  state says "unseen" afterwards, and pay and release wait for our own chain as always.

A trade that was got back is held (`TradeStore.hold`): nothing is signed in it, by hand or by itself, until its
counterparty has said that we have it all (`reconcile`). What it might keep from us are messages of ours, so of a trade
that goes on without its word the buyer declares no payment: it may have signed a settlement that the seller could
complete. Nor is a funding signed anew that we are not shown to have signed, unless the copy is minutes old.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from msgspec.structs import replace

from escrow.coins import OutPoint
from escrow.payout import derive_payout, sign_payout
from escrow.wallet.base import AlreadyReserved, Reservation
from escrow.wallet.reservations import SqliteReservations
from p2pnode.chainwatch import REORG_MARGIN
from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.contracting import agreed_arbiters, derive
from p2pnode.conversations import Conversation
from p2pnode.database import Database
from p2pnode.engine import Engine, Fix, own_persona
from p2pnode.intake import Intake, OutOfOrder, UnknownTrade, WrongTime
from p2pnode.keepsake import open_keepsake
from p2pnode.keyring import Keyring
from protocol import dispute_events as dv
from protocol import messages as ms
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.case_messages import CaseMessage, CaseOpening, decode_case
from protocol.contract import Contract, Party, build_contract, sign_contract, trade_id, verify_contract
from protocol.errors import BadSignature, IllegalTransition, Malformed
from protocol.offer import Offer
from protocol.outcome import RulingOutcome, SettlementOutcome
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, envelope_id, open_envelope, pack

log = logging.getLogger(__name__)

Reserve = Callable[[bytes, Party], None]
"""(trade, our party): hold the coins of our party for the trade; what another trade holds stays with it."""


def reserve_in(database: Database) -> Reserve:
    """`Reserve` over the wallet's own table."""
    table = SqliteReservations(database.connection)

    def reserve(trade: bytes, party: Party) -> None:
        for coin in party.inputs:
            try:
                table.add((Reservation(OutPoint(coin.txid, coin.vout), trade, coin.value, 0),))
            except AlreadyReserved as e:
                log.warning("a coin of a restored trade is in another one: %s", e.detail)

    return reserve


class CaseReturns(Protocol):
    """What is needed of an arbiter's desk."""

    def returned(self, message: CaseMessage, conversation: Conversation | None, bringer: bytes) -> None:
        """A message of a case that this desk may have lost; the persona `bringer` returned it."""
        ...


class Recall:
    """Takes what is returned."""

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        keyring: Keyring,
        contacts: Contacts,
        network: Network,
        clock: Clock,
        *,
        reserve: Reserve,
        export: Callable[[st.TradeState], object],
    ) -> None:
        """`export` writes the contract file of a trade that we had not."""
        self.cases: CaseReturns | None = None
        """Takes what is returned to us as an arbiter; None: this node is none."""
        self._engine = engine
        self._trades = engine.trades
        self._intake = intake
        self._keyring = keyring
        self._contacts = contacts
        self._network = network
        self._clock = clock
        self._reserve = reserve
        self._export = export

    def returned(self, envelope: Envelope, body: ms.Returned) -> None:
        """Take messages that `envelope.signer` returns, all or none. Raises PeerViolation, PeerRefusal."""
        with self._trades.database.transaction():
            for raw in body.messages:
                one = open_envelope(raw, self._network)
                own = self._keyring.owns(one.signer)
                if self._trades.find_message(one.id, out=own) is None:
                    try:
                        self._one(body, one, envelope.signer, own=own)
                    except IllegalTransition as e:
                        raise WrongTime(e.detail) from e
            stored = self._trades.get(body.chain)
            if stored is not None and stored.heads.sent == 0:
                # Theirs alone prove nothing: this is no trade that we had.
                raise UnknownTrade
        if stored is not None and stored.state.contract is not None:
            self._export(stored.state)

    def _one(self, body: ms.Returned, envelope: Envelope, bringer: bytes, *, own: bool) -> None:
        conversation = self._engine.conversations.get(body.chain)
        if envelope.kind in (Kind.TAKE, Kind.ACCEPT) or self._trades.get(body.chain) is not None:
            message = ms.decode(envelope)
            if message.header.trade_id != body.chain:
                raise Malformed("a message is returned in another trade than its own")
            if own:
                self._ours(message, body.offer, bringer)
            else:
                self._theirs(message, body.offer, bringer)
            return
        case = decode_case(envelope)
        if case.header.trade_id != body.chain:
            raise Malformed("a message is returned in another conversation than its own")
        if conversation is None or conversation.arbitrates:
            if self.cases is None:
                raise UnknownTrade("this node knows no such case")
            self.cases.returned(case, conversation, bringer)
            return
        if bringer != conversation.arbiter or (not own and envelope.signer != bringer):
            raise BadSignature("a conversation is returned by its arbiter")
        if own:
            self._said(case, conversation)
        else:
            self._intake.returned_case(envelope, conversation)

    # --- theirs -----------------------------------------------------------------------------------------------------

    def _theirs(self, message: ms.Message, offer: object, bringer: bytes) -> None:
        stored = self._trades.get(message.header.trade_id)
        if message.envelope.signer != bringer:
            raise BadSignature("what is returned is neither ours nor its sender's")
        if stored is not None:
            self._intake.returned(message, stored)
            return
        if not isinstance(message.payload, ms.Take):
            raise UnknownTrade
        take = message.payload
        identity = self._check_take(message, take, bringer)
        found = _offer_of(take, offer, self._network)
        if not self._keyring.owns(found.maker):
            raise UnknownTrade
        contact = open_envelope(take.contact, self._network, limit=Kind.CONTACT.limit)
        if contact.signer == bringer:
            self._remember(contact)
        self._trades.claim_keys(identity, (take.party.keys.main, take.party.keys.backup))
        event = ev.TakeReceived(self._network, identity, found, take)
        self._engine.apply(identity, event, received=message, returned=True)
        self._hold(identity, message)

    def _check_take(self, message: ms.Message, take: ms.Take, signer: bytes) -> bytes:
        identity = trade_id(take.bargain.offer, take.party.persona, take.party.nonce)
        header = message.header
        first = (header.trade_id, header.number, header.prev, header.seen)
        if first != (identity, 0, ms.NONE_YET, ms.NONE_YET) or take.party.persona != signer:
            raise Malformed("a take must be the first message of its trade, by the taker that it names")
        return identity

    def _remember(self, contact: Envelope) -> None:
        try:
            self._contacts.remember(contact, self._clock.now())
        except Malformed as e:
            log.info("an old contact record: %s", e.detail)  # expired since: the DHT has a newer one

    # --- ours -------------------------------------------------------------------------------------------------------

    def _ours(self, message: ms.Message, offer: object, bringer: bytes) -> None:
        payload, identity = message.payload, message.header.trade_id
        stored = self._trades.get(identity)
        if stored is None:
            if not isinstance(payload, ms.Take):
                raise UnknownTrade
            self._took(message, payload, offer, bringer)
            return
        state, heads = stored.state, stored.heads
        if bringer != state.peer or message.envelope.signer != own_persona(state):
            raise BadSignature("a trade is returned by its counterparty")
        if message.header.number != heads.sent or message.header.prev != heads.sent_head:
            raise OutOfOrder
        seen = message.header.seen
        if seen != ms.NONE_YET and self._trades.find_message(seen, out=False) is None:
            raise OutOfOrder
        match payload:
            case ms.Accept():
                self._accepted(message, payload, state)
            case ms.Seal(signature, witnesses, _):
                self._sealed(message, state, signature, witnesses)
            case _:
                self._engine.recall(identity, self._acts(state, payload), message, fix=_as_deep_as(state))

    def _took(self, message: ms.Message, take: ms.Take, offer: object, bringer: bytes) -> None:
        """We took an offer, and know nothing of it."""
        identity = self._check_take(message, take, message.envelope.signer)
        found = _offer_of(take, offer, self._network)
        if found.maker != bringer:
            raise BadSignature("a trade is returned by its counterparty")
        opened = self._opened(identity, found.side.other, take.party, take.keepsake)
        event = ev.TakeOffer(self._network, identity, found, take, opened)
        self._engine.recall(identity, (event,), message)
        self._reserve(identity, take.party)
        self._hold(identity, message)

    def _accepted(self, message: ms.Message, accept: ms.Accept, state: st.TradeState) -> None:
        """Our contract signature is in it: the contract is the one that both derive, and that we had signed."""
        if not state.made or message.envelope.signer != accept.party.persona:
            raise Malformed("an accept is its maker's")
        opened = self._opened(state.trade_id, state.side, accept.party, accept.keepsake)
        arbiter, backup = agreed_arbiters(state.take, self._network)
        contract = build_contract(
            state.offer, state.take.bargain, taker=state.take.party, maker=accept.party, arbiter=arbiter, backup=backup
        )
        verify_contract(contract, self._network, accept.party.persona, accept.contract_signature)
        facts = derive(contract, self._network).facts
        ready = ev.ContributionReady(
            accept.funding.previous, contract, facts, accept.contract_signature, opened, accept.keepsake
        )
        events: tuple[ev.TradeEvent, ...] = (ready,)
        if state.buys:
            signed = ev.FundingSigned(accept.witnesses or (), accept.contract_signature, accept)
            events = (ready, signed) if isinstance(state.phase, st.Accepting) else (signed,)
        self._engine.recall(state.trade_id, events, message)
        self._reserve(state.trade_id, accept.party)
        self._watch_from(state.trade_id, message)

    def _opened(self, identity: bytes, side: Side, party: Party, keepsake: bytes) -> ms.OpenedDetails:
        """Our payment details. Raises Malformed when the keys or the keepsake are not this seed's."""
        keys = self._keyring.escrow_keys(identity, side)
        if keys != (party.keys.main, party.keys.backup):
            raise Malformed("the escrow keys are not of this seed")
        opened = open_keepsake(self._keyring.seed.keepsake_key(identity), keepsake)
        if opened is None:
            raise Malformed("the keepsake is not of this seed")
        return opened

    def _sealed(
        self, message: ms.Message, state: st.TradeState, signature: bytes, witnesses: Sequence[ms.WitnessStack] | None
    ) -> None:
        if state.buys:
            signed = ev.FundingSigned(tuple(witnesses or ()), signature)
            self._engine.recall(state.trade_id, (signed,), message)
            return

        # A seller's witnesses are in no message. They are made again: the same transaction, byte for byte.
        def announced(after: st.TradeState) -> st.TradeState:
            funding = replace(after.funding, announced=True)
            return replace(after, taker_signature=signature, funding=funding)

        self._engine.recall(state.trade_id, (), message, fix=announced)

    def _acts(self, state: st.TradeState, payload: ms.Payload) -> tuple[ev.TradeEvent, ...]:  # noqa: C901, PLR0911, PLR0912
        """The commands, results and facts that led us to sign this."""
        contract = state.contract
        match payload:
            case ms.Decline(reason, text):
                if isinstance(state.phase, st.Accepting):
                    return (ev.ContributionFailed(reason, text),)
                refused = isinstance(state.phase, st.Funding) and not state.buys
                return (ev.FundingRefused(text) if refused else ev.Cancel(text),)
            case ms.Take() | ms.Accept() | ms.Seal():
                raise Malformed("a trade has one take, one accept, one seal")
            case _ if contract is None:
                raise OutOfOrder
            case ms.PaymentDetails():
                return self._buried(state, contract)
            case ms.Paid(_, signature, note):
                declared = () if isinstance(state.phase, st.Paying) else (ev.DeclarePaid(note),)
                return *self._buried(state, contract), *declared, ev.PayoutSigned(signature)
            case ms.Released(txid):
                main, _ = self._keyring.escrow_secrets(state.trade_id, state.side)
                signature = sign_payout(derive(contract, self._network).payout, main)
                released = (ev.Release(),) if isinstance(state.phase, st.Paid) else ()
                signed = () if state.payout.own_signature is not None else (ev.PayoutSigned(signature),)
                return *self._buried(state, contract), *released, *signed, ev.PayoutBroadcast(txid)
            case ms.Proposal(buyer_due, rate, signature):
                outcome = SettlementOutcome(buyer_due, rate)
                txid = derive_payout(contract, self._network, outcome).txid
                asked = () if state.settlement.signing == outcome else (dv.ProposeSettlement(buyer_due, rate),)
                return *self._buried(state, contract), *asked, dv.OutcomeSigned(outcome, txid, signature)
            case ms.FeeProposal(txid, rate, signature):
                agreed = state.outcome_of(txid)
                if agreed is None or isinstance(agreed, RulingOutcome):
                    raise OutOfOrder
                raised = replace(agreed, rate=rate)
                higher = derive_payout(contract, self._network, raised).txid
                waits = () if isinstance(state.phase, st.Settling) else (ev.EscrowSpent(txid, 0),)
                asking = () if state.payout.raising == raised else (dv.RaiseFee(rate),)
                signing = (*asking, dv.OutcomeSigned(raised, higher, signature))
                return *self._buried(state, contract), *waits, *signing
            case ms.Agreed(txid, signature) if (variant := state.payout.variant(txid)) is not None:
                # A node answers that by itself.
                return (dv.OutcomeSigned(variant.outcome, txid, signature),)
            case ms.Agreed(txid, signature):
                option = state.settlement.find(txid)
                if option is None:
                    raise OutOfOrder
                accepted = () if state.settlement.signing == option.outcome else (dv.AcceptSettlement(txid),)
                return *self._buried(state, contract), *accepted, dv.OutcomeSigned(option.outcome, txid, signature)
            case ms.Disputed(claim):
                if state.dispute is not None and state.dispute.own_claim is not None:
                    return ()  # the arbiter has told it first
                late = () if state.buys else (ev.TimerFired("payment"),)
                return *self._buried(state, contract), *late, dv.OpenDispute(claim)
            case ms.Extension(blocks):
                return *self._buried(state, contract), dv.GrantExtension(blocks)
            case ms.ExtensionRequest(blocks, reason):
                return *self._buried(state, contract), dv.RequestExtension(blocks, reason)
            case ms.ChatLine(text):
                return *self._signed(state, contract), dv.SendChat(text)
            case ms.AttachmentOffer(attachment, note):
                return *self._signed(state, contract), dv.SendAttachment(attachment, note)
            case ms.RulingShown():
                # The arbiter's own words come back from the arbiter.
                return ()
            case _:
                assert_never(payload)

    def _signed(self, state: st.TradeState, contract: Contract) -> tuple[ev.TradeEvent, ...]:
        """A seller signs the funding without a word; what it says afterwards shows that it did."""
        if not isinstance(state.phase, st.SigningFunding):
            return ()
        seed = self._keyring.persona_key(own_persona(state)).seed
        return (ev.FundingSigned((), sign_contract(contract, self._network, seed)),)

    def _buried(self, state: st.TradeState, contract: Contract) -> tuple[ev.TradeEvent, ...]:
        seen = () if state.buried else (ev.FundingConfirmed(contract.confirmations, 1),)
        return *self._signed(state, contract), *seen

    def _hold(self, identity: bytes, first: ms.Message) -> None:
        self._trades.hold(identity)
        self._watch_from(identity, first)

    def _watch_from(self, identity: bytes, message: ms.Message) -> None:
        """The escrow can be in no block before the one that we had followed when we made it; the first call counts."""
        if self._keyring.owns(message.envelope.signer):
            self._trades.set_watch_from(identity, max(0, message.header.height - REORG_MARGIN))

    # --- with an arbiter --------------------------------------------------------------------------------------------

    def _said(self, message: CaseMessage, talk: Conversation) -> None:
        """What we had told an arbiter. The machine knows of a dispute by what we told the counterparty, or by this."""
        if message.header.number != talk.heads.sent or message.header.prev != talk.heads.sent_head:
            raise OutOfOrder
        self._engine.conversations.record_sent(talk, message.envelope, self._clock.now())
        stored = self._trades.get(talk.trade_id)
        claimed = stored is not None and stored.state.dispute is not None and stored.state.dispute.own_claim is not None
        if stored is None or claimed or not isinstance(message.payload, CaseOpening):
            return
        if stored.state.contract is not None:
            late = () if stored.state.buys else (ev.TimerFired("payment"),)
            opened = dv.OpenDispute(message.payload.claim)
            events = (*self._buried(stored.state, stored.state.contract), *late, opened)
            self._engine.recall(talk.trade_id, events, fix=_as_deep_as(stored.state))


def _as_deep_as(before: st.TradeState) -> Fix:
    """Only our own chain says how deep the funding is."""
    depth, height = before.funding.depth, before.funding.height
    return lambda after: replace(after, funding=replace(after.funding, depth=depth, height=height))


def _offer_of(take: ms.Take, offer: object, network: Network) -> Offer:
    """The offer that was taken: the very one, or the trade is another. Raises Malformed."""
    if not isinstance(offer, Offer) or envelope_id(Kind.OFFER, network, pack(offer)) != take.bargain.offer.envelope:
        raise Malformed("the offer is not the one that was taken")
    return offer
