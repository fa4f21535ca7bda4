"""One line per trade for its user: what is awaited, and from whom."""

from __future__ import annotations

from typing import assert_never

from escrow.coins import txid_text
from p2pnode.money import format_minor
from protocol import trade_state as st
from protocol.contract import required_confirmations
from protocol.offer import volume
from protocol.trade_state import Answer, TradeState
from protocol.types import Branch


def hint(state: TradeState) -> str:
    """What is awaited in this state, and from whom."""
    alive = isinstance(state.phase, st.Funded | st.Paying | st.Paid)
    extra = dispute_hint(state) if alive else ""
    return f"{_phase_hint(state)}; {extra}" if extra else _phase_hint(state)


def dispute_hint(state: TradeState) -> str:
    """What is awaited in a settlement or dispute; empty where there is none."""
    dispute = state.dispute
    if dispute is None:
        proposed = any(o.peer_signature and not o.own_signature for o in state.settlement.options)
        return "the counterparty proposes a settlement" if proposed else ""
    who = "the backup arbiter" if state.bench is Branch.BACKUP else "the arbiter"
    facts = dispute.arbiter(state.bench)
    if facts.ruling is not None:
        if state.bench is Branch.BACKUP and not dispute.backup_open:
            return f"{who} has ruled; it can be paid out from block {state.backup_from} on"
        return f"{who} has ruled"
    if facts.answer.passed_over:
        return "no arbiter is left to decide: settle with the counterparty"
    if dispute.own_claim is None:
        return f"the counterparty has asked {who}: tell it your side"
    return f"{who} hears the case" if facts.answer is Answer.ACCEPTED else f"waiting for {who} to answer"


def _phase_hint(state: TradeState) -> str:  # noqa: C901, PLR0911, PLR0912  (one case per phase)
    match state.phase:
        case st.Taking():
            return "waiting for the maker's answer; nothing is locked yet"
        case st.Accepting():
            return "preparing our side of the contract"
        case st.SigningFunding():
            if state.funding.awaited:
                return f"sign the escrow's funding with the wallet that holds your coins: {_by_hand(state)}"
            return "signing our part of the escrow's funding"
        case st.Accepted():
            if state.buys:
                return "waiting for the seller to fund the escrow; our signatures are out"
            return "waiting for the buyer's signatures; then the escrow is funded"
        case st.Funding():
            return _funding(state)
        case st.Funded():
            return _funded(state)
        case st.Paying():
            return "signing the payout, so that the seller can release"
        case st.Paid():
            return _paid(state)
        case st.Releasing():
            return f"signing and broadcasting the payout{_raisable(state)}"
        case st.Settling():
            return f"the payout {_depth(state.payout.depth, _required(state))}{_raisable(state)}"
        case st.Completed():
            return "the trade is complete"
        case st.Reclaiming():
            if state.funding.awaited:
                return f"sign with the wallet that holds your coins, to take them back: {_by_hand(state)}"
            return f"taking our coins back: {state.ending}"
        case st.Declined() | st.Cancelled():
            return f"the trade ended before it was funded: {state.ending}"
        case st.Anomalous():
            spender = "" if state.payout.txid is None else f" ({txid_text(state.payout.txid)})"
            return f"look into this: {state.ending}{spender}"
        case _:
            assert_never(state.phase)


def _raisable(state: TradeState) -> str:
    """What to do about an agreed payout that waits too long."""
    if state.payout.depth or (state.payout.own_signature is None and not state.settlement.options):
        return ""
    return f"; if it waits for long, raise its fee: p2pnode trade bump {state.trade_id.hex()[:16]}"


def _by_hand(state: TradeState) -> str:
    trade = state.trade_id.hex()[:16]
    return f"p2pnode trade psbt {trade} --out FILE, sign that, then p2pnode trade psbt {trade} --import SIGNED"


def _funding(state: TradeState) -> str:
    if state.funding.depth is not None:
        return f"the escrow's funding {_depth(state.funding.depth, _required(state))}"
    if state.buys:
        return "waiting for the seller to broadcast the escrow's funding"
    txid = "" if state.facts is None else txid_text(state.facts.funding_txid)
    return f"broadcasting the escrow's funding; if no node takes it, a child can pay: p2pnode wallet bump {txid}"


def _funded(state: TradeState) -> str:
    if not state.buried:
        return f"wait, do not pay: the escrow's block was reorganised away, its funding {_funding_depth(state)}"
    late = "; the payment window is over" if state.window_passed else ""
    if not state.buys:
        return f"waiting for the buyer to pay {_owed(state)}{late}"
    if state.peer_details is None:
        return f"waiting for the seller's payment details{late}"
    return f"pay {_owed(state)} to the seller's account, then declare it{late}"


def _paid(state: TradeState) -> str:
    if state.buys:
        return f"waiting for the seller to find {_owed(state)} on its account and to release"
    if not state.buried:
        return f"wait, do not release: the escrow's funding {_funding_depth(state)}"
    return f"look for {_owed(state)} on your account, and release the coins once it is there"


def _owed(state: TradeState) -> str:
    bargain = state.take.bargain
    owed = format_minor(volume(bargain.amount, bargain.price), state.offer.currency)
    return f"{owed} {state.offer.currency} by {bargain.method}"


def _required(state: TradeState) -> int:
    return max(state.offer.confirmations, required_confirmations(state.take.bargain.amount))


def _funding_depth(state: TradeState) -> str:
    return _depth(state.funding.depth, _required(state))


def _depth(depth: int | None, required: int) -> str:
    if depth is None:
        return "has not been seen on the chain yet"
    if depth == 0:
        return "waits in the mempool"
    return f"has {depth} of {required} confirmations"
