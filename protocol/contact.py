"""Contact records: where to try to reach a persona. They say where, never who (DESIGN section 4)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.types import NodeKey, PersonaId, Sequence, UnixTime
from protocol.work import NO_WORK, WorkNonce

CONTACT_WORK_BITS: Final = 8
"""Work a contact record must carry (SPEC section 6)."""
MAX_CONTACT_LIFETIME: Final = 7 * 86_400
"""Seconds a contact record may live."""

Host = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"\A[A-Za-z0-9.:\-]+\Z")]
Port = Annotated[int, Meta(ge=1, le=65_535)]


class Address(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A TCP endpoint: IPv4, IPv6 or a host name, and a port."""

    host: Host
    port: Port


class NodeContact(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node and the addresses on which its channel listener may answer."""

    node: NodeKey
    addresses: Annotated[tuple[Address, ...], Meta(max_length=8)]


class ContactRecord(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How to reach `persona`: its node, and relays that it keeps a connection to. Signed by the persona."""

    persona: PersonaId
    sequence: Sequence
    contact: NodeContact
    relays: Annotated[tuple[NodeContact, ...], Meta(max_length=4)]
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK
