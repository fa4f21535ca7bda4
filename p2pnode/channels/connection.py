"""One session on one link: reads, feeds, drains, writes. Requests go out, services answer what comes in.

Everything that happens to the session happens in the event loop's thread, in `_pump`: events first, then output, then
the timer. Reading never waits for writing, so that two nodes can't lock each other up; instead, output is made only
while the link takes it, and the session bounds what may wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, assert_never

from p2pnode.channels.errors import NotTaken, PeerRefused, PeerUnable, Unreachable
from p2pnode.channels.links import Link, TcpLink
from p2pnode.channels.pipes import Pipe
from protocol.contact import Address
from protocol.errors import Action, Fault, P2PError, PeerViolation, TooLarge
from protocol.identity import node_text
from protocol.session import CloseCode, Closed, Connected, Event, Role, Session, SessionOver
from protocol.streams import (
    UNBOUNDED,
    BodyLimits,
    BodyReceived,
    ResetCode,
    StreamOpened,
    StreamReset,
)
from protocol.types import NodeKey

MAX_REQUESTS: Final = 32
"""Requests under way on one session; further ones wait. A peer accepts this many (`Settings.max_inbound_streams`)."""
PATIENCE: Final = 3.0
"""Seconds without a reply after which the peer is asked for a sign of life."""
WRITE_BYTES: Final = 262_144
"""How much is made for the link in one go."""

_REFUSALS: Final = frozenset({ResetCode.UNKNOWN_SERVICE, ResetCode.TOO_LARGE})
"""Stream codes that would come again for the same request."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """What this node does for its peers under one service number."""

    answer: Callable[[NodeKey, bytes], Awaitable[bytes]]
    """Gets the peer's node key and the request; returns the reply. What must not be cut short has to be shielded:
    it is cancelled when the peer goes away or gives up. A P2PError that it raises is the refusal: its code travels."""
    request_bytes: int
    """The longest request taken."""
    reply_bytes: int
    """The longest reply given."""
    seconds: float = 30.0
    """From the first byte of the request to the last of the reply."""

    @property
    def limits(self) -> BodyLimits:
        """The same for the session."""
        return BodyLimits(self.request_bytes, self.reply_bytes)


@dataclass(frozen=True, slots=True)
class PipeService:
    """A service whose streams are pipes."""

    serve: Callable[[Pipe], Awaitable[None]]
    """Gets each pipe that a peer opens. It is cancelled when the session ends. A P2PError or a PipeBroken that it
    raises resets the pipe, a P2PError of a peer with its code; otherwise closing the pipe is the service's own."""

    @property
    def limits(self) -> BodyLimits:
        """The session's windows are all that bounds a pipe."""
        return BodyLimits(0, 0, streamed=True)


AnyService = Service | PipeService


class Owner(Protocol):
    """Who is told of a connection's beginning and end."""

    def connected(self, connection: Connection) -> None:
        """The handshake is complete and `connection.peer` known."""
        ...

    def disconnected(self, connection: Connection) -> None:
        """The session is over."""
        ...


class _Request:
    """One of ours, under way."""

    __slots__ = ("pieces", "reply")

    def __init__(self, reply: asyncio.Future[bytes]) -> None:
        self.reply = reply
        self.pieces: list[bytes] = []


class _Answer:
    """One of the peer's, being received or answered."""

    __slots__ = ("deadline", "pieces", "service", "task")

    def __init__(self, service: Service, deadline: asyncio.TimerHandle) -> None:
        self.service = service
        self.deadline = deadline
        self.pieces: list[bytes] = []
        self.task: asyncio.Task[None] | None = None


