"""Disputes in which somebody cheats: keys swapped or shared, stories told twice, floods, words that come too late."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.errors import BadPayoutSignature
from escrow.judge import EscrowChecks
from escrow.keys import arbiter_secret, public_key
from escrow.payout import derive_payout
from escrow.signatures import sign_ecdsa
from p2pnode.divergence import pairs
from p2pnode.engine import case_file
from p2pnode.intake import Diverged, WrongTime
from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.bundle import Bundle, build_bundle, verify_bundle
from protocol.case_messages import MAX_EVIDENCE, MAX_LINES, CaseOpening, Evidence, case_id, decode_case, encode_case
from protocol.contract import BadContract, build_contract
from protocol.errors import BadSignature, Malformed, P2PError
from protocol.messages import NONE_YET, Accept, ChatLine, Claim, Header, decode, encode
from protocol.offer import ArbiterRef
from protocol.outcome import RulingOutcome
from protocol.ruling import Equivocation, Reason, Ruling, read_equivocation, text_hash
from protocol.trade_state import Answer
from protocol.types import PPM, Branch, Side
from protocol.wire import Kind, open_envelope, pack
from tests.court import Court, CourtNode
from tests.machines.duel import Duel
from tests.malice.test_disputes import heard, judge_state, ruling_by, send_opening, told, traded
from tests.world import NETWORK


def court_of(node: object) -> CourtNode:
    assert isinstance(node, CourtNode)
    return node


class TestKeys:
    @pytest.mark.parametrize("who", ["maker", "taker"])
    def test_arbiter_that_is_a_party_is_refused(self, who: str) -> None:
        """Under one persona with a party, or with a key that a party brings to the escrow."""
        duel = Duel(Side.SELL)
        party = duel.maker_party if who == "maker" else duel.taker_party
        contract, offer = duel.contract, duel.offer
        assert contract.backup is not None
        for accused in (
            replace(contract.arbiter, persona=party.persona),
            replace(contract.arbiter, base_point=party.keys.main),
            replace(contract.arbiter, base_point=b"\x03" + party.keys.backup[1:]),
            replace(contract.arbiter, persona=contract.backup.persona, announcement=contract.backup.announcement),
            replace(contract.arbiter, base_point=contract.backup.base_point),
        ):
            named = replace(
                offer,
                arbiters=(ArbiterRef(accused.persona, accused.announcement), *offer.arbiters),
            )
            with pytest.raises(BadContract, match="the same"):
                build_contract(
                    named,
                    duel.take.take.bargain,
                    taker=duel.taker_party,
                    maker=duel.maker_party,
                    arbiter=accused,
                    backup=contract.backup,
                )

    async def test_offer_whose_maker_is_the_arbiter_is_no_offer(self, tmp_path: Path) -> None:
        """Nobody's book takes it, so nobody can take it."""
        court = Court(tmp_path, Side.SELL)
        court.arbiters = (court_of(court.maker).announce(), court.arbiters[1])
        with pytest.raises(Malformed, match="differ from each other and from the maker"):
            await court.begin()
        await court.end()

    async def test_arbiter_key_that_the_maker_swaps_after_the_take_is_refused(self, tmp_path: Path) -> None:
        """The taker derives the contract from the announcement that it sent: another key makes another contract."""
        court = Court(tmp_path, Side.SELL)
        await court.begin()
        seen: list[int] = []

        def swap(raw: bytes) -> bytes:
            """The maker signs a contract in which the arbiter's key is its own."""
            envelope = open_envelope(raw, NETWORK)
            state = court.maker.trade
            if envelope.kind != Kind.ACCEPT or state is None or state.contract is None:
                return raw
            message = decode(envelope)
            assert isinstance(message.payload, Accept)
            arbiter = replace(state.contract.arbiter, base_point=public_key(bytes([9]) * 32))
            other = replace(state.contract, arbiter=arbiter)
            signed = court.maker.keyring.persona.seal(Kind.CONTRACT, NETWORK, pack(other))
            kind, body = encode(message.header, replace(message.payload, contract_signature=signed.signature))
            seen.append(kind)
            return court.maker.keyring.persona.seal(kind, NETWORK, body).raw

        court.post.tamper = swap
        await court.take()
        await court.until(lambda: any(isinstance(e, BadSignature) for e in court.post.refused), "the refusal")
        assert seen
        assert court.taker.phase == "Taking", "nothing was signed"
        assert not court.chain.mempool
        await court.end()

    async def test_contract_with_the_arbiters_name_and_anothers_key_is_not_heard(self, tmp_path: Path) -> None:
        """Both parties collude: they sign what the arbiter never announced, with its announcement's id."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        envelope, announcement = court.main.announced[court.arbiters[0].envelope.id]
        changed = replace(announcement, base_point=public_key(bytes([9]) * 32))
        court.main.announced[envelope.id] = (envelope, changed)
        with pytest.raises(P2PError) as refused:
            await send_opening(court, court.buyer)
        assert refused.value.code == 2174
        await court.end()


class TestStories:
    @pytest.mark.parametrize("how", ["another message", "another past"])
    async def test_divergence_is_told_to_both_sides_at_once_and_proved(self, tmp_path: Path, how: str) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.fund()
        court.give(court.seller, dv.SendChat("pay to the account that I gave you"))
        await court.until(lambda: not court.seller.engine.trades.recipients(), "the line")
        state, liar = traded(court, court.seller), court.seller
        stored = liar.engine.trades.get(state.trade_id)
        assert stored is not None
        heads = stored.heads
        number = heads.sent - 1 if how == "another message" else heads.sent
        prev = liar.engine.trades.message(state.trade_id, heads.sent - 2, out=True)
        assert prev is not None
        past = open_envelope(prev, NETWORK).id if how == "another message" else bytes([7]) * 32
        kind, body = encode(Header(state.trade_id, number, past, heads.received_head, 2), ChatLine("I never said that"))
        raw = liar.keyring.persona.seal(kind, NETWORK, body).raw
        with pytest.raises(Diverged):
            await court.buyer.intake.deliver(bytes(32), raw)
        topics = [n.topic for n in court.buyer.notices.after(0)]
        assert "transcript-diverged" in topics
        # The liar's node is told by the refusal of its message.
        liar.engine.refused(state.trade_id, Diverged.code, "")
        assert "transcript-diverged" in [n.topic for n in liar.notices.after(0)]
        forks = court.buyer.engine.divergences.of_trade(state.trade_id)
        assert [fork.signer for fork in forks] == [liar.keyring.persona.public]
        file = case_file(traded(court), court.buyer.engine.trades)
        verdict = verify_bundle(build_bundle(Bundle(NETWORK, file, (), (), (), pairs(forks))), EscrowChecks())
        assert [f.persona for f in verdict.findings] == [liar.keyring.persona.public]
        await court.end()

    async def test_message_that_has_seen_what_was_never_sent_accuses_nobody(self, tmp_path: Path) -> None:
        """It may as well be our own record that is damaged."""
        court = Court(tmp_path, Side.SELL)
        await court.fund()
        state, liar = traded(court, court.seller), court.seller
        stored = liar.engine.trades.get(state.trade_id)
        assert stored is not None
        header = Header(state.trade_id, stored.heads.sent, stored.heads.sent_head, bytes([7]) * 32)
        kind, body = encode(header, ChatLine("as you said"))
        with pytest.raises(Diverged):
            await court.buyer.intake.deliver(bytes(32), liar.keyring.persona.seal(kind, NETWORK, body).raw)
        assert court.buyer.engine.divergences.of_trade(state.trade_id) == ()
        assert "transcript-diverged" in [n.topic for n in court.buyer.notices.after(0)]
        await court.end()

    async def test_second_ruling_is_exposed_with_both_even_after_the_end(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        proofs: list[Equivocation] = []
        court.seller.engine.on_exposed = proofs.append
        await court.main.decide(1_000_000)
        await court.finish()
        state = traded(court, court.seller)
        await court.seller.intake.deliver(bytes(32), told(court.main, state, Side.SELL, ruling_by(court.main, state)))
        (proof,) = proofs
        assert proof.arbiter == court.main.keyring.persona.public
        assert state.facts is not None
        assert read_equivocation(proof, NETWORK) == state.facts.contract_id
        assert "arbiter-contradicts-itself" in [n.topic for n in court.seller.notices.after(0)]
        assert court.seller.phase == "Completed"
        await court.end()

    async def test_arbiter_that_tells_each_party_something_else_is_exposed_to_both(self, tmp_path: Path) -> None:
        """Each node has one ruling only, and completes it; what the chain shows makes them compare."""
        court = await heard(Court(tmp_path, Side.SELL))
        state = traded(court)
        other = ruling_by(court.main, state)
        sellers = court.main.engine.conversations.find(state.trade_id, Branch.MAIN, Side.SELL, arbitrates=True)
        assert sellers is not None
        lie = told(court.main, state, Side.SELL, other)

        def two_faced(raw: bytes) -> bytes:
            envelope = open_envelope(raw, NETWORK)
            to_seller = envelope.kind == Kind.CASE_RULING and decode_case(envelope).header.trade_id == sellers.chain
            return lie if to_seller else raw

        court.post.tamper = two_faced
        proofs: dict[str, list[Equivocation]] = {node.name: [] for node in court.both}
        for node in court.both:
            node.engine.on_exposed = proofs[node.name].append
        await court.main.decide(1_000_000)
        await court.until(lambda: len(court.chain.mempool) == 1, "one of the payouts")
        court.chain.mine(2)
        await court.until(lambda: all(proofs.values()), "both have the proof")
        await court.until(lambda: court.phases("Completed"), "both know what they see")
        for found in proofs.values():
            assert read_equivocation(found[0], NETWORK) == state.facts.contract_id  # type: ignore[union-attr]
        await court.end()


class TestMoney:
    async def test_ruling_over_a_payout_with_a_higher_fee_is_refused(self, tmp_path: Path) -> None:
        """It names the contract's fee, and signs a transaction that pays the arbiter more."""
        court = await heard(Court(tmp_path, Side.SELL))
        state = traded(court)
        contract = state.contract
        assert contract is not None
        assert state.facts is not None
        greedy = replace(contract, arbiter=replace(contract.arbiter, fee=contract.arbiter.fee + 10_000))
        outcome = RulingOutcome(Branch.MAIN, 0, 0, b"\x00\x14" + bytes(20), contract.fees.payout)
        plan = derive_payout(greedy, NETWORK, outcome)
        secret = arbiter_secret(court.main.keyring.arbiter_secret(contract.arbiter.persona), state.facts.contract_id)
        ruling = Ruling(
            contract.arbiter.persona, state.facts.contract_id, Branch.MAIN, 0, 0, contract.arbiter.fee,
            outcome.fee_script, outcome.rate, Reason.OTHER, text_hash(""), NONE_YET, NONE_YET,
            sign_ecdsa(secret, plan.sighash),
        )  # fmt: skip
        envelope = court.main.keyring.persona.seal(Kind.RULING, NETWORK, pack(ruling))
        with pytest.raises(BadPayoutSignature):
            await court.buyer.intake.deliver(bytes(32), told(court.main, state, Side.BUY, envelope))
        await court.end()

    @pytest.mark.parametrize("change", [{"buyer_share": PPM + 1}, {"forfeit": PPM + 1}])
    async def test_ruling_of_more_than_there_is_cannot_be_written_down(
        self, tmp_path: Path, change: dict[str, int]
    ) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        state = traded(court)
        raw = told(court.main, state, Side.BUY, ruling_by(court.main, state, **change))
        with pytest.raises(Malformed):
            await court.buyer.intake.deliver(bytes(32), raw)
        with pytest.raises(P2PError):
            await court.main.decide(PPM + 1)
        await court.end()

    async def test_claim_of_more_than_there_is_is_refused(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        state, buyer = traded(court), court_of(court.buyer)
        file = case_file(state, buyer.engine.trades)
        opening = CaseOpening(
            file, Claim("all and more", PPM + 1), state.funding.height or 0, buyer.contact().raw, None
        )
        chain = case_id(state.trade_id, buyer.keyring.persona.public, court.main.keyring.persona.public)
        kind, body = encode_case(Header(chain, 0, NONE_YET, NONE_YET), opening)
        with pytest.raises(Malformed):
            await court.main.intake.deliver(bytes(32), buyer.keyring.persona.seal(kind, NETWORK, body).raw)
        assert court.main.case is None
        await court.end()

    async def test_late_ruling_moves_no_coins_while_the_backup_decides(self, tmp_path: Path) -> None:
        """The arbiter missed its own time, and rules all the same."""
        court = await heard(Court(tmp_path, Side.SELL))
        court.chain.mine(145)
        await court.until(lambda: all(traded(court, n).bench is Branch.BACKUP for n in court.both), "passed over")
        for node in court.both:
            dispute = traded(court, node).dispute
            assert dispute is not None
            assert dispute.main.answer is Answer.MISSED
        await court.main.decide(1_000_000)
        await court.until(
            lambda: all(d.main.ruling for n in court.both if (d := traded(court, n).dispute)), "the late ruling"
        )
        await court.pause()
        assert not court.chain.mempool
        await court.backup_hears()
        await court.backup.decide(0)
        court.chain.mine((traded(court).backup_from or 0) - court.chain.height - 1)
        await court.finish()
        outcome = traded(court, court.seller).payout.outcome
        assert isinstance(outcome, RulingOutcome)
        assert (outcome.branch, outcome.buyer_share) == (Branch.BACKUP, 0)
        await court.end()


class TestFloods:
    async def test_evidence_and_chat_have_an_end_at_the_arbiter(self, tmp_path: Path) -> None:
        """A modified node would fill the arbiter's disk; our own stops before the arbiter has to."""
        court = await heard(Court(tmp_path, Side.SELL))
        for _ in range(MAX_EVIDENCE):
            court.give(court.buyer, dv.SendEvidence("look"))
        for _ in range(MAX_LINES):
            court.give(court.buyer, dv.WriteArbiter("well?"))
        await court.until(lambda: not court.buyer.engine.trades.recipients(), "everything delivered")
        assert judge_state(court.main).buyer.evidence == MAX_EVIDENCE
        assert judge_state(court.main).buyer.written == MAX_LINES
        for more in (dv.SendEvidence("more"), dv.WriteArbiter("more")):
            with pytest.raises(P2PError, match="as one case allows"):
                court.give(court.buyer, more)
        conversation = court.main.engine.conversations.find(
            traded(court).trade_id, Branch.MAIN, Side.BUY, arbitrates=True
        )
        assert conversation is not None
        heads = conversation.heads
        for payload in (Evidence("more", ()), ChatLine("more")):
            header = Header(conversation.chain, heads.received, heads.received_head, heads.sent_head)
            kind, body = encode_case(header, payload)
            raw = court.buyer.keyring.persona.seal(kind, NETWORK, body).raw
            with pytest.raises(WrongTime):
                await court.main.intake.deliver(bytes(32), raw)
        await court.end()

    async def test_evidence_after_the_hearing_is_kept_and_marked_late(self, tmp_path: Path) -> None:
        court = await heard(Court(tmp_path, Side.SELL))
        court.chain.mine(72)
        await court.until(lambda: judge_state(court.main).heard, "the time for evidence is over")
        court.give(court.buyer, dv.SendEvidence("found it at last"))
        await court.until(lambda: judge_state(court.main).buyer.late == 1, "late evidence")
        assert judge_state(court.main).buyer.evidence == 0
        await court.main.decide(0)
        await court.finish()
        await court.end()

    async def test_full_desk_refuses_and_the_case_goes_on_elsewhere(self, tmp_path: Path) -> None:
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        court.main.desk.intake._max_open = 0
        court.give(court.buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))
        await court.until(lambda: any(e.code == 2175 for e in court.post.refused), "refused")
        court.chain.mine(145)
        await court.until(lambda: court.backup.case is not None, "the backup has it")
        await court.end()


