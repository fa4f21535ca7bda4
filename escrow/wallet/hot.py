"""The user's wallet: a ledger that follows the chain, an engine that holds the keys, and reservations.

Theory of operation. The chain backend tells the `Ledger` on the event loop; the ledger's facts go to disk and to the
engine on one thread of the wallet's own, where all that blocks is done in order (BDK, SQLite). The engine is loaded
anew when facts have changed and somebody asks. Everything that picks coins or hands out scripts holds one lock, so two
trades can't pick the same coin, nor two callers get the same script.

Gates: a payment is read back before it is broadcast, and must pay what was asked and the rest to ourselves; only coins
that are reserved for the holder are signed for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from escrow.address import address_of, script_of
from escrow.chain.base import BlockRef, Rejected
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.chain.follow import FollowedChain
from escrow.coins import OutPoint, TxOut, txid_text
from escrow.errors import GateRefused
from escrow.sizes import OVERHEAD_WEIGHT, P2WPKH_INPUT_WEIGHT, ROUNDING_WEIGHT, dust_limit, fee, output_weight
from escrow.transactions import REPLACEABLE, Witness, build, parse, weight, with_witnesses
from escrow.wallet.base import (
    AmountBelowDust,
    Balance,
    FeeRateTooHigh,
    HistoryEntry,
    InsufficientFunds,
    NothingToSign,
    Reservation,
    ReservationStore,
    SelectedInput,
    Selection,
    Sent,
    Utxo,
    WalletAddress,
    reservations_of,
)
from escrow.wallet.coinselect import choose
from escrow.wallet.engine import EngineCoin, Keychain, Snapshot, WalletEngine
from escrow.wallet.ledger import Entry, Ledger, Place
from escrow.wallet.storage import CantWrite, LedgerStore
from protocol.errors import ChainError, UserError
from protocol.types import FeeRate, Height, Network, Sats, UnixTime

_log = logging.getLogger(__name__)

T = TypeVar("T")

COINBASE_MATURITY: Final = 100
_PURPOSE_LENGTH: Final = 200
_CHANGE_SIZE: Final = 22
_CHANGE_DUST: Final = 294
_NON_SEGWIT_SPEND: Final = 148
"""Bytes that Core's dust rule counts for spending an output that is not segwit."""


class WalletOptions(msgspec.Struct, frozen=True):
    """What a user may set."""

    max_fee_rate: FeeRate = 500_000
    """Satoshis per 1,000 vB above which a fee rate is taken for a typing error."""
    birthday: Height | None = None
    """Height from which to look for coins of a restored seed. None: it is new, begin at the tip."""


