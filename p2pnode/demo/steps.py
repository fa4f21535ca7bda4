"""The steps of a demo: shown while they run, timed when they end.

A step's time is wall time. What of it was spent waiting for bitcoind to mine is kept apart, because a real chain's
blocks take as long as they take; the rest is ours. Mining that runs beside other work is not taken off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct
from rich.console import Console
from rich.status import Status


class StepTime(Struct, frozen=True):
    """A step that is over, in milliseconds; `mining_ms` is part of `ms`."""

    name: str
    ms: float
    mining_ms: float
    note: str


class Step:
    """The step at work. Whoever does it may leave a `note` on what came out."""

    def __init__(self) -> None:
        self.note = ""
        self.mining = 0.0


class Steps:
    """Runs steps one after the other and keeps their times."""

    def __init__(self, console: Console) -> None:
        """`console` shows them; a quiet one shows nothing."""
        self.done: list[StepTime] = []
        self._console = console
        self._step = Step()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """One step, from entering to leaving the block; one that raises is shown as failed and not kept."""
        step = self._step = Step()
        began = time.perf_counter()
        try:
            with self._live(name):
                yield step
        except BaseException:
            self._show("[red]✗[/]", time.perf_counter() - began, name, "")
            raise
        spent = time.perf_counter() - began
        self.done.append(StepTime(name, _ms(spent), _ms(step.mining), step.note))
        self._show("[green]✓[/]", spent, name, step.note)

    @contextmanager
    def mining(self) -> Iterator[None]:
        """Within a step: the time in this block is the chain's, not ours."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._step.mining += time.perf_counter() - began

    def _live(self, name: str) -> Status:
        # Where nothing can be redrawn, a status prints nothing, and the line at the end of the step is enough.
        return self._console.status(f"[bold]{name}[/] …", spinner="dots")

    def _show(self, mark: str, seconds: float, name: str, note: str) -> None:
        line = f"{mark} [cyan]{seconds * 1000:7,.0f} ms[/]  {name}" + (f" [dim]({note})[/]" if note else "")
        self._console.print(line, highlight=False, soft_wrap=True)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
