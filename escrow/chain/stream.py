"""One source of events, many readers that each miss nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class EventStream(Generic[T]):
    """All events since it was opened, in order: `async for event in stream`. Ends when the source closes.

    Unread events are kept, so a stream that nobody reads any more must be closed (`close`, or `async with`).
    """

    def __init__(self, streams: Streams[T]) -> None:
        self._streams = streams
        self._unread: deque[T] = deque()
        self._more = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        return self._unread.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more events; what was not read yet can still be."""
        self._streams.forget(self)
        self.end()

    def put(self, event: T) -> None:
        """Append an event."""
        self._unread.append(event)
        self._more.set()

    def end(self) -> None:
        """End the iteration after the last event."""
        self._ended = True
        self._more.set()


class Streams(Generic[T]):
    """The readers of one source."""

    def __init__(self) -> None:
        self._open: list[EventStream[T]] = []

    def open(self) -> EventStream[T]:
        """A new reader."""
        stream = EventStream(self)
        self._open.append(stream)
        return stream

    def put(self, event: T) -> None:
        """Give `event` to every reader."""
        for stream in self._open:
            stream.put(event)

    def forget(self, stream: EventStream[T]) -> None:
        """Drop a reader; an unknown one is fine."""
        if stream in self._open:
            self._open.remove(stream)

    def close(self) -> None:
        """End all readers."""
        for stream in self._open:
            stream.end()
        self._open.clear()
