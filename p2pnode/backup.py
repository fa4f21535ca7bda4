"""Backup files: all that a node knows and its mnemonic does not give back, in one encrypted file.

Inside are consistent copies of the node's database (trades, offers, labels of what is to be done) and of the wallet's
file, taken by SQLite's own backup while the node runs; the configuration; and the contract files. The mnemonic is not
inside: it is what opens the file. The key comes from the seed (BIP85, `escrow/seed.py`), so a stolen backup is no help
to someone who guesses passphrases, and a forgotten passphrase does not spoil the backups.

    MAGIC ‖ length of the header, 4 bytes ‖ header, JSON ‖ nonce, 24 bytes ‖ XChaCha20-Poly1305 box

Everything before the nonce is authenticated with the box, so a changed header does not open either. The header names
the network, the time, and eight bytes of a hash of the key: by them a foreign mnemonic is told from a damaged file.

The database is copied first. So the wallet's file is never older than a trade's state, and no script that a trade knows
is handed out a second time.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import msgspec
from msgspec import Meta, Struct
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.utils import random

from p2pnode.datadir import DataDir, DiskError, write_private
from p2pnode.keystore import Keys
from protocol.errors import DataCorrupt, UserError
from protocol.types import UnixTime

NetworkName = Literal["mainnet", "testnet", "signet", "regtest"]

MAGIC: Final = b"p2pnode-backup\n"
DATABASE: Final = "p2pnode.db"
WALLET: Final = "wallet.db"
CONFIG: Final = "config.toml"
CONTRACTS: Final = "contracts"
MAX_FILE: Final = 2**30
"""Bytes of a backup, packed or not."""
_MAX_HEADER: Final = 4_096


class BadBackup(UserError):
    """That file is no backup, or it is damaged or was changed: nothing was restored, use another one."""

    code = 3245


class ForeignBackup(UserError):
    """That backup belongs to another mnemonic or another network: nothing was restored."""

    code = 3246


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup says of itself in clear."""

    version: Literal[1]
    network: NetworkName
    created: Annotated[int, Meta(ge=0)]
    key: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]


class Backup(Struct, frozen=True):
    """An opened backup: files by their name in the data directory."""

    header: Header
    files: dict[str, bytes]


def make(folder: DataDir, keys: Keys, now: UnixTime) -> bytes:
    """The backup of a data directory, whose node may be running. Raises DataCorrupt, DiskError."""
    files = {DATABASE: snapshot_database(folder.database, now)}
    wallet = folder.path / WALLET
    if wallet.exists():
        files[WALLET] = snapshot(wallet)
    plain = [folder.config, *sorted((folder.path / CONTRACTS).glob("*"))]
    try:
        files |= {str(path.relative_to(folder.path)): path.read_bytes() for path in plain if path.is_file()}
    except OSError as e:
        raise DiskError(f"{e.filename} can't be read: {e.strerror or e}") from e
    return seal(files, keys, now)


def seal(files: Mapping[str, bytes], keys: Keys, now: UnixTime) -> bytes:
    """The backup that holds `files`."""
    key = keys.seed.backup_key()
    head = _head(Header(1, _network(keys), now, _mark(key)))
    nonce = random(bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES)
    packed = zlib.compress(msgspec.msgpack.encode(files), 6)
    return head + nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(packed, head, nonce, key)


def open_backup(data: bytes, keys: Keys) -> Backup:
    """Decrypt and check. Raises BadBackup, ForeignBackup."""
    header, head = read_header(data)
    key = keys.seed.backup_key()
    if header.network != _network(keys):
        raise ForeignBackup(f"that backup is of a {header.network} node, and {_network(keys)} was asked for")
    if header.key != _mark(key):
        raise ForeignBackup("that backup belongs to another mnemonic (or to its passphrase, if it has one of its own)")
    size = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
    nonce, box = data[len(head) : len(head) + size], data[len(head) + size :]
    try:
        packed = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(box, head, nonce, key)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, MAX_FILE)
        files = msgspec.msgpack.decode(content, type=dict[str, bytes])
    except (CryptoError, ValueError, TypeError, zlib.error) as e:
        raise BadBackup from e
    if DATABASE not in files or not all(_is_ours(name) for name in files):
        raise BadBackup
    return Backup(header, files)


def read_header(data: bytes) -> tuple[Header, bytes]:
    """The header, and the bytes up to its end. Raises BadBackup."""
    at = len(MAGIC) + 4
    if not data.startswith(MAGIC) or len(data) > MAX_FILE:
        raise BadBackup("that file is not a backup of this program")
    end = at + int.from_bytes(data[len(MAGIC) : at], "big")
    if not at < end <= min(len(data), at + _MAX_HEADER):
        raise BadBackup
    try:
        return msgspec.json.decode(data[at:end], type=Header), data[:end]
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise BadBackup from e


def write_files(folder: DataDir, files: dict[str, bytes]) -> None:
    """Put a backup's files into a data directory that has none of them. Raises DiskError, FileExistsError."""
    for name, content in files.items():
        path = folder.path / name
        if path.parent != folder.path:
            path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, content, replace=False)


def snapshot_database(path: Path, now: UnixTime) -> bytes:
    """A copy of a node's database that knows that it is one: what is open in it is held (`p2pnode.reconcile`)."""

    def mark(copy: sqlite3.Connection) -> None:
        copy.execute("INSERT INTO restored (made) VALUES (?)", (now,))
        copy.execute("DELETE FROM held")
        copy.execute("INSERT INTO held (chain) SELECT trade_id FROM trades WHERE open = 1")
        copy.execute(
            """INSERT INTO held (chain) SELECT chain FROM conversations LEFT JOIN trades USING (trade_id)
               LEFT JOIN cases USING (trade_id) WHERE CASE arbitrates WHEN 1 THEN cases.open ELSE trades.open END"""
        )
        # The book is the network's, and the largest part.
        copy.execute("DELETE FROM book")
        copy.commit()
        copy.execute("VACUUM")

    return snapshot(path, mark)


def snapshot(path: Path, change: Callable[[sqlite3.Connection], None] = lambda _: None) -> bytes:
    """A consistent copy of an SQLite file that may be in use, changed by `change`. Raises DataCorrupt."""
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            change(copy)
            (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise DataCorrupt(f"{path} is damaged ({verdict}): no backup was made of it")
            return bytes(copy.serialize())
    except sqlite3.Error as e:
        raise DataCorrupt(f"{path} can't be read ({e}): no backup was made") from e


def _head(header: Header) -> bytes:
    text = msgspec.json.encode(header)
    return MAGIC + len(text).to_bytes(4, "big") + text


def _network(keys: Keys) -> NetworkName:
    return cast("NetworkName", keys.network.name.lower())


def _mark(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=8, person=b"p2p-backup").hexdigest()


def _is_ours(name: str) -> bool:
    """A name that belongs into a data directory; a path that leads out of it does not."""
    folder, _, file = name.rpartition("/")
    return name in (DATABASE, WALLET, CONFIG) or (
        folder == CONTRACTS and file not in ("", ".", "..") and "\0" not in file
    )
