"""Files from strangers: what may be shown, under which name, and that it is what it claims to be."""

from __future__ import annotations

import gzip
import time
import zipfile
from io import BytesIO

import pytest
from msgspec.structs import replace

from protocol.attachment import (
    MAX_ATTACHMENT,
    Attachment,
    BadAttachment,
    NotAttachable,
    check_content,
    content_hash,
    describe,
    media_of,
    safe_name,
)
from protocol.errors import Malformed
from protocol.wire import pack, unpack
from tests.pictures import EVERY, PDF, jpeg, png, webp

PNG = png()


def bomb() -> bytes:
    """A small file that unpacks to a large one."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1_000_000))
    return buffer.getvalue()


@pytest.mark.parametrize(("media", "data"), EVERY.items())
def test_what_may_be_shown_is_described_by_its_own_bytes(media: str, data: bytes) -> None:
    attachment = describe(data, "proof.bin")
    assert (attachment.media, attachment.size) == (media, len(data))
    check_content(attachment, data)
    assert unpack(pack(attachment), Attachment, limit=1_000) == attachment


@pytest.mark.parametrize(
    "data",
    [b"", bomb(), gzip.compress(bytes(10_000)), b"MZ\x90\x00\x03", b"\x7fELF\x02", b"GIF89a\x00\x01", b"a\x00b",
     b"a\x1b[2Jb", "a\x9b2Jb".encode()],
    ids=["empty", "zip", "gzip", "exe", "elf", "gif", "binary", "escape", "8-bit escape"],
)  # fmt: skip
def test_archives_programs_and_unknown_formats_are_refused(data: bytes) -> None:
    with pytest.raises(NotAttachable):
        describe(data, "proof.png")


def test_size_is_limited_before_anything_is_read() -> None:
    with pytest.raises(NotAttachable):
        describe(PNG + bytes(MAX_ATTACHMENT), "large.png")
    with pytest.raises(Malformed):
        unpack(pack(replace(describe(PNG, "x"), size=MAX_ATTACHMENT + 1)), Attachment, limit=1_000)


def test_content_of_another_type_than_claimed_is_refused() -> None:
    """A page that claims to be a picture would be run by the viewer of the desk."""
    page = b"<script>alert(1)</script>"
    claimed = Attachment(content_hash(page), len(page), "image/png", "cat.png")
    assert media_of(page) == "text/plain"
    with pytest.raises(BadAttachment, match="is not"):
        check_content(claimed, page)


@pytest.mark.parametrize("behind", [bomb(), b"<script>alert(1)</script>", b"MZ\x90\x00", PNG, b"\0\0\0\0PK\x03\x04"])
@pytest.mark.parametrize("media", ["image/png", "image/jpeg", "image/webp", "application/pdf"])
def test_file_that_is_two_things_is_refused(media: str, behind: bytes) -> None:
    """A picture that is an archive, a page or a program as well: one viewer shows it, another runs it."""
    assert media_of(EVERY[media]) == media
    assert media_of(EVERY[media] + behind) is None


def test_document_with_an_archive_inside_is_refused() -> None:
    """The archive's comment makes the file end like a document."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.exe", b"MZ")
        archive.comment = b"\n%%EOF\n"
    assert media_of(PDF + buffer.getvalue()) is None
    assert media_of(jpeg()[:-2] + buffer.getvalue()) is None


@pytest.mark.parametrize(
    "data", [PNG[:-1], PNG[:20], PNG[:8], jpeg()[:-1], jpeg()[:2] + b"\xff", webp()[:-1], PDF[:-6]]
)
def test_file_that_does_not_reach_its_end_is_refused(data: bytes) -> None:
    assert media_of(data) is None


@pytest.mark.parametrize(
    "data", [b"\xff\xd8" + b"\xff" * 3_000_000, b"\x89PNG\r\n\x1a\n" + bytes(3_000_000), b"%PDF-" + b" " * 3_000_000]
)
def test_looking_at_a_hostile_file_takes_no_time(data: bytes) -> None:
    """Each of these would take hours where each byte makes the search start anew."""
    began = time.perf_counter()
    assert media_of(data) is None
    assert time.perf_counter() - began < 2


def test_content_that_was_altered_after_it_was_shown_is_refused() -> None:
    with pytest.raises(BadAttachment, match="differs"):
        check_content(describe(PNG, "x.png"), png(3, 2))


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", ".", ".bashrc", "a/b", "a\\b", "", "a\x00b", "a\nb", "x" * 81,
     "\u202egnp.exe", "C:evil", " lead", "a\u2028b"],
)  # fmt: skip
def test_name_that_could_become_a_path_or_lie_is_refused(name: str) -> None:
    with pytest.raises(Malformed):
        unpack(pack(replace(describe(PNG, "x"), name=name)), Attachment, limit=1_000)
    unpack(pack(describe(PNG, name)), Attachment, limit=1_000)
    assert "/" not in safe_name(name)
