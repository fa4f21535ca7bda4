"""What strangers, recipients and senders of mail may try, each against a DHT of real nodes (SPEC section 12)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dht.errors import InvalidRecord, RecordRejected
from dht.node import DhtNode
from dht.topics import mailbox_topic, parcel_topic, receipt_topic
from p2pnode.mailbox import MOST_AT_ONCE
from protocol.errors import Malformed, TooLarge
from protocol.identity import SigningKey
from protocol.mailbox import (
    ANSWER_WORK_BITS,
    CHUNK_BYTES,
    CHUNK_WORK_BITS,
    MAX_MAIL,
    SLIP_WORK_BITS,
    Answer,
    Chunk,
    Slip,
    chunk_key,
    make_answer,
    make_parcel,
    open_slip,
    read_answer,
    read_slip,
    slip_key,
)
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.network.mail_net import Desk, MailNet, Post, mail_net
from tests.world import NOW

NETWORK = Network.REGTEST
LATER = NOW + 86_400
STRANGER = SigningKey(b"s" * 32)
SLOTS = 24


@pytest.fixture
async def net() -> AsyncIterator[MailNet]:
    async with mail_net(seed=21, slots=SLOTS) as net:
        yield net


@pytest.fixture
async def post(net: MailNet) -> AsyncIterator[Post]:
    post = Post("alice", await net.guest())
    yield post
    await post.close()


@pytest.fixture
async def desk(net: MailNet) -> Desk:
    return Desk("bob", await net.guest())


@pytest.fixture
async def stranger(net: MailNet) -> DhtNode:
    return await net.guest()


def worked(kind: Kind, key: SigningKey, value: Slip | Chunk | Answer, bits: int) -> Envelope:
    return key.seal(kind, NETWORK, find_work(kind, NETWORK, pack(value), bits))


def held(net: MailNet, topic: bytes) -> set[bytes]:
    return {raw for node in net.nodes for raw in node.storage.all(topic, node.unix())}


async def flood(stranger: DhtNode, recipient: bytes, count: int) -> None:
    """Slips whose chunks nobody ever stores, older than any honest one."""
    for n in range(count):
        parcel = make_parcel(n.to_bytes(32, "big"), recipient, b"junk", NETWORK, created=NOW - 1000, expires=LATER)
        await stranger.put(mailbox_topic(NETWORK, recipient), parcel.slip, keep=False)


async def test_flood_from_one_place_neither_keeps_mail_out_nor_holds_it_up(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode
) -> None:
    topic = mailbox_topic(NETWORK, desk.persona.public)
    await flood(stranger, desk.persona.public, SLOTS + 12)
    assert all(node.storage.total(topic) == SLOTS for node in net.nodes)
    await post.sent(desk.persona.public, b"in spite of all")
    # Two: the holders may have thrown out different ones, so that together there are more than one round opens.
    for _ in range(2):
        assert not await desk.read()
    assert desk.came == [b"in spite of all"]


async def test_slips_without_chunks_do_not_stand_before_others_for_ever(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.mailbox.MOST_AT_ONCE", 4)
    assert MOST_AT_ONCE > 4
    await flood(stranger, desk.persona.public, 8)
    await post.sent(desk.persona.public, b"behind them")
    rounds = 0
    while not desk.came:
        await desk.read()
        rounds += 1
        assert rounds <= 3


async def test_mail_over_the_limit_is_not_made_and_waits_for_its_peer(post: Post, desk: Desk) -> None:
    message = await post.write(desk.persona.public, b"x" * MAX_MAIL)
    assert len(message.raw) > MAX_MAIL
    assert await post.outgoing.round()
    assert not post.outgoing._store.all()
    assert [m.id for m in post.trades.outbox(desk.persona.public)] == [message.id]
    with pytest.raises(TooLarge):
        make_parcel(bytes(32), desk.persona.public, message.raw, NETWORK, created=NOW, expires=LATER)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1])
async def test_chunk_of_another_size_is_stored_nowhere(stranger: DhtNode, size: int) -> None:
    chunk = Chunk(STRANGER.public, 0, NOW, LATER, b"x" * size)
    record = worked(Kind.MAIL_CHUNK, STRANGER, chunk, CHUNK_WORK_BITS)
    with pytest.raises(RecordRejected):
        await stranger.put(parcel_topic(NETWORK, STRANGER.public, 0), record)


async def test_slip_that_carries_more_than_its_box_is_stored_nowhere(stranger: DhtNode, desk: Desk) -> None:
    slip = Slip(STRANGER.public, desk.persona.public, NOW, LATER, b"x" * 40)
    with pytest.raises(RecordRejected):
        await stranger.put(
            mailbox_topic(NETWORK, desk.persona.public), worked(Kind.MAIL_SLIP, STRANGER, slip, SLIP_WORK_BITS)
        )


@pytest.mark.parametrize("bits", [0, SLIP_WORK_BITS - 6])
async def test_slip_without_its_work_is_stored_nowhere(stranger: DhtNode, desk: Desk, bits: int) -> None:
    real = make_parcel(bytes(32), desk.persona.public, b"cheap", NETWORK, created=NOW, expires=LATER).slip
    key = slip_key(bytes(32))
    slip = read_slip(real, NETWORK)
    cheap = Slip(slip.author, slip.recipient, slip.created, slip.expires, slip.sealed)
    body = find_work(Kind.MAIL_SLIP, NETWORK, pack(cheap), bits)
    with pytest.raises(RecordRejected):
        await stranger.put(mailbox_topic(NETWORK, slip.recipient), key.seal(Kind.MAIL_SLIP, NETWORK, body))


async def test_mail_sealed_to_somebody_else_is_neither_handed_on_nor_answered_nor_tried_again(
    net: MailNet, desk: Desk, stranger: DhtNode
) -> None:
    other = SigningKey(b"o" * 32).public
    parcel = make_parcel(bytes(32), other, b"not for bob", NETWORK, created=NOW, expires=LATER)
    misled = Slip(slip_key(bytes(32)).public, desk.persona.public, NOW, LATER, read_slip(parcel.slip, NETWORK).sealed)
    topic = mailbox_topic(NETWORK, desk.persona.public)
    record = worked(Kind.MAIL_SLIP, slip_key(bytes(32)), misled, SLIP_WORK_BITS)
    await stranger.put(topic, record)
    for chunk in parcel.chunks:
        await stranger.put(parcel_topic(NETWORK, chunk.signer, 0), chunk)
    assert await desk.read()
    assert desk.came == []
    assert held(net, topic) == {record.raw}
    assert misled.author in desk.incoming._junk


async def test_mail_copied_under_another_key_does_not_open(desk: Desk) -> None:
    """Else a stranger who saw a slip could post it again for ever."""
    real = read_slip(
        make_parcel(bytes(32), desk.persona.public, b"once", NETWORK, created=NOW, expires=LATER).slip, NETWORK
    )
    copy = Slip(STRANGER.public, real.recipient, real.created, real.expires, real.sealed)
    assert open_slip(real, desk.persona).count == 1
    with pytest.raises(Malformed):
        open_slip(copy, desk.persona)


async def test_answered_mail_posted_again_does_not_come_back(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode
) -> None:
    posted = await post.sent(desk.persona.public, b"once")
    assert await desk.read()
    topic = mailbox_topic(NETWORK, desk.persona.public)
    result = await stranger.put(topic, posted.parcel.slip)
    assert result.acks == 0
    assert result.newer is not None
    for chunk in posted.parcel.chunks:
        await stranger.put(parcel_topic(NETWORK, chunk.signer, 0), chunk)
    assert await desk.read()
    assert desk.came == [b"once"]


async def test_answer_of_another_persona_clears_nothing(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode
) -> None:
    posted = await post.sent(desk.persona.public, b"waiting")
    slip = read_slip(posted.parcel.slip, NETWORK)
    # Who saw the slip knows its key and its times, and may even guess the message.
    forged = make_answer(slip, STRANGER, posted.message, 0, NETWORK)
    for topic in (
        receipt_topic(NETWORK, desk.persona.public, slip.author),
        mailbox_topic(NETWORK, desk.persona.public),
    ):
        with pytest.raises(RecordRejected):
            await stranger.put(topic, forged)
    pretended = Answer(desk.persona.public, slip.author, NOW, LATER, b"x" * 74)
    with pytest.raises(RecordRejected):
        await stranger.put(
            receipt_topic(NETWORK, desk.persona.public, slip.author),
            worked(Kind.MAIL_ANSWER, STRANGER, pretended, ANSWER_WORK_BITS),
        )
    # Under topics of the forger's own the record is valid, and nobody looks there.
    assert (await stranger.put(receipt_topic(NETWORK, STRANGER.public, slip.author), forged)).stored
    assert await post.outgoing.round()
    assert post.delivered == []
    assert await desk.read()
    assert desk.came == [b"waiting"]
    assert await post.outgoing.round()
    assert post.delivered == [posted.message]


async def test_recipient_who_has_not_opened_the_mail_can_not_acknowledge_it(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode
) -> None:
    posted = await post.sent(desk.persona.public, b"read me")
    slip = read_slip(posted.parcel.slip, NETWORK)
    about_another = read_answer(make_answer(slip, desk.persona, bytes(32), 0, NETWORK), NETWORK)
    for sealed in (b"x" * 74, about_another.sealed):
        answer = Answer(desk.persona.public, slip.author, slip.created, slip.expires, sealed)
        record = worked(Kind.MAIL_ANSWER, desk.persona, answer, ANSWER_WORK_BITS)
        assert (await stranger.put(receipt_topic(NETWORK, desk.persona.public, slip.author), record)).acks
        await post.outgoing.round()
        assert post.delivered == []
        assert post.trades.outbox(desk.persona.public)


async def test_stranger_puts_nothing_among_the_chunks(net: MailNet, post: Post, desk: Desk, stranger: DhtNode) -> None:
    posted = await post.sent(desk.persona.public, b"m" * 2_000)
    author = chunk_key(posted.secret).public
    topic = parcel_topic(NETWORK, author, 0)
    for claimed in (STRANGER.public, author):
        chunk = Chunk(claimed, 0, NOW + 1, LATER, b"j" * CHUNK_BYTES)
        junk = worked(Kind.MAIL_CHUNK, STRANGER, chunk, CHUNK_WORK_BITS)
        with pytest.raises(RecordRejected):
            await stranger.put(topic, junk)
        # The holders' own judgement, for one who sends it without asking his own node.
        for node in net.nodes:
            with pytest.raises(InvalidRecord):
                node.engine.registry.check(junk.raw, topic, node.unix())
    assert await desk.read()
    assert desk.came == [b"m" * 2_000]


async def test_parcel_with_a_chunk_missing_waits_and_another_signed_in_its_place_is_refused(
    net: MailNet, post: Post, desk: Desk, stranger: DhtNode
) -> None:
    secret = b"q" * 32
    envelope = post.persona.seal(Kind.CHAT, NETWORK, pack(b"t" * 2_000))
    parcel = make_parcel(secret, desk.persona.public, envelope.raw, NETWORK, created=NOW, expires=LATER)
    assert len(parcel.chunks) == 3
    await stranger.put(mailbox_topic(NETWORK, desk.persona.public), parcel.slip)
    topic = parcel_topic(NETWORK, parcel.chunks[0].signer, 0)
    for chunk in parcel.chunks[:2]:
        await stranger.put(topic, chunk)
    assert not await desk.read()
    assert desk.came == []
    await post.sent(desk.persona.public, b"not behind it")
    await desk.read()
    assert desk.came == [b"not behind it"]
    await stranger.put(topic, parcel.chunks[2])
    assert await desk.read()
    assert desk.came == [b"not behind it", b"t" * 2_000]


async def test_sender_who_changes_a_chunk_afterwards_gets_no_other_content_read(
    net: MailNet, desk: Desk, stranger: DhtNode
) -> None:
    secret = b"q" * 32
    parcel = make_parcel(secret, desk.persona.public, b"first", NETWORK, created=NOW, expires=LATER)
    other = Chunk(chunk_key(secret).public, 0, NOW + 1, LATER, b"z" * CHUNK_BYTES)
    await stranger.put(mailbox_topic(NETWORK, desk.persona.public), parcel.slip)
    topic = parcel_topic(NETWORK, other.author, 0)
    await stranger.put(topic, worked(Kind.MAIL_CHUNK, chunk_key(secret), other, CHUNK_WORK_BITS))
    assert await desk.read()
    assert desk.came == []
