"""A disk is lost in the middle of a trade, and the backup is older than the loss: the counterparty gives the rest back.

For every step of either side: the backup is made there, the node goes on for none, one, two or more steps, dies, and
comes back on a new machine from the backup alone. What it signs then never contradicts what it had signed before.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from escrow.coins import OutPoint
from p2pnode import backup
from protocol import trade_events as ev
from protocol.errors import IllegalTransition
from protocol.messages import decode
from protocol.trade_state import TradeState
from protocol.types import Side
from protocol.wire import Envelope, Kind, open_envelope
from tests.world import NETWORK, NOW, PATIENCE, Killed, TwinNode, World

STEPS = 30
"""More than either side makes; the tests stop at the real number."""
OUTSIDE = (Kind.SYNC, Kind.SYNCED, Kind.RETURNED)


class Loss:
    """The node dies at its step `dies`, and comes back from the copy of its step `copied` (0: before the trade)."""

    def __init__(self, node: TwinNode, copied: int, dies: int) -> None:
        self.node = node
        self.copied = copied
        self.dies = dies
        self.steps = 0
        self.phases: list[str] = []
        self.happened = False
        self._copy = b""
        self._held: dict[OutPoint, bytes] = {}
        self._buried = node.buried
        node.buried = self.buried  # type: ignore[method-assign]

    def watch(self) -> None:
        """From now on; the offer is published, and nobody has taken it."""
        self._take_copy()
        self.node.engine.subscribe(self._stepped)

    def _take_copy(self) -> None:
        if self.steps == self.copied:
            self._copy = backup.snapshot_database(self.node.folder / f"{self.node.name}.db", NOW)
            self._held = dict(self.node.held)

    def _stepped(self, state: TradeState) -> None:
        self.steps += 1
        self.phases.append(type(state.phase).__name__)
        self._take_copy()
        if self.steps == self.dies:
            self.happened = True
            self.node.die()
            raise Killed

    async def buried(self) -> None:
        await self._buried()
        if not self.happened or not self._copy:
            return
        folder = self.node.folder / "new machine"
        folder.mkdir()
        (folder / f"{self.node.name}.db").write_bytes(self._copy)
        self._copy = b""
        self.node.folder = folder
        # In place: the wallet's reservations lie in the database, too.
        self.node.held.clear()
        self.node.held.update(self._held)


def pushes(world: World) -> None:
    """Both users do what is theirs to do, again if their node has forgotten it."""
    buyer, seller = world.buyer, world.seller
    with suppress(Killed, IllegalTransition):
        if buyer.alive and buyer.trade is not None and buyer.phase == "Funded" and buyer.trade.peer_details is not None:
            buyer.engine.apply(buyer.trade.trade_id, ev.DeclarePaid("ref"))
    with suppress(Killed, IllegalTransition):
        if seller.alive and seller.trade is not None and seller.phase == "Paid":
            seller.engine.apply(seller.trade.trade_id, ev.Release())


async def play(world: World, loss: Loss) -> None:
    directory = {node.keyring.persona.public: node.contact() for node in world.both}

    async def lookup(persona: bytes) -> list[Envelope]:
        """The DHT."""
        return [directory[persona]]

    for node in world.both:
        node.reconciles = True
        node._no_lookup = lookup  # type: ignore[method-assign]
    await world.begin()
    loss.watch()
    with suppress(Killed):
        await world.take()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    try:
        while not (world.phases("Completed") and world.quiet()):
            assert loop.time() < deadline, f"stuck: maker {world.maker.phase}, taker {world.taker.phase}"
            await asyncio.sleep(0.004)
            for node in world.both:
                if not node.alive:
                    await node.buried()
                    await node.up()
            if loss.happened and all(node.alive and node.trade is None for node in world.both):
                await world.take()  # the take never left: its user has to say it again
            if world.chain.mempool:
                world.chain.mine(2)
            pushes(world)
    finally:
        await world.end()


def check(world: World) -> None:
    """Nobody signed two messages with one number; two transactions; nothing stays reserved."""
    said: dict[tuple[bytes, int], bytes] = {}
    for raw in world.post.carried:
        envelope = open_envelope(raw, NETWORK)
        if envelope.kind not in OUTSIDE:
            key = (envelope.signer, decode(envelope).header.number)
            assert said.setdefault(key, raw) == raw, f"two different messages {key[1]}: {Kind(envelope.kind).name}"
    assert len(world.chain.broadcasts) == 2
    assert not world.maker.held
    assert not world.taker.held


@pytest.mark.parametrize("further", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("victim", ["maker", "taker"])
@pytest.mark.parametrize("side", list(Side))
async def test_loss_after_an_older_backup_completes_the_trade(
    tmp_path: Path, side: Side, victim: str, further: int
) -> None:
    seen: set[str] = set()
    for copied in range(STEPS):
        dies = max(1, copied + further)
        folder = tmp_path / str(copied)
        folder.mkdir()
        world = World(folder, side)
        node: TwinNode = getattr(world, victim)
        loss = Loss(node, copied, dies)
        try:
            await play(world, loss)
        except BaseException:
            print(f"copied at step {copied} of {loss.phases}, lost at {dies}")
            raise
        if not loss.happened:
            break
        check(world)
        seen.add("None" if copied == 0 else loss.phases[copied - 1])
    assert seen >= {"None", "Funding"}, f"copies were made in too few states: {seen}"
