"""Where a running node's API is, and the login for it: two files in its data directory.

`api.cookie` is one line, `__cookie__:<64 hex digits>`, as HTTP Basic wants it (`curl -u "$(cat api.cookie)" ...`); it
is random for each start and readable by the owner only. `api.json` says where to ask. Both go when the node stops;
after a crash they are stale, and the connection is refused.
"""

from __future__ import annotations

import secrets
from base64 import b64encode

import msgspec
from msgspec import Struct

from p2pnode.datadir import DataDir, check_private, write_private
from protocol.errors import UserError

COOKIE_USER = "__cookie__"
CODE_HEADER = "P2PNode-Code"
"""Carries a code of the second factor."""


class NodeNotRunning(UserError):
    """The node is not running."""

    code = 3150


class Endpoint(Struct, frozen=True):
    """What `api.json` holds."""

    url: str
    pid: int
    network: str
    version: str


class Login(Struct, frozen=True):
    """Where to ask, and the header that proves who asks."""

    endpoint: Endpoint
    authorization: str

    def __repr__(self) -> str:
        """Leave the login out."""
        return f"Login({self.endpoint.url})"


def new_token() -> str:
    """A login for one run of the node: 256 random bits in hex."""
    return secrets.token_hex(32)


def basic(token: str) -> str:
    """The Authorization header of a cookie's token."""
    return "Basic " + b64encode(f"{COOKIE_USER}:{token}".encode()).decode()


def publish(folder: DataDir, endpoint: Endpoint, token: str) -> None:
    """Write both files. Raises DiskError."""
    write_private(folder.cookie, f"{COOKIE_USER}:{token}\n".encode())
    write_private(folder.endpoint, msgspec.json.encode(endpoint))


def withdraw(folder: DataDir) -> None:
    """Remove both files; gone already is fine."""
    folder.endpoint.unlink(missing_ok=True)
    folder.cookie.unlink(missing_ok=True)


def find(folder: DataDir) -> Login:
    """How to reach the node of this data directory. Raises DataDirMissing, TooOpen, NodeNotRunning."""
    folder.require_node()
    stopped = NodeNotRunning(f"the node in {folder.path} is not running: start it with `p2pnode run`")
    try:
        endpoint = msgspec.json.decode(folder.endpoint.read_bytes(), type=Endpoint)
        check_private(folder.cookie)
        user, _, token = folder.cookie.read_text("ascii").strip().partition(":")
    except FileNotFoundError:
        raise stopped from None
    except (OSError, ValueError, msgspec.MsgspecError) as e:
        raise NodeNotRunning(f"the node in {folder.path} left unreadable files behind: start it again") from e
    if user != COOKIE_USER or not token:
        raise stopped
    return Login(endpoint, basic(token))
