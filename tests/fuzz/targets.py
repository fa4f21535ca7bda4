"""What is fuzzed: one function per decoder, which lets nothing through but what the decoder announces.

Each takes any bytes. Where a signature or a cipher stands before a decoder, the target stands behind it: a fuzzer can't
sign, an attacker can. Seeds come from tests/vectors; inputs that once crashed lie in tests/fuzz/crashes/<target>/ and
are fed to their target in the test suite.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from nacl import bindings

from dht import messages, packet, sync
from dht.contact import Contact, pack_address, parse_seed, unpack_address, unpack_contact, unpack_contacts
from dht.engine import Engine, EngineConfig
from dht.errors import BadContact, BadPacket, InvalidRecord
from dht.handover import Handover
from dht.records import Registry
from dht.rpc import Rpc
from dht.storage import Storage
from dht.watch import Watch
from escrow import transactions
from escrow.transactions import NotATransaction
from p2pnode.contacts import read_contact
from p2pnode.records import record_kinds
from protocol import (
    announcement,
    arbitration,
    attachment,
    bond,
    bundle,
    case_messages,
    casefile,
    contact,
    contract,
    equivocation,
    mailbox,
    offer,
    rating,
    receipt,
    relay,
    ruling,
    transcript,
)
from protocol import messages as trade_messages
from protocol.errors import P2PError
from protocol.frames import FrameKind, decode, encode
from protocol.identity import SigningKey
from protocol.noise import Handshake, KeyPair
from protocol.session import Role, Session
from protocol.streams import BodyLimits
from protocol.types import Network
from protocol.wire import Envelope, Kind, assemble, parse_envelope, unpack
from tests.fuzz.channels import CHANNEL_TARGETS, channel_seeds
from tests.fuzz.files import FILE_TARGETS, file_seeds
from tests.fuzz.servers import SERVER_TARGETS, server_seeds
from tests.network.dht_net import NOTES

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
CRASHES = Path(__file__).resolve().parent / "crashes"
ALICE, BOB = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
TOPIC = b"t" * 20
NOW = 1_500
HERE = ("127.0.0.9", 4_000)
Target = Callable[[bytes], None]


def _engine() -> tuple[Engine, list[tuple[bytes, object]]]:
    sent: list[tuple[bytes, object]] = []
    rng = random.Random(7)
    rpc = Rpc(
        SigningKey(b"e" * 32),
        Network.REGTEST,
        send=lambda datagram, address: sent.append((datagram, address)),
        rng=rng,
        exempt=lambda _: True,
    )
    config = EngineConfig(local_addresses=True)
    return Engine(config, rpc, Registry(Network.REGTEST, (NOTES,)), Storage(secret=b"s" * 16), rng), sent


@cache
def _keys(key: SigningKey) -> tuple[bytes, bytes]:
    """(to, from) the engine's node."""
    node = SigningKey(b"e" * 32)
    return packet.direction_keys(key.x25519_secret, key.public, node.public, node.x25519_public, Network.REGTEST)


def dht_datagram(data: bytes) -> None:
    """A datagram of a stranger."""
    engine, _ = _engine()
    engine.receive(data, HERE, 1.0)
    engine.tick(2.0)


def dht_request(data: bytes) -> None:
    """Requests of a node that authenticates and has a token: length u16 ‖ op ‖ body, one after the other."""
    engine, sent = _engine()
    to = _keys(ALICE)[0]
    token = engine.rpc._tokens.issue(ALICE.public, pack_address(*HERE), 1.0)
    at = 0
    while at + 3 <= len(data):
        end = at + 3 + int.from_bytes(data[at : at + 2], "big") % 1_100
        plaintext = messages.request(data[at + 2] % 12, 0, token, data[at + 3 : end])
        engine.receive(packet.seal_request(to, ALICE.public, at.to_bytes(12, "big"), plaintext), HERE, 1.0)
        at = end
    assert all(len(datagram) <= packet.MTU for datagram, _ in sent)


