"""What the wallet spends by itself: whole balances, chosen coins, higher fees. No trade's coin may be used for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from escrow.address import address_of
from escrow.chain.blocks import parse_tx
from escrow.coins import OutPoint, TxOut, txid_text
from escrow.errors import GateRefused
from escrow.hd import HARDENED, hash160
from escrow.psbtplan import OwnSpend
from escrow.transactions import REPLACEABLE, build, vsize, weight, with_witnesses
from escrow.wallet.account import Account
from escrow.wallet.base import (
    Balance,
    BumpTooLow,
    CantBump,
    CoinReserved,
    CoinUnfit,
    FeeRateTooHigh,
    InsufficientFunds,
    Label,
    NothingToSign,
)
from escrow.wallet.coinselect import whole
from escrow.wallet.engine import Keychain, WatchOnly
from escrow.wallet.engines import EngineName
from escrow.wallet.native import NativeEngine, WatchEngine
from p2pnode.regtest import RegtestNode
from protocol.types import Network
from tests.regtest.chain_support import own_output, pay, until
from tests.regtest.test_wallet import RATE, TRADE, Bench, fresh_seed, wallet_on

STRANGER_SCRIPT = b"\x00\x14" + b"s" * 20
STRANGER = address_of(STRANGER_SCRIPT, Network.REGTEST)
ESCROW = b"\x00\x20" + b"e" * 32


@pytest.fixture
async def bench(bitcoind: RegtestNode, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with wallet_on(bitcoind, tmp_path, fresh_seed(request.node.nodeid)) as made:
        yield made


async def fees_of(bench: Bench, txid: bytes) -> tuple[int, int]:
    """Fee and size of a waiting transaction with all that it spends from the mempool, as the node reckons them."""
    entry = await bench.node.rpc("getmempoolentry", txid_text(txid))
    return int(Decimal(str(entry["fees"]["ancestor"])) * 10**8), int(entry["ancestorsize"])


async def waits(bench: Bench, txid: bytes) -> bool:
    return txid_text(txid) in await bench.node.rpc("getrawmempool")


class TestCoinControl:
    async def test_everything_is_sent_but_what_is_held_or_frozen(self, bench: Bench) -> None:
        coins = await bench.receive(100_000, 70_000, 50_000, 30_000, 400)
        await bench.wallet.select(60_000, RATE, holder=TRADE)
        await bench.wallet.freeze([coins[2]], frozen=True)
        held = {r.outpoint for r in await bench.wallet.reservations()}
        sent = await bench.wallet.send_all(STRANGER, 3 * RATE)
        tx = parse_tx(sent.tx)
        # 400 sat are worth less than their input costs.
        assert set(tx.spends) == set(coins[:4]) - held - {coins[2]}
        assert len(tx.outputs) == 1
        assert tx.outputs[0].value + sent.fee == 130_000
        assert sent.fee * 1_000 >= 3 * RATE * vsize(sent.tx)
        balance = await bench.wallet.balance()
        assert (balance.spendable, balance.reserved, balance.frozen) == (400, 70_000, 50_000)

    async def test_a_payment_is_made_of_exactly_the_coins_that_are_named(self, bench: Bench) -> None:
        coins = await bench.receive(40_000, 50_000, 900_000)
        sent = await bench.wallet.send(STRANGER, 60_000, RATE, coins=coins[:2])
        assert set(parse_tx(sent.tx).spends) == set(coins[:2])
        with pytest.raises(InsufficientFunds):
            await bench.wallet.send(STRANGER, 900_000, RATE, coins=[coins[2]])
        rest = await bench.wallet.send_all(STRANGER, RATE, coins=[coins[2]])
        assert parse_tx(rest.tx).spends == (coins[2],)

    async def test_coins_that_may_not_be_spent_are_refused_by_name(self, bench: Bench) -> None:
        held, frozen = await bench.receive(100_000, 50_000)
        await bench.wallet.select(60_000, RATE, holder=TRADE)
        await bench.wallet.freeze([frozen], frozen=True)
        (fresh,) = await bench.receive(20_000, confirmations=0)
        foreign = OutPoint(b"\x09" * 32, 3)
        for coin, error, says in [
            (held, CoinReserved, f"{held} is held by the open trade {TRADE.hex()[:16]}"),
            (frozen, CoinUnfit, "is frozen: thaw it first"),
            (fresh, CoinUnfit, "not confirmed yet"),
            (foreign, CoinUnfit, "not an unspent coin of this wallet"),
        ]:
            for spend in (
                bench.wallet.send(STRANGER, 1_000, RATE, coins=[coin]),
                bench.wallet.send_all(STRANGER, RATE, coins=[coin]),
                bench.wallet.consolidate(RATE, coins=[coin]),
            ):
                with pytest.raises(error, match=says):
                    await spend
        with pytest.raises(CoinUnfit, match="not a coin of this wallet"):
            await bench.wallet.freeze([foreign], frozen=True)
        assert await bench.wallet.balance() == Balance(150_000, 20_000, 0, 100_000, 0, 50_000)

    async def test_frozen_coins_pay_for_nothing_and_stay_frozen_over_a_restart(
        self, bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("frozen")
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            (coin,) = await bench.receive(100_000)
            await bench.wallet.freeze([coin], frozen=True)
        async with wallet_on(bitcoind, tmp_path, seed) as bench:
            for spend in (
                bench.wallet.send(STRANGER, 1_000, RATE),
                bench.wallet.send_all(STRANGER, RATE),
                bench.wallet.select(1_000, RATE, holder=TRADE),
            ):
                with pytest.raises(InsufficientFunds):
                    await spend
            await bench.wallet.freeze([coin], frozen=False)
            await bench.wallet.send(STRANGER, 1_000, RATE)

    async def test_small_coins_become_one(self, bench: Bench) -> None:
        coins = await bench.receive(*range(10_000, 10_020), 500_000)
        await bench.wallet.select(400_000, RATE, holder=TRADE)
        sent = await bench.wallet.consolidate(RATE, below=10_015)
        assert set(parse_tx(sent.tx).spends) == set(coins[:15])
        await bench.mine()
        assert (await bench.wallet.balance()).confirmed == sum(range(10_000, 10_020)) + 500_000 - sent.fee
        with pytest.raises(CoinUnfit, match="not two coins"):
            await bench.wallet.consolidate(RATE, below=5_000)

    async def test_a_coin_whose_transaction_no_peer_would_take_is_not_chosen_for_a_trade(self, bench: Bench) -> None:
        mine = await bench.wallet.new_address("")
        coin, _ = await own_output(bench.node, 3_000_000)
        outputs = [{mine.text: "0.002"}]
        outputs += [
            {address_of(b"\x00\x14" + n.to_bytes(20, "big"), Network.REGTEST): "0.00001"} for n in range(1, 1_960)
        ]
        raw = await bench.node.rpc("createrawtransaction", [{"txid": txid_text(coin.txid), "vout": coin.vout}], outputs)
        signed = await bench.node.rpc("signrawtransactionwithwallet", raw, wallet="miner")
        assert len(signed["hex"]) > 2 * 60_000
        await bench.node.rpc("sendrawtransaction", signed["hex"])
        await bench.mine()
        with pytest.raises(
            InsufficientFunds, match="200,000 sat in coins whose transactions are too large for a trade"
        ):
            await bench.wallet.select(100_000, RATE, holder=TRADE)
        await bench.wallet.send(STRANGER, 100_000, RATE)
        await bench.mine()
        await bench.wallet.select(50_000, RATE, holder=TRADE)


class TestReplacing:
    async def test_a_payment_at_a_higher_fee_pays_the_same_and_the_old_one_is_forgotten(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await bench.receive(300_000)
        old = await bench.wallet.send(STRANGER, 100_000, RATE)
        bumped = await bench.wallet.bump(old.txid, 9_000)
        new = bumped.sent
        assert bumped.replacement
        assert parse_tx(new.tx).spends == parse_tx(old.tx).spends
        assert [o.value for o in parse_tx(new.tx).outputs if o.script_pubkey == b"\x00\x14" + b"s" * 20] == [100_000]
        assert 9_000 * vsize(new.tx) <= new.fee * 1_000 <= 9_000 * (vsize(new.tx) + 3)
        await bench.backend.look()
        assert await waits(bench, new.txid)
        assert not await waits(bench, old.txid)
        assert [e.txid for e in (await bench.wallet.history())[:1]] == [new.txid]
        sent: list[bytes] = []
        broadcast = bench.backend.broadcast

        async def recorded(tx: bytes) -> bytes:
            sent.append(tx)
            return await broadcast(tx)

        monkeypatch.setattr(bench.backend, "broadcast", recorded)
        await bench.node.mine_empty(1)

        async def sent_again() -> bool:
            return bool(sent)

        await until(sent_again)
        assert sent == [new.tx]
        await bench.mine()
        assert (await bench.wallet.balance()).confirmed == 200_000 - new.fee
        assert not await waits(bench, old.txid)

    async def test_too_low_a_rate_is_refused_and_the_one_that_is_named_will_do(self, bench: Bench) -> None:
        await bench.receive(300_000)
        old = await bench.wallet.send(STRANGER, 100_000, RATE)
        with pytest.raises(BumpTooLow, match=r"it pays 2\.0\d sat/vB: name 3\.0\d or more") as refused:
            await bench.wallet.bump(old.txid, RATE + 500)
        named = round(float(refused.value.detail.split("name ")[1].split()[0]) * 1_000)
        await bench.wallet.bump(old.txid, named)
        with pytest.raises(FeeRateTooHigh):
            await bench.wallet.bump(old.txid, 600_000)

    async def test_a_payment_without_change_takes_another_coin_for_its_fee(self, bench: Bench) -> None:
        coins = await bench.receive(50_000)
        old = await bench.wallet.send_all(STRANGER, RATE)
        with pytest.raises(InsufficientFunds):
            await bench.wallet.bump(old.txid, 9_000)
        assert await waits(bench, old.txid)
        more = await pay(bench.node, (await bench.wallet.new_address("")).script_pubkey, 60_000)
        await bench.node.rpc("prioritisetransaction", txid_text(old.txid), 0, -10_000_000)
        await bench.mine()
        new = (await bench.wallet.bump(old.txid, 9_000)).sent
        assert set(parse_tx(new.tx).spends) == {coins[0], more}
        assert old.tx != new.tx
        assert parse_tx(old.tx).outputs[0] in parse_tx(new.tx).outputs

    async def test_a_consolidation_pays_its_higher_fee_itself(self, bench: Bench) -> None:
        await bench.receive(50_000, 50_000)
        old = await bench.wallet.consolidate(RATE)
        new = (await bench.wallet.bump(old.txid, 20_000)).sent
        assert parse_tx(new.tx).outputs[0].value == 100_000 - new.fee
        await bench.mine()
        assert (await bench.wallet.balance()).confirmed == 100_000 - new.fee

    async def test_what_is_buried_or_strange_is_not_bumped(self, bench: Bench) -> None:
        await bench.receive(300_000)
        sent = await bench.wallet.send(STRANGER, 100_000, RATE)
        await bench.mine()
        with pytest.raises(CantBump, match="in a block already"):
            await bench.wallet.bump(sent.txid, 9_000)
        with pytest.raises(CantBump, match="no transaction of this wallet"):
            await bench.wallet.bump(b"\x07" * 32, 9_000)


async def joint_funding(bench: Bench, *, ours: int, change: bool = True) -> tuple[bytes, int]:
    """A funding transaction with a stranger's input, at 1 sat/vB, in the mempool; its fee too."""
    selection = await bench.wallet.select(ours, 1_000, holder=TRADE)
    theirs, _ = await own_output(bench.node, 200_000)
    await bench.mine()
    inputs = [*(i.outpoint for i in selection.inputs), theirs]
    outputs = [TxOut(ours + 100_000, ESCROW), TxOut(99_700, b"\x00\x14" + b"t" * 20)]
    if selection.change is not None and change:
        outputs.append(selection.change)
    unsigned = build([(o, REPLACEABLE) for o in inputs], outputs)
    half = await bench.node.rpc("signrawtransactionwithwallet", unsigned.hex(), wallet="miner")
    witnesses = await bench.wallet.sign_inputs(unsigned, holder=TRADE)
    tx = await bench.node.rpc("decoderawtransaction", half["hex"])
    stacks = [tuple(bytes.fromhex(w) for w in i.get("txinwitness", [])) for i in tx["vin"]]
    raw = with_witnesses(unsigned, [witnesses.get(n, stack) for n, stack in enumerate(stacks)])
    txid = await bench.backend.broadcast(raw)
    await bench.backend.look()
    brought = sum(i.value for i in selection.inputs) + 200_000
    return txid, brought - sum(o.value for o in outputs)


