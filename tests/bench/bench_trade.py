"""How long a take takes: from the API call at the taker to the funding transaction in bitcoind's mempool.

    python -m tests.bench.bench_trade [TRADES]

Real processes on loopback, as in the demo: a bitcoind, two bootstrap nodes, two arbiters, two traders. Trades run one
after the other, each to its end, in both casts: the maker sells (it broadcasts, once it has the taker's signatures) and
the maker buys (the taker broadcasts). A last few trades are followed through the event feeds of both nodes, to show
where the time goes. Prints a table, then one JSON document.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon, together
from p2pnode.demo.mempool import Mempool
from p2pnode.findbitcoind import find_bitcoind

TRADES = 20
FOLLOWED = 5
AMOUNT = 200_000
COINS = 6
COIN = 2_000_000
CURRENCY, METHOD = "EUR", "sepa-instant"
DETAILS = {"holder": "A. Trader", "iban": "DE02120300000000202051"}
SECONDS = 20.0

SideName = Literal["buy", "sell"]
CASTS: dict[str, SideName] = {"maker sells": "sell", "maker buys": "buy"}


@dataclass
class Stages:
    """When the event feeds told of each phase, in milliseconds after the take."""

    began: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)

    def note(self, who: str, event: s.EventView) -> None:
        if event.topic == "phase":
            self.seen.setdefault(f"{who} {event.phase}", (time.perf_counter() - self.began) * 1000)


async def until(node: Daemon, trade: str, cursor: int, holds: Callable[[s.TradeView], object]) -> s.TradeView:
    """The trade, once `holds` of it; looked at after each event of the node after `cursor`."""
    while not holds(view := await node.api.trade(trade)):
        if not view.open:
            raise RuntimeError(f"the {node.name} ended the trade: {view.phase} {view.ending}")
        cursor = (await node.api.events(cursor, wait=5)).next
    return view


async def poll(true: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not await true():
        if time.monotonic() > deadline:
            raise RuntimeError(what)
        await asyncio.sleep(0.005)


async def set_up(cast: Cast) -> None:
    await cast.start_chain_and_seeds()
    await together(cast.start_others(), cast.bitcoind.ensure_coins(COINS))
    for daemon in cast.daemons:

        async def known(daemon: Daemon = daemon) -> bool:
            return (await daemon.api.info()).dht.peers >= 1

        await poll(known, f"the {daemon.name} does not enter the network")
    for trader in cast.traders:
        for _ in range(COINS):
            await cast.bitcoind.fund((await trader.api.address()).address, COIN, confirmations=0)
    await cast.bitcoind.mine()
    for trader in cast.traders:

        async def funded(trader: Daemon = trader) -> bool:
            return (await trader.api.balance()).spendable_sats == COINS * COIN

        await poll(funded, f"the {trader.name} does not see its coins")
    await asyncio.gather(*(a.api.announce(s.AnnounceRequest(fee_ppm=10_000)) for a in cast.arbiters))


async def publish(cast: Cast, maker: Daemon, taker: Daemon, side: SideName, count: int) -> list[str]:
    """Offers of the maker's, as the taker found them in the DHT."""
    draft = s.OfferDraft(
        side=side,
        amount_min_sats=AMOUNT,
        amount_max_sats=AMOUNT,
        currency=CURRENCY,
        methods=(s.MethodDetails(method=METHOD, details=DETAILS),),
        price="85000",
        arbiters=tuple(a.persona for a in cast.arbiters),
        escrow_types=(2,),
    )

    async def informed() -> bool:
        known = {a.persona for a in (await maker.api.arbiters()).arbiters}
        return known.issuperset(a.persona for a in cast.arbiters)

    await poll(informed, "the maker does not find the arbiters")
    offers = [(await maker.api.offer_create(draft)).id for _ in range(count)]

    async def found() -> bool:
        page = await taker.api.offers(s.OfferFilter(side=side, currency=CURRENCY, limit=500))
        return {offer.id for offer in page.offers}.issuperset(offers)

    await poll(found, "the taker does not find the offers")
    return offers


