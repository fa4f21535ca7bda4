"""Payouts that give everybody what the contract says, to the satoshi, whatever the outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from escrow.errors import BadPayout, BadPayoutSignature, GateRefused, UnsupportedScript
from escrow.funding import derive_funding
from escrow.payout import (
    RELEASE,
    PayoutPlan,
    assemble_payout,
    check_payout_signature,
    derive_payout,
    sign_payout,
)
from escrow.script import Role
from escrow.shares import carried_fee
from escrow.signatures import sign_ecdsa
from escrow.sizes import dust_limit, fee
from escrow.terms import check_contract
from escrow.transactions import REPLACEABLE, parse, txid_of, vsize, witness_of
from escrow.verify import gate_payout
from protocol.contract import Contract
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, pot
from protocol.types import PPM, Branch, EscrowType, Network
from tests.unit.escrow_support import FEES, NETWORK, SCRIPTS, Deal, cancelled, deals, fixed, p2wsh, ruled, settled

PAIRS = ((Role.BUYER, Role.SELLER), (Role.BUYER, Role.ARBITER), (Role.SELLER, Role.ARBITER))


@st.composite
def payouts(draw: st.DrawFn) -> tuple[Deal, Contract, PayoutPlan, int]:
    """Any legal payout of any deal, and its rate."""
    deal = draw(deals())
    contract = deal.contract()
    rate = draw(st.integers(contract.fees.payout, contract.fees.payout_max) | st.just(contract.fees.payout))
    share = st.integers(0, PPM) | st.sampled_from((0, 1, PPM // 2 - 1, PPM // 2 + 1, PPM - 1, PPM))
    branches = list(Branch) if deal.escrow_type is EscrowType.WSH_2OF3_BACKUP else [Branch.MAIN]
    rulings = st.builds(
        ruled,
        share.filter(lambda s: 2 * s != PPM) | st.just(PPM // 2),
        share,
        branch=st.sampled_from(branches),
        rate=st.just(rate),
        script=st.sampled_from([make(fixed("arbiter")) for make in SCRIPTS.values()]),
    ).map(lambda r: replace(r, forfeit=0) if 2 * r.buyer_share == PPM else r)
    whole = pot(contract)
    dues = st.integers(0, whole) | st.integers(0, 700) | st.integers(whole - 700, whole) | st.just(deal.buyer_deposit)
    release = RELEASE if rate == contract.fees.payout else ReleaseOutcome(rate)
    outcome: Outcome = draw(st.just(release) | dues.map(lambda due: settled(due, rate=rate)) | rulings)
    plan = derive_payout(contract, NETWORK, outcome)
    return deal, contract, plan, rate


class TestForAnyContractAndOutcome:
    @given(payouts())
    def test_value_is_conserved_and_no_output_is_dust(self, case: tuple[Deal, Contract, PayoutPlan, int]) -> None:
        _, contract, plan, _ = case
        check_contract(contract, NETWORK)
        tx = parse(plan.unsigned)
        assert derive_funding(contract, NETWORK).escrow_value == sum(o.nValue for o in tx.vout) + plan.fee
        assert tx.vout
        assert all(o.nValue >= dust_limit(bytes(o.scriptPubKey)) for o in tx.vout)
        assert plan.escrow_value - plan.fee == sum(plan.value(role) for role in Role)

    @given(payouts())
    def test_fee_holds_its_rate_and_is_not_a_satoshi_over_what_the_rules_say(
        self, case: tuple[Deal, Contract, PayoutPlan, int]
    ) -> None:
        deal, contract, plan, rate = case
        signed = assemble_payout(plan, deal.signatures(contract, plan, Role.BUYER, Role.SELLER))
        assert plan.fee * 1000 >= rate * vsize(signed)
        regular = max(carried_fee(contract), fee(plan.weight, rate))
        # Dust goes to the miners: less than one dust limit for each output that is not there.
        missing = (3 if isinstance(plan.outcome, RulingOutcome) else 2) - len(plan.outputs)
        assert regular <= plan.fee <= regular + missing * 329

    @given(payouts(), st.sampled_from(PAIRS))
    def test_any_two_of_three_can_spend(
        self, case: tuple[Deal, Contract, PayoutPlan, int], pair: tuple[Role, Role]
    ) -> None:
        deal, contract, plan, _ = case
        signed = assemble_payout(plan, deal.signatures(contract, plan, *pair))
        assert txid_of(signed) == plan.txid
        gate_payout(contract, NETWORK, signed, plan.outcome)

    @given(deals())
    def test_release_at_the_contracts_rate_pays_exactly_what_is_due(self, deal: Deal) -> None:
        contract = deal.contract()
        plan = derive_payout(contract, NETWORK)
        assert plan.value(Role.BUYER) == deal.amount + deal.buyer_deposit
        if deal.seller_deposit >= dust_limit(contract.seller.payout_script):
            assert plan.value(Role.SELLER) == deal.seller_deposit
            assert plan.fee == carried_fee(contract)
        else:
            assert plan.value(Role.SELLER) == 0
            assert plan.fee == carried_fee(contract) + deal.seller_deposit

    @given(payouts())
    def test_arbiter_gets_its_fee_and_nobody_else_pays_an_arbiter(
        self, case: tuple[Deal, Contract, PayoutPlan, int]
    ) -> None:
        deal, _, plan, _ = case
        due = deal.arbiter_fee if plan.branch is Branch.MAIN else deal.backup_fee
        if isinstance(plan.outcome, RulingOutcome) and due >= dust_limit(plan.outcome.fee_script):
            assert plan.value(Role.ARBITER) == due
        else:
            assert plan.value(Role.ARBITER) == 0

    @given(deals(), st.data())
    def test_nobody_pays_more_of_the_extra_fee_than_a_half_unless_the_other_cannot(
        self, deal: Deal, data: st.DataObject
    ) -> None:
        contract = deal.contract()
        rate = data.draw(st.integers(contract.fees.payout, contract.fees.payout_max))
        plan = derive_payout(contract, NETWORK, replace(cancelled(contract), rate=rate))
        extra = max(0, fee(plan.weight, rate) - carried_fee(contract))
        half = extra // 2 if deal.buyer_deposit else 0
        lost = deal.buyer_deposit - plan.value(Role.BUYER)
        assert lost <= half + max(0, extra - half - deal.amount - deal.seller_deposit) + 329


class TestOutcomes:
    """The numbers of each outcome, at a rate and with outputs that cost no more than the escrow carries."""

    deal = Deal(amount=1_000_000, buyer_deposit=100_000, seller_deposit=200_000, arbiter_fee=10_000, backup_fee=13_000)
    contract = deal.contract()
    carried = carried_fee(contract)
    # A third output costs 31 vB more; halves of that are taken from both.
    third = fee(derive_payout(contract, NETWORK, ruled(0)).weight, FEES.payout) - carried

    def values(self, outcome: Outcome) -> tuple[int, int, int]:
        plan = derive_payout(self.contract, NETWORK, outcome)
        return plan.value(Role.BUYER), plan.value(Role.SELLER), plan.value(Role.ARBITER)

    def less(self, buyer: int, seller: int, arbiter: int) -> tuple[int, int, int]:
        return buyer - self.third // 2, seller - (self.third - self.third // 2), arbiter

    def test_third_output_is_paid_for(self) -> None:
        assert self.third == 93

    def test_release_and_refund(self) -> None:
        assert self.values(RELEASE) == (1_100_000, 200_000, 0)
        assert self.values(cancelled(self.contract)) == (100_000, 1_200_000, 0)

    def test_settlement_is_what_was_agreed(self) -> None:
        assert self.values(settled(600_000)) == (600_000, 700_000, 0)
        with pytest.raises(BadPayout, match="more than"):
            self.values(settled(1_300_001))

    def test_settlement_that_gives_all_to_one_has_one_output(self) -> None:
        assert len(derive_payout(self.contract, NETWORK, settled(0)).outputs) == 1
        assert self.values(settled(0)) == (0, 1_300_000, 0)
        assert self.values(settled(1_300_000)) == (1_300_000, 0, 0)

    def test_loser_pays_the_arbiter(self) -> None:
        assert self.values(ruled(PPM)) == self.less(1_100_000, 190_000, 10_000)
        assert self.values(ruled(0)) == self.less(90_000, 1_200_000, 10_000)
        assert self.values(ruled(700_000)) == self.less(800_000, 490_000, 10_000)

    def test_even_split_is_paid_by_both(self) -> None:
        assert self.values(ruled(PPM // 2)) == self.less(595_000, 695_000, 10_000)
        with pytest.raises(BadPayout, match="even split"):
            self.values(ruled(PPM // 2, 1))

    def test_backup_arbiter_takes_its_own_fee(self) -> None:
        assert self.values(ruled(PPM, branch=Branch.BACKUP)) == self.less(1_100_000, 187_000, 13_000)

    def test_losers_deposit_goes_to_the_winner_in_part_or_whole(self) -> None:
        assert self.values(ruled(PPM, 250_000)) == self.less(1_150_000, 140_000, 10_000)
        assert self.values(ruled(0, 500_000)) == self.less(40_000, 1_250_000, 10_000)

    def test_winner_pays_what_the_loser_has_not(self) -> None:
        buyer, seller, arbiter = self.values(ruled(PPM, PPM))
        assert (seller, arbiter) == (0, 10_000)
        # Two outputs cost what the escrow carries.
        assert buyer == 1_300_000 - 10_000

    def test_shares_are_rounded_down_for_the_buyer(self) -> None:
        odd = Deal(amount=999_999, buyer_deposit=0, seller_deposit=0, arbiter_fee=0)
        plan = derive_payout(odd.contract(), NETWORK, ruled(333_333))
        assert plan.value(Role.BUYER) == 333_332
        assert sum(plan.value(role) for role in Role) + plan.fee == plan.escrow_value

    @pytest.mark.parametrize("ruling", [(PPM + 1, 0), (-1, 0), (0, PPM + 1), (0, -1)])
    def test_shares_over_one_whole_are_refused(self, ruling: tuple[int, int]) -> None:
        with pytest.raises(BadPayout, match="whole"):
            self.values(ruled(*ruling))

    def test_ruling_can_not_pay_to_a_script_that_anyone_may_spend(self) -> None:
        with pytest.raises(UnsupportedScript):
            self.values(ruled(PPM, script=b"\x60\x20" + bytes(32)))

    def test_release_pays_to_payout_scripts_and_all_else_to_refund_scripts(self) -> None:
        """A payout script may belong to a shop; a refund must not end there."""

        def scripts(outcome: Outcome) -> set[bytes]:
            plan = derive_payout(self.contract, NETWORK, outcome)
            return {o.output.script_pubkey for o in plan.outputs if o.owner is not Role.ARBITER}

        parties = (self.contract.buyer, self.contract.seller)
        assert scripts(RELEASE) == {p.payout_script for p in parties}
        for outcome in (cancelled(self.contract), settled(500_000), ruled(PPM)):
            assert scripts(outcome) == {p.refund_script for p in parties}


class TestRates:
    deal = Deal()
    contract = deal.contract()

    @pytest.mark.parametrize("rate", [0, -1, FEES.payout - 1, FEES.payout_max + 1])
    def test_rate_outside_the_band_is_refused(self, rate: int) -> None:
        with pytest.raises(BadPayout, match="band"):
            derive_payout(self.contract, NETWORK, ReleaseOutcome(rate))

    def test_settlement_and_ruling_are_held_to_the_band_too(self) -> None:
        for rate in (FEES.payout - 1, FEES.payout_max + 1):
            for outcome in (settled(500_000, rate=rate), ruled(PPM, rate=rate)):
                with pytest.raises(BadPayout, match="band"):
                    derive_payout(self.contract, NETWORK, outcome)

    def test_higher_rate_is_shared_by_both_and_replaces_the_first(self) -> None:
        plans = [derive_payout(self.contract, NETWORK, ReleaseOutcome(rate)) for rate in (None, 2 * FEES.payout)]
        extra = plans[1].fee - plans[0].fee
        assert plans[0].value(Role.BUYER) - plans[1].value(Role.BUYER) == extra // 2
        assert plans[0].value(Role.SELLER) - plans[1].value(Role.SELLER) == extra - extra // 2
        assert parse(plans[0].unsigned).vin[0].nSequence == REPLACEABLE
        assert plans[0].txid != plans[1].txid

    def test_party_with_nothing_due_lets_the_other_pay(self) -> None:
        contract = Deal(buyer_deposit=0, seller_deposit=0).contract()
        plain, dear = (derive_payout(contract, NETWORK, ReleaseOutcome(rate)) for rate in (None, FEES.payout_max))
        assert plain.value(Role.BUYER) - dear.value(Role.BUYER) == dear.fee - plain.fee

    def test_output_at_the_dust_limit_is_kept(self) -> None:
        for due, kept in ((294, 294), (293, 0)):
            plan = derive_payout(self.contract, NETWORK, settled(due))
            assert plan.value(Role.BUYER) == kept
            assert plan.fee == carried_fee(self.contract) + due - kept

    def test_dust_is_left_to_the_miners(self) -> None:
        contract = Deal(seller_deposit=293).contract()
        plan = derive_payout(contract, NETWORK)
        assert [o.owner for o in plan.outputs] == [Role.BUYER]
        assert plan.fee == carried_fee(contract) + 293

    def test_nothing_left_is_an_error_and_no_empty_transaction(self) -> None:
        contract = replace(self.contract, amount=1, buyer_deposit=0, seller_deposit=0)
        contract = replace(contract, buyer=replace(contract.buyer, inputs=(), change_script=None))
        with pytest.raises(BadPayout, match="nothing is left"):
            derive_payout(contract, NETWORK)
        with pytest.raises(BadPayout, match="arbiter's fee"):
            derive_payout(contract, NETWORK, ruled(PPM))
        with pytest.raises(BadPayout, match="fee is more"):
            derive_payout(contract, NETWORK, ReleaseOutcome(FEES.payout_max))


class TestBranches:
    deal = Deal(delay=144)
    contract = deal.contract()

    def test_backup_branch_waits_for_its_delay(self) -> None:
        plan = derive_payout(self.contract, NETWORK, ruled(PPM, branch=Branch.BACKUP))
        assert parse(plan.unsigned).vin[0].nSequence == 144

    def test_escrow_without_backup_has_no_such_branch(self) -> None:
        contract = Deal(escrow_type=EscrowType.WSH_2OF3).contract()
        with pytest.raises(BadPayout, match="no branch"):
            derive_payout(contract, NETWORK, ruled(PPM, branch=Branch.BACKUP))

    def test_main_keys_sign_nothing_in_the_backup_branch(self) -> None:
        plan = derive_payout(self.contract, NETWORK, ruled(PPM, branch=Branch.BACKUP))
        with pytest.raises(GateRefused):
            sign_payout(plan, self.deal.signer(self.contract, Role.BUYER, Branch.MAIN))


class TestSignatures:
    deal = Deal()
    contract = deal.contract()
    plan = derive_payout(contract, NETWORK)
    buyer = sign_payout(plan, deal.secret(Role.BUYER))
    seller = sign_payout(plan, deal.secret(Role.SELLER))

    def test_true_signatures_pass_and_make_the_one_legal_witness(self) -> None:
        check_payout_signature(self.plan, Role.BUYER, self.buyer)
        signed = assemble_payout(self.plan, {Role.SELLER: self.seller, Role.BUYER: self.buyer})
        witness = witness_of(parse(signed), 0)
        script = self.plan.escrow.witness_script
        assert witness == (b"", self.buyer + b"\x01", self.seller + b"\x01", b"\x01", script)

    def test_signature_of_the_other_role_is_refused(self) -> None:
        with pytest.raises(BadPayoutSignature):
            check_payout_signature(self.plan, Role.SELLER, self.buyer)

    def test_base_key_of_the_arbiter_signs_nothing(self) -> None:
        """Only the key that commits to this contract does."""
        with pytest.raises(GateRefused):
            sign_payout(self.plan, self.deal.secret(Role.ARBITER))
        forged = sign_ecdsa(self.deal.secret(Role.ARBITER), self.plan.sighash)
        with pytest.raises(BadPayoutSignature):
            check_payout_signature(self.plan, Role.ARBITER, forged)

    @pytest.mark.parametrize(
        "other",
        [
            derive_payout(contract, NETWORK, cancelled(contract)),
            derive_payout(contract, NETWORK, ReleaseOutcome(2 * FEES.payout)),
            derive_payout(contract, NETWORK, ruled(PPM, branch=Branch.BACKUP)),
            derive_payout(replace(contract, price=contract.price + 1), NETWORK),
            derive_payout(contract, Network.SIGNET),
        ],
        ids=["outcome", "rate", "branch", "contract", "network"],
    )
    def test_signature_is_for_one_payout_only(self, other: PayoutPlan) -> None:
        with pytest.raises(BadPayoutSignature):
            check_payout_signature(other, Role.BUYER, self.buyer)

    def test_signature_with_its_sighash_byte_is_refused(self) -> None:
        for kind in (0, 1, 2, 3, 0x81):
            with pytest.raises(BadPayoutSignature):
                check_payout_signature(self.plan, Role.BUYER, self.buyer + bytes([kind]))

    @given(st.data())
    def test_any_changed_bit_is_refused(self, data: st.DataObject) -> None:
        bent = bytearray(self.buyer)
        bit = data.draw(st.integers(0, len(bent) * 8 - 1))
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadPayoutSignature):
            check_payout_signature(self.plan, Role.BUYER, bytes(bent))

    @pytest.mark.parametrize("signers", [(), (Role.BUYER,), tuple(Role)], ids=["none", "one", "three"])
    def test_payout_takes_exactly_two(self, signers: tuple[Role, ...]) -> None:
        signatures = self.deal.signatures(self.contract, self.plan, *signers)
        with pytest.raises(BadPayoutSignature, match="two"):
            assemble_payout(self.plan, signatures)

    def test_one_bad_of_two_makes_nothing(self) -> None:
        with pytest.raises(BadPayoutSignature):
            assemble_payout(self.plan, {Role.BUYER: self.buyer, Role.SELLER: self.buyer})


def test_places_tell_nothing_of_roles() -> None:
    deals_ = [Deal(name=f"deal {i}", scripts={"seller payout": p2wsh(i)}) for i in range(24)]
    firsts = {derive_payout(deal.contract(), NETWORK).outputs[0].owner for deal in deals_}
    assert firsts == {Role.BUYER, Role.SELLER}
