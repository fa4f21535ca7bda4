"""The real command line, as a process of its own, against the real API: what it prints, where, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from p2pnode.api import schema as s
from p2pnode.client import wait_until_up
from p2pnode.datadir import DataDir
from protocol.errors import ChainError, PeerRefusal
from tests.network.api_twin import ARBITER, NODE, PASSPHRASE, START, Twin, make_data_dir, serving, trade_view

ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:  # noqa: ANN401  (any JSON)
        return json.loads(self.out)


async def start(
    *arguments: str, home: Path, env: dict[str, str] | None = None, stdin: int | None = None
) -> asyncio.subprocess.Process:
    """The command line, with nothing of this machine's settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "cli.py"),
        *arguments,
        stdin=asyncio.subprocess.PIPE if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean | {"HOME": str(home)} | (env or {}),
        cwd=home,
    )


async def finish(process: asyncio.subprocess.Process, given: str = "") -> Done:
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 30)
    done = Done(process.returncode or 0, out.decode(), err.decode())
    assert "Traceback" not in done.out + done.err
    return done


class Shell:
    """Runs commands for one data directory."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder

    async def start(self, *arguments: str, env: dict[str, str] | None = None) -> asyncio.subprocess.Process:
        return await start("--datadir", str(self.folder), *arguments, home=self.home, env=env)

    async def __call__(self, *arguments: str, given: str = "", env: dict[str, str] | None = None) -> Done:
        return await finish(await self.start(*arguments, env=env), given)


def one_line(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    return make_data_dir(tmp_path / "node")


@pytest.fixture
async def twin() -> Twin:
    return Twin()


@pytest.fixture
def shell(tmp_path: Path, folder: DataDir) -> Shell:
    return Shell(tmp_path, folder.path)


@pytest.fixture
async def running(twin: Twin, folder: DataDir) -> AsyncIterator[Twin]:
    async with serving(twin, folder):
        yield twin


CREATE = (
    "offer", "create", "sell", "0.01-0.05", "--price", "65000.00 EUR", "--method", "sepa", "--detail", "iban=DE02",
    "--detail", "sepa:holder=Ann Example", "--arbiter", ARBITER, "--deposit", "10%", "--expires", "3d",
)  # fmt: skip


class TestVerbs:
    async def test_an_offer_is_asked_for_in_exactly_the_terms_that_were_typed(
        self, shell: Shell, running: Twin
    ) -> None:
        done = await shell(*CREATE, "--json")
        assert done.code == 0, done
        (draft,) = running.drafts
        assert draft == s.OfferDraft(
            side="sell",
            amount_min_sats=1_000_000,
            amount_max_sats=5_000_000,
            currency="EUR",
            price="65000.00",
            methods=(s.MethodDetails(method="sepa", details={"iban": "DE02", "holder": "Ann Example"}),),
            buyer_deposit_ppm=100_000,
            seller_deposit_ppm=100_000,
            arbiters=(ARBITER,),
            lifetime_seconds=3 * 86_400,
        )
        assert done.document["id"] in running.offers
        assert done.err == ""

    async def test_a_margin_and_a_details_file_are_read(self, shell: Shell, running: Twin) -> None:
        (shell.home / "pay.toml").write_text('[sepa]\niban = "DE02"\n[revolut]\nname = "@ann"\n')
        done = await shell(
            "offer", "create", "buy", "200000sat", "--margin=-1.5%", "--limit", "66000", "--currency", "eur",
            "--details-file", "pay.toml", "--escrow-type", "1",
        )  # fmt: skip
        assert done.code == 0, done
        (draft,) = running.drafts
        assert (draft.margin_ppm, draft.price_limit, draft.price, draft.currency) == (-15_000, "66000.00", None, "EUR")
        assert [m.method for m in draft.methods] == ["sepa", "revolut"]
        assert draft.escrow_types == (1,)

    async def test_tables_show_what_json_shows(self, shell: Shell, running: Twin) -> None:
        await shell(*CREATE)
        table, document = await shell("offer", "list"), await shell("offer", "list", "--json")
        (offer,) = document.document["offers"]
        for part in (offer["id"][:16], "65000.00 EUR", "0.01000000 – 0.05000000", "10% / 10%", "sepa"):
            assert part in table.out
        shown = await shell("offer", "show", offer["id"][:8])
        assert offer["id"] in shown.out
        assert ARBITER in shown.out

    async def test_every_reading_verb_prints_a_table(self, shell: Shell, running: Twin) -> None:
        running.peers.append(s.PeerView(node=NODE, address="127.0.0.1:1", via="dht", last_seen=START, rtt_ms=3))
        for verb, word in (
            ("info", NODE),
            ("trade list", "no trades"),
            ("wallet balance", "1.50000000"),
            ("wallet utxos", "ee" * 32),
            ("wallet history", "-0.00005000"),
            ("peer list", "127.0.0.1:1"),
            ("arbiter list", "No arbiters"),
        ):
            done = await shell(*verb.split())
            assert (done.code, done.err) == (0, ""), (verb, done)
            assert word in done.out

    async def test_a_take_is_bound_to_the_version_of_the_offer_that_was_shown(
        self, shell: Shell, running: Twin
    ) -> None:
        offer = (await shell(*CREATE, "--json")).document["id"]
        await shell("offer", "edit", offer, "--terms", "quick")
        done = await shell("offer", "take", offer[:10], "0.02", "--detail", "iban=FR76", "--json")
        assert done.code == 0, done
        (take,) = running.taken
        assert (take.sequence, take.amount_sats, take.method) == (1, 2_000_000, "sepa")
        assert done.document["phase"] == "taking"

    async def test_a_take_without_an_amount_asks_for_one_where_there_is_a_choice(
        self, shell: Shell, running: Twin
    ) -> None:
        offer = (await shell(*CREATE, "--json")).document["id"]
        one_line(await shell("offer", "take", offer, "--detail", "iban=x"), 1, "say how much", "0.01000000")
        one_line(await shell("offer", "take", offer, "0.02"), 1, "payment details for sepa are missing")
        assert running.taken == []

    async def test_edit_and_revoke_change_the_offer(self, shell: Shell, running: Twin) -> None:
        offer = (await shell(*CREATE, "--json")).document["id"]
        assert (await shell("offer", "edit", offer, "--amount", "0.01-0.04")).code == 0
        assert running.offers[offer].amount_max_sats == 4_000_000
        one_line(await shell("offer", "edit", offer), 1, "nothing to change")
        assert (await shell("offer", "revoke", offer)).code == 0
        assert running.offers[offer].state == "revoked"

    async def test_money_is_sent_to_the_satoshi_and_all_means_all(self, shell: Shell, running: Twin) -> None:
        assert (await shell("wallet", "send", "bcrt1qabcdef", "0.00012345", "--fee-rate", "2.5")).code == 0
        assert (await shell("wallet", "send", "bcrt1qabcdef", "all")).code == 0
        assert [(r.amount_sats, r.fee_rate_sats_per_kvb) for r in running.sent] == [(12_345, 2_500), (None, None)]

    async def test_an_arbiter_announces_its_terms(self, shell: Shell, running: Twin) -> None:
        done = await shell("arbiter", "announce", "--fee", "0.5%", "--fee-floor", "5000sat", "--currency", "EUR")
        assert done.code == 0, done
        (one,) = running.arbiters
        assert (one.fee_ppm, one.fee_floor_sats, one.currencies, one.languages) == (5_000, 5_000, ("EUR",), ("en",))

    async def test_a_strangers_text_can_not_paint_over_the_terminal(self, shell: Shell, running: Twin) -> None:
        offer = (await shell(*CREATE, "--json")).document["id"]
        running.offers[offer] = replace(running.offers[offer], terms="\x1b[2J\x1b[31mred [bold]x[/bold] \u202eevil\x07")
        out = (await shell("offer", "show", offer)).out
        assert not any(c in out for c in "\x1b\u202e\x07")
        assert "[bold]x[/bold]" in out


def moved(trade: s.TradeView, **changes: object) -> s.TradeView:
    return replace(trade, **changes)


class TestFollowing:
    async def take(self, shell: Shell, twin: Twin, *more: str) -> asyncio.subprocess.Process:
        offer = (await shell(*CREATE, "--json")).document["id"]
        return await shell.start("offer", "take", offer, "0.02", "--detail", "iban=x", "--wait", "--json", *more)

    async def test_wait_ends_when_the_trade_needs_the_user(self, shell: Shell, running: Twin) -> None:
        process = await self.take(shell, running)
        await asyncio.wait_for(running.waiting.wait(), 20)
        (trade,) = running.trades.values()
        running.set_trade(moved(trade, phase="accepted"))
        running.set_trade(moved(trade, phase="funding"))
        running.set_trade(moved(trade, phase="funded", actions=("pay",), peer_details={"iban": "DE02"}))
        done = await finish(process)
        assert done.code == 0, done
        assert (done.document["phase"], done.document["peer_details"]) == ("funded", {"iban": "DE02"})
        assert done.err == ""

    async def test_wait_tells_a_declined_trade_by_its_exit_code(self, shell: Shell, running: Twin) -> None:
        process = await self.take(shell, running)
        await asyncio.wait_for(running.waiting.wait(), 20)
        (trade,) = running.trades.values()
        running.set_trade(moved(trade, phase="declined", open=False, actions=(), ending="not today"))
        done = await finish(process)
        assert (done.code, done.document["ending"]) == (4, "not today")

    async def test_wait_gives_up_in_time_and_leaves_the_trade_alone(self, shell: Shell, running: Twin) -> None:
        process = await self.take(shell, running, "--timeout", "1s")
        done = await finish(process)
        assert done.code == 7
        assert json.loads(done.err)["exit"] == 7
        assert [t.phase for t in running.trades.values()] == ["taking"]

    async def test_ctrl_c_is_quiet(self, shell: Shell, running: Twin) -> None:
        process = await self.take(shell, running)
        await asyncio.wait_for(running.waiting.wait(), 20)
        process.send_signal(signal.SIGINT)
        done = await finish(process)
        assert (done.code, done.out, done.err) == (130, "", "interrupted\n")

    async def test_pay_and_release_move_the_trade_and_refusals_are_told_apart(
        self, shell: Shell, running: Twin
    ) -> None:
        offer = (await shell(*CREATE, "--json")).document["id"]
        request = s.TakeRequest(amount_sats=1_000_000, method="sepa", details={"iban": "x"})
        trade = trade_view(running.offers[offer], request)
        running.set_trade(moved(trade, phase="funded", actions=("pay",)))
        one_line(await shell("trade", "release", trade.id), 4, "not possible while the trade is funded")
        done = await shell("trade", "pay", trade.id[:8], "--note", "from 4711", "--json")
        assert (done.document["phase"], done.document["payment_note"]) == ("paid", "from 4711")
        running.set_trade(moved(running.trades[trade.id], actions=("release",)))
        assert (await shell("trade", "release", trade.id)).code == 0
        one_line(await shell("trade", "cancel", trade.id), 4, "cancel is not possible")


class TestStop:
    async def test_stop_returns_when_the_folder_is_free(self, shell: Shell, running: Twin, folder: DataDir) -> None:
        lock = folder.lock()
        process = await shell.start("stop")
        await asyncio.wait_for(running.stopped.wait(), 20)
        await asyncio.sleep(0.2)
        assert process.returncode is None
        lock.close()
        done = await finish(process)
        assert (done.code, done.out) == (0, "The node is shutting down.\n")


class TestWhatGoesWrong:
    async def test_a_folder_without_a_node(self, shell: Shell, tmp_path: Path) -> None:
        one_line(await finish(await start("info", "--datadir", "empty", home=tmp_path)), 3, "p2pnode init")

    async def test_a_node_that_does_not_run(self, shell: Shell) -> None:
        one_line(await shell("info"), 3, "is not running", "p2pnode run")

    async def test_errors_are_a_document_too(self, shell: Shell) -> None:
        done = await shell("info", "--json")
        assert (done.code, done.out) == (3, "")
        assert json.loads(done.err) == {"code": 3150, "detail": json.loads(done.err)["detail"], "exit": 3}

    @pytest.mark.parametrize(
        ("trouble", "code"),
        [(ChainError("bitcoind is gone"), 5), (PeerRefusal("the peer is busy"), 4), (RuntimeError("secret"), 6)],
    )
    async def test_the_exit_code_says_whose_fault_it_is(
        self, shell: Shell, running: Twin, trouble: Exception, code: int
    ) -> None:
        running.trouble = trouble
        done = await shell("wallet", "balance")
        one_line(done, code)
        assert "secret" not in done.err

    async def test_a_reader_that_leaves_early_is_no_error(self, shell: Shell, running: Twin) -> None:
        read, write = os.pipe()
        os.close(read)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "cli.py"), "--datadir", str(shell.folder), "info",
            stdout=write, stderr=asyncio.subprocess.PIPE, env=clean,
        )  # fmt: skip
        os.close(write)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, err) == (0, b"")


class TestInit:
    async def test_a_new_node_shows_its_words_once_and_they_restore_it(self, tmp_path: Path) -> None:
        env = {"P2PNODE_PASSPHRASE": PASSPHRASE, "P2PNODE_KEYSTORE_COST": "interactive"}
        arguments = ("init", "--network", "regtest", "--json")
        first = await finish(await start(*arguments, "--datadir", "a", home=tmp_path, env=env))
        assert first.code == 0, first
        words = first.document["mnemonic"]
        assert len(words.split()) == 24
        again = await finish(
            await start(*arguments, "--datadir", "b", "--restore", home=tmp_path, env=env), f"  {words.upper()}\n"
        )
        assert again.code == 0, again
        assert again.document["mnemonic"] is None
        assert (again.document["persona"], again.document["node"]) == (
            first.document["persona"],
            first.document["node"],
        )
        for name in ("a", "b"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
            for file in (tmp_path / name).iterdir():
                assert file.stat().st_mode & 0o777 == 0o600, file
                assert words.split()[0] + " " + words.split()[1] not in file.read_text("utf-8", "replace")
        assert 'network = "regtest"' in (tmp_path / "a" / "config.toml").read_text()

    async def test_the_default_folder_is_the_networks_own(self, tmp_path: Path) -> None:
        done = await finish(await start("init", "--network", "signet", "--no-passphrase", home=tmp_path))
        assert done.code == 0, done
        assert "24 " in done.out
        assert "not encrypted" in done.out
        assert (tmp_path / ".p2pnode" / "signet" / "keystore.json").exists()
        one_line(await finish(await start("info", "--network", "signet", home=tmp_path)), 3, "is not running")

    async def test_settings_and_a_shipped_config_become_the_nodes_own(self, tmp_path: Path) -> None:
        done = await finish(
            await start(
                "init", "--datadir", "a", "--config", str(ROOT / "configs" / "bootstrap.toml"), "--network", "regtest",
                "--port", "4000", "--no-passphrase", "--set", "limits.sessions=7", home=tmp_path,
            )
        )  # fmt: skip
        assert done.code == 0, done
        text = (tmp_path / "a" / "config.toml").read_text()
        for line in ('roles = ["bootstrap"]', "port = 4000", "sessions = 7", 'format = "json"'):
            assert line in text

    async def test_a_node_is_never_overwritten(self, shell: Shell, folder: DataDir) -> None:
        before = folder.keystore.read_bytes()
        done = await shell("init", "--network", "regtest", "--no-passphrase")
        one_line(done, 1, "never overwritten")
        assert folder.keystore.read_bytes() == before

    @pytest.mark.parametrize(
        ("words", "word"),
        [
            ("", "no mnemonic"),
            ("abandon " * 12, "checksum"),
            ("zzz " * 12, "not in the word list"),
            ("abandon abandon", "this has 2"),
        ],
    )
    async def test_a_wrong_mnemonic_makes_nothing(self, tmp_path: Path, words: str, word: str) -> None:
        arguments = ("init", "--datadir", "a", "--network", "regtest", "--no-passphrase", "--restore")
        one_line(await finish(await start(*arguments, home=tmp_path), words), 1, word)
        assert not (tmp_path / "a").exists()

    async def test_no_passphrase_must_be_asked_for(self, tmp_path: Path) -> None:
        arguments = ("init", "--datadir", "a", "--network", "regtest")
        one_line(await finish(await start(*arguments, home=tmp_path)), 1, "P2PNODE_PASSPHRASE")
        empty = {"P2PNODE_PASSPHRASE": ""}
        one_line(await finish(await start(*arguments, home=tmp_path, env=empty)), 1, "--no-passphrase")
        assert not (tmp_path / "a").exists()


class TestRun:
    """What stands before the node itself."""

    async def run(self, shell: Shell, *more: str, passphrase: str | None = PASSPHRASE) -> Done:
        env = {} if passphrase is None else {"P2PNODE_PASSPHRASE": passphrase}
        return await shell("run", *more, env=env)

    async def test_a_wrong_passphrase(self, shell: Shell) -> None:
        one_line(await self.run(shell, passphrase="wrong"), 1, "passphrase is wrong")

    async def test_no_passphrase_and_nobody_to_ask(self, shell: Shell) -> None:
        one_line(await self.run(shell, passphrase=None), 1, "P2PNODE_PASSPHRASE", "keystore.passphrase_file")

    async def test_a_locked_data_directory(self, shell: Shell, folder: DataDir) -> None:
        with folder.lock():
            one_line(await self.run(shell), 1, f"process {os.getpid()}", "--datadir")

    async def test_the_wrong_network(self, shell: Shell) -> None:
        one_line(await self.run(shell, "--network", "signet"), 1, "holds a regtest node", "--network regtest")

    async def test_a_damaged_keystore(self, shell: Shell, folder: DataDir) -> None:
        raw = bytearray(folder.keystore.read_bytes())
        raw[len(raw) // 2] ^= 1
        folder.keystore.write_bytes(bytes(raw))
        one_line(await self.run(shell), 6, "damaged", "backup")

    async def test_a_folder_that_others_can_read(self, shell: Shell, folder: DataDir) -> None:
        folder.path.chmod(0o755)
        one_line(await self.run(shell), 1, "chmod 700")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("network = regtest", ("config.toml", "not TOML", "line 1")),
            ('network = "regtset"', ("config.toml: network", "mainnet, testnet, signet or regtest", "regtset")),
            ("[node]\nprot = 5", ("config.toml: node.prot", "did you mean node.port?")),
            ('[node]\nport = "5"', ("config.toml: node.port", "a whole number from 0 to 65535")),
            ("[nod]\nport = 5", ("config.toml: [nod] is not a section", "did you mean node?")),
        ],
    )
    async def test_a_malformed_configuration(
        self, shell: Shell, folder: DataDir, text: str, words: tuple[str, ...]
    ) -> None:
        folder.config.write_text(text)
        one_line(await self.run(shell), 2, *words)

    async def test_a_missing_configuration_file(self, shell: Shell) -> None:
        one_line(await self.run(shell, "--config", "nowhere.toml"), 2, "nowhere.toml", "No such file")

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--set", "node.prot=5"), ("node.prot", "did you mean node.port?")),
            (("--set", "node.port=x"), ("flag: node.port", "whole number")),
            (("--set", "chain.password=x"), ("never an argument",)),
            (("--seed", "nonsense"), ("node.seeds", "host:port")),
        ],
    )
    async def test_a_wrong_setting(self, shell: Shell, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
        one_line(await self.run(shell, *flags), 2, *words)

    async def test_a_wrong_setting_in_the_environment(self, shell: Shell) -> None:
        done = await shell("run", env={"P2PNODE_PASSPHRASE": PASSPHRASE, "P2PNODE_NODE_PRT": "5"})
        one_line(done, 2, "P2PNODE_NODE_PRT", "P2PNODE_NODE_PORT")

    async def test_nothing_is_left_locked_by_a_start_that_failed(self, shell: Shell, folder: DataDir) -> None:
        await self.run(shell, passphrase="wrong")
        folder.lock().close()


class TestARealNode:
    """The daemon itself, as a bootstrap node: it needs no chain."""

    @pytest.fixture
    def bootstrap(self, shell: Shell, folder: DataDir) -> Shell:
        folder.config.write_text(
            'network = "regtest"\nroles = ["bootstrap"]\n'
            '[node]\nhost = "127.0.0.1"\nport = 0\n[api]\nport = 0\n[log]\nformat = "json"\n'
        )
        return shell

    async def started(self, shell: Shell, *more: str) -> asyncio.subprocess.Process:
        process = await shell.start("run", *more, env={"P2PNODE_PASSPHRASE": PASSPHRASE})
        client = await wait_until_up(shell.folder, 30)
        await client.close()
        return process

    async def test_a_whole_life(self, bootstrap: Shell) -> None:
        process = await self.started(bootstrap)
        info = await bootstrap("info", "--json")
        assert info.document["roles"] == ["bootstrap"]
        assert info.document["data_dir"] == str(bootstrap.folder)
        one_line(await bootstrap("wallet", "balance"), 4, "bootstrap node holds no coins")
        one_line(await bootstrap("run", env={"P2PNODE_PASSPHRASE": PASSPHRASE}), 1, f"process {process.pid}")
        assert (await bootstrap("stop")).code == 0
        done = await finish(process)
        assert (done.code, done.out) == (0, "")
        assert all(json.loads(line)["level"] in {"info", "warning"} for line in done.err.splitlines()), done.err
        assert not DataDir(bootstrap.folder).cookie.exists()
        one_line(await bootstrap("info"), 3, "is not running")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_signal_ends_it_in_order(self, bootstrap: Shell, number: signal.Signals) -> None:
        process = await self.started(bootstrap)
        process.send_signal(number)
        assert (await finish(process)).code == 0
        assert not DataDir(bootstrap.folder).endpoint.exists()

    @pytest.mark.parametrize("setting", ["node.port", "api.port"])
    async def test_a_port_in_use_is_named_with_its_setting(self, bootstrap: Shell, setting: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = await bootstrap(
                "run", "--set", f"{setting}={port}", "--log-level", "error", env={"P2PNODE_PASSPHRASE": PASSPHRASE}
            )
        one_line(done, 1, f"port {port} is in use", setting)

    async def test_an_address_that_is_not_ours_is_named_with_its_setting(self, bootstrap: Shell) -> None:
        done = await bootstrap(
            "run", "--set", "node.host=192.0.2.1", "--log-level", "error", env={"P2PNODE_PASSPHRASE": PASSPHRASE}
        )
        one_line(done, 1, "192.0.2.1 is not an address of this machine", "node.host")

    async def test_a_bitcoind_that_does_not_answer_is_one_line(self, shell: Shell) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = await shell(
            "run", "--chain-url", url, "--set", "chain.user=u", "--log-level", "error",
            env={"P2PNODE_PASSPHRASE": PASSPHRASE, "P2PNODE_CHAIN_PASSWORD": "hunter2"},
        )  # fmt: skip
        one_line(done, 5, url)
        assert "hunter2" not in done.err

    async def test_a_bitcoind_without_a_cookie_is_one_line(self, shell: Shell) -> None:
        env = {"P2PNODE_PASSPHRASE": PASSPHRASE, "P2PNODE_CHAIN_COOKIE_FILE": "/nowhere/.cookie"}
        one_line(await shell("run", "--log-level", "error", env=env), 5, "/nowhere/.cookie")
