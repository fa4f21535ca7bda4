"""Templates, and how values are written in them. Everything is escaped; what a stranger wrote becomes harmless."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import segno
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from p2pnode.console.cells import clean, span
from p2pnode.money import format_percent, format_sats

_FOLDER: Final = Path(__file__).parent / "templates"
SHORT: Final = 12


def _when(unix: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _short(text: str) -> str:
    """An id in a list: a persona by its end, which is hard to imitate with its checksum."""
    kind, one, rest = text.partition("1")
    return f"{kind}1…{rest[-8:]}" if one and kind in ("persona", "node") else text[:SHORT]


def _rate(sats_per_kvb: int) -> str:
    return f"{sats_per_kvb / 1000:g} sat/vB"


def _qr(text: str) -> Markup:
    """An SVG of a text's code."""
    return Markup(segno.make_qr(text).svg_inline(scale=5, border=3, dark="#000", light="#fff"))  # noqa: S704  (ours)


_ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters |= {
    "btc": format_sats,
    "clean": clean,
    "percent": format_percent,
    "qr": _qr,
    "rate": _rate,
    "short": _short,
    "span": span,
    "when": _when,
    "words": lambda text: text.replace("-", " ").replace("_", " "),
}


def render(template: str, facts: dict[str, Any]) -> str:
    """The template as HTML."""
    return _ENVIRONMENT.get_template(template).render(facts)
