"""Transcripts, case files and bundles with real signatures: what holds, what is refused, and who is to blame."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from escrow.judge import EscrowChecks
from protocol.attachment import describe
from protocol.bundle import BadBundle, Bundle, Conversation, Verdict, build_bundle, verify_bundle
from protocol.case_messages import CaseOpening, CaseRuling, Evidence
from protocol.casefile import BadCase, check_file
from protocol.errors import P2PError
from protocol.messages import (
    NONE_YET,
    Agreed,
    ChatLine,
    Claim,
    Disputed,
    FeeProposal,
    Header,
    OpenedDetails,
    Paid,
    PaymentDetails,
    Proposal,
    Released,
    decode,
    encode,
)
from protocol.outcome import ReleaseOutcome, SettlementOutcome
from protocol.ruling import Equivocation, NoEquivocation, read_equivocation
from protocol.transcript import BadTranscript, check_fork, find_fork, fit, read_transcript
from protocol.types import Branch, Side
from protocol.wire import Kind, open_envelope, pack
from tests.pictures import png
from tests.unit.escrow_support import NETWORK, fixed
from tests.unit.record_support import Record

CHECKS = EscrowChecks()
PNG = png()


def bundle(
    record: Record, *, other: tuple[bytes, ...] = (), contents: tuple[bytes, ...] = (), sealed: bool = True
) -> bytes:
    conversations = tuple(
        Conversation(record.keys[side].public, record.arbiters[branch].public, tuple(raws))
        for (side, branch), (_, _, raws) in record.cases.items()
    )
    return build_bundle(Bundle(NETWORK, record.file(sealed=sealed), other, conversations, contents))


def judged(record: Record) -> Verdict:
    return verify_bundle(bundle(record), CHECKS)


def parties(record: Record) -> tuple[bytes, bytes]:
    return record.keys[Side.SELL].public, record.keys[Side.BUY].public


def forged(record: Record, side: Side, number: int, payload: object) -> bytes:
    """Another message of a party's chain with the number of one that it had sent, and the same links."""
    raws = [open_envelope(raw, NETWORK) for raw in record.raws]
    old = next(decode(e) for e in raws if e.signer == record.keys[side].public and decode(e).header.number == number)
    kind, body = encode(old.header, payload)  # type: ignore[arg-type]
    return record.keys[side].seal(kind, NETWORK, body).raw


