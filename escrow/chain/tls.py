"""Whom to trust at the other end of a TLS connection: the system's authorities, a file of certificates, or one pin.

A server of one's own signs its own certificate. Its SHA-256 fingerprint, appended to its address
(`ssl://host:50002#3F:0A:...`), is then all that counts: no authority, no name, no date. A certificate that is not
trusted is told with its fingerprint, so that the user can compare it with the server's and pin it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from escrow.chain.base import BackendUnreachable

_SECONDS = 5.0


class Trust(msgspec.Struct, frozen=True):
    """What a server's certificate must be."""

    certificates: Path | None = None
    """Certificates (PEM) to trust besides the system's."""
    pin: bytes = b""
    """SHA-256 of the one certificate (DER) to trust; empty: the authorities decide."""


def parse_pin(text: str) -> bytes:
    """A fingerprint in hexadecimal, with or without colons; empty for an empty text. Raises ValueError."""
    if not text:
        return b""
    if not re.fullmatch(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}", text):
        raise ValueError("a fingerprint is 64 hexadecimal digits: the SHA-256 of the certificate")
    return bytes.fromhex(text.replace(":", ""))


def split_pin(address: str) -> tuple[str, bytes]:
    """An address and the pin behind its `#`. Raises ValueError."""
    where, _, pin = address.partition("#")
    return where, parse_pin(pin)


def context_for(trust: Trust) -> ssl.SSLContext:
    """What a connection is opened with; with a pin, `pinned` decides afterwards. Raises OSError. Reads files."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.pin:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif trust.certificates is not None:
        context.load_verify_locations(trust.certificates)
    return context


def pinned(trust: Trust, certificate: bytes | None) -> bool:
    """Whether the certificate that was shown is the pinned one, or none is pinned."""
    return not trust.pin or (certificate is not None and sha256(certificate).digest() == trust.pin)


def fingerprint(certificate: bytes) -> str:
    """As users compare it."""
    return sha256(certificate).digest().hex(":").upper()


async def shown_by(host: str, port: int) -> str:
    """The fingerprint of what a server shows to anyone; empty when it shows nothing in time."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_SECONDS):
            return await asyncio.to_thread(_look, host, port)
    return ""


def _look(host: str, port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout=_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        certificate = tls.getpeercert(binary_form=True)
    return "" if certificate is None else fingerprint(certificate)


def advice(shown: str) -> str:
    """What to do about a certificate that is not trusted."""
    if not shown:
        return "name its certificate in chain.certificates if the server is your own"
    return f"if the server is your own and this is its fingerprint, append it to its address: #{shown}"


def unreadable(trust: Trust, cause: OSError) -> BackendUnreachable:
    """What `context_for` failed with, as one line."""
    return BackendUnreachable(f"the certificates in {trust.certificates} can't be read: {cause.strerror or cause}")
