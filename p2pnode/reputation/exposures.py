"""Arbiters that gave two rulings in one contract: found, told, and shut out (SPEC section 14.5).

A trader's node that sees the second ruling puts the proof together and publishes it by itself, under a key made for
that one record: who had the quarrel is nobody's business. Whoever reads the proof has no need to trust anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final

from dht.node import DhtNode
from dht.records import RecordMeta
from dht.topics import equivocations_topic, reputation_topic
from p2pnode.clock import Clock
from p2pnode.database import Database
from p2pnode.lookups import Lookups
from p2pnode.notices import Notices
from p2pnode.tradestore import TradeStore
from protocol.equivocation import (
    EQUIVOCATION_WORK_BITS,
    MAX_EQUIVOCATION_LIFETIME,
    EquivocationRecord,
    Exposed,
    read_equivocation_record,
)
from protocol.errors import PeerViolation
from protocol.identity import SigningKey
from protocol.ruling import Equivocation, read_equivocation
from protocol.trade_state import TradeState
from protocol.types import Branch, Network
from protocol.wire import Envelope, Kind, pack, parse_envelope
from protocol.work import NO_WORK, find_work

LOOKUP_PATHS: Final = 3
FRESH_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 2.0
RENEW_SECONDS: Final = 100 * 86_400

log = logging.getLogger(__name__)


class Exposures:
    """The table `equivocations`."""

    def __init__(
        self,
        database: Database,
        trades: TradeStore,
        notices: Notices,
        network: Network,
        clock: Clock,
        *,
        dht: DhtNode | None = None,
        kick: Callable[[], None] = lambda: None,
    ) -> None:
        """`kick` is told when there is a new proof of ours to publish. Without `dht` nothing is looked up."""
        self._database = database
        self._db = database.connection
        self._trades = trades
        self._notices = notices
        self._network = network
        self._clock = clock
        self._dht = dht
        self._kick = kick
        self._lookups = Lookups()
        self._known = {bytes(row[0]) for row in self._db.execute("SELECT DISTINCT arbiter FROM equivocations")}

    def exposed(self, persona: bytes) -> bool:
        """Whether this persona was proved to contradict itself."""
        return persona in self._known

    def proof(self, arbiter: bytes) -> Exposed | None:
        """One proof against an arbiter."""
        row = self._db.execute("SELECT raw FROM equivocations WHERE arbiter = ?", (arbiter,)).fetchone()
        if row is None:
            return None
        envelope = parse_envelope(row[0], self._network)
        # Its own time plays no part: what was proved stays proved.
        return read_equivocation_record(envelope, self._network, 0)

    async def refresh(self, *, fresh_seconds: float = FRESH_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        """Ask the DHT for proofs, unless that was done just now."""
        if self._dht is not None:
            await self._lookups.ask("exposed", self._ask, fresh_seconds=fresh_seconds, wait_seconds=wait_seconds)

    async def close(self) -> None:
        """Give up what is being looked up."""
        await self._lookups.close()

    async def _ask(self) -> bool:
        if self._dht is None:
            return False
        found = await self._dht.find_records(equivocations_topic(self._network), paths=LOOKUP_PATHS)
        for record in found.records:
            try:
                self.remember(record.envelope)
            except PeerViolation as e:
                log.info("a proof against an arbiter is left out: %s", e.detail)
        return True

    def remember(self, envelope: Envelope, *, own: bool = False) -> bool:
        """Keep a proof; its rulings are verified here. True if it was new. Raises PeerViolation."""
        now = self._clock.now()
        found = read_equivocation_record(envelope, self._network, now)
        with self._database.transaction():
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO equivocations (arbiter, contract_id, raw, own, expires) VALUES (?, ?, ?, ?, ?)",
                (found.arbiter, found.contract_id, envelope.raw, int(own), found.record.expires),
            )
            if not cursor.rowcount:
                return False
            self._known.add(found.arbiter)
            log.warning("an arbiter gave two rulings in one contract: %s", found.arbiter.hex()[:16])
            for stored in self._trades.all(open_only=True):
                contract = stored.state.contract
                named = () if contract is None else (contract.arbiter, contract.backup)
                if any(terms is not None and terms.persona == found.arbiter for terms in named):
                    phase = type(stored.state.phase).__name__
                    self._notices.add("arbiter-exposed", now, trade_id=stored.state.trade_id, phase=phase)
        self._notices.wake()
        return True

    # --- ours ---------------------------------------------------------------------------------------------------

    def follow(self, state: TradeState) -> None:
        """A trade has changed: if it holds two rulings by one arbiter, all shall know."""
        if state.dispute is None:
            return
        for branch in Branch:
            proof = state.equivocation(branch)
            if proof is not None:
                self.expose(proof)

    def expose(self, proof: Equivocation) -> None:
        """Make the public record of a proof, unless there is one. Raises NoEquivocation."""
        contract_id = read_equivocation(proof, self._network)
        known = self._db.execute(
            "SELECT 1 FROM equivocations WHERE arbiter = ? AND contract_id = ?", (proof.arbiter, contract_id)
        ).fetchone()
        if known is None:
            self.remember(self._sealed(proof), own=True)
            self._kick()

    def records(self, now: int) -> Iterator[tuple[bytes, Envelope, RecordMeta]]:
        """What the publisher keeps in the DHT."""
        rows = self._db.execute("SELECT arbiter, contract_id, raw, expires FROM equivocations WHERE own = 1").fetchall()
        for arbiter, contract_id, raw, expires in rows:
            envelope = parse_envelope(raw, self._network)
            if expires - now < RENEW_SECONDS:
                envelope = self._sealed(read_equivocation_record(envelope, self._network, 0).record.proof)
                found = read_equivocation_record(envelope, self._network, now)
                self._db.execute(
                    "UPDATE equivocations SET raw = ?, expires = ? WHERE arbiter = ? AND contract_id = ?",
                    (envelope.raw, found.record.expires, arbiter, contract_id),
                )
            record = read_equivocation_record(envelope, self._network, 0).record
            meta = RecordMeta(arbiter, contract_id, record.expires, record.expires, ())
            for topic in (equivocations_topic(self._network), reputation_topic(self._network, arbiter)):
                yield topic, envelope, meta

    def _sealed(self, proof: Equivocation) -> Envelope:
        now = self._clock.now()
        draft = EquivocationRecord(proof, now, now + MAX_EQUIVOCATION_LIFETIME, NO_WORK)
        body = find_work(Kind.EQUIVOCATION, self._network, pack(draft), EQUIVOCATION_WORK_BITS)
        return SigningKey(self._clock.random(32)).seal(Kind.EQUIVOCATION, self._network, body)
