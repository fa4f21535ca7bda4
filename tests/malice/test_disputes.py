"""Whole disputes between nodes over twins: every way one ends, and what attackers try in them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.funding import derive_funding
from escrow.judge import EscrowChecks
from escrow.keys import arbiter_secret, tweak_public
from escrow.payout import derive_payout
from escrow.signatures import sign_ecdsa
from escrow.transactions import parse, txid_of
from p2pnode.engine import case_file
from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.bundle import Bundle, Conversation, build_bundle, verify_bundle
from protocol.case_messages import CaseOpening, CaseRuling, case_id, encode_case
from protocol.errors import IllegalTransition, P2PError, PeerViolation
from protocol.messages import NONE_YET, Claim, Header
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome, cancelled_due
from protocol.ruling import Reason, Ruling, read_equivocation, read_ruling, text_hash
from protocol.trade_state import Answer, TradeState
from protocol.types import Branch, EscrowType, Side
from protocol.wire import Envelope, Kind, digest, open_envelope, pack
from tests.court import Court, CourtNode
from tests.world import NETWORK

SIDES = list(Side)
RATE = 2_000


def worth(court: Court) -> int:
    """Satoshis of everybody together, but what is locked."""
    return sum(node.wallet.worth() for node in (*court.both, *court.judges))


def traded(court: Court, node: object = None) -> TradeState:
    state = (node or court.buyer).trade  # type: ignore[attr-defined]
    assert state is not None
    assert state.contract is not None
    assert state.facts is not None
    return state  # type: ignore[no-any-return]


def judge_state(node: CourtNode) -> ce.CaseState:
    assert node.case is not None
    return node.case


async def heard(court: Court, *, answered: bool = True) -> Court:
    """A declared payment, a case that the arbiter hears and, perhaps, the seller's answer."""
    await court.pay()
    await court.open(court.buyer, 1_000_000, "I paid")
    await court.until(lambda: court.main.case is not None and court.main.case.buried, "the arbiter sees the escrow")
    court.main.act(ce.AcceptCase(court.chain.height))
    if answered:
        await court.open(court.seller, 0, "nothing came")
        await court.until(lambda: judge_state(court.main).both_told, "both told")
    return court


async def settled_on_chain(court: Court, before: int, fee: int) -> Outcome:
    """Bury the payout and check that not one satoshi was lost on the way. Returns the outcome that both recorded."""
    await court.finish()
    buyer, seller = traded(court, court.buyer), traded(court, court.seller)
    assert buyer.payout.outcome == seller.payout.outcome
    payout = next(raw for block in court.chain.blocks for raw in block if txid_of(raw) == buyer.payout.txid)
    assert buyer.facts is not None
    mined = buyer.facts.escrow_value - sum(o.nValue for o in parse(payout).vout)
    assert worth(court) == before + buyer.facts.escrow_value - mined
    assert sum(node.wallet.worth() for node in court.judges) == fee
    assert buyer.payout.outcome is not None
    return buyer.payout.outcome


