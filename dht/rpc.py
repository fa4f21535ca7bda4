"""Questions and answers between authenticated nodes, without I/O (SPEC, DHT packets).

`Rpc` turns calls into datagrams and datagrams into calls. It owns what lasts between them: peers with their keys, round
trip estimates and tokens; the questions that are out; the timers of both. Its owner hands it datagrams and the time,
and calls `tick` when `deadline` has come.

A question is late after the peer's own retransmission timeout (smoothed round trip + 4 deviations, as in RFC 6298, from
30 ms to 2 s) and is then sent once more: its owner is told, so that it can ask somebody else meanwhile. After three
sendings it has failed. An answer counts when it carries the question's 96-bit random id, comes from the address asked
and authenticates under the key of the node asked.

Work for strangers is bounded by address before any of it is done: a datagram that can't be answered from the cache of
peers costs a Diffie-Hellman (80 µs), so those are counted most; what does not authenticate is counted too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from dht import messages, packet
from dht.contact import (
    Address,
    ByChannel,
    Contact,
    Via,
    contact_at,
    group_of,
    pack_address,
    path_of,
    puzzle_zero_bits,
)
from dht.errors import BadContact, BadPacket
from dht.limits import Buckets
from dht.messages import NO_TOKEN, Op, Reply, Request
from protocol.identity import SigningKey
from protocol.types import Network

TRIES: Final = 3
FIRST_PADDING: Final = 400
"""A request without a token is padded to this size: an unproved address gets at most three times what it sent. But a
ping, which is what an unproved address may be sent unasked, and whose answer is short."""
AMPLIFICATION: Final = 3
PING_COST: Final = TRIES * (packet.REQUEST_HEAD + packet.BOX_BYTES + messages.HEAD)
"""Bytes of a ping without a token and of its repetitions."""
TOKEN_LIFE_S: Final = packet.Tokens.PERIOD_S - 20
RTO_MIN: Final = 0.03
RTO_AGAIN: Final = 0.1
"""The least wait after the second sending: a node that is held up for a quarter of a second is not given up."""
RTO_MAX: Final = 2.0
RTO_FIRST: Final = 0.4
RTO_DIAL: Final = 1.5
"""The same by a channel that may have to be made first."""
STRANGER_COST: Final = 10.0
MAX_STRANGERS: Final = 512
POOL_BYTES: Final = 1_024
MAX_PEERS: Final = 4_096


class Rng(Protocol):
    """The source of randomness: `random.SystemRandom()` in production, a seeded generator in tests and simulations."""

    def randbytes(self, n: int, /) -> bytes:
        """`n` random bytes."""

    def random(self) -> float:
        """A number in [0, 1)."""


class Peer:
    """What is known of a node that we talk to."""

    __slots__ = (
        "contact",
        "failures",
        "heard_at",
        "late",
        "receive_key",
        "rtt",
        "rtt_dev",
        "send_key",
        "tabled_at",
        "token",
        "token_at",
    )

    def __init__(self, contact: Contact) -> None:
        self.contact = contact
        self.send_key: bytes | None = None
        self.receive_key = b""
        self.token = NO_TOKEN
        self.token_at = -1e9
        self.rtt = 0.0
        self.rtt_dev = 0.0
        self.late = False
        """A question to it is overdue and nothing was heard since: not handed out, asked last."""
        self.failures = 0
        self.heard_at = -1e9
        self.tabled_at = -1e9


class Asker(Protocol):
    """Who put a question: told exactly once how it ended, and at most once before that it is late."""

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        """The answer came; its head is parsed, its body is not."""

    def late(self, call: Call, now: float) -> None:
        """It is overdue and was sent again."""

    def failed(self, call: Call, now: float) -> None:
        """It was given up."""


class Call:
    """A question that is out."""

    __slots__ = (
        "address",
        "asker",
        "body",
        "datagram",
        "deadline",
        "op",
        "peer",
        "rid",
        "rto",
        "sent_at",
        "tag",
        "tries",
    )

    def __init__(self, peer: Peer, address: Address, op: int, body: bytes, asker: Asker, tag: int) -> None:
        self.peer = peer
        self.address = address
        """Where the question goes, and the only place that an answer counts from."""
        self.op = op
        self.body = body
        self.asker = asker
        self.tag = tag
        """The asker's own mark."""
        self.rid = b""
        self.datagram = b""
        self.sent_at = 0.0
        self.deadline = 0.0
        self.rto = 0.0
        self.tries = 1


class Server(Protocol):
    """Who answers requests."""

    def serve(
        self, request: Request, peer: Peer, address: Address, *, proved: bool, room: int, now: float
    ) -> bytes | None:
        """The reply body with its status (`messages.reply` without token), or None for no answer."""


