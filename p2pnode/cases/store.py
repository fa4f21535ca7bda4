"""Where an arbiter's cases are kept: snapshots, the log, what is decided but not done, deadlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from p2pnode.database import Database
from protocol.case_events import (
    CASE_TERMINAL,
    CaseEvent,
    CaseState,
    CaseTimerName,
    SignRuling,
    StopWatchingCase,
    WatchCase,
    dump_case,
    load_case,
)
from protocol.errors import DataCorrupt

DeferredCaseEffect = WatchCase | StopWatchingCase | SignRuling
"""Done after the commit, at least once, in the order asked for."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_EFFECT: Final = msgspec.msgpack.Decoder(DeferredCaseEffect)
_EVENT: Final = msgspec.msgpack.Decoder(CaseEvent)
_SELECT: Final = "SELECT snapshot, watch_from, created, updated, trade_id FROM cases"


class StoredCase(Struct, frozen=True):
    """A case as it lies in the store. Times are Unix seconds; `watch_from` None: its escrow is not watched."""

    state: CaseState
    watch_from: int | None
    created: int
    updated: int


class PendingCaseEffect(Struct, frozen=True):
    """An effect that was decided and is not yet known to be done."""

    id: int
    trade_id: bytes
    effect: DeferredCaseEffect


class CaseLogEntry(Struct, frozen=True):
    """One step of a case."""

    at: int
    phase: str
    event: CaseEvent


class CaseStore:
    """Cases in SQLite, by trade id: an arbiter decides a trade once."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._db = database.connection

    def get(self, trade_id: bytes) -> StoredCase | None:
        """The case, or None. Raises DataCorrupt when its snapshot can't be read."""
        row = self._db.execute(f"{_SELECT} WHERE trade_id = ?", (trade_id,)).fetchone()
        return None if row is None else _stored(row)

    def all(self, *, open_only: bool = False) -> list[StoredCase]:
        """All cases, those first that wait longest."""
        where = "WHERE open = 1" if open_only else ""
        return [_stored(r) for r in self._db.execute(f"{_SELECT} {where} ORDER BY created, trade_id")]

    def count_open(self) -> int:
        """How many cases are not at their end."""
        return int(self._db.execute("SELECT count(*) FROM cases WHERE open = 1").fetchone()[0])

    def save(self, state: CaseState, now: int) -> None:
        """Insert or replace the snapshot."""
        self._db.execute(
            """INSERT INTO cases (trade_id, contract_id, snapshot, phase, open, created, updated)
               VALUES (:id, :contract, :snapshot, :phase, :open, :now, :now)
               ON CONFLICT (trade_id) DO UPDATE SET
                   snapshot = :snapshot, phase = :phase, open = :open, updated = :now""",
            {
                "id": state.trade_id,
                "contract": state.contract_id,
                "snapshot": dump_case(state),
                "phase": type(state.phase).__name__,
                "open": not isinstance(state.phase, CASE_TERMINAL),
                "now": now,
            },
        )

    def set_watch(self, trade_id: bytes, height: int | None) -> None:
        """From which height the escrow is looked for; None: not any more."""
        self._db.execute("UPDATE cases SET watch_from = ? WHERE trade_id = ?", (height, trade_id))

    def log(self, trade_id: bytes, phase: str, event: CaseEvent, now: int) -> None:
        """Add a step to the audit trail."""
        self._db.execute(
            "INSERT INTO case_log (trade_id, at, phase, event) VALUES (?, ?, ?, ?)",
            (trade_id, now, phase, _ENCODER.encode(event)),
        )

    def history(self, trade_id: bytes) -> list[CaseLogEntry]:
        """The audit trail of a case, oldest first."""
        rows = self._db.execute("SELECT at, phase, event FROM case_log WHERE trade_id = ? ORDER BY n", (trade_id,))
        return [CaseLogEntry(at, phase, _EVENT.decode(event)) for at, phase, event in rows]

    def add_effects(self, trade_id: bytes, effects: Sequence[DeferredCaseEffect]) -> None:
        """Queue effects, in order."""
        self._db.executemany(
            "INSERT INTO case_effects (trade_id, effect) VALUES (?, ?)",
            [(trade_id, _ENCODER.encode(e)) for e in effects],
        )

    def pending_effects(self) -> list[PendingCaseEffect]:
        """All effects that are not done, in order."""
        rows = self._db.execute("SELECT id, trade_id, effect FROM case_effects ORDER BY id")
        return [PendingCaseEffect(n, trade_id, _EFFECT.decode(effect)) for n, trade_id, effect in rows]

    def drop_signing(self, trade_id: bytes) -> None:
        """Forget to sign a ruling: it was signed."""
        for pending in self.pending_effects():
            if pending.trade_id == trade_id and isinstance(pending.effect, SignRuling):
                self.finish_effect(pending.id)

    def finish_effect(self, effect_id: int) -> None:
        """The effect is done; twice is fine."""
        self._db.execute("DELETE FROM case_effects WHERE id = ?", (effect_id,))

    def set_timer(self, trade_id: bytes, name: CaseTimerName, at_height: int) -> None:
        """Set or move a deadline."""
        self._db.execute(
            "INSERT OR REPLACE INTO case_timers (trade_id, name, at_height) VALUES (?, ?, ?)",
            (trade_id, name, at_height),
        )

    def stop_timer(self, trade_id: bytes, name: str | None = None) -> None:
        """Forget a deadline, or (None) all of a case."""
        self._db.execute(
            "DELETE FROM case_timers WHERE trade_id = ? AND (? IS NULL OR name = ?)", (trade_id, name, name)
        )

    def timers(self, trade_id: bytes | None = None) -> list[tuple[bytes, CaseTimerName, int]]:
        """(trade, name, height) of all deadlines, or of one case's."""
        rows = self._db.execute(
            "SELECT trade_id, name, at_height FROM case_timers WHERE ? IS NULL OR trade_id = ? ORDER BY at_height",
            (trade_id, trade_id),
        )
        return [(bytes(trade), name, height) for trade, name, height in rows]


def _stored(row: tuple[bytes, int | None, int, int, bytes]) -> StoredCase:
    snapshot, watch_from, created, updated, trade_id = row
    try:
        state = load_case(snapshot)
    except msgspec.MsgspecError as e:
        raise DataCorrupt(f"the snapshot of case {trade_id.hex()[:16]} is damaged: restore it from a backup") from e
    return StoredCase(state, watch_from, created, updated)
