"""The client against the real server, and against the failures of the connection between the two."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from p2pnode.api import schema as s
from p2pnode.api.endpoint import Endpoint, find, publish
from p2pnode.client import ApiError, Client, NodeNotRunning, NodeUnreachable, wait_until_up
from p2pnode.datadir import DataDir, DataDirMissing, TooOpen
from protocol.errors import UserError
from tests.network.api_twin import ARBITER, NODE, Twin, make_data_dir, serving

DRAFT = s.OfferDraft(
    side="sell",
    amount_min_sats=1_000_000,
    amount_max_sats=5_000_000,
    currency="EUR",
    price="65000.00",
    methods=(s.MethodDetails(method="sepa", details={"iban": "DE02", "holder": "Ann"}),),
    arbiters=(ARBITER,),
)


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    return make_data_dir(tmp_path / "node")


@pytest.fixture
async def twin() -> Twin:
    return Twin()


@pytest.fixture
async def client(twin: Twin, folder: DataDir) -> AsyncIterator[Client]:
    async with serving(twin, folder), Client.open(folder.path) as client:
        yield client


async def test_every_operation_of_the_document_has_a_method_of_its_name(client: Client) -> None:
    document = await client.openapi()
    names = {op["operationId"] for item in document["paths"].values() for op in item.values()}
    missing = {name for name in names - {"event_stream"} if not callable(getattr(client, name, None))}
    assert missing == set()


async def test_what_is_asked_arrives_and_what_is_answered_returns(client: Client, twin: Twin) -> None:
    assert (await client.info()).node == NODE
    offer = await client.offer_create(DRAFT)
    assert twin.drafts == [DRAFT]
    assert (offer.price, offer.price_minor_per_btc) == ("65000.00", 6_500_000)
    assert await client.offer(offer.id[:8]) == offer
    edited = await client.offer_edit(offer.id, s.OfferEdit(terms="be quick"))
    assert (edited.sequence, edited.terms) == (1, "be quick")
    found = await client.offers(s.OfferFilter(side="sell", currency="EUR", limit=1))
    assert [o.id for o in found.offers] == [offer.id]
    assert (await client.offers(s.OfferFilter(side="buy", mine=True))).offers == ()
    take = s.TakeRequest(amount_sats=2_000_000, method="sepa", details={"iban": "FR76"}, sequence=1)
    trade = await client.offer_take(offer.id, take)
    assert twin.taken == [take]
    assert (trade.volume, trade.volume_minor) == ("1300.00", 130_000)
    assert [t.id for t in (await client.trades(open_only=True)).trades] == [trade.id]
    assert (await client.trade_cancel(trade.id, "no")).phase == "cancelled"
    assert (await client.trades(open_only=True)).trades == ()
    assert (await client.trade(trade.id)).phase == "cancelled"
    assert (await client.offer_revoke(offer.id)).state == "revoked"
    assert (await client.balance()).spendable_sats == 150_000_000
    assert (await client.address("rent")).label == "rent"
    assert len((await client.utxos()).utxos) == 1
    assert len((await client.history(1)).entries) == 1
    assert (await client.send(s.SendRequest(address="bcrt1qabc", amount_sats=None))).amount_sats == 7
    assert (await client.peer_add("127.0.0.1:1")).address == "127.0.0.1:1"
    assert len((await client.peers()).peers) == 1
    assert (await client.announce(s.AnnounceRequest(fee_ppm=10_000))).fee_ppm == 10_000
    assert len((await client.arbiters("EUR", "sepa")).arbiters) == 1
    assert (await client.stop()).stopping
    assert twin.stopped.is_set()


async def test_each_write_has_a_key_of_its_own(client: Client, twin: Twin) -> None:
    first, second = await client.address("same"), await client.address("same")
    assert first.address != second.address
    assert len(twin.records) == 2


async def test_a_refusal_is_raised_with_its_code_and_text(client: Client, twin: Twin) -> None:
    twin.trouble = UserError("there is not enough")
    with pytest.raises(ApiError) as refused:
        await client.balance()
    assert (refused.value.code, refused.value.detail, refused.value.fault) == (3000, "there is not enough", "user")
    with pytest.raises(ApiError) as refused:
        await client.trade_release("deadbeef")
    assert refused.value.code == 3001


@pytest.mark.parametrize("bad", ["", "abc", "../info", "0" * 65, "zzzzzzzz", "0000 000"])
async def test_an_id_that_is_none_is_not_sent(client: Client, twin: Twin, bad: str) -> None:
    with pytest.raises(UserError, match="is not an id"):
        await client.offer(bad)
    assert twin.calls == 1  # the server's own look at the node when it started


async def test_follow_misses_nothing(client: Client, twin: Twin) -> None:
    twin.tell("one")
    twin.tell("two")
    feed = client.follow(0)
    seen = [(await anext(feed)).topic, (await anext(feed)).topic]
    nxt = asyncio.ensure_future(anext(feed))
    await twin.waiting.wait()
    twin.tell("three")
    assert [*seen, (await nxt).topic] == ["one", "two", "three"]
    await feed.aclose()  # type: ignore[attr-defined]  # an async generator


class TestNoNode:
    def test_an_empty_folder_says_to_set_a_node_up(self, tmp_path: Path) -> None:
        with pytest.raises(DataDirMissing, match="p2pnode init"):
            Client.open(tmp_path / "nothing")

    def test_a_stopped_node_says_to_start_it(self, folder: DataDir) -> None:
        with pytest.raises(NodeNotRunning, match="p2pnode run"):
            Client.open(folder.path)

    async def test_what_a_crash_left_behind_is_no_node(self, folder: DataDir) -> None:
        with_port = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        port = with_port.sockets[0].getsockname()[1]
        with_port.close()
        await with_port.wait_closed()
        publish(folder, Endpoint(f"http://127.0.0.1:{port}", os.getpid(), "regtest", "0.1.0"), "00" * 32)
        async with Client.open(folder.path) as client:
            with pytest.raises(NodeUnreachable, match="does not answer"):
                await client.info()

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"url": 5}', b"\xff\xfe"])
    def test_a_damaged_endpoint_file_is_one_line(self, folder: DataDir, damage: bytes) -> None:
        publish(folder, Endpoint("http://127.0.0.1:1", 1, "regtest", "0.1.0"), "00" * 32)
        folder.endpoint.write_bytes(damage)
        with pytest.raises(NodeNotRunning):
            Client.open(folder.path)

    def test_a_login_that_others_can_read_is_refused(self, folder: DataDir) -> None:
        publish(folder, Endpoint("http://127.0.0.1:1", 1, "regtest", "0.1.0"), "00" * 32)
        folder.cookie.chmod(0o644)
        with pytest.raises(TooOpen, match="chmod 600"):
            Client.open(folder.path)

    async def test_another_node_on_the_same_port_refuses_our_login(
        self, twin: Twin, folder: DataDir, tmp_path: Path
    ) -> None:
        other = make_data_dir(tmp_path / "other")
        async with serving(twin, other):
            here = find(other).endpoint
            publish(folder, here, "11" * 32)
            async with Client.open(folder.path) as client:
                with pytest.raises(ApiError) as refused:
                    await client.info()
                assert refused.value.code == 3141

    async def test_waiting_for_a_start_ends_when_the_node_is_up(self, twin: Twin, folder: DataDir) -> None:
        waiting = asyncio.ensure_future(wait_until_up(folder.path, 10))
        await asyncio.sleep(0)
        async with serving(twin, folder):
            client = await waiting
            assert (await client.info()).node == NODE
            await client.close()

    async def test_waiting_for_a_start_ends_when_it_takes_too_long(self, folder: DataDir) -> None:
        with pytest.raises(NodeNotRunning):
            await wait_until_up(folder.path, 0.1)


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def odd_server(folder: DataDir, peer: Peer) -> AsyncIterator[Client]:
    """A client of something that is no p2pnode."""
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = asyncio.Event()
        ended.append(end)
        try:
            await peer(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            end.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    publish(folder, Endpoint(f"http://127.0.0.1:{port}", 1, "regtest", "0.1.0"), "00" * 32)
    async with Client.open(folder.path, timeout=2) as client:
        yield client
    server.close()
    for end in ended:
        await end.wait()
    await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> dict[str, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    await reader.readexactly(int(headers.get("Content-Length", 0)))
    return headers


async def answer(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    await writer.drain()


async def test_a_write_whose_answer_was_lost_is_asked_again_under_the_same_key(folder: DataDir) -> None:
    seen: list[str] = []

    async def loses_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = await read_request(reader)
        seen.append(headers["Idempotency-Key"])
        if len(seen) == 1:
            return
        await answer(writer, "201 Created", json.dumps({"address": "a", "index": 1, "label": ""}).encode())

    async with odd_server(folder, loses_the_first) as client:
        assert (await client.address()).address == "a"
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_a_node_that_never_answers_is_given_up(folder: DataDir) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with odd_server(folder, silent) as client:
        with pytest.raises(NodeUnreachable, match="did not answer in 2 seconds"):
            await client.info()


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        ("200 OK", b"<html>", "same version"),
        ("200 OK", b'{"version": 1}', "same version"),
        ("404 Not Found", b"<html>", "not this node"),
        ("302 Found", b"", "not this node"),
    ],
)
async def test_what_is_no_answer_of_ours_is_one_line(folder: DataDir, status: str, body: bytes, word: str) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await answer(writer, status, body)

    async with odd_server(folder, odd) as client:
        with pytest.raises(NodeUnreachable, match=word):
            await client.info()
