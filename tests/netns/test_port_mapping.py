"""A home whose router gives ports (miniupnpd, the one that most routers run): the node is reached without a relay."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.demo.cast import Daemon
from p2pnode.regtest import follow_parent
from tests.netns.lab import Lab, nft, obstacle
from tests.netns.players import client_in

WAN = "11.22.33"
"""miniupnpd gives nothing on addresses for documentation. No packet leaves the namespaces."""
RULES = """
table inet miniupnpd {
    chain prerouting { type nat hook prerouting priority dstnat; jump given; }
    chain postrouting { type nat hook postrouting priority srcnat; jump given_out; }
    chain forward { type filter hook forward priority filter; jump through; }
    chain given { }
    chain given_out { }
    chain through { }
}
"""
CONFIG = """
ext_ifname=wan
listening_ip=lan
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=through
upnp_nat_chain=given
upnp_nat_postrouting_chain=given_out
uuid=00000000-0000-4000-8000-000000000001
lease_file={folder}/leases
allow 1024-65535 0.0.0.0/0 1024-65535
"""


@pytest.fixture(autouse=True)
def _possible() -> None:
    if (why := obstacle()) is not None:
        pytest.skip(f"network namespaces: {why}")
    if shutil.which("miniupnpd") is None:
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "miniupnpd-nftables"]
        subprocess.run(command, capture_output=True, check=False)
    if shutil.which("miniupnpd") is None:
        pytest.skip("there is no router to ask: install miniupnpd-nftables")


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    with made:
        yield made
    assert made.leftovers() == []


class Router:
    """miniupnpd in a NAT's namespace."""

    def __init__(self, nat: str, folder: Path, *, natpmp: bool) -> None:
        nft(nat, RULES)
        config = folder / "miniupnpd.conf"
        config.write_text(
            CONFIG.format(natpmp="yes" if natpmp else "no", upnp="no" if natpmp else "yes", folder=folder)
        )
        self._nat = nat
        self._log = (folder / "miniupnpd.log").open("wb")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", nat, "miniupnpd", "-d", "-f", str(config), "-P", str(folder / "pid")],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=follow_parent(os.getpid()),  # noqa: PLW1509 - as in p2pnode.demo.cast
        )

    def mapped(self) -> str:
        """The mappings in force."""
        command = ["ip", "netns", "exec", self._nat, "nft", "list", "chain", "inet", "miniupnpd", "given"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.mark.netns
@pytest.mark.parametrize("natpmp", [True, False], ids=["NAT-PMP", "UPnP"])
async def test_port_from_the_router_makes_a_home_reachable_and_is_given_back(
    lab: Lab, short_path: Path, *, natpmp: bool
) -> None:
    nat, home = lab.home("trader", WAN)
    boot_host = lab.host("boot", "198.51.100")
    router = Router(nat, short_path, natpmp=natpmp)
    boot, node = Daemon("boot", short_path, ("bootstrap",)), Daemon("node", short_path, ("bootstrap",))
    for daemon, place in ((boot, boot_host), (node, home)):
        daemon.prefix = ("ip", "netns", "exec", place)
        daemon.client = client_in(place)
    try:
        await boot.start(_config("198.51.100.2"), die_with_parent=True)
        await node.start(_config("0.0.0.0", boot.seed, 'port_mapping = "yes"'), die_with_parent=True)
        port = node.info.listen[0].rpartition(":")[2]
        async with asyncio.timeout(20):
            while router.mapped().count(f"192.168.1.10:{port}") < 2:  # noqa: ASYNC110 - another process makes it so
                await asyncio.sleep(0.1)
        # Another public node dials the mapped address, with nothing but it in hand.
        await boot.api.peer_add(f"{node.info.node}@{WAN}.2:{port}")
        node.terminate()
        await node.ended_well()
        assert f":{port}" not in router.mapped()
    finally:
        for daemon in (node, boot):
            daemon.kill()
            await daemon.hang_up()
        router.close()


def _config(host: str, seed: str = "", more: str = "") -> str:
    seeds = f'["{seed}"]' if seed else "[]"
    return (
        f'network = "regtest"\nroles = ["bootstrap"]\n[node]\nhost = "{host}"\nport = 0\nseeds = {seeds}\n{more}\n'
        '[api]\nport = 0\n[log]\nlevel = "debug"\n'
    )
