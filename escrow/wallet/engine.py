"""What holds the wallet's keys and understands its coins, as the wallet sees it.

`BdkEngine` is one. The seam is here because bdkpython is not everywhere: an engine gets the ledger's facts as values
and answers with values, so that another can take its place without the rest noticing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Protocol

import msgspec

from escrow.chain.base import BlockRef
from escrow.coins import OutPoint
from escrow.transactions import Witness
from protocol.types import FeeRate, Height, Sats, UnixTime


class Keychain(IntEnum):
    """BIP84's two branches of an account."""

    EXTERNAL = 0
    """Addresses that are handed out."""
    INTERNAL = 1
    """Change, refunds and payouts to oneself."""


class Fact(msgspec.Struct, frozen=True):
    """A transaction that touches us and counts: `block` holds it, or it waits since `seen`."""

    raw: bytes
    block: BlockRef | None
    seen: UnixTime


class Snapshot(msgspec.Struct, frozen=True):
    """All that is known: facts, how many scripts of each keychain were handed out, and the tip."""

    facts: tuple[Fact, ...]
    revealed: Mapping[Keychain, int]
    tip: BlockRef


class EngineCoin(msgspec.Struct, frozen=True):
    """An unspent output; `height` is None in the mempool."""

    outpoint: OutPoint
    value: Sats
    script_pubkey: bytes
    keychain: Keychain
    height: Height | None


class Built(msgspec.Struct, frozen=True):
    """A signed transaction of ours, and how many internal scripts are handed out now."""

    raw: bytes
    fee: Sats
    internal: int


class WalletEngine(Protocol):
    """Keys and coins of one account. `script` may be called on any thread, the others on one thread at a time."""

    @property
    def identity(self) -> str:
        """The public descriptors: what the stored data must belong to."""
        ...

    def script(self, keychain: Keychain, index: int) -> bytes:
        """The output script at an index."""
        ...

    def load(self, snapshot: Snapshot) -> None:
        """Replace all that was known."""
        ...

    def coins(self) -> tuple[EngineCoin, ...]:
        """What is unspent, by the facts."""
        ...

    def build(self, script: bytes, amount: Sats, fee_rate: FeeRate, forbidden: Collection[OutPoint]) -> Built:
        """Choose confirmed coins outside `forbidden`, pay `amount` to `script`, sign.

        Raises InsufficientFunds, AmountBelowDust.
        """
        ...

    def sign(self, raw: bytes, previous: Mapping[int, bytes]) -> dict[int, Witness]:
        """Witnesses for the inputs whose full previous transactions are given, by index.

        Raises GateRefused when an input could not be signed: it is not ours.
        """
        ...
