"""From tagged JSON back to values; `psq.serializers` is the other way, and the place to import from."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from psq.errors import SerializationError

__all__ = ["TAG", "AllowModule", "decode_json", "has_tags", "load", "load_bytes", "load_call", "short"]

#: The key that marks a tagged value.
TAG = "$"

_MARK = b'"$"'

#: Tells whether classes of a module may be made.
AllowModule = Callable[[str], bool]


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


decode_json = json.JSONDecoder(parse_constant=_no_constant).decode


def short(value: Any) -> str:
    """The repr of a value, cut for errors; never raises."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


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
    return [load(value, allow_module) for value in args], {
        name: load(value, allow_module) for name, value in kwargs.items()
    }


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
            raise SerializationError(f"unknown tag {short(value[TAG])}: written by a newer psq, or not by psq")
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
        raise SerializationError(f"a tagged float is nan, inf or -inf, not {short(value['v'])}")
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


def _load_timedelta(value: Any, allow: AllowModule) -> timedelta:
    days, seconds, microseconds = value["v"]
    return timedelta(days, seconds, microseconds)


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
        raise SerializationError(f"the enum {value['c']} has no {short(value['v'])} here")
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
    "timedelta": _load_timedelta,
    "decimal": _load_decimal,
    "uuid": _load_uuid,
    "enum": _load_enum,
    "flag": _load_flag,
    "dataclass": _load_dataclass,
}
