"""Files that a trade's parties show each other and an arbiter: what one may be, and whether a file is what it claims.

Only pictures, PDF and plain text: formats that are looked at, not unpacked, so nothing in them grows when it is opened.
A name is for the reader; it never becomes a path. Contents are named by hash, so what was shown can't be altered later.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct

from protocol.errors import PeerViolation, UserError
from protocol.types import Hash32, PersonaId
from protocol.wire import digest

MAX_ATTACHMENT: Final = 4_000_000
"""Bytes of the largest attachment."""
MAX_ATTACHMENTS: Final = 16
"""Attachments of one message."""

MediaType = Literal["image/png", "image/jpeg", "image/webp", "application/pdf", "text/plain"]
MEDIA_TYPES: Final[tuple[MediaType, ...]] = get_args(MediaType)

# No separators, control characters or leading dot; at least one character that is neither dot nor space.
_NAME: Final = r"\A[\w\-()\[\]+,@&'][\w\-()\[\]+,@&'. ]{0,79}\Z"
FileName = Annotated[str, Meta(pattern=_NAME, max_length=80)]

_TEXT_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ZIP_END: Final = b"PK\x05\x06"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that is no stuffed byte and no restart within compressed data."""
_JPEG_EOI: Final = 0xD9


PART_BYTES: Final = 60_000
"""A content travels in parts of so many bytes; the last may be shorter."""


class BadAttachment(PeerViolation):
    """The attachment's content is not what its description says."""

    code = 2180


class NotAttachable(UserError):
    """Only whole PNG, JPEG, WebP, PDF and plain text files of at most 4 MB can be attached.

    Some phones put more behind the end of a picture: save it anew, or take a screenshot of it.
    """

    code = 3080


class Attachment(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file by its content's hash; `size` in bytes."""

    content: Hash32
    size: Annotated[int, Meta(ge=1, le=MAX_ATTACHMENT)]
    media: MediaType
    name: FileName


class Fetch(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Asks `owner` for one part of a content that it has shown to the signer.

    It names the owner, so a node that gets it can't use it to ask another.
    """

    owner: PersonaId
    content: Hash32
    part: Annotated[int, Meta(ge=0, le=MAX_ATTACHMENT // PART_BYTES)]


def parts_of(size: int) -> int:
    """How many parts a content of `size` bytes has."""
    return -(-size // PART_BYTES)


def content_hash(data: bytes) -> bytes:
    """The name of a content."""
    return digest(b"p2pnode/attachment", data)


def media_of(data: bytes) -> MediaType | None:
    """The type of a content by its own bytes; None for what may not be attached.

    One file is one thing: what is an archive as well, does not reach its own end, or goes on behind it, is none.
    """
    if _is_archive(data):
        return None
    if data.startswith(_PNG):
        return "image/png" if _png_end(data) == len(data) else None
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg" if _jpeg_end(data) == len(data) else None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = 8 + int.from_bytes(data[4:8], "little")
        return "image/webp" if len(data) in (size, size + size % 2) else None
    if data.startswith(b"%PDF-"):
        return "application/pdf" if data.rstrip(b"\0 \t\r\n").endswith(b"%%EOF") else None
    return "text/plain" if _is_text(data) else None


def _is_archive(data: bytes) -> bool:
    """Whether a ZIP ends with the file, whatever it begins with."""
    end = data.rfind(_ZIP_END)
    # The end of an archive names the length of the comment behind it: so a chance sequence of bytes is none.
    return 0 <= end <= len(data) - 22 and end + 22 + int.from_bytes(data[end + 20 : end + 22], "little") == len(data)


def _png_end(data: bytes) -> int | None:
    """Where the chunk IEND ends; None where there is none."""
    at = len(_PNG)
    while at + 12 <= len(data):
        kind, at = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return at
    return None


def _jpeg_end(data: bytes) -> int | None:
    """Where the first picture ends; None where it does not. Segments tell their length, compressed data does not."""
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _JPEG_EOI:
            return at
        at += int.from_bytes(data[at : at + 2], "big")
    return None


def _is_text(data: bytes) -> bool:
    try:
        return _TEXT_CONTROLS.search(data.decode()) is None
    except UnicodeDecodeError:
        return False


def safe_name(name: str) -> str:
    """A name that may travel, as close to `name` as possible."""
    kept = re.sub(r"[^\w\-()\[\]+,@&'. ]", "_", name)[-80:].lstrip(". ")
    return kept or "file"


def describe(data: bytes, name: str) -> Attachment:
    """The description of our own file. Raises NotAttachable."""
    media = media_of(data)
    if media is None or not 1 <= len(data) <= MAX_ATTACHMENT:
        raise NotAttachable
    return Attachment(content_hash(data), len(data), media, safe_name(name))


def check_content(attachment: Attachment, data: bytes) -> None:
    """Whether `data` is what was described. Raises BadAttachment."""
    if len(data) != attachment.size or content_hash(data) != attachment.content:
        raise BadAttachment("the attachment is not the one that was announced: its content differs")
    if media_of(data) != attachment.media:
        raise BadAttachment(f"the attachment claims to be {attachment.media} and is not")
