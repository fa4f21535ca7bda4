"""From raw values to typed ones, for nested frozen dataclasses: the machinery under `config`.

A setting has a dotted key (`node.port`) and the type of its field. A source has raw values by key: from a file they
have TOML's types, from the environment and flags they are text. What does not fit raises BadConfig, one line with the
place, the key, what was expected and what was there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum, IntEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from msgspec import Meta

from protocol.errors import UserError

T = TypeVar("T")

# `Path | None` makes the one, `Annotated[int, ...] | None` the other.
_UNIONS: Final = (UnionType, Union)
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class BadConfig(UserError):
    """The configuration has an error."""

    code = 3100


@dataclass(frozen=True, slots=True)
class Source:
    """Raw values by dotted key.

    `name` tells a person where they came from; `text` says that they may be written out as text; relative paths start
    from `base`; `prefix` makes a key the name of an environment variable.
    """

    name: str
    values: Mapping[str, object]
    text: bool = False
    base: Path | None = None
    prefix: str = ""

    def place(self, key: str) -> str:
        """How to name the place of `key` to the user."""
        return f"{self.name}: {variable(self.prefix, key) if self.prefix else key}"


def variable(prefix: str, key: str) -> str:
    """The environment variable of a setting."""
    return prefix + key.replace(".", "_").upper()


class Schema:
    """The settings of a dataclass: `leaves` is every dotted key with its type, `sections` the nested dataclasses."""

    def __init__(self, cls: type[Any]) -> None:
        """Read the annotations once. Sections do not nest."""
        hints = get_type_hints(cls, include_extras=True)
        self.sections = frozenset(f.name for f in fields(cls) if is_dataclass(hints[f.name]))
        self.leaves: dict[str, Any] = {}
        for f in fields(cls):
            if f.name in self.sections:
                inner = get_type_hints(hints[f.name], include_extras=True)
                self.leaves |= {f"{f.name}.{deep.name}": inner[deep.name] for deep in fields(hints[f.name])}
            else:
                self.leaves[f.name] = hints[f.name]

    def flatten(self, tree: Mapping[str, object], where: str) -> dict[str, object]:
        """The values of a TOML document by dotted key. Raises BadConfig for sections that do not exist or nest."""
        found: dict[str, object] = {}
        for name, value in tree.items():
            if name not in self.sections:
                if isinstance(value, dict):
                    raise BadConfig(f"{where}: [{name}] is not a section{suggest(name, self.sections)}")
                found[name] = value
            elif not isinstance(value, dict):
                raise BadConfig(f"{where}: {name} is a section: write [{name}] and its settings below it")
            else:
                found |= {f"{name}.{inner}": deep for inner, deep in value.items()}
        return found

    def check_known(self, source: Source) -> None:
        """Refuse keys that are no settings. Raises BadConfig."""
        for key in source.values:
            if key not in self.leaves:
                raise BadConfig(f"{source.place(key)} is not a setting{suggest(key, self.leaves)}")

    def value_at(self, source: Source, key: str) -> Any:  # noqa: ANN401  (the type is the field's)
        """The typed value of `key` in `source`. Raises BadConfig."""
        hint = self.leaves[key]
        raw = source.values[key]
        try:
            value = _convert(raw, hint, text=source.text)
        except ValueError:
            # A misplaced secret must not reach a terminal's scrollback or a log.
            shown = "a value that is not shown" if key.endswith("password") else repr(raw)
            if len(shown) > 80:
                shown = shown[:79] + "…"
            raise BadConfig(f"{source.place(key)}: expected {expected(hint)}, got {shown}") from None
        if isinstance(value, Path) and source.base is not None:
            return source.base / value
        return value


def suggest(name: str, among: Iterable[str]) -> str:
    """The end of a complaint about an unknown name: the one that was probably meant."""
    close = get_close_matches(name, list(among), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ": remove it"


def build(cls: type[T], values: Mapping[str, object], prefix: str = "") -> T:
    """The dataclass of typed values by dotted key; what is absent keeps its default."""
    hints = get_type_hints(cls)
    arguments: dict[str, object] = {}
    for f in fields(cast("Any", cls)):
        key = prefix + f.name
        if is_dataclass(hints[f.name]):
            arguments[f.name] = build(cast("type[object]", hints[f.name]), values, f"{key}.")
        elif key in values:
            arguments[f.name] = values[key]
    return cls(**arguments)


def expected(hint: Any) -> str:  # noqa: ANN401  (a type, or what typing makes of several)
    """What a value of this type looks like, for people."""
    origin = get_origin(hint)
    if origin is Annotated:
        meta = get_args(hint)[1]
        return f"a whole number from {meta.ge} to {meta.le}"
    if origin in _UNIONS:
        return expected(next(arg for arg in get_args(hint) if arg is not NoneType))
    if origin is tuple:
        return f"a list, each {expected(get_args(hint)[0])}"
    if origin is Literal:
        return _either(get_args(hint))
    if issubclass(hint, Enum):
        return _either(tuple(_enum_name(member) for member in hint))
    return {bool: "true or false", str: "a text", Path: "a path", int: "a whole number"}[hint]


def value_text(value: object) -> str:
    """A typed value as it is written."""
    if isinstance(value, Enum):
        return _enum_name(value)
    if isinstance(value, tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def toml_text(value: object) -> str:
    """A typed value as TOML writes it."""
    if isinstance(value, bool | int) and not isinstance(value, Enum):
        return value_text(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON does not.
    return json.dumps(value_text(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _convert(value: object, hint: Any, *, text: bool) -> Any:  # noqa: ANN401  (from any type to any)
    """`value` as the type `hint` says. Raises ValueError."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, meta = get_args(hint)
        number = _convert(value, inner, text=text)
        if isinstance(meta, Meta) and not cast("int", meta.ge) <= number <= cast("int", meta.le):
            raise ValueError
        return number
    if origin in _UNIONS:
        inner = next(arg for arg in get_args(hint) if arg is not NoneType)
        return None if text and value in ("", "none") else _convert(value, inner, text=text)
    if origin is tuple:
        if text and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(_convert(part, get_args(hint)[0], text=text) for part in value)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    return _scalar(value, hint, text=text)


def _scalar(value: object, hint: type[Any], *, text: bool) -> object:
    if isinstance(value, hint) and type(value) is not bool:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004  (one line for the user is made of either)
    if issubclass(hint, Path) and value and "\0" not in value:
        return Path(value).expanduser()
    if issubclass(hint, Enum):
        named = {_enum_name(member): member for member in hint}
        if value in named:
            return named[value]
    if text and hint is bool and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if text and hint is int and re.fullmatch(r"-?[0-9][0-9_]{0,20}", value):
        return int(value)
    raise ValueError


def _enum_name(member: Enum) -> str:
    return member.name.lower() if isinstance(member, IntEnum) else str(member.value)


def _either(options: tuple[str, ...]) -> str:
    return " or ".join((", ".join(options[:-1]), options[-1])) if len(options) > 1 else options[0]
