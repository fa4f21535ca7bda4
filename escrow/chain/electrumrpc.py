"""The Electrum protocol's transport: JSON-RPC 2.0, one object per line, over TCP or TLS.

Source: the protocol's documentation (electrumx.readthedocs.io, versions 1.4 to 1.6). One task reads; answers go to whom
they belong, notifications to one callback. Lines are limited before they are parsed.
Whom to trust over TLS, `tls` says.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from escrow.chain.base import BackendError, BackendUnreachable
from escrow.chain.tls import Trust, advice, context_for, fingerprint, pinned, shown_by, unreadable
from protocol.errors import ChainError

_log = logging.getLogger(__name__)

MAX_LINE: Final = 16_000_000
"""Bytes of an answer: a block-sized transaction in hexadecimal, and some."""
_AT_ONCE: Final = 200
"""Questions that may be open at a time; servers limit them."""
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class ElectrumError(BackendError):
    """The Electrum server answered a question with an error."""

    code = 4017

    def __init__(self, method: str, message: str) -> None:
        """Keep the server's words apart from the sentence."""
        super().__init__(f"the Electrum server refused {method}: {message[:200]}")
        self.method = method
        self.message = message


class ElectrumRpc:
    """One connection; made anew after it broke."""

    def __init__(self, name: str, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], timeout: float) -> None:
        self.name = name
        self.on_notification: Callable[[str, list[Any]], None] = lambda _method, _params: None
        self.on_end: Callable[[], None] = lambda: None
        self.ended: ChainError | None = None
        self._reader, self._writer = streams
        self._timeout = timeout
        self._open: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._next = 0
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._task = asyncio.create_task(self._read(), name=f"electrum {name}")

    @classmethod
    async def connect(cls, host: str, port: int, *, tls: bool, trust: Trust, timeout: float) -> ElectrumRpc:
        """Connect. Raises BackendUnreachable."""
        name = f"{host}:{port}"
        try:
            context = await asyncio.to_thread(context_for, trust) if tls else None
        except OSError as e:
            raise unreadable(trust, e) from e
        try:
            async with asyncio.timeout(timeout):
                streams = await asyncio.open_connection(host, port, ssl=context, limit=MAX_LINE)
        except ssl.SSLCertVerificationError as e:
            told = f"{e.verify_message}; {advice(await shown_by(host, port))}"
            raise BackendUnreachable(f"the certificate of the Electrum server {name} is not trusted: {told}") from e
        except ssl.SSLError as e:
            raise BackendUnreachable(f"the Electrum server {name} does not speak TLS here ({e.reason})") from e
        except (OSError, TimeoutError) as e:
            reason = "no answer in time" if isinstance(e, TimeoutError) else e.strerror or type(e).__name__
            raise BackendUnreachable(f"the Electrum server {name} can't be reached ({reason})") from e
        shown = streams[1].get_extra_info("ssl_object")
        certificate = None if shown is None else shown.getpeercert(binary_form=True)
        if tls and not pinned(trust, certificate):
            streams[1].close()
            seen = "none" if certificate is None else fingerprint(certificate)
            raise BackendUnreachable(f"the certificate of the Electrum server {name} is not the pinned one: {seen}")
        return cls(name, streams, timeout)

    async def close(self) -> None:
        """Hang up."""
        self._end(BackendUnreachable(f"the Electrum server {self.name} was let go"))
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        with suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, method: str, *params: object) -> Any:  # noqa: ANN401 - JSON
        """The result of one question. Raises ElectrumError, BackendUnreachable."""
        async with self._slots:
            if self.ended is not None:
                raise self.ended
            number, self._next = self._next, self._next + 1
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._open[number] = (method, answer)
            self._writer.write(_encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + b"\n")
            try:
                async with asyncio.timeout(self._timeout):
                    return await answer
            except TimeoutError as e:
                error = BackendUnreachable(f"the Electrum server {self.name} did not answer {method} in time")
                self._end(error)
                raise error from e
            finally:
                self._open.pop(number, None)

    async def calls(self, method: str, params: Sequence[Sequence[object]]) -> list[Any]:
        """The results of many questions of a kind, asked at once."""
        return list(await asyncio.gather(*(self.call(method, *p) for p in params)))

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._sort(line)
            self._end(BackendUnreachable(f"the Electrum server {self.name} hung up"))
        except ValueError:
            self._end(BackendError(f"the Electrum server {self.name} sent an answer over {MAX_LINE:,} bytes"))
        except (BackendError, OSError) as e:
            detail = e.detail if isinstance(e, BackendError) else e.strerror
            self._end(BackendUnreachable(f"the connection to the Electrum server {self.name} broke ({detail})"))

    def _sort(self, line: bytes) -> None:
        try:
            message = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise BackendError("it sent something that is no JSON") from e
        if not isinstance(message, dict):
            raise BackendError("it sent something that is no answer")
        if "method" in message:
            params = message.get("params")
            self.on_notification(str(message["method"]), params if isinstance(params, list) else [])
            return
        number = message.get("id")
        method, answer = self._open.get(number, ("", None)) if isinstance(number, int) else ("", None)
        if answer is None or answer.done():
            return
        if (error := message.get("error")) is not None:
            text = error.get("message") if isinstance(error, dict) else error
            answer.set_exception(ElectrumError(method, str(text)))
        else:
            answer.set_result(message.get("result"))

    def _end(self, error: ChainError) -> None:
        if self.ended is not None:
            return
        _log.info("%s", error.detail)
        self.ended = error
        self._writer.close()
        for _, answer in self._open.values():
            if not answer.done():
                answer.set_exception(error)
        self.on_end()
