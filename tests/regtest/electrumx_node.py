"""A real ElectrumX (its maintained fork `e-x`) over a regtest bitcoind."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from p2pnode.regtest import RegtestNode, follow_parent

RUNNER = Path(__file__).with_name("run_electrumx.py")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ElectrumX:
    """One server process; `url` is where it answers."""

    def __init__(self, node: RegtestNode, folder: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        self._node = node
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"{'ssl' if self._tls else 'tcp'}://localhost:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it serves, which is once it has caught up."""
        self._spawn()
        async with asyncio.timeout(60):
            while self._process is not None:
                if self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()[-2_000:])
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    await writer.wait_closed()
                    return
                await asyncio.sleep(0.02)

    def _spawn(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        login = self._node.cookie_path.read_text()
        environment = {
            "PATH": os.environ["PATH"],
            "COIN": "Bitcoin",
            "NET": "regtest",
            "DB_ENGINE": "sqlite",
            "DB_DIRECTORY": str(self._folder),
            "DAEMON_URL": f"http://{login}@127.0.0.1:{self._node.rpc_port}/",
            "SERVICES": self.url,
            "REPORT_SERVICES": "",
            "PEER_DISCOVERY": "",
            "ALLOW_ROOT": "1",
            "COST_SOFT_LIMIT": "0",
            "COST_HARD_LIMIT": "0",
            "REQUEST_SLEEP": "0",
            "INITIAL_CONCURRENT": "100",
            "DAEMON_POLL_INTERVAL_BLOCKS": "50",
            "DAEMON_POLL_INTERVAL_MEMPOOL": "50",
            "LOG_LEVEL": "info",
        }
        if self._tls is not None:
            environment |= {"SSL_CERTFILE": str(self._tls[0]), "SSL_KEYFILE": str(self._tls[1])}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(RUNNER)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=follow_parent(os.getpid()),  # noqa: PLW1509 - one system call
            )

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None


@asynccontextmanager
async def electrumx_on(
    node: RegtestNode, folder: Path, *, tls: tuple[Path, Path] | None = None
) -> AsyncIterator[ElectrumX]:
    server = ElectrumX(node, folder, tls=tls)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
