"""Weights, fees and dust: the numbers that both parties of a trade must count alike (SPEC section 6.2).

Weights are counted before there are signatures, with the largest witness that is accepted for each kind of input. So
a transaction never pays less than its rate, whoever signed it; with low-R signatures, which all our own signers make,
it is one weight unit per ECDSA signature smaller than counted.
"""

from __future__ import annotations

from typing import Final

from escrow.errors import UnsupportedInput, UnsupportedScript

MAX_SIGNATURE: Final = 72
"""Bytes of the largest ECDSA signature with low S, its sighash byte included; with low R it has 71."""

P2WPKH_INPUT_WEIGHT: Final = 4 * 41 + 1 + 1 + MAX_SIGNATURE + 1 + 33
"""Outpoint, empty script and sequence; witness of a signature and a compressed key."""
P2TR_INPUT_WEIGHT: Final = 4 * 41 + 1 + 1 + 64
"""As above; witness of one BIP340 signature with the default sighash."""
OVERHEAD_WEIGHT: Final = 4 * (4 + 1 + 1 + 4) + 2
"""Version, two counts below 253 and lock time; the segwit marker and flag."""
ROUNDING_WEIGHT: Final = 3
"""Nodes count whole virtual bytes: at most so much more than the weight."""
P2WSH_SCRIPT_SIZE: Final = 34
"""The largest script that is paid to (P2WSH and P2TR alike)."""


def fee(weight: int, rate: int) -> int:
    """Satoshis for `weight` units at `rate` satoshis per 1,000 virtual bytes, rounded up."""
    return -(-weight * rate // 4000)


def is_p2wpkh(script: bytes) -> bool:
    """Whether `script` is a version 0 program of 20 bytes (BIP141)."""
    return len(script) == 22 and script[:2] == b"\x00\x14"


def is_p2wsh(script: bytes) -> bool:
    """Whether `script` is a version 0 program of 32 bytes (BIP141)."""
    return len(script) == 34 and script[:2] == b"\x00\x20"


def is_p2tr(script: bytes) -> bool:
    """Whether `script` is a version 1 program of 32 bytes (BIP341)."""
    return len(script) == 34 and script[:2] == b"\x51\x20"


def check_payee(script: bytes) -> None:
    """Refuse what a contract must not pay to.

    Witness versions without rules yet are anyone's to spend: paying to one is a mistake, or a trap for its owner.
    Raises UnsupportedScript.
    """
    if not (is_p2wpkh(script) or is_p2wsh(script) or is_p2tr(script)):
        raise UnsupportedScript


def input_weight(script: bytes) -> int:
    """Weight units of an input that spends `script`. Raises UnsupportedInput."""
    if is_p2wpkh(script):
        return P2WPKH_INPUT_WEIGHT
    if is_p2tr(script):
        return P2TR_INPUT_WEIGHT
    raise UnsupportedInput


def output_weight(script_size: int) -> int:
    """Weight units of an output whose script has `script_size` bytes (fewer than 253)."""
    return 4 * (8 + 1 + script_size)


def dust_limit(script: bytes) -> int:
    """Satoshis under which nodes do not relay an output to a native segwit `script`: 294 for P2WPKH, 330 for others.

    Bitcoin Core's GetDustThreshold at its dust relay rate of 3,000 sat/kvB: the output's size and 67 bytes to spend it.
    """
    return 3 * (8 + 1 + len(script) + 67)
