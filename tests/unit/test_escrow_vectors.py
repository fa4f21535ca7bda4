"""The vectors of SPEC section 6, and the second reading of its text against the code on contracts without number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from escrow.errors import EscrowViolation
from escrow.funding import derive_funding
from escrow.keys import KeyPurpose, arbiter_public, arbiter_secret, proof_message, prove
from escrow.payout import RELEASE, check_payout_signature, derive_payout
from escrow.script import Role, decode_script, escrow_script
from escrow.terms import check_contract
from protocol.contract import Contract, contract_id
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome, pot
from protocol.types import PPM, Branch, EscrowType, Network
from protocol.wire import pack, unpack
from tests.unit import escrow_reference as reference
from tests.unit.escrow_support import NETWORK, Deal, deals, fixed, p2wpkh, p2wsh
from tests.unit.escrow_vectors import describe

Case = dict[str, Any]
VECTORS: Case = json.loads((Path(__file__).parents[1] / "vectors" / "escrow.json").read_text())


def read(case: Case) -> tuple[Contract, Network]:
    return unpack(bytes.fromhex(case["contract"]), Contract, limit=16_384), Network(case["network"])


def outcome_of(case: Case) -> Outcome:
    match case["kind"]:
        case "release":
            return ReleaseOutcome(case.get("rate"))
        case "settlement":
            return SettlementOutcome(case["buyer_due"], case["rate"])
        case _:
            script = bytes.fromhex(case["fee_script"])
            branch = Branch(case["branch"])
            return RulingOutcome(branch, case["buyer_share"], case["forfeit"], script, case["rate"])


@pytest.mark.parametrize("case", VECTORS["valid"], ids=lambda c: c["name"])
def test_contract_gives_the_transactions_of_the_vectors(case: Case) -> None:
    contract, network = read(case)
    check_contract(contract, network)
    plan = derive_funding(contract, network)
    assert contract_id(contract, network).hex() == case["contract_id"]
    script = escrow_script(contract, network)
    assert (script.witness_script.hex(), script.script_pubkey.hex()) == (case["witness_script"], case["script_pubkey"])
    assert decode_script(script.witness_script) == script
    assert (plan.escrow_value, plan.payout_fee) == (case["escrow_value"], case["carried_fee"])
    assert (plan.unsigned.hex(), plan.txid[::-1].hex()) == (case["funding"], case["funding_txid"])
    for payout in case["payouts"]:
        spend = derive_payout(contract, network, outcome_of(payout["outcome"]))
        assert (spend.unsigned.hex(), spend.txid[::-1].hex()) == (payout["unsigned"], payout["txid"])
        assert spend.sighash.hex() == payout["sighash"]
        for role in Role:
            check_payout_signature(spend, role, bytes.fromhex(payout["signatures"][role.name.lower()]))


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda c: c["name"])
def test_bent_contract_is_refused_for_the_reason_of_the_vectors(case: Case) -> None:
    with pytest.raises(EscrowViolation) as caught:
        check_contract(*read(case))
    assert (caught.value.code, caught.value.detail) == (case["code"], case["why"])


@pytest.mark.parametrize("case", VECTORS["keys"]["proofs"], ids=lambda c: c["purpose"])
def test_proofs_of_the_vectors(case: Case) -> None:
    secret, trade, persona = (bytes.fromhex(case[name]) for name in ("secret", "trade_id", "persona"))
    purpose = KeyPurpose(case["purpose"].encode())
    assert proof_message(trade, persona, purpose).hex() == case["message"]
    assert reference.digest(b"p2pnode/escrow-key", trade, persona, purpose.value).hex() == case["message"]
    assert prove(secret, trade, persona, purpose).hex() == case["proof"]


def test_arbiter_key_of_the_vectors() -> None:
    case = VECTORS["keys"]["arbiter"]
    point, contract = bytes.fromhex(case["base_point"]), bytes.fromhex(case["contract_id"])
    assert arbiter_public(point, contract).hex() == case["key"]
    assert arbiter_secret(bytes.fromhex(case["base_secret"]), contract).hex() == case["secret"]
    tweak = int.from_bytes(reference.digest(b"p2pnode/arbiter-key", point, contract), "big")
    assert tweak == int(case["tweak"], 16)
    summed = reference.add(reference.lift(point), reference.times(tweak, reference.BASE))
    assert reference.compress(summed).hex() == case["key"]


@settings(max_examples=40)
@given(deals(), st.data())
def test_second_reading_of_the_text_agrees_with_the_code(deal: Deal, data: st.DataObject) -> None:
    contract = deal.contract()
    model = reference.Contract(pack(contract), int(NETWORK))
    plan = derive_funding(contract, NETWORK)
    assert (model.script, model.funding) == (plan.escrow.witness_script, plan.unsigned)
    rate = data.draw(st.integers(contract.fees.payout, contract.fees.payout_max))
    share = data.draw(st.integers(0, PPM) | st.just(PPM // 2))
    branch = data.draw(st.sampled_from(list(Branch)[: 1 + (contract.escrow_type is EscrowType.WSH_2OF3_BACKUP)]))
    forfeit = data.draw(st.integers(0, PPM)) if share * 2 != PPM else 0
    script = data.draw(st.sampled_from([p2wpkh(fixed("arbiter")), p2wsh("arbiter")]))
    outcomes: list[Outcome] = [
        RELEASE,
        ReleaseOutcome(rate),
        SettlementOutcome(data.draw(st.integers(0, pot(contract))), rate),
        RulingOutcome(branch, share, forfeit, script, rate),
    ]
    for outcome in outcomes:
        assert model.payout(describe(outcome)) == derive_payout(contract, NETWORK, outcome).unsigned


def test_no_vector_is_there_twice() -> None:
    fundings = [case["funding"] for case in VECTORS["valid"]]
    assert len(set(fundings)) == len(fundings)
    changed = replace(Deal().contract(), amount=1)
    assert pack(changed).hex() not in {case["contract"] for case in VECTORS["valid"]}
