"""What an attacker tries against the DHT, one test each. Real nodes on loopback, each in a /24 of its own."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from dht import messages, packet
from dht.contact import Contact, intern_contact, node_id, puzzle_zero_bits
from dht.desk import MOST_OF_GROUP, ORPHANS_BURST
from dht.errors import RecordRejected
from dht.market import DESCEND_AT
from dht.messages import Op, Reply, Status
from dht.node import DhtNode, mine_node_key
from dht.rpc import Call, Limits
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope
from tests.network.dht_net import NOTE, Net, note

ALICE = SigningKey(b"a" * 32)
MALLORY = SigningKey(b"m" * 32)
TOPIC = b"t" * 20


@pytest.fixture(autouse=True)
def nothing_raised(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is raised in a callback of the loop is only logged, and so would go unseen."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelname == "ERROR"] == []


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    built = Net(20_261_121)
    await built.grow(14, count_local=True)
    yield built
    await built.close()


class Ear:
    """Waits for one answer."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def answered(self, call: Call, reply: Reply, now: float) -> None:
        self.future.set_result(reply)

    def late(self, call: Call, now: float) -> None:
        pass

    def failed(self, call: Call, now: float) -> None:
        self.future.set_result(None)


def contact_of(node: DhtNode) -> Contact:
    return intern_contact(Contact(node.key.public, *node.local))


async def ask(by: DhtNode, whom: DhtNode, op: int, body: bytes) -> Reply | None:
    """A question as a hostile but authenticated node would put it."""
    ear = Ear()
    by.engine.rpc.call(contact_of(whom), op, body, ear, time.monotonic())
    by._arm()
    return await ear.future


async def store(by: DhtNode, whom: DhtNode, topic: bytes, raw: bytes) -> int:
    await ask(by, whom, Op.PING, b"")  # gets the token
    reply = await ask(by, whom, Op.STORE, messages.store_body(topic, 0, raw))
    assert reply is not None
    return reply.status


async def test_overwriting_anothers_record_adds_a_second_one_at_most(net: Net) -> None:
    record = note(ALICE, TOPIC, b"mine")
    await net.nodes[1].put(TOPIC, record, quorum=8)
    await net.nodes[2].put(TOPIC, note(MALLORY, TOPIC, b"evil", sequence=9), quorum=8)
    found = {e.signer: e.raw for e in await net.nodes[5].get(TOPIC, quorum=6)}
    assert found[ALICE.public] == record.raw


async def test_replaying_an_old_sequence_is_answered_with_the_newer(net: Net) -> None:
    old, new = note(ALICE, TOPIC, b"old", sequence=1), note(ALICE, TOPIC, b"new", sequence=2)
    await net.nodes[1].put(TOPIC, new, quorum=8)
    result = await net.nodes[2].put(TOPIC, old)
    assert result.acks == 0
    assert result.newer is not None
    assert result.newer.raw == new.raw


async def test_a_forged_signature_is_stored_nowhere(net: Net) -> None:
    good = note(ALICE, TOPIC)
    forged = good.raw[:-1] + bytes([good.raw[-1] ^ 1])
    assert await store(net.nodes[0], net.nodes[1], TOPIC, forged) == Status.INVALID
    assert net.nodes[1].storage.total(TOPIC) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: note(ALICE, TOPIC, b"x" * 8_200).raw,
        lambda: note(ALICE, TOPIC, lifetime=400 * 86_400).raw,
        lambda: note(ALICE, TOPIC, lifetime=-1).raw,
        lambda: note(ALICE, b"other topic is here!").raw,
        lambda: note(ALICE, TOPIC, sub_key=b"k" * 33).raw,
        lambda: ALICE.seal(NOTE, Network.MAINNET, b"\x90").raw,
        lambda: ALICE.seal(NOTE + 2, Network.REGTEST, b"\x90").raw,
        lambda: ALICE.seal(NOTE, Network.REGTEST, b"\xc1" * 40).raw,
        lambda: b"",
    ],
    ids=[
        "oversized",
        "outlives",
        "expired",
        "wrong-topic",
        "sub-key",
        "wrong-network",
        "unknown-kind",
        "junk",
        "empty",
    ],
)
async def test_a_record_that_breaks_a_rule_is_refused_by_the_node_that_gets_it(net: Net, make: object) -> None:
    raw: bytes = make()  # type: ignore[operator]
    if len(raw) <= 1_080:
        assert await store(net.nodes[0], net.nodes[1], TOPIC, raw) == Status.INVALID
    else:
        await ask(net.nodes[0], net.nodes[1], Op.PING, b"")
        for offset in range(0, len(raw), messages.PART_BYTES):
            reply = await ask(net.nodes[0], net.nodes[1], Op.STORE_PART, messages.store_part_body(TOPIC, raw, offset))
            assert reply is not None
            assert reply.status == Status.INVALID
    assert net.nodes[1].storage.total(TOPIC) == 0
    with pytest.raises(RecordRejected):
        await net.nodes[1].put(TOPIC, Envelope(NOTE, Network.REGTEST, b"", b"", b"", raw))


