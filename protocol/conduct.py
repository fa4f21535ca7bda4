"""What the conversations with arbiters show against their ends (SPEC section 9.3): parties and arbiters alike.

A height in a header is its sender's own word, so it is held against its sender only: nobody can be accused by what
another says. An arbiter is measured by its own acceptance, its own deadlines and the terms that the contract fixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.case_messages import (
    CaseAccepted,
    CaseDeclined,
    CaseExtended,
    CaseMessage,
    CaseOpening,
    CaseRuling,
    Evidence,
)
from protocol.casefile import CheckedCase
from protocol.messages import NONE_YET, Disputed
from protocol.replay import Finding
from protocol.ruling import Ruling, arbiter_of
from protocol.transcript import Transcript
from protocol.types import Branch, Side

Talk = Transcript[CaseMessage]
_ARBITERS: Final = (CaseAccepted, CaseDeclined, CaseExtended, CaseRuling)
_PARTIES: Final = (CaseOpening, Evidence)


def judge_conduct(case: CheckedCase, talks: Sequence[Talk], rulings: Mapping[bytes, Ruling]) -> list[Finding]:
    """Every breach that the conversations show; `rulings` by the bytes of their envelopes, all of them verified."""
    contract = case.contract
    parties = {contract.party(side).persona: side for side in Side}
    found: list[Finding] = []
    for talk in talks:
        found += _out_of_role(talk, parties)
        found += _claims(talk, case)
        for branch in Branch:
            terms = arbiter_of(contract, branch)
            if terms is not None and talk.by(terms.persona):
                found += _arbiter(talk, parties, terms.persona, terms.response_blocks, rulings)
    if case.taker_signature is None and any(_decided(m) for talk in talks for m in talk.messages):
        # An arbiter hears a case only once it sees the escrow: so the taker took part, and kept its signature back.
        found.append(Finding(contract.taker.persona, None, "withheld its signature on the contract of a funded escrow"))
    return list(dict.fromkeys(found))


def opening_heights(talks: Sequence[Talk]) -> dict[bytes, int]:
    """In which block the escrow lies, as each party has told an arbiter itself."""
    return {
        m.envelope.signer: m.payload.height
        for talk in talks
        for m in talk.messages
        if isinstance(m.payload, CaseOpening) and m.payload.height
    }


def _decided(message: CaseMessage) -> bool:
    return isinstance(message.payload, CaseAccepted | CaseRuling)


def _out_of_role(talk: Talk, parties: Mapping[bytes, Side]) -> list[Finding]:
    """Messages that only the other end of a conversation may send."""
    found = []
    for message in talk.messages:
        theirs = _ARBITERS if message.envelope.signer in parties else _PARTIES
        if isinstance(message.payload, theirs):
            what = f"sent {type(message.payload).__name__}, which is not its to send"
            found.append(Finding(message.envelope.signer, message.header.number, what))
    return found


def _claims(talk: Talk, case: CheckedCase) -> list[Finding]:
    """A party tells its side once, and the same to everybody."""
    openings = [m for m in talk.messages if isinstance(m.payload, CaseOpening)]
    found = [Finding(m.envelope.signer, m.header.number, "told its side twice") for m in openings[1:]]
    for message in openings[:1]:
        told = [m.payload.claim for m in case.transcript.by(message.envelope.signer) if isinstance(m.payload, Disputed)]
        if isinstance(message.payload, CaseOpening) and told and message.payload.claim not in told:
            what = "claimed something else to the arbiter than to the counterparty"
            found.append(Finding(message.envelope.signer, message.header.number, what))
    return found


def _arbiter(
    talk: Talk, parties: Mapping[bytes, Side], arbiter: bytes, promised: int, rulings: Mapping[bytes, Ruling]
) -> list[Finding]:
    """One arbiter's conduct in one conversation."""
    found: list[Finding] = []
    due = heard_until = None
    extended = declined = False

    def blame(message: CaseMessage, what: str) -> None:
        found.append(Finding(arbiter, message.header.number, what))

    for message in talk.by(arbiter):
        payload, height = message.payload, message.header.height
        match payload:
            case CaseAccepted(until, _):
                due, heard_until = height + promised, until
            case CaseDeclined():
                declined = True
            case CaseExtended(blocks, until, _):
                if extended:
                    blame(message, "took more time a second time")
                elif blocks > promised:
                    blame(message, f"took {blocks} blocks more, and had promised to decide within {promised}")
                extended, due, heard_until = True, height + min(blocks, promised), until
            case CaseRuling(raw, _):
                if declined:
                    blame(message, "ruled after it had declined the case")
                if due is not None and height > due:
                    blame(
                        message, f"ruled at block {height}, {height - due} blocks after the time that it had promised"
                    )
                ruling = rulings.get(raw)
                if ruling is not None:
                    found += _unread(talk, message, ruling, parties)
                    found += _unheard(message, ruling, heard_until)
            case _:
                continue
    return found


def _unheard(message: CaseMessage, ruling: Ruling, heard_until: int | None) -> list[Finding]:
    """Nobody is judged before it has told its side, or its time for that is over."""
    if heard_until is None or message.header.height >= heard_until:
        return []
    silent = [s for s, head in (("buyer", ruling.buyer_head), ("seller", ruling.seller_head)) if head == NONE_YET]
    what = "ruled at block {} without having heard the {}, whose time ran until block {}"
    return [
        Finding(message.envelope.signer, message.header.number, what.format(message.header.height, who, heard_until))
        for who in silent
    ]


def _unread(talk: Talk, message: CaseMessage, ruling: Ruling, parties: Mapping[bytes, Side]) -> list[Finding]:
    """What a ruling says that it has read must be there; a record can't be cut short of it, for `seen` covers it."""
    found = []
    for persona, side in parties.items():
        chain = talk.by(persona)
        head = ruling.buyer_head if side is Side.BUY else ruling.seller_head
        if chain and talk.omitted == 0 and head != NONE_YET and head not in {m.envelope.id for m in chain}:
            what = f"ruled on a message of the {'buyer' if side is Side.BUY else 'seller'} that is not in the record"
            found.append(Finding(message.envelope.signer, message.header.number, what))
    return found
