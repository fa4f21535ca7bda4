"""The code against the published vectors: valid cases decode and re-encode, invalid ones are refused as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.contract import ArbiterTerms, Bargain, Contract, Party, build_contract, contract_id
from protocol.errors import P2PError
from protocol.identity import SigningKey, parse_node, parse_persona
from protocol.messages import decode
from protocol.offer import Offer, read_offer, read_revocation
from protocol.types import Network
from protocol.wire import Kind, assemble, open_envelope, pack, seal, unpack
from tests.vectors import make_protocol

FOLDER = Path(__file__).parent.parent / "vectors" / "protocol"
NETWORK = Network.REGTEST


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


ENVELOPES, OFFERS, CONTRACTS = load("envelopes"), load("offers"), load("contracts")


@pytest.mark.parametrize("name", ["envelopes", "offers", "contracts", "numbers"])
def test_published_vectors_are_what_the_code_makes(name: str) -> None:
    """A silent change of the wire format would split the network."""
    assert json.loads(json.dumps(getattr(make_protocol, name)())) == load(name)


@pytest.mark.parametrize("case", ENVELOPES["valid"])
def test_envelope_is_made_and_read_byte_for_byte(case: dict[str, Any]) -> None:
    made = seal(case["kind"], Network(case["network"]), bytes.fromhex(case["seed"]), bytes.fromhex(case["body"]))
    assert made.raw.hex() == case["raw"]
    assert open_envelope(made.raw, NETWORK) == made
    assert made.id.hex() == case["id"]


@pytest.mark.parametrize("case", ENVELOPES["invalid"], ids=lambda c: c["why"])
def test_broken_envelope_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(P2PError) as caught:
        open_envelope(bytes.fromhex(case["raw"]), NETWORK)
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", OFFERS["valid"], ids=lambda c: c["note"])
def test_offer_is_read(case: dict[str, Any]) -> None:
    envelope = open_envelope(bytes.fromhex(case["raw"]), NETWORK)
    assert pack(read_offer(envelope, NETWORK, OFFERS["now"])) == envelope.body


@pytest.mark.parametrize("case", OFFERS["invalid"], ids=lambda c: c["why"])
def test_broken_offer_is_refused(case: dict[str, Any]) -> None:
    envelope = open_envelope(bytes.fromhex(case["raw"]), NETWORK)
    with pytest.raises(P2PError) as caught:
        read_offer(envelope, NETWORK, OFFERS["now"])
    assert caught.value.code == case["error"]


def test_revocation_of_another_maker_is_refused() -> None:
    """Anyone could empty the book otherwise."""
    envelope = open_envelope(bytes.fromhex(OFFERS["revocation"]), NETWORK)
    assert read_revocation(envelope, NETWORK).sequence == 1
    foreign = SigningKey(bytes(32)).seal(Kind.OFFER_REVOCATION, NETWORK, envelope.body)
    with pytest.raises(P2PError):
        read_revocation(foreign, NETWORK)


def test_revocation_of_an_id_that_is_not_its_makers_is_refused() -> None:
    case = OFFERS["invalid_revocation"]
    with pytest.raises(P2PError, match="one of its maker's") as caught:
        read_revocation(open_envelope(bytes.fromhex(case["raw"]), NETWORK), NETWORK)
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", CONTRACTS["valid"], ids=lambda c: c["maker_side"])
def test_both_parties_derive_the_published_contract(case: dict[str, Any]) -> None:
    def value(name: str, cls: type[Any]) -> Any:  # noqa: ANN401
        return unpack(bytes.fromhex(case[name]), cls, limit=16_384)

    contract = build_contract(
        value("offer", Offer),
        value("bargain", Bargain),
        taker=value("taker", Party),
        maker=value("maker", Party),
        arbiter=value("arbiter", ArbiterTerms),
        backup=value("backup", ArbiterTerms),
    )
    assert pack(contract).hex() == case["contract"]
    assert contract_id(contract, NETWORK).hex() == case["contract_id"]
    assert unpack(pack(contract), Contract, limit=16_384) == contract


def test_ids_are_told_apart_and_typing_errors_found() -> None:
    numbers = load("numbers")
    seed, text = numbers["persona"]
    assert parse_persona(text).hex() == seed
    assert parse_node(numbers["node"][1]).hex() == numbers["node"][0]
    with pytest.raises(P2PError, match="starts with node1"):
        parse_node(text)
    swapped = text[:-1] + ("q" if text[-1] != "q" else "p")
    with pytest.raises(P2PError, match="checksum"):
        parse_persona(swapped)


def test_message_kind_decides_its_payload() -> None:
    """A body of one kind inside an envelope of another must not decode as either."""
    body = bytes.fromhex(load("numbers")["message"])
    good = decode(seal(Kind.DECLINE, NETWORK, bytes(32), body))
    assert good.header.number == 0
    with pytest.raises(P2PError):
        decode(assemble(Kind.RELEASED, NETWORK, bytes(32), body, bytes(64)))
