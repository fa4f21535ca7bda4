"""Who broke what: every kind of breach that a record can show is named, and nobody is framed by another's word."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from escrow.judge import EscrowChecks
from protocol.attachment import Attachment, content_hash
from protocol.bundle import BadBundle, Bundle, Conversation, Verdict, build_bundle, verify_bundle
from protocol.case_messages import (
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseMessage,
    CaseOpening,
    CaseRuling,
    Evidence,
    decode_case,
)
from protocol.messages import (
    Accept,
    Agreed,
    AttachmentOffer,
    ChatLine,
    Claim,
    Disputed,
    Extension,
    ExtensionRequest,
    Funding,
    Paid,
    PaymentDetails,
    Proposal,
    Released,
    RulingShown,
    Seal,
    decode,
    encode,
)
from protocol.outcome import SettlementOutcome
from protocol.types import Branch, Side
from protocol.wire import Envelope, open_envelope
from tests.unit.escrow_support import NETWORK, fixed
from tests.unit.record_support import Record

CHECKS = EscrowChecks()
BURIED, WINDOW, PROMISED = 100, 144, 144
"""Where the escrow lies (one confirmation is asked), and what contract and arbiter promise."""


def verdict(record: Record, *, sealed: bool = True, forks: tuple[tuple[bytes, bytes], ...] = ()) -> Verdict:
    conversations = tuple(
        Conversation(record.keys[side].public, record.arbiters[branch].public, tuple(raws))
        for (side, branch), (_, _, raws) in record.cases.items()
    )
    data = build_bundle(Bundle(NETWORK, record.file(sealed=sealed), (), conversations, (), forks))
    return verify_bundle(data, CHECKS)


def against(record: Record, who: object, *, sealed: bool = True) -> str:
    """The one finding, which must be against a side or (a branch) an arbiter."""
    (finding,) = verdict(record, sealed=sealed).findings
    key = record.keys[who] if isinstance(who, Side) else record.arbiters[who]  # type: ignore[index]
    assert finding.persona == key.public
    return finding.what


def funded(*, height: int = BURIED) -> Record:
    """The seller has opened its payment details in the block that buried the escrow."""
    record = Record()
    record.agree()
    record.height = height
    record.say(Side.SELL, PaymentDetails(record.opened[Side.SELL]))
    return record


def declare(record: Record, height: int) -> Record:
    record.height = height
    record.say(Side.BUY, Paid(record.opened[Side.BUY], record.sign(Side.BUY), ""))
    return record


def opens(record: Record, side: Side, *, claim: Claim | None = None, at: int = BURIED, tells: bool = True) -> Envelope:
    """A party asks the main arbiter, and tells the counterparty."""
    said = claim or Claim("mine", 1_000_000 if side is Side.BUY else 0)
    if tells:
        record.say(side, Disputed(said))
    contact = record.announced[Branch.MAIN][0].raw
    return record.tell(side, Branch.MAIN, CaseOpening(record.file(), said, at, contact, None))


def heard(*, both: bool = True, at: int = 300) -> Record:
    """The arbiter has accepted, and hears evidence for half of its time."""
    record = declare(funded(), 110)
    record.height = at
    opens(record, Side.BUY)
    if both:
        opens(record, Side.SELL)
    for side in Side if both else (Side.BUY,):
        record.tell(side, Branch.MAIN, CaseAccepted(at + PROMISED // 2, None), by_arbiter=True)
    return record


def rule(record: Record, height: int, **changes: object) -> Record:
    record.height = height
    heads = {"buyer_head": head(record, Side.BUY), "seller_head": head(record, Side.SELL)} | changes
    ruling = record.ruling(0, **heads)  # type: ignore[arg-type]
    for side in (side for side, branch in record.cases if branch is Branch.MAIN):
        record.tell(side, Branch.MAIN, CaseRuling(ruling.raw, "because"), by_arbiter=True)
    return record


def head(record: Record, side: Side) -> bytes:
    """What an arbiter has read of a party last."""
    if (side, Branch.MAIN) not in record.cases:
        return bytes(32)
    return record.cases[side, Branch.MAIN][0].head


class TestParties:
    def test_payment_declared_in_time_is_nobodys_fault(self) -> None:
        record = declare(funded(), BURIED + WINDOW)
        opens(record, Side.BUY)
        assert verdict(record).findings == ()

    def test_payment_declared_after_the_window_is_the_buyers_fault(self) -> None:
        record = declare(funded(), BURIED + WINDOW + 1)
        opens(record, Side.BUY)
        assert "1 blocks after its time was over" in against(record, Side.BUY)

    def test_extension_that_the_seller_signed_counts(self) -> None:
        record = funded()
        record.say(Side.SELL, Extension(10))
        declare(record, BURIED + WINDOW + 10)
        opens(record, Side.BUY)
        assert verdict(record).findings == ()
        late = funded()
        late.say(Side.SELL, Extension(10))
        declare(late, BURIED + WINDOW + 11)
        opens(late, Side.BUY)
        assert "after its time" in against(late, Side.BUY)

    def test_extension_that_the_buyer_gives_itself_is_its_fault(self) -> None:
        record = funded()
        record.say(Side.BUY, Extension(1_000))
        assert "out of turn" in against(record, Side.BUY)

    def test_seller_cannot_frame_the_buyer_by_a_false_block(self) -> None:
        """It says that the escrow is older than it is, in everything that it signs."""
        record = declare(funded(height=1), BURIED + WINDOW)
        opens(record, Side.SELL, at=1)
        assert verdict(record).findings == ()

    def test_seller_that_does_not_wait_for_the_window_is_at_fault(self) -> None:
        record = funded()
        record.height = BURIED + WINDOW - 5
        opens(record, Side.SELL)
        assert "5 blocks before the buyer's time was over" in against(record, Side.SELL)
        patient = funded()
        patient.height = BURIED + WINDOW
        opens(patient, Side.SELL)
        assert verdict(patient).findings == ()

    def test_answer_of_the_seller_needs_no_window(self) -> None:
        record = funded()
        record.height = BURIED + 5
        opens(record, Side.BUY)
        opens(record, Side.SELL)
        assert verdict(record).findings == ()

    def test_release_before_the_payment_was_declared_is_out_of_turn(self) -> None:
        record = funded()
        record.say(Side.SELL, Released(CHECKS.facts(record.contract, NETWORK).payout_txid))
        assert "out of turn" in against(record, Side.SELL)

    def test_release_after_a_settlement_that_it_agreed_to_is_the_sellers_fault(self) -> None:
        """It promises the coins twice."""
        record = declare(funded(), 110)
        outcome = SettlementOutcome(500_000, record.contract.fees.payout)
        record.say(Side.BUY, Proposal(outcome.buyer_due, outcome.rate, record.sign(Side.BUY, outcome)))
        agreed = CHECKS.payout_txid(record.contract, NETWORK, outcome)
        record.say(Side.SELL, Agreed(agreed, record.sign(Side.SELL, outcome)))
        assert verdict(record).findings == ()
        record.say(Side.SELL, Released(CHECKS.facts(record.contract, NETWORK).payout_txid))
        assert "out of turn" in against(record, Side.SELL)

    def test_agreement_to_what_nobody_proposed(self) -> None:
        record = declare(funded(), 110)
        outcome = SettlementOutcome(500_000, record.contract.fees.payout)
        txid = CHECKS.payout_txid(record.contract, NETWORK, outcome)
        record.say(Side.SELL, Agreed(txid, record.sign(Side.SELL, outcome)))
        assert "nobody had proposed" in against(record, Side.SELL)

    def test_settlement_beyond_the_pot_is_its_signers_fault(self) -> None:
        record = declare(funded(), 110)
        record.say(Side.SELL, Proposal(10**12, record.contract.fees.payout, record.sign(Side.SELL)))
        assert "forbids" in against(record, Side.SELL)

    def test_seal_without_a_signature_on_this_contract(self) -> None:
        record = Record()
        record.agree(seal=False)
        record.say(Side.BUY, Seal(bytes(64), (), None))
        assert "another contract" in against(record, Side.BUY, sealed=False)

    def test_taker_that_keeps_its_signature_back_is_named_once_an_arbiter_has_seen_the_escrow(self) -> None:
        record = Record()
        record.agree(seal=False)
        contact = record.announced[Branch.MAIN][0].raw
        opening = CaseOpening(record.file(sealed=False), Claim("where is it?", 0), BURIED, contact, None)
        record.tell(Side.SELL, Branch.MAIN, opening)
        assert verdict(record, sealed=False).findings == ()
        record.tell(Side.SELL, Branch.MAIN, CaseAccepted(200, None), by_arbiter=True)
        assert "withheld its signature" in against(record, Side.BUY, sealed=False)

    def test_two_claims_to_one_arbiter(self) -> None:
        record = heard()
        opens(record, Side.BUY, tells=False)
        assert "twice" in against(record, Side.BUY)

    def test_two_disputes_by_one_party(self) -> None:
        record = heard()
        record.say(Side.BUY, Disputed(Claim("again", 1_000_000)))
        assert "out of turn" in against(record, Side.BUY)

    def test_another_claim_to_the_arbiter_than_to_the_counterparty(self) -> None:
        record = declare(funded(), 110)
        record.say(Side.BUY, Disputed(Claim("a misunderstanding", 500_000)))
        opens(record, Side.BUY, claim=Claim("it is a thief", 1_000_000), tells=False)
        assert "something else" in against(record, Side.BUY)

    def test_more_talk_than_a_trade_allows(self) -> None:
        record = funded()
        for _ in range(500):
            record.say(Side.BUY, ExtensionRequest(1, ""))
        assert verdict(record).findings == ()
        record.say(Side.BUY, ChatLine("x"))
        assert "as much as" in against(record, Side.BUY)

    def test_file_shown_before_there_is_a_contract(self) -> None:
        record = Record()
        record.say(Side.BUY, record.take)
        file = Attachment(content_hash(b"x"), 1, "text/plain", "x.txt")
        record.say(Side.BUY, AttachmentOffer(file, ""))
        record.say(Side.SELL, Accept(record.contract.seller, Funding(()), record.contract_signature(Side.SELL), None))
        record.say(Side.BUY, Seal(record.contract_signature(Side.BUY), (), None))
        assert "out of turn" in against(record, Side.BUY)


class TestArbiters:
    def test_ruling_in_time_with_both_heard_is_nobodys_fault(self) -> None:
        assert verdict(rule(heard(), 310)).findings == ()
        assert verdict(rule(heard(), 300 + PROMISED)).findings == ()

    def test_late_ruling_is_the_arbiters_fault(self) -> None:
        assert "1 blocks after the time" in against(rule(heard(), 300 + PROMISED + 1), Branch.MAIN)

    def test_extension_counts_once_and_as_promised(self) -> None:
        for blocks, late in ((PROMISED, False), (PROMISED + 1, True)):
            record = heard()
            record.height = 400
            for side in Side:
                record.tell(side, Branch.MAIN, CaseExtended(blocks, 470, "ill"), by_arbiter=True)
            rule(record, 480)
            if late:
                assert "had promised to decide within" in verdict(record).findings[0].what
            else:
                assert verdict(record).findings == ()
        twice = heard()
        twice.height = 400
        for _ in range(2):
            twice.tell(Side.BUY, Branch.MAIN, CaseExtended(10, 405, "ill"), by_arbiter=True)
        assert "a second time" in against(twice, Branch.MAIN)

    def test_ruling_without_having_heard_a_party_whose_time_still_ran(self) -> None:
        record = rule(heard(both=False), 300 + PROMISED // 2 - 1)
        assert "without having heard the seller" in against(record, Branch.MAIN)
        assert verdict(rule(heard(both=False), 300 + PROMISED // 2)).findings == ()

    def test_ruling_on_a_message_that_was_never_sent(self) -> None:
        record = rule(heard(), 310, buyer_head=fixed("imagined"))
        assert "not in the record" in against(record, Branch.MAIN)

    def test_ruling_after_declining(self) -> None:
        record = heard()
        for side in Side:
            record.tell(side, Branch.MAIN, CaseDeclined("I know the buyer"), by_arbiter=True)
        assert all("declined" in f.what for f in verdict(rule(record, 310)).findings)
        assert verdict(record).findings

    def test_ruling_that_a_party_shows_counts_against_an_arbiter_that_gave_another(self) -> None:
        record = rule(heard(), 310)
        record.say(Side.SELL, RulingShown(record.ruling(1_000_000).raw, "because"))
        assert verdict(record).equivocation is not None
        assert "two different rulings" in against(record, Branch.MAIN)

    def test_ruling_that_a_party_made_up_counts_against_the_party(self) -> None:
        record = rule(heard(), 310)
        record.say(Side.SELL, RulingShown(record.ruling(1_000_000, fee=1).raw, "because"))
        assert "does not hold" in against(record, Side.SELL)
        assert verdict(record).equivocation is None

    def test_arbiter_that_shows_evidence_itself(self) -> None:
        record = heard()
        record.tell(Side.BUY, Branch.MAIN, Evidence("look", ()), by_arbiter=True)
        assert "not its to send" in against(record, Branch.MAIN)

    def test_copy_that_was_cut_short_does_not_frame_the_arbiter(self) -> None:
        """A party leaves out its own last word, so that the ruling seems to be about something else."""
        record = heard()
        record.tell(Side.BUY, Branch.MAIN, Evidence("receipt", ()))
        rule(record, 310)
        raws = record.cases[Side.BUY, Branch.MAIN][2]
        cut = [raw for raw in raws if not isinstance(case_message(raw).payload, Evidence)]
        raws[:] = cut
        with pytest.raises(Exception, match="not in the record"):
            verdict(record)


def case_message(raw: bytes) -> CaseMessage:
    return decode_case(open_envelope(raw, NETWORK))


class TestForks:
    def pair(self, record: Record, number: int, *, later: bool = False) -> tuple[bytes, bytes]:
        """What the buyer sent, and what contradicts it: the same number again, or a next one with another past."""
        envelopes = [open_envelope(raw, NETWORK) for raw in record.raws]
        mine = [e for e in envelopes if e.signer == record.keys[Side.BUY].public]
        header = decode(mine[number]).header
        lie = replace(header, number=number + 1, prev=fixed("another past")) if later else header
        kind, body = encode(lie, ChatLine("I never said that"))
        return mine[number].raw, record.keys[Side.BUY].seal(kind, NETWORK, body).raw

    @pytest.mark.parametrize("later", [False, True])
    def test_contradiction_that_a_node_has_met_names_who_signed_it(self, *, later: bool) -> None:
        record = declare(funded(), 110)
        shown = verdict(record, forks=(self.pair(record, 2, later=later),))
        (finding,) = shown.findings
        assert (finding.persona, finding.number) == (record.keys[Side.BUY].public, 2)
        assert len(shown.forks) == 1

    def test_pair_that_contradicts_nothing_or_belongs_elsewhere_is_refused(self) -> None:
        record = declare(funded(), 110)
        first, _ = self.pair(record, 2)
        with pytest.raises(BadBundle):
            verdict(record, forks=((first, first),))
        stranger = record.arbiters[Branch.MAIN]
        header = decode(open_envelope(record.raws[0], NETWORK)).header
        lies = []
        for text in ("one", "other"):
            kind, body = encode(header, ChatLine(text))
            lies.append(stranger.seal(kind, NETWORK, body).raw)
        with pytest.raises(BadBundle, match="another trade"):
            verdict(record, forks=((lies[0], lies[1]),))
