"""`kill -9` of the real seller or the real buyer in every phase of the happy path; started again, the trade completes.

Real processes, real sockets, a real bitcoind. A node that comes back listens on another port, so its peer must find it
again through the DHT. All cases share one network and run one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from p2pnode.api import schema as s
from p2pnode.client import ApiError
from p2pnode.demo import cast as casting
from p2pnode.demo.cast import Cast, Daemon, together
from protocol.errors import P2PError

DYING = Path(__file__).with_name("dying_node.py")
PATIENCE = 30.0
AMOUNT = 200_000

CASES = [
    ("seller", p)
    for p in ("Accepting", "Accepted", "SigningFunding", "Funding", "Funded", "Paid", "Releasing", "Settling")
]
CASES += [("buyer", p) for p in ("Taking", "SigningFunding", "Funding", "Funded", "Paying", "Paid", "Settling")]


def method(name: str) -> s.MethodDetails:
    return s.MethodDetails(method="sepa", details={"iban": f"DE {name}", "holder": name})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[Cast]:
    """A network of real nodes with funded traders and known arbiters."""
    cast = Cast(tmp_path_factory.mktemp("kill9"), bitcoind_binary, keep=False)
    try:
        await cast.start_chain_and_seeds()
        await together(cast.start_others(), cast.bitcoind.ensure_coins(2))
        for trader in cast.traders:
            for _ in range(4):
                await cast.bitcoind.fund((await trader.api.address("t")).address, 20_000_000, confirmations=0)
        await cast.bitcoind.mine()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))
        yield cast
    finally:
        await cast.close()


async def patiently(daemon: Daemon, ask: Callable[[], object]) -> None:
    """Try once; a node that is dead, or not there yet, is asked again later."""
    del daemon
    with suppress(ApiError, P2PError, OSError):
        await ask()  # type: ignore[misc]


async def the_trade(daemon: Daemon, offer: str) -> s.TradeView | None:
    with suppress(ApiError, P2PError, OSError):
        trades = (await daemon.api.trades()).trades
        return next((t for t in trades if t.offer_id == offer), None)
    return None


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.regtest
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("victim_name", "phase"), CASES)
async def test_killed_node_completes_its_trade(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, victim_name: str, phase: str
) -> None:
    victim: Daemon = getattr(cast, victim_name)
    known = tuple(daemon.seed for daemon in cast.seeds)

    async def restart() -> None:
        victim.kill()
        await victim.hang_up()
        victim.data.endpoint.unlink(missing_ok=True)
        await cast._start(victim, known)

    monkeypatch.setattr(casting, "_PROGRAM", DYING)
    monkeypatch.setenv("DIE_IN", phase)
    await restart()
    monkeypatch.undo()
    offer = await publish(cast)
    died = False
    seller = buyer = None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if victim._ended():
            died = True
            await restart()
        seller, buyer = [await the_trade(d, offer) for d in cast.traders]
        if seller and buyer and seller.phase == buyer.phase == "completed":
            break
        await push(cast, offer, seller, buyer)
        await asyncio.sleep(0.05)
    assert died, f"the {victim_name} never came to {phase}"
    assert seller is not None
    assert buyer is not None
    assert (seller.phase, buyer.phase) == ("completed", "completed")
    assert seller.escrow.payout_txid == buyer.escrow.payout_txid
    assert (seller.messages_sent, buyer.messages_sent) == (3, 3)


async def publish(cast: Cast) -> str:
    """A fresh offer; again while the arbiters are not yet known to a restarted seller."""
    draft = s.OfferDraft(
        side="sell",
        amount_min_sats=AMOUNT,
        amount_max_sats=AMOUNT,
        currency="EUR",
        methods=(method("seller"),),
        price="85000",
        arbiters=tuple(a.persona for a in cast.arbiters),
        escrow_types=(2,),
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return (await cast.seller.api.offer_create(draft)).id
        except (ApiError, P2PError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def push(cast: Cast, offer: str, seller: s.TradeView | None, buyer: s.TradeView | None) -> None:
    """What both users and the miners do next."""
    if buyer is None:
        take = s.TakeRequest(amount_sats=AMOUNT, method="sepa", details={"iban": "DE buyer"})
        await patiently(cast.buyer, lambda: cast.buyer.api.offers(s.OfferFilter(side="sell", currency="EUR")))
        await patiently(cast.buyer, lambda: cast.buyer.api.offer_take(offer, take))
    elif "pay" in buyer.actions:
        await patiently(cast.buyer, lambda: cast.buyer.api.trade_pay(buyer.id))
    if seller is not None and "release" in seller.actions:
        await patiently(cast.seller, lambda: cast.seller.api.trade_release(seller.id))
    # A payout is not mined before both have seen it, or the buyer would never come to `Settling`.
    behind = any(view is not None and view.phase == "paid" for view in (seller, buyer))
    if not behind and await cast.bitcoind.rpc("getrawmempool"):
        await cast.bitcoind.mine()
