"""What a log line may not say, and how it is taken out (rule: what is not in a log can't leak from it).

Three nets, each for what slips through the one before. *Known values*: whoever holds a secret hands it to `protect`,
and it is masked wherever it turns up. *Names*: what stands behind `passphrase=`, `details:` and the like is masked,
brackets and all. *Shapes*: mnemonics, extended private keys, WIF keys, logins in addresses, IBANs, e-mail and phone
numbers are known by their looks (an IBAN by its check digits too, so that ids do not fall to it). IP and Bitcoin
addresses are shortened unless the user wants them whole.

It runs over the finished line, so a library's messages and the text of exceptions pass through it as well.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache
from typing import Final

from mnemonic import Mnemonic

MASK: Final = "[redacted]"
MNEMONIC_RUN: Final = 6
"""Words of the BIP39 list in a row that count as a mnemonic, or a part of one. English rarely has so many."""

MAX_KNOWN: Final = 1_000
"""Values that are remembered as secret; the oldest is forgotten first."""

SECRET_NAMES: Final = frozenset(
    {
        "account", "address_line", "authorization", "beneficiary", "bic", "cookie", "details", "email", "entropy",
        "holder", "iban", "mnemonic", "note", "own_details", "passphrase", "passwd", "password", "payment_details",
        "payment_note", "peer_details", "phone", "private_key", "salt", "secret", "secret_key", "seed_words", "terms",
        "token", "xprv",
    }
)  # fmt: skip
"""Fields whose value is never shown, whatever it is."""

_NAMED: Final = re.compile(rf"(?i)\b(?:{'|'.join(sorted(SECRET_NAMES, key=len, reverse=True))})\b[\"']?\s*[:=]\s*")
_OPEN: Final = "([{"
_CLOSE: Final = ")]}"
_QUOTES: Final = "\"'"
_BEFORE_QUOTE: Final = " b=:,([{"
_OPENING: Final = re.compile(r"[A-Za-z_.]*[(\[{]|b?[\"']")
_PROSE_ENDS: Final = ";\n"
_VALUE_ENDS: Final = ",; \t\n"
_WORD: Final = re.compile(r"[A-Za-z]+")
_GAP: Final = re.compile(r"[^A-Za-z]{1,8}")
_SHAPES: Final = (
    re.compile(r"\b[tuvxyzUVYZ]prv[1-9A-HJ-NP-Za-km-z]{20,}"),
    re.compile(r"\b[59KLc][1-9A-HJ-NP-Za-km-z]{50,51}\b"),
    re.compile(r"__cookie__:[^\s\"'@]+"),
    re.compile(r"(?i)\b(?:basic|bearer)\s+[A-Za-z0-9+/._~\-]{8,}=*"),
    re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]*(?=@)"),
    # With a port behind it, it is a seed: public, and needed to mend a configuration.
    re.compile(r"\b(?>[A-Za-z0-9._%+\-]{1,90}@(?:[A-Za-z0-9\-]{1,63}\.)+[A-Za-z]{2,24})\b(?!:\d)"),
    re.compile(r"(?<![\w+])\+[1-9](?:[ \-]?\d){7,14}\b"),
)
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SEGWIT: Final = re.compile(r"(?i)\b(bc1|tb1|bcrt1)[02-9ac-hj-np-z]{30,90}\b")
_BASE58: Final = re.compile(r"\b[123mn][1-9A-HJ-NP-Za-km-z]{25,34}\b")
_IPV4: Final = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")


class Redactor:
    """Takes secrets out of text."""

    def __init__(self, *, show_addresses: bool = False) -> None:
        """`show_addresses` leaves IP and Bitcoin addresses as they are; secrets go all the same."""
        self.show_addresses = show_addresses
        self._known: dict[str, None] = {}
        self._pattern: re.Pattern[str] | None = None

    def protect(self, *values: str) -> None:
        """Mask these values from now on. Values under four characters are left: they would hit everything."""
        fresh = [v for v in dict.fromkeys(values) if len(v) >= 4 and v not in self._known]
        if fresh:
            self._known |= dict.fromkeys(fresh)
            for oldest in list(self._known)[: max(0, len(self._known) - MAX_KNOWN)]:
                del self._known[oldest]
            ordered = sorted(self._known, key=len, reverse=True)
            self._pattern = re.compile("|".join(rf"(?<!\w){re.escape(v)}(?!\w)" for v in ordered))

    def text(self, text: str) -> str:
        """`text` without what it may not say."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _mask_named(text)
        text = _mask_words(text)
        for shape in _SHAPES:
            text = shape.sub(MASK, text)
        text = _IBAN.sub(lambda m: MASK if _is_iban(m[0]) else m[0], text)
        if not self.show_addresses:
            text = _SEGWIT.sub(_shorten, text)
            text = _BASE58.sub(lambda m: _shorten(m) if any(c.isupper() for c in m[0]) else m[0], text)
            text = _IPV4.sub(_shorten_ip, text)
            text = _IPV6.sub(_shorten_ip, text)
        return text

    def field(self, name: str, value: object) -> object:
        """A field's value as it may be shown. Numbers, booleans and None stay what they are; bytes become hex."""
        if name.lower() in SECRET_NAMES:
            return MASK
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, bytes):
            return value.hex()
        return self.text(str(value))


