"""The record of a trade: both parties' message chains, hash-linked, in the one order that they themselves imply.

Each message names its sender's previous one (`prev`) and the last that it had received (`seen`). So both copies of a
record can be compared, neither party can take back or change what it said, and what came before what needs no clock:
a message comes after everything that it has seen. Whoever signs two messages with one number has forked its chain, and
the two are the proof.

A copy may leave messages out (chat that does not fit, transactions of the funding): then the numbers show the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from protocol.case_messages import CASE_PAYLOAD_OF, MAX_TRANSCRIPT, CaseMessage, decode_case
from protocol.errors import P2PError, PeerViolation
from protocol.messages import NONE_YET, Header, Message, decode
from protocol.types import Network
from protocol.wire import MAX_ENVELOPE, Envelope, Kind, open_envelope, parse_envelope

M = TypeVar("M", Message, CaseMessage)


class BadTranscript(PeerViolation):
    """The record of messages does not hold: a signature or a link in it is wrong."""

    code = 2190


class Fork(Struct, frozen=True):
    """Two messages of one chain that can't both be true, both signed by `signer`: it told two stories.

    Either both have the number `number`, or the second follows it and names another message than the first before it.
    """

    signer: bytes
    number: int
    first: bytes
    second: bytes


class Transcript(Struct, Generic[M], frozen=True):
    """A verified record, in causal order. `omitted`: how many messages the numbers say are missing."""

    messages: tuple[M, ...]
    omitted: int

    def by(self, signer: bytes) -> tuple[M, ...]:
        """One party's chain."""
        return tuple(m for m in self.messages if m.envelope.signer == signer)

    def head(self, signer: bytes) -> bytes:
        """The id of one party's last message; 32 zero bytes before its first."""
        chain = self.by(signer)
        return chain[-1].envelope.id if chain else NONE_YET


def read_transcript(
    raws: Iterable[bytes], network: Network, chain: bytes, parties: tuple[bytes, bytes]
) -> Transcript[Message]:
    """Verify a trade's messages, given in any order; `chain` is the trade id. Raises BadTranscript."""
    return _read(raws, network, chain, parties, decode)


def read_conversation(
    raws: Iterable[bytes], network: Network, chain: bytes, parties: tuple[bytes, bytes]
) -> Transcript[CaseMessage]:
    """The same for a party's conversation with an arbiter; `chain` is `case_id`. Raises BadTranscript."""
    return _read(raws, network, chain, parties, decode_case)


def _read(
    raws: Iterable[bytes],
    network: Network,
    chain: bytes,
    parties: tuple[bytes, bytes],
    decoder: Callable[[Envelope], M],
) -> Transcript[M]:
    chains: dict[bytes, list[M]] = {party: [] for party in parties}
    for raw in raws:
        try:
            message = decoder(open_envelope(raw, network, limit=MAX_ENVELOPE))
        except P2PError as e:
            raise BadTranscript(f"a message of the record is not valid: {e.detail}") from e
        if message.envelope.signer not in chains or message.header.trade_id != chain:
            raise BadTranscript("a message of the record belongs to another trade, or is by somebody else")
        chains[message.envelope.signer].append(message)
    omitted = sum(_check_chain(c) for c in chains.values())
    return Transcript(_merge(chains[parties[0]], chains[parties[1]], gaps=omitted > 0), omitted)


def _check_chain(chain: list[M]) -> int:
    """Put one sender's chain in order and check its links; returns how many messages are left out."""
    chain.sort(key=lambda m: m.header.number)
    omitted, number, head = 0, -1, NONE_YET
    for message in chain:
        gap = message.header.number - number - 1
        if gap < 0:
            raise BadTranscript("the record holds two messages with one number")
        if gap == 0 and message.header.prev != head:
            raise BadTranscript("a message does not follow the one before it")
        omitted, number, head = omitted + gap, message.header.number, message.envelope.id
    return omitted


def _merge(first: Sequence[M], second: Sequence[M], *, gaps: bool) -> tuple[M, ...]:
    """Both chains in causal order; what neither saw of the other stands with the first chain's first.

    Raises BadTranscript when a message has seen one that is not there, or both wait for each other.
    """
    known = {m.envelope.id for m in (*first, *second)}
    waiting, told, merged = [list(first), list(second)], {NONE_YET}, list[M]()

    def ready(m: M) -> bool:
        return m.header.seen in told or (gaps and m.header.seen not in known)

    while any(waiting):
        queue = next((q for q in waiting if q and ready(q[0])), None)
        if queue is None:
            raise BadTranscript("a message has seen another that is not in the record")
        merged.append(queue.pop(0))
        told.add(merged[-1].envelope.id)
    return tuple(merged)


def find_fork(one: Transcript[M], other: Transcript[M]) -> Fork | None:
    """Where two copies of one record contradict each other; a copy that is only shorter does not."""
    seen = {(m.envelope.signer, m.header.number): m.envelope for m in one.messages}
    for message in other.messages:
        key = (message.envelope.signer, message.header.number)
        if key in seen and seen[key].id != message.envelope.id:
            return Fork(*key, seen[key].raw, message.envelope.raw)
    return None


def check_fork(fork: Fork, network: Network) -> bytes:
    """The chain (trade or case) in which `fork.signer` told two stories. Raises BadTranscript."""
    first, second = (open_envelope(raw, network, limit=MAX_ENVELOPE) for raw in (fork.first, fork.second))
    one, other = header_of(first), header_of(second)
    doubled = other.number == one.number and first.id != second.id
    rewritten = other.number == one.number + 1 and other.prev != first.id
    same = one.trade_id == other.trade_id and one.number == fork.number
    if not same or not (doubled or rewritten) or not first.signer == second.signer == fork.signer:
        raise BadTranscript("these two messages are no fork")
    return one.trade_id


def header_of(envelope: Envelope) -> Header:
    """Where a message of a trade or of a conversation stands. Raises Malformed."""
    if envelope.kind in CASE_PAYLOAD_OF:
        # A line of chat is the same in both.
        return decode_case(envelope).header
    return decode(envelope).header


def fit(raws: Sequence[bytes], limit: int, network: Network, *, keep_take: bool) -> tuple[bytes, ...]:
    """The messages of a record that fit in `limit` bytes, at most MAX_TRANSCRIPT of them, in their order.

    Left out first is what may be ignored (odd kinds), the longest first; then, unless `keep_take`, Take and Accept.
    Else a peer could make a record too long to be shown to an arbiter.
    """
    sizes = {index: len(raw) + 5 for index, raw in enumerate(raws)}
    kinds = {index: parse_envelope(raw, network).kind for index, raw in enumerate(raws)}
    spare = sorted((i for i in sizes if kinds[i] % 2), key=lambda i: -sizes[i])
    if not keep_take:
        spare += [i for i in sizes if kinds[i] in (Kind.TAKE, Kind.ACCEPT)]
    for index in spare:
        if sum(sizes.values()) <= limit and len(sizes) <= MAX_TRANSCRIPT:
            break
        del sizes[index]
    return tuple(raws[index] for index in sorted(sizes))
