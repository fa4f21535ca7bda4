"""A trade of the demo on a network of our making."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from p2pnode.demo.play import Played, Script
from p2pnode.demo.steps import Steps
from tests.netns.lab import Lab, obstacle
from tests.netns.players import NamespacedCast, PlayWith


def skip_where_impossible() -> None:
    """Skip the test where no namespaces can be made."""
    if (why := obstacle()) is not None:
        pytest.skip(f"network namespaces: {why}")


@contextmanager
def clean_lab() -> Iterator[Lab]:
    """A lab that has to leave nothing behind."""
    made = Lab()
    with made:
        yield made
    assert made.leftovers() == []


class Stage:
    """One cast in one lab."""

    def __init__(
        self, lab: Lab, folder: Path, binary: Path, places: dict[str, tuple[str, str]], *, seeds: int = 1
    ) -> None:
        """`places`: the namespace of each node, and the address that it listens on."""
        self.lab = lab
        self.cast = NamespacedCast(folder, binary, lab, places, seeds)
        self.shown = io.StringIO()
        self.steps = Steps(Console(file=self.shown, width=120))

    async def perform(self, play: type[PlayWith] = PlayWith) -> Played:
        performing = play(self.cast, Script(), self.steps)
        performing.stage = self  # type: ignore[attr-defined]
        try:
            return await performing.perform()
        finally:
            print(self.shown.getvalue())

    async def relay_between(self) -> str:
        """The node that carries the traders' session, as its text id; they must have no other session."""
        seller, buyer = self.cast.traders
        sessions = [p for p in (await seller.api.peers()).peers if p.via == "channel" and p.node == buyer.info.node]
        if not sessions:
            sessions = [p for p in (await buyer.api.peers()).peers if p.via == "channel" and p.node == seller.info.node]
        assert sessions
        assert all(p.address.startswith("relay ") for p in sessions), sessions
        return sessions[0].address.removeprefix("relay ")

    async def seeds_tables(self) -> set[str]:
        """The nodes in the bootstrap nodes' routing tables."""
        return {str(p.node) for seed in self.cast.seeds for p in (await seed.api.peers()).peers if p.via == "dht"}


def completed(played: Played) -> None:
    """Both have what they bargained for."""
    assert (played.seller.phase, played.buyer.phase) == ("completed", "completed")
    assert played.before["buyer"].spendable_sats < played.after["buyer"].spendable_sats
