"""JSON with tagged types: what arguments and results may be, and how they travel.

A value that JSON can say travels as itself. Any other is an object whose key
``"$"`` names its type: ``{"$": "bytes", "v": "aGk="}``. docs/wire-format.md has
the table. What can't be said is an error that names the argument; nothing is
ever changed silently: a subclass of a known type is refused, not flattened.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from math import isfinite
from typing import Any

from psq.errors import SerializationError
from psq.loading import TAG, decode_json, has_tags, load, load_bytes, load_call, short

__all__ = [
    "MAX_DEPTH",
    "TAG",
    "decode_json",
    "dump",
    "dump_bytes",
    "dump_call",
    "encode_json",
    "has_tags",
    "load",
    "load_bytes",
    "load_call",
]

#: Most levels of lists, dicts and the like in each other: what fits on any worker's stack.
MAX_DEPTH = 100

_BIG = 1 << 4096  # a larger int is said in hex: Python reads at most 4,300 decimal digits

encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False, check_circular=False).encode


class _Unsayable(Exception):
    """Collects the path to the culprit while the walk unwinds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: list[str] = []


def dump(value: Any, what: str) -> Any:
    """Turn a value into what JSON can say. A plain value is returned as it is, not copied.

    Args:
        value: The value.
        what: Names it in errors: ``argument 2 of myapp.tasks:f``.

    Raises:
        SerializationError: It, or something in it, can't be said; the text names what and where.
    """
    try:
        return _dump(value, MAX_DEPTH)
    except _Unsayable as culprit:
        where = "".join(culprit.path[:-9:-1]) + ("…" if len(culprit.path) > 8 else "")
        raise SerializationError(f"{what}{f', at {where},' if where else ''} {culprit.text}") from None
    except RecursionError:
        raise SerializationError(f"{what} {_TOO_DEEP}") from None


def dump_call(args: Sequence[Any], kwargs: Mapping[str, Any], function: str) -> tuple[list[Any], dict[str, Any]]:
    """`dump` for the arguments of a call; errors name the argument by its position or name.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        function: ``module:qualname``, for errors.
    """
    name = 0
    key: str | None = None
    try:
        tagged = []
        for name, value in enumerate(args, 1):  # noqa: B007  (read by the handler)
            tagged.append(_dump(value, MAX_DEPTH))
        named = {}
        for key, value in kwargs.items():
            named[key] = _dump(value, MAX_DEPTH)
    except (_Unsayable, RecursionError):
        dump(value, f"argument {name if key is None else repr(key)} of {function}")
        raise
    return tagged, named


def dump_bytes(value: Any, what: str) -> bytes:
    """`dump`, then JSON, UTF-8."""
    try:
        return encode_json(dump(value, what)).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise SerializationError(f"{what} {_TOO_DEEP}") from None


_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep, or refers to itself"


