"""A small internet out of network namespaces: public hosts, and homes behind NAT routers, around one core router.

    home-1 ── nat-1 ══╗            ╔══ public hosts, each in a network of its own
    home-2 ── nat-2 ══╩══ core ════╝

All homes have the same addresses (192.168.1.0/24), as homes do. A NAT masquerades what goes out (nftables) and has
nothing to let in; the core has no route to any home. Every namespace, interface and process is removed at the end,
also after a failure; names carry our process id.

The chain is not what is tested: each namespace has an interface of its own to the machine's one bitcoind, and nothing
but bitcoind's port is let through there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from p2pnode.regtest import follow_parent

PROGRAMS = ("ip", "nft")
PACKAGES = ("iproute2", "nftables")
CLONE_NEWNET = 0x4000_0000
HOME = "192.168.1.10"
_LIBC = ctypes.CDLL(None, use_errno=True)


class CannotSetUp(Exception):
    """This machine does not let us make namespaces."""


def obstacle() -> str | None:
    """Why no namespaces can be made here; None when they can. Installs what is missing, as root on Debian."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [package for program, package in zip(PROGRAMS, PACKAGES, strict=True) if shutil.which(program) is None]
    if missing:
        if shutil.which("apt-get") is None:
            return f"install {' and '.join(missing)} first"
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            return f"{' and '.join(missing)} could not be installed"
    name = f"p2p{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel or container does not allow network namespaces"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


def nft(namespace: str, rules: str) -> None:
    """Load nftables rules."""
    run("ip", "netns", "exec", namespace, "nft", "-f", "-", given=rules)


def run(*command: str, given: str = "") -> str:
    """Run a program; its output. Raises CannotSetUp with what it said."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotSetUp(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes in the block belong to the namespace. Nothing may be awaited in it."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _set_namespace(there)
        yield
    finally:
        _set_namespace(here)
        os.close(here)
        os.close(there)


def _set_namespace(descriptor: int) -> None:
    if _LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def socket_in(namespace: str, info: tuple[int, int, int, str, object]) -> socket.socket:
    """A socket in the namespace, as aiohttp's `socket_factory`."""
    with inside(namespace):
        return socket.socket(*info[:3])


