"""Words between parties who are never awake together: they wait in the mailbox, and stand in the chain all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol import dispute_events as dv
from protocol.attachment import describe
from protocol.messages import AttachmentOffer, ChatLine, decode
from protocol.transcript import read_transcript
from protocol.types import Side
from protocol.wire import parse_envelope
from tests.network.mail_net import MailNet, MailNode, MailWorld, until
from tests.network.test_mailbox_trade import sealed
from tests.pictures import png
from tests.world import NETWORK


@pytest.fixture
async def net() -> AsyncIterator[MailNet]:
    net = MailNet(seed=12)
    await net.grow(8)
    yield net
    await net.close()


def said(node: MailNode) -> list[str]:
    """What the other has written to a node, in the order of its chain."""
    assert node.trade is not None
    payloads = [
        decode(parse_envelope(raw, NETWORK)).payload
        for out, raw, _ in node.engine.trades.transcript(node.trade.trade_id)
        if not out
    ]
    talk = [p for p in payloads if isinstance(p, ChatLine | AttachmentOffer)]
    return [p.text if isinstance(p, ChatLine) else p.attachment.name for p in talk]


async def test_chat_and_files_are_read_by_one_who_was_away(tmp_path: Path, net: MailNet) -> None:
    world = MailWorld(tmp_path, Side.SELL, net)
    buyer, seller = world.buyer, world.seller
    assert isinstance(buyer, MailNode)
    assert isinstance(seller, MailNode)
    await sealed(world)
    await seller.up()
    assert seller.trade is not None
    identity = seller.trade.trade_id
    seller.engine.apply(identity, dv.SendChat("are you there?"))
    seller.engine.apply(identity, dv.SendAttachment(describe(png(), "account.png")))
    seller.engine.apply(identity, dv.SendChat("pay by Friday"))
    await until(lambda: seller.posted, "three parcels in the buyer's mailbox")
    await seller.down()

    await buyer.up()
    await until(lambda: len(said(buyer)) == 3, "the buyer reads them")
    assert said(buyer) == ["are you there?", "account.png", "pay by Friday"]
    buyer.engine.apply(identity, dv.SendChat("yes"))
    await until(lambda: buyer.posted, "the answer in the seller's mailbox")
    await buyer.down()

    await seller.up()
    await until(lambda: said(seller) == ["yes"], "the seller reads it")
    state = seller.trade
    assert state is not None
    assert state.contract is not None
    raws = [raw for _, raw, _ in seller.engine.trades.transcript(identity)]
    parties = (state.contract.maker.persona, state.contract.taker.persona)
    assert read_transcript(raws, NETWORK, identity, parties).omitted == 0
    await seller.down()
