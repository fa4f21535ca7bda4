"""Receipts of real trades between two nodes on one made-up chain: exchanged always, published only by both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2pnode.intake import UnknownTrade
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.exchange import NotRatable, Receipts, is_half
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.history import Histories
from p2pnode.reputation.rulings import RulingReceipts
from p2pnode.reputation.store import TestimonyStore
from protocol.errors import BadSignature
from protocol.identity import SigningKey
from protocol.rating import Mark
from protocol.receipt import BadReceipt, Ending, ReceiptHalf, RulingReceipt, sign_receipt
from protocol.types import Side
from protocol.wire import Kind, open_envelope, pack, unpack
from tests.court import Court
from tests.malice.test_disputes import heard, ruling_by, told, traded
from tests.unit.reputation_support import key_of
from tests.unit.services_support import TestClock, dht_node, keyring_of
from tests.world import NETWORK, TwinNode, World


def receipts_of(node: TwinNode, *, publish: bool) -> Receipts:
    """Attach to a node what the composition root gives it."""
    made = Receipts(
        node.engine.trades,
        TestimonyStore(node.database, NETWORK),
        ChainSight(node.backend, NETWORK, lambda: node.chain.height),
        node.keyring,
        node.notices,
        NETWORK,
        node.clock,
        publish=publish,
        post=node.delivery.kick,
        kick=lambda: None,
    )
    node.engine.subscribe(made.follow)
    node.intake.receipts = made
    made.start()
    return made


async def completed(folder: Path, *, publish: bool) -> tuple[World, bytes, Receipts, Receipts]:
    """A whole trade, and both halves at both nodes."""
    world = World(folder, Side.SELL)
    for node in world.both:
        await node.up()
    maker, taker = (receipts_of(node, publish=publish) for node in world.both)
    await world.happy()
    assert world.maker.trade is not None
    trade_id = world.maker.trade.trade_id

    def both() -> bool:
        return all(None not in (r.get(trade_id).own_half, r.get(trade_id).peer_half) for r in (maker, taker))

    await world.until(both, "both halves at both")
    return world, trade_id, maker, taker


def peer_consents(receipts: Receipts, trade_id: bytes) -> bool:
    _, peer = receipts.halves(receipts.get(trade_id))
    return peer is not None and peer.consent is not None


async def ended(world: World, *parts: Receipts) -> None:
    for part in parts:
        await part.close()
    await world.end()


async def test_both_sign_and_nothing_is_published_without_their_consent(tmp_path: Path) -> None:
    world, trade_id, maker, taker = await completed(tmp_path, publish=False)
    assert all(r.get(trade_id).record is None and not list(r.records(0)) for r in (maker, taker))
    maker.publish(trade_id)
    assert maker.get(trade_id).record is None, "the other has not agreed"
    await world.until(lambda: peer_consents(taker, trade_id), "the maker's consent")
    taker.publish(trade_id)
    assert taker.get(trade_id).record is not None
    await world.until(lambda: maker.get(trade_id).record is not None, "the taker's consent")
    assert maker.count_public() == taker.count_public() == 1
    await ended(world, maker, taker)


async def test_a_third_node_proves_the_receipt_and_reads_both_ratings(tmp_path: Path) -> None:
    world, trade_id, maker, taker = await completed(tmp_path, publish=True)
    await world.until(lambda: None not in (maker.get(trade_id).record, taker.get(trade_id).record), "records")
    maker.rate(trade_id, Mark.GOOD, "paid at once")
    taker.rate(trade_id, Mark.BAD, "slow")
    node = world.maker
    store = TestimonyStore(node.database, NETWORK)
    for part in (maker, taker):
        for _, envelope, _ in part.records(node.clock.now()):
            store.remember(open_envelope(envelope.raw, NETWORK), node.clock.now())
    clock = TestClock()
    exposures = Exposures(node.database, node.engine.trades, node.notices, NETWORK, clock)
    sight = ChainSight(node.backend, NETWORK, lambda: node.chain.height)
    dht = dht_node(keyring_of("third"), clock, 1)
    histories = Histories(store, sight, exposures, dht, NETWORK, node.clock, random.Random(1))
    personas = [n.keyring.persona.public for n in world.both]
    await histories.check(store.about(personas[0], node.clock.now()))
    seen = [histories.known(persona) for persona in personas]
    assert [[(r.mark, r.text) for r in h.ratings] for h in seen] == [
        [(Mark.BAD, "slow")],
        [(Mark.GOOD, "paid at once")],
    ]
    assert all((h.releases, h.counterparties, h.forged) == (1, 1, False) for h in seen)
    await ended(world, maker, taker)


async def test_a_half_that_is_not_about_this_trade_is_refused(tmp_path: Path) -> None:
    world, trade_id, maker, taker = await completed(tmp_path, publish=True)
    own, _ = taker.halves(taker.get(trade_id))
    assert own is not None
    key, stranger = world.taker.keyring.persona, key_of("stranger")

    def sealed(half: ReceiptHalf, by: SigningKey = key) -> bytes:
        return by.seal(Kind.RECEIPT_HALF, NETWORK, pack(half)).raw

    unsigned = replace(own, consent=None)
    for lie in (
        {"payout_txid": bytes(32)},
        {"vout": own.receipt.vout + 1},
        {"seller_key": own.receipt.buyer_key},
        {"ending": Ending.RULED},
    ):
        with pytest.raises(BadReceipt):
            await world.maker.intake.deliver(b"", sealed(replace(unsigned, receipt=replace(own.receipt, **lie))))
    with pytest.raises(BadReceipt, match="one of its parties"):
        await world.maker.intake.deliver(b"", sealed(own, stranger))
    with pytest.raises(UnknownTrade):
        await world.maker.intake.deliver(b"", sealed(replace(own, trade_id=bytes(32))))
    forged = replace(own, consent=sign_receipt(own.receipt, NETWORK, stranger.seed))
    with pytest.raises(BadSignature):
        await world.maker.intake.deliver(b"", sealed(forged))
    # Our own half, sent back to us, is not the counterparty's.
    with pytest.raises(BadSignature):
        await world.taker.intake.deliver(b"", sealed(own))
    await ended(world, maker, taker)


async def test_a_consent_once_given_is_not_undone_by_an_older_copy(tmp_path: Path) -> None:
    world, trade_id, maker, taker = await completed(tmp_path, publish=False)
    late = taker.get(trade_id).own_half
    assert late is not None
    assert is_half(late, NETWORK)
    taker.publish(trade_id)
    await world.until(lambda: peer_consents(maker, trade_id), "the consent")
    await world.maker.intake.deliver(b"", late)
    assert peer_consents(maker, trade_id)
    await ended(world, maker, taker)


async def test_only_ended_trades_are_rated(tmp_path: Path) -> None:
    world = World(tmp_path, Side.SELL)
    await world.begin()
    maker = receipts_of(world.maker, publish=True)
    await world.take()
    await world.until(lambda: world.phases("Funding"), "funding")
    assert world.maker.trade is not None
    with pytest.raises(NotRatable):
        maker.rate(world.maker.trade.trade_id, Mark.BAD, "")
    with pytest.raises(NotRatable):
        maker.publish(world.maker.trade.trade_id)
    await ended(world, maker)


async def test_a_node_that_sees_two_rulings_publishes_the_proof_by_itself(tmp_path: Path) -> None:
    court = await heard(Court(tmp_path, Side.SELL))
    node = court.seller
    kicked: list[None] = []
    exposures = Exposures(
        node.database, node.engine.trades, node.notices, NETWORK, node.clock, kick=lambda: kicked.append(None)
    )
    node.engine.subscribe(exposures.follow)
    arbiter = court.main.keyring.persona.public
    await court.main.decide(1_000_000)
    await court.until(lambda: bool(traded(court, node).dispute.rulings), "the ruling")  # type: ignore[union-attr]
    assert not exposures.exposed(arbiter)
    state = traded(court, node)
    await node.intake.deliver(bytes(32), told(court.main, state, Side.SELL, ruling_by(court.main, state)))
    assert exposures.exposed(arbiter)
    assert kicked
    records = list(exposures.records(node.clock.now()))
    assert len(records) == 2
    assert all(envelope.signer != node.keyring.persona.public for _, envelope, _ in records), "nobody learns who told"
    topics = [n.topic for n in node.notices.after(0, 1_000)]
    assert topics.count("arbiter-exposed") == 1
    other = Exposures(court.buyer.database, court.buyer.engine.trades, court.buyer.notices, NETWORK, court.buyer.clock)
    assert other.remember(open_envelope(records[0][1].raw, NETWORK))
    assert not other.remember(open_envelope(records[0][1].raw, NETWORK)), "told once"
    assert other.exposed(arbiter)
    again = Exposures(court.buyer.database, court.buyer.engine.trades, court.buyer.notices, NETWORK, court.buyer.clock)
    assert again.exposed(arbiter), "it is remembered over a restart"
    await court.end()


async def test_a_ruling_that_was_paid_out_leaves_a_receipt_without_the_parties_names(tmp_path: Path) -> None:
    court = await heard(Court(tmp_path, Side.SELL))
    judge = court.main
    sight = ChainSight(judge.backend, NETWORK, lambda: judge.chain.height)
    store = TestimonyStore(judge.database, NETWORK)
    given = RulingReceipts(
        judge.database, store, sight, judge.keyring, NETWORK, judge.clock, publish=True, kick=lambda: None
    )
    judge.desk.engine.subscribe(given.follow)
    await judge.decide(1_000_000)
    await court.finish(court.buyer)
    await court.until(lambda: judge.case_phase == "Closed", "the case's end")
    await court.until(lambda: bool(list(given.records(judge.clock.now()))), "the receipt")
    _, envelope, _ = next(iter(given.records(judge.clock.now())))
    value = unpack(envelope.body, RulingReceipt, limit=Kind.RULING_RECEIPT.limit)
    assert value.in_time
    for name in (court.buyer, court.seller):
        assert name.keyring.persona.public not in envelope.raw
    assert await sight.ruling(value) is not None
    with pytest.raises(BadReceipt, match="another"):
        await sight.ruling(replace(value, contract_id=bytes(32)))
    assert await sight.ruling(replace(value, opened=0)) is None, "asked before the escrow was there"
    assert await sight.ruling(replace(value, ruled=10**6)) is None, "ruled after the payout"
    late = replace(value, ruled=value.opened + 2 * value.promised + 1)
    assert not late.in_time
    await given.close()
    await court.end()
