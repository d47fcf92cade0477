"""JSON with tagged types: what arguments and results may be, and how they travel.

A value that JSON can say travels as itself. Any other is an object whose key
``"$"`` names its type: ``{"$": "bytes", "v": "aGk="}``. docs/wire-format.md has
the table. What can't be said is an error that names the argument; nothing is
ever changed silently: a subclass of a known type is refused, not flattened.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from math import isfinite
from typing import Any

from psq.errors import SerializationError

__all__ = ["MAX_DEPTH", "TAG", "dump", "dump_bytes", "dump_call", "has_tags", "load", "load_bytes", "load_call"]

#: The key that marks a tagged value.
TAG = "$"
#: Most levels of lists, dicts and the like in each other: what fits on any worker's stack.
MAX_DEPTH = 200

_MARK = b'"$"'
_BIG = 1 << 4096  # a larger int is said in hex: Python reads at most 4,300 decimal digits

AllowModule = Callable[[str], bool]

encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False, check_circular=False).encode


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


decode_json = json.JSONDecoder(parse_constant=_no_constant).decode


class _Unsayable(Exception):
    """Collects the path to the culprit while the walk unwinds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: list[str] = []


# to JSON


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
            culprit.path.append(f"[{_short(key)}]")
            raise
    return {TAG: "dict", "v": pairs}


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


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


# from JSON


def has_tags(data: bytes) -> bool:
    """False when the JSON is its own value, so that no walk is needed. Cheap: a look for the mark."""
    return _MARK in data


def load(tagged: Any, allow_module: AllowModule) -> Any:
    """Turn tagged JSON back into the value. `tagged` itself is not changed.

    What holds no tagged value is returned as it is, *not* copied: whoever needs the
    tagged form again after the value was handed out decodes the document again.

    Args:
        tagged: From `dump`, through JSON.
        allow_module: Tells whether classes of a module (dataclasses, enums) may be made.
            An allowed module is imported where it is not there yet.

    Raises:
        SerializationError: An unknown tag, a class that may not be made or is not there,
            or a value that does not fit its tag. No other error leaves here.
    """
    try:
        return _load(tagged, allow_module)
    except SerializationError:
        raise
    except RecursionError:
        raise SerializationError("the value is nested too deeply") from None
    except Exception as error:  # what the constructors think of a value that does not fit
        raise SerializationError(f"a tagged value can't be read: {type(error).__name__}: {error}") from error


def load_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], allow_module: AllowModule
) -> tuple[list[Any], dict[str, Any]]:
    """`load` for the arguments of a call."""
    loaded = load(list(args), allow_module), load(dict(kwargs), allow_module)
    if type(loaded[1]) is not dict or any(type(name) is not str for name in loaded[1]):
        raise SerializationError("the keyword arguments are no object with names")
    return loaded


