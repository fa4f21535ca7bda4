"""Files between two nodes: who gets them, in parts, over interruptions, and what false ones do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from p2pnode.attachments import MOST_WANTED, AttachmentService, AttachmentStore, Fetcher, NotShown, Wanted
from p2pnode.channels import PeerRefused, Unreachable
from p2pnode.contacts import Contacts
from p2pnode.database import Database
from p2pnode.delivery import local_contact
from p2pnode.notices import Notices
from protocol.attachment import PART_BYTES, Attachment, Fetch, content_hash, describe
from protocol.contact import CONTACT_WORK_BITS, ContactRecord
from protocol.errors import NotFound, P2PError, PeerViolation
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.pictures import png
from tests.world import NOW, FixedClock

NETWORK = Network.REGTEST
LARGE = png(pad=179_000)


class Keeper:
    """One node's files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key = SigningKey(name.encode().ljust(32, b"\0"))
        self.path = folder / f"{name}.db"
        self.database = Database(self.path)
        self.store = AttachmentStore(self.database, self.key.seed)
        self.notices = Notices(self.database)
        self.contacts = Contacts(self.database, NETWORK, self.lookup)
        self.service = AttachmentService(self.store, lambda persona: persona == self.key.public, NETWORK)

    async def lookup(self, persona: bytes) -> list[Envelope]:
        del persona
        return []

    @property
    def persona(self) -> bytes:
        return self.key.public

    def knows(self, other: Keeper) -> None:
        record = ContactRecord(other.persona, 1, local_contact(bytes(32), "127.0.0.1", 1), (), NOW - 10, NOW + 1_000)
        body = find_work(Kind.CONTACT, NETWORK, pack(record), CONTACT_WORK_BITS)
        self.contacts.remember(other.key.seal(Kind.CONTACT, NETWORK, body), NOW)

    def fetcher(self, ask: Callable[[ContactRecord, bytes], Awaitable[bytes]]) -> Fetcher:
        return Fetcher(self.store, self.contacts, ask, lambda _: self.key, self.notices, NETWORK, FixedClock("keeper"))

    def was_told(self, topic: str) -> bool:
        return any(notice.topic == topic for notice in self.notices.after(0))


class Line:
    """Carries requests to a node; it can break."""

    def __init__(self, to: Keeper) -> None:
        self.to = to
        self.breaks_after: int | None = None
        self.carried = 0

    async def ask(self, contact: ContactRecord, request: bytes) -> bytes:
        del contact
        if self.breaks_after is not None and self.carried >= self.breaks_after:
            raise Unreachable("cut")
        self.carried += 1
        try:
            return await self.to.service.answer(bytes(32), request)
        except P2PError as e:
            raise PeerRefused(e.code) from e


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Keeper, Keeper]:
    owner, reader = Keeper(tmp_path, "owner"), Keeper(tmp_path, "reader")
    reader.knows(owner)
    return owner, reader


def shown(owner: Keeper, reader: Keeper, data: bytes = LARGE) -> Wanted:
    attachment = owner.store.add(data, "receipt.png")
    owner.store.show_to(attachment.content, reader.persona)
    reader.store.want(attachment, owner.persona, reader.persona)
    return reader.store.wanted()[0]