class TestTranscript:
    def test_order_needs_no_clock(self) -> None:
        record = Record()
        record.release()
        shuffled = [*reversed(record.raws)]
        read = read_transcript(shuffled, NETWORK, record.contract.trade_id, parties(record))
        assert [m.envelope.raw for m in read.messages] == record.raws

    def test_altered_removed_or_foreign_messages_are_refused(self) -> None:
        record = Record()
        record.release()
        chain, both = record.contract.trade_id, parties(record)
        altered = [record.raws[0].replace(b"sepa-instant", b"sepa-instanz", 1), *record.raws[1:]]
        for raws in (altered, [*record.raws, forged(record, Side.BUY, 1, ChatLine("x"))]):
            with pytest.raises(BadTranscript):
                read_transcript(raws, NETWORK, chain, both)
        with pytest.raises(BadTranscript):
            read_transcript(record.raws, NETWORK, fixed("other"), both)
        with pytest.raises(BadTranscript):
            read_transcript(record.raws, NETWORK, chain, (both[0], fixed("other")))

    def test_message_cannot_be_put_into_anothers_place(self) -> None:
        """The next message names the one before it, so replacing one breaks the link."""
        record = Record()
        record.pay()
        record.say(Side.BUY, ChatLine("well?"))
        swapped = [
            forged(record, Side.BUY, 2, ChatLine("I have not paid")) if i == 4 else raw
            for i, raw in enumerate(record.raws)
        ]
        with pytest.raises(BadTranscript, match="follow"):
            read_transcript(swapped, NETWORK, record.contract.trade_id, parties(record))

    def test_message_that_has_seen_what_is_not_there_is_refused(self) -> None:
        record = Record()
        record.agree()
        record.chains[Side.SELL].seen = fixed("never sent")
        record.say(Side.SELL, ChatLine("hello"))
        with pytest.raises(BadTranscript, match="seen"):
            read_transcript(record.raws, NETWORK, record.contract.trade_id, parties(record))

    def test_fork_names_and_proves_who_told_two_stories(self) -> None:
        record = Record()
        record.pay()
        own = read_transcript(record.raws, NETWORK, record.contract.trade_id, parties(record))
        two_faced = [*record.raws[:4], forged(record, Side.BUY, 2, ChatLine("I shall not pay"))]
        other = read_transcript(two_faced, NETWORK, record.contract.trade_id, parties(record))
        fork = find_fork(own, other)
        assert fork is not None
        assert fork.signer == record.keys[Side.BUY].public
        assert check_fork(fork, NETWORK) == record.contract.trade_id
        with pytest.raises(BadTranscript):
            check_fork(replace(fork, second=fork.first), NETWORK)
        assert (
            find_fork(own, read_transcript(record.raws[:3], NETWORK, record.contract.trade_id, parties(record))) is None
        )

    def test_flood_of_chat_cannot_make_a_record_too_long(self) -> None:
        record = Record()
        record.pay()
        for _ in range(50):
            record.say(Side.SELL, ChatLine("x" * 2_000))
        whole = sum(map(len, record.raws))
        fitting = fit(record.raws, whole // 2, NETWORK, keep_take=True)
        assert sum(map(len, fitting)) < whole // 2
        read = read_transcript(fitting, NETWORK, record.contract.trade_id, parties(record))
        assert read.omitted == len(record.raws) - len(fitting)
        assert {m.envelope.kind for m in read.messages} >= {Kind.TAKE, Kind.ACCEPT, Kind.SEAL, Kind.PAID}
        assert len(fit(record.raws, 2_000, NETWORK, keep_take=False)) < len(
            fit(record.raws, 2_000, NETWORK, keep_take=True)
        )


class TestCaseFile:
    def test_one_copy_with_both_signatures_suffices(self) -> None:
        record = Record()
        record.pay()
        assert check_file(record.file(), NETWORK).contract == record.contract

    def test_withheld_seal_does_not_save_the_taker(self) -> None:
        """Its Take is signed: the contract follows from that and the Accept."""
        record = Record()
        record.agree(seal=False)
        assert check_file(record.file(sealed=False), NETWORK).contract == record.contract

    def test_contract_that_the_taker_never_signed_is_refused(self) -> None:
        record = Record()
        record.agree(seal=False)
        other = replace(record.contract, amount=record.contract.amount + 1)
        file = replace(record.file(sealed=False), contract=other)
        with pytest.raises(BadCase):
            check_file(file, NETWORK)
        with pytest.raises(BadCase):
            check_file(replace(record.file(sealed=False), messages=()), NETWORK)

    def test_take_that_another_signed_binds_nobody(self) -> None:
        """The maker could sign a Take in its own chain, and frame anybody as the taker."""
        record = Record()
        kind, body = encode(Header(record.contract.trade_id, 0, NONE_YET, NONE_YET), record.take)
        frame = record.keys[Side.SELL].seal(kind, NETWORK, body)
        file = replace(record.file(sealed=False), messages=(frame.raw,))
        with pytest.raises(BadCase):
            check_file(file, NETWORK)

    @pytest.mark.parametrize("field", ["maker_signature", "taker_signature"])
    def test_signature_of_another_is_refused(self, field: str) -> None:
        record = Record()
        record.pay()
        with pytest.raises(BadCase):
            check_file(replace(record.file(), **{field: bytes(64)}), NETWORK)

    def test_other_offer_than_the_contracts_is_refused(self) -> None:
        record = Record()
        record.pay()
        with pytest.raises(BadCase, match="another offer"):
            check_file(replace(record.file(), offer=replace(record.offer, payment_window=1)), NETWORK)


class TestVerdict:
    def test_happy_trade_has_no_culprit(self) -> None:
        record = Record()
        record.release()
        verdict = judged(record)
        assert verdict.findings == ()
        assert (verdict.buyer_phase, verdict.seller_phase) == ("Paid", "Settling")

    def test_disputed_and_settled_trade_has_no_culprit(self) -> None:
        record = Record()
        record.pay()
        record.say(Side.BUY, Disputed(Claim("pay me", 1_000_000)))
        record.say(Side.SELL, Disputed(Claim("nothing came", 0)))
        outcome = SettlementOutcome(500_000, record.contract.fees.payout)
        record.say(Side.SELL, Proposal(500_000, outcome.rate, record.sign(Side.SELL, outcome)))
        txid = CHECKS.payout_txid(record.contract, NETWORK, outcome)
        record.say(Side.BUY, Agreed(txid, record.sign(Side.BUY, outcome)))
        assert judged(record).findings == ()

    @pytest.mark.parametrize("proposer", list(Side))
    def test_fee_that_both_raised_has_no_culprit(self, proposer: Side) -> None:
        """The answer is the node's own: no command of a user stands behind it."""
        record = Record()
        record.release()
        fees = record.contract.fees
        raised = ReleaseOutcome(fees.payout_max)
        base = CHECKS.payout_txid(record.contract, NETWORK, ReleaseOutcome())
        record.say(proposer, FeeProposal(base, fees.payout_max, record.sign(proposer, raised)))
        txid = CHECKS.payout_txid(record.contract, NETWORK, raised)
        record.say(proposer.other, Agreed(txid, record.sign(proposer.other, raised)))
        assert judged(record).findings == ()

    def test_fee_outside_the_band_or_of_a_foreign_payout_is_its_proposers_fault(self) -> None:
        fees = Record().contract.fees
        base = CHECKS.payout_txid(Record().contract, NETWORK, ReleaseOutcome())
        for rate, of in ((fees.payout_max + 1, base), (fees.payout_max, fixed("elsewhere"))):
            record = Record()
            record.release()
            record.say(Side.BUY, FeeProposal(of, rate, record.sign(Side.BUY)))
            assert [f.persona for f in judged(record).findings] == [record.keys[Side.BUY].public]

    def test_answer_to_a_fee_that_nobody_proposed_is_its_senders_fault(self) -> None:
        record = Record()
        record.release()
        raised = ReleaseOutcome(record.contract.fees.payout_max)
        txid = CHECKS.payout_txid(record.contract, NETWORK, raised)
        record.say(Side.SELL, Agreed(txid, record.sign(Side.SELL, raised)))
        assert [f.persona for f in judged(record).findings] == [record.keys[Side.SELL].public]

    def test_false_payment_details_are_the_sellers_fault(self) -> None:
        record = Record()
        record.agree()
        record.say(Side.SELL, PaymentDetails(OpenedDetails(bytes(32), (("iban", "another"),))))
        (finding,) = judged(record).findings
        assert finding.persona == record.keys[Side.SELL].public
        assert "payment details" in finding.what

    def test_worthless_payout_signature_is_the_buyers_fault(self) -> None:
        record = Record()
        record.agree()
        record.say(Side.SELL, PaymentDetails(record.opened[Side.SELL]))
        record.say(Side.BUY, Paid(record.opened[Side.BUY], record.sign(Side.SELL), ""))
        (finding,) = judged(record).findings
        assert finding.persona == record.keys[Side.BUY].public

    def test_release_of_another_payout_is_the_sellers_fault(self) -> None:
        record = Record()
        record.pay()
        record.say(Side.SELL, Released(fixed("elsewhere")))
        assert [f.persona for f in judged(record).findings] == [record.keys[Side.SELL].public]

    def test_payment_after_a_signed_settlement_is_the_buyers_fault(self) -> None:
        """It signed the coins away and then claims to have paid for them."""
        record = Record()
        record.agree()
        record.say(Side.SELL, PaymentDetails(record.opened[Side.SELL]))
        outcome = SettlementOutcome(record.contract.buyer_deposit, record.contract.fees.payout)
        record.say(Side.BUY, Proposal(outcome.buyer_due, outcome.rate, record.sign(Side.BUY, outcome)))
        record.say(Side.BUY, Paid(record.opened[Side.BUY], record.sign(Side.BUY), ""))
        (finding,) = judged(record).findings
        assert finding.persona == record.keys[Side.BUY].public
        assert "out of turn" in finding.what

    def test_message_before_its_time_is_its_senders_fault(self) -> None:
        record = Record()
        record.agree()
        record.say(Side.BUY, Paid(record.opened[Side.BUY], record.sign(Side.BUY), ""))
        assert [f.persona for f in judged(record).findings] == [record.keys[Side.BUY].public]

    def test_crossing_messages_are_nobodys_fault(self) -> None:
        """The buyer declares its payment before it has seen the seller's proposal."""
        record = Record()
        record.agree()
        record.say(Side.SELL, PaymentDetails(record.opened[Side.SELL]))
        seen = record.chains[Side.BUY].seen
        outcome = SettlementOutcome(record.contract.buyer_deposit, record.contract.fees.payout)
        record.say(Side.SELL, Proposal(outcome.buyer_due, outcome.rate, record.sign(Side.SELL, outcome)))
        record.chains[Side.BUY].seen = seen
        record.say(Side.BUY, Paid(record.opened[Side.BUY], record.sign(Side.BUY), ""))
        assert judged(record).findings == ()

    def test_second_copy_shows_who_forked(self) -> None:
        record = Record()
        record.pay()
        other = (*record.raws[:4], forged(record, Side.BUY, 2, ChatLine("I shall not pay")))
        verdict = verify_bundle(bundle(record, other=other), CHECKS)
        assert len(verdict.forks) == 1
        assert [f.persona for f in verdict.findings] == [record.keys[Side.BUY].public]

    def test_changed_bundle_is_refused(self) -> None:
        record = Record()
        record.release()
        data = bytearray(bundle(record))
        for position in range(100, len(data), 997):
            data[position] ^= 1
            with pytest.raises(P2PError):
                verify_bundle(bytes(data), CHECKS)
            data[position] ^= 1


class TestRulings:
    def opened(self) -> Record:
        record = Record()
        record.pay()
        contact = record.announced[Branch.MAIN][0].raw
        record.tell(Side.BUY, Branch.MAIN, CaseOpening(record.file(), Claim("paid", 1_000_000), 100, contact, None))
        return record

    def test_ruling_is_shown_with_its_payout(self) -> None:
        record = self.opened()
        ruling = record.ruling(700_000)
        record.tell(Side.BUY, Branch.MAIN, CaseRuling(ruling.raw, "because"), by_arbiter=True)
        verdict = judged(record)
        assert [r.ruling.buyer_share for r in verdict.rulings] == [700_000]
        assert verdict.findings == ()

    @pytest.mark.parametrize(
        "change",
        [
            {"fee": 1},
            {"buyer_share": 1_000_000},
            {"contract_id": bytes(32)},
            {"arbiter": bytes(32)},
            {"rate": 2_999},
        ],
        ids=lambda c: next(iter(c)),
    )
    def test_wrong_ruling_is_refused(self, change: dict[str, object]) -> None:
        record = self.opened()
        ruling = record.ruling(700_000, **change)  # type: ignore[arg-type]
        record.tell(Side.BUY, Branch.MAIN, CaseRuling(ruling.raw, "because"), by_arbiter=True)
        with pytest.raises(BadBundle):
            judged(record)

    def test_text_that_was_changed_is_refused(self) -> None:
        record = self.opened()
        record.tell(Side.BUY, Branch.MAIN, CaseRuling(record.ruling(0).raw, "another reason"), by_arbiter=True)
        with pytest.raises(BadBundle):
            judged(record)

    def test_two_rulings_expose_the_arbiter(self) -> None:
        record = self.opened()
        one, two = record.ruling(0), record.ruling(1_000_000)
        for ruling in (one, two):
            record.tell(Side.BUY, Branch.MAIN, CaseRuling(ruling.raw, "because"), by_arbiter=True)
        verdict = judged(record)
        assert verdict.equivocation is not None
        assert read_equivocation(verdict.equivocation, NETWORK)
        assert [f.persona for f in verdict.findings] == [record.arbiters[Branch.MAIN].public]
        size = len(record.keys[Side.BUY].seal(Kind.EQUIVOCATION, NETWORK, pack(verdict.equivocation)).raw)
        assert size <= Kind.EQUIVOCATION.limit
        print(f"an equivocation proof has {size} bytes")

    def test_equivocation_needs_two_different_rulings_of_one_arbiter(self) -> None:
        """Anybody could be accused otherwise."""
        record = self.opened()
        one, two = record.ruling(0), record.ruling(0, branch=Branch.BACKUP)
        arbiter = record.arbiters[Branch.MAIN].public
        for pair in ((one, one), (one, two)):
            with pytest.raises(NoEquivocation):
                read_equivocation(Equivocation(arbiter, pair[0].raw, pair[1].raw), NETWORK)

    def test_evidence_that_was_swapped_is_refused(self) -> None:
        record = self.opened()
        record.tell(Side.BUY, Branch.MAIN, Evidence("look", (describe(PNG, "receipt.png"),)))
        verdict = verify_bundle(bundle(record, contents=(PNG,)), CHECKS)
        assert [present for _, present in verdict.attachments] == [True]
        with pytest.raises(BadBundle):
            verify_bundle(bundle(record, contents=(PNG + b"!",)), CHECKS)
        assert [present for _, present in judged(record).attachments] == [False]

    def test_party_that_rules_for_itself_is_named(self) -> None:
        record = self.opened()
        record.tell(Side.BUY, Branch.MAIN, CaseRuling(record.ruling(0).raw, "because"))
        assert [f.persona for f in judged(record).findings] == [record.keys[Side.BUY].public]
