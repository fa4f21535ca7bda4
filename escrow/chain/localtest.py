"""What can be said against a transaction without knowing what it spends (sans-IO)."""

from __future__ import annotations

from typing import Final

from escrow.chain.base import BackendError, Rejected
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.sizes import dust_limit
from escrow.transactions import weight

_MOST_WEIGHT: Final = 400_000
_ALL_MONEY: Final = 21_000_000 * 100_000_000
_LEAST_SIZE: Final = 65


def check_alone(raw: bytes) -> ParsedTx:
    """The transaction, if every node's policy could take it (Bitcoin Core's `policy/policy.cpp`). Raises Rejected."""
    try:
        tx = parse_tx(raw)
    except BackendError as e:
        raise Rejected("it does not decode") from e
    if tx.is_coinbase or len(set(tx.spends)) != len(tx.spends):
        raise Rejected("bad-txns-inputs-duplicate")
    if not tx.outputs or sum(o.value for o in tx.outputs) > _ALL_MONEY:
        raise Rejected("bad-txns-txouttotal-toolarge")
    if weight(raw) > _MOST_WEIGHT or len(raw) < _LEAST_SIZE:
        raise Rejected("tx-size")
    segwit = [o for o in tx.outputs if o.script_pubkey[:1] == b"\0" or 0x51 <= (o.script_pubkey or b"\0")[0] <= 0x60]
    if any(o.value < dust_limit(o.script_pubkey) for o in segwit):
        raise Rejected("dust")
    return tx
