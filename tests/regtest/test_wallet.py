"""The user's wallet on a real chain: coins that must not be lost, used twice, or counted when they are not there."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from escrow.address import BadAddress, WrongNetworkAddress, address_of, script_of
from escrow.chain.base import Rejected
from escrow.chain.bitcoind import BitcoindBackend
from escrow.chain.blocks import parse_tx
from escrow.coins import OutPoint, TxOut, txid_text
from escrow.hd import HARDENED, hash160
from escrow.seed import Seed, mnemonic_from_entropy
from escrow.sizes import P2WPKH_INPUT_WEIGHT, fee, output_weight
from escrow.transactions import REPLACEABLE, build, vsize, with_witnesses
from escrow.wallet.base import (
    AlreadyReserved,
    AmountBelowDust,
    Balance,
    FeeRateTooHigh,
    InsufficientFunds,
    NothingToSign,
    Selection,
    TooManyInputs,
    WalletMismatch,
    reservations_of,
)
from escrow.wallet.engine import WalletEngine
from escrow.wallet.engines import EngineName, make_engine
from escrow.wallet.hot import HotWallet, WalletOptions
from escrow.wallet.reservations import SqliteReservations
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.chain_support import backend_on, node_spend, own_output, pay, until

TRADE, OTHER = b"T" * 32, b"U" * 32
RATE = 2_000


@dataclass
class Bench:
    node: RegtestNode
    backend: BitcoindBackend
    wallet: HotWallet
    seed: Seed
    folder: Path
    reservations: SqliteReservations

    async def receive(self, *amounts: int, confirmations: int = 1) -> list[OutPoint]:
        coins = [await pay(self.node, (await self.wallet.new_address("")).script_pubkey, sats) for sats in amounts]
        if confirmations:
            await self.node.mine(confirmations)
        await self.backend.look()
        return coins

    async def mine(self, blocks: int = 1) -> None:
        await self.node.mine(blocks)
        await self.backend.look()


def fresh_seed(name: str) -> Seed:
    return Seed.from_mnemonic(mnemonic_from_entropy(random.Random(name).randbytes(32)))


@asynccontextmanager
async def wallet_on(
    node: RegtestNode,
    folder: Path,
    seed: Seed,
    *,
    birthday: int | None = None,
    engine: EngineName | WalletEngine = "auto",
    gap_limit: int = 50,
    **chain: object,
) -> AsyncIterator[Bench]:
    connection = sqlite3.connect(folder / "node.sqlite", isolation_level=None)
    store = SqliteReservations(connection)
    async with backend_on(node, **chain) as backend:
        wallet = HotWallet(
            make_engine(seed.master, Network.REGTEST, engine) if isinstance(engine, str) else engine,
            backend,
            store,
            folder / "wallet.sqlite",
            lambda: 1_800_000_000,
            WalletOptions(birthday=birthday, gap_limit=gap_limit),
        )
        await wallet.start()
        try:
            yield Bench(node, backend, wallet, seed, folder, store)
        finally:
            await wallet.close()
            connection.close()


@pytest.fixture
async def bench(bitcoind: RegtestNode, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """A new wallet on the session's node."""
    async with wallet_on(bitcoind, tmp_path, fresh_seed(request.node.nodeid)) as made:
        yield made


def funding(selection: Selection, target: int) -> bytes:
    """A transaction that pays `target` to a stranger from a selection."""
    outputs = [TxOut(target, b"\x00\x20" + bytes(32))]
    if selection.change is not None:
        outputs.append(selection.change)
    return build([(i.outpoint, REPLACEABLE) for i in selection.inputs], outputs)


async def signed(bench: Bench, unsigned: bytes, holder: bytes) -> bytes:
    witnesses = await bench.wallet.sign_inputs(unsigned, holder=holder)
    return with_witnesses(unsigned, [witnesses[i] for i in range(len(witnesses))])


