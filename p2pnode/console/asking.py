"""How a verb talks to the node and to the user."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from p2pnode.client import Client, schema

T = TypeVar("T")

UNHAPPY: Final = frozenset({"declined", "cancelled", "anomalous"})
"""Phases that make `--wait` end with exit code 4."""


def ask(
    args: argparse.Namespace, act: Callable[[Client], Awaitable[schema.Response | None]], *, quiet: bool = False
) -> int:
    """Run `act` with a client of the node, show what comes back unless `quiet`, and return the exit code."""
    import asyncio

    from p2pnode.client import Client
    from p2pnode.console import codes, requests
    from p2pnode.console.tables import show

    async def talk() -> schema.Response | None:
        async with Client.open(requests.data_dir(args), code=codes.ask_code) as node:
            return await act(node)

    view = asyncio.run(talk())
    if view is None:
        print("Nothing was done.", file=sys.stderr)
        return 1
    if not quiet:
        show(view, as_json=as_json(args))
    failed = getattr(args, "wait", False) and getattr(view, "phase", "") in UNHAPPY
    return 4 if failed else 0


async def busy(text: str, work: Awaitable[T]) -> T:
    """Await `work`, with a line that moves while a person waits."""
    from p2pnode.console import progress

    return await progress.busy(text, work)


async def wait(args: argparse.Namespace, node: Client, trade: schema.TradeView) -> schema.TradeView:
    """Follow the trade if the user wants to."""
    if not args.wait:
        return trade
    from p2pnode.console.progress import follow_trade

    return await follow_trade(node, trade.id, timeout=args.timeout)


def sure(args: argparse.Namespace, question: str) -> bool:
    """Ask before what can't be undone, if there is a person to ask."""
    if args.yes or as_json(args) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    from p2pnode.console.requests import confirm

    return confirm(question)


def as_json(args: argparse.Namespace) -> bool:
    """Whether the result is one JSON document."""
    return bool(getattr(args, "json", False))
