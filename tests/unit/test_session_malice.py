"""What a hostile peer may try, and that each attempt ends its own session and nothing else.

The attacker here holds valid keys and encrypts correctly (`forge`, `seal`), unless the test is about one who can't.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Action, Fault, PeerViolation
from protocol.frames import (
    FLAG_END,
    LENGTH,
    MAX_PAYLOAD,
    REKEY_FRAMES,
    BadFrame,
    FrameKind,
    RekeyMissed,
    encode,
)
from protocol.identity import BadId, SigningKey
from protocol.noise import ForgedMessage, Handshake, HandshakeFailed, KeyPair
from protocol.session import PROLOGUE, CloseCode, Closed, PingAbuse, Role, Session, SessionOver, Settings, UnknownFrame
from protocol.streams import (
    MAX_STREAMS,
    MAX_WINDOW,
    SESSION_WINDOW,
    STREAM_WINDOW,
    BodyLimits,
    BodyReceived,
    ResetCode,
    StreamFlood,
    StreamOpened,
    StreamReset,
    StreamViolation,
    WindowOverrun,
)
from protocol.types import Network
from tests.unit.session_support import ALICE, BOB, ECHO, Pair, drain, forge, initiator, responder, seal, source

SERVICE = pack(">H", ECHO)
MALLORY = SigningKey(b"\x0c" * 32)


def assert_over(session: Session, code: int) -> None:
    """The session ended, said so once, and refuses everything from here on."""
    closed = [e for e in drain(session) if isinstance(e, Closed)]
    assert closed == [Closed(code, by_peer=False, unseen=frozenset())]
    assert session.is_over
    assert session.get_timer() is None
    assert len(session._incoming) == 0
    with pytest.raises(SessionOver):
        session.open_stream(ECHO, reply_limit=0)
    session.receive_data(bytes(100_000), 0.0)
    assert drain(session) == []


class TestBeforeTheHandshake:
    @pytest.mark.parametrize(
        "junk",
        [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-OpenSSH", b"\xff\xff", b"\0\0", b"\x00\x31"],
    )
    def test_junk_is_refused_after_two_bytes(self, junk: bytes) -> None:
        bob = responder()
        bob.receive_data(junk[:1], 0.0)
        with pytest.raises(HandshakeFailed) as caught:
            bob.receive_data(junk[1:2], 0.0)
        assert caught.value.action is Action.DISCONNECT
        assert caught.value.fault is Fault.PEER
        assert bob.data_to_send() == b""
        assert_over(bob, HandshakeFailed.code)

    def test_junk_of_the_right_length_is_refused_in_silence(self) -> None:
        bob = responder()
        with pytest.raises(HandshakeFailed):
            bob.receive_data(LENGTH.pack(48) + bytes(range(48)), 0.0)
        assert bob.data_to_send() == b""
        assert_over(bob, HandshakeFailed.code)

    def test_initiator_refuses_junk_too(self) -> None:
        alice = initiator()
        with pytest.raises(HandshakeFailed):
            alice.receive_data(LENGTH.pack(96), 0.0)
        assert_over(alice, HandshakeFailed.code)

    @pytest.mark.parametrize("network", [n for n in Network if n is not Network.REGTEST])
    def test_other_networks_node_is_refused(self, network: Network) -> None:
        bob = responder()
        with pytest.raises(HandshakeFailed):
            bob.receive_data(initiator(network=network).data_to_send(), 0.0)
        assert bob.data_to_send() == b""

    def test_other_versions_prologue_is_refused(self) -> None:
        stranger = Handshake(
            initiator=True,
            static=KeyPair.of(ALICE.x25519_secret),
            ephemeral=source(1),
            prologue=PROLOGUE[:-1] + b"2" + bytes([Network.REGTEST]),
            remote_static=BOB.x25519_public,
        )
        with pytest.raises(HandshakeFailed):
            responder().receive_data(LENGTH.pack(48) + stranger.write_message(), 0.0)

    def test_responder_with_another_static_key_is_refused_by_the_initiator(self) -> None:
        """A man in the middle can't read the first message, hence can't answer it."""
        alice, mallory = initiator(), responder(key=MALLORY)
        with pytest.raises(HandshakeFailed):
            mallory.receive_data(alice.data_to_send(), 0.0)
        honest = responder()
        honest.receive_data(initiator().data_to_send(), 0.0)
        answer = bytearray(honest.data_to_send())
        answer[2] ^= 1  # an ephemeral key of the man in the middle
        with pytest.raises(HandshakeFailed):
            alice.receive_data(bytes(answer), 0.0)
        assert_over(alice, HandshakeFailed.code)

    @pytest.mark.parametrize(
        "claim",
        [
            pytest.param(BOB.public, id="another's key"),
            pytest.param(bytes(32), id="a point of low order"),
            pytest.param(b"\x02" + bytes(31), id="not a point"),
            pytest.param(ALICE.x25519_public, id="the Noise key itself"),
        ],
    )
    def test_initiator_that_claims_another_node_key_is_refused(self, claim: bytes) -> None:
        bob = responder()
        liar = Handshake(
            initiator=True,
            static=KeyPair.of(ALICE.x25519_secret),
            ephemeral=source(1),
            prologue=PROLOGUE + bytes([Network.REGTEST]),
            remote_static=BOB.x25519_public,
        )
        bob.receive_data(LENGTH.pack(48) + liar.write_message(), 0.0)
        liar.read_message(bob.data_to_send()[2:])
        with pytest.raises(HandshakeFailed):
            bob.receive_data(LENGTH.pack(96) + liar.write_message(claim), 0.0)
        assert_over(bob, HandshakeFailed.code)

    def test_recorded_handshake_replayed_to_a_new_session_fails(self) -> None:
        alice, bob = initiator(), responder()
        first = alice.data_to_send()
        bob.receive_data(first, 0.0)
        alice.receive_data(bob.data_to_send(), 0.0)
        alice.open_stream(ECHO, b"pay me", reply_limit=0)
        second = alice.data_to_send()
        victim = Session(Role.RESPONDER, BOB, None, source(0x77), Network.REGTEST, 0.0)
        victim.receive_data(first, 0.0)
        with pytest.raises(HandshakeFailed):
            victim.receive_data(second, 0.0)
        assert_over(victim, HandshakeFailed.code)

    @pytest.mark.parametrize("key", [bytes(32), b"\x02" + bytes(31), b"short"])
    def test_contact_record_with_an_unusable_key_is_refused_before_dialling(self, key: bytes) -> None:
        with pytest.raises(BadId):
            initiator(remote=key)


class TestTheByteStream:
    def test_tampered_frame_is_refused_at_every_byte(self) -> None:
        for position in range(2, 146):
            pair = Pair()
            pair.initiator.open_stream(ECHO, b"pay me 1", reply_limit=0)
            wire = bytearray(pair.initiator.data_to_send())
            wire[position] ^= 1
            with pytest.raises(ForgedMessage):
                pair.responder.receive_data(bytes(wire), 0.0)
            assert_over(pair.responder, ForgedMessage.code)

    def test_replayed_frame_is_refused(self) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, b"pay me once", reply_limit=0)
        wire = pair.initiator.data_to_send()
        pair.responder.receive_data(wire, 0.0)
        assert len(drain(pair.responder)) == 2
        with pytest.raises(ForgedMessage):
            pair.responder.receive_data(wire, 0.0)
        assert_over(pair.responder, ForgedMessage.code)

    def test_reordered_frames_are_refused(self) -> None:
        pair = Pair()
        wires = []
        for body in (b"first", b"second"):
            pair.initiator.open_stream(ECHO, body, reply_limit=0)
            wires.append(pair.initiator.data_to_send())
        with pytest.raises(ForgedMessage):
            pair.responder.receive_data(wires[1] + wires[0], 0.0)
        assert_over(pair.responder, ForgedMessage.code)

    def test_dropped_frame_is_noticed(self) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, b"first", reply_limit=0)
        pair.initiator.data_to_send()
        pair.initiator.open_stream(ECHO, b"second", reply_limit=0)
        with pytest.raises(ForgedMessage):
            pair.responder.receive_data(pair.initiator.data_to_send(), 0.0)

    def test_own_frames_sent_back_are_refused(self) -> None:
        pair = Pair()
        pair.responder.open_stream(ECHO, b"hello", reply_limit=0)
        with pytest.raises(ForgedMessage):
            pair.responder.receive_data(pair.responder.data_to_send(), 0.0)

    def test_truncated_frame_delivers_nothing(self) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, b"pay me", reply_limit=0)
        pair.responder.receive_data(pair.initiator.data_to_send()[:-1], 0.0)
        pair.responder.receive_eof(0.0)
        assert drain(pair.responder) == [Closed(CloseCode.LOST, by_peer=False, unseen=frozenset())]
        assert len(pair.responder._incoming) == 0

    @pytest.mark.parametrize("size", [0, 1, 15, 16, 143, 145, 65_534])
    def test_frame_of_another_size_is_refused_by_its_length_alone(self, size: int) -> None:
        pair = Pair()
        with pytest.raises(BadFrame):
            pair.responder.receive_data(LENGTH.pack(size), 0.0)
        assert_over(pair.responder, BadFrame.code)

    def test_peer_is_told_what_it_did_wrong(self) -> None:
        pair = Pair()
        with pytest.raises(BadFrame):
            pair.responder.receive_data(LENGTH.pack(1), 0.0)
        pair.initiator.receive_data(pair.responder.data_to_send(), 0.0)
        assert drain(pair.initiator) == [Closed(BadFrame.code, by_peer=True, unseen=frozenset())]
        assert pair.responder.data_to_send() == b""

    def test_what_arrived_before_the_violation_is_still_delivered(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"good", reply_limit=0)
        with pytest.raises(BadFrame):
            pair.responder.receive_data(pair.initiator.data_to_send() + b"\0\0", 0.0)
        assert drain(pair.responder) == [
            StreamOpened(stream, ECHO),
            BodyReceived(stream, b"good", end=True),
            Closed(BadFrame.code, by_peer=False, unseen=frozenset()),
        ]

    def test_incomplete_frames_never_pile_up(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(10_000_000, 0)})
        pair.inject((FrameKind.OPEN, 1, SERVICE))
        wire = forge(pair.initiator, *[(FrameKind.DATA, 1, bytes(MAX_PAYLOAD))] * 4)
        peak = 0
        for at in range(0, len(wire), 1_000):
            pair.responder.receive_data(wire[at : at + 1_000], 0.0)
            peak = max(peak, len(pair.responder._incoming))
        assert peak <= 65_537


def window(increment: int) -> bytes:
    return pack(">I", increment)


LAYOUT = [
    pytest.param(encode(FrameKind.OPEN, 1, 0, SERVICE)[:-1] + b"\1", id="padding not zero"),
    pytest.param(b"\4\0" + bytes(8) + b"\xff\xff" + bytes(116), id="size beyond the plaintext"),
    pytest.param(b"\2\0" + pack(">QH", 1, 117) + bytes(116), id="size one beyond the plaintext"),
    pytest.param(encode(FrameKind.OPEN, 1, 0, b"\0"), id="OPEN without a service"),
    pytest.param(encode(FrameKind.OPEN, 1, 2, SERVICE), id="OPEN with a reserved flag"),
    pytest.param(encode(FrameKind.OPEN, 1, 0x80, SERVICE), id="OPEN with the highest flag"),
    pytest.param(encode(FrameKind.RESET, 1, 0, b"\0"), id="RESET without a code"),
    pytest.param(encode(FrameKind.RESET, 1, 0, bytes(3)), id="RESET with too much"),
    pytest.param(encode(FrameKind.RESET, 1, FLAG_END, bytes(2)), id="RESET with a flag"),
    pytest.param(encode(FrameKind.WINDOW, 0, 0, bytes(3)), id="WINDOW too short"),
    pytest.param(encode(FrameKind.WINDOW, 0, 0, bytes(5)), id="WINDOW too long"),
    pytest.param(encode(FrameKind.WINDOW, 0, 0, window(0)), id="WINDOW of nothing"),
    pytest.param(encode(FrameKind.WINDOW, 0, FLAG_END, window(1)), id="WINDOW with a flag"),
    pytest.param(encode(FrameKind.PING, 0, 0, bytes(7)), id="PING too short"),
    pytest.param(encode(FrameKind.PING, 0, 0, bytes(9)), id="PING too long"),
    pytest.param(encode(FrameKind.PING, 1, 0, bytes(8)), id="PING on a stream"),
    pytest.param(encode(FrameKind.PING, 0, FLAG_END, bytes(8)), id="PING with a flag"),
    pytest.param(encode(FrameKind.PONG, 0, 0, b""), id="PONG without its token"),
    pytest.param(encode(FrameKind.REKEY, 0, 0, b"x"), id="REKEY with a payload"),
    pytest.param(encode(FrameKind.REKEY, 1, 0), id="REKEY on a stream"),
    pytest.param(encode(FrameKind.REKEY, 0, FLAG_END), id="REKEY with a flag"),
    pytest.param(encode(FrameKind.CLOSE, 0, 0, bytes(9)), id="CLOSE too short"),
    pytest.param(encode(FrameKind.CLOSE, 2, 0, bytes(10)), id="CLOSE on a stream"),
]


class TestTheFrame:
    @pytest.mark.parametrize("plaintext", LAYOUT)
    def test_wrong_layout_is_refused(self, plaintext: bytes) -> None:
        pair = Pair()
        with pytest.raises(BadFrame):
            pair.responder.receive_data(seal(pair.initiator, [plaintext]), 0.0)
        assert_over(pair.responder, BadFrame.code)

    def test_data_frame_without_data_is_refused(self) -> None:
        pair = Pair()
        with pytest.raises(BadFrame):
            pair.inject((FrameKind.OPEN, 1, SERVICE), (FrameKind.DATA, 1, b""))

    @pytest.mark.parametrize("kind", [0, 18, 100, 254])
    def test_unknown_even_kind_must_be_understood(self, kind: int) -> None:
        pair = Pair()
        with pytest.raises(UnknownFrame):
            pair.inject((kind, 0, b""))
        assert_over(pair.responder, UnknownFrame.code)

    @pytest.mark.parametrize("kind", [1, 3, 17, 255])
    def test_unknown_odd_kind_is_ignored_whatever_it_carries(self, kind: int) -> None:
        pair = Pair()
        pair.inject((kind, 0, b""), (kind, 999, b"from the future", 0xFF))
        assert pair.exchange(b"still", b"here") == b"here"


class TestStreams:
    @pytest.mark.parametrize("stream", [0, 2, 3, 2**64 - 1])
    def test_first_stream_out_of_sequence_is_refused(self, stream: int) -> None:
        pair = Pair()
        with pytest.raises(StreamViolation):
            pair.inject((FrameKind.OPEN, stream, SERVICE))
        assert_over(pair.responder, StreamViolation.code)

    @pytest.mark.parametrize("again", [1, 7])
    def test_reused_or_skipped_id_is_refused(self, again: int) -> None:
        pair = Pair()
        assert pair.exchange(b"one", b"one") == b"one"
        assert pair.exchange(b"two", b"two") == b"two"
        with pytest.raises(StreamViolation):
            pair.inject((FrameKind.OPEN, again, SERVICE))

    @pytest.mark.parametrize(
        ("kind", "payload"),
        [(FrameKind.DATA, b"x"), (FrameKind.RESET, bytes(2)), (FrameKind.WINDOW, window(1))],
    )
    @pytest.mark.parametrize("stream", [1, 2, 9])
    def test_stream_that_nobody_opened_is_refused(self, kind: int, payload: bytes, stream: int) -> None:
        pair = Pair()
        with pytest.raises(StreamViolation):
            pair.inject((kind, stream, payload))
        assert_over(pair.responder, StreamViolation.code)

    @pytest.mark.parametrize(
        ("kind", "payload"),
        [(FrameKind.DATA, b"x"), (FrameKind.RESET, bytes(2)), (FrameKind.WINDOW, window(1))],
    )
    def test_answer_to_a_stream_that_was_not_sent_yet_is_refused(self, kind: int, payload: bytes) -> None:
        pair = Pair()
        pair.responder.open_stream(ECHO, b"unsent", reply_limit=10)
        with pytest.raises(StreamViolation):
            pair.inject((kind, 2, payload))

    def test_data_after_the_end_is_refused(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.OPEN, 1, SERVICE + b"all", FLAG_END))
        with pytest.raises(StreamViolation):
            pair.inject((FrameKind.DATA, 1, b"more"))

    def test_data_after_a_reset_is_refused(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.OPEN, 1, SERVICE), (FrameKind.RESET, 1, bytes(2)))
        assert pair.responder.data_to_send() != b""
        with pytest.raises(StreamViolation):
            pair.inject((FrameKind.DATA, 1, b"more"))

    def test_late_reset_and_window_on_a_stream_that_is_over_are_no_violation(self) -> None:
        pair = Pair()
        assert pair.exchange(b"one", b"one") == b"one"
        pair.inject((FrameKind.RESET, 1, bytes(2)), (FrameKind.WINDOW, 1, window(5)))
        assert pair.exchange(b"two", b"two") == b"two"

    def test_stream_flood_is_bounded_and_ends_the_session(self) -> None:
        pair = Pair(responder_settings=Settings(max_inbound_streams=4), services={ECHO: BodyLimits(10, 10)})
        opens = [(int(FrameKind.OPEN), 1 + 2 * i, SERVICE) for i in range(MAX_STREAMS + 1)]
        pair.inject(*opens[:-1])
        assert sum(isinstance(e, StreamOpened) for e in drain(pair.responder)) == 4
        assert pair.responder.stream_count == MAX_STREAMS
        with pytest.raises(StreamFlood):
            pair.inject(opens[-1])
        assert_over(pair.responder, StreamFlood.code)

    def test_refused_streams_count_until_the_peer_lets_go(self) -> None:
        """A peer that ignores refusals can't open streams for ever."""
        pair = Pair()
        unknown = pack(">H", 999)
        for i in range(MAX_STREAMS):
            pair.inject((FrameKind.OPEN, 1 + 2 * i, unknown))
            assert pair.responder.data_to_send() != b""
        with pytest.raises(StreamFlood):
            pair.inject((FrameKind.OPEN, 1 + 2 * MAX_STREAMS, unknown))

    def test_open_and_reset_in_a_loop_costs_the_attacker_a_reader(self) -> None:
        """Rapid reset: each cycle needs the victim's answer, so a peer that does not read runs into the limit."""
        pair = Pair(services={ECHO: BodyLimits(10, 10)})
        for i in range(MAX_STREAMS):
            pair.inject((FrameKind.OPEN, 1 + 2 * i, SERVICE), (FrameKind.RESET, 1 + 2 * i, bytes(2)))
        with pytest.raises(StreamFlood):
            pair.inject((FrameKind.OPEN, 1 + 2 * MAX_STREAMS, SERVICE))
        assert pair.responder.is_over
        assert len(pair.responder.data_to_send()) == 146

    def test_oversize_body_does_not_reach_the_service(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(1_000, 0)})
        pair.inject((FrameKind.OPEN, 1, SERVICE + bytes(900)), (FrameKind.DATA, 1, bytes(60_000)))
        pair.inject((FrameKind.DATA, 1, bytes(60_000)))
        assert drain(pair.responder) == [
            StreamOpened(1, ECHO),
            BodyReceived(1, bytes(900), end=False),
            StreamReset(1, ResetCode.TOO_LARGE, by_peer=False),
        ]
        assert pair.responder._streams._held == 0


