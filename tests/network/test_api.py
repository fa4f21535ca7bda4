"""The local API over real sockets: who gets in, what is refused and how, and what a client may rely on."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from p2pnode.api import schema as s
from p2pnode.api.errors import KeyReused, OutcomeUnknown
from p2pnode.api.routes import BODY_LIMIT, PREFIX, ROUTES
from p2pnode.api.server import MAX_STREAMS, ApiServer
from p2pnode.api.services import Recorded, RoleMissing
from p2pnode.config import ApiConfig
from p2pnode.datadir import DataDir
from p2pnode.ports import AddressUnavailable
from protocol.errors import ChainError, IllegalTransition, NotFound, PeerRefusal, PeerViolation, UserError
from tests.network.api_twin import Twin, make_data_dir, serving

ADDRESS = {"label": "rent"}
WRITE = f"{PREFIX}/wallet/addresses"


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    return make_data_dir(tmp_path / "node")


@pytest.fixture
async def twin() -> Twin:
    return Twin()


@pytest.fixture
async def server(twin: Twin, folder: DataDir) -> AsyncIterator[ApiServer]:
    async with serving(twin, folder) as running:
        yield running


def basic(login: str) -> str:
    return f"Basic {b64encode(login.encode()).decode()}"


class Http:
    """Requests as any program would make them; the cookie is read from its file."""

    def __init__(self, server: ApiServer, folder: DataDir) -> None:
        self.login = {"Authorization": basic(folder.cookie.read_text().strip())}
        self.session = aiohttp.ClientSession(server.url)
        self.keys = 0

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        data: bytes | None = None,
        key: str | None = "",
        headers: dict[str, str] | None = None,
        login: bool = True,
    ) -> tuple[int, dict[str, Any], aiohttp.ClientResponse]:
        headers = {**(self.login if login else {}), **(headers or {})}
        if key is not None and method != "GET":
            self.keys += 1
            headers.setdefault("Idempotency-Key", key or f"key-{self.keys:08d}")
        if body is not None:
            data = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        async with self.session.request(method, path, data=data, headers=headers) as response:
            return response.status, json.loads(await response.read()), response


@pytest.fixture
async def http(server: ApiServer, folder: DataDir) -> AsyncIterator[Http]:
    client = Http(server, folder)
    yield client
    await client.session.close()


def is_problem(answer: tuple[int, dict[str, Any], aiohttp.ClientResponse], status: int, code: int) -> None:
    got, document, response = answer
    assert (got, document["code"], document["status"]) == (status, code, status)
    assert response.content_type == "application/problem+json"
    assert document["type"] == f"urn:p2pnode:error:{code}"
    assert document["detail"]
    assert "Traceback" not in json.dumps(document)
    msgspec.convert(document, s.Problem)


class TestWhoMayAsk:
    async def test_the_cookie_file_opens_the_api(self, http: Http) -> None:
        status, document, response = await http.ask("GET", f"{PREFIX}/info")
        assert status == 200
        assert document["network"] == "regtest"
        assert document["api"] == str(response.url.origin())
        assert response.headers["Cache-Control"] == "no-store"

    async def test_the_cookie_is_private_and_new_for_each_start(self, folder: DataDir) -> None:
        seen = set()
        for _ in range(2):
            async with serving(Twin(), folder):
                assert folder.cookie.stat().st_mode & 0o777 == 0o600
                assert folder.endpoint.stat().st_mode & 0o777 == 0o600
                seen.add(folder.cookie.read_text())
            assert not folder.cookie.exists()
            assert not folder.endpoint.exists()
        assert len(seen) == 2
        assert all(len(cookie.strip().removeprefix("__cookie__:")) == 64 for cookie in seen)

    @pytest.mark.parametrize(
        "path", [f"{PREFIX}/info", f"{PREFIX}/openapi.json", f"{PREFIX}/events/stream", f"{PREFIX}/x"]
    )
    async def test_nothing_answers_without_the_login(self, http: Http, twin: Twin, path: str) -> None:
        before = twin.calls
        answer = await http.ask("GET", path, login=False)
        is_problem(answer, 401, 3141)
        assert answer[2].headers["WWW-Authenticate"] == "Basic"
        assert twin.calls == before

    @pytest.mark.parametrize("wrong", ["__cookie__:" + "0" * 64, "__cookie__:", "__cookie__", "admin:admin"])
    async def test_a_wrong_login_is_refused(self, http: Http, wrong: str) -> None:
        is_problem(await http.ask("GET", f"{PREFIX}/info", headers={"Authorization": basic(wrong)}), 401, 3141)

    @pytest.mark.parametrize("header", ["", "Basic", "Basic ÿ", "Bearer x", "Basic " + "A" * 5000])
    async def test_an_odd_authorization_header_is_refused(self, http: Http, header: str) -> None:
        answer = await http.ask("GET", f"{PREFIX}/info", headers={"Authorization": header})
        is_problem(answer, 401, 3141)

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:7353", "127.0.0.1.evil.example", "192.0.2.1", "a b"]
    )
    async def test_a_name_that_was_rebound_to_us_is_refused(self, http: Http, host: str) -> None:
        is_problem(await http.ask("GET", f"{PREFIX}/info", headers={"Host": host}), 403, 3142)

    @pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:1234", "[::1]:5"])
    async def test_names_of_this_machine_pass_on_any_port(self, http: Http, host: str) -> None:
        assert (await http.ask("GET", f"{PREFIX}/info", headers={"Host": host}))[0] == 200

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "https://127.0.0.1:{port}"]
    )
    async def test_a_page_of_another_site_is_refused(self, http: Http, server: ApiServer, origin: str) -> None:
        port = server.url.rpartition(":")[2]
        answer = await http.ask("POST", WRITE, body=ADDRESS, headers={"Origin": origin.replace("{port}", port)})
        is_problem(answer, 403, 3142)

    async def test_our_own_page_passes(self, http: Http, server: ApiServer) -> None:
        headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        assert (await http.ask("GET", f"{PREFIX}/info", headers=headers))[0] == 200

    async def test_a_cross_site_fetch_is_refused_although_it_names_no_origin(self, http: Http) -> None:
        answer = await http.ask("GET", f"{PREFIX}/info", headers={"Sec-Fetch-Site": "cross-site"})
        is_problem(answer, 403, 3142)


class TestWhatIsRefused:
    async def test_a_body_over_the_limit_is_not_read(self, http: Http, twin: Twin) -> None:
        before = twin.calls
        answer = await http.ask("POST", WRITE, body={"label": "x" * BODY_LIMIT})
        is_problem(answer, 413, 3146)
        assert twin.calls == before

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ({"label": 5}, "label"),
            ({"labell": "x"}, "labell"),
            ({"label": "x" * 201}, "label"),
            ([], "object"),
            ("x", "object"),
        ],
    )
    async def test_a_wrong_body_names_what_is_wrong(self, http: Http, body: object, word: str) -> None:
        answer = await http.ask("POST", WRITE, body=body)
        is_problem(answer, 400, 3140)
        assert word in answer[1]["detail"]

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"{}{}", b"[" * 50_000])
    async def test_a_body_that_is_no_json_is_refused(self, http: Http, data: bytes) -> None:
        answer = await http.ask("POST", WRITE, data=data, headers={"Content-Type": "application/json"})
        is_problem(answer, 400, 3140)

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
    async def test_a_form_of_a_browser_is_refused(self, http: Http, content_type: str) -> None:
        answer = await http.ask("POST", WRITE, data=b"{}", headers={"Content-Type": content_type})
        is_problem(answer, 400, 3140)

    @pytest.mark.parametrize("amount", [1.5, "5", -1, 0, 2_100_000_000_000_001, True])
    async def test_an_amount_that_is_no_whole_number_of_satoshis_is_refused(
        self, http: Http, twin: Twin, amount: object
    ) -> None:
        answer = await http.ask("POST", f"{PREFIX}/wallet/send", body={"address": "bcrt1qxyz", "amount_sats": amount})
        is_problem(answer, 400, 3140)
        assert twin.sent == []

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=501", "limit=x", "side=both", "colour=red", "limit=1&limit=2", "currency=euro"]
    )
    async def test_a_wrong_query_is_refused(self, http: Http, query: str) -> None:
        is_problem(await http.ask("GET", f"{PREFIX}/offers?{query}"), 400, 3140)

    @pytest.mark.parametrize("item", ["abc", "x" * 16, "0" * 65, "..%2finfo", "0" * 16 + "%0a"])
    async def test_a_wrong_id_is_refused(self, http: Http, item: str) -> None:
        status, document, _ = await http.ask("GET", f"{PREFIX}/offers/{item}")
        assert (status, document["code"]) in {(400, 3140), (404, 3145)}

    async def test_an_unknown_resource_or_method_is_told_as_such(self, http: Http) -> None:
        is_problem(await http.ask("GET", f"{PREFIX}/nothing"), 404, 3145)
        is_problem(await http.ask("PUT", f"{PREFIX}/offers", body={}), 404, 3145)

    async def test_a_write_without_a_key_is_not_done(self, http: Http, twin: Twin) -> None:
        is_problem(await http.ask("POST", WRITE, body=ADDRESS, key=None), 400, 3143)
        is_problem(await http.ask("POST", WRITE, body=ADDRESS, key="short"), 400, 3143)
        assert twin.addresses == 0

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (NotFound("no such offer"), 404),
            (UserError("not like this"), 422),
            (IllegalTransition("not now"), 409),
            (PeerRefusal("no"), 409),
            (PeerViolation("bad"), 502),
            (ChainError("gone"), 503),
        ],
    )
    async def test_an_error_keeps_its_code_text_and_fault(
        self, http: Http, twin: Twin, error: UserError, status: int
    ) -> None:
        twin.trouble = error
        answer = await http.ask("GET", f"{PREFIX}/peers")
        is_problem(answer, status, error.code)
        assert answer[1]["detail"] == error.detail
        assert answer[1]["fault"] == error.fault.value
        assert answer[1]["instance"] == f"{PREFIX}/peers"

    async def test_an_unexpected_error_says_nothing_of_itself(
        self, http: Http, twin: Twin, caplog: pytest.LogCaptureFixture
    ) -> None:
        twin.trouble = RuntimeError("the passphrase is hunter2")
        answer = await http.ask("GET", f"{PREFIX}/peers")
        is_problem(answer, 500, 1033)
        assert "hunter2" not in json.dumps(answer[1])
        assert "GET /api/v1/peers failed" in caplog.text

    async def test_a_bootstrap_node_says_that_it_does_not_trade(self, twin: Twin, folder: DataDir) -> None:
        async with serving(twin, folder, bootstrap=True) as server:
            http = Http(server, folder)
            for path in ("offers", "trades", "wallet/balance"):
                is_problem(await http.ask("GET", f"{PREFIX}/{path}"), 403, RoleMissing.code)
            assert (await http.ask("GET", f"{PREFIX}/info"))[0] == 200
            await http.session.close()


class TestWritesAreDoneOnce:
    async def test_the_same_key_returns_the_recorded_answer(self, http: Http, twin: Twin) -> None:
        first = await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only")
        again = await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only")
        assert first[:2] == again[:2]
        assert first[0] == 201
        assert "Idempotency-Replayed" not in first[2].headers
        assert again[2].headers["Idempotency-Replayed"] == "true"
        assert twin.addresses == 1

    async def test_the_same_key_for_another_write_is_refused(self, http: Http, twin: Twin) -> None:
        await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only")
        is_problem(await http.ask("POST", WRITE, body={"label": "other"}, key="one-and-only"), 422, KeyReused.code)
        other = await http.ask("POST", f"{PREFIX}/peers", body={"address": "a:1"}, key="one-and-only")
        is_problem(other, 422, KeyReused.code)
        assert twin.addresses == 1

    async def test_the_key_of_one_trade_never_answers_for_another(self, http: Http, twin: Twin) -> None:
        """Two releases have the same empty body; only the path tells them apart."""
        draft = {
            "side": "sell", "amount_min_sats": 1, "amount_max_sats": 1, "currency": "EUR", "price": "1",
            "methods": [{"method": "sepa", "details": {"iban": "x"}}],
        }  # fmt: skip
        offer = (await http.ask("POST", f"{PREFIX}/offers", body=draft))[1]["id"]
        take = {"method": "sepa", "details": {"iban": "x"}}
        trades = [(await http.ask("POST", f"{PREFIX}/offers/{offer}/take", body=take))[1]["id"] for _ in range(2)]
        for trade in trades:
            twin.trades[trade] = replace(twin.trades[trade], actions=("release",))
        first, second = (f"{PREFIX}/trades/{trade}/release" for trade in trades)
        assert (await http.ask("POST", first, body={}, key="one-and-only"))[0] == 200
        is_problem(await http.ask("POST", second, body={}, key="one-and-only"), 422, KeyReused.code)
        assert [twin.trades[trade].phase for trade in trades] == ["releasing", "taking"]

    async def test_the_same_write_at_once_is_done_once(self, http: Http, twin: Twin) -> None:
        twin.hold = asyncio.Event()
        asks = [asyncio.ensure_future(http.ask("POST", WRITE, body=ADDRESS, key="one-and-only")) for _ in range(3)]
        for _ in asks:
            await twin.claims.acquire()
        twin.hold.set()
        answers = await asyncio.gather(*asks)
        assert [a[0] for a in answers] == [201, 201, 201]
        assert len({json.dumps(a[1]) for a in answers}) == 1
        assert twin.addresses == 1

    async def test_a_refused_write_may_be_tried_again_under_its_key(self, http: Http, twin: Twin) -> None:
        twin.trouble = UserError("insufficient funds")
        assert (await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))[0] == 422
        assert (await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))[0] == 201
        assert twin.addresses == 1

    async def test_a_write_that_a_crash_cut_short_is_never_repeated(self, http: Http, twin: Twin) -> None:
        twin.trouble = RuntimeError("boom")
        assert (await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))[0] == 500
        is_problem(await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"), 409, OutcomeUnknown.code)
        assert twin.addresses == 0

    async def test_a_record_of_an_earlier_run_is_honoured(self, twin: Twin, folder: DataDir) -> None:
        async with serving(twin, folder) as server:
            http = Http(server, folder)
            first = await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only")
            await http.session.close()
        twin.records["cut-short"] = Recorded(twin.records["one-and-only"].request, 0, b"")
        async with serving(twin, folder) as server:
            http = Http(server, folder)
            assert (await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))[1] == first[1]
            is_problem(await http.ask("POST", WRITE, body=ADDRESS, key="cut-short"), 409, OutcomeUnknown.code)
            await http.session.close()
        assert twin.addresses == 1

    async def test_an_asker_that_hangs_up_does_not_stop_its_write(self, http: Http, twin: Twin) -> None:
        twin.hold = asyncio.Event()
        ask = asyncio.ensure_future(http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))
        await twin.waiting.wait()
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        twin.hold.set()
        twin.hold = None
        assert (await http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))[0] == 201
        assert twin.addresses == 1

    async def test_a_stopping_server_lets_a_write_end(self, twin: Twin, folder: DataDir) -> None:
        async with serving(twin, folder) as server:
            http = Http(server, folder)
            twin.hold = asyncio.Event()
            ask = asyncio.ensure_future(http.ask("POST", WRITE, body=ADDRESS, key="one-and-only"))
            await twin.waiting.wait()
            closing = asyncio.ensure_future(server.close())
            for _ in range(50):  # turns of the loop: enough for a server that does not wait to get through
                await asyncio.sleep(0)
            assert not closing.done()
            twin.hold.set()
            await closing
            await asyncio.gather(ask, return_exceptions=True)
            await http.session.close()
        assert twin.records["one-and-only"].status == 201


class TestEvents:
    async def test_the_feed_is_replayed_from_any_cursor(self, http: Http, twin: Twin) -> None:
        for i in range(5):
            twin.tell(f"topic-{i}")
        _, page, _ = await http.ask("GET", f"{PREFIX}/events?after=0&limit=2")
        assert [e["topic"] for e in page["events"]] == ["topic-0", "topic-1"]
        _, page, _ = await http.ask("GET", f"{PREFIX}/events?after={page['next']}")
        assert [e["number"] for e in page["events"]] == [3, 4, 5]
        _, page, _ = await http.ask("GET", f"{PREFIX}/events?after=5")
        assert page == {"events": [], "next": 5}

    async def test_without_a_cursor_the_feed_starts_now(self, http: Http, twin: Twin) -> None:
        twin.tell("old")
        _, page, _ = await http.ask("GET", f"{PREFIX}/events")
        assert page == {"events": [], "next": 1}

    async def test_a_long_poll_ends_with_the_first_event(self, http: Http, twin: Twin) -> None:
        ask = asyncio.ensure_future(http.ask("GET", f"{PREFIX}/events?after=0&wait=60"))
        await twin.waiting.wait()
        assert not ask.done()
        twin.tell("news")
        _, page, _ = await asyncio.wait_for(ask, 5)
        assert [e["topic"] for e in page["events"]] == ["news"]

    async def test_a_long_poll_ends_when_its_time_is_over(self, http: Http) -> None:
        _, page, _ = await asyncio.wait_for(http.ask("GET", f"{PREFIX}/events?after=0&wait=1"), 10)
        assert page == {"events": [], "next": 0}

    async def test_a_stopping_server_ends_long_polls_and_streams(self, twin: Twin, folder: DataDir) -> None:
        async with serving(twin, folder) as server:
            http = Http(server, folder)
            ask = asyncio.ensure_future(http.ask("GET", f"{PREFIX}/events?after=0&wait=60"))
            await twin.waiting.wait()
            async with http.session.ws_connect(f"{PREFIX}/events/stream", headers=http.login) as stream:
                await asyncio.wait_for(server.close(), 10)
                end = await asyncio.wait_for(stream.receive(), 5)
                assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            assert (await asyncio.wait_for(ask, 5))[1] == {"events": [], "next": 0}
            await http.session.close()

    async def test_a_stream_tells_the_past_and_then_what_happens(self, http: Http, twin: Twin) -> None:
        twin.tell("old")
        twin.tell("newer")
        async with http.session.ws_connect(f"{PREFIX}/events/stream?after=1", headers=http.login) as stream:
            event = msgspec.json.decode(await stream.receive_str(timeout=5), type=s.EventView)
            assert (event.number, event.topic) == (2, "newer")
            twin.tell("trade-changed", trade="ab" * 32, phase="funded")
            event = msgspec.json.decode(await stream.receive_str(timeout=5), type=s.EventView)
            assert (event.number, event.trade, event.phase) == (3, "ab" * 32, "funded")

    async def test_a_stream_needs_the_login_and_a_websocket(self, http: Http) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.session.ws_connect(f"{PREFIX}/events/stream")
        assert refused.value.status == 401
        is_problem(await http.ask("GET", f"{PREFIX}/events/stream"), 400, 3140)

    async def test_streams_are_bounded_and_a_closed_one_makes_room(self, http: Http, twin: Twin) -> None:
        streams = [
            await http.session.ws_connect(f"{PREFIX}/events/stream", headers=http.login) for _ in range(MAX_STREAMS)
        ]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.session.ws_connect(f"{PREFIX}/events/stream", headers=http.login)
        assert refused.value.status == 503
        await streams.pop().close()
        streams.append(await http.session.ws_connect(f"{PREFIX}/events/stream", headers=http.login))
        for stream in streams:
            await stream.close()


class TestTheDocument:
    async def test_every_route_is_described_and_every_reference_leads_somewhere(self, http: Http) -> None:
        _, document, _ = await http.ask("GET", f"{PREFIX}/openapi.json")
        assert document["openapi"] == "3.1.0"
        described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
        assert {(route.method, PREFIX + route.path) for route in ROUTES} <= described
        text = json.dumps(document)
        for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in document["components"]["schemas"]
        assert "\\\\A" not in text
        assert "\\\\Z" not in text
        names = [op["operationId"] for item in document["paths"].values() for op in item.values()]
        assert len(set(names)) == len(names)

    async def test_every_write_asks_for_a_key_and_no_read_does(self, http: Http) -> None:
        _, document, _ = await http.ask("GET", f"{PREFIX}/openapi.json")
        for item in document["paths"].values():
            for method, operation in item.items():
                named = {p["name"] for p in operation["parameters"] if p["in"] == "header"}
                assert named == (set() if method == "get" else {"Idempotency-Key"})


class TestThePort:
    async def test_a_port_in_use_is_one_line_that_names_the_setting(
        self, server: ApiServer, twin: Twin, tmp_path: Path
    ) -> None:
        port = int(server.url.rpartition(":")[2])
        second = ApiServer(twin.services(), ApiConfig(port=port), make_data_dir(tmp_path / "second"))
        with pytest.raises(AddressUnavailable, match=rf"port {port} is in use .* api\.port"):
            await second.start()
        assert not (tmp_path / "second" / "api.cookie").exists()
        await second.close()