def load_bytes(data: bytes, allow_module: AllowModule) -> Any:
    """`load` for what `dump_bytes` made.

    Raises:
        SerializationError: Not JSON, or as in `load`.
    """
    try:
        tagged = decode_json(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise SerializationError(f"not a JSON value: {error}") from None
    return load(tagged, allow_module) if _MARK in data else tagged


def _load(value: Any, allow: AllowModule) -> Any:
    kind = type(value)
    if kind is list:
        items: list[Any] | None = None
        for index, item in enumerate(value):
            loaded = _load(item, allow)
            if loaded is not item:
                if items is None:
                    items = value[:]
                items[index] = loaded
        return value if items is None else items
    if kind is not dict:
        return value
    if TAG in value:
        loader = _LOADERS.get(value[TAG]) if type(value[TAG]) is str else None
        if loader is None:
            raise SerializationError(f"unknown tag {_short(value[TAG])}: written by a newer psq, or not by psq")
        return loader(value, allow)
    copy: dict[str, Any] | None = None
    for key, item in value.items():
        loaded = _load(item, allow)
        if loaded is not item:
            if copy is None:
                copy = value.copy()
            copy[key] = loaded
    return value if copy is None else copy


def _load_float(value: Any, allow: AllowModule) -> float:
    if value["v"] not in ("nan", "inf", "-inf"):
        raise SerializationError(f"a tagged float is nan, inf or -inf, not {_short(value['v'])}")
    return float(value["v"])


def _load_zoned(cls: type[datetime] | type[time]) -> Callable[[Any, AllowModule], Any]:
    def loader(value: Any, allow: AllowModule) -> Any:
        moment = cls.fromisoformat(value["v"])
        zone = value.get("z")
        if zone is not None:
            from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

            try:
                moment = moment.replace(tzinfo=ZoneInfo(zone))
            except ZoneInfoNotFoundError:
                if moment.tzinfo is None:
                    raise  # else the offset in the text says the same instant
        return moment.replace(fold=1) if value.get("f") else moment

    return loader


def _load_decimal(value: Any, allow: AllowModule) -> Any:
    from decimal import Decimal

    return Decimal(value["v"])


def _load_uuid(value: Any, allow: AllowModule) -> Any:
    from uuid import UUID

    return UUID(value["v"])


def _load_bytes(value: Any, allow: AllowModule) -> bytes:
    try:
        return b64decode(value["v"], validate=True)
    except Base64Error as error:
        raise SerializationError(f"tagged bytes are no base64: {error}") from None


def _load_class(value: Any, allow: AllowModule) -> type:
    from psq.functions import class_of

    name = value["c"]
    module = name.partition(":")[0]
    if not allow(module):
        raise SerializationError(f"the class {name} may not be made here: its module is not allowed or not imported")
    if module not in sys.modules:
        from importlib import import_module

        import_module(module)
    cls = class_of(name)
    if cls is None:
        raise SerializationError(f"there is no class {name} here")
    return cls


def _load_enum(value: Any, allow: AllowModule) -> Any:
    from enum import Enum

    cls = _load_class(value, allow)
    if not issubclass(cls, Enum):
        raise SerializationError(f"{value['c']} is no enum")
    member = cls.__members__.get(value["v"])
    if member is None:
        raise SerializationError(f"the enum {value['c']} has no {_short(value['v'])} here")
    return member


def _load_flag(value: Any, allow: AllowModule) -> Any:
    from enum import Flag

    cls = _load_class(value, allow)
    if not issubclass(cls, Flag):
        raise SerializationError(f"{value['c']} is no flag enum")
    return cls(_load(value["v"], allow))


def _load_dataclass(value: Any, allow: AllowModule) -> Any:
    """Made as it was, field by field: neither ``__init__`` nor ``__post_init__`` runs."""
    import dataclasses

    cls = _load_class(value, allow)
    if not dataclasses.is_dataclass(cls):
        raise SerializationError(f"{value['c']} is no dataclass")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = set(value["v"]) - set(fields)
    if unknown:
        raise SerializationError(f"the dataclass {value['c']} has no field {min(unknown)!r} here")
    made: Any = object.__new__(cls)
    for name, field in fields.items():
        if name in value["v"]:
            item = _load(value["v"][name], allow)
        elif field.default is not dataclasses.MISSING:  # added since it was sent
            item = field.default
        elif field.default_factory is not dataclasses.MISSING:
            item = field.default_factory()
        else:
            raise SerializationError(f"the dataclass {value['c']} needs a field {name!r}, which was not sent")
        object.__setattr__(made, name, item)
    return made


def _load_pairs(value: Any, allow: AllowModule) -> dict[Any, Any]:
    return {_load(key, allow): _load(item, allow) for key, item in value["v"]}


_LOADERS: dict[str, Callable[[Any, AllowModule], Any]] = {
    "int": lambda value, allow: int(value["v"], 16),
    "float": _load_float,
    "bytes": _load_bytes,
    "tuple": lambda value, allow: tuple(_load(value["v"], allow)),
    "set": lambda value, allow: set(_load(value["v"], allow)),
    "frozenset": lambda value, allow: frozenset(_load(value["v"], allow)),
    "dict": _load_pairs,
    "datetime": _load_zoned(datetime),
    "time": _load_zoned(time),
    "date": lambda value, allow: date.fromisoformat(value["v"]),
    "timedelta": lambda value, allow: timedelta(*value["v"]),
    "decimal": _load_decimal,
    "uuid": _load_uuid,
    "enum": _load_enum,
    "flag": _load_flag,
    "dataclass": _load_dataclass,
}
