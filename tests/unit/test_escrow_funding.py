"""A funding that both derive alike, that takes from nobody more than its share, and that a peer can't bend."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from escrow.coins import OutPoint
from escrow.errors import (
    BadEscrowKey,
    BadEscrowTerms,
    BadFundingInput,
    BadFundingWitness,
    GateRefused,
    ShortInputs,
    UnsupportedInput,
    UnsupportedScript,
)
from escrow.funding import FundingPlan, derive_funding, in_message_order
from escrow.inputs import assemble_funding, check_previous, check_witnesses
from escrow.keys import public_key
from escrow.script import Role
from escrow.shares import SHARED_WEIGHT, carried_fee, halves, share_target, targets
from escrow.signatures import sign_ecdsa
from escrow.sizes import dust_limit, fee, input_weight, output_weight
from escrow.terms import check_contract
from escrow.transactions import REPLACEABLE, p2wpkh_code, parse, sighash_v0, txid_of, vsize, witness_of
from escrow.verify import gate_funding
from protocol.contract import Contract, Party
from protocol.types import MAX_MONEY, EscrowType, Network, Side
from tests.unit.escrow_support import FEES, NETWORK, Coin, Deal, coin, deals, fixed, p2wpkh, p2wsh


def sum_of(coins: tuple[Coin, ...]) -> int:
    return sum(c.spent.value for c in coins)


def assembled(deal: Deal, plan: FundingPlan) -> bytes:
    return assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))


class TestForAnyContract:
    @given(deals())
    def test_value_is_conserved_and_no_output_is_dust(self, deal: Deal) -> None:
        contract = deal.contract()
        check_contract(contract, NETWORK)
        plan = derive_funding(contract, NETWORK)
        tx = parse(plan.unsigned)
        brought = sum_of(deal.buyer_coins) + sum_of(deal.seller_coins)
        assert brought == sum(o.nValue for o in tx.vout) + plan.fee
        assert all(o.nValue >= dust_limit(bytes(o.scriptPubKey)) for o in tx.vout)
        assert plan.escrow_value == deal.amount + deal.buyer_deposit + deal.seller_deposit + plan.payout_fee

    @given(deals())
    def test_each_party_pays_its_inputs_its_change_and_its_half(self, deal: Deal) -> None:
        contract = deal.contract()
        plan = derive_funding(contract, NETWORK)
        rate = contract.fees.funding
        shared = fee(SHARED_WEIGHT, rate) + plan.payout_fee
        both = deal.buyer_deposit > 0
        own = {Side.BUY: deal.buyer_deposit, Side.SELL: deal.amount + deal.seller_deposit}
        half = {Side.BUY: shared // 2 if both else 0, Side.SELL: shared - (shared // 2 if both else 0)}
        for side, coins in ((Side.BUY, deal.buyer_coins), (Side.SELL, deal.seller_coins)):
            if not coins:
                assert plan.change(side) == 0
                continue
            script = contract.party(side).change_script
            assert script is not None
            inputs = sum(input_weight(c.spent.script_pubkey) for c in coins)
            paid = sum_of(coins) - plan.change(side) - own[side] - half[side]
            if plan.change(side):
                assert paid == fee(inputs + output_weight(len(script)), rate)
            else:
                # What was left would have been dust: no more than that goes to the miners.
                limit = fee(inputs + output_weight(len(script)), rate) + dust_limit(script)
                assert fee(inputs, rate) <= paid < limit

    @given(deals())
    def test_fee_rate_holds_for_the_real_transaction(self, deal: Deal) -> None:
        contract = deal.contract()
        plan = derive_funding(contract, NETWORK)
        tx = assembled(deal, plan)
        assert plan.fee * 1000 >= contract.fees.funding * vsize(tx)
        gate_funding(contract, NETWORK, tx)

    @given(deals())
    def test_coin_selection_asks_for_enough_and_hardly_more(self, deal: Deal) -> None:
        contract = deal.contract()
        for side, due in targets(contract).items():
            asked = share_target(
                side,
                amount=contract.amount,
                buyer_deposit=contract.buyer_deposit,
                seller_deposit=contract.seller_deposit,
                escrow_type=contract.escrow_type,
                backup_delay=contract.backup_delay,
                fees=contract.fees,
            )
            assert due <= asked <= due + fee(4 * 24, contract.fees.payout) + 1

    @given(deals(), st.sampled_from(Side), st.integers(1, 10**6))
    def test_short_party_is_named_with_the_missing_satoshis(self, deal: Deal, side: Side, missing: int) -> None:
        coins = deal.coins(side)
        assume(coins)
        contract = deal.contract()
        party = contract.party(side)
        needed = targets(contract)[side] + fee(
            sum(input_weight(c.spent.script_pubkey) for c in coins), contract.fees.funding
        )
        first = needed - missing - (len(coins) - 1)
        assume(first > 0)
        values = [first] + [1] * (len(coins) - 1)
        inputs = tuple(replace(i, value=value) for i, value in zip(party.inputs, values, strict=True))
        name = "buyer" if side is Side.BUY else "seller"
        with pytest.raises(ShortInputs, match=f"the {name}'s inputs are {missing:,} sat short") as caught:
            derive_funding(replace(contract, **{name: replace(party, inputs=inputs)}), NETWORK)
        assert (caught.value.side, caught.value.missing) == (side, missing)


class TestForm:
    def test_is_final_replaceable_and_of_version_two(self) -> None:
        tx = parse(derive_funding(Deal().contract(), NETWORK).unsigned)
        assert (tx.nVersion, tx.nLockTime) == (2, 0)
        assert {i.nSequence for i in tx.vin} == {REPLACEABLE}
        assert not any(bytes(i.scriptSig) for i in tx.vin)

    def test_signing_does_not_change_the_txid(self) -> None:
        deal = Deal()
        plan = derive_funding(deal.contract(), NETWORK)
        assert txid_of(assembled(deal, plan)) == plan.txid
        assert plan.escrow_outpoint == OutPoint(plan.txid, plan.escrow_vout)
        assert plan.outputs[plan.escrow_vout].output.script_pubkey == plan.escrow.script_pubkey

    def test_places_tell_nothing_of_roles(self) -> None:
        """Over many trades each place is taken by each owner."""
        plans = [derive_funding(Deal(name=f"deal {i}").contract(), NETWORK) for i in range(40)]
        assert {tuple(o.owner for o in plan.outputs).index(None) for plan in plans} == {0, 1, 2}
        assert {plan.inputs[0].side for plan in plans} == set(Side)
        assert len({tuple(o.owner for o in plan.outputs) for plan in plans}) == 6

    def test_order_is_that_of_the_contract_and_not_of_the_lists(self) -> None:
        coins = tuple(coin(400_000, i) for i in range(4))
        deal = Deal(seller_coins=coins, amount=1_000_000)
        plan = derive_funding(deal.contract(), NETWORK)
        assert [plan.inputs[i].outpoint for i in plan.indices(Side.SELL)] == [c.outpoint for c in coins]

    def test_change_just_at_the_dust_limit_is_kept_and_one_satoshi_less_is_not(self) -> None:
        base = Deal(buyer_deposit=0)
        rate = FEES.funding
        weight = input_weight(base.seller_coins[0].spent.script_pubkey)
        due = targets(base.contract())[Side.SELL] + fee(weight + output_weight(22), rate)
        for extra, change in ((294, 294), (293, 0)):
            deal = Deal(buyer_deposit=0, seller_coins=(coin(due + extra, "edge"),))
            assert derive_funding(deal.contract(), NETWORK).change(Side.SELL) == change

    def test_odd_satoshi_of_the_common_cost_is_the_sellers(self) -> None:
        assert halves(7, both=True) == {Side.BUY: 3, Side.SELL: 4}
        assert halves(7, both=False) == {Side.BUY: 0, Side.SELL: 7}

    def test_carried_fee_counts_the_outputs_of_a_release(self) -> None:
        with_deposit, without = (carried_fee(Deal(seller_deposit=d).contract()) for d in (1, 0))
        assert with_deposit - without == fee(124, FEES.payout)


class TestTerms:
    """What a contract must not say. The peer's and our own mistakes alike."""

    def refuse(self, contract: Contract, error: type[Exception], match: str = r".") -> None:
        with pytest.raises(error, match=match):
            check_contract(contract, NETWORK)

    def test_good_contracts_pass(self) -> None:
        for deal in (Deal(), Deal(buyer_deposit=0, seller_deposit=0), Deal(escrow_type=EscrowType.WSH_2OF3)):
            check_contract(deal.contract(), NETWORK)

    @pytest.mark.parametrize("purpose", ["payout", "refund", "change"])
    @pytest.mark.parametrize("script", [b"\x52\x20" + bytes(32), b"\x60\x14" + bytes(20), b"\x51\x14" + bytes(20)])
    def test_scripts_that_anyone_may_spend_are_refused(self, purpose: str, script: bytes) -> None:
        self.refuse(Deal(scripts={f"buyer {purpose}": script}).contract(), UnsupportedScript)

    def test_unproved_key_is_refused(self) -> None:
        contract = Deal().contract()
        self.refuse(replace(contract, trade_id=fixed("another")), BadEscrowKey)

    def test_p2wsh_input_is_refused(self) -> None:
        """Its witness could be of any size: the fee could not be counted beforehand."""
        contract = Deal().contract()
        inputs = (replace(contract.buyer.inputs[0], script_pubkey=p2wsh("multisig")),)
        self.refuse(replace(contract, buyer=replace(contract.buyer, inputs=inputs)), UnsupportedInput)

    def test_buyer_without_deposit_brings_nothing(self) -> None:
        contract = Deal().contract()
        self.refuse(replace(contract, buyer_deposit=0), BadEscrowTerms, "deposit")

    def test_change_script_goes_with_inputs(self) -> None:
        contract = Deal().contract()
        self.refuse(replace(contract, seller=replace(contract.seller, change_script=None)), BadEscrowTerms, "change")
        with pytest.raises(BadEscrowTerms, match="change"):
            derive_funding(replace(contract, seller=replace(contract.seller, change_script=None)), NETWORK)

    def test_one_coin_twice_is_refused(self) -> None:
        contract = Deal().contract()
        twice = replace(contract.seller, inputs=(*contract.seller.inputs, *contract.seller.inputs))
        self.refuse(replace(contract, seller=twice), BadEscrowTerms, "twice")
        stolen = replace(contract.buyer, inputs=contract.seller.inputs)
        self.refuse(replace(contract, buyer=stolen), BadEscrowTerms, "twice")

    def test_more_coins_than_exist_are_refused(self) -> None:
        contract = Deal().contract()
        self.refuse(replace(contract, amount=MAX_MONEY), BadEscrowTerms, "more coins")
        rich = replace(contract.seller, inputs=(replace(contract.seller.inputs[0], value=MAX_MONEY),))
        self.refuse(replace(contract, seller=rich), BadEscrowTerms, "add up")

    def test_band_upside_down_is_refused(self) -> None:
        contract = Deal().contract()
        self.refuse(replace(contract, fees=replace(FEES, payout_max=FEES.payout - 1)), BadEscrowTerms, "band")

    def test_amount_that_the_dearest_payout_would_eat_is_refused(self) -> None:
        self.refuse(Deal(amount=19_000).contract(), BadEscrowTerms, "too small")
        self.refuse(Deal(arbiter_fee=1_000_000).contract(), BadEscrowTerms, "too small")
        self.refuse(Deal(backup_fee=1_000_000).contract(), BadEscrowTerms, "too small")


