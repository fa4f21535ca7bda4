"""Something moves while a person waits: a spinner for any call over half a second, and a trade's way, live.

Progress goes to stderr and only to a terminal; stdout has the result and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console
from rich.status import Status

from p2pnode.api.schema import TradeView
from p2pnode.client import Client
from p2pnode.console.cells import clean
from p2pnode.datadir import DataDir, DataDirLocked
from protocol.errors import UserError

PATIENCE: Final = 0.4
"""Seconds of silence before the spinner shows."""

T = TypeVar("T")


class WaitedTooLong(UserError):
    """What was waited for did not happen in the time given; it may still."""

    code = 3160


class _Spinner:
    """The spinner that shows. It steps aside while a person is asked something."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._asking = False

    @contextmanager
    def showing(self, status: Status) -> Iterator[None]:
        self._status = status
        if not self._asking:
            status.start()
        try:
            yield
        finally:
            self._status = None
            status.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._asking = True
        if self._status is not None:
            self._status.stop()
        try:
            yield
        finally:
            self._asking = False
            if self._status is not None:
                self._status.start()


_SPINNER: Final = _Spinner()
aside = _SPINNER.aside
"""A context in which no spinner shows, since a person is asked something."""


async def busy(text: str, work: Awaitable[T], *, console: Console | None = None) -> T:
    """The result of `work`; a spinner with `text` on a terminal if it takes its time."""
    console = console or Console(stderr=True)
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=PATIENCE)
        if not done and console.is_terminal:
            with _SPINNER.showing(console.status(clean(text))):
                return await task
        return await task
    finally:
        # A caller that gives up (Ctrl-C) does not leave the call behind.
        if not task.done():
            task.cancel()


def settled(trade: TradeView) -> bool:
    """Whether a trade waits for this user, or for nobody: it has ended, or there is more to do than to cancel it."""
    return not trade.open or any(action != "cancel" for action in trade.actions)


async def follow_trade(
    client: Client,
    trade: str,
    *,
    console: Console | None = None,
    until: Callable[[TradeView], bool] = settled,
    timeout: float | None = None,
) -> TradeView:
    """Follow a trade by the event feed until `until` holds; on a terminal each phase is told as it is reached.

    Raises WaitedTooLong after `timeout` seconds, and what the client raises.
    """
    console = console or Console(stderr=True)
    try:
        async with asyncio.timeout(timeout):
            # The cursor first, the trade after: what happens in between is seen at least once.
            cursor = (await client.events()).next
            view = await client.trade(trade)
            with console.status(_line(view)) as status:
                told = view.phase
                while not until(view):
                    page = await client.events(cursor, wait=25)
                    cursor = page.next
                    if all(event.trade != view.id for event in page.events):
                        continue
                    view = await client.trade(view.id)
                    if view.phase != told and console.is_terminal:
                        console.print(f"{clean(told)} → {clean(view.phase)}", markup=False, highlight=False)
                        told = view.phase
                    status.update(_line(view))
            return view
    except TimeoutError:
        raise WaitedTooLong(
            f"the trade is not further after {timeout:.0f} seconds: see `p2pnode trade show {trade[:16]}`"
        ) from None


async def wait_gone(folder: Path, seconds: float) -> None:
    """Return once no process works in a data directory any more. Raises WaitedTooLong."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            DataDir(folder).lock().close()
        except DataDirLocked:
            if loop.time() > deadline:
                raise WaitedTooLong(f"the node still runs after {seconds:.0f} seconds; it is shutting down") from None
            await asyncio.sleep(0.05)
        else:
            return


def _line(view: TradeView) -> str:
    # A backslash keeps brackets in a stranger's text from being read as markup.
    text = f"{view.phase}: {view.hint}" if view.hint else view.phase
    return clean(text).replace("[", r"\[")
