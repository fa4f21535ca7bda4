"""In-memory twins of the chain, the wallet and the post: for tests that need every interleaving, fast.

They stand where a real bitcoind, BDK and sockets stand in `tests/regtest` and `tests/network`. Scripts are verified by
Bitcoin Core's own verifier where it is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache
from hashlib import new as new_hash
from hashlib import sha256

from coincurve import PrivateKey

from escrow.chain.base import (
    BlockRef,
    ChainEvent,
    ChainStatus,
    ChainTx,
    Confirmed,
    Health,
    Rejected,
    Seen,
    SpentBy,
    TipChanged,
    Unconfirmed,
    WatchRequest,
)
from escrow.coins import OutPoint, TxOut
from escrow.errors import GateRefused
from escrow.signatures import sign_ecdsa
from escrow.transactions import build, p2wpkh_code, parse, sighash_v0, txid_of, with_witnesses
from escrow.verify import consensus_holds
from escrow.wallet.base import InsufficientFunds, Reservation, SelectedInput, Selection, Sent
from p2pnode.delivery import Refused, Undelivered
from protocol.contact import ContactRecord
from protocol.errors import Fault, P2PError
from protocol.types import Network

REPLACEABLE = 0xFFFFFFFD


@cache
def _facts(raw: bytes) -> tuple[bytes, tuple[OutPoint, ...]]:
    """A transaction's id, and what it spends."""
    return txid_of(raw), tuple(OutPoint(i.prevout.hash, i.prevout.n) for i in parse(raw).vin)


class TwinChain:
    """A chain of transactions without proof of work."""

    network = Network.REGTEST

    def __init__(self) -> None:
        self.blocks: list[list[bytes]] = [[]]
        self.mempool: dict[bytes, bytes] = {}
        self.outputs: dict[OutPoint, TxOut] = {}
        self.views: list[TwinBackend] = []
        self.broadcasts: list[bytes] = []
        self._changes = 0
        self._indexed: tuple[object, dict[bytes, int | None], dict[OutPoint, bytes]] | None = None

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    def coin(self, script: bytes, value: int) -> tuple[OutPoint, bytes]:
        """A confirmed coin out of nothing: its outpoint and the transaction that made it."""
        salt = OutPoint(sha256(len(self.outputs).to_bytes(4, "big")).digest(), 0)
        raw = build([(salt, REPLACEABLE)], [TxOut(value, script)])
        self._add(raw)
        self.blocks.append([raw])
        return OutPoint(txid_of(raw), 0), raw

    def spender(self, outpoint: OutPoint) -> tuple[bytes, int] | None:
        """(transaction, depth) that spends an output."""
        heights, spenders = self._index()
        raw = spenders.get(outpoint)
        if raw is None:
            return None
        height = heights[txid_of(raw)]
        return raw, 0 if height is None else len(self.blocks) - height

    def everything(self) -> list[tuple[int, bytes]]:
        """(depth, transaction) of all that is known."""
        found = [(0, raw) for raw in self.mempool.values()]
        return found + [(len(self.blocks) - h, raw) for h, block in enumerate(self.blocks) for raw in block]

    def depth_of(self, txid: bytes) -> int | None:
        heights, _ = self._index()
        if txid not in heights:
            return None
        height = heights[txid]
        return 0 if height is None else len(self.blocks) - height

    def _index(self) -> tuple[dict[bytes, int | None], dict[OutPoint, bytes]]:
        """Height by txid (None: mempool), and the spender of each output; made anew when something has changed."""
        key = (len(self.blocks), self._changes, tuple(self.mempool))
        if self._indexed is None or self._indexed[0] != key:
            heights: dict[bytes, int | None] = {}
            spenders: dict[OutPoint, bytes] = {}
            confirmed = [(h, raw) for h, block in enumerate(self.blocks) for raw in block]
            for height, raw in [*confirmed, *((None, raw) for raw in self.mempool.values())]:
                txid, spent = _facts(raw)
                heights[txid] = height
                spenders.update(dict.fromkeys(spent, raw))
            self._indexed = (key, heights, spenders)
        return self._indexed[1], self._indexed[2]

    def accept(self, raw: bytes) -> bytes:
        """Into the mempool. Raises Rejected."""
        txid = txid_of(raw)
        if self.depth_of(txid) is not None:
            return txid
        spent = []
        for i in parse(raw).vin:
            outpoint = OutPoint(i.prevout.hash, i.prevout.n)
            if outpoint not in self.outputs:
                raise Rejected("missing-inputs")
            rival = self.spender(outpoint)
            if rival is not None:
                if rival[1] > 0:
                    raise Rejected("bad-txns-inputs-missingorspent")
                if not self._outbids(raw, rival[0]):
                    raise Rejected("insufficient fee, rejecting replacement")
                self.mempool.pop(txid_of(rival[0]))
            self._check_age(outpoint, i.nSequence)
            spent.append(self.outputs[outpoint])
        try:
            consensus_holds(raw, spent)
        except GateRefused as e:
            raise Rejected(e.detail) from e
        self._add(raw)
        self.mempool[txid] = raw
        self.broadcasts.append(raw)
        self.tell()
        return txid

    def _check_age(self, outpoint: OutPoint, sequence: int) -> None:
        """BIP68, for the next block. Raises Rejected."""
        age = self.depth_of(outpoint.txid) or 0
        if not sequence & 1 << 31 and age < sequence & 0xFFFF:
            raise Rejected("non-BIP68-final")

    def _outbids(self, raw: bytes, rival: bytes) -> bool:
        return self._fee(raw) > self._fee(rival)

    def _fee(self, raw: bytes) -> int:
        tx = parse(raw)
        brought = sum(self.outputs[OutPoint(i.prevout.hash, i.prevout.n)].value for i in tx.vin)
        return int(brought - sum(o.nValue for o in tx.vout))

    def _add(self, raw: bytes) -> None:
        txid = txid_of(raw)
        for n, out in enumerate(parse(raw).vout):
            self.outputs[OutPoint(txid, n)] = TxOut(out.nValue, bytes(out.scriptPubKey))

    def mine(self, count: int = 1) -> None:
        """Blocks; the first takes the whole mempool."""
        for _ in range(count):
            self.blocks.append(list(self.mempool.values()))
            self.mempool.clear()
            self.tell(tip=True)

    def mine_empty(self, count: int) -> None:
        """Time passes: many blocks at once, of which everybody hears together."""
        self.blocks += [[] for _ in range(count)]
        self.tell(tip=True)

    def reorganise(self, depth: int) -> None:
        """Undo blocks; their transactions go back to the mempool."""
        self._changes += 1
        for _ in range(depth):
            for raw in self.blocks.pop():
                self.mempool[txid_of(raw)] = raw
        for view in self.views:
            view.undo()
        self.tell(tip=True)

    def tell(self, *, tip: bool = False) -> None:
        for view in self.views:
            view.look()
            if tip:
                view.emit(TipChanged(self.tip()))

    def tip(self) -> BlockRef:
        return BlockRef(self.height, self.hash(self.height), 0, 0)

    def hash(self, height: int) -> bytes:
        """What stands for the hash of a block."""
        return height.to_bytes(32, "big")


