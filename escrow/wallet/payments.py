"""The wallet's own transactions: payments, sweeps, taking back, raising fees, and sending again.

Gates: what was signed is read back before it is broadcast, and must spend our coins only, none that somebody else
holds, pay the payees exactly, the rest to ourselves, and no more of a fee than was reckoned.

Fees are raised in one of two ways. A transaction that the wallet made is *replaced*. One that others have a part in (a
trade's funding, a payout, an incoming payment) must keep its txid, because other signatures hang on it: there a *child*
spends our outputs of it and pays for both. A child that waits already is replaced in turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Final

from escrow.address import script_of
from escrow.chain.base import Rejected
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.coins import OutPoint, TxOut, txid_text
from escrow.errors import GateRefused
from escrow.psbtplan import OwnSpend
from escrow.sizes import dust_limit, fee, output_weight
from escrow.transactions import Witness, vsize, weight, with_witnesses
from escrow.wallet.base import (
    AmountBelowDust,
    Bumped,
    BumpTooLow,
    CantBump,
    CoinReserved,
    CoinUnfit,
    InsufficientFunds,
    NothingToSign,
    Sent,
    Utxo,
)
from escrow.wallet.coinselect import CHANGE_SCRIPT, choose, whole
from escrow.wallet.core import WalletCore
from escrow.wallet.engine import Keychain
from escrow.wallet.ledger import Entry, Place
from escrow.wallet.payment import INCREMENT, Coin, Draft, compose, payment, replacement_fee, sweep, worthwhile
from protocol.errors import ChainError
from protocol.types import FeeRate, Sats, Txid

_log = logging.getLogger(__name__)

MAX_INPUTS: Final = 500
"""A payment of so many coins has some 34,000 vB: a third of what nodes relay."""
_NON_SEGWIT_SPEND: Final = 148
"""Bytes that Core's dust rule counts for spending an output that is not segwit."""


