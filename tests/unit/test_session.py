"""The session between honest peers: every event goes through two of them, back to back."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.frames import FRAME_SIZES, LENGTH, MAX_PAYLOAD, REKEY_FRAMES, FrameKind
from protocol.session import CloseCode, Closed, Connected, Role, Session, SessionOver, Settings
from protocol.streams import (
    MAX_STREAMS,
    SESSION_WINDOW,
    STREAM_WINDOW,
    BodyLimits,
    BodyReceived,
    NoRoom,
    ResetCode,
    StreamOpened,
    StreamOver,
    StreamReset,
    TooManyStreams,
)
from tests.unit.session_support import ALICE, BOB, ECHO, Pair, drain, forge, initiator, responder


def frame_sizes(wire: bytes) -> list[int]:
    sizes = []
    while wire:
        (size,) = LENGTH.unpack_from(wire)
        sizes.append(size)
        assert len(wire) >= LENGTH.size + size
        wire = wire[LENGTH.size + size :]
    return sizes


class TestHandshake:
    def test_both_sides_learn_the_node_key_of_the_other(self) -> None:
        pair = Pair()
        assert (pair.initiator.peer, pair.responder.peer) == (BOB.public, ALICE.public)
        assert pair.initiator.is_open
        assert pair.responder.is_open

    def test_first_request_travels_with_the_last_handshake_message(self) -> None:
        alice, bob = initiator(), responder()
        stream = alice.open_stream(ECHO, b"early", reply_limit=0)
        bob.receive_data(alice.data_to_send(), 0.0)
        alice.receive_data(bob.data_to_send(), 0.0)
        bob.receive_data(alice.data_to_send(), 0.0)
        assert drain(bob) == [
            Connected(ALICE.public),
            StreamOpened(stream, ECHO),
            BodyReceived(stream, b"early", end=True),
        ]

    def test_stranger_learns_nothing_but_silence(self) -> None:
        bob = responder()
        assert bob.data_to_send() == b""
        bob.handle_timer(10.0)
        assert drain(bob) == [Closed(CloseCode.HANDSHAKE_TIMEOUT, by_peer=False, unseen=frozenset())]
        assert bob.data_to_send() == b""

    def test_handshake_that_stalls_ends_at_its_deadline_on_both_sides(self) -> None:
        alice, bob = initiator(now=100.0), responder(now=100.0)
        stream = alice.open_stream(ECHO, b"never", reply_limit=0)
        bob.receive_data(alice.data_to_send(), 105.0)
        bob.data_to_send()
        for session, unseen in ((alice, {stream}), (bob, set())):
            assert session.get_timer() == 110.0
            session.handle_timer(109.9)
            assert not session.is_over
            session.handle_timer(110.0)
            assert drain(session) == [Closed(CloseCode.HANDSHAKE_TIMEOUT, False, frozenset(unseen))]
            assert session.get_timer() is None

    def test_responder_that_was_given_a_remote_key_is_a_bug(self) -> None:
        with pytest.raises(ValueError, match="beforehand"):
            Session(Role.RESPONDER, BOB, ALICE.public, lambda: bytes(32), 4, 0.0)  # type: ignore[arg-type]

    def test_service_that_nobody_could_use_is_a_bug(self) -> None:
        with pytest.raises(ValueError, match="exceed"):
            responder(services={1: BodyLimits(10, 10)}, settings=Settings(max_inbound_bytes=19))


class TestStreams:
    def test_request_and_reply_take_one_frame_each(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"question", reply_limit=100)
        out = pair.initiator.data_to_send()
        assert frame_sizes(out) == [128 + 16]
        pair.responder.receive_data(out, 0.0)
        assert drain(pair.responder) == [StreamOpened(stream, ECHO), BodyReceived(stream, b"question", end=True)]
        pair.responder.send(stream, b"answer", end=True)
        back = pair.responder.data_to_send()
        assert frame_sizes(back) == [128 + 16]
        pair.initiator.receive_data(back, 0.0)
        assert drain(pair.initiator) == [BodyReceived(stream, b"answer", end=True)]
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)

    def test_empty_reply_is_an_acknowledgement(self) -> None:
        assert Pair().exchange(b"keep this", b"") == b""

    def test_both_sides_may_open_streams_and_ids_never_meet(self) -> None:
        pair = Pair()
        odd = [pair.initiator.open_stream(ECHO, b"", reply_limit=0) for _ in range(3)]
        assert odd == [1, 3, 5]
        even = [pair.responder.open_stream(ECHO, b"", reply_limit=0) for _ in range(3)]
        assert even == [2, 4, 6]
        mine, theirs = pair.pump()
        assert [e.stream for e in mine if isinstance(e, StreamOpened)] == even
        assert [e.stream for e in theirs if isinstance(e, StreamOpened)] == odd

    @pytest.mark.parametrize("size", [0, 1, 114, 115, MAX_PAYLOAD - 2, MAX_PAYLOAD, 3 * MAX_PAYLOAD, 1_500_000])
    def test_body_of_any_size_arrives_whole(self, size: int) -> None:
        body = bytes(i * 7 % 251 for i in range(size % 5_000)) + bytes(size - size % 5_000)
        assert Pair().exchange(body, body[::-1]) == body[::-1]

    def test_large_body_does_not_hold_up_a_small_one(self) -> None:
        pair = Pair()
        large = pair.initiator.open_stream(ECHO, bytes(250_000), reply_limit=0)
        small = pair.initiator.open_stream(ECHO, b"urgent", reply_limit=0)
        pair.responder.receive_data(pair.initiator.data_to_send(70_000), 0.0)
        ended = [e.stream for e in drain(pair.responder) if isinstance(e, BodyReceived) and e.end]
        assert ended == [small]
        assert large != small

    def test_reader_that_does_not_consume_stops_the_stream_at_its_window(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, bytes(STREAM_WINDOW + 1), reply_limit=0)
        received = [e for e in pair.pump()[1] if isinstance(e, BodyReceived)]
        assert sum(len(e.data) for e in received) == STREAM_WINDOW
        pair.responder.consume(stream, STREAM_WINDOW // 2 - 1)
        assert pair.pump() == ([], [])
        pair.responder.consume(stream, 1)
        assert pair.pump()[1] == [BodyReceived(stream, b"\0", end=True)]

    def test_reader_that_does_not_consume_stops_the_session_at_its_window(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(500_000, 0)})
        count = SESSION_WINDOW // STREAM_WINDOW + 1
        streams = [pair.initiator.open_stream(ECHO, bytes(STREAM_WINDOW), reply_limit=0) for _ in range(count)]
        received = [e for e in pair.pump()[1] if isinstance(e, BodyReceived)]
        assert sum(len(e.data) for e in received) == SESSION_WINDOW
        assert {e.stream for e in received} == set(streams)
        for event in received:
            pair.responder.consume(event.stream, len(event.data))
        rest = [e for e in pair.pump()[1] if isinstance(e, BodyReceived)]
        assert {e.stream for e in received + rest if e.end} == set(streams)

    def test_streams_that_waited_for_the_sessions_window_alone_go_on(self) -> None:
        """None of the nine streams has used half its own window, so only the session's WINDOW can wake them."""
        pair = Pair(services={ECHO: BodyLimits(130_000, 0)})
        streams = [pair.initiator.open_stream(ECHO, bytes(130_000), reply_limit=0) for _ in range(9)]
        received = [e for e in pair.pump()[1] if isinstance(e, BodyReceived)]
        assert sum(len(e.data) for e in received) == SESSION_WINDOW < 9 * 130_000
        for event in received:
            pair.responder.consume(event.stream, len(event.data))
        rest = [e for e in pair.pump()[1] if isinstance(e, BodyReceived)]
        assert {e.stream for e in received + rest if e.end} == set(streams)

    def test_window_is_returned_even_after_the_stream_is_over(self) -> None:
        pair = Pair()
        for _ in range(3 * SESSION_WINDOW // 200_000):
            assert pair.exchange(bytes(200_000), b"") == b""

    def test_window_is_returned_for_bytes_of_refused_streams(self) -> None:
        pair = Pair()
        for _ in range(3 * SESSION_WINDOW // 200_000):
            pair.initiator.open_stream(999, bytes(200_000), reply_limit=0)
            assert len(pair.pump()[0]) == 1
        assert pair.exchange(bytes(200_000), b"fine") == b"fine"

    def test_streams_that_are_over_do_not_count(self) -> None:
        pair = Pair()
        for _ in range(MAX_STREAMS + 1):
            assert pair.exchange(b"", b"") == b""

    def test_consuming_more_than_was_received_is_a_bug(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"four", reply_limit=0)
        pair.pump()
        with pytest.raises(ValueError, match="consumed"):
            pair.responder.consume(stream, 5)

    def test_request_over_the_services_limit_is_refused_and_the_session_lives(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(100, 0)})
        stream = pair.initiator.open_stream(ECHO, bytes(101), reply_limit=0)
        mine, theirs = pair.pump()
        assert mine == [StreamReset(stream, ResetCode.TOO_LARGE, by_peer=True)]
        assert theirs == [StreamOpened(stream, ECHO), StreamReset(stream, ResetCode.TOO_LARGE, by_peer=False)]
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)
        assert pair.exchange(bytes(100), b"") == b""

    def test_reply_over_the_callers_limit_is_refused_and_the_session_lives(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"", reply_limit=5)
        pair.pump()
        pair.responder.send(stream, b"123456", end=True)
        mine, theirs = pair.pump()
        assert mine == [StreamReset(stream, ResetCode.TOO_LARGE, by_peer=False)]
        assert theirs == []  # its half had ended: for it the exchange is over
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)

    def test_long_body_is_cut_short_by_the_reset(self) -> None:
        pair = Pair(services={ECHO: BodyLimits(100_000, 0)})
        stream = pair.initiator.open_stream(ECHO, bytes(5_000_000), reply_limit=0)
        mine, _ = pair.pump()
        assert mine == [StreamReset(stream, ResetCode.TOO_LARGE, by_peer=True)]
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)
        assert pair.exchange(bytes(100_000), b"ok") == b"ok"

    def test_unknown_service_is_refused_before_anything_is_delivered(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(77, b"hello?", reply_limit=0)
        assert pair.pump() == ([StreamReset(stream, ResetCode.UNKNOWN_SERVICE, by_peer=True)], [])
        assert pair.responder.stream_count == 0

    def test_streams_beyond_the_local_limit_are_refused_as_busy(self) -> None:
        pair = Pair(responder_settings=Settings(max_inbound_streams=2), services={ECHO: BodyLimits(10, 10)})
        streams = [pair.initiator.open_stream(ECHO, b"x", reply_limit=10) for _ in range(3)]
        assert pair.pump()[0] == [StreamReset(streams[2], ResetCode.BUSY, by_peer=True)]
        pair.responder.send(streams[0], b"", end=True)
        pair.pump()
        assert pair.exchange(b"again", b"yes") == b"yes"

    def test_requests_that_fill_memory_are_refused_as_busy(self) -> None:
        pair = Pair(responder_settings=Settings(max_inbound_bytes=250), services={ECHO: BodyLimits(100, 40)})
        streams = [pair.initiator.open_stream(ECHO, bytes(100), reply_limit=10) for _ in range(3)]
        mine, theirs = pair.pump()
        assert mine == [StreamReset(streams[2], ResetCode.BUSY, by_peer=True)]
        for event in theirs:
            if isinstance(event, BodyReceived):
                pair.responder.consume(event.stream, len(event.data), kept=True)
        assert pair.initiator.open_stream(ECHO, bytes(100), reply_limit=10)
        assert len(pair.pump()[0]) == 1  # kept is kept
        for stream in streams[:2]:
            pair.responder.send(stream, b"", end=True)
        pair.pump()
        assert pair.exchange(bytes(100), b"yes") == b"yes"
        assert pair.responder._streams._held == 0

    def test_replies_that_nobody_reads_are_refused_as_busy(self) -> None:
        pair = Pair(responder_settings=Settings(max_inbound_bytes=250), services={ECHO: BodyLimits(10, 240)})
        first, second = (pair.initiator.open_stream(ECHO, b"x", reply_limit=240) for _ in range(2))
        pair.pump()
        pair.responder.send(first, bytes(240), end=True)
        with pytest.raises(NoRoom):
            pair.responder.send(second, bytes(240), end=True)
        mine, _ = pair.pump()
        assert mine == [BodyReceived(first, bytes(240), end=True), StreamReset(second, ResetCode.BUSY, by_peer=True)]
        assert pair.exchange(b"", bytes(240)) == bytes(240)
        assert pair.responder._streams._held == 0

    def test_stream_of_any_length_passes_if_it_is_not_kept(self) -> None:
        pair = Pair(responder_settings=Settings(max_inbound_bytes=10_000), services={ECHO: BodyLimits(10_000, 0)})
        pair.responder._streams._services = {ECHO: BodyLimits(2**40, 0)}
        stream = pair.initiator.open_stream(ECHO, end=False, reply_limit=0)
        for _ in range(100):
            pair.initiator.send(stream, bytes(5_000))
            for event in pair.pump()[1]:
                if isinstance(event, BodyReceived):
                    pair.responder.consume(stream, len(event.data))
        assert pair.responder.stream_count == 1

    def test_cancelled_request_ends_on_both_sides(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"question", reply_limit=10)
        pair.pump()
        pair.initiator.reset(stream, ResetCode.CANCELLED)
        assert pair.pump() == ([], [StreamReset(stream, ResetCode.CANCELLED, by_peer=True)])
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)
        with pytest.raises(StreamOver):
            pair.responder.send(stream, b"too late", end=True)

    def test_stream_cancelled_before_it_was_sent_leaves_no_gap_in_the_ids(self) -> None:
        pair = Pair()
        first = pair.initiator.open_stream(ECHO, bytes(10), reply_limit=10)
        pair.initiator.reset(first, ResetCode.CANCELLED)
        assert pair.exchange(b"next", b"fine") == b"fine"
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)

    def test_resets_that_cross_end_the_stream_on_both_sides(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"half", end=False, reply_limit=10)
        pair.pump()
        pair.initiator.reset(stream, ResetCode.CANCELLED)
        pair.responder.reset(stream, ResetCode.FAILED)
        out, back = pair.initiator.data_to_send(), pair.responder.data_to_send()
        pair.responder.receive_data(out, 0.0)
        pair.initiator.receive_data(back, 0.0)
        assert pair.pump() == ([], [])
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)
        assert pair.exchange(b"next", b"fine") == b"fine"

    def test_reset_that_crosses_the_end_is_no_violation(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"question", reply_limit=10)
        pair.pump()
        pair.responder.send(stream, b"answer", end=True)
        back = pair.responder.data_to_send()
        pair.initiator.reset(stream, ResetCode.CANCELLED)
        pair.responder.receive_data(pair.initiator.data_to_send(), 0.0)
        pair.initiator.receive_data(back, 0.0)
        assert pair.pump() == ([], [])
        assert (pair.initiator.stream_count, pair.responder.stream_count) == (0, 0)

    def test_service_may_refuse_with_a_code_of_its_own(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"bad offer", reply_limit=10)
        pair.pump()
        pair.responder.reset(stream, 2003)
        assert pair.pump()[0] == [StreamReset(stream, 2003, by_peer=True)]

    def test_own_streams_are_limited_too(self) -> None:
        pair = Pair()
        for _ in range(MAX_STREAMS):
            pair.initiator.open_stream(ECHO, b"", reply_limit=0)
        with pytest.raises(TooManyStreams):
            pair.initiator.open_stream(ECHO, b"", reply_limit=0)

    def test_body_in_pieces_is_one_body(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"one ", end=False, reply_limit=0)
        first = pair.pump()[1]
        pair.initiator.send(stream, b"two")
        second = pair.pump()[1]
        pair.initiator.send(stream, b"", end=True)
        third = pair.pump()[1]
        assert first + second + third == [
            StreamOpened(stream, ECHO),
            BodyReceived(stream, b"one ", end=False),
            BodyReceived(stream, b"two", end=False),
            BodyReceived(stream, b"", end=True),
        ]
        with pytest.raises(StreamOver):
            pair.initiator.send(stream, b"more")


