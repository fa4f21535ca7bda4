"""What somebody tries who wants a better name than it has, or a worse one for another: a test each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace as with_rules
from pathlib import Path

import pytest
from msgspec.structs import replace

from dht.errors import InvalidRecord
from dht.records import Registry
from dht.storage import Outcome, Storage
from dht.topics import anchor_topic, equivocations_topic, reputation_topic
from escrow.bond import check_bond, prove_bond, spend_bond
from escrow.coins import OutPoint
from p2pnode.reputation.chainsight import BondState
from p2pnode.reputation.kinds import MAX_RATINGS, reputation_kinds
from protocol.bond import BOND_WORK_BITS, BadBond, BondRecord
from protocol.equivocation import EQUIVOCATION_WORK_BITS, EquivocationRecord, read_equivocation_record
from protocol.errors import BadSignature, Malformed, PeerViolation
from protocol.identity import SigningKey
from protocol.rating import Mark, Rating, read_rating
from protocol.receipt import BadReceipt, Ending
from protocol.ruling import Equivocation, NoEquivocation, Reason, Ruling, text_hash
from protocol.types import Branch, Network
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.unit.escrow_support import NETWORK
from tests.unit.reputation_support import DAY, Ledger, Observer, Traded, bond_of, key_of, rating, trade
from tests.unit.services_support import T0

ANN, BOB, EVE = key_of("ann"), key_of("bob"), key_of("eve")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def observer(tmp_path: Path, ledger: Ledger) -> Iterator[Observer]:
    made = Observer(tmp_path, ledger)
    yield made
    made.close()


@pytest.fixture
def registry() -> Registry:
    return Registry(NETWORK, reputation_kinds(NETWORK))


class TestReceipts:
    async def test_a_true_receipt_counts_for_both(self, ledger: Ledger, observer: Observer) -> None:
        done = trade(ledger, ANN, BOB, "true")
        await observer.hear(rating(done.signed(), ANN, Mark.GOOD, text="fast"))
        seller, buyer = (observer.histories.known(k.public) for k in (BOB, ANN))
        assert (seller.releases, buyer.releases, seller.new) == (1, 1, False)
        assert [(r.mark, r.text) for r in seller.ratings] == [(Mark.GOOD, "fast")]
        assert buyer.ratings == ()
        assert seller.receipts[0].proved.value == 1_300_000 + seller.receipts[0].proved.fee
        assert seller.receipts[0].proved.locked == 3

    async def test_nobody_can_sign_a_receipt_for_another(self, ledger: Ledger, registry: Registry) -> None:
        done = trade(ledger, ANN, BOB, "forged")
        true = done.signed()
        for forged in (
            replace(true, seller_consent=true.buyer_consent),
            replace(true, seller_key_signature=true.buyer_key_signature),
            replace(true, receipt=replace(true.receipt, ending=Ending.RULED)),
            replace(true, receipt=replace(true.receipt, seller=EVE.public)),
        ):
            raw = rating(forged, ANN).raw
            with pytest.raises(InvalidRecord):
                registry.check(raw, reputation_topic(NETWORK, BOB.public), T0)
        registry.check(rating(true, ANN).raw, reputation_topic(NETWORK, BOB.public), T0)

    async def test_an_escrow_of_others_can_not_be_claimed(self, ledger: Ledger, observer: Observer) -> None:
        """Eve and her second name sign for an escrow that is Ann's and Bob's, with keys of their own."""
        theirs = trade(ledger, ANN, BOB, "theirs").receipt
        own = trade(Ledger(), EVE, key_of("eve 2"), "of eve")
        claimed = replace(
            own.receipt,
            funding_txid=theirs.funding_txid,
            vout=theirs.vout,
            funding_block=theirs.funding_block,
            payout_txid=theirs.payout_txid,
            payout_block=theirs.payout_block,
        )
        await observer.hear(rating(own.signed(claimed), EVE))
        found = observer.histories.known(EVE.public)
        assert (found.new, found.score, found.unproved) == (True, 0, 1)

    async def test_a_trade_that_was_never_on_chain_counts_for_nothing(self, ledger: Ledger, observer: Observer) -> None:
        ledger.mine(empty=100)
        invented = trade(Ledger(), EVE, BOB, "invented")
        await observer.hear(rating(invented.signed(), EVE))
        found = observer.histories.known(BOB.public)
        assert (found.new, found.score, found.ratings, found.unproved) == (True, 0, (), 1)

    async def test_one_escrow_sold_to_two_names_ruins_both(self, ledger: Ledger, observer: Observer) -> None:
        first = trade(ledger, EVE, BOB, "sold")
        other = key_of("eve 2")
        again = Traded(first.deal, replace(first.receipt, buyer=other.public), other, BOB)
        await observer.hear(rating(first.signed(), EVE))
        assert observer.histories.known(EVE.public).score >= 0
        assert not observer.histories.known(EVE.public).forged
        await observer.hear(rating(again.signed(), other))
        for key in (EVE, other, BOB):
            found = observer.histories.known(key.public)
            assert (found.forged, found.score, found.receipts, found.ratings) == (True, 0, (), ())

    def test_whoever_looks_at_the_output_meets_every_name_that_it_was_sold_to(
        self, ledger: Ledger, registry: Registry
    ) -> None:
        done = trade(ledger, EVE, BOB, "anchor")
        registry.check(rating(done.signed(), EVE).raw, anchor_topic(NETWORK, done.receipt.outpoint), T0)

    async def test_a_trade_with_oneself_is_none(self, ledger: Ledger) -> None:
        done = trade(ledger, EVE, EVE, "alone")
        with pytest.raises(BadReceipt, match="oneself"):
            read_rating(rating(done.signed(), EVE), NETWORK, T0)


class TestRatings:
    async def test_a_rating_can_not_be_written_without_a_receipt(self, ledger: Ledger) -> None:
        done = trade(ledger, ANN, BOB, "whole")
        whole = Rating(EVE.public, 1, done.signed(), Mark.BAD, "thief", T0, T0 + DAY)
        body = find_work(Kind.RATING, NETWORK, pack([*pack_fields(whole)[:2], None, *pack_fields(whole)[3:]]), 12)
        with pytest.raises(Malformed):
            read_rating(EVE.seal(Kind.RATING, NETWORK, body), NETWORK, T0)

    async def test_only_a_party_of_the_trade_rates(self, ledger: Ledger) -> None:
        done = trade(ledger, ANN, BOB, "third")
        with pytest.raises(BadReceipt, match="two parties"):
            read_rating(rating(done.signed(), EVE, Mark.BAD), NETWORK, T0)

    async def test_a_new_key_can_not_rate_for_the_old_one(self, ledger: Ledger) -> None:
        """Ann changes her persona; her old trade stays the old one's."""
        done = trade(ledger, ANN, BOB, "changed")
        renewed = key_of("ann renewed")
        with pytest.raises(BadReceipt, match="two parties"):
            read_rating(rating(done.signed(), renewed), NETWORK, T0)
        borrowed = rating(done.signed(), ANN)
        resealed = renewed.seal(Kind.RATING, NETWORK, borrowed.body)
        with pytest.raises(Malformed, match="signed by the persona"):
            read_rating(resealed, NETWORK, T0)

    async def test_a_second_rating_of_one_trade_replaces_the_first(self, ledger: Ledger, observer: Observer) -> None:
        signed = trade(ledger, ANN, BOB, "twice").signed()
        for sequence, mark in ((1, Mark.GOOD), (2, Mark.BAD), (3, Mark.BAD), (2, Mark.GOOD)):
            await observer.hear(rating(signed, ANN, mark, sequence=sequence))
        assert [r.mark for r in observer.histories.known(BOB.public).ratings] == [Mark.BAD]

    def test_a_flood_of_ratings_needs_the_consent_of_the_persona_that_it_is_about(
        self, ledger: Ledger, registry: Registry
    ) -> None:
        """Eve can fill the topics of her own names with her own trades, and no other's."""
        own = trade(ledger, EVE, key_of("eve 2"), "hers")
        with pytest.raises(InvalidRecord, match="topic"):
            registry.check(rating(own.signed(), EVE).raw, reputation_topic(NETWORK, BOB.public), T0)

    def test_one_rater_fills_no_topic_and_works_for_each_record(self, ledger: Ledger, registry: Registry) -> None:
        rules = registry.rules(Kind.RATING)
        assert rules.max_per_publisher == MAX_RATINGS
        storage, few = Storage(secret=bytes(16)), with_rules(rules, max_per_publisher=2)
        topic = reputation_topic(NETWORK, EVE.public)
        outcomes = []
        for n in range(3):
            record = registry.check(rating(trade(ledger, EVE, BOB, f"flood {n}").signed(), EVE).raw, topic, T0)
            outcomes.append(storage.put(topic, record, few, b"group", T0).outcome)
        assert outcomes[:2] == [Outcome.STORED, Outcome.STORED]
        assert outcomes[2] is not Outcome.STORED
        lazy = Rating(EVE.public, 1, trade(ledger, EVE, BOB, "lazy").signed(), Mark.GOOD, "", T0, T0 + DAY)
        with pytest.raises(InvalidRecord, match="work"):
            registry.check(EVE.seal(Kind.RATING, NETWORK, pack(lazy)).raw, topic, T0)


