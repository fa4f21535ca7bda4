"""Watching must stay cheap: a node that needs seconds for a block falls behind when many come at once."""

from __future__ import annotations

from tests.bench.bench_watch import WATCHES, measure


def test_ten_thousand_escrows_cost_less_than_a_second_per_full_block_and_fifty_megabytes() -> None:
    cost = measure()
    assert (cost["watches"], cost["block_txs"] > 5_000) == (WATCHES, True)
    assert cost["bitcoind_s"] < 1
    assert cost["light_client_s"] < 1
    assert cost["esplora_s"] < 1
    assert cost["electrum_s"] < 1
    assert cost["memory_mb"] < 50
    assert cost["electrum_memory_mb"] < 50
