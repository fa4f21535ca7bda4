"""The demo's processes: a bitcoind and the real daemon once for each part, all in one folder.

Every process is one that we started and that we end by its id, whatever happens to us: in order when the demo is over,
by the interpreter when it exits, by the kernel when we die (Linux). Only `keep` lets them run on.

A node gets a data directory as `p2pnode init` makes it, without a passphrase, and finds its ports by itself (port 0);
we learn them from its API. Its output is its log.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from p2pnode.api.schema import NodeView
from p2pnode.client import ApiError, Client
from p2pnode.config import ENVIRONMENT_PREFIX, KdfCost, Role
from p2pnode.datadir import DataDir, write_private
from p2pnode.keystore import PASSPHRASE_VARIABLE, create, new_mnemonic
from p2pnode.regtest import RegtestNode, follow_parent
from protocol.errors import LocalError, P2PError
from protocol.types import Network

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.01
_DYING_SECONDS: Final = 0.2
_LAST_WORDS: Final = 2_000
_PROGRAM: Final = Path(__file__).parents[2] / "cli.py"
"""The command line lies beside our package, in a checkout as in an installation; what is on PATH may be another."""

T = TypeVar("T")


class DemoFailed(LocalError):
    """A step of the demo did not come out as it should."""

    code = 1910


class Daemon:
    """One node: its name, its data directory, its process, and a client of its API."""

    def __init__(self, name: str, folder: Path, roles: Sequence[Role]) -> None:
        """Name it; nothing is made yet."""
        self.name = name
        self.roles = tuple(roles)
        self.data = DataDir(folder / name)
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup: weakref.finalize[[subprocess.Popen[bytes]], Daemon] | None = None
        self.prefix: tuple[str, ...] = ()
        """What runs the program: nothing, or a command that runs another one, somewhere else."""
        self.client = Client
        """How its API is reached."""
        self._client: Client | None = None
        self._info: NodeView | None = None

    @property
    def api(self) -> Client:
        """The client of the running node."""
        if self._client is None:
            raise self.failure("is not running")
        return self._client

    @property
    def info(self) -> NodeView:
        """What it said of itself when it had started."""
        if self._info is None:
            raise self.failure("is not running")
        return self._info

    @property
    def persona(self) -> str:
        """Its persona, as text."""
        return self.info.persona or ""

    @property
    def seed(self) -> str:
        """How other nodes name it to enter the network by."""
        return f"{self.info.node}@{self.info.listen[0]}"

    @property
    def pid(self) -> int:
        """Its process id; 0 when it is not running."""
        return self._process.pid if self._process else 0

    def failure(self, what: str) -> DemoFailed:
        """One line: which node, what, and where its log is."""
        if self._process is not None:
            # A process that dies drops its connections a moment before it is gone.
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_DYING_SECONDS)
                what = f"{what}: its process ended with exit code {code} ({self._last_words()})"
        return DemoFailed(f"the {self.name} {what}; its log: {self.log}")

    async def ask(self, answer: Awaitable[T], otherwise: str) -> T:
        """Await an answer of this node's API; what goes wrong becomes one line. Raises DemoFailed."""
        try:
            return await answer
        except DemoFailed:
            raise
        except (ApiError, P2PError) as e:
            raise self.failure(f"{otherwise} ({e.detail})") from e

    async def start(self, config: str, *, die_with_parent: bool) -> None:
        """Make the data directory if need be, start the node, and return once it answers. Raises DemoFailed."""
        await asyncio.to_thread(self._make, config)
        self._spawn(die_with_parent=die_with_parent)
        deadline = time.monotonic() + START_SECONDS
        while not self.data.endpoint.exists():
            if (ended := self._ended()) or time.monotonic() > deadline:
                raise self.failure("did not start" if ended else f"did not start within {START_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            self._client = self.client.open(self.data.path)
        except P2PError as e:
            raise self.failure(f"does not say where it answers ({e.detail})") from e
        self._info = await self.ask(self._client.info(), "does not answer")

    def terminate(self) -> None:
        """Ask it to shut down, as an operator does; nothing to do when it is not running."""
        if self._process is not None:
            self._process.terminate()

    async def ended_well(self) -> None:
        """Wait until it is gone. Raises DemoFailed when it lingers or fails."""
        process = self._process
        if process is None:
            return
        try:
            code = await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not stop within {STOP_SECONDS:.0f} s") from None
        if code != 0:
            raise self.failure("did not stop in order")

    def let_go(self) -> None:
        """Leave it running; it is no longer ours to end."""
        if self._cleanup is not None:
            self._cleanup.detach()

    def kill(self) -> None:
        """End it at once."""
        if self._cleanup is not None:
            self._cleanup()
        self._cleanup = self._process = None

    async def hang_up(self) -> None:
        """Close the connection to its API."""
        if self._client is not None:
            await self._client.close()

    def _spawn(self, *, die_with_parent: bool) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches us, and we end the node in order.
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, str(_PROGRAM), "run", "--datadir", str(self.data.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
                preexec_fn=follow_parent(os.getpid()) if die_with_parent else None,  # noqa: PLW1509 - one system call, and no lock is taken in the child
            )
        self._cleanup = weakref.finalize(self, _end, self._process)
        self._cleanup.atexit = die_with_parent

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _make(self, config: str) -> None:
        self.data.create()
        if self.data.keystore.exists():
            return
        # Nothing here is worth a passphrase, and everything is made to be thrown away.
        create(
            self.data.keystore,
            mnemonic=new_mnemonic(),
            passphrase="",
            network=Network.REGTEST,
            cost=KdfCost.INTERACTIVE,
        )
        write_private(self.data.config, config.encode())

    def _last_words(self) -> str:
        said = self.log.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace").strip().splitlines()
        return said[-1].strip() if said else "it said nothing"


class Cast:
    """All processes of one demo."""

    def __init__(self, folder: Path, binary: Path, *, keep: bool) -> None:
        """Name them; `binary` is the bitcoind to run, `keep` lets all of them outlive us."""
        self.folder = folder
        self.keep = keep
        self.group = f"demo-{secrets.token_hex(8)}"
        """Of chance, so that two demos on one machine stay two networks."""
        self.bitcoind = RegtestNode(folder / "bitcoind", binary=binary, txindex=True, die_with_parent=not keep)
        self.seeds = (self._daemon("bootstrap-1", "bootstrap"), self._daemon("bootstrap-2", "bootstrap"))
        self.arbiter = self._daemon("arbiter", "trader", "arbiter")
        self.backup = self._daemon("backup-arbiter", "trader", "arbiter")
        self.seller = self._daemon("seller", "trader")
        self.buyer = self._daemon("buyer", "trader")

    @property
    def arbiters(self) -> tuple[Daemon, Daemon]:
        """Both arbiters, the one that would rule first."""
        return self.arbiter, self.backup

    @property
    def traders(self) -> tuple[Daemon, Daemon]:
        """Seller and buyer."""
        return self.seller, self.buyer

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """Every node of ours."""
        return *self.seeds, *self.arbiters, *self.traders

    def _daemon(self, name: str, *roles: Role) -> Daemon:
        return Daemon(name, self.folder, roles)

    async def start_chain_and_seeds(self) -> None:
        """The bitcoind and the bootstrap nodes, at once; then the bootstrap nodes know each other."""
        await together(self.bitcoind.start(), *(self._start(daemon, ()) for daemon in self.seeds))
        first, second = self.seeds
        await second.ask(second.api.peer_add(first.seed), "does not reach the other bootstrap node")

    async def start_others(self) -> None:
        """The arbiters and the traders, at once. They know the bootstrap nodes and nobody else."""
        known = tuple(daemon.seed for daemon in self.seeds)
        await together(*(self._start(daemon, known) for daemon in (*self.arbiters, *self.traders)))

    async def _start(self, daemon: Daemon, seeds: Sequence[str]) -> None:
        await daemon.start(self._config(daemon, seeds), die_with_parent=not self.keep)

    async def stop(self) -> None:
        """End everything in order. Raises DemoFailed for a node that does not end well by itself."""
        for daemon in self.daemons:
            daemon.terminate()
        await together(*(daemon.ended_well() for daemon in self.daemons), self.bitcoind.stop())

    def let_go(self) -> None:
        """Leave everything running."""
        self.bitcoind.let_go()
        for daemon in self.daemons:
            daemon.let_go()

    async def close(self) -> None:
        """End everything of ours that still runs, at once."""
        for daemon in self.daemons:
            daemon.kill()
        self.bitcoind.kill()
        for daemon in self.daemons:
            await daemon.hang_up()

    def _config(self, daemon: Daemon, seeds: Sequence[str]) -> str:
        lines = [
            'network = "regtest"',
            f"roles = {_toml(daemon.roles)}",
            "[node]",
            'host = "127.0.0.1"',
            "port = 0",
            f"seeds = {_toml(seeds)}",
            f"mdns = {_toml(self.group)}",
            "[api]",
            "port = 0",
        ]
        if "bootstrap" not in daemon.roles:
            lines += [
                "[chain]",
                f"url = {_toml(self.bitcoind.rpc_url)}",
                f"cookie_file = {_toml(str(self.bitcoind.cookie_path.absolute()))}",
                f"zmq = {_toml((self.bitcoind.zmq_url,))}",
            ]
        return "\n".join(lines) + "\n"


async def together(*works: Coroutine[Any, Any, object]) -> None:
    """Do all at once. The first failure ends the others, and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None


def _toml(value: str | Sequence[str]) -> str:
    """A TOML text or list of texts; JSON writes both alike."""
    return json.dumps(value)


def _environment() -> dict[str, str]:
    """Ours, without what would configure a node of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return kept | {PASSPHRASE_VARIABLE: ""}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap `process`."""
    process.kill()
    process.wait()