async def trade(cast: Cast, mempool: Mempool, maker: Daemon, taker: Daemon, offer: str, side: SideName) -> float:
    """One trade to its end; the milliseconds from its take to the funding in the mempool."""
    seller, buyer = (maker, taker) if side == "sell" else (taker, maker)
    cursors = {node.name: (await node.api.events()).next for node in (seller, buyer)}
    began = time.perf_counter()
    taken = (await taker.api.offer_take(offer, s.TakeRequest(method=METHOD, details=DETAILS))).id
    view = await until(taker, taken, cursors[taker.name], lambda t: t.escrow.funding_txid)
    arrived = await mempool.wait(view.escrow.funding_txid or "", SECONDS)
    await cast.bitcoind.mine()
    await until(seller, taken, cursors[seller.name], lambda t: t.phase == "funded")
    await until(buyer, taken, cursors[buyer.name], lambda t: "pay" in t.actions)
    await buyer.api.trade_pay(taken)
    await until(seller, taken, cursors[seller.name], lambda t: "release" in t.actions)
    await seller.api.trade_release(taken)
    view = await until(seller, taken, cursors[seller.name], lambda t: t.escrow.payout_txid)
    await mempool.wait(view.escrow.payout_txid or "", SECONDS)
    await cast.bitcoind.mine()
    for node in (seller, buyer):
        await until(node, taken, cursors[node.name], lambda t: t.phase == "completed")
    return (arrived - began) * 1000


async def followed(cast: Cast, mempool: Mempool, maker: Daemon, taker: Daemon, offer: str, side: SideName) -> Stages:
    """One trade whose phases are timed by the event feeds of both nodes."""
    stages = Stages()

    async def follow(who: str, node: Daemon) -> None:
        async for event in node.api.follow((await node.api.events()).next):
            stages.note(who, event)

    tasks = [asyncio.create_task(follow(who, node)) for who, node in (("maker", maker), ("taker", taker))]
    await asyncio.sleep(0.05)  # both polls are open
    stages.began = time.perf_counter()
    stages.seen["in the mempool"] = await trade(cast, mempool, maker, taker, offer, side)
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return stages


def summary(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    parts = {"p50_ms": cuts[9], "p95_ms": cuts[18], "min_ms": min(values), "max_ms": max(values)}
    return {name: round(value, 1) for name, value in parts.items()} | {"trades": len(values)}


async def measure(folder: Path, trades: int) -> dict[str, object]:
    cast = Cast(folder, find_bitcoind(), keep=False)
    found: dict[str, object] = {}
    try:
        await set_up(cast)
        async with Mempool(cast.bitcoind) as mempool:
            for name, side in CASTS.items():
                maker, taker = cast.traders
                offers = await publish(cast, maker, taker, side, trades + FOLLOWED)
                plain, watched = offers[:trades], offers[trades:]
                times = [await trade(cast, mempool, maker, taker, offer, side) for offer in plain]
                stages = [await followed(cast, mempool, maker, taker, offer, side) for offer in watched]
                names = [step for step in stages[0].seen if all(step in one.seen for one in stages)]
                medians = {step: round(statistics.median(one.seen[step] for one in stages), 1) for step in names}
                before = {step: ms for step, ms in medians.items() if ms <= medians["in the mempool"] + 50}
                found[name] = summary(times) | {"stages_ms": dict(sorted(before.items(), key=lambda item: item[1]))}
        await cast.stop()
    finally:
        await cast.close()
    return found


def main() -> int:
    trades = int(sys.argv[1]) if len(sys.argv) > 1 else TRADES
    folder = Path(tempfile.mkdtemp(prefix="p2pnode-bench-"))
    try:
        found = asyncio.run(measure(folder, trades))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("from the take to the funding in the mempool, in ms")
    for name, numbers in found.items():
        assert isinstance(numbers, dict)
        line = "  ".join(f"{key.removesuffix('_ms')} {numbers[key]:7.1f}" for key in ("p50_ms", "p95_ms", "max_ms"))
        print(f"  {name:12} {line}  ({numbers['trades']} trades)")
        for step, ms in numbers["stages_ms"].items():
            print(f"    {ms:7.1f}  {step}")
    print(json.dumps({"take_to_mempool": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
