"""Judging a record: the trade machine is run again, once for each party, over the messages that they signed.

Each party's machine is fed what that party knew: a message reaches it only when a later one of its own says that it had
been `seen`. What the machine must have been told besides (the user's commands, results, the chain) is supplied in the
party's favour: the escrow is taken as buried once somebody acts on it, a deadline as passed where that makes a message
legal. So whatever the machine still refuses, its sender had no right to send.

What only the curve can tell is asked of `Checks`, which `escrow/` implements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, assert_never

from msgspec import Struct
from msgspec.structs import replace

from protocol import dispute_events as dv
from protocol import messages as ms
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.casefile import CheckedCase
from protocol.contract import Contract, details_hash, verify_contract
from protocol.errors import IllegalTransition, P2PError
from protocol.outcome import Agreement, Outcome, ReleaseOutcome, SettlementOutcome
from protocol.ruling import check_ruling, read_ruling
from protocol.trade import step
from protocol.types import Network, Side
from protocol.wire import Kind, open_envelope

NO_DETAILS = ms.OpenedDetails(bytes(32), (("-", ""),))


class Checks(Protocol):
    """What a judge must know of Bitcoin. `escrow` implements it."""

    def facts(self, contract: Contract, network: Network) -> st.EscrowFacts:
        """What follows from the contract on chain. Raises P2PError when it can't be carried out."""
        ...

    def payout_txid(self, contract: Contract, network: Network, outcome: Outcome) -> bytes:
        """The payout of an outcome. Raises P2PError when the contract forbids it."""
        ...

    def signed(self, contract: Contract, network: Network, outcome: Outcome, by: Side | None, der: bytes) -> bool:
        """Whether `der` signs that payout for a party, or (None) for the arbiter of the outcome's branch."""
        ...


class Finding(Struct, frozen=True):
    """A persona did what the contract or the protocol forbids; `number` is its message, None for a ruling."""

    persona: bytes
    number: int | None
    what: str


class Replay(Struct, frozen=True):
    """What the record shows: how far each party's machine came, and who broke what. Phases by name."""

    buyer_phase: str
    seller_phase: str
    findings: tuple[Finding, ...]


class _Player:
    """One party's machine, and what it has not received yet."""

    def __init__(self, persona: bytes) -> None:
        self.persona = persona
        self.state: st.TradeState | None = None
        self.mail: list[ms.Message] = []

    def feed(self, events: Sequence[ev.TradeEvent]) -> list[ms.Payload]:
        """Step through events; returns what the machine sends. Raises IllegalTransition."""
        sent: list[ms.Payload] = []
        for event in events:
            self.state, effects = step(self.state, event)
            sent += [e.payload for e in effects if isinstance(e, ev.SendMessage)]
        return sent

    @property
    def phase(self) -> str:
        return type(self.state.phase).__name__ if self.state is not None else "None"


def replay(case: CheckedCase, network: Network, checks: Checks, heights: Mapping[bytes, int] | None = None) -> Replay:
    """Run both machines over a record without gaps. Raises what `Checks.facts` raises.

    `heights` are the blocks in which the parties themselves have told an arbiter that the escrow lies.
    """
    return _Referee(case, network, checks, heights or {}).run()


