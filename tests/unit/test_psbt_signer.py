"""Whole trades in which one party's coins are on a device that is spoken to by PSBT alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from escrow.chain.base import Rejected
from escrow.coins import TxOut
from escrow.funding import FundingPlan, derive_funding
from escrow.keys import public_key
from escrow.psbt import IN_ORIGIN, IN_PARTIAL, IN_PREVIOUS, BadPsbt, KeyOrigin, Psbt, StalePsbt, encode, field, keyed
from escrow.psbtplan import OwnSpend
from escrow.transactions import REPLACEABLE, build, txid_of, with_witnesses
from escrow.wallet.base import Sent
from p2pnode.services.hints import hint
from p2pnode.signing import PsbtFolder, PsbtSigner, Purpose
from protocol import trade_events as ev
from protocol.trade_state import TradeState
from protocol.types import Side
from tests.unit.escrow_support import NETWORK
from tests.world import TwinNode, World


class Device:
    """Holds a node's keys; signs exported PSBTs as a hardware wallet does, by the origins in them.

    It stands for the node's watch-only wallet as well: `origin_of` and the two of the double spend.
    """

    def __init__(self, node: TwinNode, folder: Path) -> None:
        self.node = node
        self.folder = PsbtFolder(folder / f"{node.name}-psbts")
        node.executor.signer = PsbtSigner(self.folder, self)

        async def never(tx: bytes, *, holder: bytes) -> dict[int, tuple[bytes, ...]]:
            raise AssertionError("a watch-only wallet was asked to sign")

        self._sign = node.wallet.sign_inputs
        node.wallet.sign_inputs = never  # type: ignore[method-assign]
        self.outbids = False
        """The network has the funding: the next reclaim must bid more."""
        self.rates: list[int] = []

    def origin_of(self, script: bytes) -> KeyOrigin | None:
        secret = self.node.wallet.scripts.get(script)
        return None if secret is None else KeyOrigin(public_key(secret), b"\1\2\3\4", (0x80000054, 0, 1))

    async def draft_double_spend(self, holder: bytes, fee_rate: int) -> OwnSpend:
        wallet = self.node.wallet
        mine = sorted(o for o, h in wallet.held.items() if h == holder)
        spent = [wallet.chain.outputs[o] for o in mine]
        raws = {txid_of(raw): raw for _, raw in wallet.chain.everything()}
        self.rates.append(fee_rate)
        left = sum(o.value for o in spent) - fee_rate * 111 // 1_000
        unsigned = build([(o, REPLACEABLE) for o in mine], [TxOut(left, wallet.script())])
        return OwnSpend(unsigned, tuple(spent), tuple(raws[o.txid] for o in mine), fee_rate * 111 // 1_000)

    async def send_double_spend(self, holder: bytes, unsigned: bytes, witnesses: Sequence[tuple[bytes, ...]]) -> Sent:
        del holder
        if self.outbids:
            self.outbids = False
            raise Rejected("insufficient fee, rejecting replacement")
        raw = with_witnesses(unsigned, witnesses)
        return Sent(self.node.wallet.chain.accept(raw), raw, 0)

    @property
    def trade(self) -> TradeState:
        assert self.node.trade is not None
        return self.node.trade

    @property
    def trade_id(self) -> bytes:
        return self.trade.trade_id

    @property
    def plan(self) -> FundingPlan:
        assert self.trade.contract is not None
        return derive_funding(self.trade.contract, NETWORK)

    def asked(self, purpose: Purpose = "funding") -> bool:
        return self.node.trade is not None and self.folder.exported(self.trade_id, purpose).exists()

    async def sign(self, psbt: Psbt) -> Psbt:
        witnesses = await self._sign(psbt.unsigned, holder=self.trade_id)
        inputs = [dict(fields) for fields in psbt.inputs]
        for index, (signature, public) in witnesses.items():
            assert keyed(inputs[index], IN_ORIGIN), "the device is not told which key is meant"
            inputs[index][field(IN_PARTIAL, public)] = signature
        return Psbt(psbt.unsigned, tuple(inputs), psbt.outputs)

    async def answer(self, purpose: Purpose = "funding") -> None:
        """As `p2pnode trade psbt --import` does."""
        signed = await self.sign(self.folder.read_exported(self.trade_id, purpose))
        self.folder.take_over(self.trade_id, self.plan, self.trade.side, signed)


@pytest_asyncio.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Side], World]]:
    monkeypatch.setattr("p2pnode.executor.PERSONS_PAUSE", 0.02)
    worlds = []

    def build(maker_side: Side) -> World:
        worlds.append(World(tmp_path, maker_side))
        return worlds[-1]

    yield build
    for world in worlds:
        await world.end()


@pytest.mark.parametrize("who", ["buyer", "seller"])
@pytest.mark.parametrize("maker_side", Side)
async def test_trade_funded_from_a_device(
    make: Callable[[Side], World], tmp_path: Path, maker_side: Side, who: str
) -> None:
    world = make(maker_side)
    await world.begin()
    device = Device(getattr(world, who), tmp_path)
    await world.take()
    await world.until(device.asked, "export")
    psbt = device.folder.read_exported(device.trade_id)
    # Both parties' previous transactions: the counterparty's amounts are proved to the device as well.
    assert all(field(IN_PREVIOUS) in fields for fields in psbt.inputs)
    assert world.chain.mempool == {}
    await device.answer()
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")
    world.chain.mine(2)
    await world.until(lambda: world.phases("Funded"), "funded")


async def test_restart_while_a_person_signs_asks_for_the_same(make: Callable[[Side], World], tmp_path: Path) -> None:
    world = make(Side.SELL)
    await world.begin()
    device = Device(world.buyer, tmp_path)
    await world.take()
    await world.until(device.asked, "export")
    before = encode(device.folder.read_exported(device.trade_id))
    await world.buyer.down()
    await world.buyer.up()
    device = Device(world.buyer, tmp_path)
    await device.answer()
    assert encode(device.folder.read_exported(device.trade_id)) == before
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")


async def test_stale_or_bent_psbt_is_not_taken_over_and_the_right_one_still_is(
    make: Callable[[Side], World], tmp_path: Path
) -> None:
    world = make(Side.SELL)
    await world.begin()
    device = Device(world.buyer, tmp_path)
    await world.take()
    await world.until(device.asked, "export")
    trade = world.buyer.trade
    assert trade is not None
    assert trade.contract is not None
    plan = derive_funding(trade.contract, NETWORK)
    exported = device.folder.read_exported(device.trade_id)
    signed = await device.sign(exported)
    stale = Psbt(exported.unsigned[:-4] + b"\x01\0\0\0", signed.inputs, signed.outputs)
    bent = Psbt(exported.unsigned, signed.inputs[::-1], signed.outputs)
    for psbt, error in ((stale, StalePsbt), (bent, BadPsbt)):
        with pytest.raises(error):
            device.folder.take_over(device.trade_id, plan, trade.side, psbt)
        assert device.folder.read_signed(device.trade_id) is None
    # Somebody puts it into the folder by hand: the node looks again itself.
    device.folder.signed(device.trade_id).write_bytes(encode(bent))
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.buyer.phase == "SigningFunding"
    assert world.chain.mempool == {}
    await device.answer()
    await world.until(lambda: len(world.chain.mempool) == 1 and world.phases("Funding"), "funding")


async def test_leaving_while_a_person_is_asked_frees_the_coins(make: Callable[[Side], World], tmp_path: Path) -> None:
    """The effects of a trade run in order: one that waits for a person must not hold up those after it for ever."""
    world = make(Side.SELL)
    await world.begin()
    device = Device(world.buyer, tmp_path)
    await world.take()
    await world.until(device.asked, "export")
    assert world.buyer.held
    world.buyer.engine.apply(device.trade_id, ev.Cancel("no device at hand"))
    await world.until(lambda: not world.buyer.held, "release of the coins")
    assert world.buyer.phase == "Cancelled"
    assert world.buyer.engine.trades.trades_with_effects() == []


async def test_person_who_signs_too_late_finds_the_trade_ended_and_the_coins_free(
    make: Callable[[Side], World], tmp_path: Path
) -> None:
    """Nobody waits for ever: the deadline is a little before the peer's own."""
    world = make(Side.SELL)
    await world.begin()
    device = Device(world.buyer, tmp_path)
    await world.take()
    await world.until(lambda: world.buyer.trade is not None and world.buyer.trade.funding.awaited, "being asked")
    assert [t.name for t in world.buyer.engine.trades.timers(device.trade_id)] == ["signing"]
    assert "p2pnode trade psbt" in hint(device.trade)
    world.buyer.engine.apply(device.trade_id, ev.TimerFired("signing"))
    await world.until(lambda: not world.buyer.held, "release of the coins")
    assert world.buyer.phase == "Cancelled"
    assert "not signed in time" in device.trade.ending
    await world.until(lambda: world.seller.phase == "Cancelled", "the peer to hear of it")


