"""Whole trades between real nodes, each driven by its own browser: what a person does, and nothing else.

Needs Chromium (`make page` sees to it on Debian); the browsers are the machine's own, none is downloaded.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="`make page` installs what drives browsers")

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon, together

CHROMIUM = os.environ.get("P2PNODE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("P2PNODE_PICTURES")
"""A folder for pictures of the pages, if somebody wants to look at them."""
DETAILS = '[sepa-instant]\niban = "DE02120300000000202051"\nholder = "Sally <b>Seller</b>"\n'
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080200000090775"
    "3de0000000c49444154789c63f8cfc00000030101009d1e5ee00000000049454e44ae426082"
)

pytestmark = [
    pytest.mark.page,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: `make page` installs it on Debian"),
    pytest.mark.asyncio(loop_scope="module"),
]


class Person:
    """Somebody at a browser, with a node of its own."""

    def __init__(self, daemon: Daemon, page: Page) -> None:
        self.daemon = daemon
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    async def enter(self) -> None:
        await self.page.goto((await self.daemon.api.page()).url)

    async def go(self, path: str) -> None:
        await self.page.goto(self.daemon.info.api + path)

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def fill(self, label: str, text: str) -> None:
        await self.page.get_by_label(label).fill(text)

    async def sees(self, text: str) -> None:
        await expect(self.page.locator("main")).to_contain_text(text, timeout=20_000)

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


class Stage:
    """All nodes, and their people."""

    def __init__(self, cast: Cast, seller: Person, buyer: Person, arbiter: Person) -> None:
        self.cast = cast
        self.seller = seller
        self.buyer = buyer
        self.arbiter = arbiter

    async def mine(self, blocks: int = 1) -> None:
        await self.cast.bitcoind.mine(blocks)

    async def funded(self) -> None:
        """An offer, made and taken, and its escrow confirmed."""
        await self.seller.go("/offers/new")
        await self.seller.fill("Amount in BTC, or a range", "0.01")
        await self.seller.fill("Currency", "EUR")
        await self.seller.fill("A fixed price per BTC", "85000")
        await self.seller.fill("Payment methods and your details", DETAILS)
        arbiters = f"{self.cast.arbiter.persona} {self.cast.backup.persona}"
        await self.seller.fill("Arbiters that you accept", arbiters)
        await self.seller.picture("offer-new")
        await self.seller.press("Sign and publish")
        await self.seller.sees("The offer is published.")
        offer = self.seller.page.url.rpartition("/")[2]
        await self.buyer.go("/offers?currency=EUR&side=sell")
        async with asyncio.timeout(30):
            while not await self.buyer.page.locator(f'a[href="/offers/{offer}"]').count():
                await self.buyer.page.reload()
        await self.buyer.picture("offers")
        await self.buyer.page.locator(f'a[href="/offers/{offer}"]').click()
        await self.buyer.fill("Your payment details, a line each", "iban = FR7630006000011234567890189\nholder = Bob")
        await self.buyer.picture("offer")
        await self.buyer.press("Take the offer")
        path = "/trades/" + self.buyer.page.url.rpartition("/")[2]
        trade = path.rpartition("/")[2]
        for daemon in (self.seller.daemon, self.buyer.daemon):
            await until(daemon, trade, lambda view: view.escrow.funding_depth is not None)
        await self.seller.go(path)
        await self.mine()
        await self.buyer.sees("Sally <b>Seller</b>")
        await self.seller.sees("funded")


async def until(daemon: Daemon, trade: str, holds: Callable[[s.TradeView], bool]) -> s.TradeView:
    """Follow the node's events until its trade is as wanted."""
    async for _ in _looks(daemon):
        found = [view for view in (await daemon.api.trades()).trades if view.id == trade]
        if found and holds(found[0]):
            return found[0]
    raise AssertionError


async def _looks(daemon: Daemon) -> AsyncIterator[None]:
    cursor = (await daemon.api.events()).next
    yield
    while True:
        cursor = (await daemon.api.events(cursor, wait=20)).next
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(bitcoind_binary: Path) -> AsyncIterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="p2p-"))
    cast = Cast(folder, bitcoind_binary, keep=False)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            await cast.start_chain_and_seeds()
            await cast.start_others()
            await _prepare(cast)
            people = [await _person(browser, daemon) for daemon in (cast.seller, cast.buyer, cast.arbiter)]
            yield Stage(cast, *people)
        finally:
            await browser.close()
            await cast.close()
            shutil.rmtree(folder, ignore_errors=True)


async def _person(browser: Browser, daemon: Daemon) -> Person:
    context = await browser.new_context(viewport={"width": 1000, "height": 800})
    person = Person(daemon, await context.new_page())
    await person.enter()
    return person


