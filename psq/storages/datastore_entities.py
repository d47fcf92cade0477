"""Records as Datastore entities and back: the schema of the kinds.

Written and read as raw protobuf (`google.datastore.v1`), which costs a tenth of
what Google's Entity does. Every property is excluded from indexes but `ix`, a
list of strings ``view:…:shard:time`` that serves all listings without a
composite index, and whose shard in front of the time keeps writes apart.

    psq-task   the task id           state, queue, function, attempt, run, times, result, error, worker; ix
    psq-dead   task id:attempt       queue, function, reason, payload, error, traceback, times, deaths; ix
    psq-eta    shard:due ms:id       queue, data, attributes, due_at
    psq-claim  the claim's key       owner, until, token
    psq-part   letter:key:hash:n     data

`expires` (a timestamp) is the property for a TTL policy of each kind; reads
look at `expires_at` and never trust that it was applied.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from psq.brokers.base import DeadLetter
from psq.errors import StorageError
from psq.storages.base import Scheduled, TaskRecord
from psq.storages.datastore_packing import Packed, unpack

__all__ = [
    "CLAIM",
    "DEAD",
    "ETA",
    "PART",
    "TASK",
    "dead_content",
    "dead_name",
    "dead_of",
    "eta_key",
    "eta_of",
    "fill_claim",
    "fill_dead",
    "fill_eta",
    "fill_part",
    "fill_task",
    "ix_name",
    "ix_shard",
    "key_name",
    "milliseconds",
    "part_names",
    "put_text",
    "put_time",
    "read",
    "task_content",
    "task_of",
]

TASK, DEAD, ETA, CLAIM, PART = "psq-task", "psq-dead", "psq-eta", "psq-claim", "psq-part"
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

_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


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


def dead_name(key: str) -> str:
    """The key name of a dead letter, from its own key, ``id:attempt``."""
    id, _, attempt = key.rpartition(":")
    return f"{key_name(id)}:{attempt}"


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


def eta_key(item: Scheduled, shards: int) -> str:
    """The key name of a scheduled message: its shard, then its time, so that a range of keys is what is due."""
    shard = zlib.crc32(item.id.encode("utf-8", "replace")) % shards
    return f"{shard}:{milliseconds(item.due_at):013d}:{key_name(item.id)}"


def part_names(letter: str, name: str, token: str, parts: int) -> list[str]:
    """Key names of the parts of a head, in order.

    Args:
        letter: ``t``, ``d`` or ``e``: the head's kind.
        name: The head's key name.
        token: `Packed.token`.
        parts: How many.
    """
    return [f"{letter}:{name}:{token}:{number}" for number in range(parts)]


# values


def put_text(properties: Any, name: str, value: str) -> None:
    """Set an unindexed text; one that UTF-8 can't say (lone surrogates) becomes a blob."""
    prop = properties[name]
    try:
        prop.string_value = value
    except UnicodeEncodeError:
        prop.blob_value = value.encode("utf-8", "surrogatepass")
    prop.exclude_from_indexes = True


def _put_float(properties: Any, name: str, value: float) -> None:
    prop = properties[name]
    prop.double_value = value
    prop.exclude_from_indexes = True


def _put_int(properties: Any, name: str, value: int) -> None:
    prop = properties[name]
    prop.integer_value = value
    prop.exclude_from_indexes = True


def _put_blob(properties: Any, name: str, value: bytes) -> None:
    prop = properties[name]
    prop.blob_value = value
    prop.exclude_from_indexes = True


def put_time(properties: Any, name: str, at: float) -> None:
    """Set an unindexed timestamp (whole seconds, rounded up): the TTL property."""
    prop = properties[name]
    prop.timestamp_value.seconds = min(LAST_SECOND, max(0, math.ceil(at)))
    prop.exclude_from_indexes = True


def _put_ix(properties: Any, *values: str) -> None:
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


def _read_text(properties: Any, name: str) -> str:
    value = read(properties, name, "")
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else str(value)


