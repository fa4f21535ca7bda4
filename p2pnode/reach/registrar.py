"""The client's side of relaying: keep sessions to a few relays, and take the sessions that they bring.

A registration is a stream that stays open; its end is the news that the relay is gone, and the next candidate takes its
place at once. Candidates are tried in their order (best first), those in address groups that hold a registration of
ours only when there are no others: one operator, or one cut cable, shall not hold all our doors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from p2pnode.channels import Channels, Pipe, PipeBroken
from p2pnode.channels.links import ip_version
from p2pnode.reach.errors import NotMyRelay, RelayFull
from protocol.contact import Address, NodeContact
from protocol.errors import P2PError
from protocol.relay import RELAY_SERVICE, Op, read_registered
from protocol.streams import ResetCode
from protocol.types import NodeKey

WANTED: Final = 3
"""Relays to be registered with; a contact record names no more."""
REGISTER_SECONDS: Final = 15.0
FIRST_PAUSE: Final = 5.0
SHORT_PAUSE: Final = 0.25
"""After a registration that stood: it may be we who moved."""
STEADY_SECONDS: Final = 60.0
"""A registration that stood so long makes up for earlier failures."""
LONGEST_PAUSE: Final = 1_800.0
"""After failures, how long a relay is left alone."""
LOOK_SECONDS: Final = 1.0
"""How often to look for candidates while there are too few registrations."""
ENDPOINT_BYTES: Final = 19

log = logging.getLogger(__name__)


class Candidate(Struct, frozen=True):
    """A node that may relay for us, and the address group that it is in."""

    contact: NodeContact
    group: bytes


class _Held:
    """A registration, being made or standing."""

    __slots__ = ("candidate", "own", "seen", "since", "task")

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.seen: Address | None = None
        self.own: tuple[Address, ...] = ()
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None


class Registrar:
    """Keeps registrations while it is `wanted`."""

    def __init__(
        self,
        channels: Channels,
        candidates: Callable[[], Sequence[Candidate]],
        on_change: Callable[[], None],
        *,
        wanted: int = WANTED,
    ) -> None:
        """`candidates` gives those there are, best first; `on_change` is told when `relays` has changed."""
        self._channels = channels
        self._candidates = candidates
        self._on_change = on_change
        self._count = wanted
        self._wanted = False
        self._held: dict[NodeKey, _Held] = {}
        self._pauses: dict[NodeKey, tuple[float, float]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="registrar")

    async def close(self) -> None:
        """Let go of every relay."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def want(self, wanted: bool) -> None:  # noqa: FBT001  (a switch)
        """Whether to keep registrations from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    def kick(self) -> None:
        """There may be candidates, or our address has changed: look at once."""
        self._pauses.clear()
        self._wake.set()

    def relays(self) -> tuple[NodeContact, ...]:
        """Those that we are registered with, longest first: what goes into the contact record."""
        return tuple(_complete(h) for h in self._held.values() if h.seen is not None)

    def since(self) -> dict[NodeKey, float]:
        """The loop's time at which each of those took us."""
        return {node: h.since for node, h in self._held.items() if h.seen is not None}

    def seen(self) -> tuple[Address, ...]:
        """Where those relays see us."""
        return tuple(h.seen for h in self._held.values() if h.seen is not None)

    def incoming(self, pipe: Pipe) -> None:
        """Take a circuit that a relay brings. Raises NotMyRelay, RelayFull."""
        if pipe.peer not in self._held:
            raise NotMyRelay
        if not self._channels.accept(pipe):
            raise RelayFull("too many sessions")

    # Inside.

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if not self._wanted:
                for held in list(self._held.values()):
                    if held.task is not None:
                        held.task.cancel()
                await self._wake.wait()
                continue
            while len(self._held) < self._count and (candidate := self._best()) is not None:
                held = self._held[candidate.contact.node] = _Held(candidate)
                held.task = asyncio.create_task(self._hold(held), name="registration")
            try:
                async with asyncio.timeout(LOOK_SECONDS if len(self._held) < self._count else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _best(self) -> Candidate | None:
        """The best candidate that is neither in use nor to be left alone, of a new address group if there is one."""
        now = asyncio.get_running_loop().time()
        groups = {held.candidate.group for held in self._held.values()}
        free = [
            c
            for c in self._candidates()
            if c.contact.node not in self._held and self._pauses.get(c.contact.node, (0.0, 0.0))[0] <= now
        ]
        return next((c for c in free if c.group not in groups), free[0] if free else None)

    async def _hold(self, held: _Held) -> None:
        """Register, and return when the registration has ended."""
        contact = held.candidate.contact
        pipe: Pipe | None = None
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(REGISTER_SECONDS):
                pipe = await self._channels.pipe(contact.node, contact.addresses, RELAY_SERVICE, bytes((Op.REGISTER,)))
                held.seen, held.own = read_registered(await pipe.read())
                held.since = asyncio.get_running_loop().time()
            log.info("registered with a relay")
            self._on_change()
            await pipe.read()
        except (TimeoutError, PipeBroken, P2PError) as e:
            log.info("a relay is not ours%s: %s", " any more" if held.seen else "", e)
        finally:
            stood, held.seen = held.seen is not None, None
            del self._held[contact.node]
            if asyncio.get_running_loop().time() - began > STEADY_SECONDS:
                self._pauses.pop(contact.node, None)
            self._leave_alone(contact.node, first=SHORT_PAUSE if stood else FIRST_PAUSE)
            if stood:
                self._on_change()
            self._wake.set()
            if pipe is not None:
                pipe.end()
                pipe.reset(ResetCode.CANCELLED)

    def _leave_alone(self, node: NodeKey, first: float) -> None:
        """A relay that ended or refused is asked again after a pause that doubles."""
        _, last = self._pauses.get(node, (0.0, 0.0))
        pause = min(max(first, 2 * last), LONGEST_PAUSE)
        self._pauses[node] = asyncio.get_running_loop().time() + pause, pause


def _complete(held: _Held) -> NodeContact:
    """A relay with one address of each version of IP: the one that we reach it at, and what it told of the other."""
    contact = held.candidate.contact
    found: dict[int, Address] = {}
    for address in (*contact.addresses, *held.own):
        found.setdefault(ip_version(address.host), address)
    return NodeContact(contact.node, tuple(found.values()))
