"""Amounts and prices between text and integers. There is no float here, and no rounding that nobody asked for.

Inside, bitcoin is satoshis and a price is minor units of the counter currency for one bitcoin. People write
`0.01`, `0.01btc`, `1000000sat` and `65000.00 EUR`; how many decimals a currency has is ISO 4217's exponent. A text
with more decimals than its unit has is refused, never rounded: it was probably meant for another unit.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.errors import UserError
from protocol.types import MAX_MONEY, SATS_PER_BTC

MAX_MINOR: Final = 10**18
"""The largest amount or price in minor units (`protocol.types.PricePerBtc`)."""

# ISO 4217 (list one): every code whose exponent is not 2.
_EXPONENTS: Final[dict[str, int]] = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF",
         "XOF", "XPF"),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip

_NUMBER: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,18}))?")
_CURRENCY: Final = re.compile(r"[A-Z]{3,5}")
_BTC_UNITS: Final = {"": 8, "btc": 8, "sat": 0, "sats": 0}


class BadAmount(UserError):
    """That is not an amount: write 0.01, 0.01btc or 1000000sat."""

    code = 3030


class BadPrice(UserError):
    """That is not a price: write it like 65000.00 EUR."""

    code = 3031


def exponent(currency: str) -> int:
    """Decimals of a currency: ISO 4217's exponent, and 2 for codes that it does not list."""
    return _EXPONENTS.get(currency, 2)


def parse_sats(text: str) -> int:
    """Satoshis of `0.01`, `0.01btc` (whole bitcoin) or `1000000sat`. Zero is allowed. Raises BadAmount."""
    cleaned = text.strip().replace("_", "").lower()
    number = cleaned.rstrip("abcdefghijklmnopqrstuvwxyz").rstrip()
    unit = cleaned[len(number) :].strip()
    if unit not in _BTC_UNITS:
        raise BadAmount(f"“{_short(text)}” is not an amount of bitcoin: write 0.01, 0.01btc or 1000000sat")
    value = _scaled(number, _BTC_UNITS[unit])
    if value is None:
        what = "satoshis have no decimals" if _BTC_UNITS[unit] == 0 and "." in number else "write 0.01 or 1000000sat"
        raise BadAmount(f"“{_short(text)}” is not an amount of bitcoin: {what}")
    if value > MAX_MONEY:
        raise BadAmount(f"“{_short(text)}” is more bitcoin than there will ever be: for satoshis write “sat” behind it")
    return value


def parse_range(text: str) -> tuple[int, int]:
    """(least, greatest) satoshis of `0.01` or `0.01-0.05`; the unit may stand once, at the end. Raises BadAmount."""
    first, dash, last = text.partition("-")
    if not dash:
        amount = _positive(text)
        return amount, amount
    unit = last.strip().lower().lstrip("0123456789._ ")
    if first.strip()[-1:].isdigit():
        first += unit
    least, greatest = _positive(first), _positive(last)
    if least > greatest:
        raise BadAmount(f"“{_short(text)}”: the first amount of a range is the smaller one")
    return least, greatest


def parse_price(text: str) -> tuple[int, str]:
    """(minor units per bitcoin, currency) of `65000.00 EUR`. Raises BadPrice."""
    number, _, currency = text.strip().rpartition(" ")
    if not number:
        match = re.fullmatch(r"([0-9._]+)([A-Za-z]{3,5})", text.strip())
        number, currency = match.groups() if match else ("", "")
    currency = parse_currency(currency) if currency else ""
    if not currency:
        raise BadPrice(f"“{_short(text)}” is not a price: write the number and the currency, like 65000.00 EUR")
    return parse_minor(number, currency), currency


def parse_currency(text: str) -> str:
    """The currency code in capitals. Raises BadPrice."""
    code = text.strip().upper()
    if not _CURRENCY.fullmatch(code):
        raise BadPrice(f"“{_short(text)}” is not a currency code: write one like EUR")
    return code


def parse_minor(text: str, currency: str) -> int:
    """Minor units of a decimal number of whole units, at least 1. Raises BadPrice."""
    decimals = exponent(currency)
    value = _scaled(text.strip().replace("_", ""), decimals)
    if value is None:
        if "," in text:
            hint = "use a point for the decimals and nothing between thousands"
        else:
            hint = f"{currency} has {decimals} decimals" if decimals else f"{currency} has no decimals"
        raise BadPrice(f"“{_short(text)}” is not an amount of {currency}: {hint}")
    if not 1 <= value <= MAX_MINOR:
        raise BadPrice(f"“{_short(text)}” {currency} is out of range")
    return value


def format_sats(sats: int) -> str:
    """Whole bitcoin with all eight decimals: `0.01000000`; a sign if negative."""
    whole, rest = divmod(abs(sats), SATS_PER_BTC)
    return f"{'-' if sats < 0 else ''}{whole}.{rest:08d}"


def format_minor(value: int, currency: str) -> str:
    """A decimal number of whole units with the currency's decimals, without the code: `65000.00`."""
    decimals = exponent(currency)
    if decimals == 0:
        return str(value)
    whole, rest = divmod(abs(value), 10**decimals)
    return f"{'-' if value < 0 else ''}{whole}.{rest:0{decimals}d}"


def parse_percent(text: str) -> int:
    """Parts per million of `15%`, `1.5%`, `-0.25%` or `1500ppm`; at most four decimals. Raises BadAmount."""
    cleaned = text.strip().lower().replace(" ", "")
    sign = -1 if cleaned.startswith("-") else 1
    body = cleaned[1:] if cleaned.startswith(("+", "-")) else cleaned
    value = _scaled(body[:-3], 0) if body.endswith("ppm") else _scaled(body.removesuffix("%"), 4)
    if value is None or not (body.endswith(("%", "ppm"))):
        raise BadAmount(f"“{_short(text)}” is not a percentage: write 15%, 1.5% or 1500ppm")
    return sign * value


def format_percent(ppm: int) -> str:
    """A share in ppm as percent, without needless zeros: `15%`, `0.25%`."""
    whole, rest = divmod(abs(ppm), 10_000)
    decimals = f"{rest:04d}".rstrip("0")
    return f"{'-' if ppm < 0 else ''}{whole}{'.' + decimals if decimals else ''}%"


def _positive(text: str) -> int:
    value = parse_sats(text)
    if value == 0:
        raise BadAmount("an amount must be more than zero")
    return value


def _scaled(number: str, decimals: int) -> int | None:
    """`number` times 10^decimals, exactly; None when it is no plain number or has more decimals than that."""
    match = _NUMBER.fullmatch(number)
    if match is None:
        return None
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction) > decimals:
        return None
    return int(whole + fraction.ljust(decimals, "0"))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
