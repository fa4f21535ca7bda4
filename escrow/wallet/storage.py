"""The ledger's facts on disk: one small SQLite file beside the node's database.

A file of its own, because it is written at every block on the wallet's own thread, and may be deleted: everything in
it but the labels, what is frozen, and the count of scripts that were handed out can be found in the chain again. WAL
with `synchronous=FULL`: a script that was handed out is on disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from escrow.chain.base import BlockRef
from escrow.chain.blocks import parse_tx
from escrow.coins import OutPoint
from escrow.wallet.base import Label, WalletMismatch
from escrow.wallet.engine import Keychain
from escrow.wallet.ledger import Changes, Entry, Place
from protocol.errors import DataCorrupt, LocalError
from protocol.types import Height, UnixTime

_VERSION: Final = 2
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS wallet (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    identity  TEXT NOT NULL,
    birthday  INTEGER NOT NULL,
    external  INTEGER NOT NULL,
    internal  INTEGER NOT NULL,
    tip       BLOB
);
CREATE TABLE IF NOT EXISTS transactions (
    txid  BLOB PRIMARY KEY,
    raw   BLOB NOT NULL,
    place INTEGER NOT NULL,
    block BLOB,
    seen  INTEGER NOT NULL,
    own   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS addresses (
    script  BLOB PRIMARY KEY,
    number  INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    made    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS frozen (outpoint BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (
    kind      TEXT NOT NULL,
    ref       TEXT NOT NULL,
    label     TEXT NOT NULL,
    origin    TEXT,
    PRIMARY KEY (kind, ref)
) WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""


class CantWrite(LocalError):
    """The wallet file can't be written: is the disk full?"""

    code = 1201


class LedgerStore:
    """The file of one wallet. Opened, used and closed on one thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, readable by its owner only. Raises DataCorrupt."""
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise DataCorrupt(f"the wallet file {path} was written by a newer version: use that version")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as e:
            self._connection.close()
            raise self._corrupt(e) from e
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def begin(self, identity: str, birthday: Height) -> Height:
        """Claim the file, or check that it is this wallet's; returns its birthday. Raises WalletMismatch."""
        row = self._connection.execute("SELECT identity, birthday FROM wallet").fetchone()
        if row is None:
            self._connection.execute("INSERT INTO wallet VALUES (1, ?, ?, 0, 0, NULL)", (identity, birthday))
            return birthday
        if row[0] != identity:
            raise WalletMismatch(f"the wallet file {self._path} belongs to another mnemonic, descriptor or network")
        return int(row[1])

    def load(self) -> Changes:
        """Everything that was written. Raises DataCorrupt."""
        try:
            external, internal, tip = self._connection.execute("SELECT external, internal, tip FROM wallet").fetchone()
            entries = [
                Entry(parse_tx(raw), Place(place), None if block is None else _unpack(block), seen, bool(own))
                for raw, place, block, seen, own in self._connection.execute(
                    "SELECT raw, place, block, seen, own FROM transactions"
                )
            ]
        except (sqlite3.DatabaseError, ValueError) as e:
            raise self._corrupt(e) from e
        revealed = {Keychain.EXTERNAL: external, Keychain.INTERNAL: internal}
        return Changes(entries, revealed, None if tip is None else _unpack(tip))

    def save(self, changes: Changes) -> None:
        """Write what changed, all or nothing. Raises CantWrite."""
        external, internal = changes.revealed[Keychain.EXTERNAL], changes.revealed[Keychain.INTERNAL]
        tip = None if changes.tip is None else _pack(changes.tip)
        rows = [
            (e.tx.txid, e.tx.raw, e.place, None if e.block is None else _pack(e.block), e.seen, e.own)
            for e in changes.entries
        ]
        with self._transaction():
            self._connection.execute(
                "UPDATE wallet SET external = max(external, ?), internal = max(internal, ?), tip = ?",
                (external, internal, tip),
            )
            self._connection.executemany("INSERT OR REPLACE INTO transactions VALUES (?, ?, ?, ?, ?, ?)", rows)

    def hand_out(self, keychain: Keychain, number: int, script: bytes, purpose: str, made: UnixTime) -> None:
        """Record that script `number` of a keychain was handed out; on disk when this returns. Raises CantWrite."""
        column = "external" if keychain is Keychain.EXTERNAL else "internal"
        with self._transaction():
            # The column is one of two words of ours.
            self._connection.execute(f"UPDATE wallet SET {column} = max({column}, ?)", (number + 1,))  # noqa: S608
            self._connection.execute(
                "INSERT OR REPLACE INTO addresses VALUES (?, ?, ?, ?)", (script, number, purpose, made)
            )

    def frozen(self) -> frozenset[OutPoint]:
        """The coins that were set aside."""
        return frozenset(OutPoint.from_wire(o) for (o,) in self._connection.execute("SELECT outpoint FROM frozen"))

    def labels(self) -> tuple[Label, ...]:
        """All labels; the purpose with which an address was handed out is its label until another is set."""
        rows = self._connection.execute("SELECT kind, ref, label, origin FROM labels ORDER BY kind, ref")
        return tuple(Label(kind=kind, ref=ref, label=label, origin=origin) for kind, ref, label, origin in rows)

    def purposes(self) -> tuple[tuple[bytes, str], ...]:
        """(script, purpose) of the addresses that were handed out with one."""
        rows = self._connection.execute("SELECT script, purpose FROM addresses WHERE purpose != '' ORDER BY number")
        return tuple((bytes(script), purpose) for script, purpose in rows)

    def set_labels(self, labels: Sequence[Label], freeze: Collection[OutPoint], thaw: Collection[OutPoint]) -> None:
        """Keep labels, and set coins aside or not, all or nothing. Raises CantWrite."""
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)",
                [(x.kind, x.ref, x.label, x.origin) for x in labels],
            )
            self._connection.executemany("INSERT OR IGNORE INTO frozen VALUES (?)", [(o.wire,) for o in freeze])
            self._connection.executemany("DELETE FROM frozen WHERE outpoint = ?", [(o.wire,) for o in thaw])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite may have undone it itself; left open, it would swallow what comes next.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise CantWrite(f"the wallet file {self._path} can't be written ({e}): is the disk full?") from e

    def _corrupt(self, cause: Exception) -> DataCorrupt:
        return DataCorrupt(f"the wallet file {self._path} can't be read ({cause}): restore it from a backup")


def _pack(block: BlockRef) -> bytes:
    return block.hash + b"".join(n.to_bytes(8, "big") for n in (block.height, block.time, block.median_time))


def _unpack(raw: bytes) -> BlockRef:
    if len(raw) != 56:
        raise ValueError("a block reference has 56 bytes")
    height, time, median = (int.from_bytes(raw[at : at + 8], "big") for at in (32, 40, 48))
    return BlockRef(height, raw[:32], time, median)
