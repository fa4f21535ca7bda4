"""Receipts of our own trades: made, exchanged, and published if both parties want it (SPEC section 14.2).

Once a trade has completed, each node looks up on its own chain where the escrow stood and what spent it, signs a
receipt with its escrow key and its persona, and sends that half to the other through the outbox, so it arrives however
long the other is away. Whether our half carries the consent to publish is the setting `reputation.publish`, or the
user's word on one trade. With both consents the receipt goes into our rating record, which the publisher keeps in the
DHT.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final, assert_never

from msgspec import Struct

from dht.records import RecordMeta
from dht.topics import anchor_topic, reputation_topic
from escrow.coins import OutPoint
from escrow.receipt import check_key_signature, sign_as_key
from p2pnode.clock import Clock
from p2pnode.counters import next_number
from p2pnode.engine import own_persona
from p2pnode.intake import UnknownTrade
from p2pnode.keyring import Keyring
from p2pnode.notices import Notices
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.store import TestimonyStore
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol import trade_state as st
from protocol.contract import Contract
from protocol.errors import BadSignature, P2PError, UserError
from protocol.outcome import ReleaseOutcome, RulingOutcome, SettlementOutcome
from protocol.rating import Mark, Rating
from protocol.receipt import (
    MAX_RECEIPT_LIFETIME,
    RECEIPT_WORK_BITS,
    BadReceipt,
    Ending,
    Receipt,
    ReceiptHalf,
    SignedReceipt,
    read_half,
    receipt_id,
    sign_receipt,
)
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, open_envelope, pack, parse_envelope, unpack
from protocol.work import NO_WORK, find_work

RENEW_SECONDS: Final = 100 * 86_400
"""A published record is made anew when it has less than this to live."""
LOOK_BACK_SECONDS: Final = 90 * 86_400
"""Trades that ended longer ago get no receipt any more."""
AFTER_ALL: Final = 1_000_000
"""The number of a half in the outbox: behind every message of its trade."""
RETRY_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class NotRatable(UserError):
    """Only a trade that was funded and has ended can be rated, and only with a receipt of both parties."""

    code = 3331


class OwnReceipt(Struct, frozen=True):
    """What we have of one trade's receipt: halves as raw envelopes, our consent and mark, the published record."""

    trade_id: bytes
    own_half: bytes | None = None
    peer_half: bytes | None = None
    public: bool = False
    mark: Mark = Mark.NONE
    note: str = ""
    record: bytes | None = None
    expires: int = 0