def _mask_named(text: str) -> str:
    out: list[str] = []
    at = 0
    while (match := _NAMED.search(text, at)) is not None:
        out += [text[at : match.end()], MASK]
        at = _end_of_value(text, match.end())
    return "".join(out) + text[at:] if out else text


def _end_of_value(text: str, start: int) -> int:
    """Where the value that begins at `start` ends; brackets and quotes are followed to their end.

    `name: value` is prose and runs on to a semicolon or the line's end; `name=value` ends at a space or comma. What is
    never closed runs to the end of the text: too much is masked rather than too little.
    """
    ends = _PROSE_ENDS if text[start - 1] == " " else _VALUE_ENDS
    opening = _OPENING.match(text, start)
    # A value that opens with a bracket or quote ends where that closes.
    whole = opening is not None
    depth = 0
    quote = ""
    for i in range(start, len(text)):
        char = text[i]
        if quote:
            if char == quote:
                quote = ""
        elif char in _QUOTES and (i == start or text[i - 1] in _BEFORE_QUOTE):
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            if depth == 0:
                return i
            depth -= 1
        elif depth == 0 and char in ends:
            return i
        if whole and depth == 0 and not quote and char in _CLOSE + _QUOTES:
            return i + 1
    return len(text)


@cache
def _wordlist() -> frozenset[str]:
    return frozenset(Mnemonic("english").wordlist)


def _mask_words(text: str) -> str:
    runs: list[tuple[int, int]] = []
    start = end = count = 0
    for word in _WORD.finditer(text):
        listed = word[0].lower() in _wordlist()
        joined = count > 0 and _GAP.fullmatch(text, end, word.start()) is not None
        if not (listed and joined):
            if count >= MNEMONIC_RUN:
                runs.append((start, end))
            start, count = word.start(), 0
        if listed:
            end = word.end()
            count += 1
    if count >= MNEMONIC_RUN:
        runs.append((start, end))
    for begin, stop in reversed(runs):
        text = text[:begin] + MASK + text[stop:]
    return text


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    digits = "".join(str(int(c, 36)) for c in compact[4:] + compact[:4])
    return int(digits) % 97 == 1


def _shorten(match: re.Match[str]) -> str:
    return f"{match[0][:6]}…{match[0][-4:]}"


def _shorten_ip(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]
    if address.is_loopback or address.is_unspecified:
        return match[0]
    if address.version == 4:
        return ".".join([*match[0].split(".")[:2], "x", "x"])
    return ":".join(address.exploded.split(":")[:2]) + ":x"
