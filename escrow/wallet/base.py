"""The user's wallet as the engine sees it: coins in, coins out, and coins promised to trades.

Theory of operation. All coins sit in one BIP84 account (P2WPKH: the smallest inputs, and the only kind whose txid can't
change once signed, which escrow funding needs). A coin that a trade may spend is *reserved*: the reservation names its
holder (a trade id), lies in the node's own store, and outlives a restart. A reserved coin is never chosen for
anything else and never signed for anyone but its holder. Only `release` ends it.

Money that the wallet counts as spendable is confirmed; a coin that a reorganisation took out of the chain stops being
so at once. Amounts are integer satoshis, fee rates integer satoshis per 1,000 vB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from escrow.coins import OutPoint, TxOut
from escrow.psbt import KeyOrigin
from escrow.psbtplan import OwnSpend
from escrow.transactions import Witness
from protocol.errors import Action, LocalError, UserError
from protocol.types import FeeRate, Height, Network, Sats, Txid, UnixTime


class Balance(msgspec.Struct, frozen=True):
    """Satoshis by what can be done with them.

    `confirmed` counts every coin in a block, `pending` those in the mempool, `reserved` the part of both that is held
    by trades, `immature` mined coins that are too young, `frozen` what the user set aside. `spendable` = confirmed
    coins that nobody holds.
    """

    confirmed: Sats
    pending: Sats
    immature: Sats
    reserved: Sats
    spendable: Sats
    frozen: Sats = 0


class WalletAddress(msgspec.Struct, frozen=True):
    """An address that was handed out; it never is again."""

    text: str
    script_pubkey: bytes
    index: int
    purpose: str


class Utxo(msgspec.Struct, frozen=True):
    """An unspent coin of ours. `confirmations` is 0 in the mempool; `reserved_for` is the holder's trade id."""

    outpoint: OutPoint
    value: Sats
    script_pubkey: bytes
    confirmations: int
    reserved_for: bytes | None
    is_change: bool
    frozen: bool = False


class SelectedInput(msgspec.Struct, frozen=True):
    """A coin chosen for a trade, with the whole transaction that made it (peers check the amount in it)."""

    outpoint: OutPoint
    value: Sats
    script_pubkey: bytes
    previous_tx: bytes


class Selection(msgspec.Struct, frozen=True):
    """Coins for one party's share of a funding transaction.

    sum(inputs) = target + fee + change.value, exactly, as `escrow.funding` counts it; without a change output the
    excess is part of `fee`.
    """

    holder: bytes
    inputs: tuple[SelectedInput, ...]
    change: TxOut | None
    fee: Sats


class Reservation(msgspec.Struct, frozen=True):
    """A promise of one coin to one holder, and since when."""

    outpoint: OutPoint
    holder: bytes
    value: Sats
    since: UnixTime


class HistoryEntry(msgspec.Struct, frozen=True):
    """A transaction that moved our coins. `net` is what we gained (negative: lost), fee included."""

    txid: Txid
    net: int
    fee: Sats | None
    """None when some inputs are not ours."""
    height: Height | None
    time: UnixTime
    """Of its block, or when it was first seen."""


class Sent(msgspec.Struct, frozen=True):
    """A payment that was broadcast."""

    txid: Txid
    tx: bytes
    fee: Sats


class Bumped(msgspec.Struct, frozen=True):
    """A fee that was raised: by a `replacement` of the transaction, or else by a child that pays for it."""

    sent: Sent
    replacement: bool


LabelKind = Literal["tx", "addr", "pubkey", "input", "output", "xpub"]
"""What BIP329 can put a label on."""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """One record of BIP329. `kind` is its `type`; an `output` that is not `spendable` is frozen."""

    kind: LabelKind
    ref: str
    label: str = ""
    origin: str | None = None
    spendable: bool | None = None


class ReservationStore(Protocol):
    """Where reservations are kept. Calls are made on the event loop's thread and are short.

    No method commits or begins a transaction when one is open already, so the engine can put a reservation into the
    same commit as the trade's new state.
    """

    def all(self) -> tuple[Reservation, ...]:
        """Every reservation."""
        ...

    def add(self, reservations: Sequence[Reservation]) -> None:
        """Keep all or none. The same holder again is fine. Raises AlreadyReserved if another holds one of the coins."""
        ...

    def remove(self, holder: bytes) -> None:
        """Forget what `holder` holds; nothing is fine."""
        ...


