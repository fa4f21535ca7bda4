"""Bad input to real nodes over a real chain: one clear line, a non-zero exit, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, together
from p2pnode.regtest import RegtestNode
from tests.crash.test_kill9 import method, publish

pytestmark = [pytest.mark.regtest, pytest.mark.asyncio(loop_scope="module")]

CLI = Path(__file__).parents[2] / "cli.py"


def cli(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and what a person reads on stderr."""
    done = subprocess.run(
        [sys.executable, str(CLI), *arguments, "--datadir", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stderr.strip()


async def ask(folder: Path, *arguments: str) -> tuple[int, str]:
    return await asyncio.to_thread(cli, folder, *arguments)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cast(tmp_path_factory: pytest.TempPathFactory, bitcoind_binary: Path) -> AsyncIterator[Cast]:
    """Real nodes; the seller and the arbiter have coins, the buyer has none."""
    cast = Cast(tmp_path_factory.mktemp("bad"), bitcoind_binary, keep=False)
    try:
        await cast.start_chain_and_seeds()
        await together(cast.start_others(), cast.bitcoind.ensure_coins(2))
        for trader in (cast.seller, cast.arbiter):
            for _ in range(2):
                await cast.bitcoind.fund((await trader.api.address("t")).address, 5_000_000, confirmations=0)
        await cast.bitcoind.mine()
        for arbiter in cast.arbiters:
            await arbiter.api.announce(s.AnnounceRequest(fee_ppm=10_000))
        yield cast
    finally:
        await cast.close()


async def seen_by(cast: Cast, offer: str) -> None:
    """Wait until the buyer finds the offer through the DHT."""
    for _ in range(200):
        page = await cast.buyer.api.offers(s.OfferFilter(side="sell", currency="EUR"))
        if any(o.id == offer for o in page.offers):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the offer never reached the buyer")


TAKE = ("200000sat", "--method", "sepa", "--detail", "iban=DE00", "--yes")


async def test_take_without_coins_says_how_many_are_missing_and_leaves_the_offer_open(cast: Cast) -> None:
    offer = await publish(cast)
    await seen_by(cast, offer)
    code, line = await ask(cast.buyer.data.path, "offer", "take", offer, *TAKE)
    assert code != 0
    assert "not enough coins" in line
    assert (await cast.seller.api.offer(offer)).state == "open"
    assert (await cast.buyer.api.trades()).trades == ()


async def test_offer_that_was_taken_is_refused_and_no_coin_stays_reserved(cast: Cast) -> None:
    offer = await publish(cast)
    await seen_by(cast, offer)
    await cast.bitcoind.fund((await cast.buyer.api.address("t")).address, 5_000_000)
    for _ in range(200):
        if (await cast.buyer.api.balance()).spendable_sats:
            break
        await asyncio.sleep(0.05)
    await cast.arbiter.api.offers(s.OfferFilter(side="sell", currency="EUR"))
    take = s.TakeRequest(amount_sats=200_000, method="sepa", details=method("x").details)
    # The arbiter of a trade can't be a party of it: named as such, it must be refused before anything is sent.
    code, line = await ask(cast.arbiter.data.path, "offer", "take", offer, *TAKE)
    assert code != 0
    assert line
    await cast.buyer.api.offer_take(offer, take)
    for _ in range(400):
        page = await cast.buyer.api.offers(s.OfferFilter(side="sell", currency="EUR"))
        if not any(o.id == offer for o in page.offers):
            break
        await asyncio.sleep(0.05)
    before = (await cast.buyer.api.balance()).reserved_sats
    code, line = await ask(cast.buyer.data.path, "offer", "take", offer, *TAKE)
    assert code != 0
    assert "no longer open" in line or "taken" in line
    assert (await cast.buyer.api.balance()).reserved_sats <= before


async def test_coins_of_an_open_trade_can_not_be_spent_by_hand(cast: Cast) -> None:
    """Its counterparty relies on them; they come free when the trade ends."""
    offer = await publish(cast)
    await seen_by(cast, offer)
    await cast.bitcoind.fund((await cast.buyer.api.address("t")).address, 4_000_000)
    for _ in range(200):
        if (await cast.buyer.api.balance()).spendable_sats >= 4_000_000:
            break
        await asyncio.sleep(0.05)
    # The maker's node hangs, so the trade stays where it is.
    os.kill(cast.seller.pid, signal.SIGSTOP)
    try:
        take = s.TakeRequest(amount_sats=200_000, method="sepa", details=method("x").details)
        trade = (await cast.buyer.api.offer_take(offer, take)).id
        await refuses_held_coins(cast, trade)
        await cast.buyer.api.trade_cancel(trade)
    finally:
        os.kill(cast.seller.pid, signal.SIGCONT)
    for _ in range(200):
        if not (await cast.buyer.api.balance()).reserved_sats:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the coins of a trade that ended are still held")


async def refuses_held_coins(cast: Cast, trade: str) -> None:
    held = [c for c in (await cast.buyer.api.utxos()).utxos if c.trade == trade]
    coin, before = held[0], await cast.buyer.api.balance()
    address = await cast.bitcoind.new_address()
    send = ("wallet", "send", address, "0.001", "--yes", "--coin", f"{coin.txid}:{coin.vout}")
    code, line = await ask(cast.buyer.data.path, *send)
    assert code != 0
    assert f"held by the open trade {trade[:16]}" in line
    assert len(line.splitlines()) == 1
    code, line = await ask(cast.buyer.data.path, "wallet", "consolidate", "--yes", "--coin", f"{coin.txid}:{coin.vout}")
    assert code != 0
    assert "held by the open trade" in line
    assert await cast.buyer.api.balance() == before


async def test_keys_of_another_network_are_not_used(cast: Cast, tmp_path: Path) -> None:
    """One folder holds one node of one network; the words say no network, so the keystore does."""
    folder = tmp_path / "node"
    assert cli(folder, "init", "--network", "regtest", "--no-passphrase")[0] == 0
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for words in (("run", "--network", "signet"), ("init", "--network", "signet", "--no-passphrase")):
        code, line = await ask(folder, *words)
        assert code != 0
        assert len(line.splitlines()) == 1
        assert "regtest" in line or "never overwritten" in line
    xpub = (await cast.seller.api.descriptors()).external
    config = folder / "config.toml"
    main = xpub.replace("tpub", "xpub", 1)
    config.write_text(config.read_text() + f'\n[wallet]\nwatch = "{main}"\n')
    config.chmod(0o600)
    code, line = await ask(folder, "run")
    assert code != 0
    assert len(line.splitlines()) == 1
    assert "checksum" in line or "network" in line or "damaged" in line
    assert all((folder / name).read_bytes() == data for name, data in files.items() if name != "config.toml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("offer", "take", "00000000", *TAKE), "no offer"),
        (("trade", "show", "00000000"), "no trade"),
        (("trade", "release", "00000000", "--yes"), "no trade"),
        (("wallet", "send", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "10000sat", "--yes"), "mainnet"),
        (("wallet", "send", "nonsense-address", "10000sat", "--yes"), "address"),
        (("peer", "add", "127.0.0.1:1"), "answer"),
    ],
)
async def test_wrong_words_get_one_clear_line(cast: Cast, arguments: tuple[str, ...], expected: str) -> None:
    code, line = await ask(cast.buyer.data.path, *arguments)
    assert code != 0
    assert len(line.splitlines()) == 1, line
    assert expected in line.lower(), line


async def test_unreachable_bitcoind_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert cli(folder, "init", "--network", "regtest", "--no-passphrase")[0] == 0
    config = folder / "config.toml"
    config.write_text(
        config.read_text()
        + '\n[node]\nhost = "127.0.0.1"\nport = 0\n[chain]\nurl = "http://127.0.0.1:1"\nuser = "u"\npassword = "p"\n'
    )
    config.chmod(0o600)
    code, line = cli(folder, "run")
    assert code == 5
    assert "Bitcoin node" in line or "bitcoind" in line


async def test_bitcoind_of_another_network_stops_the_start(cast: Cast, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert cli(folder, "init", "--network", "signet", "--no-passphrase")[0] == 0
    config = folder / "config.toml"
    config.write_text(
        config.read_text()
        + f'\n[node]\nhost = "127.0.0.1"\nport = 0\n[chain]\nurl = "{cast.bitcoind.rpc_url}"\n'
        + f'cookie_file = "{cast.bitcoind.cookie_path.absolute()}"\n'
    )
    config.chmod(0o600)
    code, line = cli(folder, "run")
    assert code == 5
    assert "regtest" in line


async def test_second_daemon_in_one_folder_is_refused_and_the_first_goes_on(cast: Cast) -> None:
    code, line = await ask(cast.buyer.data.path, "run")
    assert code != 0
    assert str(cast.buyer.pid) in line
    assert (await cast.buyer.api.info()).pid == cast.buyer.pid


async def test_node_that_loses_its_bitcoind_says_so_and_recovers(cast: Cast) -> None:
    """Nothing is lost while the chain is out of sight, and the node picks it up again by itself."""
    assert isinstance(cast.bitcoind, RegtestNode)
    await cast.bitcoind.stop()
    for _ in range(1200):
        chain = (await cast.buyer.api.info()).chain
        if chain is not None and chain.health == "unreachable":
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the node never noticed")
