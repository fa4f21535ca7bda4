"""What the rest of the system knows of the Bitcoin chain, whichever backend it comes from (DESIGN section 10).

Theory of operation. A backend answers questions (`tip`, `fee_rate`, `transaction`), carries transactions out
(`broadcast`) and watches. A watch is a standing question about one script or one output; the answer is a stream of
`ChainEvent`s. Watches live in memory only. Whoever needs one keeps it in its own store and arms it again after a
restart, with the height from which the backend is to look: what happened while the node was off is then told as if
it had just been seen. Arming the same key again replaces the watch (an upsert) and tells its present state anew, so
consumers must take every event as a statement of what is so, not as a count.

Order. Within one watch events come in the order of the chain. On a reorganisation everything that the disconnected
blocks had confirmed is taken back first (`Unconfirmed`, `SpendUndone`), highest block first; then the new branch is
told. `TipChanged` closes a block: it comes after all that the block did to the watches, so a deadline that falls at a
height can't overtake a spend in that same block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec

from escrow.coins import OutPoint
from protocol.errors import Action, ChainError
from protocol.types import FeeRate, Hash32, Height, Network, Sats, Txid, UnixTime


class BlockRef(msgspec.Struct, frozen=True):
    """One block of the best chain; `hash` in internal byte order, `median_time` as BIP113 defines it."""

    height: Height
    hash: Hash32
    time: UnixTime
    median_time: UnixTime


class ChainTx(msgspec.Struct, frozen=True):
    """A transaction and where it is: `height` and `block_hash` are None while it waits in the mempool."""

    raw: bytes
    height: Height | None
    block_hash: Hash32 | None
    depth: int
    """1 in the tip, 0 in the mempool."""


class WatchRequest(msgspec.Struct, frozen=True):
    """A standing question.

    With `outpoint` the watch is about that output only (and `script_pubkey` must be its script: filters find blocks
    by script). Without, it is about every output that pays `script_pubkey`. Spends of the outputs found are always
    told. Blocks below `from_height` are not looked at.
    """

    key: bytes
    """The asker's name for it, at most 64 bytes; one watch per key."""
    script_pubkey: bytes
    outpoint: OutPoint | None
    from_height: Height
    depth: int = 6
    """Tell each new depth up to this one. Reorganisations are told however deep."""


class Seen(msgspec.Struct, frozen=True, tag=True):
    """An output that the watch asks for waits in the mempool."""

    key: bytes
    outpoint: OutPoint
    value: Sats
    tx: bytes


class Unseen(msgspec.Struct, frozen=True, tag=True):
    """The output's transaction has left the mempool without being confirmed: evicted, replaced or double-spent."""

    key: bytes
    outpoint: OutPoint


class Confirmed(msgspec.Struct, frozen=True, tag=True):
    """The output stands in a block of the best chain. Told again at each new depth."""

    key: bytes
    outpoint: OutPoint
    value: Sats
    tx: bytes
    height: Height
    block_hash: Hash32
    depth: int


class Unconfirmed(msgspec.Struct, frozen=True, tag=True):
    """A reorganisation took the output's block away. `Seen`, `Confirmed` or `Unseen` follows when known."""

    key: bytes
    outpoint: OutPoint
    height: Height
    block_hash: Hash32


class SpentBy(msgspec.Struct, frozen=True, tag=True):
    """The output is spent, by a transaction in the mempool (depth 0) or in a block. Told again at each new depth."""

    key: bytes
    outpoint: OutPoint
    txid: Txid
    tx: bytes
    height: Height | None
    block_hash: Hash32 | None
    depth: int


class SpendUndone(msgspec.Struct, frozen=True, tag=True):
    """That spend no longer stands: its block was reorganised away, or it left the mempool.

    If it is back in the mempool, `SpentBy` with depth 0 follows.
    """

    key: bytes
    outpoint: OutPoint
    txid: Txid


class TipChanged(msgspec.Struct, frozen=True, tag=True):
    """The best chain ends here now. The last event of its block."""

    tip: BlockRef


ChainEvent = Seen | Unseen | Confirmed | Unconfirmed | SpentBy | SpendUndone | TipChanged


class Health(Enum):
    """Whether money may move on what the backend says."""

    STARTING = "starting"
    SYNCING = "syncing"
    READY = "ready"
    UNREACHABLE = "unreachable"


class ChainStatus(msgspec.Struct, frozen=True):
    """What a user is told of the backend. `detail` is one line, empty when all is well."""

    health: Health
    backend: str
    tip: BlockRef | None
    detail: str = ""


class Report(Enum):
    """What is told of a backend when it changes and lasts, beyond `status`; the values are topics of the event feed."""

    WELL = "chain-well"
    DEGRADED = "chain-degraded"
    """Money moves, but fewer backends answer than are configured, or only one peer does."""
    DISAGREEMENT = "chain-disagreement"
    """Backends tell different things; where the quorum does not agree nothing moves."""
    UNREACHABLE = "chain-unreachable"
    """Nothing moves."""


