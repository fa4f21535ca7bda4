"""How an Electrum server's answers are written: scripts, histories, headers and amounts (sans-IO).

Source: the protocol's documentation (electrumx.readthedocs.io, versions 1.4 to 1.6).
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from hashlib import sha256

from escrow.chain.base import BackendError, ProofFailed
from escrow.chain.headers import HEADER_BYTES
from escrow.coins import txid_bytes
from protocol.types import Txid


def scripthash(script: bytes) -> str:
    """How the protocol names a script."""
    return sha256(script).digest()[::-1].hex()


def entries(answer: object) -> dict[Txid, int]:
    """A history. In a block counts if a transaction is said to be both there and waiting, as may be for a moment."""
    entries: dict[Txid, int] = {}
    try:
        for entry in answer if isinstance(answer, list) else []:
            txid, height = txid_bytes(entry["tx_hash"]), int(entry["height"])
            entries[txid] = max(height, entries.get(txid, height))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise ProofFailed("an Electrum server sent a history that does not parse") from e
    return entries


def status_of(answer: object) -> str | None:
    """The status that a history has by the protocol's documentation; None for an empty one."""
    if not isinstance(answer, list) or not answer:
        return None
    text = "".join(f"{entry['tx_hash']}:{entry['height']}:" for entry in answer)
    return sha256(text.encode()).hexdigest()


def headers(answer: object) -> list[bytes]:
    """Headers: in one text up to version 1.4, in a list from 1.6 on."""
    try:
        if isinstance(answer, dict) and "headers" in answer:
            return [bytes.fromhex(text) for text in answer["headers"]]
        raw = bytes.fromhex(answer["hex"]) if isinstance(answer, dict) else b""
    except (KeyError, TypeError, ValueError) as e:
        raise ProofFailed("an Electrum server sent headers that do not parse") from e
    return [raw[i : i + HEADER_BYTES] for i in range(0, len(raw), HEADER_BYTES)]


def sat(btc: object) -> int:
    """Satoshis, rounded up; -1 where the server has no answer. Raises BackendError where it is no number at all."""
    try:
        value = Decimal(str(btc))
        return -1 if value < 0 else int((value * 100_000_000).to_integral_value(ROUND_CEILING))
    except (ArithmeticError, ValueError) as e:
        raise BackendError("an Electrum server told a fee that is no number") from e