class Wallet(Protocol):
    """The user's coins. Every method may be called at once with any other; none blocks the event loop."""

    @property
    def network(self) -> Network:
        """The network of its addresses."""
        ...

    async def start(self) -> None:
        """Load, catch up with the chain, follow it. Raises WalletMismatch, DataCorrupt and what the backend raises."""
        ...

    async def close(self) -> None:
        """Save and stop. Safe to call twice."""
        ...

    async def balance(self) -> Balance:
        """The present balance."""
        ...

    async def new_address(self, purpose: str) -> WalletAddress:
        """A fresh receiving address, on disk before it is returned. `purpose` is a label of at most 200 characters."""
        ...

    async def change_script(self) -> bytes:
        """A fresh script of the change branch, on disk before it is returned: for payouts, refunds and change."""
        ...

    async def utxos(self) -> tuple[Utxo, ...]:
        """All unspent coins, largest first, mempool ones and reserved ones too."""
        ...

    @property
    def signs(self) -> bool:
        """Whether its keys are here; else a person signs what `origin_of` describes."""
        ...

    def origin_of(self, script_pubkey: bytes) -> KeyOrigin | None:
        """Where the key of one of its scripts comes from; None for a script that is not ours."""
        ...

    async def select(
        self,
        target: Sats,
        fee_rate: FeeRate,
        *,
        holder: bytes,
        max_inputs: int = 8,
        min_confirmations: int = 1,
        commit: bool = True,
    ) -> Selection:
        """Choose and reserve coins that pay `target` and the fee of their own inputs and change output.

        Prefers one input, then the fewest; makes change unless it would be dust. `target` must hold the caller's share
        of everything else (escrow output, transaction overhead). Asked again for the same holder, it forgets the
        former choice first. With `commit=False` the coins are held in memory only and the caller writes
        `reservations_of(selection)` in a transaction of its own, or calls `release`.

        Raises InsufficientFunds, TooManyInputs, AmountBelowDust, FeeRateTooHigh.
        """
        ...

    async def reservations(self) -> tuple[Reservation, ...]:
        """All reservations, to be compared with the trades that live: one that no trade knows may be released."""
        ...

    async def release(self, holder: bytes) -> None:
        """Let go of all that `holder` holds; nothing is fine."""
        ...

    async def sign_inputs(self, tx: bytes, *, holder: bytes) -> Mapping[int, Witness]:
        """Witnesses for exactly those inputs of `tx` that are coins reserved for `holder`, by input index.

        SIGHASH_ALL, low-S, low-R (71 bytes with the sighash byte). `tx` may be unsigned or partly signed. The caller
        has checked what `tx` does. Raises NothingToSign.
        """
        ...

    async def send(self, address: str, amount: Sats, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = ()) -> Sent:
        """Pay from coins that nobody holds, or from all of `coins`, and broadcast.

        Raises BadAddress, WrongNetworkAddress, AmountBelowDust, FeeRateTooHigh, InsufficientFunds, TooManyInputs,
        CoinReserved, CoinUnfit, WatchOnly, Rejected.
        """
        ...

    async def send_all(self, address: str, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = ()) -> Sent:
        """Pay everything that is spendable, or all of `coins`, the fee out of it. Raises what `send` raises."""
        ...

    async def consolidate(
        self, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = (), below: Sats | None = None
    ) -> Sent:
        """Make one coin of all spendable ones, or of those `below` so many satoshis, or of `coins`.

        Raises what `send` raises, and CoinUnfit when there are fewer than two.
        """
        ...

    async def bump(
        self, txid: Txid, fee_rate: FeeRate, *, parent_fee: Sats | None = None, parent: bytes | None = None
    ) -> Bumped:
        """Raise the fee of a transaction that waits, so that miners get at least `fee_rate` for it.

        A payment of ours is replaced: the payees get what they got. Anything else, such as a trade's funding or payout,
        is helped by a child that spends our outputs of it. What that parent pays is reckoned from its inputs if all are
        ours, else from `parent_fee`, else taken for nothing. One that no mempool takes, because it pays too little, is
        given whole as `parent`, and goes out together with its child. Raises CantBump, BumpTooLow and what `send`
        raises.
        """
        ...

    async def freeze(self, coins: Sequence[OutPoint], *, frozen: bool) -> None:
        """Set coins aside: nothing chooses them until they are thawed. Reserved ones stay their trade's.

        Raises CoinUnfit for one that is not ours.
        """
        ...

    async def labels(self) -> tuple[Label, ...]:
        """All labels; addresses that were handed out with a purpose have it as their label."""
        ...

    async def set_labels(self, labels: Sequence[Label]) -> None:
        """Keep labels, each in the place of the one with its kind and reference; an empty text deletes.

        An `output` record that says whether the coin is spendable freezes or thaws it.
        """
        ...

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal public descriptor."""
        ...

    async def double_spend(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Take back all coins reserved for `holder` to our own change, when a counterparty withholds its part.

        Pays `fee_rate`, or more where replacing what the mempool holds costs more. Broadcasts; the reservation stays
        until the caller releases it. Raises NothingToSign, Rejected, FeeRateTooHigh, AmountBelowDust.
        """
        ...

    async def draft_double_spend(self, holder: bytes, fee_rate: FeeRate) -> OwnSpend:
        """The same, to be signed elsewhere: nothing is broadcast. Raises what `double_spend` raises but Rejected."""
        ...

    async def send_double_spend(self, holder: bytes, unsigned: bytes, witnesses: Sequence[Witness]) -> Sent:
        """Broadcast that draft once it is signed.

        Raises GateRefused when it does anything but bring coins that `holder` holds back to this wallet, Rejected.
        """
        ...

    async def transaction(self, txid: Txid) -> bytes | None:
        """A transaction that touches this wallet, if it is known."""
        ...

    async def child_of(self, txid: Txid) -> bytes | None:
        """The wallet's own transaction that spends from that one and is in no block."""
        ...

    async def history(self, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """The newest transactions first."""
        ...


class InsufficientFunds(UserError):
    """The wallet does not hold enough coins that are free to spend."""

    code = 3200

    def __init__(self, needed: int, available: int, reserved: int, pending: int = 0, unfit: int = 0) -> None:
        """All in satoshis: `needed` includes fees, `available` is confirmed and free, `reserved` is held by trades.

        `unfit` is in coins whose transactions are too large to be shown to a counterparty.
        """
        parts = [f"not enough coins: {needed:,} sat needed with fees, {available:,} sat spendable"]
        if reserved:
            parts.append(f"{reserved:,} sat held by open trades")
        if pending:
            parts.append(f"{pending:,} sat not yet confirmed")
        if unfit:
            parts.append(f"{unfit:,} sat in coins whose transactions are too large for a trade: consolidate them first")
        super().__init__("; ".join(parts))
        self.needed = needed
        self.available = available
        self.reserved = reserved
        self.pending = pending


class TooManyInputs(UserError):
    """The coins are too small: consolidate them first (send them all to an own address)."""

    code = 3201


class AmountBelowDust(UserError):
    """The amount is too small: nodes do not relay outputs that cost more to spend than they hold."""

    code = 3202


class FeeRateTooHigh(UserError):
    """The fee rate is above the ceiling that guards against typing errors."""

    code = 3203


class NothingToSign(UserError):
    """None of the transaction's inputs is a coin reserved for this trade."""

    code = 3204


class CoinReserved(UserError):
    """The coin is held by an open trade: it can't be spent before the trade lets go of it."""

    code = 3208


class CoinUnfit(UserError):
    """The coin can't be spent like this."""

    code = 3209


class BumpTooLow(UserError):
    """The transaction pays that fee rate already: name a higher one."""

    code = 3242


class CantBump(UserError):
    """The fee of that transaction can't be raised by this wallet."""

    code = 3243


class AlreadyReserved(LocalError):
    """A coin is already reserved for another trade."""

    code = 1200
    action = Action.TELL_USER


class WalletMismatch(UserError):
    """The wallet's data belongs to another mnemonic or another network: use the data directory it was made in."""

    code = 3205


def reservations_of(selection: Selection, since: UnixTime) -> tuple[Reservation, ...]:
    """What a caller of `select(commit=False)` must write into the `ReservationStore`."""
    return tuple(Reservation(i.outpoint, selection.holder, i.value, since) for i in selection.inputs)
