"""A second factor for what moves coins: time-based one-time codes (TOTP, RFC 6238), made by another device.

Whoever gets hold of a running node's login (a program of the same user, an unlocked screen) can then look, but neither
spend nor sign. Codes have six digits, change every 30 seconds, and are good once; the codes before and after the
present one are taken, since clocks differ. After a few wrong ones the node answers nobody for a while, longer each
time, across restarts. Ten recovery codes stand in for a lost device, once each; without device and codes the
passphrase of the keystore, given on the machine itself, switches the factor off.

The secret lies in the database, encrypted under a key that is made from the node's seed.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from collections.abc import Callable
from enum import StrEnum
from hashlib import blake2b, sha256
from typing import Final, TypeVar

import msgspec
import pyotp
from msgspec import Struct
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random

from p2pnode.clock import Clock
from p2pnode.database import Database
from protocol.errors import Action, DataCorrupt, IllegalTransition, LocalError, UserError

T = TypeVar("T")

STEP: Final = 30
"""Seconds for which a code stands."""
FREE_TRIES: Final = 5
FIRST_PAUSE: Final = 60
LONGEST_PAUSE: Final = 3_600
RECOVERY_CODES: Final = 10
_RECOVERY_BYTES: Final = 10
_CODE: Final = re.compile(r"[0-9]{6}")
_RECOVERY: Final = re.compile(r"[A-Z2-7]{16}")


class CodeNeeded(UserError):
    """This needs a code of the second factor: give the six digits that your device shows, or a recovery code."""

    code = 3170


class WrongCode(UserError):
    """That code is wrong, was used before, or is no longer good: wait for the next one that your device shows."""

    code = 3171


class TooManyCodes(LocalError):
    """Too many wrong codes were given: nobody's are looked at for a while."""

    code = 1070
    action = Action.RETRY


class FactorState(StrEnum):
    """Whether codes are asked for. `PENDING`: a secret was made, and no code of it was seen yet."""

    OFF = "off"
    PENDING = "pending"
    ON = "on"


class _Factor(Struct, frozen=True):
    secret: str
    on: bool
    last_step: int = 0
    failures: int = 0
    closed_until: int = 0
    recovery: tuple[bytes, ...] = ()
    """SHA-256 of those that are left: 80 random bits each need no slower hash."""


class SecondFactor:
    """The factor of one node. Its methods join the transaction that is open."""

    def __init__(self, database: Database, secret: bytes, clock: Clock, account: str) -> None:
        """`secret`: 32 bytes of the node's own; `account`: what the device shows beside the code."""
        self._database = database
        self._db = database.connection
        self._box = SecretBox(blake2b(b"second factor", key=secret, digest_size=32).digest())
        self._clock = clock
        self._account = account

    @property
    def state(self) -> FactorState:
        """Whether codes are asked for."""
        factor = self._read()
        if factor is None:
            return FactorState.OFF
        return FactorState.ON if factor.on else FactorState.PENDING

    @property
    def recovery_left(self) -> int:
        """Recovery codes that were not used yet."""
        factor = self._read()
        return 0 if factor is None else len(factor.recovery)

    def begin(self) -> tuple[str, str]:
        """Make a secret: (the secret in base32, its `otpauth:` URI). Raises IllegalTransition if the factor is on."""
        if self.state is FactorState.ON:
            raise IllegalTransition("the second factor is on: switch it off first, to have another device")
        secret = pyotp.random_base32()
        self._write(_Factor(secret, on=False))
        return secret, pyotp.TOTP(secret, interval=STEP).provisioning_uri(name=self._account, issuer_name="p2pnode")

    def confirm(self, code: str) -> tuple[str, ...]:
        """Switch it on with a first code of the device, and make the recovery codes, which are told this once.

        Raises IllegalTransition, WrongCode, TooManyCodes.
        """
        factor = self._read()
        if factor is None or factor.on:
            raise IllegalTransition("there is no second factor to be confirmed: begin with `p2pnode 2fa enable`")
        step = self._judged(factor, lambda: self._step(factor, code))
        codes = tuple(b32encode(random(_RECOVERY_BYTES)).decode() for _ in range(RECOVERY_CODES))
        hashes = tuple(sha256(text.encode()).digest() for text in codes)
        self._write(_Factor(factor.secret, on=True, last_step=step, recovery=hashes))
        return tuple("-".join(text[i : i + 4] for i in range(0, 16, 4)) for text in codes)

    def check(self, code: str) -> None:
        """That the asker has the device, if the factor is on. Raises CodeNeeded, WrongCode, TooManyCodes."""
        factor = self._read()
        if factor is None or not factor.on:
            return
        if not code:
            raise CodeNeeded
        cleaned = code.replace("-", "").replace(" ", "").upper()
        if _RECOVERY.fullmatch(cleaned):
            left = self._judged(factor, lambda: _without(factor.recovery, sha256(cleaned.encode()).digest()))
            self._write(msgspec.structs.replace(factor, recovery=left, failures=0, closed_until=0))
            return
        step = self._judged(factor, lambda: self._step(factor, cleaned))
        self._write(msgspec.structs.replace(factor, last_step=step, failures=0, closed_until=0))

    def remove(self) -> None:
        """Switch it off."""
        with self._database.transaction():
            self._db.execute("DELETE FROM second_factor")

    def _judged(self, factor: _Factor, judge: Callable[[], T | None]) -> T:
        """What `judge` finds; None is a wrong code, and counted. Raises WrongCode, TooManyCodes."""
        now = self._clock.now()
        if now < factor.closed_until:
            raise TooManyCodes(f"too many wrong codes were given: try again in {factor.closed_until - now} seconds")
        found = judge()
        if found is None:
            failures = factor.failures + 1
            over = failures - FREE_TRIES
            pause = 0 if over < 0 else min(LONGEST_PAUSE, FIRST_PAUSE << min(over, 10))
            self._write(msgspec.structs.replace(factor, failures=failures, closed_until=now + pause if pause else 0))
            raise WrongCode
        return found

    def _step(self, factor: _Factor, code: str) -> int | None:
        """The 30 seconds that `code` belongs to, if it is good and later than the last one that was used."""
        if not _CODE.fullmatch(code):
            return None
        totp, now = pyotp.TOTP(factor.secret, interval=STEP), self._clock.now()
        # All three are looked at, in constant time each.
        fits = [n for n in range(now // STEP - 1, now // STEP + 2) if hmac.compare_digest(totp.at(n * STEP), code)]
        return fits[0] if fits and fits[0] > factor.last_step else None

    def _read(self) -> _Factor | None:
        row = self._db.execute("SELECT sealed FROM second_factor").fetchone()
        if row is None:
            return None
        try:
            return msgspec.msgpack.decode(self._box.decrypt(row[0]), type=_Factor)
        except (CryptoError, ValueError) as e:
            raise DataCorrupt("the second factor on the disk was damaged or belongs to another node") from e

    def _write(self, factor: _Factor) -> None:
        sealed = bytes(self._box.encrypt(msgspec.msgpack.encode(factor)))
        with self._database.transaction():
            self._db.execute("INSERT OR REPLACE INTO second_factor (id, sealed) VALUES (1, ?)", (sealed,))


def _without(hashes: tuple[bytes, ...], used: bytes) -> tuple[bytes, ...] | None:
    """The others, if `used` is one of them."""
    left = tuple(known for known in hashes if not hmac.compare_digest(known, used))
    return left if len(left) < len(hashes) else None