async def test_buyer_with_a_device_takes_its_coins_back_when_the_seller_withholds(
    make: Callable[[Side], World], tmp_path: Path
) -> None:
    world = make(Side.SELL)
    await world.begin()
    device = Device(world.buyer, tmp_path)
    await world.take()
    await world.until(device.asked, "export")
    await world.seller.down()
    await device.answer()
    await world.until(lambda: world.buyer.phase == "Funding", "signatures to be out")
    world.buyer.engine.apply(device.trade_id, ev.TimerFired("funding"))
    await world.until(lambda: device.asked("reclaim"), "the reclaim to be exported")
    await world.until(lambda: device.trade.funding.awaited, "being asked")
    assert "to take them back" in hint(device.trade)
    first = device.folder.read_exported(device.trade_id, "reclaim")
    # A stale one, such as the funding itself with its inputs swapped, is no reclaim.
    device.outbids = True
    await device.answer("reclaim")
    await world.until(lambda: len(device.rates) == 2, "a higher bid to be asked for")
    second = device.folder.read_exported(device.trade_id, "reclaim")
    assert second.unsigned != first.unsigned
    assert device.rates[1] >= 2 * device.rates[0] - 100
    signed, plan = await device.sign(first), device.plan
    with pytest.raises(StalePsbt):
        device.folder.take_over(device.trade_id, plan, device.trade.side, signed)
    await device.answer("reclaim")
    await world.until(lambda: txid_of(second.unsigned) in world.chain.mempool, "the reclaim in the mempool")
    world.chain.mine(2)
    await world.until(lambda: world.buyer.phase == "Cancelled", "the end")
    assert not world.buyer.held
