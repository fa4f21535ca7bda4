"""The files that were shown in a trade or a case, each held against the message that announced it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence

from p2pnode.api import evidence_schema as e
from p2pnode.attachments import AttachmentStore
from p2pnode.looking import facts_of
from p2pnode.services.dispute_views import Said, shown_in
from protocol.attachment import Attachment, check_content
from protocol.errors import NotFound, PeerViolation
from protocol.messages import AttachmentOffer


def exhibits(talk: Sequence[Said], files: AttachmentStore | None) -> e.EvidenceList:
    """Every file that was shown, numbered from 1 in the order in which it was shown."""
    shown = _shown(talk)
    return e.EvidenceList(items=tuple(_item(n, said, a, files) for n, (said, a) in enumerate(shown, 1)))


def exhibit(talk: Sequence[Said], number: int, files: AttachmentStore | None) -> e.EvidenceFile:
    """One file with its bytes. Raises NotFound."""
    shown = _shown(talk)
    if not 1 <= number <= len(shown):
        raise NotFound(f"there are {len(shown)} exhibits, and none has the number {number}")
    said, attachment = shown[number - 1]
    data = _content(attachment, files)
    if data is None:
        raise NotFound("that file has not arrived yet: its owner's node is away, or has it no more")
    return e.EvidenceFile(item=_item(number, said, attachment, files), data=b64encode(data).decode())


def _shown(talk: Iterable[Said]) -> list[tuple[Said, Attachment]]:
    ordered = sorted(talk, key=lambda said: said.at)
    return [(said, attachment) for said in ordered for attachment in shown_in(said.payload)]


def _content(attachment: Attachment, files: AttachmentStore | None) -> bytes | None:
    return files.content(attachment.content) if files is not None and files.has(attachment.content) else None


def _item(number: int, said: Said, attachment: Attachment, files: AttachmentStore | None) -> e.EvidenceItem:
    data = _content(attachment, files)
    return e.EvidenceItem(
        number=number,
        by=said.by,
        to=said.to,
        at=said.at,
        height=said.height,
        note=said.payload.note if isinstance(said.payload, AttachmentOffer) else getattr(said.payload, "text", ""),
        name=attachment.name,
        media=attachment.media,
        size_bytes=attachment.size,
        content=attachment.content.hex(),
        here=data is not None,
        matches=None if data is None else _matches(attachment, data),
        facts=() if data is None else tuple(e.Fact(name=name, value=value) for name, value in facts_of(data)),
    )


def _matches(attachment: Attachment, data: bytes) -> bool:
    """Computed anew from the bytes that lie here, not from what was once believed of them."""
    try:
        check_content(attachment, data)
    except PeerViolation:
        return False
    return True
