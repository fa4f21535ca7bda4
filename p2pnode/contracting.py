"""From agreed messages to a contract, and from a contract to everything that follows from it.

Used by the taker, the maker, the intake and the executor alike, so that no two of them can read a contract
differently. Derivations are cached by contract: they are pure, and each is asked for several times in a trade.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from escrow.funding import FundingPlan, derive_funding
from escrow.payout import PayoutPlan, derive_payout
from escrow.terms import check_contract
from escrow.verify import escrow_facts
from protocol.announcement import Announcement
from protocol.contract import ArbiterTerms, Contract, arbiter_terms
from protocol.messages import Take
from protocol.trade_state import EscrowFacts
from protocol.types import Network
from protocol.wire import Kind, open_envelope, unpack


class Derived(Struct, frozen=True):
    """What a contract means on chain."""

    funding: FundingPlan
    payout: PayoutPlan
    facts: EscrowFacts


@lru_cache(maxsize=256)
def derive(contract: Contract, network: Network) -> Derived:
    """The funding and the release of a contract, with all of its rules checked. Raises BadEscrowTerms and others."""
    check_contract(contract, network)
    return Derived(
        funding=derive_funding(contract, network),
        payout=derive_payout(contract, network),
        facts=escrow_facts(contract, network),
    )


def agreed_arbiters(take: Take, network: Network) -> tuple[ArbiterTerms, ArbiterTerms | None]:
    """The arbiter terms that a take's announcements give for its amount; signatures checked, expiry not.

    That they are the ones the offer accepts is `contract.check_terms`'s to see. Raises what `open_envelope` raises.
    """
    arbiter, backup = (
        None if raw is None else _terms(raw, take.bargain.amount, network) for raw in (take.arbiter, take.backup)
    )
    if arbiter is None:
        raise AssertionError("a take always carries an arbiter")
    return arbiter, backup


def _terms(raw: bytes, amount: int, network: Network) -> ArbiterTerms:
    envelope = open_envelope(raw, network, limit=Kind.ARBITER.limit)
    announcement = unpack(envelope.body, Announcement, limit=Kind.ARBITER.limit)
    return arbiter_terms(envelope.id, announcement, amount)
