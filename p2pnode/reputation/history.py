"""What others can see of a persona: its records from the DHT, each held against our own chain (SPEC section 14.4).

A look-up reads the persona's topic over several paths, keeps what its signatures hold, and asks the chain about what it
was not asked before. Of the receipts that were proved a few, chosen by chance, are looked up under their outpoint too:
an escrow that was sold to several personas as their history meets its other owners there. One such find, and nothing of
that history counts.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec import Struct

from dht.node import DhtNode
from dht.topics import anchor_topic, reputation_topic
from p2pnode.clock import Clock
from p2pnode.lookups import Lookups
from p2pnode.reputation.chainsight import BondState, ChainSight
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.kinds import outpoint_of
from p2pnode.reputation.store import PROVED, Anchor, Testimony, TestimonyStore, bond_claim, read_all
from protocol.bond import Bond, BondRecord
from protocol.errors import ChainError, PeerViolation
from protocol.rating import Mark, Rating
from protocol.receipt import Ending, RulingReceipt
from protocol.score import ForgingCost, Proved, forging_cost, score
from protocol.types import Network
from protocol.wire import Kind

LOOKUP_PATHS: Final = 3
FRESH_SECONDS: Final = 120.0
WAIT_SECONDS: Final = 4.0
CHECKS: Final = 64
"""Claims that one look-up holds against the chain, the newest first; the next one goes on."""
AT_ONCE: Final = 8
SAMPLE: Final = 3
"""Receipts of one look-up whose outpoints are looked up, too."""
FALSE: Final = "false"

log = logging.getLogger(__name__)


class SeenReceipt(Struct, frozen=True):
    """A receipt that our chain has proved, from the view of the persona that was asked about."""

    counterparty: bytes
    ending: Ending
    proved: Proved


class SeenRating(Struct, frozen=True):
    """What a counterparty says of the persona; only with a proved receipt."""

    rater: bytes
    mark: Mark
    text: str
    created: int
    credit: int


class History(Struct, frozen=True):
    """A persona as our own chain knows it. `unproved`: records whose claims can't be shown here (now)."""

    persona: bytes
    receipts: tuple[SeenReceipt, ...]
    ratings: tuple[SeenRating, ...]
    rulings: tuple[Proved, ...]
    late: int
    bond: Bond | None
    unproved: int
    forged: bool
    """An escrow of this history was shown for other personas as well: nothing of it counts."""
    score: int
    cost: ForgingCost

    @property
    def new(self) -> bool:
        """Whether nothing is known of it: neither good nor bad."""
        return not self.receipts and not self.rulings and not self.forged

    @property
    def releases(self) -> int:
        """Trades that ended as agreed."""
        return sum(r.ending is Ending.RELEASED for r in self.receipts)

    @property
    def counterparties(self) -> int:
        """With how many different personas."""
        return len({r.counterparty for r in self.receipts})


