"""Mail against its published vectors, read as another would read it: from the SPEC's text and libsodium alone."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from protocol.errors import P2PError
from protocol.identity import SigningKey
from protocol.mailbox import (
    Chunk,
    join,
    make_parcel,
    open_answer,
    open_slip,
    read_answer,
    read_chunk,
    read_slip,
    withdraw_parcel,
)
from protocol.types import Network
from protocol.wire import Kind, open_envelope
from tests.vectors import make_protocol

MAIL: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors" / "protocol" / "mail.json").read_text())
NETWORK = Network.REGTEST
RECIPIENT = SigningKey(bytes.fromhex(MAIL["recipient_seed"]))
SECRET = bytes.fromhex(MAIL["secret"])


def of(raw: str, kind: Kind) -> Any:  # noqa: ANN401  (each reader's own type)
    """The record with these bytes."""
    read = {Kind.MAIL_SLIP: read_slip, Kind.MAIL_CHUNK: read_chunk, Kind.MAIL_ANSWER: read_answer}[kind]
    return read(open_envelope(bytes.fromhex(raw), NETWORK, limit=kind.limit), NETWORK)


def hashed(domain: bytes, *parts: bytes) -> bytes:
    """SPEC 2.2's digest, written again."""
    data = b"".join(len(part).to_bytes(4, "big") + part for part in (domain, *parts))
    return blake2b(data, digest_size=32).digest()


def test_published_mail_is_what_the_code_makes() -> None:
    """A silent change of the wire format would leave mail unread."""
    assert json.loads(json.dumps(make_protocol.mail())) == MAIL


@pytest.mark.parametrize("case", MAIL["parcels"], ids=["small", "large"])
class TestParcel:
    def test_recipient_reads_it(self, case: dict[str, Any]) -> None:
        manifest = open_slip(of(case["slip"], Kind.MAIL_SLIP), RECIPIENT)
        chunks: list[Chunk] = [of(raw, Kind.MAIL_CHUNK) for raw in case["chunks"]]
        assert join(manifest, reversed(chunks)) == bytes.fromhex(case["envelope"])
        assert join(manifest, chunks[1:]) is None
        told = case["manifest"]
        assert (manifest.seed.hex(), manifest.count, manifest.hash.hex()) == (told["seed"], told["count"], told["hash"])

    def test_sender_makes_it_byte_for_byte(self, case: dict[str, Any]) -> None:
        times = {"created": MAIL["created"], "expires": MAIL["expires"]}
        made = make_parcel(SECRET, RECIPIENT.public, bytes.fromhex(case["envelope"]), NETWORK, **times)
        assert [made.slip.raw.hex(), [c.raw.hex() for c in made.chunks]] == [case["slip"], case["chunks"]]
        gone = withdraw_parcel(SECRET, RECIPIENT.public, len(case["chunks"]), NETWORK, **times)
        assert [gone.slip.raw.hex(), *(c.raw.hex() for c in gone.chunks)] == case["withdrawal"]

    def test_libsodium_and_the_spec_alone_read_it(self, case: dict[str, Any]) -> None:
        assert SigningKey(hashed(b"p2pnode/mail-slip", SECRET)).public.hex() == MAIL["slip_key"]
        assert SigningKey(hashed(b"p2pnode/mail-chunks", SECRET)).public.hex() == MAIL["chunk_key"]
        slip = of(case["slip"], Kind.MAIL_SLIP)
        assert slip.author.hex() == MAIL["slip_key"]
        curve = bindings.crypto_sign_ed25519_pk_to_curve25519(slip.author)
        secret = bindings.crypto_sign_ed25519_sk_to_curve25519(RECIPIENT.seed + RECIPIENT.public)
        public = bindings.crypto_sign_ed25519_pk_to_curve25519(RECIPIENT.public)
        plain = bindings.crypto_box_seal_open(curve + slip.sealed, public, secret)
        sealed = b"".join(of(raw, Kind.MAIL_CHUNK).data for raw in case["chunks"])
        assert plain == plain[:32] + bytes([len(case["chunks"])]) + blake2b(sealed, digest_size=32).digest()
        content = bindings.crypto_secretbox_open(sealed, bytes(24), hashed(b"p2pnode/mail-content", plain[:32]))
        size = int.from_bytes(content[:4], "big")
        assert content[4 : 4 + size].hex() == case["envelope"]
        assert not any(content[4 + size :])

    def test_sender_reads_the_answers(self, case: dict[str, Any]) -> None:
        message = open_envelope(bytes.fromhex(case["envelope"]), NETWORK, limit=65_536).id
        for told in case["answers"]:
            answer = of(told["raw"], Kind.MAIL_ANSWER)
            assert open_answer(answer, SECRET) == (message, told["code"])
            with pytest.raises(P2PError):
                open_answer(answer, bytes(32))

    def test_nobody_else_opens_it(self, case: dict[str, Any]) -> None:
        with pytest.raises(P2PError):
            open_slip(of(case["slip"], Kind.MAIL_SLIP), SigningKey(bytes(32)))


@pytest.mark.parametrize("case", MAIL["invalid"], ids=lambda case: case["why"])
def test_holders_refuse_what_is_wrong(case: dict[str, Any]) -> None:
    envelope = open_envelope(bytes.fromhex(case["raw"]), NETWORK, limit=65_536)
    with pytest.raises(P2PError) as caught:
        of(case["raw"], Kind(envelope.kind))
    assert caught.value.code == case["error"]
