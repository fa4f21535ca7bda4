"""The vectors of SPEC section Channels, byte for byte: another implementation that passes them can talk to this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import PeerViolation
from protocol.frames import PLAINTEXT_SIZES, BadFrame, Frame, decode, encode
from protocol.identity import SigningKey
from protocol.session import PROLOGUE, CloseCode, Role, Session, Settings
from protocol.types import Network
from tests.unit.session_support import ECHO, LIMITS, ROOMY, Pair, forge

VECTORS = Path(__file__).parent.parent / "vectors" / "channels"
FRAMES = json.loads((VECTORS / "frames.json").read_text())
SEQUENCES = json.loads((VECTORS / "sequences.json").read_text())
SESSION = json.loads((VECTORS / "session.json").read_text())


def cases(entries: list[Any]) -> list[Any]:
    return [pytest.param(entry, id=entry["name"]) for entry in entries]


def test_plaintext_sizes_are_those_of_the_vectors() -> None:
    assert list(PLAINTEXT_SIZES) == FRAMES["plaintext_sizes"]


@pytest.mark.parametrize("case", cases(FRAMES["valid"]))
def test_frame_layout(case: Mapping[str, Any]) -> None:
    frame = Frame(case["kind"], case["stream"], bytes.fromhex(case["payload"]), case["flags"])
    plaintext = bytes.fromhex(case["plaintext"])
    assert encode(frame.kind, frame.stream, frame.flags, frame.payload) == plaintext
    assert decode(plaintext) == frame


@pytest.mark.parametrize("case", cases(FRAMES["invalid"]))
def test_bad_frame_layout(case: Mapping[str, Any]) -> None:
    with pytest.raises(BadFrame) as caught:
        decode(bytes.fromhex(case["plaintext"]))
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", cases(SEQUENCES["sequences"]))
def test_sequence_of_frames(case: Mapping[str, Any]) -> None:
    pair = Pair()
    frames = [Frame(f["kind"], f["stream"], bytes.fromhex(f["payload"]), f["flags"]) for f in case["frames"]]
    if case["error"] is None:
        pair.inject(*frames)
        assert pair.responder.is_open
    else:
        before, last = frames[:-1], frames[-1]
        pair.inject(*before)
        with pytest.raises(PeerViolation) as caught:
            pair.responder.receive_data(forge(pair.initiator, last), 0.0)
        assert caught.value.code == case["error"]


def test_whole_session_byte_for_byte() -> None:
    network = Network(SESSION["network"])
    assert (PROLOGUE + bytes([network])).hex() == SESSION["prologue"]
    keys = {}
    ephemerals = {}
    for side in ("initiator", "responder"):
        keys[side] = SigningKey(bytes.fromhex(SESSION[side]["node_seed"]))
        assert keys[side].public.hex() == SESSION[side]["node_key"]
        assert keys[side].x25519_public.hex() == SESSION[side]["noise_key"]
        ephemerals[side] = [bytes.fromhex(SESSION[side]["ephemeral_secret"])].pop
    alice = Session(
        Role.INITIATOR,
        keys["initiator"],
        keys["responder"].public,
        ephemerals["initiator"],
        network,
        0.0,
        services=LIMITS,
        settings=Settings(rekey_after=20.0, max_inbound_bytes=ROOMY.max_inbound_bytes),
    )
    bob = Session(
        Role.RESPONDER, keys["responder"], None, ephemerals["responder"], network, 0.0, services=LIMITS, settings=ROOMY
    )
    flights = iter(SESSION["flights"])

    def flies(sender: Session, receiver: Session) -> None:
        flight = next(flights)
        assert flight["sender"] == sender.role.value
        wire = sender.data_to_send()
        assert wire.hex() == flight["wire"], flight["what"]
        receiver.receive_data(wire, 0.0)

    flies(alice, bob)
    flies(bob, alice)
    stream = alice.open_stream(ECHO, b"request", reply_limit=1_000)
    flies(alice, bob)
    bob.send(stream, b"reply", end=True)
    flies(bob, alice)
    alice.handle_timer(20.0)
    flies(alice, bob)
    alice.handle_timer(30.0)
    flies(alice, bob)
    flies(bob, alice)
    stream = bob.open_stream(ECHO, b"x" * 130, reply_limit=0)
    flies(bob, alice)
    alice.send(stream, b"", end=True)
    flies(alice, bob)
    alice.close(CloseCode.SHUTDOWN)
    flies(alice, bob)
    assert next(flights, None) is None
    assert alice.is_over
    assert bob.is_over