class TestPadding:
    @given(st.integers(0, 70_000))
    @settings(max_examples=50, deadline=None)
    def test_wire_shows_few_distinct_lengths(self, size: int) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, bytes(size), reply_limit=0)
        sizes = frame_sizes(pair.initiator.data_to_send())
        assert set(sizes) <= FRAME_SIZES
        assert max(sizes) <= 65_535

    def test_yes_and_no_have_the_same_length(self) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, b"yes", reply_limit=0)
        first = pair.initiator.data_to_send()
        pair.initiator.open_stream(ECHO, b"certainly not, and never again", reply_limit=0)
        assert len(first) == len(pair.initiator.data_to_send())


class TestRekey:
    def test_key_is_replaced_after_its_last_allowed_frame(self) -> None:
        pair = Pair()
        assert pair.initiator._sealer is not None
        old = pair.initiator._sealer._cipher._key
        ignored = [(FrameKind.OPEN + 1, 0, b"")]
        for _ in range(REKEY_FRAMES - 1):
            pair.inject(*ignored)
        assert pair.exchange(b"still", b"here") == b"here"
        assert pair.initiator._sealer._cipher._key != old
        assert pair.exchange(b"and", b"on") == b"on"

    def test_key_is_replaced_when_it_is_old_each_direction_on_its_own(self) -> None:
        pair = Pair(settings=Settings(rekey_after=3_600.0, ping_after=inf))
        assert pair.initiator._sealer is not None
        assert pair.responder._sealer is not None
        old = [s._sealer._cipher._key for s in (pair.initiator, pair.responder) if s._sealer]
        assert pair.initiator.get_timer() == 3_600.0
        pair.initiator.handle_timer(3_599.0)
        assert pair.initiator.data_to_send() == b""
        pair.initiator.handle_timer(3_600.0)
        out = pair.initiator.data_to_send()
        assert frame_sizes(out) == [144]
        pair.responder.receive_data(out, 3_600.0)
        assert pair.initiator._sealer._cipher._key != old[0]
        assert pair.responder._sealer._cipher._key == old[1]
        assert pair.initiator.get_timer() == 7_200.0
        assert pair.exchange(b"both", b"ways") == b"ways"