def pack_fields(value: Rating) -> list[object]:
    return [getattr(value, name) for name in value.__struct_fields__]


class TestBonds:
    SECRET = b"\x11" * 32

    def record(self, key: SigningKey, bond: object) -> Envelope:
        draft = BondRecord(key.public, 1, bond, T0, T0 + DAY)  # type: ignore[arg-type]
        return key.seal(Kind.BOND, NETWORK, find_work(Kind.BOND, NETWORK, pack(draft), BOND_WORK_BITS))

    async def test_a_bond_stands_for_whom_its_key_says(self, ledger: Ledger, observer: Observer) -> None:
        bond = bond_of(ledger, ANN, self.SECRET, 10_000_000, 50_000)
        await observer.hear(self.record(ANN, bond))
        found = observer.histories.known(ANN.public)
        assert found.bond == bond
        assert observer.histories.bond_worth(ANN.public, bond) == 10_000_000 * (50_000 - ledger.height) // 52_560

    async def test_another_can_not_show_it(self, ledger: Ledger, observer: Observer) -> None:
        bond = bond_of(ledger, ANN, self.SECRET, 10_000_000, 50_000)
        with pytest.raises(BadBond):
            check_bond(bond, NETWORK, EVE.public)
        with pytest.raises(PeerViolation):
            await observer.hear(self.record(EVE, bond))

    async def test_a_bond_of_another_network_is_none(self, ledger: Ledger) -> None:
        bond = bond_of(ledger, ANN, self.SECRET, 10_000_000, 50_000)
        with pytest.raises(BadBond):
            check_bond(bond, Network.SIGNET, ANN.public)

    async def test_one_that_is_shown_for_two_names_counts_for_neither(self, ledger: Ledger, observer: Observer) -> None:
        bond = bond_of(ledger, EVE, self.SECRET, 10_000_000, 50_000)
        second = key_of("eve 2")
        again = prove_bond(self.SECRET, NETWORK, second.public, bond)
        await observer.hear(self.record(EVE, bond))
        assert observer.histories.bond_worth(EVE.public, bond) > 0
        await observer.hear(self.record(second, again))
        assert observer.histories.bond_worth(EVE.public, bond) == 0
        assert observer.histories.bond_worth(second.public, again) == 0

    async def test_a_spent_bond_is_worth_nothing_from_that_block_on(self, ledger: Ledger, observer: Observer) -> None:
        bond = bond_of(ledger, ANN, self.SECRET, 10_000_000, 20)
        await observer.hear(self.record(ANN, bond))
        assert observer.histories.known(ANN.public).bond is not None
        coin = OutPoint(bond.txid, bond.vout)
        tx, fee = spend_bond(coin, bond.value, bond.lock_height, self.SECRET, b"\x00\x14" + bytes(20), 1_000)
        assert 100 <= fee <= 200
        ledger.mine(tx)
        await observer.histories.check_bond(ANN.public, bond)
        assert observer.histories.known(ANN.public).bond is None

    @pytest.mark.parametrize(
        "lie",
        [{"value": 20_000_000}, {"lock_height": 60_000}, {"height": 7}, {"vout": 1}],
        ids=["amount", "lock", "height", "output"],
    )
    async def test_what_it_claims_of_itself_is_checked(
        self, ledger: Ledger, observer: Observer, lie: dict[str, int]
    ) -> None:
        true = bond_of(ledger, EVE, self.SECRET, 10_000_000, 50_000)
        false = prove_bond(self.SECRET, NETWORK, EVE.public, replace(true, **lie))
        assert await observer.sight.bond(true) is BondState.STANDS
        assert await observer.sight.bond(false) is BondState.FALSE
        await observer.hear(self.record(EVE, false))
        assert observer.histories.bond_worth(EVE.public, false) == 0

    async def test_one_in_no_block_is_not_believed(self, ledger: Ledger, observer: Observer) -> None:
        elsewhere = bond_of(Ledger(), EVE, self.SECRET, 10_000_000, 50_000)
        await observer.hear(self.record(EVE, elsewhere))
        assert observer.histories.known(EVE.public).bond is None