async def test_file_comes_in_parts_and_is_the_one_that_was_announced(pair: tuple[Keeper, Keeper]) -> None:
    owner, reader = pair
    wanted, line = shown(owner, reader), Line(pair[0])
    assert await reader.fetcher(line.ask)._fetch(wanted)
    assert reader.store.content(wanted.attachment.content) == LARGE
    assert line.carried == -(-len(LARGE) // PART_BYTES) == 3
    assert reader.store.wanted() == []
    assert reader.was_told("attachment-here")


async def test_broken_transfer_goes_on_where_it_was_also_after_a_restart(
    pair: tuple[Keeper, Keeper], tmp_path: Path
) -> None:
    owner, reader = pair
    wanted, line = shown(owner, reader), Line(pair[0])
    line.breaks_after = 2
    assert not await reader.fetcher(line.ask)._fetch(wanted)
    reader.database.close()
    again = Keeper(tmp_path, "reader")
    line.breaks_after = None
    assert await again.fetcher(line.ask)._fetch(again.store.wanted()[0])
    assert again.store.content(wanted.attachment.content) == LARGE
    assert line.carried == 3, "no part was asked for twice"


async def test_nobody_else_gets_it(pair: tuple[Keeper, Keeper], tmp_path: Path) -> None:
    """Not a stranger that knows the hash, not with another's request, not from another node."""
    owner, reader = pair
    wanted = shown(owner, reader)
    content = wanted.attachment.content
    stranger = Keeper(tmp_path, "stranger")
    own = pack(Fetch(owner.persona, content, 0))
    with pytest.raises(NotShown):
        await owner.service.answer(bytes(32), stranger.key.seal(Kind.FETCH, NETWORK, own).raw)
    good = reader.key.seal(Kind.FETCH, NETWORK, own)
    forged = good.raw.replace(reader.persona, stranger.persona)
    with pytest.raises(PeerViolation):
        await owner.service.answer(bytes(32), forged)
    # The owner's node can't use what it was sent to ask a third one in the reader's name.
    stranger.store.add(LARGE, "x")
    stranger.store.show_to(content, reader.persona)
    with pytest.raises(NotShown):
        await stranger.service.answer(bytes(32), good.raw)
    with pytest.raises(NotShown):
        await owner.service.answer(
            bytes(32), reader.key.seal(Kind.FETCH, NETWORK, pack(Fetch(owner.persona, content, 9))).raw
        )


@pytest.mark.parametrize(
    "claim",
    [
        Attachment(content_hash(LARGE), len(LARGE) - 1, "image/png", "short.png"),
        Attachment(content_hash(LARGE), len(LARGE) + PART_BYTES, "image/png", "long.png"),
        Attachment(content_hash(LARGE), len(LARGE), "application/pdf", "type.pdf"),
        Attachment(content_hash(b"other"), len(LARGE), "image/png", "hash.png"),
    ],
    ids=lambda a: a.name,
)
async def test_file_that_is_not_what_it_claims_is_dropped(pair: tuple[Keeper, Keeper], claim: Attachment) -> None:
    owner, reader = pair
    owner.store.add(LARGE, "x.png")
    owner.store.show_to(claim.content, reader.persona)
    reader.store.want(claim, owner.persona, reader.persona)
    line = Line(owner)

    async def any_content(contact: ContactRecord, request: bytes) -> bytes:
        del contact, request
        return LARGE[line.carried * PART_BYTES :][:PART_BYTES]

    ask = any_content if claim.name == "hash.png" else line.ask
    done = await reader.fetcher(ask)._fetch(reader.store.wanted()[0])
    assert not reader.store.has(claim.content)
    if done:
        assert reader.was_told("attachment-refused")
        assert reader.store.wanted() == []


async def test_false_announcement_does_not_touch_the_true_content(pair: tuple[Keeper, Keeper]) -> None:
    """Whoever knows the hash of our evidence could make us drop it."""
    owner, reader = pair
    mine = reader.store.add(LARGE, "mine.png")
    for claim in (
        Attachment(mine.content, 5, "image/png", "a.png"),
        Attachment(mine.content, mine.size, "application/pdf", "b.pdf"),
    ):
        reader.store.want(claim, owner.persona, reader.persona)
        for wanted in reader.store.wanted():

            async def lie(contact: ContactRecord, request: bytes) -> bytes:
                del contact, request
                return b"12345"

            await reader.fetcher(lie)._fetch(wanted)
        assert reader.store.content(mine.content) == LARGE


def test_flood_of_files_is_not_fetched(pair: tuple[Keeper, Keeper]) -> None:
    owner, reader = pair
    size = 4_000_000
    for number in range(MOST_WANTED // size + 5):
        claim = Attachment(content_hash(bytes([number])), size, "image/png", "x.png")
        reader.store.want(claim, owner.persona, reader.persona)
    assert sum(w.attachment.size for w in reader.store.wanted()) <= MOST_WANTED


def test_files_lie_encrypted_on_the_disk(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, "keeper")
    secret = b"IBAN DE02120300000000202051 Sally Seller\n" * 50
    attachment = keeper.store.add(secret, "statement.txt")
    keeper.database.close()
    assert b"Sally Seller" not in keeper.path.read_bytes()
    again = Keeper(tmp_path, "keeper")
    assert again.store.content(attachment.content) == secret
    other = AttachmentStore(again.database, bytes(32))
    with pytest.raises(P2PError):
        other.content(attachment.content)
    with pytest.raises(NotFound):
        again.store.content(describe(b"none", "x").content)