class TestOneCopy:
    async def test_case_is_decided_and_paid_when_the_other_side_has_lost_everything(self, tmp_path: Path) -> None:
        """The seller's node is gone for good: one copy is enough, for both signed the contract."""
        court = Court(tmp_path, Side.SELL)
        await court.pay()
        await court.seller.down()
        (tmp_path / f"{court.seller.name}.db").unlink()
        court.give(court.buyer, dv.OpenDispute(Claim("I paid", 1_000_000)))
        await court.until(lambda: court.main.case is not None and court.main.case.buried, "the case")
        court.main.act(ce.AcceptCase(court.chain.height))
        court.chain.mine(72)
        await court.until(lambda: judge_state(court.main).heard, "the time for evidence is over")
        await court.main.decide(1_000_000)
        await court.until(lambda: len(court.chain.mempool) == 1, "the payout")
        court.chain.mine(2)
        await court.until(lambda: court.buyer.phase == "Completed", "the end")
        await court.buyer.down()
        for judge in court.judges:
            await judge.down()

    async def test_release_and_settlement_end_a_case_that_is_already_ruled(self, tmp_path: Path) -> None:
        """The winner is gone; the loser releases all the same, and the arbiter sees that it is over."""
        court = await heard(Court(tmp_path, Side.SELL))
        await court.buyer.down()
        await court.main.decide(1_000_000)
        await court.until_up(lambda: bool((d := traded(court, court.seller).dispute) and d.main.ruling), "the ruling")
        court.give(court.seller, ev.Release())
        await court.until_up(lambda: len(court.chain.mempool) == 1, "the payout")
        court.chain.mine(2)
        await court.until_up(lambda: court.main.case_phase == "Closed", "closed")
        assert "paid out otherwise" in judge_state(court.main).ending
        await court.buyer.up()
        await court.until(lambda: court.phases("Completed"), "both")
        await court.end()
