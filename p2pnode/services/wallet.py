"""The user's coins, by hand: what is there, where to receive, payments, fees, labels."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct, structs

from escrow.address import address_of, is_segwit
from escrow.chain.base import ChainBackend, FeeUnknown, NotSynced, Rejected
from escrow.coins import OutPoint, txid_bytes, txid_text
from escrow.errors import GateRefused
from escrow.payout import derive_payout
from escrow.transactions import parse
from escrow.wallet.base import Bumped, FeeRateTooHigh, Label, Sent, Utxo, Wallet
from escrow.wallet.labels import check_label, outpoint_of
from p2pnode.api.schema import (
    AddressRequest,
    AddressView,
    BalanceView,
    BumpRequest,
    BumpView,
    ConsolidateRequest,
    DescriptorsView,
    FreezeRequest,
    HistoryEntryView,
    HistoryView,
    LabelImport,
    LabelList,
    LabelRecord,
    SendRequest,
    SentView,
    UtxoList,
    UtxoView,
)
from p2pnode.rebroadcast import waiting
from p2pnode.tradestore import TradeStore
from protocol.errors import P2PError, UserError
from protocol.offer import deposit
from protocol.trade_state import TradeState

T = TypeVar("T")

FEE_TARGET_BLOCKS = 6


class SendInterrupted(Exception):
    """The payment was begun and the Bitcoin node failed: it may have been sent. Not a P2PError, which would say not."""


class Locked(Struct, frozen=True):
    """What lies in funded escrows, in satoshis: `value` in all, and the part of it that we put in."""

    value: int = 0
    own: int = 0


class Escrows(Protocol):
    """What the wallet's service asks of the trades."""

    def locked(self) -> Locked:
        """What lies in the escrows of open trades."""
        ...

    def fee_of(self, txid: bytes) -> int | None:
        """The fee of a funding or a payout of ours; None for any other transaction."""
        ...

    def whole(self, txid: bytes) -> bytes | None:
        """A signed funding or payout of ours that waits, if we have all of its signatures."""
        ...

    def names(self) -> dict[bytes, str]:
        """What the transactions of our trades are, by txid."""
        ...


class TradeEscrows:
    """`Escrows` over the node's store."""

    def __init__(self, trades: TradeStore) -> None:
        self._trades = trades

    def locked(self) -> Locked:
        """Escrows that are on the chain or in the mempool, and not spent: from then on the payout is ours to count."""
        value = own = 0
        for stored in self._trades.all(open_only=True):
            state = stored.state
            if state.facts is not None and state.funding.depth is not None and state.payout.depth is None:
                value += state.facts.escrow_value
                own += _put_in(state)
        return Locked(value, own)

    def fee_of(self, txid: bytes) -> int | None:
        """By the facts of the trade's contract."""
        for stored in self._trades.all(open_only=True):
            state = stored.state
            if state.facts is None or state.contract is None:
                continue
            if txid == state.facts.funding_txid:
                return state.facts.funding_fee
            outcome = state.outcome_of(txid)
            if outcome is not None:
                return derive_payout(state.contract, state.network, outcome).fee
        return None

    def whole(self, txid: bytes) -> bytes | None:
        """By what both have signed."""
        return waiting((stored.state for stored in self._trades.all(open_only=True)), txid)

    def names(self) -> dict[bytes, str]:
        """Fundings and payouts of all trades, the ended ones too."""
        found: dict[bytes, str] = {}
        for stored in self._trades.all():
            state, trade = stored.state, stored.state.trade_id.hex()[:16]
            if state.facts is not None:
                found[state.facts.funding_txid] = f"funding of trade {trade}"
            if state.payout.txid is not None:
                found[state.payout.txid] = f"payout of trade {trade}"
        return found


def _put_in(state: TradeState) -> int:
    amount = state.take.bargain.amount
    if state.buys:
        return deposit(amount, state.offer.buyer_deposit)
    return amount + deposit(amount, state.offer.seller_deposit)