def dht_answer(data: bytes) -> None:
    """Answers of a hostile node to all that it can be asked: operation ‖ n × (length u16 ‖ status ‖ body)."""
    if not data:
        return
    engine, sent = _engine()
    engine.versions = frozenset((4, 6))
    bob = Contact(BOB.public, "127.0.0.8", 4_000)
    engine.table.add_contact(bob)
    note = engine.registry.trust(_note(), TOPIC, 1)
    ended: list[object] = []
    match data[0] % 7:
        case 0:
            engine.find(TOPIC, ended.append, 1.0)
        case 1:
            engine.get(TOPIC, ended.append, 1.0)
        case 2:
            engine.put(TOPIC, note, ended.append, 1.0)
        case 3:
            engine.survey(TOPIC, ended.append, 1.0)
        case operation:
            # These have nobody who waits for their end.
            ended.append(None)
            if operation == 4:
                engine.keep(TOPIC, note, b"", 1.0)
                engine.start(Handover(engine, TOPIC, engine.lookup(TOPIC)), 1.0)
            elif operation == 5:
                engine.ping(bob, 1.0)
            else:
                engine.watching.add(Watch(engine, TOPIC, lambda _: None, lambda *_: None, [bob]), 1.0)
    to, back = _keys(BOB)
    at = 1
    while sent and at + 3 <= len(data):
        datagram, address = sent.pop(0)
        end = at + 3 + int.from_bytes(data[at : at + 2], "big") % 1_100
        opened = packet.open_request(back, datagram) if address == ("127.0.0.8", 4_000) else b"\0"
        body = bytes([opened[0] | 0x80, data[at + 2] % 9]) + b"k" * 8 + data[at + 3 : end]
        engine.receive(packet.seal_reply(to, datagram[33:45], b"s" * 8, body[: packet.REPLY_ROOM]), address, 1.1)
        at = end
    for step in range(40):
        engine.tick(2.0 + step)
    assert len(ended) == 1, "an operation must end, and once"


@cache
def _note() -> bytes:
    from protocol.wire import pack
    from tests.network.dht_net import NOTE, Note

    return ALICE.seal(NOTE, Network.REGTEST, pack(Note(TOPIC, b"", 1, 3_600, False, b"hello"))).raw


def dht_messages(data: bytes) -> None:
    """Every reader of message bodies, and of contacts."""
    readers: tuple[Callable[[bytes], object], ...] = (
        messages.parse_request,
        messages.target_of,
        messages.cursor_of,
        messages.record_of,
        messages.contacts_of,
        messages.value_of,
        messages.store_part_of,
        messages.fetch_of,
        messages.part_of,
        messages.older_of,
        messages.observed_of,
        lambda d: messages.elsewhere_of(d.ljust(messages.HEAD + 1, b"\0")),
        unpack_address,
        unpack_contact,
        lambda d: unpack_contacts(d, 0, 16),
    )
    for read in readers:
        with suppress(BadPacket, BadContact):
            read(data)
    with suppress(P2PError):
        parse_seed(data.decode("utf-8", "replace"))


@cache
def _registry() -> Registry:
    return Registry(Network.REGTEST, record_kinds(Network.REGTEST))


def dht_record(data: bytes) -> None:
    """Records of every kind that the daemon stores, behind the signature and the proof of work."""
    with suppress(InvalidRecord):
        _registry().trust(data, TOPIC, NOW)


@cache
def _filled() -> Storage:
    storage = Storage(secret=b"s" * 16)
    registry = Registry(Network.REGTEST, (NOTES,))
    storage.put(TOPIC, registry.check(_note(), TOPIC, 1), NOTES, b"", 1)
    return storage


def dht_sync(data: bytes) -> None:
    """Set reconciliation: what a holder is asked, and what a reader is told."""
    storage = _filled()
    with suppress(BadPacket):
        for frame in sync.answer(data, storage, 1):
            assert len(frame) <= sync.FRAME
    with suppress(BadPacket):
        for frame in sync.answer(data[:1] + TOPIC + data[1:], storage, 1):
            assert len(frame) <= sync.FRAME
    puller = sync.Puller(TOPIC, sync.index_of(storage, TOPIC, 1))
    puller.start()
    with suppress(BadPacket):
        puller.heard(data)
    with suppress(BadPacket):
        sync.read_records(data)


def envelope(data: bytes) -> None:
    """The signed envelope of everything."""
    for network in Network:
        with suppress(P2PError):
            parse_envelope(data, network)


