"""From what was typed to the values of requests. Everything here refuses with one line; nothing guesses."""

from __future__ import annotations

import re
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from escrow.wallet.labels import outpoint_of
from p2pnode import money
from p2pnode.api.schema import MethodDetails
from p2pnode.birthday import parse_birthday
from protocol.errors import UserError
from protocol.identity import parse_persona, persona_text

T = TypeVar("T")

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_METHOD: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,31}")


class BadInput(UserError):
    """What was typed can't be used."""

    code = 3161


def argument(parse: Callable[[str], T], text: str) -> T:
    """`parse(text)` as argparse wants its refusals. Raises ArgumentTypeError."""
    try:
        return parse(text)
    except UserError as e:
        raise ArgumentTypeError(e.detail) from None


def duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `7d` or `2w`. Raises BadInput."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip().lower())
    if match is None:
        raise BadInput(f"“{text[:30]}” is not a duration: write 30m, 12h or 7d")
    return int(match.group(1)) * _UNITS[match.group(2)]


def fee_rate(text: str) -> int:
    """Satoshis per 1,000 vB of a rate in sat/vB with up to three decimals, like `2.5`. Raises BadInput."""
    match = re.fullmatch(r"([0-9]{1,5})(?:\.([0-9]{1,3}))?", text.strip().lower().removesuffix("sat/vb").strip())
    rate = 0 if match is None else int(match.group(1) + (match.group(2) or "").ljust(3, "0"))
    if not 100 <= rate <= 10_000_000:
        raise BadInput(f"“{text[:30]}” is not a fee rate: write satoshis per vB, like 2.5, from 0.1 to 10000")
    return rate


def send_amount(text: str) -> int | None:
    """Satoshis, or None for `all`. Raises BadAmount."""
    if text.strip().lower() == "all":
        return None
    return positive_sats(text)


def sats(text: str) -> int:
    """Satoshis; none is allowed. Raises BadAmount."""
    return money.parse_sats(text)


def amount_range(text: str) -> tuple[int, int]:
    """(least, greatest) satoshis. Raises BadAmount."""
    return money.parse_range(text)


def currency(text: str) -> str:
    """A currency code in capitals. Raises BadPrice."""
    return money.parse_currency(text)


def persona(text: str) -> str:
    """A persona in its checked form, `persona1...`. Raises BadId."""
    return persona_text(parse_persona(text))


def whole(text: str, least: int, most: int, what: str) -> int:
    """A whole number between two others. Raises BadInput."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise BadInput(f"“{text[:30]}” is not {what}: write a whole number from {least} to {most}")
    return int(text)


def blocks(text: str) -> int:
    """A number of blocks. Raises BadInput."""
    return whole(text, 1, 65_535, "a number of blocks")


def block_height(text: str) -> int:
    """The height of a block. Raises BadInput."""
    return whole(text, 0, 2**31 - 1, "the height of a block")


def birthday(text: str) -> str:
    """A height or a time, as `p2pnode.birthday` reads them. Raises BadInput."""
    try:
        parse_birthday(text)
    except ValueError:
        raise BadInput(f"“{text[:30]}” is no height and no date: write 840000 or 2026-11-21") from None
    return text


def coin(text: str) -> str:
    """A coin, `txid:number`. Raises BadLabels."""
    return str(outpoint_of(text.strip().lower()))


def word_count(text: str) -> int:
    """How many words of a mnemonic to ask for. Raises BadInput."""
    return whole(text, 1, 24, "a number of words")


def confirmations(text: str) -> int:
    """A number of confirmations. Raises BadInput."""
    return whole(text, 1, 100, "a number of confirmations")


def count(text: str) -> int:
    """A number of trades. Raises BadInput."""
    return whole(text, 0, 10_000, "a number of trades")


def page_limit(text: str) -> int:
    """How many offers to list. Raises BadInput."""
    return whole(text, 1, 500, "a number of offers")


def history_limit(text: str) -> int:
    """How many transactions to list. Raises BadInput."""
    return whole(text, 1, 1000, "a number of transactions")


def seconds(text: str) -> float:
    """How long to wait: a duration, or seconds alone. Raises BadInput."""
    return float(duration(text if not text.isdecimal() else f"{text}s"))


def positive_sats(text: str) -> int:
    """Satoshis, more than none. Raises BadAmount."""
    value = money.parse_sats(text)
    if value == 0:
        raise money.BadAmount("an amount must be more than zero")
    return value


def share(text: str) -> int:
    """Parts per million from 0 to one whole, of `15%`. Raises BadAmount."""
    value = money.parse_percent(text)
    if not 0 <= value <= 1_000_000:
        raise money.BadAmount(f"“{text[:30]}” is out of range: a share is from 0% to 100%")
    return value


def margin(text: str) -> int:
    """Parts per million from -50% to 100%. Raises BadAmount."""
    value = money.parse_percent(text)
    if not -500_000 <= value <= 1_000_000:
        raise money.BadAmount(f"“{text[:30]}” is out of range: a margin is from -50% to 100%")
    return value


def setting(text: str) -> tuple[str, str]:
    """(key, value) of `key=value`. Raises BadInput."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"“{text[:60]}” is not a setting: write key=value, like chain.url=http://127.0.0.1:8332")
    return key.strip(), value.strip()