class TwinBackend:
    """One node's view of a TwinChain (`escrow.chain.base.ChainBackend`)."""

    network = Network.REGTEST

    def __init__(self, chain: TwinChain) -> None:
        self.chain = chain
        self.watches: dict[bytes, WatchRequest] = {}
        self._queues: list[asyncio.Queue[ChainEvent]] = []
        chain.views.append(self)

    async def start(self) -> None:
        return

    async def close(self) -> None:
        if self in self.chain.views:
            self.chain.views.remove(self)

    def status(self) -> ChainStatus:
        return ChainStatus(Health.READY, "twin", self.chain.tip())

    async def tip(self) -> BlockRef:
        return self.chain.tip()

    async def fee_rate(self, target_blocks: int) -> int:
        del target_blocks
        return 2_000

    async def mempool_fee(self, txid: bytes) -> int | None:
        """Nobody says."""
        del txid
        return None

    async def test_accept(self, tx: bytes) -> None:
        return

    async def broadcast(self, tx: bytes) -> bytes:
        return self.chain.accept(tx)

    async def transaction(self, txid: bytes, block_hash: bytes | None = None) -> ChainTx | None:
        for depth, raw in self.chain.everything():
            if txid_of(raw) == txid:
                if depth == 0:
                    return ChainTx(raw, None, None, 0)
                height = self.chain.height - depth + 1
                block = self.chain.hash(height)
                return ChainTx(raw, height, block, depth) if block_hash in (None, block) else None
        return None

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        return bool(self.chain.depth_of(outpoint.txid)) and self.chain.spender(outpoint) is None

    async def watch(self, request: WatchRequest) -> None:
        await self.watch_many([request])

    async def watch_many(self, requests: Sequence[WatchRequest]) -> None:
        for request in requests:
            self.watches[request.key] = request
        self.look()

    async def unwatch(self, key: bytes) -> None:
        self.watches.pop(key, None)

    def events(self) -> AsyncIterator[ChainEvent]:
        queue: asyncio.Queue[ChainEvent] = asyncio.Queue()
        self._queues.append(queue)

        async def stream() -> AsyncIterator[ChainEvent]:
            while True:
                yield await queue.get()

        return stream()

    def emit(self, event: ChainEvent) -> None:
        for queue in self._queues:
            queue.put_nowait(event)

    def undo(self) -> None:
        """A reorganisation: take confirmations back, then tell the new state by `look`."""
        for request in self.watches.values():
            if request.outpoint is not None and self.chain.depth_of(request.outpoint.txid) == 0:
                self.emit(Unconfirmed(request.key, request.outpoint, 0, bytes(32)))

    def look(self) -> None:
        """Tell every watch its present state."""
        for request in list(self.watches.values()):
            outpoint = request.outpoint
            if outpoint is None:
                continue
            depth = self.chain.depth_of(outpoint.txid)
            if depth == 0:
                self.emit(Seen(request.key, outpoint, 0, b""))
            elif depth is not None:
                height = self.chain.height - depth + 1
                self.emit(Confirmed(request.key, outpoint, 0, b"", height, self.chain.hash(height), depth))
            rival = self.chain.spender(outpoint)
            if rival is not None:
                raw, depth = rival
                at = None if depth == 0 else self.chain.height - depth + 1
                block = None if at is None else self.chain.hash(at)
                self.emit(SpentBy(request.key, outpoint, txid_of(raw), raw, at, block, depth))


