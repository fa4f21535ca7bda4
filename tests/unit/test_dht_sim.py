"""The simulator's short form: what the network must show, at a size that the test suite can afford."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from dht.engine import EngineConfig
from dht.node import DhtConfig
from dht.sim import experiments as ex
from dht.sim import rawkademlia
from dht.sim.judge import judge
from dht.sim.lab import Lab
from dht.sim.world import World

NODES = 150
TWICE = """
from dht.sim import experiments as ex
from dht.sim.lab import Lab
churned = ex.churn(Lab(7, 60), seconds=120, reads=20, records=10)
for row in (churned, *ex.hostile(Lab(7, 60), gang=ex.Gang.MIXED, reads=20, keys=4)):
    print(row.experiment, row.trace)
"""


def lab(seed: int = 1, nodes: int = NODES) -> Lab:
    print(f"seed {seed}")
    return Lab(seed, nodes)


def test_the_same_seed_sends_the_same_datagrams_at_the_same_times() -> None:
    """In two processes that order their hashes differently, or nothing that was seen could be looked at again."""
    told = [
        subprocess.run(
            [sys.executable, "-c", TWICE], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0].count(b"\n") == 3
    assert told[0] == told[1]
    assert lab(1, 40).world.trace != lab(2, 40).world.trace


def test_the_engine_is_configured_as_in_the_daemon() -> None:
    assert World(1).config == DhtConfig().engine == EngineConfig()


def test_records_outlive_half_of_the_network_being_replaced() -> None:
    row = ex.churn(lab(), seconds=3_600, reads=200, records=50)
    assert row.reads == 200
    assert row.success >= 0.995


def test_a_cold_read_takes_few_round_trips() -> None:
    row = ex.cold(lab(), reads=40)
    assert row.success == 1
    assert row.rtts_p50 < 4


@pytest.mark.parametrize("gang", ex.Gang)
def test_a_fifth_of_hostile_nodes_hides_nothing(gang: ex.Gang) -> None:
    rows = ex.hostile(lab(), gang=gang, reads=150, keys=20)
    verdicts = judge(rows)
    print("\n".join(map(str, verdicts)))
    assert verdicts
    assert all(v.ok for v in verdicts)


def test_free_ids_around_a_key_capture_no_read_here_and_every_read_of_raw_kademlia() -> None:
    rows = [ex.eclipse(lab(), reads=150, keys=2), rawkademlia.eclipse(nodes=30, reads=20)]
    assert [row.success for row in rows] == [1.0, 0.0]
    assert [v.ok for v in judge(rows)] == [True, True]


def test_who_is_behind_a_nat_reads_and_writes_and_is_in_no_table() -> None:
    row = ex.nat(lab(nodes=120), reads=60)
    assert row.notes == {"clients": 60, "clients_in_tables": 0}
    assert row.success == 1


@pytest.mark.parametrize("leave", [False, True])
def test_a_tenth_that_comes_or_goes_at_once_makes_no_storm(leave: bool) -> None:
    row = ex.storm(lab(), leave=leave, seconds=300)
    verdicts = judge([row])
    print("\n".join(map(str, verdicts)))
    assert [v.ok for v in verdicts] == [True, True]
    assert row.notes["care_quiet_per_node_hour"] > 0


def test_a_missed_target_is_told() -> None:
    """A judge that finds all well whatever happened would be worth nothing."""
    one = ex.cold(lab(nodes=40), reads=5)
    bad = [
        replace(one, success=0.5, rtts_p50=9.0),
        replace(one, experiment=ex.CHURN, success=0.99),
        replace(one, experiment="20% hostile, lie: plain", success=0.98),
        replace(one, experiment="20 free ids around each of 5 keys", success=0.999),
        replace(one, experiment=ex.NAT, success=0.9, notes={"clients": 5, "clients_in_tables": 1}),
        replace(one, experiment=ex.LEAVES, notes={"care_peak_per_node_second": 3.0, "busiest_node_per_s": 900}),
        *(
            replace(one, experiment=ex.LOAD, nodes=n, messages_per_node_hour=m, notes={"care_peak_over_mean": 9.0})
            for n, m in ((100, 100.0), (10_000, 160.0))
        ),
    ]
    assert [v.ok for v in judge(bad)] == [False] * 11