class TestPrevious:
    """A peer's claims of its coins, each bent in one way."""

    deal = Deal(buyer_coins=(coin(100_000, "one"), coin(250_000, "two", vout=2, taproot=True)))
    party: Party = deal.party(Side.BUY)
    previous = tuple(c.previous for c in deal.buyer_coins)

    def refuse(self, party: Party, previous: tuple[bytes, ...], match: str) -> None:
        with pytest.raises(BadFundingInput, match=match):
            check_previous(party, previous)

    def test_true_claims_pass(self) -> None:
        check_previous(self.party, self.previous)

    def test_inflated_value_is_refused(self) -> None:
        """It would be taken from the other party's change, or leave the escrow short."""
        for change in (1, -1):
            bent = replace(self.party.inputs[0], value=100_000 + change)
            self.refuse(replace(self.party, inputs=(bent, self.party.inputs[1])), self.previous, "another value")

    def test_other_script_is_refused(self) -> None:
        bent = replace(self.party.inputs[0], script_pubkey=p2wpkh(fixed("mine")))
        self.refuse(replace(self.party, inputs=(bent, self.party.inputs[1])), self.previous, "another value")

    def test_transaction_with_another_txid_is_refused(self) -> None:
        self.refuse(self.party, (self.previous[1], self.previous[0]), "another txid")

    def test_missing_output_is_refused(self) -> None:
        bent = replace(self.party.inputs[0], vout=7)
        self.refuse(replace(self.party, inputs=(bent, self.party.inputs[1])), self.previous, "does not exist")

    def test_missing_transaction_is_refused(self) -> None:
        self.refuse(self.party, self.previous[:1], "one previous transaction")
        self.refuse(self.party, (*self.previous, self.previous[0]), "one previous transaction")

    def test_same_coin_twice_is_refused(self) -> None:
        twice = replace(self.party, inputs=(self.party.inputs[0], self.party.inputs[0]))
        self.refuse(twice, (self.previous[0], self.previous[0]), "twice")

    @pytest.mark.parametrize("raw", [b"", bytes(60), b"\xff" * 200])
    def test_bytes_that_are_no_transaction_are_refused(self, raw: bytes) -> None:
        self.refuse(self.party, (raw, self.previous[1]), "something else")

    def test_old_script_types_are_refused(self) -> None:
        """Their signatures are not part of what a txid covers: it could change before it is mined."""
        bent = replace(self.party.inputs[0], script_pubkey=b"\xa9\x14" + bytes(20) + b"\x87")
        with pytest.raises(UnsupportedInput):
            check_previous(replace(self.party, inputs=(bent,)), self.previous[:1])