class Receipts:
    """The table `receipts`, and what fills it."""

    def __init__(  # noqa: PLR0913  (receipts stand between the trades, the chain and the DHT)
        self,
        trades: TradeStore,
        store: TestimonyStore,
        sight: ChainSight,
        keyring: Keyring,
        notices: Notices,
        network: Network,
        clock: Clock,
        *,
        publish: bool,
        post: Callable[[bytes], None],
        kick: Callable[[], None],
    ) -> None:
        """`publish`: whether our halves consent by themselves. `post` is told of a persona that has mail from us.

        `kick` is told when there is something new to publish.
        """
        self._trades = trades
        self._db = trades.database.connection
        self._store = store
        self._sight = sight
        self._keyring = keyring
        self._notices = notices
        self._network = network
        self._clock = clock
        self._publish = publish
        self._post = post
        self._kick = kick
        self._wake = asyncio.Event()
        self._due: dict[bytes, None] = {}
        self._task: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what an earlier run left."""
        since = self._clock.now() - LOOK_BACK_SECONDS
        for stored in self._trades.all():
            if stored.updated >= since:
                self.follow(stored.state)
        self._task = asyncio.create_task(self._run(), name="receipts")

    async def close(self) -> None:
        """Stop; what is missing is made at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def follow(self, state: st.TradeState) -> None:
        """A trade has changed: if it has completed, there is a receipt to make."""
        if isinstance(state.phase, st.Completed) and self.get(state.trade_id).own_half is None:
            self._due[state.trade_id] = None
            self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            for trade_id in list(self._due):
                try:
                    if await self._make(trade_id):
                        self._due.pop(trade_id, None)
                except P2PError as e:
                    log.info("a receipt can't be made yet: %s", e.detail)
                except Exception:
                    log.exception("a receipt could not be made")
            try:
                async with asyncio.timeout(RETRY_SECONDS if self._due else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # --- our half -----------------------------------------------------------------------------------------------

    async def _make(self, trade_id: bytes) -> bool:
        """Look at the chain and sign. False: not now."""
        stored = self._trades.get(trade_id)
        if stored is None or stored.state.contract is None or stored.state.facts is None:
            return True
        state, contract, facts = stored.state, stored.state.contract, stored.state.facts
        coin = OutPoint(facts.funding_txid, facts.escrow_vout)
        # A restored or late node may not know the height; the payout is what it saw last.
        start = state.funding.height if state.funding.height is not None else self._sight.height - 2_016
        trace = await self._sight.trace(facts.escrow_script, coin, start)
        if trace.confirmed is None or trace.spent is None or trace.spent.block_hash is None:
            return False
        ending = _ending(state)
        if ending is None or state.outcome_of(trace.spent.txid) is None:
            return True
        receipt = Receipt(
            buyer=contract.buyer.persona,
            seller=contract.seller.persona,
            buyer_key=contract.buyer.keys.main,
            seller_key=contract.seller.keys.main,
            funding_txid=facts.funding_txid,
            vout=facts.escrow_vout,
            funding_block=trace.confirmed.block_hash,
            payout_txid=trace.spent.txid,
            payout_block=trace.spent.block_hash,
            ending=ending,
        )
        self._sign(state, receipt, consent=self._publish or self.get(trade_id).public)
        return True

    def _sign(self, state: st.TradeState, receipt: Receipt, *, consent: bool) -> None:
        """Record our half and send it."""
        key = self._keyring.persona_key(own_persona(state))
        secret = self._keyring.escrow_secrets(state.trade_id, state.side)[0]
        half = ReceiptHalf(
            trade_id=state.trade_id,
            receipt=receipt,
            key_signature=sign_as_key(secret, receipt, state.side, self._network),
            consent=sign_receipt(receipt, self._network, key.seed) if consent else None,
        )
        envelope = key.seal(Kind.RECEIPT_HALF, self._network, pack(half))
        now = self._clock.now()
        with self._trades.database.transaction():
            self._db.execute(
                "INSERT INTO receipts (trade_id, own_half, public) VALUES (?, ?, ?) "
                "ON CONFLICT (trade_id) DO UPDATE SET own_half = excluded.own_half, public = excluded.public",
                (state.trade_id, envelope.raw, int(consent)),
            )
            message = OutgoingMessage(envelope.id, AFTER_ALL, state.trade_id, state.peer, envelope.raw)
            self._trades.queue_message(message, now)
            self._renew(state.trade_id, now)
        self._post(state.peer)
        self._notices.wake()
        self._kick()

    # --- the other half -----------------------------------------------------------------------------------------

    def deliver(self, envelope: Envelope) -> None:
        """The counterparty's half, from its node; again is fine. Raises PeerViolation, UnknownTrade."""
        half = read_half(envelope, self._network)
        stored = self._trades.get(half.trade_id)
        if stored is None or stored.state.contract is None or stored.state.facts is None:
            raise UnknownTrade
        state = stored.state
        if envelope.signer != state.peer:
            raise BadSignature("half a receipt must be signed by the counterparty of its trade")
        _check_fits(half.receipt, state, stored.state.contract, stored.state.facts)
        check_key_signature(half.receipt, state.side.other, half.key_signature, self._network)
        known = self.get(half.trade_id)
        if known.peer_half is not None and half.consent is None and self._half(known.peer_half).consent is not None:
            # A consent once given stays: the copy without it is the older one.
            return
        now = self._clock.now()
        with self._trades.database.transaction():
            self._db.execute(
                "INSERT INTO receipts (trade_id, peer_half) VALUES (?, ?) "
                "ON CONFLICT (trade_id) DO UPDATE SET peer_half = excluded.peer_half",
                (half.trade_id, envelope.raw),
            )
            if known.peer_half is None:
                self._notices.add("receipt", now, trade_id=half.trade_id, phase=type(state.phase).__name__)
            self._renew(half.trade_id, now)
        self._notices.wake()
        self._kick()

    # --- the user's word ----------------------------------------------------------------------------------------

    def get(self, trade_id: bytes) -> OwnReceipt:
        """What we have of a trade's receipt."""
        row = self._db.execute(
            "SELECT trade_id, own_half, peer_half, public, mark, note, record, expires FROM receipts "
            "WHERE trade_id = ?",
            (trade_id,),
        ).fetchone()
        if row is None:
            return OwnReceipt(trade_id)
        identity, own, peer, public, mark, note, record, expires = row
        return OwnReceipt(identity, own, peer, bool(public), Mark(mark), note, record, expires)

    def halves(self, found: OwnReceipt) -> tuple[ReceiptHalf | None, ReceiptHalf | None]:
        """Ours and the counterparty's, read."""
        own = None if found.own_half is None else self._half(found.own_half)
        peer = None if found.peer_half is None else self._half(found.peer_half)
        return own, peer

    def signed(self, found: OwnReceipt) -> SignedReceipt | None:
        """The receipt with all four signatures; None while one is missing, or the two name different blocks."""
        own, peer = self.halves(found)
        if own is None or peer is None or own.receipt != peer.receipt or own.consent is None or peer.consent is None:
            return None
        stored = self._trades.get(found.trade_id)
        if stored is None:
            return None
        buyer, seller = (own, peer) if stored.state.side is Side.BUY else (peer, own)
        if buyer.consent is None or seller.consent is None:
            raise AssertionError("both consents were looked at above")
        return SignedReceipt(own.receipt, buyer.key_signature, buyer.consent, seller.key_signature, seller.consent)

    def publish(self, trade_id: bytes) -> OwnReceipt:
        """Consent to the publication of one trade's receipt; the counterparty is told. Raises NotRatable."""
        found = self.get(trade_id)
        own, _ = self.halves(found)
        stored = self._trades.get(trade_id)
        if stored is None or own is None:
            raise NotRatable
        if own.consent is None:
            self._sign(stored.state, own.receipt, consent=True)
        return self.get(trade_id)

    def rate(self, trade_id: bytes, mark: Mark, note: str) -> OwnReceipt:
        """Say what we think of the counterparty; published as soon as both consent. Raises NotRatable."""
        stored = self._trades.get(trade_id)
        if stored is None or not isinstance(stored.state.phase, st.Completed):
            raise NotRatable
        now = self._clock.now()
        with self._trades.database.transaction():
            self._db.execute(
                "INSERT INTO receipts (trade_id, mark, note) VALUES (?, ?, ?) "
                "ON CONFLICT (trade_id) DO UPDATE SET mark = excluded.mark, note = excluded.note",
                (trade_id, int(mark), note),
            )
            self._renew(trade_id, now)
        self._kick()
        return self.get(trade_id)

    # --- what is published --------------------------------------------------------------------------------------

    def records(self, now: int) -> Iterator[tuple[bytes, Envelope, RecordMeta]]:
        """What the publisher keeps in the DHT: each record under both personas and under its outpoint."""
        rows = self._db.execute("SELECT trade_id, record, expires FROM receipts WHERE record IS NOT NULL").fetchall()
        for trade_id, raw, expires in rows:
            if expires - now < RENEW_SECONDS:
                self._renew(trade_id, now)
                raw = self.get(trade_id).record  # noqa: PLW2901  (the same record, made anew)
            if raw is None:
                continue
            envelope = parse_envelope(raw, self._network)
            rating = unpack(envelope.body, Rating, limit=Kind.RATING.limit)
            receipt = rating.signed.receipt
            slot = receipt_id(receipt, self._network)
            meta = RecordMeta(rating.rater, slot, rating.sequence, rating.expires, ())
            for topic in (
                reputation_topic(self._network, receipt.buyer),
                reputation_topic(self._network, receipt.seller),
                anchor_topic(self._network, receipt.outpoint),
            ):
                yield topic, envelope, meta

    def count_public(self) -> int:
        """Our releases that everybody can see."""
        rows = self._db.execute("SELECT record FROM receipts WHERE record IS NOT NULL").fetchall()
        bodies = (unpack(parse_envelope(raw, self._network).body, Rating, limit=Kind.RATING.limit) for (raw,) in rows)
        return sum(body.signed.receipt.ending is Ending.RELEASED for body in bodies)

    def _renew(self, trade_id: bytes, now: int) -> None:
        """Sign the present rating record, if all four signatures are here; joins the open transaction."""
        found = self.get(trade_id)
        signed = self.signed(found)
        stored = self._trades.get(trade_id)
        if signed is None or stored is None:
            return
        key = self._keyring.persona_key(own_persona(stored.state))
        draft = Rating(
            rater=key.public,
            sequence=next_number(self._trades.database, f"rating:{trade_id.hex()}", now),
            signed=signed,
            mark=found.mark,
            text=found.note if found.mark is not Mark.NONE else "",
            created=now,
            expires=now + MAX_RECEIPT_LIFETIME,
            work=NO_WORK,
        )
        body = find_work(Kind.RATING, self._network, pack(draft), RECEIPT_WORK_BITS)
        envelope = key.seal(Kind.RATING, self._network, body)
        self._db.execute(
            "UPDATE receipts SET record = ?, expires = ? WHERE trade_id = ?", (envelope.raw, draft.expires, trade_id)
        )
        self._store.remember(envelope, now)

    def _half(self, raw: bytes) -> ReceiptHalf:
        # Verified before it was stored; the disk is ours.
        return unpack(parse_envelope(raw, self._network).body, ReceiptHalf, limit=Kind.RECEIPT_HALF.limit)


def is_half(raw: bytes, network: Network) -> bool:
    """Whether an envelope of the outbox is half a receipt: its refusal is no event of its trade."""
    return open_envelope(raw, network).kind == Kind.RECEIPT_HALF


def _check_fits(receipt: Receipt, state: st.TradeState, contract: Contract, facts: st.EscrowFacts) -> None:
    """The counterparty's receipt is about this trade; which blocks it names, the chain tells. Raises BadReceipt."""
    ours = (
        contract.buyer.persona,
        contract.seller.persona,
        contract.buyer.keys.main,
        contract.seller.keys.main,
        facts.funding_txid,
        facts.escrow_vout,
    )
    theirs = (
        receipt.buyer,
        receipt.seller,
        receipt.buyer_key,
        receipt.seller_key,
        receipt.funding_txid,
        receipt.vout,
    )
    if ours != theirs:
        raise BadReceipt("the receipt is about another trade")
    if isinstance(state.phase, st.Completed) and receipt.payout_txid != state.payout.txid:
        raise BadReceipt("the receipt names another payout than this node's chain")


def _ending(state: st.TradeState) -> Ending | None:
    """How the trade ended; None when we do not know what spent the escrow."""
    outcome = state.payout.outcome
    if outcome is None:
        return None
    match outcome:
        case ReleaseOutcome():
            return Ending.RELEASED
        case SettlementOutcome():
            return Ending.SETTLED
        case RulingOutcome():
            return Ending.RULED
        case _:
            assert_never(outcome)
