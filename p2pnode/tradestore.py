"""Where trades are kept: snapshots, the log, the transcript, and what is decided but not done (DESIGN section 3).

Nothing here decides. `engine` opens one transaction per step and calls these methods inside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from p2pnode.database import Database
from protocol.dispute_events import SignOutcome
from protocol.errors import DataCorrupt
from protocol.messages import NONE_YET
from protocol.trade_events import DeferredEffect, PrepareContribution, SignFunding, SignPayout, TradeEvent
from protocol.trade_state import TERMINAL, TradeState, dump_state, load_state

_ENCODER: Final = msgspec.msgpack.Encoder()
_EFFECT: Final = msgspec.msgpack.Decoder(DeferredEffect)
_EVENT: Final = msgspec.msgpack.Decoder(TradeEvent)
SIGNING: Final = (PrepareContribution, SignFunding, SignPayout, SignOutcome)
"""Effects that make signatures."""


class Heads(Struct, frozen=True):
    """How far a trade's two message chains reach: counts and the ids of the newest messages."""

    sent: int = 0
    sent_head: bytes = NONE_YET
    received: int = 0
    received_head: bytes = NONE_YET


class StoredTrade(Struct, frozen=True):
    """A trade as it lies in the store. Times are Unix seconds."""

    state: TradeState
    heads: Heads
    watch_from: int | None
    created: int
    updated: int


class PendingEffect(Struct, frozen=True):
    """An effect that was decided and is not yet known to be done."""

    id: int
    trade_id: bytes
    effect: DeferredEffect


class OutgoingMessage(Struct, frozen=True):
    """A message that the peer has not acknowledged."""

    id: bytes
    number: int
    trade_id: bytes
    recipient: bytes
    raw: bytes
    created: int = 0
    """Unix seconds; set when it is read back."""


class LogEntry(Struct, frozen=True):
    """One step of a trade."""

    at: int
    phase: str
    event: TradeEvent


class Timer(Struct, frozen=True):
    """A deadline, in Unix seconds or as a block height."""

    trade_id: bytes
    name: str
    at_time: int | None
    at_height: int | None


