"""Files that parties and arbiters show each other: kept encrypted, given to whom they were shown, fetched in parts.

A content is named by its hash and never becomes a path: it lies in the database, in parts, under a key that is made
from the node's seed. A message only announces it. Whoever was shown one asks its owner for part after part, with a
request that it signs with its persona; what has arrived stays, so a broken transfer goes on where it was. Only the
whole is believed: by its hash, and only if it is of the type that it claims.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from p2pnode.channels import Channels, PeerRefused, PeerUnable, TimedOut, Unreachable
from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.database import Database
from p2pnode.notices import Notices
from protocol.attachment import (
    PART_BYTES,
    Attachment,
    BadAttachment,
    Fetch,
    check_content,
    describe,
    parts_of,
)
from protocol.contact import ContactRecord
from protocol.errors import DataCorrupt, Malformed, NotFound, PeerRefusal
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Kind, digest, open_envelope, pack, unpack

ATTACHMENT_SERVICE: Final = 5
MOST_WANTED: Final = 40_000_000
"""Bytes that one persona may show us; what is over it is not fetched."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 120.0
PART_SECONDS: Final = 30.0

log = logging.getLogger(__name__)

Ask = Callable[[ContactRecord, bytes], Awaitable[bytes]]
"""Asks a node's attachment service. Raises what `channels.request` raises."""
PersonaKey = Callable[[bytes], SigningKey]


class NotShown(PeerRefusal):
    """That file was never shown to you, or its owner has it no more."""

    code = 2181


class Wanted(Struct, frozen=True):
    """A file that `persona` has shown to our persona `own`."""

    attachment: Attachment
    persona: bytes
    own: bytes


class AttachmentStore:
    """Contents and who may have them, in SQLite. Its methods join the transaction that is open."""

    def __init__(self, database: Database, secret: bytes) -> None:
        """`secret` (32 bytes) encrypts what lies on the disk."""
        self.database = database
        self._db = database.connection
        self._secret = secret

    def add(self, data: bytes, name: str) -> Attachment:
        """Keep a file of our own. Raises NotAttachable."""
        attachment = describe(data, name)
        with self.database.transaction():
            for part in range(parts_of(len(data))):
                self.put_part(attachment, part, data[part * PART_BYTES : (part + 1) * PART_BYTES])
            self.complete(attachment)
        return attachment

    def put_part(self, attachment: Attachment, part: int, data: bytes) -> None:
        """Keep one part; again is fine."""
        sealed = self._box(attachment).encrypt(data, _nonce(part)).ciphertext
        self._db.execute(
            "INSERT OR IGNORE INTO attachment_parts (content, size, part, data) VALUES (?, ?, ?, ?)",
            (attachment.content, attachment.size, part, sealed),
        )

    def missing(self, attachment: Attachment) -> list[int]:
        """The parts that are not here."""
        rows = self._db.execute(
            "SELECT part FROM attachment_parts WHERE content = ? AND size = ?", (attachment.content, attachment.size)
        )
        here = {part for (part,) in rows}
        return [part for part in range(parts_of(attachment.size)) if part not in here]

    def complete(self, attachment: Attachment) -> None:
        """All parts are here. Raises BadAttachment when they are not what was announced; then they are dropped."""
        try:
            check_content(attachment, self._joined(attachment.content, attachment.size))
        except BadAttachment:
            if not self.has(attachment.content):
                self._db.execute("DELETE FROM attachment_parts WHERE content = ?", (attachment.content,))
            raise
        row = (attachment.content, attachment.size)
        self._db.execute("INSERT OR IGNORE INTO attachment_contents VALUES (?, ?)", row)

    def has(self, content: bytes) -> bool:
        """Whether the whole content is here, and verified."""
        return self._size(content) is not None

    def content(self, content: bytes) -> bytes:
        """A whole content. Raises NotFound, DataCorrupt."""
        size = self._size(content)
        if size is None:
            raise NotFound("that file is not on this node")
        return self._joined(content, size)

    def part(self, content: bytes, part: int) -> bytes | None:
        """One part of a content that is here, or None. Raises DataCorrupt."""
        size = self._size(content)
        row = self._db.execute(
            "SELECT data FROM attachment_parts WHERE content = ? AND size = ? AND part = ?", (content, size, part)
        ).fetchone()
        return None if row is None or size is None else self._open(content, size, part, row[0])

    def _size(self, content: bytes) -> int | None:
        row = self._db.execute("SELECT size FROM attachment_contents WHERE content = ?", (content,)).fetchone()
        return None if row is None else int(row[0])

    def _joined(self, content: bytes, size: int) -> bytes:
        rows = self._db.execute(
            "SELECT part, data FROM attachment_parts WHERE content = ? AND size = ? ORDER BY part", (content, size)
        )
        return b"".join(self._open(content, size, part, data) for part, data in rows.fetchall())

    def _open(self, content: bytes, size: int, part: int, sealed: bytes) -> bytes:
        try:
            return bytes(_box(self._secret, content, size).decrypt(sealed, _nonce(part)))
        except CryptoError as e:
            raise DataCorrupt("an attachment in the database is damaged: restore it from a backup") from e

    def show_to(self, content: bytes, persona: bytes) -> None:
        """Remember that we have shown a content to a persona."""
        self._db.execute("INSERT OR IGNORE INTO attachment_shown VALUES (?, ?)", (content, persona))

    def was_shown(self, content: bytes, persona: bytes) -> bool:
        """Whether we have."""
        row = self._db.execute("SELECT 1 FROM attachment_shown WHERE content = ? AND persona = ?", (content, persona))
        return row.fetchone() is not None

    def want(self, attachment: Attachment, persona: bytes, own: bytes) -> None:
        """Somebody has shown us a file: fetch it, unless it has shown us more than enough."""
        rows = self._db.execute("SELECT raw FROM attachment_wanted WHERE persona = ?", (persona,))
        total = sum(_read(raw).size for (raw,) in rows)
        if total + attachment.size > MOST_WANTED:
            log.info("a file is not fetched: its owner has shown us %d bytes already", total)
            return
        self._db.execute(
            "INSERT OR IGNORE INTO attachment_wanted VALUES (?, ?, ?, ?, 'wanted')",
            (attachment.content, persona, own, pack(attachment)),
        )

    def wanted(self) -> list[Wanted]:
        """What is still to be fetched."""
        rows = self._db.execute("SELECT raw, persona, own FROM attachment_wanted WHERE state = 'wanted'")
        return [Wanted(_read(raw), persona, own) for raw, persona, own in rows]

    def done(self, wanted: Wanted, state: str) -> None:
        """Fetched (`here`) or not worth it (`refused`)."""
        self._db.execute(
            "UPDATE attachment_wanted SET state = ? WHERE content = ? AND persona = ?",
            (state, wanted.attachment.content, wanted.persona),
        )

    def _box(self, attachment: Attachment) -> SecretBox:
        return _box(self._secret, attachment.content, attachment.size)