async def test_one_persona_can_not_flood_a_key(net: Net) -> None:
    for i in range(80):
        await net.nodes[1].put(TOPIC, note(MALLORY, TOPIC, sub_key=bytes([i])), keep=False)
    assert max(n.storage.total(TOPIC) for n in net.nodes) == 64
    record = note(ALICE, TOPIC)
    assert (await net.nodes[2].put(TOPIC, record)).acks >= 5


async def test_tombstones_of_nothing_do_not_fill_a_market(net: Net) -> None:
    """They cost no work, and everybody who reads the market would have to read them."""
    holder = min(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ int.from_bytes(TOPIC, "big"))
    far = sorted(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ int.from_bytes(TOPIC, "big"))[-2:]
    offered = note(ALICE, TOPIC)
    assert await store(far[0], holder, TOPIC, offered.raw) == Status.OK
    codes = []
    for i in range(int(ORPHANS_BURST) + 20):
        gone = note(SigningKey(i.to_bytes(32, "big")), TOPIC, gone=True)
        reply = await ask(far[0], holder, Op.STORE, messages.store_body(TOPIC, 0, gone.raw))
        assert reply is not None
        codes.append(reply.status)
    assert codes == [Status.OK] * int(ORPHANS_BURST) + [Status.FULL] * 20
    assert await store(far[0], holder, TOPIC, note(ALICE, TOPIC, gone=True).raw) == Status.OK, "of what is there"
    orphan = note(SigningKey(b"o" * 32), TOPIC, gone=True).raw
    assert await store(far[1], holder, TOPIC, orphan) == Status.OK, "from another network"
    assert holder.storage.total(TOPIC) == ORPHANS_BURST + 2


