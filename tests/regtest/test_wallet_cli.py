"""The wallet as its user meets it: the real program, node and chain. One clear line for what can't be done."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from escrow.address import address_of
from escrow.coins import txid_bytes
from escrow.transactions import find_output
from p2pnode import keystore
from p2pnode.client import wait_until_up
from p2pnode.datadir import DataDir
from p2pnode.regtest import RegtestNode, follow_parent
from protocol.types import Network

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ROOT = Path(__file__).resolve().parents[2]
STRANGER = address_of(b"\x00\x14" + b"s" * 20, Network.REGTEST)
WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}


@dataclass
class User:
    """Someone with a node of its own, and a shell."""

    folder: Path
    chain: RegtestNode
    process: subprocess.Popen[bytes] | None = None

    async def run(self, *words: str, typed: str = "", datadir: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "cli.py"), *words, "--datadir", str(datadir or self.folder)]
        done = await asyncio.to_thread(
            lambda: subprocess.run(
                command, env=environment(), input=typed, capture_output=True, text=True, timeout=60, check=False
            )
        )
        assert "Traceback" not in done.stderr + done.stdout
        return done

    async def does(self, *words: str, typed: str = "", datadir: Path | None = None) -> str:
        done = await self.run(*words, typed=typed, datadir=datadir)
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def gets(self, *words: str) -> Any:  # noqa: ANN401 - JSON
        return json.loads(await self.does(*words, "--json"))

    async def is_told(self, *words: str, typed: str = "", datadir: Path | None = None) -> str:
        """The one line of a refusal."""
        done = await self.run(*words, typed=typed, datadir=datadir)
        assert done.returncode == 1, (done.returncode, done.stderr, done.stdout)
        (line,) = done.stderr.splitlines()
        assert line.startswith("p2pnode: ")
        return line

    def settings(self) -> list[str]:
        pairs = {
            "chain.cookie_file": self.chain.cookie_path.absolute(),
            "node.host": "127.0.0.1",
            "node.mdns": "",
            "keystore.cost": "interactive",
        }
        flags = ["--network", "regtest", "--port", "0", "--api-port", "0", "--chain-url", self.chain.rpc_url]
        return [*flags, *(part for key, value in pairs.items() for part in ("--set", f"{key}={value}"))]

    async def starts(self) -> None:
        self.process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, str(ROOT / "cli.py"), "run", "--datadir", str(self.folder)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=follow_parent(os.getpid()),  # noqa: PLW1509 - one system call, and no lock is taken in the child
        )
        await (await wait_until_up(self.folder, 30)).close()

    async def receives(self, *amounts: int) -> None:
        for sats in amounts:
            made = await self.gets("wallet", "address", "--label", f"{sats} sat")
            await self.chain.fund(made["address"], sats, confirmations=0)
        await self.chain.mine()
        for _ in range(200):
            if sum(e["height"] is not None for e in (await self.gets("wallet", "history"))["entries"]) >= len(amounts):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the coins did not arrive")

    async def stops(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, 20)
            self.process = None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[User]:
    folder = tmp_path_factory.mktemp("user")
    async with RegtestNode(folder / "chain", binary=bitcoind_binary) as chain:
        await chain.ensure_coins(2)
        user = User(folder / "node", chain)
        await user.does("init", *user.settings(), "--no-passphrase")
        await user.starts()
        await user.receives(1_000_000, 300_000, 200_000, 100_000)
        try:
            yield user
        finally:
            await user.stops()


async def coins_of(user: User) -> dict[int, str]:
    found = (await user.gets("wallet", "utxos"))["utxos"]
    return {c["value_sats"]: f"{c['txid']}:{c['vout']}" for c in found}


async def test_bad_requests_are_refused_in_one_line_and_cost_nothing(user: User) -> None:
    before = await user.gets("wallet", "balance")
    coin = (await coins_of(user))[100_000]
    main = address_of(b"\x00\x14" + bytes(20), Network.MAINNET)
    await user.does("wallet", "freeze", coin)
    for words, says in [
        (("wallet", "send", main, "0.001"), "that address is for mainnet, this node is on regtest"),
        (("wallet", "send", STRANGER[:-1] + "q", "0.001"), "checksum"),
        (("wallet", "send", STRANGER, "293sat"), "293 sat is too small: this kind of address takes 294 sat or more"),
        (("wallet", "send", STRANGER, "0.001", "--fee-rate", "501"), "over the ceiling of 500"),
        (("wallet", "send", STRANGER, "0.001", "--coin", coin), "is frozen: thaw it first"),
        (("wallet", "send", STRANGER, "0.001", "--coin", "ab" * 32 + ":7"), "not an unspent coin of this wallet"),
        (("wallet", "send", STRANGER, "5"), "not enough coins"),
        (("wallet", "bump", "cd" * 32, "--fee-rate", "9"), "no transaction of this wallet"),
        (("wallet", "bump", "nonsense"), "is not a txid: it has 64 hex digits"),
        (("wallet", "consolidate", "--below", "0.0001"), "not two coins"),
        (("wallet", "freeze", "ab" * 32 + ":7"), "not a coin of this wallet"),
    ]:
        assert says in await user.is_told(*words)
    await user.does("wallet", "thaw", coin)
    assert await user.gets("wallet", "balance") == before


async def test_chosen_coins_pay_and_a_stuck_payment_is_helped_on(user: User) -> None:
    coins = await coins_of(user)
    sent = await user.gets("wallet", "send", STRANGER, "0.0025", "--coin", coins[300_000], "--fee-rate", "1")
    assert "name" in await user.is_told("wallet", "bump", sent["txid"], "--fee-rate", "1.5")
    await user.does("wallet", "label", sent["txid"], "rent")
    bumped = await user.gets("wallet", "bump", sent["txid"], "--fee-rate", "15")
    assert bumped["how"] == "replaced"
    newest = (await user.gets("wallet", "history"))["entries"][0]
    assert (newest["txid"], newest["label"]) == (bumped["txid"], "rent")
    assert await user.chain.rpc("getrawmempool") == [bumped["txid"]]
    raw = bytes.fromhex(await user.chain.rpc("getrawtransaction", bumped["txid"]))
    paid = [find_output(raw, n)[1] for n in range(2)]
    assert 250_000 in [o.value for o in paid if o is not None]
    # One that was not made here: helped by a child.
    made = await user.gets("wallet", "address")
    txid = await user.chain.fund(made["address"], 90_000, confirmations=0)
    for _ in range(100):
        if (await user.gets("wallet", "balance"))["pending_sats"] > 90_000:
            break
        await asyncio.sleep(0.05)
    child = await user.gets("wallet", "bump", txid, "--fee-rate", "30")
    assert child["how"] == "child"
    entry = await user.chain.rpc("getmempoolentry", child["txid"])
    assert float(entry["fees"]["ancestor"]) * 1e8 >= 30 * entry["ancestorsize"]
    await user.chain.mine()


async def test_an_address_is_drawn_as_a_code(user: User) -> None:
    said = await user.does("wallet", "address", "--qr", "--label", "for the phone")
    *code, address = said.strip("\n").splitlines()
    assert address.startswith("bcrt1q")
    assert len({len(line) for line in code}) == 1
    assert set("".join(code)) == set("█▀▄ ")


async def test_labels_go_to_a_file_and_come_back(user: User, tmp_path: Path) -> None:
    coin = (await coins_of(user))[200_000]
    await user.does("wallet", "label", coin, "savings")
    file = tmp_path / "labels.jsonl"
    await user.does("wallet", "labels", "--export", str(file))
    assert file.stat().st_mode & 0o077 == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"type": "output", "ref": coin, "label": "savings"} in records
    assert any(r["type"] == "addr" and r["label"] == "200000 sat" for r in records)
    changed = [
        {"type": "output", "ref": coin, "label": "spent soon", "spendable": False},
        {"type": "later", "ref": "x"},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in changed))
    await user.does("wallet", "labels", "--import", str(file))
    (shown,) = [c for c in (await user.gets("wallet", "utxos"))["utxos"] if c["value_sats"] == 200_000]
    assert (shown["label"], shown["frozen"]) == ("spent soon", True)
    await user.does("wallet", "thaw", coin)
    file.write_text(f'{{"type": "output", "ref": "{coin}", "label": "lost"}}\nnot json\n')
    assert "line 2 is not a label" in await user.is_told("wallet", "labels", "--import", str(file))
    assert (await user.does("wallet", "labels", "--export", "-")).count("spent soon") == 1


async def test_descriptors_are_what_bitcoin_core_derives_the_same_addresses_from(user: User) -> None:
    public = await user.gets("wallet", "descriptors")
    private = await user.gets("wallet", "descriptors", "--private")
    (first,) = await user.chain.rpc("deriveaddresses", public["external"], [0, 0])
    assert await user.chain.rpc("deriveaddresses", private["external"], [0, 0]) == [first]
    assert "prv" in private["external"]
    assert "prv" not in json.dumps(public)
    labels = await user.does("wallet", "labels", "--export", "-")
    assert first in labels


async def test_words_that_were_written_down_wrongly_are_found_out(user: User) -> None:
    words = keystore.unlock(DataDir(user.folder).keystore, "", Network.REGTEST).mnemonic.split()
    done = await user.run("wallet", "check-words", "--count", "24", typed="\n".join(words))
    assert done.returncode == 0
    assert "24 of 24 words are right" in done.stdout
    done = await user.run("wallet", "check-words", "--count", "3", typed="zoo\n" * 9)
    assert done.returncode == 1
    assert "not the words of this node's mnemonic" in done.stderr
    asked = re.findall(r"Word (\d+):", done.stderr)
    assert 1 <= int(asked[0]) <= 24


async def test_backups_that_are_damaged_foreign_or_mistyped_change_nothing(user: User, tmp_path: Path) -> None:
    file, words, bad = tmp_path / "b", tmp_path / "words", tmp_path / "bad"
    await user.does("backup", str(file))
    words.write_text(keystore.unlock(DataDir(user.folder).keystore, "", Network.REGTEST).mnemonic)
    raw = file.read_bytes()
    bad.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    wrong, foreign = tmp_path / "wrong", tmp_path / "foreign"
    wrong.write_text(words.read_text().replace(words.read_text().split()[3], "zzzz", 1))
    foreign.write_text(WORDS)
    new = tmp_path / "new"
    for source, mnemonic, flags, says in [
        (bad, words, (), "damaged or was changed: nothing was restored"),
        (file, wrong, (), "word 4 of the mnemonic, “zzzz”, is not in the word list"),
        (file, foreign, (), "belongs to another mnemonic"),
        (file, words, ("--network", "signet"), "of a regtest node, and signet was asked for"),
        (words, words, (), "not a backup of this program"),
        (tmp_path / "none", words, (), "can't be read"),
    ]:
        line = await user.is_told(
            "restore", str(source), "--words", str(mnemonic), "--no-passphrase", *flags, datadir=new
        )
        assert says in line
        assert not (new / "keystore.json").exists()
        assert not (new / "p2pnode.db").exists()
    assert "never overwritten" in await user.is_told("restore", str(file), "--words", str(words), "--no-passphrase")


async def test_the_mnemonic_alone_finds_all_coins_again(user: User, tmp_path: Path) -> None:
    """A new machine, no backup: what the words give back is every coin, from a birthday on or without one."""
    words = tmp_path / "words"
    words.write_text(keystore.unlock(DataDir(user.folder).keystore, "", Network.REGTEST).mnemonic)
    had = await user.gets("wallet", "balance")
    for birthday in ((), ("--birthday", "100"), ("--birthday", "2020-01-01")):
        other = User(tmp_path / f"n{len(birthday)}{birthday[-1:]}", user.chain)
        await other.does("init", *other.settings(), "--restore", str(words), *birthday, "--no-passphrase")
        await other.starts()
        try:
            assert await other.gets("wallet", "balance") == had
        finally:
            await other.stops()
    assert "no height and no date" in (await user.run("init", "--restore", "--birthday", "soon")).stderr
    assert "--restore" in await user.is_told("init", "--birthday", "5", datadir=tmp_path / "x")


async def test_a_watch_only_node_counts_and_says_that_it_can_not_sign(user: User, tmp_path: Path) -> None:
    external = (await user.gets("wallet", "descriptors"))["external"]
    had = await user.gets("wallet", "balance")
    other = User(tmp_path / "watching", user.chain)
    await other.does("init", *other.settings(), "--set", f"wallet.watch={external}", "--no-passphrase")
    await other.starts()
    try:
        assert await other.gets("wallet", "balance") == had
        assert "only watches" in await other.is_told("wallet", "send", STRANGER, "0.001")
    finally:
        await other.stops()


async def test_everything_can_be_sent_away(user: User) -> None:
    sent = await user.gets("wallet", "send", STRANGER, "all", "--fee-rate", "2")
    balance = await user.gets("wallet", "balance")
    assert (balance["spendable_sats"], balance["confirmed_sats"]) == (0, 0)
    raw = bytes.fromhex(await user.chain.rpc("getrawtransaction", sent["txid"]))
    txid, output = find_output(raw, 0)
    assert txid == txid_bytes(sent["txid"])
    assert output is not None
    assert output.value == sent["amount_sats"]
