"""Conversations with arbiters: their chains, recorded and checked as a trade's own are (SPEC section 7.5).

A trader knows the two that a contract allows as soon as there is a contract, so that an arbiter's first message finds
its trade; an arbiter knows one for each party of a case. Messages lie in the same table as a trade's, and leave by the
same outbox. Nothing here decides; `engine` and `cases.engine` call it inside their transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from p2pnode.tradestore import Heads, OutgoingMessage, TradeStore
from protocol.case_messages import CaseDeclined, CaseMessage, CasePayload, case_id, decode_case, encode_case
from protocol.contract import Contract
from protocol.identity import SigningKey
from protocol.messages import NONE_YET, Header
from protocol.ruling import arbiter_of
from protocol.types import Branch, Network, Side
from protocol.wire import Envelope, Kind, parse_envelope

_SELECT: Final = (
    "SELECT chain, trade_id, party, arbiter, branch, side, arbitrates, sent, sent_head, received, received_head "
    "FROM conversations"
)


class Keys(Protocol):
    """What is needed of the unlocked keystore."""

    def persona_key(self, persona: bytes) -> SigningKey:
        """The signing key of one of our personas. Raises NotFound."""
        ...


class Conversation(Struct, frozen=True):
    """One conversation. `side` is the party's; `arbitrates`: we are the arbiter in it."""

    chain: bytes
    trade_id: bytes
    party: bytes
    arbiter: bytes
    branch: Branch
    side: Side
    arbitrates: bool
    heads: Heads = Heads()

    @property
    def own(self) -> bytes:
        """Our persona."""
        return self.arbiter if self.arbitrates else self.party

    @property
    def other(self) -> bytes:
        """Theirs."""
        return self.party if self.arbitrates else self.arbiter


class Conversations:
    """All conversations of this node."""

    def __init__(self, trades: TradeStore, keys: Keys, network: Network, height: Callable[[], int]) -> None:
        """`height` gives the height of the best block that the node has followed."""
        self._trades = trades
        self._height = height
        self._db = trades.database.connection
        self._keys = keys
        self._network = network

    def expect(self, contract: Contract, branch: Branch, side: Side, *, arbitrates: bool) -> None:
        """Know the conversation between a party and the arbiter of a branch, if there is such an arbiter."""
        terms = arbiter_of(contract, branch)
        if terms is None:
            return
        party = contract.party(side).persona
        self._db.execute(
            """INSERT OR IGNORE INTO conversations
                   (chain, trade_id, party, arbiter, branch, side, arbitrates, sent_head, received_head)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                case_id(contract.trade_id, party, terms.persona),
                contract.trade_id,
                party,
                terms.persona,
                int(branch),
                int(side),
                int(arbitrates),
                NONE_YET,
                NONE_YET,
            ),
        )

    def get(self, chain: bytes) -> Conversation | None:
        """The conversation of a chain."""
        row = self._db.execute(f"{_SELECT} WHERE chain = ?", (chain,)).fetchone()
        return None if row is None else _read(row)

    def of_trade(self, trade_id: bytes, *, arbitrates: bool) -> list[Conversation]:
        """All about one trade, the main arbiter's and the buyer's first."""
        rows = self._db.execute(
            f"{_SELECT} WHERE trade_id = ? AND arbitrates = ? ORDER BY branch, side", (trade_id, int(arbitrates))
        )
        return [_read(row) for row in rows]

    def is_held(self, conversation: Conversation) -> bool:
        """Whether it was restored, and the other side has not told yet how far it had come."""
        return self._trades.is_held(conversation.chain)

    def find(self, trade_id: bytes, branch: Branch, side: Side, *, arbitrates: bool) -> Conversation | None:
        """One of them."""
        found = (c for c in self.of_trade(trade_id, arbitrates=arbitrates) if (c.branch, c.side) == (branch, side))
        return next(found, None)

    def messages(self, conversation: Conversation) -> list[tuple[bool, CaseMessage, int]]:
        """(outgoing, message, time) of everything that was said, each direction in its order."""
        rows = self._trades.transcript(conversation.chain)
        return [(out, decode_case(parse_envelope(raw, self._network)), at) for out, raw, at in rows]

    def raws(self, conversation: Conversation) -> tuple[bytes, ...]:
        """The envelopes of everything that was said."""
        return tuple(raw for _, raw, _ in self._trades.transcript(conversation.chain))

    def record_received(self, conversation: Conversation, envelope: Envelope, now: int) -> None:
        """Add a checked message."""
        heads = conversation.heads
        self._trades.add_message(conversation.chain, heads.received, envelope.id, envelope.raw, now, out=False)
        self._save(conversation, replace(heads, received=heads.received + 1, received_head=envelope.id))

    def record_sent(self, conversation: Conversation, envelope: Envelope, now: int) -> None:
        """Add a message that we signed before, on a disk that is lost."""
        heads = conversation.heads
        self._trades.add_message(conversation.chain, heads.sent, envelope.id, envelope.raw, now, out=True)
        self._save(conversation, replace(heads, sent=heads.sent + 1, sent_head=envelope.id))

    def send(self, conversation: Conversation, payload: CasePayload, now: int) -> None:
        """Sign, record and queue the next message of ours."""
        heads = conversation.heads
        header = Header(conversation.chain, heads.sent, heads.sent_head, heads.received_head, self._height())
        kind, body = encode_case(header, payload)
        envelope = self._keys.persona_key(conversation.own).seal(kind, self._network, body)
        self._trades.add_message(conversation.chain, heads.sent, envelope.id, envelope.raw, now, out=True)
        outgoing = OutgoingMessage(envelope.id, heads.sent, conversation.chain, conversation.other, envelope.raw)
        self._trades.queue_message(outgoing, now)
        self._save(conversation, replace(heads, sent=heads.sent + 1, sent_head=envelope.id))

    def refusal(self, trade_id: bytes, branch: Branch) -> bytes | None:
        """The envelope in which that arbiter declined our case."""
        for conversation in self.of_trade(trade_id, arbitrates=False):
            if conversation.branch is branch:
                for _, message, _ in self.messages(conversation):
                    if isinstance(message.payload, CaseDeclined) and message.envelope.kind == Kind.CASE_DECLINED:
                        return message.envelope.raw
        return None

    def _save(self, conversation: Conversation, heads: Heads) -> None:
        self._db.execute(
            "UPDATE conversations SET sent = ?, sent_head = ?, received = ?, received_head = ? WHERE chain = ?",
            (heads.sent, heads.sent_head, heads.received, heads.received_head, conversation.chain),
        )


def _read(row: tuple[bytes, bytes, bytes, bytes, int, int, int, int, bytes, int, bytes]) -> Conversation:
    chain, trade_id, party, arbiter, branch, side, arbitrates, *heads = row
    return Conversation(
        chain,
        trade_id,
        party,
        arbiter,
        Branch(branch),
        Side(side),
        bool(arbitrates),
        Heads(*heads),  # type: ignore[arg-type]
    )
