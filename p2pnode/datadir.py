"""The data directory: one node's keys, database and lock, readable by nobody else.

One process at a time works in it. The lock is the kernel's (`flock`): it goes when the process goes, however that ends,
so there is no stale lock to remove. The file holds the process's id for the message to the second one, no more.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.errors import LocalError, UserError

PRIVATE_DIR: Final = 0o700
PRIVATE_FILE: Final = 0o600


class DataDirLocked(UserError):
    """Another process works in this data directory."""

    code = 3110


class DataDirUnusable(UserError):
    """The data directory can't be used."""

    code = 3111


class DataDirMissing(UserError):
    """There is no node in this data directory: run `p2pnode init` first."""

    code = 3112


class TooOpen(UserError):
    """A file or folder with secrets can be read by other users of this machine."""

    code = 3113


class DiskError(LocalError):
    """This node could not write to its disk."""

    code = 1030


class DataDir:
    """The folder and the names of what is in it."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is touched."""
        self.path = path
        self.keystore = path / "keystore.json"
        self.config = path / "config.toml"
        self.database = path / "p2pnode.db"
        self.cookie = path / "api.cookie"
        self.endpoint = path / "api.json"
        self.lock_file = path / "lock"

    def create(self) -> None:
        """Make the folder, 0700, with its parents. One that is there must be empty of others' rights.

        Raises DataDirUnusable, TooOpen.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=PRIVATE_DIR, exist_ok=True)
        except OSError as e:
            raise DataDirUnusable(f"the data directory {self.path} can't be made: {e.strerror or e}") from e
        self.check()

    def check(self) -> None:
        """That the folder is there, a folder, ours, and closed to others.

        Raises DataDirMissing, DataDirUnusable, TooOpen.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise DataDirMissing(f"there is no node in {self.path}: run `p2pnode init` first") from None
        except OSError as e:
            raise DataDirUnusable(f"the data directory {self.path} can't be opened: {e.strerror or e}") from e
        if not stat.S_ISDIR(status.st_mode):
            raise DataDirUnusable(f"{self.path} is not a folder: name another data directory")
        check_private(self.path)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise DataDirUnusable(f"the data directory {self.path} can't be written by this user")

    def require_node(self) -> None:
        """That `p2pnode init` was here. Raises DataDirMissing and what `check` raises."""
        self.check()
        if not self.keystore.is_file():
            raise DataDirMissing(f"there is no node in {self.path}: run `p2pnode init` first")

    def lock(self) -> DirLock:
        """Take the folder for this process, until the lock is closed. Raises DataDirLocked, DiskError."""
        return DirLock(self.lock_file, self.path)


class DirLock:
    """Held from construction to `close`; a context manager. Children of the process do not inherit it."""

    def __init__(self, file: Path, folder: Path) -> None:
        """Lock `file`, made if need be. Raises DataDirLocked, DiskError."""
        try:
            self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        except OSError as e:
            raise DiskError(f"the lock {file} can't be opened: {e.strerror or e}") from e
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            if not isinstance(e, BlockingIOError):
                raise DiskError(f"the data directory {folder} can't be locked: {e.strerror or e}") from e
            who = f"process {holder}" if holder.isdecimal() else "another process"
            raise DataDirLocked(
                f"{who} already works in the data directory {folder}: stop it (`p2pnode stop`) or use another --datadir"
            ) from e
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let the folder go. Twice is fine."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """The lock is held already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        self.close()


def check_private(path: Path) -> None:
    """That `path` is ours, or root's, and that nobody else has rights on it. Raises TooOpen, DataDirUnusable."""
    try:
        status = path.stat()
    except OSError as e:
        raise DataDirUnusable(f"{path} can't be opened: {e.strerror or e}") from e
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise DataDirUnusable(f"{path} belongs to another user")
    if status.st_mode & 0o077:
        wanted = PRIVATE_DIR if stat.S_ISDIR(status.st_mode) else PRIVATE_FILE
        raise TooOpen(f"other users of this machine have rights on {path}: run `chmod {wanted:o} {path}`")


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file, 0600, whole or not at all: to a neighbour, synced, then renamed; the folder is synced too.

    With `replace=False` a file that is there is kept. Raises FileExistsError then, DiskError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        # O_EXCL: nobody else's file or link is followed. The name is ours alone: the folder is 0700 and locked by pid.
        with suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as e:
        raise DiskError(f"{path} can't be written: {e.strerror or e}") from e


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
