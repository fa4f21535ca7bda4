"""UPnP: asking an Internet Gateway Device for a port, through async-upnp-client (ADR 0008).

Whoever answers the search on the local network says where its description is; we fetch it only from a private address
of IPv4 that sent the answer itself, so that an answer can't make us call anybody else.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from ipaddress import IPv4Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import ClientError
from async_upnp_client.aiohttp import AiohttpRequester
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.exceptions import UpnpError
from async_upnp_client.profiles.igd import IgdDevice
from async_upnp_client.search import SsdpSearchListener
from async_upnp_client.utils import CaseInsensitiveDict

from protocol.contact import Address

SEARCH_SECONDS: Final = 3
CALL_SECONDS: Final = 5
DESCRIPTION: Final = "p2pnode"
ANYBODY: Final = IPv4Address("0.0.0.0")  # noqa: S104  (the wildcard of a mapping, nothing is bound)
PROTOCOLS: Final = ("UDP", "TCP")
NONSENSE: Final = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, SyntaxError, RecursionError)
"""What the library raises over descriptions and answers that name what they do not have (found by fuzzing)."""


class UpnpFailed(OSError):
    """There is no router that speaks UPnP, or it refuses."""


class Gateway:
    """One Internet Gateway Device, and our address in its network."""

    def __init__(self, device: IgdDevice, own: IPv4Address) -> None:
        self._device = device
        self._own = own

    async def map_port(self, port: int, seconds: int) -> Address:
        """Map `port`, TCP and UDP, to the same number for `seconds`; where others reach it. Raises UpnpFailed."""
        try:
            for protocol in PROTOCOLS:
                await self._device.async_add_port_mapping(
                    ANYBODY, port, protocol, port, self._own, True, DESCRIPTION, timedelta(seconds=seconds)
                )
            external = await self._device.async_get_external_ip_address()
            if external is None:
                raise UpnpFailed("the router does not tell its address")
            return Address(str(ip_address(external)), port)
        except (UpnpError, ClientError, TimeoutError, *NONSENSE) as e:
            raise UpnpFailed(f"the router refuses ({e})") from e

    async def unmap_port(self, port: int) -> None:
        """Give both mappings back. Raises UpnpFailed."""
        try:
            for protocol in PROTOCOLS:
                await self._device.async_delete_port_mapping(ANYBODY, port, protocol)
        except (UpnpError, ClientError, TimeoutError, *NONSENSE) as e:
            raise UpnpFailed(f"the router refuses ({e})") from e


async def find_gateway(own: str) -> Gateway:
    """The first Internet Gateway Device that answers in the network of our address `own`. Raises UpnpFailed."""
    answers: asyncio.Queue[str] = asyncio.Queue(8)

    def heard(headers: CaseInsensitiveDict) -> None:
        location = _trusted(headers.get_lower("location"), headers.get_lower("_host"))
        if location is not None and headers.get_lower("st") in IgdDevice.DEVICE_TYPES and not answers.full():
            answers.put_nowait(location)

    listener = SsdpSearchListener(callback=heard, source=(own, 0), timeout=SEARCH_SECONDS)
    try:
        await listener.async_start()
        for kind in IgdDevice.DEVICE_TYPES:
            listener.search_target = kind
            listener.async_search()
        async with asyncio.timeout(SEARCH_SECONDS):
            while True:
                location = await answers.get()
                try:
                    factory = UpnpFactory(AiohttpRequester(timeout=CALL_SECONDS))
                    device = await factory.async_create_device(location)
                    return Gateway(IgdDevice(device, None), IPv4Address(own))
                except (UpnpError, ClientError, *NONSENSE):
                    continue
    except TimeoutError as e:
        raise UpnpFailed("no router that speaks UPnP answers") from e
    except OSError as e:
        raise UpnpFailed(f"the local network can't be searched: {e}") from e
    finally:
        listener.async_stop()


def _trusted(location: str | None, sender: str | None) -> str | None:
    """The address of a description that the answering host itself has, in a private network; else None."""
    try:
        parts = urlsplit(location or "")
        host = ip_address(parts.hostname or "")
    except ValueError:
        return None
    private = isinstance(host, IPv4Address) and host.is_private and not (host.is_loopback or host.is_link_local)
    return parts.geturl() if private and parts.scheme == "http" and str(host) == sender else None
