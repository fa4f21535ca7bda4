"""Someone between a light client and a Bitcoin node who may change, swallow or invent what the node says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from escrow.chain.p2pwire import Frames, Message, frame
from protocol.types import Network

Tamper = Callable[[Message], Message | None]


def honest(message: Message) -> Message | None:
    return message


class GoBetween:
    """Listens on a port of its own; `tamper` decides what becomes of each message of the node, `asked` records ours."""

    def __init__(self, port: int, tamper: Tamper = honest) -> None:
        self.tamper = tamper
        self.asked: list[Message] = []
        self.port = 0
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection; `start` opens the same port again."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writers.clear()
        self._tasks.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, node_writer}
        for work in (self._pass_on(reader, node_writer, self._ask), self._pass_on(node_reader, writer, self._lie)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _ask(self, message: Message) -> Message | None:
        self.asked.append(message)
        return message

    def _lie(self, message: Message) -> Message | None:
        return self.tamper(message)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Tamper) -> None:
        frames = Frames(Network.REGTEST)
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                for message in frames.feed(data):
                    changed = change(message)
                    if changed is not None:
                        writer.write(frame(Network.REGTEST, changed.command, changed.body))
        writer.close()


@asynccontextmanager
async def between(port: int, tamper: Tamper = honest) -> AsyncIterator[GoBetween]:
    made = GoBetween(port, tamper)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
