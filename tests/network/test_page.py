"""The page over real HTTP: who gets in, what other sites and strangers' texts can do, and that a form acts once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pyotp
import pytest
from msgspec.structs import replace

from p2pnode.api.server import ApiServer
from p2pnode.client import Client
from p2pnode.datadir import DataDir
from p2pnode.web import views
from p2pnode.web.sessions import IDLE_SECONDS, LINK_SECONDS
from tests.network.api_twin import Twin, make_data_dir, serving
from tests.network.test_api_client import DRAFT


class Browser:
    """A browser without a screen: it keeps cookies and follows no redirect."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self.url = url

    async def get(self, path: str, **headers: str) -> tuple[int, str, aiohttp.ClientResponse]:
        async with self._http.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text(), answer

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> tuple[int, str, aiohttp.ClientResponse]:
        async with self._http.post(self.url + path, data=fields, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text(), answer

    async def form(self, page: str, action: str) -> dict[str, str]:
        """The hidden fields of a form on a page."""
        _, text, _ = await self.get(page)
        (inner,) = re.findall(rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', text, re.DOTALL)[:1]
        return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', inner))


@pytest.fixture
def twin() -> Twin:
    return Twin()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    return make_data_dir(tmp_path_factory.mktemp("page") / "node")


@pytest.fixture
async def server(twin: Twin, folder: DataDir) -> AsyncIterator[ApiServer]:
    async with serving(twin, folder) as server:
        yield server


@pytest.fixture
async def stranger(server: ApiServer) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield Browser(http, server.url)


@pytest.fixture
async def browser(stranger: Browser, folder: DataDir) -> Browser:
    async with Client.open(folder.path) as node:
        link = (await node.page()).url
    status, _, _ = await stranger.get(link.removeprefix(stranger.url))
    assert status == 303
    return stranger


async def test_every_page_is_closed_to_who_has_no_session(stranger: Browser) -> None:
    for path in [*views.PAGES, "/live", "/files/0011223344556677", "/cases/0011223344556677/quote", "/nowhere"]:
        status, text, _ = await stranger.get(path.replace("{id}", "0011223344556677"))
        assert status == 401, path
        assert "p2pnode page" in text
    for path in ("/do/send", "/leave"):
        assert (await stranger.post(path, {}))[0] == 401


async def test_a_link_is_good_once_and_for_a_short_while(twin: Twin, stranger: Browser) -> None:
    used, old = twin.pages.link(), twin.pages.link()
    assert (await stranger.get(f"/enter/{used}"))[0] == 303
    assert (await stranger.get(f"/enter/{used}"))[0] == 401
    twin.clock.time += LINK_SECONDS
    assert (await stranger.get(f"/enter/{old}"))[0] == 401
    assert (await stranger.get("/enter/made-up"))[0] == 401


async def test_scripts_and_other_sites_never_get_the_cookie(twin: Twin, stranger: Browser) -> None:
    _, _, answer = await stranger.get(f"/enter/{twin.pages.link()}")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=Strict" in answer.headers["Set-Cookie"]


async def test_a_session_that_nobody_uses_ends_and_so_does_one_that_is_left(twin: Twin, browser: Browser) -> None:
    assert (await browser.get("/"))[0] == 200
    twin.clock.time += IDLE_SECONDS + 1
    assert (await browser.get("/"))[0] == 401
    await browser.get(f"/enter/{twin.pages.link()}")
    assert (await browser.post("/leave", {"_form": "guessed"}))[0] == 422
    assert (await browser.get("/"))[0] == 200
    await browser.post("/leave", await browser.form("/", "/leave"))
    assert (await browser.get("/"))[0] == 401


async def test_no_other_site_can_ask_or_act(twin: Twin, browser: Browser) -> None:
    fields = await browser.form("/wallet", "/do/send") | {"address": "bcrt1qabcdef", "amount_sats:send": "0.5"}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        assert (await browser.get("/wallet", **headers))[0] == 403
        assert (await browser.post("/do/send", fields, **headers))[0] == 403
    assert (await browser.post("/do/send", fields | {"_form": "guessed"}))[0] == 422
    assert twin.sent == []


async def test_nothing_runs_on_the_page_but_its_own_script(browser: Browser) -> None:
    for path in ("/", "/offers", "/wallet", "/nowhere"):
        _, _, answer = await browser.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_strangers_text_stays_text(twin: Twin, folder: DataDir, browser: Browser) -> None:
    async with Client.open(folder.path) as node:
        made = await node.offer_create(DRAFT)
    nasty = "<script>alert(1)</script>\"'><img src=x>\u202egnp.exe"
    twin.offers[made.id] = replace(made, terms=nasty)
    _, text, _ = await browser.get(f"/offers/{made.id}")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert" in text


async def test_a_form_that_is_sent_twice_pays_once(twin: Twin, browser: Browser) -> None:
    fields = await browser.form("/wallet", "/do/send") | {"address": "bcrt1qabcdef", "amount_sats:send": "0.5"}
    for _ in range(2):
        status, _, answer = await browser.post("/do/send", fields)
        assert (status, answer.headers["Location"]) == (303, "/wallet")
    assert [(one.address, one.amount_sats) for one in twin.sent] == [("bcrt1qabcdef", 50_000_000)]
    assert "Sent, in transaction" in (await browser.get("/wallet"))[1]
    assert "Sent, in transaction" not in (await browser.get("/wallet"))[1]


@pytest.mark.parametrize(
    "place", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
async def test_a_form_never_leads_to_another_site(browser: Browser, place: str) -> None:
    fields = await browser.form("/wallet", "/do/send") | {"address": "bcrt1qabcdef", "amount_sats:send": "0.5"}
    _, _, answer = await browser.post("/do/send", fields | {"_next": place})
    assert re.fullmatch(r"/[a-z]*/?", answer.headers["Location"])


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("amount_sats:send", "one", "one"),
        ("amount_sats:send", "-1", "-1"),
        ("amount_sats:send", "0", "more than zero"),
        ("amount_sats:magic", "1", "no kind"),
        ("fee_rate_sats_per_kvb:rate", "fast", "fee rate"),
        ("surprise", "1", "surprise"),
    ],
)
async def test_what_can_t_be_read_is_said_and_nothing_is_done(
    twin: Twin, browser: Browser, field: str, text: str, said: str
) -> None:
    good = await browser.form("/wallet", "/do/send") | {"address": "bcrt1qabcdef", "amount_sats:send": "0.5"}
    status, shown, _ = await browser.post("/do/send", good | {field: text})
    assert status in (400, 422)
    assert said in shown
    assert "Nothing was changed" in shown
    assert twin.sent == []


async def test_the_second_factor_guards_the_page_too(twin: Twin, browser: Browser) -> None:
    before = await browser.form("/wallet", "/do/send") | {"address": "bcrt1qabcdef", "amount_sats:send": "0.5"}
    totp = pyotp.TOTP(twin.factor.begin()[0])
    twin.factor.confirm(totp.at(twin.clock.now()))
    twin.clock.time += 30
    status, text, _ = await browser.post("/do/send", before)
    assert (status, "A code is needed" in text) == (422, True)
    assert 'name="_code"' in (await browser.get("/wallet"))[1]
    good = before | {"_code": totp.at(twin.clock.now())}
    assert (await browser.post("/do/send", good))[0] == 303
    assert len(twin.sent) == 1


async def test_a_device_is_set_up_on_the_page(twin: Twin, browser: Browser) -> None:
    _, text, _ = await browser.post("/do/second_factor_begin", await browser.form("/node", "/do/second_factor_begin"))
    assert "<svg" in text
    secret = re.search(r'class="mono">([A-Z2-7]{32})<', text)
    assert secret is not None
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text))
    code = pyotp.TOTP(secret[1]).at(twin.clock.now())
    _, text, _ = await browser.post("/do/second_factor_confirm", hidden | {"code": code})
    assert len(re.findall(r"<li>[A-Z2-7-]{19}</li>", text)) == twin.factor.recovery_left == 10


