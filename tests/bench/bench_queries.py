"""Questions to a local book of 100,000 offers: every filter alone and together, from the first page to the last.

    python -m tests.bench.bench_queries [--quick]

The offers are real envelopes, taken in as the daemon takes them, in two currencies and on both sides, three quarters of
them in one market, a fifth of them with margins on a market price. What is timed is `OfferBook.search` with a page of
50 as the API calls it, from the question to the decoded offers: the processor's time, which is the whole of it (nothing
is read from the disk) and does not count what else runs here. The worst of the questions is judged, each by the median
of its repetitions.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from p2pnode.database import Database
from p2pnode.offerbook import Batch, BookFilter, OfferBook
from protocol.identity import SigningKey
from protocol.offer import SALT_BYTES, FixedPrice, MarketPrice, Offer, make_offer_id
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, pack
from tests.bench.report import Report
from tests.unit.services_support import offer_of

QUICK = "--quick" in sys.argv
COUNT = 10_000 if QUICK else 100_000
PER_MAKER = 50
REPEAT = 15
METHODS = ("sepa", "sepa-instant", "revolut", "wise", "zelle", "pix", "swish", "bizum", "paypal", "strike")
NOW = 1_800_000_000
NETWORK = Network.REGTEST


def offers(rng: random.Random) -> Iterator[tuple[Envelope, Offer]]:
    """The book."""
    for number in range(COUNT):
        key = SigningKey((number // PER_MAKER).to_bytes(32, "big"))
        rate = rng.randrange(6_000_000, 7_000_000)
        low = rng.randrange(10_000, 5_000_000)
        offer = offer_of(
            key.public,
            offer_id=make_offer_id(key.public, number.to_bytes(SALT_BYTES, "big")),
            side=Side.BUY if number % 5 == 0 else Side.SELL,
            currency="USD" if number % 16 == 0 else "EUR",
            price=MarketPrice(rate - 6_500_000, "default", None) if rng.random() < 0.2 else FixedPrice(rate),
            amount_min=low,
            amount_max=low * rng.randrange(1, 9),
            methods=("rare",) if number == COUNT // 2 else tuple(rng.sample(METHODS, 2)),
            created=NOW - 60,
            expires=NOW + 86_400,
        )
        yield key.seal(Kind.OFFER, NETWORK, pack(offer)), offer


def questions() -> Iterator[tuple[str, BookFilter]]:
    """Every combination of filters, with values that many, few and no offers fit."""
    for currency in (None, "EUR", "USD", "XXX"):
        for side in (None, Side.SELL, Side.BUY):
            for method in (None, "sepa", "rare", "nobody-has-it"):
                for amount in (None, 1_000_000, 39_000_000, 20_000, 2_000_000_000):
                    wanted = BookFilter(currency=currency, side=side, method=method, amount=amount, limit=50)
                    yield f"{currency or 'any'} {side.name if side else 'any'} {method} {amount}", wanted


def timed(act: Callable[[], object]) -> float:
    """The median of some repetitions, in milliseconds of the processor."""
    took = []
    for _ in range(REPEAT):
        began = time.process_time()
        act()
        took.append(1_000 * (time.process_time() - began))
    return statistics.median(took)


def main() -> None:
    """Fill, ask, judge."""
    report = Report("book queries")
    rng = random.Random(11)
    print("seed 11")
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "node.db")
        book = OfferBook(database, NETWORK)
        batch = Batch(NOW)
        writing = 0.0
        for number, one in enumerate(offers(rng), 1):
            batch.add(*one)
            if number % 1_000 == 0:
                began = time.perf_counter()
                book.take_in(batch)
                writing += time.perf_counter() - began
                batch = Batch(NOW)
        print(f"{COUNT:,} offers taken in after {writing:.2f} s, {Path(folder, 'node.db').stat().st_size:,} bytes")
        found = {name: timed(lambda wanted=wanted: book.search(wanted, NOW)) for name, wanted in questions()}  # type: ignore[misc]
        whole = BookFilter(currency="EUR", side=Side.SELL, limit=50)
        cursor: str | None = None
        for page in range(COUNT * 3 // 4 // 500):
            cursor = book.search(BookFilter("EUR", Side.SELL, limit=500), NOW, after=cursor).next
            if page % 25 == 0 and cursor is not None:
                found[f"page behind {500 * (page + 1)}"] = timed(lambda at=cursor: book.search(whole, NOW, after=at))  # type: ignore[misc]
        found["currencies"] = timed(book.currencies)
        found["one by its id"] = timed(lambda: book.locate(offer_prefix, NOW))
        database.close()
    worst = sorted(found.items(), key=lambda item: -item[1])
    for name, took in worst[:8]:
        print(f"{took:7.2f} ms  {name}")
    print(f"{statistics.median(found.values()):7.2f} ms  the median of {len(found)} questions")
    report.numbers = {"ms": found, "fill_s": writing}
    report.at_most(f"slowest of {len(found)} questions to {COUNT:,} offers, ms", worst[0][1], 10.0)
    report.write()


offer_prefix = make_offer_id(SigningKey(bytes(32)).public, (7).to_bytes(SALT_BYTES, "big")).hex()[:12]

if __name__ == "__main__":
    main()