class HotWallet:
    """A `Wallet` whose keys are in this process."""

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
        self._engine = engine
        self._chain = chain
        self._reservations = reservations
        self._path = path
        self._clock = clock
        self._options = options or WalletOptions()
        self._thread: ThreadPoolExecutor | None = None
        self._store: LedgerStore | None = None
        self._ledger_or_none: Ledger | None = None
        # What the engine was loaded with last, and its coins then: touched on the wallet's thread only.
        self._loaded: Snapshot | None = None
        self._loaded_version = -1
        self._coins: tuple[EngineCoin, ...] = ()
        self._lock = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        # Choices that their holder has not yet written into the reservation store.
        self._held: dict[bytes, tuple[Reservation, ...]] = {}

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network of the chain backend."""
        return self._chain.network

    async def start(self) -> None:
        """Load, catch up, follow. Raises WalletMismatch, DataCorrupt, BlocksPruned and what the backend raises."""
        if self._thread is not None:
            return
        tip = await self._chain.tip()
        self._thread = ThreadPoolExecutor(1, "wallet")
        try:
            ledger, birthday = await self._in_thread(lambda: self._open(tip))
            self._ledger_or_none = ledger
            ledger.on_change = self._dirty.set
            await self._chain.follow(ledger, birthday)
            await self._flush()
        except BaseException:
            await self.close()
            raise
        self._writer = asyncio.create_task(self._write(), name="wallet-write")
        await self._send_again()

    async def close(self) -> None:
        """Save and stop."""
        if self._writer is not None:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
            self._writer = None
        ledger, self._ledger_or_none = self._ledger_or_none, None
        if ledger is not None:
            self._chain.unfollow(ledger)
        thread, self._thread = self._thread, None
        if thread is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(thread, self._shut, ledger)
            thread.shutdown()

    def _open(self, tip: BlockRef) -> tuple[Ledger, Height]:
        self._store = store = LedgerStore(self._path)
        wanted = self._options.birthday
        birthday = store.begin(self._engine.identity, tip.height if wanted is None else wanted)
        known = store.load()
        revealed = known.revealed[Keychain.EXTERNAL], known.revealed[Keychain.INTERNAL]
        script = self._engine.script
        return Ledger(script, self._clock, entries=known.entries, revealed=revealed, tip=known.tip), birthday

    def _shut(self, ledger: Ledger | None) -> None:
        store, self._store = self._store, None
        if store is not None:
            try:
                if ledger is not None:
                    store.save(ledger.take_changes())
            finally:
                store.close()

    # -- questions --------------------------------------------------------------------------------------------

    async def balance(self) -> Balance:
        """By what can be done with it."""
        confirmed = pending = immature = reserved = spendable = 0
        for coin in await self.utxos():
            if coin.confirmations == 0:
                pending += coin.value
            elif not self._is_mature(coin):
                immature += coin.value
            else:
                confirmed += coin.value
                spendable += 0 if coin.reserved_for else coin.value
            reserved += coin.value if coin.reserved_for else 0
        return Balance(confirmed, pending, immature, reserved, spendable)

    async def utxos(self) -> tuple[Utxo, ...]:
        """All unspent coins, largest first."""
        coins = await self._ask(lambda _: self._coins)
        holders = {r.outpoint: r.holder for r in await self.reservations()}
        tip = (await self._chain.tip()).height
        found = (
            Utxo(
                c.outpoint,
                c.value,
                c.script_pubkey,
                0 if c.height is None else tip - c.height + 1,
                holders.get(c.outpoint),
                c.keychain is Keychain.INTERNAL,
            )
            for c in coins
        )
        return tuple(sorted(found, key=lambda u: (-u.value, u.outpoint)))

    async def history(self, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """The newest transactions first: those that wait, then by height."""
        standing = [e for e in self._ledger.entries() if e.place in (Place.MEMPOOL, Place.LIMBO, Place.BLOCK)]
        standing.sort(key=lambda e: (e.block is None, e.block.height if e.block else 0, e.seen), reverse=True)
        return tuple(self._history_of(e) for e in standing[:limit])

    async def reservations(self) -> tuple[Reservation, ...]:
        """Those in the store, and those that their holder has not written yet."""
        stored = self._reservations.all()
        known = {r.outpoint for r in stored}
        held = (r for reservations in self._held.values() for r in reservations)
        return (*stored, *(r for r in held if r.outpoint not in known))

    # -- scripts ----------------------------------------------------------------------------------------------

    async def new_address(self, purpose: str) -> WalletAddress:
        """A fresh receiving address. Raises UserError for a purpose over 200 characters."""
        if len(purpose) > _PURPOSE_LENGTH:
            raise UserError(f"a label has at most {_PURPOSE_LENGTH} characters")
        async with self._lock:
            index, script = await self._next_script(Keychain.EXTERNAL, purpose)
        return WalletAddress(address_of(script, self.network), script, index, purpose)

    async def change_script(self) -> bytes:
        """A fresh script of the change branch."""
        async with self._lock:
            return (await self._next_script(Keychain.INTERNAL, ""))[1]

    async def _next_script(self, keychain: Keychain, purpose: str) -> tuple[int, bytes]:
        ledger, store = self._ledger, self._open_store
        index = ledger.revealed[keychain]
        ledger.reveal(keychain, index + 1)
        script = self._engine.script(keychain, index)
        now = self._clock()
        await self._in_thread(lambda: store.hand_out(keychain, index, script, purpose, now))
        return index, script

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
        self._check_rate(fee_rate)
        async with self._lock:
            coins = await self.utxos()
            mine = [c for c in coins if c.reserved_for in (None, holder) and self._is_mature(c)]
            ready = [c for c in mine if c.confirmations >= min_confirmations]
            choice = choose(
                ready,
                target,
                fee_rate,
                max_inputs=max_inputs,
                reserved=sum(c.value for c in coins if c.reserved_for not in (None, holder)),
                pending=sum(c.value for c in mine if c.confirmations < min_confirmations),
            )
            _, script = await self._next_script(Keychain.INTERNAL, "")
            inputs = tuple(
                SelectedInput(c.outpoint, c.value, c.script_pubkey, self._previous(c.outpoint).raw)
                for c in choice.coins
            )
            change = TxOut(choice.change, script) if choice.change else None
            selection = Selection(holder, inputs, change, choice.fee)
            promised = reservations_of(selection, self._clock())
            if commit:
                self._reservations.remove(holder)
                self._reservations.add(promised)
                self._held.pop(holder, None)
            else:
                self._held[holder] = promised
        return selection

    async def release(self, holder: bytes) -> None:
        """Let go of what `holder` holds."""
        self._held.pop(holder, None)
        self._reservations.remove(holder)

    async def sign_inputs(self, tx: bytes, *, holder: bytes) -> Mapping[int, Witness]:
        """Witnesses for the inputs that are reserved for `holder`. Raises NothingToSign, GateRefused."""
        coins = {r.outpoint for r in await self.reservations() if r.holder == holder}
        return await self._sign(tx, coins)

    async def double_spend(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """Take back what is reserved for `holder`. See `Wallet.double_spend`."""
        self._check_rate(fee_rate)
        coins = sorted(r.outpoint for r in await self.reservations() if r.holder == holder)
        outputs = [self._ledger.output(c) for c in coins]
        total = sum(o.value for o in outputs if o is not None)
        if not coins or None in outputs:
            raise NothingToSign
        async with self._lock:
            _, script = await self._next_script(Keychain.INTERNAL, "")
        size = OVERHEAD_WEIGHT + ROUNDING_WEIGHT + len(coins) * P2WPKH_INPUT_WEIGHT + output_weight(len(script))
        rate = fee_rate
        while True:
            cost = fee(size, rate)
            if total - cost < dust_limit(script):
                raise AmountBelowDust("the coins are worth less than the fee for taking them back")
            unsigned = build([(c, REPLACEABLE) for c in coins], [TxOut(total - cost, script)])
            witnesses = await self._sign(unsigned, set(coins))
            raw = with_witnesses(unsigned, [witnesses[i] for i in range(len(coins))])
            try:
                await self._chain.test_accept(raw)
            except Rejected as e:
                # BIP125 rules 3 and 4: what waits must be outbid, by how much only the node knows.
                if "insufficient fee" not in e.reason:
                    raise
                rate += rate // 4 + 250
                self._check_rate(rate)
                continue
            return await self._broadcast(raw, cost)

    # -- payments ---------------------------------------------------------------------------------------------

    async def send(self, address: str, amount: Sats, fee_rate: FeeRate) -> Sent:
        """Pay from coins that nobody holds. See `Wallet.send`."""
        self._check_rate(fee_rate)
        script = script_of(address, self.network)
        if amount < (least := _dust_of(script)):
            raise AmountBelowDust(f"{amount:,} sat is too small: this kind of address takes {least:,} sat or more")
        async with self._lock:
            forbidden = {r.outpoint for r in await self.reservations()}
            try:
                built = await self._ask(lambda engine: engine.build(script, amount, fee_rate, forbidden), exact=True)
            except InsufficientFunds as e:
                now = await self.balance()
                raise InsufficientFunds(e.needed, now.spendable, now.reserved, now.pending) from e
            self._check_payment(built.raw, script, amount, fee_rate, forbidden)
            self._ledger.reveal(Keychain.INTERNAL, built.internal)
            await self._flush()
            return await self._broadcast(built.raw, built.fee)

    def _check_payment(
        self, raw: bytes, script: bytes, amount: Sats, fee_rate: FeeRate, forbidden: set[OutPoint]
    ) -> None:
        """The last look before a payment leaves. Raises GateRefused."""
        tx = parse_tx(raw)
        spent = [self._ledger.output(o) for o in tx.spends]
        brought = sum(o.value for o in spent if o is not None)
        paid = [o for o in tx.outputs if o.script_pubkey == script]
        rest = [o for o in tx.outputs if o.script_pubkey != script]
        cost = brought - sum(o.value for o in tx.outputs)
        # Change that would be dust goes to the miners as well, with what its output would have cost.
        most = fee(weight(raw) + output_weight(_CHANGE_SIZE), fee_rate + fee_rate // 100 + 8) + _CHANGE_DUST
        if (
            None in spent
            or forbidden & set(tx.spends)
            or [o.value for o in paid] != [amount]
            or any(self._ledger.keychain_of(o.script_pubkey) is None for o in rest)
            or not 0 < cost <= most
        ):
            raise GateRefused("the payment that was built is not the one that was asked for; nothing was sent")

    async def _broadcast(self, raw: bytes, cost: Sats) -> Sent:
        txid = await self._chain.broadcast(raw)
        self._ledger.add_own(parse_tx(raw))
        await self._flush()
        return Sent(txid, raw, cost)

    async def _send_again(self) -> None:
        """Payments of ours that are in no block and no mempool: the node may have lost its mempool."""
        for entry in self._ledger.entries():
            if entry.own and entry.place is Place.GONE:
                try:
                    await self._chain.broadcast(entry.tx.raw)
                except ChainError as e:
                    _log.info("payment %s can't be sent again: %s", txid_text(entry.tx.txid), e)

    # -- inside -----------------------------------------------------------------------------------------------

    @property
    def _ledger(self) -> Ledger:
        if self._ledger_or_none is None:
            raise UserError("the wallet is not open")
        return self._ledger_or_none

    @property
    def _open_store(self) -> LedgerStore:
        if self._store is None:
            raise UserError("the wallet is not open")
        return self._store

    def _check_rate(self, fee_rate: FeeRate) -> None:
        most = self._options.max_fee_rate
        if fee_rate > most:
            raise FeeRateTooHigh(f"{fee_rate / 1000:,.2f} sat/vB is above the ceiling of {most / 1000:,.0f} sat/vB")

    def _is_mature(self, coin: Utxo) -> bool:
        return coin.confirmations >= COINBASE_MATURITY or not self._previous(coin.outpoint).is_coinbase

    def _previous(self, outpoint: OutPoint) -> ParsedTx:
        tx = self._ledger.known(outpoint.txid)
        if tx is None:
            raise NothingToSign(f"the transaction that made {outpoint} is not known")
        return tx

    async def _sign(self, raw: bytes, coins: set[OutPoint]) -> dict[int, Witness]:
        spends = [OutPoint(bytes(i.prevout.hash), i.prevout.n) for i in parse(raw).vin]
        previous = {i: self._previous(o).raw for i, o in enumerate(spends) if o in coins}
        if not previous:
            raise NothingToSign
        return await self._ask(lambda engine: engine.sign(raw, previous))

    async def _ask(self, work: Callable[[WalletEngine], T], *, exact: bool = False) -> T:
        """Let the engine work on the newest facts.

        Loading costs milliseconds, so it is not done for a new tip or a script that was handed out, which coins do not
        depend on, unless what is asked must be `exact`.
        """
        version = self._ledger.version
        if version == self._loaded_version and not exact:
            return await self._in_thread(lambda: work(self._engine))
        snapshot = self._ledger.snapshot(await self._chain.tip())

        def job() -> T:
            if version > self._loaded_version or (exact and snapshot != self._loaded):
                self._engine.load(snapshot)
                self._loaded, self._loaded_version = snapshot, version
                self._coins = self._engine.coins()
            return work(self._engine)

        return await self._in_thread(job)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise UserError("the wallet is not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _write(self) -> None:
        while True:
            await self._dirty.wait()
            await self._flush()

    async def _flush(self) -> None:
        """Write what changed. A full disk is told and tried again with the next change: the chain has it all."""
        self._dirty.clear()
        store, changes = self._open_store, self._ledger.take_changes()
        try:
            await self._in_thread(lambda: store.save(changes))
        except CantWrite as e:
            self._ledger.put_back(changes)
            _log.error("%s", e)

    def _history_of(self, entry: Entry) -> HistoryEntry:
        ledger = self._ledger
        spent = [ledger.output(o) for o in entry.tx.spends]
        lost = sum(o.value for o in spent if o is not None)
        gained = sum(o.value for o in entry.tx.outputs if ledger.keychain_of(o.script_pubkey) is not None)
        cost = None if None in spent else lost - sum(o.value for o in entry.tx.outputs)
        block = entry.block
        return HistoryEntry(
            entry.tx.txid, gained - lost, cost, block.height if block else None, block.time if block else entry.seen
        )


def _dust_of(script: bytes) -> Sats:
    """Core's dust limit for any script that an address can name."""
    segwit = script[0] == 0 or 0x51 <= script[0] <= 0x60
    return dust_limit(script) if segwit else 3 * (8 + 1 + len(script) + _NON_SEGWIT_SPEND)
