"""From the fields of a form to the body of a request.

A field's name says what it becomes: `amount_sats:sats` is an amount that a person typed and becomes satoshis. Empty
fields are left out, so that the request's own defaults hold. What can't be read is refused with the field's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec

from p2pnode import money
from p2pnode.api.errors import BadRequest
from p2pnode.api.schema import Request
from p2pnode.console import inputs
from protocol.errors import UserError

R = TypeVar("R", bound=Request)


def _methods(text: str) -> list[dict[str, object]]:
    """Payment details as TOML: a table per method."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise inputs.BadInput(f'write [method] and below it its fields, like iban = "DE02..." ({e})') from None
    found: list[dict[str, object]] = []
    for method, table in tree.items():
        if not isinstance(table, dict) or not table or not all(isinstance(v, str) and v for v in table.values()):
            raise inputs.BadInput(f"write [{method}] and its fields below it, each with a text in quotes")
        found.append({"method": method, "details": table})
    return found


def _details(text: str) -> dict[str, str]:
    """Payment details, a line each: `field = value`."""
    found = {}
    for line in filter(str.strip, text.splitlines()):
        name, equals, value = line.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise inputs.BadInput("write a line for each detail, like: iban = DE02...")
        found[name.strip()] = value.strip().strip('"')
    return found


def _range(text: str) -> dict[str, int]:
    least, most = money.parse_range(text)
    return {"amount_min_sats": least, "amount_max_sats": most}


def _price(text: str) -> dict[str, str]:
    minor, currency = money.parse_price(text)
    return {"price": money.format_minor(minor, currency), "currency": currency}


_KINDS: Final[dict[str, Callable[[str], Any]]] = {
    "text": str,
    "int": lambda text: inputs.whole(text, 0, 2**31, "a number"),
    "sats": inputs.sats,
    "send": inputs.send_amount,
    "share": inputs.share,
    "margin": inputs.margin,
    "rate": inputs.fee_rate,
    "duration": inputs.duration,
    "currency": inputs.currency,
    "words": lambda text: text.replace(",", " ").split(),
    "yes": lambda text: text == "yes",
    "methods": _methods,
    "details": _details,
    "range": _range,
    "price": _price,
}
"""What a field's text becomes. A result that is a dictionary under the name `*` is several fields at once."""


def read(fields: Iterable[tuple[str, str]], cls: type[R], **more: object) -> R:
    """The request that the fields make, with `more` beside them. Raises BadRequest and what the fields raise."""
    values: dict[str, object] = dict(more)
    for name, text in fields:
        if name.startswith("_") or not text.strip():
            continue
        key, _, kind = name.partition(":")
        parse = _KINDS.get(kind or "text")
        if parse is None:
            raise BadRequest(f"the field {key} is of no kind that this page knows")
        try:
            value = parse(text.strip())
        except UserError as e:
            label = "" if key == "*" else f"{key.partition('_')[0]}: "
            raise inputs.BadInput(f"{label}{e.detail}") from None
        if key == "*" and isinstance(value, dict):
            values |= value
        else:
            values[key] = value
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as e:
        raise BadRequest(str(e)) from None
