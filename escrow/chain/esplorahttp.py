"""Esplora's transport: small HTTP requests to one server that is not trusted.

Source: Esplora's API.md. Answers are limited in bytes and in time before anything looks at them; redirects, cookies and
proxies of the environment are not followed. A few requests are open at a time. A server that asks for patience
(429 or 503, perhaps with `Retry-After`) is given it: all requests wait, and one that would wait too long fails.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from escrow.chain.base import BackendError, BackendUnreachable
from escrow.chain.tls import Trust, advice, context_for, shown_by, unreadable
from protocol.types import UnixTime

MAX_BLOCK: Final = 4_000_080
"""Bytes of a block at most."""
MAX_JSON: Final = 2_000_000
"""Bytes of any other answer: a page of 25 transactions is far smaller, though single ones are large."""
MAX_TEXT: Final = 10_000
_AT_ONCE: Final = 6
_PATIENCE: Final = 3
"""How often a request is repeated that the server had no time for."""
_PAUSE: Final = 1.0
_NOT_FOUND: Final = 404
_decode = msgspec.json.Decoder(float_hook=Decimal).decode


class EsploraRefused(BackendError):
    """The Esplora server refused a request."""

    code = 4018

    def __init__(self, status: int, message: str) -> None:
        """Keep the server's words apart from the sentence."""
        super().__init__(f"the Esplora server refused a request ({status}): {message[:200]}")
        self.status = status
        self.message = message


class EsploraHttp:
    """A client of one server. Made on any thread, used on one event loop."""

    def __init__(self, url: str, trust: Trust, timeout: float, clock: Callable[[], UnixTime]) -> None:
        """Name the server, such as `https://blockstream.info/api`; nothing is opened yet."""
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        self.name = parts.netloc
        self._where = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = parts.scheme == "https"
        self._trust = trust
        self._timeout = timeout
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._not_before = 0.0

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def json(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """An answer in JSON; None where the server knows no such thing."""
        raw = await self.get(path, MAX_JSON)
        if raw is None:
            return None
        try:
            return _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError) as e:
            raise BackendError(f"the Esplora server {self.name} sent something that is no JSON") from e

    async def text(self, path: str) -> str | None:
        """An answer in a few words."""
        raw = await self.get(path, MAX_TEXT)
        return None if raw is None else raw.decode("ascii", "replace").strip()

    async def get(self, path: str, limit: int) -> bytes | None:
        """An answer of at most `limit` bytes; None for 404. Raises BackendUnreachable, BackendError."""
        return await self._ask("GET", path, None, limit)

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer to what is handed in. Raises EsploraRefused, BackendUnreachable, BackendError."""
        answer = await self._ask("POST", path, body, MAX_JSON)
        if answer is None:
            raise EsploraRefused(_NOT_FOUND, "it does not know this request")
        return answer

    async def _ask(self, method: str, path: str, body: bytes | None, limit: int) -> bytes | None:
        async with self._slots:
            for _ in range(_PATIENCE):
                await self._wait_as_asked()
                status, headers, raw = await self._exchange(method, path, body, limit)
                if status in (429, 503):
                    self._hold(headers.get("Retry-After", ""))
                    continue
                # A server that does not have what is asked for says 404, or 400 with a reason.
                if status == _NOT_FOUND and method == "GET":
                    return None
                if status >= 500:
                    raise BackendUnreachable(f"the Esplora server {self.name} is in trouble (HTTP status {status})")
                if status != 200:
                    raise EsploraRefused(status, raw.decode("utf-8", "replace").strip())
                return raw
        raise BackendUnreachable(f"the Esplora server {self.name} has no time for us (HTTP status 429)")

    async def _wait_as_asked(self) -> None:
        left = self._not_before - asyncio.get_running_loop().time()
        if left > self._timeout:
            raise BackendUnreachable(f"the Esplora server {self.name} asks to wait {left:.0f} s: too many requests")
        if left > 0:
            await asyncio.sleep(left)

    def _hold(self, asked: str) -> None:
        """Keep all requests back for as long as the server asks: seconds, or a date; at most an hour."""
        seconds = _PAUSE
        if asked.isdecimal() and len(asked) < 9:
            seconds = float(asked)
        elif asked:
            seconds = _until(asked, self._clock())
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + min(seconds, 3_600.0))

    async def _exchange(
        self, method: str, path: str, body: bytes | None, limit: int
    ) -> tuple[int, Mapping[str, str], bytes]:
        session = await self._opened()
        try:
            async with session.request(
                method, f"{self.url}{path}", data=body, allow_redirects=False, headers={"Accept-Encoding": "identity"}
            ) as response:
                raw = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    raw += piece
                    if len(raw) > limit:
                        response.close()
                        raise BackendError(f"the Esplora server {self.name} sent an answer over {limit:,} bytes")
                return response.status, response.headers, bytes(raw)
        except aiohttp.ServerFingerprintMismatch as e:
            raise BackendUnreachable(
                f"the certificate of the Esplora server {self.name} is not the pinned one: {e.got.hex(':').upper()}"
            ) from e
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as e:
            told = advice(await shown_by(*self._where))
            raise BackendUnreachable(f"the certificate of the Esplora server {self.name} is not trusted: {told}") from e
        except TimeoutError as e:
            raise BackendUnreachable(f"the Esplora server {self.name} did not answer in time") from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
            raise BackendUnreachable(f"the Esplora server {self.name} can't be reached ({reason})") from e

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls: ssl.SSLContext | aiohttp.Fingerprint | bool = True
            if self._tls and self._trust.pin:
                tls = aiohttp.Fingerprint(self._trust.pin)
            elif self._tls:
                try:
                    tls = await asyncio.to_thread(context_for, self._trust)
                except OSError as e:
                    raise unreadable(self._trust, e) from e
            connector = aiohttp.TCPConnector(limit=_AT_ONCE, ssl=tls, keepalive_timeout=20)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def _until(date: str, now: UnixTime) -> float:
    """Seconds until an HTTP date; a short pause where it does not parse."""
    try:
        return max(_PAUSE, parsedate_to_datetime(date).timestamp() - now)
    except ValueError:
        return _PAUSE