class TestWindows:
    def test_stream_window_overrun_is_refused(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.OPEN, 1, SERVICE))
        data = bytes(STREAM_WINDOW // 8)
        pair.inject(*[(FrameKind.DATA, 1, data)] * 8)
        with pytest.raises(WindowOverrun):
            pair.inject((FrameKind.DATA, 1, b"x"))
        assert_over(pair.responder, WindowOverrun.code)

    def test_session_window_overrun_is_refused(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(STREAM_WINDOW, 0)})
        data = bytes(STREAM_WINDOW // 8)
        streams = SESSION_WINDOW // STREAM_WINDOW
        for i in range(streams):
            pair.inject((FrameKind.OPEN, 1 + 2 * i, SERVICE), *[(FrameKind.DATA, 1 + 2 * i, data)] * 8)
        with pytest.raises(WindowOverrun):
            pair.inject((FrameKind.OPEN, 1 + 2 * streams, SERVICE + b"x"))
        assert_over(pair.responder, WindowOverrun.code)

    def test_refused_stream_obeys_its_window_too(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.OPEN, 1, pack(">H", 999)))
        with pytest.raises(WindowOverrun):
            pair.inject(*[(FrameKind.DATA, 1, bytes(STREAM_WINDOW // 8))] * 9)

    @pytest.mark.parametrize("stream", [0, 1])
    def test_window_that_grows_beyond_counting_is_refused(self, stream: int) -> None:
        pair = Pair()
        pair.inject((FrameKind.OPEN, 1, SERVICE))
        initial = STREAM_WINDOW if stream else SESSION_WINDOW
        pair.inject((FrameKind.WINDOW, stream, window(MAX_WINDOW - initial)))
        with pytest.raises(WindowOverrun):
            pair.inject((FrameKind.WINDOW, stream, window(1)))
        assert_over(pair.responder, WindowOverrun.code)


class TestPingsAndKeys:
    def test_second_ping_before_the_pong_is_refused(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.PING, 0, bytes(8)))
        with pytest.raises(PingAbuse):
            pair.inject((FrameKind.PING, 0, bytes(8)))
        assert_over(pair.responder, PingAbuse.code)

    def test_pong_that_nobody_asked_for_is_refused(self) -> None:
        pair = Pair()
        with pytest.raises(PingAbuse):
            pair.inject((FrameKind.PONG, 0, bytes(8)))
        assert_over(pair.responder, PingAbuse.code)

    @pytest.mark.parametrize("sent", [False, True])
    def test_pong_guessed_or_wrong_is_refused(self, sent: bool) -> None:
        pair = Pair()
        pair.responder.handle_timer(30.0)
        token = pack(">Q", 1)
        if sent:
            pair.responder.data_to_send()
            token = pack(">Q", 2)
        with pytest.raises(PingAbuse):
            pair.inject((FrameKind.PONG, 0, token))

    def test_pong_sent_twice_is_refused(self) -> None:
        pair = Pair()
        pair.responder.handle_timer(30.0)
        pair.responder.data_to_send()
        pair.inject((FrameKind.PONG, 0, pack(">Q", 1)))
        with pytest.raises(PingAbuse):
            pair.inject((FrameKind.PONG, 0, pack(">Q", 1)))

    def test_key_used_for_too_many_frames_is_refused(self) -> None:
        pair = Pair()
        batch = [(3, 0, b"")] * 4_096
        for _ in range(REKEY_FRAMES // 4_096 - 1):
            pair.inject(*batch)
        pair.inject(*batch[:-1])
        with pytest.raises(RekeyMissed):
            pair.inject((3, 0, b""))
        assert_over(pair.responder, RekeyMissed.code)

    def test_frame_under_the_old_key_after_rekey_is_refused(self) -> None:
        pair = Pair()
        pair.inject((FrameKind.REKEY, 0, b""))
        with pytest.raises(ForgedMessage):
            pair.inject((FrameKind.PING, 0, bytes(8)))


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6))
@settings(max_examples=150, deadline=None)
def test_junk_at_any_time_raises_nothing_but_violations(chunks: list[bytes]) -> None:
    sessions: list[Callable[[], Session]] = [responder, initiator, lambda: Pair().initiator, lambda: Pair().responder]
    for make in sessions:
        session = make()
        for chunk in chunks:
            with suppress(PeerViolation):
                session.receive_data(chunk, 0.0)
        assert session.is_over == any(isinstance(e, Closed) for e in drain(session))
        assert len(session.data_to_send()) <= 146


frames = st.tuples(
    st.sampled_from([0, 1, 2, 4, 6, 8, 10, 12, 16]) | st.integers(0, 255),
    st.integers(0, 6) | st.integers(0, 2**64 - 1),
    st.binary(max_size=12) | st.sampled_from([SERVICE + b"body", bytes(2), window(9), bytes(8), bytes(10)]),
    st.sampled_from([0, FLAG_END]) | st.integers(0, 255),
)


@given(st.lists(frames, max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_frames_from_a_peer_with_valid_keys_raise_nothing_but_violations(
    sequence: list[tuple[int, int, bytes, int]],
) -> None:
    pair = Pair()
    pair.responder.open_stream(ECHO, b"ours", reply_limit=3)
    pair.pump()
    for frame in sequence:
        with suppress(PeerViolation):
            pair.inject(frame)
        for event in drain(pair.responder):
            if isinstance(event, BodyReceived):
                pair.responder.consume(event.stream, len(event.data))
        assert len(pair.responder.data_to_send()) < 2_000
    assert pair.responder.stream_count <= len(sequence) + 1