class Connection:
    """Drives one session. Made by `Channels`; `run` is its life."""

    def __init__(self, session: Session, link: Link, services: Mapping[int, AnyService], owner: Owner) -> None:
        """Take over a fresh session and a connected link."""
        self._session = session
        self._link = link
        self._services = services
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, _Request] = {}
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._answers: dict[int, _Answer] = {}
        self._pipes: dict[int, Pipe] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._congested = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._over: asyncio.Future[None] = self._loop.create_future()
        self.established: asyncio.Future[Connection] = self._loop.create_future()
        """Done when the handshake is complete; fails with Unreachable when it does not come to that."""
        self.began_at = self._loop.time()
        self.established_at = 0.0
        """The loop's time of that."""
        self.disappointed = False
        """Whether it left a request without an answer."""
        self.peer: NodeKey = b""
        """The node key that the peer proved; empty until the handshake is complete."""

    @property
    def outgoing(self) -> bool:
        """Whether this node dialled."""
        return self._session.role is Role.INITIATOR

    @property
    def remote(self) -> str:
        """Where the link leads."""
        return self._link.remote

    @property
    def origin(self) -> str:
        """What the connection counts under."""
        return self._link.origin

    @property
    def relay(self) -> NodeKey | None:
        """The relay that the session runs through, if it does."""
        return self._link.peer if isinstance(self._link, Pipe) else None

    @property
    def endpoint(self) -> Address | None:
        """The peer's IP address and port; None when the session rides on another one."""
        return self._link.endpoint

    @property
    def local_host(self) -> str | None:
        """The IP address of our own end; None when the session rides on another one."""
        return self._link.local_host if isinstance(self._link, TcpLink) else None

    @property
    def idle_since(self) -> float | None:
        """When the peer was last heard, if no exchange is under way; None if one is."""
        return None if self._session.stream_count else self._session.heard_at

    @property
    def is_usable(self) -> bool:
        """Whether requests can be made on it."""
        return self._session.is_open

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes or goes."""
        return self._session.is_over

    @property
    def heard_at(self) -> float:
        """The loop's time at which the peer was last heard."""
        return self._session.heard_at

    async def run(self) -> None:
        """Carry the session until it is over and everything of it is cleaned up."""
        reader = self._spawn(self._read())
        try:
            self._pump()
            await asyncio.wait({reader, self._over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._link.close()

    async def request(self, service: int, payload: bytes, reply_limit: int) -> bytes:
        """One exchange. Raises NotTaken, Unreachable, PeerUnable, PeerRefused or TooLarge."""
        async with self._slots:
            reply: asyncio.Future[bytes] = self._loop.create_future()
            try:
                stream = self._session.open_stream(service, payload, reply_limit=reply_limit)
            except SessionOver as e:
                raise NotTaken from e
            self._requests[stream] = _Request(reply)
            self._pump()
            try:
                return await self._patiently(reply)
            finally:
                if self._requests.pop(stream, None) is not None:
                    self._session.reset(stream, ResetCode.CANCELLED)
                    self._pump()

    async def _patiently(self, reply: asyncio.Future[bytes]) -> bytes:
        """The reply. A peer that keeps us waiting is asked whether it is still there: a dead path is left early."""
        done, _ = await asyncio.wait({reply}, timeout=PATIENCE)
        if not done:
            self._session.probe(self._loop.time())
            self._pump()
        return await reply

    def open_pipe(self, service: int, head: bytes) -> Pipe:
        """Open a stream that both sides speak through as they like. Raises NotTaken, TooManyStreams."""
        try:
            stream = self._session.open_stream(service, head, end=False, reply_limit=UNBOUNDED)
        except SessionOver as e:
            raise NotTaken from e
        pipe = self._pipes[stream] = Pipe(self, stream)
        self._pump()
        return pipe

    # What pipes need (pipes.Carrier).

    def pipe_send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Send on a stream. Raises SessionOver, StreamOver or NoRoom."""
        self._session.send(stream, data, end=end)
        self._pump()

    def pipe_taken(self, stream: int, size: int) -> None:
        """Let the peer send more."""
        self._session.consume(stream, size)
        self._pump()

    def pipe_backlog(self, stream: int) -> int:
        """Bytes that wait to be sent."""
        return self._session.backlog(stream)

    def pipe_reset(self, stream: int, code: int) -> None:
        """Abandon a stream."""
        self._session.reset(stream, code)
        self._pump()

    def retire(self) -> None:
        """Close when no exchange is left."""
        self._session.retire()
        self._pump()

    def close(self, code: int = CloseCode.SHUTDOWN) -> None:
        """Close now; `run` then ends."""
        self._session.close(code)
        self._pump()

    # Input and output.

    async def _read(self) -> None:
        session = self._session
        try:
            while not session.is_over:
                data = await self._link.read()
                if not data:
                    break
                try:
                    session.receive_data(data, self._loop.time())
                except PeerViolation as violation:
                    log.info("closed the session with %s: %s", self._describe(), violation.detail)
                self._pump()
        except OSError as e:
            log.debug("lost the connection to %s: %s", self._describe(), e)
        session.receive_eof(self._loop.time())
        self._pump()

    async def _decongest(self) -> None:
        try:
            await self._link.drain()
        except OSError:
            self._session.receive_eof(self._loop.time())
        self._congested = False
        self._pump()

    def _pump(self) -> None:
        """Deal with all that happened, write what there is to write, and see that the timer is set."""
        session = self._session
        while True:
            while (event := session.next_event()) is not None:
                self._on_event(event)
            if self._congested or not (data := session.data_to_send(WRITE_BYTES)):
                break
            self._link.write(data)
            if not self._link.writable:
                self._congested = True
                self._spawn(self._decongest())
        while (event := session.next_event()) is not None:  # sending may have been the last thing to happen
            self._on_event(event)
        for stream, pipe in list(self._pipes.items()):
            if session.has_stream(stream):
                pipe.on_sent()
            else:
                self._pipes.pop(stream, None)
                pipe.on_over()
        self._arm()

    def _arm(self) -> None:
        """Set the timer if it is unset or late. One that is early only looks again."""
        due = self._session.get_timer()
        if due is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None or due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._session.handle_timer(self._loop.time())
        self._pump()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("a channel failed", exc_info=bug)

    def _describe(self) -> str:
        return f"{node_text(self.peer)} at {self.remote}" if self.peer else self.remote

    # Events.

    def _on_event(self, event: Event) -> None:
        match event:
            case BodyReceived(stream, data, end) if stream in self._pipes:
                self._pipes[stream].on_data(data, end=end)
            case BodyReceived(stream, data, end):
                self._session.consume(stream, len(data), kept=True)
                if stream in self._requests:
                    self._on_reply(stream, data, end=end)
                elif stream in self._answers:
                    self._on_request(stream, data, end=end)
            case StreamOpened(stream, service):
                chosen = self._services[service]
                if isinstance(chosen, PipeService):
                    pipe = self._pipes[stream] = Pipe(self, stream)
                    self._spawn(self._serve_pipe(pipe, chosen))
                    return
                deadline = self._loop.call_later(chosen.seconds, self._too_slow, stream)
                self._answers[stream] = _Answer(chosen, deadline)
            case StreamReset(stream, code, by_peer):
                if (piped := self._pipes.pop(stream, None)) is not None:
                    piped.on_broken(code)
                elif (request := self._requests.pop(stream, None)) is not None:
                    _fail(request.reply, _refusal(code) if by_peer else TooLarge("the peer's reply is too large"))
                else:
                    self._forget_answer(stream)
            case Connected(peer):
                self.peer = peer
                self.established_at = self._loop.time()
                self._owner.connected(self)
                if not self.established.done():
                    self.established.set_result(self)
            case Closed(code, by_peer, unseen):
                self._on_closed(code, unseen, by_peer=by_peer)
            case _:
                assert_never(event)

    def _on_reply(self, stream: int, data: bytes, *, end: bool) -> None:
        request = self._requests[stream]
        request.pieces.append(data)
        if end:
            del self._requests[stream]
            if not request.reply.done():
                request.reply.set_result(b"".join(request.pieces))

    def _on_request(self, stream: int, data: bytes, *, end: bool) -> None:
        answer = self._answers[stream]
        answer.pieces.append(data)
        if end:
            answer.task = self._spawn(self._serve(stream, answer.service, b"".join(answer.pieces)))

    def _on_closed(self, code: int, unseen: frozenset[int], *, by_peer: bool) -> None:
        self.disappointed |= bool(self._requests)
        why = f"the session with {self._describe()} was closed ({'by the peer, ' if by_peer else ''}code {code})"
        for stream, request in self._requests.items():
            _fail(request.reply, NotTaken() if stream in unseen else Unreachable(why, maybe_received=True))
        self._requests.clear()
        for stream in list(self._answers):
            self._forget_answer(stream)
        pipes, self._pipes = self._pipes, {}
        for pipe in pipes.values():
            pipe.on_broken(None)
        _fail(self.established, Unreachable(why))
        self._over.set_result(None)
        self._owner.disconnected(self)

    # Services.

    async def _serve(self, stream: int, service: Service, request: bytes) -> None:
        code: int = ResetCode.FAILED
        hang_up = False
        try:
            reply = await service.answer(self.peer, request)
            if len(reply) <= service.reply_bytes:
                self._session.send(stream, reply, end=True)
                self._pump()
                if not self._session.has_stream(stream):
                    self._forget_answer(stream)
                return
            log.error("a reply of %d bytes is longer than its service allows", len(reply))
        except P2PError as e:
            log.info("refused a request of %s: %s", self._describe(), e.detail)
            if e.fault is Fault.PEER:
                code = e.code
                hang_up = e.action is Action.DISCONNECT
        except Exception:
            log.exception("a service failed")
        self._session.reset(stream, code)
        self._forget_answer(stream)
        self._pump()
        if hang_up:
            self.close(code)

    async def _serve_pipe(self, pipe: Pipe, service: PipeService) -> None:
        code: int = ResetCode.FAILED
        hang_up = False
        try:
            await service.serve(pipe)
            return
        except OSError:
            code = ResetCode.CANCELLED
        except P2PError as e:
            log.info("refused a stream of %s: %s", self._describe(), e.detail)
            if e.fault is Fault.PEER:
                code = e.code
                hang_up = e.action is Action.DISCONNECT
        except Exception:
            log.exception("a service failed")
        pipe.reset(code)
        if hang_up:
            self.close(code)

    def _too_slow(self, stream: int) -> None:
        self._session.reset(stream, ResetCode.TOO_SLOW)
        self._forget_answer(stream)
        self._pump()

    def _forget_answer(self, stream: int) -> None:
        """Stop what runs for a stream of the peer's; its end is told elsewhere."""
        answer = self._answers.pop(stream, None)
        if answer is not None:
            answer.deadline.cancel()
            if answer.task is not None and answer.task is not asyncio.current_task():
                answer.task.cancel()


def _refusal(code: int) -> P2PError:
    """What a reset by the peer means to who asked."""
    if code >= P2PError.code or code in _REFUSALS:
        return PeerRefused(code)
    return PeerUnable(code)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail a future that nobody may be waiting for any more."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # or asyncio would complain that nobody looked