def _put_packed(properties: Any, packed: Packed) -> None:
    _put_int(properties, "size", packed.size)
    if packed.parts:
        _put_text_plain(properties, "token", packed.token)
        _put_int(properties, "parts", packed.parts)
    else:
        _put_blob(properties, "packed", packed.data)


def _put_text_plain(properties: Any, name: str, value: str) -> None:
    prop = properties[name]
    prop.string_value = value
    prop.exclude_from_indexes = True


def _content(properties: Any, parts: Sequence[bytes] | None) -> list[bytes | None] | None:
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


# psq-task


def task_content(record: TaskRecord) -> list[bytes | None]:
    """What of a record may be large: result and error."""
    error = None if record.error is None else _dumps(record.error).encode()
    return [record.result, error]


def fill_task(record: TaskRecord, content: Sequence[bytes | None], packed: Packed | None, entity: Any) -> None:
    """Write a record into an entity.

    Args:
        record: The record.
        content: `task_content` of it.
        packed: The same, packed, where it is too large for plain properties.
        entity: An empty entity whose key is set.
    """
    properties = entity.properties
    state, queue, function = record.state, record.queue, record.function
    _put_text_plain(properties, "state", state)
    put_text(properties, "queue", queue)
    put_text(properties, "function", function)
    if entity.key.path[0].name != record.id:
        put_text(properties, "id", record.id)
    if record.worker:
        put_text(properties, "worker", record.worker)
    _put_int(properties, "attempt", record.attempt)
    if record.run != 1:
        _put_int(properties, "run", record.run)
    _put_float(properties, "enqueued_at", record.enqueued_at)
    at = record.enqueued_at
    if record.started_at is not None:
        _put_float(properties, "started_at", at := record.started_at)
    if record.finished_at is not None:
        _put_float(properties, "finished_at", at := record.finished_at)
    if record.expires_at is not None:
        _put_float(properties, "expires_at", record.expires_at)
        put_time(properties, "expires", record.expires_at)
    if packed is not None:
        _put_packed(properties, packed)
    else:
        result, error = content
        if result is not None:
            _put_blob(properties, "result", result)
        if error is not None:
            _put_text_plain(properties, "error", error.decode())
    tail = f"{state}:{ix_shard(record.id)}:{milliseconds(at):013d}"
    _put_ix(properties, f"s:{tail}", f"q:{ix_name(queue)}:{tail}", f"f:{ix_name(function)}:{tail}")


def task_of(entity: Any, parts: Sequence[bytes] | None = None) -> TaskRecord | None:
    """Read a record.

    Args:
        entity: The head.
        parts: Its parts in order, where it has some.

    Returns:
        The record, or None: not written by us (psq 0.8 used the same kind).

    Raises:
        StorageError: Content is missing or broken.
    """
    properties = entity.properties
    if "state" not in properties:
        return None
    content = _content(properties, parts)
    if content is None:
        error = read(properties, "error")
        content = [read(properties, "result"), None if error is None else error.encode()]
    result, error = content
    return TaskRecord(
        id=_read_text(properties, "id") or entity.key.path[0].name,
        state=read(properties, "state", ""),
        queue=_read_text(properties, "queue"),
        function=_read_text(properties, "function"),
        attempt=read(properties, "attempt", 1),
        run=read(properties, "run", 1),
        enqueued_at=read(properties, "enqueued_at", 0.0),
        started_at=read(properties, "started_at"),
        finished_at=read(properties, "finished_at"),
        result=result,
        error=None if error is None else json.loads(error),
        worker=_read_text(properties, "worker"),
        expires_at=read(properties, "expires_at"),
    )


# psq-dead


def dead_content(letter: DeadLetter) -> list[bytes | None]:
    """What of a dead letter may be large."""
    return [letter.payload, *(text.encode("utf-8", "surrogatepass") for text in (letter.error, letter.traceback))]