def price_and_currency(
    price: str | None, margin_ppm: int | None, limit: str | None, code: str | None
) -> tuple[str | None, str | None, str]:
    """(price, limit, currency) for a draft, as decimal texts, from what was typed.

    A price is `65000.00 EUR`, or the number alone beside a currency. Raises BadPrice, BadInput.
    """
    if (price is None) == (margin_ppm is None):
        raise BadInput("give --price or --margin: exactly one of the two")
    if price is None:
        if code is None:
            raise BadInput("--margin needs --currency")
        return None, None if limit is None else price_of(limit, code), code
    if limit is not None:
        raise BadInput("--limit belongs to --margin: a fixed price has no limit")
    if code is None:
        minor, code = money.parse_price(price)
        return money.format_minor(minor, code), None, code
    return price_of(price, code), None, code


def price_of(text: str, code: str) -> str:
    """A price in a known currency as a decimal text; the currency may stand behind it. Raises BadPrice, BadInput."""
    number, _, named = text.strip().partition(" ")
    if named and money.parse_currency(named) != code:
        raise BadInput(f"“{text[:40]}” is in another currency than {code}")
    return money.format_minor(money.parse_minor(number, code), code)


def details(methods: Sequence[str], pairs: Sequence[str], file: Path | None) -> tuple[MethodDetails, ...]:
    """One's payment details by method.

    `pairs` are `field=value` for all methods or `method:field=value` for one. `file` is TOML with a table per method.
    Without `methods` those of the file are meant. Raises BadInput.
    """
    found = _read_details(file) if file is not None else {}
    wanted = list(dict.fromkeys(methods)) or list(found)
    if not wanted:
        raise BadInput("no payment method: give --method and --detail, or --details-file")
    for method in wanted:
        if not _METHOD.fullmatch(method):
            raise BadInput(f"“{method[:40]}” is not the name of a payment method: write one like sepa-instant")
    for pair in pairs:
        left, equals, value = pair.partition("=")
        method, colon, name = left.rpartition(":")
        if not equals or not name.strip() or not value.strip():
            raise BadInput("a detail is written as field=value or method:field=value, like iban=DE02...")
        if colon and method not in wanted:
            raise BadInput(f"a detail is for the method {method[:40]}, which is not among --method")
        for each in [method] if colon else wanted:
            found.setdefault(each, {})[name.strip()] = value.strip()
    for method in wanted:
        if not found.get(method):
            raise BadInput(f"payment details for {method} are missing: add --detail {method}:field=value")
    return tuple(MethodDetails(method=method, details=found[method]) for method in wanted)


def _read_details(file: Path) -> dict[str, dict[str, str]]:
    try:
        tree: Mapping[str, object] = tomllib.loads(file.read_text("utf-8"))
    except OSError as e:
        raise BadInput(f"the details file {file} can't be read: {e.strerror or e}") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadInput(f"the details file {file} is not TOML with a table per payment method: {e}") from e
    found: dict[str, dict[str, str]] = {}
    for method, table in tree.items():
        if not isinstance(table, dict) or not all(isinstance(v, str) and v for v in table.values()):
            raise BadInput(f"{file}: write [{method}] and its fields below it, each with a text")
        found[method] = dict(table)
    return found