class TestEquivocations:
    def rulings(self, key: SigningKey, *shares: int, contract: bytes = bytes(32)) -> list[bytes]:
        return [
            key.seal(
                Kind.RULING,
                NETWORK,
                pack(
                    Ruling(
                        key.public,
                        contract,
                        Branch.MAIN,
                        share,
                        0,
                        1_000,
                        b"\x00\x14" + bytes(20),
                        2_000,
                        Reason.OTHER,
                        text_hash(str(share)),
                        bytes(32),
                        bytes(32),
                        b"0" * 71,
                    )
                ),
            ).raw
            for share in shares
        ]

    def record(
        self, arbiter: bytes, first: bytes, second: bytes, *, by: SigningKey = EVE, created: int = T0, life: int = DAY
    ) -> Envelope:
        draft = EquivocationRecord(Equivocation(arbiter, first, second), created, created + life)
        body = find_work(Kind.EQUIVOCATION, NETWORK, pack(draft), EQUIVOCATION_WORK_BITS)
        return by.seal(Kind.EQUIVOCATION, NETWORK, body)

    def test_anybody_may_publish_a_proof_and_all_can_verify_it(self, registry: Registry, observer: Observer) -> None:
        envelope = self.record(ANN.public, *self.rulings(ANN, 0, 1_000_000))
        assert len(envelope.raw) <= Kind.EQUIVOCATION.limit
        for topic in (equivocations_topic(NETWORK), reputation_topic(NETWORK, ANN.public)):
            assert registry.check(envelope.raw, topic, T0).meta.publisher == ANN.public
        assert observer.exposures.remember(envelope)
        assert observer.exposures.exposed(ANN.public)
        assert not observer.exposures.exposed(EVE.public)

    def test_the_accused_can_not_take_the_proof_away_by_a_newer_one_that_ends_at_once(self, registry: Registry) -> None:
        topic = equivocations_topic(NETWORK)
        rules = registry.rules(Kind.EQUIVOCATION)
        rulings = self.rulings(ANN, 0, 1_000_000)
        honest = registry.check(self.record(ANN.public, *rulings).raw, topic, T0)
        short = registry.check(self.record(ANN.public, *rulings, by=ANN, created=T0 + 500, life=1).raw, topic, T0)
        storage = Storage(secret=b"s" * 16)
        assert storage.put(topic, honest, rules, b"good", T0).outcome is Outcome.STORED
        assert storage.put(topic, short, rules, b"evil", T0).outcome is Outcome.OLDER
        assert storage.all(topic, T0 + 600) == [honest.raw]

    def test_an_honest_arbiter_can_not_be_accused(self) -> None:
        same = self.rulings(ANN, 0, 0)
        other_contract = [*self.rulings(ANN, 0), *self.rulings(ANN, 1_000_000, contract=b"c" * 32)]
        not_hers = [*self.rulings(ANN, 0), *self.rulings(EVE, 1_000_000)]
        for pair in (same, other_contract, not_hers):
            with pytest.raises(NoEquivocation):
                read_equivocation_record(self.record(ANN.public, *pair), NETWORK, T0)
        (true,), (hers,) = self.rulings(ANN, 0), self.rulings(EVE, 1_000_000)
        altered = bytearray(true)
        altered[150] ^= 1
        for second in (bytes(altered), hers[:-64] + true[-64:]):
            with pytest.raises((Malformed, BadSignature)):
                read_equivocation_record(self.record(ANN.public, true, second), NETWORK, T0)

    def test_it_costs_work(self) -> None:
        draft = EquivocationRecord(Equivocation(ANN.public, *self.rulings(ANN, 0, 1)), T0, T0 + DAY)
        with pytest.raises(Malformed, match="work"):
            read_equivocation_record(EVE.seal(Kind.EQUIVOCATION, NETWORK, pack(draft)), NETWORK, T0)
