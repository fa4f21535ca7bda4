"""What every part of the wallet works on: the ledger, its file, the engine, and the thread on which both block.

The chain backend tells the `Ledger` on the event loop; the ledger's facts go to disk and to the engine on one thread of
the wallet's own, where all that blocks is done in order (BDK, SQLite). The engine is loaded anew when facts have
changed and somebody asks. Whoever picks coins or hands out scripts holds `lock`, so two trades can't pick the same
coin, nor two callers get the same script.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from escrow.chain.base import BlockRef
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.chain.follow import FollowedChain
from escrow.coins import OutPoint
from escrow.transactions import Witness, parse
from escrow.wallet.base import (
    FeeRateTooHigh,
    Label,
    NothingToSign,
    Reservation,
    ReservationStore,
    Sent,
    Utxo,
)
from escrow.wallet.birthday import first_block
from escrow.wallet.engine import EngineCoin, Keychain, Snapshot, WalletEngine, WatchOnly
from escrow.wallet.ledger import LOOKAHEAD, Ledger
from escrow.wallet.storage import CantWrite, LedgerStore
from protocol.errors import UserError
from protocol.types import FeeRate, Height, Sats, UnixTime

_log = logging.getLogger(__name__)

T = TypeVar("T")

COINBASE_MATURITY: Final = 100


class WalletOptions(msgspec.Struct, frozen=True):
    """What a user may set."""

    max_fee_rate: FeeRate = 500_000
    """Satoshis per 1,000 vB above which a fee rate is taken for a typing error."""
    birthday: Height | None = None
    """Height from which to look for coins, where it is known."""
    born: UnixTime | None = None
    """Else the time before which the seed had none. None: as long as there are P2WPKH outputs."""
    gap_limit: int = LOOKAHEAD
    """Addresses to look for beyond the last one that was used or handed out."""


class WalletCore:
    """The parts and what they do together. `HotWallet` opens and closes it."""

    def __init__(
        self,
        engine: WalletEngine,
        chain: FollowedChain,
        reservations: ReservationStore,
        path: Path,
        clock: Callable[[], UnixTime],
        options: WalletOptions,
    ) -> None:
        self.engine = engine
        self.chain = chain
        self.clock = clock
        self.lock = asyncio.Lock()
        self.new_block = asyncio.Event()
        # Choices that their holder has not yet written into the reservation store.
        self.held: dict[bytes, tuple[Reservation, ...]] = {}
        self.stored_reservations = reservations
        self._path = path
        self._options = options
        self._frozen: frozenset[OutPoint] = frozenset()
        self._thread: ThreadPoolExecutor | None = None
        self._store: LedgerStore | None = None
        self._ledger: Ledger | None = None
        # What the engine was loaded with last, and its coins then: touched on the wallet's thread only.
        self._loaded_version = -1
        self._coins: tuple[EngineCoin, ...] = ()
        self._dirty = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed since."""
        return self._thread is not None

    async def open(self) -> None:
        """Load, catch up, follow. Raises WalletMismatch, DataCorrupt, BlocksPruned and what the backend raises."""
        tip = await self.chain.tip()
        self._thread = ThreadPoolExecutor(1, "wallet")
        ledger, birthday = await self.in_thread(lambda: self._load(tip))
        self._ledger = ledger
        ledger.on_change = self._dirty.set
        ledger.on_block = self.new_block.set
        await self.chain.follow(ledger, birthday)
        await self.flush()
        self._writer = asyncio.create_task(self._write(), name="wallet-write")

    async def close(self) -> None:
        """Save and stop."""
        if self._writer is not None:
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
            self._writer = None
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            self.chain.unfollow(ledger)
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._shut, ledger)
            thread.shutdown()

    def _load(self, tip: BlockRef) -> tuple[Ledger, Height]:
        self._store = store = LedgerStore(self._path)
        options = self._options
        wanted = options.birthday
        if wanted is None:
            wanted = first_block(self.chain.network, tip, options.born)
        birthday = store.begin(self.engine.identity, wanted)
        known = store.load()
        self._frozen = store.frozen()
        revealed = known.revealed[Keychain.EXTERNAL], known.revealed[Keychain.INTERNAL]
        ledger = Ledger(
            self.engine.script,
            self.clock,
            entries=known.entries,
            revealed=revealed,
            tip=known.tip,
            lookahead=options.gap_limit,
        )
        return ledger, birthday

    def _shut(self, ledger: Ledger | None) -> None:
        store, self._store = self._store, None
        if store is not None:
            try:
                if ledger is not None:
                    store.save(ledger.take_changes())
            finally:
                store.close()

    @property
    def ledger(self) -> Ledger:
        """The facts. Raises UserError when the wallet is not open."""
        if self._ledger is None:
            raise UserError("the wallet is not open")
        return self._ledger

    @property
    def store(self) -> LedgerStore:
        """The file, for the wallet's thread. Raises UserError when the wallet is not open."""
        if self._store is None:
            raise UserError("the wallet is not open")
        return self._store

    # -- coins ------------------------------------------------------------------------------------------------

    async def utxos(self) -> tuple[Utxo, ...]:
        """All unspent coins, largest first."""
        coins = await self.ask(lambda _: self._coins)
        holders = {r.outpoint: r.holder for r in self.reservations()}
        tip = (await self.chain.tip()).height
        found = (
            Utxo(
                c.outpoint,
                c.value,
                c.script_pubkey,
                0 if c.height is None else tip - c.height + 1,
                holders.get(c.outpoint),
                c.keychain is Keychain.INTERNAL,
                c.outpoint in self._frozen,
            )
            for c in coins
        )
        return tuple(sorted(found, key=lambda u: (-u.value, u.outpoint)))

    def reservations(self) -> tuple[Reservation, ...]:
        """Those in the store, and those that their holder has not written yet."""
        stored = self.stored_reservations.all()
        known = {r.outpoint for r in stored}
        held = (r for reservations in self.held.values() for r in reservations)
        return (*stored, *(r for r in held if r.outpoint not in known))

    def is_free(self, coin: Utxo, *, holder: bytes | None = None) -> bool:
        """Whether a coin may be chosen, if it has the confirmations: nobody else's, not set aside, not too young."""
        return coin.reserved_for in (None, holder) and not coin.frozen and self.is_mature(coin)

    def is_mature(self, coin: Utxo) -> bool:
        """Whether a mined coin is old enough; others always are."""
        return coin.confirmations >= COINBASE_MATURITY or not self.previous(coin.outpoint).is_coinbase

    def previous(self, outpoint: OutPoint) -> ParsedTx:
        """The transaction that made one of our outputs. Raises NothingToSign."""
        tx = self.ledger.known(outpoint.txid)
        if tx is None:
            raise NothingToSign(f"the transaction that made {outpoint} is not known")
        return tx

    async def set_labels(
        self, labels: Sequence[Label], *, freeze: Collection[OutPoint], thaw: Collection[OutPoint]
    ) -> None:
        """Keep labels and what is set aside; on disk when this returns."""
        store = self.store
        await self.in_thread(lambda: store.set_labels(labels, freeze, thaw))
        self._frozen = (self._frozen - set(thaw)) | set(freeze)

    # -- scripts, signatures, broadcasts ----------------------------------------------------------------------

    async def next_script(self, keychain: Keychain, purpose: str = "") -> tuple[int, bytes]:
        """A script that is handed out for the first time, on disk before it is returned. Hold `lock`."""
        ledger, store = self.ledger, self.store
        index = ledger.revealed[keychain]
        ledger.reveal(keychain, index + 1)
        script = self.engine.script(keychain, index)
        now = self.clock()
        await self.in_thread(lambda: store.hand_out(keychain, index, script, purpose, now))
        return index, script

    def check_rate(self, fee_rate: FeeRate) -> None:
        """Raises FeeRateTooHigh."""
        most = self._options.max_fee_rate
        if fee_rate > most:
            raise FeeRateTooHigh(f"{fee_rate / 1000:,.2f} sat/vB is above the ceiling of {most / 1000:,.0f} sat/vB")

    def must_sign(self) -> None:
        """Raises WatchOnly when the keys are elsewhere."""
        if not self.engine.signs:
            raise WatchOnly

    async def sign(self, raw: bytes, coins: Collection[OutPoint]) -> dict[int, Witness]:
        """Witnesses for the inputs of `raw` that are among `coins`. Raises NothingToSign, GateRefused, WatchOnly."""
        spends = [OutPoint(bytes(i.prevout.hash), i.prevout.n) for i in parse(raw).vin]
        previous = {i: self.previous(o).raw for i, o in enumerate(spends) if o in coins}
        if not previous:
            raise NothingToSign
        return await self.ask(lambda engine: engine.sign(raw, previous))

    async def broadcast(self, raw: bytes, cost: Sats, *, parent: bytes | None = None) -> Sent:
        """Send a transaction of our own; it is remembered, and sent again while no block holds it.

        A `parent` that it pays for goes out with it.
        """
        if parent is None:
            txid = await self.chain.broadcast(raw)
        else:
            txid = (await self.chain.broadcast_package([parent, raw]))[-1]
        self.ledger.add_own(parse_tx(raw))
        await self.flush()
        return Sent(txid, raw, cost)

    # -- the thread -------------------------------------------------------------------------------------------

    async def ask(self, work: Callable[[WalletEngine], T]) -> T:
        """Let the engine work on the newest facts.

        Loading costs milliseconds, so it is not done for a new tip or a script that was handed out: neither coins nor
        signatures depend on them.
        """
        version = self.ledger.version
        if version == self._loaded_version:
            return await self.in_thread(lambda: work(self.engine))
        snapshot: Snapshot = self.ledger.snapshot(await self.chain.tip())

        def job() -> T:
            if version > self._loaded_version:
                self.engine.load(snapshot)
                self._loaded_version = version
                self._coins = self.engine.coins()
            return work(self.engine)

        return await self.in_thread(job)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what blocks."""
        if self._thread is None:
            raise UserError("the wallet is not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _write(self) -> None:
        while True:
            await self._dirty.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what changed. A full disk is told and tried again with the next change: the chain has it all."""
        self._dirty.clear()
        store, changes = self.store, self.ledger.take_changes()
        try:
            await self.in_thread(lambda: store.save(changes))
        except CantWrite as e:
            self.ledger.put_back(changes)
            _log.error("%s", e)
