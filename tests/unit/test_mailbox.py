"""Slips, chunks and answers, byte by byte: what the network stores, and what only two people can read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from nacl import bindings

from dht.errors import InvalidRecord
from dht.records import Registry
from dht.topics import mailbox_topic, parcel_topic, receipt_topic
from p2pnode.records import record_kinds
from protocol.errors import Malformed, P2PError
from protocol.identity import BadId, SigningKey
from protocol.mailbox import (
    ANSWER_WORK_BITS,
    BUCKETS,
    CHUNK_BYTES,
    CHUNK_WORK_BITS,
    MAX_MAIL,
    MAX_MAIL_LIFETIME,
    SLIP_WORK_BITS,
    Answer,
    Chunk,
    Parcel,
    Slip,
    chunk_key,
    join,
    make_answer,
    make_parcel,
    open_answer,
    open_slip,
    read_answer,
    read_chunk,
    read_slip,
    slip_key,
    withdraw_parcel,
)
from protocol.types import Network
from protocol.wire import Kind, assemble, pack
from protocol.work import find_work

NETWORK = Network.REGTEST
NOW = 1_700_000_000
LATER = NOW + 86_400
SECRET = b"\x07" * 32
BOB = SigningKey(b"b" * 32)
WORK = {Kind.MAIL_SLIP: SLIP_WORK_BITS, Kind.MAIL_CHUNK: CHUNK_WORK_BITS, Kind.MAIL_ANSWER: ANSWER_WORK_BITS}


def parcel_of(content: bytes, secret: bytes = SECRET) -> Parcel:
    return make_parcel(secret, BOB.public, content, NETWORK, created=NOW, expires=LATER)


SMALL = parcel_of(b"hello")


def opened(parcel: Parcel, key: SigningKey = BOB) -> bytes | None:
    manifest = open_slip(read_slip(parcel.slip, NETWORK), key)
    return join(manifest, [read_chunk(c, NETWORK) for c in parcel.chunks])


@pytest.mark.parametrize("size", [0, 1, 780, 781, 1_580, 1_581, 4_000])
def test_what_is_sealed_comes_out_again(size: int) -> None:
    content = bytes(n % 251 for n in range(size))
    assert opened(parcel_of(content)) == content


def test_the_largest_fits_and_takes_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.mailbox.CHUNK_WORK_BITS", 0)
    parcel = parcel_of(b"\xff" * MAX_MAIL)
    assert len(parcel.chunks) == BUCKETS[-1]
    assert opened(parcel) == b"\xff" * MAX_MAIL
    assert all(len(c.raw) <= Kind.MAIL_CHUNK.limit for c in parcel.chunks)


def test_size_shows_in_steps_only() -> None:
    one, other = parcel_of(b"1"), parcel_of(b"1" * 700)
    assert [len(r.body) for r in (one.slip, *one.chunks)] == [len(r.body) for r in (other.slip, *other.chunks)]
    assert len(parcel_of(b"1" * 5_000).slip.body) == len(one.slip.body)


def test_slip_is_a_sealed_box_as_libsodium_makes_them() -> None:
    """Another implementation opens it with one call of its library."""
    slip = read_slip(SMALL.slip, NETWORK)
    box = slip_key(SECRET).x25519_public + slip.sealed
    plain = bindings.crypto_box_seal_open(box, BOB.x25519_public, BOB.x25519_secret)
    assert plain[:32] == chunk_key(SECRET).seed
    assert plain[32] == 1


def test_neither_record_names_the_sender_or_the_other() -> None:
    slip, chunk = read_slip(SMALL.slip, NETWORK), read_chunk(SMALL.chunks[0], NETWORK)
    assert slip.author != chunk.author
    assert slip.author not in SMALL.chunks[0].raw
    assert chunk.author not in SMALL.slip.raw
    assert BOB.public not in SMALL.chunks[0].raw
    assert parcel_of(b"hello", b"\x08" * 32).slip.signer != SMALL.slip.signer


def test_same_parcel_made_again_is_the_same() -> None:
    """A copy that was stored half before a crash is completed, not doubled."""
    assert parcel_of(b"hello") == SMALL


def test_others_do_not_open_it() -> None:
    with pytest.raises(Malformed):
        opened(SMALL, SigningKey(b"c" * 32))


def test_nothing_is_sealed_to_what_is_no_key() -> None:
    with pytest.raises(BadId):
        make_parcel(SECRET, bytes(32), b"", NETWORK, created=NOW, expires=LATER)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [replace(c[0], data=b"\0" * CHUNK_BYTES), *c[1:]],
        lambda c: [replace(c[0], index=1), replace(c[1], index=0), c[2]],
        lambda c: [*c[:2], replace(c[2], data=b"")],
    ],
    ids=["altered", "swapped", "withdrawn"],
)
def test_chunks_that_are_not_those_of_the_slip_are_noticed(change: Callable[[list[Chunk]], list[Chunk]]) -> None:
    parcel = parcel_of(b"x" * 2_000)
    manifest = open_slip(read_slip(parcel.slip, NETWORK), BOB)
    chunks = [read_chunk(c, NETWORK) for c in parcel.chunks]
    with pytest.raises(Malformed):
        join(manifest, change(chunks))


def test_sender_can_not_replace_the_content_after_the_slip() -> None:
    """It would open, since the sender has all keys; what counts is what the slip promised."""
    other = parcel_of(b"the other content")
    chunks = [read_chunk(c, NETWORK) for c in other.chunks]
    assert join(open_slip(read_slip(other.slip, NETWORK), BOB), chunks) == b"the other content"
    with pytest.raises(Malformed):
        join(open_slip(read_slip(SMALL.slip, NETWORK), BOB), chunks)


def test_chunks_of_others_do_not_count_and_missing_ones_are_waited_for() -> None:
    parcel = parcel_of(b"x" * 2_000)
    manifest = open_slip(read_slip(parcel.slip, NETWORK), BOB)
    chunks = [read_chunk(c, NETWORK) for c in parcel.chunks]
    assert join(manifest, chunks[1:]) is None
    assert join(manifest, [replace(chunks[0], author=bytes(32)), *chunks[1:]]) is None
    beyond = Chunk(manifest.author, 60, NOW, LATER, b"j" * CHUNK_BYTES)
    assert join(manifest, [beyond, *chunks[::-1]]) == b"x" * 2_000


class TestAnswers:
    slip = read_slip(SMALL.slip, NETWORK)

    @pytest.mark.parametrize("code", [0, 2144, 65_535])
    def test_sender_reads_what_the_recipient_said(self, code: int) -> None:
        answer = read_answer(make_answer(self.slip, BOB, b"m" * 32, code, NETWORK), NETWORK)
        assert open_answer(answer, SECRET) == (b"m" * 32, code)

    def test_others_learn_neither_message_nor_code(self) -> None:
        records = [make_answer(self.slip, BOB, m * 32, c, NETWORK) for m, c in ((b"m", 0), (b"m", 2144), (b"n", 0))]
        assert len({len(r.body) for r in records}) == 1
        assert all(m * 32 not in r.raw for r in records for m in (b"m", b"n"))
        for record in records:
            with pytest.raises(Malformed):
                open_answer(read_answer(record, NETWORK), b"\x08" * 32)

    def test_two_answers_never_share_a_nonce(self) -> None:
        made = {read_answer(make_answer(self.slip, BOB, b"m" * 32, c, NETWORK), NETWORK).sealed[:24] for c in range(9)}
        assert len(made) == 9

    def test_answer_made_by_another_persona_does_not_open(self) -> None:
        answer = read_answer(make_answer(self.slip, SigningKey(b"c" * 32), b"m" * 32, 0, NETWORK), NETWORK)
        with pytest.raises(Malformed):
            open_answer(replace(answer, recipient=BOB.public), SECRET)


class TestRecords:
    """What every node of the DHT judges by."""

    registry = Registry(NETWORK, record_kinds(NETWORK))
    topic = mailbox_topic(NETWORK, BOB.public)

    def signed(self, kind: Kind, key: SigningKey, value: Slip | Chunk | Answer) -> bytes:
        return key.seal(kind, NETWORK, find_work(kind, NETWORK, pack(value), WORK[kind])).raw

    def test_answer_and_withdrawal_take_the_place_of_the_slip(self) -> None:
        slip = self.registry.check(SMALL.slip.raw, self.topic, NOW)
        answer = make_answer(read_slip(SMALL.slip, NETWORK), BOB, b"m" * 32, 0, NETWORK)
        taken_back = withdraw_parcel(SECRET, BOB.public, 1, NETWORK, created=NOW, expires=LATER)
        for raw in (answer.raw, taken_back.slip.raw):
            record = self.registry.check(raw, self.topic, NOW)
            assert record.tag == slip.tag
            assert record.rank > slip.rank
            assert record.meta.tombstone
            assert record.meta.expires >= slip.meta.expires
        author = SMALL.chunks[0].signer
        chunk = self.registry.check(SMALL.chunks[0].raw, parcel_topic(NETWORK, author, 0), NOW)
        gone = self.registry.check(taken_back.chunks[0].raw, parcel_topic(NETWORK, author, 0), NOW)
        assert (gone.tag, gone.rank > chunk.rank, gone.meta.tombstone) == (chunk.tag, True, True)

    def test_records_belong_under_no_topic_but_their_own(self) -> None:
        author = SMALL.chunks[0].signer
        answer = make_answer(read_slip(SMALL.slip, NETWORK), BOB, b"m" * 32, 0, NETWORK)
        wrong = [
            (SMALL.slip, mailbox_topic(NETWORK, author)),
            (SMALL.slip, parcel_topic(NETWORK, SMALL.slip.signer, 0)),
            (SMALL.chunks[0], parcel_topic(NETWORK, author, 1)),
            (SMALL.chunks[0], self.topic),
            (answer, receipt_topic(NETWORK, author, SMALL.slip.signer)),
            (answer, receipt_topic(NETWORK, BOB.public, author)),
        ]
        for record, topic in wrong:
            with pytest.raises(InvalidRecord, match="topic"):
                self.registry.check(record.raw, topic, NOW)

    @pytest.mark.parametrize(
        ("created", "expires"),
        [(NOW, NOW), (NOW, NOW + MAX_MAIL_LIFETIME + 1), (NOW + 601, LATER), (NOW - 10, NOW - 1)],
        ids=["no life", "too long", "from the future", "over"],
    )
    def test_mail_that_lives_at_the_wrong_time_is_refused(self, created: int, expires: int) -> None:
        slip = replace(read_slip(SMALL.slip, NETWORK), created=created, expires=expires)
        raw = self.signed(Kind.MAIL_SLIP, slip_key(SECRET), slip)
        with pytest.raises(InvalidRecord):
            self.registry.check(raw, self.topic, NOW)

    def test_nobody_signs_in_anothers_name(self) -> None:
        stranger = SigningKey(b"s" * 32)
        slip, chunk = read_slip(SMALL.slip, NETWORK), read_chunk(SMALL.chunks[0], NETWORK)
        answer = read_answer(make_answer(slip, BOB, b"m" * 32, 0, NETWORK), NETWORK)
        for kind, value, topic in (
            (Kind.MAIL_SLIP, slip, self.topic),
            (Kind.MAIL_CHUNK, chunk, parcel_topic(NETWORK, chunk.author, 0)),
            (Kind.MAIL_ANSWER, answer, self.topic),
        ):
            with pytest.raises(InvalidRecord, match="signed"):
                self.registry.check(self.signed(kind, stranger, value), topic, NOW)

    @settings(max_examples=60)
    @given(kind=st.sampled_from(sorted(WORK)), body=st.binary(max_size=900))
    def test_no_bytes_make_a_reader_fail_in_another_way(self, kind: Kind, body: bytes) -> None:
        envelope = assemble(kind, NETWORK, BOB.public, body, bytes(64))
        for read in (read_slip, read_chunk, read_answer):
            with pytest.raises(P2PError):
                read(envelope, NETWORK)
