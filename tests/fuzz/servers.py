"""What servers and routers tell us: Bitcoin peers, Electrum, Esplora, prices, NAT-PMP, UPnP, local names.

Each target hands the bytes to the real client at the place where they come off the wire, and lets it ask on as it does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.const import HttpRequest, HttpResponse
from async_upnp_client.exceptions import UpnpError
from async_upnp_client.profiles.igd import IgdDevice
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf.asyncio import AsyncServiceInfo

from escrow.chain import blocks, electrum, electrumrpc, esplora, gcs, merkle, p2pwire, signet
from escrow.chain.base import BlockRef
from escrow.chain.headers import ANCHORS, HeaderChain, hash256
from escrow.chain.peer import Peer
from escrow.chain.tls import Trust
from escrow.chain.zmqfeed import ZmqFeed
from escrow.coins import OutPoint, txid_text
from p2pnode.discovery import SERVICE, Discovery
from p2pnode.prices import read_price
from p2pnode.reach import natpmp, upnp
from protocol.errors import P2PError
from protocol.types import Network

NET = Network.REGTEST
NOW = 1_800_000_000
SCRIPT = b"\0\x14" + bytes(20)
TXID = bytes(range(32))
FLOW_S = 5.0


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def run(work: Callable[[], Awaitable[object]]) -> None:
    """One conversation; nothing but what is announced comes out of it, and no task is left that failed by itself."""
    loop = _loop()
    failed: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failed.append(context))

    async def whole() -> None:
        async with asyncio.timeout(FLOW_S):
            await work()

    loop.run_until_complete(whole())
    for context in failed:
        error = context.get("exception") or RuntimeError(context["message"])
        # Announced, and told to whoever asked.
        if not isinstance(error, P2PError):
            raise error


class Writer:
    """The sending half of a connection: what is said is answered with the next piece."""

    def __init__(self, said: Callable[[bytes], None]) -> None:
        self._said = said

    def write(self, data: bytes) -> None:
        """Hear what the client says."""
        self._said(data)

    def close(self) -> None:
        """Hang up."""

    async def wait_closed(self) -> None:
        """Done."""


# -- Bitcoin's own protocol ----------------------------------------------------------------------------------------


def blocks_and_filters(data: bytes) -> None:
    """Blocks, transactions, filters and headers, as peers and servers send them."""
    header = data[:80].ljust(80, b"\0")
    calls: tuple[Callable[[], object], ...] = (
        lambda: blocks.parse_tx(data),
        lambda: blocks.match_block(data, frozenset((SCRIPT,)), frozenset()),
        lambda: blocks.block_txids(data),
        lambda: blocks.all_txs(data),
        lambda: gcs.filter_matches(bytes(32), data, [SCRIPT]),
        lambda: gcs.contains_all(bytes(32), data, [SCRIPT]),
        lambda: merkle.check_block(data, hash256(header) if len(data) >= 80 else bytes(32)),
        lambda: signet.check_signed(data),
        lambda: signet._cleared(data),
        lambda: merkle.check_branch(TXID, len(data), [data[i : i + 32] for i in range(80, len(data) - 31, 32)], header),
        lambda: HeaderChain(NET, ANCHORS[NET][0]).add([data[i : i + 80] for i in range(0, len(data) - 79, 80)], NOW),
    )
    for call in calls:
        with suppress(P2PError):
            call()


class _Owner:
    """Who holds a peer."""

    def block_announced(self, block: bytes) -> None:
        """Nothing."""

    def txs_announced(self, peer: Peer, txids: object) -> None:
        """Nothing."""

    def addresses(self, found: object) -> None:
        """Nothing."""

    def peer_ended(self, peer: Peer) -> None:
        """Nothing."""

    def offered(self) -> Mapping[bytes, bytes]:
        """One transaction."""
        return {TXID: b"tx"}


COMMANDS = (
    "version", "verack", "ping", "feefilter", "inv", "getdata", "addr", "headers", "cfheaders", "cfilter", "block",
    "notfound", "tx",
)  # fmt: skip


def _as_messages(data: bytes) -> bytes:
    """N × (command u8 ‖ length u16 ‖ body) with the framing that a peer would give it; raw bytes when 255."""
    out, at = b"", 0
    while at + 3 <= len(data):
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        body = data[at + 3 : end]
        out += body if data[at] == 255 else p2pwire.frame(NET, COMMANDS[data[at] % len(COMMANDS)], body)
        at = end
    return out


def bitcoin_peer(data: bytes) -> None:
    """Everything that a Bitcoin node may say on a connection, in answer to a question: question u8, then messages."""
    with suppress(P2PError):
        list(p2pwire.Frames(NET).feed(data))

    async def talk() -> None:
        reader = asyncio.StreamReader()
        streams: Any = (reader, Writer(lambda _: None))
        peer = Peer("fuzz", NET, _Owner(), streams, 0.01)
        reader.feed_data(_as_messages(data[1:]))
        reader.feed_eof()
        questions: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: peer._shake_hands(p2pwire.version(bytes(8), 0, 0)),
            lambda: peer.headers([bytes(32)]),
            lambda: peer.cfheaders(1, bytes(32)),
            lambda: peer.cfilters(1, [bytes(32)], bytes(32)),
            lambda: peer.block(bytes(32)),
            lambda: peer.transactions([TXID]),
        )
        asked = asyncio.ensure_future(questions[data[0] % len(questions) if data else 0]())
        await asyncio.sleep(0)
        await peer._read()
        with suppress(P2PError):
            await asked

    run(talk)


def zmq_feed(data: bytes) -> None:
    """Notifications: parts split by a newline."""
    feed = ZmqFeed.__new__(ZmqFeed)
    feed._numbers, feed._raw_comes = {}, False
    for _ in range(2):
        feed._read(data.split(b"\n"))


# -- servers -------------------------------------------------------------------------------------------------------


@contextmanager
def _electrum_view(pieces: list[bytes]) -> Iterator[electrum.ElectrumView]:
    """A view whose server says one piece to each question: JSON as the result, or with `!` in front a whole line."""
    left = iter(pieces)

    async def connect(host: str, port: int, *, tls: bool, trust: Trust, timeout: float) -> electrumrpc.ElectrumRpc:
        del host, port, tls, trust, timeout
        reader = asyncio.StreamReader()

        def said(question: bytes) -> None:
            piece = next(left, None)
            if piece is None:
                reader.feed_eof()
            elif piece[:1] == b"!":
                reader.feed_data(piece[1:] + b"\n")
            else:
                number = b"%d" % json.loads(question)["id"]
                reader.feed_data(b'{"id":' + number + b',"result":' + piece + b"}\n")

        streams: Any = (reader, Writer(said))
        return electrumrpc.ElectrumRpc("fuzz", streams, 0.01)

    before = electrum._COMPARE_AGAIN, electrumrpc.ElectrumRpc.__dict__["connect"]
    # The wire ends here, and the fuzzer has no time to wait.
    setattr(electrum, "_COMPARE_AGAIN", 0.0)  # noqa: B010
    setattr(electrumrpc.ElectrumRpc, "connect", connect)  # noqa: B010
    try:
        yield electrum.ElectrumView(electrum.ElectrumConfig(NET, "tcp://fuzz:1"), lambda: NOW)
    finally:
        setattr(electrum, "_COMPARE_AGAIN", before[0])  # noqa: B010
        setattr(electrumrpc.ElectrumRpc, "connect", before[1])  # noqa: B010


GENESIS = txid_text(ANCHORS[NET][0].hash).encode()
HELLO = (b'["fuzz","1.4"]', b'{"genesis_hash":"%s"}' % GENESIS, b"{}")


def electrum_server(data: bytes) -> None:
    """An Electrum server: question u8, then its answers, one per line."""
    if not data:
        return
    with _electrum_view([*HELLO, *data[1:].split(b"\n")]) as view:
        tip = ANCHORS[NET][0]
        ref = BlockRef(tip.height, tip.hash, 0, 0)
        questions: tuple[Callable[[], Awaitable[object]], ...] = (
            view.check,
            lambda: view.matching(ref, frozenset((SCRIPT,)), frozenset()),
            lambda: view.relevant([SCRIPT], 0, 10),
            lambda: view.mempool(frozenset((SCRIPT,)), [TXID]),
            lambda: view.waiting([TXID]),
            lambda: view.spenders([OutPoint(TXID, 0)], frozenset((SCRIPT,))),
            lambda: view.fee_rate(6),
            lambda: view.mempool_fee(TXID),
            lambda: view.transaction(TXID, None),
            lambda: view.unspent(OutPoint(TXID, 0)),
            lambda: view.send([bytes.fromhex(ONE_TX)]),
            lambda: view._prove(TXID, ref),
        )

        async def talk() -> None:
            try:
                with suppress(P2PError):
                    await questions[data[0] % len(questions)]()
            finally:
                await view.close()

        run(talk)


ONE_TX = (
    "02000000010101010101010101010101010101010101010101010101010101010101010101000000000000000000"
    "01e803000000000000160014000000000000000000000000000000000000000000000000"
)[:-8] + "00000000"


def esplora_server(data: bytes) -> None:
    """An Esplora server: question u8, then its answers, one per line; `!` in front of one: a refusal."""
    if not data:
        return
    view = esplora.EsploraView(esplora.EsploraConfig(NET, "http://fuzz", timeout_seconds=0.01), lambda: NOW)
    left = iter(data[1:].split(b"\n"))

    async def exchange(method: str, path: str, body: bytes | None, limit: int) -> tuple[int, Mapping[str, str], bytes]:
        del method, path, body
        piece = next(left, b"!end")
        if piece[:1] == b"!":
            return 429 if piece[1:2] == b"4" else 400, {"Retry-After": piece[1:].decode("latin-1")}, piece
        return 200, {}, piece[:limit]

    setattr(view._http, "_exchange", exchange)  # noqa: B010  (the wire ends here)
    view._right_network = data[0] < 128
    tip = ANCHORS[NET][0]
    ref = BlockRef(tip.height, tip.hash, 0, 0)
    questions: tuple[Callable[[], Awaitable[object]], ...] = (
        view.check,
        view.refresh,
        lambda: view.matching(ref, frozenset((SCRIPT,)), frozenset()),
        lambda: view.relevant([SCRIPT], 0, 10),
        lambda: view.mempool(frozenset((SCRIPT,)), [TXID]),
        lambda: view.waiting([TXID]),
        lambda: view.spenders([OutPoint(TXID, 0)], frozenset((SCRIPT,))),
        lambda: view.fee_rate(6),
        lambda: view.mempool_fee(TXID),
        lambda: view.transaction(TXID, None),
        lambda: view.unspent(OutPoint(TXID, 0)),
        lambda: view.send([bytes.fromhex(ONE_TX), bytes.fromhex(ONE_TX)]),
    )

    async def talk() -> None:
        try:
            with suppress(P2PError):
                await questions[data[0] % len(questions)]()
        finally:
            await view.close()

    run(talk)


def price_feed(data: bytes) -> None:
    """The JSON of a price feed. What it may raise is what its caller handles."""
    for path in ("a.0.b", "bitcoin.eur", "0"):
        with suppress(ValueError, RecursionError):
            assert read_price(data, path, "EUR") > 0


# -- routers and the local network -----------------------------------------------------------------------------------


def nat_pmp(data: bytes) -> None:
    """A router's NAT-PMP answers: n × (length u8 ‖ datagram)."""

    class Router(asyncio.DatagramTransport):
        def __init__(self, protocol: asyncio.DatagramProtocol) -> None:
            super().__init__()
            self._protocol = protocol

        def sendto(self, data: object, addr: object = None) -> None:
            del data, addr
            if (answer := next(answers, None)) is not None:
                self._protocol.datagram_received(answer, ("192.0.2.1", 5351))

        def close(self) -> None:
            """Nothing to close."""

    def pieces() -> Iterator[bytes]:
        at = 0
        while at < len(data):
            end = at + 1 + data[at]
            yield data[at + 1 : end]
            at = end

    answers = pieces()

    async def talk() -> None:
        loop = asyncio.get_running_loop()

        async def endpoint(make: Callable[[], asyncio.DatagramProtocol], **_: object) -> tuple[Any, Any]:
            protocol = make()
            return Router(protocol), protocol

        setattr(loop, "create_datagram_endpoint", endpoint)  # noqa: B010  (the wire ends here)
        tries = natpmp.TRIES
        setattr(natpmp, "TRIES", (0.001,))  # noqa: B010  (a constant; the fuzzer has no time to wait)
        try:
            with suppress(natpmp.NatPmpFailed):
                await natpmp.map_port("192.0.2.1", 4_000, 3_600)
        finally:
            setattr(natpmp, "TRIES", tries)  # noqa: B010
            delattr(loop, "create_datagram_endpoint")

    run(talk)
    natpmp.gateway(data.decode("latin-1"))


