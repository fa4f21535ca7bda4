"""The one place where time and chance come from. Everything else is handed them."""

from __future__ import annotations

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Time and chance, so that tests can bring their own."""

    def now(self) -> int:
        """Unix seconds."""
        ...

    def random(self, size: int) -> bytes:
        """`size` secret random bytes."""
        ...


class SystemClock:
    """The operating system's clock and random generator."""

    def now(self) -> int:
        """Unix seconds."""
        return int(time.time())

    def random(self, size: int) -> bytes:
        """`size` secret random bytes."""
        return secrets.token_bytes(size)
