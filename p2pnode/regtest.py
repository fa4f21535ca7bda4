"""A private bitcoind on regtest, for the demo, the tests and the benchmarks; never for real money.

A `RegtestNode` owns one data directory and one process. It is started with free ports, stopped by process id, and
does not outlive the program that started it: the kernel signals it when that program dies (Linux), and the
interpreter ends it when it exits (everywhere). Nothing is tied to an event loop, so that a node may be shared by
tests that have a loop each: every call opens its own connection, which costs a fraction of a millisecond.

Amounts are decimal strings of whole coins on the wire of bitcoind's RPC; `Decimal` in, `Decimal` out, never floats.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import msgspec

from p2pnode.findbitcoind import BitcoindMissing, find_bitcoind
from protocol.errors import ChainError

__all__ = ["COIN", "BitcoindMissing", "RegtestError", "RegtestNode", "RpcFailed", "find_bitcoind"]

COIN: Final = 100_000_000
"""Satoshis per coin."""

MATURITY: Final = 100
"""Blocks on top of a coinbase before it may be spent."""

WALLET: Final = "miner"
"""The node's own wallet; it holds the coins that tests and the demo hand out."""

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 20.0
_RPC_SECONDS: Final = 60.0
_PORT_ATTEMPTS: Final = 8
_PORT_TAKEN: Final = ("Unable to bind", "Unable to start HTTP server", "already in use")
_WARMING_UP: Final = -28
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None

_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="string").encode


class RegtestError(ChainError):
    """The regtest bitcoind did not start or does not answer."""

    code = 4901


class RpcFailed(RegtestError):
    """bitcoind answered a call with an error; `rpc_code` is its number for it (its `RPCErrorCode`)."""

    code = 4902

    def __init__(self, method: str, rpc_code: int, message: str) -> None:
        """Keep the parts apart, so that callers decide by number."""
        super().__init__(f"bitcoind refused {method}: {message} ({rpc_code})")
        self.rpc_code = rpc_code