class TestWitnesses:
    """A peer's funding signatures, each bent in one way."""

    deal = Deal(buyer_coins=(coin(100_000, "one"), coin(250_000, "two", taproot=True)))
    contract = deal.contract()
    plan = derive_funding(contract, NETWORK)
    good = deal.witnesses(plan, Side.BUY)

    def refuse(self, *witnesses: tuple[bytes, ...]) -> None:
        with pytest.raises(BadFundingWitness):
            check_witnesses(self.plan, Side.BUY, witnesses)

    def test_true_witnesses_pass(self) -> None:
        check_witnesses(self.plan, Side.BUY, self.good)

    def test_one_too_few_or_too_many_is_refused(self) -> None:
        self.refuse(self.good[0])
        self.refuse(*self.good, self.good[0])
        self.refuse()

    def test_swapped_witnesses_are_refused(self) -> None:
        self.refuse(self.good[1], self.good[0])

    @pytest.mark.parametrize("kind", [0, 2, 3, 0x81, 0x82, 0x83])
    def test_signature_that_does_not_cover_everything_is_refused(self, kind: int) -> None:
        """With SIGHASH_NONE or ANYONECANPAY the peer, or a miner, could change the rest afterwards."""
        signature, key = self.good[0]
        self.refuse((signature[:-1] + bytes([kind]), key), self.good[1])
        self.refuse(self.good[0], (*self.good[1][:-1], self.good[1][-1] + bytes([kind])))

    def test_true_signature_over_another_kind_of_hash_is_refused(self) -> None:
        (index, _) = self.plan.indices(Side.BUY)
        first = self.deal.buyer_coins[0]
        sighash = sighash_v0(self.plan.unsigned, index, p2wpkh_code(first.spent.script_pubkey), first.spent.value + 1)
        self.refuse((sign_ecdsa(first.secret, sighash) + b"\x01", public_key(first.secret)), self.good[1])

    def test_signature_of_another_key_is_refused(self) -> None:
        (index, _) = self.plan.indices(Side.BUY)
        first = self.deal.buyer_coins[0]
        stranger = fixed("stranger")
        sighash = sighash_v0(self.plan.unsigned, index, p2wpkh_code(first.spent.script_pubkey), first.spent.value)
        self.refuse((sign_ecdsa(stranger, sighash) + b"\x01", public_key(stranger)), self.good[1])
        self.refuse((sign_ecdsa(stranger, sighash) + b"\x01", public_key(first.secret)), self.good[1])

    def test_extra_items_are_refused(self) -> None:
        """They would make the transaction larger than its fee was counted for; an annex is refused likewise."""
        self.refuse((*self.good[0], b""), self.good[1])
        self.refuse(self.good[0], (*self.good[1], b"\x50"))
        self.refuse(self.good[0], (b"", *self.good[1]))

    @pytest.mark.parametrize("place", [0, 1])
    def test_empty_or_short_items_are_refused(self, place: int) -> None:
        for items in ((), (b"",), (b"", b""), (b"\x01", b"\x02"), (b"\x30" * 9, b"\x02" * 33)):
            bent = list(self.good)
            bent[place] = items
            self.refuse(*bent)

    @given(st.integers(0, 1), st.data())
    def test_any_changed_bit_is_refused(self, place: int, data: st.DataObject) -> None:
        item = bytearray(self.good[place][0])
        bit = data.draw(st.integers(0, len(item) * 8 - 1))
        item[bit // 8] ^= 1 << bit % 8
        bent = list(self.good)
        bent[place] = (bytes(item), *self.good[place][1:])
        self.refuse(*bent)

    def test_signatures_of_another_contract_are_refused(self) -> None:
        other = derive_funding(replace(self.contract, price=self.contract.price + 1), NETWORK)
        with pytest.raises(BadFundingWitness):
            check_witnesses(other, Side.BUY, self.good)
        with pytest.raises(BadFundingWitness):
            check_witnesses(derive_funding(self.contract, Network.SIGNET), Side.BUY, self.good)

    def test_nothing_is_assembled_from_bad_parts(self) -> None:
        with pytest.raises(BadFundingWitness):
            assemble_funding(self.plan, self.good, self.good)

    def test_each_witness_ends_at_its_own_input(self) -> None:
        tx = parse(assembled(self.deal, self.plan))
        for side in Side:
            found = tuple(witness_of(tx, index) for index in self.plan.indices(side))
            assert found == self.deal.witnesses(self.plan, side)

    def test_party_without_inputs_signs_nothing(self) -> None:
        deal = Deal(buyer_deposit=0)
        plan = derive_funding(deal.contract(), NETWORK)
        check_witnesses(plan, Side.BUY, ())
        with pytest.raises(BadFundingWitness):
            check_witnesses(plan, Side.BUY, (deal.witnesses(plan, Side.SELL)[0],))


class TestWalletsAnswer:
    deal = Deal(seller_coins=(coin(700_000, "a"), coin(800_000, "b")))
    plan = derive_funding(deal.contract(), NETWORK)

    def test_is_put_into_the_order_of_the_message(self) -> None:
        indices = self.plan.indices(Side.SELL)
        answer = {index: (bytes([place]),) for place, index in enumerate(indices)}
        backwards = dict(sorted(answer.items(), reverse=True))
        assert in_message_order(self.plan, Side.SELL, backwards) == ((b"\0",), (b"\1",))

    def test_a_signature_for_an_input_that_is_not_ours_never_leaves(self) -> None:
        """The peer may have named one of our own coins as its input."""
        everything = dict.fromkeys(range(len(self.plan.inputs)), (b"",))
        with pytest.raises(GateRefused):
            in_message_order(self.plan, Side.SELL, everything)
        with pytest.raises(GateRefused):
            in_message_order(self.plan, Side.SELL, {self.plan.indices(Side.SELL)[0]: (b"",)})


def test_owners_of_outputs_are_told() -> None:
    plan = derive_funding(Deal().contract(), NETWORK)
    assert {o.owner for o in plan.outputs} == {None, Role.BUYER, Role.SELLER}
    assert sum(plan.change(side) for side in Side) + plan.escrow_value + plan.fee == sum(o.value for o in plan.spent)
