"""Wait for a transaction to enter bitcoind's mempool: told by bitcoind itself (ZMQ), to the millisecond.

Every txid that bitcoind announces from `open` on is remembered, so it does not matter whether one asks before or after
the transaction arrives.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio

from p2pnode.regtest import RegtestNode


class Mempool:
    """The arrivals at one bitcoind; an async context manager."""

    def __init__(self, bitcoind: RegtestNode) -> None:
        """Name the bitcoind; it must be running when the context is entered."""
        self._bitcoind = bitcoind
        self._context = zmq.asyncio.Context()
        self._arrivals: dict[str, float] = {}
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(b"hashtx")
        socket.connect(self._bitcoind.zmq_url)
        self._task = asyncio.create_task(self._listen(socket), name="mempool")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def wait(self, txid: str, seconds: float) -> float:
        """Return when (`time.perf_counter`) bitcoind announced the transaction. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while txid not in self._arrivals:
                # Announced before the subscription was through: rare, and then it simply lies there.
                if txid in await self._bitcoind.rpc("getrawmempool"):
                    return self._arrivals.setdefault(txid, time.perf_counter())
                arrived = self._arrived
                if txid not in self._arrivals:
                    await arrived.wait()
        return self._arrivals[txid]

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        with socket:
            while True:
                _, txid, _ = await socket.recv_multipart()
                self._arrivals.setdefault(txid.hex(), time.perf_counter())
                self._arrived.set()
                self._arrived = asyncio.Event()
