"""Who may see the page: a browser that was handed a link by somebody with the node's login.

A link holds a random token, is good once and for a short while; following it sets a cookie that scripts can't read and
other sites can't make the browser send. Nothing of it is kept across a restart.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from p2pnode.clock import Clock
from protocol.errors import UserError

LINK_SECONDS: Final = 120
IDLE_SECONDS: Final = 12 * 3_600
MOST_SESSIONS: Final = 16
COOKIE: Final = "p2pnode"


class NoSession(UserError):
    """This browser is not logged in: ask for a link with `p2pnode page`."""

    code = 3180


class StaleForm(UserError):
    """This form belongs to an earlier login: open its page again and send it from there."""

    code = 3181


@dataclass
class Session:
    """One browser."""

    seen: int
    form: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Goes into every form: what other pages can't know."""
    flash: str = ""
    """One line about the last thing that was done, shown once."""

    def check(self, form: str) -> None:
        """That a form is one of ours. Raises StaleForm."""
        if not hmac.compare_digest(form.encode(), self.form.encode()):
            raise StaleForm


class Sessions:
    """The browsers that are logged in, and the links that were made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._links: dict[str, int] = {}
        self._sessions: dict[str, Session] = {}

    def link(self) -> str:
        """A new token, good once within `LINK_SECONDS`."""
        now = self._clock.now()
        self._links = {token: until for token, until in self._links.items() if until > now}
        token = secrets.token_urlsafe(32)
        self._links[token] = now + LINK_SECONDS
        return token

    def enter(self, token: str) -> str:
        """Give a link's token for a session's. Raises NoSession."""
        now = self._clock.now()
        until = self._links.pop(token, 0)
        if until <= now:
            raise NoSession("this link was used before or is too old: ask for a new one with `p2pnode page`")
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].seen)]
        made = secrets.token_urlsafe(32)
        self._sessions[made] = Session(now)
        return made

    def find(self, token: str) -> Session:
        """The session of a cookie. Raises NoSession."""
        now = self._clock.now()
        session = self._sessions.get(token)
        if session is None or now - session.seen > IDLE_SECONDS:
            self._sessions.pop(token, None)
            raise NoSession
        session.seen = now
        return session

    def leave(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(token, None)
