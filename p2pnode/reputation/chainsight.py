"""Claims about the chain, held against our own backend, whichever it is (DESIGN section 10).

A transaction is asked for in the block that the claim names: bitcoind needs no index for that, a light client fetches
one block, a server must prove it. Whether a bond is still there is asked of the set of unspent outputs; a backend that
has none (the light client) looks through the blocks from the bond's own on. What can't be told now is None, and counts
for nothing until it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from enum import Enum
from typing import Final

from msgspec import Struct

from escrow.bond import bond_output
from escrow.chain.base import ChainBackend, ChainEvent, ChainTx, Confirmed, SpentBy, WatchRequest
from escrow.coins import OutPoint
from escrow.receipt import SeenEscrow, check_arbiter, check_parties, seen_escrow
from escrow.transactions import NotATransaction, find_output
from protocol.bond import Bond
from protocol.receipt import Receipt, RulingReceipt
from protocol.score import Proved
from protocol.types import Network
from protocol.wire import digest

DEPTH: Final = 6
"""Confirmations after which a claim counts."""
REGTEST_DEPTH: Final = 1
TRACE_SECONDS: Final = 20.0


class BondState(Enum):
    """What the chain says of a bond."""

    STANDS = "proved"
    FALSE = "false"
    """There is no such output in that block, or it is another."""
    SPENT = "spent"


class Trace(Struct, frozen=True):
    """An output's life as a watch told it; None: nothing of the kind."""

    confirmed: Confirmed | None
    spent: SpentBy | None


class ChainSight:
    """Questions to the backend that reputation hangs on."""

    def __init__(self, backend: ChainBackend, network: Network, height: Callable[[], int]) -> None:
        """`height` gives the height of the best block that the node has followed."""
        self._backend = backend
        self._depth = REGTEST_DEPTH if network is Network.REGTEST else DEPTH
        self._network = network
        self._height = height

    @property
    def height(self) -> int:
        """The height of the best block that the node has followed."""
        return self._height()

    async def receipt(self, receipt: Receipt, persona: bytes) -> Proved | None:
        """The receipt from the view of one of its parties; None while our chain can't show it. Raises BadReceipt."""
        both = await self._pair(receipt.funding_txid, receipt.funding_block, receipt.payout_txid, receipt.payout_block)
        if both is None:
            return None
        seen = _seen(receipt.vout, receipt.funding_txid, receipt.payout_txid, both)
        check_parties(receipt, seen)
        return _proved(receipt.other(persona), seen, both)

    async def ruling(self, value: RulingReceipt) -> Proved | None:
        """The same of a ruling; None, too, when its heights do not lie between funding and payout."""
        both = await self._pair(value.funding_txid, value.funding_block, value.payout_txid, value.payout_block)
        if both is None:
            return None
        seen = _seen(value.vout, value.funding_txid, value.payout_txid, both)
        check_arbiter(value, seen)
        proved = _proved(value.contract_id, seen, both)
        return proved if proved.funded <= value.opened <= value.ruled <= proved.paid else None

    async def bond(self, bond: Bond) -> BondState | None:
        """Whether a bond is there: the output, its amount and script, buried and unspent. None: can't be told now."""
        found = await self._in_block(bond.txid, bond.block)
        if found is None:
            return None
        try:
            txid, output = find_output(found.raw, bond.vout)
        except NotATransaction:
            return BondState.FALSE
        fits = output is not None and (output.value, output.script_pubkey) == (
            bond.value,
            bond_output(bond.lock_height, bond.key),
        )
        if txid != bond.txid or not fits or found.height != bond.height:
            return BondState.FALSE
        coin = OutPoint(bond.txid, bond.vout)
        unspent = await self._backend.unspent(coin)
        if unspent is None:
            trace = await self.trace(bond_output(bond.lock_height, bond.key), coin, bond.height, wait=False)
            unspent = trace.spent is None and trace.confirmed is not None
        return BondState.STANDS if unspent else BondState.SPENT

    async def trace(self, script: bytes, coin: OutPoint, from_height: int, *, wait: bool = True) -> Trace:
        """What a watch tells of an output from a height on.

        With `wait` until it is in a block and spent in one, or some seconds have passed; else what is known now.
        """
        # 34 bytes that no trade's watch has: a trade's key begins with its id.
        key = b"sight" + digest(b"p2pnode/sight", coin.wire)[:29]
        events = self._backend.events()
        confirmed: Confirmed | None = None
        spent: SpentBy | None = None
        try:
            await self._backend.watch(WatchRequest(key, script, coin, max(0, from_height)))
            async for event in self.told(events, seconds=TRACE_SECONDS if wait else 0):
                if isinstance(event, Confirmed) and event.key == key:
                    confirmed = event
                elif isinstance(event, SpentBy) and event.key == key:
                    spent = event
                if wait and confirmed is not None and spent is not None and spent.block_hash is not None:
                    break
        finally:
            await self._backend.unwatch(key)
        return Trace(confirmed, spent)

    async def told(self, events: AsyncIterator[ChainEvent], *, seconds: float = 0) -> AsyncIterator[ChainEvent]:
        """The events of a stream for so long; with 0 those that were told already. The stream is closed after it."""
        try:
            with suppress(TimeoutError):
                # 0 seconds: what is queued is read without a pause, and the first pause ends it.
                async with asyncio.timeout(seconds):
                    async for event in events:
                        yield event
        finally:
            close = getattr(events, "close", None) or getattr(events, "aclose", None)
            if close is not None and asyncio.iscoroutine(closing := close()):
                await closing

    async def _pair(
        self, funding_txid: bytes, funding_block: bytes, payout_txid: bytes, payout_block: bytes
    ) -> tuple[ChainTx, ChainTx] | None:
        payout = await self._in_block(payout_txid, payout_block)
        funding = None if payout is None else await self._in_block(funding_txid, funding_block)
        return None if funding is None or payout is None else (funding, payout)

    async def _in_block(self, txid: bytes, block: bytes) -> ChainTx | None:
        """The transaction, if it is buried in exactly that block of the best chain."""
        found = await self._backend.transaction(txid, block)
        if found is None or found.height is None or found.depth < self._depth:
            return None
        return found if found.block_hash in (None, block) else None


def _seen(vout: int, funding_txid: bytes, payout_txid: bytes, both: tuple[ChainTx, ChainTx]) -> SeenEscrow:
    funding, payout = both
    return seen_escrow(funding_txid, vout, funding.raw, payout_txid, payout.raw)


def _proved(counterparty: bytes, seen: SeenEscrow, both: tuple[ChainTx, ChainTx]) -> Proved:
    funding, payout = both
    if funding.height is None or payout.height is None:
        raise AssertionError("both were found in blocks")
    return Proved(counterparty, seen.value, seen.fee, funding.height, payout.height)
