"""The user's wallet: what `escrow.wallet.base.Wallet` asks for, over the core, the payments and the engine.

Here are the questions, and the coins that trades ask for. Coins of a trade are the only ones that are signed for
somebody else's transaction, and only for the holder of their reservation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import structs

from escrow.address import address_of
from escrow.chain.follow import FollowedChain
from escrow.coins import OutPoint, TxOut
from escrow.psbt import KeyOrigin
from escrow.psbtplan import OwnSpend
from escrow.transactions import Witness
from escrow.wallet.account import Account
from escrow.wallet.base import (
    Balance,
    Bumped,
    CoinUnfit,
    HistoryEntry,
    Label,
    Reservation,
    ReservationStore,
    SelectedInput,
    Selection,
    Sent,
    Utxo,
    WalletAddress,
    reservations_of,
)
from escrow.wallet.coinselect import Price, choose
from escrow.wallet.core import COINBASE_MATURITY, WalletCore, WalletOptions
from escrow.wallet.engine import Keychain, WalletEngine
from escrow.wallet.labels import outpoint_of
from escrow.wallet.ledger import Entry, Place
from escrow.wallet.payments import Payments
from protocol.errors import UserError
from protocol.types import FeeRate, Network, Sats, Txid, UnixTime

__all__ = ["COINBASE_MATURITY", "HotWallet", "WalletOptions"]

_PURPOSE_LENGTH: Final = 200
MAX_PREVIOUS: Final = 60_000
"""Bytes of the largest transaction that is shown to a counterparty (`protocol.messages.RawTransaction`)."""


class HotWallet:
    """A `Wallet` in this process. Its keys are the engine's, if that has any."""

    def __init__(
        self,
        engine: WalletEngine,
        chain: FollowedChain,
        reservations: ReservationStore,
        path: Path,
        clock: Callable[[], UnixTime],
        options: WalletOptions | None = None,
    ) -> None:
        """Name the parts; nothing is opened yet.

        Args:
            engine: holds the keys; only this wallet may use it.
            chain: must be started before the wallet is, and closed after it.
            reservations: the node's own store.
            path: the wallet's file.
            clock: tells Unix seconds.
            options: see there.
        """
        self._core = WalletCore(engine, chain, reservations, path, clock, options or WalletOptions())
        self._payments = Payments(self._core)
        self._resender: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network of the chain backend."""
        return self._core.chain.network

    async def start(self) -> None:
        """Load, catch up, follow. Raises WalletMismatch, DataCorrupt, BlocksPruned and what the backend raises."""
        if self._core.is_open:
            return
        try:
            await self._core.open()
        except BaseException:
            await self.close()
            raise
        await self._payments.send_again()
        self._resender = asyncio.create_task(self._payments.send_again_for_ever(), name="wallet-resend")

    async def close(self) -> None:
        """Save and stop."""
        if self._resender is not None:
            self._resender.cancel()
            with suppress(asyncio.CancelledError):
                await self._resender
            self._resender = None
        await self._core.close()

    # -- questions --------------------------------------------------------------------------------------------

    async def balance(self) -> Balance:
        """By what can be done with it."""
        confirmed = pending = immature = reserved = spendable = frozen = 0
        for coin in await self._core.utxos():
            if coin.confirmations == 0:
                pending += coin.value
            elif not self._core.is_mature(coin):
                immature += coin.value
            else:
                confirmed += coin.value
                spendable += coin.value if self._core.is_free(coin) else 0
            reserved += coin.value if coin.reserved_for else 0
            frozen += coin.value if coin.frozen else 0
        return Balance(confirmed, pending, immature, reserved, spendable, frozen)

    async def utxos(self) -> tuple[Utxo, ...]:
        """All unspent coins, largest first."""
        return await self._core.utxos()

    async def history(self, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """The newest transactions first: those that wait, then by height."""
        entries = self._core.ledger.entries()
        standing = [e for e in entries if e.place in (Place.MEMPOOL, Place.LIMBO, Place.BLOCK)]
        standing.sort(
            key=lambda e: (e.block is None, e.block.height if e.block else 0, e.seen, e.tx.txid), reverse=True
        )
        return tuple(self._history_of(e) for e in standing[:limit])

    async def reservations(self) -> tuple[Reservation, ...]:
        """Those in the store, and those that their holder has not written yet."""
        return self._core.reservations()

    async def transaction(self, txid: Txid) -> bytes | None:
        """A transaction that touches this wallet, if it is known."""
        entry = self._core.ledger.entry(txid)
        return None if entry is None else entry.tx.raw

    async def child_of(self, txid: Txid) -> bytes | None:
        """Our own transaction that spends from that one and waits."""
        waiting = (e for e in self._core.ledger.entries() if e.own and e.place is not Place.BLOCK)
        return next((e.tx.raw for e in waiting if any(o.txid == txid for o in e.tx.spends)), None)

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal public descriptor."""
        return self._core.engine.descriptors

    @property
    def signs(self) -> bool:
        """Whether its keys are here."""
        return self._core.engine.signs

    def origin_of(self, script_pubkey: bytes) -> KeyOrigin | None:
        """Where the key of one of its scripts comes from."""
        place = self._core.ledger.keychain_of(script_pubkey)
        if place is None:
            return None
        account = Account.parse(self._core.engine.descriptors[0], self.network)
        return account.key_origin(*place)

    # -- scripts ----------------------------------------------------------------------------------------------

    async def new_address(self, purpose: str) -> WalletAddress:
        """A fresh receiving address. Raises UserError for a purpose over 200 characters."""
        if len(purpose) > _PURPOSE_LENGTH:
            raise UserError(f"a label has at most {_PURPOSE_LENGTH} characters")
        async with self._core.lock:
            index, script = await self._core.next_script(Keychain.EXTERNAL, purpose)
        return WalletAddress(address_of(script, self.network), script, index, purpose)

    async def change_script(self) -> bytes:
        """A fresh script of the change branch."""
        async with self._core.lock:
            return (await self._core.next_script(Keychain.INTERNAL))[1]

    # -- coins for trades -------------------------------------------------------------------------------------

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
        """Choose and reserve. See `Wallet.select`."""
        core = self._core
        core.check_rate(fee_rate)
        async with core.lock:
            coins = await core.utxos()
            mine = [c for c in coins if core.is_free(c, holder=holder)]
            deep = [c for c in mine if c.confirmations >= min_confirmations]
            ready = [c for c in deep if len(core.previous(c.outpoint).raw) <= MAX_PREVIOUS]
            choice = choose(
                ready,
                target,
                Price(fee_rate),
                max_inputs=max_inputs,
                reserved=sum(c.value for c in coins if c.reserved_for not in (None, holder)),
                pending=sum(c.value for c in mine if c.confirmations < min_confirmations),
                unfit=sum(c.value for c in deep) - sum(c.value for c in ready),
            )
            _, script = await core.next_script(Keychain.INTERNAL)
            inputs = tuple(
                SelectedInput(c.outpoint, c.value, c.script_pubkey, core.previous(c.outpoint).raw) for c in choice.coins
            )
            change = TxOut(choice.change, script) if choice.change else None
            selection = Selection(holder, inputs, change, choice.fee)
            promised = reservations_of(selection, core.clock())
            if commit:
                core.stored_reservations.remove(holder)
                core.stored_reservations.add(promised)
                core.held.pop(holder, None)
            else:
                core.held[holder] = promised
        return selection

    async def release(self, holder: bytes) -> None:
        """Let go of what `holder` holds."""
        self._core.held.pop(holder, None)
        self._core.stored_reservations.remove(holder)

    async def sign_inputs(self, tx: bytes, *, holder: bytes) -> Mapping[int, Witness]:
        """Witnesses for the inputs that are reserved for `holder`. Raises NothingToSign, GateRefused, WatchOnly."""
        coins = {r.outpoint for r in self._core.reservations() if r.holder == holder}
        return await self._core.sign(tx, coins)

    async def double_spend(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Take back what is reserved for `holder`. See `Wallet.double_spend`."""
        return await self._payments.double_spend(holder, fee_rate)

    async def draft_double_spend(self, holder: bytes, fee_rate: FeeRate) -> OwnSpend:
        """The same, for a signature that is made elsewhere. See `Wallet.draft_double_spend`."""
        return await self._payments.draft_double_spend(holder, fee_rate)

    async def send_double_spend(self, holder: bytes, unsigned: bytes, witnesses: Sequence[Witness]) -> Sent:
        """Broadcast it. See `Wallet.send_double_spend`."""
        return await self._payments.send_double_spend(holder, unsigned, witnesses)

    # -- payments ---------------------------------------------------------------------------------------------

    async def send(self, address: str, amount: Sats, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = ()) -> Sent:
        """Pay from coins that nobody holds. See `Wallet.send`."""
        return await self._payments.send(address, amount, fee_rate, coins)

    async def send_all(self, address: str, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = ()) -> Sent:
        """Pay everything that is spendable, or all of `coins`. See `Wallet.send_all`."""
        return await self._payments.send_all(address, fee_rate, coins)

    async def consolidate(
        self, fee_rate: FeeRate, *, coins: Sequence[OutPoint] = (), below: Sats | None = None
    ) -> Sent:
        """Make one coin of many. See `Wallet.consolidate`."""
        return await self._payments.consolidate(fee_rate, coins, below)

    async def bump(
        self, txid: Txid, fee_rate: FeeRate, *, parent_fee: Sats | None = None, parent: bytes | None = None
    ) -> Bumped:
        """Raise a fee. See `Wallet.bump`."""
        return await self._payments.bump(txid, fee_rate, parent_fee, parent)

    # -- labels and what is set aside -------------------------------------------------------------------------

    async def freeze(self, coins: Sequence[OutPoint], *, frozen: bool) -> None:
        """Set coins aside, or give them back. Raises CoinUnfit for one that is not ours."""
        for coin in coins:
            if self._core.ledger.output(coin) is None:
                raise CoinUnfit(f"{coin} is not a coin of this wallet")
        await self._core.set_labels((), freeze=coins if frozen else (), thaw=() if frozen else coins)

    async def labels(self) -> tuple[Label, ...]:
        """All labels, addresses first. See `Wallet.labels`."""
        store = self._core.store
        purposes, stored, frozen = await self._core.in_thread(
            lambda: (store.purposes(), store.labels(), store.frozen())
        )
        handed_out = ((address_of(script, self.network), text) for script, text in purposes)
        found = {("addr", ref): Label(kind="addr", ref=ref, label=text) for ref, text in handed_out}
        found |= {(x.kind, x.ref): x for x in stored}
        for ref in map(str, frozen):
            known = found.get(("output", ref), Label(kind="output", ref=ref))
            found["output", ref] = structs.replace(known, spendable=False)
        shown = (x for x in found.values() if x.label or x.spendable is False)
        return tuple(sorted(shown, key=lambda x: (x.kind, x.ref)))

    async def set_labels(self, labels: Sequence[Label]) -> None:
        """Keep labels. See `Wallet.set_labels`."""
        aside: dict[bool, list[OutPoint]] = {False: [], True: []}
        for label in labels:
            if label.kind == "output" and label.spendable is not None:
                aside[label.spendable].append(outpoint_of(label.ref))
        await self._core.set_labels(labels, freeze=aside[False], thaw=aside[True])

    def _history_of(self, entry: Entry) -> HistoryEntry:
        ledger = self._core.ledger
        spent = [ledger.output(o) for o in entry.tx.spends]
        lost = sum(o.value for o in spent if o is not None)
        gained = sum(o.value for o in entry.tx.outputs if ledger.keychain_of(o.script_pubkey) is not None)
        cost = None if None in spent else lost - sum(o.value for o in entry.tx.outputs)
        block = entry.block
        return HistoryEntry(
            entry.tx.txid, gained - lost, cost, block.height if block else None, block.time if block else entry.seen
        )
