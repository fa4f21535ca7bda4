"""Which arbiters: those that an own offer names, and those of another's offer that a take binds itself to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from p2pnode.arbiters import ArbiterDirectory, Listed
from p2pnode.taking import ArbiterChoice
from protocol.errors import UserError
from protocol.identity import persona_text
from protocol.offer import ArbiterRef, Offer
from protocol.types import EscrowType

MAX_CHOSEN: Final = 3
"""Arbiters that the node names by itself; each takes 70 bytes of the offer's datagram."""


class NoArbiter(UserError):
    """No arbiter that this node knows can serve that: see which there are with `p2pnode arbiter list`."""

    code = 3051


class Need(Struct, frozen=True):
    """What an offer asks of an arbiter: its currency, every method, its greatest amount; and who it can't be."""

    currency: str
    methods: tuple[str, ...]
    amount: int
    maker: bytes

    def served_by(self, listed: Listed) -> bool:
        """Whether an announcement allows all of it."""
        return listed.announcement.persona != self.maker and all(
            listed.announcement.serves(self.currency, method, self.amount) for method in self.methods
        )

    def __str__(self) -> str:
        return f"{self.amount:,} sat in {self.currency} by {' and '.join(self.methods)}"


class Chosen(Struct, frozen=True):
    """Who decides a trade if its parties quarrel, and how its coins are locked."""

    arbiter: ArbiterChoice
    backup: ArbiterChoice | None
    escrow_type: EscrowType


# --- for an own offer --------------------------------------------------------------------------------------------


def named_arbiters(directory: ArbiterDirectory, personas: Sequence[bytes], need: Need) -> tuple[ArbiterRef, ...]:
    """Exactly these arbiters, on their present terms. Raises NoArbiter."""
    refs = []
    for persona in personas:
        listed = directory.newest_of(persona)
        if listed is None:
            raise NoArbiter(f"{persona_text(persona)} is not known as an arbiter: see `p2pnode arbiter list`")
        if (why := directory.ranking.refusal(persona)) is not None:
            raise NoArbiter(f"the arbiter {persona_text(persona)} is out of the question: {why}")
        if not need.served_by(listed):
            raise NoArbiter(f"the arbiter {persona_text(persona)} does not serve {need}")
        refs.append(ArbiterRef(persona, listed.envelope.id))
    return tuple(refs)


def known_arbiters(directory: ArbiterDirectory, need: Need) -> tuple[ArbiterRef, ...]:
    """The best of those that are known. Raises NoArbiter."""
    fit = [listed for listed in directory.find(need.currency, None, need.amount) if need.served_by(listed)]
    if not fit:
        raise NoArbiter(
            f"no arbiter that this node knows serves {need}: see `p2pnode arbiter list`, and check that the node has "
            "peers, or ask an arbiter to announce itself"
        )
    return tuple(ArbiterRef(listed.announcement.persona, listed.envelope.id) for listed in fit[:MAX_CHOSEN])


def kept_arbiters(directory: ArbiterDirectory, present: Sequence[ArbiterRef], need: Need) -> tuple[ArbiterRef, ...]:
    """Those of an edited offer: on the terms it names while these hold, else on their newest; the lost are left out.

    Raises NoArbiter when none is left.
    """
    refs = []
    for ref in present:
        if directory.ranking.refusal(ref.persona) is not None:
            continue
        for listed in (directory.get(ref.announcement), directory.newest_of(ref.persona)):
            if listed is not None and need.served_by(listed):
                refs.append(ArbiterRef(ref.persona, listed.envelope.id))
                break
    if not refs:
        raise NoArbiter(f"none of the offer's arbiters serves {need} any more: name others")
    return tuple(refs)


def escrow_types(wanted: Sequence[int], arbiters: int) -> tuple[EscrowType, ...]:
    """How coins may be locked with so many arbiters; nothing wanted: all that is possible, a backup preferred.

    Raises NoArbiter.
    """
    if not wanted:
        both = (EscrowType.WSH_2OF3_BACKUP, EscrowType.WSH_2OF3)
        return both if arbiters >= 2 else (EscrowType.WSH_2OF3,)
    kinds = tuple(EscrowType(kind) for kind in wanted)
    if EscrowType.WSH_2OF3_BACKUP in kinds and arbiters < 2:
        raise NoArbiter("an escrow with a backup arbiter (type 2) needs two arbiters, and there is one: name a second")
    return kinds


# --- for a take --------------------------------------------------------------------------------------------------


class TakeWishes(Struct, frozen=True):
    """What a taker asks for; None: the maker's first choice."""

    arbiter: bytes | None
    backup: bytes | None
    escrow_type: EscrowType | None


def choose_for_take(
    directory: ArbiterDirectory, offer: Offer, method: str, amount: int, taker: bytes, wishes: TakeWishes
) -> Chosen:
    """The arbiter, the backup and the escrow type, in the maker's order of preference. Raises NoArbiter."""
    need = Need(offer.currency, (method,), amount, taker)
    usable: dict[bytes, ArbiterChoice] = {}
    troubles: dict[bytes, str] = {}
    for ref in offer.arbiters:
        listed = directory.get(ref.announcement)
        if listed is None or listed.announcement.persona != ref.persona:
            troubles[ref.persona] = "its announcement has expired, was replaced, or is not known here"
        elif (why := directory.ranking.refusal(ref.persona)) is not None:
            troubles[ref.persona] = why
        elif not need.served_by(listed):
            troubles[ref.persona] = f"it does not serve {need}, or is a party of the trade"
        else:
            directory.verified(listed)
            usable[ref.persona] = ArbiterChoice(listed.envelope, listed.announcement)
    for wish in (wishes.arbiter, wishes.backup):
        if wish is not None and wish not in usable:
            trouble = troubles.get(wish, "the offer does not accept it")
            raise NoArbiter(f"{persona_text(wish)} can't serve this trade: {trouble}")
    if not usable:
        raise NoArbiter(f"none of the offer's arbiters can serve this trade: {next(iter(troubles.values()))}")
    arbiter = wishes.arbiter or next((p for p in usable if p != wishes.backup), None)
    backup = wishes.backup or next((p for p in usable if p != arbiter), None)
    for kind in offer.escrow_types if wishes.escrow_type is None else (wishes.escrow_type,):
        if kind not in offer.escrow_types:
            raise NoArbiter(f"the offer does not accept escrow type {int(kind)}")
        if kind is EscrowType.WSH_2OF3:
            if wishes.backup is None and arbiter is not None:
                return Chosen(usable[arbiter], None, kind)
        elif arbiter is not None and backup is not None and arbiter != backup:
            return Chosen(usable[arbiter], usable[backup], kind)
    if wishes.backup is not None and wishes.escrow_type is EscrowType.WSH_2OF3:
        raise NoArbiter("an escrow of type 1 has no backup arbiter: name none, or take type 2")
    raise NoArbiter("the offer's escrow needs an arbiter and another as its backup, and only one can serve this trade")
