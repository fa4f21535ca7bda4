"""A long, lossy wire between two namespaces: two TUN interfaces, and this process between them.

    python wire.py NAME-A NAME-B DELAY-MS LOSS-PERCENT SEED

What leaves by one interface comes out of the other, later or not at all. It stands in for `tc netem`, which not every
kernel has. A byte on standard output says that both interfaces exist; they vanish with the process.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
PACKET = 65_536


def open_tun(name: str) -> int:
    """The descriptor of a new TUN interface."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def carry(one: int, other: int, delay: float, loss: float, rng: random.Random) -> None:
    """Carry packets both ways, forever."""
    across = {one: other, other: one}
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select(across, (), (), pause)[0]:
            while True:
                try:
                    packet = os.read(source, PACKET)
                except BlockingIOError:
                    break
                if rng.random() >= loss:
                    count += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, count, across[source], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, sink, packet = heapq.heappop(waiting)
            try:
                os.write(sink, packet)
            except OSError:
                continue  # the interface is down, or its queue full: both are loss


def main() -> None:
    """Be the wire."""
    name_a, name_b, delay_ms, loss_percent, seed = sys.argv[1:]
    one, other = open_tun(name_a), open_tun(name_b)
    os.write(1, b"+")
    carry(one, other, float(delay_ms) / 1000, float(loss_percent) / 100, random.Random(int(seed)))


if __name__ == "__main__":
    main()