class Payments:
    """Everything that spends without a counterparty."""

    def __init__(self, core: WalletCore) -> None:
        self._core = core

    # -- payments ---------------------------------------------------------------------------------------------

    async def send(self, address: str, amount: Sats, fee_rate: FeeRate, coins: Sequence[OutPoint]) -> Sent:
        """See `Wallet.send`."""
        core = self._core
        script = self._payee(address, fee_rate)
        if amount < (least := dust_of(script)):
            raise AmountBelowDust(f"{amount:,} sat is too small: this kind of address takes {least:,} sat or more")
        async with core.lock:
            everything = await core.utxos()
            price = whole(fee_rate, script)
            if coins:
                named = self._named(coins, everything)
                _, change = await core.next_script(Keychain.INTERNAL)
                fixed = [Coin(c.outpoint, c.value) for c in named]
                payee = TxOut(amount, script)
                made = compose(fixed, [payee], change, replacement_fee(fee_rate, 0), ())
            else:
                choice = choose(
                    self._spendable(everything),
                    amount,
                    price,
                    max_inputs=MAX_INPUTS,
                    reserved=sum(c.value for c in everything if c.reserved_for),
                    pending=sum(c.value for c in everything if not c.confirmations),
                )
                _, change = await core.next_script(Keychain.INTERNAL)
                made = payment(choice, TxOut(amount, script), change)
            return await self._finish(made, [TxOut(amount, script)], fee_rate)

    async def send_all(self, address: str, fee_rate: FeeRate, coins: Sequence[OutPoint]) -> Sent:
        """See `Wallet.send_all`."""
        script = self._payee(address, fee_rate)
        async with self._core.lock:
            made = await self._swept(script, fee_rate, coins, least=dust_of(script))
            return await self._finish(made, made.outputs, fee_rate)

    async def consolidate(self, fee_rate: FeeRate, coins: Sequence[OutPoint], below: Sats | None) -> Sent:
        """See `Wallet.consolidate`."""
        core = self._core
        core.must_sign()
        core.check_rate(fee_rate)
        async with core.lock:
            everything = await core.utxos()
            chosen = self._named(coins, everything) if coins else self._spendable(everything)
            chosen = [c for c in chosen if below is None or c.value < below]
            chosen = [c for c in chosen if worthwhile(c.value, fee_rate)][-MAX_INPUTS:]
            if len(chosen) < 2:
                raise CoinUnfit("there are not two coins that it would pay to put together at that fee rate")
            _, script = await core.next_script(Keychain.INTERNAL)
            made = sweep([Coin(c.outpoint, c.value) for c in chosen], script, fee_rate, least=dust_limit(script))
            return await self._finish(made, [], fee_rate)

    def _payee(self, address: str, fee_rate: FeeRate) -> bytes:
        self._core.must_sign()
        self._core.check_rate(fee_rate)
        return script_of(address, self._core.chain.network)

    async def _swept(self, script: bytes, fee_rate: FeeRate, coins: Sequence[OutPoint], *, least: Sats) -> Draft:
        everything = await self._core.utxos()
        if coins:
            chosen = self._named(coins, everything)
        else:
            # A coin that costs more than it brings would make "all" less.
            chosen = [c for c in self._spendable(everything) if worthwhile(c.value, fee_rate)][:MAX_INPUTS]
        return sweep([Coin(c.outpoint, c.value) for c in chosen], script, fee_rate, least=least)

    def _spendable(self, coins: Sequence[Utxo]) -> list[Utxo]:
        return [c for c in coins if c.confirmations and self._core.is_free(c)]

    def _named(self, wanted: Sequence[OutPoint], everything: Sequence[Utxo]) -> list[Utxo]:
        """The coins that the user chose. Raises CoinReserved, CoinUnfit."""
        known = {c.outpoint: c for c in everything}
        found: list[Utxo] = []
        for outpoint in dict.fromkeys(wanted):
            coin = known.get(outpoint)
            if coin is None:
                raise CoinUnfit(f"{outpoint} is not an unspent coin of this wallet")
            if coin.reserved_for is not None:
                holder = coin.reserved_for.hex()[:16]
                raise CoinReserved(f"{outpoint} is held by the open trade {holder}: it can't be spent before that ends")
            if coin.frozen:
                raise CoinUnfit(f"{outpoint} is frozen: thaw it first")
            if not coin.confirmations:
                raise CoinUnfit(f"{outpoint} is not confirmed yet: wait for a block, or raise its fee")
            if not self._core.is_mature(coin):
                raise CoinUnfit(f"{outpoint} was mined less than 100 blocks ago: wait until it can be spent")
            found.append(coin)
        if len(found) > MAX_INPUTS:
            raise CoinUnfit(f"at most {MAX_INPUTS} coins fit into one transaction")
        return found

    # -- taking back ------------------------------------------------------------------------------------------

    async def double_spend(self, holder: bytes, fee_rate: FeeRate) -> Sent:
        """See `Wallet.double_spend`."""
        core = self._core
        coins, script = await self._taken_back(holder, fee_rate)
        rate = fee_rate
        while True:
            made = _reclaim(coins, script, rate)
            raw = await self._signed(made)
            try:
                await core.chain.test_accept(raw)
            except Rejected as e:
                # BIP125 rules 3 and 4: what waits must be outbid, by how much only the node knows.
                if "insufficient fee" not in e.reason:
                    raise
                rate += rate // 4 + 250
                core.check_rate(rate)
                continue
            return await core.broadcast(raw, made.fee)

    async def draft_double_spend(self, holder: bytes, fee_rate: FeeRate) -> OwnSpend:
        """See `Wallet.draft_double_spend`."""
        made = _reclaim(*await self._taken_back(holder, fee_rate), fee_rate)
        outputs = [(c.outpoint, self._core.previous(c.outpoint)) for c in made.coins]
        spent = tuple(tx.outputs[outpoint.vout] for outpoint, tx in outputs)
        return OwnSpend(made.unsigned, spent, tuple(tx.raw for _, tx in outputs), made.fee)

    async def send_double_spend(self, holder: bytes, unsigned: bytes, witnesses: Sequence[Witness]) -> Sent:
        """See `Wallet.send_double_spend`."""
        core = self._core
        raw = with_witnesses(unsigned, witnesses)
        tx = parse_tx(raw)
        held = {r.outpoint for r in core.reservations() if r.holder == holder}
        cost = self._cost_of(tx)
        if set(tx.spends) != held or cost is None:
            raise GateRefused("what was signed does not take back this trade's coins; nothing was sent")
        self._gate(raw, [], cost, may_spend=held)
        await core.chain.test_accept(raw)
        return await core.broadcast(raw, cost)

    async def _taken_back(self, holder: bytes, fee_rate: FeeRate) -> tuple[list[Coin], bytes]:
        """What is held for `holder`, and a fresh script of ours. Raises NothingToSign, FeeRateTooHigh."""
        core = self._core
        core.check_rate(fee_rate)
        held = sorted(r.outpoint for r in core.reservations() if r.holder == holder)
        outputs = [core.ledger.output(o) for o in held]
        coins = [Coin(o, out.value) for o, out in zip(held, outputs, strict=True) if out is not None]
        if not coins or len(coins) < len(held):
            raise NothingToSign
        async with core.lock:
            _, script = await core.next_script(Keychain.INTERNAL)
        return coins, script

    # -- raising fees -----------------------------------------------------------------------------------------

    async def bump(self, txid: Txid, fee_rate: FeeRate, parent_fee: Sats | None, parent: bytes | None) -> Bumped:
        """See `Wallet.bump`."""
        core = self._core
        core.must_sign()
        core.check_rate(fee_rate)
        async with core.lock:
            entry = core.ledger.entry(txid)
            if parent is not None and (entry is None or entry.place is Place.GONE):
                entry = core.ledger.note(parse_tx(parent))
                return Bumped(await self._help(entry, fee_rate, parent_fee, alone=False), replacement=False)
            if entry is None:
                raise CantBump(f"{txid_text(txid)} is no transaction of this wallet")
            if entry.place is Place.BLOCK:
                raise CantBump(f"{txid_text(txid)} is in a block already")
            if entry.own:
                return Bumped(await self._replace(entry, fee_rate), replacement=True)
            if entry.place is Place.GONE:
                raise CantBump(f"{txid_text(txid)} has left the mempool: it must be sent again first")
            return Bumped(await self._help(entry, fee_rate, parent_fee), replacement=False)

    async def _replace(
        self, entry: Entry, fee_rate: FeeRate, *, deficit: Sats = 0, parent: bytes | None = None
    ) -> Sent:
        """The same payments at a higher fee. `deficit`: what a parent lacks to that rate; `parent` goes with it."""
        core, tx = self._core, entry.tx
        cost = self._cost_of(tx)
        if cost is None:
            raise CantBump(f"{txid_text(tx.txid)} spends coins that are not ours")
        size = vsize(tx.raw)
        least = -(-(cost + fee(4 * size, INCREMENT)) * 1_000 // size)
        if not deficit and fee_rate < least:
            raise BumpTooLow(
                f"it pays {cost / size:,.2f} sat/vB: name {-(-least // 10) / 100:,.2f} or more to replace it"
            )
        if deficit and fee(4 * size, fee_rate) + deficit <= cost:
            raise BumpTooLow("it is helped to that fee rate already: name a higher one")
        payees = [o for o in tx.outputs if core.ledger.keychain_of(o.script_pubkey) is None]
        ours = [o.script_pubkey for o in tx.outputs if core.ledger.keychain_of(o.script_pubkey) is not None]
        script = ours[0] if ours else (await core.next_script(Keychain.INTERNAL))[1]
        fixed = [Coin(o, self._value(o)) for o in tx.spends]
        needed = replacement_fee(fee_rate, cost, deficit=deficit)
        made = compose(fixed, payees, script, needed, await self._spare(fee_rate))
        sent = await self._finish(made, payees, fee_rate, most=made.fee, replaces=tx, parent=parent)
        core.ledger.disown(tx.txid)
        await core.flush()
        return sent

    async def _help(self, entry: Entry, fee_rate: FeeRate, parent_fee: Sats | None, *, alone: bool = True) -> Sent:
        """A child that pays for itself and its parent; not `alone`: the parent is in no mempool, and goes with it."""
        core, tx = self._core, entry.tx
        cost = self._cost_of(tx)
        paid = cost if cost is not None else parent_fee or 0
        deficit = fee(4 * vsize(tx.raw), fee_rate) - paid
        if deficit <= 0:
            raise BumpTooLow(f"it pays {paid / vsize(tx.raw):,.2f} sat/vB already: name a higher fee rate")
        held = {r.outpoint for r in core.reservations()}
        free: list[Coin] = []
        for vout, output in enumerate(tx.outputs):
            outpoint = tx.outpoint(vout)
            if core.ledger.keychain_of(output.script_pubkey) is None or outpoint in held:
                continue
            rivals = core.ledger.spenders(outpoint)
            child = next((r for r in rivals if r.own and r.place is not Place.BLOCK), None)
            if child is not None:
                return await self._replace(child, fee_rate, deficit=deficit, parent=None if alone else tx.raw)
            if not rivals:
                free.append(Coin(outpoint, output.value))
        if not free:
            raise CantBump(f"{txid_text(tx.txid)} pays nothing to this wallet that could be spent to help it")
        _, script = await core.next_script(Keychain.INTERNAL)
        needed = replacement_fee(fee_rate, 0, deficit=deficit)
        made = compose(free, [], script, needed, await self._spare(fee_rate))
        return await self._finish(made, [], fee_rate, most=made.fee, parent=None if alone else tx.raw)

    async def _spare(self, fee_rate: FeeRate) -> list[Coin]:
        """Coins that may be added to pay a fee, the largest first."""
        coins = self._spendable(await self._core.utxos())
        return [Coin(c.outpoint, c.value) for c in coins if worthwhile(c.value, fee_rate)][:MAX_INPUTS]

    def _value(self, outpoint: OutPoint) -> Sats:
        output = self._core.ledger.output(outpoint)
        if output is None:
            raise NothingToSign(f"the transaction that made {outpoint} is not known")
        return output.value

    def _cost_of(self, tx: ParsedTx) -> Sats | None:
        """The fee of a transaction; None when some of its inputs are not ours."""
        spent = [self._core.ledger.output(o) for o in tx.spends]
        brought = sum(o.value for o in spent if o is not None)
        return None if None in spent else brought - sum(o.value for o in tx.outputs)

    # -- the last steps ---------------------------------------------------------------------------------------

    async def _signed(self, made: Draft) -> bytes:
        coins = {c.outpoint for c in made.coins}
        witnesses = await self._core.sign(made.unsigned, coins)
        return with_witnesses(made.unsigned, [witnesses[i] for i in range(len(made.coins))])

    async def _finish(
        self,
        made: Draft,
        payees: Sequence[TxOut],
        fee_rate: FeeRate,
        *,
        most: Sats | None = None,
        replaces: ParsedTx | None = None,
        parent: bytes | None = None,
    ) -> Sent:
        raw = await self._signed(made)
        if most is None:
            # Change that would be dust goes to the miners as well, with what its output would have cost.
            most = fee(weight(raw) + output_weight(len(CHANGE_SCRIPT)), fee_rate + fee_rate // 100 + 8)
            most += dust_limit(CHANGE_SCRIPT)
        self._gate(raw, payees, most, may_spend=replaces.spends if replaces is not None else ())
        return await self._core.broadcast(raw, made.fee, parent=parent)

    def _gate(self, raw: bytes, payees: Sequence[TxOut], most: Sats, *, may_spend: Collection[OutPoint]) -> None:
        """The last look before a payment leaves. Raises GateRefused."""
        core = self._core
        tx = parse_tx(raw)
        held = {r.outpoint for r in core.reservations()} - set(may_spend)
        rest = list(tx.outputs)
        complete = True
        for payee in payees:
            complete = complete and payee in rest
            if payee in rest:
                rest.remove(payee)
        cost = self._cost_of(tx)
        if (
            not complete
            or cost is None
            or held & set(tx.spends)
            or any(core.ledger.keychain_of(o.script_pubkey) is None for o in rest)
            or not 0 < cost <= most
        ):
            raise GateRefused("the payment that was built is not the one that was asked for; nothing was sent")

    # -- sending again ----------------------------------------------------------------------------------------

    async def send_again_for_ever(self) -> None:
        """After each block, send what is in none: a node forgets, is restarted, or is another one than before."""
        while True:
            await self._core.new_block.wait()
            self._core.new_block.clear()
            await self.send_again()

    async def send_again(self) -> None:
        """Hand our transactions that are in no block to the network once more; it knows most of them."""
        ledger = self._core.ledger
        for entry in ledger.entries():
            if not entry.own or entry.place is Place.BLOCK:
                continue
            rivals = [r for o in entry.tx.spends for r in ledger.spenders(o) if r.tx.txid != entry.tx.txid]
            if any(r.place is Place.BLOCK for r in rivals):
                continue
            try:
                await self._core.chain.broadcast(entry.tx.raw)
            except ChainError as e:
                _log.info("payment %s can't be sent again: %s", txid_text(entry.tx.txid), e)
            await asyncio.sleep(0)


def _reclaim(coins: Sequence[Coin], script: bytes, rate: FeeRate) -> Draft:
    """All of `coins` back to ourselves. Raises AmountBelowDust."""
    try:
        return sweep(coins, script, rate, least=dust_limit(script))
    except InsufficientFunds as e:
        raise AmountBelowDust("the coins are worth less than the fee for taking them back") from e


def dust_of(script: bytes) -> Sats:
    """Core's dust limit for any script that an address can name."""
    segwit = script[0] == 0 or 0x51 <= script[0] <= 0x60
    return dust_limit(script) if segwit else 3 * (8 + 1 + len(script) + _NON_SEGWIT_SPEND)
