"""Logging: the standard library's, with fields, for people or machines, and nothing secret in it.

Modules log with `logging.getLogger(__name__)` as usual. Fields come from `bound(trade=...)`, for everything logged
inside it (also in tasks started there), and from `extra={"fields": {...}}`, for one line. The formatter joins line,
fields and exception, and `redact` goes over all of it. A peer's misbehaviour is news at info or warning; an error is
ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, TextIO

from p2pnode.config import LogConfig, LogFormat
from p2pnode.datadir import PRIVATE_FILE, DiskError
from p2pnode.redact import Redactor
from protocol.errors import Fault, P2PError

FILE_BYTES: Final = 10_000_000
FILE_COUNT: Final = 3
"""Older files kept beside the present one."""

_FIELDS: ContextVar[Mapping[str, object]] = ContextVar("fields", default={})  # noqa: B039  (never mutated)
_REDACTOR: Final = Redactor()
_NOISY: Final = ("asyncio", "aiohttp.access", "kademlia", "rpcudp")


def protect(*secrets: str) -> None:
    """Never show these values in any log line of this process."""
    _REDACTOR.protect(*secrets)


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Put `fields` on every line that is logged inside."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def report(logger: logging.Logger, error: P2PError, text: str) -> None:
    """Log a P2PError at the level its fault asks for: a peer's or user's is no error of ours."""
    level = logging.ERROR if error.fault is Fault.OURS else logging.WARNING
    if error.fault is Fault.PEER:
        level = logging.INFO
    logger.log(level, "%s: %s", text, error.detail, extra={"fields": {"code": error.code}})


class Formatter(logging.Formatter):
    """One line per record, redacted: text with `key=value` fields, or a JSON object."""

    def __init__(self, form: LogFormat, redactor: Redactor) -> None:
        super().__init__()
        self._json = form is LogFormat.JSON
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The finished line; a console line is followed by the lines of its exception, if it has one."""
        clean = self._redactor.text
        message = clean(record.getMessage())
        fields = {**_FIELDS.get(), **getattr(record, "fields", {})}
        shown = {name: self._redactor.field(name, value) for name, value in fields.items()}
        trace = clean(self.formatException(record.exc_info)) if record.exc_info else ""
        seconds, millis = divmod(int(record.created * 1000), 1000)
        if self._json:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            document: dict[str, object] = {
                "time": f"{stamp}.{millis:03d}Z",
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
            }
            # A field never replaces what the line itself says.
            document |= {name if name not in document else f"{name}_": value for name, value in shown.items()}
            if trace:
                document["exception"] = trace
            return json.dumps(document, default=str)
        stamp = time.strftime("%H:%M:%S", time.localtime(seconds))
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in shown.items())
        # Control characters could paint over a terminal or forge a line.
        line = _printable(f"{stamp}.{millis:03d} {record.levelname.lower():<7} {record.name}: {message}{pairs}")
        return f"{line}\n{trace}" if trace else line


def setup(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Send the process's log to `stream` (stderr) and to the configured file. Replaces an earlier set-up.

    Raises DiskError.
    """
    _REDACTOR.show_addresses = config.show_addresses
    formatter = Formatter(config.format, _REDACTOR)
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if config.file is not None:
        handlers.append(_file(config.file))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(config.level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def _file(path: Path) -> logging.Handler:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE))
        path.chmod(PRIVATE_FILE)
        return _PrivateFile(path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8", delay=True)
    except OSError as e:
        raise DiskError(f"the log file {path} can't be written: {e.strerror or e}") from e


class _PrivateFile(RotatingFileHandler):
    """Rotation opens new files; they are private as well."""

    def _open(self) -> TextIO:  # type: ignore[override]  # the base says TextIOWrapper, which is narrower than we promise
        file = super()._open()
        os.fchmod(file.fileno(), PRIVATE_FILE)
        return file


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
