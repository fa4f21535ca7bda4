"""A file on its way over real sockets, through a line that is cut in the middle of a part, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest_asyncio

from p2pnode.attachments import ATTACHMENT_SERVICE, Fetcher, ask_for_file
from p2pnode.channels import Channels, Service
from p2pnode.clock import SystemClock
from p2pnode.delivery import local_contact
from protocol.attachment import PART_BYTES, parts_of
from protocol.contact import CONTACT_WORK_BITS, ContactRecord
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Kind, pack
from protocol.work import find_work
from tests.network.test_attachments import Keeper
from tests.pictures import png
from tests.world import NOW

NETWORK = Network.REGTEST
FILE = png(pad=3_000_000)
PATIENCE = 30.0


class Line:
    """A TCP relay that cuts every connection after so many bytes, or takes none at all."""

    def __init__(self, to: tuple[str, int]) -> None:
        self.to = to
        self.budget: int | None = None
        self.cuts = 0
        self.carried = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def listen(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self.to)
        except OSError:
            writer.close()
            return
        self._open |= {writer, back}
        await asyncio.gather(self._copy(reader, back, counts=False), self._copy(there, writer, counts=True))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(10_000):
                if counts:
                    self.carried += len(data)
                    if self.budget is not None and self.carried >= self.budget:
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Everything that is open ends at once, as when a cable is pulled."""
        self.cuts += 1
        self.budget = None
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()


class Site:
    """A node's files behind real channels."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.keeper = Keeper(folder, name)
        self.node = SigningKey(bytes([seed]) * 32)
        self.asked: list[bytes] = []
        service = Service(self._answer, request_bytes=Kind.FETCH.limit, reply_bytes=PART_BYTES)
        self.channels = Channels(self.node, NETWORK, {ATTACHMENT_SERVICE: service}, clock=SystemClock())

    async def _answer(self, node: bytes, raw: bytes) -> bytes:
        self.asked.append(raw)
        return await self.keeper.service.answer(node, raw)

    def fetcher(self) -> Fetcher:
        return self.keeper.fetcher(partial(ask_for_file, self.channels))

    def finds(self, other: Site, host: str, port: int) -> None:
        """Know where the other is reached."""
        contact = local_contact(other.node.public, host, port)
        record = ContactRecord(other.keeper.persona, 1, contact, (), NOW - 10, NOW + 1_000)
        body = find_work(Kind.CONTACT, NETWORK, pack(record), CONTACT_WORK_BITS)
        self.keeper.contacts.remember(other.keeper.key.seal(Kind.CONTACT, NETWORK, body), NOW)


@pytest_asyncio.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site, Line]]:
    owner, reader = Site(tmp_path, "owner", 1), Site(tmp_path, "reader", 2)
    line = Line(await owner.channels.listen("127.0.0.1", 0))
    reader.finds(owner, *await line.listen())
    yield owner, reader, line
    await reader.channels.close()
    await owner.channels.close()
    await line.close()


async def until(done: object, what: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not done():  # type: ignore[operator]
        assert loop.time() < deadline, f"never came to: {what}"
        await asyncio.sleep(0.005)


async def test_file_goes_on_where_it_was_after_each_cut_and_a_restart(
    sites: tuple[Site, Site, Line], tmp_path: Path
) -> None:
    owner, reader, line = sites
    attachment = owner.keeper.store.add(FILE, "scan.png")
    owner.keeper.store.show_to(attachment.content, reader.keeper.persona)
    reader.keeper.store.want(attachment, owner.keeper.persona, reader.keeper.persona)
    total = parts_of(len(FILE))
    line.budget = 1_000_000
    first = reader.fetcher()
    first.start()
    await until(lambda: line.cuts == 1, "the first cut")
    missing = len(reader.keeper.store.missing(attachment))
    assert 0 < missing < total, "it was cut in the middle"
    line.budget = line.carried + 700_000
    first.kick()
    await until(lambda: line.cuts == 2, "the second cut")
    assert len(reader.keeper.store.missing(attachment)) < missing
    await first.close()
    reader.keeper.database.close()
    # Another process, on what lies on the disk.
    reader.keeper = Keeper(tmp_path, "reader")
    second = reader.fetcher()
    second.start()
    await until(lambda: reader.keeper.store.has(attachment.content), "the whole file")
    await second.close()
    assert reader.keeper.store.content(attachment.content) == FILE
    again = len(owner.asked) - len(set(owner.asked))
    assert again <= line.cuts, "only what was on its way at a cut was asked for twice"
    assert len(owner.asked) <= total + line.cuts
