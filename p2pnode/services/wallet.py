"""The user's coins, by hand: what is there, where to receive, and payments."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from escrow.address import address_of, is_segwit
from escrow.chain.base import ChainBackend, FeeUnknown, NotSynced, Rejected
from escrow.coins import txid_text
from escrow.errors import GateRefused
from escrow.transactions import parse
from escrow.wallet.base import FeeRateTooHigh, Sent, Utxo, Wallet
from p2pnode.api.schema import (
    AddressRequest,
    AddressView,
    BalanceView,
    HistoryEntryView,
    HistoryView,
    SendRequest,
    SentView,
    UtxoList,
    UtxoView,
)
from protocol.errors import P2PError, UserError

FEE_TARGET_BLOCKS = 6


class NoSendAll(UserError):
    """This wallet can't send everything in one go: name an amount."""

    code = 3206


class SendInterrupted(Exception):
    """The payment was begun and the Bitcoin node failed: it may have been sent. Not a P2PError, which would say not."""


@runtime_checkable
class SendsAll(Protocol):
    """A wallet that can spend all that is spendable."""

    async def send_all(self, address: str, fee_rate: int) -> Sent:
        """Pay everything that nobody holds to `address`, the fee out of it."""
        ...


class CoinService:
    """`api.services.WalletService` over the wallet and the chain."""

    def __init__(
        self, wallet: Wallet, chain: ChainBackend, *, max_fee_rate: int, fee_target_blocks: int = FEE_TARGET_BLOCKS
    ) -> None:
        """`max_fee_rate` in satoshis per 1,000 vB: the ceiling that guards against typing errors."""
        self._wallet = wallet
        self._chain = chain
        self._max_fee_rate = max_fee_rate
        self._fee_target = fee_target_blocks

    async def balance(self) -> BalanceView:
        """The present balance."""
        balance = await self._wallet.balance()
        return BalanceView(
            spendable_sats=balance.spendable,
            confirmed_sats=balance.confirmed,
            pending_sats=balance.pending,
            immature_sats=balance.immature,
            reserved_sats=balance.reserved,
        )

    async def address(self, request: AddressRequest) -> AddressView:
        """A fresh receiving address."""
        address = await self._wallet.new_address(request.label)
        return AddressView(address=address.text, index=address.index, label=address.purpose)

    async def utxos(self) -> UtxoList:
        """All unspent coins, largest first."""
        found = sorted(await self._wallet.utxos(), key=lambda u: (-u.value, u.outpoint))
        return UtxoList(utxos=tuple(self._utxo(utxo) for utxo in found))

    async def history(self, limit: int) -> HistoryView:
        """The newest `limit` transactions."""
        entries = await self._wallet.history(limit)
        return HistoryView(
            entries=tuple(
                HistoryEntryView(txid=txid_text(e.txid), net_sats=e.net, fee_sats=e.fee, height=e.height, time=e.time)
                for e in entries
            )
        )

    async def send(self, request: SendRequest) -> SentView:
        """Pay out of what is spendable.

        Raises FeeRateTooHigh, NoSendAll, what the wallet's `send` raises, ChainError while nothing was sent, and
        SendInterrupted when nobody knows whether it was.
        """
        rate = await self._rate(request.fee_rate_sats_per_kvb)
        if rate > self._max_fee_rate:
            raise FeeRateTooHigh(
                f"a fee rate of {rate:,} sat/kvB is over the ceiling of {self._max_fee_rate:,}: "
                "name a lower one, or raise trade.max_fee_rate_sats_per_kvb"
            )
        try:
            if request.amount_sats is not None:
                sent = await self._wallet.send(request.address, request.amount_sats, rate)
                return SentView(txid=txid_text(sent.txid), amount_sats=request.amount_sats, fee_sats=sent.fee)
            if not isinstance(self._wallet, SendsAll):
                raise NoSendAll
            sent = await self._wallet.send_all(request.address, rate)
        except (UserError, GateRefused, Rejected, NotSynced):
            # Each of these comes before anything has left.
            raise
        except P2PError as e:
            raise SendInterrupted(e.detail) from e
        paid = sum(int(out.nValue) for out in parse(sent.tx).vout)
        return SentView(txid=txid_text(sent.txid), amount_sats=paid, fee_sats=sent.fee)

    async def _rate(self, named: int | None) -> int:
        """The fee rate to pay.

        The backend is asked even when the user names one: whether it answers is found out before anything is signed.
        """
        try:
            estimate = await self._chain.fee_rate(self._fee_target)
        except FeeUnknown:
            if named is None:
                raise
            return named
        return estimate if named is None else named

    def _utxo(self, utxo: Utxo) -> UtxoView:
        script = utxo.script_pubkey
        return UtxoView(
            txid=txid_text(utxo.outpoint.txid),
            vout=utxo.outpoint.vout,
            value_sats=utxo.value,
            address=address_of(script, self._wallet.network) if is_segwit(script) else None,
            confirmations=utxo.confirmations,
            trade=None if utxo.reserved_for is None else utxo.reserved_for.hex(),
            change=utxo.is_change,
        )