class _Referee:
    def __init__(self, case: CheckedCase, network: Network, checks: Checks, heights: Mapping[bytes, int]) -> None:
        self._heights = heights
        self._case = case
        self._network = network
        self._checks = checks
        self._facts = checks.facts(case.contract, network)
        contract = case.contract
        self._maker, self._taker = _Player(contract.maker.persona), _Player(contract.taker.persona)
        self._findings: list[Finding] = []
        proposed = [m.payload for m in case.transcript.messages if isinstance(m.payload, ms.Proposal)]
        outcomes = [SettlementOutcome(p.buyer_due, p.rate) for p in proposed]
        self._txids: dict[Outcome, bytes] = {}
        self._proposals: dict[bytes, Agreement] = {self._txid(outcome): outcome for outcome in outcomes}
        self._payouts: dict[bytes, Agreement] = {**self._proposals, self._facts.payout_txid: ReleaseOutcome()}
        for message in case.transcript.messages:
            if isinstance(message.payload, ms.FeeProposal) and (raised := self._raised(message.payload)) is not None:
                self._payouts[self._txid(raised)] = self._proposals[self._txid(raised)] = raised

    def run(self) -> Replay:
        for message in self._case.transcript.messages:
            sender, other = self._maker, self._taker
            if message.envelope.signer != sender.persona:
                sender, other = other, sender
            self._read_mail(sender, message.header.seen)
            complaint = self._content(message) or self._play(sender, message.payload) or self._late(sender, message)
            if complaint:
                self._findings.append(Finding(sender.persona, message.header.number, complaint))
            other.mail.append(message)
        for player in (self._maker, self._taker):
            self._read_mail(player, None)
        maker_buys = self._case.contract.maker_side is Side.BUY
        buyer, seller = (self._maker, self._taker) if maker_buys else (self._taker, self._maker)
        return Replay(buyer.phase, seller.phase, tuple(self._findings))

    def _read_mail(self, player: _Player, last: bytes | None) -> None:
        """Deliver up to the message with this id, or all."""
        ids = [m.envelope.id for m in player.mail]
        known = ids.index(last) + 1 if last in ids else 0
        count = len(ids) if last is None else known
        for message in player.mail[:count]:
            try:
                player.feed(self._received(player, message.payload))
            except (IllegalTransition, P2PError):
                # Its node refused what broke the rules; that is held against the sender where it was sent.
                continue
        del player.mail[:count]

    # --- what a message holds ---------------------------------------------------------------------------------------

    def _content(self, message: ms.Message) -> str | None:  # noqa: PLR0911  (one per kind)
        """What is wrong with a message by itself."""
        payload, side = message.payload, self._side(message.envelope.signer)
        match payload:
            case ms.Accept():
                return self._contract_signature(message.envelope.signer, payload.contract_signature)
            case ms.Seal(signature, _, funding_txid):
                if funding_txid not in (None, self._facts.funding_txid):
                    return "named another funding transaction than the contract's"
                return self._contract_signature(message.envelope.signer, signature)
            case ms.PaymentDetails(opened):
                return self._opening(side, opened)
            case ms.Paid(opened, signature, _):
                return self._opening(side, opened) or self._payout(side, ReleaseOutcome(), signature)
            case ms.Released(txid):
                return None if txid == self._facts.payout_txid else "named another payout than the contract's"
            case ms.Proposal(buyer_due, rate, signature):
                return self._payout(side, SettlementOutcome(buyer_due, rate), signature)
            case ms.FeeProposal(_, _, signature):
                raised = self._raised(payload)
                return self._payout(side, raised, signature) if raised else "would raise the fee of a foreign payout"
            case ms.RulingShown(ruling):
                return self._shown(ruling)
            case ms.Agreed(txid, signature):
                outcome = self._proposed(txid)
                return self._payout(side, outcome, signature) if outcome else "agreed to what nobody had proposed"
            case _:
                return None

    def _shown(self, raw: bytes) -> str | None:
        """Whoever shows a ruling must have it of the arbiter."""
        try:
            ruling = read_ruling(open_envelope(raw, self._network, limit=Kind.RULING.limit))
            check_ruling(ruling, self._case.contract, self._case.contract_id)
            good = self._checks.signed(
                self._case.contract, self._network, ruling.outcome, None, ruling.payout_signature
            )
        except P2PError as e:
            return f"showed a ruling that does not hold: {e.detail}"
        return None if good else "showed a ruling whose payout signature is not valid"

    def _side(self, persona: bytes) -> Side:
        return Side.BUY if persona == self._case.contract.buyer.persona else Side.SELL

    def _contract_signature(self, persona: bytes, signature: bytes) -> str | None:
        try:
            verify_contract(self._case.contract, self._network, persona, signature)
        except P2PError:
            return "signed another contract than this"
        return None

    def _opening(self, side: Side, opened: ms.OpenedDetails) -> str | None:
        committed = self._case.contract.party(side).details_hash
        if details_hash(opened.salt, ms.encode_details(opened.details)) == committed:
            return None
        return "gave other payment details than the contract commits to"

    def _payout(self, side: Side, outcome: Outcome, signature: bytes) -> str | None:
        try:
            good = self._checks.signed(self._case.contract, self._network, outcome, side, signature)
        except P2PError as e:
            return f"signed a payout that the contract forbids: {e.detail}"
        return None if good else "gave a payout signature that is not valid"

    def _raised(self, proposal: ms.FeeProposal) -> Agreement | None:
        """What a proposal of a fee rate is about; None for a payout that the record does not know."""
        base = self._payouts.get(proposal.payout_txid)
        return None if base is None else replace(base, rate=proposal.rate)

    def _proposed(self, txid: bytes) -> Agreement | None:
        return self._proposals.get(txid)

    def _txid(self, outcome: Outcome) -> bytes:
        """The payout's id; empty for one that the contract forbids."""
        if outcome not in self._txids:
            try:
                self._txids[outcome] = self._checks.payout_txid(self._case.contract, self._network, outcome)
            except P2PError:
                self._txids[outcome] = b""
        return self._txids[outcome]

    def _late(self, sender: _Player, message: ms.Message) -> str | None:
        """What came at the wrong block, by its sender's own word."""
        state, height = sender.state, message.header.height
        if state is None or not height or not isinstance(message.payload, ms.Paid | ms.Disputed):
            return None
        ends = self._window_ends(sender, state)
        if ends is None:
            return None
        if isinstance(message.payload, ms.Paid) and height > ends:
            return f"declared its payment at block {height}, {height - ends} blocks after its time was over"
        waits = isinstance(message.payload, ms.Disputed) and not state.buys and isinstance(state.phase, st.Funded)
        if waits and state.dispute is not None and state.dispute.peer_claim is None and height < ends:
            return f"asked the arbiter at block {height}, {ends - height} blocks before the buyer's time was over"
        return None

    def _window_ends(self, sender: _Player, state: st.TradeState) -> int | None:
        """The block with which the time to pay was over, by where the sender itself has said that the escrow lies."""
        contract, told = self._case.contract, self._heights.get(sender.persona)
        return None if told is None else told + contract.confirmations - 1 + contract.payment_window + state.extension

    # --- what a message is an act of ---------------------------------------------------------------------------------

    def _play(self, sender: _Player, payload: ms.Payload) -> str | None:
        """Let the sender's machine come to send this. Returns why it would not.

        When a ruling is shown depends on what arbiters and the chain have told, which no message of the trade shows.
        """
        if isinstance(payload, ms.RulingShown):
            return None
        before = sender.state
        try:
            self._prepare(sender, payload)
            sent = sender.feed(self._acts(sender, payload))
        except IllegalTransition as e:
            sender.state = before
            return f"sent {type(payload).__name__} out of turn: {e.detail}"
        if not any(type(p) is type(payload) for p in sent):
            return f"sent {type(payload).__name__} out of turn"
        return None

    def _prepare(self, sender: _Player, payload: ms.Payload) -> None:
        """What the sender's node must have known, taken in its favour."""
        match payload:
            case ms.Take() | ms.Accept() | ms.Seal() | ms.Decline() | ms.ChatLine() | ms.AttachmentOffer():
                return
            case ms.PaymentDetails(opened):
                if sender.state is not None:
                    sender.state = replace(sender.state, own_details=opened)
                self._sign_funding(sender)
            case _:
                self._sign_funding(sender)
                if sender.state is not None and not sender.state.buried:
                    sender.feed((self._buried(),))
                if isinstance(payload, ms.FeeProposal):
                    # Its chain showed it what waits.
                    sender.feed((ev.EscrowSpent(payload.payout_txid, 0),))

    def _buried(self) -> ev.FundingConfirmed:
        return ev.FundingConfirmed(self._case.contract.confirmations, 1)

    def _sign_funding(self, sender: _Player) -> None:
        """A selling maker signs after the seal, which no message shows."""
        if sender.state is not None and isinstance(sender.state.phase, st.SigningFunding):
            sender.feed((ev.FundingSigned((), b""),))

    def _acts(self, sender: _Player, payload: ms.Payload) -> tuple[ev.TradeEvent, ...]:  # noqa: C901, PLR0911, PLR0912
        """The commands and results that lead a machine to send this."""
        state, contract = sender.state, self._case.contract
        match payload:
            case ms.Take():
                return (ev.TakeOffer(self._network, contract.trade_id, self._case.offer, payload, NO_DETAILS),)
            case ms.Accept(_, funding, signature, witnesses):
                ready = ev.ContributionReady(funding.previous, contract, self._facts, signature, NO_DETAILS)
                if contract.maker_side is Side.SELL:
                    return (ready,)
                return ready, ev.FundingSigned(witnesses or (), signature, payload)
            case ms.Seal(signature, witnesses, _):
                signed = ev.FundingSigned(witnesses or (), signature)
                return (signed,) if contract.maker_side is Side.SELL else (signed, ev.FundingBroadcast())
            case ms.PaymentDetails():
                return (self._buried(),)
            case ms.Paid(opened, signature, note):
                if state is not None:
                    sender.state = replace(state, own_details=opened)
                return ev.DeclarePaid(note), ev.PayoutSigned(signature)
            case ms.Released(txid):
                return ev.Release(), ev.PayoutSigned(b""), ev.PayoutBroadcast(txid)
            case ms.Decline(reason, text):
                if state is not None and isinstance(state.phase, st.Accepting):
                    return (ev.ContributionFailed(reason, text),)
                refused = state is not None and isinstance(state.phase, st.Funding) and not state.buys
                return (ev.FundingRefused(text) if refused else ev.Cancel(text),)
            case ms.Proposal(buyer_due, rate, signature):
                outcome = SettlementOutcome(buyer_due, rate)
                signed_outcome = dv.OutcomeSigned(outcome, self._txid(outcome), signature)
                return dv.ProposeSettlement(buyer_due, rate), signed_outcome
            case ms.Agreed(txid, signature):
                proposed = self._proposed(txid) or SettlementOutcome(0, 0)
                if state is not None and proposed == state.payout.raising:
                    # A node answers that by itself.
                    return (dv.OutcomeSigned(proposed, txid, signature), dv.OutcomeBroadcast(txid))
                signed_too = dv.OutcomeSigned(proposed, txid, signature)
                return dv.AcceptSettlement(txid), signed_too, dv.OutcomeBroadcast(txid)
            case ms.FeeProposal(_, rate, signature):
                raised = self._raised(payload) or ReleaseOutcome(rate)
                return dv.RaiseFee(rate), dv.OutcomeSigned(raised, self._txid(raised), signature)
            case ms.Disputed(claim):
                window = (ev.TimerFired("payment"),) if state is not None and not state.buys else ()
                return *window, dv.OpenDispute(claim)
            case ms.Extension(blocks):
                return (dv.GrantExtension(blocks),)
            case ms.ExtensionRequest(blocks, reason):
                return (dv.RequestExtension(blocks, reason),)
            case ms.ChatLine(text):
                return (dv.SendChat(text),)
            case ms.AttachmentOffer(attachment, note):
                return (dv.SendAttachment(attachment, note),)
            case ms.RulingShown():
                return ()
            case _:
                assert_never(payload)

    def _received(self, player: _Player, payload: ms.Payload) -> tuple[ev.TradeEvent, ...]:  # noqa: C901, PLR0911, PLR0912
        """What the receiver's intake makes of a message."""
        contract = self._case.contract
        if player.state is not None and isinstance(player.state.phase, st.SigningFunding):
            self._sign_funding(player)
        match payload:
            case ms.Take():
                return (ev.TakeReceived(self._network, contract.trade_id, self._case.offer, payload),)
            case ms.Accept():
                return (ev.AcceptReceived(payload, contract, self._facts),)
            case ms.Seal():
                return (ev.SealReceived(payload),)
            case ms.PaymentDetails():
                return (ev.DetailsReceived(payload),)
            case ms.Paid():
                return (ev.PaidReceived(payload),)
            case ms.Released():
                return (ev.ReleasedReceived(payload),)
            case ms.Decline():
                return (ev.DeclineReceived(payload),)
            case ms.Proposal(buyer_due, rate, _):
                return (dv.ProposalReceived(payload, self._txid(SettlementOutcome(buyer_due, rate))),)
            case ms.Agreed():
                return (dv.AgreedReceived(payload),)
            case ms.FeeProposal():
                raised = self._raised(payload)
                return (dv.FeeProposalReceived(payload, raised, self._txid(raised)),) if raised is not None else ()
            case ms.Disputed():
                return (dv.DisputedReceived(payload),)
            case ms.Extension():
                return (dv.ExtensionReceived(payload),)
            case ms.ExtensionRequest():
                return (dv.ExtensionRequested(payload),)
            case ms.ChatLine():
                return (dv.ChatReceived(payload),)
            case ms.AttachmentOffer():
                return (dv.AttachmentReceived(payload),)
            case ms.RulingShown():
                return ()
            case _:
                assert_never(payload)