async def _prepare(cast: Cast) -> None:
    """Coins for the traders, and arbiters that both know."""
    await cast.bitcoind.ensure_coins()
    for trader in cast.traders:
        for _ in range(2):
            await cast.bitcoind.fund((await trader.api.address()).address, 3_000_000, confirmations=0)
    await cast.bitcoind.mine(1)
    for arbiter in cast.arbiters:
        await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000, currencies=("EUR",), response_blocks=6))

    async def ready(trader: Daemon) -> None:
        for _ in range(400):
            known = (await trader.api.arbiters("EUR")).arbiters
            if len(known) >= 2 and (await trader.api.balance()).confirmed_sats >= 6_000_000:
                return
            await trader.api.events(wait=1)
        raise AssertionError

    await together(*(ready(trader) for trader in cast.traders))


async def test_a_trade_is_done_from_offer_to_payout(stage: Stage) -> None:
    seller, buyer = stage.seller, stage.buyer
    await stage.funded()
    await buyer.fill("Say something", "hello, I pay today")
    await buyer.page.get_by_label("Show a file").set_input_files(
        {"name": "../../receipt.png", "mimeType": "image/png", "buffer": PNG}
    )
    await buyer.press("Send")
    await seller.sees("hello, I pay today")
    await buyer.fill("A line for the seller", "reference 4711")
    await buyer.picture("trade-buyer")
    await buyer.press("I have paid")
    await seller.sees("reference 4711")
    await seller.picture("trade-seller")
    await seller.page.get_by_role("checkbox").check()
    await seller.press("Release the coins")
    await seller.sees("The coins are released.")
    await until(seller.daemon, seller.page.url.rpartition("/")[2], lambda view: view.escrow.payout_depth is not None)
    await stage.mine()
    for person in (seller, buyer):
        await person.sees("completed")
        assert person.complaints == []


async def test_a_dispute_is_decided_with_the_scales(stage: Stage) -> None:
    seller, buyer, arbiter = stage.seller, stage.buyer, stage.arbiter
    await stage.funded()
    await buyer.press("I have paid")
    await seller.sees("Release the coins")
    await buyer.page.locator("summary", has_text="Ask the arbiter").click()
    await buyer.fill("What happened", "I paid <script>alert(1)</script> and it is silent")
    await buyer.fill("What the buyer should get", "100%")
    await buyer.page.get_by_role("button", name="Ask the arbiter").click()
    await seller.sees("I paid <script>alert(1)</script> and it is silent")
    await seller.fill("What happened", "It came late")
    await seller.fill("What the buyer should get", "50%")
    await seller.page.get_by_role("button", name="Ask the arbiter").click()
    await seller.sees("You say")
    await arbiter.go("/cases")
    await arbiter.page.locator("tbody a").first.click()
    await arbiter.sees("Hear the case")
    await arbiter.press("Hear the case")
    await arbiter.sees("The scales")
    await arbiter.page.locator("input[name=share]").fill("70")
    await expect(arbiter.page.locator("output[name=share]")).to_have_text("70 %")
    await arbiter.press("Look at this decision")
    await arbiter.page.get_by_label("Reason").select_option("payment-late")
    await arbiter.fill("Why; both parties read it", "It came, but two days late.")
    await arbiter.page.get_by_role("checkbox").check()
    await arbiter.picture("case")
    await arbiter.press("Sign the ruling")
    await arbiter.sees("Your ruling")
    for person in (buyer, seller):
        await person.sees("It came, but two days late.")
    trade = buyer.page.url.rpartition("/")[2]
    await until(buyer.daemon, trade, lambda view: view.escrow.payout_depth is not None)
    await stage.mine()
    for person in (seller, buyer):
        await person.sees("completed")
        await person.sees("ruled")
        assert person.complaints == []
    await arbiter.picture("case-ruled")
    assert arbiter.complaints == []


async def test_a_phone_shows_each_page_without_scrolling_sideways(stage: Stage) -> None:
    person = stage.seller
    await person.page.set_viewport_size({"width": 360, "height": 720})
    for path in ("/", "/offers", "/offers/new", "/trades", "/wallet", "/arbiters", "/node"):
        await person.go(path)
        wide = await person.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, path
        await person.picture("phone" + path.replace("/", "-"))


async def test_a_browser_without_scripts_can_do_it_all(stage: Stage) -> None:
    browser = stage.seller.page.context.browser
    assert browser is not None
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto((await stage.seller.daemon.api.page()).url)
    await page.goto(stage.seller.daemon.info.api + "/wallet")
    await page.get_by_role("button", name="Make a fresh address").click()
    await expect(page.locator("svg").first).to_be_visible()
    assert "bcrt1" in await page.inner_text("main")
