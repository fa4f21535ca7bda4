"""Someone between a client and an Electrum server who may change, swallow or invent what the server says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from tests.regtest.electrumx_node import ElectrumX

Said = dict[str, Any]
Lie = Callable[[str, list[Any], Said], Said | bytes | None]
"""Gets the method and parameters of a question (of a notification: its own) and the honest message; returns what is
sent on: a message, bytes as they are, or nothing."""

_LIMIT = 32_000_000


def honest(method: str, params: list[Any], said: Said) -> Said | bytes | None:
    del method, params
    return said


class ElectrumBetween:
    """Listens on a port of its own."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.lie: Lie = honest
        self.asked: list[tuple[str, list[Any]]] = []
        self.open = 0
        self.most_open = 0
        self.port = 0
        self._target = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'ssl' if self._tls else 'tcp'}://localhost:{self.port}"

    async def start(self) -> None:
        """Serve; after `stop`, at the same port again."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, limit=_LIMIT, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """End every connection; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writers.clear()
        self._tasks.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=_LIMIT)
        except OSError:
            writer.close()
            return
        self._writers.add(back)
        questions: dict[int, tuple[str, list[Any]]] = {}
        for work in (self._ask(reader, back, questions), self._tell(there, writer, questions)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, questions: dict[int, tuple[str, list[Any]]]
    ) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                said = msgspec.json.decode(line)
                questions[said["id"]] = (said["method"], said["params"])
                self.asked.append((said["method"], said["params"]))
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                writer.write(line)
        writer.close()

    async def _tell(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, questions: dict[int, tuple[str, list[Any]]]
    ) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                said = msgspec.json.decode(line)
                if "id" in said:
                    self.open -= 1
                method, params = questions.pop(said["id"]) if "id" in said else (said["method"], said["params"])
                changed = self.lie(method, params, said)
                if changed is not None:
                    writer.write(changed if isinstance(changed, bytes) else msgspec.json.encode(changed) + b"\n")
        writer.close()


@asynccontextmanager
async def between_electrum(server: ElectrumX, tls: ssl.SSLContext | None = None) -> AsyncIterator[ElectrumBetween]:
    made = ElectrumBetween(server.port, tls)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