class TestLiveness:
    def test_silent_peer_is_asked_then_given_up(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"", reply_limit=0)
        pair.pump()
        assert pair.initiator.get_timer() == 30.0
        pair.initiator.handle_timer(30.0)
        assert len(pair.initiator.data_to_send()) == 146
        assert pair.initiator.get_timer() == 60.0
        pair.initiator.handle_timer(60.0)
        # It may have acted on the request: that is not known.
        assert drain(pair.initiator) == [Closed(CloseCode.SILENT, by_peer=False, unseen=frozenset())]
        assert stream == 1
        assert pair.initiator.is_over

    def test_answered_ping_keeps_the_session(self) -> None:
        pair = Pair()
        for minute in range(1, 5):
            pair.now = 60.0 * minute
            pair.initiator.handle_timer(pair.now)
            assert pair.pump() == ([], [])
            assert pair.initiator.get_timer() == pair.now + 30.0
            pair.initiator.handle_timer(pair.now + 29.0)
            assert pair.initiator.data_to_send() == b""

    def test_peer_that_sends_is_alive_even_if_its_pong_is_late(self) -> None:
        pair = Pair()
        pair.initiator.handle_timer(30.0)
        pair.initiator.data_to_send()
        pair.initiator.receive_data(forge(pair.responder, (3, 0, b"")), 55.0)
        assert pair.initiator.get_timer() == 85.0

    def test_idle_session_is_closed_but_not_while_a_stream_is_open(self) -> None:
        pair = Pair(settings=Settings(idle_after=20.0, ping_after=inf))
        pair.now = 5.0
        stream = pair.initiator.open_stream(ECHO, b"", reply_limit=0)
        pair.pump()
        assert pair.initiator.get_timer() == 3_600.0
        pair.now = 10.0
        pair.responder.send(stream, b"", end=True)
        pair.pump()
        assert pair.initiator.get_timer() == 30.0
        pair.initiator.handle_timer(29.0)
        assert pair.initiator.is_open
        pair.initiator.handle_timer(30.0)
        pair.now = 30.0
        mine, theirs = pair.pump()
        assert mine == [Closed(CloseCode.IDLE, by_peer=False, unseen=frozenset())]
        assert theirs == [Closed(CloseCode.IDLE, by_peer=True, unseen=frozenset())]


