"""The vectors of section 14 (`tests/vectors/reputation.json`), as another implementation would read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dht.errors import InvalidRecord
from dht.records import Registry
from p2pnode.reputation.kinds import reputation_kinds
from protocol.rating import Rating
from protocol.receipt import receipt_id, receipt_message
from protocol.types import Network
from protocol.wire import Kind, parse_envelope, unpack
from tests.vectors.make_reputation import made

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "reputation.json").read_text())
NETWORK = Network(VECTORS["network"])


def named(case: dict[str, str]) -> str:
    return case["why"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(NETWORK, reputation_kinds(NETWORK))


@pytest.mark.parametrize("case", VECTORS["valid"], ids=named)
def test_a_valid_record_is_stored_by_every_node(registry: Registry, case: dict[str, str]) -> None:
    raw = bytes.fromhex(case["record"])
    assert registry.check(raw, bytes.fromhex(case["topic"]), VECTORS["now"]).raw == raw
    assert len(raw) <= 1_024


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=named)
def test_an_invalid_record_is_stored_by_none(registry: Registry, case: dict[str, str]) -> None:
    with pytest.raises(InvalidRecord):
        registry.check(bytes.fromhex(case["record"]), bytes.fromhex(case["topic"]), VECTORS["now"])


def test_the_signed_digests_are_those_of_the_spec() -> None:
    raw = bytes.fromhex(next(c["record"] for c in VECTORS["valid"] if c["why"] == "a rating"))
    receipt = unpack(parse_envelope(raw, NETWORK).body, Rating, limit=Kind.RATING.limit).signed.receipt
    assert receipt_id(receipt, NETWORK).hex() == VECTORS["digests"]["receipt id"]
    assert receipt_message(receipt, NETWORK).hex() == VECTORS["digests"]["receipt message"]


def test_the_file_is_what_the_maker_makes() -> None:
    assert made() == VECTORS