class TestHelping:
    async def test_a_trades_funding_is_helped_by_its_change_and_keeps_its_txid(self, bench: Bench) -> None:
        """Other signatures hang on the funding's txid: to replace it would end the trade."""
        await bench.receive(500_000)
        txid, cost = await joint_funding(bench, ours=300_000)
        bumped = await bench.wallet.bump(txid, 20_000, parent_fee=cost)
        assert not bumped.replacement
        assert await waits(bench, txid)
        paid, size = await fees_of(bench, bumped.sent.txid)
        assert 20_000 * size <= paid * 1_000 <= 20_000 * (size + 8)
        # Once more: the child is replaced, not joined by another.
        again = await bench.wallet.bump(txid, 40_000, parent_fee=cost)
        await bench.backend.look()
        assert not await waits(bench, bumped.sent.txid)
        paid, size = await fees_of(bench, again.sent.txid)
        assert 40_000 * size <= paid * 1_000 <= 40_000 * (size + 8)
        with pytest.raises(BumpTooLow, match="already"):
            await bench.wallet.bump(txid, 30_000, parent_fee=cost)
        await bench.mine()
        (coin,) = await bench.wallet.utxos()
        assert coin.outpoint == OutPoint(again.sent.txid, 0)

    async def test_a_payout_is_helped_by_what_it_pays_us_and_by_other_coins_if_that_is_little(
        self, bench: Bench
    ) -> None:
        await bench.receive(400_000)
        coin = await pay(bench.node, await bench.wallet.change_script(), 1_000)
        await bench.backend.look()
        # What its sender paid is not known here, so it is taken for nothing: miners get no less than was asked for.
        bumped = await bench.wallet.bump(coin.txid, 30_000)
        assert coin in parse_tx(bumped.sent.tx).spends
        assert len(parse_tx(bumped.sent.tx).spends) == 2
        paid, size = await fees_of(bench, bumped.sent.txid)
        assert paid * 1_000 >= 30_000 * size

    async def test_a_funding_of_ours_alone_is_never_replaced(self, bench: Bench) -> None:
        """Without deposits the seller funds alone: all inputs are ours, and still the txid must stay."""
        await bench.receive(500_000)
        selection = await bench.wallet.select(300_000, RATE, holder=TRADE)
        assert selection.change is not None
        unsigned = build(
            [(i.outpoint, REPLACEABLE) for i in selection.inputs], [TxOut(300_000 - 200, ESCROW), selection.change]
        )
        witnesses = await bench.wallet.sign_inputs(unsigned, holder=TRADE)
        txid = await bench.backend.broadcast(with_witnesses(unsigned, list(witnesses.values())))
        await bench.backend.look()
        bumped = await bench.wallet.bump(txid, 10_000)
        assert not bumped.replacement
        paid, size = await fees_of(bench, bumped.sent.txid)
        assert 10_000 * size <= paid * 1_000 <= 10_000 * (size + 8)

    async def test_without_an_output_of_ours_there_is_no_help(self, bench: Bench) -> None:
        await bench.receive(500_000)
        txid, _ = await joint_funding(bench, ours=300_000, change=False)
        with pytest.raises(CantBump, match="pays nothing to this wallet"):
            await bench.wallet.bump(txid, 499_000, parent_fee=0)

    async def test_evicted_payments_are_sent_again_with_the_next_block_at_their_last_fee(
        self, bitcoind_binary: Path, tmp_path: Path
    ) -> None:
        """The wallet runs on; nobody restarts it when the node has forgotten the payments. A bump stays a bump."""
        async with RegtestNode(tmp_path / "n", binary=bitcoind_binary, extra_args=("-mempoolexpiry=1",)) as node:
            await node.ensure_coins(2)
            async with wallet_on(node, tmp_path, fresh_seed("again")) as bench:
                await bench.receive(50_000, 50_000)
                first = await bench.wallet.send(STRANGER, 20_000, RATE)
                second = await bench.wallet.send(STRANGER, 21_000, RATE)
                bumped = (await bench.wallet.bump(second.txid, 9_000)).sent
                tip = await bench.backend.tip()
                await node.rpc("setmocktime", tip.time + 7_300)
                # The node looks for what is too old when something new comes in.
                fresh = await node.fund(await node.new_address(), 1_000, confirmations=0)
                assert await node.rpc("getrawmempool") == [fresh]
                await node.mine_empty(1)
                expected = {fresh, txid_text(first.txid), txid_text(bumped.txid)}

                async def back() -> bool:
                    return len(await node.rpc("getrawmempool")) == 3

                await until(back)
                assert set(await node.rpc("getrawmempool")) == expected


