"""An encrypted session between two nodes: a Noise handshake, then many streams over one byte stream. Sans-IO.

Theory of operation. The driver owns a reliable, ordered byte stream (a socket, a relayed stream) and a clock. It feeds
`receive_data`, drains `next_event`, writes `data_to_send`, and calls `handle_timer` when `get_timer` says so. `now` is
any monotonic clock, in seconds. Both ends run this same class; `Role` matters only for who begins.

The initiator knows the responder's node key from its contact record. The responder learns the initiator's from the
third handshake message: its payload is the Ed25519 node key behind the Noise static key, and must convert to it.

Layers: `noise.py` makes the keys, `frames.py` lays out a frame, `streams.py` multiplexes; this module joins them and
sees to liveness, rekeying and the end. Output is made when the driver asks for it, and a received byte is kept only
while its frame, whose size was checked first, is incomplete: so a peer can't make this side hold more than its limits.

A violation ends the session: `receive_data` raises it, and `Closed` follows as after any other end. The last thing to
send is then a CLOSE frame that tells the peer what was wrong; nothing at all during the handshake, so that a stranger
who does not know the node key can't tell what it talks to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from math import inf
from struct import Struct
from typing import Final, NamedTuple, assert_never

from protocol.errors import LocalError, PeerViolation
from protocol.frames import FRAME_SIZES, LENGTH, BadFrame, Frame, FrameKind, Opener, Sealer, encode
from protocol.identity import BadId, SigningKey, x25519_of
from protocol.noise import Handshake, HandshakeFailed, KeyPair
from protocol.streams import BodyLimits, StreamEvent, Streams
from protocol.types import Network, NodeKey

PROLOGUE: Final = b"p2pnode/channel/1"
"""Followed by one byte, the network: nodes of different versions or networks fail their handshake."""
HANDSHAKE_SIZES: Final = (48, 48, 96)
"""Of the three messages: an ephemeral key and a tag; the same; a sealed static key and a sealed node key."""
_TOKEN: Final = Struct(">Q")
_FAREWELL: Final = Struct(">HQ")
_STREAM_KINDS: Final = frozenset({FrameKind.OPEN, FrameKind.DATA, FrameKind.RESET, FrameKind.WINDOW})
_CONTROL_SIZES: Final[Mapping[int, int]] = {
    FrameKind.PING: 8,
    FrameKind.PONG: 8,
    FrameKind.REKEY: 0,
    FrameKind.CLOSE: _FAREWELL.size,
}
"""Payload bytes of the frames that concern the whole session."""


class Role(Enum):
    """Who began the session."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class CloseCode(IntEnum):
    """Why a session ended. Codes of 1000 and more are those of `protocol.errors`: what the other side did wrong."""

    REPLACED = 1
    """Another session with this peer took its place."""
    IDLE = 2
    """There was no stream for a while."""
    SHUTDOWN = 3
    """The node stops."""
    SILENT = 4
    """The peer gave no sign of life."""
    LOST = 5
    """The byte stream ended. Never sent."""
    HANDSHAKE_TIMEOUT = 6
    """The handshake took too long. Never sent."""


class UnknownFrame(PeerViolation):
    """The peer sent a kind of frame that must be understood and is not: one of the two nodes needs an update."""

    code = 2208


class PingAbuse(PeerViolation):
    """The peer sent a ping before the last was answered, or answered one that was never sent."""

    code = 2209


class SessionOver(LocalError):
    """The session with the peer has ended."""

    code = 1404


@dataclass(frozen=True, slots=True)
class Settings:
    """What a node may choose for its own side of a session. Times are in seconds."""

    handshake_timeout: float = 10.0
    """From construction to the last handshake message."""
    ping_after: float = 30.0
    """Silence after which the peer is asked for a sign of life."""
    ping_timeout: float = 30.0
    """Further silence after which it is taken for dead."""
    probe_timeout: float = 5.0
    """The same after `probe`: somebody waits for this peer."""
    idle_after: float = inf
    """Time without any stream after which the session is closed."""
    rekey_after: float = 3_600.0
    """Age of the sending key at which it is replaced, if REKEY_FRAMES did not do so before."""
    max_inbound_streams: int = 32
    """Open streams of the peer beyond which more are refused as BUSY; above MAX_STREAMS it has no effect."""
    max_inbound_bytes: int = 4_194_304
    """What the peer's streams may make this side keep: requests until they are answered, and replies until they are
    sent. Beyond it a stream is refused as BUSY."""


