"""Whole disputes between nodes over twins, and what attackers try in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from escrow.transactions import parse
from protocol import case_events as ce
from protocol.outcome import RulingOutcome
from protocol.types import Side
from tests.court import Court

SIDES = list(Side)


def worth(court: Court) -> int:
    """Satoshis of everybody together."""
    return sum(node.wallet.worth() for node in (*court.both, *court.judges))


class TestRulings:
    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("share", [1_000_000, 0, 700_000])
    async def test_ruling_is_paid_out_with_the_contracts_fee(self, tmp_path: Path, side: Side, share: int) -> None:
        court = Court(tmp_path, side)
        await court.pay()
        before = worth(court)
        assert not any(b"case" in raw for raw in court.post.carried)
        await court.open(court.buyer, 1_000_000, "I paid")
        await court.until(lambda: court.main.case is not None and court.main.case.buried, "the arbiter sees the escrow")
        court.main.act(ce.AcceptCase(court.chain.height))
        await court.open(court.seller, 0, "nothing came")
        await court.until(lambda: court.main.case is not None and court.main.case.both_told, "both told")
        await court.main.decide(share)
        await court.finish()
        await court.until(lambda: court.main.case_phase == "Closed", "closed")
        trade = court.buyer.trade
        assert trade is not None
        assert trade.contract is not None
        assert isinstance(trade.payout.outcome, RulingOutcome)
        assert court.main.wallet.worth() == trade.contract.arbiter.fee
        payout = parse(court.chain.blocks[-2][-1])
        fee = trade.facts.escrow_value - sum(o.nValue for o in payout.vout) if trade.facts else 0
        assert worth(court) == before + trade.facts.escrow_value - fee if trade.facts else False
        await court.end()
