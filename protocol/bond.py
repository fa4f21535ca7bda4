"""Fidelity bonds: coins that a persona locked for a time, so that its name costs something (SPEC section 14.1).

A bond is an output that nobody can spend before a height. The key in its script signs which persona it stands for, and
that persona signs the record or announcement that carries it: so a bond can't be borrowed, and one that is shown for
two personas convicts itself. Everything that a `Bond` claims about the chain is checked on the reader's own backend;
the block is named so that a light client, too, knows where to look.

The worth of a bond is amount times remaining time. It is linear on purpose: whoever splits a bond over many names, or
makes one of many, gains nothing; and what was locked for long counts less as its end comes near.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.errors import Malformed, PeerViolation
from protocol.types import (
    Hash32,
    Height,
    Network,
    PersonaId,
    PositiveSats,
    PubKey33,
    Sequence,
    Signature64,
    Txid,
    UnixTime,
)
from protocol.wire import Envelope, Kind, digest, unpack
from protocol.work import NO_WORK, WorkNonce, work_bits

BOND_WORK_BITS: Final = 12
MAX_BOND_RECORD_LIFETIME: Final = 400 * 86_400
YEAR_BLOCKS: Final = 52_560
"""Blocks of about a year: time beyond it adds nothing to a bond's worth."""
LockHeight = Annotated[int, Meta(ge=1, le=499_999_999)]
"""A height for OP_CHECKLOCKTIMEVERIFY; numbers from 500,000,000 on would be times."""


class BadBond(PeerViolation):
    """The bond does not belong to the persona that shows it."""

    code = 2196


class Bond(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A time-locked output and the proof of whose it is: `proof` is `key`'s BIP340 signature over `bond_message`."""

    txid: Txid
    vout: Annotated[int, Meta(ge=0, le=65_535)]
    value: PositiveSats
    lock_height: LockHeight
    key: PubKey33
    block: Hash32
    """The block that holds it, in internal byte order."""
    height: Height
    """That block's height."""
    proof: Signature64

    def worth(self, tip: int) -> int:
        """Satoshi-years that stay locked after the block `tip`."""
        return bond_worth(self.value, self.lock_height - tip)


class BondRecord(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A persona's bond as a public record; one per persona."""

    persona: PersonaId
    sequence: Sequence
    bond: Bond
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK


def bond_worth(value: int, blocks: int) -> int:
    """What `value` satoshis locked for `blocks` more blocks are worth: satoshi-years, rounded down."""
    return value * max(0, min(blocks, YEAR_BLOCKS)) // YEAR_BLOCKS


def bond_message(network: Network, persona: bytes, bond: Bond) -> bytes:
    """The 32 bytes that a bond's proof signs: network, persona, output, and all that is claimed about it."""
    return digest(
        b"p2pnode/bond",
        bytes([network]),
        persona,
        bond.txid + bond.vout.to_bytes(4, "big"),
        bond.value.to_bytes(8, "big") + bond.lock_height.to_bytes(4, "big"),
        bond.key,
    )


def read_bond_record(envelope: Envelope, network: Network, now: int) -> BondRecord:
    """The bond record in a verified envelope. The bond's own proof is `escrow.bond`'s to check. Raises Malformed."""
    if envelope.kind != Kind.BOND or envelope.network != network:
        raise Malformed("not a bond of this network")
    value = unpack(envelope.body, BondRecord, limit=Kind.BOND.limit)
    if value.persona != envelope.signer:
        raise Malformed("a bond must be signed by the persona that it names")
    if not value.created < value.expires <= value.created + MAX_BOND_RECORD_LIFETIME or now >= value.expires:
        raise Malformed("a bond's record must live for at most 400 days, and not be over")
    if work_bits(envelope.id) < BOND_WORK_BITS:
        raise Malformed("a bond's record needs more proof of work")
    return value
