"""The types of the local API for evidence: files, held against the signed messages that announced them."""

from __future__ import annotations

from p2pnode.api.schema import Response
from protocol.types import UnixTime


class Fact(Response, frozen=True, kw_only=True):
    """Something that a file says of itself: dimensions, camera, software, active parts (`beware`)."""

    name: str
    value: str


class EvidenceItem(Response, frozen=True, kw_only=True):
    """A file that somebody showed. `number` names it within its trade or case.

    `at` is when this node heard of it (0: in a case file), `height` the block that its owner says it was. `matches`:
    whether its bytes are what the signed message names, by hash, size and type; None while they are not here.
    """

    number: int
    by: str
    to: str
    at: UnixTime
    height: int
    note: str
    name: str
    media: str
    size_bytes: int
    content: str
    here: bool
    matches: bool | None
    facts: tuple[Fact, ...]


class EvidenceList(Response, frozen=True, kw_only=True):
    """Every file that was shown, in the order in which it was shown."""

    items: tuple[EvidenceItem, ...]


class EvidenceFile(Response, frozen=True, kw_only=True):
    """One of them with its bytes, in base64."""

    item: EvidenceItem
    data: str
