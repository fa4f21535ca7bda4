"""Receipts of rulings that we gave as an arbiter: made once the payout is buried, and published if the user wants it.

They name no party. Heights are taken down as the case goes on: when we were first asked, and when we had ruled; the
chain bounds both. A ruling that the parties did not need (they settled, or released) has no payout of ours and no
receipt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from dht.records import RecordMeta
from dht.topics import anchor_topic, reputation_topic
from escrow.coins import OutPoint
from escrow.keys import arbiter_secret
from escrow.signatures import sign_schnorr
from escrow.verify import escrow_facts
from p2pnode.clock import Clock
from p2pnode.counters import next_number
from p2pnode.database import Database
from p2pnode.keyring import Keyring
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.store import TestimonyStore
from protocol.arbitration import promised
from protocol.case_events import CaseState, Closed, Ruled
from protocol.errors import P2PError
from protocol.receipt import (
    MAX_RECEIPT_LIFETIME,
    RECEIPT_WORK_BITS,
    BadReceipt,
    RulingReceipt,
    ruling_receipt_message,
)
from protocol.ruling import arbiter_of
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack, parse_envelope, unpack
from protocol.work import NO_WORK, find_work

RENEW_SECONDS: Final = 100 * 86_400

log = logging.getLogger(__name__)


class RulingReceipts:
    """The table `rulings_given`."""

    def __init__(
        self,
        database: Database,
        store: TestimonyStore,
        sight: ChainSight,
        keyring: Keyring,
        network: Network,
        clock: Clock,
        *,
        publish: bool,
        kick: Callable[[], None],
    ) -> None:
        """`publish`: whether receipts are made at all; `kick` is told when there is one to publish."""
        self._database = database
        self._db = database.connection
        self._store = store
        self._sight = sight
        self._keyring = keyring
        self._network = network
        self._clock = clock
        self._publish = publish
        self._kick = kick
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, state: CaseState) -> None:
        """A case of ours has changed."""
        height = self._sight.height
        self._db.execute(
            "INSERT OR IGNORE INTO rulings_given (trade_id, opened) VALUES (?, ?)", (state.trade_id, height)
        )
        if isinstance(state.phase, Ruled | Closed):
            self._db.execute(
                "UPDATE rulings_given SET ruled = ? WHERE trade_id = ? AND ruled IS NULL", (height, state.trade_id)
            )
        if isinstance(state.phase, Closed) and self._publish:
            task = asyncio.create_task(self._make(state), name="ruling-receipt")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make(self, state: CaseState) -> None:
        try:
            await self._sign(state)
        except P2PError as e:
            log.info("no receipt is made of that ruling: %s", e.detail)
        except Exception:
            log.exception("a ruling's receipt could not be made")

    async def _sign(self, state: CaseState) -> None:
        terms = arbiter_of(state.contract, state.branch)
        if terms is None or state.height is None:
            return
        facts = escrow_facts(state.contract, self._network)
        coin = OutPoint(facts.funding_txid, facts.escrow_vout)
        trace = await self._sight.trace(facts.escrow_script, coin, state.height)
        if trace.confirmed is None or trace.spent is None or trace.spent.block_hash is None:
            return
        opened, ruled = self._db.execute(
            "SELECT opened, ruled FROM rulings_given WHERE trade_id = ?", (state.trade_id,)
        ).fetchone()
        key = self._keyring.persona_key(terms.persona)
        now = self._clock.now()
        draft = RulingReceipt(
            arbiter=key.public,
            sequence=next_number(self._database, f"ruled:{state.trade_id.hex()}", now),
            base_point=terms.base_point,
            contract_id=state.contract_id,
            branch=state.branch,
            funding_txid=facts.funding_txid,
            vout=facts.escrow_vout,
            funding_block=trace.confirmed.block_hash,
            payout_txid=trace.spent.txid,
            payout_block=trace.spent.block_hash,
            opened=opened,
            ruled=ruled,
            promised=promised(state),
            key_signature=bytes(64),
            created=now,
            expires=now + MAX_RECEIPT_LIFETIME,
            work=NO_WORK,
        )
        secret = arbiter_secret(self._keyring.arbiter_secret(terms.persona), state.contract_id)
        signed = replace(draft, key_signature=sign_schnorr(secret, ruling_receipt_message(draft, self._network)))
        if await self._sight.ruling(signed) is None:
            raise BadReceipt("the chain does not show this ruling's payout")
        self._seal(state.trade_id, signed, now)
        self._kick()

    def _seal(self, trade_id: bytes, value: RulingReceipt, now: int) -> Envelope:
        body = find_work(Kind.RULING_RECEIPT, self._network, pack(value), RECEIPT_WORK_BITS)
        envelope = self._keyring.persona_key(value.arbiter).seal(Kind.RULING_RECEIPT, self._network, body)
        self._db.execute(
            "UPDATE rulings_given SET record = ?, expires = ? WHERE trade_id = ?",
            (envelope.raw, value.expires, trade_id),
        )
        self._store.remember(envelope, now)
        return envelope

    def records(self, now: int) -> Iterator[tuple[bytes, Envelope, RecordMeta]]:
        """What the publisher keeps in the DHT."""
        rows = self._db.execute("SELECT trade_id, record, expires FROM rulings_given WHERE record IS NOT NULL")
        for trade_id, raw, expires in rows.fetchall():
            envelope = parse_envelope(raw, self._network)
            value = unpack(envelope.body, RulingReceipt, limit=Kind.RULING_RECEIPT.limit)
            if expires - now < RENEW_SECONDS:
                number = next_number(self._database, f"ruled:{trade_id.hex()}", now)
                value = replace(value, sequence=number, created=now, expires=now + MAX_RECEIPT_LIFETIME, work=NO_WORK)
                envelope = self._seal(trade_id, value, now)
            meta = RecordMeta(value.arbiter, value.contract_id, value.sequence, value.expires, ())
            yield reputation_topic(self._network, value.arbiter), envelope, meta
            yield anchor_topic(self._network, value.outpoint), envelope, meta
