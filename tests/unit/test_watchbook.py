"""Watches as a machine: whatever the chain does, who believes the events believes what is so."""

from __future__ import annotations

import random
from typing import assert_never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escrow.chain.base import (
    BlockRef,
    ChainEvent,
    Confirmed,
    Seen,
    SpendUndone,
    SpentBy,
    TipChanged,
    Unconfirmed,
    Unseen,
    WatchRequest,
)
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.chain.watchbook import WatchBook
from escrow.coins import OutPoint, TxOut
from escrow.transactions import REPLACEABLE, build

SCRIPT = b"\x00\x20" + b"\x01" * 32
ELSEWHERE = b"\x00\x20" + b"\x02" * 32
COIN = OutPoint(b"\x07" * 32, 0)


def tx(spends: list[OutPoint], *outputs: tuple[int, bytes]) -> ParsedTx:
    return parse_tx(build([(o, REPLACEABLE) for o in spends], [TxOut(v, s) for v, s in outputs]))


FUNDING = tx([COIN], (500, ELSEWHERE), (90_000, SCRIPT))
DOUBLE = tx([COIN], (80_000, ELSEWHERE))
ESCROW = FUNDING.outpoint(1)
PAYOUT = tx([ESCROW], (89_000, ELSEWHERE))
RIVAL = tx([ESCROW], (70_000, ELSEWHERE))


def block(height: int, branch: int = 0) -> BlockRef:
    return BlockRef(height, bytes([height, branch]) + bytes(30), 1_000 + height, 900 + height)


class Scene:
    """A book that is driven as `Follow` drives it."""

    def __init__(self, *requests: WatchRequest) -> None:
        self.book = WatchBook()
        self.told: list[ChainEvent] = []
        for request in requests:
            self.book.arm(request)

    def connect(self, at: BlockRef, *txs: ParsedTx) -> list[ChainEvent]:
        self.book.connected(at, txs)
        self.book.settled(at, new_tip=True)
        return self.take()

    def take(self) -> list[ChainEvent]:
        events = self.book.take_events()
        self.told += events
        return events


WATCH = WatchRequest(b"escrow", SCRIPT, ESCROW, 0, depth=3)


def test_each_depth_is_told_up_to_the_bound_and_the_tip_last() -> None:
    scene = Scene(WATCH)
    told = [scene.connect(block(10), FUNDING), *(scene.connect(block(h)) for h in range(11, 16))]
    depths = [[e.depth for e in events if isinstance(e, Confirmed)] for events in told]
    assert depths == [[1], [2], [3], [], [], []]
    assert all(
        isinstance(events[-1], TipChanged) and len(events) == len(d) + 1 for events, d in zip(told, depths, strict=True)
    )


def test_mempool_sighting_is_told_once_and_never_after_a_block() -> None:
    scene = Scene(WATCH)
    for _ in range(2):
        scene.book.in_mempool(FUNDING)
        scene.book.settled(block(9))
    assert scene.take() == [Seen(b"escrow", ESCROW, 90_000, FUNDING.raw)]
    scene.connect(block(10), FUNDING)
    # bitcoind announces transactions of blocks as well.
    scene.book.in_mempool(FUNDING)
    scene.book.settled(block(10))
    assert scene.take() == []


def test_reorg_takes_back_spend_then_funding_and_tells_the_new_branch() -> None:
    scene = Scene(WATCH)
    scene.connect(block(10), FUNDING)
    scene.connect(block(11), PAYOUT)
    scene.book.disconnected(block(11))
    scene.book.disconnected(block(10))
    assert scene.take() == [
        SpendUndone(b"escrow", ESCROW, PAYOUT.txid),
        Unconfirmed(b"escrow", ESCROW, 10, block(10).hash),
    ]
    assert set(scene.book.unconfirmed()) == {FUNDING.txid, PAYOUT.txid}
    events = scene.connect(block(10, 1), FUNDING)
    assert events[0] == Confirmed(b"escrow", ESCROW, 90_000, FUNDING.raw, 10, block(10, 1).hash, 1)
    scene.book.in_mempool(PAYOUT)
    scene.book.settled(block(10, 1))
    assert [type(e) for e in scene.take()] == [SpentBy]


def test_funding_and_spend_in_one_block_are_both_taken_back() -> None:
    scene = Scene(WATCH)
    scene.connect(block(10), FUNDING, PAYOUT)
    scene.book.disconnected(block(10))
    assert [type(e) for e in scene.take()] == [SpendUndone, Unconfirmed]
    scene.book.left_mempool(PAYOUT.txid)
    scene.book.left_mempool(FUNDING.txid)
    # The spend was taken back already; only the funding's disappearance is news.
    assert scene.take() == [Unseen(b"escrow", ESCROW)]
    assert scene.book.unconfirmed() == ()


