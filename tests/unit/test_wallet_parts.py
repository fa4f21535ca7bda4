"""The parts of the wallet that need no chain: choosing coins, remembering facts, promising coins."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escrow.chain.base import BlockRef
from escrow.chain.blocks import ParsedTx, parse_tx
from escrow.coins import OutPoint, TxOut
from escrow.sizes import P2WPKH_INPUT_WEIGHT, fee, output_weight
from escrow.transactions import REPLACEABLE, build
from escrow.wallet.base import (
    AlreadyReserved,
    InsufficientFunds,
    Label,
    Reservation,
    TooManyInputs,
    Utxo,
    WalletMismatch,
)
from escrow.wallet.coinselect import Price, choose, settle
from escrow.wallet.engine import Keychain
from escrow.wallet.ledger import LOOKAHEAD, Ledger, Place
from escrow.wallet.reservations import SqliteReservations
from escrow.wallet.storage import CantWrite, LedgerStore
from protocol.errors import DataCorrupt

RATES = st.integers(100, 500_000)


def utxo(n: int, value: int) -> Utxo:
    return Utxo(OutPoint(n.to_bytes(32, "big"), 0), value, b"\x00\x14" + bytes(20), 1, None, is_change=False)


class TestChoosing:
    @given(st.lists(st.integers(294, 10**9), max_size=12), st.integers(1, 10**9), RATES)
    def test_value_is_conserved_and_change_is_never_dust(self, values: list[int], target: int, rate: int) -> None:
        coins = [utxo(n, v) for n, v in enumerate(values)]
        try:
            choice = choose(coins, target, Price(rate), max_inputs=8)
        except TooManyInputs:
            return
        except InsufficientFunds:
            assert settle(coins, target, Price(rate)) is None
            return
        assert len(set(choice.coins)) == len(choice.coins) <= 8
        assert sum(c.value for c in choice.coins) == target + choice.fee + choice.change
        assert choice.change == 0 or choice.change >= 294
        weight = P2WPKH_INPUT_WEIGHT * len(choice.coins) + (output_weight(22) if choice.change else 0)
        assert choice.fee >= fee(weight, rate)
        # What goes to the miners beyond the rate is less than change would have been worth.
        assert choice.fee - fee(weight, rate) < 294 + fee(output_weight(22), rate) + 1

    @given(st.lists(st.integers(294, 10**6), min_size=1, max_size=7), st.integers(1, 10**6), st.integers(100, 20_000))
    def test_no_choice_of_fewer_coins_would_do(self, values: list[int], target: int, rate: int) -> None:
        coins = [utxo(n, v) for n, v in enumerate(values)]
        try:
            choice = choose(coins, target, Price(rate), max_inputs=8)
        except InsufficientFunds:
            return
        fewer = itertools.combinations(coins, len(choice.coins) - 1)
        assert all(settle(some, target, Price(rate)) is None for some in fewer if some)

    def test_the_same_coins_give_the_same_choice_in_any_order(self) -> None:
        coins = [utxo(n, 50_000) for n in range(5)]
        assert choose(coins, 20_000, Price(1_000), max_inputs=8) == choose(
            coins[::-1], 20_000, Price(1_000), max_inputs=8
        )

    def test_a_coin_that_fits_without_change_is_preferred_to_a_smaller_change(self) -> None:
        cost = fee(P2WPKH_INPUT_WEIGHT, 1_000)
        fits, larger = utxo(1, 50_000 + cost + 100), utxo(2, 50_000 + cost + 900)
        choice = choose([larger, fits], 50_000, Price(1_000), max_inputs=8)
        assert (choice.coins, choice.change, choice.fee) == ((fits,), 0, cost + 100)


GENESIS = BlockRef(0, bytes(32), 1, 1)


def block(height: int, branch: int = 0) -> BlockRef:
    return BlockRef(height, bytes([height, branch]) + bytes(30), 1_000 + height, 900 + height)


def script(keychain: Keychain, index: int) -> bytes:
    return b"\x00\x14" + bytes([keychain]) + index.to_bytes(19, "big")


def ledger() -> Ledger:
    return Ledger(script, lambda: 1_700_000_000, tip=GENESIS)


def paying(index: int, value: int = 5_000, *, spends: OutPoint | None = None) -> ParsedTx:
    spent = spends or OutPoint(b"\x05" * 32, index)
    return parse_tx(build([(spent, REPLACEABLE)], [TxOut(value, script(Keychain.EXTERNAL, index))]))


class TestLedger:
    def test_coins_beyond_what_was_handed_out_are_recognised_and_move_the_horizon(self) -> None:
        book = ledger()
        assert script(Keychain.EXTERNAL, LOOKAHEAD - 1) in book.scripts
        assert script(Keychain.EXTERNAL, LOOKAHEAD) not in book.scripts
        book.connected(block(1), [paying(LOOKAHEAD - 1)])
        assert book.revealed[Keychain.EXTERNAL] == LOOKAHEAD
        assert script(Keychain.EXTERNAL, 2 * LOOKAHEAD - 1) in book.scripts

    def test_what_a_reorg_took_is_not_a_fact_until_it_is_seen_again(self) -> None:
        book, tx = ledger(), paying(0)
        book.connected(block(1), [tx])
        book.settled(block(1), new_tip=True)
        assert len(book.snapshot(block(1)).facts) == 1
        book.disconnected(block(1))
        assert book.snapshot(block(1)).facts == ()
        assert book.unconfirmed() == (tx.txid,)
        book.in_mempool(tx)
        assert [f.block for f in book.snapshot(block(1)).facts] == [None]
        book.left_mempool(tx.txid)
        assert book.snapshot(block(1)).facts == ()
        book.connected(block(1, 1), [tx])
        assert [f.block for f in book.snapshot(block(1, 1)).facts] == [block(1, 1)]

    def test_mempool_news_never_undoes_a_confirmation(self) -> None:
        book, tx = ledger(), paying(0)
        book.connected(block(1), [tx])
        book.in_mempool(tx)
        book.left_mempool(tx.txid)
        assert [f.block for f in book.snapshot(block(1)).facts] == [block(1)]
        assert book.unconfirmed() == ()

    def test_after_a_disconnected_tip_the_stored_tip_is_gone_too(self) -> None:
        """Else a crash right then would make the next start believe blocks that nobody read."""
        book = ledger()
        book.connected(block(1), [paying(0)])
        book.settled(block(1), new_tip=True)
        book.take_changes()
        book.disconnected(block(1))
        changes = book.take_changes()
        assert changes.tip is None
        assert [e.place for e in changes.entries] == [Place.LIMBO]
        assert book.checkpoints() == ()

    def test_changes_that_could_not_be_written_are_given_again(self) -> None:
        book = ledger()
        book.connected(block(1), [paying(0)])
        book.settled(block(1), new_tip=True)
        first = book.take_changes()
        assert book.take_changes().entries == []
        book.put_back(first)
        assert book.take_changes() == first

    def test_everything_comes_back_from_disk(self, tmp_path: Path) -> None:
        book = ledger()
        book.connected(block(7), [paying(3)])
        book.in_mempool(paying(4))
        book.add_own(paying(9))
        book.settled(block(8), new_tip=True)
        store = LedgerStore(tmp_path / "w")
        assert store.begin("me", 5) == 5
        store.save(book.take_changes())
        store.close()
        store = LedgerStore(tmp_path / "w")
        assert store.begin("me", 99) == 5
        loaded = store.load()
        again = Ledger(
            script, lambda: 0, entries=loaded.entries, revealed=(loaded.revealed[Keychain.EXTERNAL], 0), tip=loaded.tip
        )
        assert sorted(again.entries(), key=str) == sorted(book.entries(), key=str)
        assert (again.revealed, again.tip, again.outpoints) == (book.revealed, block(8), book.outpoints)
        assert again.take_changes().entries == []
        with pytest.raises(WalletMismatch):
            store.begin("you", 5)
        store.close()

    def test_older_news_never_hands_a_script_out_again(self, tmp_path: Path) -> None:
        """What was revealed is written by two paths; the smaller count must not win."""
        store = LedgerStore(tmp_path / "w")
        store.begin("me", 5)
        stale = ledger().take_changes()
        for keychain in Keychain:
            store.hand_out(keychain, 6, script(keychain, 6), "", 0)
        store.save(stale)
        assert set(store.load().revealed.values()) == {7}
        store.close()

    def test_a_damaged_file_is_told_as_such(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(b"no database" * 100)
        with pytest.raises(DataCorrupt, match="can't be read"):
            LedgerStore(tmp_path / "w")

    def test_a_file_that_cannot_be_written_is_told_and_keeps_what_it_had(self, tmp_path: Path) -> None:
        store = LedgerStore(tmp_path / "w")
        store.begin("me", 5)
        blocker = sqlite3.connect(tmp_path / "w", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        store._connection.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(CantWrite, match="can't be written"):
            store.hand_out(Keychain.EXTERNAL, 0, script(Keychain.EXTERNAL, 0), "", 0)
        blocker.execute("ROLLBACK")
        blocker.close()
        store.hand_out(Keychain.EXTERNAL, 4, script(Keychain.EXTERNAL, 4), "", 0)
        assert store.load().revealed[Keychain.EXTERNAL] == 5
        store.close()


def promise(n: int, holder: bytes) -> Reservation:
    return Reservation(OutPoint(n.to_bytes(32, "big"), n), holder, 1_000 + n, 50)


class TestReservations:
    def test_a_coin_has_one_holder_and_a_refused_promise_leaves_nothing(self) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        store = SqliteReservations(connection)
        store.add([promise(1, b"a"), promise(2, b"a")])
        store.add([promise(1, b"a")])
        with pytest.raises(AlreadyReserved, match="held by trade 61"):
            store.add([promise(3, b"b"), promise(2, b"b")])
        assert [(r.outpoint.vout, r.holder) for r in store.all()] == [(1, b"a"), (2, b"a")]
        store.remove(b"b")
        store.remove(b"a")
        assert store.all() == ()
        connection.close()

    def test_inside_a_transaction_everything_hangs_on_its_commit(self, tmp_path: Path) -> None:
        connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        store = SqliteReservations(connection)
        connection.execute("BEGIN")
        store.add([promise(1, b"a")])
        assert connection.in_transaction
        assert other.execute("SELECT count(*) FROM wallet_reservations").fetchone() == (0,)
        # A refusal undoes its own part only.
        with pytest.raises(AlreadyReserved):
            store.add([promise(2, b"b"), promise(1, b"b")])
        connection.execute("COMMIT")
        assert other.execute("SELECT count(*) FROM wallet_reservations").fetchone() == (1,)
        connection.execute("BEGIN")
        store.remove(b"a")
        connection.execute("ROLLBACK")
        assert len(store.all()) == 1
        connection.close()
        other.close()


def refusing(connection: sqlite3.Connection) -> str:
    """A statement after which no transaction can be committed, as on a full disk; it stays open then."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("CREATE TABLE room (n INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE written (n REFERENCES room DEFERRABLE INITIALLY DEFERRED)")
    return "INSERT INTO written VALUES (1)"


class TestCommitsThatFail:
    def test_the_wallet_file_swallows_nothing_afterwards(self, tmp_path: Path) -> None:
        store = LedgerStore(tmp_path / "wallet.db")
        statement = refusing(store._connection)
        with pytest.raises(CantWrite), store._transaction():
            store._connection.execute(statement)
        store.set_labels((Label(kind="tx", ref="00" * 32, label="rent"),), (), ())
        store.close()
        assert [x.label for x in LedgerStore(tmp_path / "wallet.db").labels()] == ["rent"]

    def test_reservations_swallow_nothing_afterwards(self) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        store, statement = SqliteReservations(connection), refusing(connection)
        with pytest.raises(sqlite3.IntegrityError), store._transaction():
            connection.execute(statement)
        assert not connection.in_transaction
        store.add([promise(1, b"a")])
        assert len(store.all()) == 1


def test_only_the_bdk_engine_needs_bdk() -> None:
    """On platforms without a wheel of bdkpython keys, chain and everything but one module must load all the same."""
    names = ["escrow.seed", "escrow.hd", "escrow.address", "escrow.chain.bitcoind", "escrow.wallet.hot"]
    code = f"import sys, importlib; sys.modules['bdkpython'] = None; [importlib.import_module(n) for n in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
