"""NAT-PMP against routers that answer as they should not; one that answers well is in tests/netns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from p2pnode.reach import natpmp
from p2pnode.reach.upnp import _trusted
from protocol.contact import Address

Answer = Callable[[bytes], bytes | None]


class Router(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.heard: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append(data)
        if (answer := self._answer(data)) is not None:
            self.transport.sendto(answer, addr)  # type: ignore[attr-defined]


async def mapped_by(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> tuple[object, list[bytes]]:
    monkeypatch.setattr(natpmp, "TRIES", (0.05, 0.05))
    transport, router = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Router(answer), local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    try:
        return await natpmp.map_port("127.0.0.1", 7352, 3_600, port), router.heard
    except natpmp.NatPmpFailed as e:
        return e, router.heard
    finally:
        transport.close()
        await asyncio.sleep(0)


def good(request: bytes) -> bytes:
    """RFC 6886, sections 3.2 and 3.3."""
    if request == b"\0\0":
        return bytes.fromhex("0080 0000 00000001 c6336402")
    return bytes((0, request[1] | 0x80)) + bytes(6) + request[4:6] + request[4:6] + request[8:12]


async def test_mapping_asks_for_the_address_then_for_both_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    address, heard = await mapped_by(good, monkeypatch)
    assert address == Address("198.51.100.2", 7352)
    assert [h.hex() for h in heard] == ["0000", "000100001cb81cb800000e10", "000200001cb81cb800000e10"]


async def test_router_that_gives_another_port_gets_both_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The DHT believes the address that our datagrams come from: another number would mislead."""

    def other(request: bytes) -> bytes:
        answer = bytearray(good(request))
        if len(request) > 2 and request[8:] != bytes(4):
            answer[11] ^= 1
        return bytes(answer)

    failed, heard = await mapped_by(other, monkeypatch)
    assert isinstance(failed, natpmp.NatPmpFailed)
    assert [h[1] for h in heard[-2:]] == [1, 2]
    assert all(h[8:] == bytes(4) for h in heard[-2:])


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: None,
        lambda _: b"",
        lambda _: bytes(500),
        lambda r: good(r)[:-1],
        lambda r: b"\x02" + good(r)[1:],
        lambda r: good(r)[:2] + b"\x00\x02" + good(r)[4:],
    ],
    ids=["silence", "nothing", "too long", "too short", "another version", "refusal"],
)
async def test_other_answers_are_no_mapping(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, _ = await mapped_by(answer, monkeypatch)
    assert isinstance(failed, natpmp.NatPmpFailed)


def test_gateway_is_read_from_the_default_route() -> None:
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
    local = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
    default = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n"
    assert natpmp.gateway(head + local + default) == "192.168.1.1"
    assert natpmp.gateway(head + local) is None


@pytest.mark.parametrize(
    ("location", "sender"),
    [
        ("http://198.51.100.7:80/d.xml", "192.168.1.1"),
        ("http://192.168.1.2:80/d.xml", "192.168.1.1"),
        ("http://8.8.8.8/d.xml", "8.8.8.8"),
        ("http://127.0.0.1:8332/", "127.0.0.1"),
        ("http://169.254.169.254/latest", "169.254.169.254"),
        ("file:///etc/passwd", "192.168.1.1"),
        ("http://router/d.xml", "192.168.1.1"),
        (None, "192.168.1.1"),
    ],
)
def test_description_is_fetched_from_the_answering_router_only(location: str | None, sender: str) -> None:
    assert _trusted(location, sender) is None


def test_routers_own_description_is_fetched() -> None:
    assert _trusted("http://192.168.1.1:5000/d.xml", "192.168.1.1") == "http://192.168.1.1:5000/d.xml"
