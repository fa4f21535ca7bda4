"""The two values that every transaction is made of, in the byte order that the chain uses."""

from __future__ import annotations

from typing import Self

import msgspec

from protocol.types import Sats, Txid


class OutPoint(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Which output: `txid` in internal byte order (reversed against what explorers show) and its index."""

    txid: Txid
    vout: int

    def __str__(self) -> str:
        """`txid:vout` as explorers and bitcoin-cli write it."""
        return f"{self.txid[::-1].hex()}:{self.vout}"

    @property
    def wire(self) -> bytes:
        """The 36 bytes that stand for it inside a transaction."""
        return self.txid + self.vout.to_bytes(4, "little")

    @classmethod
    def from_wire(cls, raw: bytes) -> Self:
        """Undo `wire`."""
        return cls(raw[:32], int.from_bytes(raw[32:36], "little"))


class TxOut(msgspec.Struct, frozen=True, array_like=True):
    """What an output holds: `value` in satoshis and the script that guards it."""

    value: Sats
    script_pubkey: bytes


def txid_text(txid: bytes) -> str:
    """A txid as explorers and bitcoin-cli show it."""
    return txid[::-1].hex()


def txid_bytes(text: str) -> bytes:
    """The internal byte order of an explorer's txid. Raises ValueError for anything but 64 hex digits."""
    raw = bytes.fromhex(text)
    if len(raw) != 32:
        msg = "a txid has 64 hex digits"
        raise ValueError(msg)
    return raw[::-1]
