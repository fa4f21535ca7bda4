"""Writes `tests/vectors/escrow.json`: `python -m tests.unit.escrow_vectors`. Every value is the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from escrow.errors import EscrowViolation
from escrow.keys import KeyPurpose, arbiter_secret, arbiter_tweak, proof_message, prove, public_key
from escrow.payout import RELEASE, derive_payout
from escrow.script import Role
from escrow.terms import check_contract
from protocol.contract import Contract, contract_id
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.types import PPM, Branch, EscrowType
from protocol.wire import pack
from tests.unit import escrow_reference as reference
from tests.unit.escrow_support import NETWORK, Deal, coin, fixed, p2tr, p2wpkh, p2wsh

PATH = Path(__file__).parents[1] / "vectors" / "escrow.json"


def deals() -> dict[str, Deal]:
    """One deal for each rule that could be read in two ways."""
    return {
        "both deposits, backup arbiter": Deal(),
        "both deposits, one arbiter": Deal(escrow_type=EscrowType.WSH_2OF3),
        "seller funds alone": Deal(escrow_type=EscrowType.WSH_2OF3, buyer_deposit=0, seller_deposit=0),
        "buyer without deposit, seller with one": Deal(buyer_deposit=0),
        "several inputs, taproot, other scripts": Deal(
            amount=1_500_000,
            buyer_coins=(coin(100_000, "a"), coin(120_000, "b", taproot=True)),
            seller_coins=tuple(coin(700_000 + i, i, taproot=i == 1) for i in range(3)),
            scripts={
                "buyer payout": p2tr(fixed("shop")),
                "seller refund": p2wsh("vault"),
                "seller change": p2tr(fixed("change")),
            },
        ),
        "change one satoshi under the dust limit": Deal(buyer_coins=(coin(150_364 + 198 + 293, "tight"),)),
        "deposits that are dust": Deal(buyer_deposit=100, seller_deposit=200),
        "small delay": Deal(delay=16),
        "large delay": Deal(delay=65_535),
        "delay with a sign byte": Deal(delay=200),
    }


def outcomes(deal: Deal, contract: Contract) -> list[Outcome]:
    rate = contract.fees.payout
    script = p2wpkh(fixed("arbiter's wallet"))
    found: list[Outcome] = [
        RELEASE,
        ReleaseOutcome(3 * rate),
        SettlementOutcome(deal.buyer_deposit, rate),
        SettlementOutcome(123_457, 2 * rate),
        RulingOutcome(Branch.MAIN, PPM, 0, script, rate),
        RulingOutcome(Branch.MAIN, 333_333, 250_000, script, rate),
        RulingOutcome(Branch.MAIN, PPM // 2, 0, script, contract.fees.payout_max),
        RulingOutcome(Branch.MAIN, PPM, PPM, p2tr(fixed("arbiter")), rate),
    ]
    if contract.backup is not None:
        found.append(RulingOutcome(Branch.BACKUP, 0, 0, script, rate))
    return found


def describe(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case SettlementOutcome(due, rate):
            return {"kind": "settlement", "buyer_due": due, "rate": rate}
        case RulingOutcome(branch, share, forfeit, script, rate):
            numbers = {"branch": int(branch), "buyer_share": share, "forfeit": forfeit}
            return {"kind": "ruling", **numbers, "fee_script": script.hex(), "rate": rate}
        case ReleaseOutcome(rate):
            return {"kind": "release"} if rate is None else {"kind": "release", "rate": rate}


def valid() -> list[dict[str, Any]]:
    cases = []
    for name, deal in deals().items():
        contract = deal.contract()
        body = pack(contract)
        model = reference.Contract(body, int(NETWORK))
        payouts = []
        for outcome in outcomes(deal, contract):
            unsigned = model.payout(describe(outcome))
            plan = derive_payout(contract, NETWORK, outcome)
            signers = deal.signatures(contract, plan, *Role)
            payouts.append(
                {
                    "outcome": describe(outcome),
                    "unsigned": unsigned.hex(),
                    "txid": reference.txid(unsigned)[::-1].hex(),
                    "sighash": plan.sighash.hex(),
                    "signatures": {role.name.lower(): signature.hex() for role, signature in signers.items()},
                }
            )
        cases.append(
            {
                "name": name,
                "network": int(NETWORK),
                "contract": body.hex(),
                "contract_id": model.id.hex(),
                "witness_script": model.script.hex(),
                "script_pubkey": model.script_pubkey.hex(),
                "escrow_value": model.value,
                "carried_fee": model.carried,
                "funding": model.funding.hex(),
                "funding_txid": reference.txid(model.funding)[::-1].hex(),
                "payouts": payouts,
            }
        )
    return cases


def bent() -> dict[str, Contract]:
    """Contracts that must be refused, each for one reason."""
    good = Deal().contract()
    short = (replace(good.buyer.inputs[0], value=150_000),)
    return {
        "a key without its proof": replace(good, trade_id=fixed("another")),
        "one key twice": replace(good, buyer=replace(good.buyer, keys=good.seller.keys)),
        "base point off the curve": replace(good, arbiter=replace(good.arbiter, base_point=b"\x02" + b"\xff" * 32)),
        "payout to a script that anyone may spend": Deal(
            scripts={"buyer payout": b"\x52\x20" + bytes(32)},
        ).contract(),
        "P2WSH input": replace(
            good, buyer=replace(good.buyer, inputs=(replace(good.buyer.inputs[0], script_pubkey=p2wsh("x")),))
        ),
        "buyer's coins too small": replace(good, buyer=replace(good.buyer, inputs=short)),
        "a coin of both": replace(good, buyer=replace(good.buyer, inputs=good.seller.inputs)),
        "inputs without a deposit": replace(good, buyer_deposit=0),
        "type 2 without backup arbiter": replace(good, backup=None),
        "type 1 with backup arbiter": replace(good, escrow_type=EscrowType.WSH_2OF3),
        "fee band upside down": replace(good, fees=replace(good.fees, payout_max=good.fees.payout - 1)),
        "amount under the dearest payout": Deal(amount=15_000).contract(),
        "arbiter that takes more than the amount": Deal(arbiter_fee=1_000_000).contract(),
    }


def invalid() -> list[dict[str, Any]]:
    cases = []
    for name, contract in bent().items():
        try:
            check_contract(contract, NETWORK)
        except EscrowViolation as e:
            cases.append(
                {
                    "name": name,
                    "network": int(NETWORK),
                    "contract": pack(contract).hex(),
                    "code": e.code,
                    "why": e.detail,
                }
            )
        else:
            raise AssertionError(f"{name} is not refused")
    return cases


def keys() -> dict[str, Any]:
    trade, persona, secret = fixed("trade"), fixed("persona"), fixed("secret")
    base, contract = fixed("base"), contract_id(Deal().contract(), NETWORK)
    return {
        "proofs": [
            {
                "secret": secret.hex(),
                "key": public_key(secret).hex(),
                "trade_id": trade.hex(),
                "persona": persona.hex(),
                "purpose": purpose.value.decode(),
                "message": proof_message(trade, persona, purpose).hex(),
                "proof": prove(secret, trade, persona, purpose).hex(),
            }
            for purpose in KeyPurpose
        ],
        "arbiter": {
            "base_secret": base.hex(),
            "base_point": public_key(base).hex(),
            "contract_id": contract.hex(),
            "tweak": arbiter_tweak(public_key(base), contract).hex(),
            "key": public_key(arbiter_secret(base, contract)).hex(),
            "secret": arbiter_secret(base, contract).hex(),
        },
    }


def main() -> None:
    """Write the file."""
    vectors = {"source": "ours, SPEC section 6", "keys": keys(), "valid": valid(), "invalid": invalid()}
    PATH.write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
