"""Records of tasks as entities of the kind psq-task, and back: see `datastore_entities` for the schema."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from psq.storages.base import TERMINAL, TaskRecord
from psq.storages.datastore_api import pb
from psq.storages.datastore_commit import Seen
from psq.storages.datastore_heads import Head
from psq.storages.datastore_values import (
    is_expired,
    ix_name,
    ix_shard,
    key_name,
    milliseconds,
    packed_fields,
    put_blob,
    put_float,
    put_int,
    put_packed,
    put_string,
    put_text,
    put_time,
    read,
    read_text,
    whole_seconds,
)

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
        record = self.record
        started, finished, expires = record.started_at, record.finished_at, record.expires_at
        constant, views = _task_template(
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
        entity.MergeFromString(constant)
        properties = entity.properties
        at = record.enqueued_at
        properties["enqueued_at"].double_value = at
        if started is not None:
            properties["started_at"].double_value = at = started
        if finished is not None:
            properties["finished_at"].double_value = at = finished
        if expires is not None:
            properties["expires_at"].double_value = expires
            properties["expires"].timestamp_value.seconds = whole_seconds(expires)
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
        tail = f"{ix_shard(record.id)}:{milliseconds(at):013d}"
        add = properties["ix"].array_value.values.add
        for view in views:
            add().string_value = view + tail


@functools.lru_cache(maxsize=1024)
def _task_template(
    state: str,
    queue: str,
    function: str,
    worker: str,
    attempt: int,
    run: int,
    started: bool,
    finished: bool,
    expires: bool,
) -> tuple[bytes, tuple[str, str, str]]:
    """What the records of one function have in common: reading it in costs less than setting it."""
    entity = pb().Entity()
    properties = entity.properties
    put_string(properties, "state", state)
    put_text(properties, "queue", queue)
    put_text(properties, "function", function)
    if worker:
        put_text(properties, "worker", worker)
    put_int(properties, "attempt", attempt)
    if run != 1:
        put_int(properties, "run", run)
    for name, there in (("enqueued_at", True), ("started_at", started), ("finished_at", finished)):
        if there:
            put_float(properties, name, 0.0)
    if expires:
        put_float(properties, "expires_at", 0.0)
        put_time(properties, "expires", 0.0)
    views = (f"s:{state}:", f"q:{ix_name(queue)}:{state}:", f"f:{ix_name(function)}:{state}:")
    return entity.SerializeToString(), views


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
