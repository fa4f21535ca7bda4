"""A `ChainBackend` over any `ChainView`: follows the chain, keeps the watches, tells events and health.

Theory of operation. One task looks at the tip and the mempool when a hint of the view comes, or when the poll is due:
seldom while hints work, often without, ever more slowly while the view fails. Another follows up what hints say of
single transactions. All that is told to watches and followers comes from `Follow`, which asks the view; a hint alone
tells nothing. Money moves only on a view that is in sync: `fee_rate`, `test_accept` and `broadcast` raise NotSynced
before that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, assert_never

from escrow.chain.base import (
    BackendError,
    BackendsDisagree,
    BackendUnreachable,
    BlockRef,
    ChainEvent,
    ChainStatus,
    ChainTx,
    Health,
    NotSynced,
    Rejected,
    Report,
    WatchRequest,
)
from escrow.chain.blocks import parse_tx
from escrow.chain.follow import ChainFollower, Follow
from escrow.chain.stream import EventStream, Streams
from escrow.chain.view import ArrivedHint, BlockHint, ChainView, GoneHint, Hint, Lost, ScriptHint, TxHint
from escrow.chain.watchbook import WatchBook
from escrow.coins import OutPoint
from protocol.errors import ChainError
from protocol.types import FeeRate, Hash32, Network, Sats, Txid

_log = logging.getLogger(__name__)

_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_HINTS: Final = 20_000
"""Hints that may wait to be followed up; past that, the mempool is read instead."""


_SOON: Final = 1.0
_LASTING: Final = 4
"""Looks in a row that find the same trouble before it is reported: backends differ for a moment at every block."""


class Backend:
    """A `FollowedChain` over one view."""

    def __init__(self, view: ChainView, *, poll_seconds: float, safety_poll_seconds: float) -> None:
        """Take the view, not opened yet, and how often to look without hints, and although they work."""
        self._view = view
        self._poll = poll_seconds
        self._safety_poll = safety_poll_seconds
        self._book = WatchBook()
        self._streams: Streams[ChainEvent] = Streams()
        self._follow = Follow(view, self._book, self._tell)
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._hints: deque[Hint] = deque()
        self._hinted = asyncio.Event()
        self._mempool_due = False
        self.prompt = False
        """Whether hints are trusted to tell of the next block."""
        self._health = Health.STARTING
        self._detail = ""
        self.on_report: Callable[[Report], None] = lambda _report: None
        """Called when what is to be told of the view has changed for longer than a moment."""
        self._reported = Report.WELL
        self._found = Report.WELL
        self._times = 0

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that the view must be on."""
        return self._view.network

    async def start(self) -> None:
        """Connect, check, learn the tip, begin to follow. Raises what the view raises."""
        if self._tasks:
            return
        try:
            await self._view.open(self._take)
            await self._check()
            await self._follow.start()
        except BaseException:
            await self.close()
            raise
        self._tasks = [
            self._spawn(self._run(), f"{self._view.name}-follow"),
            self._spawn(self._follow_up(), f"{self._view.name}-hints"),
        ]

    async def close(self) -> None:
        """Stop following and end every stream of events."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        self._streams.close()
        await self._view.close()

    def status(self) -> ChainStatus:
        """Health as of the last look."""
        tip = self._follow.tip if self._follow.started else None
        return ChainStatus(self._health, self._view.name, tip, self._detail or self._view.note)

    # -- questions --------------------------------------------------------------------------------------------

    async def tip(self) -> BlockRef:
        """The block up to which events were told."""
        return self._follow.tip

    async def fee_rate(self, target_blocks: int) -> FeeRate:
        """See `ChainBackend.fee_rate`."""
        self._need_sync()
        with self._noticed():
            return await self._view.fee_rate(target_blocks)

    async def mempool_fee(self, txid: Txid) -> Sats | None:
        """See `ChainBackend.mempool_fee`."""
        with self._noticed():
            return await self._view.mempool_fee(txid)

    async def test_accept(self, tx: bytes) -> None:
        """See `ChainBackend.test_accept`; a light client knows less than a mempool does."""
        self._need_sync()
        with self._noticed():
            await self._view.test_accept([tx])

    async def broadcast(self, tx: bytes) -> Txid:
        """Send `tx` after `test_accept`; followers hear of it at once. Idempotent.

        Raises Rejected, NotRelayed, NotSynced.
        """
        return (await self.broadcast_package([tx]))[-1]

    async def broadcast_package(self, txs: Sequence[bytes]) -> list[Txid]:
        """Send a child and its parents, parents first, judged together where the view can. As `broadcast` else."""
        self._need_sync()
        try:
            parsed = [parse_tx(tx) for tx in txs]
        except BackendError as e:
            raise Rejected("it does not decode") from e
        with self._noticed():
            await self._view.test_accept(txs)
            await self._view.send(txs)
        for tx in parsed:
            await self._follow.saw(tx)
        return [tx.txid for tx in parsed]

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        """Whether an output is there to be spent, if the backend can tell."""
        with self._noticed():
            return await self._view.unspent(outpoint)

    async def transaction(self, txid: Txid, block_hash: Hash32 | None = None) -> ChainTx | None:
        """See `ChainBackend.transaction`."""
        with self._noticed():
            return await self._view.transaction(txid, block_hash)

    # -- watching ---------------------------------------------------------------------------------------------

    async def watch(self, request: WatchRequest) -> None:
        """Arm or replace a watch. Raises BlocksPruned."""
        await self._follow.watch([request])

    async def watch_many(self, requests: Sequence[WatchRequest]) -> None:
        """Arm many watches with one look into the past. Raises BlocksPruned."""
        await self._follow.watch(requests)

    async def unwatch(self, key: bytes) -> None:
        """Forget a watch."""
        self._book.disarm(key)

    def events(self) -> EventStream[ChainEvent]:
        """A new stream of everything from now on."""
        return self._streams.open()

    async def follow(self, follower: ChainFollower, from_height: int) -> None:
        """Tell `follower` the chain since the last block that it knows, or since `from_height`, and from now on.

        Raises BlocksPruned.
        """
        await self._follow.attach(follower, from_height)

    def unfollow(self, follower: ChainFollower) -> None:
        """Tell it no more."""
        self._follow.detach(follower)

    async def look(self) -> None:
        """Look at tip and mempool now instead of at the next hint or poll."""
        await self._view.refresh()
        await self._follow.sync()
        await self._follow.poll_mempool()

    # -- inside -----------------------------------------------------------------------------------------------

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """A view that does not answer a question is looked at now: the next poll may be half a minute away."""
        try:
            yield
        except (BackendUnreachable, BackendsDisagree):
            self._wake.set()
            raise

    def _tell(self) -> None:
        for event in self._book.take_events():
            self._streams.put(event)

    async def _check(self) -> None:
        reason = await self._view.check()
        self._say(Health.SYNCING if reason else Health.READY, reason)

    def _say(self, health: Health, detail: str) -> None:
        if (health, detail) != (self._health, self._detail):
            _log.info("%s is %s %s", self._view.name, health.value, detail)
        self._health, self._detail = health, detail

    def _need_sync(self) -> None:
        if self._health is Health.SYNCING:
            raise NotSynced(self._detail + "; wait until it is done")

    def _take(self, hint: Hint) -> None:
        """What the view calls: never blocks."""
        if len(self._hints) >= _HINTS:
            self._hints.clear()
            hint = Lost()
        self._hints.append(hint)
        self._hinted.set()

    async def _follow_up(self) -> None:
        while True:
            while self._hints:
                hint = self._hints.popleft()
                # Trusted to tell of the next block once it has told of anything.
                self.prompt = self._view.prompt
                try:
                    await self._heed(hint)
                except ChainError as e:
                    # The other task finds out what is wrong, and looks for itself.
                    _log.info("a hint of %s could not be followed up: %s", self._view.name, e)
                    self._look_anew()
                except Exception:  # noqa: BLE001 - it is logged, and told
                    _log.exception("a hint of %s failed: a defect of this program", self._view.name)
                    self._look_anew()
            self._hinted.clear()
            await self._hinted.wait()

    async def _heed(self, hint: Hint) -> None:
        match hint:
            case BlockHint():
                self._wake.set()
            case TxHint(raw):
                await self._follow.saw(parse_tx(raw))
            case ArrivedHint(txid):
                for tx in await self._view.waiting([txid]):
                    if tx is not None:
                        await self._follow.saw(tx)
            case GoneHint(txid):
                await self._follow.gone(txid)
            case ScriptHint(script):
                await self._follow.look_again(script)
            case Lost():
                self._look_anew()
            case _:
                assert_never(hint)

    def _look_anew(self) -> None:
        self._mempool_due = True
        self._wake.set()

    async def _run(self) -> None:
        """Look at the chain on every hint and every poll, for ever; after failures ever more slowly."""
        failures = 0
        while True:
            usual = self._safety_poll if self.prompt else self._poll
            if self._found is not self._reported:
                usual = min(usual, _SOON)  # to learn whether it lasts
            hinted = await self._woken(_BACKOFF[min(failures, len(_BACKOFF)) - 1] if failures else usual)
            try:
                await self._look(hinted=hinted, anew=failures > 0)
                failures = 0
                note, parted = self._view.note, self._view.disagreement
                self._report(Report.DISAGREEMENT if parted else Report.DEGRADED if note else Report.WELL)
            except ChainError as e:
                failures += 1
                self._say(Health.UNREACHABLE, e.detail)
                self._report(Report.DISAGREEMENT if isinstance(e, BackendsDisagree) else Report.UNREACHABLE)
            except Exception:  # noqa: BLE001 - it is logged, and told
                # A defect must not leave the node blind for good: what caused it may be gone at the next look.
                _log.exception("following %s failed: a defect of this program", self._view.name)
                failures += 1
                self._say(Health.UNREACHABLE, "following the Bitcoin chain failed unexpectedly: it is tried again")
                self._report(Report.UNREACHABLE)

    def _report(self, found: Report) -> None:
        """Tell what was found once it lasts; that all is well again, at once."""
        self._times = self._times + 1 if found is self._found else 1
        self._found = found
        if found is not self._reported and (found is Report.WELL or self._times >= _LASTING):
            self._reported = found
            self.on_report(found)

    async def _look(self, *, hinted: bool, anew: bool) -> None:
        if anew or self._health is not Health.READY:
            await self._check()
        if self._health is Health.SYNCING:
            return  # thousands of blocks a minute: leap to the tip when it is there
        await self._view.refresh()
        moved = await self._follow.sync()
        if moved and not hinted:
            self.prompt = False
        if anew or not hinted or self._mempool_due:
            self._mempool_due = False
            await self._follow.poll_mempool()

    async def _woken(self, seconds: float) -> bool:
        """Wait for a hint; False when none came in time."""
        try:
            # Not wait_for: until Python 3.12 it can swallow a cancellation that comes together with the hint.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("following %s ended: a defect of this program", self._view.name, exc_info=error)
            self._say(Health.UNREACHABLE, "following the Bitcoin chain ended unexpectedly: restart this node")
