"""What a node knows of personas, and shows of its own: the parts of `p2pnode.reputation` put together."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

from dht.records import RecordMeta
from p2pnode.composition.trading import Ground, Trading
from p2pnode.publisher import Publisher
from p2pnode.reputation.acquaintances import Acquaintances
from p2pnode.reputation.bonds import Bonds
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.exchange import Receipts
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.gate import Gate, StrangerLimits
from p2pnode.reputation.history import Histories
from p2pnode.reputation.ranking import ArbiterRanking
from p2pnode.reputation.rulings import RulingReceipts
from p2pnode.reputation.store import TestimonyStore
from p2pnode.services.personas import BondService, PersonaService, ReceiptService
from protocol.bond import Bond
from protocol.wire import Envelope

log = logging.getLogger(__name__)


class Standing:
    """Reputation as a trader's or an arbiter's node has it."""

    def __init__(self, ground: Ground, trading: Trading, publisher: Publisher) -> None:
        """Trades are followed, and takes judged, from here on: before anything runs."""
        g, config, clock = ground, ground.config, ground.clock
        database, network = g.trades.database, g.config.network
        self._key = g.keyring.persona
        self._directory = g.directory
        self._arbitrates = trading.desk is not None
        self._announced = publisher.kick
        self._bonds_changed = asyncio.Event()
        self._store = TestimonyStore(database, network)
        sight = ChainSight(g.backend, network, lambda: trading.watch.height)
        acquaintances = Acquaintances(database)
        self._exposures = exposures = Exposures(
            database, g.trades, g.notices, network, clock, dht=g.dht, kick=publisher.kick
        )
        self._histories = Histories(self._store, sight, exposures, g.dht, network, clock, random.SystemRandom())
        ranking = ArbiterRanking(database, self._histories, exposures, acquaintances, clock)
        g.directory.ranking = ranking
        limits = StrangerLimits(config.trade.new_peer_max_amount_sats, config.trade.new_peer_max_open)
        self.gate = Gate(acquaintances, self._histories, g.trades, limits, refuses_arbiter=ranking.refusal)
        self.receipts = Receipts(
            g.trades,
            self._store,
            sight,
            g.keyring,
            g.notices,
            network,
            clock,
            publish=config.reputation.publish,
            post=trading.delivery.kick,
            kick=publisher.kick,
        )
        self._rulings = RulingReceipts(
            database,
            self._store,
            sight,
            g.keyring,
            network,
            clock,
            publish=config.reputation.publish,
            kick=publisher.kick,
        )
        self._bonds = Bonds(
            database,
            g.wallet,
            g.backend,
            sight,
            g.keyring,
            g.notices,
            network,
            clock,
            kick=publisher.kick,
            changed=self._bonds_changed.set,
        )
        self.personas = PersonaService(
            self._key.public, acquaintances, self._histories, exposures, g.directory, g.trades, clock
        )
        self.receipt_service = ReceiptService(g.trades, self.receipts)
        self.bond_service = BondService(self._bonds, sight)
        trading.engine.subscribe(self.receipts.follow)
        trading.engine.subscribe(exposures.follow)
        trading.intake.receipts = self.receipts
        trading.intake.gate = self.gate
        if trading.desk is not None:
            trading.desk.engine.subscribe(self._rulings.follow)
        trading.watch.on_tip(lambda _height: self._bonds_changed.set())

    def current_bond(self) -> Bond | None:
        """The bond that our persona can show now."""
        return self._bonds.current(self._key.public)

    def records(self, now: int) -> Iterator[tuple[bytes, Envelope, RecordMeta]]:
        """What the publisher keeps in the DHT for reputation."""
        for part in (self.receipts, self._exposures, self._rulings, self._bonds):
            try:
                yield from part.records(now)
            except Exception:
                # One record's trouble must not keep offers from being published.
                log.exception("a record can't be published")

    async def start(self, parts: AsyncExitStack) -> None:
        """Go on where an earlier run stopped. What is started is closed with `parts`."""
        for part in (self._exposures, self._histories, self._rulings, self.receipts):
            parts.push_async_callback(part.close)
        self.receipts.start()
        watching = asyncio.create_task(self._watch_bonds(), name="bonds")

        async def stop() -> None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

        parts.push_async_callback(stop)
        self._bonds_changed.set()

    async def _watch_bonds(self) -> None:
        """At each block: is a bond buried? Then the announcement shall carry it."""
        while True:
            await self._bonds_changed.wait()
            self._bonds_changed.clear()
            try:
                await self._bonds.look()
                await self._announce_bond()
            except Exception:
                log.exception("bonds could not be looked at")

    async def _announce_bond(self) -> None:
        if self._arbitrates and await self._directory.carry_bond(self._key, self.current_bond()):
            self._announced()

    def forget_expired(self, now: int) -> None:
        """Drop records whose time is over."""
        self._store.forget_expired(now)
