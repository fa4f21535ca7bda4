"""When a mnemonic was made, as a person or `p2pnode init` writes it: a block's height, or a time in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from protocol.types import Height, UnixTime

_MOST_BLOCKS = 10_000_000


def parse_birthday(text: str) -> tuple[Height | None, UnixTime | None]:
    """(height, time) of which at most one is there; an empty text is neither. Raises ValueError."""
    if not text:
        return None, None
    if text.isascii() and text.isdecimal() and len(text) < 9:
        height = int(text)
        if height > _MOST_BLOCKS:
            raise ValueError("no block has that height yet")
        return height, None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.year < 2009:
        raise ValueError("there was no bitcoin then")
    return None, int(moment.timestamp())


def birthday_text(now: UnixTime) -> str:
    """A time as `parse_birthday` reads it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