def fill_dead(letter: DeadLetter, packed: Packed | None, entity: Any) -> None:
    """Write a dead letter into an entity; see `fill_task`."""
    properties = entity.properties
    put_text(properties, "id", letter.id)
    _put_int(properties, "attempt", letter.attempt)
    put_text(properties, "queue", letter.queue)
    put_text(properties, "function", letter.function)
    put_text(properties, "reason", letter.reason)
    _put_float(properties, "enqueued_at", letter.enqueued_at)
    _put_float(properties, "died_at", letter.died_at)
    if letter.deaths:
        _put_text_plain(properties, "deaths", _dumps([dict(death) for death in letter.deaths]))
    if packed is not None:
        _put_packed(properties, packed)
    else:
        _put_blob(properties, "payload", letter.payload)
        put_text(properties, "error", letter.error)
        put_text(properties, "traceback", letter.traceback)
    tail = f"{ix_shard(letter.id)}:{milliseconds(letter.died_at):013d}"
    _put_ix(properties, f"a:{tail}", f"q:{ix_name(letter.queue)}:{tail}")


def dead_of(entity: Any, parts: Sequence[bytes] | None = None) -> DeadLetter | None:
    """Read a dead letter; see `task_of`."""
    properties = entity.properties
    if "reason" not in properties:
        return None
    content = _content(properties, parts)
    if content is None:
        payload, error, traceback = (
            read(properties, "payload", b""),
            _read_text(properties, "error"),
            _read_text(properties, "traceback"),
        )
    else:
        payload = content[0] or b""
        error, traceback = ((field or b"").decode("utf-8", "surrogatepass") for field in content[1:3])
    return DeadLetter(
        id=_read_text(properties, "id"),
        attempt=read(properties, "attempt", 1),
        queue=_read_text(properties, "queue"),
        function=_read_text(properties, "function"),
        reason=_read_text(properties, "reason"),
        payload=payload,
        error=error,
        traceback=traceback,
        enqueued_at=read(properties, "enqueued_at", 0.0),
        died_at=read(properties, "died_at", 0.0),
        deaths=json.loads(read(properties, "deaths", "[]")),
    )


# psq-claim, psq-eta and psq-part


def fill_claim(owner: str, until: float, token: int, kept: float, entity: Any) -> None:
    """Write a claim into an entity; `kept` is seconds after its end that it stays."""
    properties = entity.properties
    put_text(properties, "owner", owner)
    _put_float(properties, "until", until)
    _put_int(properties, "token", token)
    put_time(properties, "expires", until + kept)


def fill_eta(item: Scheduled, packed: Packed | None, entity: Any) -> None:
    """Write a scheduled message into an entity; see `fill_task`."""
    properties = entity.properties
    put_text(properties, "id", item.id)
    put_text(properties, "queue", item.queue)
    _put_float(properties, "due_at", item.due_at)
    attributes: Mapping[str, str] = item.attributes
    if attributes:
        _put_text_plain(properties, "attributes", _dumps(dict(attributes)))
    if packed is not None:
        _put_packed(properties, packed)
    else:
        _put_blob(properties, "data", item.data)


def eta_of(entity: Any, parts: Sequence[bytes] | None = None) -> Scheduled | None:
    """Read a scheduled message; see `task_of`."""
    properties = entity.properties
    if "due_at" not in properties:
        return None
    content = _content(properties, parts)
    return Scheduled(
        id=_read_text(properties, "id"),
        due_at=read(properties, "due_at"),
        queue=_read_text(properties, "queue"),
        data=read(properties, "data", b"") if content is None else content[0] or b"",
        attributes=json.loads(read(properties, "attributes", "{}")),
        key=entity.key.path[0].name,
    )


def fill_part(data: bytes, expires_at: float | None, entity: Any) -> None:
    """Write a part into an entity."""
    _put_blob(entity.properties, "data", data)
    if expires_at is not None:
        put_time(entity.properties, "expires", expires_at)