async def test_an_offer_is_made_and_found_on_the_page(twin: Twin, browser: Browser) -> None:
    fields = await browser.form("/offers/new", "/do/offer_create") | {
        "side": "sell",
        "*:range": "0.01-0.05",
        "currency:currency": "eur",
        "price": "65000.00",
        "buyer_deposit_ppm:share": "15%",
        "methods:methods": '[sepa]\niban = "DE02"\nholder = "Ann"\n',
    }
    status, _, answer = await browser.post("/do/offer_create", fields)
    assert status == 303
    (draft,) = twin.drafts
    assert (draft.amount_min_sats, draft.amount_max_sats, draft.currency) == (1_000_000, 5_000_000, "EUR")
    assert draft.methods[0].details == {"iban": "DE02", "holder": "Ann"}
    assert "65000.00 EUR" in (await browser.get(answer.headers["Location"]))[1]
    assert "65000.00 EUR" in (await browser.get("/offers?currency=EUR&side=sell"))[1]


async def test_static_files_lead_nowhere_else(browser: Browser) -> None:
    assert (await browser.get("/static/style.css"))[0] == 200
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static/"):
        assert (await browser.get(path))[0] == 404


async def test_a_fresh_address_is_shown_as_a_code(browser: Browser) -> None:
    _, text, _ = await browser.post("/do/address", await browser.form("/wallet", "/do/address"))
    assert "<svg" in text
    assert "bcrt1" in text
