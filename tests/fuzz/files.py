"""What people are handed: files of evidence, bundles, contract files, backups, labels, PSBTs, addresses, forms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache

from escrow import address, psbt, script, signatures
from escrow.judge import EscrowChecks
from escrow.wallet import labels
from p2pnode import backup, contractfile, looking
from p2pnode.api.schema.offers import OfferDraft
from p2pnode.idprefix import id_range
from p2pnode.keepsake import open_keepsake
from p2pnode.web import forms
from protocol import attachment, bundle, identity
from protocol.errors import P2PError
from protocol.types import Network

NET = Network.REGTEST


def evidence(data: bytes) -> None:
    """Pictures, documents and texts: what they are, and what the viewer tells of them."""
    attachment.media_of(data)
    looking.facts_of(data)
    with suppress(P2PError):
        told = attachment.describe(data, data[:40].decode("latin-1"))
        attachment.check_content(told, data)


@cache
def _checks() -> EscrowChecks:
    return EscrowChecks()


def bundles(data: bytes) -> None:
    """A case that a stranger asks us to judge."""
    with suppress(P2PError):
        bundle.verify_bundle(data, _checks())


def contract_files(data: bytes) -> None:
    """A contract file that `recover` is pointed at."""
    with suppress(P2PError):
        contractfile.parse(data)


def backups(data: bytes) -> None:
    """The head of a backup file; what follows is encrypted. And a keepsake, left with the other party."""
    with suppress(P2PError):
        backup.read_header(data)
    open_keepsake(bytes(32), data)


def psbts(data: bytes) -> None:
    """Partially signed transactions, binary or text."""
    for read in (psbt.decode, psbt.read):
        with suppress(P2PError):
            read(data)


def texts(data: bytes) -> None:
    """Labels (BIP329), addresses, ids."""
    text = data.decode("utf-8", "replace")
    calls: tuple[Callable[[], object], ...] = (
        lambda: labels.read_labels(text),
        lambda: labels.outpoint_of(text),
        lambda: address.script_of(text, NET),
        lambda: id_range(text),
        lambda: identity.parse_node(text),
        lambda: identity.parse_persona(text),
    )
    for call in calls:
        with suppress(P2PError):
            call()
    with suppress(ValueError):
        told = address.address_of(data, NET)
        assert address.script_of(told, NET) == data
    with suppress(ValueError):
        script.decode_script(data)
    signatures.is_strict_der(data)


def web_forms(data: bytes) -> None:
    """The fields of a form, name and text by turns, one per line."""
    lines = data.decode("utf-8", "replace").split("\n")
    fields = list(zip(lines[::2], lines[1::2], strict=False))
    fields += [(f"{name}:{kind}", line) for kind in forms._KINDS for name in ("*", "x") for line in lines[:2]]
    for field in fields:
        with suppress(P2PError):
            forms.read([field], OfferDraft)


FILE_TARGETS: dict[str, Callable[[bytes], None]] = {
    "evidence": evidence,
    "bundle": bundles,
    "contract-file": contract_files,
    "backup": backups,
    "psbt": psbts,
    "texts": texts,
    "forms": web_forms,
}

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + bytes(17) + b"\0\0\0\x05tEXta\0bcd1234" + b"\0\0\0\0IEND\xaeB`\x82"
JPEG = b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x04\0\0\0abc\0\xff\xda\0\x02\xff\xd9"


def file_seeds(name: str, plain: list[bytes]) -> list[bytes]:
    """What a target starts from. `plain`: all that the vectors hold."""
    match name:
        case "evidence":
            webp = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10)
            heads = (PNG, JPEG, webp, b"RIFF\x10\0\0\0WEBPVP8 ", b"%PDF-1.7\n1 0 obj\n%%EOF", b"PK\x03\x04", b"plain\n")
            return [*heads, *(head + raw for head in heads for raw in plain[::40])]
        case "psbt":
            return [psbt.MAGIC + raw for raw in plain]
        case "contract-file":
            return [b'{"format":"p2pnode-contract","version":1,"network":"regtest"}', b"{}", b"[" * 3_000]
        case "backup":
            return [b"p2pnode backup 1\n" + bytes(60), *plain[::40]]
        case "texts":
            return [
                b'{"type":"tx","ref":"%s","label":"x"}' % (b"ab" * 32),
                b'{"type":"output","ref":"%s:1","label":"x","spendable":false}\n{"type":"addr"}' % (b"ab" * 32),
                b"bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080",
                b"mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn",
                *plain[::40],
            ]
        case "forms":
            return [b"x:int\n5", b'm:methods\n[sepa]\niban = "x"', b"a:methods\na=" + b"[" * 2_000, b"*:range\n1 - 2"]
        case _:
            return plain