def test_replaced_spend_is_undone_before_the_new_one_is_told() -> None:
    scene = Scene(WATCH)
    scene.connect(block(10), FUNDING)
    for spend in (PAYOUT, RIVAL):
        scene.book.in_mempool(spend)
        scene.book.settled(block(10))
    assert [(type(e), getattr(e, "txid", None)) for e in scene.take()] == [
        (SpentBy, PAYOUT.txid),
        (SpendUndone, PAYOUT.txid),
        (SpentBy, RIVAL.txid),
    ]
    # What was replaced is gone for good: hearing so is no news.
    scene.book.left_mempool(PAYOUT.txid)
    assert scene.take() == []
    events = scene.connect(block(11), PAYOUT)
    assert [(type(e), getattr(e, "txid", None)) for e in events[:2]] == [
        (SpendUndone, RIVAL.txid),
        (SpentBy, PAYOUT.txid),
    ]


def test_watch_on_an_outpoint_ignores_other_payments_to_its_script() -> None:
    decoy = tx([OutPoint(b"\x08" * 32, 3)], (90_000, SCRIPT))
    scene = Scene(WATCH, WatchRequest(b"any", SCRIPT, None, 0))
    events = scene.connect(block(10), decoy)
    assert [(e.key, e.outpoint) for e in events if isinstance(e, Confirmed)] == [(b"any", decoy.outpoint(0))]


def test_spend_of_a_watched_input_reveals_a_double_spend() -> None:
    scene = Scene(WatchRequest(b"input", ELSEWHERE, COIN, 0, depth=1))
    scene.book.in_mempool(FUNDING)
    scene.book.settled(block(9))
    events = [*scene.take(), *scene.connect(block(10), DOUBLE)]
    assert [(type(e), getattr(e, "txid", None)) for e in events[:3]] == [
        (SpentBy, FUNDING.txid),
        (SpendUndone, FUNDING.txid),
        (SpentBy, DOUBLE.txid),
    ]


def test_disarmed_watch_leaves_nothing_behind() -> None:
    scene = Scene(WATCH)
    scene.connect(block(10), FUNDING, PAYOUT)
    scene.book.in_mempool(RIVAL)
    scene.book.disarm(b"escrow")
    scene.book.disarm(b"escrow")
    assert not scene.book.scripts
    assert not scene.book.outpoints
    assert scene.book.checkpoints() == ()
    assert scene.book.unconfirmed() == ()
    scene.book.disconnected(block(10))
    assert scene.connect(block(11), FUNDING) == [TipChanged(block(11))]


def test_old_blocks_are_told_to_the_new_watch_alone() -> None:
    scene = Scene(WATCH)
    scene.connect(block(10), FUNDING)
    scene.connect(block(11))
    scene.take()
    scene.book.arm(WatchRequest(b"late", SCRIPT, None, 0, depth=3))
    scene.book.connected(block(10), [FUNDING], {b"late"})
    scene.book.settled(block(11))
    assert [(e.key, e.depth) for e in scene.take() if isinstance(e, Confirmed)] == [(b"late", 2)]


def test_ten_thousand_watches_cost_a_block_nothing() -> None:
    rng = random.Random(4)
    scene = Scene()
    for n in range(10_000):
        script = b"\x00\x20" + rng.randbytes(32)
        scene.book.arm(WatchRequest(n.to_bytes(4, "big"), script, OutPoint(rng.randbytes(32), 0), 0))
    told = scene.connect(block(10))
    assert told == [TipChanged(block(10))]
    # The work of a block is bounded by what is maturing, and nothing is.
    assert not scene.book._maturing


class Believer:
    """Folds events into what a consumer believes of the escrow output."""

    def __init__(self) -> None:
        self.made: str | bytes | None = None
        self.spent: dict[bytes, str | bytes] = {}
        self.depth = 0

    def hear(self, event: ChainEvent) -> None:
        match event:
            case Seen():
                self.made = "mempool"
            case Confirmed():
                self.made, self.depth = event.block_hash, event.depth
            case Unconfirmed():
                assert self.made == event.block_hash, "only what was confirmed can be unconfirmed"
                self.made = "limbo"
            case Unseen():
                assert self.made in ("mempool", "limbo")
                self.made = None
            case SpentBy():
                assert set(self.spent) <= {event.txid}, "the former spend must be undone first"
                self.spent = {event.txid: event.block_hash or "mempool"}
            case SpendUndone():
                assert event.txid in self.spent
                del self.spent[event.txid]
            case TipChanged():
                pass
            case _:
                assert_never(event)


