"""The gates on transactions that no honest program makes: refused in one way, whatever is in them."""

from __future__ import annotations

import sys

import pytest

from escrow import verify
from escrow.coins import TxOut
from escrow.errors import GateRefused
from escrow.funding import derive_funding
from escrow.inputs import assemble_funding
from escrow.payout import assemble_payout, derive_payout
from escrow.script import Role
from escrow.transactions import parse, stripped
from protocol.types import Side
from tests.unit.escrow_support import NETWORK, Deal, coin

DEAL = Deal(buyer_coins=(coin(400_000, "one", taproot=True),))
CONTRACT = DEAL.contract()
FUNDING = derive_funding(CONTRACT, NETWORK)
FUNDED = assemble_funding(FUNDING, DEAL.witnesses(FUNDING, Side.BUY), DEAL.witnesses(FUNDING, Side.SELL))
PAYOUT = derive_payout(CONTRACT, NETWORK)
PAID = assemble_payout(PAYOUT, DEAL.signatures(CONTRACT, PAYOUT, Role.BUYER, Role.SELLER))


def test_negative_output_is_refused_by_the_gate_of_signatures() -> None:
    """A taproot hash covers every output; a negative one can't be hashed, and must not end the node."""
    value = FUNDING.outputs[0].value.to_bytes(8, "little")
    bent = FUNDED.replace(value, value[:7] + b"\x80")
    assert min(o.nValue for o in parse(bent).vout) < 0
    with pytest.raises(GateRefused):
        verify.funding_signatures_hold(FUNDING, bent)


def test_long_output_script_is_refused_by_the_gate_of_signatures() -> None:
    first = FUNDING.outputs[0]
    short = bytes([len(first.output.script_pubkey)]) + first.output.script_pubkey
    bent = FUNDED.replace(short, b"\xfd\x2c\x01" + bytes(300))
    assert stripped(parse(bent)) != FUNDING.unsigned
    with pytest.raises(GateRefused):
        verify.funding_signatures_hold(FUNDING, bent)


@pytest.mark.skipif(verify._bdk() is None, reason="bdkpython is not installed")
def test_unsigned_transactions_are_refused_by_the_gate_of_finalisation() -> None:
    """BDK gives back what it could not finalise; that those bytes are the same must not be enough."""
    with pytest.raises(GateRefused):
        verify.funding_finalisation_holds(FUNDING, FUNDING.unsigned)
    with pytest.raises(GateRefused):
        verify.payout_finalisation_holds(PAYOUT, PAYOUT.unsigned)


@pytest.mark.parametrize("missing", ["bdkpython", "pbk"])
def test_a_platform_without_a_verifier_says_that_it_did_not_judge(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for loader in (verify._bdk, verify._kernel):
        loader.cache_clear()
    try:
        spent = [TxOut(PAYOUT.escrow_value, PAYOUT.escrow.script_pubkey)]
        assert verify.payout_finalisation_holds(PAYOUT, PAID) is (missing != "bdkpython")
        assert verify.funding_finalisation_holds(FUNDING, FUNDED) is (missing != "bdkpython")
        assert verify.consensus_holds(PAID, spent) is (missing != "pbk")
        verify.gate_payout(CONTRACT, NETWORK, PAID)
        verify.gate_funding(CONTRACT, NETWORK, FUNDED)
    finally:
        for loader in (verify._bdk, verify._kernel):
            loader.cache_clear()
