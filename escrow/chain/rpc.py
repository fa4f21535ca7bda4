"""bitcoind's JSON-RPC over one aiohttp session: authentication, batches, time limits, and errors that say what to do.

The login is the cookie file that bitcoind writes at each start (read again whenever it is refused, so a restart of
bitcoind goes unnoticed), or user and password. Fractions arrive as `Decimal`. A call that fails because a kept-alive
connection went away is made once more; every call of ours may be repeated.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from escrow.chain.base import BackendAuthFailed, BackendError, BackendUnreachable

_WARMING_UP: Final = -28
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.Encoder().encode


class CookieLogin(msgspec.Struct, frozen=True):
    """Log in with the cookie file of a bitcoind on this machine."""

    path: Path


class PasswordLogin(msgspec.Struct, frozen=True):
    """Log in with `rpcuser` and `rpcpassword`, or an `rpcauth` pair. Its repr shows no secret."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Name the user only."""
        return f"PasswordLogin({self.user!r})"


Login = CookieLogin | PasswordLogin


class RpcError(BackendError):
    """The Bitcoin node answered a call with an error."""

    code = 4010

    def __init__(self, method: str, rpc_code: int, message: str) -> None:
        """Keep bitcoind's number and words apart from the sentence."""
        super().__init__(f"the Bitcoin node refused {method}: {message} ({rpc_code})")
        self.method = method
        self.rpc_code = rpc_code
        self.message = message


class BitcoindRpc:
    """A client of one bitcoind. Made on any thread, used on one event loop."""

    def __init__(self, url: str, login: Login, *, timeout: float = 30.0, connections: int = 8) -> None:
        """Name the node; nothing is opened yet.

        Args:
            url: such as `http://127.0.0.1:8332`.
            login: how to log in.
            timeout: seconds until a call is given up; calls that may take long name their own.
            connections: how many calls may be under way at once; bitcoind serves 16 by default.

        Raises ValueError for a url with a login in it: urls are shown in messages and logs.
        """
        if "@" in url:
            raise ValueError("the login does not belong into the url")
        self.url = url
        self._login = login
        self._timeout = timeout
        self._connections = connections
        self._header: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, method: str, *params: object, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """The result of one call.

        Raises RpcError when bitcoind answers with an error, BackendUnreachable, BackendAuthFailed.
        """
        answer = await self._post({"jsonrpc": "2.0", "id": 0, "method": method, "params": params}, timeout)
        if not isinstance(answer, dict):
            raise BackendError("the Bitcoin node answered a call with something else")
        return _result(method, answer)

    async def batch(self, calls: Sequence[tuple[object, ...]]) -> list[Any]:
        """The results of many calls in one request, in order; an RpcError stands where a call failed.

        Each call is `(method, *params)`. Raises BackendUnreachable, BackendAuthFailed.
        """
        if not calls:
            return []
        body = [{"jsonrpc": "2.0", "id": i, "method": c[0], "params": c[1:]} for i, c in enumerate(calls)]
        answers = await self._post(body, None)
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise BackendError("the Bitcoin node answered a batch of calls with something else")
        by_id = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
        results: list[Any] = []
        for i, call in enumerate(calls):
            try:
                results.append(_result(str(call[0]), by_id.get(i, {})))
            except RpcError as e:
                results.append(e)
        return results

    async def _post(self, body: object, timeout: float | None) -> object:
        data = _encode(body)
        limit = aiohttp.ClientTimeout(total=timeout or self._timeout, connect=self._timeout)
        fresh_login = False
        for attempt in range(4):
            try:
                status, raw = await self._send(data, limit)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError) as e:
                # bitcoind closes connections that idle for 30 s; the next one tells whether it is there.
                if attempt:
                    raise self._unreachable(e) from e
                continue
            except TimeoutError as e:
                raise BackendUnreachable(f"the Bitcoin node at {self.url} did not answer in time") from e
            except (aiohttp.ClientError, OSError) as e:
                raise self._unreachable(e) from e
            if status in (401, 403):
                if status == 403 or fresh_login or isinstance(self._login, PasswordLogin):
                    raise self._refused(status)
                fresh_login = True
                self._header = None
                continue
            if status == 503:  # its work queue is full
                await asyncio.sleep(0.05 * 2**attempt)
                continue
            try:
                return _decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
                raise BackendError(f"the Bitcoin node at {self.url} answered with HTTP status {status}, no JSON") from e
        raise BackendUnreachable(f"the Bitcoin node at {self.url} is overloaded")

    async def _send(self, data: bytes, limit: aiohttp.ClientTimeout) -> tuple[int, bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=20)
            self._session = aiohttp.ClientSession(connector=connector)
        if self._header is None:
            self._header = self._authorization()
        headers = {"Authorization": self._header, "Content-Type": "application/json"}
        async with self._session.post(self.url, data=data, headers=headers, timeout=limit) as response:
            return response.status, await response.read()

    def _authorization(self) -> str:
        if isinstance(self._login, PasswordLogin):
            pair = f"{self._login.user}:{self._login.password}".encode()
        else:
            try:
                pair = self._login.path.read_bytes().strip()
            except FileNotFoundError as e:
                raise BackendUnreachable(
                    f"no cookie file at {self._login.path}: start bitcoind, or name the right data directory"
                ) from e
            except OSError as e:
                raise BackendAuthFailed(f"the cookie file {self._login.path} can't be read: {e.strerror}") from e
        return "Basic " + base64.b64encode(pair).decode()

    def _unreachable(self, cause: BaseException) -> BackendUnreachable:
        # A restarted bitcoind has another cookie, and perhaps another port in another configuration.
        self._header = None
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
        advice = "check that it runs and that the address is right"
        return BackendUnreachable(f"the Bitcoin node at {self.url} does not answer ({reason}): {advice}")

    def _refused(self, status: int) -> BackendAuthFailed:
        if status == 403:
            return BackendAuthFailed(f"the Bitcoin node at {self.url} does not allow this machine: see its rpcallowip")
        how = "user and password" if isinstance(self._login, PasswordLogin) else f"the cookie file {self._login.path}"
        return BackendAuthFailed(f"the Bitcoin node at {self.url} refused the login: check {how}")


def _result(method: str, answer: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    error = answer.get("error")
    if error is not None:
        number, message = int(error.get("code", 0)), str(error.get("message", ""))
        if number == _WARMING_UP:
            raise BackendUnreachable(f"the Bitcoin node is starting: {message}")
        raise RpcError(method, number, message)
    if "result" not in answer:
        raise BackendError(f"the Bitcoin node gave no answer to {method}")
    return answer["result"]
