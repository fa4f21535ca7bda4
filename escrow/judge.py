"""What a judge of a dispute asks of Bitcoin: the answers to `protocol.replay.Checks`, all derived from the contract."""

from __future__ import annotations

from escrow.errors import BadPayoutSignature
from escrow.payout import check_payout_signature, derive_payout
from escrow.script import Role
from escrow.verify import escrow_facts
from protocol.contract import Contract
from protocol.outcome import Outcome
from protocol.trade_state import EscrowFacts
from protocol.types import Network, Side


class EscrowChecks:
    """Derives everything from the contract."""

    def facts(self, contract: Contract, network: Network) -> EscrowFacts:
        """What follows from the contract on chain. Raises as `derive_funding`."""
        return escrow_facts(contract, network)

    def payout_txid(self, contract: Contract, network: Network, outcome: Outcome) -> bytes:
        """The payout of an outcome. Raises BadPayout for one that the contract forbids."""
        return derive_payout(contract, network, outcome).txid

    def signed(self, contract: Contract, network: Network, outcome: Outcome, by: Side | None, der: bytes) -> bool:
        """Whether `der` signs that payout for a party, or (None) for the arbiter of the outcome's branch."""
        role = Role.ARBITER if by is None else Role.of(by)
        try:
            check_payout_signature(derive_payout(contract, network, outcome), role, der)
        except BadPayoutSignature:
            return False
        return True