class Totals:
    """Counters of an Rpc."""

    __slots__ = ("bad", "by_datagram", "failures", "received", "refused", "retries", "sent", "served", "unanswered")

    def __init__(self) -> None:
        self.unanswered = 0
        """Questions that failed since the last answer came."""
        self.by_datagram = 0
        """Requests that authenticated and came as datagrams: these do pass, then."""
        self.sent = self.received = self.served = self.retries = self.failures = self.refused = self.bad = 0


class Limits(NamedTuple):
    """How much one address may ask of us."""

    rate: float = 200.0
    """Requests per second from one address, by IPv6 from one /48."""
    burst: float = 600.0


Send = Callable[[bytes, Address], None]


class Rpc:
    """The authenticated request and reply layer of one node."""

    def __init__(
        self,
        key: SigningKey,
        network: Network,
        *,
        send: Send,
        rng: Rng,
        limits: Limits | None = None,
        puzzle_bits: int = 0,
        client: bool = False,
        exempt: Callable[[Address], bool] = lambda _: False,
        route: Callable[[Contact], Address] = attrgetter("address"),
    ) -> None:
        """`route`: where to send what is for a contact. Raises BadContact where nothing leads to it."""
        self.key = key
        self.network = network
        self.puzzle_bits = puzzle_bits
        self.flags = messages.CLIENT if client else 0
        self.hidden: frozenset[int] = frozenset()
        """Versions of IP by which nobody reaches us unasked."""
        self.server: Server | None = None
        self.peers: dict[bytes, Peer] = {}
        """By path: those that answered us, or that we are about to ask."""
        self.totals = Totals()
        self._send = send
        self._rng = rng
        self._pool = b""
        self._pool_at = 0
        self._exempt = exempt
        self._route = route
        self._strangers: dict[bytes, Peer] = {}
        self._calls: dict[bytes, Call] = {}
        self._timers: list[tuple[float, int, Call]] = []
        self._count = 0
        self._hellos: dict[bytes, tuple[Address, Callable[[bytes | None], None], float]] = {}
        self._tokens = packet.Tokens(rng.randbytes(32))
        limits = limits or Limits()
        self._buckets: Buckets[str | bytes] = Buckets(limits.rate, limits.burst)
        self.rtt = 0.0
        self.rtt_dev = 0.0
        self.late: set[bytes] = set()
        """Paths of peers that owe an answer."""

    # -- asking ------------------------------------------------------------------------------------------------

    def peer(self, contact: Contact) -> Peer:
        """The peer of a contact; one known at another address keeps its estimates and loses its token."""
        peer = self.peers.get(contact.path)
        if peer is None:
            peer = self._strangers.pop(contact.path, None) or Peer(contact)
            if len(self.peers) >= MAX_PEERS:
                self._forget_one()
            self.peers[contact.path] = peer
        return peer

    def _forget_one(self) -> None:
        oldest = min(self.peers.values(), key=lambda p: p.heard_at)
        del self.peers[oldest.contact.path]
        self.late.discard(oldest.contact.path)

    def call(self, contact: Contact, op: int, body: bytes, asker: Asker, now: float, tag: int = 0) -> Call:
        """Put a question to a node. Raises BadContact or BadPacket when its key is not usable."""
        peer = self.peer(contact)
        moved = peer.contact is not contact and peer.contact.address != contact.address
        if moved and (peer.late or peer.heard_at < now - TOKEN_LIFE_S):
            # Another address is believed when the known one is silent, and never gets the old one's token.
            peer.contact = contact
            peer.token = NO_TOKEN
            peer.token_at = -1e9
        if peer.send_key is None:
            self._agree(peer)
        call = Call(peer, self._route(peer.contact), op, body, asker, tag)
        call.rid = self._random(packet.RID_BYTES)
        token = peer.token if now - peer.token_at < TOKEN_LIFE_S else NO_TOKEN
        flags = self.flags | messages.CLIENT if contact.version in self.hidden else self.flags
        plaintext = messages.request(op, flags, token, body)
        if token is NO_TOKEN and op != Op.PING and not isinstance(call.address, ByChannel):
            plaintext = plaintext.ljust(FIRST_PADDING - packet.REQUEST_HEAD - packet.BOX_BYTES, b"\0")
        assert peer.send_key is not None  # noqa: S101  (set by _agree)
        call.datagram = packet.seal_request(peer.send_key, self.key.public, call.rid, plaintext)
        call.rto = self._timeout(peer, call.address)
        call.sent_at = now
        call.deadline = now + call.rto
        self._calls[call.rid] = call
        self._count += 1
        heapq.heappush(self._timers, (call.deadline, self._count, call))
        self.totals.sent += 1
        self._send(call.datagram, call.address)
        return call

    def hello(self, address: Address, done: Callable[[bytes | None], None], now: float) -> None:
        """Ask who is at an address; `done` gets the node key, or None when nobody answered in 2 seconds."""
        rid = self._random(packet.RID_BYTES)
        self._hellos[rid] = (address, done, now + RTO_MAX)
        for _ in range(2):
            self._send(packet.hello(rid), address)

    def _random(self, count: int) -> bytes:
        """Random bytes from a pool: a system call for each id would be a twentieth of all our time."""
        at = self._pool_at
        if at + count > len(self._pool):
            self._pool = self._rng.randbytes(POOL_BYTES)
            at = 0
        self._pool_at = at + count
        return self._pool[at : at + count]

    def cancel(self, call: Call) -> None:
        """Stop caring for an answer; nothing is told to the asker any more."""
        self._calls.pop(call.rid, None)

    def _agree(self, peer: Peer) -> None:
        contact = peer.contact
        if puzzle_zero_bits(contact.key) < self.puzzle_bits:
            raise BadContact("a node key that does not solve the puzzle")
        peer.send_key, peer.receive_key = packet.direction_keys(
            self.key.x25519_secret, self.key.public, contact.key, contact.curve, self.network
        )

    def _timeout(self, peer: Peer, address: Address) -> float:
        if peer.rtt:
            rto = peer.rtt + max(4 * peer.rtt_dev, 0.01)
        elif isinstance(address, ByChannel):
            return RTO_DIAL
        elif self.rtt:
            rto = 1.5 * self.rtt + max(4 * self.rtt_dev, 0.02)
        else:
            return RTO_FIRST
        return min(max(rto, RTO_MIN), RTO_MAX)

    # -- time --------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called next; None when nothing is out."""
        while self._timers and self._timers[0][2].rid not in self._calls:
            heapq.heappop(self._timers)
        soonest = self._timers[0][0] if self._timers else None
        for _, _, until in self._hellos.values():
            soonest = until if soonest is None else min(soonest, until)
        return soonest

    def tick(self, now: float) -> None:
        """Send again what is late and give up what was late too often."""
        for rid in [r for r, (_, _, until) in self._hellos.items() if until <= now]:
            self._hellos.pop(rid)[1](None)
        while self._timers and self._timers[0][0] <= now:
            _, _, call = heapq.heappop(self._timers)
            if call.rid in self._calls:
                self._overdue(call, now)

    def _overdue(self, call: Call, now: float) -> None:
        peer = call.peer
        if peer.heard_at < call.sent_at:
            peer.late = True
            self.late.add(peer.contact.path)
        if call.tries >= TRIES:
            del self._calls[call.rid]
            peer.failures += 1
            self.totals.failures += 1
            self.totals.unanswered += 1
            call.asker.failed(call, now)
            return
        first = call.tries == 1
        call.tries += 1
        call.rto = min(max(2 * call.rto, RTO_AGAIN), RTO_MAX)
        call.deadline = now + call.rto
        self._count += 1
        heapq.heappush(self._timers, (call.deadline, self._count, call))
        self.totals.retries += 1
        self._send(call.datagram, call.address)
        if first:
            call.asker.late(call, now)

    # -- hearing -----------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, address: Address, now: float) -> None:
        """Take a datagram that came from `address`. Whatever it is, nothing is raised."""
        try:
            head = datagram[0] if datagram else 0
            if head == packet.REPLY:
                self._receive_reply(datagram, address, now)
            elif head == packet.REQUEST:
                self._receive_request(datagram, address, now)
            elif head == packet.HELLO:
                if len(datagram) >= packet.HELLO_BYTES and self._allow(address, 1.0, now):
                    self._send(packet.welcome(datagram[1 : 1 + packet.RID_BYTES], self.key.public), address)
            elif head == packet.WELCOME:
                self._receive_welcome(datagram, address)
        except (BadPacket, BadContact):
            self.totals.bad += 1
            self._allow(address, 2.0, now)

    def _allow(self, address: Address, cost: float, now: float) -> bool:
        # Who has one IPv6 address has 2^64 at least.
        origin = address[0] if ":" not in address[0] else group_of(address[0])
        if self._exempt(address) or self._buckets.allow(origin, cost, now):
            return True
        self.totals.refused += 1
        return False

    def _receive_welcome(self, datagram: bytes, address: Address) -> None:
        if len(datagram) != packet.WELCOME_BYTES:
            raise BadPacket("a welcome of the wrong size")
        waiting = self._hellos.get(datagram[1 : 1 + packet.RID_BYTES])
        if waiting is not None and waiting[0] == address:
            del self._hellos[datagram[1 : 1 + packet.RID_BYTES]]
            waiting[1](datagram[1 + packet.RID_BYTES :])

    def _receive_reply(self, datagram: bytes, address: Address, now: float) -> None:
        call = self._calls.get(datagram[1:13])
        if call is None or (address != call.address and not _same_channel(address, call.address)):
            return  # too late, or not from the node asked: neither costs more than this
        peer = call.peer
        reply = messages.parse_reply(packet.open_reply(peer.receive_key, datagram), call.op)
        del self._calls[call.rid]
        self.totals.received += 1
        self.totals.unanswered = 0
        peer.token = reply.token
        peer.token_at = peer.heard_at = now
        peer.failures = 0
        if peer.late:
            peer.late = False
            self.late.discard(peer.contact.path)
        if call.tries == 1:
            self._measure(peer, now - call.sent_at)
        elif peer.rtt:
            # Karn: an answer to a question sent twice says nothing exact of the round trip. But it was no longer than
            # this, so the next question waits as long: a node that has become slow is not asked twice for ever, which
            # would make it slower still.
            peer.rtt_dev = max(peer.rtt_dev, (now - call.sent_at - peer.rtt) / 4)
        call.asker.answered(call, reply, now)

    def _measure(self, peer: Peer, sample: float) -> None:
        if peer.rtt:
            peer.rtt_dev += (abs(sample - peer.rtt) - peer.rtt_dev) / 4
            peer.rtt += (sample - peer.rtt) / 8
        else:
            peer.rtt, peer.rtt_dev = sample, sample / 2
        if self.rtt:
            self.rtt_dev += (abs(sample - self.rtt) - self.rtt_dev) / 16
            self.rtt += (sample - self.rtt) / 32
        else:
            self.rtt, self.rtt_dev = sample, sample / 2

    def _receive_request(self, datagram: bytes, address: Address, now: float) -> None:
        if self.server is None or len(datagram) > packet.MTU:
            return
        sender = datagram[1:33]
        by_channel = isinstance(address, ByChannel)
        if by_channel and address.key != sender:
            raise BadPacket("a request in the name of another node than the channel's")
        path = sender if not by_channel and ":" not in address[0] else _path(sender, address)
        peer = self.peers.get(path) or self._strangers.get(path)
        fresh = peer is None or peer.send_key is None
        if not self._allow(address, STRANGER_COST if fresh else 1.0, now):
            return
        if peer is None:
            if len(datagram) < packet.REQUEST_HEAD + packet.BOX_BYTES or puzzle_zero_bits(sender) < self.puzzle_bits:
                raise BadPacket("a request by no node")
            peer = Peer(contact_at(sender, address))
        if peer.send_key is None:
            self._agree(peer)
        request = messages.parse_request(packet.open_request(peer.receive_key, datagram))
        self.totals.by_datagram += not by_channel
        if fresh and path not in self.peers:
            if len(self._strangers) >= MAX_STRANGERS:
                del self._strangers[next(iter(self._strangers))]
            self._strangers[path] = peer
        packed = pack_address(address[0], address[1])
        token = self._tokens.issue(sender, packed, now)
        # Who speaks over a connection receives there; and what is answered goes nowhere else.
        proved = (
            by_channel
            or request.token == token
            or (request.token != NO_TOKEN and self._tokens.valid(request.token, sender, packed, now))
        )
        room = packet.REPLY_ROOM
        if not proved:
            room = min(room, AMPLIFICATION * len(datagram) - packet.REPLY_HEAD - packet.BOX_BYTES)
        answer = self.server.serve(request, peer, address, proved=proved, room=room - messages.HEAD, now=now)
        if answer is None:
            return
        self.totals.served += 1
        assert peer.send_key is not None  # noqa: S101  (set by _agree)
        plaintext = bytes((request.op | 0x80, answer[0])) + token + answer[1:]
        self._send(
            packet.seal_reply(peer.send_key, datagram[33:45], self._random(packet.SALT_BYTES), plaintext),
            address,
        )

    def unreachable(self, key: bytes, now: float) -> None:
        """No channel can be made to this node: what was asked there has failed."""
        for call in [c for c in self._calls.values() if isinstance(c.address, ByChannel) and c.address.key == key]:
            call.tries = TRIES
            if call.rid in self._calls:
                self._overdue(call, now)

    @property
    def outstanding(self) -> int:
        """Questions that are out."""
        return len(self._calls)


def _same_channel(one: Address, other: Address) -> bool:
    """Whether both are channels to one node: which proved its key on each, whoever of the two opened the stream."""
    return isinstance(one, ByChannel) and isinstance(other, ByChannel) and one.key == other.key


def _path(sender: bytes, address: Address) -> bytes:
    via = Via.UDP
    if isinstance(address, ByChannel):
        via = Via.BACK if address.back else Via.CHANNEL
    return path_of(sender, 6 if ":" in address[0] else 4, via)


UNSUPPORTED: Final = bytes((messages.Status.UNSUPPORTED,))
"""The answer to an op that this version does not know."""

__all__ = ["UNSUPPORTED", "Asker", "Call", "Limits", "Op", "Peer", "Rng", "Rpc", "Server", "Totals"]