class Lab:
    """`with Lab() as lab:`."""

    def __init__(self) -> None:
        self._prefix = f"p2p{os.getpid()}"
        self._namespaces: list[str] = []
        self._outside: list[str] = []
        self._links = 0
        self._wires: list[subprocess.Popen[bytes]] = []
        self.core = ""

    def __enter__(self) -> Self:
        try:
            self.core = self.namespace("core")
            self._forward(self.core)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        for wire in self._wires:
            wire.kill()
            wire.wait()
        for name in self._outside:
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        self._wires.clear()
        self._outside.clear()
        self._namespaces.clear()

    def leftovers(self) -> list[str]:
        """Namespaces and interfaces of ours that are still there."""
        return [line for line in (run("ip", "netns") + run("ip", "-o", "link")).splitlines() if self._prefix in line]

    def namespace(self, name: str) -> str:
        """A new namespace; its full name."""
        full = f"{self._prefix}-{name}"
        run("ip", "netns", "add", full)
        self._namespaces.append(full)
        self.ip(full, "link", "set", "lo", "up")
        return full

    def ip(self, namespace: str, *arguments: str) -> str:
        """`ip` in a namespace."""
        return run("ip", "-n", namespace, *arguments)

    def host(self, name: str, network: str, *, delay_ms: float = 0, loss: float = 0) -> str:
        """A public host: `network` is its /24 without the last number, it is .2 and the core .1."""
        host = self.namespace(name)
        self._uplink(host, network, delay_ms, loss)
        return host

    def also_ipv6(self, host: str, network: str) -> None:
        """Give a host an IPv6 line too: `network` is its /64 without the last colon, it is :2 and the core :1."""
        self._links += 1
        core = f"six{self._links}"
        run("ip", "link", "add", "wan6", "netns", host, "type", "veth", "peer", "name", core, "netns", self.core)
        # No duplicate detection: an address that is still being looked into can't be listened on.
        for namespace, interface, end in ((host, "wan6", "2"), (self.core, core, "1")):
            self.ip(namespace, "address", "add", f"{network}:{end}/64", "dev", interface, "nodad")
            self.ip(namespace, "link", "set", interface, "up")
        self.ip(host, "route", "add", "default", "via", f"{network}:1", "dev", "wan6")

    def host6(self, name: str, network: str) -> str:
        """A public host with IPv6 only."""
        host = self.namespace(name)
        self.also_ipv6(host, network)
        return host

    def without_udp(self, namespace: str) -> None:
        """A firewall that lets no datagram in or out."""
        rules = """
            table inet firewall {
                chain out { type filter hook output priority filter; oifname != "lo" meta l4proto udp drop; }
                chain into { type filter hook input priority filter; iifname != "lo" meta l4proto udp drop; }
            }"""
        nft(namespace, rules)

    def home(self, name: str, network: str, *, delay_ms: float = 0, loss: float = 0) -> tuple[str, str]:
        """A home behind a NAT whose public address is .2 of `network`; both namespaces."""
        nat, home = self.namespace(f"nat-{name}"), self.namespace(f"home-{name}")
        self._forward(nat)
        wan = self._uplink(nat, network, delay_ms, loss)
        self.cable((nat, "lan", "192.168.1.1/24"), (home, "eth0", f"{HOME}/24"))
        self.ip(home, "route", "add", "default", "via", "192.168.1.1")
        rules = f"""
            table ip nat {{
                chain out {{
                    type nat hook postrouting priority srcnat
                    oifname "{wan}" masquerade
                }}
            }}
            table ip guard {{
                chain through {{
                    type filter hook forward priority filter; policy drop
                    ct state established,related accept
                    iifname "lan" accept
                    ct status dnat accept
                }}
            }}"""
        nft(nat, rules)
        return nat, home

    def chain_link(self, namespace: str) -> str:
        """A link between a namespace and this machine; this machine's address on it."""
        self._links += 1
        number = self._links
        ours, theirs = f"10.99.{number}.1", f"10.99.{number}.2"
        name = f"{self._prefix}c{number}"
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "chain", "netns", namespace)
        self._outside.append(name)
        run("ip", "address", "add", f"{ours}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        self.ip(namespace, "address", "add", f"{theirs}/30", "dev", "chain")
        self.ip(namespace, "link", "set", "chain", "up")
        return ours

    def chain_guard(self, namespace: str, port: int) -> None:
        """Let nothing but connections to `port` pass on the link."""
        rules = f"""
            table ip bitcoin {{
                chain from_it {{
                    type filter hook input priority filter
                    iifname "chain" ct state established accept
                    iifname "chain" drop
                }}
                chain to_it {{
                    type filter hook output priority filter
                    oifname "chain" tcp dport {port} accept
                    oifname "chain" drop
                }}
            }}"""
        nft(namespace, rules)

    def _forward(self, namespace: str) -> None:
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            run("ip", "netns", "exec", namespace, "sh", "-c", f"echo 1 > /proc/sys/net/{switch}")

    def _uplink(self, namespace: str, network: str, delay_ms: float, loss: float) -> str:
        """Connect to the core: by a cable, or by a wire that is long or bad. Returns the interface's name."""
        here, core = f"{network}.2", f"{network}.1"
        if delay_ms or loss:
            name = self._wire((namespace, here), (self.core, core), delay_ms, loss)
        else:
            self._links += 1
            name = "wan"
            self.cable((namespace, name, f"{here}/24"), (self.core, f"to{self._links}", f"{core}/24"))
        self.ip(namespace, "route", "add", "default", "via", core)
        return name

    def cable(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
        """A veth pair: (namespace, interface, address) of both ends."""
        run("ip", "link", "add", one[1], "netns", one[0], "type", "veth", "peer", "name", other[1], "netns", other[0])
        for namespace, interface, address in (one, other):
            self.ip(namespace, "address", "add", address, "dev", interface)
            self.ip(namespace, "link", "set", interface, "up")

    def _wire(self, one: tuple[str, str], other: tuple[str, str], delay_ms: float, loss: float) -> str:
        """A wire with delay (one way, ms) and loss (each way, %) between (namespace, address) and the other."""
        self._links += 1
        names = [f"{self._prefix}w{self._links}{end}" for end in "ab"]
        program = str(Path(__file__).parent / "wire.py")
        wire = subprocess.Popen(
            [sys.executable, program, *names, str(delay_ms), str(loss), str(self._links)],
            stdout=subprocess.PIPE,
            preexec_fn=follow_parent(os.getpid()),  # noqa: PLW1509 - as in p2pnode.demo.cast
        )
        self._wires.append(wire)
        assert wire.stdout is not None
        with contextlib.closing(wire.stdout):
            if wire.stdout.read(1) != b"+":
                raise CannotSetUp("no TUN interface can be made")
        for name, (namespace, address), (_, peer) in zip(names, (one, other), (other, one), strict=True):
            run("ip", "link", "set", name, "netns", namespace)
            self.ip(namespace, "address", "add", address, "peer", peer, "dev", name)
            self.ip(namespace, "link", "set", name, "up")
        return names[0]
