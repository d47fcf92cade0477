"""Records of tasks as entities of the kind psq-task, and back: see `datastore_entities` for the schema."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Sequence
from typing import Any

from psq.storages.base import TERMINAL, TaskRecord
from psq.storages.datastore_api import pb
from psq.storages.datastore_commit import Seen
from psq.storages.datastore_heads import Head
from psq.storages.datastore_values import (
    blob_property,
    is_expired,
    ix_name,
    ix_shard,
    key_name,
    milliseconds,
    packed_fields,
    put_blob,
    put_float,
    put_int,
    put_ix,
    put_packed,
    put_string,
    put_text,
    put_time,
    read,
    read_text,
    string_property,
    whole_seconds,
)
from psq.storages.datastore_wire import Template, seconds_varint

__all__ = ["TASK", "TaskHead", "task_of"]

TASK = "psq-task"

_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class TaskHead(Head):
    """A record to write. The error is JSON by then.

    Raises:
        TypeError: The error is no JSON.
        ValueError: As above.
    """

    kind = TASK
    letter = "t"
    guarded = True

    __slots__ = ("record",)

    def __init__(self, record: TaskRecord, seen: Seen | None = None) -> None:
        self.record = record
        name = key_name(record.id)
        super().__init__(
            name,
            (record.result, None if record.error is None else _dumps(record.error).encode()),
            names=3 * (len(record.queue) + len(record.function) + len(record.worker) + len(name)),
            look=record.run > 1,  # requeued: its failure is there
            seen=seen,
        )
        self.expires_at = record.expires_at

    def replaces(self, seen: Seen) -> bool:
        """Terminal states stay, unless they have expired or this is of a later attempt or run."""
        if seen.entity is None:  # written by ourselves a moment ago
            return True
        properties = seen.entity.properties
        if read(properties, "state") not in TERMINAL or is_expired(read(properties, "expires_at")):
            return True
        there: tuple[int, int] = (read(properties, "run", 1), read(properties, "attempt", 1))
        return (self.record.run, self.record.attempt) > there

    def fill(self, entity: Any) -> None:
        """See `Write.fill`."""
        record, properties = self.record, entity.properties
        at = _fill_common(properties, record)
        if self.packed is not None:
            put_packed(properties, self.packed)
        else:
            result, error = self.content
            if result is not None:
                put_blob(properties, "result", result)
            if error is not None:
                put_string(properties, "error", error.decode())
        if self.name != record.id:
            put_text(properties, "id", record.id)
        put_ix(properties, *(view + _tail(record.id, at) for view in _views(record)))

    def encode(self, key: bytes) -> bytes | None:
        """See `Write.encode`."""
        record = self.record
        id, started, finished, expires = record.id, record.started_at, record.finished_at, record.expires_at
        if self.packed is not None or self.name != id:
            return None
        template = _template(
            key,
            len(id),
            record.state,
            record.queue,
            record.function,
            record.worker,
            record.attempt,
            record.run,
            started is not None,
            finished is not None,
            expires is not None,
        )
        if template is None:
            return None
        at = record.enqueued_at
        values = [id.encode(), _double(at)]
        if started is not None:
            values.append(_double(at := started))
        if finished is not None:
            values.append(_double(at := finished))
        if expires is not None:
            seconds = seconds_varint(whole_seconds(expires))
            if seconds is None:
                return None
            values += (_double(expires), seconds)
        tail = _tail(id, at).encode()
        values += (tail, tail, tail)
        result, error = self.content
        return template.filled(
            values,
            b"" if result is None else blob_property("result", result),
            b"" if error is None else string_property("error", error),
        )


def _tail(id: str, at: float) -> str:
    """How a value of `ix` ends: 15 characters."""
    return f"{ix_shard(id)}:{milliseconds(at):013d}"


def _views(record: TaskRecord) -> tuple[str, str, str]:
    """How the values of `ix` begin."""
    state = record.state
    return f"s:{state}:", f"q:{ix_name(record.queue)}:{state}:", f"f:{ix_name(record.function)}:{state}:"


def _fill_common(properties: Any, record: TaskRecord) -> float:
    """Set all but the content, the id and `ix`; the time that counts for `ix`."""
    put_string(properties, "state", record.state)
    put_text(properties, "queue", record.queue)
    put_text(properties, "function", record.function)
    if record.worker:
        put_text(properties, "worker", record.worker)
    put_int(properties, "attempt", record.attempt)
    if record.run != 1:
        put_int(properties, "run", record.run)
    at = record.enqueued_at
    put_float(properties, "enqueued_at", at)
    if record.started_at is not None:
        put_float(properties, "started_at", at := record.started_at)
    if record.finished_at is not None:
        put_float(properties, "finished_at", at := record.finished_at)
    if record.expires_at is not None:
        put_float(properties, "expires_at", record.expires_at)
        put_time(properties, "expires", record.expires_at)
    return at


_double = struct.Struct("<d").pack
#: Stand where the times will be: no record has these.
_TIMES = (1.2345678901234e-300, 1.2345678901235e-300, 1.2345678901236e-300, 1.2345678901237e-300)
_TAILS = ("\x01marked-tail-0\x01", "\x01marked-tail-1\x01", "\x01marked-tail-2\x01")
_SECONDS = 0x3_1234_5678


@functools.lru_cache(maxsize=4096)
def _template(
    key: bytes,
    length: int,
    state: str,
    queue: str,
    function: str,
    worker: str,
    attempt: int,
    run: int,
    started: bool,
    finished: bool,
    expires: bool,
) -> Template | None:
    """The entity of records that differ in id, times and content; None where a marker can't be told."""
    id = "\x02" + "\x03" * (length - 1)
    marked = TaskRecord(id, state, queue, function, attempt, run, _TIMES[0], worker=worker)
    markers = [id.encode(), _double(_TIMES[0])]
    if started:
        marked.started_at = _TIMES[1]
        markers.append(_double(_TIMES[1]))
    if finished:
        marked.finished_at = _TIMES[2]
        markers.append(_double(_TIMES[2]))
    if expires:
        marked.expires_at = _TIMES[3]
        markers += (_double(_TIMES[3]), seconds_varint(_SECONDS) or b"")
    entity = pb().Entity()
    entity.key.MergeFromString(key)
    entity.key.path[0].name = id
    _fill_common(entity.properties, marked)
    if expires:
        entity.properties["expires"].timestamp_value.seconds = _SECONDS
    put_ix(entity.properties, *(view + tail for view, tail in zip(_views(marked), _TAILS, strict=True)))
    try:
        return Template(entity, [*markers, *(tail.encode() for tail in _TAILS)])
    except ValueError:
        return None


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
    content = packed_fields(properties, parts)
    if content is None:
        error = read(properties, "error")
        content = [read(properties, "result"), None if error is None else error.encode()]
    result, error = content
    return TaskRecord(
        id=read_text(properties, "id") if "id" in properties else entity.key.path[0].name,
        state=read(properties, "state", ""),
        queue=read_text(properties, "queue"),
        function=read_text(properties, "function"),
        attempt=read(properties, "attempt", 1),
        run=read(properties, "run", 1),
        enqueued_at=read(properties, "enqueued_at", 0.0),
        started_at=read(properties, "started_at"),
        finished_at=read(properties, "finished_at"),
        result=result,
        error=None if error is None else json.loads(error),
        worker=read_text(properties, "worker"),
        expires_at=read(properties, "expires_at"),
    )
