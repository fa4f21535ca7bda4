"""Exit codes: stable, and decided by the code of the error."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """How a command ended. Scripts rely on the numbers."""

    OK = 0
    USER = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    CHAIN = 5
    INTERNAL = 6
    TIMEOUT = 7
    INTERRUPTED = 130


_SPECIAL: Final = {
    1003: Exit.REFUSED,  # IllegalTransition: the trade's rules say no
    3003: Exit.REFUSED,  # RoleMissing
    3100: Exit.USAGE,  # BadConfig
    3112: Exit.UNREACHABLE,  # DataDirMissing
    3141: Exit.UNREACHABLE,  # NotAuthorized: another node answers there
    3150: Exit.UNREACHABLE,  # NodeNotRunning
    1450: Exit.UNREACHABLE,  # NodeUnreachable
    1451: Exit.UNREACHABLE,  # the answer was lost
    3160: Exit.TIMEOUT,  # WaitedTooLong
}
_BY_THOUSAND: Final = {1: Exit.INTERNAL, 2: Exit.REFUSED, 3: Exit.USER, 4: Exit.CHAIN}


def exit_of(code: int) -> Exit:
    """The exit code for an error's code (`protocol.errors`)."""
    return _SPECIAL.get(code) or _BY_THOUSAND.get(code // 1000, Exit.INTERNAL)
