"""What a light client knows of transactions without a mempool: what it sent, and what it found in blocks (sans-IO)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from escrow.chain.blocks import ParsedTx
from protocol.types import Hash32, Txid

_SENT: Final = 1_000
_FOUND: Final = 20_000


class _Sent(msgspec.Struct):
    tx: ParsedTx
    taken: bool = False


class Outgoing:
    """Transactions of ours until a block holds them or a rival. The oldest are forgotten when there are too many."""

    def __init__(self, in_chain: Callable[[Hash32], bool]) -> None:
        """`in_chain` tells whether a block is in the best chain: what a reorganisation took out waits again."""
        self._in_chain = in_chain
        self._sent: OrderedDict[Txid, _Sent] = OrderedDict()
        self._offer: dict[Txid, bytes] = {}
        self._found: OrderedDict[Txid, Hash32] = OrderedDict()
        self._spent: OrderedDict[bytes, tuple[Txid, Hash32]] = OrderedDict()

    @property
    def offer(self) -> Mapping[Txid, bytes]:
        """All that peers may ask for; lives on."""
        return self._offer

    def add(self, tx: ParsedTx) -> None:
        """We send it."""
        self._sent.setdefault(tx.txid, _Sent(tx))
        self._offer[tx.txid] = tx.raw
        while len(self._sent) > _SENT:
            self._offer.pop(self._sent.popitem(last=False)[0], None)

    def took(self, txid: Txid) -> None:
        """Somebody's mempool holds it."""
        if (sent := self._sent.get(txid)) is not None:
            sent.taken = True

    def unmined(self) -> list[ParsedTx]:
        """What is to be sent again, in the order in which it was sent first: parents before children."""
        return [s.tx for txid, s in self._sent.items() if self.block_of(txid) is None]

    def waiting(self) -> dict[Txid, ParsedTx]:
        """What counts as waiting: somebody took it, and no block is known to hold it or a rival."""
        return {t: s.tx for t, s in self._sent.items() if s.taken and self.block_of(t) is None}

    def found(self, block: Hash32, txs: Sequence[ParsedTx]) -> None:
        """A block holds these. Rivals of them are given up."""
        for tx in txs:
            self._found[tx.txid] = block
            self._found.move_to_end(tx.txid)
            for outpoint in tx.spends:
                self._spent[outpoint.wire] = (tx.txid, block)
                self._spent.move_to_end(outpoint.wire)
        for txid, sent in list(self._sent.items()):
            if self.rival_of(sent.tx) is not None:
                del self._sent[txid]
                self._offer.pop(txid, None)
        for index in (self._found, self._spent):
            while len(index) > _FOUND:
                index.popitem(last=False)

    def block_of(self, txid: Txid) -> Hash32 | None:
        """The block of the best chain that is known to hold it."""
        block = self._found.get(txid)
        return block if block is not None and self._in_chain(block) else None

    def rival_of(self, tx: ParsedTx) -> Txid | None:
        """A transaction in the best chain that spends what `tx` spends, as far as known."""
        for outpoint in tx.spends:
            spender, block = self._spent.get(outpoint.wire, (None, b""))
            if spender is not None and spender != tx.txid and self._in_chain(block):
                return spender
        return None
