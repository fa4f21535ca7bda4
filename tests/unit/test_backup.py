"""Backup files: what is saved comes back whole; what is damaged, changed or somebody else's is refused in one line."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import backup
from p2pnode.backup import BadBackup, ForeignBackup
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.keystore import Keys
from protocol.errors import DataCorrupt
from protocol.types import Network

WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
OTHER = "letter advice cage absurd amount doctor acoustic avoid letter advice cage above"
KEYS = Keys(Network.REGTEST, WORDS)


def a_node(path: Path) -> DataDir:
    folder = DataDir(path)
    folder.create()
    database = Database(folder.database)
    database.connection.execute("INSERT INTO counters VALUES ('a', 7)")
    # Left open: what a running node has committed may lie in the write-ahead log alone.
    folder.config.write_text('network = "regtest"\n')
    (path / "contracts").mkdir()
    (path / "contracts" / "81bd.json").write_text("{}")
    OPEN.append(database)
    return folder


OPEN: list[Database] = []


@pytest.fixture(autouse=True)
def _closed() -> object:
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = a_node(tmp_path_factory.mktemp("node") / "d")
    data = backup.make(folder, KEYS, 1_700_000_000)
    OPEN.pop().close()
    return data


def test_everything_of_a_running_node_comes_back(tmp_path: Path) -> None:
    folder = a_node(tmp_path / "old")
    data = backup.make(folder, KEYS, 5)
    opened = backup.open_backup(data, KEYS)
    assert (opened.header.network, opened.header.created) == ("regtest", 5)
    new = DataDir(tmp_path / "new")
    new.create()
    backup.write_files(new, opened.files)
    assert (new.path / "contracts" / "81bd.json").read_text() == "{}"
    assert all(path.stat().st_mode & 0o077 == 0 for path in new.path.rglob("*"))
    with closing(Database(new.database)) as database:
        assert database.connection.execute("SELECT value FROM counters WHERE name = 'a'").fetchone() == (7,)
    with pytest.raises(FileExistsError):
        backup.write_files(new, opened.files)


def test_neither_words_nor_contents_can_be_read_in_it(made: bytes) -> None:
    assert b"winner" not in made
    assert b"SQLite format" not in made


@settings(max_examples=150)
@given(st.data())
def test_any_change_is_noticed(made: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(made) - 1))
    flip = data.draw(st.integers(1, 255))
    with pytest.raises((BadBackup, ForeignBackup)) as refused:
        backup.open_backup(made[:at] + bytes([made[at] ^ flip]) + made[at + 1 :], KEYS)
    assert "nothing was restored" in refused.value.detail or "not a backup" in refused.value.detail or at < 200


@given(st.integers(0, 400))
def test_a_cut_file_is_refused(made: bytes, size: int) -> None:
    for cut in (made[:size], made[: len(made) - 1 - size], made + bytes(size + 1)):
        with pytest.raises(BadBackup):
            backup.open_backup(cut, KEYS)


def test_the_backup_of_somebody_else_is_told_from_a_damaged_one(made: bytes) -> None:
    with pytest.raises(ForeignBackup, match="another mnemonic"):
        backup.open_backup(made, Keys(Network.REGTEST, OTHER))
    with pytest.raises(ForeignBackup, match="another mnemonic"):
        backup.open_backup(made, Keys(Network.REGTEST, WORDS, "a passphrase of its own"))
    with pytest.raises(ForeignBackup, match="of a regtest node, and signet was asked for"):
        backup.open_backup(made, Keys(Network.SIGNET, WORDS))


def test_a_damaged_database_is_not_backed_up(tmp_path: Path) -> None:
    """A backup of garbage would replace the last good one."""
    folder = DataDir(tmp_path / "d")
    folder.create()
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("CREATE TABLE t (x)")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 900,)] * 200)
        database.commit()
    raw = bytearray(folder.database.read_bytes())
    raw[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    folder.database.write_bytes(raw)
    with pytest.raises(DataCorrupt, match="no backup was made"):
        backup.make(folder, KEYS, 5)


@pytest.mark.parametrize("name", ["../evil", "keystore.json", "contracts/../../x", "/etc/x", "contracts/", "lock"])
def test_a_name_that_leads_elsewhere_is_never_written(name: str) -> None:
    with pytest.raises(BadBackup):
        backup.open_backup(backup.seal({"p2pnode.db": b"", name: b""}, KEYS, 5), KEYS)


def test_a_backup_without_a_database_is_none() -> None:
    with pytest.raises(BadBackup):
        backup.open_backup(backup.seal({"config.toml": b""}, KEYS, 5), KEYS)