class AttachmentService:
    """What answers others: a part of a content, to whom it was shown."""

    def __init__(self, store: AttachmentStore, owns: Callable[[bytes], bool], network: Network) -> None:
        """`owns` tells our personas."""
        self._store = store
        self._owns = owns
        self._network = network

    async def answer(self, _node: bytes, raw: bytes) -> bytes:
        """One part. Raises Malformed, BadSignature, NotShown."""
        envelope = open_envelope(raw, self._network, limit=Kind.FETCH.limit)
        if envelope.kind != Kind.FETCH:
            raise Malformed("not a request for a file")
        fetch = unpack(envelope.body, Fetch, limit=Kind.FETCH.limit)
        if not self._owns(fetch.owner) or not self._store.was_shown(fetch.content, envelope.signer):
            raise NotShown
        data = self._store.part(fetch.content, fetch.part)
        if data is None:
            raise NotShown
        return data


class Fetcher:
    """Fetches what was shown to us, one file after the other, again and again until it is here."""

    def __init__(
        self,
        store: AttachmentStore,
        contacts: Contacts,
        ask: Ask,
        key: PersonaKey,
        notices: Notices,
        network: Network,
        clock: Clock,
    ) -> None:
        """`key` gives our persona's key, `ask` reaches another node's attachment service."""
        self._store = store
        self._contacts = contacts
        self._ask = ask
        self._key = key
        self._notices = notices
        self._network = network
        self._clock = clock
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="attachments")

    def kick(self) -> None:
        """There may be something to fetch, or somebody may be reachable now."""
        self._kicked.set()

    async def close(self) -> None:
        """Stop; what has arrived stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._kicked.clear()
            complete = True
            for wanted in self._store.wanted():
                try:
                    complete &= await self._fetch(wanted)
                except Exception:
                    log.exception("a file could not be fetched")
                    complete = False
            if complete:
                pause = FIRST_PAUSE
                await self._kicked.wait()
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._kicked.wait()
            except TimeoutError:
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _fetch(self, wanted: Wanted) -> bool:
        """All parts that are missing; False when its owner can't be reached now."""
        attachment = wanted.attachment
        contact = self._contacts.known(wanted.persona)
        if contact is None:
            contact = await self._contacts.refresh(wanted.persona, self._clock.now())
        if contact is None:
            return False
        for part in self._store.missing(attachment):
            body = pack(Fetch(wanted.persona, attachment.content, part))
            request = self._key(wanted.own).seal(Kind.FETCH, self._network, body)
            try:
                data = await self._ask(contact, request.raw)
            except PeerRefused as e:
                log.info("a file is not given to us: its owner's node answered with code %d", e.peer_code)
                return False
            except (Unreachable, TimedOut, PeerUnable) as e:
                log.info("a file has to wait: %s", e.detail)
                return False
            if len(data) != min(PART_BYTES, attachment.size - part * PART_BYTES):
                return self._finish(wanted, "refused")
            self._store.put_part(attachment, part, data)
        try:
            self._store.complete(attachment)
        except BadAttachment as e:
            log.info("a file is refused: %s", e.detail)
            return self._finish(wanted, "refused")
        return self._finish(wanted, "here")

    def _finish(self, wanted: Wanted, state: str) -> bool:
        self._store.done(wanted, state)
        self._notices.add(f"attachment-{state}", self._clock.now())
        self._notices.wake()
        return True


async def ask_for_file(channels: Channels, contact: ContactRecord, request: bytes) -> bytes:
    """`Ask` over channels."""
    return await channels.request(
        contact.contact.node,
        contact.contact.addresses,
        ATTACHMENT_SERVICE,
        request,
        timeout=PART_SECONDS,
        reply_limit=PART_BYTES,
        relays=contact.relays,
    )


def _box(secret: bytes, content: bytes, size: int) -> SecretBox:
    """A key for each content that is announced; so a part's number is nonce enough."""
    return SecretBox(digest(b"p2pnode/attachment-at-rest", secret, content, size.to_bytes(8, "big")))


def _nonce(part: int) -> bytes:
    return part.to_bytes(SecretBox.NONCE_SIZE, "big")


def _read(raw: bytes) -> Attachment:
    return unpack(raw, Attachment, limit=1_000)
