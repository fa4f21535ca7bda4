"""A node that dies at any commit, before or after it, completes its trade when it is started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.types import EscrowType, Side
from protocol.wire import Kind, open_envelope
from tests.world import NETWORK, World

MOST_COMMITS = 40
"""More than a trade takes; the tests stop at the real number."""


async def run(world: World) -> None:
    try:
        await world.happy()
    finally:
        await world.end()


def check(world: World, *, late: bool = False) -> None:
    """Six messages in all, each once; and two transactions with all value accounted for.

    `late`: a node that had to ask first may say `Released` only after its peer has seen that on the chain.
    """
    kinds = [Kind(open_envelope(raw, NETWORK).kind).name for raw in dict.fromkeys(world.post.carried)]
    kinds = [kind for kind in kinds if kind not in ("SYNC", "SYNCED", "RETURNED")]
    if late and "RELEASED" not in kinds:
        kinds.append("RELEASED")
    assert sorted(kinds) == ["ACCEPT", "PAID", "PAYMENT_DETAILS", "RELEASED", "SEAL", "TAKE"]
    assert len(world.chain.broadcasts) == 2


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("escrow", list(EscrowType))
@pytest.mark.parametrize("deposit", [0, 100_000])
async def test_undisturbed_trade_completes(tmp_path: Path, side: Side, escrow: EscrowType, deposit: int) -> None:
    world = World(tmp_path, side, deposit=deposit, escrow=escrow)
    await run(world)
    check(world)
    assert not world.maker.held
    assert not world.taker.held, "coins stay reserved after the end"


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("victim", ["maker", "taker"])
@pytest.mark.parametrize("loses_it", [False, True], ids=["after-commit", "before-commit"])
async def test_death_at_any_commit_loses_nothing(tmp_path: Path, side: Side, victim: str, loses_it: bool) -> None:
    died = 0
    for number in range(1, MOST_COMMITS):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, side)
        node = getattr(world, victim)
        await node.up()
        start = node.database.commits
        node.database.dies_at = start + number + (1 if victim == "maker" else 0)
        node.database.loses_it = loses_it
        before = node.database
        await run(world)
        check(world)
        if node.database is before:
            break
        died += 1
    assert died >= 8, "the node was never killed: the test tests nothing"
