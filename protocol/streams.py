"""Many streams over one channel: the state of each, flow control, and what to send next. Sans-IO, no cryptography.

A *stream* is one exchange: opened by either side with a service number, a body each way, each ended on its own, or
reset. Ids are consecutive, odd from the session's initiator, even from the responder, never reused. A stream is over
when each side has ended or reset it. A reset is answered by one, unless the answering side had ended already: so both
sides agree on when a stream is over, and a side that breaks `MAX_STREAMS` can't plead bad timing.

Nothing here grows without bound at the peer's will. Frames are made when asked for (`next_plaintext`), so what a slow
reader makes wait is one window update and one reset per stream, and the bodies that the local side handed in. What the
peer may send is bounded by windows, by a body limit per service, and by what all its streams together make this side
keep: requests until they are answered, replies until they are sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from protocol.errors import LocalError, PeerViolation
from protocol.frames import FLAG_END, MAX_PAYLOAD, BadFrame, Frame, FrameKind, encode

MAX_STREAMS: Final = 128
"""How many streams one side may have opened that are not over. More is a violation."""
STREAM_WINDOW: Final = 262_144
"""Body bytes that may be in flight on a fresh stream, each way."""
SESSION_WINDOW: Final = 1_048_576
"""Body bytes that may be in flight on a fresh session, each way."""
MAX_WINDOW: Final = 2**31 - 1
"""A window may never grow beyond this."""

_SERVICE: Final = Struct(">H")
_CODE: Final = Struct(">H")
_INCREMENT: Final = Struct(">I")


class ResetCode(IntEnum):
    """Why a stream was abandoned. Codes of 1000 and more are those of `protocol.errors`, from the service."""

    CANCELLED = 1
    """The side that reset no longer wants the exchange."""
    UNKNOWN_SERVICE = 2
    """The receiver does not offer the service."""
    BUSY = 3
    """Too many exchanges at once: try later."""
    TOO_LARGE = 4
    """The body is larger than the receiver takes for this service."""
    TOO_SLOW = 5
    """The exchange did not finish in the time that the receiver gives it."""
    FAILED = 6
    """The service failed for reasons of its own."""


class StreamViolation(PeerViolation):
    """The peer used a stream that it may not use: never opened, not its own, or already ended."""

    code = 2205


class StreamFlood(PeerViolation):
    """The peer opened more streams at once than the protocol allows."""

    code = 2206


class WindowOverrun(PeerViolation):
    """The peer sent more than it was allowed to, or allowed more than the protocol can count."""

    code = 2207


class StreamOver(LocalError):
    """The exchange with the peer has ended."""

    code = 1402


class TooManyStreams(LocalError):
    """There are too many exchanges with this peer at once."""

    code = 1403


class NoRoom(LocalError):
    """The peer leaves too many replies unread."""

    code = 1405


UNBOUNDED: Final = 2**62
"""The limit of a body that is dealt with as it comes, so that only windows bound what is kept of it."""


class BodyLimits(NamedTuple):
    """What one service takes and gives, in bytes of body."""

    request_bytes: int
    reply_bytes: int
    streamed: bool = False
    """Bodies of any length, dealt with as they come: a pipe."""


class StreamOpened(NamedTuple):
    """The peer opened a stream to one of the local services."""

    stream: int
    service: int


class BodyReceived(NamedTuple):
    """The next bytes of the peer's body; `end` with the last of them. Give them back with `consume`."""

    stream: int
    data: bytes
    end: bool


class StreamReset(NamedTuple):
    """The stream was abandoned, by the peer or because its body grew over the limit. Nothing follows on it."""

    stream: int
    code: int
    by_peer: bool


StreamEvent = StreamOpened | BodyReceived | StreamReset


class _Stream:
    """Both halves of one stream."""

    __slots__ = (
        "aborted",
        "announced",
        "end_wanted",
        "grant",
        "held",
        "id",
        "outgoing",
        "queued",
        "receive_done",
        "receive_limit",
        "receive_window",
        "received",
        "reset_code",
        "send_done",
        "send_window",
        "service",
        "unsent",
    )

    def __init__(self, stream: int, service: int, receive_limit: int) -> None:
        self.id = stream
        self.service = service
        self.announced = False  # the peer knows of it: its OPEN was sent, or received
        self.outgoing: deque[memoryview] = deque()
        self.unsent = 0  # bytes in it
        self.send_window = STREAM_WINDOW
        self.end_wanted = False
        self.send_done = False
        self.receive_limit = receive_limit
        self.received = 0
        self.receive_window = STREAM_WINDOW
        self.receive_done = False
        self.grant = 0  # bytes consumed here that the peer was not told of yet
        self.held = 0  # bytes that it makes this side keep at the peer's will
        self.aborted = False  # reset by this side: what still arrives is dropped
        self.reset_code: int | None = None  # of a RESET that waits to be sent
        self.queued = False


