"""The second factor over the API, and at the terminal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pyotp
import pytest

from p2pnode.api import schema as s
from p2pnode.api.routes import GUARDED, ROUTES
from p2pnode.client import ApiError, Client
from p2pnode.clock import SystemClock
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.keystore import unlock
from p2pnode.secondfactor import CodeNeeded, FactorState, SecondFactor, WrongCode
from protocol.types import Network
from tests.network.api_twin import PASSPHRASE, Twin, make_data_dir, serving
from tests.network.test_api_terminal import Terminal

PAYMENT = s.SendRequest(address="bcrt1qabcdef", amount_sats=50_000_000)
FREE = {
    "stop", "offer_revoke", "trade_cancel", "dispute_open", "dispute_evidence", "trade_chat", "trade_extend",
    "file_upload", "case_accept", "case_decline", "case_extend", "case_write", "address", "freeze", "set_labels",
    "peer_add", "announce", "second_factor_begin", "second_factor_confirm", "page",
    "bond_search", "persona_note", "persona_standing", "trade_publish", "trade_rate",
}  # fmt: skip
"""Writes that move, lock and sign away nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> DataDir:
    return make_data_dir(tmp_path / "node")


@pytest.fixture
async def twin(folder: DataDir) -> AsyncIterator[Twin]:
    twin = Twin()
    async with serving(twin, folder):
        yield twin


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def device(twin: Twin) -> pyotp.TOTP:
    """An authenticator for the twin's node, switched on."""
    totp = pyotp.TOTP(twin.factor.begin()[0])
    twin.factor.confirm(totp.at(twin.clock.now()))
    twin.clock.time += 30
    return totp


def test_a_new_write_is_either_guarded_or_known_to_move_nothing() -> None:
    writes = {route.name for route in ROUTES if route.writes}
    assert writes - GUARDED - FREE == set()
    assert (GUARDED | FREE) - writes == set()


async def test_a_stolen_login_can_look_but_not_spend(twin: Twin, folder: DataDir) -> None:
    device(twin)
    async with Client.open(folder.path) as thief:
        await thief.balance()
        for attempt in (thief.send(PAYMENT), thief.second_factor_remove()):
            with pytest.raises(ApiError) as refused:
                await attempt
            assert refused.value.code == CodeNeeded.code
    assert twin.sent == []


async def test_a_code_lets_one_payment_pass(twin: Twin, folder: DataDir) -> None:
    totp = device(twin)

    async def code() -> str:
        return totp.at(twin.clock.now())

    async with Client.open(folder.path, code=code) as client:
        await client.send(PAYMENT)
        with pytest.raises(ApiError) as refused:
            await client.send(PAYMENT)
        assert refused.value.code == WrongCode.code
    assert twin.sent == [PAYMENT]


async def test_a_person_is_asked_for_the_code(
    twin: Twin, folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    totp = device(twin)
    terminal = Terminal(tmp_path, "wallet", "send", "bcrt1qabcdef", "0.5", "--yes", "--datadir", str(folder.path))
    terminals.append(terminal)
    await terminal.until("Code of your second factor: ")
    await terminal.type(totp.at(twin.clock.now()))
    assert await terminal.end() == 0
    assert len(twin.sent) == 1


async def test_a_device_is_enabled_at_the_terminal(
    twin: Twin, folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal(tmp_path, "2fa", "enable", "--datadir", str(folder.path))
    terminals.append(terminal)
    await terminal.until("The six digits that it shows now: ")
    shown = terminal.screen.split("secret in:")[1].split("\n")[1]
    totp = pyotp.TOTP("".join(shown.split()))
    await terminal.type("12")
    await terminal.until("six digits, as your device")
    await terminal.until("The six digits that it shows now: $")
    await terminal.type(totp.at(twin.clock.now()))
    assert await terminal.end() == 0
    assert "Recovery codes" in terminal.screen
    assert twin.factor.recovery_left == 10


async def test_a_lost_device_costs_the_passphrase_and_not_the_coins(
    folder: DataDir, tmp_path: Path, terminals: list[Terminal]
) -> None:
    keys = unlock(folder.keystore, PASSPHRASE, Network.REGTEST)
    with closing(Database(folder.database)) as database:
        factor = SecondFactor(database, keys.node().seed, SystemClock(), "")
        totp = pyotp.TOTP(factor.begin()[0])
        factor.confirm(totp.now())
    for passphrase, code, state in (("wrong", 1, FactorState.ON), (PASSPHRASE, 0, FactorState.OFF)):
        terminal = Terminal(tmp_path, "2fa", "reset", "--yes", "--datadir", str(folder.path))
        terminals.append(terminal)
        for attempt in range(1, 4 if code else 2):
            await terminal.until(f"(?s)(Passphrase: .*){{{attempt}}}")
            await terminal.type(passphrase)
        assert await terminal.end() == code
        with closing(Database(folder.database)) as database:
            assert SecondFactor(database, keys.node().seed, SystemClock(), "").state is state