_UPNP = b"urn:schemas-upnp-org:"
DESCRIPTION = (
    b'<?xml version="1.0"?><root xmlns="' + _UPNP + b'device-1-0"><specVersion><major>1</major><minor>0</minor>'
    b"</specVersion><device><deviceType>" + _UPNP + b"device:InternetGatewayDevice:1</deviceType>"
    b"<friendlyName>r</friendlyName><manufacturer>m</manufacturer><modelName>n</modelName><UDN>uuid:1</UDN>"
    b"<serviceList><service><serviceType>" + _UPNP + b"service:WANIPConnection:1</serviceType>"
    b"<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/s.xml</SCPDURL><controlURL>/c</controlURL>"
    b"<eventSubURL>/e</eventSubURL></service></serviceList></device></root>"
)
_STATE = b"<relatedStateVariable>ExternalIPAddress</relatedStateVariable>"
SERVICE_XML = (
    b'<?xml version="1.0"?><scpd xmlns="' + _UPNP + b'service-1-0"><specVersion><major>1</major><minor>0</minor>'
    b"</specVersion><actionList><action><name>GetExternalIPAddress</name><argumentList><argument>"
    b"<name>NewExternalIPAddress</name><direction>out</direction>" + _STATE + b"</argument></argumentList></action>"
    b"<action><name>AddPortMapping</name></action></actionList><serviceStateTable>"
    b'<stateVariable sendEvents="no"><name>ExternalIPAddress</name><dataType>string</dataType></stateVariable>'
    b"</serviceStateTable></scpd>"
)


