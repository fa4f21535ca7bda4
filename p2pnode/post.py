"""Handing trade envelopes to a peer's node over a channel, and what its refusals mean."""

from __future__ import annotations

from functools import cache

from p2pnode.channels import Channels, PeerRefused, PeerUnable, TimedOut, Unreachable
from p2pnode.delivery import DELIVER_SERVICE, Refused, Undelivered
from p2pnode.intake import OutOfOrder
from protocol.contact import ContactRecord
from protocol.errors import P2PError


class ChannelPost:
    """`delivery.Post` over channels."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def deliver(self, contact: ContactRecord, payload: bytes, seconds: float) -> None:
        """Return on the ack. Raises Undelivered, Refused."""
        try:
            await self._channels.request(
                contact.contact.node,
                contact.contact.addresses,
                DELIVER_SERVICE,
                payload,
                timeout=seconds,
                reply_limit=16,
                relays=contact.relays,
            )
        except PeerRefused as e:
            if e.peer_code == OutOfOrder.code:
                raise Undelivered("the peer misses an earlier message") from e
            raise Refused(e.peer_code, meaning(e.peer_code)) from e
        except (Unreachable, TimedOut, PeerUnable) as e:
            raise Undelivered(e.detail) from e


def meaning(code: int) -> str:
    """What the peer's error code says, in our own words: text from a peer is never shown as ours."""
    return _meanings().get(code, f"its node refused it with code {code}")


@cache
def _meanings() -> dict[int, str]:
    found: dict[int, str] = {}
    waiting: list[type[P2PError]] = [P2PError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found.setdefault(cls.code, (cls.__doc__ or "").strip().splitlines()[0])
    return found
