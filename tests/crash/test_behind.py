"""A peer that is behind on the chain refuses what it will want in a moment: it is offered again."""

from __future__ import annotations

from pathlib import Path

from p2pnode import delivery
from p2pnode.intake import WrongTime
from protocol.types import Side
from protocol.wire import Kind, open_envelope
from tests.world import NETWORK, World


async def test_message_that_comes_too_early_is_offered_again(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL)
    refused: list[bytes] = []

    def early(raw: bytes) -> bytes:
        if open_envelope(raw, NETWORK).kind == Kind.PAYMENT_DETAILS and len(refused) < 2:
            refused.append(raw)
            raise WrongTime
        return raw

    world.post.tamper = early
    try:
        await world.happy()
    finally:
        await world.end()
    assert len(refused) == 2


def test_the_code_is_the_one_that_intake_gives() -> None:
    assert WrongTime.code == delivery.WRONG_TIME
