"""The contract file is on disk before anything is signed that could lock coins, and whoever dies has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.contractfile import load
from protocol.trade_state import TradeState
from protocol.types import Side
from tests.crash.test_crash_everywhere import run
from tests.world import TwinNode, World


def check_file(node: TwinNode, state: TradeState) -> bool:
    """That the file is there once our funding signature is recorded; whether it had to be."""
    if state.funding.own_witnesses is None:
        return False
    file = load(node.folder / f"{node.name}-contracts" / f"{state.trade_id.hex()}.json")
    assert file.contract == state.contract
    assert file.side is state.side
    return True


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("victim", ["maker", "taker"])
@pytest.mark.parametrize("number", range(1, 12))
async def test_file_is_there_whenever_the_node_dies(tmp_path: Path, side: Side, victim: str, number: int) -> None:
    world = World(tmp_path, side)
    node: TwinNode = getattr(world, victim)
    await node.up()
    node.database.dies_at = node.database.commits + number + (1 if victim == "maker" else 0)
    looked: list[bool] = []
    bury = node.buried

    async def buried() -> None:
        """Nothing of the node runs any more: what is on its disk now is what there is."""
        state = node.trade
        await bury()
        looked.append(state is not None and check_file(node, state))

    node.buried = buried  # type: ignore[method-assign]
    node.engine.subscribe(lambda state: looked.append(check_file(node, state)))
    await run(world)
    assert any(looked), "nothing was signed: the test tests nothing"
