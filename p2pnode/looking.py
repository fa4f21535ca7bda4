"""What a file is, read from its own bytes without showing or running it: for whoever has to judge evidence.

Only headers are read, by bounds that were checked first; nothing is decompressed, decoded or opened. So a picture of a
million by a million points costs what a small one costs. Anything odd becomes a line of its own, never an error: it is
what the reader wants to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from protocol.attachment import MediaType, media_of

Facts = tuple[tuple[str, str], ...]

_MOST_CHUNKS: Final = 2_000
_MOST_NOTES: Final = 8
_NOTE_LENGTH: Final = 120
_PDF_ACTIVE: Final = {
    b"/JavaScript": "JavaScript", b"/JS": "JavaScript", b"/Launch": "starts programs", b"/EmbeddedFile": "other files",
    b"/OpenAction": "acts when opened", b"/AA": "acts by itself", b"/XFA": "a form that computes", b"/URI": "links",
    b"/SubmitForm": "sends what is typed", b"/RichMedia": "media",
}  # fmt: skip
_JPEG_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))


def facts_of(data: bytes) -> Facts:
    """What there is to know of a content, as (name, value) pairs."""
    return tuple(_facts(media_of(data), data))


def _facts(media: MediaType | None, data: bytes) -> Iterator[tuple[str, str]]:
    match media:
        case "image/png":
            yield from _png(data)
        case "image/jpeg":
            yield from _jpeg(data)
        case "image/webp":
            yield from _webp(data)
        case "application/pdf":
            yield from _pdf(data)
        case "text/plain":
            text = data.decode()
            yield "lines", str(text.count("\n") + (not text.endswith("\n")))
            yield "kind", text_kind(text)
        case None:
            yield "kind", "unknown"


def _big(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _note(raw: bytes) -> str:
    """A stranger's words, short; whoever shows them makes them harmless."""
    text = raw[: _NOTE_LENGTH * 4].decode("utf-8", "replace").strip()
    return text[:_NOTE_LENGTH] + ("..." if len(text) > _NOTE_LENGTH else "")


def _png(data: bytes) -> Iterator[tuple[str, str]]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        yield "beware", "its header is damaged"
        return
    colours = {0: "grey", 2: "colour", 3: "palette", 4: "grey with transparency", 6: "colour with transparency"}
    yield "dimensions", f"{_big(data, 16, 4)} x {_big(data, 20, 4)} points"
    yield "depth", f"{data[24]} bit, {colours.get(data[25], 'unknown colours')}"
    notes = 0
    for kind, body in islice(_png_chunks(data), _MOST_CHUNKS):
        if kind in (b"tEXt", b"iTXt") and notes < _MOST_NOTES:
            notes += 1
            name, _, text = body.partition(b"\0")
            yield "note", f"{_note(name)}: {_note(text.lstrip(bytes(5)))}"
        elif kind == b"tIME" and len(body) == 7:
            year = _big(body, 0, 2)
            yield "changed", f"{year:04}-{body[2]:02}-{body[3]:02} {body[4]:02}:{body[5]:02}:{body[6]:02} UTC, it says"
        elif kind == b"eXIf":
            yield from _camera(body)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        size = _big(data, at, 4)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _jpeg(data: bytes) -> Iterator[tuple[str, str]]:
    notes, seen = 0, False
    for marker, body in islice(_jpeg_segments(data), _MOST_CHUNKS):
        if marker in _JPEG_FRAMES and len(body) >= 6 and not seen:
            seen = True
            yield "dimensions", f"{_big(body, 3, 2)} x {_big(body, 1, 2)} points"
            yield "depth", f"{body[0]} bit, {'grey' if body[5] == 1 else 'colour'}"
        elif marker == 0xFE and notes < _MOST_NOTES:
            notes += 1
            yield "note", _note(body)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            yield from _camera(body[6:])
        elif marker == 0xED:
            yield "beware", "was saved by a picture editor"
    if not seen:
        yield "beware", "its header is damaged"


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The segments in front of the picture itself."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = _big(data, at + 2, 2)
        if size < 2:
            return
        yield data[at + 1], data[at + 4 : at + 2 + size]
        at += 2 + size


def _camera(tiff: bytes) -> Iterator[tuple[str, str]]:
    """What an EXIF block says of how a picture was made: the first directory's texts only."""
    if len(tiff) < 8 or tiff[:2] not in (b"II", b"MM"):
        return
    read = _little if tiff[:2] == b"II" else _big
    start = read(tiff, 4, 4)
    names = {0x010F: "camera", 0x0110: "model", 0x0131: "software", 0x0132: "taken"}
    for n in range(min(read(tiff, start, 2), 64)):
        entry = start + 2 + 12 * n
        tag, count = read(tiff, entry, 2), read(tiff, entry + 4, 4)
        if tag in names and 0 < count <= 200:
            at = entry + 8 if count <= 4 else read(tiff, entry + 8, 4)
            yield names[tag], _note(tiff[at : at + count].rstrip(b"\0"))
        elif tag == 0x8825:
            yield "note", "says where it was taken"


def _webp(data: bytes) -> Iterator[tuple[str, str]]:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        yield "dimensions", f"{_little(data, 24, 3) + 1} x {_little(data, 27, 3) + 1} points"
    elif kind == b"VP8L" and len(data) >= 25:
        bits = _little(data, 21, 4)
        yield "dimensions", f"{(bits & 0x3FFF) + 1} x {(bits >> 14 & 0x3FFF) + 1} points"
    elif kind == b"VP8 " and len(data) >= 30:
        yield "dimensions", f"{_little(data, 26, 2) & 0x3FFF} x {_little(data, 28, 2) & 0x3FFF} points"
    else:
        yield "beware", "its header is damaged"


def _pdf(data: bytes) -> Iterator[tuple[str, str]]:
    yield "version", _note(data[5:8])
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    yield "pages", str(pages) if pages else "not told in the clear"
    active = dict.fromkeys(what for mark, what in _PDF_ACTIVE.items() if re.search(re.escape(mark) + rb"\b", data))
    if active:
        yield "beware", f"has active parts: {', '.join(active)}"
    if b"/Encrypt" in data:
        yield "beware", "is encrypted"


def text_kind(text: str) -> str:
    """`json`, `csv` or `text`, by what it looks like."""
    begin = text.lstrip("\ufeff \t\r\n")[:1]
    if begin and begin in "{[" and text.rstrip()[-1:] in "}]":
        return "json"
    rows = [line for line in text.splitlines()[:20] if line.strip()]
    for mark in ",;\t":
        counts = {row.count(mark) for row in rows}
        if len(rows) > 1 and len(counts) == 1 and counts != {0}:
            return "csv"
    return "text"