class ChainBackend(Protocol):
    """One view of the Bitcoin chain. Every method may raise `BackendUnreachable`."""

    @property
    def network(self) -> Network:
        """The network that it was told to be on; `start` has checked it."""
        ...

    async def start(self) -> None:
        """Connect, check the network, begin to follow the chain.

        Raises BackendUnreachable, BackendAuthFailed, BackendTooOld or WrongNetwork. A backend that still syncs starts,
        and refuses what needs the tip with NotSynced.
        """
        ...

    async def close(self) -> None:
        """Stop; ends every `events` iterator. Safe to call twice."""
        ...

    def status(self) -> ChainStatus:
        """The present health, without asking anyone."""
        ...

    async def tip(self) -> BlockRef:
        """The best block as last followed: events up to it were told."""
        ...

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """Satoshis per 1,000 vB for confirmation within `target_blocks`; never under what the mempool takes now.

        Raises FeeUnknown when there is no estimate and no fallback is configured, NotSynced.
        """
        ...

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """What a waiting transaction pays by itself, in satoshis; None where it does not wait or that can't be told."""
        ...

    async def test_accept(self, tx: bytes) -> None:
        """Ask whether the mempool would take `tx`. Returns if so (also when it has it); raises Rejected, NotSynced."""
        ...

    async def broadcast(self, tx: bytes) -> Txid:
        """Hand `tx` to the network, after `test_accept`. Idempotent: in mempool or chain already is success.

        Raises Rejected with the node's reason, NotSynced.
        """
        ...

    async def transaction(self, txid: Txid, block_hash: Hash32 | None = None) -> ChainTx | None:
        """The transaction if the backend can find it: in the mempool, watched, or in `block_hash`; else None."""
        ...

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """Whether an output is in a block and nothing that is known spends it; None where the backend can't tell."""
        ...

    async def watch(self, request: WatchRequest) -> None:
        """Arm or replace a watch. Returns once `events` holds all that is known of it. Raises BlocksPruned."""
        ...

    async def watch_many(self, requests: Sequence[WatchRequest]) -> None:
        """`watch` for many at the price of one scan."""
        ...

    async def unwatch(self, key: bytes) -> None:
        """Forget a watch; unknown keys are fine."""
        ...

    def events(self) -> AsyncIterator[ChainEvent]:
        """A new stream of everything from now on, for every watch; each consumer takes its own. Never loses events."""
        ...


class BackendUnreachable(ChainError):
    """The Bitcoin node does not answer: check that it runs and that its address is right."""

    code = 4001


class BlockUnknown(BackendUnreachable):
    """The Bitcoin node or server does not have a block yet that others have: it is asked again."""

    code = 4019


class BackendAuthFailed(ChainError):
    """The Bitcoin node refused the RPC login: check the cookie file, or user and password."""

    code = 4002
    action = Action.TELL_USER


class WrongNetwork(ChainError):
    """The Bitcoin node is on another network than this node."""

    code = 4003
    action = Action.STOP


_FLOOR: Final = ("min relay fee not met", "mempool min fee not met", "mempool full")
"""How bitcoind, and whoever asks one, says that a fee is too low for now."""


class Rejected(ChainError):
    """The Bitcoin node will not take the transaction."""

    code = 4004
    action = Action.TELL_USER

    def __init__(self, reason: str) -> None:
        """Keep the node's own `reason`, such as `missing-inputs` or `min relay fee not met`."""
        super().__init__(f"the Bitcoin node refused the transaction: {reason}")
        self.reason = reason

    @property
    def too_cheap(self) -> bool:
        """Whether its fee alone is the trouble, and may do later, or with a child that pays: it is under the floor."""
        return any(words in self.reason for words in _FLOOR)


class NotSynced(ChainError):
    """The Bitcoin node is still syncing: wait until it is done."""

    code = 4005


class FeeUnknown(ChainError):
    """The Bitcoin node has no fee estimate yet: wait, or set a fallback fee rate."""

    code = 4006


class BlocksPruned(ChainError):
    """The Bitcoin node has pruned blocks that are needed: use an unpruned node, or one with a block filter index."""

    code = 4007
    action = Action.TELL_USER


class BackendTooOld(ChainError):
    """The Bitcoin node is too old: version 28 or newer is needed."""

    code = 4008
    action = Action.STOP


class BackendError(ChainError):
    """The Bitcoin node answered with an error that this node does not expect."""

    code = 4009


class NotRelayed(ChainError):
    """No peer has shown yet that it took the transaction: it is sent again until one does."""

    code = 4011


class BackendsDisagree(ChainError):
    """The configured backends tell different things of the chain: nothing moves until they agree."""

    code = 4012


class ProofFailed(ChainError):
    """A server told something of the chain that it could not prove: use another."""

    code = 4013