@cache
def _structs() -> list[type[Any]]:
    modules = (
        announcement, arbitration, attachment, bond, bundle, case_messages, contact, contract, equivocation, mailbox,
        offer, rating, receipt, ruling, trade_messages,
    )  # fmt: skip
    found = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__struct_config__.array_like
    }
    return [found[name] for name in sorted(found)]


def bodies(data: bytes) -> None:
    """The MessagePack body of every signed thing: kind ‖ body."""
    if data:
        structs = _structs()
        with suppress(P2PError):
            unpack(data[1:], structs[data[0] % len(structs)], limit=500_000)


def readers(data: bytes) -> None:
    """The readers of signed things, as if the signature were good."""
    network = Network.REGTEST

    def of(kind: int) -> Envelope:
        return assemble(kind, network, ALICE.public, data, bytes(64))

    calls: tuple[Callable[[], object], ...] = (
        lambda: offer.read_offer(of(2), network, NOW, work=0),
        lambda: offer.read_revocation(of(4), network),
        lambda: announcement.read_announcement(of(8), network, NOW),
        lambda: mailbox.read_slip(of(64), network),
        lambda: mailbox.read_chunk(of(66), network),
        lambda: mailbox.read_answer(of(68), network),
        lambda: ruling.read_ruling(of(60)),
        lambda: receipt.read_half(of(Kind.RECEIPT_HALF), network),
        lambda: read_contact(of(Kind.CONTACT), network, NOW),
        *((lambda kind=kind: trade_messages.decode(of(kind))) for kind in trade_messages.PAYLOAD_OF),
        *((lambda kind=kind: case_messages.decode_case(of(kind))) for kind in case_messages.CASE_PAYLOAD_OF),
        lambda: bond.read_bond_record(of(Kind.BOND), network, NOW),
        lambda: equivocation.read_equivocation_record(of(Kind.EQUIVOCATION), network, NOW),
        lambda: rating.read_rating(of(Kind.RATING), network, NOW),
        lambda: receipt.read_ruling_receipt(of(Kind.RULING_RECEIPT), network, NOW),
        lambda: casefile._terms(data, 1_000, network),
        lambda: _join(data),
        *((lambda kind=kind: transcript.header_of(of(kind))) for kind in (Kind.CHAT, Kind.PAID)),
        lambda: relay.read_endpoint(data),
        lambda: relay.read_registered(data),
        lambda: relay.read_port(data),
        lambda: relay.read_probed(data),
    )
    for call in calls:
        with suppress(P2PError):
            call()


def _join(data: bytes) -> None:
    """A parcel whose sender sealed whatever he liked."""
    plain = data[: mailbox.CHUNK_BYTES - 16].ljust(mailbox.CHUNK_BYTES - 16, b"\0")
    seed = b"s" * 32
    sealed = bindings.crypto_secretbox(plain, mailbox._ONCE, mailbox._content_key(seed))
    manifest = mailbox.Manifest(seed, 1, mailbox._hash(sealed))
    mailbox.join(manifest, [mailbox.Chunk(manifest.author, 0, 1, 2, sealed)])


def _ephemeral(byte: bytes) -> Callable[[], bytes]:
    return lambda: byte * 32


def handshake(data: bytes) -> None:
    """What comes in before anybody is authenticated, in pieces."""
    responder = Session(Role.RESPONDER, BOB, None, _ephemeral(b"x"), Network.REGTEST, 0.0)
    half = len(data) // 2
    for part in (data[:half], data[half:]):
        with suppress(P2PError):
            responder.receive_data(part, 0.0)
    noise = Handshake(
        initiator=False,
        static=KeyPair.of(b"k" * 32),
        ephemeral=_ephemeral(b"x"),
        prologue=b"p",
    )
    with suppress(P2PError):
        noise.read_message(data)


