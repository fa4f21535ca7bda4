"""What watching 10,000 open escrows costs per full block, and in memory.

The block is made up: 4 million weight units of payments with one segwit input and two outputs each, as dense in
transactions as a block can be, of which 100 fund watched escrows and 100 spend some. Measured is all that Python does
with it: reading and matching, telling the watches; for the light client the filter and the hash tree as well; for
Esplora the hash tree; and for Electrum all that the client does, which includes asking a server on the loopback, whose
work is counted too, about each script that the block touches.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import tracemalloc
from typing import Final

from nacl.bindings import crypto_shorthash_siphash24

from escrow.chain.base import BlockRef, WatchRequest
from escrow.chain.blocks import block_txids, match_block
from escrow.chain.electrum import ElectrumConfig, ElectrumView
from escrow.chain.gcs import filter_matches
from escrow.chain.headers import ANCHORS, hash256
from escrow.chain.merkle import check_block, root_of
from escrow.chain.watchbook import WatchBook
from escrow.coins import OutPoint, TxOut
from escrow.transactions import build, weight, with_witnesses
from protocol.types import Network
from tests.bench.electrum_stub import stub_on
from tests.bench.report import Report

WATCHES: Final = 10_000
TOUCHED: Final = 100
BLOCK_WEIGHT: Final = 4_000_000
HEADER_END: Final = (1_600_000_000).to_bytes(4, "little") + (0x207FFFFF).to_bytes(4, "little")


def payment(rng: random.Random, spent: OutPoint, script: bytes) -> bytes:
    unsigned = build([(spent, 0)], [TxOut(50_000, script), TxOut(50_000, b"\x00\x14" + rng.randbytes(20))])
    return with_witnesses(unsigned, [(rng.randbytes(71), rng.randbytes(33))])


def full_block(rng: random.Random, scripts: list[bytes], escrows: list[OutPoint]) -> bytes:
    """A block with as many payments as fit; the first ones touch what is watched."""
    txs: list[bytes] = []
    size = 400
    while size < BLOCK_WEIGHT - 800:
        n = len(txs)
        spent = escrows[n] if n < TOUCHED else OutPoint(rng.randbytes(32), 1)
        script = scripts[-1 - n] if n < TOUCHED else b"\x00\x14" + rng.randbytes(20)
        txs.append(payment(rng, spent, script))
        size += weight(txs[-1])
    body = b"\xfd" + len(txs).to_bytes(2, "little") + b"".join(txs)
    root = root_of(block_txids(bytes(80) + body))
    return (4).to_bytes(4, "little") + bytes(32) + root + bytes(12) + body


def coded(block: bytes, scripts: list[bytes]) -> bytes:
    """A BIP158 filter of these scripts."""
    span = len(scripts) * 784_931
    hashes = (int.from_bytes(crypto_shorthash_siphash24(s, block[:16]), "little") * span >> 64 for s in scripts)
    bits, last = [], 0
    for value in sorted(hashes):
        delta, last = value - last, value
        bits.append("1" * (delta >> 19) + "0" + format(delta & (1 << 19) - 1, "019b"))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return b"\xfd" + len(scripts).to_bytes(2, "little") + int(text, 2).to_bytes(len(text) // 8, "big")


def watching(rng: random.Random) -> tuple[WatchBook, list[bytes], list[OutPoint]]:
    """A book with all watches, each of which has seen its escrow funded."""
    book = WatchBook()
    scripts = [b"\x00\x20" + rng.randbytes(32) for _ in range(WATCHES)]
    escrows = [OutPoint(rng.randbytes(32), 0) for _ in range(WATCHES)]
    # The last ones name no output yet: what funds them is in the block.
    for n, (script, escrow) in enumerate(zip(scripts, escrows, strict=True)):
        named = escrow if n < WATCHES - TOUCHED else None
        book.arm(WatchRequest(n.to_bytes(33, "big"), script, named, 1))
    return book, scripts, escrows


async def electrum(
    rng: random.Random, raw: bytes, scripts: list[bytes], escrows: list[OutPoint]
) -> tuple[float, float]:
    """Seconds from a block's announcement until all that it touches is proved, and megabytes of histories."""
    genesis = ANCHORS[Network.REGTEST][0]
    header = next(
        made
        for nonce in range(1 << 16)
        if hash256(made := raw[:4] + genesis.hash + raw[36:68] + HEADER_END + nonce.to_bytes(4, "little"))[-1] < 0x7F
    )
    paid = [b"\x00\x20" + rng.randbytes(32) for _ in range(WATCHES - len(scripts))] + scripts
    wanted, outpoints = frozenset(paid), frozenset(o.wire for o in escrows)
    txs = match_block(raw, wanted, outpoints)
    touched: dict[bytes, list[bytes]] = {}
    for tx in txs:
        for script in {o.script_pubkey for o in tx.outputs} & wanted:
            touched.setdefault(script, []).append(tx.txid)
        for n, escrow in enumerate(escrows[: TOUCHED + 1]):
            if escrow in tx.spends and tx.txid not in touched.setdefault(scripts[n], []):
                touched[scripts[n]].append(tx.txid)
    async with stub_on(header, raw, {script: ids for script, ids in touched.items() if ids}) as stub:
        config = ElectrumConfig(network=Network.REGTEST, url=f"tcp://127.0.0.1:{stub.port}")
        view = ElectrumView(config, lambda: 2_000_000_000)
        await view.open(lambda _hint: None)
        await view.check()
        tracemalloc.start()
        await view.relevant(wanted, 1, 1)
        memory = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        stub.reveal()
        began = time.perf_counter()
        await view.refresh()
        (block,) = await view.headers_at([1])
        # What the server says of scripts lies in the socket before its answer about the block.
        found = await view.matching(block, wanted, outpoints)
        spent = time.perf_counter() - began
        assert [tx.txid for tx in found] == [tx.txid for tx in txs]
        await view.close()
    return spent, memory


