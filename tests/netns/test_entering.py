"""Into the network where nobody is named, or none of those who are is there: by multicast, and by who was known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from p2pnode.demo.cast import Daemon
from tests.netns.lab import Lab
from tests.netns.players import client_in
from tests.netns.stage import clean_lab, skip_where_impossible

pytestmark = pytest.mark.netns
PATIENCE = 40.0


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    skip_where_impossible()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with clean_lab() as made:
        yield made


class Crew:
    """Bootstrap nodes in namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[Daemon] = []

    def add(self, name: str, namespace: str) -> Daemon:
        daemon = Daemon(name, self.folder, ("bootstrap",))
        daemon.prefix = ("ip", "netns", "exec", namespace)
        daemon.client = client_in(namespace)
        self.daemons.append(daemon)
        return daemon

    async def close(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            await daemon.hang_up()


@pytest.fixture
async def crew(short_path: Path) -> AsyncIterator[Crew]:
    made = Crew(short_path)
    yield made
    await made.close()


def config(host: str, *seeds: str, more: str = "") -> str:
    named = ", ".join(f'"{seed}"' for seed in seeds)
    return (
        f'network = "regtest"\nroles = ["bootstrap"]\n[node]\nhost = "{host}"\nport = 0\nseeds = [{named}]\n{more}\n'
        '[api]\nport = 0\n[log]\nlevel = "debug"\n'
    )


async def known(daemon: Daemon) -> set[str]:
    """The nodes in its routing table."""
    return {str(peer.node) for peer in (await daemon.api.peers()).peers if peer.via == "dht"}


async def until_known(daemon: Daemon, *others: Daemon) -> None:
    """Wait until a node knows these."""
    wanted = {other.info.node for other in others}
    async with asyncio.timeout(PATIENCE):
        while not wanted <= await known(daemon):  # noqa: ASYNC110 - other processes make it so
            await asyncio.sleep(0.2)


async def test_nodes_of_one_local_network_find_each_other_by_multicast_alone(lab: Lab, crew: Crew) -> None:
    """Two machines on one cable, no seed and nobody else; a node of another group on one of them sees nobody."""
    names = [lab.namespace(name) for name in ("left", "right")]
    lab.cable((names[0], "eth0", "192.168.7.1/24"), (names[1], "eth0", "192.168.7.2/24"))
    for name in names:
        lab.ip(name, "route", "add", "default", "dev", "eth0")
    left, right = crew.add("left", names[0]), crew.add("right", names[1])
    stranger = crew.add("stranger", names[1])
    for daemon, group in ((left, "ours"), (right, "ours"), (stranger, "theirs")):
        await daemon.start(config("0.0.0.0", more=f'mdns = "{group}"'), die_with_parent=True)
    await until_known(left, right)
    await until_known(right, left)
    assert await known(stranger) == set()


async def test_network_that_was_known_before_is_entered_again_though_every_seed_is_down(lab: Lab, crew: Crew) -> None:
    hosts = {name: lab.host(name, f"198.51.{100 + i}") for i, name in enumerate(("seed", "one", "two", "three"))}
    address = {name: f"198.51.{100 + i}.2" for i, name in enumerate(hosts)}
    seed, one, two, three = (crew.add(name, host) for name, host in hosts.items())
    await seed.start(config(address["seed"]), die_with_parent=True)
    for daemon, name in ((one, "one"), (two, "two"), (three, "three")):
        await daemon.start(config(address[name], seed.seed), die_with_parent=True)
    await until_known(one, two, three)
    seed.kill()
    one.terminate()
    await one.ended_well()
    await one.hang_up()
    again = crew.add("one", hosts["one"])
    await again.start(config(address["one"], seed.seed), die_with_parent=True)
    await until_known(again, two, three)
    assert again.info.node == one.info.node
    # And it is of use there: others know it too.
    await until_known(two, again)
