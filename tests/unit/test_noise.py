"""The handshake against the public vectors, and every way in which a peer may break it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.noise import CipherState, ForgedMessage, Handshake, HandshakeFailed, KeyPair, NonceExhausted

VECTORS = Path(__file__).parent.parent / "vectors" / "noise"

LOW_ORDER = [
    # The points whose multiples by the cofactor vanish (RFC 7748 section 6.1; the list of Curve25519's author).
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def give(secret: bytes) -> Callable[[], bytes]:
    """An ephemeral source that must be asked once only."""
    left = [secret]
    return left.pop


def secret(number: int) -> bytes:
    return bytes([number]) * 32


def pair(
    *, prologue: tuple[bytes, bytes] = (b"p", b"p"), remote_static: bytes | None = None
) -> tuple[Handshake, Handshake]:
    responder_static = KeyPair.of(secret(2))
    initiator = Handshake(
        initiator=True,
        static=KeyPair.of(secret(1)),
        ephemeral=give(secret(3)),
        prologue=prologue[0],
        remote_static=remote_static or responder_static.public,
    )
    responder = Handshake(initiator=False, static=responder_static, ephemeral=give(secret(4)), prologue=prologue[1])
    return initiator, responder


def vectors() -> list[Any]:
    found = []
    for name in ("cacophony", "snow"):
        entries = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
        found += [pytest.param(entry, id=name) for entry in entries]
    return found


@pytest.mark.parametrize("vector", vectors())
def test_public_vector_bytes_differ_by_none(vector: dict[str, Any]) -> None:
    assert vector["protocol_name"] == "Noise_XK_25519_ChaChaPoly_BLAKE2b"
    initiator = Handshake(
        initiator=True,
        static=KeyPair.of(bytes.fromhex(vector["init_static"])),
        ephemeral=give(bytes.fromhex(vector["init_ephemeral"])),
        prologue=bytes.fromhex(vector["init_prologue"]),
        remote_static=bytes.fromhex(vector["init_remote_static"]),
    )
    responder = Handshake(
        initiator=False,
        static=KeyPair.of(bytes.fromhex(vector["resp_static"])),
        ephemeral=give(bytes.fromhex(vector["resp_ephemeral"])),
        prologue=bytes.fromhex(vector["resp_prologue"]),
    )
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    assert len(messages) > 3
    writer, reader = initiator, responder
    for payload, expected in messages[:3]:
        assert writer.write_message(payload) == expected
        assert reader.read_message(expected) == payload
        writer, reader = reader, writer
    assert initiator.is_complete
    assert responder.is_complete
    assert initiator.handshake_hash == responder.handshake_hash
    if "handshake_hash" in vector:
        assert initiator.handshake_hash.hex() == vector["handshake_hash"]
    assert responder.remote_static == KeyPair.of(bytes.fromhex(vector["init_static"])).public

    # Transport messages go on alternating where the handshake stopped: the responder's turn.
    initiator_send, initiator_receive = initiator.split()
    responder_send, responder_receive = responder.split()
    ways = [(responder_send, initiator_receive), (initiator_send, responder_receive)]
    for number, (payload, expected) in enumerate(messages[3:]):
        send, receive = ways[number % 2]
        assert send.encrypt(payload) == expected
        assert receive.decrypt(expected) == payload


@pytest.mark.parametrize("point", LOW_ORDER)
def test_low_order_ephemeral_would_make_a_known_key_and_is_refused(point: str) -> None:
    _, responder = pair()
    with pytest.raises(HandshakeFailed):
        responder.read_message(bytes.fromhex(point) + bytes(16))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_low_order_contact_key_is_refused_before_anything_is_sent(point: str) -> None:
    initiator, _ = pair(remote_static=bytes.fromhex(point))
    with pytest.raises(HandshakeFailed):
        initiator.write_message()


def test_different_prologues_do_not_meet() -> None:
    initiator, responder = pair(prologue=(b"mainnet", b"regtest"))
    with pytest.raises(HandshakeFailed):
        responder.read_message(initiator.write_message())


def test_responder_without_the_expected_key_learns_nothing() -> None:
    initiator, responder = pair(remote_static=KeyPair.of(secret(9)).public)
    with pytest.raises(HandshakeFailed):
        responder.read_message(initiator.write_message())


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("position", [0, 20, 33, -1])
def test_one_flipped_bit_in_any_handshake_message_is_fatal(step: int, position: int) -> None:
    writer, reader = pair()
    for _ in range(step):
        reader.read_message(writer.write_message(b"payload"))
        writer, reader = reader, writer
    message = bytearray(writer.write_message(b"payload"))
    message[position] ^= 0x40
    with pytest.raises(HandshakeFailed):
        reader.read_message(bytes(message))
    # ... and stays fatal: half of the bad message is mixed in already.
    with pytest.raises(ValueError, match="over"):
        reader.read_message(bytes(message))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_truncated_handshake_message_is_refused_at_every_length(step: int) -> None:
    length = 1
    while True:
        writer, reader = pair()
        for _ in range(step):
            reader.read_message(writer.write_message())
            writer, reader = reader, writer
        message = writer.write_message()
        if length > len(message):
            break
        with pytest.raises(HandshakeFailed):
            reader.read_message(message[:-length])
        length += 1
    assert length > 48


def test_messages_out_of_turn_are_our_own_bug() -> None:
    initiator, responder = pair()
    with pytest.raises(ValueError, match="turn"):
        responder.write_message()
    with pytest.raises(ValueError, match="turn"):
        initiator.read_message(bytes(48))
    with pytest.raises(ValueError, match="not complete"):
        initiator.split()


def test_keys_of_wrong_length_never_reach_libsodium() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyPair.of(b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        pair(remote_static=bytes(31))
    with pytest.raises(ValueError, match="beforehand"):
        Handshake(initiator=True, static=KeyPair.of(secret(1)), ephemeral=give(secret(3)), prologue=b"")
    initiator = Handshake(
        initiator=True,
        static=KeyPair.of(secret(1)),
        ephemeral=lambda: b"short",
        prologue=b"",
        remote_static=KeyPair.of(secret(2)).public,
    )
    with pytest.raises(ValueError, match="32 bytes"):
        initiator.write_message()


def test_fresh_ephemerals_make_unlinkable_sessions() -> None:
    static = KeyPair.of(secret(2))
    first, second = (
        Handshake(
            initiator=True,
            static=KeyPair.of(secret(1)),
            ephemeral=give(secret(number)),
            prologue=b"",
            remote_static=static.public,
        ).write_message()
        for number in (5, 6)
    )
    assert first != second


class TestCipherState:
    def test_replayed_message_is_refused(self) -> None:
        send, receive = CipherState(secret(1)), CipherState(secret(1))
        sealed = send.encrypt(b"pay me")
        assert receive.decrypt(sealed) == b"pay me"
        with pytest.raises(ForgedMessage):
            receive.decrypt(sealed)

    def test_forged_message_does_not_move_the_counter(self) -> None:
        send, receive = CipherState(secret(1)), CipherState(secret(1))
        sealed = send.encrypt(b"pay me")
        for bad in (b"", sealed[:15], sealed[:-1], sealed[:-1] + b"\0", bytes(len(sealed))):
            with pytest.raises(ForgedMessage):
                receive.decrypt(bad)
        assert receive.decrypt(sealed) == b"pay me"

    def test_rekey_makes_the_old_key_useless_and_keeps_the_counter(self) -> None:
        send, receive, old = (CipherState(secret(1)) for _ in range(3))
        first = send.encrypt(b"one")
        assert old.decrypt(first) == receive.decrypt(first) == b"one"
        send.rekey()
        sealed = send.encrypt(b"two")
        with pytest.raises(ForgedMessage):
            old.decrypt(sealed)
        receive.rekey()
        assert receive.decrypt(sealed) == b"two"

    def test_rekey_is_the_encryption_of_zeros_under_the_last_nonce(self) -> None:
        """Noise section 4.2: REKEY(k) is the first 32 bytes of ENCRYPT(k, maxnonce, zerolen, zeros)."""
        reference = CipherState(secret(7))
        reference._nonce = 2**64 - 2  # the last one that may be used for a message
        reference.encrypt(b"")
        rekeyed = CipherState(secret(7))
        rekeyed.rekey()
        with pytest.raises(NonceExhausted):
            reference.encrypt(b"")
        with pytest.raises(NonceExhausted):
            reference.decrypt(bytes(16))
        # Computed independently of this code from RFC 8439's ChaCha20 block function.
        assert rekeyed._key == chacha20_block(secret(7), 1, bytes(4) + b"\xff" * 8)[:32]


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439 section 2.3, written out plainly."""
    words = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    words += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    words += [counter] + [int.from_bytes(nonce[i : i + 4], "little") for i in range(0, 12, 4)]
    state = list(words)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] ^= state[x]
            state[z] = (state[z] << shift | state[z] >> (32 - shift)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(a, b, c, d)
    return b"".join(((s + w) & 0xFFFFFFFF).to_bytes(4, "little") for s, w in zip(state, words, strict=True))


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=200))
def test_junk_never_completes_a_handshake(payload: bytes, junk: bytes) -> None:
    initiator, responder = pair()
    message = initiator.write_message(payload)
    if junk != message:
        with pytest.raises(HandshakeFailed):
            responder.read_message(junk)
