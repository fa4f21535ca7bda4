"""Backups that make themselves: there after each step, openable with the mnemonic, and quiet about a bad folder."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from escrow.seed import mnemonic_from_entropy
from p2pnode import backup
from p2pnode.autobackup import AutoBackup
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.keystore import Keys
from protocol.types import Network
from tests.world import FixedClock

KEYS = Keys(Network.REGTEST, mnemonic_from_entropy(bytes(32)))


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


def topics(file: Path) -> list[str]:
    """What the copy in a backup holds."""
    opened = backup.open_backup(file.read_bytes(), KEYS)
    copy = sqlite3.connect(":memory:")
    copy.deserialize(opened.files[backup.DATABASE])
    assert copy.execute("SELECT count(*) FROM restored").fetchone() == (1,), "a copy has to know that it is one"
    found = [row[0] for row in copy.execute("SELECT topic FROM notices ORDER BY n")]
    copy.close()
    return found


async def test_each_change_is_in_the_folder_soon(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "node")
    data.create()
    base = Database(data.database)
    copies = AutoBackup(data, KEYS, tmp_path / "elsewhere" / "backups", FixedClock("backup"), gather=0.01)
    copies.start()
    await until(lambda: copies.file.exists() and topics(copies.file) == [])
    base.connection.execute("INSERT INTO notices (at, topic) VALUES (1, 'first')")
    copies.changed()
    await until(lambda: topics(copies.file) == ["first"])
    base.connection.execute("INSERT INTO notices (at, topic) VALUES (2, 'last')")
    copies.changed()
    await copies.close()
    assert topics(copies.file) == ["first", "last"], "what changed last was not kept"
    assert copies.file.stat().st_mode & 0o077 == 0
    base.close()


async def test_folder_that_takes_nothing_is_one_line_and_no_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataDir(tmp_path / "node")
    data.create()
    base = Database(data.database)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    copies = AutoBackup(data, KEYS, blocked / "backups", FixedClock("backup"), gather=0.01)
    copies.start()
    await until(lambda: bool(caplog.records))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "no backup was made" in record.getMessage()
    assert record.exc_info is None
    await copies.close()
    base.close()
