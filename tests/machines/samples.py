"""Values made from types: the least value that a type allows. So a new event is in every exhaustive test by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from msgspec import inspect as mi
from msgspec.structs import replace


def members(union: object) -> list[type]:
    """The classes of a union, nested ones included."""
    found: list[type] = []
    for member in get_args(union):
        found += members(member) if get_args(member) else [member]
    return found


def sample(cls: type) -> Any:  # noqa: ANN401
    """A value of a Struct."""
    made = _value(mi.type_info(cls))
    assert isinstance(made, cls)
    return made


def variants(cls: type) -> list[Any]:
    """Values of a Struct: for each field that is one of few things, all that it may be, one field at a time."""
    first = sample(cls)
    found = [first]
    for field in mi.type_info(cls).fields:  # type: ignore[attr-defined]
        for value in _choices(field.type):
            changed = replace(first, **{field.encode_name: value})
            if changed not in found:
                found.append(changed)
    return found


def _choices(info: mi.Type) -> Iterable[Any]:
    match info:
        case mi.LiteralType():
            return info.values
        case mi.EnumType():
            return tuple(info.cls)
        case mi.BoolType():
            return (False, True)
        case mi.IntType():
            low = info.ge or 0
            return (low, low + 1, info.le if info.le is not None else 1_000_000)
        case mi.Metadata():
            return _choices(info.type)
        case mi.UnionType():
            structs = [t.cls for t in info.types if isinstance(t, mi.StructType)]
            empty = [None] if any(isinstance(t, mi.NoneType) for t in info.types) else []
            return [*empty, *(sample(cls) for cls in structs)]
        case _:
            return ()


def _value(info: mi.Type) -> Any:  # noqa: ANN401, PLR0911
    match info:
        case mi.StructType():
            required = [f for f in info.fields if f.required]
            return info.cls(**{f.name: _value(f.type) for f in required})
        case mi.IntType():
            return info.ge or 0
        case mi.BoolType():
            return False
        case mi.StrType():
            return "EUR" if info.pattern else "x" * (info.min_length or 0)
        case mi.BytesType():
            return bytes(info.min_length or 0)
        case mi.LiteralType():
            return info.values[0]
        case mi.EnumType():
            return next(iter(info.cls))
        case mi.TupleType():
            return tuple(_value(t) for t in info.item_types)
        case mi.VarTupleType():
            return tuple(_value(info.item_type) for _ in range(info.min_length or 0))
        case mi.UnionType():
            return None if any(isinstance(t, mi.NoneType) for t in info.types) else _value(info.types[0])
        case mi.NoneType():
            return None
        case mi.Metadata():
            return _value(info.type)
        case _:
            raise AssertionError(f"no sample of {info}")