async def test_one_network_does_not_fill_a_shard_so_far_that_it_is_split(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one attacker has every reader look into 511 shards. The real number is 400, under `DESCEND_AT`."""
    assert MOST_OF_GROUP < DESCEND_AT
    monkeypatch.setattr("dht.desk.MOST_OF_GROUP", 10)
    near = sorted(net.nodes, key=lambda n: int.from_bytes(n.node_id, "big") ^ int.from_bytes(TOPIC, "big"))
    holder, neighbour, far, farther = near[0], near[1], near[-1], near[-2]
    many = [note(SigningKey(i.to_bytes(32, "big")), TOPIC).raw for i in range(15)]
    codes = [await store(far, holder, TOPIC, raw) for raw in many]
    assert codes == [Status.OK] * 10 + [Status.FULL] * 5
    assert await store(far, holder, TOPIC, note(SigningKey(bytes(32)), TOPIC, sequence=2).raw) == Status.OK, "an edit"
    assert await store(farther, holder, TOPIC, note(ALICE, TOPIC).raw) == Status.OK, "another network"
    for i in range(100, 115):
        handed_on = note(SigningKey(i.to_bytes(32, "big")), TOPIC).raw
        assert await store(neighbour, holder, TOPIC, handed_on) == Status.OK


async def test_an_address_that_asks_too_much_is_not_served_and_others_are(net: Net) -> None:
    victim = net.make(count_local=True, limits=Limits(rate=0.01, burst=100))
    await victim.start()
    before = victim.stats().served
    for _ in range(400):
        net.nodes[0].engine.rpc.call(contact_of(victim), Op.PING, b"", Ear(), time.monotonic())
    reply = await ask(net.nodes[1], victim, Op.PING, b"")
    assert reply is not None
    assert victim.stats().served - before <= 102
    # Those that the kernel had no room for were not even seen.
    assert victim.stats().refused >= 50


async def test_all_the_addresses_of_one_ipv6_network_share_one_allowance(net: Net) -> None:
    victim = net.make(count_local=True, limits=Limits(rate=50, burst=100))
    out: list[object] = []
    victim.engine.rpc._send = lambda _, address: out.append(address)
    now = time.monotonic()
    for n in range(1_000):
        victim.engine.receive(packet.hello(random.randbytes(12)), (f"2a00:1:2::{n:x}", 4_000), now)
    assert 98 <= len(out) <= 100
    victim.engine.receive(packet.hello(bytes(12)), ("2a00:1:3::1", 4_000), now)
    assert out[-1] == ("2a00:1:3::1", 4_000), "others are served"


async def test_a_store_with_a_token_of_another_address_is_refused(net: Net) -> None:
    thief, holder, victim = net.nodes[0], net.nodes[1], net.nodes[2]
    reply = await ask(holder, victim, Op.PING, b"")
    assert reply is not None
    await ask(thief, victim, Op.PING, b"")
    thief.engine.rpc.peers[victim.key.public].token = reply.token
    answer = await ask(thief, victim, Op.STORE, messages.store_body(TOPIC, 0, note(ALICE, TOPIC).raw))
    assert answer is not None
    assert answer.status == Status.BAD_TOKEN
    assert victim.storage.total(TOPIC) == 0


async def test_a_spoofed_request_is_answered_with_at_most_three_times_its_bytes(net: Net) -> None:
    for i in range(3):
        await net.nodes[1].put(TOPIC, note(SigningKey(bytes([i + 1]) * 32), TOPIC, b"x" * 700), quorum=8)
    victim = next(n for n in net.nodes if n.storage.total(TOPIC) == 3)
    _, key = mine_node_key(lambda i: i.to_bytes(32, "big"), 4)
    to, _ = packet.direction_keys(
        key.x25519_secret, key.public, victim.key.public, victim.key.x25519_public, Network.REGTEST
    )
    for body in (
        messages.find_value_body(TOPIC, 16, messages.FIRST, messages.FIRST),
        messages.find_value_body(TOPIC, 16, messages.FIRST, messages.FIRST) + bytes(100),
    ):
        out: list[bytes] = []
        victim.engine.rpc._send = lambda d, _, out=out: out.append(d)  # type: ignore[misc]
        request = packet.seal_request(
            to,
            key.public,
            random.randbytes(12),
            messages.request(Op.FIND_VALUE, messages.CLIENT, messages.NO_TOKEN, body),
        )
        victim.engine.receive(request, ("127.200.1.1", 4_000), time.monotonic())
        assert len(out) == 1
        assert len(out[0]) <= 3 * len(request)


@pytest.mark.parametrize("size", [71, 150, 400, 1_100])
@pytest.mark.parametrize("op", list(Op))
async def test_all_that_a_spoofed_request_sets_off_has_at_most_three_times_its_bytes(
    net: Net, op: Op, size: int
) -> None:
    """The reply, and the questions by which a node gets to know a new neighbour, sent again as often as they are."""
    for i in range(3):
        await net.nodes[1].put(TOPIC, note(SigningKey(bytes([i + 1]) * 32), TOPIC, b"x" * 700), quorum=8)
    victim = next(n for n in net.nodes if n.storage.total(TOPIC) == 3)
    await victim.close()
    # The closest to the victim that can be had: whoever is among its neighbours is asked back at once.
    keys = (mine_node_key(lambda i, n=n: (n << 32 | i).to_bytes(32, "big"), 4)[1] for n in range(64))  # type: ignore[misc]
    key = min(keys, key=lambda k: int.from_bytes(node_id(k.public), "big") ^ int.from_bytes(victim.node_id, "big"))
    to, _ = packet.direction_keys(
        key.x25519_secret, key.public, victim.key.public, victim.key.x25519_public, Network.REGTEST
    )
    room = size - packet.REQUEST_HEAD - packet.BOX_BYTES
    body = messages.find_value_body(TOPIC, 16, messages.FIRST, messages.FIRST)
    request = messages.request(op, 0, messages.NO_TOKEN, body)[:room].ljust(room, b"\0")
    out: list[int] = []
    victim.engine.rpc._send = lambda d, _: out.append(len(d))
    now = time.monotonic() + 60
    for at in (now, now + 30):
        out.clear()
        datagram = packet.seal_request(to, key.public, random.randbytes(12), request)
        assert len(datagram) == size
        victim.engine.receive(datagram, ("127.200.1.1", 4_000), at)
        for step in range(20):
            victim.engine.rpc.tick(at + step)
        assert sum(out) <= 3 * size


async def test_a_hello_is_never_answered_with_more_bytes_than_it_has(net: Net) -> None:
    victim = net.nodes[0]
    out: list[bytes] = []
    victim.engine.rpc._send = lambda d, a: out.append(d)
    for size in range(80):
        datagram = (b"\xd3" + bytes(12))[:size].ljust(size, b"\0")
        victim.engine.receive(datagram, ("127.200.1.1", 4_000), time.monotonic())
        if out:
            assert len(out.pop()) <= size


async def test_an_answer_from_another_address_or_with_another_key_does_not_count(net: Net) -> None:
    asker, asked = net.nodes[0], net.nodes[1]
    sent: list[tuple[bytes, object]] = []
    asker.engine.rpc._send = lambda d, a: sent.append((d, a))
    ear = Ear()
    asker.engine.rpc.call(contact_of(asked), Op.PING, b"", ear, time.monotonic())
    request = sent.pop()[0]
    good: list[bytes] = []
    asked.engine.rpc._send = lambda d, a: good.append(d)
    asked.engine.receive(request, asker.local, time.monotonic())
    asker.engine.receive(good[0], net.nodes[2].local, time.monotonic())
    assert not ear.future.done(), "right bytes, wrong address"
    to, _ = packet.direction_keys(
        MALLORY.x25519_secret, MALLORY.public, asker.key.public, asker.key.x25519_public, Network.REGTEST
    )
    forged = packet.seal_reply(to, request[33:45], bytes(8), messages.reply(Op.PING, 0, bytes(8), bytes(7)))
    asker.engine.receive(forged, asked.local, time.monotonic())
    assert not ear.future.done(), "right address, wrong key"
    asker.engine.receive(good[0], asked.local, time.monotonic())
    assert ear.future.done()


async def test_invented_ids_from_one_address_do_not_enter_the_table(net: Net) -> None:
    victim = net.nodes[0]
    before = {c.id for c in victim.peers()}
    rng = random.Random(4)
    for _ in range(60):
        _, key = mine_node_key(lambda _: rng.randbytes(32), 4)
        to, _ = packet.direction_keys(
            key.x25519_secret, key.public, victim.key.public, victim.key.x25519_public, Network.REGTEST
        )
        body = messages.request(Op.FIND_NODE, 0, messages.NO_TOKEN, messages.find_node_body(TOPIC, 8))
        request = packet.seal_request(to, key.public, rng.randbytes(12), body.ljust(400, b"\0"))
        victim.engine.receive(request, ("127.77.1.1", 4_000), time.monotonic())
    assert {c.id for c in victim.peers()} <= before


async def test_a_key_without_the_puzzle_is_not_answered(net: Net) -> None:
    victim = net.nodes[0]
    out: list[bytes] = []
    victim.engine.rpc._send = lambda d, a: out.append(d)
    weak = next(k for k in (SigningKey(bytes([i]) * 32) for i in range(99)) if puzzle_zero_bits(k.public) == 0)
    to, _ = packet.direction_keys(
        weak.x25519_secret, weak.public, victim.key.public, victim.key.x25519_public, Network.REGTEST
    )
    plaintext = messages.request(Op.PING, 0, messages.NO_TOKEN, b"")
    request = packet.seal_request(to, weak.public, bytes(12), plaintext)
    victim.engine.receive(request, ("127.77.1.1", 4_000), time.monotonic())
    assert out == []


async def test_a_flood_of_garbage_from_one_address_leaves_the_others_served(net: Net) -> None:
    record = note(ALICE, TOPIC)
    await net.nodes[1].put(TOPIC, record, quorum=8)
    flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flood.bind(("127.99.9.9", 0))
    flood.setblocking(False)
    rng = random.Random(1)
    for round_ in range(20):
        for node in net.nodes:
            for head in b"\xd1\xd2\xd3\x00":
                flood.sendto(bytes([head]) + rng.randbytes(200), node.local)
        found = await net.nodes[round_ % 14].get(TOPIC)
        assert [e.raw for e in found] == [record.raw]
    flood.close()
    assert all(node.stats().bad for node in net.nodes)


async def test_a_node_that_lies_about_the_closest_can_not_hide_a_record(net: Net) -> None:
    record = note(ALICE, TOPIC)
    await net.nodes[1].put(TOPIC, record, quorum=8)
    rng = random.Random(3)
    # Four of fourteen serve nothing but invented neighbours at addresses where nobody is.
    for i in (2, 5, 8, 11):
        engine = net.nodes[i].engine
        names = [Contact(rng.randbytes(32), f"127.{rng.randrange(100, 250)}.{j}.1", 9) for j in range(6)]
        engine.desk._value = lambda *_, names=names: (  # type: ignore[method-assign]
            b"\0" + messages.value_body(0, bytes(8), more=False, records=[], large=[]) + messages.contacts_body(names)
        )
    for i in (0, 3, 4, 6, 7, 9, 10, 12, 13):
        assert [e.raw for e in await net.nodes[i].get(TOPIC)] == [record.raw]


async def test_a_flood_of_low_tags_does_not_hide_what_comes_behind_it(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader takes so many pages from each holder, in order of tags; who grinds keys chooses his tags."""
    monkeypatch.setattr("dht.reading.MAX_PAGES", 4)
    registry = net.nodes[0].engine.registry
    flood = [note(SigningKey(i.to_bytes(32, "big")), TOPIC, b"x" * 700) for i in range(60)]
    records = sorted((registry.check(one.raw, TOPIC, int(time.time())) for one in flood), key=lambda r: r.tag)
    last = records[-1]
    for node in net.nodes:
        for record in records:
            node.engine.keep(TOPIC, record, b"", time.monotonic())
    reader = net.make("127.99.1.1", client=True)
    await reader.start()
    await reader.bootstrap([net.seed_of(0)])
    for _ in range(40):
        if last.raw in [e.raw for e in await reader.get(TOPIC, paths=3)]:
            break
    else:
        pytest.fail("never seen")


async def test_a_topic_that_is_read_from_its_midst_is_read_whole_where_that_is_possible(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dht.reading.MAX_PAGES", 14)
    made = [note(SigningKey(i.to_bytes(32, "big")), TOPIC, b"x" * 200) for i in range(40)]
    holder = net.nodes[0]
    for one in made:
        record = holder.engine.registry.check(one.raw, TOPIC, int(time.time()))
        holder.engine.keep(TOPIC, record, b"", time.monotonic())
    for _ in range(10):
        assert {e.raw for e in await net.nodes[5].get(TOPIC, paths=3)} == {one.raw for one in made}


async def test_poisoned_answers_of_holders_do_not_break_the_read(net: Net) -> None:
    record = note(ALICE, TOPIC)
    await net.nodes[1].put(TOPIC, record, quorum=8)
    poisoned = record.raw[:-1] + bytes([record.raw[-1] ^ 1])
    answer = b"\0" + messages.value_body(1, bytes(8), more=False, records=[poisoned], large=[]) + b"\0"
    served = 0

    def poison(*_: object) -> bytes:
        nonlocal served
        served += 1
        return answer

    for holder in [n for n in net.nodes if n.storage.total(TOPIC)][:4]:
        holder.engine.desk._value = poison  # type: ignore[assignment,method-assign]
    for node in net.nodes:
        assert [e.raw for e in await node.get(TOPIC, quorum=4)] == [record.raw]
    assert served >= 4
