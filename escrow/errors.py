"""What can be wrong with the Bitcoin side of a trade, by whose fault it is."""

from __future__ import annotations

from protocol.errors import Action, LocalError, PeerViolation, UserError
from protocol.types import Side


class EscrowViolation(PeerViolation):
    """The peer's part of the escrow is not what the contract allows."""

    code = 2400


class UnsupportedScript(EscrowViolation):
    """A contract pays to P2WPKH, P2WSH or P2TR scripts only."""

    code = 2401


class UnsupportedInput(EscrowViolation):
    """An escrow is funded from P2WPKH or P2TR outputs only."""

    code = 2402


class BadEscrowKey(EscrowViolation):
    """The peer's escrow key is not valid, or it did not prove that it holds it."""

    code = 2403


class BadArbiterKey(EscrowViolation):
    """The arbiter's base point gives no valid key for this contract."""

    code = 2404


class BadEscrowTerms(EscrowViolation):
    """The contract can't be carried out on chain."""

    code = 2405


class ShortInputs(BadEscrowTerms):
    """A party's coins do not cover its share of the funding. `side` names the party, `missing` is in satoshis."""

    code = 2406

    def __init__(self, side: Side, missing: int) -> None:
        """Name the party and what it lacks."""
        who = "buyer" if side is Side.BUY else "seller"
        super().__init__(f"the {who}'s inputs are {missing:,} sat short of its share of the escrow and the fees")
        self.side = side
        self.missing = missing


class BadFundingInput(EscrowViolation):
    """The peer's funding input is not the output that it claims to be."""

    code = 2407


class BadFundingWitness(EscrowViolation):
    """The peer's signature on the funding transaction is not valid."""

    code = 2408


class BadPayoutSignature(EscrowViolation):
    """The signature on the payout is not valid for the payout that follows from the contract."""

    code = 2409


class BadPayout(UserError):
    """The contract does not allow that payout."""

    code = 3230


class GateRefused(LocalError):
    """What was about to be signed or broadcast is not what the contract says; nothing was sent."""

    code = 1210
    action = Action.STOP
