"""Small files of every type that may be shown: whole ones, made here."""

from __future__ import annotations

import zlib


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int = 2, height: int = 2, *, extra: bytes = b"", pad: int = 0) -> bytes:
    """A grey picture; `extra` are chunks after its header, `pad` bytes that no viewer shows."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    rows = b"".join(b"\0" + bytes(width) for _ in range(height)) if width * height < 10_000 else b""
    filling = chunk(b"teSt", bytes(i % 251 for i in range(pad))) if pad else b""
    body = chunk(b"IHDR", header) + extra + filling + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(*, segments: bytes = b"") -> bytes:
    """A JPEG of 3 by 2 points, not to be decoded: header, compressed data with stuffed bytes and a restart, end."""
    frame = b"\xff\xc0\x00\x0b\x08\x00\x02\x00\x03\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"abc\xff\x00def\xff\xd0ghi"
    return b"\xff\xd8\xff\xe0\x00\x04JF" + segments + frame + scan + b"\xff\xd9"


def webp() -> bytes:
    """A lossless WebP of 5 by 4 points."""
    bits = (5 - 1) | (4 - 1) << 14
    body = b"VP8L" + (5).to_bytes(4, "little") + b"\x2f" + bits.to_bytes(4, "little") + b"\0"
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


PDF = b"%PDF-1.7\n1 0 obj<</Type /Page>>endobj\n%%EOF\n"
TEXT = "Überweisung über 650 €\n".encode()
EVERY = {
    "image/png": png(),
    "image/jpeg": jpeg(),
    "image/webp": webp(),
    "application/pdf": PDF,
    "text/plain": TEXT,
}
