"""What holds the wallet's keys and understands its coins, as the wallet sees it.

`BdkEngine` is one, `NativeEngine` another, because bdkpython is not everywhere; `WatchEngine` has no keys. An engine
gets the ledger's facts as values and answers with values: which coins are unspent, and signatures. It chooses nothing,
so that the wallet does the same whichever engine it has (docs/adr/0011-two-wallet-engines.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from escrow.chain.base import BlockRef
from escrow.coins import OutPoint
from escrow.transactions import Witness
from escrow.wallet.account import Keychain
from protocol.errors import UserError
from protocol.types import Height, Sats, UnixTime

__all__ = ["EngineCoin", "Fact", "Keychain", "Snapshot", "WalletEngine", "WatchOnly"]


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


class WatchOnly(UserError):
    """This wallet only watches: its keys are elsewhere, so it can't sign."""

    code = 3207


class WalletEngine(Protocol):
    """Keys and coins of one account. `script` may be called on any thread, the others on one thread at a time."""

    @property
    def identity(self) -> str:
        """The public descriptors: what the stored data must belong to."""
        ...

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal public descriptor, with checksums."""
        ...

    @property
    def signs(self) -> bool:
        """Whether it has the keys."""
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

    def sign(self, raw: bytes, previous: Mapping[int, bytes]) -> dict[int, Witness]:
        """Witnesses for the inputs whose full previous transactions are given, by index.

        Raises GateRefused when an input could not be signed: it is not ours; WatchOnly.
        """
        ...