class TestEnd:
    def test_request_that_crosses_a_close_is_known_to_be_unseen(self) -> None:
        pair = Pair()
        seen = pair.initiator.open_stream(ECHO, b"first", reply_limit=0)
        pair.pump()
        pair.responder.close(CloseCode.SHUTDOWN)
        crossing = pair.initiator.open_stream(ECHO, b"second", reply_limit=0)
        pair.initiator.data_to_send()
        waiting = pair.initiator.open_stream(ECHO, b"third", reply_limit=0)
        pair.initiator.receive_data(pair.responder.data_to_send(), 0.0)
        closed = drain(pair.initiator)
        assert closed == [Closed(CloseCode.SHUTDOWN, by_peer=True, unseen=frozenset({crossing, waiting}))]
        assert seen not in {crossing, waiting}

    def test_lost_connection_tells_sent_from_unsent(self) -> None:
        pair = Pair()
        pair.initiator.open_stream(ECHO, b"sent", reply_limit=0)
        pair.initiator.data_to_send()
        unsent = pair.initiator.open_stream(ECHO, b"unsent", reply_limit=0)
        pair.initiator.receive_eof(1.0)
        assert drain(pair.initiator) == [Closed(CloseCode.LOST, by_peer=False, unseen=frozenset({unsent}))]
        assert pair.initiator.data_to_send() == b""
        pair.initiator.receive_eof(2.0)
        assert drain(pair.initiator) == []

    def test_retired_session_ends_after_its_last_stream(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"last", reply_limit=100)
        pair.pump()
        pair.initiator.retire()
        assert pair.pump() == ([], [])
        pair.responder.send(stream, b"answer", end=True)
        mine, theirs = pair.pump()
        assert mine == [
            BodyReceived(stream, b"answer", end=True),
            Closed(CloseCode.REPLACED, by_peer=False, unseen=frozenset()),
        ]
        assert theirs == [Closed(CloseCode.REPLACED, by_peer=True, unseen=frozenset())]

    def test_nothing_can_be_asked_of_a_session_that_is_over(self) -> None:
        pair = Pair()
        stream = pair.initiator.open_stream(ECHO, b"", reply_limit=0)
        pair.initiator.close()
        with pytest.raises(SessionOver):
            pair.initiator.open_stream(ECHO, b"", reply_limit=0)
        with pytest.raises(SessionOver):
            pair.initiator.send(stream, b"")
        pair.initiator.reset(stream, ResetCode.CANCELLED)
        pair.initiator.consume(stream, 0)
        pair.initiator.close()
        assert len(drain(pair.initiator)) == 1

    def test_nothing_follows_the_farewell_not_even_a_rekey(self) -> None:
        pair = Pair()
        assert pair.initiator._sealer is not None
        pair.initiator._sealer._count = REKEY_FRAMES - 2
        pair.initiator.close()
        assert frame_sizes(pair.initiator.data_to_send()) == [144]
        assert pair.initiator.data_to_send() == b""

    def test_bytes_after_the_close_are_not_read(self) -> None:
        pair = Pair()
        pair.initiator.close()
        pair.responder.receive_data(pair.initiator.data_to_send() + b"\xff" * 1_000_000, 0.0)
        pair.responder.receive_data(b"\xff" * 1_000_000, 0.0)
        assert len(pair.responder._incoming) == 0
        assert drain(pair.responder) == [Closed(CloseCode.SHUTDOWN, by_peer=True, unseen=frozenset())]