class TestReceiving:
    async def test_no_address_is_handed_out_twice_even_at_once_and_after_a_restart(
        self, bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("addresses")
        seen: set[str] = set()
        for _ in range(2):
            async with wallet_on(bitcoind, tmp_path, seed) as bench:
                made = await asyncio.gather(*(bench.wallet.new_address(f"n{i}") for i in range(20)))
                scripts = await asyncio.gather(*(bench.wallet.change_script() for _ in range(20)))
                texts = {a.text for a in made} | {address_of(s, Network.REGTEST) for s in scripts}
                assert len(texts) == 40
                assert not texts & seen
                seen |= texts

    async def test_addresses_are_bip84_of_the_mnemonic(self, bench: Bench) -> None:
        account = bench.seed.master.derive(84 + HARDENED, 1 + HARDENED, HARDENED)
        first = await bench.wallet.new_address("")
        assert first.script_pubkey == b"\x00\x14" + hash160(account.derive(0, 0).public)
        assert script_of(first.text, Network.REGTEST) == first.script_pubkey
        assert await bench.wallet.change_script() == b"\x00\x14" + hash160(account.derive(1, 0).public)

    async def test_a_payment_is_pending_until_a_block_holds_it(self, bench: Bench) -> None:
        await bench.receive(70_000, confirmations=0)
        assert await bench.wallet.balance() == Balance(0, 70_000, 0, 0, 0)
        with pytest.raises(InsufficientFunds, match="70,000 sat not yet confirmed"):
            await bench.wallet.select(10_000, RATE, holder=TRADE)
        await bench.mine()
        assert await bench.wallet.balance() == Balance(70_000, 0, 0, 0, 70_000)
        entry = (await bench.wallet.history())[0]
        assert (entry.net, entry.fee, entry.height) == (70_000, None, await bench.node.height())

    async def test_a_payment_that_is_replaced_away_is_not_counted(self, bench: Bench) -> None:
        coin, _ = await own_output(bench.node)
        address = (await bench.wallet.new_address("")).text
        inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout, "sequence": REPLACEABLE}]
        raw = await bench.node.rpc("createrawtransaction", inputs, [{address: "0.00099"}])
        await bench.node.rpc(
            "sendrawtransaction", (await bench.node.rpc("signrawtransactionwithwallet", raw, wallet="miner"))["hex"]
        )
        await bench.backend.look()
        assert (await bench.wallet.balance()).pending == 99_000
        await node_spend(bench.node, coin, 80_000)
        await bench.backend.look()
        assert await bench.wallet.balance() == Balance(0, 0, 0, 0, 0)
        assert await bench.wallet.history() == ()

    async def test_mined_coins_can_be_spent_only_when_mature(self, own_bitcoind: RegtestNode, tmp_path: Path) -> None:
        async with wallet_on(own_bitcoind, tmp_path, fresh_seed("mined")) as bench:
            address = await bench.wallet.new_address("")
            await own_bitcoind.mine(1, address.text)
            await bench.backend.look()
            balance = await bench.wallet.balance()
            assert balance.immature > 0
            assert (balance.confirmed, balance.spendable) == (0, 0)
            with pytest.raises(InsufficientFunds):
                await bench.wallet.select(1_000, RATE, holder=TRADE)
            with pytest.raises(InsufficientFunds):
                await bench.wallet.send(await own_bitcoind.new_address(), 1_000, RATE)
            await own_bitcoind.mine(98)
            await bench.backend.look()
            assert (await bench.wallet.balance()).spendable == 0
            await own_bitcoind.mine(1)
            await bench.backend.look()
            assert (await bench.wallet.balance()).spendable == balance.immature
            await bench.wallet.send(await own_bitcoind.new_address(), 1_000, RATE)