class TestEndings:
    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("share", [1_000_000, 0, 700_000, 500_000])
    async def test_ruling_is_paid_out_with_the_contracts_fee(self, tmp_path: Path, side: Side, share: int) -> None:
        court = await heard(Court(tmp_path, side))
        before = worth(court)
        await court.main.decide(share)
        outcome = await settled_on_chain(court, before, traded(court).contract.arbiter.fee)  # type: ignore[union-attr]
        assert isinstance(outcome, RulingOutcome)
        assert outcome.buyer_share == share
        await court.until(lambda: court.main.case_phase == "Closed", "closed")
        await court.end()

    async def test_buyer_is_paid_though_the_seller_never_comes_back(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL), answered=False)
        await court.seller.down()
        court.chain.mine(72)
        await court.until(lambda: judge_state(court.main).heard, "the time for evidence is over")
        await court.main.decide(1_000_000)
        await court.until(lambda: len(court.chain.mempool) == 1, "a payout")
        court.chain.mine(2)
        await court.until(lambda: court.buyer.phase == "Completed", "the buyer's end")
        await court.seller.up()
        await court.until(lambda: court.seller.phase == "Completed", "the seller learns of it when it is back")
        await court.end()

    @pytest.mark.parametrize("escrow", list(EscrowType))
    async def test_mutual_cancel_gives_everybody_its_own_coins(self, tmp_path: Path, escrow: EscrowType) -> None:
        court = Court(tmp_path, Side.SELL, escrow=escrow)
        await court.fund()
        before = worth(court)
        contract = traded(court).contract
        assert contract is not None
        due = cancelled_due(contract)
        court.give(court.seller, dv.ProposeSettlement(due, RATE))
        await court.until(lambda: bool(traded(court).settlement.options), "the proposal")
        (option,) = traded(court).settlement.options
        court.give(court.buyer, dv.AcceptSettlement(option.txid))
        outcome = await settled_on_chain(court, before, 0)
        assert outcome == SettlementOutcome(due, RATE)
        await court.end()

    async def test_settlement_during_the_dispute_ends_it(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.BUY))
        before = worth(court)
        court.give(court.seller, dv.ProposeSettlement(800_000, RATE))
        await court.until(lambda: bool(traded(court).settlement.options), "the proposal")
        (option,) = traded(court).settlement.options
        court.give(court.buyer, dv.AcceptSettlement(option.txid))
        await settled_on_chain(court, before, 0)
        await court.until(lambda: court.main.case_phase == "Closed", "the arbiter sees it on chain")
        await court.end()

    async def test_release_during_the_dispute_ends_it(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        before = worth(court)
        court.give(court.seller, ev.Release())
        assert await settled_on_chain(court, before, 0) == ReleaseOutcome()
        await court.until(lambda: court.main.case_phase == "Closed", "closed")
        with pytest.raises(IllegalTransition):
            await court.main.decide(0)
        await court.end()

    @pytest.mark.parametrize("how", ["release", "settlement"])
    async def test_case_that_nobody_has_looked_at_yet_ends_with_the_trade(self, tmp_path: Path, how: str) -> None:
        """The arbiter learns it from its own chain, and no message is needed for that."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        await court.open(court.buyer, 1_000_000, "I paid")
        await court.until(lambda: court.main.case is not None and court.main.case.buried, "queued")
        before = worth(court)
        if how == "release":
            court.give(court.seller, ev.Release())
        else:
            court.give(court.buyer, dv.ProposeSettlement(500_000, RATE))
            await court.until(lambda: bool(traded(court, court.seller).settlement.options), "the proposal")
            (option,) = traded(court, court.seller).settlement.options
            court.give(court.seller, dv.AcceptSettlement(option.txid))
        await settled_on_chain(court, before, 0)
        await court.until(lambda: court.main.case_phase == "Closed", "the arbiter knows")
        assert "case-closed" in [n.topic for n in court.main.notices.after(0)]
        assert not court.main.desk.cases.timers()
        await court.end()

    async def test_vanished_arbiter_leads_to_the_backup_after_the_delay(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        await court.main.down()
        court.give(court.buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))
        await court.until(lambda: traded(court, court.seller).dispute is not None, "the seller knows")
        court.chain.mine(145)
        await court.until(lambda: all(traded(court, n).bench is Branch.BACKUP for n in court.both), "both see it")
        await court.until(lambda: court.backup.case is not None, "the backup is asked by itself")
        court.give(court.seller, dv.OpenDispute(Claim("nothing came", 0)))
        await court.until(lambda: judge_state(court.backup).both_told and judge_state(court.backup).buried, "heard")
        before = worth(court)
        await court.backup.decide(1_000_000)
        await court.until(lambda: bool(traded(court).dispute.rulings), "the ruling")  # type: ignore[union-attr]
        assert not court.chain.mempool
        assert traded(court).backup_from is not None
        court.chain.mine((traded(court).backup_from or 0) - court.chain.height - 1)
        outcome = await settled_on_chain(court, before, traded(court).contract.backup.fee)  # type: ignore[union-attr]
        assert isinstance(outcome, RulingOutcome)
        assert outcome.branch is Branch.BACKUP
        await court.end()

    async def test_declined_case_goes_on_at_the_backup(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.BUY)
        await court.pay()
        await court.open(court.buyer, 1_000_000)
        court.main.act(ce.DeclineCase("I know the buyer"))
        await court.until(lambda: court.backup.case is not None, "the backup has it")
        state = traded(court)
        assert state.dispute is not None
        assert state.dispute.main.answer is Answer.DECLINED
        (opening, *_) = court.backup.engine.conversations.of_trade(state.trade_id, arbitrates=True)
        assert opening.side is Side.BUY
        await court.end()


def ruling_by(node: CourtNode, state: TradeState, **changes: object) -> Envelope:
    """A ruling that an arbiter signs without its machine; `changes` come after the payout was signed."""
    contract, branch = state.contract, Branch.MAIN
    assert contract is not None
    assert state.facts is not None
    outcome = RulingOutcome(branch, 0, 0, b"\x00\x14" + bytes(20), RATE)
    plan = derive_payout(contract, NETWORK, outcome)
    secret = arbiter_secret(node.keyring.arbiter_secret(node.keyring.persona.public), state.facts.contract_id)
    ruling = Ruling(
        contract.arbiter.persona, state.facts.contract_id, branch, 0, 0, contract.arbiter.fee, outcome.fee_script, RATE,
        Reason.OTHER, text_hash(""), NONE_YET, NONE_YET, sign_ecdsa(secret, plan.sighash),
    )  # fmt: skip
    return node.keyring.persona.seal(Kind.RULING, NETWORK, pack(replace(ruling, **changes)))


def told(node: CourtNode, state: TradeState, to: Side, ruling: Envelope, text: str = "") -> bytes:
    """An arbiter's next message to a party, past its own machine."""
    conversation = node.engine.conversations.find(state.trade_id, Branch.MAIN, to, arbitrates=True)
    assert conversation is not None
    heads = conversation.heads
    header = Header(conversation.chain, heads.sent, heads.sent_head, heads.received_head)
    kind, body = encode_case(header, CaseRuling(ruling.raw, text))
    return node.keyring.persona.seal(kind, NETWORK, body).raw


class TestRulings:
    @pytest.mark.parametrize(
        "change",
        [
            {"buyer_share": 1_000_000},
            {"fee": 999_999},
            {"fee_script": b"\x00\x14" + b"\x01" * 20},
            {"rate": RATE + 1},
            {"contract_id": bytes(32)},
            {"branch": Branch.BACKUP},
            {"arbiter": bytes(32)},
            {"payout_signature": b"\x30\x06\x02\x01\x01\x02\x01\x01"},
            {"text_hash": bytes(32)},
        ],
        ids=lambda c: next(iter(c)),
    )
    async def test_wrong_or_altered_ruling_is_refused(self, tmp_path: Path, change: dict[str, object]) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        state = traded(court)
        raw = told(court.main, state, Side.BUY, ruling_by(court.main, state, **change))
        with pytest.raises(PeerViolation):
            await court.buyer.intake.deliver(bytes(32), raw)
        assert traded(court).dispute.rulings == ()  # type: ignore[union-attr]
        await court.end()

    async def test_ruling_of_anybody_else_is_refused(self, tmp_path: Path) -> None:
        """Also of the backup arbiter, in the main one's name, and of the counterparty."""
        court = await heard(Court(tmp_path, Side.SELL))
        state = traded(court)
        for foreign in (court.backup, court.seller):
            ruling = ruling_by(foreign, state)  # type: ignore[arg-type]
            for messenger in (court.main, foreign):
                body = open_envelope(told(court.main, state, Side.BUY, ruling), NETWORK).body
                raw = messenger.keyring.persona.seal(Kind.CASE_RULING, NETWORK, body).raw
                with pytest.raises(PeerViolation):
                    await court.buyer.intake.deliver(bytes(32), raw)
        await court.end()

    async def test_ruling_is_worth_nothing_in_another_trade(self, tmp_path: Path) -> None:
        """Replayed: its signature is for one transaction of one contract, its key in one escrow."""
        (tmp_path / "one").mkdir()
        court = await heard(Court(tmp_path / "one", Side.SELL))
        await court.main.decide(0)
        await court.until(lambda: bool(traded(court).dispute.rulings), "the ruling")  # type: ignore[union-attr]
        ruling = open_envelope(traded(court).dispute.rulings[0].raw, NETWORK)  # type: ignore[union-attr]
        (tmp_path / "two").mkdir()
        other = await heard(Court(tmp_path / "two", Side.BUY))
        with pytest.raises(PeerViolation):
            await other.buyer.intake.deliver(bytes(32), told(other.main, traded(other), Side.BUY, ruling))
        await court.end()
        await other.end()

    async def test_repeated_ruling_changes_nothing(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        await court.main.decide(0)
        await court.until(lambda: bool(traded(court).dispute.rulings), "the ruling")  # type: ignore[union-attr]
        before = traded(court)
        first = open_envelope(before.dispute.rulings[0].raw, NETWORK)  # type: ignore[union-attr]
        message = told(court.main, before, Side.BUY, first, "because")
        await court.buyer.intake.deliver(bytes(32), message)
        assert traded(court).dispute == before.dispute
        await court.end()

    async def test_second_ruling_exposes_the_arbiter_and_is_not_acted_on(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        await court.main.decide(1_000_000)
        await court.until(lambda: bool(traded(court, court.seller).dispute.rulings), "the ruling")  # type: ignore[union-attr]
        state = traded(court, court.seller)
        second = ruling_by(court.main, state)
        await court.seller.intake.deliver(bytes(32), told(court.main, state, Side.SELL, second))
        dispute = traded(court, court.seller).dispute
        assert dispute is not None
        assert dispute.main.ruling is not None
        assert dispute.main.ruling.outcome.buyer_share == 1_000_000
        assert dispute.main.contradiction is not None
        assert dispute.main.contradiction.own_signature is None
        proof = traded(court, court.seller).equivocation(Branch.MAIN)
        assert proof is not None
        assert read_equivocation(proof, NETWORK) == state.facts.contract_id  # type: ignore[union-attr]
        await court.end()

    async def test_own_machine_never_signs_two(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        await court.main.decide(1_000_000)
        with pytest.raises(IllegalTransition):
            await court.main.decide(0)
        await court.until(lambda: court.main.case_phase in ("Ruled", "Closed"), "ruled")
        with pytest.raises(IllegalTransition):
            await court.main.decide(0)
        rulings = {read_ruling(open_envelope(r, NETWORK)) for r in _rulings(court)}
        assert len(rulings) <= 1
        await court.end()


def _rulings(court: Court) -> list[bytes]:
    state = court.main.case
    return [state.ruling] if state is not None and state.ruling is not None else []


class TestOpening:
    async def test_arbiter_of_an_undisputed_trade_receives_no_byte(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        received: list[bytes] = []
        await court.begin()
        for judge in court.judges:
            deliver = court.post.nodes[judge.keyring.node.public]

            async def record(node: bytes, raw: bytes, deliver: object = deliver) -> bytes:
                received.append(raw)
                return await deliver(node, raw)  # type: ignore[operator, no-any-return]

            court.post.nodes[judge.keyring.node.public] = record
        await court.take()
        await court.until(lambda: len(court.chain.mempool) == 1 and court.phases("Funding"), "funding")
        court.chain.mine(2)
        await court.until(lambda: court.phases("Funded") and traded(court).peer_details is not None, "funded")
        court.give(court.buyer, ev.DeclarePaid())
        await court.until(lambda: court.phases("Paid"), "paid")
        court.give(court.seller, ev.Release())
        await court.finish()
        assert received == []
        assert all(judge.case is None for judge in court.judges)
        await court.end()

    async def test_arbiter_cannot_find_its_key_on_chain_from_public_data(self, tmp_path: Path) -> None:
        """It knows its secret, every offer and announcement and the whole chain, the spent script included."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.give(court.seller, ev.Release())
        await court.finish()
        state = traded(court)
        contract = state.contract
        assert contract is not None
        script = derive_funding(contract, NETWORK).escrow
        on_chain = [raw for block in court.chain.blocks for raw in block]
        assert any(script.witness_script in raw for raw in on_chain), "the script is public once it is spent"
        public: set[bytes] = {choice.envelope.id for choice in court.arbiters}
        offer = court.offer.envelope
        public |= {offer.id, state.offer.offer_id, offer.signer, *(c.envelope.signer for c in court.arbiters)}
        public |= {sha256(o.raw).digest() for o in (offer, *(c.envelope for c in court.arbiters))}
        for raw in on_chain:
            tx = parse(raw)
            public |= {txid_of(raw), txid_of(raw)[::-1], sha256(raw).digest()}
            public |= {bytes(o.scriptPubKey)[-32:] for o in tx.vout}
            public |= {i.prevout.hash for i in tx.vin}
        public |= {digest(b"p2pnode/trade", a, b) for a in list(public) for b in list(public)[:50]}
        base, key = contract.arbiter.base_point, script.main[2]
        assert key not in b"".join(choice.envelope.raw for choice in court.arbiters)
        for guess in public:
            tweak = digest(b"p2pnode/arbiter-key", base, guess)
            assert tweak_public(base, tweak) != key
        assert state.facts is not None
        assert tweak_public(base, digest(b"p2pnode/arbiter-key", base, state.facts.contract_id)) == key
        print(f"{len(public)} public values tried")
        await court.end()

    async def test_two_disputes_at_once_are_one_case(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.give(court.buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))
        court.give(court.seller, dv.OpenDispute(Claim("nothing came", 0)))
        await court.until(lambda: court.main.case is not None and court.main.case.both_told, "one case")
        assert len(court.main.desk.cases.all()) == 1
        await court.end()

    async def test_dispute_after_completion_leads_nowhere(self, tmp_path: Path) -> None:
        """The party's own node refuses; a modified one finds an arbiter whose chain shows the escrow spent."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.give(court.seller, ev.Release())
        await court.finish()
        with pytest.raises(IllegalTransition):
            court.give(court.buyer, dv.OpenDispute(Claim("again", 1_000_000)))
        with pytest.raises(P2PError) as refused:
            await send_opening(court, court.buyer)
        assert refused.value.code == 2142
        assert court.main.case is None
        await court.end()

    async def test_case_about_coins_that_do_not_exist_takes_no_place_on_the_desk(self, tmp_path: Path) -> None:
        """Two personas of one attacker sign contracts as they like; an escrow costs real coins."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.chain.reorganise(2)
        court.chain.mempool.clear()
        with pytest.raises(P2PError) as refused:
            await send_opening(court, court.buyer)
        assert refused.value.code == 2142
        assert court.main.case is None
        await court.end()

    async def test_arbiter_decides_only_on_terms_that_it_announced(self, tmp_path: Path) -> None:
        """A maker could name an arbiter that never consented, or one at a fee that it never asked for."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.main.announced.clear()
        with pytest.raises(P2PError) as refused:
            await send_opening(court, court.buyer, drop_take=True)
        assert refused.value.code == 2174
        # With the Take in the file its own signature on the announcement is enough, whatever its store says.
        await send_opening(court, court.buyer)
        assert court.main.case is not None
        await court.end()

    async def test_announcement_that_was_replaced_changes_no_trade(self, tmp_path: Path) -> None:
        """A new fee or key counts for new trades only."""
        court = await heard(Court(tmp_path, Side.SELL))
        court.main.announce(fee=50_000, response_blocks=1, sequence=2)
        fee = traded(court).contract.arbiter.fee  # type: ignore[union-attr]
        await court.main.decide(0)
        before = worth(court)
        await settled_on_chain(court, before, fee)
        await court.end()

    async def test_case_of_strangers_is_refused(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        with pytest.raises(P2PError) as refused:
            await send_opening(court, court.buyer, signer=court.backup)
        assert refused.value.code == 2173
        assert court.main.case is None
        await court.end()

    async def test_bundle_of_a_real_dispute_verifies_and_names_nobody(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        await court.main.decide(700_000)
        await court.finish()
        state = traded(court)
        node = court.buyer
        conversations = tuple(
            Conversation(c.party, c.arbiter, tuple(raw for _, raw, _ in node.engine.trades.transcript(c.chain)))
            for c in node.engine.conversations.of_trade(state.trade_id, arbitrates=False)
        )
        bundle = Bundle(NETWORK, case_file(state, node.engine.trades), (), conversations, ())
        verdict = verify_bundle(build_bundle(bundle), EscrowChecks())
        assert verdict.findings == ()
        assert [seen.ruling.buyer_share for seen in verdict.rulings] == [700_000]
        assert verdict.rulings[0].payout_txid == state.payout.txid
        await court.end()


async def send_opening(court: Court, node: object, *, signer: CourtNode | None = None, drop_take: bool = False) -> None:
    """What a modified node could send: an opening that its machine would not make."""
    assert isinstance(node, CourtNode)
    state = traded(court, node)
    contract = state.contract
    assert contract is not None
    who = signer or node
    file = case_file(state, node.engine.trades)
    if drop_take:
        file = replace(file, messages=tuple(m for m in file.messages if open_envelope(m, NETWORK).kind != Kind.TAKE))
    opening = CaseOpening(file, Claim("x", 1_000_000), state.funding.height or 0, who.contact().raw, None)
    chain = case_id(contract.trade_id, who.keyring.persona.public, contract.arbiter.persona)
    kind, body = encode_case(Header(chain, 0, NONE_YET, NONE_YET), opening)
    await court.main.intake.deliver(bytes(32), who.keyring.persona.seal(kind, NETWORK, body).raw)


class TestInterruptions:
    async def test_conversation_is_mended_after_a_restore_from_an_older_copy(self, tmp_path: Path) -> None:
        """The buyer's disk fails after the arbiter has accepted; its backup knows only of the opening."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        await court.open(court.buyer, 1_000_000)
        await court.until(lambda: court.main.case is not None and court.main.case.buried, "the arbiter sees the escrow")
        await court.buyer.down()
        path = court.buyer.folder / f"{court.buyer.name}.db"
        copy = path.read_bytes()
        await court.buyer.up()
        court.main.act(ce.AcceptCase(court.chain.height))
        await court.until(lambda: _answer(court) is Answer.ACCEPTED, "the acceptance")
        await court.buyer.down()
        path.write_bytes(copy)
        await court.buyer.up()
        assert _answer(court) is Answer.WAITING
        court.buyer.reconciler.start()
        await court.until(lambda: _answer(court) is Answer.ACCEPTED, "told again")
        await court.end()


def _answer(court: Court) -> Answer | None:
    state = court.buyer.trade
    return state.dispute.main.answer if state is not None and state.dispute is not None else None