class RegtestNode:
    """One bitcoind: `async with RegtestNode(folder) as node: await node.mine(1)`.

    The same object can be stopped and started again; it keeps its chain, not its ports.
    """

    def __init__(
        self,
        datadir: Path,
        *,
        binary: Path | None = None,
        txindex: bool = False,
        extra_args: tuple[str, ...] = (),
        die_with_parent: bool = True,
    ) -> None:
        """Name the data directory (made at the start, never removed) and the options.

        Args:
            datadir: this node's own folder.
            binary: the bitcoind to run; by default what `find_bitcoind` finds.
            txindex: index all transactions, not only those of the wallet.
            extra_args: further options of bitcoind.
            die_with_parent: False leaves the process running when this program ends.
        """
        self.datadir = datadir
        self._binary = binary
        self._args = (f"-txindex={int(txindex)}", *extra_args)
        self._die_with_parent = die_with_parent
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup: weakref.finalize[[subprocess.Popen[bytes]], RegtestNode] | None = None
        self.rpc_port = 0
        self.p2p_port = 0
        self.zmq_port = 0

    # -- the process ------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Start bitcoind and return when it answers.

        Raises:
            RegtestError: it ended or did not answer in time; the message holds its last words.
            BitcoindMissing: there is none on this machine.
        """
        if self._process is not None:
            raise RegtestError("this regtest node is running already")
        binary = self._binary or find_bitcoind()
        self.datadir.mkdir(parents=True, exist_ok=True)
        for _ in range(_PORT_ATTEMPTS):
            self._spawn(binary)
            try:
                if await self._ready():
                    return self
            except BaseException:
                self.kill()
                raise
            # Another program took one of the ports between our look and bitcoind's: take other ones.
            self.kill()
        raise RegtestError(f"bitcoind found no free ports in {_PORT_ATTEMPTS} attempts")

    async def start_on(self, ports: tuple[int, int, int], *extra_args: str) -> Self:
        """Start again where others look for it: on these ports (RPC, P2P, ZMQ), this time with more options.

        Raises RegtestError, also when a port is taken by now.
        """
        binary, usual = self._binary or find_bitcoind(), self._args
        self._args = (*usual, *extra_args)
        try:
            self._spawn(binary, ports)
        finally:
            self._args = usual
        if not await self._ready():
            self.kill()
            raise RegtestError("one of bitcoind's ports is taken by another program")
        return self

    async def stop(self) -> None:
        """Ask bitcoind to shut down, as an operator's SIGTERM does, and wait; nothing to do if it is not running."""
        process = self._process
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End bitcoind at once, as a power cut does; nothing to do if it is not running."""
        if self._cleanup is not None:
            self._cleanup()
        self._cleanup = self._process = None

    def let_go(self) -> None:
        """Leave bitcoind running: from here on it is the caller's to end, by its process id."""
        if self._cleanup is not None:
            self._cleanup.detach()

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        """Stop, or kill if the wait for that is cancelled."""
        try:
            await self.stop()
        finally:
            self.kill()

    @property
    def pid(self) -> int | None:
        """The process id, or None when not running."""
        return self._process.pid if self._process else None

    def _spawn(self, binary: Path, ports: Sequence[int] | None = None) -> None:
        self.rpc_port, self.p2p_port, self.zmq_port = ports or _free_ports(3)
        self.cookie_path.unlink(missing_ok=True)
        zmq = f"tcp://127.0.0.1:{self.zmq_port}"
        command = [
            str(binary),
            "-regtest",
            f"-datadir={self.datadir.absolute()}",
            "-server=1",
            f"-rpcport={self.rpc_port}",
            "-rpcbind=127.0.0.1",
            "-rpcallowip=127.0.0.1",
            "-listen=1",
            f"-bind=127.0.0.1:{self.p2p_port}",
            "-listenonion=0",
            "-natpmp=0",
            "-discover=0",
            "-dnsseed=0",
            "-fixedseeds=0",
            # Relay to our own peers at once, and never ban a test's misbehaving client.
            "-whitelist=noban@127.0.0.1",
            *(f"-zmqpub{topic}={zmq}" for topic in ("hashblock", "hashtx", "rawblock", "rawtx", "sequence")),
            "-blockfilterindex=1",
            "-peerblockfilters=1",
            "-fallbackfee=0.00002",
            # Small and quick: there is little to keep, and nothing to keep it safe from.
            "-keypool=8",
            "-dbcache=8",
            "-maxmempool=32",
            "-par=1",
            "-unsafesqlitesync=1",
            "-printtoconsole=0",
            *self._args,
        ]
        with (self.datadir / "console.log").open("wb") as console:
            # A session of its own: Ctrl-C in the terminal reaches us, and we stop the node in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=follow_parent(os.getpid()) if self._die_with_parent else None,  # noqa: PLW1509 - one system call, and no lock is taken in the child
            )
        self._cleanup = weakref.finalize(self, _end, self._process)
        self._cleanup.atexit = self._die_with_parent

    async def _ready(self) -> bool:
        """Wait until bitcoind answers; False if it found a port taken."""
        process = self._process
        deadline = time.monotonic() + _START_SECONDS
        while process is not None and time.monotonic() < deadline:
            if process.poll() is not None:
                said = self._console()
                if any(sign in said for sign in _PORT_TAKEN):
                    return False
                raise RegtestError(f"bitcoind ended at its start: {said or process.returncode}")
            try:
                notifications = await self.rpc("getzmqnotifications")
            except (OSError, aiohttp.ClientError, RegtestError) as error:
                if isinstance(error, RpcFailed) and error.rpc_code != _WARMING_UP:
                    raise
                await asyncio.sleep(0.01)
                continue
            # bitcoind goes on without its notifications when their port is taken.
            return bool(notifications)
        raise RegtestError(f"bitcoind did not answer within {_START_SECONDS:.0f} s of its start: {self._console()}")

    def _console(self) -> str:
        lines = (self.datadir / "console.log").read_text(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[:1000]

    # -- its interfaces ---------------------------------------------------------------------------------------

    @property
    def rpc_url(self) -> str:
        """Where its JSON-RPC answers, without credentials."""
        return f"http://127.0.0.1:{self.rpc_port}"

    @property
    def zmq_url(self) -> str:
        """Where it publishes hashblock, hashtx, rawblock, rawtx and sequence."""
        return f"tcp://127.0.0.1:{self.zmq_port}"

    @property
    def cookie_path(self) -> Path:
        """The file with `user:password` for its RPC; it exists while bitcoind runs."""
        return self.datadir / "regtest" / ".cookie"

    async def rpc(self, method: str, *params: object, wallet: str | None = None) -> Any:  # noqa: ANN401 - JSON
        """Call `method` with positional parameters and return its result, its fractional numbers as `Decimal`.

        Raises:
            RpcFailed: bitcoind answered with an error.
            RegtestError: it is not running or not yet ready to be asked.
        """
        try:
            login = base64.b64encode(self.cookie_path.read_bytes()).decode()
        except FileNotFoundError:
            raise RegtestError from None
        url = f"{self.rpc_url}/wallet/{wallet}" if wallet else self.rpc_url
        call = _encode({"jsonrpc": "2.0", "id": 0, "method": method, "params": params})
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=_RPC_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, data=call, headers=headers) as response,
        ):
            raw = await response.read()
        try:
            answer = _decode(raw)
        except msgspec.DecodeError:
            # 401 while the cookie is being replaced, 503 when its queue is full: plain text, no JSON.
            raise RegtestError(f"bitcoind answered {method} with HTTP status {response.status}") from None
        if (error := answer.get("error")) is not None:
            raise RpcFailed(method, error["code"], error["message"])
        return answer["result"]

    # -- the chain --------------------------------------------------------------------------------------------

    async def height(self) -> int:
        """Return the height of the tip."""
        height: int = await self.rpc("getblockcount")
        return height

    async def mine(self, blocks: int = 1, address: str | None = None) -> list[str]:
        """Mine `blocks` with what is in the mempool, pay `address` (else the node's wallet), return their hashes."""
        hashes: list[str] = await self.rpc("generatetoaddress", blocks, address or await self.new_address())
        return hashes

    async def new_address(self) -> str:
        """Return a fresh segwit address of the node's own wallet, which is made at the first need."""
        await self._ensure_wallet()
        address: str = await self.rpc("getnewaddress", "", "bech32", wallet=WALLET)
        return address

    async def ensure_coins(self, coinbases: int = 4) -> None:
        """Give the node's wallet at least so many mature coinbases of 50 coins; quick if it has them."""
        await self._ensure_wallet()
        ripe = await self.rpc("listunspent", MATURITY + 1, wallet=WALLET)
        if len(ripe) < coinbases:
            await self.mine(coinbases - len(ripe) + MATURITY)

    async def fund(self, address: str, amount_sats: int, *, confirmations: int = 1) -> str:
        """Send `amount_sats` from the node's wallet to `address`, mine `confirmations`, return the txid."""
        await self.ensure_coins(1)
        txid: str = await self.rpc("sendtoaddress", address, Decimal(amount_sats) / COIN, wallet=WALLET)
        if confirmations:
            await self.mine(confirmations)
        return txid

    async def reorganise(self, depth: int) -> list[str]:
        """Replace the last `depth` blocks by `depth + 1` empty ones and return their hashes.

        The transactions of the replaced blocks are unconfirmed afterwards, where they are still valid.
        """
        height = await self.height()
        if not 0 < depth <= height:
            raise RegtestError(f"a chain of {height} blocks can't lose {depth}")
        await self.rpc("invalidateblock", await self.rpc("getblockhash", height - depth + 1))
        return await self.mine_empty(depth + 1)

    async def mine_empty(self, blocks: int = 1) -> list[str]:
        """Mine `blocks` that leave the mempool as it is and return their hashes."""
        # A fresh address makes each block differ from one that was invalidated at the same height.
        address = await self.new_address()
        return [(await self.rpc("generateblock", address, []))["hash"] for _ in range(blocks)]

    async def _ensure_wallet(self) -> None:
        if WALLET in await self.rpc("listwallets"):
            return
        known = (await self.rpc("listwalletdir"))["wallets"]
        if any(entry["name"] == WALLET for entry in known):
            await self.rpc("loadwallet", WALLET)
        else:
            await self.rpc("createwallet", WALLET)

    # -- other nodes ------------------------------------------------------------------------------------------

    async def connect(self, other: RegtestNode) -> None:
        """Connect to `other` and return when both have the better tip of the two."""
        await self.rpc("addnode", f"127.0.0.1:{other.p2p_port}", "onetry")
        await self._until_same_tip(other)

    async def disconnect(self, other: RegtestNode) -> None:
        """Cut the connection made by `connect`, whichever side made it: from here on the two mine alone."""
        for one, two in ((self, other), (other, self)):
            for peer in await one.rpc("getpeerinfo"):
                if peer["addr"] == f"127.0.0.1:{two.p2p_port}":
                    await one.rpc("disconnectnode", "", peer["id"])
        for node in (self, other):
            await _until(node.alone, "the two nodes did not part")

    async def alone(self) -> bool:
        """Tell whether no peer is connected."""
        return not await self.rpc("getpeerinfo")

    async def _until_same_tip(self, other: RegtestNode) -> None:
        async def same() -> bool:
            return bool(await self.rpc("getbestblockhash") == await other.rpc("getbestblockhash"))

        await _until(same, "the two nodes did not reach the same tip")


async def _until(true: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not await true():
        if time.monotonic() > deadline:
            raise RegtestError(otherwise)
        await asyncio.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    # All are held at once, so that they differ. That nobody takes one until bitcoind does can't be had; it is retried.
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
        return ports


def follow_parent(parent: int) -> Callable[[], None] | None:
    """Return a `preexec_fn` that makes a child of `parent` end with it (Linux; elsewhere nothing)."""
    libc = _LIBC
    if libc is None:
        return None

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)

    return in_child


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap `process`."""
    process.kill()
    process.wait()
