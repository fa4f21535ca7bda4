"""The wallet as the API gives it, over the real wallet and a real bitcoind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from escrow.address import BadAddress, address_of
from escrow.chain.base import BackendUnreachable, FeeUnknown, Rejected
from escrow.coins import txid_bytes
from escrow.transactions import parse
from escrow.wallet.base import AmountBelowDust, FeeRateTooHigh, InsufficientFunds
from p2pnode.api.schema import AddressRequest, SendRequest
from p2pnode.regtest import RegtestNode
from p2pnode.services.wallet import CoinService, SendInterrupted
from protocol.errors import P2PError
from protocol.types import Network
from tests.regtest.test_wallet import TRADE, Bench, fresh_seed, wallet_on

STRANGER = address_of(b"\x00\x14" + b"s" * 20, Network.REGTEST)
CEILING = 100_000


@pytest.fixture
async def bench(bitcoind: RegtestNode, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with wallet_on(bitcoind, tmp_path, fresh_seed(request.node.nodeid)) as made:
        yield made


def service(bench: Bench) -> CoinService:
    return CoinService(bench.wallet, bench.backend, max_fee_rate=CEILING)


async def test_balance_coins_and_history_say_what_is_there(bench: Bench) -> None:
    coins = service(bench)
    address = await coins.address(AddressRequest(label="from the bank"))
    assert (address.label, address.index) == ("from the bank", 0)
    (small, large) = await bench.receive(100_000, 400_000)
    selection = await bench.wallet.select(50_000, 2_000, holder=TRADE)
    held = selection.inputs[0].value
    balance = await coins.balance()
    assert (balance.confirmed_sats, balance.reserved_sats, balance.spendable_sats) == (500_000, held, 500_000 - held)
    assert (balance.pending_sats, balance.immature_sats) == (0, 0)
    utxos = (await coins.utxos()).utxos
    assert [(u.txid, u.vout, u.value_sats) for u in utxos] == [
        (large.txid[::-1].hex(), large.vout, 400_000),
        (small.txid[::-1].hex(), small.vout, 100_000),
    ]
    assert sorted(u.trade or "" for u in utxos) == ["", TRADE.hex()]
    assert all(u.address is not None and u.address.startswith("bcrt1q") and not u.change for u in utxos)
    entries = (await coins.history(10)).entries
    assert sorted(e.net_sats for e in entries) == [100_000, 400_000]
    assert all(e.height is not None and e.fee_sats is None for e in entries)
    assert len((await coins.history(1)).entries) == 1


async def test_a_payment_is_in_the_mempool_and_its_fee_is_what_was_said(bench: Bench) -> None:
    await bench.receive(1_000_000)
    sent = await service(bench).send(SendRequest(address=STRANGER, amount_sats=200_000, fee_rate_sats_per_kvb=5_000))
    tx = await bench.backend.transaction(txid_bytes(sent.txid))
    assert tx is not None
    outputs = parse(tx.raw).vout
    assert 200_000 in [o.nValue for o in outputs]
    assert 1_000_000 - sum(o.nValue for o in outputs) == sent.fee_sats
    assert sent.amount_sats == 200_000


async def test_without_a_rate_the_backends_estimate_is_paid(bench: Bench) -> None:
    await bench.receive(1_000_000)
    # The shared bitcoind may have come to an estimate of its own; one input and two outputs have 141 vB.
    rate = await bench.backend.fee_rate(6)
    sent = await service(bench).send(SendRequest(address=STRANGER, amount_sats=200_000))
    assert rate * 140 // 1000 <= sent.fee_sats <= rate * 145 // 1000


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (SendRequest(address=STRANGER, amount_sats=200_000, fee_rate_sats_per_kvb=CEILING + 1), FeeRateTooHigh),
        (SendRequest(address=STRANGER, amount_sats=100), AmountBelowDust),
        (SendRequest(address=STRANGER, amount_sats=2_000_000), InsufficientFunds),
        (SendRequest(address="bcrt1qnonsense", amount_sats=200_000), BadAddress),
    ],
)
async def test_what_can_not_be_sent_is_refused_and_nothing_leaves(
    bench: Bench, request_: SendRequest, error: type[P2PError]
) -> None:
    await bench.receive(1_000_000)
    with pytest.raises(error):
        await service(bench).send(request_)
    assert (await service(bench).balance()).spendable_sats == 1_000_000


async def test_a_backend_that_is_away_is_found_out_before_anything_is_signed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.receive(1_000_000)

    async def away(_: int) -> int:
        raise BackendUnreachable

    monkeypatch.setattr(bench.backend, "fee_rate", away)
    with pytest.raises(BackendUnreachable):
        await service(bench).send(SendRequest(address=STRANGER, amount_sats=200_000, fee_rate_sats_per_kvb=2_000))


async def test_a_named_rate_needs_no_estimate(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.receive(1_000_000)

    async def unknown(_: int) -> int:
        raise FeeUnknown

    monkeypatch.setattr(bench.backend, "fee_rate", unknown)
    with pytest.raises(FeeUnknown):
        await service(bench).send(SendRequest(address=STRANGER, amount_sats=200_000))
    sent = await service(bench).send(SendRequest(address=STRANGER, amount_sats=200_000, fee_rate_sats_per_kvb=4_000))
    assert 560 <= sent.fee_sats <= 580


@pytest.mark.parametrize("lost", [True, False], ids=["answer-lost", "refused"])
async def test_a_payment_of_unknown_outcome_is_not_reported_as_harmless(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The routes repeat a request that failed with a P2PError: a payment must not go out twice."""
    await bench.receive(1_000_000)
    broadcast = bench.backend.broadcast

    async def broken(tx: bytes) -> bytes:
        if not lost:
            raise Rejected("min relay fee not met")
        await broadcast(tx)
        raise BackendUnreachable

    monkeypatch.setattr(bench.backend, "broadcast", broken)
    request = SendRequest(address=STRANGER, amount_sats=200_000)
    if lost:
        with pytest.raises(SendInterrupted) as raised:
            await service(bench).send(request)
        assert not isinstance(raised.value, P2PError)
    else:
        with pytest.raises(Rejected):
            await service(bench).send(request)


async def test_everything_is_sent_with_the_fee_out_of_it(bench: Bench) -> None:
    await bench.receive(400_000, 600_000)
    sent = await service(bench).send(SendRequest(address=STRANGER, amount_sats=None, fee_rate_sats_per_kvb=3_000))
    assert sent.amount_sats + sent.fee_sats == 1_000_000
    tx = await bench.backend.transaction(txid_bytes(sent.txid))
    assert tx is not None
    assert [o.nValue for o in parse(tx.raw).vout] == [sent.amount_sats]
    assert await bench.wallet.utxos() == ()