class TestLabels:
    async def test_labels_come_back_as_they_went_and_freeze_what_they_say(self, bench: Bench) -> None:
        address = await bench.wallet.new_address("rent")
        (coin,) = await bench.receive(50_000)
        given = [
            Label(kind="tx", ref=txid_text(coin.txid), label="salary", origin="wpkh([d34db33f/84'/0'/0'])"),
            Label(kind="output", ref=str(coin), label="", spendable=False),
            Label(kind="xpub", ref="xpub6C...", label="cold"),
        ]
        await bench.wallet.set_labels(given)
        found = await bench.wallet.labels()
        assert set(found) == {*given, Label(kind="addr", ref=address.text, label="rent")}
        assert (await bench.wallet.balance()).frozen == 50_000
        await bench.wallet.set_labels(
            [Label(kind="addr", ref=address.text), Label(kind="output", ref=str(coin), label="mine", spendable=True)]
        )
        left = {(x.kind, x.ref): x.label for x in await bench.wallet.labels()}
        assert ("addr", address.text) not in left
        assert left["output", str(coin)] == "mine"
        assert (await bench.wallet.balance()).spendable == 50_000


class TestEngines:
    @pytest.mark.parametrize(("first", "second"), [("auto", "native"), ("native", "auto")])
    async def test_a_data_directory_moves_between_machines_with_and_without_bdk(
        self, bitcoind: RegtestNode, tmp_path: Path, first: EngineName, second: EngineName
    ) -> None:
        seed = fresh_seed(f"moves {first}")
        async with wallet_on(bitcoind, tmp_path, seed, engine=first) as bench:
            await bench.receive(50_000, 60_000)
            await bench.wallet.send(STRANGER, 20_000, RATE)
            seen = (await bench.wallet.balance(), await bench.wallet.utxos(), await bench.wallet.history())
            index = (await bench.wallet.new_address("")).index
        async with wallet_on(bitcoind, tmp_path, seed, engine=second) as bench:
            assert (await bench.wallet.balance(), await bench.wallet.utxos(), await bench.wallet.history()) == seen
            assert (await bench.wallet.new_address("")).index == index + 1
            await bench.mine()
            await bench.wallet.send_all(STRANGER, RATE)

    async def test_a_watching_wallet_sees_everything_and_signs_nothing(
        self, bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("watched")
        external = NativeEngine(seed.master, Network.REGTEST).descriptors[0]
        engine = WatchEngine(Account.parse(external, Network.REGTEST))
        async with wallet_on(bitcoind, tmp_path, seed, engine=engine) as bench:
            (coin,) = await bench.receive(50_000)
            assert (await bench.wallet.balance()).spendable == 50_000
            for spend in (
                bench.wallet.send(STRANGER, 20_000, RATE),
                bench.wallet.send_all(STRANGER, RATE),
                bench.wallet.consolidate(RATE),
                bench.wallet.bump(coin.txid, RATE),
                bench.wallet.double_spend(TRADE, RATE),
            ):
                with pytest.raises((WatchOnly, NothingToSign)):
                    await spend
            assert bench.reservations.all() == ()
            # For a trade its coins are chosen all the same: a person signs, and is told which keys are meant.
            chosen = await bench.wallet.select(10_000, RATE, holder=TRADE)
            with pytest.raises(WatchOnly):
                await bench.wallet.double_spend(TRADE, RATE)
            origin = bench.wallet.origin_of(chosen.inputs[0].script_pubkey)
            assert origin is not None
            assert origin.fingerprint == seed.master.fingerprint
            assert hash160(origin.public) == chosen.inputs[0].script_pubkey[2:]
            assert origin.path[:3] == (84 | HARDENED, 1 | HARDENED, HARDENED)
            drafted = await bench.wallet.draft_double_spend(TRADE, RATE)
            signer = NativeEngine(seed.master, Network.REGTEST)
            for keychain in Keychain:
                for index in range(5):
                    signer.script(keychain, index)
            witnesses = signer.sign(drafted.unsigned, dict(enumerate(drafted.previous)))
            stolen = build([(chosen.inputs[0].outpoint, REPLACEABLE)], [TxOut(40_000, STRANGER_SCRIPT)])
            with pytest.raises(GateRefused):
                await bench.wallet.send_double_spend(TRADE, stolen, [witnesses[0]])
            with pytest.raises(GateRefused):
                await bench.wallet.send_double_spend(b"o" * 32, drafted.unsigned, [witnesses[0]])
            # Not a coin more than the trade holds, even to ourselves.
            (extra,) = await bench.receive(20_000)
            more = build([(chosen.inputs[0].outpoint, REPLACEABLE), (extra, REPLACEABLE)], [mine_of(drafted)])
            raws = {0: drafted.previous[0], 1: (await bench.wallet.transaction(extra.txid)) or b""}
            both = signer.sign(more, raws)
            with pytest.raises(GateRefused):
                await bench.wallet.send_double_spend(TRADE, more, [both[0], both[1]])
            sent = await bench.wallet.send_double_spend(TRADE, drafted.unsigned, [witnesses[0]])
            assert sent.fee == drafted.fee
            assert await bitcoind.rpc("getmempoolentry", txid_text(sent.txid))


def mine_of(drafted: OwnSpend) -> TxOut:
    """The output of a draft that brings coins back."""
    out = parse_tx(drafted.unsigned).outputs[0]
    return TxOut(out.value, out.script_pubkey)


class TestRestoring:
    async def test_a_wider_gap_finds_what_a_narrow_one_does_not(
        self, own_bitcoind: RegtestNode, tmp_path: Path
    ) -> None:
        seed = fresh_seed("gap")
        script = NativeEngine(seed.master, Network.REGTEST).script(Keychain.EXTERNAL, 120)
        await pay(own_bitcoind, script, 40_000, confirmations=1)
        for gap, found in ((50, 0), (121, 40_000)):
            folder = tmp_path / str(gap)
            folder.mkdir()
            async with wallet_on(own_bitcoind, folder, seed, gap_limit=gap) as bench:
                assert (await bench.wallet.balance()).confirmed == found

    async def test_a_birthday_leaves_out_what_is_older(self, own_bitcoind: RegtestNode, tmp_path: Path) -> None:
        seed = fresh_seed("birthday")
        script = NativeEngine(seed.master, Network.REGTEST).script(Keychain.EXTERNAL, 0)
        await pay(own_bitcoind, script, 40_000, confirmations=3)
        height = await own_bitcoind.height() - 2
        for birthday, found in ((height + 1, 0), (height, 40_000), (None, 40_000)):
            folder = tmp_path / str(birthday)
            folder.mkdir()
            async with wallet_on(own_bitcoind, folder, seed, birthday=birthday) as bench:
                assert (await bench.wallet.balance()).confirmed == found


def test_own_payments_are_counted_to_the_weight_unit() -> None:
    """Both ways to count must agree: too little is below the rate, too much is the user's money."""
    script = b"\x00\x14" + bytes(20)
    witness = (bytes(71), bytes(33))
    for count in (1, 3):
        unsigned = build([(OutPoint(bytes([n]) * 32, 0), REPLACEABLE) for n in range(count)], [TxOut(5, script)])
        price = whole(4_000, script)
        assert price.fee(count, change=False) - weight(with_witnesses(unsigned, [witness] * count)) == 3
