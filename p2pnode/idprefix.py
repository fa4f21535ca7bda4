"""Ids as people give them: hex, whole or only its beginning."""

from __future__ import annotations

import re
from typing import Final

from protocol.errors import UserError

ID_DIGITS: Final = 64
_PREFIX: Final = re.compile(r"[0-9a-f]{8,64}")


class BadIdPrefix(UserError):
    """That is not an id: give its 64 hex digits, or the first 8 or more."""

    code = 3004


def id_range(prefix: str) -> tuple[bytes, bytes]:
    """The lowest and the highest 32-byte id that begin with these 8 to 64 hex digits. Raises BadIdPrefix."""
    text = prefix.strip().lower()
    if not _PREFIX.fullmatch(text):
        raise BadIdPrefix
    return bytes.fromhex(text.ljust(ID_DIGITS, "0")), bytes.fromhex(text.ljust(ID_DIGITS, "f"))