def frames(data: bytes) -> None:
    """Frames of an authenticated peer: length u16 ‖ plaintext, one after the other."""
    one = Session(Role.INITIATOR, ALICE, BOB.public, _ephemeral(b"y"), Network.REGTEST, 0.0)
    services = {1: BodyLimits(1_000, 1_000)}
    other = Session(Role.RESPONDER, BOB, None, _ephemeral(b"x"), Network.REGTEST, 0.0, services=services)
    other.receive_data(one.data_to_send(), 0.0)
    one.receive_data(other.data_to_send(), 0.0)
    other.receive_data(one.data_to_send(), 0.0)
    assert one._sealer is not None
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        with suppress(P2PError):
            decode(data[at + 2 : end])
        with suppress(P2PError):
            other.receive_data(one._sealer.seal(data[at + 2 : end][:65_000]), 0.0)
        while other.next_event() is not None:
            pass
        other.data_to_send()
        at = end


def transaction(data: bytes) -> None:
    """Transactions that peers send."""
    with suppress(NotATransaction):
        transactions.parse(data)
    with suppress(NotATransaction):
        transactions.find_output(data, 0)


TARGETS: dict[str, Target] = {
    "dht-datagram": dht_datagram,
    "dht-request": dht_request,
    "dht-answer": dht_answer,
    "dht-messages": dht_messages,
    "dht-record": dht_record,
    "dht-sync": dht_sync,
    "envelope": envelope,
    "bodies": bodies,
    "readers": readers,
    "handshake": handshake,
    "frames": frames,
    "transaction": transaction,
    **CHANNEL_TARGETS,
    **SERVER_TARGETS,
    **FILE_TARGETS,
}


def _hexes(value: object) -> Iterator[bytes]:
    """Every string of hex digits in a document."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _hexes(part)
    elif isinstance(value, list):
        for part in value:
            yield from _hexes(part)
    elif isinstance(value, str) and len(value) >= 4:
        with suppress(ValueError):
            yield bytes.fromhex(value)


def _frame(payload: bytes, kind: int = 4, stream: int = 1) -> bytes:
    return encode(kind, stream, 0, payload[:3_000])


def _large() -> Iterator[bytes]:
    """Answers to a get that tell of a record in parts, and its parts."""
    raw = _note()
    told = b"\0" + messages.value_body(1, bytes(8), more=False, records=[], large=[(b"g" * 8, len(raw))]) + b"\0"
    for size in (10, len(raw) // 2, len(raw)):
        parts = [raw[i : i + size] for i in range(0, len(raw), size)]
        answers = [told, *(b"\0" + len(p).to_bytes(2, "big") + p for p in parts[:30])]
        yield b"\1" + b"".join((len(a) - 1).to_bytes(2, "big") + a for a in answers)


def _talks() -> Iterator[bytes]:
    """Frames of each kind, alone and after a stream was opened."""
    opening = _frame(b"\0\1body", 2)
    for kind in FrameKind:
        for payload in (b"", b"\0\1", b"\0\0\0\1", bytes(8), b"\0\1" + bytes(8)):
            frame = _frame(payload, kind, 0 if kind >= FrameKind.PING else 1)
            yield frame
            yield opening + len(frame).to_bytes(2, "big") + frame


@cache
def seeds(name: str) -> list[bytes]:
    """The corpus that a target starts from: all vectors, framed as the target reads them, and old crashes."""
    found = {raw for path in sorted(VECTORS.rglob("*.json")) for raw in _hexes(json.loads(path.read_text()))}
    plain = sorted(raw for raw in found if len(raw) <= 4_096)
    crashes = [path.read_bytes() for path in sorted((CRASHES / name).glob("*")) if path.is_file()]
    if name in SERVER_TARGETS:
        plain = server_seeds(name, plain)
    elif name in CHANNEL_TARGETS:
        plain = channel_seeds(name, plain)
    elif name in FILE_TARGETS:
        plain = file_seeds(name, plain)
    elif name == "dht-request":
        plain = [len(raw).to_bytes(2, "big") + bytes([op]) + raw for raw in plain for op in range(1, 9)]
    elif name == "dht-answer":
        plain = [bytes([op]) + len(raw).to_bytes(2, "big") + b"\0" + raw for raw in plain for op in range(7)]
        plain += _large()
    elif name == "bodies":
        plain = [bytes([kind]) + raw for raw in plain if raw[0] >= 0x90 for kind in range(len(_structs()))]
    elif name == "frames":
        plain = [len(raw).to_bytes(2, "big") + raw for raw in (*map(_frame, plain), *plain, *_talks())]
    return plain + crashes