class TestChainTroubles:
    async def test_reorg_takes_coins_back_and_they_are_not_selected(
        self, two_bitcoinds: tuple[RegtestNode, RegtestNode], tmp_path: Path
    ) -> None:
        one, two = two_bitcoinds
        async with wallet_on(one, tmp_path, fresh_seed("reorg")) as bench:
            coin, _ = await own_output(one)
            await one.mine(1)
            await one.connect(two)
            address = (await bench.wallet.new_address("")).text
            inputs = [{"txid": txid_text(coin.txid), "vout": coin.vout}]

            async def sign(outputs: object) -> str:
                raw = await one.rpc("createrawtransaction", inputs, outputs)
                return str((await one.rpc("signrawtransactionwithwallet", raw, wallet="miner"))["hex"])

            ours, thiefs = await sign([{address: "0.0009"}]), await sign([{await one.new_address(): "0.0009"}])
            await one.disconnect(two)
            await one.rpc("sendrawtransaction", ours)
            await one.mine(1)
            await bench.backend.look()
            assert (await bench.wallet.balance()).spendable == 90_000
            await two.rpc("sendrawtransaction", thiefs)
            await two.mine(2)
            await one.connect(two)
            await bench.backend.look()
            assert await bench.wallet.balance() == Balance(0, 0, 0, 0, 0)
            assert await bench.wallet.utxos() == ()
            with pytest.raises(InsufficientFunds):
                await bench.wallet.select(10_000, RATE, holder=TRADE)

    async def test_reorg_while_the_wallet_was_off(self, own_bitcoind: RegtestNode, tmp_path: Path) -> None:
        seed = fresh_seed("off")
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            await bench.receive(70_000, confirmations=3)
            assert (await bench.wallet.balance()).confirmed == 70_000
        await own_bitcoind.reorganise(3)
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            assert await bench.wallet.balance() == Balance(0, 70_000, 0, 0, 0)
            await bench.mine()
            assert (await bench.wallet.balance()).confirmed == 70_000

    async def test_payments_while_the_wallet_was_off_are_found(self, own_bitcoind: RegtestNode, tmp_path: Path) -> None:
        seed = fresh_seed("absent")
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            scripts = [(await bench.wallet.new_address("")).script_pubkey for _ in range(3)]
        await pay(own_bitcoind, scripts[0], 11_000, confirmations=40)
        await pay(own_bitcoind, scripts[1], 12_000, confirmations=1)
        await pay(own_bitcoind, scripts[2], 13_000)
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            assert await bench.wallet.balance() == Balance(23_000, 13_000, 0, 0, 23_000)

    async def test_a_seed_alone_finds_its_coins_again_beyond_a_gap_in_one_block(
        self, own_bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("restore")
        folders = [tmp_path / "old", tmp_path / "new"]
        for folder in folders:
            folder.mkdir()
        async with wallet_on(own_bitcoind, folders[0], seed) as bench:
            scripts = [(await bench.wallet.new_address("")).script_pubkey for _ in range(130)]
        # Each is within the gap limit of the one before; the last two are in one block, in the wrong order.
        await pay(own_bitcoind, scripts[40], 1_000, confirmations=30)
        await pay(own_bitcoind, scripts[129], 4_000)
        await pay(own_bitcoind, scripts[85], 2_000, confirmations=1)
        async with wallet_on(own_bitcoind, folders[1], seed, birthday=0) as bench:
            assert (await bench.wallet.balance()).confirmed == 7_000
            assert (await bench.wallet.new_address("")).index == 130

    async def test_wallet_without_filters_and_without_zmq(self, bitcoind_binary: Path, tmp_path: Path) -> None:
        args = ("-blockfilterindex=0", "-peerblockfilters=0")
        async with RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=args) as node:
            await node.ensure_coins(2)
            seed = fresh_seed("bare")
            async with wallet_on(node, tmp_path, seed, zmq={}) as bench:
                await bench.receive(50_000, confirmations=12)
            await node.mine(5)
            async with wallet_on(node, tmp_path, seed, zmq={}) as bench:
                assert (await bench.wallet.utxos())[0].confirmations == 17

    async def test_node_that_lost_its_mempool_gets_the_payment_again(
        self, own_bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("mempool")
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            await bench.receive(50_000)
            sent = await bench.wallet.send(await own_bitcoind.new_address(), 20_000, RATE)
            assert (await bench.wallet.balance()).pending > 0
        await own_bitcoind.stop()
        (own_bitcoind.datadir / "regtest" / "mempool.dat").unlink()
        await own_bitcoind.start()
        assert await own_bitcoind.rpc("getrawmempool") == []
        async with wallet_on(own_bitcoind, tmp_path, seed) as bench:
            assert await own_bitcoind.rpc("getrawmempool") == [txid_text(sent.txid)]
            await bench.mine()
            assert (await bench.wallet.history())[0].txid == sent.txid


class TestSelecting:
    async def test_one_coin_is_preferred_and_the_sums_are_exact(self, bench: Bench) -> None:
        coins = await bench.receive(30_000, 60_000, 200_000)
        selection = await bench.wallet.select(50_000, RATE, holder=TRADE)
        assert [i.outpoint for i in selection.inputs] == [coins[1]]
        assert selection.change is not None
        assert selection.fee == fee(P2WPKH_INPUT_WEIGHT + output_weight(22), RATE)
        assert 50_000 + selection.fee + selection.change.value == 60_000
        chosen = selection.inputs[0]
        source = parse_tx(chosen.previous_tx)
        assert source.txid == chosen.outpoint.txid
        assert source.outputs[chosen.outpoint.vout] == TxOut(chosen.value, chosen.script_pubkey)
        # Two coins where one does not reach.
        both = await bench.wallet.select(220_000, RATE, holder=TRADE)
        assert [i.outpoint for i in both.inputs] == [coins[2], coins[0]]

    async def test_dust_is_not_made_into_change(self, bench: Bench) -> None:
        await bench.receive(60_000)
        cost = fee(P2WPKH_INPUT_WEIGHT, RATE)
        with_change = fee(P2WPKH_INPUT_WEIGHT + output_weight(22), RATE)
        folded = await bench.wallet.select(60_000 - with_change - 293, RATE, holder=TRADE)
        assert (folded.change, folded.fee) == (None, with_change + 293)
        kept = await bench.wallet.select(60_000 - with_change - 294, RATE, holder=TRADE)
        assert kept.change is not None
        assert kept.change.value == 294
        exact = await bench.wallet.select(60_000 - cost, RATE, holder=TRADE)
        assert (exact.change, exact.fee) == (None, cost)
        with pytest.raises(InsufficientFunds):
            await bench.wallet.select(60_000 - cost + 1, RATE, holder=TRADE)

    async def test_two_trades_never_get_the_same_coin_even_at_once(self, bench: Bench) -> None:
        await bench.receive(100_000, 100_000, 100_000)
        holders = [bytes([i]) * 32 for i in range(5)]
        results = await asyncio.gather(
            *(bench.wallet.select(60_000, RATE, holder=h) for h in holders), return_exceptions=True
        )
        got = [r for r in results if isinstance(r, Selection)]
        coins = [i.outpoint for r in got for i in r.inputs]
        assert len(got) == 3
        assert len(set(coins)) == len(coins)
        refused = [r for r in results if isinstance(r, InsufficientFunds)]
        assert len(refused) == 2
        assert (refused[0].available, refused[0].reserved) == (0, 300_000)
        assert await bench.wallet.balance() == Balance(300_000, 0, 0, 300_000, 0)
        with pytest.raises(InsufficientFunds, match="300,000 sat held by open trades"):
            await bench.wallet.send(await bench.node.new_address(), 10_000, RATE)

    async def test_reservations_survive_a_restart_and_are_listed_with_their_holder(
        self, bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("restart")
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            await bench.receive(100_000)
            selection = await bench.wallet.select(60_000, RATE, holder=TRADE)
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            held = await bench.wallet.reservations()
            assert [(r.outpoint, r.holder, r.value) for r in held] == [(selection.inputs[0].outpoint, TRADE, 100_000)]
            assert (await bench.wallet.utxos())[0].reserved_for == TRADE
            with pytest.raises(InsufficientFunds):
                await bench.wallet.select(60_000, RATE, holder=OTHER)
            # The same trade may choose again; released coins are anyone's.
            await bench.wallet.select(50_000, RATE, holder=TRADE)
            await bench.wallet.release(TRADE)
            await bench.wallet.release(TRADE)
            await bench.wallet.select(60_000, RATE, holder=OTHER)

    async def test_engine_commits_the_reservation_with_its_own_transaction_or_not_at_all(self, bench: Bench) -> None:
        await bench.receive(100_000)
        selection = await bench.wallet.select(60_000, RATE, holder=TRADE, commit=False)
        assert bench.reservations.all() == ()
        with pytest.raises(InsufficientFunds):
            await bench.wallet.select(60_000, RATE, holder=OTHER)
        connection = bench.reservations._connection
        connection.execute("BEGIN")
        bench.reservations.add(reservations_of(selection, 5))
        connection.execute("ROLLBACK")
        assert bench.reservations.all() == ()
        connection.execute("BEGIN")
        bench.reservations.add(reservations_of(selection, 5))
        connection.execute("COMMIT")
        assert len(await bench.wallet.reservations()) == 1
        with pytest.raises(AlreadyReserved):
            bench.reservations.add(reservations_of(Selection(OTHER, selection.inputs, None, 0), 6))
        assert [r.holder for r in bench.reservations.all()] == [TRADE]

    async def test_limits_are_refused_clearly(self, bench: Bench) -> None:
        await bench.receive(*([10_000] * 4))
        with pytest.raises(TooManyInputs, match="consolidate"):
            await bench.wallet.select(35_000, RATE, holder=TRADE, max_inputs=3)
        with pytest.raises(FeeRateTooHigh, match=r"501\.00 sat/vB is above the ceiling of 500"):
            await bench.wallet.select(10_000, 501_000, holder=TRADE)
        with pytest.raises(AmountBelowDust):
            await bench.wallet.select(0, RATE, holder=TRADE)
        assert bench.reservations.all() == ()


class TestSigning:
    async def test_only_coins_reserved_for_the_holder_are_signed(self, bench: Bench) -> None:
        await bench.receive(100_000, 100_000)
        ours = await bench.wallet.select(60_000, RATE, holder=TRADE)
        theirs = await bench.wallet.select(60_000, RATE, holder=OTHER)
        foreign = OutPoint(b"\x09" * 32, 1)
        inputs = [theirs.inputs[0].outpoint, foreign, ours.inputs[0].outpoint]
        mixed = build([(o, REPLACEABLE) for o in inputs], [TxOut(50_000, b"\x00\x20" + bytes(32))])
        witnesses = await bench.wallet.sign_inputs(mixed, holder=TRADE)
        assert list(witnesses) == [2]
        with pytest.raises(NothingToSign):
            await bench.wallet.sign_inputs(mixed, holder=b"X" * 32)
        await bench.wallet.release(TRADE)
        with pytest.raises(NothingToSign):
            await bench.wallet.sign_inputs(mixed, holder=TRADE)

    async def test_the_node_accepts_what_is_signed_and_signatures_are_small(self, bench: Bench) -> None:
        await bench.receive(*([20_000] * 8))
        selection = await bench.wallet.select(150_000, RATE, holder=TRADE)
        assert len(selection.inputs) == 8
        raw = await signed(bench, funding(selection, 150_000), TRADE)
        witnesses = await bench.wallet.sign_inputs(raw, holder=TRADE)  # signed already: the same again
        for signature, public in witnesses.values():
            assert len(signature) <= 71
            assert signature[-1] == 1
            assert len(public) == 33
        assert vsize(raw) * RATE <= (selection.fee + fee(4 * (10 + 43) + 2, RATE)) * 1_000
        await bench.backend.broadcast(raw)
        await bench.mine()
        assert (await bench.wallet.balance()).confirmed == (selection.change.value if selection.change else 0)

    async def test_coins_taken_back_when_a_counterparty_withholds(self, bench: Bench) -> None:
        await bench.receive(60_000, 50_000)
        selection = await bench.wallet.select(100_000, RATE, holder=TRADE)
        assert len(selection.inputs) == 2
        sent = await bench.wallet.double_spend(TRADE, RATE)
        assert {s.wire for s in parse_tx(sent.tx).spends} == {i.outpoint.wire for i in selection.inputs}
        await bench.mine()
        assert await bench.wallet.balance() == Balance(110_000 - sent.fee, 0, 0, 0, 110_000 - sent.fee)
        with pytest.raises(NothingToSign):
            await bench.wallet.double_spend(OTHER, RATE)

    async def test_taking_back_outbids_what_waits(self, bench: Bench) -> None:
        await bench.receive(100_000)
        selection = await bench.wallet.select(60_000, 10_000, holder=TRADE)
        raw = await signed(bench, funding(selection, 60_000), TRADE)
        waiting = await bench.backend.broadcast(raw)
        sent = await bench.wallet.double_spend(TRADE, RATE)
        assert sent.fee > RATE * vsize(sent.tx) // 1_000
        await bench.backend.look()
        mempool = await bench.node.rpc("getrawmempool")
        assert txid_text(sent.txid) in mempool
        assert txid_text(waiting) not in mempool
        await bench.mine()
        assert (await bench.wallet.balance()).confirmed == 100_000 - sent.fee

    async def test_taking_back_what_is_confirmed_is_refused(self, bench: Bench) -> None:
        await bench.receive(100_000)
        selection = await bench.wallet.select(60_000, RATE, holder=TRADE)
        await bench.backend.broadcast(await signed(bench, funding(selection, 60_000), TRADE))
        await bench.mine()
        with pytest.raises(Rejected, match="missing"):
            await bench.wallet.double_spend(TRADE, RATE)


class TestSending:
    async def test_a_payment_arrives_and_leaves_reserved_coins_alone(self, bench: Bench) -> None:
        await bench.receive(100_000, 100_000)
        selection = await bench.wallet.select(60_000, RATE, holder=TRADE)
        to = await bench.node.new_address()
        sent = await bench.wallet.send(to, 40_000, RATE)
        tx = parse_tx(sent.tx)
        assert selection.inputs[0].outpoint not in tx.spends
        assert [o.value for o in tx.outputs if o.script_pubkey == script_of(to, Network.REGTEST)] == [40_000]
        assert RATE * vsize(sent.tx) <= sent.fee * 1_000 <= RATE * (vsize(sent.tx) + 3)
        # Counted at once, before any notification.
        balance = await bench.wallet.balance()
        assert (balance.confirmed, balance.pending) == (100_000, 60_000 - sent.fee)
        await bench.mine()
        entry = (await bench.wallet.history())[0]
        assert (entry.txid, entry.net, entry.fee) == (sent.txid, -40_000 - sent.fee, sent.fee)
        assert (await bench.wallet.balance()).confirmed == 160_000 - sent.fee

    @pytest.mark.parametrize("kind", ["legacy", "p2sh-segwit", "bech32", "bech32m"])
    async def test_every_kind_of_address_can_be_paid(self, bench: Bench, kind: str) -> None:
        await bench.receive(100_000)
        address = await bench.node.rpc("getnewaddress", "", kind, wallet="miner")
        await bench.wallet.send(address, 5_000, RATE)
        await bench.mine()
        assert await bench.node.rpc("getreceivedbyaddress", address, wallet="miner") * 100_000_000 == 5_000

    async def test_bad_requests_are_refused_clearly_and_cost_nothing(self, bench: Bench) -> None:
        await bench.receive(50_000)
        to = await bench.node.new_address()
        main = address_of(b"\x00\x14" + bytes(20), Network.MAINNET)
        for address, amount, rate, error, says in [
            (main, 10_000, RATE, WrongNetworkAddress, "for mainnet, this node is on regtest"),
            (to[:-1] + ("q" if to[-1] != "q" else "p"), 10_000, RATE, BadAddress, "checksum"),
            (to, 293, RATE, AmountBelowDust, "294 sat or more"),
            ("mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn", 545, RATE, AmountBelowDust, "546 sat or more"),
            (to, 10_000, 600_000, FeeRateTooHigh, "above the ceiling of 500"),
            (to, 50_000, RATE, InsufficientFunds, "50,000 sat spendable"),
        ]:
            with pytest.raises(error, match=says):
                await bench.wallet.send(address, amount, rate)
        assert await bench.wallet.balance() == Balance(50_000, 0, 0, 0, 50_000)

    async def test_payments_at_once_use_different_coins(self, bench: Bench) -> None:
        await bench.receive(50_000, 50_000, 50_000)
        addresses = [await bench.node.new_address() for _ in range(3)]
        sent = await asyncio.gather(*(bench.wallet.send(a, 30_000, RATE) for a in addresses))
        spends = [s for payment in sent for s in parse_tx(payment.tx).spends]
        assert len(set(spends)) == 3
        change = [o.script_pubkey for p in sent for o in parse_tx(p.tx).outputs if o.value < 30_000]
        assert len(set(change)) == 3


class TestFile:
    async def test_the_wallet_of_another_seed_is_not_opened(self, bitcoind: RegtestNode, tmp_path: Path) -> None:
        async with wallet_on(bitcoind, tmp_path, fresh_seed("mine")):
            pass
        with pytest.raises(WalletMismatch, match="another mnemonic"):
            async with wallet_on(bitcoind, tmp_path, fresh_seed("yours")):
                raise AssertionError

    async def test_the_file_is_the_owners_alone_and_a_lost_one_is_rebuilt(
        self, bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("lost")
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            await bench.receive(33_000)
            assert (tmp_path / "wallet.sqlite").stat().st_mode & 0o077 == 0
        for file in tmp_path.glob("wallet.sqlite*"):
            file.unlink()
        height = await bitcoind.height()
        async with wallet_on(bitcoind, tmp_path, seed, birthday=max(0, height - 20)) as bench:
            assert (await bench.wallet.balance()).confirmed == 33_000

    async def test_killed_wallet_has_lost_nothing(self, bitcoind: RegtestNode, tmp_path: Path) -> None:
        """The file as it was before anything was closed, with the write-ahead log, is what a crash leaves."""
        seed, copy = fresh_seed("crash"), tmp_path / "copy"
        copy.mkdir()
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            await bench.receive(44_000)
            address = await bench.wallet.new_address("last")
            for file in tmp_path.glob("*.sqlite*"):
                (copy / file.name).write_bytes(file.read_bytes())
        async with wallet_on(bitcoind, copy, seed) as bench:
            assert (await bench.wallet.balance()).confirmed == 44_000
            assert (await bench.wallet.new_address("next")).index == address.index + 1


async def test_coin_arrives_without_being_looked_for(bench: Bench) -> None:
    """ZMQ alone tells the wallet, through the same follower as the watches."""
    script = (await bench.wallet.new_address("")).script_pubkey
    await pay(bench.node, script, 21_000)

    async def pending() -> bool:
        return (await bench.wallet.balance()).pending == 21_000

    await until(pending)
    await bench.node.mine(1)

    async def confirmed() -> bool:
        return (await bench.wallet.balance()).spendable == 21_000

    await until(confirmed)
