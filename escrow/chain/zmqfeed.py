"""bitcoind's ZMQ notifications: hints that something happened, milliseconds after it did.

They are hints only. Messages can be lost, doubled, or come before the RPC interface knows of what they tell, so the
backend asks over RPC before it believes one, and polls as well. A gap in a topic's numbers is reported as `Lost`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

import zmq
import zmq.asyncio

from escrow.chain.view import ArrivedHint, BlockHint, GoneHint, Hint, Lost, TxHint

TOPICS: Final = ("hashblock", "rawtx", "sequence")
"""What is listened to, where bitcoind offers it: `hashblock`, and one of the others at least."""

_QUEUE: Final = 100_000


class ZmqFeed:
    """A subscription to one bitcoind. Reconnects by itself."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        """Take the address of each topic, such as `{"hashblock": "tcp://127.0.0.1:28332"}`."""
        self.endpoints = dict(endpoints)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUE)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        for topic in self.endpoints:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        for address in sorted(set(self.endpoints.values())):
            self._socket.connect(address)
        self._numbers: dict[bytes, int] = {}
        # It may be subscribed to where nobody publishes it.
        self._raw_comes = False

    def close(self) -> None:
        """End the subscription and the iteration over it."""
        self._socket.close()
        self._context.term()

    async def hints(self) -> AsyncIterator[Hint]:
        """Every notification, until the task that iterates is cancelled."""
        while True:
            parts = await self._socket.recv_multipart()
            for hint in self._read(parts):
                yield hint

    def _read(self, parts: list[bytes]) -> list[Hint]:
        if len(parts) != 3 or len(parts[2]) != 4:
            return []
        topic, body, number = parts[0], parts[1], int.from_bytes(parts[2], "little")
        hints: list[Hint] = []
        expected = self._numbers.get(topic)
        if expected is not None and number != expected:
            hints.append(Lost())
        self._numbers[topic] = (number + 1) & 0xFFFF_FFFF
        if topic == b"hashblock" and len(body) == 32:
            hints.append(BlockHint(body[::-1]))
        elif topic == b"rawtx":
            self._raw_comes = True
            hints.append(TxHint(body))
        elif topic == b"sequence" and len(body) == 41:
            # A: added to the mempool, R: removed. Messages about blocks carry no mempool number and are shorter.
            txid, label = body[:32][::-1], body[32:33]
            if label == b"R":
                hints.append(GoneHint(txid))
            elif label == b"A" and not self._raw_comes:
                hints.append(ArrivedHint(txid))
        return hints
