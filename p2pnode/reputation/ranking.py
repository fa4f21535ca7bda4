"""The order of arbiters, and why (SPEC section 14.4): bond, rulings kept in time, how long they are known, fee."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from p2pnode.arbiters import Listed
from p2pnode.clock import Clock
from p2pnode.database import Database
from p2pnode.reputation.acquaintances import Acquaintances
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.history import Histories
from p2pnode.reputation.kinds import outpoint_of
from p2pnode.reputation.store import bond_claim
from protocol.score import REFERENCE_AMOUNT, ArbiterMerit, arbiter_merit

LOOKED_UP: Final = 32
"""Arbiters whose rulings are looked up at a time."""
CHECK_SECONDS: Final = 3.0
WEEK_SECONDS: Final = 7 * 86_400
WEEK_BLOCKS: Final = 1_008


class ArbiterRanking:
    """What the directory asks before it names an arbiter."""

    def __init__(
        self,
        database: Database,
        histories: Histories,
        exposures: Exposures,
        acquaintances: Acquaintances,
        clock: Clock,
    ) -> None:
        self._db = database.connection
        self._histories = histories
        self._exposures = exposures
        self._acquaintances = acquaintances
        self._clock = clock

    def refusal(self, persona: bytes) -> str | None:
        """Why an arbiter is out of the question; None: it is not."""
        if self._exposures.exposed(persona):
            return "it gave two rulings in one contract"
        return "you have blocked it" if self._acquaintances.blocks(persona) else None

    async def prepare(self) -> None:
        """Ask for proofs against arbiters, but wait only a moment."""
        await self._exposures.refresh()

    async def check(self, listed: Sequence[Listed]) -> None:
        """Bring up to date what the order hangs on, but wait only a moment."""
        now = self._clock.now()
        self._db.executemany(
            "INSERT OR IGNORE INTO arbiters_seen (persona, since) VALUES (?, ?)",
            [(x.announcement.persona, now) for x in listed],
        )
        bonds = [(x.announcement.persona, x.announcement.bond) for x in listed if x.announcement.bond is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_SECONDS):
                await asyncio.gather(*(self._histories.check_bond(persona, bond) for persona, bond in bonds))
                await asyncio.gather(
                    *(
                        self._histories.look_up(x.announcement.persona, fresh_seconds=600, wait_seconds=1)
                        for x in listed[:LOOKED_UP]
                    )
                )

    def merit(self, listed: Listed, amount: int = 0) -> ArbiterMerit:
        """Its points for a trade of `amount` satoshis (0: one of usual size), by what is known now."""
        value = listed.announcement
        history = self._histories.known(value.persona)
        reckoned = amount or min(REFERENCE_AMOUNT, value.max_amount)
        worth = 0 if value.bond is None else self._histories.bond_worth(value.persona, value.bond)
        return arbiter_merit(
            bond_worth=worth,
            rulings=history.rulings,
            late=history.late,
            weeks=self._weeks(listed),
            fee=value.fee.fee(reckoned),
            amount=reckoned,
        )

    def bond_state(self, listed: Listed) -> str:
        """What our chain says of an arbiter's bond: none, stands, contested, spent, false, or unchecked."""
        value = listed.announcement
        if value.bond is None:
            return "none"
        outpoint, claim = outpoint_of(value.bond.txid, value.bond.vout), bond_claim(value.persona)
        return self._histories.bond_state(outpoint, claim)

    def _weeks(self, listed: Listed) -> int:
        """For how long it is known: here, or by a bond that has lain there since."""
        value = listed.announcement
        row = self._db.execute("SELECT since FROM arbiters_seen WHERE persona = ?", (value.persona,)).fetchone()
        known = 0 if row is None else (self._clock.now() - row[0]) // WEEK_SECONDS
        if value.bond is not None:
            height = self._histories.bond_height(value.persona, value.bond)
            if height is not None:
                known = max(known, (self._histories.height - height) // WEEK_BLOCKS)
        return max(0, known)
