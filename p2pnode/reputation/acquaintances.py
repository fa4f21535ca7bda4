"""The user's own word on personas: notes, who is trusted, who is blocked. It never leaves this node."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from p2pnode.database import Database
from protocol.errors import UserError

MAX_NOTE: Final = 500

Standing = Literal["", "trusted", "blocked"]


class NoteTooLong(UserError):
    """A note has at most 500 characters."""

    code = 3335


class Acquaintance(Struct, frozen=True):
    """What the user says of a persona."""

    persona: bytes
    standing: Standing = ""
    note: str = ""
    updated: int = 0


class Acquaintances:
    """In SQLite; standings are in memory as well, since every offer in a list asks for one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._db = database.connection
        self._standings: dict[bytes, Standing] = {a.persona: a.standing for a in self.all() if a.standing}

    def all(self) -> list[Acquaintance]:
        """Everybody the user has said something of, the newest first."""
        rows = self._db.execute(
            "SELECT persona, standing, note, updated FROM acquaintances ORDER BY updated DESC, persona"
        )
        return [Acquaintance(*row) for row in rows]

    def get(self, persona: bytes) -> Acquaintance:
        """What was said of a persona."""
        row = self._db.execute(
            "SELECT persona, standing, note, updated FROM acquaintances WHERE persona = ?", (persona,)
        ).fetchone()
        return Acquaintance(persona) if row is None else Acquaintance(*row)

    def blocks(self, persona: bytes) -> bool:
        """Whether the user wants nothing to do with it."""
        return self._standings.get(persona) == "blocked"

    def trusts(self, persona: bytes) -> bool:
        """Whether limits for strangers do not apply to it."""
        return self._standings.get(persona) == "trusted"

    def set(self, persona: bytes, now: int, *, standing: Standing | None = None, note: str | None = None) -> None:
        """Change one or both; what is left without either is forgotten. Raises NoteTooLong."""
        if note is not None and len(note) > MAX_NOTE:
            raise NoteTooLong
        old = self.get(persona)
        new = Acquaintance(
            persona, old.standing if standing is None else standing, old.note if note is None else note, now
        )
        with self._database.transaction():
            if new.standing or new.note:
                self._db.execute(
                    "INSERT OR REPLACE INTO acquaintances (persona, standing, note, updated) VALUES (?, ?, ?, ?)",
                    (persona, new.standing, new.note, now),
                )
            else:
                self._db.execute("DELETE FROM acquaintances WHERE persona = ?", (persona,))
        if new.standing:
            self._standings[persona] = new.standing
        else:
            self._standings.pop(persona, None)