class Histories:
    """Histories of personas, looked up when somebody asks."""

    def __init__(
        self,
        store: TestimonyStore,
        sight: ChainSight | None,
        exposures: Exposures,
        dht: DhtNode,
        network: Network,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Without `sight` nothing is ever proved. `rng` chooses outpoints to look up: nobody can foresee which."""
        self._store = store
        self._sight = sight
        self._exposures = exposures
        self._dht = dht
        self._network = network
        self._clock = clock
        self._rng = rng
        self._lookups = Lookups()
        self._limit = asyncio.Semaphore(AT_ONCE)
        # A stranger's take may cause a look-up: however many come, the node does only so much for them.
        self._looking = asyncio.Semaphore(AT_ONCE)

    @property
    def height(self) -> int:
        """The height of the best block that the node has followed."""
        return 0 if self._sight is None else self._sight.height

    async def look_up(
        self, persona: bytes, *, fresh_seconds: float = FRESH_SECONDS, wait_seconds: float = WAIT_SECONDS
    ) -> History:
        """Ask the DHT and the chain, but wait only so long; then what is known."""
        ask = partial(self._ask, persona)
        await self._lookups.ask(persona, ask, fresh_seconds=fresh_seconds, wait_seconds=wait_seconds)
        return self.known(persona)

    async def close(self) -> None:
        """Give up what is being looked up."""
        await self._lookups.close()

    async def _ask(self, persona: bytes) -> bool:
        async with self._looking:
            return await self._read(persona)

    async def _read(self, persona: bytes) -> bool:
        found = await self._dht.find_records(reputation_topic(self._network, persona), paths=LOOKUP_PATHS)
        envelopes = [record.envelope for record in found.records]
        for envelope in envelopes:
            if envelope.kind == Kind.EQUIVOCATION:
                try:
                    self._exposures.remember(envelope)
                except PeerViolation as e:
                    log.info("a proof against an arbiter is left out: %s", e.detail)
        read_all(self._store, envelopes, self._clock.now())
        await self.check(self._store.about(persona, self._clock.now()))
        await self._sample(persona)
        return True

    async def _sample(self, persona: bytes) -> None:
        """Look some outputs up on which this history stands: does it stand there alone?"""
        proved = [t for t in self._store.about(persona, self._clock.now()) if self._state(t) == PROVED]
        for chosen in self._rng.sample(proved, min(SAMPLE, len(proved))):
            found = await self._dht.find_records(anchor_topic(self._network, chosen.outpoint))
            made = read_all(self._store, [record.envelope for record in found.records], self._clock.now())
            await self.check([t for t in made if t.outpoint == chosen.outpoint and t.claim != chosen.claim])

    def _state(self, testimony: Testimony) -> str | None:
        anchor = self._store.anchor(testimony.outpoint, testimony.claim)
        return None if anchor is None else anchor.state

    # --- against the chain --------------------------------------------------------------------------------------

    async def check(self, testimonies: Sequence[Testimony]) -> None:
        """Hold claims against the chain: those that were not, and bonds again at each new block."""
        if self._sight is None:
            return
        due: dict[tuple[bytes, bytes], Testimony] = {}
        for testimony in testimonies:
            if isinstance(testimony.body, BondRecord):
                await self.check_bond(testimony.body.persona, testimony.body.bond)
            elif self._state(testimony) is None:
                due[testimony.outpoint, testimony.claim] = testimony
        newest = sorted(due.values(), key=lambda t: -t.body.created)[:CHECKS]
        await asyncio.gather(*(self._check(self._sight, testimony) for testimony in newest))

    async def _check(self, sight: ChainSight, testimony: Testimony) -> None:
        async with self._limit:
            try:
                body = testimony.body
                if isinstance(body, Rating):
                    proved = await sight.receipt(body.signed.receipt, body.rater)
                elif isinstance(body, RulingReceipt):
                    proved = await sight.ruling(body)
                else:
                    return
            except PeerViolation as e:
                log.info("a receipt is false: %s", e.detail)
                self._keep(testimony, Anchor(FALSE, 0, 0, 0, 0, sight.height))
                return
            except ChainError as e:
                log.info("a receipt can't be checked now: %s", e.detail)
                return
        if proved is not None:
            self._keep(
                testimony,
                Anchor(PROVED, proved.value, proved.fee, proved.funded, proved.paid, sight.height),
            )

    def _keep(self, testimony: Testimony, anchor: Anchor) -> None:
        self._store.set_anchor(testimony.outpoint, testimony.claim, anchor)

    async def check_bond(self, persona: bytes, bond: Bond) -> None:
        """Ask the chain whether a bond still stands, unless it was asked at this height."""
        if self._sight is None:
            return
        outpoint, claim = outpoint_of(bond.txid, bond.vout), bond_claim(persona)
        known = self._store.anchor(outpoint, claim)
        height = self._sight.height
        if known is not None and (known.checked == height or known.state == FALSE):
            return
        try:
            state = await self._sight.bond(bond)
        except ChainError as e:
            log.info("a bond can't be checked now: %s", e.detail)
            return
        if state is not None:
            anchor = Anchor(state.value, bond.value, 0, bond.height, bond.lock_height, height)
            self._store.set_anchor(outpoint, claim, anchor)

    def bond_worth(self, persona: bytes, bond: Bond) -> int:
        """Satoshi-years of a bond as it was last seen on chain; 0 for one that is gone, or shown for another too."""
        outpoint, claim = outpoint_of(bond.txid, bond.vout), bond_claim(persona)
        anchor = self._store.anchor(outpoint, claim)
        if anchor is None or anchor.state != BondState.STANDS.value or self._store.contested(outpoint, claim):
            return 0
        return bond.worth(self.height)

    def bond_height(self, persona: bytes, bond: Bond) -> int | None:
        """The height of a bond's block, if it stands for that persona."""
        return bond.height if self.bond_worth(persona, bond) else None

    def bond_state(self, outpoint: bytes, claim: bytes) -> str:
        """What our chain said of a bond: stands, contested, spent, false, or unchecked."""
        anchor = self._store.anchor(outpoint, claim)
        if anchor is None:
            return "unchecked"
        if anchor.state != BondState.STANDS.value:
            return anchor.state
        return "contested" if self._store.contested(outpoint, claim) else "stands"

    # --- what is known ------------------------------------------------------------------------------------------

    def known(self, persona: bytes) -> History:
        """What was proved so far; nothing is asked."""
        receipts: dict[bytes, SeenReceipt] = {}
        ratings: list[SeenRating] = []
        rulings: list[Proved] = []
        late = unproved = 0
        bond: Bond | None = None
        forged = False
        for testimony in self._store.about(persona, self._clock.now()):
            body = testimony.body
            anchor = self._store.anchor(testimony.outpoint, testimony.claim)
            if isinstance(body, BondRecord):
                bond = body.bond if self.bond_worth(persona, body.bond) else None
                continue
            if anchor is None or anchor.state != PROVED:
                unproved += 1
                continue
            forged |= self._store.contested(testimony.outpoint, testimony.claim)
            if isinstance(body, RulingReceipt):
                rulings += [anchor.proved(body.contract_id)] if body.in_time else []
                late += not body.in_time
                continue
            receipt = body.signed.receipt
            other = receipt.other(persona)
            receipts[testimony.claim] = SeenReceipt(other, receipt.ending, anchor.proved(other))
            if body.rater != persona and body.mark is not Mark.NONE:
                credit = anchor.proved(other).credit
                ratings.append(SeenRating(body.rater, body.mark, body.text, body.created, credit))
        seen = tuple(sorted(receipts.values(), key=lambda r: -r.proved.paid))
        return History(
            persona=persona,
            receipts=() if forged else seen,
            ratings=() if forged else tuple(sorted(ratings, key=lambda r: -r.created)),
            rulings=() if forged else tuple(rulings),
            late=late,
            bond=bond,
            unproved=unproved,
            forged=forged,
            score=0 if forged else score((r.proved for r in seen), self.height),
            cost=forging_cost(r.proved for r in seen),
        )
