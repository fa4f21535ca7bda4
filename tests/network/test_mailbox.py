"""Mail between those who are not there at the same time: order, refusals, crashes, and what happens when they meet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dht.topics import mailbox_topic, parcel_topic
from p2pnode.channels import Channels, Service
from p2pnode.clock import SystemClock
from p2pnode.intake import OutOfOrder, UnknownTrade, WrongTime
from p2pnode.mailbox import PATIENCE_SECONDS
from protocol.contact import Address
from protocol.errors import LocalError
from protocol.identity import SigningKey
from protocol.types import Network, Side
from tests.network.mail_net import Desk, MailNet, MailNode, MailWorld, Post, mail_net, until

NETWORK = Network.REGTEST


@pytest.fixture
async def net() -> AsyncIterator[MailNet]:
    async with mail_net(seed=31) as net:
        yield net


@pytest.fixture
async def post(net: MailNet) -> AsyncIterator[Post]:
    post = Post("alice", await net.guest())
    yield post
    await post.close()


@pytest.fixture
async def desk(net: MailNet) -> Desk:
    return Desk("bob", await net.guest())


def live(net: MailNet, topic: bytes) -> int:
    """Records under a topic that are no tombstones, on all nodes together."""
    return sum(not slot.tombstone for node in net.nodes for slot in node.storage.slots(topic))


async def test_what_comes_too_early_is_handed_on_in_order_within_one_round(post: Post, desk: Desk) -> None:
    def in_order(text: bytes) -> None:
        if int(text) != len(desk.came):
            raise OutOfOrder

    desk.verdict = in_order
    for number in (2, 0, 1):
        await post.sent(desk.persona.public, str(number).encode())
        post.clock.time += 1
    assert await desk.read()
    assert desk.came == [b"0", b"1", b"2"]


async def test_what_lacks_the_message_before_it_stays_in_the_mailbox_until_that_comes(post: Post, desk: Desk) -> None:
    def in_order(text: bytes) -> None:
        if int(text) != len(desk.came):
            raise OutOfOrder

    desk.verdict = in_order
    await post.sent(desk.persona.public, b"1")
    await desk.read()
    await post.outgoing.round()
    assert (desk.came, post.delivered) == ([], [])
    await post.sent(desk.persona.public, b"0")
    assert await desk.read()
    assert desk.came == [b"0", b"1"]
    await post.outgoing.round()
    assert len(post.delivered) == 2


async def test_answer_clears_the_outbox_and_frees_what_holders_kept(net: MailNet, post: Post, desk: Desk) -> None:
    posted = await post.sent(desk.persona.public, b"m" * 5_000)
    topic = mailbox_topic(NETWORK, desk.persona.public)
    chunks = parcel_topic(NETWORK, posted.parcel.chunks[0].signer, 0)
    assert live(net, topic) >= 3
    assert live(net, chunks) >= 3
    assert await desk.read()
    await until(lambda: live(net, topic) == 0, "the slip is gone from every holder")
    assert await post.outgoing.round()
    await until(lambda: live(net, chunks) == 0, "the chunks are gone from every holder")
    assert post.delivered == [posted.message]
    assert not post.outgoing._store.all()
    assert not post.trades.outbox(desk.persona.public)


async def test_refusal_comes_back_with_its_code(post: Post, desk: Desk) -> None:
    def refuse(_text: bytes) -> None:
        raise UnknownTrade

    desk.verdict = refuse
    posted = await post.sent(desk.persona.public, b"who are you")
    assert await desk.read()
    assert await post.outgoing.round()
    assert [(r.message.id, r.code) for r in post.refusals] == [(posted.message, UnknownTrade.code)]
    assert post.delivered == []


async def test_what_does_not_fit_yet_is_tried_for_an_hour_before_it_is_refused(post: Post, desk: Desk) -> None:
    """A node that was started a second ago has not followed the chain yet."""

    def not_yet(_text: bytes) -> None:
        raise WrongTime

    desk.verdict = not_yet
    await post.sent(desk.persona.public, b"paid")
    for _ in range(3):
        await desk.read()
        desk.clock.time += PATIENCE_SECONDS // 3
    await post.outgoing.round()
    assert post.refusals == []
    await desk.read()
    await post.outgoing.round()
    assert [r.code for r in post.refusals] == [WrongTime.code]


async def test_trouble_of_our_own_is_no_refusal(post: Post, desk: Desk) -> None:
    def full(_text: bytes) -> None:
        raise LocalError("no space left")

    desk.verdict = full
    await post.sent(desk.persona.public, b"important")
    await desk.read()
    await post.outgoing.round()
    assert (post.refusals, post.delivered) == ([], [])
    desk.verdict = lambda _text: None
    await desk.read()
    assert desk.came == [b"important"]


async def test_one_message_that_can_not_be_sealed_does_not_hold_up_the_rest(post: Post, desk: Desk) -> None:
    await post.write(bytes(32), b"to no key")
    posted = await post.sent(desk.persona.public, b"to bob")
    assert [p.message for p in post.outgoing._store.all()] == [posted.message]


async def test_lost_answer_is_given_again(net: MailNet, post: Post, desk: Desk) -> None:
    posted = await post.sent(desk.persona.public, b"hello")
    await desk.read()
    for node in net.nodes:
        for topic in node.storage.topics():
            for slot in node.storage.slots(topic):
                node.storage._remove(topic, slot)
    again = Desk("bob", desk.incoming._dht)
    await post.outgoing._place(posted.recipient, posted.parcel, keep=False)
    assert await again.read()
    await post.outgoing.round()
    assert post.delivered == [posted.message]


async def test_copy_that_a_crash_left_unplaced_is_placed_at_the_next_start(post: Post, desk: Desk) -> None:
    message = await post.write(desk.persona.public, b"recorded")
    await post.outgoing._copy(message, post.clock.now())
    await desk.read()
    assert desk.came == []
    await post.outgoing.round()
    await desk.read()
    assert desk.came == [b"recorded"]


async def test_old_copy_is_made_anew_before_it_expires(post: Post, desk: Desk) -> None:
    posted = await post.sent(desk.persona.public, b"still waiting")
    post.clock.time = posted.expires - 3_600
    await post.outgoing.round()
    (anew,) = post.outgoing._store.all()
    assert anew.created == post.clock.time
    assert anew.parcel.slip.signer == posted.parcel.slip.signer


async def test_nothing_is_posted_while_the_peer_may_just_be_slow(tmp_path: Path, net: MailNet) -> None:
    world = MailWorld(tmp_path, Side.SELL, net)
    for node in world.both:
        assert isinstance(node, MailNode)
        node.away_after = 1e9
    await world.begin()
    await world.maker.down()
    await world.take()
    await until(lambda: bool(world.taker.waiting), "the take is in the outbox")
    assert await world.taker.mailbox.outgoing.round()
    assert not world.taker.mailbox.outgoing._store.all()
    await world.taker.down()


async def test_when_they_meet_the_message_goes_directly_and_the_copy_is_withdrawn(
    tmp_path: Path, net: MailNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but the peer's appearance moves it: the next attempt by itself is far away.
    monkeypatch.setattr("p2pnode.delivery.FIRST_PAUSE", 600.0)
    world = MailWorld(tmp_path, Side.SELL, net)
    world.maker.mail = False  # it does not read its mailbox: only the direct way is left
    await world.begin()
    await world.maker.down()
    await world.take()
    await until(lambda: world.taker.posted, "the take waits in the mailbox")
    topic = mailbox_topic(NETWORK, world.maker.keyring.persona.public)
    assert live(net, topic)
    await world.maker.up()
    world.taker.delivery.appeared(world.maker.keyring.node.public)
    await until(lambda: world.phases("Funding"), "the trade goes on directly")
    await until(lambda: not world.taker.mailbox.outgoing._store.all(), "the copy is withdrawn")
    assert live(net, topic) == 0
    await world.end()


async def test_a_session_made_by_a_peer_is_told() -> None:
    """It is what sends on what waits for that peer."""
    told: list[bytes] = []
    keys = [SigningKey(bytes([n]) * 32) for n in (1, 2)]

    async def echo(_peer: bytes, body: bytes) -> bytes:
        return body

    services = {1: Service(echo, request_bytes=100, reply_bytes=100)}
    ours, theirs = (Channels(key, NETWORK, services, clock=SystemClock()) for key in keys)
    ours.subscribe(told.append)
    theirs.subscribe(lambda _peer: told.append(b"the dialler need not be told"))
    host, port = await ours.listen("127.0.0.1", 0)
    await theirs.request(keys[0].public, (Address(host, port),), 1, b"hi", timeout=5.0, reply_limit=100)
    assert told == [keys[1].public]
    await theirs.close()
    await ours.close()