class CoinService:
    """`api.services.WalletService` over the wallet and the chain."""

    def __init__(
        self,
        wallet: Wallet,
        chain: ChainBackend,
        escrows: Escrows | None = None,
        *,
        max_fee_rate: int,
        fee_target_blocks: int = FEE_TARGET_BLOCKS,
    ) -> None:
        """`max_fee_rate` in satoshis per 1,000 vB: the ceiling that guards against typing errors."""
        self._wallet = wallet
        self._chain = chain
        self._escrows = escrows
        self._max_fee_rate = max_fee_rate
        self._fee_target = fee_target_blocks

    async def balance(self) -> BalanceView:
        """The present balance."""
        balance = await self._wallet.balance()
        locked = self._escrows.locked() if self._escrows is not None else Locked()
        return BalanceView(
            spendable_sats=balance.spendable,
            confirmed_sats=balance.confirmed,
            pending_sats=balance.pending,
            immature_sats=balance.immature,
            reserved_sats=balance.reserved,
            frozen_sats=balance.frozen,
            escrow_sats=locked.value,
            escrow_own_sats=locked.own,
        )

    async def address(self, request: AddressRequest) -> AddressView:
        """A fresh receiving address."""
        address = await self._wallet.new_address(request.label)
        return AddressView(address=address.text, index=address.index, label=address.purpose)

    async def utxos(self) -> UtxoList:
        """All unspent coins, largest first."""
        found = sorted(await self._wallet.utxos(), key=lambda u: (-u.value, u.outpoint))
        texts = await self._texts()
        return UtxoList(utxos=tuple(self._utxo(utxo, texts) for utxo in found))

    async def history(self, limit: int) -> HistoryView:
        """The newest `limit` transactions."""
        entries = await self._wallet.history(limit)
        texts = await self._texts()
        names = self._escrows.names() if self._escrows is not None else {}
        return HistoryView(
            entries=tuple(
                HistoryEntryView(
                    txid=txid_text(e.txid),
                    net_sats=e.net,
                    fee_sats=e.fee,
                    height=e.height,
                    time=e.time,
                    label=texts.get(("tx", txid_text(e.txid))) or names.get(e.txid, ""),
                )
                for e in entries
            )
        )

    async def send(self, request: SendRequest) -> SentView:
        """Pay out of what is spendable, or of the coins that are named.

        Raises FeeRateTooHigh, what the wallet's `send` raises, ChainError while nothing was sent, and SendInterrupted
        when nobody knows whether it was.
        """
        rate = await self._rate(request.fee_rate_sats_per_kvb)
        coins = _outpoints(request.coins)
        if request.amount_sats is not None:
            sent = await _once(self._wallet.send(request.address, request.amount_sats, rate, coins=coins))
            return SentView(txid=txid_text(sent.txid), amount_sats=request.amount_sats, fee_sats=sent.fee)
        return _swept(await _once(self._wallet.send_all(request.address, rate, coins=coins)))

    async def consolidate(self, request: ConsolidateRequest) -> SentView:
        """Make one coin of many. Raises what `send` raises, and CoinUnfit."""
        rate = await self._rate(request.fee_rate_sats_per_kvb)
        coins = _outpoints(request.coins)
        return _swept(await _once(self._wallet.consolidate(rate, coins=coins, below=request.below_sats)))

    async def bump(self, request: BumpRequest) -> BumpView:
        """Raise the fee of a transaction that waits. Raises CantBump, BumpTooLow and what `send` raises."""
        rate = await self._rate(request.fee_rate_sats_per_kvb)
        txid = _txid(request.txid)
        known = self._escrows.fee_of(txid) if self._escrows is not None else None
        if known is None:
            known = await self._chain.mempool_fee(txid)
        parent = self._escrows.whole(txid) if self._escrows is not None else None
        bumped: Bumped = await _once(self._wallet.bump(txid, rate, parent_fee=known, parent=parent))
        if bumped.replacement:
            await self._carry_label(txid, bumped.sent.txid)
        return BumpView(
            txid=txid_text(bumped.sent.txid),
            fee_sats=bumped.sent.fee,
            how="replaced" if bumped.replacement else "child",
        )

    async def _carry_label(self, replaced: bytes, txid: bytes) -> None:
        """What a payment was called, its replacement is called too."""
        labels = await self._wallet.labels()
        old = next((x for x in labels if (x.kind, x.ref) == ("tx", txid_text(replaced))), None)
        if old is not None:
            await self._wallet.set_labels([structs.replace(old, ref=txid_text(txid))])

    async def freeze(self, request: FreezeRequest) -> UtxoList:
        """Set coins aside, or give them back; all coins are the answer. Raises CoinUnfit, BadLabels."""
        await self._wallet.freeze(_outpoints(request.coins), frozen=request.frozen)
        return await self.utxos()

    async def labels(self) -> LabelList:
        """All labels."""
        found = await self._wallet.labels()
        return LabelList(labels=tuple(_record(label) for label in found))

    async def set_labels(self, request: LabelImport) -> LabelList:
        """Keep labels; all labels are the answer. Raises BadLabels, and then keeps none."""
        labels = [
            check_label(Label(kind=x.type, ref=x.ref, label=x.label, origin=x.origin, spendable=x.spendable))
            for x in request.labels
        ]
        await self._wallet.set_labels(labels)
        return await self.labels()

    async def descriptors(self) -> DescriptorsView:
        """The public descriptors."""
        external, internal = self._wallet.descriptors
        return DescriptorsView(external=external, internal=internal)

    async def _rate(self, named: int | None) -> int:
        """The fee rate to pay. Raises FeeRateTooHigh, ChainError.

        The backend is asked even when the user names one: whether it answers is found out before anything is signed.
        """
        try:
            estimate = await self._chain.fee_rate(self._fee_target)
        except FeeUnknown:
            if named is None:
                raise
            estimate = named
        rate = estimate if named is None else named
        if rate > self._max_fee_rate:
            raise FeeRateTooHigh(
                f"a fee rate of {rate / 1000:,.2f} sat/vB is over the ceiling of {self._max_fee_rate / 1000:,.2f}: "
                "name a lower one, or raise trade.max_fee_rate_sats_per_kvb"
            )
        return rate

    async def _texts(self) -> dict[tuple[str, str], str]:
        return {(x.kind, x.ref): x.label for x in await self._wallet.labels() if x.label}

    def _utxo(self, utxo: Utxo, texts: dict[tuple[str, str], str]) -> UtxoView:
        script = utxo.script_pubkey
        address = address_of(script, self._wallet.network) if is_segwit(script) else None
        label = texts.get(("output", str(utxo.outpoint))) or texts.get(("addr", address or ""), "")
        return UtxoView(
            txid=txid_text(utxo.outpoint.txid),
            vout=utxo.outpoint.vout,
            value_sats=utxo.value,
            address=address,
            confirmations=utxo.confirmations,
            trade=None if utxo.reserved_for is None else utxo.reserved_for.hex(),
            change=utxo.is_change,
            frozen=utxo.frozen,
            label=label,
        )


async def _once(work: Awaitable[T]) -> T:
    """A payment, of which nobody may think that it was not sent when it may have been. Raises SendInterrupted."""
    try:
        return await work
    except (UserError, GateRefused, Rejected, NotSynced):
        # Each of these comes before anything has left.
        raise
    except P2PError as e:
        raise SendInterrupted(e.detail) from e


def _record(label: Label) -> LabelRecord:
    return LabelRecord(
        type=label.kind, ref=label.ref, label=label.label, origin=label.origin, spendable=label.spendable
    )


def _swept(sent: Sent) -> SentView:
    paid = sum(int(out.nValue) for out in parse(sent.tx).vout)
    return SentView(txid=txid_text(sent.txid), amount_sats=paid, fee_sats=sent.fee)


def _outpoints(texts: Sequence[str]) -> tuple[OutPoint, ...]:
    return tuple(outpoint_of(text) for text in texts)


def _txid(text: str) -> bytes:
    try:
        return txid_bytes(text)
    except ValueError as e:
        raise UserError(f"“{text[:80]}” is not a txid: it has 64 hex digits") from e