def _dump(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        return value if -_BIG < value < _BIG else {TAG: "int", "v": hex(value)}
    if kind is float:
        return value if isfinite(value) else {TAG: "float", "v": repr(value)}
    if depth <= 0:
        raise _Unsayable(_TOO_DEEP)
    if kind is list:
        return _dump_items(value, depth - 1)
    if kind is dict:
        return _dump_dict(value, depth - 1)
    dumper = _DUMPERS.get(kind)
    if dumper is not None:
        return dumper(value, depth - 1)
    return _dump_other(value, kind, depth - 1)


def _dump_items(value: list[Any], depth: int) -> list[Any]:
    copy: list[Any] | None = None
    try:
        for index, item in enumerate(value):
            said = _dump(item, depth)
            if said is not item:
                if copy is None:
                    copy = value[:]
                copy[index] = said
    except _Unsayable as culprit:
        culprit.path.append(f"[{index}]")
        raise
    return value if copy is None else copy


def _dump_dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    copy: dict[str, Any] | None = None
    try:
        for key, item in value.items():
            if type(key) is not str or key == TAG:
                return _dump_pairs(value, depth)
            said = _dump(item, depth)
            if said is not item:
                if copy is None:
                    copy = value.copy()
                copy[key] = said
    except _Unsayable as culprit:
        if type(key) is str and key != TAG:  # else _dump_pairs has said where
            culprit.path.append(f"[{key!r}]")
        raise
    return value if copy is None else copy


def _dump_pairs(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    pairs = []
    for key, item in value.items():
        try:
            pairs.append([_dump(key, depth), _dump(item, depth)])
        except _Unsayable as culprit:
            culprit.path.append(f"[{short(key)}]")
            raise
    return {TAG: "dict", "v": pairs}


def _sequence(tag: str) -> Callable[[Any, int], Any]:
    def dumper(value: Any, depth: int) -> Any:
        return {TAG: tag, "v": _dump_items(list(value), depth)}

    return dumper


def _with_zone(tag: str) -> Callable[[Any, int], Any]:
    def dumper(value: Any, depth: int) -> Any:
        said: dict[str, Any] = {TAG: tag, "v": value.isoformat()}
        zone = getattr(value.tzinfo, "key", None)  # zoneinfo's; another's offset is in the text
        if isinstance(zone, str):
            said["z"] = zone
        if value.fold:
            said["f"] = 1
        return said

    return dumper


_DUMPERS: dict[type, Callable[[Any, int], Any]] = {
    bytes: lambda value, depth: {TAG: "bytes", "v": b64encode(value).decode("ascii")},
    tuple: _sequence("tuple"),
    set: _sequence("set"),
    frozenset: _sequence("frozenset"),
    datetime: _with_zone("datetime"),
    time: _with_zone("time"),
    date: lambda value, depth: {TAG: "date", "v": value.isoformat()},
    timedelta: lambda value, depth: {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]},
}


def _dump_other(value: Any, kind: type, depth: int) -> Any:
    """What needs a look at its class: types of modules that this one does not import, enums, dataclasses."""
    origin = (kind.__module__, kind.__qualname__)
    if origin == ("decimal", "Decimal"):
        return {TAG: "decimal", "v": str(value)}
    if origin == ("uuid", "UUID"):
        return {TAG: "uuid", "v": str(value)}
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        if isinstance(value, enum.Flag):  # a combination has no name of its own
            return {TAG: "flag", "c": _class_name(kind), "v": _dump(value.value, depth)}
        return {TAG: "enum", "c": _class_name(kind), "v": value.name}
    if hasattr(kind, "__dataclass_fields__"):
        names = _field_names(kind)
        said = {}
        for name in names:
            try:
                said[name] = _dump(getattr(value, name), depth)
            except _Unsayable as culprit:
                culprit.path.append(f".{name}")
                raise
            except AttributeError:
                raise _Unsayable(f"is a {kind.__qualname__} whose field {name!r} is not set") from None
        return {TAG: "dataclass", "c": _class_name(kind), "v": said}
    raise _Unsayable(_why_not(value, kind))


def _why_not(value: Any, kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type) or callable(value):
        return f"is a {name}, which can't be sent: send its name"
    for base in (bool, int, float, str, list, dict, tuple, set, frozenset, bytes, datetime, date):
        if isinstance(value, base):
            return f"is a {name}, which would come back as a plain {base.__name__}: pass {base.__name__}(…) of it"
    if isinstance(value, (bytearray, memoryview)):
        return f"is a {name}: pass bytes(…) of it"
    return f"is a {name}, which can't be sent: send plain values, a dataclass, or an id to look it up by"


def _field_names(kind: type) -> list[str]:
    import dataclasses

    return [field.name for field in dataclasses.fields(kind)]


def _class_name(kind: type) -> str:
    from psq.functions import class_of

    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__":
        raise _Unsayable(
            f"is a {kind.__qualname__} of __main__, which a worker can't import: move the class to a module"
        )
    if class_of(name) is not kind:
        raise _Unsayable(f"is a {kind.__qualname__}, a class that can't be found as {name}: define it in a module")
    return name
