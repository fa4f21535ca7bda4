"""The second factor: what is taken for a code, how often, and for how long nobody is answered."""

from __future__ import annotations

from pathlib import Path

import pyotp
import pytest

from p2pnode.database import Database
from p2pnode.secondfactor import (
    FREE_TRIES,
    STEP,
    CodeNeeded,
    FactorState,
    SecondFactor,
    TooManyCodes,
    WrongCode,
)
from protocol.errors import DataCorrupt, IllegalTransition
from tests.world import FixedClock

SECRET = b"\x05" * 32


class Device:
    """An authenticator that was shown the secret."""

    def __init__(self, secret: str, clock: FixedClock) -> None:
        self._totp = pyotp.TOTP(secret)
        self._clock = clock

    def code(self, steps: int = 0) -> str:
        """What it shows now, or so many steps later."""
        return self._totp.at(self._clock.now() + steps * STEP)

    def wrong(self) -> str:
        """Six digits that are none of the codes around now."""
        near = {self.code(steps) for steps in (-1, 0, 1)}
        return next(text for text in (f"{n:06}" for n in range(10)) if text not in near)


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock("factor")


@pytest.fixture
def factor(clock: FixedClock) -> SecondFactor:
    return SecondFactor(Database(":memory:"), SECRET, clock, "regtest ab12")


def enabled(factor: SecondFactor, clock: FixedClock) -> tuple[Device, tuple[str, ...]]:
    device = Device(factor.begin()[0], clock)
    codes = factor.confirm(device.code())
    clock.time += STEP
    return device, codes


def test_nothing_is_asked_before_a_device_has_shown_a_code(factor: SecondFactor, clock: FixedClock) -> None:
    factor.check("")
    secret, uri = factor.begin()
    factor.check("")
    assert factor.state is FactorState.PENDING
    assert uri.startswith("otpauth://totp/p2pnode:")
    assert secret in uri
    with pytest.raises(WrongCode):
        factor.confirm(Device(secret, clock).wrong())
    assert factor.state is FactorState.PENDING


def test_without_a_code_nothing_passes(factor: SecondFactor, clock: FixedClock) -> None:
    enabled(factor, clock)
    with pytest.raises(CodeNeeded):
        factor.check("")


def test_a_code_that_was_seen_over_the_shoulder_is_not_good_twice(factor: SecondFactor, clock: FixedClock) -> None:
    device, _ = enabled(factor, clock)
    factor.check(device.code())
    with pytest.raises(WrongCode):
        factor.check(device.code())
    with pytest.raises(WrongCode):
        factor.check(device.code(-1))
    clock.time += STEP
    factor.check(device.code())


def test_the_code_that_switched_it_on_does_not_spend_as_well(factor: SecondFactor, clock: FixedClock) -> None:
    device = Device(factor.begin()[0], clock)
    factor.confirm(device.code())
    with pytest.raises(WrongCode):
        factor.check(device.code())


@pytest.mark.parametrize(("steps", "good"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_clocks_may_differ_by_one_step_only(factor: SecondFactor, clock: FixedClock, steps: int, good: bool) -> None:
    device, _ = enabled(factor, clock)
    clock.time += 10 * STEP
    if good:
        factor.check(device.code(steps))
    else:
        with pytest.raises(WrongCode):
            factor.check(device.code(steps))


@pytest.mark.parametrize(
    "text", ["12345", "1234567", "\uff11\uff12\uff13\uff14\uff15\uff16", "abcdef", "-1", "123 45", "\x00" * 6, "A" * 16]
)
def test_what_is_no_code_is_wrong_and_nothing_breaks(factor: SecondFactor, clock: FixedClock, text: str) -> None:
    enabled(factor, clock)
    with pytest.raises(WrongCode):
        factor.check(text)


def test_guessing_is_slowed_down_and_a_right_code_does_not_help_then(factor: SecondFactor, clock: FixedClock) -> None:
    device, codes = enabled(factor, clock)
    for _ in range(FREE_TRIES):
        with pytest.raises(WrongCode):
            factor.check(device.wrong())
    for text in (device.code(), codes[0]):
        with pytest.raises(TooManyCodes, match="60 seconds"):
            factor.check(text)
    clock.time += 60
    with pytest.raises(WrongCode):
        factor.check(device.wrong())
    with pytest.raises(TooManyCodes, match="120 seconds"):
        factor.check(device.code())
    clock.time += 120
    factor.check(device.code())
    clock.time += STEP
    with pytest.raises(WrongCode):  # counted from the start again
        factor.check(device.wrong())
    factor.check(device.code())


def test_a_restart_forgets_no_wrong_code_and_no_used_one(tmp_path: Path, clock: FixedClock) -> None:
    database = Database(tmp_path / "node.db")
    device, _ = enabled(SecondFactor(database, SECRET, clock, ""), clock)
    SecondFactor(database, SECRET, clock, "").check(device.code())
    for _ in range(FREE_TRIES):
        with pytest.raises(WrongCode):
            SecondFactor(database, SECRET, clock, "").check(device.code())
    database.close()
    with pytest.raises(TooManyCodes):
        SecondFactor(Database(tmp_path / "node.db"), SECRET, clock, "").check(device.code())


def test_a_recovery_code_stands_in_for_the_device_once(factor: SecondFactor, clock: FixedClock) -> None:
    _, codes = enabled(factor, clock)
    assert len(set(codes)) == factor.recovery_left == 10
    factor.check(codes[3].lower().replace("-", " "))
    assert factor.recovery_left == 9
    with pytest.raises(WrongCode):
        factor.check(codes[3])
    factor.check(codes[4])


def test_another_device_needs_the_first_one_off(factor: SecondFactor, clock: FixedClock) -> None:
    device, _ = enabled(factor, clock)
    with pytest.raises(IllegalTransition):
        factor.begin()
    with pytest.raises(IllegalTransition):
        factor.confirm(device.code())
    factor.remove()
    assert factor.state is FactorState.OFF
    factor.check("")


def test_the_secret_does_not_lie_open_on_the_disk(tmp_path: Path, clock: FixedClock) -> None:
    database = Database(tmp_path / "node.db")
    secret, _ = SecondFactor(database, SECRET, clock, "").begin()
    database.close()
    assert secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with pytest.raises(DataCorrupt):
        _ = SecondFactor(Database(tmp_path / "node.db"), b"\x06" * 32, clock, "").state
