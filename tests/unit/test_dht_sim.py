"""The simulator's short form: what the network must show, at a size that the test suite can afford."""

from __future__ import annotations

import pytest

from dht.sim import rawkademlia
from dht.sim.__main__ import judge
from dht.sim.attack import Behaviour
from dht.sim.experiments import Lab, churn, cold, eclipse, hostile

NODES = 250


def lab() -> Lab:
    print("seed 1")
    return Lab(1, NODES)


def test_records_outlive_half_of_the_network_being_replaced() -> None:
    row = churn(lab(), seconds=3_600, reads=200, records=50)
    assert row.reads == 200
    assert row.success >= 0.99


def test_a_cold_read_takes_few_round_trips() -> None:
    row = cold(lab(), reads=40)
    assert row.success == 1
    assert row.rtts_p50 < 4


@pytest.mark.parametrize("behaviour", Behaviour)
def test_a_fifth_of_hostile_nodes_hides_nothing(behaviour: Behaviour) -> None:
    assert hostile(lab(), behaviour=behaviour, reads=150).success >= 0.99


def test_free_ids_around_a_key_capture_no_read_here_and_every_read_of_raw_kademlia() -> None:
    rows = [eclipse(lab(), reads=150, keys=2), rawkademlia.eclipse(nodes=30, reads=20)]
    assert [row.success for row in rows] == [1.0, 0.0]
    assert [line[:4] for line in judge(rows)] == ["ok  "]