def upnp_router(data: bytes) -> None:
    """A router's descriptions and SOAP answers, split by a zero byte, through the library and our own checks."""
    left = iter(data.split(b"\0"))

    class Requester:
        async def async_http_request(self, http_request: HttpRequest) -> HttpResponse:
            del http_request
            piece = next(left, b"")
            return HttpResponse(200, {"content-type": "text/xml"}, piece.decode("utf-8", "replace"))

    async def talk() -> None:
        try:
            factory: Any = UpnpFactory(Requester())  # type: ignore[arg-type]
            device = await factory.async_create_device("http://192.0.2.1/d.xml")
            gateway = upnp.Gateway(IgdDevice(device, None), upnp.ANYBODY)
        except (UpnpError, *upnp.NONSENSE):
            return
        for call in (gateway.map_port(4_000, 60), gateway.unmap_port(4_000)):
            with suppress(upnp.UpnpFailed):
                await call

    run(talk)
    text = data[:300].decode("latin-1")
    told = upnp._trusted(text, text.partition("//")[2].partition("/")[0])
    assert told is None or told.startswith("http://")


def local_name(data: bytes) -> None:
    """A DNS answer of the local network that announces a node."""
    message = DNSIncoming(data)
    info = AsyncServiceInfo(SERVICE, f"x.{SERVICE}")
    here = Discovery(bytes(32), NET, "g", "127.0.0.1", 1)
    # The rest of a TXT record is what a neighbour chooses freely.
    txt = AsyncServiceInfo(SERVICE, f"x.{SERVICE}", port=int.from_bytes(data[:2], "big"), properties=data[2:])
    for one in (info, txt):
        here._read(one)
    del message