def measure() -> dict[str, float]:
    """Seconds of work, megabytes of memory."""
    rng = random.Random(10_000)
    tracemalloc.start()
    book, scripts, escrows = watching(rng)
    memory = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    raw = full_block(rng, scripts, escrows)
    name = hash256(raw[:80])
    strangers = [rng.randbytes(22) for _ in range(2 * len(block_txids(raw)))]
    raw_filter = coded(name, strangers)

    began = time.perf_counter()
    hit = filter_matches(name, raw_filter, book.scripts)
    filtered = time.perf_counter()
    check_block(raw, name)
    checked = time.perf_counter()
    txs = match_block(raw, book.scripts, book.outpoints)
    matched = time.perf_counter()
    tip = BlockRef(800_000, name, 0, 0)
    book.connected(tip, txs)
    book.settled(tip, new_tip=True)
    events = book.take_events()
    told = time.perf_counter()

    assert not hit
    assert len(txs) == TOUCHED
    assert len(events) == 2 * TOUCHED + 1
    electrum_s, electrum_mb = asyncio.run(electrum(rng, raw, scripts, escrows))
    return {
        "watches": WATCHES,
        "block_bytes": len(raw),
        "block_txs": len(strangers) // 2,
        "memory_mb": round(memory, 1),
        "filter_s": round(filtered - began, 3),
        "hash_tree_s": round(checked - filtered, 3),
        "matching_s": round(matched - checked, 3),
        "telling_s": round(told - matched, 3),
        "bitcoind_s": round(told - checked, 3),
        "light_client_s": round(told - began, 3),
        "esplora_s": round(told - filtered, 3),
        "electrum_s": round(electrum_s, 3),
        "electrum_memory_mb": round(memory + electrum_mb, 1),
    }


def main() -> None:
    """Print the numbers, and judge them."""
    cost = measure()
    print(json.dumps(cost, indent=1))
    report = Report("watch")
    for kind in ("bitcoind", "light_client", "esplora", "electrum"):
        report.at_most(f"10,000 escrows, seconds per full block, {kind}", cost[f"{kind}_s"], 1.0)
    report.at_most("10,000 escrows, MB", max(cost["memory_mb"], cost["electrum_memory_mb"]), 50.0)
    report.numbers = dict(cost)
    report.write()


if __name__ == "__main__":
    main()