bodies = st.binary(max_size=300) | st.integers(1, 200_000).map(lambda n: b"\x5a" * n)


@given(
    st.lists(st.tuples(st.booleans(), bodies, bodies), min_size=1, max_size=8),
    st.lists(st.integers(1, 70_000) | st.integers(1, 40), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_any_exchanges_survive_any_cutting_of_the_byte_stream(
    exchanges: list[tuple[bool, bytes, bytes]], cuts: list[int]
) -> None:
    """Whatever the sizes in which bytes arrive, every body arrives whole, once, on its own stream."""
    alice, bob = initiator(), responder()
    wanted: dict[tuple[Session, int], tuple[bytes, bytes]] = {}
    for by_alice, request, reply in exchanges:
        opener = alice if by_alice else bob
        wanted[opener, opener.open_stream(ECHO, request, reply_limit=len(reply))] = (request, reply)
    requests: dict[tuple[Session, int], bytes] = dict.fromkeys(wanted, b"")
    replies: dict[tuple[Session, int], bytes] = dict.fromkeys(wanted, b"")
    ended: set[tuple[Session, int]] = set()
    wires = {alice: bytearray(), bob: bytearray()}
    step = 0
    while len(ended) < len(wanted):
        for session, other in ((alice, bob), (bob, alice)):
            wires[other] += session.data_to_send(1 + cuts[step % len(cuts)])
            cut = cuts[step % len(cuts)]
            step += 1
            session.receive_data(bytes(wires[session][:cut]), 0.0)
            del wires[session][:cut]
            for event in drain(session):
                if isinstance(event, BodyReceived):
                    session.consume(event.stream, len(event.data))
                    own = (session, event.stream) in wanted
                    key = (session if own else other, event.stream)
                    (replies if own else requests)[key] += event.data
                    if event.end and own:
                        ended.add(key)
                    elif event.end:
                        session.send(event.stream, wanted[key][1], end=True)
                else:
                    assert isinstance(event, Connected | StreamOpened), event
    for key, (request, reply) in wanted.items():
        assert (requests[key], replies[key]) == (request, reply)
    assert (alice.stream_count, bob.stream_count) == (0, 0)