class Streams:
    """The streams of one session, seen from one side."""

    def __init__(
        self,
        *,
        initiator: bool,
        services: Mapping[int, BodyLimits],
        max_inbound_streams: int,
        max_inbound_bytes: int,
        emit: Callable[[StreamEvent], None],
    ) -> None:
        """`emit` is told what happens. The two limits are told in `session.Settings`.

        Raises ValueError for a service that no peer could ever use under them.
        """
        if any(
            not limits.streamed and limits.request_bytes + limits.reply_bytes > max_inbound_bytes
            for limits in services.values()
        ):
            raise ValueError("a service's body limits exceed the sum allowed for all streams")
        self._services = services
        self._max_inbound_streams = max_inbound_streams
        self._max_inbound_bytes = max_inbound_bytes
        self._emit = emit
        self._next_own, self._next_peer = (1, 2) if initiator else (2, 1)
        self._open: dict[int, _Stream] = {}
        self._own_count = 0
        self._peer_count = 0
        self._held = 0
        self._send_window = SESSION_WINDOW
        self._receive_window = SESSION_WINDOW
        self._unconsumed = 0
        self._grant = 0
        self._grants_due: deque[_Stream] = deque()
        self._ready: deque[_Stream] = deque()

    def __len__(self) -> int:
        """How many streams are not over, both sides' together."""
        return len(self._open)

    def __contains__(self, stream_id: int) -> bool:
        """Whether the stream is not over."""
        return stream_id in self._open

    @property
    def last_peer_stream(self) -> int:
        """The highest id that the peer has opened; 0 or 1 less than its first before it opened any."""
        return max(self._next_peer - 2, 0)

    def open(self, service: int, body: bytes, *, end: bool, reply_limit: int) -> int:
        """Open a stream with the first (or all) of its body; its id. Raises TooManyStreams."""
        if self._own_count >= MAX_STREAMS:
            raise TooManyStreams
        stream = _Stream(self._next_own, service, reply_limit)
        self._next_own += 2
        self._own_count += 1
        self._open[stream.id] = stream
        self._push(stream, body, end=end)
        return stream.id

    def send(self, stream_id: int, body: bytes, *, end: bool) -> None:
        """Send more of this side's body. Raises StreamOver when it was ended, or the stream reset by either side.

        Raises NoRoom, and resets the stream as BUSY, when a reply adds too much to what the peer leaves unread.
        """
        stream = self._open.get(stream_id)
        if stream is None or stream.end_wanted or stream.aborted:
            raise StreamOver
        if stream_id % 2 == self._next_peer % 2:
            if self._held + len(body) > self._max_inbound_bytes:
                self._abort(stream, ResetCode.BUSY)
                raise NoRoom
            stream.held += len(body)
            self._held += len(body)
        self._push(stream, body, end=end)

    def backlog(self, stream_id: int) -> int:
        """Bytes of this side's body that were handed in and not sent yet."""
        stream = self._open.get(stream_id)
        return 0 if stream is None else stream.unsent

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon a stream; without effect on one that is over."""
        stream = self._open.get(stream_id)
        if stream is not None and not stream.aborted:
            self._abort(stream, code)

    def consume(self, stream_id: int, size: int, *, kept: bool) -> None:
        """Allow the peer `size` more bytes, after as many from BodyReceived were taken. ValueError for more.

        `kept`: they are still in memory, and count as what the peer makes this side keep until the stream is over.
        """
        if not 0 <= size <= self._unconsumed:
            raise ValueError("more bytes consumed than received")
        self._unconsumed -= size
        self._grant += size
        stream = self._open.get(stream_id)
        if stream is None:
            return
        if not kept:
            self._release(stream, min(size, stream.held))
        if not stream.receive_done:
            before = stream.grant
            stream.grant += size
            if before < STREAM_WINDOW // 2 <= stream.grant:
                self._grants_due.append(stream)

    def abandon(self, last_seen: int | None) -> frozenset[int]:
        """Forget every stream; the own ones that the peer can't have acted on: above `last_seen`, or unannounced."""
        unseen = frozenset(
            stream.id
            for stream in self._open.values()
            if stream.id % 2 == self._next_own % 2
            and (not stream.announced or (last_seen is not None and stream.id > last_seen))
        )
        self._open.clear()
        self._ready.clear()
        self._grants_due.clear()
        return unseen

    # What the peer sent.

    def receive(self, frame: Frame) -> None:
        """Take an OPEN, DATA, RESET or WINDOW frame. Raises a PeerViolation, after which the session must end."""
        kind, stream_id, payload, flags = frame
        if flags & ~FLAG_END or (flags and kind not in (FrameKind.OPEN, FrameKind.DATA)):
            raise BadFrame("a frame has flags that it may not have")
        if kind == FrameKind.OPEN:
            self._on_open(stream_id, payload, end=bool(flags))
        elif kind == FrameKind.DATA:
            self._on_data(stream_id, payload, end=bool(flags))
        elif kind == FrameKind.RESET:
            self._on_reset(stream_id, payload)
        else:
            self._on_window(stream_id, payload)

    def _on_open(self, stream_id: int, payload: bytes, *, end: bool) -> None:
        if stream_id != self._next_peer:
            raise StreamViolation("the peer opened a stream out of sequence")
        if len(payload) < _SERVICE.size:
            raise BadFrame("an OPEN frame names no service")
        if self._peer_count >= MAX_STREAMS:
            raise StreamFlood
        (service,) = _SERVICE.unpack_from(payload)
        limits = self._services.get(service)
        stream = _Stream(stream_id, service, 0 if limits is None else _request_limit(limits))
        stream.announced = True
        self._next_peer += 2
        self._peer_count += 1
        self._open[stream_id] = stream
        if limits is None:
            self._abort(stream, ResetCode.UNKNOWN_SERVICE)
        elif self._peer_count > self._max_inbound_streams:
            self._abort(stream, ResetCode.BUSY)
        else:
            self._emit(StreamOpened(stream_id, service))
        self._take_body(stream, payload[_SERVICE.size :], end=end)

    def _on_data(self, stream_id: int, payload: bytes, *, end: bool) -> None:
        stream = self._open.get(stream_id)
        if stream is None or stream.receive_done or not stream.announced:
            raise StreamViolation
        if not payload and not end:
            raise BadFrame("a DATA frame has no data")
        self._take_body(stream, payload, end=end)

    def _take_body(self, stream: _Stream, data: bytes, *, end: bool) -> None:
        size = len(data)
        if size > stream.receive_window or size > self._receive_window:
            raise WindowOverrun
        stream.receive_window -= size
        self._receive_window -= size
        stream.received += size
        if not stream.aborted:
            code = self._excess(stream, size)
            if code is not None:
                self._emit(StreamReset(stream.id, code, by_peer=False))
                self._abort(stream, code)
        if end:
            stream.receive_done = True
        if not stream.aborted:
            self._unconsumed += size
            if size or end:
                self._emit(BodyReceived(stream.id, data, end))
        else:
            self._grant += size
        self._settle(stream)

    def _excess(self, stream: _Stream, size: int) -> ResetCode | None:
        """Why `size` more bytes of body can't be taken, if they can't; else they are counted."""
        if stream.received > stream.receive_limit:
            return ResetCode.TOO_LARGE
        if stream.id % 2 == self._next_own % 2:
            return None  # an answer that was asked for, and has its limit
        if self._held + size > self._max_inbound_bytes:
            return ResetCode.BUSY
        stream.held += size
        self._held += size
        return None

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != _CODE.size:
            raise BadFrame("a RESET frame has no code")
        stream = self._find(stream_id)
        if stream is None:
            return
        if not stream.aborted:
            (code,) = _CODE.unpack(payload)
            self._emit(StreamReset(stream_id, code, by_peer=True))
            if not stream.send_done:
                self._abort(stream, ResetCode.CANCELLED)
        stream.receive_done = True
        self._settle(stream)

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != _INCREMENT.size:
            raise BadFrame("a WINDOW frame has no increment")
        (increment,) = _INCREMENT.unpack(payload)
        if not increment:
            raise BadFrame("a WINDOW frame allows nothing")
        if stream_id == 0:
            self._send_window += increment
            if self._send_window > MAX_WINDOW:
                raise WindowOverrun
            for waiting in self._open.values():
                self._enqueue(waiting)
        elif (stream := self._find(stream_id)) is not None:
            stream.send_window += increment
            if stream.send_window > MAX_WINDOW:
                raise WindowOverrun
            self._enqueue(stream)

    def _find(self, stream_id: int) -> _Stream | None:
        """The stream; None when it is over: RESET and WINDOW may cross its end on the way."""
        stream = self._open.get(stream_id)
        if stream is None:
            following = self._next_own if stream_id % 2 == self._next_own % 2 else self._next_peer
            if not 0 < stream_id < following:
                raise StreamViolation
        elif not stream.announced:
            raise StreamViolation
        return stream

    # What to send.

    def next_plaintext(self) -> bytes | None:
        """The plaintext of the next frame, or None when there is nothing to send or no window for it."""
        if self._grant >= SESSION_WINDOW // 2:
            grant, self._grant = self._grant, 0
            self._receive_window += grant
            return encode(FrameKind.WINDOW, 0, 0, _INCREMENT.pack(grant))
        while self._grants_due:
            stream = self._grants_due.popleft()
            if not stream.receive_done and not stream.aborted:
                grant, stream.grant = stream.grant, 0
                stream.receive_window += grant
                return encode(FrameKind.WINDOW, stream.id, 0, _INCREMENT.pack(grant))
        while self._ready:
            stream = self._ready.popleft()
            stream.queued = False
            if self._sendable(stream):
                return self._next_of(stream)
        return None

    def _next_of(self, stream: _Stream) -> bytes:
        """The next frame of a sendable stream, which goes back to the end of the queue: streams take turns."""
        if stream.announced and stream.reset_code is not None:
            code, stream.reset_code = stream.reset_code, None
            stream.send_done = True
            self._settle(stream)
            return encode(FrameKind.RESET, stream.id, 0, _CODE.pack(code))
        head = b"" if stream.announced else _SERVICE.pack(stream.service)
        kind = FrameKind.DATA if stream.announced else FrameKind.OPEN
        piece: bytes | memoryview = b""
        room = min(MAX_PAYLOAD - len(head), stream.send_window, self._send_window)
        if stream.outgoing and room:
            piece = stream.outgoing[0]
            if len(piece) <= room:
                stream.outgoing.popleft()
            else:
                stream.outgoing[0] = piece[room:]
                piece = piece[:room]
            self._release(stream, min(len(piece), stream.held))
            stream.unsent -= len(piece)
            stream.send_window -= len(piece)
            self._send_window -= len(piece)
        stream.announced = True
        stream.send_done = stream.end_wanted and not stream.outgoing
        if stream.send_done:
            self._settle(stream)
        else:
            self._enqueue(stream)
        return encode(kind, stream.id, FLAG_END if stream.send_done else 0, head, piece)

    def _sendable(self, stream: _Stream) -> bool:
        if not stream.announced or stream.reset_code is not None:
            return True
        if stream.send_done:
            return False
        if stream.outgoing:
            return stream.send_window > 0 and self._send_window > 0
        return stream.end_wanted

    def _push(self, stream: _Stream, body: bytes, *, end: bool) -> None:
        if body:
            stream.outgoing.append(memoryview(body))
            stream.unsent += len(body)
        stream.end_wanted = end
        self._enqueue(stream)

    def _enqueue(self, stream: _Stream) -> None:
        if not stream.queued and self._sendable(stream):
            stream.queued = True
            self._ready.append(stream)

    def _abort(self, stream: _Stream, code: int) -> None:
        stream.aborted = True
        self._release(stream, stream.held)
        stream.outgoing.clear()
        stream.unsent = 0
        stream.end_wanted = False
        stream.reset_code = code
        self._enqueue(stream)

    def _release(self, stream: _Stream, size: int) -> None:
        stream.held -= size
        self._held -= size

    def _settle(self, stream: _Stream) -> None:
        """Forget a stream that is over."""
        if not (stream.send_done and stream.receive_done) or stream.id not in self._open:
            return
        stream.reset_code = None
        del self._open[stream.id]
        self._release(stream, stream.held)
        if stream.id % 2 == self._next_own % 2:
            self._own_count -= 1
        else:
            self._peer_count -= 1


def _request_limit(limits: BodyLimits) -> int:
    return UNBOUNDED if limits.streamed else limits.request_bytes