class TradeStore:
    """Trades in SQLite."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._db = database.connection

    # --- trades -------------------------------------------------------------------------------------------------

    def get(self, trade_id: bytes) -> StoredTrade | None:
        """The trade, or None. Raises DataCorrupt when its snapshot can't be read."""
        row = self._db.execute(f"{_SELECT} WHERE trade_id = ?", (trade_id,)).fetchone()
        return None if row is None else _stored(row)

    def all(self, *, open_only: bool = False) -> list[StoredTrade]:
        """All trades, newest first."""
        where = "WHERE open = 1" if open_only else ""
        return [_stored(r) for r in self._db.execute(f"{_SELECT} {where} ORDER BY created DESC, trade_id")]

    def count_open(self) -> int:
        """How many trades are not at their end."""
        return int(self._db.execute("SELECT count(*) FROM trades WHERE open = 1").fetchone()[0])

    def count_outbox(self) -> int:
        """Messages that their recipients have not confirmed to have stored."""
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def of_offer(self, offer_id: bytes) -> list[StoredTrade]:
        """The trades made of one offer."""
        return [_stored(r) for r in self._db.execute(f"{_SELECT} WHERE offer_id = ?", (offer_id,))]

    def save(self, state: TradeState, heads: Heads, now: int) -> None:
        """Insert or replace the snapshot and the heads."""
        self._db.execute(
            """INSERT INTO trades (trade_id, snapshot, phase, open, offer_id, sent, sent_head, received,
                                   received_head, created, updated)
               VALUES (:id, :snapshot, :phase, :open, :offer, :sent, :sent_head, :received, :received_head, :now, :now)
               ON CONFLICT (trade_id) DO UPDATE SET snapshot = :snapshot, phase = :phase, open = :open, sent = :sent,
                   sent_head = :sent_head, received = :received, received_head = :received_head, updated = :now""",
            {
                "id": state.trade_id,
                "snapshot": dump_state(state),
                "phase": type(state.phase).__name__,
                "open": not isinstance(state.phase, TERMINAL),
                "offer": state.offer.offer_id,
                **msgspec.structs.asdict(heads),
                "now": now,
            },
        )

    def set_watch_from(self, trade_id: bytes, height: int) -> None:
        """Remember the height from which the trade's outputs can exist; the first value stays."""
        self._db.execute(
            "UPDATE trades SET watch_from = ? WHERE trade_id = ? AND watch_from IS NULL", (height, trade_id)
        )

    def clear_watch(self, trade_id: bytes) -> None:
        """The trade's outputs need no watching any more."""
        self._db.execute("UPDATE trades SET watch_from = NULL WHERE trade_id = ?", (trade_id,))

    def log(self, trade_id: bytes, phase: str, event: TradeEvent, now: int) -> None:
        """Add a step to the audit trail."""
        self._db.execute(
            "INSERT INTO log (trade_id, at, phase, event) VALUES (?, ?, ?, ?)",
            (trade_id, now, phase, _ENCODER.encode(event)),
        )

    def history(self, trade_id: bytes) -> list[LogEntry]:
        """The audit trail of a trade, oldest first."""
        rows = self._db.execute("SELECT at, phase, event FROM log WHERE trade_id = ? ORDER BY n", (trade_id,))
        return [LogEntry(at, phase, _EVENT.decode(event)) for at, phase, event in rows]

    # --- messages -----------------------------------------------------------------------------------------------

    def add_message(self, trade_id: bytes, number: int, message_id: bytes, raw: bytes, now: int, *, out: bool) -> None:
        """Add to the transcript. An id that is there already raises sqlite3.IntegrityError."""
        self._db.execute(
            "INSERT INTO messages (trade_id, outgoing, number, id, raw, at) VALUES (?, ?, ?, ?, ?, ?)",
            (trade_id, int(out), number, message_id, raw, now),
        )

    def message(self, trade_id: bytes, number: int, *, out: bool) -> bytes | None:
        """The raw envelope of one message of the transcript."""
        row = self._db.execute(
            "SELECT raw FROM messages WHERE trade_id = ? AND outgoing = ? AND number = ?", (trade_id, int(out), number)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def find_message(self, message_id: bytes, *, out: bool) -> bytes | None:
        """The raw envelope with this id in a transcript, as received or (`out`) as sent."""
        row = self._db.execute("SELECT raw FROM messages WHERE id = ? AND outgoing = ?", (message_id, int(out)))
        found = row.fetchone()
        return None if found is None else bytes(found[0])

    def transcript(self, trade_id: bytes) -> list[tuple[bool, bytes, int]]:
        """(outgoing, raw envelope, time) of every message, each direction in its order."""
        rows = self._db.execute(
            "SELECT outgoing, raw, at FROM messages WHERE trade_id = ? ORDER BY at, outgoing, number", (trade_id,)
        )
        return [(bool(out), bytes(raw), at) for out, raw, at in rows]

    # --- what is still to be done -------------------------------------------------------------------------------

    def add_effects(self, trade_id: bytes, effects: Sequence[DeferredEffect]) -> None:
        """Queue effects, in order."""
        self._db.executemany(
            "INSERT INTO effects (trade_id, effect) VALUES (?, ?)", [(trade_id, _ENCODER.encode(e)) for e in effects]
        )

    def pending_effects(self, trade_id: bytes) -> list[PendingEffect]:
        """The trade's effects that are not done, in order."""
        rows = self._db.execute("SELECT id, effect FROM effects WHERE trade_id = ? ORDER BY id", (trade_id,))
        return [PendingEffect(n, trade_id, _EFFECT.decode(effect)) for n, effect in rows]

    def trades_with_effects(self) -> list[bytes]:
        """The trades that have something to do."""
        return [bytes(r[0]) for r in self._db.execute("SELECT DISTINCT trade_id FROM effects")]

    def finish_effect(self, effect_id: int) -> None:
        """The effect is done; twice is fine."""
        self._db.execute("DELETE FROM effects WHERE id = ?", (effect_id,))

    def drop_signing(self, trade_id: bytes) -> None:
        """Forget effects that make signatures: what they would have signed was signed."""
        for pending in self.pending_effects(trade_id):
            if isinstance(pending.effect, SIGNING):
                self.finish_effect(pending.id)

    def queue_message(self, message: OutgoingMessage, now: int) -> None:
        """Put a message into the outbox; there already is fine."""
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (id, n, trade_id, recipient, raw, created) VALUES (?, ?, ?, ?, ?, ?)",
            (message.id, message.number, message.trade_id, message.recipient, message.raw, now),
        )

    def outbox(self, recipient: bytes) -> list[OutgoingMessage]:
        """What `recipient` (a persona) has not acknowledged; each trade's messages in their order."""
        rows = self._db.execute(
            "SELECT id, n, trade_id, recipient, raw, created FROM outbox WHERE recipient = ? ORDER BY n, created",
            (recipient,),
        )
        return [OutgoingMessage(*row) for row in rows]

    def recipients(self) -> list[bytes]:
        """The personas that something waits for."""
        return [bytes(r[0]) for r in self._db.execute("SELECT DISTINCT recipient FROM outbox")]

    def dequeue_message(self, message_id: bytes) -> None:
        """The peer acknowledged it, or refused it for good."""
        self._db.execute("DELETE FROM outbox WHERE id = ?", (message_id,))

    # --- after a restore ------------------------------------------------------------------------------------------

    def restored(self) -> int | None:
        """When the copy was made that this database came from, in Unix seconds; None: it is no copy."""
        row = self._db.execute("SELECT made FROM restored ORDER BY n DESC LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def hold(self, chain: bytes) -> None:
        """Nothing of ours is signed in a chain (trade or conversation) until `let_go`; again is fine."""
        self._db.execute("INSERT OR IGNORE INTO held (chain) VALUES (?)", (chain,))

    def is_held(self, chain: bytes) -> bool:
        """Whether nothing is to be signed in this chain."""
        return self._db.execute("SELECT 1 FROM held WHERE chain = ? AND waited = 0", (chain,)).fetchone() is not None

    def is_unconfirmed(self, chain: bytes) -> bool:
        """Whether this chain went on without the other side's record of it."""
        return self._db.execute("SELECT 1 FROM held WHERE chain = ? AND waited = 1", (chain,)).fetchone() is not None

    def held(self) -> list[tuple[bytes, int | None]]:
        """(chain, block from which the other side is waited for) of every chain that is held."""
        return [(bytes(c), h) for c, h in self._db.execute("SELECT chain, since FROM held WHERE waited = 0")]

    def held_since(self, chain: bytes, height: int) -> int:
        """From which block the other side is waited for: from `height`, if that begins now."""
        self._db.execute("UPDATE held SET since = ? WHERE chain = ? AND since IS NULL", (height, chain))
        row = self._db.execute("SELECT since FROM held WHERE chain = ?", (chain,)).fetchone()
        return height if row is None else int(row[0])

    def let_go(self, chain: bytes, *, in_vain: bool = False) -> None:
        """Go on: the other side has told what it has, or (`in_vain`) has not."""
        if in_vain:
            self._db.execute("UPDATE held SET waited = 1 WHERE chain = ?", (chain,))
        else:
            self._db.execute("DELETE FROM held WHERE chain = ?", (chain,))

    # --- deadlines ----------------------------------------------------------------------------------------------

    def set_timer(self, timer: Timer) -> None:
        """Set or move a deadline."""
        self._db.execute(
            "INSERT OR REPLACE INTO timers (trade_id, name, at_time, at_height) VALUES (?, ?, ?, ?)",
            (timer.trade_id, timer.name, timer.at_time, timer.at_height),
        )

    def stop_timer(self, trade_id: bytes, name: str) -> None:
        """Forget a deadline; none is fine."""
        self._db.execute("DELETE FROM timers WHERE trade_id = ? AND name = ?", (trade_id, name))

    def timers(self, trade_id: bytes | None = None) -> list[Timer]:
        """All deadlines, or one trade's."""
        where, values = ("", ()) if trade_id is None else ("WHERE trade_id = ?", (trade_id,))
        rows = self._db.execute(f"SELECT trade_id, name, at_time, at_height FROM timers {where}", values)  # noqa: S608
        return [Timer(*row) for row in rows]

    # --- the peers' coins -----------------------------------------------------------------------------------------

    def pledge(self, trade_id: bytes, coins: Iterable[bytes]) -> None:
        """Remember a peer's coins (36 bytes each) as those of this trade."""
        self._db.executemany("INSERT INTO pledges (coin, trade_id) VALUES (?, ?)", [(c, trade_id) for c in coins])

    def any_pledged(self, coins: Iterable[bytes]) -> bool:
        """Whether a peer has pledged one of these coins to a trade that is open."""
        wanted = tuple(coins)
        marks = ",".join("?" * len(wanted))
        query = f"SELECT 1 FROM pledges JOIN trades USING (trade_id) WHERE open = 1 AND coin IN ({marks})"  # noqa: S608
        return self._db.execute(query, wanted).fetchone() is not None

    # --- escrow keys --------------------------------------------------------------------------------------------

    def claim_keys(self, trade_id: bytes, keys: Sequence[bytes]) -> bool:
        """Remember escrow keys as this trade's. False, and nothing remembered, when another trade has shown one."""
        marks = ",".join("?" * len(keys))
        row = self._db.execute(
            f"SELECT 1 FROM escrow_keys WHERE key IN ({marks}) AND trade_id != ?",  # noqa: S608  (only marks)
            (*keys, trade_id),
        ).fetchone()
        if row is not None:
            return False
        self._db.executemany(
            "INSERT OR IGNORE INTO escrow_keys (key, trade_id) VALUES (?, ?)", [(k, trade_id) for k in keys]
        )
        return True


_SELECT: Final = (
    "SELECT snapshot, sent, sent_head, received, received_head, watch_from, created, updated, trade_id FROM trades"
)


def _stored(row: tuple[bytes, int, bytes, int, bytes, int | None, int, int, bytes]) -> StoredTrade:
    snapshot, sent, sent_head, received, received_head, watch_from, created, updated, trade_id = row
    try:
        state = load_state(snapshot)
    except msgspec.MsgspecError as e:
        raise DataCorrupt(f"the snapshot of trade {trade_id.hex()[:16]} is damaged: restore it from a backup") from e
    return StoredTrade(state, Heads(sent, sent_head, received, received_head), watch_from, created, updated)
