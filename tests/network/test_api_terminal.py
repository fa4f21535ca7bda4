"""The command line on a terminal (a pseudo-terminal): prompts, questions, the spinner."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from p2pnode.datadir import DataDir
from tests.network.api_twin import PASSPHRASE, Twin, make_data_dir, serving

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A command on a terminal of its own; everything it prints is in `screen`."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._master, slave = os.openpty()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env=clean | {"HOME": str(home), "TERM": "xterm", "COLUMNS": "120"},
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.screen = ""

    async def until(self, pattern: str) -> None:
        """Read until the screen holds `pattern`."""
        async with asyncio.timeout(30):
            while re.search(pattern, self.screen) is None:
                assert await self._more(), f"no {pattern!r} on the screen: {self.screen!r}"

    async def type(self, text: str) -> None:
        os.write(self._master, f"{text}\n".encode())

    async def end(self) -> int:
        async with asyncio.timeout(30):
            while await self._more():
                pass
        return await asyncio.to_thread(self.process.wait, 30)

    async def _more(self) -> bool:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._master, ready.set)
        try:
            await ready.wait()
            data = os.read(self._master, 65_536)
        except OSError:  # Linux: the last process has closed the terminal
            return False
        finally:
            loop.remove_reader(self._master)
        self.screen += data.decode("utf-8", "replace")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    return make_data_dir(tmp_path / "node")


@pytest.fixture
async def twin(folder: DataDir) -> AsyncIterator[Twin]:
    twin = Twin()
    async with serving(twin, folder):
        yield twin


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


async def test_a_payment_is_asked_about_and_no_is_no(
    twin: Twin, folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    for answer, code, paid in (("n", 1, 0), ("", 1, 0), ("y", 0, 1)):
        terminal = Terminal(tmp_path, "wallet", "send", "bcrt1qabcdef", "0.5", "--datadir", str(folder.path))
        terminals.append(terminal)
        await terminal.until(r"Send 0\.50000000 BTC to bcrt1qabcdef\? \[y/N\]")
        await terminal.type(answer)
        assert await terminal.end() == code
        assert len(twin.sent) == paid
    assert "Nothing was done." in terminals[0].screen


async def test_a_slow_answer_shows_a_spinner_and_the_result_stays(
    twin: Twin, folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    twin.hold = asyncio.Event()
    terminal = Terminal(tmp_path, "wallet", "balance", "--datadir", str(folder.path))
    terminals.append(terminal)
    await terminal.until("Reading the wallet")
    twin.hold.set()
    assert await terminal.end() == 0
    assert "1.50000000" in terminal.screen.split("Reading the wallet")[-1]


async def test_a_passphrase_is_not_echoed_and_may_be_mistyped_twice(
    folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal(tmp_path, "run", "--datadir", str(folder.path))
    terminals.append(terminal)
    for attempt in range(1, 4):
        await terminal.until(f"(?s)(Passphrase: .*){{{attempt}}}")
        await terminal.type(f"wrong-{attempt}")
    assert await terminal.end() == 1
    assert "wrong-" not in terminal.screen
    assert terminal.screen.count("passphrase is wrong") == 3


async def test_a_new_passphrase_is_typed_twice(tmp_path: Path, terminals: list[Terminal]) -> None:
    for second, code in (("another", 1), (PASSPHRASE, 0)):
        terminal = Terminal(
            tmp_path, "init", "--datadir", "fresh", "--network", "regtest", "--set", "keystore.cost=interactive"
        )
        terminals.append(terminal)
        await terminal.until("New passphrase for the keystore: ")
        await terminal.type(PASSPHRASE)
        await terminal.until("The same again: ")
        await terminal.type(second)
        assert await terminal.end() == code
        assert PASSPHRASE not in terminal.screen
        assert (tmp_path / "fresh" / "keystore.json").exists() == (code == 0)
    assert "24 " in terminals[-1].screen
