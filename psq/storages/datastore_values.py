"""Keys, index values and properties of Datastore entities, as raw protobuf."""

from __future__ import annotations

import functools
import hashlib
import math
import time
import zlib
from collections.abc import Sequence
from typing import Any

from psq.errors import StorageError
from psq.storages.datastore_api import pb
from psq.storages.datastore_packing import Packed, unpack
from psq.storages.datastore_wire import field, tag_of, varint

__all__ = [
    "IX_SHARDS",
    "blob_property",
    "is_expired",
    "ix_name",
    "ix_shard",
    "key_name",
    "milliseconds",
    "packed_fields",
    "put_blob",
    "put_float",
    "put_int",
    "put_ix",
    "put_packed",
    "put_string",
    "put_text",
    "put_time",
    "read",
    "read_text",
    "string_property",
    "whole_seconds",
]

#: Shards of `ix`: an increasing indexed value takes 500 writes a second, so 16 take 8,000.
IX_SHARDS = "0123456789abcdef"
#: Most bytes of a name within `ix`; an indexed string may have 1,500 in all.
IX_NAME_BYTES = 400
#: Longest id that is its own key name.
KEY_CHARACTERS = 400
#: Latest time that 13 digits of milliseconds can say.
LAST_MS = 9_999_999_999_999
#: Seconds that a TTL timestamp can say: to the end of the year 9999.
LAST_SECOND = 253_402_300_799


# keys and index values


def key_name(id: str) -> str:
    """The key name for an id: the id itself, where it is of the usual kind.

    A name may have 1,500 bytes and must not begin with ``__``; an id that is otherwise
    (a message not written by psq) becomes its beginning and a hash, and begins with a colon.
    """
    if id.isascii() and 0 < len(id) <= KEY_CHARACTERS and not id.startswith("__"):
        return id
    data = id.encode("utf-8", "surrogatepass")
    return f":{id[:100].encode('ascii', 'replace').decode()}~{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def milliseconds(at: float) -> int:
    """Unix time in whole milliseconds, within 13 digits."""
    return min(LAST_MS, max(0, int(at * 1000)))


def ix_shard(id: str) -> str:
    """The shard of an id: one hex digit."""
    return IX_SHARDS[zlib.crc32(id.encode("utf-8", "replace")) & 15]


@functools.lru_cache(maxsize=4096)
def ix_name(name: str) -> str:
    """A queue's or function's name as it stands in `ix`: without colons, and short."""
    escaped = name.encode("utf-8", "replace").decode().replace("%", "%25").replace(":", "%3A")
    data = escaped.encode()
    if len(data) <= IX_NAME_BYTES:
        return escaped
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    return data[: IX_NAME_BYTES - 17].decode("utf-8", "ignore") + "~" + digest


# values


def put_text(properties: Any, name: str, value: str) -> None:
    """Set an unindexed text; one that UTF-8 can't say (lone surrogates) becomes a blob."""
    prop = properties[name]
    try:
        prop.string_value = value
    except UnicodeEncodeError:
        prop.blob_value = value.encode("utf-8", "surrogatepass")
    prop.exclude_from_indexes = True


def put_string(properties: Any, name: str, value: str) -> None:
    """Set an unindexed text that UTF-8 can say."""
    prop = properties[name]
    prop.string_value = value
    prop.exclude_from_indexes = True


def put_float(properties: Any, name: str, value: float) -> None:
    """Set an unindexed number."""
    prop = properties[name]
    prop.double_value = value
    prop.exclude_from_indexes = True


def put_int(properties: Any, name: str, value: int) -> None:
    """Set an unindexed integer of 64 bits."""
    prop = properties[name]
    prop.integer_value = value
    prop.exclude_from_indexes = True


def put_blob(properties: Any, name: str, value: bytes) -> None:
    """Set unindexed bytes."""
    prop = properties[name]
    prop.blob_value = value
    prop.exclude_from_indexes = True


def put_time(properties: Any, name: str, at: float) -> None:
    """Set an unindexed timestamp in whole seconds: the TTL property."""
    prop = properties[name]
    prop.timestamp_value.seconds = whole_seconds(at)
    prop.exclude_from_indexes = True


def whole_seconds(at: float) -> int:
    """Unix time in whole seconds, rounded up, within what a timestamp can say."""
    return min(LAST_SECOND, max(0, math.ceil(at)))


def is_expired(expires_at: float | None) -> bool:
    """True for what is over, whether or not a TTL policy has deleted it."""
    return expires_at is not None and expires_at <= time.time()


def put_ix(properties: Any, *values: str) -> None:
    """Set the one property that is indexed."""
    array = properties["ix"].array_value.values
    for value in values:
        array.add().string_value = value


def read(properties: Any, name: str, default: Any = None) -> Any:
    """The value of a property, or the default where it is missing or null."""
    if name not in properties:
        return default
    prop = properties[name]
    kind = prop.WhichOneof("value_type")
    return default if kind is None or kind == "null_value" else getattr(prop, kind)


def read_text(properties: Any, name: str) -> str:
    """The value of a property that `put_text` set, "" where it is missing."""
    value = read(properties, name, "")
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else str(value)


def put_packed(properties: Any, packed: Packed) -> None:
    """Set packed content, or how many parts have it."""
    put_int(properties, "size", packed.size)
    if packed.parts:
        put_string(properties, "token", packed.token)
        put_int(properties, "parts", packed.parts)
    else:
        put_blob(properties, "packed", packed.data)


def packed_fields(properties: Any, parts: Sequence[bytes] | None) -> list[bytes | None] | None:
    """The packed fields of a head, or None where they stand in plain properties."""
    size = read(properties, "size")
    if size is None:
        return None
    data = read(properties, "packed")
    if data is None:
        if parts is None:
            raise StorageError("parts of stored content are missing")
        data = b"".join(parts)
    return unpack(data, size)


# the same as bytes


class _Tags:
    """What stands before the fields of a property."""

    def __init__(self) -> None:
        entity = pb().Entity()
        value = entity.properties["x"]
        entry = type(entity).DESCRIPTOR.fields_by_name["properties"].message_type
        self.properties = tag_of(entity, "properties")
        self.key = varint(entry.fields_by_name["key"].number << 3 | 2)
        self.value = varint(entry.fields_by_name["value"].number << 3 | 2)
        self.blob = tag_of(value, "blob_value")
        self.string = tag_of(value, "string_value")
        value.exclude_from_indexes = True
        self.unindexed: bytes = value.SerializeToString()


@functools.cache
def _tags() -> _Tags:
    return _Tags()


@functools.cache
def _name_field(name: str) -> bytes:
    return field(_tags().key, name.encode())


def _property(name: str, tag: bytes, data: bytes) -> bytes:
    tags = _tags()
    value = field(tags.value, field(tag, data) + tags.unindexed)
    return field(tags.properties, _name_field(name) + value)


def blob_property(name: str, data: bytes) -> bytes:
    """Unindexed bytes, to be appended to an entity's."""
    return _property(name, _tags().blob, data)


def string_property(name: str, data: bytes) -> bytes:
    """An unindexed text in UTF-8, to be appended to an entity's bytes."""
    return _property(name, _tags().string, data)