MOVES = st.sampled_from(
    ["mine", "mine all", "empty", "reorg 1", "reorg 2", "reorg 3", "fund", "steal", "pay", "rival", "evict"]
)


@settings(max_examples=300)
@given(st.lists(MOVES, max_size=30), st.booleans())
def test_who_believes_the_events_believes_what_is_so(  # noqa: PLR0912 - one branch per move
    moves: list[str], by_outpoint: bool
) -> None:
    request = WatchRequest(b"k", SCRIPT, ESCROW if by_outpoint else None, 0, depth=100)
    scene = Scene(request)
    book, believer = scene.book, Believer()
    chain: list[tuple[BlockRef, list[ParsedTx]]] = [(block(0), [])]
    mempool: list[ParsedTx] = []
    branch = 0

    def spent_in_chain() -> set[OutPoint]:
        return {o for _, txs in chain for t in txs for o in t.spends}

    def valid(t: ParsedTx) -> bool:
        made = {FUNDING.txid} & {x.txid for _, txs in chain for x in txs} | {x.txid for x in mempool}
        if t.txid in {x.txid for _, txs in chain for x in txs}:
            return False
        return all(o not in spent_in_chain() and (o == COIN or o.txid in made) for o in t.spends)

    def enter(t: ParsedTx) -> None:
        rivals = [x for x in mempool if set(x.spends) & set(t.spends)]
        if t in mempool or not valid(t):
            return
        gone = [*rivals, *(x for x in mempool if any(o.txid in {r.txid for r in rivals} for o in x.spends))]
        if any(o.txid in {g.txid for g in gone} for o in t.spends):
            return
        for x in gone:
            mempool.remove(x)
        mempool.append(t)
        book.in_mempool(t)
        for x in gone:
            book.left_mempool(x.txid)
        book.settled(chain[-1][0])

    for move in moves:
        if move in ("mine", "mine all", "empty"):
            txs = {"mine": mempool[:1], "mine all": mempool[:], "empty": []}[move]
            at = block(len(chain), branch)
            chain.append((at, txs))
            mempool = [t for t in mempool if t not in txs]
            book.connected(at, txs)
            book.settled(at, new_tip=True)
        elif move.startswith("reorg"):
            depth = min(int(move[-1]), len(chain) - 1)
            branch += 1
            back: list[ParsedTx] = []
            for _ in range(depth):
                at, txs = chain.pop()
                back = txs + back
                book.disconnected(at)
            for _ in range(depth + 1 if depth else 0):
                at = block(len(chain), branch)
                chain.append((at, []))
                book.connected(at, [])
                book.settled(at, new_tip=True)
            survivors = back + [t for t in mempool if t not in back]
            mempool = []
            for t in survivors:
                if valid(t) and not any(set(t.spends) & set(x.spends) for x in mempool):
                    mempool.append(t)
            for t in mempool:
                book.in_mempool(t)
            for txid in book.unconfirmed():
                if txid not in {t.txid for t in mempool}:
                    book.left_mempool(txid)
            book.settled(chain[-1][0])
        elif move == "evict":
            for t in [t for t in mempool if t.txid != FUNDING.txid][:1]:
                mempool.remove(t)
                book.left_mempool(t.txid)
        else:
            enter({"fund": FUNDING, "steal": DOUBLE, "pay": PAYOUT, "rival": RIVAL}[move])
        for event in book.take_events():
            believer.hear(event)
        where = {t.txid: at.hash for at, txs in chain for t in txs}
        height = {t.txid: at.height for at, txs in chain for t in txs}
        waiting = {t.txid for t in mempool}
        expected = where.get(FUNDING.txid, "mempool" if FUNDING.txid in waiting else None)
        assert believer.made == expected
        if FUNDING.txid in height:
            assert believer.depth == chain[-1][0].height - height[FUNDING.txid] + 1
        spends = {t.txid: where.get(t.txid, "mempool") for t in (PAYOUT, RIVAL) if t.txid in where or t.txid in waiting}
        assert believer.spent == spends


@pytest.mark.parametrize("depth", [1, 6])
def test_known_gives_back_what_waits(depth: int) -> None:
    scene = Scene(WatchRequest(b"k", SCRIPT, None, 0, depth=depth))
    scene.book.in_mempool(FUNDING)
    assert scene.book.known(FUNDING.txid) == FUNDING
    assert scene.book.unspent([b"k", b"other"]) == (ESCROW,)
    scene.book.in_mempool(PAYOUT)
    assert scene.book.unspent([b"k"]) == ()
    scene.connect(block(10), FUNDING)
    assert scene.book.known(FUNDING.txid) is None
