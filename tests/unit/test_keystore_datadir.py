"""The data directory: one process at a time, and nobody else's eyes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.datadir import (
    DataDir,
    DataDirLocked,
    DataDirMissing,
    DataDirUnusable,
    DiskError,
    TooOpen,
    write_private,
)

HOLDER = """
import sys, pathlib
from p2pnode.datadir import DataDir
lock = DataDir(pathlib.Path(sys.argv[1])).lock()
print("held", flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "node")
    made.create()
    return made


class TestLock:
    def hold(self, folder: DataDir) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
    def test_the_second_process_is_told_who_holds_it_until_that_one_is_gone(
        self, folder: DataDir, end: signal.Signals
    ) -> None:
        with self.hold(folder) as process:
            with pytest.raises(DataDirLocked, match=f"process {process.pid} already works .*--datadir"):
                folder.lock()
            process.send_signal(end)
            process.wait(10)
        # However it ended, nothing has to be cleaned up.
        with folder.lock():
            assert folder.lock_file.read_text() == f"{os.getpid()}\n"

    def test_a_child_does_not_keep_the_lock(self, folder: DataDir) -> None:
        lock = folder.lock()
        program = [sys.executable, "-c", "print(flush=True); input()"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
            assert child.stdout is not None
            child.stdout.readline()  # the kernel lets the parent go on a moment before it has closed the child's files
            lock.close()
            folder.lock().close()
            child.kill()

    def test_closing_twice_is_fine_and_frees_it(self, folder: DataDir) -> None:
        lock = folder.lock()
        lock.close()
        lock.close()
        folder.lock().close()

    def test_a_link_in_its_place_is_not_followed(self, folder: DataDir, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        folder.lock_file.symlink_to(victim)
        with pytest.raises(DiskError):
            folder.lock()
        assert victim.read_text() == "precious"


class TestFolder:
    def test_it_is_made_private_with_its_parents(self, tmp_path: Path) -> None:
        folder = DataDir(tmp_path / "a" / "b")
        folder.create()
        assert folder.path.stat().st_mode & 0o777 == 0o700
        folder.create()

    @pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o711])
    def test_one_that_others_can_enter_is_refused(self, folder: DataDir, mode: int) -> None:
        folder.path.chmod(mode)
        for check in (folder.check, folder.create, folder.require_node):
            with pytest.raises(TooOpen, match=f"chmod 700 {folder.path}"):
                check()

    def test_a_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataDirUnusable, match="not a folder"):
            DataDir(tmp_path / "file").check()
        with pytest.raises(DataDirUnusable):
            DataDir(tmp_path / "file").create()
        with pytest.raises(DataDirUnusable):
            DataDir(tmp_path / "file" / "below").create()

    def test_without_a_node_it_says_to_run_init(self, folder: DataDir, tmp_path: Path) -> None:
        for empty in (folder, DataDir(tmp_path / "none")):
            with pytest.raises(DataDirMissing, match="p2pnode init"):
                empty.require_node()


class TestWriting:
    def test_a_file_is_replaced_whole_and_private(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old and readable")
        path.chmod(0o644)
        write_private(path, b"new")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
        assert names(tmp_path) == ["file"]

    def test_what_is_there_is_kept_when_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_private(path, b"first", replace=False)
        with pytest.raises(FileExistsError):
            write_private(path, b"second", replace=False)
        assert path.read_bytes() == b"first"
        assert names(tmp_path) == ["file"]

    def test_a_crash_before_the_rename_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        write_private(path, b"old")

        def fails(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(DiskError, match="Input/output error"):
            write_private(path, b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]
