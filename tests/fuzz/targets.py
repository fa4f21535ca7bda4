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

from dht import messages, packet, sync
from dht.contact import Contact, parse_seed, unpack_address, unpack_contact, unpack_contacts
from dht.engine import Engine, EngineConfig
from dht.errors import BadContact, BadPacket, InvalidRecord
from dht.records import Registry
from dht.rpc import Rpc
from dht.storage import Storage
from escrow import psbt, transactions
from escrow.chain import blocks, gcs, p2pwire
from escrow.transactions import NotATransaction
from p2pnode.records import record_kinds
from protocol import (
    announcement,
    arbitration,
    attachment,
    case_messages,
    contact,
    contract,
    mailbox,
    offer,
    relay,
    ruling,
)
from protocol import messages as trade_messages
from protocol.errors import P2PError
from protocol.frames import decode
from protocol.identity import SigningKey
from protocol.noise import Handshake, KeyPair
from protocol.session import Role, Session
from protocol.streams import BodyLimits
from protocol.types import Network
from protocol.wire import Envelope, assemble, parse_envelope, unpack
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
    token = engine.rpc._tokens.issue(ALICE.public, engine.rpc._pack(HERE), 1.0)
    at = 0
    while at + 3 <= len(data):
        end = at + 3 + int.from_bytes(data[at : at + 2], "big") % 1_100
        plaintext = messages.request(data[at + 2] % 12, 0, token, data[at + 3 : end])
        engine.receive(packet.seal_request(to, ALICE.public, at.to_bytes(12, "big"), plaintext), HERE, 1.0)
        at = end
    assert all(len(datagram) <= packet.MTU for datagram, _ in sent)


def dht_answer(data: bytes) -> None:
    """Answers of a hostile node to a search: operation ‖ n × (length u16 ‖ status ‖ body)."""
    if not data:
        return
    engine, sent = _engine()
    engine.table.add_contact(Contact(BOB.public, "127.0.0.8", 4_000))
    ended: list[object] = []
    if data[0] % 3 == 0:
        engine.find(TOPIC, ended.append, 1.0)
    elif data[0] % 3 == 1:
        engine.get(TOPIC, ended.append, 1.0)
    else:
        record = _note()
        engine.put(TOPIC, engine.registry.trust(record, TOPIC, 1), ended.append, 1.0)
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
        announcement, arbitration, attachment, case_messages, contact, contract, mailbox, offer, ruling,
        trade_messages,
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
        *((lambda kind=kind: trade_messages.decode(of(kind))) for kind in trade_messages.PAYLOAD_OF),
        *((lambda kind=kind: case_messages.decode_case(of(kind))) for kind in case_messages.CASE_PAYLOAD_OF),
        lambda: relay.read_endpoint(data),
        lambda: relay.read_port(data),
        lambda: relay.read_probed(data),
    )
    for call in calls:
        with suppress(P2PError):
            call()


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


def chain(data: bytes) -> None:
    """What Bitcoin nodes send: transactions, blocks, filters, messages."""
    calls: tuple[Callable[[], object], ...] = (
        lambda: blocks.parse_tx(data),
        lambda: blocks.match_block(data, frozenset((b"\0\x14" + bytes(20),)), frozenset()),
        lambda: blocks.block_txids(data),
        lambda: gcs.filter_matches(bytes(32), data, [b"\0\x14" + bytes(20)]),
        lambda: p2pwire.read_version(data),
        lambda: p2pwire.read_headers(data),
        lambda: p2pwire.read_inventory(data),
        lambda: p2pwire.read_cfheaders(data),
        lambda: p2pwire.read_cfilter(data),
        lambda: p2pwire.read_addresses(data),
    )
    for call in calls:
        with suppress(P2PError):
            call()


def psbts(data: bytes) -> None:
    """Partially signed transactions, binary or text."""
    for read in (psbt.decode, psbt.read):
        with suppress(P2PError):
            read(data)


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
    "chain": chain,
    "psbt": psbts,
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


@cache
def seeds(name: str) -> list[bytes]:
    """The corpus that a target starts from: all vectors, framed as the target reads them, and old crashes."""
    found = {raw for path in sorted(VECTORS.rglob("*.json")) for raw in _hexes(json.loads(path.read_text()))}
    plain = sorted(raw for raw in found if len(raw) <= 4_096)
    crashes = [path.read_bytes() for path in sorted((CRASHES / name).glob("*")) if path.is_file()]
    if name == "dht-request":
        plain = [len(raw).to_bytes(2, "big") + bytes([op]) + raw for raw in plain for op in range(1, 9)]
    elif name == "dht-answer":
        plain = [bytes([op]) + len(raw).to_bytes(2, "big") + b"\0" + raw for raw in plain for op in range(3)]
    elif name == "bodies":
        plain = [bytes([kind]) + raw for raw in plain if raw[0] >= 0x90 for kind in range(len(_structs()))]
    elif name == "psbt":
        plain = [psbt.MAGIC + raw for raw in plain]
    elif name == "frames":
        plain = [len(raw).to_bytes(2, "big") + raw for raw in plain]
    return plain + crashes