SERVER_TARGETS: dict[str, Callable[[bytes], None]] = {
    "blocks": blocks_and_filters,
    "bitcoin-peer": bitcoin_peer,
    "zmq": zmq_feed,
    "electrum": electrum_server,
    "esplora": esplora_server,
    "prices": price_feed,
    "nat-pmp": nat_pmp,
    "upnp": upnp_router,
    "mdns": local_name,
}


def server_seeds(name: str, plain: list[bytes]) -> list[bytes]:  # noqa: PLR0911  (one per target)
    """What a target starts from. `plain`: all that the vectors hold."""
    header = plain[0][:80].hex().encode() if plain else b""
    history = b'[{"tx_hash":"%s","height":1}]' % TXID.hex().encode()
    answers = (
        b"null", b"[]", b"{}", b"0.0001", b"-1", b'"%s"' % ONE_TX.encode(), history,
        b'{"count":1,"hex":"%s","max":2016}' % header, b'{"merkle":[],"pos":0,"block_height":1}',
        b'[{"tx_hash":"%s","tx_pos":0,"height":1,"value":1}]' % TXID.hex().encode(), b'{"1":1.0,"6":0.5}',
        b'{"confirmed":true,"block_height":1,"block_hash":"%s"}' % TXID.hex().encode(), b"!x", b'!{"id":[]}',
    )  # fmt: skip
    match name:
        case "bitcoin-peer":
            heads = [bytes([q, c]) for q in range(6) for c in (*range(13), 255)]
            return [head + len(r).to_bytes(2, "big") + r for r in (*plain[::60], b"", bytes(90)) for head in heads]
        case "electrum" | "esplora":
            return [bytes([q]) + b"\n".join((a, b, a)) for q in range(12) for a in answers for b in answers]
        case "prices":
            return [b'{"a":[{"b":"1.5"}],"bitcoin":{"eur":85000.1}}', b"[1e5]", b'["1e400"]', b"[" * 2_000]
        case "nat-pmp":
            seen = b"\x0c" + natpmp._SEEN.pack(0, 128, 0, 0, b"\x01\x02\x03\x04")
            mapped = [b"\x10" + natpmp._MAPPED.pack(0, 128 | op, 0, 0, 4_000, 4_000, 60) for op in (1, 2)]
            routes = b"Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0102A8C0\t0003\n"
            return [seen + mapped[0] + mapped[1], seen, routes]
        case "upnp":
            soap = b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body/></s:Envelope>'
            return [DESCRIPTION, b"\0".join((DESCRIPTION, SERVICE_XML, soap, soap)), b"http://192.168.1.1:80/d.xml"]
        case "mdns":
            return [b"\x01\x02\x05key=a\x0cnetwork=regt", b"\x00\x01" + b"\x09group=g\xff", *plain[::50]]
        case "zmq":
            return [b"hashblock\n" + bytes(32) + b"\nabcd", b"sequence\n" + bytes(32) + b"A12345678\nabcd"]
        case "blocks":
            head = bytes(4) + ANCHORS[NET][0].hash + bytes(32) + (1_700_000_000).to_bytes(4, "little")
            return [*plain, *(head + bytes.fromhex(bits) + bytes(4) for bits in ("ffff7f20", "00000000", "ffff001d"))]
        case _:
            return plain