class Connected(NamedTuple):
    """The handshake is complete; `peer` is the node key that the other side proved."""

    peer: NodeKey


class Closed(NamedTuple):
    """The session is over; always the last event. `unseen`: own streams that the peer certainly did not act on."""

    code: int
    by_peer: bool
    unseen: frozenset[int]


Event = Connected | StreamEvent | Closed


class _State(Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSED = "closed"


class Session:
    """One side of one session."""

    def __init__(
        self,
        role: Role,
        static_key: SigningKey,
        remote_static: NodeKey | None,
        ephemeral: Callable[[], bytes],
        network: Network,
        now: float,
        *,
        services: Mapping[int, BodyLimits] | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Begin. `remote_static` is the responder's node key, given by the initiator and only by it.

        `ephemeral` gives 32 fresh secret random bytes. `services` are those that the peer may open streams to.
        Raises BadId or HandshakeFailed when `remote_static` is no usable key, ValueError when the role forbids it.
        """
        initiating = role is Role.INITIATOR
        self.role = role
        self.peer = remote_static
        """The peer's node key; the responder knows it from `Connected` on."""
        self._static_key = static_key
        self._settings = settings or Settings()
        self._state = _State.HANDSHAKE
        self._handshake = Handshake(
            initiator=initiating,
            static=KeyPair(static_key.x25519_secret, static_key.x25519_public),
            ephemeral=ephemeral,
            prologue=PROLOGUE + bytes([network]),
            remote_static=None if remote_static is None else x25519_of(remote_static),
        )
        self._handshake_turn = 0  # the index of the message to come
        self._events: deque[Event] = deque()
        self._streams = Streams(
            initiator=initiating,
            services=services or {},
            max_inbound_streams=self._settings.max_inbound_streams,
            max_inbound_bytes=self._settings.max_inbound_bytes,
            emit=self._events.append,
        )
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []  # handshake messages; frames are made when asked for
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._farewell: bytes | None = None  # the last frame to send, encoded
        self._pong: bytes | None = None  # what the peer's ping asks to return
        self._ping: bytes | None = None  # our ping that did not come back
        self._ping_due = False
        self._urgent = False  # the ping is a probe
        self._pings = 0
        self._rekey_due = False
        self._retiring = False
        self._now = now
        self._handshake_by = now + self._settings.handshake_timeout
        self._rekey_at = inf
        self._heard_at = self._ping_at = self._stream_at = now
        if initiating:
            self._write_handshake()

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete and the session not over."""
        return self._state is _State.OPEN

    @property
    def is_over(self) -> bool:
        """Whether the session has ended. `data_to_send` may still have its farewell."""
        return self._state is _State.CLOSED

    @property
    def stream_count(self) -> int:
        """How many streams, of both sides, are not over."""
        return len(self._streams)

    @property
    def heard_at(self) -> float:
        """When the peer last sent a whole frame."""
        return self._heard_at

    def has_stream(self, stream: int) -> bool:
        """Whether a stream is not over yet: something is still to be sent or received."""
        return stream in self._streams

    # Streams.

    def open_stream(self, service: int, body: bytes = b"", *, end: bool = True, reply_limit: int) -> int:
        """Open a stream; its id. It may be opened before the handshake is complete.

        A reply of more than `reply_limit` bytes is reset. Raises SessionOver or TooManyStreams.
        """
        self._check_not_over()
        return self._streams.open(service, body, end=end, reply_limit=reply_limit)

    def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Send more of this side's body, or the last of it. Raises SessionOver, StreamOver or NoRoom."""
        self._check_not_over()
        self._streams.send(stream, body, end=end)

    def backlog(self, stream: int) -> int:
        """Bytes given to `send` that were not taken by `data_to_send` yet."""
        return self._streams.backlog(stream)

    def reset(self, stream: int, code: int) -> None:
        """Abandon a stream, with a ResetCode or an error's code below 65,536. No effect if it is over."""
        self._streams.reset(stream, code)

    def consume(self, stream: int, size: int, *, kept: bool = False) -> None:
        """Let the peer send `size` bytes more: those of a BodyReceived were dealt with, or are `kept` till the end."""
        if self._state is not _State.CLOSED:
            self._streams.consume(stream, size, kept=kept)

    # The end.

    def retire(self) -> None:
        """Close, as REPLACED, as soon as no stream is left. Streams may still be opened until then."""
        self._retiring = True

    def close(self, code: int = CloseCode.SHUTDOWN) -> None:
        """Close now; streams are abandoned. No effect on a session that is over."""
        if self._state is not _State.CLOSED:
            self._end(code)

    # What comes in.

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the peer, however they were cut. Raises a PeerViolation: the session is then over."""
        if self._state is _State.CLOSED:
            return
        self._now = now
        self._incoming += data
        try:
            while (message := self._next_message()) is not None:
                self._heard_at = now
                if self._opener is None:
                    self._on_handshake(message)
                else:
                    self._on_frame(self._opener.open(message))
        except PeerViolation as violation:
            self._end(violation.code)
            raise

    def receive_eof(self, now: float) -> None:
        """The byte stream ended. What was received of an incomplete frame is dropped."""
        self._now = now
        if self._state is not _State.CLOSED:
            self._end(CloseCode.LOST)

    def next_event(self) -> Event | None:
        """What happened, oldest first; None when there is no more."""
        return self._events.popleft() if self._events else None

    # What goes out.

    def data_to_send(self, limit: int = 262_144) -> bytes:
        """What to write now: up to `limit` bytes and the rest of a frame. Empty when there is nothing."""
        parts = self._outgoing
        self._outgoing = []
        size = 0
        while size < limit and self._sealer is not None:
            if self._rekey_due or self._sealer.must_rekey:
                parts.append(self._sealer.seal_rekey())
                self._rekey_due = False
                self._rekey_at = self._now + self._settings.rekey_after
            plaintext = self._next_plaintext()
            if plaintext is None:
                break
            parts.append(self._sealer.seal(plaintext))
            size += len(plaintext)
            if self._state is _State.CLOSED:
                self._sealer = None
        return b"".join(parts)

    # Time.

    def probe(self, now: float) -> None:
        """Ask for a sign of life now; a peer that owes one already gets no more time."""
        self._now = now
        if self._state is _State.OPEN and self._ping is None:
            self._urgent = True
            self._send_ping()

    def get_timer(self) -> float | None:
        """When to call `handle_timer` next; it may move later, seldom earlier. None when never."""
        match self._state:
            case _State.HANDSHAKE:
                return self._handshake_by
            case _State.OPEN:
                return min(self._rekey_at, self._silence_ends(), self._idle_ends())
            case _State.CLOSED:
                return None
            case _:
                assert_never(self._state)

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`; calling early or often does no harm."""
        self._now = now
        if self._state is _State.HANDSHAKE and now >= self._handshake_by:
            self._end(CloseCode.HANDSHAKE_TIMEOUT)
        if self._state is not _State.OPEN:
            return
        if now >= self._silence_ends():
            if self._ping is not None:
                self._end(CloseCode.SILENT)
                return
            self._send_ping()
        if now >= self._idle_ends():
            self._end(CloseCode.IDLE)
        elif now >= self._rekey_at:
            self._rekey_due = True
            self._rekey_at = now + self._settings.rekey_after

    # Inside.

    def _send_ping(self) -> None:
        self._pings += 1
        self._ping = _TOKEN.pack(self._pings)
        self._ping_at = self._now
        self._ping_due = True

    def _silence_ends(self) -> float:
        if self._ping is None:
            return self._heard_at + self._settings.ping_after
        timeout = self._settings.probe_timeout if self._urgent else self._settings.ping_timeout
        return max(self._heard_at, self._ping_at) + timeout

    def _idle_ends(self) -> float:
        return inf if len(self._streams) else self._stream_at + self._settings.idle_after

    def _next_message(self) -> bytes | None:
        """Cut the next whole message off what came in. Raises BadFrame as soon as its length is wrong."""
        incoming = self._incoming
        if len(incoming) < LENGTH.size or self._state is _State.CLOSED:
            return None
        (size,) = LENGTH.unpack_from(incoming)
        if self._opener is None:
            if size != HANDSHAKE_SIZES[self._handshake_turn]:
                raise HandshakeFailed("the peer does not speak this protocol")
        elif size not in FRAME_SIZES:
            raise BadFrame("a frame has none of the allowed sizes")
        end = LENGTH.size + size
        if len(incoming) < end:
            return None
        message = bytes(incoming[LENGTH.size : end])
        del incoming[:end]
        return message

    def _on_handshake(self, message: bytes) -> None:
        payload = self._handshake.read_message(message)
        self._handshake_turn += 1
        if self._handshake_turn < len(HANDSHAKE_SIZES):
            self._write_handshake()
        else:
            self.peer = self._checked_node_key(payload)
        if not self._handshake.is_complete or self.peer is None:
            return
        sender, receiver = self._handshake.split()
        self._sealer, self._opener = Sealer(sender), Opener(receiver)
        self._state = _State.OPEN
        self._rekey_at = self._now + self._settings.rekey_after
        self._stream_at = self._now
        self._events.append(Connected(self.peer))

    def _write_handshake(self) -> None:
        """Send the next message; the initiator's last one says which node key it has."""
        last = self._handshake_turn == len(HANDSHAKE_SIZES) - 1
        message = self._handshake.write_message(self._static_key.public if last else b"")
        self._outgoing.append(LENGTH.pack(len(message)) + message)
        self._handshake_turn += 1

    def _checked_node_key(self, claimed: bytes) -> NodeKey:
        """The initiator's node key, if it is the one whose Noise form was proved. Raises HandshakeFailed."""
        try:
            proved = x25519_of(claimed) == self._handshake.remote_static
        except BadId as e:
            raise HandshakeFailed("the peer named an unusable node key") from e
        if not proved:
            raise HandshakeFailed("the peer named a node key that is not its own")
        return claimed

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.kind
        if kind in _STREAM_KINDS:
            self._stream_at = self._now
            self._streams.receive(frame)
        elif kind in _CONTROL_SIZES:
            if frame.stream or frame.flags or len(frame.payload) != _CONTROL_SIZES[kind]:
                raise BadFrame("a control frame has a wrong layout")
            if kind == FrameKind.PING:
                self._on_ping(frame.payload)
            elif kind == FrameKind.PONG:
                self._on_pong(frame.payload)
            elif kind == FrameKind.CLOSE:
                code, last_seen = _FAREWELL.unpack(frame.payload)
                self._end(code, by_peer=True, last_seen=last_seen)
        elif kind % 2 == 0:
            raise UnknownFrame

    def _on_ping(self, payload: bytes) -> None:
        if self._pong is not None:
            raise PingAbuse
        self._pong = payload

    def _on_pong(self, payload: bytes) -> None:
        if self._ping_due or payload != self._ping:
            raise PingAbuse
        self._ping = None
        self._urgent = False

    def _next_plaintext(self) -> bytes | None:
        if self._farewell is not None:
            farewell, self._farewell = self._farewell, None
            return farewell
        if self._pong is not None:
            payload, self._pong = self._pong, None
            return encode(FrameKind.PONG, 0, 0, payload)
        if self._ping_due and self._ping is not None:
            self._ping_due = False
            return encode(FrameKind.PING, 0, 0, self._ping)
        plaintext = self._streams.next_plaintext()
        if plaintext is not None:
            self._stream_at = self._now
        elif self._retiring and self.is_open and not len(self._streams):
            self._end(CloseCode.REPLACED)
            return self._next_plaintext()
        return plaintext

    def _end(self, code: int, *, by_peer: bool = False, last_seen: int | None = None) -> None:
        """End the session once and for all; what waits is dropped, but for a farewell that can still be read."""
        if by_peer or code == CloseCode.LOST:
            self._sealer = None
        elif self.is_open:
            self._farewell = encode(FrameKind.CLOSE, 0, 0, _FAREWELL.pack(code, self._streams.last_peer_stream))
        self._state = _State.CLOSED
        self._incoming.clear()
        self._events.append(Closed(code, by_peer, self._streams.abandon(last_seen)))

    def _check_not_over(self) -> None:
        if self._state is _State.CLOSED:
            raise SessionOver
