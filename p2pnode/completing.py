"""From what a trade's state holds to transactions that can be broadcast. Each passes every gate here, each time.

Whoever broadcasts asks here: the executor when the machine says so, and whoever sends again what waits. So nothing can
leave the node on another way than through the gates (SPEC section 6.4).
"""

from __future__ import annotations

from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, assemble_payout, derive_payout
from escrow.script import Role
from escrow.verify import gate_funding, gate_payout
from p2pnode.contracting import derive
from protocol.contract import Contract
from protocol.errors import LocalError
from protocol.outcome import Outcome
from protocol.trade import witnesses_of
from protocol.trade_state import TradeState
from protocol.types import Branch, Side


class NotDerivable(LocalError):
    """The trade lacks a contract or a signature, so nothing can be made of it."""

    code = 1305


def contract_of(state: TradeState) -> Contract:
    """The contract. Raises NotDerivable before there is one."""
    if state.contract is None:
        raise NotDerivable
    return state.contract


def funding_of(state: TradeState) -> bytes:
    """The signed funding. Raises NotDerivable, BadFundingWitness while witnesses are missing, GateRefused."""
    contract = contract_of(state)
    plan = derive(contract, state.network).funding
    tx = assemble_funding(plan, witnesses_of(state, Side.BUY), witnesses_of(state, Side.SELL))
    gate_funding(contract, state.network, tx)
    return tx


def release_of(state: TradeState) -> bytes:
    """The signed release. Raises NotDerivable, GateRefused."""
    own, peer = Role.of(state.side), Role.of(state.side.other)
    if state.payout.own_signature is None or state.payout.peer_signature is None:
        raise NotDerivable
    return _payout(state, RELEASE, {own: state.payout.own_signature, peer: state.payout.peer_signature})


def outcome_of(state: TradeState, txid: bytes) -> bytes:
    """The signed settlement, ruling or higher fee whose payout is `txid`. Raises NotDerivable, GateRefused."""
    completed = signatures_for(state, txid)
    if completed is None:
        raise NotDerivable
    return _payout(state, *completed)


def signatures_for(state: TradeState, txid: bytes) -> tuple[Outcome, dict[Role, bytes]] | None:
    """The settlement, ruling or variant whose payout is `txid`, with its two signatures; None while one is missing."""
    own, peer = Role.of(state.side), Role.of(state.side.other)
    option = state.settlement.find(txid) or state.payout.variant(txid)
    if option is not None and option.own_signature is not None and option.peer_signature is not None:
        return option.outcome, {own: option.own_signature, peer: option.peer_signature}
    for ruling in state.dispute.rulings if state.dispute is not None else ():
        if ruling.txid == txid and ruling.own_signature is not None:
            return ruling.outcome, {own: ruling.own_signature, Role.ARBITER: ruling.arbiter_signature}
    return None


def standing_payouts(state: TradeState) -> list[tuple[bytes, bytes]]:
    """(txid, signed payout) of all that may end the trade as it stands, the best to send first.

    That is what pays the highest fee for what was agreed on; of a payout that we did not agree on there is none.
    Raises GateRefused.
    """
    raised = [v for v in state.payout.variants if signatures_for(state, v.txid) is not None]
    raised.sort(key=lambda v: v.outcome.rate or 0, reverse=True)
    found = [(v.txid, outcome_of(state, v.txid)) for v in raised]
    facts, payout, base = state.facts, state.payout, state.payout.txid
    if base is None:
        rulings = state.dispute.rulings if state.dispute is not None else ()
        others = [o.txid for o in state.settlement.options] + [
            r.txid for r in rulings if _open(state, r.outcome.branch)
        ]
    else:
        others = [] if payout.variant(base) is not None else [base]
    found += [(txid, outcome_of(state, txid)) for txid in others if signatures_for(state, txid) is not None]
    if facts is not None and _released(state) and base in (None, facts.payout_txid, *(v.txid for v in payout.variants)):
        found.append((facts.payout_txid, release_of(state)))
    return found


def _released(state: TradeState) -> bool:
    payout = state.payout
    return payout.own_signature is not None and payout.peer_signature is not None


def _open(state: TradeState, branch: Branch) -> bool:
    return branch is Branch.MAIN or (state.dispute is not None and state.dispute.backup_open)


def _payout(state: TradeState, outcome: Outcome, signatures: dict[Role, bytes]) -> bytes:
    contract = contract_of(state)
    tx = assemble_payout(derive_payout(contract, state.network, outcome), signatures)
    gate_payout(contract, state.network, tx, outcome)
    return tx