class TwinWallet:
    """P2WPKH coins of a TwinChain; reservations outlive it in a dictionary that the test keeps."""

    network = Network.REGTEST

    def __init__(self, chain: TwinChain, name: str, held: dict[OutPoint, bytes], scripts: dict[bytes, bytes]) -> None:
        self.chain = chain
        self.name = name
        self.held = held
        self.scripts = scripts
        """Secret by script."""
        self.dead = False

    def script(self) -> bytes:
        secret = sha256(f"{self.name}{len(self.scripts)}".encode()).digest()
        public = PrivateKey(secret).public_key.format()
        script = b"\x00\x14" + new_hash("ripemd160", sha256(public).digest()).digest()
        self.scripts[script] = secret
        return script

    def coins(self) -> dict[OutPoint, TxOut]:
        return {
            o: out
            for o, out in self.chain.outputs.items()
            if out.script_pubkey in self.scripts and self.chain.spender(o) is None
        }

    def worth(self) -> int:
        return sum(out.value for out in self.coins().values())

    async def change_script(self) -> bytes:
        return self.script()

    async def select(
        self, target: int, fee_rate: int, *, holder: bytes, max_inputs: int = 8, min_confirmations: int = 1,
        commit: bool = True,
    ) -> Selection:  # fmt: skip
        del max_inputs, min_confirmations, commit
        await self.release(holder)
        fee = -(-(272 + 124) * fee_rate // 4000)
        for outpoint, out in self.coins().items():
            if outpoint not in self.held and out.value >= target + fee + 1_000:
                self.held[outpoint] = holder
                raw = next(raw for _, raw in self.chain.everything() if txid_of(raw) == outpoint.txid)
                chosen = SelectedInput(outpoint, out.value, out.script_pubkey, raw)
                return Selection(holder, (chosen,), TxOut(out.value - target - fee, self.script()), fee)
        raise InsufficientFunds(target + fee, 0, 0)

    async def release(self, holder: bytes) -> None:
        if self.dead:
            return
        for outpoint in [o for o, h in self.held.items() if h == holder]:
            del self.held[outpoint]

    async def reservations(self) -> tuple[Reservation, ...]:
        return tuple(Reservation(o, h, 0, 0) for o, h in self.held.items())

    async def sign_inputs(self, tx: bytes, *, holder: bytes) -> Mapping[int, tuple[bytes, ...]]:
        signed = {}
        for n, i in enumerate(parse(tx).vin):
            outpoint = OutPoint(i.prevout.hash, i.prevout.n)
            if self.held.get(outpoint) == holder:
                out = self.chain.outputs[outpoint]
                secret = self.scripts[out.script_pubkey]
                digest = sighash_v0(tx, n, p2wpkh_code(out.script_pubkey), out.value)
                signed[n] = (sign_ecdsa(secret, digest) + b"\x01", PrivateKey(secret).public_key.format())
        return signed

    async def double_spend(self, holder: bytes, fee_rate: int) -> Sent:
        del fee_rate
        mine = [o for o, h in self.held.items() if h == holder]
        value = sum(self.chain.outputs[o].value for o in mine)
        unsigned = build([(o, REPLACEABLE) for o in mine], [TxOut(value - 5_000, self.script())])
        signed = await self.sign_inputs(unsigned, holder=holder)
        raw = with_witnesses(unsigned, [signed[n] for n in range(len(mine))])
        return Sent(self.chain.accept(raw), raw, 5_000)


class TwinPost:
    """Hands envelopes from node to node in one process. A node that is down is `Undelivered`."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Callable[[bytes, bytes], Awaitable[bytes]]] = {}
        self.carried: list[bytes] = []
        self.refused: list[P2PError] = []
        self.tamper: Callable[[bytes], bytes] = lambda raw: raw

    def from_node(self, node: bytes) -> BoundPost:
        return BoundPost(self, node)


class BoundPost:
    """The post of one sender."""

    def __init__(self, post: TwinPost, sender: bytes) -> None:
        self._post = post
        self._sender = sender

    async def deliver(self, contact: ContactRecord, payload: bytes, seconds: float) -> None:
        del seconds
        await asyncio.sleep(0)
        receive = self._post.nodes.get(contact.contact.node)
        if receive is None:
            raise Undelivered
        try:
            await receive(self._sender, self._post.tamper(payload))
        except Undelivered:
            raise
        except P2PError as e:
            if e.fault is not Fault.PEER:
                raise Undelivered(e.detail) from e  # as a channel says: its own trouble, perhaps later
            self._post.refused.append(e)
            raise Refused(e.code, e.detail) from e
        self._post.carried.append(payload)
